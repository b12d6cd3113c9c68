"""Tables from data frames (pandas, polars, pyarrow through narwhals), mappings, arrays, Parquet."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwae._utils.extras import require
from iwae.data import cells, columns
from iwae.data.cells import DATES, NESTED, Cells, Table, check_memory, refuse, table_of
from iwae.errors import InputError

FRAMES = ("pandas", "polars", "pyarrow", "modin", "cudf")
"""Libraries whose data frames narwhals reads at once."""

PARQUET = ".parquet"


def is_frame(source: object) -> bool:
    """Whether it is a data frame of a library that narwhals knows."""
    library = type(source).__module__.partition(".")[0]
    if library not in FRAMES or library not in sys.modules:
        return False
    if type(source).__name__ == "LazyFrame":
        raise InputError("A LazyFrame was given, which has no rows yet: give its collect().")
    return hasattr(source, "columns") and len(getattr(source, "shape", ())) == 2


def is_sparse(source: object) -> bool:
    """Whether it is a sparse matrix of SciPy or its like."""
    return hasattr(source, "toarray") and hasattr(source, "nnz")


def is_records(source: object) -> bool:
    """Whether it is an array of records, with named fields."""
    return isinstance(source, np.ndarray) and source.dtype.names is not None


def is_columns(source: object) -> bool:
    """Whether it is a mapping from the names of columns to their values, each 1-D."""
    return (
        isinstance(source, Mapping)
        and not is_sparse(source)  # of which some are dictionaries
        and bool(source)
        and all(isinstance(v, list | tuple) or np.ndim(v) == 1 for v in source.values())
    )


def is_tabular(source: object) -> bool:
    """Whether it has columns of their own types, beyond an array of numbers."""
    return is_frame(source) or is_records(source) or is_columns(source)


def densified(source: Any, where: str) -> np.ndarray:
    """A sparse matrix as an array [n, d], whose entries that are not stored are zeros.

    Raises InputError if it needs more memory than the machine has.
    """
    n, d = source.shape
    check_memory(n, d, where, bytes_each=source.dtype.itemsize + 4)
    return np.asarray(source.toarray())


def as_table(source: Any, where: str) -> Table:
    """A table from a data frame, records, a mapping of columns, a labelled row, or an array.

    A mapping of single values, or a labelled row, is a table of one row. Raises InputError for
    columns that no model can take, and for other sources.
    """
    if is_frame(source):
        return _of_frame(source, where)
    if is_records(source):
        x = np.atleast_1d(source)
        fields = x.dtype.names or ()
        return table_of([(columns.tidy(f), of_array(x[f], f, where)) for f in fields], where)
    if is_sparse(source):
        source = densified(source, where)
    if isinstance(source, Mapping):
        pairs = [(columns.tidy(name), _column(v, str(name), where)) for name, v in source.items()]
        return table_of(pairs, where)
    names = columns.names_of(source)
    if names and getattr(source, "ndim", 2) == 1:
        values = source.tolist() if hasattr(source, "tolist") else list(source.__array__())
        pairs = [
            (name, cells.of_objects([v], name, where))
            for name, v in zip(names, values, strict=True)
        ]
        return table_of(pairs, where)
    if not hasattr(source, "__array__"):
        what = f"{where} is a {type(source).__name__}"
        raise InputError(f"{what}: give a data frame, an array, a mapping of columns, or a path.")
    return _of_matrix(
        source if isinstance(source, np.ndarray) else np.asarray(source), names, where
    )


def _of_matrix(x: np.ndarray, names: Sequence[str], where: str) -> Table:
    """A table from an array [n, d], or from one row [d]."""
    if x.ndim == 1:
        x = x[None]
    if x.ndim != 2:
        what = f"{where} has the shape {x.shape}, but a table has rows and columns"
        raise InputError(f"{what}: give [n, d].")
    check_memory(x.shape[0], x.shape[1], where)
    if 0 in x.shape:
        what = f"{where} is empty (shape {x.shape})"
        raise InputError(f"{what}: give at least one row with at least one column.")
    named = len(names) == x.shape[1] and not _are_counted(names)
    called = names if named else [f"x{j}" for j in range(x.shape[1])]
    pairs = [(name, of_array(x[:, j], name, where)) for j, name in enumerate(called)]
    return table_of(pairs, where, named=named)


def of_array(x: np.ndarray, name: str, where: str) -> Cells:
    return cells.of_numpy(x, name, where)


def _column(values: Any, name: str, where: str) -> Cells:
    """The cells of one entry of a mapping: a sequence, a column of a data frame, or one value."""
    if isinstance(values, np.ndarray):
        return cells.of_numpy(np.atleast_1d(values), name, where)
    if isinstance(values, list | tuple):
        return cells.of_objects(values, name, where)
    if isinstance(values, str) or not hasattr(values, "__len__"):
        return cells.of_objects([values], name, where)
    if type(values).__module__.partition(".")[0] in FRAMES:
        nw = require("narwhals", purpose="a column of a data frame")
        series = nw.from_native(values, series_only=True, pass_through=True)
        if series is not values:
            return _of_series(series, name, where)
    return cells.of_numpy(np.asarray(values), name, where)


def _of_frame(source: Any, where: str) -> Table:
    names = tuple(columns.tidy(name) for name in _labels(source))
    cells.check_names(names, where)
    if importlib.util.find_spec("narwhals") is None and hasattr(source, "__array__"):
        plain = np.asarray(source)
        if plain.dtype.kind in "biuf" and plain.size:
            return _of_matrix(plain, () if _are_counted(names) else names, where)
    nw = require("narwhals", purpose="a data frame")
    if 0 in source.shape:
        what = f"{where} is empty ({source.shape[1]} columns, {source.shape[0]} rows)"
        raise InputError(f"{what}: give at least one row with at least one column.")
    check_memory(source.shape[0], source.shape[1], where)
    if not all(isinstance(label, str) for label in _labels(source)):
        source = source.rename(columns=dict(zip(source.columns, names, strict=True)))
    frame = nw.from_native(source, eager_only=True)
    pairs = zip(names, frame.iter_columns(), strict=True)
    found = [(name, _of_series(series, name, where)) for name, series in pairs]
    if _are_counted(names):
        return table_of([(f"x{name}", cells) for name, cells in found], where, named=False)
    return table_of(found, where)


def _are_counted(names: Sequence[str]) -> bool:
    """Whether the names are only 0, 1, …, which a data frame has by default."""
    return tuple(names) == tuple(map(str, range(len(names))))


def _labels(frame: Any) -> list[object]:
    """The labels of a frame's columns; those of pyarrow are its `column_names`."""
    return list(getattr(frame, "column_names", None) or frame.columns)


def _of_series(series: Any, name: str, where: str) -> Cells:
    """The cells of a column of a data frame, by its type."""
    nw = require("narwhals", purpose="a data frame")
    kind, gaps = series.dtype, np.array(series.is_null().to_numpy(), bool)
    if kind.is_temporal():
        raise refuse(where, name, "dates or times", DATES)
    if kind.is_nested() or kind == nw.Binary:
        raise refuse(where, name, f"values of type {kind}", NESTED)
    if gaps.all():
        return Cells(np.zeros(len(gaps)), gaps)
    if isinstance(kind, nw.Categorical | nw.Enum):
        return _of_categories(series, kind, gaps, name, where)
    if kind == nw.String:
        return cells.of_words(
            None if gap else v for v, gap in zip(series.to_list(), gaps, strict=True)
        )
    if kind == nw.Boolean:
        return Cells(np.array(series.fill_null(value=False).to_numpy(), bool), gaps)
    if kind.is_integer() or kind.is_float() or kind.is_decimal():
        if kind.is_decimal():
            series = series.cast(nw.Float64)
        if gaps.any():
            series = series.fill_null(0)
        found = cells.of_numpy(np.asarray(series.to_numpy()), name, where)
        return Cells(found.values, gaps | found.gaps)
    return cells.of_objects(
        [None if gap else v for v, gap in zip(series.to_list(), gaps, strict=True)], name, where
    )


def _of_categories(series: Any, kind: Any, gaps: np.ndarray, name: str, where: str) -> Cells:
    """The cells of categories that the user declared, ordered if their type says so."""
    ordered = hasattr(kind, "categories")
    native = series.to_native()
    if hasattr(native, "cat") and hasattr(native.cat, "codes"):  # pandas keeps numbers as such
        declared = "ordinal" if native.cat.ordered else "categorical"
        codes = np.array(native.cat.codes, np.int64)
        return cells.of_codes(codes, list(native.cat.categories), declared, name, where)
    found = cells.of_words(
        None if gap else v for v, gap in zip(series.to_list(), gaps, strict=True)
    )
    if not ordered:
        return Cells(found.values, found.gaps, found.levels, "categorical")
    levels = [str(level).strip() for level in kind.categories]
    place = {level: i for i, level in enumerate(levels)}
    moved = np.array([place[str(level)] for level in found.levels or ()] or [0], np.int64)
    codes = np.where(found.gaps, -1, moved[np.maximum(found.values, 0)])
    return cells.of_codes(codes, levels, "ordinal", name, where)


def read_parquet(path: Path) -> Table:
    """The table in a Parquet file, by pyarrow or polars. Raises InputError if it is damaged."""
    nw = require("narwhals", purpose="a Parquet file")
    installed = [b for b in ("pyarrow", "polars") if importlib.util.find_spec(b) is not None]
    if not installed:
        require("pyarrow", purpose="a Parquet file")
    try:
        frame = nw.read_parquet(str(path), backend=installed[0]).to_native()
    except Exception:  # each library has errors of its own
        raise InputError(f"{path} is damaged, or no Parquet file: write it again.") from None
    return as_table(frame, str(path))


def like(found: Mapping[str, np.ndarray], frame: Any) -> Any:
    """The columns in a data frame of the user's own library, with the types of `frame` if they fit.

    A pandas index of as many rows is kept.
    """
    nw = require("narwhals", purpose="a data frame")
    wanted = nw.from_native(frame, eager_only=True)
    lists = {name: [_cell(v) for v in values] for name, values in found.items()}
    made = nw.from_dict(lists, backend=wanted.implementation)
    given = {columns.tidy(name): (name, kind) for name, kind in wanted.schema.items()}
    series = []
    for name in found:
        label, kind = given.get(name, (name, made[name].dtype))
        series.append(_cast(made[name], kind).alias(label))
    native = nw.concat([s.to_frame() for s in series], how="horizontal").to_native()
    if hasattr(frame, "index") and hasattr(native, "index") and len(frame) == len(native):
        native.index = frame.index
    return native


def like_records(found: Mapping[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    """The columns as records, with the types of the fields of `like` if they fit."""
    given = {columns.tidy(field): field for field in like.dtype.names or ()}
    moved = {}
    for name, values in found.items():
        field = given.get(name, name)
        kind = like.dtype[field] if name in given else values.dtype
        moved[field] = values.astype(kind) if _fits(values, kind) else values
    fields = [(field, values.dtype) for field, values in moved.items()]
    made: np.ndarray = np.empty(len(next(iter(moved.values()))), fields)
    for field, values in moved.items():
        made[field] = values
    return made


def _fits(values: np.ndarray, kind: np.dtype) -> bool:
    """Whether a type holds these values, numbers in floats up to its rounding."""
    try:
        return kind.kind == "f" or bool((values.astype(kind) == values).all())
    except (TypeError, ValueError):
        return False


def _cell(value: Any) -> Any:
    """A value as Python has it, None for NaN."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and plain != plain else plain


def _cast(series: Any, kind: Any) -> Any:
    """A column in another type, or as it is if its values do not fit that."""
    try:
        moved = series.cast(kind)
    except Exception:  # each library has errors of its own
        return series
    same = [a == b for a, b in zip(moved.to_list(), series.to_list(), strict=True) if b is not None]
    whole = kind.is_float() or all(same)
    return moved if whole and moved.null_count() == series.null_count() else series
