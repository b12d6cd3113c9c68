"""Densities in the plane whose integral is 1, so that E[(1/K) Σ w_i] = 1 for every valid proposal.

They stand for the posterior of one example, to test proposals without a decoder.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae.models.hierarchical import ByProposal, HierarchicalProposal, Proposal
from iwae.models.normal import log_normal, log_standard_normal

Point = Float[Array, " 2"]
NO_DATA = jnp.zeros(1, jnp.float32)
"""A placeholder for x, which these models do not have."""


RADIUS, THICKNESS = 2.0, 0.3
"""Of the ring: radius r and width s."""


def ring(z: Point) -> Float[Array, ""]:
    """∝ exp(−(‖z‖ − r)² / 2s²) with r = 2 and s = 0.3."""
    r, s = RADIUS, THICKNESS
    away = s**2 * math.exp(-0.5 * (r / s) ** 2)
    near = r * s * math.sqrt(2 * math.pi) * 0.5 * (1 + math.erf(r / s / math.sqrt(2)))
    radius = jnp.sqrt(jnp.sum(z**2) + 1e-12)
    return -0.5 * ((radius - r) / s) ** 2 - math.log(2 * math.pi * (near + away))


MODES, AROUND, WIDTH = 8, 2.5, 0.4
"""Of the mixture: number of modes, radius of their circle, and σ."""


def _centres(n: Float[Array, " n"]) -> Float[Array, "n 2"]:
    """Centres of the modes with these indices."""
    angle = 2 * jnp.pi * n / MODES
    return AROUND * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def mixture(z: Point) -> Float[Array, ""]:
    """Eight equal Gaussians of σ = 0.4, evenly on a circle of radius 2.5."""
    centres = _centres(jnp.arange(MODES))
    each = log_normal(z, centres, jnp.full(centres.shape, jnp.log(WIDTH)))
    return jax.nn.logsumexp(each) - jnp.log(MODES)


def banana(z: Point) -> Float[Array, ""]:
    """z_1 ~ N(0, 1.5²), z_2 ~ N(z_1² / 2 − 1, 0.5²)."""
    first = log_normal(z[:1], NO_DATA, jnp.log(jnp.full(1, 1.5, jnp.float32)))
    return first + log_normal(z[1:], z[:1] ** 2 / 2 - 1, jnp.log(jnp.full(1, 0.5, jnp.float32)))


def funnel(z: Point) -> Float[Array, ""]:
    """z_1 ~ N(0, 1), z_2 ~ N(0, exp(z_1))."""
    return log_standard_normal(z[:1]) + log_normal(z[1:], NO_DATA, z[:1] / 2)


TARGETS: dict[str, Callable[[Point], Float[Array, ""]]] = {
    "ring": ring,
    "mixture": mixture,
    "banana": banana,
    "funnel": funnel,
}


def draw(name: str, n: int, key: PRNGKeyArray) -> Float[Array, "n 2"]:
    """n exact draws from a target."""
    key_u, key_c = jax.random.split(key)
    u = jax.random.normal(key_u, (n, 2), jnp.float32)
    first, second = u[:, 0], u[:, 1]
    if name == "ring":
        return _on_ring(n, key_c) * u / jnp.linalg.norm(u, axis=1, keepdims=True)
    if name == "mixture":
        return WIDTH * u + _centres(jax.random.randint(key_c, (n,), 0, MODES, jnp.int32))
    if name == "banana":
        return jnp.stack([1.5 * first, (1.5 * first) ** 2 / 2 - 1 + 0.5 * second], axis=1)
    return jnp.stack([first, jnp.exp(first / 2) * second], axis=1)


def _on_ring(n: int, key: PRNGKeyArray) -> Float[Array, "n 1"]:
    """Radii with density ∝ ρ exp(−(ρ − r)² / 2s²), by inverting their distribution on a grid."""
    grid = jnp.linspace(1e-3, RADIUS + 8 * THICKNESS, 4096, dtype=jnp.float32)
    density = grid * jnp.exp(-0.5 * ((grid - RADIUS) / THICKNESS) ** 2)
    cumulative = jnp.cumsum(density) / jnp.sum(density)
    return jnp.interp(jax.random.uniform(key, (n, 1), jnp.float32), cumulative, grid)


def slides_ring(n: int, key: PRNGKeyArray) -> Float[Array, "n 2"]:
    """n points u / 10 + u / ‖u‖ with u ~ N(0, I) (Hernández-Lobato et al., slides of 2016)."""
    u = jax.random.normal(key, (n, 2), jnp.float32)
    return u / 10 + u / jnp.linalg.norm(u, axis=1, keepdims=True)


def slides_ring_log_prob(x: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Their log density: r = 10 (‖x‖ − 1) has the density r exp(−r² / 2) of ‖u‖."""
    radius = jnp.linalg.norm(x, axis=1)
    r = 10 * (radius - 1)
    return jnp.log(r) - 0.5 * r**2 + jnp.log(10) - jnp.log(2 * jnp.pi * radius)


class GaussianProposal(Proposal):
    """K independent draws from one Gaussian with diagonal covariance."""

    mu: Float[Array, " d"]
    log_sigma: Float[Array, " d"]

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> Float[Array, "k d"]:
        epsilon = jax.random.normal(key, (k, len(self.mu)), jnp.float32)
        return self.mu + jnp.exp(self.log_sigma) * epsilon

    def log_prob(self, x: Array, h: Float[Array, "k d"]) -> Float[Array, " k"]:
        return log_normal(h, self.mu, self.log_sigma)


class OnTarget(ByProposal):
    """The model whose posterior is a target, with evidence 1; x is `NO_DATA`."""

    proposal: GaussianProposal | HierarchicalProposal
    target: Callable[[Point], Float[Array, ""]] = eqx.field(static=True)

    def drawn_by(self) -> GaussianProposal | HierarchicalProposal:
        return self.proposal

    def log_joint(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        """log p(z), and log r(z_0|z) of a hierarchical proposal."""
        if isinstance(self.proposal, GaussianProposal):
            return jax.vmap(self.target)(h)
        return jax.vmap(self.target)(h.latents[0]) + self.proposal.log_reverse(x, h)
