"""Bounds on log p(x), as functions of K log-weights.

A `Bound` takes an array whose leading axis is K and returns one value per example, in nats. It has
diagonal second derivatives (`Bound.curvature`), from which `iwae.estimators` builds the doubly
reparametrised gradient, and settings: `vr_iwae.with_settings(alpha=0.5)` and
`partial(vr_iwae, alpha=0.5)` are bounds too. Any function of log-weights can serve as a bound.

To define one, decorate a function:

    @bound("median")
    def median(log_w: LogWeights) -> Float[Array, "*batch"]:
        return jnp.median(log_w, axis=0)

Its curvature is computed by K Hessian-vector products, unless `@bound("median", curvature=…)` gives
it in closed form. The settings of bounds and their ranges are in `iwae.estimators.rules`.

Concrete log-weights that are nan, +inf, or -inf for all draws of an example raise `InputError`;
inside `jit` or `vmap`, where values are unknown, the bound of such an example is nan or infinite.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import iwae.estimators.rules as rules
from iwae.bounds import jackknife
from iwae.bounds.jackknife import LogWeights as LogWeights
from iwae.errors import InputError, nearest

BoundFunction = Callable[[LogWeights], Float[Array, "*batch"]]
"""The type of bounds in arguments: a `Bound`, or any function of log-weights."""

Setting = float | int | BoundFunction


class Pair(NamedTuple):
    """A bound for the generative parameters θ and one for the recognition parameters φ."""

    theta: BoundFunction
    phi: BoundFunction


@dataclass(frozen=True)
class Bound:
    """A bound on log p(x), with its curvature and its settings."""

    name: str
    value: Callable[..., Array]
    """Maps log-weights [K, *batch], and settings by keyword, to the bound [*batch], in nats."""
    closed: Callable[..., Array] | None = None
    """Maps the same to H_ii = ∂²bound / ∂(log w_i)², [K, *batch]; None if unknown."""
    given: tuple[tuple[str, Setting], ...] = ()
    """Settings that were given, by name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.value.__doc__)
        object.__setattr__(self, "__wrapped__", self.value)  # so that `help` shows its signature

    def __call__(self, log_w: LogWeights, **settings: Setting) -> Float[Array, "*batch"]:
        """The bound [*batch] of log-weights [K, *batch], in nats.

        `InputError` for concrete log-weights without a bound, and for settings out of range.
        """
        log_w = jnp.asarray(log_w)
        if not isinstance(log_w, jax.core.Tracer):
            _check(np.asarray(log_w))
        return self.value(log_w, **self._complete(settings))

    def curvature(self, log_w: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
        """H_ii = ∂²bound / ∂(log w_i)², [K].

        In closed form where known; else by K Hessian-vector products, one after the other, so that
        no K × K array is stored.
        """
        if self.closed is not None:
            given = self._complete({})
            jax.eval_shape(partial(self.value, **given), log_w)  # which validates the settings
            return self.closed(log_w, **given)
        if log_w.ndim == 1:
            return _diagonal(self, log_w)
        flat = log_w.reshape(len(log_w), -1)
        each = jax.vmap(lambda one: _diagonal(self, one), in_axes=1, out_axes=1)(flat)
        return each.reshape(log_w.shape)

    def _complete(self, settings: Mapping[str, Setting]) -> dict[str, Setting]:
        """All its settings; `InputError` if one that it needs was given nowhere."""
        given = {**self.settings, **settings}
        for name in self.needs:
            if name not in given:
                raise InputError(rules.missing(self.name, name).keyword)
        return given

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by the name of its function, which it stands for in its module."""
        module, name = self.value.__module__, self.value.__qualname__
        return _restored, (module, name, self.given)

    def with_settings(self, **settings: Setting) -> "Bound":
        """The bound with these settings added; `InputError` for settings that it does not take."""
        for name in settings:
            if name not in self.needs:
                takes = f"takes {' and '.join(self.needs) or 'no setting'}"
                raise InputError(f"{name} was given, but the bound {self.name} {takes}.")
        return replace(self, given=tuple({**self.settings, **settings}.items()))

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Its settings, such as alpha=0.5."""
        return dict(self.given)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the settings that it needs."""
        parameters = signature(self.value).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _restored(module: str, name: str, given: tuple[tuple[str, Setting], ...]) -> Bound:
    """The `Bound` of a module, with settings."""
    found = importlib.import_module(module)
    return replace(vars(found)[name], given=given)


def bound(
    name: str, *, curvature: Callable[..., Array] | None = None
) -> Callable[[Callable[..., Array]], Bound]:
    """Make a `Bound` of this name from a function of log-weights [K, *batch].

    `curvature` takes the same arguments as the function and returns H_ii in closed form.
    """
    return lambda value: Bound(name, value, curvature)


def as_bound(function: BoundFunction) -> Bound:
    """A function of log-weights as a `Bound`.

    `partial`s and `eqx.Partial`s of a `Bound` by keyword keep its settings and its curvature in
    closed form; the curvature of any other function is unknown.
    """
    settings: dict[str, Setting] = {}
    inner: object = function
    while isinstance(inner, partial | eqx.Partial) and not inner.args:
        outer: partial[Array] | eqx.Partial = inner
        inner, settings = outer.func, {**outer.keywords, **settings}
    if isinstance(inner, Bound):
        return inner.with_settings(**settings) if settings else inner
    return Bound("of your own", function)


def _check(log_w: np.ndarray) -> None:
    if log_w.ndim == 0 or len(log_w) == 0:
        raise InputError(
            f"Log-weights of shape {log_w.shape} were given, but a bound needs at least 1 draw; "
            f"give an array whose leading axis is K."
        )
    if np.isnan(log_w).any() or np.isposinf(log_w).any():
        raise InputError(
            "The log-weights hold nan or +inf, for which no bound exists; check the model's "
            "log-densities where the proposal draws."
        )
    if np.isneginf(log_w).all(axis=0).any():
        raise InputError(
            "All log-weights of an example are -inf, so none of its draws can have produced it; "
            "use a proposal that covers the posterior, or more draws."
        )


def curvature(bound: BoundFunction, log_w: Float[Array, " k"]) -> Float[Array, " k"]:
    """H_ii = ∂²bound / ∂(log w_i)², [K], of any function of log-weights."""
    known = as_bound(bound)
    return _diagonal(bound, log_w) if known.closed is None else known.curvature(log_w)


def _diagonal(function: BoundFunction, log_w: Float[Array, " k"]) -> Float[Array, " k"]:
    unit = lambda i: jax.nn.one_hot(i, len(log_w), dtype=log_w.dtype)
    diagonal = lambda i: jax.jvp(jax.grad(function), (log_w,), (unit(i),))[1][i]
    return jax.lax.map(diagonal, jnp.arange(len(log_w)))


# --- means of log-weights and powers of weights -----------------------------------------------


@bound("vae", curvature=lambda log_w: jnp.zeros_like(log_w))
def elbo(log_w: LogWeights) -> Float[Array, "*batch"]:
    """The evidence lower bound, (1/K) Σ_i log w_i (Kingma & Welling 2014; Burda et al. §2)."""
    return jnp.mean(log_w, axis=0)


def _spread(log_w: LogWeights, power: float = 1.0) -> LogWeights:
    """a v_i (1 − v_i), v = softmax(a log w): H_ii of (1/a) log Σ_i w_i^a."""
    if power == 0:
        return jnp.zeros_like(log_w)
    top = jnp.max(log_w, axis=0) if power > 0 else jnp.min(log_w, axis=0)
    apart = log_w - jnp.where(jnp.isfinite(top), top, 0)  # exact, since it precedes the product
    endless = jnp.isposinf(power * apart)
    scaled = jnp.where(jnp.any(endless, axis=0), jnp.where(endless, 0, -jnp.inf), power * apart)
    v = jax.nn.softmax(scaled, axis=0)
    return power * v * (1 - v)


@bound("iwae", curvature=_spread)
def iwae(log_w: LogWeights) -> Float[Array, "*batch"]:
    """L_K = log (1/K) Σ_i w_i (Burda, Grosse & Salakhutdinov 2016, Eq. 8)."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))


@bound("vr-iwae", curvature=lambda log_w, *, alpha: _spread(log_w, 1 - alpha))
def vr_iwae(log_w: LogWeights, *, alpha: float) -> Float[Array, "*batch"]:
    """1/(1−α) · log (1/K) Σ_i w_i^(1−α) (Li & Turner 2016; Daudel et al. 2023, VR-IWAE).

    α = 0 is L_K, α → 1 the ELBO. It falls as α rises, so it is a lower bound for all α ≥ 0, while
    a negative α can exceed log p(x). `InputError` if α is not finite.
    """
    rules.validate(rules.check_alpha(alpha))
    a = 1 - alpha
    return elbo(log_w) if a == 0 else _log_power_mean(log_w, a)


def _log_power_mean(log_w: LogWeights, a: float) -> Float[Array, "*batch"]:
    """(1/a) log (1/K) Σ_i w_i^a, accurate for every a ≠ 0, however small.

    If a < 0 and some weights are 0, it is −∞, and its gradient is the limit, shared between these.
    """
    if a < 0:
        endless = jnp.isneginf(log_w)
        count = jnp.sum(endless, axis=0)
        limit = jnp.sum(jnp.where(endless, log_w, 0), axis=0) / jnp.maximum(count, 1)
        rest = _finite_log_power_mean(jnp.where(count > 0, 0, log_w), a)
        return jnp.where(count > 0, limit, rest)
    return _finite_log_power_mean(log_w, a)


def _finite_log_power_mean(log_w: LogWeights, a: float) -> Float[Array, "*batch"]:
    top = jax.lax.stop_gradient(jnp.max(a * log_w, axis=0)) / a
    top = jnp.where(jnp.isfinite(top), top, 0)
    d = a * (log_w - top)
    near = jnp.min(d, axis=0) > -1
    close = jnp.log1p(jnp.mean(jnp.expm1(jnp.where(near, d, 0)), axis=0))
    return top + jnp.where(near, close, jnp.log(jnp.mean(jnp.exp(d), axis=0))) / a


def _miwae_curvature(log_w: LogWeights, *, m: int) -> LogWeights:
    groups = _groups(log_w, m)
    return jax.vmap(_spread)(groups).reshape(log_w.shape) / m


@bound("miwae", curvature=_miwae_curvature)
def miwae(log_w: LogWeights, *, m: int) -> Float[Array, "*batch"]:
    """(1/M) Σ_m L_{K/M}, over M groups of successive draws (Rainforth et al. 2018, MIWAE).

    `InputError` if K is not divisible by M.
    """
    return jnp.mean(jax.vmap(iwae)(_groups(log_w, m)), axis=0)


def _groups(log_w: LogWeights, m: int) -> Float[Array, "m per_group *batch"]:
    k = len(log_w)
    rules.validate(rules.check_m(m, k))
    return log_w.reshape(m, k // m, *log_w.shape[1:])


@bound("ciwae", curvature=lambda log_w, *, beta: (1 - beta) * _spread(log_w))
def ciwae(log_w: LogWeights, *, beta: float) -> Float[Array, "*batch"]:
    """β · ELBO + (1 − β) · L_K (Rainforth et al. 2018, CIWAE); `InputError` unless 0 ≤ β ≤ 1."""
    rules.validate(rules.check_beta(beta))
    if beta in (0, 1):
        return elbo(log_w) if beta == 1 else iwae(log_w)
    return beta * elbo(log_w) + (1 - beta) * iwae(log_w)


@bound("jvi", curvature=jackknife.curvature)
def jvi(log_w: LogWeights, *, order: int) -> Float[Array, "*batch"]:
    """The jackknife of L_K, Σ_{j=0..m} c_j · mean over subsets of size K−j of L_{K−j}.

    c_j = (−1)^j (K−j)^m / ((m−j)! j!), m the order (Nowozin 2018, Eq. 21). Its bias is O(K^−(m+1));
    it is NOT a lower bound. Orders 1 and 2 need K and K² sums; higher ones enumerate the subsets.
    c_j grows as K^m / m!: in float32 order 1 errs by some 10⁻⁵ nats, order 2 by 10⁻⁴ up to K = 500
    and by 2·10⁻⁴ at K = 2000, those above 7 by some 10⁻².
    If a subset's weights are all 0, the value is the limit: often +∞. `InputError` unless
    0 ≤ m < K, or if there would be too many subsets to enumerate.
    """
    return jackknife.value(log_w, order=order)


# --- over draws of uncertain weights ----------------------------------------------------------


def _black_box_curvature(
    log_w: LogWeights, *, of_group: BoundFunction, alpha: float, groups: int
) -> LogWeights:
    """u_g H_ii + α u_g (1 − u_g) (∂ℓ_g/∂log w_i)², u = softmax(α ℓ)."""
    split = _split(log_w, groups)
    each, slope = jax.vmap(partial(_with_slope, of_group))(split)
    u = jax.nn.softmax(alpha * each, axis=0)[:, None]
    h = u * jax.vmap(as_bound(of_group).curvature)(split)
    return (h + _spread(each, alpha)[:, None] * slope**2).reshape(log_w.shape)


@bound("black-box-alpha", curvature=_black_box_curvature)
def black_box_alpha(
    log_w: LogWeights, *, of_group: BoundFunction, alpha: float, groups: int
) -> Float[Array, "*batch"]:
    """(1/α) log (1/G) Σ_g exp(α ℓ_g), with ℓ_g the bound `of_group` of the g-th of G groups.

    With one draw ω_g of a network's weights for each group of successive draws it estimates
    (1/α) log E_q[p(x|ω)^α], the part of an example in the black-box α energy (Hernández-Lobato et
    al. 2016, in the form of Li & Gal 2017). α = 0 is its limit, the mean of ℓ_g, by which q(ω) is
    fitted in variational inference; with L_m as the bound of a group, α = 1 is L_K. If
    E[exp ℓ_g] ≤ p(x|ω_g), as for L_m and the ELBO, its mean is at most log E_q[p(x|ω)] for α ≤ 1.
    `InputError` if α is not finite, or K is not divisible by G.
    """
    rules.validate(rules.check_weight_alpha(alpha))
    each = jax.vmap(of_group)(_split(log_w, groups))
    return elbo(each) if alpha == 0 else _log_power_mean(each, alpha)


def _split(log_w: LogWeights, groups: int) -> Float[Array, "groups per_group *batch"]:
    rules.validate(rules.check_weight_draws(groups, len(log_w)))
    return log_w.reshape(groups, -1, *log_w.shape[1:])


def _with_slope(
    function: BoundFunction, log_w: Float[Array, "k *batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "k *batch"]]:
    """A bound, and its derivative by every log-weight."""
    value, back = jax.vjp(function, log_w)
    return value, back(jnp.ones_like(value))[0]


# --- by name ----------------------------------------------------------------------------------

BOUNDS: dict[str, Bound] = {of.name: of for of in (elbo, iwae, miwae, ciwae, vr_iwae, jvi)}
"""Bounds by their names in `--objective`; "piwae" is a pair of these."""


def named(name: str, **settings: Setting | None) -> Pair:
    """The bounds for θ and for φ of `--objective name`, mostly the same one.

    PIWAE(M, K) has L_MK for θ and MIWAE(M, K) for φ (Rainforth et al. 2018).

    Args:
        name: vae, iwae, miwae, ciwae, piwae, vr-iwae or jvi.
        settings: m, alpha, beta and order; the bound uses those it needs.

    Returns:
        A `Pair` of bounds.

    Raises:
        InputError: for an unknown name or a missing setting.

    Example:
        >>> named("vr-iwae", alpha=0.5).theta.settings
        {'alpha': 0.5}
    """
    if name == "piwae":
        return Pair(iwae, named("miwae", **settings).phi)
    if name not in BOUNDS:
        raise InputError(f"There is no bound {name!r}; {nearest(name, [*BOUNDS, 'piwae'])}.")
    chosen = BOUNDS[name]
    taken: dict[str, Setting] = {}
    for setting in chosen.needs:
        value = settings.get(setting)
        if value is None:
            raise InputError(rules.missing(name, setting).keyword)
        taken[setting] = value
    chosen = chosen.with_settings(**taken) if taken else chosen
    return Pair(chosen, chosen)
