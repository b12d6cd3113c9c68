"""The ladder VAE: q(h|x) from the top downwards (Sønderby et al. 2016).

A deterministic path d_l(d_{l−1}) with d_0 = x goes upwards and gives μ̂_l, σ̂_l of every layer. Draws
then go downwards: h_L ~ N(μ̂_L, σ̂_L²), and below it the evidence of x is combined with the prior
p(h_l|h_{l+1}) = N(μ_p, σ_p²), each weighted by its precision:

    q(h_l|h_{l+1}, x) = N(μ_q, σ_q²),  1/σ_q² = 1/σ̂_l² + 1/σ_p²,  μ_q = σ_q² (μ̂_l/σ̂_l² + μ_p/σ_p²).

Where σ̂_l is infinite q is the prior, and the importance weights do not depend on h_l. The published
networks normalise over batches; these do not, so that no example has a part in another's weights.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from iwae.models.autoencoder import Autoencoder
from iwae.models.base import Conditional, FromNoise, Latents, final, frozen
from iwae.models.chains import Generation, WithGeneration, noise_of
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.normal import log_normal, log_standard_normal
from iwae.models.priors import Prior
from iwae.models.pruning import HasSlots, Keep, PrunedInput, indices_of, prune_decoder

Ladder = TypeVar("Ladder", bound=HasSlots)
Moments = tuple[Array, Array]
"""(μ, log σ)."""


class Upwards(eqx.Module):
    """(μ̂_l, log σ̂_l) of every layer, from the data upwards, by a deterministic path.

    The features of each Gaussian are d_l, a function of those below it, d_{l−1}.
    """

    rungs: tuple[Any, ...]
    """`Gaussian`s, or others with their features, μ and log σ."""

    def __call__(self, x: Float[Array, " d"]) -> list[Moments]:
        found, d = [], x
        for rung in self.rungs:
            d = rung.features(d)
            found.append((rung.mu(d), rung.log_sigma(d)))
        return found


class PrunedUpwards(eqx.Module):
    """The evidence of x for the units `kept` of each layer."""

    upwards: Callable[[Array], list[Moments]]
    kept: tuple[Int[Array, " _"], ...]

    def __call__(self, x: Float[Array, " d"]) -> list[Moments]:
        every = zip(self.upwards(x), self.kept, strict=True)
        return [(mu[kept], log_sigma[kept]) for (mu, log_sigma), kept in every]


def combined(evidence: Moments, prior: Moments) -> Moments:
    """(μ_q, log σ_q) of N(μ̂, σ̂²) · N(μ_p, σ_p²), normalised (Sønderby et al. 2016)."""
    (mu, log_sigma), (mu_p, log_sigma_p) = evidence, prior
    share = jax.nn.sigmoid(2 * (log_sigma_p - log_sigma))
    log_precision = jnp.logaddexp(-2 * log_sigma, -2 * log_sigma_p)
    return mu_p + share * (mu - mu_p), -0.5 * log_precision


@dataclass(frozen=True)
class Downwards:
    """q(h|x) = q(h_L|x) q(h_{L−1}|h_L, x) … q(h_1|h_2, x)."""

    encoder: Callable[[Array], list[Moments]]
    """The evidence of x for every layer, from the data upwards."""
    decoder: tuple[Conditional, ...]
    """p(h_1|h_2), p(h_2|h_3), …, from the data upwards."""
    latents: tuple[int, ...]

    def noise(self, k: int, key: PRNGKeyArray) -> Latents:
        """ε_l ~ N(0, I) of K draws, from the data upwards."""
        return noise_of(self.latents, k, key)

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Latents
    ) -> tuple[Latents, Float[Array, " k"]]:
        """K draws and log q(h|x) = −Σ_l Σ_u (ε² / 2 + log σ_q + log(2π) / 2) of each."""
        draws: list[Array] = []
        log_q = jnp.zeros(len(epsilon[0]), jnp.float32)
        evidence = self.encoder(x)
        for layer in reversed(range(len(self.latents))):
            mu, log_sigma = self._moments(evidence, layer, draws[0] if draws else None)
            draws.insert(0, mu + jnp.exp(log_sigma) * epsilon[layer])
            log_q += log_standard_normal(epsilon[layer]) - jnp.sum(log_sigma, axis=-1)
        return tuple(draws), log_q

    def terms(self, x: Float[Array, " d"], h: Latents) -> list[Float[Array, " k"]]:
        """log q(h_l|h_{l+1}, x) for l = 1 … L, where the last is log q(h_L|x)."""
        evidence, above = self.encoder(x), (*h[1:], None)
        return [
            log_normal(own, *self._moments(evidence, layer, given))
            for layer, (own, given) in enumerate(zip(h, above, strict=True))
        ]

    def mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] and its squared standard error.

        For the top layer it is exactly μ̂_L; below, the average over k draws of h_{l+1} of μ_q.
        """
        if layer == len(self.latents):
            mu, _ = self.encoder(x)[-1]
            return mu, jnp.zeros_like(mu)
        mu = self.means(x, self.reparametrize(x, self.noise(k, key))[0], layer)
        return jnp.mean(mu, axis=0), jnp.var(mu, axis=0, ddof=1) / k

    def means(self, x: Float[Array, " d"], h: Latents, layer: int) -> Float[Array, "k d_l"]:
        """The mean of q(h_l|h_{l+1}, x) at each draw."""
        above = (*h[1:], None)[layer - 1]
        mu, _ = self._moments(self.encoder(x), layer - 1, above)
        return jnp.broadcast_to(mu, h[layer - 1].shape)

    def _moments(
        self, evidence: list[Moments], layer: int, above: Float[Array, "k _"] | None
    ) -> Moments:
        """(μ_q, log σ_q) of a layer, counted from 0, given the draws of the layer above."""
        if above is None:
            return evidence[layer]
        return combined(evidence[layer], jax.vmap(self.decoder[layer])(above))


class LadderAutoencoder(FromNoise, WithGeneration, HasSlots):
    """An autoencoder of L Gaussian layers whose q(h|x) is a ladder (module docstring).

    p(x, h) is that of `Autoencoder`, and with one layer so is q(h|x). The decoder is a part of
    q(h|x): gradients of a bound are those of both its roles. Where φ follows another bound than θ,
    or a divergence of its own, it is held constant in q(h|x).
    """

    encoder: Callable[[Array], list[Moments]]
    """The evidence of x for every layer: `Upwards`, or any callable module."""
    decoder: tuple[Conditional, ...]
    """p(h_1|h_2), p(h_2|h_3), …, from the data upwards: one fewer than the layers."""
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)
    """Units of h_1, …, h_L."""
    top: Prior | None = eqx.field(default=None, kw_only=True)
    """p(h_L); None for N(0, I)."""
    held: bool = eqx.field(static=True, default=False, kw_only=True)
    """Whether the decoder is held constant in q(h|x)."""

    moves_with_its_parameters: ClassVar[bool] = True

    def __init_subclass__(cls, **given: object) -> None:
        raise final(cls, "LadderAutoencoder")

    @property
    def recognition(self) -> Downwards:
        """q(h|x)."""
        decoder = frozen(self.decoder) if self.held else self.decoder
        return Downwards(self.encoder, decoder, self.latents)

    @property
    def generation(self) -> Generation:
        """p(x, h)."""
        return Generation(self.decoder, self.observation, self.likelihood, self.latents, self.top)

    def with_held_proposal(self) -> "LadderAutoencoder":
        return dataclasses.replace(self, held=True)

    def noise(self, k: int, key: PRNGKeyArray) -> Latents:
        """ε_l ~ N(0, I) of K draws, from the data upwards."""
        return self.recognition.noise(k, key)

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Latents
    ) -> tuple[Latents, Float[Array, " k"]]:
        """(h, log q(h|x)) of the draws made from ε; the path upwards is computed once for all K."""
        return self.recognition.reparametrize(x, epsilon)

    def log_proposal(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log q(h|x) = Σ_l log q(h_l|h_{l+1}, x), per draw."""
        return sum(self.recognition.terms(x, h), jnp.zeros(len(h[0]), jnp.float32))

    def log_proposal_terms(self, x: Float[Array, " d"], h: Latents) -> list[Float[Array, " k"]]:
        """log q(h_l|h_{l+1}, x) for l = 1 … L, where the last is log q(h_L|x)."""
        return self.recognition.terms(x, h)

    def posterior_mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] under q, exactly for the top layer, and its squared standard error."""
        return self.recognition.mean(x, layer, k, key)

    def pruned(self, keep: Keep, fill: tuple[Array, ...]) -> "LadderAutoencoder":
        """The model with the units outside `keep` removed from p and q and fixed at `fill`."""
        pruned = prune_ladder(self, keep, fill)
        if self.top is None:
            return pruned
        return dataclasses.replace(pruned, top=self.top.marginal(jnp.flatnonzero(keep[-1])))


def as_ladder(model: Autoencoder) -> LadderAutoencoder:
    """The ladder whose path upwards has the Gaussians of the model's encoder.

    Each of them but the first has to take the features of the one before it.
    """
    return LadderAutoencoder(
        encoder=Upwards(model.encoder),
        decoder=model.decoder,
        observation=model.observation,
        likelihood=model.likelihood,
        latents=model.latents,
        top=model.top,
    )


def prune_ladder(model: Ladder, keep: Keep, fill: tuple[Array, ...]) -> Ladder:
    """The model with every network of a ladder reduced to the kept units (`prune`)."""
    kept = indices_of(keep)
    return dataclasses.replace(
        model,
        encoder=PrunedUpwards(model.encoder, kept),
        decoder=prune_decoder(model.decoder, kept, fill),
        observation=PrunedInput(model.observation, kept[0], fill[0]),
        latents=tuple(map(len, kept)),
    )
