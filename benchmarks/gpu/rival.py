"""The same steps and the same evaluation in PyTorch: a plain loop, and CUDA graphs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.agreement import check, pair
from benchmarks.gpu.steps import BATCH, LARGE, step_name
from benchmarks.gpu.task import Task
from benchmarks.images import synthetic
from benchmarks.timing import interleaved
from benchmarks.torch_iwae import GraphedLoop, TrainingLoop, log_likelihoods

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

FLOAT32, TF32 = "highest", "high"
"""What PyTorch calls the precisions of products of float32 factors."""


def steps(task: Task) -> None:
    """Milliseconds of a step, plain (Adam fused) and as a CUDA graph, after its bound and gradient
    have been compared with ours."""
    images, ks = synthetic(task.sizes.images), task.sizes.ks
    for layers in (1, 2):
        check(layers)

    def time(name: str, make: Callable[[], Any], precision: str = FLOAT32) -> None:
        if not task.missing(name):
            return None
        torch.set_float32_matmul_precision(precision)
        try:
            turns = interleaved({"torch": make()}, task.effort)["torch"]
        except RuntimeError as error:
            return task.tell(name, error=str(error).partition("\n")[0][:300])
        return task.tell(name, ms=[round(1e3 * t, 6) for t in turns])

    def plain(layers: int, k: int, batch: int) -> TrainingLoop:
        return TrainingLoop(pair(layers)[1], images, k=k, batch=batch, fused=True, device=DEVICE)

    def graphed(layers: int, k: int, batch: int, *, bfloat16: bool = False) -> GraphedLoop:
        return GraphedLoop(pair(layers)[1], images, k=k, batch=batch, fused=True, bfloat16=bfloat16)

    every = [(step_name(layers, k), layers, k, BATCH) for layers in (1, 2) for k in ks]
    if task.sizes.fast:
        every.append((LARGE, 1, max(ks), 500))
    for name, *given in every:
        time(f"{name}: plain", partial(plain, *given))
        if CUDA:
            time(f"{name}: CUDA graph", partial(graphed, *given))
    for k in (min(ks), max(ks)) if CUDA else ():
        name = step_name(1, k)
        time(f"{name}, tf32: CUDA graph", partial(graphed, 1, k, BATCH), TF32)
        low = partial(graphed, 1, k, BATCH, bfloat16=True)
        time(f"{name}, bfloat16: CUDA graph", low)


BLOCKS = ((100, 250), (500, 250), (1000, 250), (500, 1000))
"""Images and draws at once."""


def evaluation(task: Task) -> None:
    """Seconds of L_K by blocks, and its mean."""
    images = synthetic(task.sizes.evaluated)
    net = pair(1)[1].to(DEVICE)
    x = torch.from_numpy((images > 127).astype("float32")).to(DEVICE)
    for at_once, draws in BLOCKS:
        name = f"{at_once} images × {draws} draws"
        if not task.missing(name):
            continue

        values: list[Any] = []

        def work(
            units: int, at_once: int = at_once, draws: int = draws, values: list[Any] = values
        ) -> None:
            for _ in range(units):
                given: Any = {"at_once": at_once, "draws": draws, "threads": 1}
                values[:] = [log_likelihoods(net, x, task.sizes.k_evaluation, **given).cpu()]

        turns = interleaved({"torch": work}, task.effort)["torch"]
        task.tell(name, s=turns, n=len(x), mean=float(values[0].mean()))
