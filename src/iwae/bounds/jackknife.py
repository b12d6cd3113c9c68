"""The jackknife of log (1/K) Σ w_i, stable and mostly without enumerating subsets (Nowozin 2018).

Coefficients of O(K^m) multiply sums over subsets S that nearly cancel. Therefore differences to the
sum over all draws are summed: with T_S = log Σ_S w and T = log Σ w, exactly

    T_S − T = log (1 − r),  r the share of the draws left out, and  e^(T − T_S) − 1 = r / (1 − r).
"""

import math
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

import iwae.estimators.rules as rules

LogWeights = Float[Array, "k *batch"]

ZERO = -1e30
"""Stands for log 0; unlike sums of -inf, its sums have finite derivatives."""


def value(log_w: LogWeights, *, order: int) -> Float[Array, "*batch"]:
    """Σ_j c_j · mean over subsets of size K−j of L_{K−j}; the limit if a subset has weight 0."""
    return _value(log_w, order)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _value(log_w: LogWeights, order: int) -> Float[Array, "*batch"]:
    k = len(log_w)
    log_w, top = _centred(log_w)
    total, slope = jax.nn.logsumexp(jnp.maximum(log_w, ZERO), axis=0), jnp.zeros_like(top)
    terms = coefficients(k, order)
    for j, c in enumerate(terms[1:], 1):
        mean, zero = LeftOut(log_w, j).mean()
        total, slope = total + c * mean, slope + c * zero
    total -= sum(c * math.log(k - j) for j, c in enumerate(terms))
    return jnp.where(slope == 0, top + total, -jnp.sign(slope) * jnp.inf)


@_value.defjvp
def _value_and_tangent(
    order: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """∂value/∂log w_i = Σ_j c_j · mean over subsets S of v_i, v = w / Σ_S w."""
    (log_w,), (tangent,) = primals, tangents
    return _value(log_w, order), jnp.sum(_shares(log_w, order, 1) * tangent, axis=0)


def curvature(log_w: LogWeights, *, order: int) -> LogWeights:
    """∂²value/∂(log w_i)² = Σ_j c_j · mean over subsets S of v_i (1 − v_i), v = w / Σ_S w."""
    return _shares(log_w, order, 1) - _shares(log_w, order, 2)


def _shares(log_w: LogWeights, order: int, power: int) -> LogWeights:
    """Σ_j c_j · mean over subsets S of (w_i / Σ_S w)^power, which is 0 if S leaves out i.

    A share 1 − j/K of all subsets contains i; there its weight exceeds its share of all draws.
    """
    k = len(log_w)
    log_w, _ = _centred(log_w)
    log_w = jnp.maximum(log_w, ZERO)
    terms = coefficients(k, order)
    share = jnp.exp(power * jax.nn.log_softmax(log_w, axis=0))
    total = share * sum(c * (1 - j / k) for j, c in enumerate(terms))
    for j, c in enumerate(terms[1:], 1):
        total += c / math.comb(k, j) * LeftOut(log_w, j).excess(power)
    return total


def _centred(log_w: LogWeights) -> tuple[LogWeights, Float[Array, "*batch"]]:
    """Log-weights minus their maximum, and the maximum: coefficients of O(K²) multiply the rest."""
    top = jax.lax.stop_gradient(jnp.max(log_w, axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return log_w - top, top


def coefficients(k: int, m: int) -> list[float]:
    """c_0 … c_m, which sum to 1."""
    rules.validate(rules.check_order(m, k))
    return [
        (-1) ** j * (k - j) ** m / (math.factorial(m - j) * math.factorial(j)) for j in range(m + 1)
    ]


class LeftOut:
    """All subsets S that leave out j ≥ 1 of the K draws."""

    def __init__(self, log_w: LogWeights, j: int):
        self.log_w, self.j = jnp.maximum(log_w, ZERO), j
        self.log_share = jax.nn.log_softmax(self.log_w, axis=0)
        k = len(log_w)
        if j == 1:
            kept, self.log_r = _others(self.log_share), self.log_share
        elif j == 2:
            rows = jnp.broadcast_to(self.log_share, (k, *log_w.shape))
            kept = jax.vmap(_others)(_off_diagonal(rows))
            self.log_r = jnp.logaddexp(self.log_share[:, None], self.log_share[None])
        else:
            inside = self._members(jnp.zeros_like(self.log_w)) == 0
            parts = jnp.broadcast_to(self.log_share, inside.shape)
            kept = jax.nn.logsumexp(jnp.where(inside, parts, ZERO), axis=1)
            self.log_r = jax.nn.logsumexp(jnp.where(inside, ZERO, parts), axis=1)
        self.zero = kept < ZERO / 2
        small = self.log_r < -math.log(2)
        near = jnp.log1p(-jnp.exp(jnp.where(small, self.log_r, -1.0)))
        self.less = jnp.where(small, near, jnp.where(self.zero, 0, kept))
        """T_S − T; 0 for subsets of weight 0."""

    def mean(self) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """The mean of T_S − T, with 0 for subsets of weight 0, and the share of these."""
        zero, less = self.zero.astype(self.less.dtype), self.less
        axes: tuple[int, ...] = (0,)
        subsets = len(less)
        if self.j == 2:
            zero, less = _off_diagonal(zero, 0.0), _off_diagonal(less, 0.0)
            axes, subsets = (0, 1), subsets * (subsets - 1)
        return jnp.sum(less, axis=axes) / subsets, jnp.sum(zero, axis=axes) / subsets

    def excess(self, power: int) -> LogWeights:
        """Σ_{S∋i} [(w_i / Σ_S w)^power − (w_i / Σ w)^power], in logarithms up to the end.

        The exception are subsets that leave out a draw heavier than all others together: the
        logarithms of their shares are as far apart as the draws, and float32 would round them.
        """
        log_more = self.log_r - self.less
        if power == 2:
            log_more += jnp.logaddexp(log_more, math.log(2))
        heavy = self._heavy()
        log_more = jnp.where(self.zero | heavy, ZERO, log_more)
        if self.j == 1:
            over = _others(log_more)
        elif self.j == 2:
            columns = jax.vmap(_others)(_off_diagonal(log_more))
            over = jax.nn.logsumexp(_off_diagonal(columns), axis=0) - math.log(2)
        else:
            inside = self._members(jnp.zeros_like(self.log_w))
            over = jax.nn.logsumexp(inside + log_more[:, None], axis=0)
        lighter = self._without_the_heaviest(heavy, power)
        return jnp.exp(power * self.log_share + over) + lighter

    def _heavy(self) -> Bool[Array, "..."]:
        """Which subsets leave out a draw that is heavier than all others together."""
        heaviest = self.log_share > -math.log(2)
        if self.j == 1:
            return heaviest
        if self.j == 2:
            return heaviest[:, None] | heaviest[None]
        outside = self._members(jnp.zeros_like(self.log_w)) < 0
        return jnp.any(outside & heaviest, axis=1)

    def _without_the_heaviest(self, heavy: Bool[Array, "..."], power: int) -> LogWeights:
        """The part of `excess` from subsets that leave out a draw heavier than all others."""
        heaviest = self.log_share > -math.log(2)
        light = jnp.where(heaviest, ZERO, self.log_w)
        if self.j == 1:
            parts, counted = light[None], jnp.any(heaviest, axis=0)[None]
        elif self.j == 2:
            parts = _off_diagonal(jnp.broadcast_to(light, (len(light), *light.shape)))
            counted = jnp.any(heaviest, axis=0) & ~heaviest
        else:
            parts, counted = self._members(self.log_w), heavy
        share = jnp.exp(power * self.log_share)
        more = jax.nn.softmax(parts, axis=1) ** power - share
        there = counted[:, None] & (parts > ZERO / 2)
        return jnp.sum(jnp.where(there, more, 0), axis=0)

    def _members(self, values: LogWeights) -> Float[Array, "subsets k *batch"]:
        """`values` in each subset, with log 0 for the draws left out."""
        k = len(values)
        left_out = np.array(list(combinations(range(k), self.j)))
        mask = np.zeros((len(left_out), k), bool)
        np.put_along_axis(mask, left_out, values=True, axis=1)
        return jnp.where(mask.reshape(*mask.shape, *[1] * (values.ndim - 1)), ZERO, values)


def _others(log_w: LogWeights) -> LogWeights:
    """log Σ_{j≠i} w_j for every i, from the sums before and after i, so that nothing cancels."""
    edge = jnp.full_like(log_w[:1], ZERO)
    before = jax.lax.cumlogsumexp(log_w[:-1], axis=0)
    after = jax.lax.cumlogsumexp(log_w[1:], axis=0, reverse=True)
    return jnp.logaddexp(jnp.concatenate([edge, before]), jnp.concatenate([after, edge]))


def _off_diagonal(table: Array, fill: float = ZERO) -> Array:
    """A table [K, K, …] whose diagonal is `fill`."""
    diagonal = jnp.eye(len(table), dtype=bool)
    return jnp.where(diagonal.reshape(*diagonal.shape, *[1] * (table.ndim - 2)), fill, table)
