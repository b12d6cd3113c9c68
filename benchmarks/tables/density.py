"""`python -m benchmarks.tables.density`: held-out log-likelihoods per row, in the user's own units.

Every contestant sees the same rows. Where a column is discrete, rivals see it with uniform noise of
one step, so that their densities average probabilities, which they are then compared with.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.tables import ours, record, sets
from benchmarks.tables.densities import DENSITIES, Scores
from benchmarks.tables.record import Figure, Record

NAME = "density"

MEASURE = "log-likelihood"

ROWS = 2000
"""Most rows that are taken of a table of HI-VAE, the first of a permutation with seed 0."""


BY_SEED = f"{MEASURE} by seed"


def main() -> None:
    arguments = parsed()
    for name in arguments.data:
        rows = table(name)
        for seed in range(*arguments.splits):
            job = of_seeds if arguments.seeds else measured
            figures = tuple(job(name, rows, seed, arguments.by))
            record.write(NAME, Record(__doc__ or "", settings(), record.machine(), figures))
            for figure in figures:
                print(f"{figure.of:24s}{figure.turn:4s}{figure.by:18s}{figure.value:9.2f}"
                      f"{figure.seconds:8.1f} s  {figure.note}", flush=True)  # fmt: skip


def parsed() -> argparse.Namespace:
    everything = [*sets.BUNDLED, *(f"mixed/{name}" for name in sets.present())]
    contestants = [*DENSITIES, ours.NAME]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.density")
    parser.add_argument("--data", nargs="+", choices=everything, default=everything)
    parser.add_argument("--by", nargs="+", choices=contestants, default=contestants)
    parser.add_argument("--splits", nargs=2, type=int, default=(0, 10), metavar=("FIRST", "END"))
    told = "fit ours anew on one split, once for each number of --splits as the seed"
    parser.add_argument("--seeds", action="store_true", help=told)
    return parser.parse_args()


def settings() -> dict[str, str]:
    return {"test share": "0.2", "rows of mixed tables": str(ROWS)}


def table(name: str) -> np.ndarray:
    """The rows of a data set by name; complete ones of a table of HI-VAE."""
    if not name.startswith("mixed/"):
        return sets.bundled(name).rows
    of = sets.mixed(name.removeprefix("mixed/"))
    complete = of.rows[~of.unknown.any(axis=1)]
    return complete[np.random.default_rng(0).permutation(len(complete))[:ROWS]]


def measured(name: str, rows: np.ndarray, seed: int, contestants: list[str]) -> Iterator[Figure]:
    """The mean log-likelihood of a split's test rows under each contestant."""
    train, test = sets.split(len(rows), seed)
    for by in contestants:
        began = time.perf_counter()
        scores, note = scored(by, rows, train, test, seed)
        seconds = time.perf_counter() - began
        yield Figure(name, by, MEASURE, str(seed), float(np.mean(scores)), seconds, note)


def of_seeds(name: str, rows: np.ndarray, seed: int, contestants: list[str]) -> Iterator[Figure]:
    """The mean log-likelihood of the test rows of the split 0, under ours fitted with a seed."""
    train, test = sets.split(len(rows), 0)
    began = time.perf_counter()
    scores, note = scored(ours.NAME, rows, train, test, seed)
    seconds = time.perf_counter() - began
    yield Figure(name, ours.NAME, BY_SEED, str(seed), float(np.mean(scores)), seconds, note)


def scored(by: str, rows: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> Scores:
    """The log-likelihood of each test row: densities of continuous values times probabilities of
    discrete ones."""
    step = sets.steps(rows)
    if by == ours.NAME:
        return ours.log_likelihoods(rows[train], rows[test], step, seed)
    noisy = sets.dequantised(rows, step, seed)
    scores, note = DENSITIES[by](noisy[train], noisy[test], seed)
    return scores + np.log(step[step > 0]).sum(), note


if __name__ == "__main__":
    main()
