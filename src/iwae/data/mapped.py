"""Examples that are too many for the memory: in a temporary file, which is mapped into memory.

They are NumPy arrays like others, but whatever copies one whole defeats their purpose: read them by
`blocks_of` and `gathered`, which also hand the memory of what was read back to the system.
"""

import math
import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Int, Shaped

from iwae._utils.files import cache_folder
from iwae.data import cells
from iwae.errors import InputError

SHARE = 4
"""Examples that take more than this part of the memory are kept in a file."""

WINDOW = 1 << 27
"""Bytes of examples that are sorted at once, for each of which the source is read once more, unless
that would be more than `PASSES` times."""

PASSES = 32

BLOCK = 1 << 21
"""Bytes of examples in a block."""


def is_large(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether examples are to be kept in a file."""
    return math.prod(shape) * dtype.itemsize > cells.memory() // SHARE


def is_mapped(x: np.ndarray) -> bool:
    """Whether an array is part of a file that is mapped into memory."""
    return _mapping(x) is not None


def check_room(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """`InputError` unless the cache folder has room for examples of this type, at most float32."""
    folder = cache_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    needed, free = min(4, dtype.itemsize) * math.prod(shape), shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{where} takes {needed / 1e9:,.1f} GB, which are kept in a file, but {folder} has "
            f"{free / 1e9:,.1f} GB left: free some space, or set IWAE_CACHE_DIR to a folder that "
            f"has it."
        )


def kept(
    shape: tuple[int, int], dtype: np.dtype, part: Callable[[slice], np.ndarray]
) -> Shaped[np.ndarray, "n d"]:
    """An array [n, d] in a nameless file of the cache folder, which ends with the process.

    `part` returns some of its rows. `InputError` if the disk cannot hold it.
    """
    needed, folder = math.prod(shape) * dtype.itemsize, cache_folder()
    rows = max(1, WINDOW * shape[0] // needed, math.ceil(shape[0] / PASSES))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for start in range(0, shape[0], rows):
                found = part(slice(start, min(start + rows, shape[0])))
                file.write(np.ascontiguousarray(found, dtype).data)
            file.flush()
            return np.memmap(file, dtype, "r", shape=shape)
    except OSError as error:
        raise InputError(
            f"The examples take {needed / 1e9:.1f} GB and could not be written to {folder} "
            f"({error.strerror}): free some space, or set IWAE_CACHE_DIR to a folder that has it."
        ) from error


def blocks_of(x: np.ndarray, step: int | None = None) -> Iterator[np.ndarray]:
    """The rows of an array [n, …] in consecutive blocks, of `step` rows or of about 2 MiB."""
    step = step or block_rows(x.shape, x.dtype)
    for start in range(0, len(x), step):
        yield x[start : start + step]
        _release(x)


def block_rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """The number of examples in a block."""
    return max(1, BLOCK // max(1, math.prod(shape[1:]) * dtype.itemsize))


def gathered(
    x: Shaped[np.ndarray, "n *d"], rows: Int[np.ndarray, " m"]
) -> Shaped[np.ndarray, "m *d"]:
    """The rows of an array [m, …]; those of a file are read in its order."""
    if not is_mapped(x):
        return x[rows]
    at = np.argsort(rows, kind="stable")
    made: np.ndarray = np.empty((len(rows), *x.shape[1:]), x.dtype)
    step = block_rows(x.shape, x.dtype)
    for start in range(0, len(at), step):
        some = at[start : start + step]
        made[some] = x[rows[some]]
        _release(x)
    return made


def sums(blocks: Iterable[Shaped[np.ndarray, "n d"]], d: int) -> np.ndarray:
    """The sums of columns in float64 [d], rounded as those of the whole array."""
    total: np.ndarray = np.zeros((1, d))
    for block in blocks:
        total = np.add.reduce(np.concatenate([total, block]), axis=0, keepdims=True)
    return total[0]


def _mapping(x: object) -> tuple[np.memmap, mmap.mmap] | None:
    """The mapped array that x is or is a view of, and its map."""
    found = None
    while isinstance(x, np.ndarray):
        found = x if isinstance(x, np.memmap) else found
        x = x.base
    return (found, x) if found is not None and isinstance(x, mmap.mmap) else None


def _release(x: np.ndarray) -> None:
    """Hand the memory of a mapped file back to the system, which reads it again on demand."""
    found = _mapping(x)
    if found is not None and found[0].mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        found[1].madvise(mmap.MADV_DONTNEED)
