"""Priors p(h_L) of the top layer other than N(0, I)."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from iwae.models.normal import log_normal


class Prior(eqx.Module):
    """p(h_L), with learned parameters."""

    @abstractmethod
    def log_prob(self, h: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(h_L) in nats."""

    @abstractmethod
    def sample(self, n: int, key: PRNGKeyArray) -> Float[Array, "n d"]:
        """n draws h_L ~ p(h_L)."""

    @abstractmethod
    def marginal(self, kept: Int[Array, " u"]) -> "Prior":
        """The prior of some of the units, with the others integrated out."""


class Mixture(Prior):
    """p(h) = Σ_c π_c N(h; μ_c, diag σ_c²)."""

    logits: Float[Array, " c"]
    """log π_c, up to a constant."""
    mu: Float[Array, "c d"]
    log_sigma: Float[Array, "c d"]

    @staticmethod
    def of(components: int, d: int, *, key: PRNGKeyArray) -> "Mixture":
        """Equal weights, centres from N(0, I) / 2, and scales that keep the variance near 1."""
        mu = 0.5 * jax.random.normal(key, (components, d), jnp.float32)
        log_sigma = jnp.full((components, d), jnp.log(0.75) / 2, jnp.float32)
        return Mixture(jnp.zeros(components, jnp.float32), mu, log_sigma)

    def log_prob(self, h: Float[Array, " d"]) -> Float[Array, ""]:
        of_each = log_normal(h[None], self.mu, self.log_sigma)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + of_each)

    def sample(self, n: int, key: PRNGKeyArray) -> Float[Array, "n d"]:
        key_c, key_h = jax.random.split(key)
        c = jax.random.categorical(key_c, self.logits, shape=(n,))
        noise = jax.random.normal(key_h, (n, self.mu.shape[1]), jnp.float32)
        return self.mu[c] + jnp.exp(self.log_sigma[c]) * noise

    def marginal(self, kept: Int[Array, " u"]) -> "Mixture":
        return Mixture(self.logits, self.mu[:, kept], self.log_sigma[:, kept])
