"""Odd rows, and the columns that make them odd."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from iwae.evaluation.imputation import Estimate

By = Literal["likelihood", "ratio", "typical"]
"""What rows can be ranked by: log p(x_o); log p(x_o) − Σ_j log p(x_j), which takes from a row what
its columns say one by one; or log p(x_o) in standard deviations from its mean over draws of the
model with the same holes."""


@dataclass(frozen=True)
class OddColumn:
    """A value of a row, and how much it surprises given all other values of the row."""

    name: str
    value: Any
    """As the user wrote it."""
    log_density: float
    """log p(x_j|x_rest) in nats: a density in the column's units, or a probability."""
    usual: float
    """The median of `log_density` over rows of training."""

    @property
    def surprise(self) -> float:
        """Nats by which the value is less likely than is usual in its column.

        The units of a column cancel, so that columns are comparable.
        """
        return self.usual - self.log_density


@dataclass(frozen=True)
class Anomaly:
    """A row, its log-likelihood, and its columns from the most surprising to the least."""

    index: int
    """The number of the row, from 0, as Python counts. In print rows count from 1."""
    by: "By"
    """What rows were ranked by."""
    score: float
    """The figure they were ranked by; the lower, the odder."""
    log_likelihood: float
    """L_K of its observed values, in nats."""
    standard_error: float
    """Of `log_likelihood`, in nats."""
    columns: tuple[OddColumn, ...]
    """Those that are not missing."""

    def __str__(self) -> str:
        odd = ", ".join(
            f"{c.name} = {shown(c.value)} ({c.log_density:.2f}, usually {c.usual:.2f})"
            for c in self.columns[:3]
        )
        score = "" if self.by == "likelihood" else f"{self.by} {self.score:.2f}, log p "
        log_p = f"{self.log_likelihood:.2f} ± {self.standard_error:.2f}"
        return f"row {self.index + 1}: {score}{log_p}" + (f": {odd}" if odd else "")


def ranked(
    rows: Sequence[int],
    by: By,
    scores: Float[np.ndarray, " n"],
    of: Estimate,
    columns: Float[np.ndarray, "m d"],
    usual: Float[np.ndarray, " d"],
    names: Sequence[str],
    values: Sequence[Sequence[Any]],
) -> list[Anomaly]:
    """The anomalies of m rows, in their order, from log p(x_j|x_rest) of their columns.

    `scores` and `of` hold the figures of all rows, and `values` those of the columns as the user
    knows them, [d][m].
    """
    found = []
    for i, row in enumerate(rows):
        odd = [
            OddColumn(name, values[j][i], float(columns[i, j]), float(usual[j]))
            for j, name in enumerate(names)
            if not np.isnan(columns[i, j])
        ]
        odd.sort(key=lambda c: -c.surprise)
        log_p, error = of.log_likelihood[row], of.standard_error[row]
        score = float(scores[row])
        found.append(Anomaly(int(row), by, score, float(log_p), float(error), tuple(odd)))
    return found


def shown(value: Any) -> str:
    """A value in print: numbers with 6 digits."""
    number = isinstance(value, float | np.floating)
    return f"{value:.6g}" if number else str(value)
