"""Pruning: latent units are removed from a model and fixed at given values."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

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

    encoder: eqx.AbstractVar[PyTree]
    decoder: eqx.AbstractVar[tuple[Conditional, ...]]
    observation: eqx.AbstractVar[Callable[[Array], Array]]


def prune_parts(model: Slots, keep: Keep, fill: tuple[Array, ...]) -> Slots:
    """The model with every network reduced to the kept units (`prune`)."""
    kept = indices_of(keep)
    first, *above = model.encoder
    below = zip(above, kept[:-1], fill[:-1], strict=True)
    encoder: list[Conditional] = [first, *(PrunedInput(q, own, at) for q, own, at in below)]
    return dataclasses.replace(
        model,
        encoder=tuple(PrunedOutput(q, own) for q, own in zip(encoder, kept, strict=True)),
        decoder=prune_decoder(model.decoder, kept, fill),
        observation=PrunedInput(model.observation, kept[0], fill[0]),
        latents=tuple(map(len, kept)),
    )


def indices_of(keep: Keep) -> tuple[Int[Array, " _"], ...]:
    """For each layer, the indices of the units to keep."""
    return tuple(jnp.flatnonzero(mask) for mask in keep)


def prune_decoder(
    decoder: tuple[Conditional, ...], kept: tuple[Int[Array, " _"], ...], fill: tuple[Array, ...]
) -> tuple[Conditional, ...]:
    """Every p(h_l|h_{l+1}) with the kept units of both layers, those above fixed at `fill`."""
    between = zip(decoder, kept[:-1], kept[1:], fill[1:], strict=True)
    return tuple(
        PrunedOutput(PrunedInput(p, above, value), own) for p, own, above, value in between
    )


def prune(model: AbstractAutoencoder, keep: Keep, fill: tuple[Array, ...]) -> AbstractAutoencoder:
    """The model with the latent units outside `keep` removed from p and q and fixed at `fill`.

    What remains is again a latent-variable model, so its log-weights bound its own log p(x).
    `InputError` for a model that does not define how.
    """
    return model.pruned(keep, fill)
