"""`python -m benchmarks.tables.imputation`: the protocol of HI-VAE (Nazábal et al. 2020), on its
tables with their masks, and on data sets of scikit-learn with masks of our own.

The errors over the missing cells of a column: numbers: root mean squared error over the range of
the column; categories: share of wrong ones; ordinal levels: mean displacement over their number;
averaged over the columns of a kind. `--intervals` measures how often central intervals of multiple
imputations hold the value, `--self-masking` imputes values that are missing by their own size.
"""

import argparse
import time
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning

from benchmarks.tables import ours, record, sets
from benchmarks.tables.imputers import DONORS, IMPUTERS, ROUNDS, TREES
from benchmarks.tables.record import Figure, Record
from benchmarks.tables.sets import Mixed

NAME = "imputation"

KINDS = {
    "real": "numeric",
    "pos": "numeric",
    "count": "numeric",
    "cat": "categorical",
    "ordinal": "ordinal",
}

LEVELS = {50: (50, 150), 80: (20, 180), 95: (5, 195)}
"""The ranks of the ends of a central interval among `DRAWS` draws: under a true model the i-th
smallest of n draws exceeds the value with probability i / (n + 1)."""

DRAWS = 199

SHOWN = 500
"""Rows that intervals are measured on."""


def main() -> None:
    arguments = parsed()
    warnings.simplefilter("ignore", ConvergenceWarning)
    jobs = {"errors": protocol, "intervals": intervals, "self-masking": self_masking}
    for figure in jobs[arguments.what](arguments):
        record.write(NAME, Record(__doc__ or "", settings(), record.machine(), (figure,)))
        print(f"{figure.of:24s}{figure.turn:18s}{figure.by:26s}{figure.measure:24s}"
              f"{figure.value:8.4f}{figure.seconds:8.1f} s", flush=True)  # fmt: skip


def parsed() -> argparse.Namespace:
    contestants = [*IMPUTERS, ours.NAME]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.imputation")
    choices = ("errors", "intervals", "self-masking")
    parser.add_argument("what", choices=choices, nargs="?", default="errors")
    known, there = (*sets.MIXED, *sets.MASKED), (*sets.present(), *sets.MASKED)
    parser.add_argument("--data", nargs="+", choices=known, default=there)
    parser.add_argument("--by", nargs="+", choices=contestants, default=contestants)
    parser.add_argument("--percent", nargs="+", type=int, choices=(20, 50), default=(20, 50))
    parser.add_argument("--masks", type=int, help="use so many masks of each share only")
    return parser.parse_args()


def settings() -> dict[str, str]:
    sizes = {"donors": DONORS, "trees": TREES, "rounds": ROUNDS, "draws": DRAWS, "rows": SHOWN}
    return {name: str(size) for name, size in sizes.items()}


def protocol(arguments: argparse.Namespace) -> Iterator[Figure]:
    """The errors of every contestant on every mask."""
    for table in map(sets.table, arguments.data):
        for percent in arguments.percent:
            for turn, name in enumerate(table.masks(percent)[: arguments.masks]):
                holes = table.mask(name) | table.unknown
                rows = np.where(holes, np.nan, table.rows)
                for by in arguments.by:
                    began = time.perf_counter()
                    filled = imputed(by, table, rows, turn)
                    seconds = time.perf_counter() - began
                    for kind, error in errors(table, filled, holes & ~table.unknown).items():
                        of = f"{table.name}, {percent} %"
                        yield Figure(of, by, f"{kind} error", name, error, seconds)


def imputed(by: str, table: Mixed, rows: Float[np.ndarray, "n d"], seed: int) -> np.ndarray:
    if by == ours.NAME:
        return ours.imputed(table, rows, seed)
    return IMPUTERS[by](table, rows, seed)


def errors(
    table: Mixed, filled: Float[np.ndarray, "n d"], holes: Bool[np.ndarray, "n d"]
) -> dict[str, float]:
    """The mean error over the columns of each kind, and over all columns."""
    each: dict[str, list[float]] = {}
    for j, kind in enumerate(KINDS[t] for t in table.types):
        truth, guess = table.rows[holes[:, j], j], filled[holes[:, j], j]
        if len(truth):
            known = table.rows[~table.unknown[:, j], j]
            error = column_error(kind, truth, guess, np.ptp(known), table.classes[j])
            each.setdefault(kind, []).append(error)
    whole = {"mean": [error for column in each.values() for error in column]}
    return {kind: float(np.mean(found)) for kind, found in (each | whole).items()}


def column_error(
    kind: str, truth: np.ndarray, guess: np.ndarray, extent: float, levels: int
) -> float:
    """HI-VAE's normalised error of one column."""
    if kind == "categorical":
        return float(np.mean(truth != guess))
    if kind == "ordinal":
        return float(np.mean(np.abs(truth - guess)) / levels)
    return float(np.sqrt(np.mean((truth - guess) ** 2)) / extent)


def intervals(arguments: argparse.Namespace) -> Iterator[Figure]:
    """The share of missing real and positive values inside central intervals of our draws."""
    for table in map(sets.table, arguments.data):
        continuous = [t in ("real", "pos") for t in table.types]
        if not any(continuous):
            continue
        for percent in arguments.percent:
            for turn, name in enumerate(table.masks(percent)[: arguments.masks]):
                holes = table.mask(name) | table.unknown
                rows = np.where(holes, np.nan, table.rows)
                began = time.perf_counter()
                draws = ours.drawn(table, rows, SHOWN, DRAWS, turn)
                seconds = time.perf_counter() - began
                asked = (holes & ~table.unknown & continuous)[:SHOWN]
                for level, share in covered(draws, table.rows[:SHOWN], asked).items():
                    measure = f"coverage of {level} %"
                    of = f"{table.name}, {percent} %"
                    yield Figure(of, ours.NAME, measure, name, share, seconds)


def covered(
    draws: Float[np.ndarray, "draws n d"],
    truth: Float[np.ndarray, "n d"],
    asked: Bool[np.ndarray, "n d"],
) -> dict[int, float]:
    """The share of the asked values inside each central interval."""
    ordered = np.sort(draws[:, asked], axis=0)
    value = truth[asked]
    inside = lambda low, high: np.mean((ordered[low - 1] < value) & (value <= ordered[high - 1]))
    return {level: float(inside(low, high)) for level, (low, high) in LEVELS.items()}


def self_masking(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Root mean squared error, in standard deviations, where values above the mean are missing in
    the first half of the columns (Ipsen et al. 2021)."""
    for name in ("wine", "breast_cancer"):
        rows = sets.bundled(name).rows
        z = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        half = z.shape[1] // 2
        holes = (z > 0) & (np.arange(z.shape[1]) < half)
        for seed in range(5):
            for by, missingness in ours.MISSINGNESS.items():
                began = time.perf_counter()
                filled = ours.completed(np.where(holes, np.nan, z), missingness, seed)
                seconds = time.perf_counter() - began
                error = float(np.sqrt(np.mean((filled - z)[holes] ** 2)))
                yield Figure(f"{name}, self-masking", by, "error", str(seed), error, seconds)


if __name__ == "__main__":
    main()
