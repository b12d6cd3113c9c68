"""Pruning: latent units are removed from a model and fixed at given values."""

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
"""For each layer, which of its units to keep."""


class PrunedInput(eqx.Module, Generic[Out]):
    """`network` with the units `kept` as input; the others are fixed at `fill`."""

    network: Callable[[Array], Out]
    kept: Int[Array, " n_kept"]
    fill: Float[Array, " n_in"]

    def __call__(self, v: Float[Array, " n_kept"]) -> Out:
        return self.network(self.fill.at[self.kept].set(v))


class PrunedOutput(eqx.Module):
    """A Gaussian conditional with only the output units `kept`."""

    conditional: Conditional
    kept: Int[Array, " n_kept"]

    def __call__(
        self, v: Float[Array, " n_in"]
    ) -> tuple[Float[Array, " n_kept"], Float[Array, " n_kept"]]:
        mu, log_sigma = self.conditional(v)
        return mu[self.kept], log_sigma[self.kept]


class HasSlots(AbstractAutoencoder):
    """An autoencoder with its networks in the slots encoder, decoder and observation."""

    encoder: eqx.AbstractVar[tuple[Conditional, ...]]
    decoder: eqx.AbstractVar[tuple[Conditional, ...]]
    observation: eqx.AbstractVar[Callable[[Array], Array]]


def prune_parts(model: Slots, keep: Keep, fill: tuple[Array, ...]) -> Slots:
    """The model with every network reduced to the kept units (`prune`)."""
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
    """The model with the latent units outside `keep` removed from p and q and fixed at `fill`.

    What remains is again a latent-variable model, so its log-weights bound its own log p(x).
    `InputError` for a model that does not define how.
    """
    return model.pruned(keep, fill)
