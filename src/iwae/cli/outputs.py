"""Output files of commands, in the format of their suffix, and a robust standard error."""

import contextlib
import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iwae._utils.extras import require
from iwae._utils.files import check_writable, write_atomic
from iwae.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from iwae.evaluation.anomalies import Anomaly
    from iwae.models.observation import Observation


class Numbering(NamedTuple):
    """The first column of a .csv file, which numbers its lines."""

    name: str
    first: int


INDEX = Numbering("index", 0)
"""Of examples, by their place in an array."""

ROW = Numbering("row", 1)
"""Of a table's rows, as messages number them: row 1 is the first below the names."""


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
    path: Path,
    array: "np.ndarray",
    names: tuple[str, ...] | list[str],
    numbering: Numbering | None = None,
) -> None:
    """Write [n, …] as a .npy file, or as a .csv file with a header and one line per row."""
    if path.suffix == ".npy":
        return write_array(path, array)
    text = io.StringIO()
    rows = array.reshape(len(array), -1)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*([numbering.name] if numbering else []), *names])
    for i, row in enumerate(rows):
        number = [i + numbering.first] if numbering else []
        writer.writerow([*number, *(f"{value:.9g}" for value in row)])
    return write_atomic(path, text.getvalue())


def write_columns(path: Path, columns: "Mapping[str, np.ndarray]") -> None:
    """Write the columns of a table as a .csv file with a header: words as they are, and numbers
    with 7 digits, those of float32."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    cell = lambda value: f"{value:.7g}" if isinstance(value, float) else value
    for row in zip(*(values.tolist() for values in columns.values()), strict=True):
        writer.writerow(map(cell, row))
    write_atomic(path, text.getvalue())


def write_filled(
    path: Path, source: str, rows: "np.ndarray", seen: "Observation", *, header: str
) -> None:
    """Write a file like `source` whose holes are filled from rows [n, d], or [m, n, d] for each of
    m imputations (`CsvText.stacked`; a .npy file then has another axis in front)."""
    import numpy as np

    from iwae.data.refilled import CsvText
    from iwae.data.tables import read_table
    from iwae.evaluation import filling

    several = rows.ndim == 3
    if path.suffix == ".parquet":
        filling.write_parquet(path, Path(source), rows, seen)
    elif path.suffix == ".npy":
        parts = [
            filling.filled(source, part, seen, header) for part in (rows if several else [rows])
        ]
        write_array(path, np.stack(parts) if several else parts[0])
    else:
        names = seen.names if seen.schema is None else (*seen.schema.names, *seen.schema.ignored)
        table = read_table(Path(source), header=header, names=names)
        text = CsvText.read(Path(source), header=header, names=names)
        if several:
            content = text.stacked([filling.holes(table, part, seen) for part in rows])
        else:
            content = text.filled(filling.holes(table, rows, seen))
        write_atomic(path, content)


def write_anomalies(path: Path, found: "Sequence[Anomaly]", names: Sequence[str]) -> None:
    """Write anomalies as a .csv file, log p(x_j|x_rest) of the columns under their names."""
    names = names or sorted({c.name for a in found for c in a.columns}, key=lambda n: int(n[1:]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", ROW.name, "score", "log_likelihood", "standard_error", *names])
    for rank, anomaly in enumerate(found, start=1):
        of = {column.name: f"{column.log_density:.6f}" for column in anomaly.columns}
        figures = [anomaly.score, anomaly.log_likelihood, anomaly.standard_error]
        own = [f"{value:.6f}" for value in figures] + [of.get(name, "") for name in names]
        writer.writerow([rank, anomaly.index + ROW.first, *own])
    write_atomic(path, text.getvalue())


def write_scores(path: Path, scores: "np.ndarray", numbering: Numbering = INDEX) -> None:
    """Write scores as a .npy file, or as a .csv file with one line per example."""
    if path.suffix == ".npy":
        return write_array(path, scores)
    rows = [f"{i},{value:.6f}\n" for i, value in enumerate(scores, start=numbering.first)]
    return write_atomic(path, "".join([f"{numbering.name},log_likelihood\n", *rows]))
