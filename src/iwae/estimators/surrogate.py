"""The surrogate loss of a bound, a model and an estimator, for automatic differentiation.

`iwae.estimators.estimators` has the formula and the list of estimators; `iwae.estimators.rules`
says which are valid for which bound, draws and K.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from iwae._utils.checks import check_draws
from iwae.bounds import BoundFunction, Pair
from iwae.errors import InputError
from iwae.estimators import rules
from iwae.estimators.estimators import ESTIMATORS as ESTIMATORS
from iwae.estimators.estimators import Estimator as Estimator
from iwae.estimators.estimators import PerDraw as PerDraw
from iwae.estimators.estimators import Weights as Weights
from iwae.estimators.estimators import named as named
from iwae.estimators.paths import check_path as check_path
from iwae.models.base import AbstractAutoencoder, Model, ModelLike, as_model, draw
from iwae.models.base import frozen as frozen

Scalar = Float[Array, ""]

RESAMPLING, SLEEP = 2**32 - 2, 2**32 - 3
"""Numbers that keys are folded with for resampling and for the sleep phase. Small ones would
collide with proposals: `fold_in(key, i)` is the i-th of `split(key, n)`."""


def surrogate_loss(
    model: ModelLike,
    x: Array,
    key: PRNGKeyArray,
    *,
    bound: BoundFunction | Pair,
    k: int,
    estimator: str | Estimator = "reparam",
    backward_draws: int | None = None,
    chunk: int | None = None,
    kl_weight: Scalar | float | None = None,
) -> tuple[Scalar, Scalar]:
    """(loss, value) of one example with K fresh draws; differentiate `loss` in the model.

    The gradient of `loss` is the estimate of −∇bound (`iwae.estimators.estimators`).

    Args:
        model: anything with `propose`, `log_joint` and `log_proposal`.
        x: one example; `jax.vmap` takes a batch.
        key: the key of the draws.
        bound: a bound, any function of log-weights [K], or a `Pair` of them for θ and φ.
        k: K, the number of importance samples.
        estimator: a name of `ESTIMATORS`, or an `Estimator` of your own.
        backward_draws: with n < K the gradient passes through n draws only, resampled by their
            weights (`resampled`), while all K are weighted. Default: through all.
        chunk: with `backward_draws`, how many draws are weighted at a time. Default: all at once.
        kl_weight: β, if the gradient is that of the bound with the log-weights
            log p(x|h) + β [log p(h) − log q(h|x)] (Sønderby et al. 2016). Default: 1.

    Returns:
        The loss, and the value of the bound in nats (that of θ, if they differ), with β = 1.

    Raises:
        InputError: if the estimator does not exist, is not valid for this bound, K or model, or
            needs gradients through draws that are not differentiable.

    Example:
        >>> one = partial(surrogate_loss, bound=iwae, k=16, estimator="dreg")
        >>> gradient, value = eqx.filter_grad(one, has_aux=True)(model, x, key)
    """
    pair, chosen = paired(bound), named(estimator)
    few = _fewer(backward_draws, k)
    rules.validate(rules.check_chunk(chunk))
    check(chosen, pair, k, model, backward_draws=few)
    check_path(chosen, model, x, k, key)
    whole = as_model(model)
    if chosen.own_phi or pair.theta is not pair.phi:
        whole = whole.with_held_proposal()
    if kl_weight is not None:
        rules.validate(rules.check_kl_weight(chosen))
        whole = KLWeighted.of(whole, kl_weight)
    if few is not None:
        log_w, h, again = _weighed_first(whole, x, k, key, chunk)
    else:
        h, log_q = draw(whole, x, k, key)
        if chosen == ESTIMATORS[rules.PLAIN] and pair.theta is pair.phi:
            log_w = whole.log_joint(x, h) - log_q
            value = pair.theta(log_w)
            return -value, value if kl_weight is None else pair.theta(_plain(whole, x, h, log_w))
        log_w = jax.lax.stop_gradient(whole.log_joint(x, h) - log_q)
    weights = Weights(log_w, pair.phi, 1.0 if kl_weight is None else kl_weight)
    coefficients = Coefficients.of(chosen, weights, pair.theta)
    value = pair.theta(log_w if kl_weight is None else _plain(whole, x, h, log_w))
    if few is not None:
        which, coefficients = resampled(coefficients, few, jax.random.fold_in(key, RESAMPLING))
        h = again(which)
    loss = _loss(whole, x, h, coefficients)
    if chosen.sleep:
        loss -= _sleep(whole, k, jax.random.fold_in(key, SLEEP))
    return loss, value


class KLWeighted(Model):
    """A model whose log-weights are log p(x|h) + β [log p(h) − log q(h|x)]."""

    model: AbstractAutoencoder
    kl_weight: Scalar | float
    """β."""

    @staticmethod
    def of(model: Model, kl_weight: Scalar | float) -> "KLWeighted":
        """`InputError` for a model whose log p(x|h) and log p(h) are not known apart."""
        if not isinstance(model, AbstractAutoencoder) or model.in_blocks:
            raise InputError(
                f"A weight of the latent KL was given, but {type(model).__name__} does not tell "
                f"log p(x|h) from log p(h) for single draws; leave the weight out, or give a model "
                f"with log_observation and log_prior_terms."
            )
        return KLWeighted(model, kl_weight)

    @property
    def made_from_noise(self) -> bool:  # type: ignore[override]
        return self.model.made_from_noise

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> PyTree:
        return self.model.propose(x, k, key)

    def propose_and_log_prob(self, x: Array, k: int, key: PRNGKeyArray) -> tuple[PyTree, PerDraw]:
        h, log_q = self.model.propose_and_log_prob(x, k, key)
        return h, self.kl_weight * log_q

    def noise(self, k: int, key: PRNGKeyArray) -> PyTree:
        return self.model.noise(k, key)

    def reparametrize(self, x: Array, epsilon: PyTree) -> tuple[PyTree, PerDraw]:
        h, log_q = self.model.reparametrize(x, epsilon)
        return h, self.kl_weight * log_q

    def log_joint(self, x: Array, h: PyTree) -> PerDraw:
        prior = sum(self.model.log_prior_terms(h))
        return self.model.log_observation(x, h) + self.kl_weight * prior

    def log_proposal(self, x: Array, h: PyTree) -> PerDraw:
        return self.kl_weight * self.model.log_proposal(x, h)


def _plain(model: Model, x: Array, h: PyTree, log_w: PerDraw) -> PerDraw:
    """The log-weights with β = 1, without a gradient."""
    assert isinstance(model, KLWeighted)
    of, h = frozen(model.model), jax.lax.stop_gradient(h)
    rest = sum(of.log_prior_terms(h)) - of.log_proposal(x, h)
    return jax.lax.stop_gradient(log_w + (1 - model.kl_weight) * rest)


def _fewer(backward_draws: int | None, k: int) -> int | None:
    """How many draws the gradient passes through; None for all. `check` rejects invalid values."""
    return None if backward_draws is None or backward_draws >= max(k, 1) else backward_draws


def _weighed_first(
    model: Model, x: Array, k: int, key: PRNGKeyArray, chunk: int | None
) -> tuple[PerDraw, PyTree, Callable[[Int[Array, " draws"]], PyTree]]:
    """(log w of K draws, and these, held constant; from indices to these draws, differentiable).

    If draws are made from noise, the indexed ones are made from it again, so that the backward pass
    through the encoder is for them alone. `chunk` draws are weighted at a time; None: all at once.
    """
    if model.made_from_noise:
        epsilon = model.noise(k, key)
        h, log_q = frozen(model).reparametrize(x, epsilon)
        again = lambda which: model.reparametrize(x, _taken(epsilon, which))[0]
    else:
        h, log_q = draw(model, x, k, key)
        again = partial(_taken, h)
    h, still = jax.lax.stop_gradient(h), frozen(model)
    if chunk is None:
        log_joint = still.log_joint(x, h)
    else:
        one = lambda h: still.log_joint(x, jax.tree.map(lambda a: a[None], h))[0]
        log_joint = jax.lax.map(one, h, batch_size=chunk)
    return jax.lax.stop_gradient(log_joint - log_q), h, again


def _taken(draws: PyTree, which: Int[Array, " draws"]) -> PyTree:
    return jax.tree.map(lambda a: a[which], draws)


class Coefficients(NamedTuple):
    """The coefficients of the gradients of each draw."""

    c: PerDraw
    """∂bound/∂log w_i of the bound for θ. It is no smaller than `TINY` where b_i is not 0."""
    path: PerDraw | None
    score: PerDraw | None

    @staticmethod
    def of(estimator: Estimator, weights: Weights, theta: BoundFunction) -> "Coefficients":
        c = jax.grad(lambda log_w: theta(log_w))(weights.log_w)
        given = (estimator.path, estimator.score)
        path, score = (None if of is None else of(weights) for of in given)
        moved = False if path is None else path != 0
        return Coefficients(jnp.where((jnp.abs(c) < TINY) & moved, TINY, c), path, score)


def resampled(
    coefficients: Coefficients, draws: int, key: PRNGKeyArray
) -> tuple[Int[Array, " draws"], Coefficients]:
    """Indices of the resampled draws, and the coefficients of their gradients.

    Draw i is taken with p_i ∝ max(|c_i|, |b_i|, |s_i|) by systematic resampling and divided by
    `draws` · p_i, so that the gradient has the same mean: for L_K draws are taken by w̃ and
    weighted by 1 / `draws` (Burda et al. §3, for a single draw).
    """
    sizes = jnp.max(jnp.abs(jnp.stack(jax.tree.leaves(coefficients))), axis=0)
    sizes = jnp.maximum(sizes, TINY)
    shares = jnp.cumsum(sizes)
    points = (jnp.arange(draws) + jax.random.uniform(key, (), shares.dtype)) / draws * shares[-1]
    which = jnp.minimum(jnp.searchsorted(shares, points), len(shares) - 1)
    scale = shares[-1] / (draws * sizes[which])
    return which, jax.tree.map(lambda of: of[which] * scale, coefficients)


def _loss(model: Model, x: Array, h: PyTree, coefficients: Coefficients) -> Scalar:
    """−Σ c_i [log p(x, h̃_i) − log q̄(h̃_i|x)] − Σ s_i log q(h̄_i|x), bars held constant.

    h̃ equals h, but its gradient is scaled from c_i to b_i.
    """
    c, path, score = coefficients
    loss = jnp.zeros((), c.dtype)
    if path is None:
        loss -= jnp.sum(c * model.log_joint(x, jax.lax.stop_gradient(h)))
    else:
        moving, fixed = eqx.partition(h, eqx.is_inexact_array)
        ratio = jnp.where(path == 0, 0.0, path / jnp.where(path == 0, 1.0, c))
        scaled = eqx.combine(jax.tree.map(partial(_scaled, ratio), moving), fixed)
        log_w = model.log_joint(x, scaled) - frozen(model).log_proposal(x, scaled)
        loss -= jnp.sum(c * log_w)
    if score is not None:
        loss -= jnp.sum(score * model.log_proposal(x, jax.lax.stop_gradient(h)))
    return loss


TINY = 1e-20
"""Replaces a c_i near 0 where b_i is not, so that b_i / c_i is finite and c_i (b_i / c_i) = b_i. A
draw without weight has no part in the gradient, however large its own may be."""


@jax.custom_vjp
def _scaled(ratio: PerDraw, h: Float[Array, "k ..."]) -> Float[Array, "k ..."]:
    """The identity in h, with the gradient of each draw multiplied by its ratio."""
    return h


def _scaled_forward(ratio: PerDraw, h: Array) -> tuple[Array, PerDraw]:
    return h, ratio


def _scaled_backward(ratio: PerDraw, gradient: Array) -> tuple[PerDraw, Array]:
    return jnp.zeros_like(ratio), gradient * ratio.reshape(-1, *[1] * (gradient.ndim - 1))


_scaled.defvjp(_scaled_forward, _scaled_backward)


def _sleep(model: Model, k: int, key: PRNGKeyArray) -> Scalar:
    """(1/K) Σ log q(h_i|x_i) over K draws (x_i, h_i) ~ p(x, h)."""
    x, h = jax.lax.stop_gradient(model.sample_joint(k, key))
    one = lambda x, h: model.log_proposal(x, jax.tree.map(lambda a: a[None], h))[0]
    return jnp.mean(jax.vmap(one)(x, h))


def paired(bound: BoundFunction | Pair) -> Pair:
    """A bound as a pair for θ and φ."""
    return bound if isinstance(bound, Pair) else Pair(bound, bound)


def capabilities(model: ModelLike) -> rules.Capabilities:
    """The capabilities of the model's draws."""
    stated = as_model(model)
    return rules.Capabilities(
        independent=stated.independent_draws,
        own_density=stated.density_of_draws,
        in_blocks=stated.in_blocks,
        joint=stated.samples_joint,
        by_place=stated.by_place,
    )


def check(
    estimator: Estimator,
    pair: Pair,
    k: int,
    model: ModelLike,
    *,
    backward_draws: int | None = None,
) -> None:
    """`InputError` for an invalid combination (`rules`), naming what would work."""
    check_draws(k)
    two = pair.theta is not pair.phi
    draws = capabilities(model)
    rules.validate(rules.check(estimator, k=k, two=two, draws=draws, backward_draws=backward_draws))
