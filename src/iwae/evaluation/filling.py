"""Filled rows in the form of the user's own table: every observed cell stays as it was.

The rows of a model are [n, d] in float32. Those of its values that fill a hole are decoded into
what the user knows, words included.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from iwae._utils.extras import require
from iwae._utils.files import replacing
from iwae.data import arrays, columns, frames
from iwae.data.cells import Cells, Table
from iwae.data.tables import read_table
from iwae.models.observation import Observation

Holes = dict[int, tuple[Bool[np.ndarray, " n"], np.ndarray]]
"""By the position of a column in the user's table: where it has holes [n], and what fills them."""


def filled(
    source: Any, rows: Float[np.ndarray, "n d"], seen: Observation, header: str = "auto"
) -> Any:
    """`source` with its missing values taken from these rows.

    An array, records, a data frame or a mapping of columns gives the like. A .csv file with names
    gives a mapping from them to columns, a .parquet file a data frame, and others an array.
    """
    if isinstance(source, str | os.PathLike):
        return _of_file(source, rows, seen, header)
    if seen.schema is None and not frames.is_tabular(source) and not isinstance(source, Table):
        return _of_array(np.asanyarray(source), rows, seen)
    found = holes(
        source if isinstance(source, Table) else frames.as_table(source, "It"), rows, seen
    )
    if isinstance(source, Table):
        return _of_table(source, found)
    if frames.is_frame(source):
        return _of_frame(source, found)
    if frames.is_records(source):
        made = source.copy()
        for i, (gaps, values) in found.items():
            made[made.dtype.names[i]][gaps] = values
        return made
    if isinstance(source, Mapping):
        return {name: _of_sequence(v, found.get(i)) for i, (name, v) in enumerate(source.items())}
    return _of_matrix(np.asanyarray(source), found)


def holes(table: Table, rows: Float[np.ndarray, "n d"], seen: Observation) -> Holes:
    """The holes of a user's table, filled from rows of the model in the user's values."""
    found = {}
    large = seen.schema is None and any((c.seen() > 1).any() for c in table.columns)
    for j, i in enumerate(_positions(table, seen)):
        gaps = table.columns[i].gaps
        if not gaps.any():
            continue
        if seen.schema is not None:
            found[i] = (gaps, seen.schema.columns[j].decode(rows[gaps, j]))
        else:
            found[i] = (gaps, rows[gaps, j] * _units(seen, large=large))
    return found


def _units(seen: Observation, *, large: bool) -> float:
    """By what the model's intensities are multiplied if the user's values are `large`, above 1."""
    return seen.scale if seen.kind == "intensity" and large else 1.0


def _positions(table: Table, seen: Observation) -> Sequence[int]:
    """The position in a user's table of each column of the model."""
    if seen.schema is None:
        names = table.names if table.named else ()
        at = columns.order(names, seen.names, len(table.names), "The table")
        return range(len(table.names)) if at is None else at.tolist()
    named = Table(table.names, table.columns, table.named and bool(seen.names))
    place = {id(cells): i for i, cells in enumerate(table.columns)}
    return [place[id(cells)] for cells in seen.schema.select(named, "The table").columns]


def _of_file(
    source: str | os.PathLike[str], rows: np.ndarray, seen: Observation, header: str
) -> Any:
    kind = arrays.suffix(Path(source))
    if kind == ".parquet":
        return filled(read_parquet_frame(Path(source)), rows, seen)
    if kind in (".csv", ".csv.gz") and seen.names:
        ignored = () if seen.schema is None else seen.schema.ignored
        table = read_table(Path(source), header=header, names=(*seen.names, *ignored))
        return filled(table, rows, seen) if table.named else rows
    return rows * np.float32(_units(seen, large=True))


def read_parquet_frame(path: Path) -> Any:
    """The data frame in a Parquet file, of polars or pyarrow."""
    nw = require("narwhals", purpose="a Parquet file")
    backend = "pyarrow" if importlib.util.find_spec("pyarrow") else "polars"
    return nw.read_parquet(str(path), backend=backend).to_native()


def write_parquet(path: Path, source: Path, rows: np.ndarray, seen: Observation) -> None:
    """Writes a Parquet file whose holes are filled from rows [n, d], or [m, n, d] below each other.

    The latter have the columns `.imp` and `.id` of `CsvText.stacked` in front.
    """
    nw = require("narwhals", purpose="a Parquet file")
    frame = read_parquet_frame(source)
    made = nw.from_native(filled(frame, rows, seen) if rows.ndim == 2 else frame, eager_only=True)
    if rows.ndim == 3:
        parts = [made, *(nw.from_native(filled(frame, part, seen)) for part in rows)]
        made = nw.concat(
            [
                part.with_row_index(".id").select(
                    nw.lit(number).cast(nw.Int64).alias(".imp"),
                    (nw.col(".id") + 1).cast(nw.Int64),
                    *map(nw.col, part.columns),
                )
                for number, part in enumerate(parts)
            ]
        )
    with replacing(path) as temporary:
        made.write_parquet(str(temporary))


def _of_table(table: Table, found: Holes) -> dict[str, np.ndarray]:
    """The columns of a file by name."""
    return {
        name: _of_sequence(_as_given(cells), found.get(i))
        for i, (name, cells) in enumerate(zip(table.names, table.columns, strict=True))
    }


def _as_given(cells: Cells) -> np.ndarray:
    """The values of a column, None or NaN where they are missing; whole numbers as such."""
    if cells.levels is not None:
        levels = np.array([*cells.levels, None], object)
        given: np.ndarray = levels[np.where(cells.gaps, len(cells.levels), cells.values)]
        return given
    seen = cells.values[~cells.gaps]
    if cells.values.dtype.kind == "f" and bool((seen == np.rint(seen)).all()):
        return np.where(cells.gaps, 0, cells.values).astype(np.int64)
    return cells.values


def _of_frame(frame: Any, found: Holes) -> Any:
    """A data frame with its holes filled, each column in its type."""
    if hasattr(frame, "iloc"):  # pandas, whose categories and indices stay as they are
        made = frame.copy()
        for i, (gaps, values) in found.items():
            made.iloc[gaps, i] = _whole(values, str(made.dtypes.iloc[i])).tolist()
        return made
    if hasattr(frame, "set_column"):  # pyarrow, whose types say more than those of narwhals
        for i, (gaps, values) in found.items():
            field = frame.schema.field(i)
            cells = _with_cells(frame.column(i).to_pylist(), gaps, _whole(values, str(field.type)))
            array = require("pyarrow", purpose="a data frame").array(cells, type=field.type)
            frame = frame.set_column(i, field, array)
        return frame
    nw = require("narwhals", purpose="a data frame")
    given = nw.from_native(frame, eager_only=True)
    series = []
    for i, (gaps, values) in found.items():
        old = given[:, i]
        cells = _with_cells(old.to_list(), gaps, _whole(values, str(old.dtype)))
        series.append(nw.new_series(old.name, cells, dtype=old.dtype, backend=given.implementation))
    return given.with_columns(*series).to_native() if series else frame


def _whole(values: np.ndarray, kind: str) -> np.ndarray:
    """The values, as integers if the type of their column, by name, is one of integers."""
    integers = kind.lower().startswith(("int", "uint"))
    return np.rint(values).astype(np.int64) if integers and values.dtype.kind == "f" else values


def _with_cells(cells: Sequence[Any], gaps: np.ndarray, values: np.ndarray) -> list[Any]:
    """The cells of a column with those at the gaps replaced."""
    made = list(cells)
    for at, value in zip(np.flatnonzero(gaps), values.tolist(), strict=True):
        made[at] = value
    return made


def _of_sequence(values: Any, of: tuple[np.ndarray, np.ndarray] | None) -> Any:
    """A column of a mapping with its holes filled: a list stays one, others become arrays."""
    if of is None:
        return values
    if isinstance(values, list | tuple):
        return _with_cells(values, *of)
    array = np.atleast_1d(np.ma.getdata(np.asanyarray(values)))
    made = array.astype(np.result_type(array, of[1]) if array.dtype.kind in "iu" else array.dtype)
    made[of[0]] = of[1]
    return made


def _of_matrix(x: np.ndarray, found: Holes) -> np.ndarray:
    """An array [n, d], or one row [d], with its holes filled."""
    made = np.atleast_2d(np.ma.getdata(x)).copy()
    for i, (gaps, values) in found.items():
        made[gaps, i] = values
    return made.reshape(x.shape)


def _of_array(x: np.ndarray, rows: np.ndarray, seen: Observation) -> np.ndarray:
    """An array of numbers with its holes filled, intensities on the scale of its values."""
    made = np.ma.getdata(x).copy()
    gaps = np.ma.getmaskarray(x) | (np.isnan(made) if made.dtype.kind == "f" else False)
    units = _units(seen, large=bool((made[~gaps] > 1).any()))
    values = rows.reshape(x.shape)[gaps] * units
    made[gaps] = np.rint(values) if made.dtype.kind in "iu" else values
    return made
