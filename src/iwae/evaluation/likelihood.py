"""L_K of one example, streamed over K, and the value of any bound."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from iwae._utils.checks import check_draws
from iwae.bounds import BoundFunction
from iwae.models.base import ModelLike, block_of, draw_log_weights

CHUNK = 250
"""Importance samples of one example per step of the stream over K."""

REPETITIONS = 2**32 - 4
"""Folded into an example's key for further estimates."""


def log_likelihood(
    model: ModelLike, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int, chunk: int = CHUNK
) -> Float[Array, ""]:
    """L_K = log (1/K) Σ_i w_i of one example, in nats (Burda et al. Eq. 8).

    Streams over K in chunks, in memory that does not grow with K. It sums the weights relative to
    the largest so far, so that no sample is lost in rounding. `InputError` for a K below 1.
    """
    check_draws(k)
    block = block_of(model)
    chunk = min(k, max(block, chunk // block * block))

    def add(carry: tuple[Array, Array], size: int, start: Array | int) -> tuple[Array, Array]:
        top, total = carry
        log_w = draw_log_weights(model, x, size, jax.random.fold_in(key, start))
        peak = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(log_w)))
        by = jnp.where(jnp.isfinite(peak), peak, 0)
        return peak, total * jnp.exp(top - by) + jnp.sum(jnp.exp(log_w - by))

    kind = jax.eval_shape(lambda: draw_log_weights(model, x, chunk, key)).dtype
    rest, carry = k % chunk, (jnp.array(-jnp.inf, kind), jnp.array(0.0, kind))
    starts = jnp.arange(0, k - rest, chunk)
    carry, _ = jax.lax.scan(lambda carry, start: (add(carry, chunk, start), None), carry, starts)
    top, total = add(carry, rest, k - rest) if rest else carry
    return jnp.where(jnp.isfinite(top), top, 0) + jnp.log(total / k)


def repetitions(key: PRNGKeyArray, n: int) -> Key[Array, " n"]:
    """Keys for n further estimates of one example, [n], none of which `log_likelihood` uses."""
    return jax.random.split(jax.random.fold_in(key, REPETITIONS), n)


def bound_value(
    model: ModelLike, x: Float[Array, " d"], key: PRNGKeyArray, *, bound: BoundFunction, k: int
) -> Float[Array, ""]:
    """A training bound of one example with K importance samples, in nats."""
    return bound(draw_log_weights(model, x, k, key))
