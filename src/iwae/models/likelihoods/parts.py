"""A part of a table's likelihood: the m columns of one kind, vectorised.

Each part takes its own parameters, flat [size], and its own columns x [m], NaN where missing.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Part(eqx.Module):
    """p(x|h) of the columns of one kind; at parameters of 0 it is near the marginals."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of parameters."""

    @abstractmethod
    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        """log p(x_j|x_rest, h) of each column in nats; 0 where missing, −∞ outside the support."""

    def log_prob(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, ""]:
        """log p(x_o|h) in nats, by default the sum of `log_probs`."""
        return jnp.sum(self.log_probs(parameters, x))

    @abstractmethod
    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        """x with its missing values drawn from p(x_m|x_o, h)."""

    @abstractmethod
    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        """Means of numbers and probabilities of categories under p(x_m|x_o, h)."""

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " m"]:
        """The best values, from an average of `prediction`."""
        return prediction


def outside(seen: Array, inside: Array, terms: Array) -> Array:
    """`terms`, 0 where missing and −∞ outside the support."""
    return jnp.where(seen, jnp.where(inside, terms, -jnp.inf), 0.0)
