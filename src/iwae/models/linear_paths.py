"""Linear paths beside the tanh layers of an autoencoder's networks, and a start in closed form.

A table's model starts near the Gaussian N(m, R) of its Gaussian columns in standard units. With the
largest eigenvalues λ of R and their eigenvectors U, the encoder's means start at the principal
components λ^−½ Uᵀ z. The decoder's locations start at 0.9 U λ^½ h, as in probabilistic PCA, and its
scales at what these leave; or, with correlated noise, both start at the marginals.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.models.autoencoder import Autoencoder
from iwae.models.encoding import TableInput
from iwae.models.likelihoods.columns import Columns
from iwae.models.likelihoods.summary import LEAST_EIGENVALUE, Summary
from iwae.models.networks import Gaussian, Linear, Readout, WithInput

NARROWEST, WIDEST = -10.0, 2.0
"""Limits of log σ. A linear path has no others, so that a rare value, tens of standard deviations
away, would make σ = exp(log σ) anything; no posterior is wider than its prior."""

OUTPUT = 0.1
"""The factor of the initial weights of the last layers, so that the linear paths dominate."""

POSTERIOR = -0.3
"""The initial log σ of q(h|x)."""

SHARE = 0.9
"""The share of the principal components' scale that the decoder starts with."""

LEAST = 0.1
"""The least variance that the noise starts with, in units of the marginal variance."""


class Limited(Gaussian):
    """A Gaussian whose log σ stays between `NARROWEST` and `WIDEST`.

    The gradient is that at the limit, so that training leads a log σ beyond it back.
    """

    def __init__(self, of: Gaussian):
        self.features, self.mu, self.log_sigma = of.features, of.mu, of.log_sigma

    def __call__(
        self, v: Float[Array, " n_in"]
    ) -> tuple[Float[Array, " n_out"], Float[Array, " n_out"]]:
        mu, log_sigma = super().__call__(v)
        limited = jnp.clip(log_sigma, NARROWEST, WIDEST)
        return mu, log_sigma + jax.lax.stop_gradient(limited - log_sigma)


def beside(conditional: Gaussian, n_in: int, *, log_sigma: float = 0.0) -> Gaussian:
    """A conditional with a linear path, of zeros, and small other weights of the last layer."""
    return eqx.tree_at(
        lambda q: (q.features, q.mu, q.log_sigma),
        Limited(conditional),
        (
            WithInput(conditional.features),
            _widened(conditional.mu, n_in),
            _widened(conditional.log_sigma, n_in, log_sigma),
        ),
    )


def beside_output(output: Readout, n_in: int) -> Readout:
    """The same for the decoder's output."""
    return Readout(WithInput(output.features), _widened(output.linear, n_in))


def _widened(linear: Linear, n_in: int, bias: float = 0.0) -> Linear:
    weight = jnp.pad(OUTPUT * linear.weight, ((0, 0), (0, n_in)))
    return Linear(weight, linear.bias + bias, linear.precision)


def started(model: Autoencoder, summary: Summary, n_in: int) -> Autoencoder:
    """A model of a table with linear paths, started at its principal components.

    `n_in` is the number of the encoder's features of a row.
    """
    likelihood = model.likelihood
    columns = summary.columns("normal")
    if not isinstance(likelihood, Columns) or not columns:
        return model
    values, vectors = jnp.linalg.eigh(summary.correlation)
    units, every = np.arange(min(model.latents[0], len(columns))), np.arange(len(columns))
    root = jnp.sqrt(jnp.maximum(values, LEAST_EIGENVALUE))[::-1][: len(units)]
    vectors = vectors[:, ::-1][:, : len(units)]
    mu = lambda m: m.encoder[0].mu.weight
    inputs = mu(model).shape[1] - n_in + TableInput.places(summary.forms, columns)
    model = eqx.tree_at(mu, model, _set(mu(model), units, inputs, (vectors / root).T))
    at, part = likelihood.gaussian_part()
    if part.correlation is not None:
        return model
    of = lambda m: (m.observation.linear.weight, m.observation.linear.bias)
    weight, bias = of(model)
    gain = SHARE * vectors * root
    inputs = weight.shape[1] - model.latents[0] + units
    rest = jnp.maximum(1 - jnp.sum(gain**2, axis=1), LEAST)
    bias = bias.at[at + len(columns) + every].set(jnp.log(rest) / 2)
    return eqx.tree_at(of, model, (_set(weight, at + every, inputs, gain), bias))


def _set(
    weight: Float[Array, "n m"], rows: np.ndarray, inputs: np.ndarray, block: Float[Array, "r i"]
) -> Float[Array, "n m"]:
    return weight.at[rows[:, None], inputs[None, :]].set(block)
