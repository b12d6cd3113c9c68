"""iwae's training steps on a GPU: how long, what shortens them, what they wait for."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import floor, tracing
from benchmarks.gpu.items import Sizes
from benchmarks.gpu.task import Task
from benchmarks.images import synthetic
from benchmarks.iwae_steps import TrainingLoop, new_model
from benchmarks.timing import Effort, interleaved
from iwae.config.io import override, recipe
from iwae.config.schema import ObjectiveConfig, Precision, TrainingConfig

BATCH = 20

COMPILERS = 3
"""Programs that are compiled at once: more of them wait for the card, on which they are tuned."""

PRECISIONS: tuple[Precision, ...] = ("tf32", "bfloat16")


def in_float32(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """By name, the settings of the paper's steps, and of those of the recipe `fast`."""
    found: dict[str, dict[str, Any]] = {
        step_name(layers, k): {"layers": layers, "k": k} for layers in (1, 2) for k in sizes.ks
    }
    if sizes.fast:
        fast = override(recipe("fast"), k=max(sizes.ks))
        found[FAST] = {
            "layers": 1,
            "k": max(sizes.ks),
            "objective": fast.objective,
            "config": fast.training,
        }
        adam = TrainingConfig(batch_size=fast.training.batch_size)
        found[LARGE] = {"layers": 1, "k": max(sizes.ks), "config": adam}
    return found


def in_lower_precision(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """By name, the settings of one-layer steps whose products are faster."""
    return {
        f"{step_name(1, k)}, {precision}": {
            "layers": 1,
            "k": k,
            "config": TrainingConfig(batch_size=BATCH, precision=precision),
        }
        for precision in PRECISIONS
        for k in (min(sizes.ks), max(sizes.ks))
    }


FAST = "recipe fast"
LARGE = "batch of fast, all draws, Adam"


def step_name(layers: int, k: int) -> str:
    return f"{layers} layer{'s' * (layers > 1)}, K = {k}"


def steps(task: Task) -> None:
    """Milliseconds of a step, with the seconds that its program took to compile."""
    measure(task, in_float32(task.sizes) | in_lower_precision(task.sizes))


def measure(
    task: Task, wanted: Mapping[str, dict[str, Any]], options: Mapping[str, dict] | None = None
) -> None:
    """Tell the time of each step that is not known yet; of one that cannot be compiled, why.

    Some are compiled at once, and then timed while nothing is compiled. `options` are those of
    XLA's compiler by name.
    """
    images = synthetic(task.sizes.images)
    missing = [name for name in wanted if task.missing(name)]
    for some in batched(missing, COMPILERS):
        with ThreadPoolExecutor(min(len(some), os.cpu_count() or 1)) as pool:
            made = {
                name: pool.submit(_compiled, images, wanted[name], (options or {}).get(name))
                for name in some
            }
            ready = {name: future.exception() or future.result() for name, future in made.items()}
        for name, found in ready.items():
            if isinstance(found, BaseException):
                task.tell(name, error=str(found).partition("\n")[0][:300])
                continue
            loop, took = found
            n = len(loop.steps)
            task.tell(name, ms=_timed(loop, task.effort), compile_s=round(took, 2), replicas=n)


def batched(names: Sequence[str], size: int) -> list[Sequence[str]]:
    """So many names at a time."""
    return [names[i : i + size] for i in range(0, len(names), size)]


def _compiled(images: Any, given: dict[str, Any], options: Any) -> tuple[TrainingLoop, float]:
    """The loop of these settings, and the seconds that the compiler took."""
    own = {n: v for n, v in given.items() if n != "layers"}
    loop = TrainingLoop(new_model(given["layers"], images), images, batch=BATCH, **own)
    began = time.perf_counter()
    loop.compile(options)
    return loop, time.perf_counter() - began


def _timed(loop: TrainingLoop, effort: Effort) -> list[float]:
    return [round(1e3 * t, 6) for t in interleaved({"iwae": loop}, effort)["iwae"]]


# --- command buffers --------------------------------------------------------------------------

COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
GRAPH, COMMAND_BUFFER = "xla_gpu_graph_min_graph_size", "xla_gpu_enable_command_buffer"
LOOPS = f"{COMMANDS},CONDITIONAL,WHILE"
NEVER = 10**6

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {GRAPH: NEVER},
    "at least 1": {GRAPH: 1},
    "at least 20": {GRAPH: 20},
    "loops": {COMMAND_BUFFER: LOOPS},
    "loops, at least 1": {COMMAND_BUFFER: LOOPS, GRAPH: 1},
    "loops, at least 1, concurrent": {
        COMMAND_BUFFER: LOOPS,
        GRAPH: 1,
        "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
    },
    "loops, at least 1, LHS": {
        COMMAND_BUFFER: LOOPS,
        GRAPH: 1,
        "xla_gpu_command_buffer_scheduling_mode": "LHS",
    },
}
"""Options of XLA's compiler: which commands may go into a command buffer, and how many at least."""


def command_buffers(task: Task) -> None:
    """The one-layer step by the options of the compiler."""
    wanted, options = {}, {}
    for how, given in OPTIONS.items():
        for k in task.sizes.tuned:
            name = f"{step_name(1, k)}: {how}"
            wanted[name], options[name] = {"layers": 1, "k": k}, given
    measure(task, wanted, options)


# --- chunks, replicas, cells in one program ---------------------------------------------------


def table_objectives(sizes: Sizes) -> list[ObjectiveConfig]:
    """The one-layer objectives of Table 1 that differ."""
    several = [k for k in sizes.ks if k > 1]
    both = [ObjectiveConfig(name, k=k) for name in ("vae", "iwae") for k in several]
    return [ObjectiveConfig(k=1), *both]


CELLS = "cells of 1 layer in one program"


def chunks(task: Task) -> None:
    """The one-layer step by how many share a call, and with replicas or cells in one program."""
    sizes = task.sizes
    fewest, most = min(sizes.ks), max(sizes.ks)
    alone = [objective for objective in table_objectives(sizes) if objective.objective == "vae"]
    measure(
        task,
        {
            CELLS: {"layers": 1, "k": fewest, "together": table_objectives(sizes)},
            **{
                f"{step_name(1, k)}, {n} replicas": {"layers": 1, "k": k, "replicas": n}
                for n in sizes.replicas
                for k in (fewest, most)
            },
            **{f"{step_name(1, o.k)}, vae": {"layers": 1, "k": o.k, "objective": o} for o in alone},
        },
    )
    images = synthetic(sizes.images)
    for n in sizes.chunks:
        name = f"{step_name(1, fewest)}, {n} steps in a call"
        if task.missing(name):
            loop, _ = _compiled(images, {"layers": 1, "k": fewest, "chunk": n}, None)
            task.tell(name, ms=_timed(loop, task.effort))


# --- anatomy ----------------------------------------------------------------------------------

LONG = 4096
"""Small kernels, one after the other, of which one's time is taken."""


PRODUCTS, REST = "floor of products, ms", "floor of the rest, ms"
"""What each step takes at least by the card's rates: the rest is memory and random numbers."""


def _floor(given: dict[str, Any], images: Any) -> dict[str, float]:
    """Milliseconds by purpose."""
    config = given.get("config", TrainingConfig())
    least = floor.step(new_model(given["layers"], images), k=given["k"], batch=config.batch_size)
    return {purpose: round(1e3 * seconds, 6) for purpose, seconds in least.items()}


def anatomy(task: Task) -> None:
    """What this machine does in a second; what a kernel and a turn of a loop cost at least; and the
    kernels of a step."""
    if task.missing("launches"):
        task.tell("launches", **launches())
    images = synthetic(task.sizes.images)
    steps_in_float32 = in_float32(task.sizes)
    if task.missing(PRODUCTS) or task.missing(REST):
        task.tell("rates", **floor.rates().__dict__)
        least = {name: _floor(given, images) for name, given in steps_in_float32.items()}
        task.tell(PRODUCTS, **{name: of.pop("products") for name, of in least.items()})
        task.tell(REST, **{name: sum(of.values()) for name, of in least.items()})
    for name, given in steps_in_float32.items():
        if not task.missing(name):
            continue
        loop, _ = _compiled(images, given, OPTIONS["none"])
        kernels = tracing.kernels(loop, task.sizes.traced)
        products = [ms for kernel, (_, ms) in kernels.items() if tracing.is_product(kernel)]
        longest = sorted(kernels.items(), key=lambda of: -of[1][1])
        task.tell(
            name,
            launched=sum(n for n, _ in kernels.values()),
            products_ms=sum(products),
            kernels_ms=sum(ms for _, ms in kernels.values()),
            longest=[[kernel[:80], n, ms] for kernel, (n, ms) in longest[:15]],
        )


def launches() -> dict[str, float | None]:
    """Microseconds of a turn of a loop whose end depends on its state, of one whose length is
    known, and of one small kernel among many, in and out of command buffers."""
    small = jnp.zeros(1024)

    def until(a: jax.Array, n: jax.Array) -> jax.Array:
        going = lambda given: (given[0] < n) & jnp.isfinite(given[1][0])
        return jax.lax.while_loop(going, lambda given: (given[0] + 1, given[1] + 1), (0, a))[1]

    def known(a: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, LONG, lambda i, a: a + n, a)

    def chain(a: jax.Array, n: jax.Array) -> jax.Array:
        b = jnp.ones((32, 32))
        for _ in range(64):
            b = jnp.dot(b, b, precision="highest") / 32 + n
        return b

    def microseconds(function: Any, times: int, how: str) -> float | None:
        try:
            lowered = jax.jit(function).lower(small, jnp.int32(LONG))
            compiled = lowered.compile(OPTIONS[how])
        except RuntimeError:  # this compiler does not know the option
            return None
        turns = []
        for _ in range(4):
            began = time.perf_counter()
            jax.block_until_ready(compiled(small, jnp.int32(LONG)))
            turns.append(time.perf_counter() - began)
        return round(1e6 * min(turns) / times, 4)

    return {
        "turn until": microseconds(until, LONG, "default"),
        "turn until, in a command buffer": microseconds(until, LONG, "loops, at least 1"),
        "turn of known length": microseconds(known, LONG, "default"),
        "small product and sum": microseconds(chain, 64, "default"),
        "small product and sum, no command buffer": microseconds(chain, 64, "none"),
    }
