"""Data sets that are in use: a file is read once for all that use it at a time.

A data set is shared as long as somebody holds it, and as long as its files are the same; one that
was written a moment ago is not, since its time might not tell that it is written again.
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from iwae.data.dataset import Dataset

SETTLED = 2.0
"""Seconds after which another time of a file tells that it was written again."""

_in_use: weakref.WeakValueDictionary[Hashable, Dataset] = weakref.WeakValueDictionary()
_holders: list[list[Dataset]] = []


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Within it every data set that is read stays in memory, and is shared by all that read it."""
    held: list[Dataset] = []
    _holders.append(held)
    try:
        yield
    finally:
        _holders[:] = [other for other in _holders if other is not held]


def shared(
    files: Sequence[Path | None],
    load: Callable[[], Dataset],
    asked: Hashable,
    also: Callable[[Dataset], Hashable] | None = None,
) -> Dataset:
    """What `load` makes of these files, or has made of them for somebody who still holds it.

    `asked` is all else that it depends on; a data set is found by what `also` says of it as well.
    Files that are not there (None) are not shared.
    """
    state = _state(files)
    dataset = None if state is None else _in_use.get((state, asked))
    if dataset is None:
        dataset = load()
        if state is not None and _state(files) == state:
            for key in {asked, asked if also is None else also(dataset)}:
                _in_use[(state, key)] = dataset
    for held in _holders:
        held.append(dataset)
    return dataset


def _state(files: Sequence[Path | None]) -> tuple[Hashable, ...] | None:
    """What changes when a file does; None where that cannot be told."""
    state: list[Hashable] = []
    for file in files:
        try:
            found = None if file is None else file.stat()
        except OSError:
            return None
        if found is None or file is None or not found.st_mtime + SETTLED < time.time():
            return None
        place = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        state.append((os.path.abspath(file), place))
    return tuple(state)
