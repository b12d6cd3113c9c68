"""Hierarchical proposals for the K draws of an example (H-IWAE).

A z_0 ~ q(z_0|x) is drawn, then z_j ~ q_j(z_j|z_0, x) for j = 1 … K. With r(z_0|z_j, x), a reverse
model, and weights π_j(z_j|z_0) that sum to 1 over j at every z,

    w_j = K π_j · p(x, z_j) r(z_0|z_j, x) / (q(z_0|x) q_j(z_j|z_0, x)),   E[(1/K) Σ_j w_j] = p(x),

so that log (1/K) Σ w_j is a lower bound of log p(x) (Huang et al. 2019). A shared z_0
allows draws to repel one another, which lowers the variance of the mean of their weights.

With uniform weights π_j = 1/K every w_j has mean p(x), so each head can have its own reverse model
r_j. If π_j depends on z, only the sum over j is 1, and all heads share one r. Since
E[w_j | z_0] = r_j(z_0|x) p(x) / q(z_0|x) under uniform weights, one r for all heads would imply
Cov(w_i, w_j) ≥ 0; with separate reverse models the covariance can be negative.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae.models.base import Conditional, Latents, Model, final
from iwae.models.chains import Generation, WithGeneration
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.networks import MLP, Gaussian, Linear, glorot_linear
from iwae.models.normal import log_normal

Heuristic = Literal["uniform", "balance", "power"]

POWER = 2.0
"""Exponent of the power heuristic (Veach & Guibas 1995)."""


class Heads(eqx.Module):
    """J Gaussians q_j(z|z_0, x) on one trunk: μ_j and log σ_j linear in its features and in z_0."""

    trunk: Callable[[Array], Array]
    """Maps (features of x, z_0) to features."""
    mu: Linear
    log_sigma: Linear
    skip: Linear
    """Maps z_0 directly to all μ_j."""
    latents: int = eqx.field(static=True)

    def __init__(
        self, n_features: int, n_0: int, width: int, n: int, latents: int, *, key: PRNGKeyArray
    ):
        keys = jax.random.split(key, 4)
        self.trunk = MLP(n_features + n_0, (width,), key=keys[0])
        self.mu = glorot_linear(width, n * latents, key=keys[1])
        self.log_sigma = glorot_linear(width, n * latents, key=keys[2])
        self.skip = glorot_linear(n_0, n * latents, key=keys[3])
        self.latents = latents

    def __call__(
        self, features: Float[Array, " f"], z0: Float[Array, " d0"]
    ) -> tuple[Float[Array, "j d"], Float[Array, "j d"]]:
        """(μ, log σ) of every head."""
        v = self.trunk(jnp.concatenate([features, z0]))
        shaped = lambda a: a.reshape(-1, self.latents)
        return shaped(self.mu(v) + self.skip(z0)), shaped(self.log_sigma(v))


class Reverse(eqx.Module):
    """r(z_0|z, x) from (features of x, e_j, z): a Gaussian whose μ is also linear in z."""

    conditional: Gaussian
    skip: Linear
    """Maps z directly to μ."""

    def __call__(self, v: Float[Array, " f"]) -> tuple[Float[Array, " d0"], Float[Array, " d0"]]:
        """(μ, log σ) of z_0."""
        mu, log_sigma = self.conditional(v)
        return mu + self.skip(v[-self.skip.weight.shape[1] :]), log_sigma


class Draws(NamedTuple):
    """Draws z_i from head i mod J, each with its z_0."""

    latents: tuple[Float[Array, "k d"]]
    z0: Float[Array, "k d0"]


class Proposal(eqx.Module):
    """q(h|x): draws, the density in their weights, and properties of the draws."""

    block: ClassVar[int] = 1
    in_blocks: ClassVar[bool] = False
    independent_draws: ClassVar[bool] = True
    density_of_draws: ClassVar[bool] = True

    @abstractmethod
    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> PyTree:
        """K draws h ~ q(h|x)."""

    @abstractmethod
    def log_prob(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        """The log of the density in the denominator of each weight, in nats."""


class HierarchicalProposal(Proposal):
    """q(z_0|x), the heads q_j(z|z_0, x) and the reverse model r(z_0|z, x), on features of x.

    Draws come in blocks of J, one of each head.
    """

    features: Callable[[Array], Array]
    first: Conditional
    heads: Callable[[Array, Array], tuple[Array, Array]]
    """Maps (features of x, z_0) to (μ, log σ) of every head, each [J, d]."""
    reverse: Conditional
    """Maps (features of x, e_j, z) to the moments of z_0. The one-hot vector e_j of the head is
    left out unless the weights are uniform."""
    block: int = eqx.field(static=True)  # type: ignore[misc]
    """J, the number of draws in a block."""
    shared: bool = eqx.field(static=True)
    """Whether the draws of a block share one z_0, or have one each."""
    heuristic: Heuristic = eqx.field(static=True)
    """π_j: uniform is 1/J, balance q_j / Σ_i q_i, power q_j² / Σ_i q_i²."""

    in_blocks: ClassVar[bool] = True

    @property
    def independent_draws(self) -> bool:  # type: ignore[override]
        return not self.shared

    @property
    def density_of_draws(self) -> bool:  # type: ignore[override]
        """Whether the density in the weights is that of the draws, as partial gradients need."""
        return self.heuristic == "uniform"

    def propose(self, x: Float[Array, " d"], k: int, key: PRNGKeyArray) -> Draws:
        """K draws in successive blocks of J; the last block may be incomplete."""
        key_0, key_z = jax.random.split(key)
        blocks, features = -(-k // self.block), self.features(x)
        mu, log_sigma = self.first(features)
        own = (blocks, 1 if self.shared else self.block, mu.shape[-1])
        z0 = mu + jnp.exp(log_sigma) * jax.random.normal(key_0, own, jnp.float32)
        mu_z, log_sigma_z = map(_own, self._moments(features, z0))
        z = mu_z + jnp.exp(log_sigma_z) * jax.random.normal(key_z, mu_z.shape, jnp.float32)
        every = jnp.broadcast_to(z0, (blocks, self.block, z0.shape[-1]))
        listed = lambda a: a.reshape(blocks * self.block, -1)[:k]
        return Draws((listed(z),), listed(every))

    def log_prob(self, x: Float[Array, " d"], h: Draws) -> Float[Array, " k"]:
        """log q(z_0|x) + log q_j(z|z_0, x) − log J π_j, per draw: the denominator of w_j.

        In an incomplete last block of m draws, the weights π_j are those of m heads, and J is m.
        """
        features, k = self.features(x), len(h.z0)
        missing = -k % self.block
        padded = lambda a: jnp.pad(a, ((0, missing), (0, 0)), mode="edge")
        blocks = lambda a: padded(a).reshape(-1, self.block, a.shape[-1])
        z, z0 = blocks(h.latents[0]), blocks(h.z0)
        mu, log_sigma = self._moments(features, z0[:, :1] if self.shared else z0)
        log_q = log_normal(z, _own(mu), _own(log_sigma))
        log_q0 = log_normal(z0, *self.first(features))
        if self.heuristic == "uniform":
            return (log_q0 + log_q).reshape(-1)[:k]
        power = POWER if self.heuristic == "power" else 1.0
        of_every = log_normal(z[:, :, None], mu, log_sigma)  # [block, draw, head]
        heads = jnp.full(len(z), self.block).at[-1].add(-missing)
        present = jnp.arange(self.block) < heads[:, None]
        of_every = jnp.where(present[:, None], of_every, -jnp.inf)
        log_pi = power * log_q - jax.nn.logsumexp(power * of_every, axis=-1)
        log_j = jnp.log(heads.astype(log_q.dtype))[:, None]
        return (log_q0 + log_q - log_j - log_pi).reshape(-1)[:k]

    def log_reverse(self, x: Float[Array, " d"], h: Draws) -> Float[Array, " k"]:
        """log r(z_0|z, x), per draw."""
        features = self.features(x)
        head = jnp.arange(len(h.z0)) % self.block
        heads = self.block if self.heuristic == "uniform" else 0
        of_head = jax.nn.one_hot(head, heads, dtype=jnp.float32)
        reverse = lambda e, z: self.reverse(jnp.concatenate([features, e, z]))
        return log_normal(h.z0, *jax.vmap(reverse)(of_head, h.latents[0]))

    def mean(
        self, x: Float[Array, " d"], k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d1"], Float[Array, " d1"]]:
        """E[z|x] under the average head, from k draws of z_0, and its squared standard error."""
        features = self.features(x)
        mu, log_sigma = self.first(features)
        z0 = mu + jnp.exp(log_sigma) * jax.random.normal(key, (k, mu.shape[-1]), jnp.float32)
        means = jnp.mean(jax.vmap(self.heads, (None, 0))(features, z0)[0], axis=1)
        return jnp.mean(means, axis=0), jnp.var(means, axis=0, ddof=1) / k

    def _moments(
        self, features: Float[Array, " f"], z0: Float[Array, "b c d0"]
    ) -> tuple[Float[Array, "b c j d"], Float[Array, "b c j d"]]:
        """(μ, log σ) of every head at every z_0; c is 1 if the block shares z_0."""
        return jax.vmap(jax.vmap(lambda z0: self.heads(features, z0)))(z0)


def hierarchical(
    features: Callable[[Array], Array],
    n_features: int,
    latents: int,
    *,
    n_0: int,
    width: int,
    block: int,
    shared: bool,
    heuristic: Heuristic,
    key: PRNGKeyArray,
) -> HierarchicalProposal:
    """Heads and a reverse model with one tanh layer of `width` units, and q(z_0|x) initialised to
    N(0, I)."""
    keys = jax.random.split(key, 5)
    own = block if heuristic == "uniform" else 0
    trunk = MLP(n_features + own + latents, (width,), key=keys[0])
    first = Gaussian(eqx.nn.Identity(), n_features, n_0, key=keys[1])
    zero = lambda linear: jax.tree.map(jnp.zeros_like, linear)
    return HierarchicalProposal(
        features=features,
        first=eqx.tree_at(lambda of: (of.mu, of.log_sigma), first, replace_fn=zero),
        heads=Heads(n_features, n_0, width, block, latents, key=keys[2]),
        reverse=Reverse(
            conditional=Gaussian(trunk, width, n_0, key=keys[3]),
            skip=glorot_linear(latents, n_0, key=keys[4]),
        ),
        block=block,
        shared=shared,
        heuristic=heuristic,
    )


class ByProposal(Model):
    """A model that takes its draws and their properties from a `Proposal`."""

    @abstractmethod
    def drawn_by(self) -> Proposal:
        """q(h|x)."""

    @property
    def block(self) -> int:  # type: ignore[override]
        return self.drawn_by().block

    @property
    def in_blocks(self) -> bool:  # type: ignore[override]
        return self.drawn_by().in_blocks

    @property
    def independent_draws(self) -> bool:  # type: ignore[override]
        return self.drawn_by().independent_draws

    @property
    def density_of_draws(self) -> bool:  # type: ignore[override]
        return self.drawn_by().density_of_draws

    def propose(self, x: Float[Array, " d"], k: int, key: PRNGKeyArray) -> PyTree:
        return self.drawn_by().propose(x, k, key)

    def log_proposal(self, x: Float[Array, " d"], h: PyTree) -> Float[Array, " k"]:
        return self.drawn_by().log_prob(x, h)


class HierarchicalAutoencoder(ByProposal, WithGeneration):
    """An autoencoder of one stochastic layer with a `HierarchicalProposal`.

    Its draws h are `Draws`. For any K, L_K is a lower bound of log p(x).
    """

    encoder: tuple[HierarchicalProposal]
    """Only the proposal."""
    decoder: tuple[()]
    """Empty for one layer."""
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)

    def __init_subclass__(cls, **given: object) -> None:
        raise final(cls, "HierarchicalAutoencoder")

    @property
    def proposal(self) -> HierarchicalProposal:
        """q(z_0|x), the heads and the reverse model."""
        return self.encoder[0]

    def drawn_by(self) -> HierarchicalProposal:
        return self.proposal

    @property
    def generation(self) -> Generation:
        """p(x, z)."""
        return Generation(self.decoder, self.observation, self.likelihood, self.latents)

    def log_joint(self, x: Float[Array, " d"], h: Draws) -> Float[Array, " k"]:
        """log p(x, z) + log r(z_0|z, x), per draw."""
        return super().log_joint(x, h) + self.proposal.log_reverse(x, h)

    def log_proposal_terms(self, x: Float[Array, " d"], h: Draws) -> list[Float[Array, " k"]]:
        """[log q(z_0, z|x) − log J π_j − log r(z_0|z, x)], in mean above log q(z|x)."""
        return [self.log_proposal(x, h) - self.proposal.log_reverse(x, h)]

    def layers(self, h: Draws) -> Latents:
        return h.latents

    def posterior_mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[z|x] under the mean of the heads, and its squared standard error."""
        return self.proposal.mean(x, k, key)

    def reconstruct(self, x: Float[Array, " d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """E[x'|z] at one draw of the first head."""
        return self.expected(self.propose(x, self.block, key).latents[0][0])


def _own(moments: Float[Array, "b c j d"]) -> Float[Array, "b j d"]:
    """The moments of head j for draw j: the diagonal if every draw has its own z_0."""
    if moments.shape[1] == 1:
        return moments[:, 0]
    return jnp.einsum("bjjd->bjd", moments)
