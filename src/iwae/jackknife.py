"""The jackknife of log (1/K) Σ w_i, stable and mostly without enumerating subsets (Nowozin 2018).

Sums over subsets that leave out 1 or 2 draws come from the sums before and after each draw:
log Σ_{j≠i} w_j as log(Σ w − w_i) would lose everything where w_i dominates.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.errors import InputError

LogWeights = Float[Array, "k *batch"]

ZERO = -1e30
"""The logarithm of 0 here: sums of it keep finite derivatives, which those of -inf do not."""

MOST_SUBSETS = 20_000
"""Subsets that orders 3 and more may enumerate."""


def value(log_w: LogWeights, *, order: int) -> Float[Array, "*batch"]:
    """Σ_j c_j · mean over subsets of size K−j of L_{K−j}; its limit where a subset weighs 0."""
    return _value(log_w, order)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _value(log_w: LogWeights, order: int) -> Float[Array, "*batch"]:
    k = len(log_w)
    log_w, top = _centred(log_w)
    total, slope = jnp.zeros(log_w.shape[1:]), jnp.zeros(log_w.shape[1:])
    for j, c in enumerate(coefficients(k, order)):
        mean, zero = LeftOut(log_w, j).mean()
        total, slope = total + c * (mean - math.log(k - j)), slope + c * zero
    return jnp.where(slope == 0, top + total, -jnp.sign(slope) * jnp.inf)


@_value.defjvp
def _value_and_tangent(order: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """∂value/∂log w_i = Σ_j c_j · mean over subsets S of v_i, v = w / Σ_S w."""
    (log_w,), (tangent,) = primals, tangents
    slope = _mean_over_subsets(log_w, order, lambda sums: sums.normalised(1))
    return _value(log_w, order), jnp.sum(slope * tangent, axis=0)


def curvature(log_w: LogWeights, *, order: int) -> LogWeights:
    """∂²value/∂(log w_i)² = Σ_j c_j · mean over subsets S of v_i (1 − v_i), v = w / Σ_S w."""
    spread = lambda sums: sums.normalised(1) - sums.normalised(2)
    return _mean_over_subsets(log_w, order, spread)


def _mean_over_subsets(
    log_w: LogWeights, order: int, summed: Callable[["LeftOut"], LogWeights]
) -> LogWeights:
    """Σ_j c_j · mean over subsets that leave out j draws."""
    k = len(log_w)
    log_w, _ = _centred(log_w)
    total = jnp.zeros_like(log_w)
    for j, c in enumerate(coefficients(k, order)):
        total += c / math.comb(k, j) * summed(LeftOut(log_w, j))
    return total


def _centred(log_w: LogWeights) -> tuple[LogWeights, Float[Array, "*batch"]]:
    """Log-weights less their maximum, and it: coefficients of O(K²) multiply what is left."""
    top = jax.lax.stop_gradient(jnp.max(log_w, axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return log_w - top, top


def coefficients(k: int, m: int) -> list[float]:
    """c_0 … c_m, which sum to 1."""
    if not 0 <= m < k:
        raise InputError(
            f"order = {m} was given with K = {k} draws, but JVI leaves out up to m of them and "
            f"needs one to stay; give an order from 0 to {k - 1}."
        )
    subsets = max((math.comb(k, j) for j in range(3, m + 1)), default=0)
    if subsets > MOST_SUBSETS:
        raise InputError(
            f"order = {m} was given with K = {k} draws, which takes up to {subsets:,} subsets of "
            f"them; give an order of at most 2, or fewer draws."
        )
    return [
        (-1) ** j * (k - j) ** m / (math.factorial(m - j) * math.factorial(j)) for j in range(m + 1)
    ]


class LeftOut:
    """T_S = log Σ_{i∈S} w_i for all subsets S that leave out j of the K draws."""

    def __init__(self, log_w: LogWeights, j: int):
        self.log_w, self.j = jnp.maximum(log_w, ZERO), j
        k = len(log_w)
        if j == 0:
            self.totals = jax.nn.logsumexp(self.log_w, axis=0)[None]
        elif j == 1:
            self.totals = _others(self.log_w)
        elif j == 2:
            rows = jnp.broadcast_to(self.log_w, (k, *log_w.shape))
            self.totals = jax.vmap(_others)(_off_diagonal(rows))
        else:
            self.totals = jax.nn.logsumexp(self._members(self.log_w), axis=1)

    def mean(self) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """The mean of T_S over subsets whose weights are not all 0, and the share of the others."""
        zero = self.totals < ZERO / 2
        totals = jnp.where(zero, 0, self.totals)
        axes: tuple[int, ...] = (0,)
        subsets = len(totals)
        if self.j == 2:
            zero, totals = _off_diagonal(zero * 1.0, 0.0), _off_diagonal(totals, 0.0)
            axes, subsets = (0, 1), subsets * (subsets - 1)
        return jnp.sum(totals, axis=axes) / subsets, jnp.sum(zero, axis=axes) / subsets

    def normalised(self, power: int) -> LogWeights:
        """Σ_{S∋i} (w_i / Σ_S w)^power for every i, in logarithms up to the end."""
        inverse = jnp.where(self.totals < ZERO / 2, ZERO, -power * self.totals)
        if self.j == 0:
            over = inverse
        elif self.j == 1:
            over = _others(inverse)
        elif self.j == 2:
            columns = jax.vmap(_others)(_off_diagonal(inverse))
            over = jax.nn.logsumexp(_off_diagonal(columns), axis=0) - math.log(2)
        else:
            inside = self._members(jnp.zeros_like(self.log_w))
            over = jax.nn.logsumexp(inside + inverse[:, None], axis=0)
        return jnp.exp(power * self.log_w + over)

    def _members(self, values: LogWeights) -> Float[Array, "subsets k *batch"]:
        """`values` in each subset, and log 0 for the draws left out."""
        k = len(values)
        left_out = np.array(list(combinations(range(k), self.j)))
        mask = np.zeros((len(left_out), k), bool)
        np.put_along_axis(mask, left_out, values=True, axis=1)
        return jnp.where(mask.reshape(*mask.shape, *[1] * (values.ndim - 1)), ZERO, values)


def _others(log_w: LogWeights) -> LogWeights:
    """log Σ_{j≠i} w_j for every i: the sums before and after i, so that nothing cancels."""
    edge = jnp.full_like(log_w[:1], ZERO)
    before = jax.lax.cumlogsumexp(log_w[:-1], axis=0)
    after = jax.lax.cumlogsumexp(log_w[1:], axis=0, reverse=True)
    return jnp.logaddexp(jnp.concatenate([edge, before]), jnp.concatenate([after, edge]))


def _off_diagonal(table: Array, fill: float = ZERO) -> Array:
    """A table [K, K, …] whose diagonal is `fill`."""
    diagonal = jnp.eye(len(table), dtype=bool)
    return jnp.where(diagonal.reshape(*diagonal.shape, *[1] * (table.ndim - 2)), fill, table)
