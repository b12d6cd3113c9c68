"""A cache of data sets in use, so that each file is read once for all concurrent users.

A data set is shared while it is referenced and its files are unchanged. A file written a moment ago
is not shared, since its modification time might not reveal another write.
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from iwae.data.dataset import Dataset

SETTLED = 2.0
"""Seconds after which another write is certain to change a file's modification time."""

_in_use: weakref.WeakValueDictionary[Hashable, Dataset] = weakref.WeakValueDictionary()
_holders: list[list[Dataset]] = []


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Context that keeps every data set read within it in memory, to be shared."""
    kept: list[Dataset] = []
    _holders.append(kept)
    try:
        yield
    finally:
        _holders[:] = [other for other in _holders if other is not kept]


def shared(
    files: Sequence[Path | None],
    load: Callable[[], Dataset],
    asked: Hashable,
    also: Callable[[Dataset], Hashable] | None = None,
) -> Dataset:
    """The data set that `load` reads from these files, or the same one if it is still in use.

    `asked` is the cache key beside the files; `also` returns a second key from the data set.
    Missing files (None) are not cached.
    """
    state = _state(files)
    dataset = None if state is None else _in_use.get((state, asked))
    if dataset is None:
        dataset = load()
        if state is not None and _state(files) == state:
            for key in {asked, asked if also is None else also(dataset)}:
                _in_use[(state, key)] = dataset
    for kept in _holders:
        kept.append(dataset)
    return dataset


def _state(files: Sequence[Path | None]) -> tuple[Hashable, ...] | None:
    """A value that changes when one of the files does; None if a change could go unnoticed."""
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
