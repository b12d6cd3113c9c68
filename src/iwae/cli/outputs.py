"""Output files of commands, in the format of their suffix, and a robust standard error."""

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
    """Standard error that drops text, rather than fail, when it is closed or its terminal is
    gone."""

    @property
    def _stream(self) -> Any:
        """The underlying stream, also while a progress bar replaces `sys.stderr`."""
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
        except (OSError, ValueError):  # so that flushing at exit does not fail either
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def check_output(
    path: Path | None,
    suffixes: tuple[str, ...],
    *,
    overwrite: bool,
    reads: str | Path | None = None,
) -> None:
    """`InputError`, before any work, unless the file can be written.

    Its format must be known, it must not exist unless `overwrite`, it must not be what the command
    `reads`, and its directory must be writable.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        known = " or ".join([", ".join(suffixes[:-1])] * (len(suffixes) > 1) + [suffixes[-1]])
        raise InputError(f"{path} has no known suffix; give a file that ends in {known}.")
    check_writable(path, overwrite=overwrite, reads=reads)
    if not os.access(path.parent, os.W_OK):
        raise InputError(
            f"{path} was given, but {path.parent} is not a writable directory; give a file "
            f"elsewhere."
        )
    if path.suffix in (".png", ".svg"):
        for module in ("matplotlib", "PIL"):
            require(module, purpose="a picture", extra="report")


def write_array(path: Path, array: "np.ndarray") -> None:
    """Write a .npy file atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def write_table(
    path: Path, array: "np.ndarray", names: tuple[str, ...] | list[str], *, index: bool = False
) -> None:
    """Write [n, …] as a .npy file, or as a .csv file with a header and one line per row.

    With `index`, the first column numbers the rows.
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
    """Write scores as a .npy file, or as a .csv file with one line per example."""
    if path.suffix == ".npy":
        return write_array(path, scores)
    rows = [f"{i},{value:.6f}\n" for i, value in enumerate(scores)]
    return write_atomic(path, "".join(["index,log_likelihood\n", *rows]))
