"""Column names: kept if the data have them, and matched by name rather than by position."""

from collections.abc import Mapping, Sequence

import numpy as np

from iwae.errors import InputError

SHOWN = 5
"""Number of names that a message lists."""


def tidy(label: object) -> str:
    """A label as a name: a single line of text, stripped of blanks and byte-order marks."""
    return " ".join(str(label).replace("\ufeff", "").split())


def names_of(source: object) -> tuple[str, ...]:
    """The labels of a data frame's columns, or of a labelled row; empty if there are none."""
    for attribute in ("column_names", "columns"):
        labels = getattr(source, attribute, None)
        if labels is not None and not callable(labels):
            return tuple(tidy(label) for label in labels)
    labels = getattr(source, "index", None)
    if getattr(source, "ndim", 0) != 1 or labels is None or callable(labels):
        return ()
    return tuple(tidy(label) for label in labels)


def order(given: Sequence[str], wanted: Sequence[str], d: int, where: str) -> np.ndarray | None:
    """The index in `given` of each of `wanted`, [d]; None if the columns keep their order.

    Columns are matched by position if either side has no names, or only the default names of a data
    frame (0, 1, …). Raises InputError that names the missing and the additional columns.
    """
    counted = _counted(d)
    given, wanted = tuple(given), tuple(wanted) or counted
    if not given or given == wanted:
        return None
    if sorted(given) != sorted(wanted):
        if given == counted or wanted == counted:
            return None
        raise InputError(_apart(given, wanted, where))
    twice = [name for name in given if given.count(name) > 1]
    if twice:
        what = f"{where} has several columns called {twice[0]!r}, in another order than in training"
        raise InputError(f"{what}: give each column a name of its own.")
    place = {name: i for i, name in enumerate(given)}
    return np.array([place[name] for name in wanted])


def check_named(splits: Mapping[str, Sequence[str]], d: int) -> None:
    """Raises InputError if the first of `splits` has no column names but another has, so that their
    columns cannot be matched."""
    counted = _counted(d)
    first, *others = splits.items()
    for where, names in others:
        if names and tuple(names) != counted and tuple(first[1]) in ((), counted):
            what = f"{first[0]} has no names for its columns, where {where} has {listed(names)}"
            raise InputError(f"{what}: give both their names, or neither.")


def _counted(d: int) -> tuple[str, ...]:
    """The default column names of a data frame."""
    return tuple(map(str, range(d)))


def _apart(given: tuple[str, ...], wanted: tuple[str, ...], where: str) -> str:
    missing = [name for name in wanted if name not in given]
    besides = [name for name in given if name not in wanted]
    found = [f"lacks {listed(missing)}"] * bool(missing)
    found += [f"has {listed(besides)} besides"] * bool(besides)
    what = " and ".join(found) or "repeats a column"
    return (
        f"{where} {what}, where the training data have the columns {listed(wanted)}: give these, "
        f"in any order."
    )


def listed(names: Sequence[str]) -> str:
    """The first names, quoted, and how many there are."""
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, … ({len(names)} in all)"
