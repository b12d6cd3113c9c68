"""Whether what runs on this card is right: closed forms, and each registry against the CPU."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.special import digamma

import iwae
from benchmarks.gpu.task import Task
from benchmarks.images import synthetic
from benchmarks.iwae_steps import TrainingLoop, new_model
from iwae import bounds, data
from iwae._utils import threefry
from iwae.config.schema import ModelConfig, ObjectiveConfig, Precision, TrainingConfig
from iwae.estimators.surrogate import ESTIMATORS, surrogate_loss
from iwae.evaluation.examples import mean_and_error, over_examples
from iwae.evaluation.likelihood import bound_value, log_likelihood
from iwae.models.autoencoder import draw_log_weights, log_weights
from iwae.models.build import build
from iwae.models.likelihoods import likelihood, names
from iwae.models.networks import PRODUCTS
from iwae.models.observation import Observer

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from linear_gaussian import LinearGaussian, orthogonal_chain

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpyro", "numpy", "torch")

QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
"""What is asked of the card; nothing of it is changed."""


def device(task: Task) -> None:
    """The machine, and how exact products are here, as the relative error of one of 512 terms."""
    known: dict[str, str] = {}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        card = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card = ""
    task.tell(
        "machine",
        card=card,
        platform=jax.devices()[0].client.platform_version.partition("\n")[0],
        cores=os.cpu_count(),
        python=sys.version.partition(" ")[0],
        iwae=iwae.__version__,
        **known,
    )
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 512, 512)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    products: dict[str, Callable[..., Any]] = {"default of JAX": jnp.dot}
    products |= {str(name): product for name, product in PRODUCTS.items()}
    errors = {n: np.asarray(jax.jit(of)(a, b), np.float64) - exact for n, of in products.items()}
    relative = {n: float(np.linalg.norm(e) / np.linalg.norm(exact)) for n, e in errors.items()}
    task.tell("relative error of products", **relative)


def checks(task: Task) -> None:
    """Each check by name: the largest deviation found, and the most that is allowed. Exit code 1 if
    one is larger."""
    missing = {name: check for name, check in CHECKS.items() if task.missing(name)}
    wrong = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        began = time.time()
        made = {pool.submit(check): name for name, check in missing.items()}
        for future in as_completed(made):
            name = made[future]
            try:
                found, allowed = future.result()
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
                continue
            if found <= allowed:
                after = round(time.time() - began, 1)
                task.tell(name, deviation=found, allowed=allowed, after_s=after)
            else:
                wrong.append(f"{name}: the deviation is {found}, where {allowed} is allowed")
    if wrong:
        sys.exit("\n".join(wrong))


Outcome = tuple[float, float]
"""The largest deviation, and what is allowed."""


# --- closed forms -----------------------------------------------------------------------------


def _in_errors(values: Any, exact: float) -> Outcome:
    """How many standard errors the mean is from the exact value; 5 are allowed."""
    mean, error = mean_and_error(np.asarray(values, np.float64))
    return abs(mean - exact) / error, 5.0


def exponential_weights() -> Outcome:
    """w ~ Exp(1): E[L_K] = ψ(K) − log K."""
    k = 10
    w = jax.random.exponential(jax.random.key(0), (k, 200_000))
    return _in_errors(jax.jit(bounds.iwae)(jnp.log(w)), digamma(k) - np.log(k))


def linear_gaussian_elbo() -> Outcome:
    """The ELBO of the linear-Gaussian model."""
    model = LinearGaussian(jnp.array([0.3, -1.0, 0.5]), jnp.array([0.6, -0.2, 0.1]))
    x = jnp.array([1.2, 0.4, -0.5])
    one = lambda key: bound_value(model, x, key, bound=bounds.elbo, k=50)
    values = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    return _in_errors(values, float(model.elbo(x)))


def exact_posterior(layers: int) -> Outcome:
    """With the exact posterior every log w is log p(x), to the digits of float32."""
    oracle = orthogonal_chain(layers)
    x = oracle.draw(40, seed=1)

    def weights(x: jax.Array, key: jax.Array) -> jax.Array:
        return log_weights(oracle.model, x, oracle.model.propose(x, 5, key))

    log_w = jax.jit(jax.vmap(weights))(x, jax.random.split(jax.random.key(2), len(x)))
    return float(np.abs(np.asarray(log_w).T - oracle.log_evidence(x)).max()), 5e-5


def detuned_pca() -> Outcome:
    """L_500 of a PCA whose q is too wide, over examples, against log p(x)."""
    oracle = orthogonal_chain(1, inflate=1.5)
    x = oracle.draw(1000, seed=3)
    function = eqx.Partial(log_likelihood, k=500)
    as_is = Observer(1.0, dynamic=False)
    values = over_examples(function, oracle.model, x, as_is, seed=0, draws=250)
    deviation, _ = _in_errors(values - oracle.log_evidence(x), 0.0)
    return deviation, 5.0


# --- each registry, here and on the CPU -------------------------------------------------------


def _deviation(function: Callable[..., Any], *arguments: Any) -> float:
    """How far the result here is from that on the CPU, relative to the largest of its array."""
    here = jax.jit(function)(*arguments)
    with jax.default_device(jax.devices("cpu")[0]):
        there = jax.jit(function)(*jax.tree.map(np.asarray, arguments))
    pairs = zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True)
    return max(_relative(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    finite = np.isfinite(b)
    apart = np.abs(a[finite] - b[finite])
    return float(np.max(apart, initial=0) / max(1e-6, np.max(np.abs(b[finite]), initial=0)))


SHAPES: dict[str, dict[str, Any]] = {
    "miwae": {"m": 3},
    "piwae": {"m": 3},
    "ciwae": {"beta": 0.5},
    "vr-iwae": {"alpha": 0.5},
    "jvi": {"order": 2},
}
"""What a bound needs beside K."""


def every_bound() -> Outcome:
    """Values, gradients and curvatures of every bound."""
    log_w = np.random.default_rng(0).normal(-90, 5, size=(64, 12)).astype(np.float32)
    pairs = {n: bounds.named(n, **SHAPES.get(n, {})) for n in (*bounds.BOUNDS, "piwae")}

    def each(log_w: jax.Array) -> Any:
        one = lambda bound: (
            jax.vmap(jax.value_and_grad(bound))(log_w),
            jax.vmap(partial(bounds.curvature, bound))(log_w),
        )
        return {n: (one(pair.theta), one(pair.phi)) for n, pair in pairs.items()}

    return _deviation(each, log_w), 1e-4


def _autoencoder(**settings: Any) -> Any:
    config = ModelConfig(**{"hidden": ((16, 16),), "latents": (4,), **settings})
    given: dict[str, Any] = {"kind": "binary", "mean": np.full(12, 0.3), "spread": np.full(12, 0.4)}
    return eqx.filter_jit(build)(config, **given, key=threefry.key(1), k=6)


X = (np.arange(12) % 3 == 0).astype(np.float32)


def every_estimator() -> Outcome:
    """Gradients of every estimator with the same draws."""
    params, static = eqx.partition(_autoencoder(), eqx.is_inexact_array)

    def each(params: Any, x: jax.Array) -> Any:
        def loss(params: Any, estimator: str) -> jax.Array:
            model, key = eqx.combine(params, static), threefry.key(2)
            return surrogate_loss(model, x, key, bound=bounds.iwae, k=6, estimator=estimator)[0]

        return {e: ravel_pytree(jax.grad(loss)(params, e))[0] for e in ESTIMATORS}

    return _deviation(each, params, X), 1e-4


MODELS: dict[str, dict[str, Any]] = {
    **{f"{w} uncertain": {"uncertain_weights": w} for w in ("encoder", "decoder", "both")},
    **{p: {"proposal": p} for p in ("hierarchical", "hierarchical-independent")},
    "two layers": {"layers": 2, "hidden": ((16,), (8,)), "latents": (4, 2)},
    "three layers": {"layers": 3, "hidden": ((16,), (8,), (8,)), "latents": (4, 3, 2)},
}
"""Models beside the plain one."""


def every_model() -> Outcome:
    """Log-weights of every kind of model with the same draws."""
    made = {n: eqx.partition(_autoencoder(**m), eqx.is_array) for n, m in MODELS.items()}
    arrays = {name: a for name, (a, _) in made.items()}

    def each(arrays: Any, x: jax.Array) -> Any:
        return {
            name: draw_log_weights(eqx.combine(a, made[name][1]), x, 6, threefry.key(3))
            for name, a in arrays.items()
        }

    return _deviation(each, arrays, X), 1e-4


def every_likelihood() -> Outcome:
    """Log-densities of every likelihood at several parameters, at a value of its support."""
    mean, spread = jnp.full(3, 0.4), jnp.full(3, 0.3)
    kinds = {n: "real" if n == "gaussian" else "binary" for n in names()}
    of = {n: likelihood(n, kind=k, mean=mean, spread=spread) for n, k in kinds.items()}
    apart = np.array([-0.5, 0.0, 0.5], np.float32)

    def each(apart: jax.Array) -> Any:
        def one(name: str, by: jax.Array) -> jax.Array:
            of_name = of[name]
            output = of_name.initial_bias(mean, spread)
            discrete = of_name.distribution(output).support.is_discrete
            return of_name.log_prob(output + by, jnp.full(3, 1.0 if discrete else 0.5))

        return {n: jax.vmap(partial(one, n))(apart) for n in of}

    return _deviation(each, apart), 1e-3


def _small_images() -> np.ndarray:
    """The middle rows of 200 images, [200, 112]."""
    return np.ascontiguousarray(synthetic(200)[:, 336:448])


def every_optimizer() -> Outcome:
    """The bound after three steps of every optimiser, on small images, against the CPU."""
    images = _small_images()
    found = {}
    for place in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(place):
            for optimizer in ("adam", "soap"):
                config = TrainingConfig(batch_size=20, optimizer=optimizer)
                loop = TrainingLoop(new_model(1, images), images, k=5, config=config)
                loop(3)
                found[optimizer, place.platform] = float(loop.states[0].value)
    pairs = [[v for (name, _), v in found.items() if name == o] for o in ("adam", "soap")]
    return max(abs(p[0] - p[-1]) / abs(p[-1]) for p in pairs), 1e-3


def every_precision() -> Outcome:
    """Bounds by every precision, against float32, in nats."""
    images = _small_images()
    values = {}
    for precision in get_args(Precision):
        config = TrainingConfig(batch_size=20, precision=precision)
        loop = TrainingLoop(new_model(1, images), images, k=5, config=config)
        loop(1)
        values[precision] = float(loop.states[0].value)
    return max(abs(v - values["float32"]) for v in values.values()), 0.5


def replicas() -> Outcome:
    """Five replicas in one program after five steps, against each alone."""
    images = _small_images()
    objective = ObjectiveConfig(k=5)
    model = new_model(1, images)
    together = TrainingLoop(model, images, k=5, objective=objective, replicas=3)
    alone = TrainingLoop(model, images, k=5, objective=objective)
    together(5)
    alone(5)
    ours, theirs = (ravel_pytree(loop.states[0].params)[0] for loop in (together, alone))
    return _relative(np.asarray(ours), np.asarray(theirs)), 1e-3


def random_numbers() -> Outcome:
    """The numbers of `jax.random`, drawn by `iwae._utils.threefry`: the same to the bit."""
    ours, theirs = threefry.key(7), jax.random.key(7)
    same = [
        jnp.array_equal(jax.random.bits(ours, (1001,)), jax.random.bits(theirs, (1001,))),
        jnp.array_equal(jax.random.normal(ours, (33, 7)), jax.random.normal(theirs, (33, 7))),
        jnp.array_equal(
            jax.random.key_data(jax.random.split(ours, 5)),
            jax.random.key_data(jax.random.split(theirs, 5)),
        ),
    ]
    return float(len(same) - sum(bool(s) for s in same)), 0.0


def embedded_data() -> Outcome:
    """The embedded digits are here, and intact."""
    digits = data.load("digits")
    return float(abs(len(digits.train) - 1297) + abs(len(digits.test) - 400)), 0.0


CHECKS: dict[str, Callable[[], Outcome]] = {
    "E[L_K] of exponential weights": exponential_weights,
    "ELBO of the linear-Gaussian model": linear_gaussian_elbo,
    "exact posterior, 1 layer": partial(exact_posterior, 1),
    "exact posterior, 3 layers": partial(exact_posterior, 3),
    "L_500 of a PCA": detuned_pca,
    "bounds": every_bound,
    "estimators": every_estimator,
    "models": every_model,
    "likelihoods": every_likelihood,
    "optimizers": every_optimizer,
    "precisions": every_precision,
    "replicas": replicas,
    "random numbers": random_numbers,
    "data": embedded_data,
}
"""The largest deviation and what is allowed, by name."""
