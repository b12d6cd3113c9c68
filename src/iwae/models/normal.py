"""Log-densities of Gaussians with diagonal covariance."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.models.likelihoods import LOG_2PI


def log_normal(
    h: Float[Array, "*#b d"], mu: Float[Array, "*#b d"], log_sigma: Float[Array, "*#b d"]
) -> Float[Array, "*#b"]:
    """log N(h; μ, diag σ²), summed over the last axis."""
    standard = (h - mu) * jnp.exp(-log_sigma)
    return -jnp.sum(0.5 * standard**2 + log_sigma, axis=-1) - 0.5 * LOG_2PI * h.shape[-1]


def log_standard_normal(h: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """log N(h; 0, I), summed over the last axis."""
    return -0.5 * jnp.sum(h**2, axis=-1) - 0.5 * LOG_2PI * h.shape[-1]
