"""Gradient diagnostics: bias, variance and signal-to-noise ratio of gradient estimators.

The gradient g of the bound on a few examples is drawn many times, and its moments are accumulated
in blocks, so that memory does not grow with the number of repeats. For θ and for φ, as vectors,

    SNR = ‖E g‖ / √tr Cov g,    relative bias² = ‖E g − ∇bound‖² / ‖∇bound‖²,

both with the squared errors of the means subtracted, and with jackknife standard errors over blocks
(Rainforth et al. 2018 and Tucker et al. 2018 show such ratios parameter by parameter).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae._utils import threefry
from iwae.bounds import BoundFunction, Pair
from iwae.errors import InputError
from iwae.estimators import rules, surrogate
from iwae.estimators.surrogate import surrogate_loss
from iwae.models.base import AbstractAutoencoder, HasEncoder, ModelLike

BLOCKS = 10
"""Number of blocks of repeats for jackknife standard errors."""

CLEAR = 10.0
"""A relative bias needs a reference whose squared norm is this many times its squared error."""

PARTS = ("theta", "phi")

Where = Callable[[PyTree], PyTree]


@dataclass(frozen=True)
class Moments:
    """Moments of a random vector, by block."""

    means: np.ndarray
    """[BLOCKS, P]."""
    squares: np.ndarray
    """Σ ‖g − block mean‖², [BLOCKS]."""
    repeats: int
    """Draws in each block."""

    def without(self, block: int) -> "Moments":
        """The moments without this block."""
        return Moments(
            np.delete(self.means, block, 0), np.delete(self.squares, block), self.repeats
        )

    @property
    def mean(self) -> np.ndarray:
        """[P]."""
        return self.means.mean(axis=0, dtype=np.float64)

    @property
    def variance(self) -> float:
        """tr Cov g."""
        between = self.repeats * np.sum((self.means - self.mean) ** 2, dtype=np.float64)
        return float((self.squares.sum() + between) / (self.repeats * len(self.means) - 1))

    @property
    def error(self) -> float:
        """E‖mean − E g‖²."""
        return self.variance / (self.repeats * len(self.means))

    @property
    def concentration(self) -> float:
        """√tr Cov(mean)², between `error` / √P and `error`, from pairs of blocks."""
        apart = self.means - self.mean
        products = (apart @ apart.T + self.error) ** 2
        n = len(products)
        pairs = (products.sum() - np.trace(products)) / (n * (n - 1))
        return float(np.sqrt(pairs / ((1 - 1 / n) ** 2 + 1 / n**2))) / n

    @property
    def signal(self) -> float:
        """‖E g‖², unbiased, at least 0."""
        return max(float(np.sum(self.mean**2)) - self.error, 0.0)

    @property
    def snr(self) -> float:
        """‖E g‖ / √tr Cov g; nan where g is 0 throughout, ∞ where it does not vary."""
        if self.variance == 0:
            return math.inf if self.signal > 0 else math.nan
        return math.sqrt(self.signal / self.variance)

    def bias(self, reference: "Moments") -> float:
        """‖E g − E g_ref‖² / ‖E g_ref‖², unbiased: it can come out below 0."""
        apart = float(np.sum((self.mean - reference.mean) ** 2))
        return (apart - self.error - reference.error) / reference.signal


def relative_bias(drawn: Moments, reference: Moments) -> tuple[float, float]:
    """`Moments.bias` and its standard error.

    nan if the reference is not well above its own error, as at an optimum. The jackknife alone
    would give a difference that is 0 by chance no error: near 0 the estimate is a quadratic form,
    with standard deviation √2 √tr Cov(difference)².
    """
    if not reference.signal > CLEAR * reference.error:
        return math.nan, math.nan
    blocks = range(len(drawn.means))
    error = jackknife_error([drawn.without(b).bias(reference.without(b)) for b in blocks])
    least = math.sqrt(2) * (drawn.concentration + reference.concentration) / reference.signal
    return drawn.bias(reference), max(error, least)


@dataclass(frozen=True)
class Measurement:
    """Diagnostics of one estimator's gradient at one K, for θ or for φ."""

    estimator: str
    k: int
    parameters: str
    """theta or phi."""
    snr: float
    snr_se: float
    variance: float
    """tr Cov g."""
    norm: float
    """‖E g‖."""
    bias: float
    """Relative squared bias, against the mean of the reference."""
    bias_se: float
    repeats: int
    reference: str
    """The unbiased estimator of the reference."""


@dataclass(frozen=True)
class Slope:
    """d log SNR / d log K with its standard error."""

    estimator: str
    parameters: str
    slope: float
    slope_se: float
    points: int
    """Number of values of K in the fit."""


def encoder(model: PyTree) -> PyTree:
    """φ of the built-in autoencoder: its encoder.

    `InputError` for a model without an `encoder`, or a subclass with its own proposal.
    """
    if not isinstance(model, HasEncoder):
        raise InputError(
            f"{type(model).__name__} has no encoder to tell φ from θ; give phi=, a function from "
            f"the model to its recognition parameters."
        )
    if isinstance(model, AbstractAutoencoder) and model.own_proposal:
        raise InputError(
            f"{type(model).__name__} has its own proposal, so φ may be more than its encoder; give "
            f"phi=, a function from the model to its recognition parameters."
        )
    return model.encoder


def moments(
    model: ModelLike,
    x: Float[Array, "n d"],
    key: PRNGKeyArray,
    *,
    bound: BoundFunction | Pair,
    k: int,
    estimator: str = "reparam",
    repeats: int = 1000,
    phi: Where = encoder,
) -> dict[str, Moments]:
    """Moments of the mean gradient over the examples x, for "theta" and "phi".

    `InputError` unless the repeats fill 10 blocks of 2 or more.
    """
    if repeats < 2 * BLOCKS or repeats % BLOCKS:
        raise InputError(
            f"repeats = {repeats} was given, but standard errors need a multiple of {BLOCKS}, and "
            f"at least {2 * BLOCKS}; give one."
        )
    each = repeats // BLOCKS
    draw = eqx.Partial(_gradient, bound=bound, k=k, estimator=estimator, phi=phi)
    means, squares = _streamed(draw, model, jnp.asarray(x), key, jnp.asarray(each))
    return {
        part: Moments(np.asarray(mean), np.asarray(square, np.float64), each)
        for part, mean, square in zip(PARTS, means, squares, strict=True)
    }


def _gradient(
    model: ModelLike,
    x: Array,
    key: PRNGKeyArray,
    *,
    bound: BoundFunction | Pair,
    k: int,
    estimator: str,
    phi: Where,
) -> tuple[Array, Array]:
    """One draw of the gradient of the bound, mean over x: (θ, φ), flat."""
    keys = jax.random.split(key, len(x))

    def loss(model: ModelLike) -> Array:
        one = partial(surrogate_loss, model, bound=bound, k=k, estimator=estimator)
        return -jnp.mean(jax.vmap(lambda x, key: one(x, key)[0])(x, keys))

    gradient = eqx.filter_grad(loss)(model)
    theta = eqx.tree_at(phi, gradient, replace_fn=lambda _: None, is_leaf=lambda leaf: leaf is None)
    return ravel_pytree(theta)[0], ravel_pytree(phi(gradient))[0]


@eqx.filter_jit
def _streamed(
    draw: Callable[[ModelLike, Array, PRNGKeyArray], tuple[Array, Array]],
    model: ModelLike,
    x: Array,
    key: PRNGKeyArray,
    each: Array,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Welford's means and sums of squares of `each` draws in every block."""
    sizes = jax.eval_shape(lambda: draw(model, x, key))
    start = jax.tree.map(lambda s: (jnp.zeros_like(s), jnp.zeros((), s.dtype)), sizes)

    def add(state: PyTree, count: Array, key: PRNGKeyArray) -> PyTree:
        def one(moments: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
            mean, square = moments
            apart = g - mean
            mean = mean + apart / (count + 1)
            return mean, square + jnp.sum(apart * (g - mean))

        return tuple(one(m, g) for m, g in zip(state, draw(model, x, key), strict=True))

    def block(key: PRNGKeyArray) -> PyTree:
        step = lambda count, state: add(state, count, jax.random.fold_in(key, count))
        return jax.lax.fori_loop(0, each, step, start)

    (theta, phi) = jax.lax.map(block, jax.random.split(key, BLOCKS))
    return (theta[0], phi[0]), (theta[1], phi[1])


def measure(
    model: ModelLike,
    x: Float[Array, "n d"],
    *,
    bounds: Callable[[int], BoundFunction | Pair],
    estimators: Iterable[str],
    ks: Iterable[int],
    repeats: int = 1000,
    seed: int = 0,
    phi: Where = encoder,
    progress: Callable[[str, int], None] | None = None,
) -> list[Measurement]:
    """Measure every estimator at every K against the reference, which has 4 times the repeats.

    `bounds(k)` is the bound for K draws. `progress` is called before each estimator and K.
    """
    estimators, ks = list(estimators), list(ks)
    for k in ks:
        for name in estimators:
            surrogate.check(surrogate.named(name), surrogate.paired(bounds(k)), k, model)
    reference_estimator = rules.reference_for(surrogate.capabilities(model))
    results: list[Measurement] = []
    for number, k in enumerate(ks):
        draw = partial(moments, model, x, bound=bounds(k), k=k, phi=phi)
        root = jax.random.fold_in(threefry.key(seed), number)
        keys = jax.random.split(root, 1 + len(estimators))
        if progress is not None:
            progress("reference", k)
        reference = draw(keys[0], estimator=reference_estimator, repeats=4 * repeats)
        for name, key in zip(estimators, keys[1:], strict=True):
            if progress is not None:
                progress(name, k)
            drawn = draw(key, estimator=name, repeats=repeats)
            results += [
                _measured(name, k, p, drawn[p], reference[p], reference_estimator) for p in PARTS
            ]
    return results


def _measured(
    name: str, k: int, part: str, drawn: Moments, reference: Moments, reference_estimator: str
) -> Measurement:
    bias, error = relative_bias(drawn, reference)
    return Measurement(
        estimator=name,
        k=k,
        parameters=part,
        snr=drawn.snr,
        snr_se=jackknife_error([drawn.without(b).snr for b in range(BLOCKS)]),
        variance=drawn.variance,
        norm=math.sqrt(drawn.signal),
        bias=bias,
        bias_se=error,
        repeats=drawn.repeats * BLOCKS,
        reference=reference_estimator,
    )


def jackknife_error(values: list[float]) -> float:
    """The jackknife standard error of a statistic, from its values without each block."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * np.sum((np.array(values) - np.mean(values)) ** 2)))


def slopes(measurements: Iterable[Measurement]) -> list[Slope]:
    """Least squares of log SNR on log K, weighted by the errors.

    Only SNRs above twice their standard error are used; `points` counts them, and with fewer than 3
    there is no slope. If some are missing, the slope is too flat.
    """
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        if m.snr > 2 * m.snr_se and math.isfinite(m.snr):
            groups.setdefault((m.estimator, m.parameters), []).append(m)
    return [_slope(*names, rows) for names, rows in groups.items() if len(rows) >= 3]


def _slope(estimator: str, parameters: str, rows: list[Measurement]) -> Slope:
    log_k, log_snr = np.log([m.k for m in rows]), np.log([m.snr for m in rows])
    weight = np.array([(m.snr / max(m.snr_se, 1e-6 * m.snr)) ** 2 for m in rows])
    centre = np.average(log_k, weights=weight)
    spread = np.sum(weight * (log_k - centre) ** 2)
    slope = np.sum(weight * (log_k - centre) * log_snr) / spread
    fitted = np.average(log_snr, weights=weight) + slope * (log_k - centre)
    misfit = np.sum(weight * (log_snr - fitted) ** 2) / (len(rows) - 2)
    return Slope(
        estimator, parameters, float(slope), float(np.sqrt(max(1.0, misfit) / spread)), len(rows)
    )
