"""A table in memory: for each column its values as they were given, and which are missing."""

import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iwae.errors import InputError, within

Value = str | int | float | bool
"""A value of a category, as the user wrote it."""

EXACT = 1 << 53
"""Whole numbers up to here are exact in float64."""


@dataclass(frozen=True)
class Cells:
    """The values of one column.

    Numbers and truth values are `values` [n] themselves. Words, and values that the user declared
    to be categories, are codes into `levels`. `gaps` [n] says which values are missing; `values` is
    arbitrary there.
    """

    values: np.ndarray
    gaps: np.ndarray
    levels: tuple[Value, ...] | None = None
    declared: str = ""
    """"categorical" or "ordinal" if the user's column says that `levels` are its categories."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_words(self) -> bool:
        """Whether the values are words, or declared categories."""
        return self.levels is not None

    @property
    def is_bool(self) -> bool:
        return self.levels is None and self.values.dtype.kind == "b"

    def take(self, rows: np.ndarray | slice) -> "Cells":
        """The cells of some rows."""
        return replace(self, values=self.values[rows], gaps=self.gaps[rows])

    def seen(self) -> np.ndarray:
        """The values that are not missing, numbers in float64 and codes as they are, [m]."""
        given = self.values[~self.gaps]
        return given if self.is_words else given.astype(np.float64)

    def shown(self, row: int) -> str:
        """One value as a message shows it."""
        value = self.values[row] if self.levels is None else self.levels[int(self.values[row])]
        return f"{value:.6g}" if isinstance(value, float | np.floating) else repr_of(value)


def repr_of(value: object) -> str:
    """A value of a category in a message: words are quoted and cut."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}…")
    return str(value)


@dataclass(frozen=True)
class Table:
    """Columns of equal length and their names."""

    names: tuple[str, ...]
    columns: tuple[Cells, ...]
    named: bool = True
    """Whether the names were given, rather than made up as x0, x1, …."""

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def has_gaps(self) -> bool:
        return any(bool(cells.gaps.any()) for cells in self.columns)

    @property
    def has_words(self) -> bool:
        return any(cells.is_words for cells in self.columns)

    def numbers(self, where: str) -> np.ndarray:
        """The numbers of all columns, float64 [n, d], NaN where missing; integers if they all are.

        Raises InputError for a column of words.
        """
        for name, cells in zip(self.names, self.columns, strict=True):
            if cells.is_words and not cells.gaps.all():
                what = f"{of_column(name, where)} holds {cells.shown(int(np.argmin(cells.gaps)))}"
                raise InputError(f"{what}, but numbers are expected: pass values='table'.")
        if not self.has_gaps and all(c.values.dtype.kind in "bi" for c in self.columns):
            return np.stack([c.values for c in self.columns], axis=1)
        columns = [np.where(c.gaps, np.nan, c.values.astype(np.float64)) for c in self.columns]
        return np.stack(columns, axis=1)


def table_of(
    columns: Mapping[str, Cells] | Iterable[tuple[str, Cells]], where: str, *, named: bool = True
) -> Table:
    """A table of columns; InputError unless they have one length, and names of their own."""
    pairs = tuple(columns.items() if isinstance(columns, Mapping) else columns)
    names = tuple(name for name, _ in pairs)
    check_names(names, where)
    if not pairs or not len(pairs[0][1]):
        what = f"{where} is empty ({len(pairs)} columns, {len(pairs[0][1]) if pairs else 0} rows)"
        raise InputError(f"{what}: give at least one row with at least one column.")
    first, n = names[0], len(pairs[0][1])
    for name, cells in pairs:
        if len(cells) != n:
            what = f"{where} has {n} values in column {first!r} and {len(cells)} in {name!r}"
            raise InputError(f"{what}: give columns of one length.")
    return Table(names, tuple(cells for _, cells in pairs), named)


def check_names(names: Sequence[str], where: str) -> None:
    """Raises InputError for a column without a name, or two of one name."""
    for i, name in enumerate(names):
        if not name:
            raise InputError(
                f"Column {i + 1} of {within(where)} has no name: give it one, or leave it out."
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        what = f"{where} has several columns called {twice!r}"
        raise InputError(f"{what}: give each column a name of its own.")


def check_memory(n: int, d: int, where: str, *, bytes_each: int = 12) -> None:
    """Raises InputError if a table [n, d] needs more memory than the machine has.

    By default a value takes 8 bytes as it is read and 4 as it is kept.
    """
    needed, there = n * d * bytes_each, memory()
    if needed > there:
        raise InputError(
            f"{where} has {n:,} rows of {d:,} columns, which take {needed / 1e9:.1f} GB in a "
            f"memory of {there / 1e9:.1f} GB: give fewer rows or columns, or numbers in a .npy "
            f"file, which may be larger than the memory."
        )


def memory() -> int:
    """Bytes of memory of this machine; 2^60 if they are unknown."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return 1 << 60
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


DATES = "write it as a number, such as days since a first day, or leave it out"
NESTED = "give one number or word in each cell, or leave it out"


def of_column(name: str, where: str) -> str:
    """What a message calls a column."""
    return f"Column {name!r} of {within(where)}"


def refuse(where: str, name: str, what: str, remedy: str) -> InputError:
    """The error for a column that no model can take."""
    return InputError(f"{of_column(name, where)} holds {what}: {remedy}.")


def of_numpy(values: np.ndarray, name: str, where: str) -> Cells:
    """The cells of an array [n] of any type; InputError for dates, complex and nested values."""
    if values.ndim != 1:
        raise refuse(where, name, f"arrays of shape {values.shape[1:]}", NESTED)
    masked = np.ma.getmaskarray(values).copy()
    x, kind = np.ma.getdata(values), values.dtype.kind
    if kind == "b":
        return Cells(x, masked)
    if kind in "iu":
        whole = x.astype(np.int64) if kind == "i" or x.max(initial=0) < EXACT else None
        return Cells(x.astype(np.float64) if whole is None else whole, masked)
    if kind == "f":
        return Cells(x.astype(np.float64), masked | np.isnan(x))
    if kind in "mM":
        raise refuse(where, name, "dates or times", DATES)
    if kind in "UTO":
        return of_objects([None if m else v for v, m in zip(x, masked, strict=True)], name, where)
    if kind == "S":
        raise refuse(where, name, "bytes", "decode them to words, or leave it out")
    raise refuse(where, name, f"values of type {x.dtype}", NESTED)


def of_objects(values: Sequence[object], name: str, where: str) -> Cells:
    """The cells of Python objects: truth values, numbers, or words; None and NaN are missing.

    Numbers beside words are taken for words. InputError for any other type.
    """
    plain = [_plain(value) for value in values]
    gaps = np.array([value is None for value in plain], bool)
    for value in plain:
        if not isinstance(value, bool | int | float | str | None):
            dates = hasattr(value, "isoformat") or hasattr(value, "total_seconds")
            what = "dates or times" if dates else f"a {type(value).__name__}"
            raise refuse(where, name, what, DATES if dates else NESTED)
    kinds = {type(value) for value in plain if value is not None}
    if str in kinds:
        return of_words([None if value is None else str(value) for value in plain])
    if kinds == {bool}:
        return Cells(np.array([bool(value) for value in plain]), gaps)
    given: list[Any] = [0 if value is None else value for value in plain]
    if kinds <= {int, bool} and all(abs(value) <= EXACT for value in given):
        return Cells(np.array(given, np.int64), gaps)
    return Cells(np.array([_float(v, name, where) for v in given]), gaps)


def _float(value: Any, name: str, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise refuse(where, name, "whole numbers beyond float64", "rescale it") from None


def _plain(value: object) -> object:
    """An object as one of Python's own types, None if it stands for a missing value."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return None
    if isinstance(value, str):
        return str(value).strip() or None
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) or type(value).__name__ == "Decimal":
        number = float(value)  # type: ignore[arg-type]
        return None if number != number else number
    return value


def of_words(values: Iterable[str | None]) -> Cells:
    """The cells of words, stripped of blanks around them; None and blank words are missing."""
    place: dict[str, int] = {}
    known: dict[str | None, int] = {}  # of words with the blanks around them
    codes: list[int] = []
    for value in values:
        code = known.get(value)
        if code is None:
            word = value.strip() if value is not None else ""
            code = place.setdefault(word, len(place)) if word else -1
            known[value] = code
        codes.append(code)
    found = np.array(codes, np.int64)
    return Cells(found, found < 0, tuple(place))


def of_codes(
    codes: np.ndarray, levels: Sequence[object], declared: str, name: str, where: str
) -> Cells:
    """The cells of a column whose user declared its categories; a code below 0 is missing."""
    plain = [_plain(level) for level in levels]
    whole: Callable[[object], bool] = lambda level: isinstance(level, bool | int | float | str)
    if not all(map(whole, plain)):
        raise refuse(where, name, "categories that are neither numbers nor words", NESTED)
    kept: tuple[Any, ...] = tuple(plain)
    if len(set(kept)) < len(kept):
        raise refuse(where, name, "categories that differ in blanks only", "merge them")
    return Cells(codes.astype(np.int64), codes < 0, kept, declared)
