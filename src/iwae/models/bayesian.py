"""Networks with uncertain weights (IWAEU): Gaussian posteriors over the weights and biases.

p(x|h) = ∫ p(x|h; θ) q(θ) dθ and q(h|x) = ∫ q(h|x; φ) q(φ) dφ, where q(θ) and q(φ) are factorised
Gaussians. Every importance sample i has its own weights,

    w_i = p(x|h_i; θ_i) p(h_i) / q(h_i|x; φ_i),   θ_i ~ q(θ), φ_i ~ q(φ),

the same φ_i for h_i and for its density, so that E[w_i] = p(x) and L_K is a lower bound of log p(x)
(Hernández-Lobato et al., slides of 2016) of each single example; see `weight_kl` for what is not
bounded. Instead of the weights, their product with a vector v is drawn, by local reparametrisation
(Kingma et al. 2015): W v + b is Gaussian with mean μ_W v + μ_b and variance σ_W² v² + σ_b².
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, TypeGuard, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from iwae.models.autoencoder import Autoencoder
from iwae.models.base import Conditional, FromNoise, Latents, final
from iwae.models.chains import noise_of
from iwae.models.ladder import LadderAutoencoder, prune_ladder
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.networks import Linear
from iwae.models.pruning import HasSlots, Keep, prune_parts

Certain = Autoencoder | LadderAutoencoder
"""What a model with uncertain weights is for one draw of them."""
Part = TypeVar("Part")
Out = TypeVar("Out")

TINY = 1e-30
"""Added to variances, so that the square root has a finite derivative at 0."""

WEIGHTS = 2**32 - 1
"""Number that the key of a draw is folded with for its weights; ε uses the key itself."""


class UncertainLinear(eqx.Module):
    """v ↦ W v + b with independent W_ij ~ N(μ_ij, σ_ij²) and b_i ~ N(μ_i, σ_i²)."""

    mean: Linear
    log_sigma: Linear
    """log σ of weights and biases, in a map of the same shape."""

    @staticmethod
    def around(linear: Linear, sigma: float) -> "UncertainLinear":
        """The uncertain map with the weights of `linear` as means, and one σ for all."""
        same = lambda a: jnp.full_like(a, jnp.log(sigma))
        return UncertainLinear(linear, jax.tree.map(same, linear))

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        """W v + b at the mean weights."""
        return self.mean(v)

    def draw(self, v: Float[Array, " n_in"], key: PRNGKeyArray) -> Float[Array, " n_out"]:
        """W v + b for one draw of W and b."""
        variance = jax.tree.map(lambda a: jnp.exp(2 * a), self.log_sigma)
        mean = self.mean(v)
        noise = jax.random.normal(key, mean.shape, jnp.float32)
        return mean + jnp.sqrt(variance(v**2) + TINY) * noise

    def drawn(self, key: PRNGKeyArray) -> Linear:
        """The map of one draw of W and b."""
        means, structure = jax.tree.flatten(self.mean)
        keys = jax.random.split(key, len(means))
        draw = lambda key, mu: jax.random.normal(key, mu.shape, jnp.float32)
        noise = list(map(draw, keys, means))
        moved = lambda mu, log_sigma, epsilon: mu + jnp.exp(log_sigma) * epsilon
        return jax.tree.map(moved, self.mean, self.log_sigma, jax.tree.unflatten(structure, noise))

    def kl(self, prior_sigma: float) -> Float[Array, ""]:
        """KL(q ‖ N(0, s²)) over all weights and biases, in nats."""
        pairs = zip(jax.tree.leaves(self.mean), jax.tree.leaves(self.log_sigma), strict=True)
        return sum(
            (_kl(mu, log_sigma, prior_sigma) for mu, log_sigma in pairs), jnp.zeros((), jnp.float32)
        )


def _kl(mu: Array, log_sigma: Array, prior_sigma: float) -> Float[Array, ""]:
    ratio = log_sigma - jnp.log(prior_sigma)
    return jnp.sum(0.5 * (jnp.exp(2 * ratio) + (mu / prior_sigma) ** 2 - 1) - ratio)


class Drawn(eqx.Module):
    """An uncertain map fixed at one draw, which the key determines."""

    linear: UncertainLinear
    key: PRNGKeyArray

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        return self.linear.draw(v, self.key)


class Draws(NamedTuple):
    """K draws of latents, and the key of the weights that belong to each."""

    latents: Latents
    weights: Key[Array, " k"]


class Slots(TypedDict):
    """The parts of an `Autoencoder` or a ladder by name; their order numbers the uncertain maps."""

    encoder: Any
    decoder: tuple[Conditional, ...]
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...]


def _slots(model: "Certain | UncertainAutoencoder") -> Slots:
    return {
        "encoder": model.encoder,
        "decoder": model.decoder,
        "observation": model.observation,
        "likelihood": model.likelihood,
        "latents": model.latents,
    }


class UncertainAutoencoder(FromNoise, HasSlots):
    """An autoencoder whose uncertain weights are drawn anew for every draw; its draws are `Draws`.

    For one draw of all weights it is an `Autoencoder`, or a `LadderAutoencoder` (`at`).
    """

    encoder: Any
    """That of an `Autoencoder`, or of a ladder."""
    decoder: tuple[Conditional, ...]
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)
    ladder: bool = eqx.field(static=True, default=False, kw_only=True)
    held: bool = eqx.field(static=True, default=False, kw_only=True)
    """Whether a ladder's decoder is held constant in q(h|x)."""

    def __init_subclass__(cls, **given: object) -> None:
        raise final(cls, "UncertainAutoencoder")

    @staticmethod
    def around(
        model: Certain,
        *,
        which: Literal["encoder", "decoder", "both"],
        sigma: float,
    ) -> "UncertainAutoencoder":
        """The model with uncertain weights in these networks, whose means are its weights."""
        slots = _slots(model)
        if which != "decoder":
            slots["encoder"] = _uncertain(model.encoder, sigma)
        if which != "encoder":
            slots["decoder"] = _uncertain(model.decoder, sigma)
            slots["observation"] = _uncertain(model.observation, sigma)
        return UncertainAutoencoder(**slots, ladder=isinstance(model, LadderAutoencoder))

    def at(self, key: PRNGKeyArray) -> Certain:
        """The autoencoder of one draw of all weights."""
        return self._with(_drawn(_slots(self), key))

    def with_drawn_weights(self, key: PRNGKeyArray) -> Certain:
        """The autoencoder of one draw of all weights themselves.

        It has the distribution of `at`, also where it is applied to several inputs, for which `at`
        draws each product as if it were alone.
        """
        count = itertools.count()
        drawn = lambda part: part.drawn(jax.random.fold_in(key, next(count)))
        return self._with(_replaced(_slots(self), drawn))

    def at_the_mean(self) -> Certain:
        """The autoencoder whose weights are the means."""
        return self._with(_replaced(_slots(self), lambda u: u.mean))

    def _with(self, slots: Slots) -> Certain:
        """The autoencoder of these parts."""
        return LadderAutoencoder(**slots, held=self.held) if self.ladder else Autoencoder(**slots)

    def with_held_proposal(self) -> "UncertainAutoencoder":
        return dataclasses.replace(self, held=self.ladder)

    def weight_kl(self, prior_sigma: float) -> Float[Array, ""]:
        """KL(q(θ, φ) ‖ N(0, s² I)), in nats.

        Σ_x E[L_1(x)] − KL is a lower bound of log p(D), the evidence of the whole training set. For
        K > 1 Σ_x E[L_K(x)] − KL is not: with separate weights for every draw, L_K(x) tends to
        log E_q[p(x|θ)], as if each example had been generated with other weights. Example: for ten
        zeros and ten ones of one pixel whose logit is its bias, and q = prior = N(0, 10²), it is
        −14.24 at K = 25, while log p(D) = −16.96.
        """
        return sum((u.kl(prior_sigma) for u in _uncertain_parts(self)), jnp.zeros((), jnp.float32))

    def noise(self, k: int, key: PRNGKeyArray) -> Draws:
        """ε of K draws, each with the key of its own weights."""
        weights = jax.random.split(jax.random.fold_in(key, WEIGHTS), k)
        return Draws(noise_of(self.latents, k, key), weights)

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Draws
    ) -> tuple[Draws, Float[Array, " k"]]:
        """(h, log q(h_i|x; φ_i)) of the draws made from ε and the weights' keys."""
        latents, log_q = self._each(lambda model, noise: model.reparametrize(x, noise), epsilon)
        return Draws(latents, epsilon.weights), log_q

    def log_joint(self, x: Float[Array, " d"], h: Draws) -> Float[Array, " k"]:
        """log p(x|h_i; θ_i) p(h_i), per draw."""
        return self._each(lambda model, latents: model.log_joint(x, latents), h)

    def log_proposal(self, x: Float[Array, " d"], h: Draws) -> Float[Array, " k"]:
        """log q(h_i|x; φ_i), per draw, with the weights that it was drawn with."""
        return self._each(lambda model, latents: model.log_proposal(x, latents), h)

    def log_observation(self, x: Float[Array, " d"], h: Draws) -> Float[Array, " k"]:
        """log p(x|h_1; θ_i), per draw."""
        return self._each(lambda model, latents: model.log_observation(x, latents), h)

    def log_prior_terms(self, h: Draws) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}; θ_i) for l = 1 … L, per draw."""
        return self._each(lambda model, latents: model.log_prior_terms(latents), h)

    def log_proposal_terms(self, x: Float[Array, " d"], h: Draws) -> list[Float[Array, " k"]]:
        """The terms of log q(h|x; φ_i) for h_1 … h_L, per draw."""
        return self._each(lambda model, latents: model.log_proposal_terms(x, latents), h)

    def layers(self, h: Draws) -> Latents:
        return h.latents

    def posterior_mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] under q, including the weights, and its squared standard error."""

        mean = lambda model, latents: model.recognition.means(x, latents, layer)
        mu = self._each(mean, self.propose(x, k, key))
        return jnp.mean(mu, axis=0), jnp.var(mu, axis=0, ddof=1) / k

    def sample_joint(self, n: int, key: PRNGKeyArray) -> tuple[Float[Array, "n d"], Draws]:
        """n draws (x, h), each with its own weights."""
        keys = jax.random.split(key, (2, n))
        drawn = lambda weights, key: self.at(weights).sample_joint(1, key)
        x, latents = jax.tree.map(lambda a: a[:, 0], jax.vmap(drawn)(*keys))
        return x, Draws(latents, keys[0])

    def sample(self, n: int, key: PRNGKeyArray, *, mean: bool = True) -> Float[Array, "n d"]:
        """n images, each with its own weights."""
        drawn = lambda weights, key: self.at(weights).sample(1, key, mean=mean)[0]
        return jax.vmap(drawn)(*jax.random.split(key, (2, n)))

    def reconstruct(self, x: Float[Array, " d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """E[x'|h_1; θ] at one draw of weights and h_1."""
        return self.at(jax.random.fold_in(key, WEIGHTS)).reconstruct(x, key)

    def pruned(self, keep: Keep, fill: tuple[Array, ...]) -> "UncertainAutoencoder":
        """The model with the units outside `keep` removed from p and q and fixed at `fill`."""
        return (prune_ladder if self.ladder else prune_parts)(self, keep, fill)

    def _each(self, run: Callable[[Certain, Latents], Out], h: Draws) -> Out:
        """The results of `run` for each draw with its own weights, stacked."""

        def one(key: PRNGKeyArray, latents: PyTree) -> Out:
            alone = jax.tree.map(lambda a: a[None], latents)
            return jax.tree.map(lambda a: a[0], run(self.at(key), alone))

        return jax.vmap(one)(h.weights, h.latents)


def _is_uncertain(part: object) -> TypeGuard[UncertainLinear]:
    return isinstance(part, UncertainLinear)


def _uncertain_parts(tree: PyTree) -> list[UncertainLinear]:
    return [p for p in jax.tree.leaves(tree, is_leaf=_is_uncertain) if _is_uncertain(p)]


def _replaced(tree: Part, replace: Callable[[UncertainLinear], Linear]) -> Part:
    one = lambda part: replace(part) if _is_uncertain(part) else part
    return jax.tree.map(one, tree, is_leaf=_is_uncertain)


def _drawn(tree: Part, key: PRNGKeyArray) -> Part:
    """The tree with every uncertain map fixed at its own draw."""
    parts, structure = jax.tree.flatten(tree, is_leaf=_is_uncertain)
    drawn = [
        Drawn(part, jax.random.fold_in(key, i)) if _is_uncertain(part) else part
        for i, part in enumerate(parts)
    ]
    return jax.tree.unflatten(structure, drawn)


def _uncertain(tree: Part, sigma: float) -> Part:
    """The tree with every `Linear` replaced by an uncertain map around it."""
    is_linear = lambda part: isinstance(part, Linear)
    around = lambda part: UncertainLinear.around(part, sigma) if is_linear(part) else part
    return jax.tree.map(around, tree, is_leaf=is_linear)
