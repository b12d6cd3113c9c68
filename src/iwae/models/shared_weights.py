"""A network with uncertain weights at a few draws of all its weights, which examples share.

Each group of K / G draws of an example is made and weighted with one draw ω_g of the weights, so
that the weights of a group estimate p(x|ω_g): what black-box α needs (`bounds.black_box_alpha`).
A batch shares the G draws, for otherwise every example needed as many numbers as the networks have
weights; its examples are then dependent, and each has the distribution that it has alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from iwae.errors import InputError
from iwae.models.base import FromNoise, Latents, final
from iwae.models.bayesian import Certain, UncertainAutoencoder
from iwae.models.chains import noise_of
from iwae.models.likelihoods import AbstractLikelihood

Out = TypeVar("Out")


class SharedWeights(FromNoise):
    """An autoencoder whose K draws are in G groups, each with its own draw of the weights."""

    drawn: Certain
    """The autoencoders of all draws of the weights: every array has the leading axis G."""
    groups: int = eqx.field(static=True)
    """G."""
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)

    moves_with_its_parameters: ClassVar[bool] = True
    samples_joint: ClassVar[bool] = False
    by_place: ClassVar[bool] = True

    def __init_subclass__(cls, **given: object) -> None:
        raise final(cls, "SharedWeights")

    @staticmethod
    def of(model: UncertainAutoencoder, groups: int, key: PRNGKeyArray) -> "SharedWeights":
        """G draws of all weights, differentiable in their means and standard deviations."""
        keys = jax.random.split(key, groups)
        drawn = eqx.filter_vmap(model.with_drawn_weights)(keys)
        return SharedWeights(
            drawn=drawn, groups=groups, likelihood=model.likelihood, latents=model.latents
        )

    def with_held_proposal(self) -> "SharedWeights":
        held: Any = self.drawn.with_held_proposal()
        return dataclasses.replace(self, drawn=held)

    def noise(self, k: int, key: PRNGKeyArray) -> Latents:
        """ε_l ~ N(0, I) of K draws, from the data upwards."""
        return noise_of(self.latents, k, key)

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Latents
    ) -> tuple[Latents, Float[Array, " k"]]:
        """(h, log q(h|x; ω_g)) of the draws made from ε."""
        return self._each(lambda model, noise: model.reparametrize(x, noise), epsilon)

    def log_joint(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log p(x, h; ω_g), per draw."""
        return self._each(lambda model, h: model.log_joint(x, h), h)

    def log_proposal(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log q(h|x; ω_g), per draw."""
        return self._each(lambda model, h: model.log_proposal(x, h), h)

    def log_observation(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log p(x|h_1; ω_g), per draw."""
        return self._each(lambda model, h: model.log_observation(x, h), h)

    def log_prior_terms(self, h: Latents) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}; ω_g) for l = 1 … L, per draw."""
        return self._each(lambda model, h: model.log_prior_terms(h), h)

    def _each(self, run: Callable[[Certain, Latents], Out], h: Latents) -> Out:
        """The results of `run` for each group with its weights, one after the other."""
        k = len(h[0])
        if k % self.groups:
            raise InputError(
                f"K = {k} draws were requested in {self.groups} groups, each with its own draw of "
                f"the weights; give a multiple of {self.groups}."
            )
        split = jax.tree.map(lambda a: a.reshape(self.groups, -1, *a.shape[1:]), h)
        found = eqx.filter_vmap(run)(self.drawn, split)
        return jax.tree.map(lambda a: a.reshape(k, *a.shape[2:]), found)
