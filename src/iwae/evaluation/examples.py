"""Map a function of one example over a split, on all devices of all processes.

Evaluation code is written for one example, and mapped over a split in blocks that fit a memory
budget (`blocks`).
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from iwae._utils import threefry
from iwae._utils.distributed import computing, gathered, json_from_first
from iwae.data import mapped
from iwae.evaluation.blocks import BlockPlan, stacked
from iwae.models.observation import Observer

MOST_WORKERS = 4
"""Most concurrent calls on a CPU: one uses the cores that another leaves idle between products."""

PerExample = Callable[[PyTree, Array, PRNGKeyArray], PyTree]
"""(model, example [d], key) ↦ a tree of arrays."""

Progress = Callable[[int, int], None]
"""Called with the number of examples done and their total."""


def over_examples(
    function: PerExample,
    model: PyTree,
    images: np.ndarray | Array,
    observe: Observer,
    *,
    seed: int,
    draws: int,
    memory: int | None = None,
    progress: Progress | None = None,
) -> PyTree:
    """function(model, x, key) for every example, stacked.

    Bind other arguments with `eqx.Partial`, so that equal calls share a compiled program; programs
    are compiled for only a few numbers of examples (`blocks.padded`). Computes in 32 bits, whatever
    JAX's mode, unless the model holds 64-bit floats.

    Example i is observed and evaluated with keys derived from (seed, i) only, so that two models
    see the same binarisation. If `seed` is that of a run, the keys of the first 3 examples coincide
    with those of its purposes (`training.gradient_step.stream`); the others are independent.
    `draws` latent draws per example are in memory at once; `memory` (in bytes; by default 8 MiB per
    worker on a CPU, 2 GiB elsewhere) determines the size of a block.
    """
    n, d = images.shape
    workers = _workers()
    plan = _agreed(n, d, draws, memory, workers)
    work = _Work.of(function, model, plan, images, observe, seed)
    parts: list[PyTree] = []
    turns = range(plan.turns)
    with computing(work.copies[0]), _pool(max(workers, len(work.devices))) as pool:
        for turn, part in zip(turns, pool.map(work.evaluated, turns), strict=True):
            parts.append(part)
            if progress is not None:
                progress(plan.done(turn), n)
    return plan.in_order(gathered(stacked(parts)))


def _workers() -> int:
    """Number of concurrent calls."""
    on_cpu = jax.default_backend() == "cpu"
    return min(os.cpu_count() or 1, MOST_WORKERS) if on_cpu else 1


def _agreed(n: int, d: int, draws: int, memory: int | None, workers: int) -> BlockPlan:
    """The plan of the first process, for all, since their machines may differ."""
    if memory is None:
        memory = workers * 2**23 if jax.default_backend() == "cpu" else 2**31
    own = BlockPlan.of(
        n, d, draws=draws, memory=memory, workers=workers, processes=jax.process_count()
    )
    block, group = json_from_first([own.block, own.group])
    return dataclasses.replace(own, block=block, group=group)


@dataclass(frozen=True)
class _Work:
    """A function and its model on each device of this process, and the examples of a plan."""

    devices: Sequence[jax.Device]
    copies: Sequence[PyTree]
    """Arrays of the function and the model, on each device."""
    static: PyTree
    plan: BlockPlan
    images: np.ndarray | Array
    observe: Observer
    seed: int

    @classmethod
    def of(
        cls,
        function: PerExample,
        model: PyTree,
        plan: BlockPlan,
        images: np.ndarray | Array,
        observe: Observer,
        seed: int,
    ) -> "_Work":
        devices = jax.local_devices()
        arrays, static = eqx.partition((function, model), eqx.is_array)
        several = len(devices) > 1
        copies = [jax.device_put(arrays, one) for one in devices] if several else [arrays]
        return cls(devices, copies, static, plan, images, observe, seed)

    def evaluated(self, turn: int) -> PyTree:
        """The function's values on the examples of a turn, on the device of that turn."""
        index = self.plan.examples(turn, jax.process_index())
        own = turn % len(self.devices)
        device = self.devices[own] if len(self.devices) > 1 else None
        with computing(self.copies[0]), jax.default_device(device):
            function, model = eqx.combine(self.copies[own], self.static)
            given = self.images
            read = mapped.gathered(given, index) if isinstance(given, np.ndarray) else given[index]
            rows, numbers = jnp.asarray(read), jnp.asarray(index)
            seed, block = jnp.uint32(self.seed), self.plan.block
            part = _over_group(function, model, rows, numbers, seed, self.observe, block)
            return jax.tree.map(np.asarray, part)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that keep every core busy; pending calls are cancelled on Ctrl-C."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@eqx.filter_jit
def _over_group(
    function: PerExample,
    model: PyTree,
    images: Array,
    index: Array,
    seed: Array,
    observe: Observer,
    block: int,
) -> PyTree:
    def one(row: tuple[Array, Array]) -> PyTree:
        key_x, key = jax.random.split(jax.random.fold_in(threefry.key(seed), row[1]))
        return function(model, observe(row[0], key_x), key)

    return jax.lax.map(one, (images, index), batch_size=block)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over examples and its standard error (nan for a single example)."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values, dtype=np.float64)), float(error)
