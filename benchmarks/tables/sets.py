"""The tables that are measured: scikit-learn's own, and those of HI-VAE."""

import csv
import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn import datasets

BUNDLED = ("iris", "wine", "diabetes", "breast_cancer", "digits")
"""The data sets that scikit-learn brings, in its own units."""

MASKED = ("sklearn/iris", "sklearn/wine", "sklearn/breast_cancer")
"""Those of continuous columns, of which values are taken away at random."""

MASKS = 5
"""Masks of each share of cells of `MASKED`, by their seeds."""

MIXED = ("adult", "breast", "default-credit", "letter", "wine")
"""Tables of mixed types with fixed masks, of Nazábal et al. 2020."""


@dataclass(frozen=True)
class Table:
    """Rows of numbers, and the class of each row."""

    name: str
    rows: Float[np.ndarray, "n d"]
    classes: Int[np.ndarray, " n"]


def bundled(name: str) -> Table:
    """A data set of scikit-learn."""
    data: Any = getattr(datasets, f"load_{name}")()
    return Table(name, data.data.astype(float), np.asarray(data.target))


def steps(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """The distance between neighbouring values of each discrete column, 0 for continuous ones.

    A column is discrete if all its values are whole, step 1, or if it has two values.
    """
    whole = np.all(rows == np.round(rows), axis=0)
    two = np.array([len(np.unique(column)) == 2 for column in rows.T])
    return np.where(two, np.ptp(rows, axis=0), whole.astype(float))


def dequantised(
    rows: Float[np.ndarray, "n d"], step: Float[np.ndarray, " d"], seed: int
) -> Float[np.ndarray, "n d"]:
    """The rows with uniform noise of one step in the discrete columns.

    With u ~ U[−½, ½], E_u[log p(x + step u)] + log step ≤ log P(x), the probability that the
    density gives the cell around x: densities of such rows are comparable with probabilities.
    """
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, rows.shape)
    return rows + noise * step


def split(
    n: int, seed: int, share: float = 0.2
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """The indices of the rows for training and for testing."""
    order = np.random.default_rng(seed).permutation(n)
    held = round(share * n)
    return order[held:], order[:held]


@dataclass(frozen=True)
class Mixed:
    """A table of HI-VAE's protocol."""

    name: str
    rows: Float[np.ndarray, "n d"]
    types: tuple[str, ...]
    """real, pos, count, ordinal or cat, for each column."""
    classes: tuple[int, ...]
    """The number of levels of an ordinal or categorical column; 0 for numbers."""
    unknown: Bool[np.ndarray, "n d"]
    """Cells that are missing in truth, which nothing is measured on."""
    folder: Path

    def masks(self, percent: int) -> list[str]:
        """The names of the masks of this share of cells."""
        return sorted(path.name for path in self.folder.glob(f"Missing{percent}_*.csv"))

    def mask(self, name: str) -> Bool[np.ndarray, "n d"]:
        """The cells to take away."""
        return _cells(self.folder / name, self.rows.shape)


@dataclass(frozen=True)
class Masked(Mixed):
    """A data set of scikit-learn, whose cells are taken away at random, each by itself."""

    def masks(self, percent: int) -> list[str]:
        return [f"{percent} % by seed {seed}" for seed in range(MASKS)]

    def mask(self, name: str) -> Bool[np.ndarray, "n d"]:
        percent, seed = int(name.split()[0]), int(name.split()[-1])
        away: np.ndarray = np.random.default_rng(seed).uniform(size=self.rows.shape) < percent / 100
        return away


def table(name: str) -> Mixed:
    """A table of HI-VAE, or `sklearn/` and the name of one of scikit-learn's data sets."""
    if not name.startswith("sklearn/"):
        return mixed(name)
    rows = bundled(name.removeprefix("sklearn/")).rows
    types = tuple("pos" if column.min() >= 0 else "real" for column in rows.T)
    nothing = np.zeros(rows.shape, bool)
    return Masked(name, rows, types, (0,) * rows.shape[1], nothing, Path())


def mixed(name: str) -> Mixed:
    """A table of the folder `mixed` in IWAE_DATA_DIR; `FileNotFoundError` if it is not there."""
    folder = mixed_folder() / name
    header, *described = _lines(folder / "data_types.csv")
    columns = [dict(zip(header, line, strict=True)) for line in described]
    rows = np.array(_lines(folder / "data.csv"), dtype=float)
    unknown = folder / "MissingTrue.csv"
    return Mixed(
        name,
        rows,
        tuple(column["type"] for column in columns),
        tuple(int(column["nclass"] or 0) for column in columns),
        _cells(unknown, rows.shape) if unknown.exists() else np.zeros(rows.shape, bool),
        folder,
    )


def mixed_folder() -> Path:
    """The folder of HI-VAE's tables."""
    return Path(os.environ.get("IWAE_DATA_DIR", "data")) / "mixed"


def present() -> tuple[str, ...]:
    """HI-VAE's tables that are here."""
    return tuple(name for name in MIXED if (mixed_folder() / name / "data.csv").exists())


def _cells(path: Path, shape: tuple[int, ...]) -> Bool[np.ndarray, "n d"]:
    """The mask of a file of positions `row,column`, counted from 1."""
    listed = np.zeros(shape, bool)
    lines = _lines(path)
    if lines:
        row, column = np.array(lines, dtype=int).T - 1
        listed[row, column] = True
    return listed


@functools.cache
def _lines(path: Path) -> list[list[str]]:
    """The fields of each line that is not empty; a line ends in LF, CR LF or CR."""
    with io.StringIO(path.read_text("utf-8-sig"), newline=None) as text:
        return [line for line in csv.reader(text.read().splitlines()) if line]
