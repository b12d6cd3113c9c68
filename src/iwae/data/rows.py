"""Examples read block by block, from memory or from a .npy or .npz file, and their summary."""

import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import IO

import numpy as np

from iwae.data.cells import memory
from iwae.data.mapped import block_rows, blocks_of, is_mapped
from iwae.errors import InputError

RATIO, SLACK = 100, 1 << 26
"""A compressed file may unpack to RATIO times its size plus SLACK bytes."""


END, MANY = 22, 0xFFFF
"""Size of a zip's end record without its comment; the largest count and comment size in it."""


@dataclass(frozen=True)
class Summary:
    """A summary of examples: range [d] of each column, and whether all values are integers.

    Missing values (NaN) are left out; the range of a column that has no others is NaN.
    """

    low: np.ndarray
    high: np.ndarray
    whole: bool
    finite: bool
    """Whether no value is infinite."""
    lost: np.ndarray
    """The largest rounding error of float32 in each column, float64 [d]; inf beyond its range."""
    gaps: bool = False
    """Whether any value is missing."""

    def __add__(self, other: "Summary") -> "Summary":
        return Summary(
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
            self.whole and other.whole,
            self.finite and other.finite,
            np.fmax(self.lost, other.lost),
            self.gaps or other.gaps,
        )

    def __str__(self) -> str:
        numbers = "integers" if self.whole else "numbers"
        return f"{numbers} from {self.lowest:g} to {self.highest:g}"

    @property
    def lowest(self) -> float:
        """The least value of all columns; NaN if every value is missing."""
        return float(np.fmin.reduce(self.low))

    @property
    def highest(self) -> float:
        """The largest value of all columns; NaN if every value is missing."""
        return float(np.fmax.reduce(self.high))


@dataclass(frozen=True)
class Rows:
    """Examples [n, …]; every call of `blocks` yields them in order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterator[np.ndarray]]
    names: tuple[str, ...] = ()
    """Names of the columns of [n, d]; empty if they have none."""
    known: Summary | None = None
    """Their summary, if it is known."""
    entire: Callable[[], np.ndarray] | None = None
    """Reads all of them, if they cannot be read in blocks."""
    mapped: bool = False
    """Whether they are a memory map of the user."""

    def whole(self) -> np.ndarray:
        """All of them in one array."""
        if self.entire is not None:
            return self.entire()
        blocks = self.blocks()
        first = next(blocks, np.empty(self.shape, self.dtype))
        if len(first) == self.shape[0]:
            return first
        found, end = np.empty(self.shape, self.dtype), len(first)
        found[:end] = first
        for block in blocks:
            found[end : end + len(block)] = block
            end += len(block)
        return found


def of_array(x: np.ndarray, names: tuple[str, ...] = ()) -> Rows:
    """The rows of an array in memory, or of one example [d]; masked values are NaN."""
    if np.ma.is_masked(x):
        x = np.ma.filled(x.astype(np.result_type(x.dtype, np.float32)), np.nan)
    named = names if x.ndim <= 2 and len(names) == x.shape[-1] else ()
    return Rows(x.shape, x.dtype, lambda: blocks_of(x), named, mapped=is_mapped(x))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns all that NumPy or zipfile raise on a damaged file into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception:
        what = f"{path} is damaged, or holds Python objects, which are never unpickled"
        raise InputError(f"{what}: save it again from arrays of numbers.") from None


def read_npy(path: Path) -> Rows:
    """The array of a .npy file; only its header is read at once."""
    opened = lambda: contextlib.nullcontext(path.open("rb"))
    with reading(path), path.open("rb") as file:
        return _array_of(path, opened, file, os.fstat(file.fileno()).st_size)


def read_npz(path: Path) -> dict[str, Rows]:
    """The arrays of a .npz file by name; only their headers are read at once."""
    with reading(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two members of one name")
        if _counted(file) not in (len(members), MANY):
            raise ValueError("other members than were written")
        return {
            member.filename.removesuffix(".npy"): _member(path, archive, member)
            for member in members
        }


def _counted(file: IO[bytes]) -> int:
    """The number of members in an archive's end record, which `zipfile` ignores; at most `MANY`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END - MANY))
    tail = file.read()
    at = tail.rindex(b"PK\x05\x06")
    return int.from_bytes(tail[at + 10 : at + 12], "little")


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Rows:
    check_ratio(path, member.file_size, member.compress_size)
    with archive.open(member) as file:
        return _array_of(path, lambda: _opened(path, member.filename), file, member.file_size)


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive, archive.open(name) as member:
        yield member


def check_ratio(path: Path, unpacked: int, packed: int) -> None:
    """Raises InputError for a small file that would fill the memory."""
    if unpacked > RATIO * packed + SLACK:
        what = f"{path} unpacks to more than {RATIO} times its size, unlike usual data"
        raise InputError(f"{what}: unpack it first if it is valid.")


def _array_of(
    path: Path,
    opened: Callable[[], contextlib.AbstractContextManager[IO[bytes]]],
    file: IO[bytes],
    size: int,
) -> Rows:
    """The rows of the array whose header `file` starts with, in `size` bytes that `opened` opens.

    Raises ValueError if the bytes are not those of such an array.
    """
    shape, fortran, dtype = _header(file)
    start, count = file.tell(), 1
    for n in shape:  # of any size, as Python's integers are
        count *= n
    if dtype.hasobject or min(shape, default=0) < 0 or start + count * dtype.itemsize != size:
        raise ValueError("other bytes than the header says")
    if fortran and len(shape) > 1:
        if (needed := count * dtype.itemsize) > memory():
            raise InputError(
                f"{path} holds its columns one after the other, {needed / 1e9:.1f} GB in a memory "
                f"of {memory() / 1e9:.1f} GB: save it row by row, by numpy.ascontiguousarray."
            )
        return _columns_first(path, opened, start, shape, dtype)

    def blocks() -> Iterator[np.ndarray]:
        with reading(path), opened() as source, source:
            _read(source, start)
            step, row = block_rows(shape, dtype), int(np.prod(shape[1:]))
            for i in range(0, shape[0], step):
                n = min(step, shape[0] - i)
                content = _read(source, n * row * dtype.itemsize)
                yield np.frombuffer(content, dtype).reshape(n, *shape[1:])
            if source.read(1):
                raise ValueError("more bytes than the header says")

    return Rows(shape, dtype, blocks)


def _columns_first(
    path: Path,
    opened: Callable[[], contextlib.AbstractContextManager[IO[bytes]]],
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Rows:
    """An array in Fortran order, which has to be read as a whole."""

    def entire() -> np.ndarray:
        with reading(path), opened() as source, source:
            _read(source, start)
            content = _read(source, int(np.prod(shape)) * dtype.itemsize)
            return np.frombuffer(content, dtype).reshape(shape[::-1]).T

    return Rows(shape, dtype, lambda: of_array(entire()).blocks(), entire=entire)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    raise ValueError("a version that only arrays of records have")


def _read(file: IO[bytes], n: int) -> bytes:
    """The next n bytes; EOFError if there are fewer."""
    content = file.read(n)
    if len(content) < n:
        raise EOFError
    return content


def summary(rows: Rows, columns: np.ndarray | None = None) -> Summary:
    """The summary of non-empty rows, with their columns in the order of `columns`."""
    found = rows.known or reduce(add, (of_block(block) for block in rows.blocks()))
    if columns is None:
        return found
    edges = {"low": found.low[columns], "high": found.high[columns], "lost": found.lost[columns]}
    return replace(found, **edges)


def of_block(block: np.ndarray) -> Summary:
    """The summary of a small array."""
    x = block.reshape(len(block), -1)
    whole = x.dtype.kind in "bui"
    with np.errstate(over="ignore", invalid="ignore"):
        exact = (whole and x.dtype.itemsize <= 2) or x.dtype in (np.float16, np.float32)
        lost = np.zeros(x.shape[1])
        if not exact:
            lost = np.fmax.reduce(np.abs(x.astype(np.float32) - x))
        gaps = False if whole else bool(np.isnan(x).any())
        return Summary(
            np.fmin.reduce(x),
            np.fmax.reduce(x),
            whole or bool(((x == np.rint(x)) | np.isnan(x)).all()),
            whole or not bool(np.isinf(x).any()),
            lost.astype(np.float64),
            gaps,
        )
