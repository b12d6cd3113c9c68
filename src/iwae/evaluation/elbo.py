"""Estimates for one example from draws of q(h|x): the ELBO's terms and posterior means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from iwae.models.base import AbstractAutoencoder


def terms(
    model: AbstractAutoencoder, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int
) -> Float[Array, " terms"]:
    """E_q[log p(x|h_1)] and E_q[log q(h_l|h_{l−1}) − log p(h_l|h_{l+1})] for l = 1 … L, in nats.

    The first minus the sum of the others is the ELBO. For a subclass whose own proposal has a
    single term, there is one other term, for all layers together.
    """
    h = model.propose(x, k, key)
    priors, proposals = model.log_prior_terms(h), model.log_proposal_terms(x, h)
    if len(proposals) == 1:
        priors = [sum(priors[1:], priors[0])]
    kl = [q - p for q, p in zip(proposals, priors, strict=True)]
    return jnp.mean(jnp.stack([model.log_observation(x, h), *kl]), axis=1)


def posterior_means(
    model: AbstractAutoencoder, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int
) -> list[tuple[Array, Array]]:
    """(E_q[h_l|x], its squared standard error) for l = 1 … L."""
    layers = range(1, len(model.latents) + 1)
    keys = jax.random.split(key, len(model.latents))
    return [model.posterior_mean(x, i, k, key) for i, key in zip(layers, keys, strict=True)]
