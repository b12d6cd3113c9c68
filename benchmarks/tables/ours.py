"""`iwae.IWAE` and `iwae.IWAEImputer` with no setting but the seed and, where the protocol gives
them, the types of the columns; and `iwae.train` for values missing by their own size."""

from typing import Any

import numpy as np
import pandas as pd

import iwae
from benchmarks.tables import sets
from benchmarks.tables.densities import Scores
from benchmarks.tables.sets import Mixed
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.data.schema import CODED, Schema

NAME = "IWAE"

MISSINGNESS = {
    "MIWAE": "at-random",
    "not-MIWAE": "self-masking",
    "not-MIWAE, sign known": "self-masking-high",
}
"""Models of the missing values by their names in the literature."""

TYPES = {
    "real": "real",
    "pos": "positive",
    "count": "count",
    "cat": "categorical",
    "ordinal": "ordinal",
}


SELF_MASKING: dict[str, Any] = {
    "values": "table",
    "hidden": ((64,),),
    "latents": (8,),
    "k": 10,
    "estimator": "dreg",
    "batch_size": 32,
    "epochs": 200,
    "learning_rate": 3e-3,
}
"""Settings of both contestants on values missing by their own size."""


def log_likelihoods(train: np.ndarray, test: np.ndarray, step: np.ndarray, seed: int) -> Scores:
    """The log-likelihood of each test row.

    Discrete columns that our model would take for continuous are dequantised as for its rivals.
    """
    splits = {"train": train, "test": test}
    types = kinds(iwae.data.load(splits, values="table").schema)
    probable = np.array([kind in (*CODED, "count") for kind in types])
    noisy = np.where(probable, 0.0, step)
    model = iwae.IWAE(random_state=seed).fit(sets.dequantised(train, noisy, seed))
    scores = model.score_samples(sets.dequantised(test, noisy, seed + 1))
    return scores + np.log(noisy[noisy > 0]).sum(), ", ".join(sorted(set(types)))


def imputed(table: Mixed, rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows with their holes filled."""
    imputer = iwae.IWAEImputer(iwae.IWAE(schema=schema(table, rows)), random_state=seed)
    return numbers(imputer.fit_transform(frame(rows)))


def drawn(table: Mixed, rows: np.ndarray, n: int, draws: int, seed: int) -> np.ndarray:
    """Imputations [draws, n, d] of the first rows under a model of all rows."""
    model = iwae.IWAE(schema=schema(table, rows), random_state=seed).fit(frame(rows))
    each = model.impute(frame(rows[:n]), n_draws=draws)
    return np.stack([numbers(one) for one in each])


def completed(rows: np.ndarray, missingness: str, seed: int) -> np.ndarray:
    """Rows of real numbers with their holes filled, by how values came to be missing."""
    config = override(RunConfig(), seed=seed, missingness=missingness, **SELF_MASKING)
    model = iwae.train(config, data=rows)
    return np.asarray(model.impute(rows))


def kinds(schema: Schema | None) -> list[str]:
    return [] if schema is None else [column.type for column in schema.columns]


def frame(rows: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[f"x{j}" for j in range(rows.shape[1])])


def numbers(table: Any) -> np.ndarray:
    return np.asarray(table, dtype=float)


def schema(table: Mixed, rows: np.ndarray) -> dict[str, dict[str, object]]:
    """The types of the columns that the protocol gives, and the levels that occur."""
    found = {}
    for j, kind in enumerate(table.types):
        column: dict[str, object] = {"type": TYPES[kind]}
        known = np.unique(rows[~np.isnan(rows[:, j]), j])
        if kind in ("cat", "ordinal"):
            column["type"] = "binary" if len(known) == 2 else TYPES[kind]
            column["categories"] = tuple(known.tolist())
        if kind == "pos" and known[0] == 0:
            column["zeros"] = True
        found[f"x{j}"] = column
    return found
