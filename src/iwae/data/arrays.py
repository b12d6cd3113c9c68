"""A user's own arrays: read from a file, checked, split, and understood as a kind of values."""

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from iwae.data.dataset import KINDS, SPLITS, Dataset
from iwae.errors import InputError, nearest

VALUES = ("auto", *KINDS)

DARK = 128
"""Integers that stay below this are not taken for 8-bit intensities without being told."""

LOST = 1e-3
"""Part of a column's range that float32 may lose."""

ROUNDING = 1e-12
"""Part of its values within which a column is constant but for float64's rounding."""

SUFFIXES = (".npy", ".npz", ".csv")


def from_arrays(
    source: np.ndarray | Mapping[str, np.ndarray], *, values: str, name: str, where: str
) -> Dataset:
    """The Dataset of one array or of a mapping with the keys train, valid and test.

    `where` begins the sentences of errors. See `iwae.data.load` for the rules.
    """
    splits = _splits(source, where)
    shape = splits[0].shape[1:]
    joined = np.concatenate(splits).reshape(-1, int(np.prod(shape)))
    x, kind, scale = understand(joined, values, where)
    ends = np.cumsum([len(split) for split in splits])
    train, valid, test = np.split(x, ends[:-1])
    return Dataset(name, train, valid, test, kind, scale, shape)


def understand(x: np.ndarray, values: str, where: str) -> tuple[np.ndarray, str, float]:
    """The stored array, its kind and its scale. Raises InputError if `values` does not fit."""
    low, high = x.min(), x.max()
    whole = is_whole(x)
    unit = bool(low >= 0 and high <= 1)
    if values in ("auto", "binary") and unit and whole:
        return x.astype(np.uint8), "binary", 1.0
    if values in ("auto", "intensity") and unit:
        return x.astype(np.float32), "intensity", 1.0
    if values in ("auto", "intensity") and whole and low >= 0 and high <= 255:
        if values == "auto" and high < DARK:
            what = f"{where} holds {value_range(x)}, which may be dark 8-bit intensities, or others"
            raise InputError(
                f"{what}: divide intensities by their largest value, or pass values='intensity' "
                f"(of 0..255) or values='real' (as they are)."
            )
        return x.astype(np.uint8), "intensity", 255.0
    if values in ("auto", "real"):
        single = to_float32(x, where)
        _check_digits(x, single, where)
        return single, "real", 1.0
    needs = {"binary": "only 0 and 1", "intensity": "integers in 0..255 or numbers in [0, 1]"}
    what = f"{where} holds {value_range(x)}, but values={values!r} needs {needs[values]}"
    raise InputError(f"{what}: convert them, or pass values='real'.")


def _check_digits(x: np.ndarray, single: np.ndarray, where: str) -> None:
    """Raises InputError for a column that varies in digits which float32 does not have."""
    if x.dtype.itemsize <= 2 or x.dtype == np.float32:
        return
    low, high = (edge.astype(np.float64) for edge in (x.min(axis=0), x.max(axis=0)))
    span, noise = high - low, ROUNDING * np.maximum(np.abs(low), np.abs(high))
    lost = (np.abs(single - x).max(axis=0) > LOST * span) & (span > noise)
    if lost.any():
        j = int(np.argmax(lost))
        raise InputError(
            f"{where} varies in column {j} by {span[j]:g} about {x[:, j].mean():g}, in digits that "
            f"float32 does not have: subtract an offset from that column."
        )


def as_numpy(source: Any) -> Any:
    """An array of another library, or a data frame, as NumPy's; anything else as it is."""
    foreign = hasattr(source, "__array__") and not isinstance(source, np.ndarray)
    return np.asarray(source) if foreign else source


def is_whole(x: np.ndarray) -> bool:
    return x.dtype.kind in "bui" or bool((x == np.rint(x)).all())


def value_range(x: np.ndarray) -> str:
    numbers = "integers" if is_whole(x) else "numbers"
    return f"{numbers} from {x.min():g} to {x.max():g}"


def to_float32(x: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)
    if not np.isfinite(single).all():
        what = f"{where} holds values from {x.min():g} to {x.max():g}, beyond float32's range"
        raise InputError(f"{what}: rescale them.")
    return single


def check_numbers(x: np.ndarray, where: str) -> None:
    """Raises InputError unless x is a non-empty array of finite real numbers."""
    if not isinstance(x, np.ndarray):
        given = type(x).__name__
        raise InputError(f"{where} is a {given}: give a NumPy array, for example np.asarray(x).")
    if x.dtype.kind not in "biuf":
        what = f"{where} has the dtype {x.dtype}, but numbers are expected"
        raise InputError(f"{what}: convert it to float32 or uint8.")
    if x.size == 0:
        what = f"{where} is empty (shape {x.shape})"
        raise InputError(f"{what}: give at least one example with at least one feature.")
    if np.ma.is_masked(x) or not np.isfinite(x).all():
        what = f"{where} holds NaN, masked or infinite values"
        raise InputError(f"{what}: replace them, or drop the examples that have them.")


def _splits(source: np.ndarray | Mapping[str, np.ndarray], where: str) -> list[np.ndarray]:
    """Train, valid and test, of one shape per example, checked; missing ones carved off."""
    if not isinstance(source, Mapping):
        _check_examples(source, where)
        return _carve({"train": source}, where)
    unknown = [key for key in source if key not in SPLITS]
    if unknown or "train" not in source:
        what = f"{where} has the keys {', '.join(map(repr, source)) or 'none'}"
        raise InputError(f"{what}: give 'train' and, if there are any, 'valid' and 'test'.")
    source = {key: as_numpy(x) for key, x in source.items()}
    for key, x in source.items():
        _check_examples(x, f"{where} ({key})")
    widths = {key: x.shape[1:] for key, x in source.items()}
    if len(set(widths.values())) > 1:
        what = f"{where} has examples of different shapes ({_listed(widths)})"
        raise InputError(f"{what}: give all splits the same shape after the first axis.")
    return _carve(source, where)


def _listed(widths: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {shape}" for key, shape in widths.items())


def _check_examples(x: np.ndarray, where: str) -> None:
    check_numbers(x, where)
    if not 2 <= x.ndim <= 4:
        what = f"{where} has the shape {x.shape}"
        raise InputError(f"{what}: give examples as [n, d], [n, h, w] or [n, h, w, c].")


def _carve(splits: dict[str, np.ndarray], where: str) -> list[np.ndarray]:
    """Test: the last tenth of train as permuted by default_rng(0); valid: then train's last."""
    train, tenth = splits["train"], len(splits["train"]) // 10
    if len(splits) < 3 and tenth == 0:
        what = f"{where} has {len(train)} training examples, and splitting them needs at least 10"
        raise InputError(f"{what}: give more, or give train, valid and test.")
    if "test" not in splits:
        train = train[np.random.default_rng(0).permutation(len(train))]
        train, splits["test"] = train[:-tenth], train[-tenth:]
    if "valid" not in splits:
        train, splits["valid"] = train[:-tenth], train[-tenth:]
    return [train, splits["valid"], splits["test"]]


def data_path(source: str | os.PathLike[str], names: Sequence[str]) -> Path:
    """`source` as the path of an existing file of a known suffix, else an InputError."""
    path = Path(source).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        what = f"{os.fspath(source)!r} is no data set and no .npy, .npz or .csv file"
        raise InputError(f"{what}: {nearest(os.fspath(source), list(names))}.")
    if not path.is_file():
        raise InputError(f"{path} is not an existing file: check its name and its folder.")
    return path


def read_file(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy or .csv file or of a .npz with one array, else a .npz's arrays."""
    try:
        file = path.open("rb")
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise InputError(f"{what}: check its permissions.") from None
    with file:
        return _read_csv(file, path) if path.suffix.lower() == ".csv" else _read_numpy(file, path)


def _read_numpy(file: BinaryIO, path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        found = np.load(file, allow_pickle=False)
        arrays = {"train": found} if isinstance(found, np.ndarray) else dict(found)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        what = f"{path} is damaged, or holds Python objects, which are never unpickled"
        raise InputError(f"{what}: save it again from arrays of numbers.") from None
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _read_csv(file: BinaryIO, path: Path) -> np.ndarray:
    """Comma-separated numbers, float64 [n, d]; a first line without any number is a header."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as a plain .csv file.") from None
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    _check_header(lines, path)
    if lines and not any(_is_number(cell) for cell in lines[0][1].split(",")):
        lines = lines[1:]
    if not lines:
        raise InputError(f"{path} holds no numbers: give one example per line.")
    try:
        rows = [line for _, line in lines]
        return np.loadtxt(rows, delimiter=",", comments=None, ndmin=2, dtype=np.float64)
    except ValueError:
        raise InputError(_bad_line(path, lines)) from None


def _check_header(lines: list[tuple[int, str]], path: Path) -> None:
    """Raises InputError for a first line that numbers the columns, or leaves the first nameless."""
    if len(lines) < 2 or "," not in lines[0][1]:
        return
    first, *others = (cell.strip().strip('"') for cell in lines[0][1].split(","))
    if not first:
        what = f"The first column of {path} has no name, as an index of rows has"
        raise InputError(f"{what}: leave it out (in pandas: index=False).")
    last = len(others)
    if last > 1 and [first, *others] == [str(i) for i in range(last + 1)]:
        what = f"Line {lines[0][0]} of {path} holds 0, 1, … {last}, as a header of numbers does"
        raise InputError(f"{what}: leave it out (in pandas: header=False), or name the columns.")


def _bad_line(path: Path, lines: list[tuple[int, str]]) -> str:
    width = lines[0][1].count(",") + 1
    for i, line in lines:
        cells = line.split(",")
        bad = [cell for cell in cells if not _is_number(cell)]
        if bad:
            cell = bad[0].strip() if len(bad[0]) <= 40 else f"{bad[0].strip()[:40]}…"
            return f"Line {i} of {path} holds {cell!r}: give numbers separated by commas."
        if len(cells) != width:
            what = f"Line {i} of {path} has {len(cells)} cells and line {lines[0][0]} has {width}"
            return f"{what}: give the same number in every line."
    return f"{path} cannot be read as numbers: give comma-separated numbers, one example per line."


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
