"""`python -m benchmarks.versions --against CHECKOUT`: this version and another, turn by turn.

Both do the same through what both show: imports, help, the start of a training, its steps, and an
evaluation. Each turn is a process of its own, with an empty cache of compiled programs; a ratio is
of two that ran one after the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

HERE = Path(__file__).parents[1]

Seconds = dict[str, float]
"""What was measured, by name."""


def main() -> None:
    arguments = parsed()
    turns: list[tuple[Seconds, Seconds]] = []
    for turn in range(arguments.turns):
        both = [HERE, arguments.against][:: 1 if turn % 2 == 0 else -1]
        found = {checkout: measured(checkout) for checkout in both}
        turns.append((found[HERE], found[arguments.against]))
    print(f"{'':28s}{'this':>10s}{'other':>10s}{'this / other':>16s}")
    for name in turns[0][0]:
        ratios = [ours[name] / theirs[name] for ours, theirs in turns]
        ours, theirs = (median(both[i][name] for both in turns) for i in (0, 1))
        spread = f"{median(ratios):.3f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"{name:28s}{ours:10.4f}{theirs:10.4f}{spread:>22s}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def measured(checkout: Path) -> Seconds:
    """All measurements of one checkout, in a process of its own."""
    with tempfile.TemporaryDirectory() as programs:
        own = {"PYTHONPATH": str(checkout / "src"), "JAX_COMPILATION_CACHE_DIR": programs}
        command = [sys.executable, "-W", "ignore", __file__]
        done = subprocess.run(
            command, env=os.environ | own, check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Measure the version that PYTHONPATH leads to."""
    seconds: Seconds = {}
    for name, code in (
        ("import iwae, s", "import iwae"),
        ("import of training, s", "import iwae; iwae.train"),
        ("iwae --help, s", "from iwae.cli import main; main(['--help'])"),
        ("iwae train --help, s", "from iwae.cli import main; main(['train', '--help'])"),
    ):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], check=True, stdout=subprocess.DEVNULL
        )
        seconds[name] = time.perf_counter() - began
    print(json.dumps(seconds | of_training()))


def of_training() -> Seconds:
    """Start, step and evaluation of the paper's network with one stochastic layer and K = 50."""
    import numpy as np

    import iwae

    images = np.random.default_rng(0).integers(0, 256, (600, 784)).astype(np.uint8)
    data = {"train": images[:500], "valid": images[500:520], "test": images[520:540]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began = time.perf_counter()
        model = iwae.train(data=data, k=50, epochs=1, out=out)
        start = time.perf_counter() - began
        model = iwae.train(data=data, k=50, epochs=13, out=out, resume=True)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    each = [after["seconds"] - before["seconds"] for before, after in pairwise(rows)]
    model.score(data["test"], k=5000)
    began = time.perf_counter()
    model.score(data["test"], k=5000)
    return {
        "start to the end of epoch 1, s": start,
        "training step, ms": 1e3 * median(each) / (len(data["train"]) // 20),
        "L_5000 of an image, ms": 1e3 * (time.perf_counter() - began) / len(data["test"]),
    }


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else child()
