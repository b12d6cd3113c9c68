"""A data set in memory: three splits of examples, and the meaning of their values."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iwae.data import columns
from iwae.errors import InputError, nearest

SPLITS = ("train", "valid", "test")
KINDS = ("binary", "intensity", "real")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three read-only splits of examples [n, d], in the type in which the device stores them.

    `kind`: "binary" (uint8, 0 and 1), "intensity" (x / scale is in [0, 1]) or "real" (float32).
    `scale`: 255 for 8-bit intensities, 16 for digits, 1 otherwise. `shape`: the shape of an image,
    or (d,); its product is d. `note`: a note on the provenance that results must carry. `names`:
    the names of the d columns; empty if they have none.
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

    def __post_init__(self) -> None:
        for name in SPLITS:
            view = np.ascontiguousarray(getattr(self, name)).view()
            view.setflags(write=False)
            object.__setattr__(self, name, view)

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
            return self if known == self.names else replace(self, names=known)
        splits = {name: self.split(name)[:, at] for name in SPLITS}
        ordered = tuple(self.names[i] for i in at)
        return replace(self, **splits, names=ordered)  # type: ignore[arg-type]

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the training examples as they are stored."""
        return hashlib.sha256(self.train.data).hexdigest()[:16]

    @functools.cached_property
    def whole_digest(self) -> str:
        """A digest of the examples of all splits as they are stored."""
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(f"{name} {self.split(name).shape}".encode())
            digest.update(self.split(name).data)
        return digest.hexdigest()[:16]

    def mean(self) -> np.ndarray:
        """Mean over the training split of x / scale, float32 [d]."""
        return (self.train.mean(axis=0, dtype=np.float64) / self.scale).astype(np.float32)

    def std(self) -> np.ndarray:
        """Standard deviation over the training split of x / scale (divisor n), float32 [d]."""
        mean = self.train.mean(axis=0, dtype=np.float64)
        blocks = (self.train[i : i + 4096] for i in range(0, len(self.train), 4096))
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
            name: binarize(self.split(name), self.scale, [seed, i]) for i, name in enumerate(SPLITS)
        }
        return replace(self, **draws, kind="binary", scale=1.0)  # type: ignore[arg-type]


def binarize(x: np.ndarray, scale: float, seed: int | Sequence[int]) -> np.ndarray:
    """Draws 0 or 1 for each value, P(1) = x / scale, as uint8 from default_rng(seed)."""
    if x.size and not (x.min() >= 0 and x.max() <= scale):
        what = f"Values from {x.min():g} to {x.max():g} are not intensities on the scale {scale:g}"
        raise InputError(f"{what}: give values between 0 and {scale:g}.")
    uniform = np.random.default_rng(seed).random(x.shape, dtype=np.float32)
    return (uniform < x / np.float32(scale)).astype(np.uint8)


def rescale(intensity: np.ndarray, scale: float) -> np.ndarray:
    """intensity · scale, as uint8 when all are integers to within 1e-4, else as float32."""
    scaled = intensity.astype(np.float32) * np.float32(scale)
    rounded = np.rint(scaled)
    whole = scale <= 255 and bool((np.abs(scaled - rounded) < 1e-4).all())
    return rounded.astype(np.uint8) if whole else scaled
