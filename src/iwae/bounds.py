"""Bounds on log p(x), as functions of K log-weights.

Each takes an array whose leading axis is K and returns one value per example, in nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Bound = Callable[[Float[Array, "k *batch"]], Float[Array, "*batch"]]


def elbo(log_w: Float[Array, "k *batch"]) -> Float[Array, "*batch"]:
    """The evidence lower bound, (1/K) Σ_i log w_i (Kingma & Welling 2014; Burda et al. §2)."""
    return jnp.mean(log_w, axis=0)


def iwae(log_w: Float[Array, "k *batch"]) -> Float[Array, "*batch"]:
    """L_K = log (1/K) Σ_i w_i (Burda, Grosse & Salakhutdinov 2016, Eq. 8)."""
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


BOUNDS: dict[str, Bound] = {"vae": elbo, "iwae": iwae}
"""Objectives by the name that `--objective` takes."""
