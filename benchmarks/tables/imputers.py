"""The rivals' imputations of a table with holes."""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from benchmarks.tables.coding import Coding, Rows
from benchmarks.tables.sets import Mixed

DONORS = 2000
"""Most rows that neighbours are sought among, and that forests learn from: the first ones of a
permutation with the seed."""

TREES, ROUNDS = 20, 3
"""Trees of each forest, and rounds over the columns."""

Imputer = Callable[[Mixed, Rows, int], Rows]
"""(table, rows with NaN, seed) ↦ rows without."""


def marginal(table: Mixed, rows: Rows, seed: int) -> Rows:
    """Means of numbers, medians of ordinal levels, and the most frequent categories."""
    filled = rows.copy()
    for j, kind in enumerate(table.types):
        known = rows[~np.isnan(rows[:, j]), j]
        values, counts = np.unique(known, return_counts=True)
        median = np.quantile(known, 0.5, method="inverted_cdf")
        best = {"cat": values[counts.argmax()], "ordinal": median}.get(kind, known.mean())
        filled[np.isnan(rows[:, j]), j] = best
    return filled


def neighbours(table: Mixed, rows: Rows, seed: int) -> Rows:
    """Means over the five nearest of at most `DONORS` rows."""
    coding = Coding.of(table, rows)
    coded = coding.encode(rows)
    model = KNNImputer(keep_empty_features=True).fit(_some(coded, seed))
    return _filled(rows, coding.decode(model.transform(coded)))


def ridge(table: Mixed, rows: Rows, seed: int) -> Rows:
    """Chained Bayesian ridge regressions."""
    coding = Coding.of(table, rows)
    coded = coding.encode(rows)
    model = IterativeImputer(random_state=seed, keep_empty_features=True)
    return _filled(rows, coding.decode(model.fit_transform(coded)))


def forest(table: Mixed, rows: Rows, seed: int) -> Rows:
    """Chained random forests, as in missForest, learnt from at most `DONORS` rows."""
    return _chained(_small(seed), table, rows, seed, rounds=ROUNDS, most=DONORS)


def whole_forest(table: Mixed, rows: Rows, seed: int) -> Rows:
    """The same, learnt from all rows."""
    return _chained(_small(seed), table, rows, seed, rounds=ROUNDS, most=len(rows))


def _small(seed: int) -> RandomForestRegressor:
    return RandomForestRegressor(TREES, max_features=1 / 3, min_samples_leaf=2, random_state=seed)


def default_forest(table: Mixed, rows: Rows, seed: int) -> Rows:
    """Chained random forests with scikit-learn's own settings, learnt from all rows."""
    trees = RandomForestRegressor(random_state=seed)
    return _chained(trees, table, rows, seed, rounds=10, most=len(rows))


def _chained(
    trees: RandomForestRegressor, table: Mixed, rows: Rows, seed: int, *, rounds: int, most: int
) -> Rows:
    coding = Coding.of(table, rows)
    coded = coding.encode(rows)
    model = IterativeImputer(trees, max_iter=rounds, random_state=seed, keep_empty_features=True)
    model.fit(_some(coded, seed, most))
    return _filled(rows, coding.decode(model.transform(coded)))


def _some(rows: Rows, seed: int, most: int = DONORS) -> Rows:
    return rows[np.random.default_rng(seed).permutation(len(rows))[:most]]


def _filled(rows: Rows, guess: Rows) -> Rows:
    return np.where(np.isnan(rows), guess, rows)


IMPUTERS: dict[str, Imputer] = {
    "mean/median/mode": marginal,
    "KNNImputer": neighbours,
    "IterativeImputer, ridge": ridge,
    "IterativeImputer, forest": forest,
    "IterativeImputer, forest of all rows": whole_forest,
    "IterativeImputer, forest by default": default_forest,
}
