"""`python -m benchmarks.tables.large`: peak memory of training on 10 million rows of 10 numbers.

The rows are a .npy file of 400 MB, read whole or mapped into memory. Each turn is a process of its
own, and trains 300 steps of 1,000 rows.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS, COLUMNS, STEPS = 10_000_000, 10, 300
AT_ONCE = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.large")
    parser.add_argument("--child", nargs=2, metavar=("FILE", "HOW"), help=argparse.SUPPRESS)
    child = parser.parse_args().child
    if child is not None:
        measure(Path(child[0]), mapped=child[1] == "mapped")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write(path)
        for how in ("mapped", "whole"):
            command = [sys.executable, "-m", "benchmarks.tables.large", "--child", str(path), how]
            env = os.environ | {"IWAE_CACHE_DIR": folder}
            done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            print(f"{how}: {done.stdout.strip()}", flush=True)


def write(path: Path) -> None:
    """Normal rows with four factors."""
    random = np.random.default_rng(0)
    loadings = random.normal(size=(4, COLUMNS))
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, COLUMNS))
    for start in range(0, ROWS, AT_ONCE):
        noise = 0.1 * random.normal(size=(AT_ONCE, COLUMNS))
        rows[start : start + AT_ONCE] = random.normal(size=(AT_ONCE, 4)) @ loadings + noise
    rows.flush()


def measure(path: Path, *, mapped: bool) -> None:
    """Train, and print seconds and the peak of resident memory."""
    import iwae
    from iwae import data
    from iwae.training import Callback, Stop
    from iwae.training.callbacks import StepChunk

    class Enough(Callback):
        def on_step_chunk(self, event: StepChunk) -> Stop | None:
            return Stop("enough steps") if event.state.step >= STEPS else None

    began = time.perf_counter()
    rows = data.load(np.load(path, mmap_mode="r" if mapped else None))
    read = time.perf_counter() - began
    iwae.train(
        data=rows,
        hidden=((64, 64),),
        latents=(4,),
        k=8,
        epochs=1,
        batch_size=1000,
        callbacks=[Enough()],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{peak:.2f} GB, {read:.0f} s to read, {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
