"""A data set: three splits of examples, in memory or mapped into it, and what their values mean."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iwae._utils.notebook import html_table
from iwae.data import columns, mapped
from iwae.data.schema import Schema
from iwae.errors import InputError, nearest

SPLITS = ("train", "valid", "test")
KINDS = ("binary", "intensity", "real", "table")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three read-only splits of examples [n, d], in the type in which the device stores them.

    `kind`: "binary" (uint8, 0 and 1), "intensity" (x / scale is in [0, 1]), "real" (float32) or
    "table" (float32, with the columns of `schema`). Missing values are NaN, in float32 whatever the
    kind. `scale`: 255 for 8-bit intensities, 16 for digits, 1 otherwise. `shape`: the shape of an
    image, or (d,); its product is d. `note`: a note on the provenance that results must carry.
    `names`: the names of the d columns; empty if they have none.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    kind: str
    scale: float
    shape: tuple[int, ...]
    note: str = ""
    names: tuple[str, ...] = ()
    schema: Schema | None = None
    """The columns of a table; None for other kinds."""

    def __post_init__(self) -> None:
        for name in SPLITS:
            view = np.ascontiguousarray(getattr(self, name)).view()
            view.setflags(write=False)
            object.__setattr__(self, name, view)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {value}" for name, value in self._described())
        return f"Dataset({self.name!r}, {said})"

    def _repr_html_(self) -> str:
        """A summary for notebooks, with the columns of a table."""
        of_columns = [] if self.schema is None else self.schema.described()
        return html_table([("data set", self.name), *self._described(), *of_columns])

    def _described(self) -> list[tuple[str, str]]:
        """What the summaries tell besides the name."""
        sizes = " / ".join(f"{len(self.split(name)):,}" for name in SPLITS)
        shape = " × ".join(map(str, self.shape))
        rows = [("kind", self.kind), ("shape", shape), (" / ".join(SPLITS), sizes)]
        if not self.missing:
            return rows
        blocks = (block for name in SPLITS for block in mapped.blocks_of(self.split(name)))
        holes = sum(int(np.isnan(block).sum()) for block in blocks)
        return [*rows, ("missing", f"{holes:,} values")]

    def split(self, name: str) -> np.ndarray:
        """The split "train", "valid" or "test", [n, d]."""
        if name not in SPLITS:
            raise InputError(f"{name!r} is not a split: {nearest(name, list(SPLITS))}.")
        return getattr(self, name)

    def in_order(self, names: Sequence[str]) -> "Dataset":
        """The data set with its columns in the order of `names`; InputError if the columns differ.

        If either side has no names, columns are matched by position, and take the names of the
        other.
        """
        at = columns.order(self.names, names, self.train.shape[1], self.name)
        if at is None:
            known = tuple(names) or self.names
            schema = self.schema
            if schema is not None and known != self.names:
                renamed = zip(schema.columns, known, strict=True)
                schema = replace(schema, columns=tuple(replace(c, name=n) for c, n in renamed))
            return self if known == self.names else replace(self, names=known, schema=schema)
        splits = {name: _columns(self.split(name), at) for name in SPLITS}
        ordered = tuple(self.names[i] for i in at)
        schema = None if self.schema is None else self.schema.in_order(ordered)
        return replace(self, **splits, names=ordered, schema=schema)  # type: ignore[arg-type]

    @functools.cached_property
    def missing(self) -> bool:
        """Whether any value of any split is missing (NaN)."""
        parts = (self.split(name) for name in SPLITS)
        floats = (x for x in parts if x.dtype.kind == "f")
        return any(bool(np.isnan(block).any()) for x in floats for block in mapped.blocks_of(x))

    def usual(self) -> np.ndarray:
        """The first training value of each column that is not missing, over scale, float32 [d]."""
        chosen = self.train[0].copy()
        for block in mapped.blocks_of(self.train):
            lost = np.isnan(chosen)
            if not lost.any():
                break
            first = np.argmin(np.isnan(block), axis=0)
            chosen[lost] = block[first, np.arange(len(first))][lost]
        return (chosen / self.scale).astype(np.float32)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the training examples as they are stored."""
        digest = hashlib.sha256()
        _digest(digest, self.train)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def whole_digest(self) -> str:
        """A digest of the examples of all splits as they are stored."""
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(f"{name} {self.split(name).shape}".encode())
            _digest(digest, self.split(name))
        return digest.hexdigest()[:16]

    def mean(self) -> np.ndarray:
        """Mean over the training split of x / scale, float32 [d]; missing values do not count."""
        mean = _moments_of_seen(self.train)[0] if self.missing else _mean(self.train)
        return (mean / self.scale).astype(np.float32)

    def std(self) -> np.ndarray:
        """Standard deviation over the training split of x / scale (divisor n), float32 [d].

        Missing values do not count.
        """
        if self.missing:
            return (_moments_of_seen(self.train)[1] / self.scale).astype(np.float32)
        mean, blocks = _mean(self.train), mapped.blocks_of(self.train, 4096)
        squares = np.sum([((block - mean) ** 2).sum(axis=0) for block in blocks], axis=0)
        return (np.sqrt(squares / len(self.train)) / self.scale).astype(np.float32)

    def binarized(self, seed: int) -> "Dataset":
        """Each split binarised once, split i with default_rng([seed, i]); binary data unchanged."""
        if self.kind == "binary":
            return self
        if self.kind != "intensity":
            what = f"{self.name!r} holds {self.kind} values, which have no fixed binarisation"
            raise InputError(f"{what}: use data of the kind intensity or binary.")
        draws = {
            name: _binarized(self.split(name), self.scale, [seed, i])
            for i, name in enumerate(SPLITS)
        }
        return replace(self, **draws, kind="binary", scale=1.0)  # type: ignore[arg-type]


def _binarized(x: np.ndarray, scale: float, seed: Sequence[int]) -> np.ndarray:
    """`binarize`, in a file if x is in one."""
    if not mapped.is_mapped(x):
        return binarize(x, scale, seed)
    random = np.random.default_rng(seed)
    gaps = x.dtype.kind == "f" and any(np.isnan(block).any() for block in mapped.blocks_of(x))
    kind = np.dtype(np.float32 if gaps else np.uint8)
    return mapped.kept(x.shape, kind, lambda rows: binarize(x[rows], scale, random))


def binarize(
    x: np.ndarray, scale: float, seed: int | Sequence[int] | np.random.Generator
) -> np.ndarray:
    """Draws 0 or 1 for each value, P(1) = x / scale, as uint8 from default_rng(seed).

    Where values are missing, they stay so, and the others are 0 and 1 in float32.
    """
    gaps = np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, bool)
    if not gaps.all() and not (np.nanmin(x) >= 0 and np.nanmax(x) <= scale):
        given = f"Values from {np.nanmin(x):g} to {np.nanmax(x):g}"
        what = f"{given} are not intensities on the scale {scale:g}"
        raise InputError(f"{what}: give values between 0 and {scale:g}.")
    uniform = np.random.default_rng(seed).random(x.shape, dtype=np.float32)
    drawn = (uniform < x / np.float32(scale)).astype(np.uint8)
    return np.where(gaps, np.float32(np.nan), drawn) if gaps.any() else drawn


def _columns(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Some columns of an array, in a file if its own are."""
    if not mapped.is_mapped(x):
        return x[:, at]
    shape = (len(x), len(at))
    return mapped.kept(shape, x.dtype, lambda rows: x[rows][:, at])


def _mean(x: np.ndarray) -> np.ndarray:
    """The mean of columns without missing values, float64 [d]."""
    if mapped.is_mapped(x):
        return mapped.sums(mapped.blocks_of(x), x.shape[1]) / len(x)
    mean: np.ndarray = x.mean(axis=0, dtype=np.float64)
    return mean


def _moments_of_seen(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divisor n) of the values that are not missing, float64 [d]."""
    if not mapped.is_mapped(x):
        return (
            np.asarray(np.nanmean(x, axis=0, dtype=np.float64)),
            np.asarray(np.nanstd(x, axis=0, dtype=np.float64)),
        )
    d, blocks = x.shape[1], lambda: mapped.blocks_of(x)
    n = sum((~np.isnan(block)).sum(axis=0) for block in blocks())
    mean = mapped.sums((np.nan_to_num(block) for block in blocks()), d) / n
    deviations = (np.nan_to_num((block - mean).astype(x.dtype)) for block in blocks())
    return mean, np.sqrt(mapped.sums((part * part for part in deviations), d) / n)


def _digest(digest: "hashlib._Hash", x: np.ndarray) -> None:
    """Add the examples to a digest."""
    for block in mapped.blocks_of(x):
        digest.update(_canonical(block).data)


def _canonical(x: np.ndarray) -> np.ndarray:
    """The examples with one bit pattern for all missing values."""
    gaps = x.dtype.kind == "f" and np.isnan(x)
    return np.where(gaps, np.float32(np.nan), x) if np.any(gaps) else x


def rescale(intensity: np.ndarray, scale: float) -> np.ndarray:
    """intensity · scale, as uint8 when all are integers to within 1e-4, else as float32."""
    scaled = intensity.astype(np.float32) * np.float32(scale)
    rounded = np.rint(scaled)
    whole = scale <= 255 and bool((np.abs(scaled - rounded) < 1e-4).all())  # nor NaN
    return rounded.astype(np.uint8) if whole else scaled
