"""The two halves of an autoencoder of L Gaussian layers: q(h|x), and p(h) with p(x|h).

They are views of a model's networks and not modules, so they do not occur in tree paths.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae._utils.distributed import computing
from iwae.models.base import AbstractAutoencoder, Conditional, Latents
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.normal import log_normal, log_standard_normal
from iwae.models.priors import Prior


def noise_of(latents: tuple[int, ...], k: int, key: PRNGKeyArray) -> Latents:
    """ε_l ~ N(0, I) of K draws of these units, from the data upwards."""
    keys = jax.random.split(key, len(latents))
    draw = lambda key, d: jax.random.normal(key, (k, d), jnp.float32)
    return tuple(draw(*of) for of in zip(keys, latents, strict=True))


@dataclass(frozen=True)
class Recognition:
    """q(h|x) = q(h_1|x) q(h_2|h_1) … q(h_L|h_{L−1})."""

    encoder: tuple[Conditional, ...]
    """q(h_1|x), q(h_2|h_1), …, from the data upwards."""
    latents: tuple[int, ...]

    def noise(self, k: int, key: PRNGKeyArray) -> Latents:
        """ε_l ~ N(0, I) of K draws, from the data upwards."""
        return noise_of(self.latents, k, key)

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Latents
    ) -> tuple[Latents, Float[Array, " k"]]:
        """K draws and log q(h|x) = −Σ_l Σ_u (ε² / 2 + log σ + log(2π) / 2) of each, from ε itself.

        The gradient then passes through each conditional once, instead of once for the draws and
        once for their density.
        """
        draws: list[Array] = []
        log_q = jnp.zeros(len(epsilon[0]), jnp.float32)
        for conditional, noise in zip(self.encoder, epsilon, strict=True):
            mu, log_sigma = jax.vmap(conditional)(draws[-1]) if draws else conditional(x)
            draws.append(mu + jnp.exp(log_sigma) * noise)
            log_q += log_standard_normal(noise) - jnp.sum(log_sigma, axis=-1)
        return tuple(draws), log_q

    def terms(self, x: Float[Array, " d"], h: Latents) -> list[Float[Array, " k"]]:
        """log q(h_l|h_{l−1}) for l = 1 … L, where the first is log q(h_1|x)."""
        given = zip(h[1:], h[:-1], self.encoder[1:], strict=True)
        terms = [log_normal(above, *jax.vmap(q)(below)) for above, below, q in given]
        mu, log_sigma = self.encoder[0](x)
        return [log_normal(h[0], mu, log_sigma), *terms]

    def log_prob(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log q(h|x) = Σ_l log q(h_l|h_{l−1}), per draw."""
        return sum(self.terms(x, h), jnp.zeros(h[0].shape[0], jnp.float32))

    def mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] and its squared standard error.

        For l = 1 it is exactly the encoder's mean; above, the average over k draws of h_{l−1} of
        the mean of q(h_l|h_{l−1}).
        """
        if layer == 1:
            mu, _ = self.encoder[0](x)
            return mu, jnp.zeros_like(mu)
        mu = self.means(x, self.reparametrize(x, self.noise(k, key))[0], layer)
        return jnp.mean(mu, axis=0), jnp.var(mu, axis=0, ddof=1) / k

    def means(self, x: Float[Array, " d"], h: Latents, layer: int) -> Float[Array, "k d_l"]:
        """The mean of q(h_l|h_{l−1}) at each draw."""
        if layer == 1:
            return jnp.broadcast_to(self.encoder[0](x)[0], h[0].shape)
        return jax.vmap(self.encoder[layer - 1])(h[layer - 2])[0]


@dataclass(frozen=True)
class Generation:
    """p(x, h) = p(h_L) p(h_{L−1}|h_L) … p(h_1|h_2) p(x|h_1) with p(h_L) = N(0, I), or `top`."""

    decoder: tuple[Conditional, ...]
    """p(h_1|h_2), p(h_2|h_3), …, from the data upwards."""
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...]
    top: Prior | None = None

    def parameters(self, h1: Float[Array, " d1"]) -> Float[Array, "p d"]:
        """The likelihood's parameters at h_1."""
        return self.observation(h1).reshape(self.likelihood.n_parameters, -1)

    def log_observation(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log p(x|h_1), per draw."""
        with computing(h):  # numpyro computes in JAX's default precision
            return jax.vmap(lambda h1: self.likelihood.log_prob(self.parameters(h1), x))(h[0])

    def prior_terms(self, h: Latents) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}) for l = 1 … L, where the last is log p(h_L)."""
        given = zip(h[:-1], h[1:], self.decoder, strict=True)
        terms = [log_normal(below, *jax.vmap(p)(above)) for below, above, p in given]
        if self.top is not None:
            return [*terms, jax.vmap(self.top.log_prob)(h[-1])]
        return [*terms, log_standard_normal(h[-1])]

    def prior(self, n: int, key: PRNGKeyArray) -> Latents:
        """n ancestral draws through p(h_L) … p(h_1|h_2), from the data upwards."""
        keys = jax.random.split(key, len(self.latents))
        if self.top is None:
            draws = [jax.random.normal(keys[0], (n, self.latents[-1]), jnp.float32)]
        else:
            draws = [self.top.sample(n, keys[0])]
        for conditional, key_l in zip(reversed(self.decoder), keys[1:], strict=True):
            mu, log_sigma = jax.vmap(conditional)(draws[0])
            noise = jax.random.normal(key_l, mu.shape, jnp.float32)
            draws.insert(0, mu + jnp.exp(log_sigma) * noise)
        return tuple(draws)

    def draw(self, h1: Float[Array, " d1"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """x ~ p(x|h_1)."""
        with computing(h1):
            return self.likelihood.distribution(self.parameters(h1)).sample(key).astype(jnp.float32)

    def expected(self, h1: Float[Array, " d1"]) -> Float[Array, " d"]:
        """E[x|h_1]."""
        return self.likelihood.expected(self.parameters(h1))


class WithGeneration(AbstractAutoencoder):
    """An autoencoder with the p(x, h) of a `Generation`, whatever its draws hold beside h."""

    @property
    @abstractmethod
    def generation(self) -> Generation:
        """p(x, h)."""

    def log_observation(self, x: Float[Array, " d"], h: PyTree) -> Float[Array, " k"]:
        """log p(x|h_1), per draw."""
        return self.generation.log_observation(x, self.layers(h))

    def log_prior_terms(self, h: PyTree) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}) for l = 1 … L, where the last is log p(h_L)."""
        return self.generation.prior_terms(self.layers(h))

    def prior(self, n: int, key: PRNGKeyArray) -> Latents:
        """n ancestral draws h ~ p(h), from the data upwards."""
        return self.generation.prior(n, key)

    def draw(self, h1: Float[Array, " d1"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """x ~ p(x|h_1)."""
        return self.generation.draw(h1, key)

    def expected(self, h1: Float[Array, " d1"]) -> Float[Array, " d"]:
        """E[x|h_1]."""
        return self.generation.expected(h1)
