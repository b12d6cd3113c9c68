"""The user's own arrays: validated, split, and assigned a kind of values, block by block."""

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from iwae.data import columns, mapped
from iwae.data.cells import Table
from iwae.data.dataset import KINDS, SPLITS, Dataset
from iwae.data.frames import (
    PARQUET,
    as_table,
    densified,
    is_columns,
    is_sparse,
    is_tabular,
    read_parquet,
)
from iwae.data.rows import Rows, Summary, of_array, read_npy, read_npz, summary
from iwae.data.schema import LOST, TINY
from iwae.data.tables import read_csv
from iwae.errors import InputError, nearest

VALUES = ("auto", *KINDS)

DARK = 128
"""Integers that are all below this are not read as 8-bit intensities by "auto"."""

ROUNDING = 1e-12
"""Relative range below which a column counts as constant up to float64's rounding."""

SUFFIXES = (".npy", ".npz", ".csv", ".csv.gz", ".parquet")


def from_arrays(source: object, *, values: str, name: str, where: str) -> Dataset:
    """The Dataset of one array (or its Rows) or of a mapping with the keys train, valid and test.

    `where` begins the messages of errors. See `iwae.data.load` for the rules.
    """
    sources, called = _sources(source, where)
    shape, names = sources["train"].shape[1:], sources["train"].names
    columns.check_named({called[key]: x.names for key, x in sources.items()}, int(np.prod(shape)))
    orders = {
        key: columns.order(x.names, names, int(np.prod(shape)), called[key])
        for key, x in sources.items()
    }
    _check_widths({key: x.shape[1:] for key, x in sources.items()}, where)
    for key, x in sources.items():
        if _in_file(x, min(x.dtype, np.dtype(np.float32), key=lambda t: t.itemsize)):
            mapped.check_room(x.shape, x.dtype, called[key])
    found = {key: _summary(x, orders[key], called[key]) for key, x in sources.items()}
    parts = parts_of({key: x.shape[0] for key, x in sources.items()}, where)
    whole = reduce(add, found.values())
    dtype, kind, scale = understand(whole, values, where)
    dtype = np.float32 if whole.gaps else dtype
    stored = {
        key: _stored(x, dtype, orders[key], mixed=key == "train" and "test" not in sources)
        for key, x in sources.items()
    }
    train, valid, test = (stored[key][part] for key, part in (parts[split] for split in SPLITS))
    if whole.gaps:
        _check_observed(train, shape, names, where)
    return Dataset(name, train, valid, test, kind, scale, shape, names=names)


def understand(x: Summary, values: str, where: str) -> tuple[type, str, float]:
    """The type to store values in, their kind and scale. InputError if `values` does not fit."""
    low, high = x.lowest, x.highest
    unit = low >= 0 and high <= 1
    if values in ("auto", "binary") and unit and x.whole:
        return np.uint8, "binary", 1.0
    if values in ("auto", "intensity") and unit:
        _check_brightness(x, values, where)
        return np.float32, "intensity", 1.0
    if values in ("auto", "intensity") and x.whole and low >= 0 and high <= 255:
        if values == "auto" and high < DARK:
            what = f"{where} holds {x}, which may be dark 8-bit intensities or other values"
            raise InputError(
                f"{what}: divide intensities by their largest value, or pass values='intensity' "
                f"(of 0..255) or values='real' (as they are)."
            )
        return np.uint8, "intensity", 255.0
    if values in ("auto", "real"):
        _check_digits(x, where)
        return np.float32, "real", 1.0
    needs = {"binary": "only 0 and 1", "intensity": "integers in 0..255 or numbers in [0, 1]"}
    what = f"{where} holds {x}, but values={values!r} needs {needs[values]}"
    raise InputError(f"{what}: convert them, or pass values='real'.")


def _check_brightness(x: Summary, values: str, where: str) -> None:
    """Raises InputError for numbers in [0, 1] that are all close to zero."""
    if x.highest < (1 / 255 if values == "auto" else TINY / LOST):
        what = f"{where} holds {x}, which are almost zero as intensities"
        raise InputError(f"{what}: multiply them, or pass values='real' (as they are).")


def _check_digits(x: Summary, where: str) -> None:
    """Raises InputError for a column whose variation is beyond the precision of float32."""
    low, high = x.low.astype(np.float64), x.high.astype(np.float64)
    check_range(x, where)
    span, size = high - low, np.maximum(np.abs(low), np.abs(high))
    small = span < TINY / LOST
    varies = span > (0 if x.whole else ROUNDING * size)
    lost = ((x.lost > LOST * span) | small) & varies
    if not lost.any():
        return
    j = int(np.argmax(lost))
    power = min(300, -int(np.floor(np.log10(span[j]))))
    factor = f"multiply that column, by 1e{power:+03d} for example"
    if small[j] and size[j] < TINY / LOST**3:
        what = f"{where} varies in column {j} by {span[j]:g}, less than float32 can resolve"
        raise InputError(f"{what}: {factor}.")
    what = f"{where} varies in column {j} by {span[j]:g} about {(low + high)[j] / 2:g}"
    offset = "subtract an offset from that column"
    raise InputError(f"{what}, which float32 cannot resolve: {offset}.")


def is_array(source: object) -> bool:
    """Whether it is a data frame, or an array of NumPy or another library, or a sparse matrix."""
    return hasattr(source, "__array__") or is_sparse(source)


def is_splits(source: object) -> bool:
    """Whether it is a mapping of the splits train, valid and test, or of some of them."""
    return isinstance(source, Mapping) and bool(source) and set(source) <= set(SPLITS)


def as_rows(source: object, where: str) -> Rows:
    """The rows of an array of any library, or of a table with its names; Rows unchanged.

    Raises InputError if they are not numbers, or empty.
    """
    names, x = () if isinstance(source, Table) else columns.names_of(source), source
    if isinstance(source, Table) or is_tabular(source):
        table = source if isinstance(source, Table) else as_table(source, where)
        names = names or (table.names if table.named else ())
        x = table.numbers(where)
    elif is_sparse(source):
        x = densified(source, where)
    elif is_array(source) and not isinstance(source, np.ndarray):
        x = np.asarray(source)
    if not isinstance(x, Rows | np.ndarray):
        given = type(x).__name__
        raise InputError(f"{where} is a {given}: give a NumPy array, for example np.asarray(x).")
    if x.dtype.kind not in "biuf":
        what = f"{where} has the dtype {x.dtype}, but numbers are expected"
        words = ", or pass values='table'" if x.dtype.kind in "OUT" else ""
        raise InputError(f"{what}: convert it to float32 or uint8{words}.")
    if 0 in x.shape:
        what = f"{where} is empty (shape {x.shape})"
        raise InputError(f"{what}: give at least one example with at least one feature.")
    return x if isinstance(x, Rows) else of_array(x, names)


def check_finite(x: Summary, where: str, *, missing: bool) -> None:
    """Raises InputError for infinite values, and unless `missing` for missing ones."""
    if not x.finite or (x.gaps and not missing):
        what = f"{where} holds {'' if missing else 'NaN, masked or '}infinite values"
        raise InputError(f"{what}: replace them, or drop the examples that have them.")


def _check_observed(
    train: np.ndarray, shape: tuple[int, ...], names: Sequence[str], where: str
) -> None:
    """Raises InputError for a column, or a pixel, of which every training value is missing."""
    lost = np.logical_and.reduce([np.isnan(b).all(axis=0) for b in mapped.blocks_of(train)])
    if lost.any():
        j = int(np.argmax(lost))
        at = [int(i) for i in np.unravel_index(j, shape)]
        which = f"column {names[j]!r}" if names else f"column {j}"
        which = which if len(shape) == 1 else f"pixel {at}"
        raise InputError(f"{where} has no value in {which} in training: leave it out.")


def check_range(x: Summary, where: str) -> None:
    """Raises InputError for values that float32 cannot hold."""
    if np.isinf(x.lost).any():
        what = f"{where} holds values from {x.lowest:g} to {x.highest:g}"
        raise InputError(f"{what}, beyond float32's range: rescale them.")


def _summary(x: Rows, order: np.ndarray | None, where: str) -> Summary:
    found = summary(x, order)
    check_finite(found, where, missing=True)
    return found


def _sources(source: object, where: str) -> tuple[dict[str, Rows], dict[str, str]]:
    """The rows given for each split, and the names of the splits in messages."""
    if not isinstance(source, Mapping) or (is_columns(source) and not is_splits(source)):
        return {"train": _examples(source, where)}, {"train": where}
    called = called_splits(source, where)
    return {key: _examples(source[key], called[key]) for key in source}, called


def called_splits(source: Mapping[str, object], where: str) -> dict[str, str]:
    """How messages call each split of a mapping. Raises InputError for other keys."""
    unknown = [key for key in source if key not in SPLITS]
    if unknown or "train" not in source:
        what = f"{where} has the keys {', '.join(map(repr, source)) or 'none'}"
        raise InputError(f"{what}: give 'train' and, if there are any, 'valid' and 'test'.")
    return {key: f"{where} ({key})" for key in source}


def _check_widths(widths: Mapping[str, tuple[int, ...]], where: str) -> None:
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{key} {shape}" for key, shape in widths.items())
        what = f"{where} has examples of different shapes ({listed})"
        raise InputError(f"{what}: give all splits the same shape after the first axis.")


def _examples(source: object, where: str) -> Rows:
    x = as_rows(source, where)
    if not 2 <= len(x.shape) <= 4:
        what = f"{where} has the shape {x.shape}"
        raise InputError(f"{what}: give examples as [n, d], [n, h, w] or [n, h, w, c].")
    return x


def parts_of(sizes: Mapping[str, int], where: str) -> dict[str, tuple[str, slice]]:
    """The stored split, and the slice of it, from which each split is taken.

    A missing test is the last tenth of the permuted train; a missing valid is the last tenth of the
    remainder.
    """
    end, tenth = sizes["train"], sizes["train"] // 10
    if len(sizes) < len(SPLITS) and tenth == 0:
        what = f"{where} has {end} training example{'s' * (end != 1)}"
        raise InputError(
            f"{what}, and splitting needs at least 10: give more, or give train, valid and test."
        )
    parts = {key: (key, slice(0, n)) for key, n in sizes.items()}
    for split in ("test", "valid"):
        if split not in sizes:
            parts[split] = ("train", slice(end - tenth, end))
            end -= tenth
    return parts | {"train": ("train", slice(0, end))}


def _stored(x: Rows, dtype: type, order: np.ndarray | None, *, mixed: bool) -> np.ndarray:
    """The examples [n, d], their columns in `order`, `mixed` as default_rng(0) permutes them."""
    shape = (x.shape[0], int(np.prod(x.shape[1:])))
    place = np.arange(shape[0])
    if mixed:
        place[np.random.default_rng(0).permutation(shape[0])] = np.arange(shape[0])
    part = lambda window: _window(x, dtype, order, place, window)
    if _in_file(x, np.dtype(dtype)):
        return mapped.kept(shape, np.dtype(dtype), part)
    return part(slice(0, shape[0]))


def _in_file(x: Rows, dtype: np.dtype) -> bool:
    """Whether examples of this type are kept in a file: those that are in one, and large ones."""
    return x.mapped or mapped.is_large(x.shape, dtype)


def _window(
    x: Rows, dtype: type, order: np.ndarray | None, place: np.ndarray, window: slice
) -> np.ndarray:
    """The examples whose place is in the window, each there, with their columns in `order`."""
    d, end = int(np.prod(x.shape[1:])), 0
    found: np.ndarray = np.empty((window.stop - window.start, d), dtype)
    for block in x.blocks():
        flat = block.reshape(len(block), d)
        at = place[end : end + len(block)]
        end += len(block)
        if len(found) < len(place):
            inside = (at >= window.start) & (at < window.stop)
            flat, at = flat[inside], at[inside]
        found[at - window.start] = flat if order is None else flat[:, order]
    return found


def suffix(path: Path) -> str:
    """The suffix of a file, if it is one of `SUFFIXES`, or ""."""
    return next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")


def data_path(source: str | os.PathLike[str], names: Sequence[str]) -> Path:
    """`source` as the path of an existing file of a known suffix, else an InputError."""
    path = Path(source).expanduser()
    if not suffix(path):
        what = (
            f"{os.fspath(source)!r} is neither a data set nor a .npy, .npz, .csv or .parquet file"
        )
        raise InputError(f"{what}: {nearest(os.fspath(source), list(names))}.")
    if not path.is_file():
        raise InputError(f"{path} is not an existing file: check its name and directory.")
    return path


def read_file(
    path: Path,
    *,
    header: str = "auto",
    names: Sequence[str] = (),
    width: int | None = None,
    missing: bool = True,
) -> Rows | dict[str, Rows]:
    """The array of a .npy or .csv file, or of a .npz with a single array; else a .npz's arrays.

    `header` says whether the first line of a .csv file holds names; `names` and `width` are the
    expected names and number of its columns, if known. Without `missing`, cells of a .csv file that
    are missing are refused.
    """
    check_readable(path)
    if suffix(path) == ".npy":
        return read_npy(path)
    if suffix(path) == ".npz":
        arrays = read_npz(path)
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays
    if suffix(path) == PARQUET:
        table = read_parquet(path)
        return as_rows(table, str(path))
    return read_csv(path, header=header, names=names, width=width, missing=missing)


def check_readable(path: Path) -> None:
    """Raises InputError for a file that may not be read."""
    try:
        path.open("rb").close()
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise InputError(f"{what}: check its permissions.") from None
