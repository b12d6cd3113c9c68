"""`python -m benchmarks.tables.speed`: seconds of a first and a second fit, of scores, of a search.

Each turn runs in a process of its own, whose cache of compiled programs is empty. Rows are drawn
from those of breast cancer, 30 positive columns, with noise of a hundredth of their spread.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GridSearchCV

from benchmarks.tables import record, sets
from benchmarks.tables.ours import NAME as OURS
from benchmarks.tables.record import Figure, Record
from iwae import IWAE
from iwae.data.tables import read_table

NAME = "speed"
ROWS = 500
LINES = 200_000
READ = "read a CSV of 200,000 × 18"
SEARCHED = {"learning_rate": [3e-3, 1e-2], "weight_decay": [0.1, 1.0]}
SMALL: dict[str, Any] = {"n_models": 1, "max_epochs": 20, "k_score": 100}
"""Settings of the searched estimator, beside those that are searched in two folds."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.speed")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured()))
        return
    for turn in range(arguments.turns):
        found = in_a_process()
        figures = tuple(Figure(of, OURS, "seconds", str(turn), s, s) for of, s in found.items())
        settings = {"rows": str(ROWS), "columns": "30", "search": described()}
        record.write(NAME, Record(__doc__ or "", settings, record.machine(), figures))
        print("\n".join(f"{figure.of:40s}{figure.value:8.1f} s" for figure in figures), flush=True)


def described() -> str:
    """What is searched, in words."""
    of = " × ".join(f"{len(values)} of {name}" for name, values in SEARCHED.items())
    return f"{of} in 2 folds, with " + ", ".join(f"{n} = {v}" for n, v in SMALL.items())


def in_a_process() -> dict[str, float]:
    """The figures of one turn."""
    command = [sys.executable, "-m", "benchmarks.tables.speed", "--child"]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"IWAE_CACHE_DIR": folder}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured() -> dict[str, float]:
    """Seconds of each step, in a process that has compiled nothing."""
    found = {}
    first, second = (rows(seed) for seed in (0, 1))
    model = IWAE(random_state=1)
    path = Path(tempfile.mkdtemp()) / "mixed.csv"
    write_mixed(path)
    steps: dict[str, Callable[[], object]] = {
        "first fit": lambda: IWAE(random_state=0).fit(first),
        "second fit, of other rows": lambda: model.fit(second),
        "first scores": lambda: model.score_samples(second),
        "second scores": lambda: model.score_samples(first),
        "search of 8 small fits": lambda: GridSearchCV(
            IWAE(**SMALL, random_state=0), SEARCHED, cv=2, refit=False
        ).fit(first[:200]),
        READ: lambda: read_table(path),
    }
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        found[name] = time.perf_counter() - began
    shutil.rmtree(path.parent)
    return found


def write_mixed(path: Path) -> None:
    """A table of 200,000 rows: ten columns of decimals, four of counts, four of words."""
    random = np.random.default_rng(0)
    columns = [np.char.mod("%.5g", random.normal(size=LINES)) for _ in range(10)]
    columns += [np.char.mod("%d", random.poisson(9, size=LINES)) for _ in range(4)]
    columns += [random.choice(["red", "dark grey", "blue"], size=LINES) for _ in range(4)]
    with path.open("w") as file:
        file.write(",".join(f"c{j}" for j in range(len(columns))) + "\n")
        file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))


def rows(seed: int) -> np.ndarray:
    """So many rows of 30 positive columns."""
    random = np.random.default_rng(seed)
    real = sets.bundled("breast_cancer").rows[:, :30]
    real = real[(real > 0).all(axis=1)]
    noise = 1 + 0.01 * random.normal(size=(ROWS, 30))
    return real[random.integers(len(real), size=ROWS)] * np.abs(noise)


if __name__ == "__main__":
    main()
