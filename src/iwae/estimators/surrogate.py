"""Gradient estimators: from a bound and a model to a surrogate loss for autodiff.

With ℓ_i = log w_i, c = ∇bound(ℓ) and H its Hessian, both held constant, every estimator here is

    θ:  Σ_i c_i ∇θ log p(x, h_i)
    φ:  Σ_i b_i path_i + Σ_i s_i ∇φ log q(h_i|x) at fixed h_i,

where path_i = (∂ℓ_i/∂h_i)(∂h_i/∂φ) holds the parameters inside log q fixed. An `Estimator` is the
choice of the weights b and s. That b = c − H_ii is unbiased for every smooth bound of independent
draws follows from integrating the score term by parts once more, as Tucker et al. do for L_K.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from iwae._utils.checks import check_draws
from iwae.bounds import Bound, Pair, curvature
from iwae.errors import InputError, nearest
from iwae.models.autoencoder import Autoencoder, Model, draw, made_from_noise

Scalar = Float[Array, ""]
PerDraw = Float[Array, " k"]
Leaves = list[Array]

RESAMPLING, DREAMS = 2**32 - 2, 2**32 - 3
"""What keys are folded with for these: `fold_in(key, i)` is the i-th of `split(key, n)`, which
proposals draw from."""


@dataclass(frozen=True)
class Weights:
    """What an estimator weighs the K draws of one example with."""

    log_w: PerDraw
    phi: Bound
    """The bound that the recognition parameters follow."""

    @property
    def c(self) -> PerDraw:
        """∂bound/∂log w_i."""
        return jax.grad(lambda log_w: self.phi(log_w))(self.log_w)

    @property
    def h_ii(self) -> PerDraw:
        """H_ii = ∂²bound/∂(log w_i)²."""
        return curvature(self.phi, self.log_w)

    @property
    def w(self) -> PerDraw:
        """w̃_i = w_i / Σ_j w_j."""
        return jax.nn.softmax(self.log_w)


@dataclass(frozen=True)
class Estimator:
    """The weights b of the paths and s of the scores of log q."""

    path: Callable[[Weights], PerDraw] | None = None
    score: Callable[[Weights], PerDraw] | None = None
    dreams: bool = False
    """φ ascends log q(h|x) of draws (x, h) from the model (the sleep phase), not of the data."""
    independent: bool = False
    """It holds for independent draws only."""
    own_phi: bool = False
    """φ follows a divergence of its own and not the bound."""
    least_k: int = 1
    """Draws below which φ would not learn."""


ESTIMATORS: dict[str, Estimator] = {
    "reparam": Estimator(path=lambda w: w.c, score=lambda w: -w.c),
    "stl": Estimator(path=lambda w: w.c),
    "dreg": Estimator(path=lambda w: w.c - w.h_ii, independent=True),
    "rws": Estimator(score=lambda w: w.w, own_phi=True, least_k=2),
    "rws-sleep": Estimator(dreams=True, own_phi=True),
    "rws-dreg": Estimator(path=lambda w: w.w - w.w**2, independent=True, own_phi=True, least_k=2),
    "aisle-kl": Estimator(path=lambda w: w.w, own_phi=True),
    "aisle-chi2": Estimator(path=lambda w: 2 * len(w.w) * w.w**2, own_phi=True),
}
"""Estimators by the name that `--estimator` takes:

- `reparam`: plain reparametrisation (Burda et al. Eq. 13); unbiased.
- `stl`: the score dropped (Roeder et al. 2017); unbiased for the ELBO only.
- `dreg`: doubly reparametrised, b = c − H_ii: w̃² for L_K (Tucker et al. 2018), αw̃ + (1−α)w̃² for
  VR-IWAE (Daudel et al. 2023), and the like for every other bound; unbiased.
- `rws`, `rws-sleep`: wake-φ Σ w̃ ∇φ log q(h) and sleep-φ (Bornschein & Bengio 2015).
- `rws-dreg`: wake-φ doubly reparametrised, b = w̃ − w̃² (Tucker et al. 2018).
- `aisle-kl`, `aisle-chi2`: b = w̃ and b = 2K w̃² (Finke & Thiery 2019).
"""


def surrogate_loss(
    model: Model,
    x: Array,
    key: PRNGKeyArray,
    *,
    bound: Bound | Pair,
    k: int,
    estimator: str | Estimator = "reparam",
    backward_draws: int | None = None,
    chunk: int | None = None,
) -> tuple[Scalar, Scalar]:
    """(loss, value) of one example with K fresh draws; differentiate `loss` in the model.

    The gradient of `loss` is the estimate of −∇bound; `value` is the bound (that of θ, if they
    differ). `model` is anything with `propose`, `log_joint` and `log_proposal`. With
    `backward_draws` < K the gradient passes through so many draws only, resampled by their weights
    (`resampled`), and all K are weighed `chunk` at a time, each alone, or at once.

    `InputError` if the estimator does not exist, or means nothing for this bound, K or model, or
    needs gradients through draws that pass none.
    """
    pair = paired(bound)
    chosen = named(estimator)
    few = None if backward_draws is None or backward_draws >= k else backward_draws
    if backward_draws is not None and backward_draws < 1:
        raise InputError(
            f"backward_draws = {backward_draws} was given, but a gradient passes through at least "
            f"1 draw; give 1 or more."
        )
    if chunk is not None and chunk < 1:
        raise InputError(
            f"chunk = {chunk} was given, but at least 1 draw is weighed at a time; give 1 or more."
        )
    check(chosen, pair, k, model, few=few is not None)
    check_path(chosen, model, x, k, key)
    if few is not None:
        log_w, again = _weighed_first(model, x, k, key, chunk)
    else:
        h, log_q = draw(model, x, k, key)
        if chosen == ESTIMATORS["reparam"] and pair.theta is pair.phi:
            value = pair.theta(model.log_joint(x, h) - log_q)
            return -value, value
        log_w = jax.lax.stop_gradient(model.log_joint(x, h) - log_q)
    weighed = Weighed.by(chosen, Weights(log_w, pair.phi), pair.theta)
    if few is not None:
        which, weighed = resampled(weighed, few, jax.random.fold_in(key, RESAMPLING))
        h = again(which)
    loss = _loss(model, x, h, weighed)
    if chosen.dreams:
        loss -= _sleep(model, k, jax.random.fold_in(key, DREAMS))
    return loss, pair.theta(log_w)


def _weighed_first(
    model: Any, x: Array, k: int, key: PRNGKeyArray, chunk: int | None
) -> tuple[PerDraw, Callable[[Int[Array, " draws"]], Any]]:
    """(log w of K draws, held constant; the same draws of these indices, to pass a gradient back).

    Where draws are made from noise, those are made from it again, so that the encoder is passed
    back through for them alone. `chunk` draws are weighed at a time, or all.
    """
    if made_from_noise(model):
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
    return jax.lax.stop_gradient(log_joint - log_q), again


def _taken(draws: Any, which: Int[Array, " draws"]) -> Any:
    return jax.tree.map(lambda a: a[which], draws)


class Weighed(NamedTuple):
    """What the gradients of each draw are multiplied by."""

    c: PerDraw
    """Of θ; nowhere zero."""
    path: PerDraw | None
    score: PerDraw | None

    @staticmethod
    def by(estimator: Estimator, weights: Weights, theta: Bound) -> "Weighed":
        c = jax.grad(lambda log_w: theta(log_w))(weights.log_w)
        given = (estimator.path, estimator.score)
        path, score = (None if of is None else of(weights) for of in given)
        return Weighed(jnp.where(jnp.abs(c) < TINY, TINY, c), path, score)


def resampled(
    weighed: Weighed, draws: int, key: PRNGKeyArray
) -> tuple[Int[Array, " draws"], Weighed]:
    """Which draws stand for all, and what their gradients are multiplied by.

    Draw i is taken with p_i ∝ max(|c_i|, |b_i|, |s_i|) by systematic resampling and divided by
    `draws` · p_i, so that the gradient has the same mean: for L_K draws are taken by w̃ and weighed
    with 1 / `draws` (Burda et al. §3, for a single one).
    """
    sizes = jnp.max(jnp.abs(jnp.stack(jax.tree.leaves(weighed))), axis=0)
    shares = jnp.cumsum(sizes)
    points = (jnp.arange(draws) + jax.random.uniform(key, (), shares.dtype)) / draws * shares[-1]
    which = jnp.minimum(jnp.searchsorted(shares, points), len(shares) - 1)
    scale = shares[-1] / (draws * sizes[which])
    return which, jax.tree.map(lambda of: of[which] * scale, weighed)


def _loss(model: Model, x: Array, h: Any, weighed: Weighed) -> Scalar:
    """−Σ c_i [log p(x, h̃_i) − log q̄(h̃_i|x)] − Σ s_i log q(h̄_i|x), bars held constant.

    h̃ is h, but what comes back to it is scaled from c_i to b_i.
    """
    c, path, score = weighed
    loss = jnp.zeros((), c.dtype)
    if path is None:
        loss -= jnp.sum(c * model.log_joint(x, jax.lax.stop_gradient(h)))
    else:
        moving, fixed = eqx.partition(h, eqx.is_inexact_array)
        scaled = eqx.combine(jax.tree.map(partial(_scaled, path / c), moving), fixed)
        log_w = model.log_joint(x, scaled) - frozen(model).log_proposal(x, scaled)
        loss -= jnp.sum(c * log_w)
    if score is not None:
        loss -= jnp.sum(score * model.log_proposal(x, jax.lax.stop_gradient(h)))
    return loss


TINY = 1e-20
"""Stands for a c_i near 0, so that b_i / c_i is finite and their product b_i again."""


@jax.custom_vjp
def _scaled(ratio: PerDraw, h: Float[Array, "k ..."]) -> Float[Array, "k ..."]:
    """h, whose gradient is multiplied by a ratio for each draw."""
    return h


def _scaled_forward(ratio: PerDraw, h: Array) -> tuple[Array, PerDraw]:
    return h, ratio


def _scaled_backward(ratio: PerDraw, gradient: Array) -> tuple[PerDraw, Array]:
    return jnp.zeros_like(ratio), gradient * ratio.reshape(-1, *[1] * (gradient.ndim - 1))


_scaled.defvjp(_scaled_forward, _scaled_backward)


def frozen(model: Any) -> Any:
    """The model with its parameters held constant: gradients pass through its inputs only."""
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, model)


def _sleep(model: Any, k: int, key: PRNGKeyArray) -> Scalar:
    """(1/K) Σ log q(h_i|x_i) over K dreams (x_i, h_i) ~ p(x, h)."""
    x, h = jax.lax.stop_gradient(model.dream(k, key))
    one = lambda x, h: model.log_proposal(x, jax.tree.map(lambda a: a[None], h))[0]
    return jnp.mean(jax.vmap(one)(x, h))


def paired(bound: Bound | Pair) -> Pair:
    """One bound for θ and φ, unless it is a pair already."""
    return bound if isinstance(bound, Pair) else Pair(bound, bound)


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of a name; `InputError` if there is none."""
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        known = nearest(estimator, list(ESTIMATORS))
        raise InputError(f"There is no estimator {estimator!r}; {known}.")
    return ESTIMATORS[estimator]


def name_of(estimator: Estimator) -> str:
    """As it stands in a sentence."""
    return next((n for n, e in ESTIMATORS.items() if e == estimator), "of your own")


def check_path(estimator: Estimator, model: Any, x: Array, k: int, key: PRNGKeyArray) -> None:
    """`InputError` if parameters of the proposal would learn by a path through draws that is 0.

    It is decided from the model's program, so that compiled steps hold nothing of it. An
    `Autoencoder`'s own draws are differentiable, as far as its density is.
    """
    own = getattr(type(model), "reparametrize", None) is Autoencoder.reparametrize
    if estimator.path is None or (own and made_from_noise(model)):
        return
    jumping, apart = unmoved(model, x, k, key)
    names = jumping + apart if estimator.score is None else jumping
    if not names:
        return
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    through = "some of those" if jumping else "those"
    works = "rws, or reparametrised draws" if jumping else "reparam"
    raise InputError(
        f"Estimator {name_of(estimator)} passes gradients through the draws, but through {through} "
        f"of this model none reaches its parameter {names[0]}{more}; give {works}."
    )


def check(estimator: Estimator, pair: Pair, k: int, model: Any, *, few: bool = False) -> None:
    """`InputError` for a combination without meaning, with what would work."""
    name = name_of(estimator)
    check_draws(k)
    in_blocks = hasattr(model, "block")
    if in_blocks and pair.theta is not pair.phi:
        raise InputError(
            "A bound of its own was given for φ, but the draws of a hierarchical proposal are "
            "weighed together, by those of one bound; give one bound for θ and φ."
        )
    if estimator.own_phi and pair.theta is not pair.phi:
        raise InputError(
            f"Estimator {name} updates φ by a divergence of its own, so a bound of its own for φ "
            f"would never be used; give reparam, stl or dreg, or one bound for θ and φ."
        )
    if k < estimator.least_k:
        raise InputError(
            f"Estimator {name} was given K = {k} draw, where its φ gradient has mean zero; give "
            f"K = {estimator.least_k} or more, or use dreg."
        )
    if few and pair.theta is not pair.phi:
        raise InputError(
            "backward_draws was given with a bound of its own for φ, but draws are resampled by "
            "the weights of one bound; leave it out, or give one bound for θ and φ."
        )
    if few and in_blocks:
        raise InputError(
            "backward_draws was given, but this model's draws come in blocks that are weighed "
            "together; leave it out."
        )
    if estimator.independent and not getattr(model, "independent_draws", True):
        raise InputError(
            f"Estimator {name} needs independent draws, but this model's proposal makes dependent "
            f"ones; give reparam or stl."
        )
    if estimator != ESTIMATORS["reparam"] and not getattr(model, "density_of_draws", True):
        raise InputError(
            f"Estimator {name} drops the score of the density in the weights, but this model's "
            f"draws have another; give reparam, or uniform weights of the heads."
        )
    if (estimator.own_phi or estimator.dreams) and in_blocks:
        raise InputError(
            f"Estimator {name} updates φ by a divergence of p(h|x) and q(h|x), which a "
            f"hierarchical proposal does not have; give reparam."
        )
    if estimator.dreams and not hasattr(model, "dream"):
        raise InputError(
            f"Estimator {name} needs draws (x, h) from the model, but it has no method "
            f"dream(k, key); write one, or use rws."
        )


# --- which parameters the draws move with, read off their programs -------------------------------


def unmoved(model: Model, x: Array, k: int, key: PRNGKeyArray) -> tuple[list[str], list[str]]:
    """Names of parameters of log q(h|x) through which no gradient reaches the draws h.

    First those on which one of the arrays that h consists of depends in jumps, as a Bernoulli
    variable does, though another may move with them; then those that no draw depends on, as of a
    density of more than the draws. Nothing is computed: what a gradient reaches is read off its
    program. So of one array that holds both kinds of variables it is not known.
    """
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)
    named, structure = jax.tree_util.tree_flatten_with_path(moving)
    names, leaves = [jax.tree_util.keystr(path) for path, _ in named], [leaf for _, leaf in named]
    if not leaves:
        return [], []
    rebuilt = lambda leaves: eqx.combine(jax.tree.unflatten(structure, leaves), fixed)
    draws = lambda leaves: jax.tree.leaves(rebuilt(leaves).propose(x, k, key))

    def density(leaves: Leaves) -> list[Array]:
        of = rebuilt(leaves)
        return [of.log_proposal(x, jax.lax.stop_gradient(of.propose(x, k, key)))]

    score = _gradients(density, leaves)
    jumps, reached = set(), set()
    for i, array in enumerate(jax.eval_shape(draws, leaves)):
        one = lambda leaves, i=i: [draws(leaves)[i]]
        depends, path = _reached(one, leaves), [False] * len(leaves)
        if jnp.issubdtype(array.dtype, jnp.inexact):
            path = _gradients(one, leaves)
        reached |= {n for n, d in zip(names, depends, strict=True) if d}
        jumps |= {n for n, d, p in zip(names, depends, path, strict=True) if d and not p}
    scored = [n for n, s in zip(names, score, strict=True) if s]
    return [n for n in scored if n in jumps], [n for n in scored if n not in reached]


def _reached(function: Callable[[Leaves], list[Array]], leaves: Leaves) -> list[bool]:
    """Which arguments the results depend on."""
    program = jax.make_jaxpr(function)(leaves).jaxpr
    return list(dce_jaxpr(program, [True] * len(program.outvars))[1])


def _gradients(function: Callable[[Leaves], list[Array]], leaves: Leaves) -> list[bool]:
    """In which arguments the results have a gradient that is not zero by its very program."""
    results = jax.eval_shape(function, leaves)
    of = lambda given: jax.vjp(function, leaves)[1](given)[0]
    program = jax.make_jaxpr(of)(results).jaxpr
    one = lambda i: [i == j for j in range(len(leaves))]
    return [any(dce_jaxpr(program, one(i))[1]) for i in range(len(leaves))]
