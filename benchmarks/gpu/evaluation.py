"""iwae's L_K of a whole test set on a GPU."""

from collections.abc import Callable

import numpy as np

from benchmarks.gpu.task import Task
from benchmarks.images import synthetic
from benchmarks.iwae_steps import log_likelihoods, new_model
from benchmarks.timing import interleaved


def ours(task: Task) -> None:
    """Seconds of L_K in float32, in the blocks that `iwae evaluate` takes, and its mean."""
    if not task.missing("iwae"):
        return
    model = new_model(1, synthetic(60_000))
    x = (synthetic(task.sizes.evaluated) > 127).astype(np.uint8)
    values: list[np.ndarray] = []

    def work(units: int) -> None:
        values[:] = [log_likelihoods(model, x, task.sizes.k_evaluation) for _ in range(units)]

    contestant: Callable[[int], None] = work
    turns = interleaved({"iwae": contestant}, task.effort)["iwae"]
    error = float(values[0].std(ddof=1) / len(x) ** 0.5)
    task.tell("iwae", s=turns, n=len(x), mean=float(values[0].mean()), error=error)
