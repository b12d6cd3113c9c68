"""Networks for one example: tanh layers, and Gaussian conditionals with diagonal covariance."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae.config.schema import Precision

Part = TypeVar("Part")


class Linear(eqx.Module):
    """v ↦ W v + b, the product taken at `precision`.

    Computed as v Wᵀ: mapped over draws, XLA's CPU compiler then needs no transposed copies.
    """

    weight: Float[Array, "n_out n_in"]
    bias: Float[Array, " n_out"]
    precision: Precision = eqx.field(static=True, default="float32")

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        return PRODUCTS[self.precision](v, self.weight.T) + self.bias


def _bfloat16(v: Array, w: Array) -> Array:
    low = lambda a: a.astype(jnp.bfloat16)
    return jnp.dot(low(v), low(w), preferred_element_type=jnp.float32)


PRODUCTS: dict[Precision, Callable[[Array, Array], Array]] = {
    "float32": partial(jnp.dot, precision="highest"),
    "tf32": partial(jnp.dot, precision="tensorfloat32"),
    "bfloat16": _bfloat16,
}
"""v W by precision. All sum in float32; tf32 and bfloat16 round the factors to 10 and 7 bits after
the leading one. Processors without TF32 multiply in float32 there."""


def at_precision(model: PyTree, precision: Precision) -> PyTree:
    """The model with every `Linear` at this precision."""

    def lowered(part: Part) -> Part | Linear:
        if isinstance(part, Linear):
            return Linear(part.weight, part.bias, precision)
        return part

    return jax.tree.map(lowered, model, is_leaf=lambda part: isinstance(part, Linear))


def glorot_linear(n_in: int, n_out: int, *, key: PRNGKeyArray) -> Linear:
    """A linear map with weights U[±√(6/(n_in+n_out))] and zero biases (Glorot & Bengio 2010)."""
    weight = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)(
        key, (n_out, n_in), jnp.float32
    )
    return Linear(weight, jnp.zeros(n_out, jnp.float32))


class MLP(eqx.Module):
    """Deterministic tanh layers, v ↦ tanh(W_n … tanh(W_1 v + b_1) … + b_n)."""

    layers: tuple[Linear, ...]

    def __init__(self, n_in: int, widths: Sequence[int], *, key: PRNGKeyArray):
        sizes = [n_in, *widths]
        keys = jax.random.split(key, max(len(widths), 1))
        self.layers = tuple(
            glorot_linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=False)
        )

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        for layer in self.layers:
            v = jnp.tanh(layer(v))
        return v


class WithInput(eqx.Module):
    """v ↦ (features of v, v), so that what reads it has a linear path beside the features."""

    features: Callable[[Array], Array]

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        return jnp.concatenate([self.features(v), v])


class Readout(eqx.Module):
    """A linear map of the features, any callable v [n_in] ↦ [n_features]."""

    features: Callable[[Array], Array]
    linear: Linear

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        return self.linear(self.features(v))


class Gaussian(eqx.Module):
    """N(μ(v), diag σ(v)²): μ and log σ are linear maps of the features (Burda et al. §5).

    `features` is any callable v [n_in] ↦ [n_features].
    """

    features: Callable[[Array], Array]
    mu: Linear
    log_sigma: Linear

    def __init__(
        self,
        features: Callable[[Array], Array],
        n_features: int,
        n_out: int,
        *,
        key: PRNGKeyArray,
    ):
        key_mu, key_sigma = jax.random.split(key)
        self.features = features
        self.mu = glorot_linear(n_features, n_out, key=key_mu)
        self.log_sigma = glorot_linear(n_features, n_out, key=key_sigma)

    def __call__(
        self, v: Float[Array, " n_in"]
    ) -> tuple[Float[Array, " n_out"], Float[Array, " n_out"]]:
        """(μ, log σ), each [n_out]."""
        features = self.features(v)
        return self.mu(features), self.log_sigma(features)


class Standardize(eqx.Module):
    """v ↦ (v − center) / spread with fixed center and spread, in front of `network`."""

    network: Callable[[Array], Array]
    center: Float[Array, " n_in"]
    spread: Float[Array, " n_in"]

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        center, spread = jax.lax.stop_gradient((self.center, self.spread))
        return self.network((v - center) / spread)
