"""`python -m benchmarks.tables.anomalies`: a class that training never saw, told by its scores.

Models learn from 80 % of the rows of all other classes; the rest of these rows and as many of the
held-out class, or all of them, are ranked by how improbable they are.

A likelihood also tells simple rows from complex ones (Nalisnick et al. 2019), which its ratio to
the marginals of training, log p(x) − Σ_j log p_j(x_j), leaves out.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.tables import ours, record, sets
from benchmarks.tables.densities import DETECTORS, marginals
from benchmarks.tables.record import Figure, Record
from benchmarks.tables.sets import Table

NAME = "anomalies"

HELD_OUT = {"iris": (0, 1, 2), "wine": (0, 1, 2), "breast_cancer": (0, 1), "digits": (1, 8)}
"""The classes that are odd, one after the other."""


def main() -> None:
    arguments = parsed()
    for name in arguments.data:
        table = sets.bundled(name)
        for odd in HELD_OUT[name]:
            for seed in range(*arguments.splits):
                figures = tuple(measured(table, odd, seed, arguments.by))
                record.write(
                    NAME, Record(__doc__ or "", {"test share": "0.2"}, record.machine(), figures)
                )
                for f in figures:
                    print(f"{f.of:28s}{f.turn:4s}{f.by:20s}{f.measure:20s}{f.value:7.3f}"
                          f"{f.seconds:8.1f} s", flush=True)  # fmt: skip


def parsed() -> argparse.Namespace:
    contestants = [*DETECTORS, ours.NAME]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.anomalies")
    parser.add_argument("--data", nargs="+", choices=list(HELD_OUT), default=list(HELD_OUT))
    parser.add_argument("--by", nargs="+", choices=contestants, default=contestants)
    parser.add_argument("--splits", nargs=2, type=int, default=(0, 5), metavar=("FIRST", "END"))
    return parser.parse_args()


def measured(table: Table, odd: int, seed: int, contestants: list[str]) -> Iterator[Figure]:
    """How well the scores of each contestant tell the odd class from new rows of the others."""
    train, test, is_odd = task(table, odd, seed)
    for by in contestants:
        began = time.perf_counter()
        each = scored(by, train, test, seed)
        seconds = time.perf_counter() - began
        for name, scores in each.items():
            for measure, of in (("ROC-AUC", roc_auc_score), ("AP", average_precision_score)):
                value = float(of(is_odd, rankdata(-scores)))
                yield Figure(f"{table.name}, class {odd}", name, measure, str(seed), value, seconds)


def task(table: Table, odd: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, rows for testing, and which of these are of the odd class."""
    usual, strange = table.rows[table.classes != odd], table.rows[table.classes == odd]
    train, test = sets.split(len(usual), seed)
    strange = strange[np.random.default_rng(seed).permutation(len(strange))[: len(test)]]
    rows = np.concatenate([usual[test], strange])
    return usual[train], rows, np.arange(len(rows)) >= len(test)


def scored(by: str, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Scores by name, the larger, the more usual."""
    if by != ours.NAME:
        return {by: DETECTORS[by](train, test, seed)[0]}
    step = sets.steps(train)
    scores, _ = ours.log_likelihoods(train, test, step, seed)
    return {by: scores, f"{by}, ratio": scores - marginals(train, test, step)}


if __name__ == "__main__":
    main()
