"""Latent units taken out of a model, and held at a value of their own."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from iwae.models.base import AbstractAutoencoder, Conditional

Out = TypeVar("Out")
Slots = TypeVar("Slots", bound="HasSlots")

Keep = tuple[Bool[Array, " _"], ...]
"""Of each layer, which of its units stay."""


class PrunedInput(eqx.Module, Generic[Out]):
    """`network` for a vector of which only the units `kept` are given; the others are at `fill`."""

    network: Callable[[Array], Out]
    kept: Int[Array, " n_kept"]
    fill: Float[Array, " n_in"]

    def __call__(self, v: Float[Array, " n_kept"]) -> Out:
        return self.network(self.fill.at[self.kept].set(v))


class PrunedOutput(eqx.Module):
    """A Gaussian conditional of which only the output units `kept` are left."""

    conditional: Conditional
    kept: Int[Array, " n_kept"]

    def __call__(
        self, v: Float[Array, " n_in"]
    ) -> tuple[Float[Array, " n_kept"], Float[Array, " n_kept"]]:
        mu, log_sigma = self.conditional(v)
        return mu[self.kept], log_sigma[self.kept]


class HasSlots(AbstractAutoencoder):
    """An autoencoder whose networks stand in slots of their own."""

    encoder: eqx.AbstractVar[tuple[Conditional, ...]]
    decoder: eqx.AbstractVar[tuple[Conditional, ...]]
    observation: eqx.AbstractVar[Callable[[Array], Array]]


def prune_parts(model: Slots, keep: Keep, fill: tuple[Array, ...]) -> Slots:
    """The model with every network cut down to the units that stay (`prune`)."""
    kept = [jnp.flatnonzero(mask) for mask in keep]

    def filled(network: Callable[[Array], Out], layer: int) -> PrunedInput[Out]:
        return PrunedInput(network, kept[layer], fill[layer])

    first, *above = model.encoder
    encoder: list[Conditional] = [first, *(filled(q, i) for i, q in enumerate(above))]
    decoder = [filled(p, i + 1) for i, p in enumerate(model.decoder)]
    return dataclasses.replace(
        model,
        encoder=tuple(PrunedOutput(q, kept[i]) for i, q in enumerate(encoder)),
        decoder=tuple(PrunedOutput(p, kept[i]) for i, p in enumerate(decoder)),
        observation=filled(model.observation, 0),
        latents=tuple(len(indices) for indices in kept),
    )


def prune(model: AbstractAutoencoder, keep: Keep, fill: tuple[Array, ...]) -> AbstractAutoencoder:
    """The model with the latent units outside `keep` taken out of p and q, and held at `fill`.

    What remains is again a latent-variable model, so its log-weights bound its own log p(x).
    `InputError` for a model that does not say how.
    """
    return model.pruned(keep, fill)
