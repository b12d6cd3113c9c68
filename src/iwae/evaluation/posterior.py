"""Estimates of the posterior p(h|x) from K weighted draws (Cremer, Morris & Duvenaud 2017).

L_K is a lower bound of the ELBO of an implicit posterior q_EW, which draws K times from q and keeps
draw i with probability w̃_i.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae._utils.checks import check_draws
from iwae.errors import InputError
from iwae.models.base import AbstractAutoencoder, ModelLike, draw


def expectation(
    model: ModelLike, x: Array, f: Callable[[PyTree], Array], key: PRNGKeyArray, *, k: int
) -> Array:
    """E[f(h)|x] ≈ Σ_i w̃_i f(h_i) with K draws from q; f takes ONE draw.

    The estimate is self-normalised: consistent in K, with a bias of O(1/K).
    """
    h, log_w = _weighted(model, x, key, k)
    values = jax.vmap(f)(h)
    return jnp.tensordot(jax.nn.softmax(log_w), values, axes=1, precision="highest")


def resample(model: ModelLike, x: Array, key: PRNGKeyArray, *, k: int, n: int = 1) -> PyTree:
    """n independent draws h ~ q_EW(h|x), each by importance resampling of K fresh draws from q."""

    def one(key: PRNGKeyArray) -> PyTree:
        key_h, key_i = jax.random.split(key)
        h, log_w = _weighted(model, x, key_h, k)
        i = jax.random.categorical(key_i, log_w)
        return jax.tree.map(lambda a: a[i], h)

    return jax.lax.map(one, jax.random.split(key, n), batch_size=100)


def _weighted(
    model: ModelLike, x: Array, key: PRNGKeyArray, k: int
) -> tuple[PyTree, Float[Array, " k"]]:
    h, log_q = draw(model, x, k, key)
    return h, model.log_joint(x, h) - log_q


class Densities(NamedTuple):
    """Three densities on a grid, each [n, n]; the exact one integrates to 1."""

    q: Float[Array, "n n"]
    q_ew: Float[Array, "n n"]
    exact: Float[Array, "n n"]


def square(side: float, n: int) -> Float[Array, "n n 2"]:
    """The centres of n × n cells of the square [−side, side]², [row, column, (h_1, h_2)]."""
    centre = (jnp.arange(n, dtype=jnp.float32) + 0.5) / n * 2 * side - side
    return jnp.stack(jnp.meshgrid(centre, centre, indexing="xy"), axis=-1)


def densities(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    k: int,
    side: float = 4.0,
    n: int = 100,
    repeats: int = 200,
) -> Densities:
    """q(h|x), q_EW(h|x) and p(h|x) on a grid, for a model with one layer of 2 latent units.

    q_EW(h|x) = E[ p(x,h) / ((p(x,h)/q(h|x) + Σ_{j≥2} w_j) / K) ] over h_2 … h_K ~ q, estimated by
    a mean of `repeats` samples; p(h|x) is p(x,h) divided by its integral over the grid.
    `InputError` for a model with other latents, or for a k, n or repeats below 1.
    """
    check_draws(k)
    for name, number in (("n", n), ("repeats", repeats)):
        if number < 1:
            raise InputError(
                f"{name} = {number} was given, but at least 1 is needed; give 1 or more."
            )
    if not 0 < side < math.inf:
        raise InputError(f"side = {side} was given, but it must be positive; give one above 0.")
    if tuple(model.latents) != (2,):
        raise InputError(
            f"The model has {' + '.join(map(str, model.latents))} latent units, but densities need "
            f"exactly 2; train a model with --layers 1 --latents 2."
        )
    points = square(side, n).reshape(-1, 2)
    log_q = model.log_proposal(x, (points,))
    log_p = _in_parts(lambda h: model.log_joint(x, (h,)), points)

    def q_ew(total: Array, key: PRNGKeyArray) -> tuple[Array, None]:
        if k == 1:
            return total + jnp.exp(log_q), None
        _, others = _weighted(model, x, key, k - 1)
        mean = jnp.logaddexp(log_p - log_q, jax.nn.logsumexp(others)) - jnp.log(k)
        return total + jnp.exp(log_p - mean), None

    start = jnp.zeros_like(log_p)
    total, _ = jax.lax.scan(q_ew, start, jax.random.split(key, repeats))
    cell = (2 * side / n) ** 2
    exact = jax.nn.softmax(log_p) / cell
    return Densities(*(a.reshape(n, n) for a in (jnp.exp(log_q), total / repeats, exact)))


def _in_parts(f: Callable[[Array], Array], points: Float[Array, "p 2"]) -> Float[Array, " p"]:
    """f at all points, 500 at a time."""
    return jax.lax.map(lambda h: f(h[None])[0], points, batch_size=500)
