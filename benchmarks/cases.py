"""What is measured, by name; each case is a function of the effort."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import floor, iwae_steps, rivals, torch_iwae, tracing
from benchmarks.agreement import (
    IMAGES,
    TOLERANCE,
    DisagreementError,
    agree,
    check,
    images,
    pair,
)
from benchmarks.floor import Floor
from benchmarks.timing import Contestant, Effort, Times, fastest, interleaved, ratios
from iwae.config.io import override, recipe
from iwae.config.schema import ObjectiveConfig, RunConfig

K_EVALUATION = 5000
BLOCKS = ((1, 1000), (4, 250), (10, 500))
TRACED_STEPS = 200


@dataclass(frozen=True)
class Result:
    """Times of all contestants, each in `unit`, by turn."""

    unit: str
    times: Times
    note: str = ""
    floor: Floor = field(default_factory=dict)
    """What iwae needs at least, by purpose, in `unit`."""
    parts: dict[str, float] = field(default_factory=dict)
    """What iwae's time is spent on, in `unit`."""


@cache
def check_pythae(k: int = 5) -> None:
    """`DisagreementError` unless pythae computes the gradient of L_K of the same model."""
    x = (images()[:20] > 127).astype(np.float32)
    model, net = pair(1)
    eps, _, _ = iwae_steps.bound_and_gradient(model, x, k)
    theirs = rivals.Pythae(net, images(), k=k, batch=20).gradient(x, eps[0])
    _, net = pair(1)
    noise = [torch.from_numpy(e) for e in eps]
    (-net.bound(torch.from_numpy(x), k, noise).mean()).backward()
    gradient: list[Any] = [p.grad for p in net.parameters()]
    for own, other in zip(gradient, theirs, strict=True):
        difference = (own - other).abs().max() / own.abs().max()
        if not difference < TOLERANCE:
            raise DisagreementError(f"pythae's gradients differ by {difference:.1e}.")


@cache
def check_libraries(layers: int, k: int = 5) -> None:
    """`DisagreementError` unless Pyro and NumPyro estimate L_K of the same model."""
    x = (images()[:20] > 127).astype(np.float32)
    model, net = pair(layers)
    torch.manual_seed(0)
    draws = range(200)
    with torch.no_grad():
        exact = np.array([net.bound(torch.from_numpy(x), k).mean().item() for _ in draws])
    for rival in (
        rivals.Pyro(pair(layers)[1], images(), k=k, batch=20),
        rivals.NumPyro(model, images(), k=k, batch=20),
    ):
        values = np.array([rival.bound(x, seed) for seed in draws])
        error = np.sqrt((values.var() + exact.var()) / len(draws))
        if not abs(values.mean() - exact.mean()) < 5 * error:
            name = type(rival).__name__
            raise DisagreementError(f"L_K is {values.mean()} in {name}, not {exact.mean()}.")


def training(effort: Effort, *, layers: int, k: int, batch: int) -> Result:
    """A training step of iwae, of PyTorch plain and tuned, and of the libraries.

    Tuned is with Adam fused, on one core or all, compiled or not, whichever a trial finds fastest.
    """
    check(layers)

    def rival(threads: int, *, fused: bool, compiled: bool = False) -> torch_iwae.TrainingLoop:
        net = pair(layers)[1]
        options: dict[str, Any] = {"threads": threads, "fused": fused, "compiled": compiled}
        return torch_iwae.TrainingLoop(net, images(), k=k, batch=batch, **options)

    tuned = {f"threads = {n}": rival(n, fused=True) for n in {1, torch_iwae.THREADS}}
    tuned["compiled"] = rival(torch_iwae.THREADS, fused=True, compiled=True)
    best = fastest(tuned)
    model = pair(layers)[0]
    contestants: dict[str, Contestant] = {
        "iwae": iwae_steps.TrainingLoop(model, images(), k=k, batch=batch),
        "torch": rival(torch_iwae.THREADS, fused=False),
        "torch tuned": tuned[best],
    }
    if layers == 1:
        check_pythae()
        contestants["pythae"] = rivals.Pythae(pair(1)[1], images(), k=k, batch=batch)
    check_libraries(layers)
    contestants |= {
        "pyro": rivals.Pyro(pair(layers)[1], images(), k=k, batch=batch),
        "numpyro": rivals.NumPyro(model, images(), k=k, batch=batch),
    }
    times = interleaved(contestants, effort)
    least = floor.step(model, k=k, batch=batch)
    return Result("ms/step", _scaled(times, 1e3), f"tuned: {best}", _scaled_floor(least, 1e3))


def alone(
    effort: Effort, *, k: int = 5, batch: int = 20, n: int = IMAGES, units: int = 50
) -> Result:
    """iwae's training step where no rival is compared: a point of a scaling curve."""
    model = iwae_steps.new_model(1, images()[:n], latents=units)
    loop = iwae_steps.TrainingLoop(model, images()[:n], k=k, batch=batch)
    times = interleaved({"iwae": loop}, effort)
    least = floor.step(model, k=k, batch=batch)
    return Result("ms/step", _scaled(times, 1e3), floor=_scaled_floor(least, 1e3))


def anatomy(effort: Effort, *, layers: int, k: int) -> Result:
    """iwae's training step and its parts: their shares of a traced step, of a median one's time."""
    loop = iwae_steps.TrainingLoop(iwae_steps.new_model(layers, images()), images(), k=k, batch=20)
    times = _scaled(interleaved({"iwae": loop}, effort), 1e3)
    traced = tracing.parts(loop, TRACED_STEPS)
    share = median(times["iwae"]) / sum(traced.values())
    return Result("ms/step", times, parts={part: share * t for part, t in traced.items()})


def replicas(effort: Effort, *, k: int, count: int = 5) -> Result:
    """A step of five replicas in one program, and of five runs one after the other."""
    model = iwae_steps.new_model(1, images())
    one = partial(iwae_steps.TrainingLoop, model, images(), k=k, batch=20)
    runs = [one() for _ in range(count)]

    def in_turn(steps: int) -> None:
        for run in runs:
            run(steps)

    times = interleaved({"iwae": one(replicas=count), "one by one": in_turn}, effort)
    return Result("ms/step", _scaled(times, 1e3), f"{count} replicas")


OBJECTIVES = {
    "iwae": ObjectiveConfig(k=50),
    **{
        e: ObjectiveConfig(estimator=e, k=50)
        for e in ("stl", "dreg", "rws", "rws-dreg", "aisle-chi2")
    },
    "vae": ObjectiveConfig("vae", k=50),
    "miwae": ObjectiveConfig("miwae", m=5, k=50),
    "jvi-1": ObjectiveConfig("jvi", order=1, k=50),
    "jvi-1 dreg": ObjectiveConfig("jvi", order=1, k=50, estimator="dreg"),
}
"""Of the K = 50 step: "iwae" is L_K under reparam, to which the others are compared."""


def estimators(effort: Effort, *, layers: int) -> Result:
    """The training step under every estimator and under other objectives, to that of reparam."""
    contestants = {
        name: iwae_steps.TrainingLoop(
            iwae_steps.new_model(layers, images()), images(), k=50, batch=20, objective=objective
        )
        for name, objective in OBJECTIVES.items()
    }
    times = interleaved(contestants, effort)
    parts = [f"{n} {r['median']:.2f}" for n, r in ratios(times).items()]
    return Result("ms/step", _scaled(times, 1e3), f"time to reparam's: {', '.join(parts)}")


def recipe_fast(effort: Effort, *, k: int, layers: int = 1) -> Result:
    """A step of the recipe `fast`, and the same with Adam, with SOAP's moments at one step of five,
    with products by YNNPACK, with all threads of BLAS, with gradients through all draws, or with
    all draws weighed at once."""
    given = override(recipe("fast"), k=k)
    variants = {
        "iwae": given,
        "adam": override(given, optimizer="adam"),
        "moments": override(given, soap_moments_every=5),
    }
    few = k > (given.objective.backward_draws or k)
    if few:
        variants["all draws"] = override(given, backward_draws=None)

    def loop(of: RunConfig) -> iwae_steps.TrainingLoop:
        model, o, t = iwae_steps.new_model(layers, images()), of.objective, of.training
        return iwae_steps.TrainingLoop(model, images(), k=k, objective=o, config=t)

    contestants: dict[str, Contestant] = {name: loop(of) for name, of in variants.items()}
    with mock.patch("iwae.training.gradient_step.compiler_options", return_value=None):
        contestants["ynnpack"] = loop(given)
    contestants["threads"] = partial(_by_all_threads, loop(given))
    if few:
        with mock.patch("iwae.training.gradient_step.chunk_size", return_value=None):
            contestants["at once"] = loop(given)
    times = interleaved(contestants, effort)
    parts = [f"{name} {r['median']:.2f}" for name, r in ratios(times).items()]
    return Result("ms/step", _scaled(times, 1e3), f"time to the recipe's: {', '.join(parts)}")


def _by_all_threads(loop: iwae_steps.TrainingLoop, steps: int) -> None:
    with mock.patch("benchmarks.iwae_steps.one_blas_thread", nullcontext):
        loop(steps)


def evaluation(effort: Effort) -> Result:
    """L_5000 of some images, as seconds for 10,000.

    PyTorch runs in blocks of 4 images × 250 draws; tuned is the fastest of some blocks and threads.
    """
    torch.manual_seed(0)
    model, net = pair(1)
    x = (images()[: effort.images] > 127).astype(np.uint8)
    x_torch = torch.from_numpy(x).float()
    theirs = partial(torch_iwae.log_likelihoods, net)
    trial = {
        f"{at_once} × {draws}, threads = {threads}": partial(
            theirs, at_once=at_once, draws=draws, threads=threads
        )
        for at_once, draws in BLOCKS
        for threads in {1, torch_iwae.THREADS}
    }
    tuned = fastest({name: _repeated(run, x_torch[:10], 1000) for name, run in trial.items()})
    plain = f"4 × 250, threads = {torch_iwae.THREADS}"
    contestants = {
        "iwae": _repeated(iwae_steps.log_likelihoods, model, x, K_EVALUATION),
        "torch": _repeated(trial[plain], x_torch, K_EVALUATION),
        "torch tuned": _repeated(trial[tuned], x_torch, K_EVALUATION),
    }
    agree(
        iwae_steps.log_likelihoods(model, x, K_EVALUATION),
        trial[tuned](x_torch, K_EVALUATION).numpy(),
    )
    times = interleaved(contestants, effort)
    note = f"extrapolated from {len(x)} images; tuned: {tuned}"
    least = _scaled_floor(floor.evaluation(model, k=K_EVALUATION), 10_000)
    return Result("s per 10,000 images", _scaled(times, 10_000 / len(x)), note, least)


def _repeated(function: Callable[..., Any], *arguments: Any) -> Contestant:
    def work(units: int) -> None:
        for _ in range(units):
            function(*arguments)

    return work


def _scaled(times: Times, factor: float) -> Times:
    return {name: [factor * t for t in turns] for name, turns in times.items()}


def _scaled_floor(least: Floor, factor: float) -> Floor:
    return {purpose: factor * seconds for purpose, seconds in least.items()}


def fresh(unit: str, measurement: dict[str, str], argument: int, effort: Effort) -> Result:
    """A measurement of `benchmarks.child` by contestant, in a new process each time."""
    turns = min(3, effort.turns) if unit == "s" else 1
    times: Times = {name: [] for name in measurement}
    for _ in range(turns):
        for name, function in measurement.items():
            times[name].append(_child(function, argument))
    return Result(unit, times)


def _child(function: str, argument: int) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "benchmarks.child", function, str(argument)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _training(layers: int, k: int, batch: int) -> Callable[[Effort], Result]:
    return partial(training, layers=layers, k=k, batch=batch)


def _fresh(unit: str, argument: int, **measurement: str) -> Callable[[Effort], Result]:
    return lambda effort: fresh(unit, measurement, argument, effort)


CASES: dict[str, Callable[[Effort], Result]] = {
    **{
        f"training step, {name}, K = {k}{of}": _training(layers, k, batch)
        for batch, of in ((20, ""), (100, ", batch 100"))
        for layers, name in ((1, "1 layer"), (2, "2 layers"))
        for k in (1, 5, 50)
    },
    **{f"anatomy, 1 layer, K = {k}": partial(anatomy, layers=1, k=k) for k in (1, 5, 50)},
    "anatomy, 2 layers, K = 50": partial(anatomy, layers=2, k=50),
    "five replicas, K = 1": partial(replicas, k=1),
    "five replicas, K = 5": partial(replicas, k=5),
    "five replicas, K = 50": partial(replicas, k=50),
    "estimators, 1 layer, K = 50": partial(estimators, layers=1),
    "estimators, 2 layers, K = 50": partial(estimators, layers=2),
    **{f"recipe fast, K = {k}": partial(recipe_fast, k=k) for k in (1, 5, 50)},
    "recipe fast, 2 layers, K = 50": partial(recipe_fast, k=50, layers=2),
    "evaluation of L_5000, 1 layer": evaluation,
    "import": _fresh("s", 0, iwae="import_iwae", torch="import_torch"),
    "help at the command line": _fresh("s", 0, iwae="help_iwae"),
    "first step, 1 layer": _fresh("s", 1, iwae="first_step_iwae", torch="first_step_torch"),
    "first step, 2 layers": _fresh("s", 2, iwae="first_step_iwae", torch="first_step_torch"),
    "peak memory of L_5000": _fresh("MiB", 5000, iwae="memory_of_evaluation"),
    "peak memory of L_50000": _fresh("MiB", 50_000, iwae="memory_of_evaluation"),
    **{f"scaling, K = {k}": partial(alone, k=k) for k in (1, 2, 5, 10, 20, 50, 100, 200)},
    **{f"scaling, batch {b}, K = 5": partial(alone, batch=b) for b in (10, 20, 50, 100, 500)},
    **{f"scaling, {u} latents, K = 5": partial(alone, units=u) for u in (2, 10, 50, 200)},
    **{f"scaling, {n:,} images, K = 5": partial(alone, n=n) for n in (1000, 10_000, 60_000)},
}

SMOKE = (
    "training step, 1 layer, K = 5",
    "evaluation of L_5000, 1 layer",
    "first step, 1 layer",
    "peak memory of L_5000",
)
"""One case of each kind."""
