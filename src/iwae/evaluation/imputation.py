"""Missing values of one example: imputed, drawn, and the density of each value given all others.

With K draws h_k ~ q(h|x_o) given the observed part x_o of x (its missing values are NaN), and
w_k = p(x_o|h_k) p(h_k) / q(h_k|x_o), w̃_k = w_k / Σ_i w_i (Mattei & Frellsen 2019):

    E[f(x_m)|x_o] ≈ Σ_k w̃_k E[f(x_m)|x_o, h_k].

All functions stream over K in chunks, on the draws of `log_likelihood` with the same key, so that
memory does not grow with K. With `empty`, an example without any observed value has its draws from
the prior, whose weights are all 1, instead of q.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae._utils.checks import check_draws
from iwae.errors import InputError
from iwae.evaluation.likelihood import CHUNK
from iwae.models.base import AbstractAutoencoder, block_of, draw, latents_of
from iwae.models.chains import Generation

RESAMPLING, PRIOR, LEFT_OUT = 2**32 - 5, 2**32 - 6, 2**32 - 7
"""Folded into an example's key: for resampling, draws of the prior, and draws of q(h|x_rest)."""

Carry = TypeVar("Carry")


@runtime_checkable
class HasGeneration(Protocol):
    """A model whose p(x|h_1) is a likelihood with the decoder's parameters at h_1."""

    @property
    def generation(self) -> Generation: ...


class Estimate(NamedTuple):
    """The log-likelihood of the observed part of one example."""

    log_likelihood: Float[Array, ""]
    """L_K, in nats."""
    standard_error: Float[Array, ""]
    """Of `log_likelihood`, in nats, by the delta method; NaN for K = 1."""
    effective: Float[Array, ""]
    """The effective number of draws 1 / Σ_k w̃_k²."""


class Predicted(NamedTuple):
    """What is known of the missing values of one example."""

    prediction: Float[Array, " f"]
    """Σ_k w̃_k prediction(h_k), of which the likelihood's `decide` makes values."""
    estimate: Estimate


class Imputed(NamedTuple):
    """The best single values of one example."""

    values: Float[Array, " d"]
    """The likelihood's decision on Σ_k w̃_k prediction(h_k); observed values as they were."""
    estimate: Estimate


class Explained(NamedTuple):
    """The log-likelihood of one example, and how surprising each of its values is."""

    estimate: Estimate
    columns: Float[Array, " d"]
    """log p(x_j|x_rest) in nats; NaN where x_j is missing."""


def impute(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    chunk: int = CHUNK,
    empty: bool = False,
) -> Imputed:
    """x with its missing values replaced by the best single ones, from K draws.

    The averages over h_k are self-normalised: consistent in K, with a bias of O(1/K). Numbers
    become E[x_m|x_o], and categories the most probable one (`AbstractLikelihood.decide`).
    """
    predicted = predict(model, x, key, k=k, chunk=chunk, empty=empty)
    values = generation_of(model).likelihood.decide(predicted.prediction)
    return Imputed(jnp.where(jnp.isnan(x), values, x), predicted.estimate)


def predict(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    chunk: int = CHUNK,
    empty: bool = False,
) -> Predicted:
    """The average of the likelihood's prediction of x_m over K draws, which `impute` decides on.

    Averages of several models, weighted by their likelihoods, are those of their mixture.
    """
    generation = generation_of(model)
    likelihood = generation.likelihood

    def add(carry: tuple[_Weights, Array], drawn: _Drawn, _: Array) -> tuple[_Weights, Array]:
        weights, total = carry
        of = jax.vmap(lambda h1: likelihood.prediction(generation.parameters(h1), x))(drawn.h1)
        after = weights.add(drawn.log_w)
        shares = jnp.exp(drawn.log_w - after.sum.base)
        total = total * weights.sum.ratio(after.sum)
        return after, total + jnp.tensordot(shares, of, axes=1, precision="highest")

    shape = jax.eval_shape(_predicted, model, x, key)
    start = (_Weights.none(), jnp.zeros(shape.shape, shape.dtype))
    weights, total = _stream(model, x, key, add, start, k=k, chunk=chunk, empty=empty)
    return Predicted(total / weights.sum.total, weights.summary(k))


def estimate(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    chunk: int = CHUNK,
) -> Estimate:
    """L_K of x with its standard error."""
    add = lambda weights, drawn, _: weights.add(drawn.log_w)
    return _stream(model, x, key, add, _Weights.none(), k=k, chunk=chunk).summary(k)


def marginals(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    chunk: int = CHUNK,
) -> Float[Array, " d"]:
    """log p(x_j) of each value alone in nats, from K draws of the prior; 0 where x_j is missing.

    p(x_j) ≈ (1/K) Σ_k p(x_j|h_k) with h_k ~ p(h) is unbiased, and the logarithm of it a lower bound
    in expectation, whose gap grows where few draws come near x_j.
    """
    check_draws(k)
    generation = generation_of(model)

    def add(total: _LogSum, size: int, start: Array) -> _LogSum:
        h1 = model.prior(size, jax.random.fold_in(key, start))[0]
        of = lambda h1: generation.likelihood.log_marginals(generation.parameters(h1), x)
        return total.add(jax.vmap(of)(h1))

    chunk = min(k, chunk)
    whole, rest = k - k % chunk, k % chunk
    step = lambda total, start: (add(total, chunk, start), None)
    total, _ = jax.lax.scan(step, _LogSum.none(x.shape), jnp.arange(0, whole, chunk))
    total = add(total, rest, jnp.asarray(whole)) if rest else total
    return total.value - jnp.log(k)


def explain(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    chunk: int = CHUNK,
) -> Explained:
    """L_K of x, and log p(x_j|x_rest) of each of its values, all from the same draws.

    Since ∫ p(x, h) / p(x_j|x_rest, h) dh = p(x_rest), where x_rest are all observed values but x_j,

        log p(x_j|x_rest) = log p(x) − log p(x_rest)
                          ≈ log Σ_i v_i − log Σ_i v_i / p(x_j|x_rest, h_i)

    for any draws h_i ~ m(h) with weights v = p(x, h) / m(h). Where x_j is odd, p(h|x_rest) lies far
    from q(h|x); so to the K draws of q(h|x), about K more are added, shared among q(h|x_rest) of
    all j, and m is the mixture of these d + 1 densities (the balance heuristic, Veach & Guibas
    1995), which bounds all weights. A proposal whose draws have no density of their own stands
    alone, and then overestimates log p(x_j|x_rest) of very odd values.
    """
    generation = generation_of(model)
    likelihood = generation.likelihood
    d = x.shape[0]
    size = min(chunk, max(1, k // d))
    rounds = max(1, k // (d * size)) if model.density_of_draws and not model.in_blocks else 0
    without = jnp.where(jnp.eye(d, dtype=bool), jnp.nan, x)
    sources = jnp.concatenate([x[None], without])[: d + 1 if rounds else 1]
    counts = jnp.array([k, *[rounds * size] * d])[: len(sources)]

    def mixture(h: PyTree, log_q: Float[Array, " c"]) -> Float[Array, " c"]:
        if not rounds:
            return log_q
        of = jax.vmap(model.log_proposal, in_axes=(0, None))(sources, h)
        return jax.nn.logsumexp(of + jnp.log(counts / counts.sum())[:, None], axis=0)

    def add(carry: _Sums, drawn: _Drawn, _: Array) -> _Sums:
        log_v = drawn.log_w + drawn.log_q - mixture(drawn.h, drawn.log_q)
        of = jax.vmap(lambda h1: likelihood.log_probs(generation.parameters(h1), x))(drawn.h1)
        return _Sums(
            carry.weights.add(drawn.log_w),
            carry.all.add(log_v),
            carry.rest.add(log_v[:, None] - of),
        )

    def left_out(carry: _Sums, step: Array) -> tuple[_Sums, None]:
        of_step = jax.random.fold_in(jax.random.fold_in(key, LEFT_OUT), step)
        h, log_q = draw(model, without[step % d], size, of_step)
        h1 = latents_of(model, h)[0]
        after = add(carry, _Drawn(h, h1, log_q, model.log_joint(x, h) - log_q), step)
        return after._replace(weights=carry.weights), None

    start = _Sums(_Weights.none(), _LogSum.none(()), _LogSum.none(x.shape))
    sums = _stream(model, x, key, add, start, k=k, chunk=chunk)
    sums, _ = jax.lax.scan(left_out, sums, jnp.arange(rounds * d))
    columns = sums.all.base - sums.rest.base + jnp.log(sums.all.total / sums.rest.total)
    return Explained(sums.weights.summary(k), jnp.where(jnp.isnan(x), jnp.nan, columns))


def complete(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    n: int,
    chunk: int = CHUNK,
    empty: bool = False,
) -> Float[Array, "n d"]:
    """n draws of x_m ~ p(x_m|x_o), beside x_o: multiple imputation.

    Sampling importance resampling: h is taken n times, independently, from the same K draws with
    probabilities w̃_k (multinomial resampling, in one pass over the chunks), and x_m from
    p(x_m|x_o, h). Exact as K grows; with K not far above n, several draws share their h.
    `InputError` for an n below 1.
    """
    if n < 1:
        raise InputError(f"{n} draws were requested, but at least 1 is needed; give 1 or more.")
    generation = generation_of(model)
    again = jax.random.fold_in(key, RESAMPLING)

    def add(carry: tuple[_LogSum, Array], drawn: _Drawn, start: Array) -> tuple[_LogSum, Array]:
        before, chosen = carry
        after = before.add(drawn.log_w)
        ends = jnp.cumsum(jnp.exp(drawn.log_w - after.base))
        kept = before.total * before.ratio(after)
        at = jax.random.uniform(jax.random.fold_in(again, start), (n,)) * (kept + ends[-1]) - kept
        taken = drawn.h1[jnp.searchsorted(ends, at, side="right").clip(0, len(ends) - 1)]
        return after, jnp.where((at >= 0)[:, None], taken, chosen)

    start = (_LogSum.none(()), jnp.zeros((n, model.latents[0])))
    _, h1 = _stream(model, x, key, add, start, k=k, chunk=chunk, empty=empty)
    one = lambda h1, key: generation.likelihood.complete(generation.parameters(h1), x, key)
    return jax.vmap(one)(h1, jax.random.split(jax.random.fold_in(again, RESAMPLING), n))


def intervals(draws: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the central interval of draws [n_draws, …] that holds this share of them.

    `InputError` unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise InputError(
            f"level = {level} was given for an interval, but it is the share of the draws inside; "
            f"give a number between 0 and 1, such as 0.9."
        )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def generation_of(model: AbstractAutoencoder) -> Generation:
    """p(x, h) of a model; `InputError` if its p(x|h) is not a likelihood at one decoder's output.

    The decoder of uncertain weights is another for each draw; their means give one.
    """
    if isinstance(model, HasGeneration) and not model.own_observation:
        return model.generation
    raise InputError(
        f"Missing values were to be filled in by a {type(model).__name__}, which does not say how "
        f"its decoder's output and its likelihood make p(x|h); give an Autoencoder (for uncertain "
        f"weights, that of at_the_mean)."
    )


class _LogSum(NamedTuple):
    """log Σ_i exp(v_i) of values that come in chunks: the largest so far, and Σ_i exp(v_i − it)."""

    peak: Array
    total: Array

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> "_LogSum":
        """The sum of no value."""
        return cls(jnp.full(shape, -jnp.inf), jnp.zeros(shape))

    @property
    def base(self) -> Array:
        """The peak, or 0 where it is −∞: what `total` is relative to."""
        return jnp.where(jnp.isfinite(self.peak), self.peak, 0.0)

    @property
    def value(self) -> Array:
        return self.base + jnp.log(self.total)

    def ratio(self, after: "_LogSum") -> Array:
        """By what `total` is multiplied to be relative to the peak of a later sum."""
        return jnp.exp(self.peak - after.base)

    def add(self, values: Float[Array, "c ..."]) -> "_LogSum":
        """The sum with the values of a chunk."""
        after = _LogSum(jnp.maximum(self.peak, jnp.max(values, axis=0)), self.total)
        more = jnp.sum(jnp.exp(values - after.base), axis=0)
        return after._replace(total=self.total * self.ratio(after) + more)


class _Weights(NamedTuple):
    """Σ_k w_k and Σ_k w_k² of the draws so far."""

    sum: _LogSum
    squares: _LogSum

    @classmethod
    def none(cls) -> "_Weights":
        return cls(_LogSum.none(()), _LogSum.none(()))

    def add(self, log_w: Float[Array, " c"]) -> "_Weights":
        return _Weights(self.sum.add(log_w), self.squares.add(2 * log_w))

    def summary(self, k: int) -> Estimate:
        """L_K with its standard error.

        By the delta method, Var(log p̂) ≈ Var(w) / (K mean(w)²) = (K Σ_k w̃_k² − 1) / (K − 1) with
        the unbiased variance of w; NaN for K = 1.
        """
        shared = self.squares.total / self.sum.total**2
        variance = (k * shared - 1) / (k - 1) if k > 1 else jnp.nan
        value = self.sum.base + jnp.log(self.sum.total / k)
        return Estimate(value, jnp.sqrt(jnp.maximum(variance, 0.0)), 1 / shared)


class _Sums(NamedTuple):
    """What `explain` sums."""

    weights: _Weights
    """w of the draws of q(h|x)."""
    all: _LogSum
    """v of all draws."""
    rest: _LogSum
    """v / p(x_j|x_rest, h) of all draws, [d]."""


class _Drawn(NamedTuple):
    """The draws of a chunk."""

    h: PyTree
    h1: Float[Array, "c d1"]
    log_q: Float[Array, " c"]
    log_w: Float[Array, " c"]


def _stream(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    add: Callable[[Carry, _Drawn, Array], Carry],
    carry: Carry,
    *,
    k: int,
    chunk: int,
    empty: bool = False,
) -> Carry:
    """`add` over K draws in chunks, each of which also has the number of its first draw."""
    check_draws(k)
    block = block_of(model)
    chunk = min(k, max(block, chunk // block * block))

    def drawn(size: int, start: Array) -> _Drawn:
        of_chunk = jax.random.fold_in(key, start)
        h, log_q = draw(model, x, size, of_chunk)
        made = _Drawn(h, latents_of(model, h)[0], log_q, model.log_joint(x, h) - log_q)
        if not empty:
            return made
        nothing = jnp.all(jnp.isnan(x))
        prior = model.prior(size, jax.random.fold_in(of_chunk, PRIOR))[0]
        h1, log_w = jnp.where(nothing, prior, made.h1), jnp.where(nothing, 0.0, made.log_w)
        return made._replace(h1=h1, log_w=log_w)

    whole, rest = k - k % chunk, k % chunk
    step = lambda carry, start: (add(carry, drawn(chunk, start), start), None)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(0, whole, chunk))
    return add(carry, drawn(rest, jnp.asarray(whole)), jnp.asarray(whole)) if rest else carry


def _predicted(model: AbstractAutoencoder, x: Array, key: PRNGKeyArray) -> Array:
    """A prediction at one draw, which shows its shape."""
    generation = generation_of(model)
    h1 = latents_of(model, draw(model, x, block_of(model), key)[0])[0][0]
    return generation.likelihood.prediction(generation.parameters(h1), x)
