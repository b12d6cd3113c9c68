"""What commands write: arrays, scores and pictures, by the ending of the file's name; and what they
say on standard error."""

import contextlib
import csv
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwae._utils.extras import require
from iwae._utils.files import check_writable, write_atomic
from iwae.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class StandardError(io.TextIOBase):
    """Standard error, which may be closed, or go with its terminal: what is said then is lost, and
    nothing ends by it."""

    @property
    def _stream(self) -> Any:
        """The stream behind the one that a progress bar puts in its place."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except (AttributeError, ValueError):
            return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *given: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*given)
        except (OSError, ValueError):  # and nothing later fails by what is left to be written
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def check_output(
    path: Path | None,
    suffixes: tuple[str, ...],
    *,
    overwrite: bool,
    reads: str | Path | None = None,
) -> None:
    """Before any work: the format is known, nothing would be overwritten, what the command `reads`
    in no case, and the folder can be written to."""
    if path is None:
        return
    if path.suffix not in suffixes:
        known = " or ".join([", ".join(suffixes[:-1])] * (len(suffixes) > 1) + [suffixes[-1]])
        raise InputError(f"{path} ends in no known format; give a file ending in {known}.")
    check_writable(path, overwrite=overwrite, reads=reads)
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written to {path.parent}; give a file elsewhere.")
    if path.suffix in (".png", ".svg"):
        for module in ("matplotlib", "PIL"):
            require(module, purpose="a picture", extra="report")


def write_array(path: Path, array: "np.ndarray") -> None:
    """A .npy file, whole or not at all."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def write_table(
    path: Path, array: "np.ndarray", names: tuple[str, ...] | list[str], *, index: bool = False
) -> None:
    """A .npy file, or .csv with a line of names and one for each row of [n, …], in all its digits.

    With `index` the lines are counted in the first column.
    """
    if path.suffix == ".npy":
        return write_array(path, array)
    text = io.StringIO()
    rows = array.reshape(len(array), -1)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index"] * index + list(names))
    for i, row in enumerate(rows):
        writer.writerow([str(i)] * index + [f"{value:.9g}" for value in row])
    return write_atomic(path, text.getvalue())


def write_scores(path: Path, scores: "np.ndarray") -> None:
    """A .npy file, or .csv with a line for each example."""
    if path.suffix == ".npy":
        return write_array(path, scores)
    rows = [f"{i},{value:.6f}\n" for i, value in enumerate(scores)]
    return write_atomic(path, "".join(["index,log_likelihood\n", *rows]))
