"""Tables of mixed types as numbers for models that know numbers only, and back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from benchmarks.tables.sets import Mixed

Rows = Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class Coding:
    """Numbers and ordinal levels in standard deviations; categories one-hot but for the first.

    With all of them, each is one minus the sum of the others, and chained regressions would learn
    nothing else.
    """

    categorical: tuple[bool, ...]
    levels: tuple[np.ndarray, ...]
    """The levels of each ordinal or categorical column; empty for numbers."""
    mean: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, " d"]

    @staticmethod
    def of(table: Mixed, rows: Rows) -> "Coding":
        """The coding of rows with NaN for what is missing."""
        known = [column[~np.isnan(column)] for column in rows.T]
        spread = np.array([column.std() for column in known])
        return Coding(
            tuple(kind == "cat" for kind in table.types),
            tuple(_levels(*of) for of in zip(table.types, known, strict=True)),
            np.array([column.mean() for column in known]),
            np.where(spread > 0, spread, 1.0),
        )

    def encode(self, rows: Rows) -> Float[np.ndarray, "n e"]:
        """Rows as numbers; NaN in every number of a missing value."""
        return np.column_stack([self._encoded(column, j) for j, column in enumerate(rows.T)])

    def _encoded(self, column: np.ndarray, j: int) -> np.ndarray:
        if not self.categorical[j]:
            return (column - self.mean[j]) / self.spread[j]
        hot = (column[:, None] == self.levels[j][1:]).astype(float)
        hot[np.isnan(column)] = np.nan
        return hot

    def decode(self, coded: Float[np.ndarray, "n e"]) -> Rows:
        """The nearest ordinal levels, and the categories of the largest number."""
        widths = [
            len(v) - 1 if c else 1 for v, c in zip(self.levels, self.categorical, strict=True)
        ]
        parts = np.split(coded, np.cumsum(widths)[:-1], axis=1)
        return np.column_stack([self._decoded(part, j) for j, part in enumerate(parts)])

    def _decoded(self, part: np.ndarray, j: int) -> np.ndarray:
        levels = self.levels[j]
        if self.categorical[j]:
            first = 1 - part.sum(axis=1, keepdims=True)
            return levels[np.hstack([first, part]).argmax(axis=1)]
        value = part[:, 0] * self.spread[j] + self.mean[j]
        if not len(levels):
            return value
        return levels[np.abs(value[:, None] - levels).argmin(axis=1)]


def _levels(kind: str, known: np.ndarray) -> np.ndarray:
    return np.unique(known) if kind in ("cat", "ordinal") else known[:0]
