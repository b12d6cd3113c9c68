"""Densities in the plane whose integral is 1, so that E[(1/K) Σ w_i] = 1 for every valid proposal.

They stand for the posterior of one example: a proposal is tried on them without a decoder.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae.bounds import iwae
from iwae.evaluation import mean_and_error
from iwae.model import block_of, draw_log_weights, log_normal, log_standard_normal
from iwae.proposals import Heuristic, HierarchicalProposal, hierarchical

Point = Float[Array, " 2"]
NO_DATA = jnp.zeros(1)
"""What stands for x where there is none."""


RADIUS, THICKNESS = 2.0, 0.3
"""Of the ring."""


def ring(z: Point) -> Float[Array, ""]:
    """∝ exp(−(‖z‖ − r)² / 2s²) with r = 2 and s = 0.3."""
    r, s = RADIUS, THICKNESS
    away = s**2 * math.exp(-0.5 * (r / s) ** 2)
    near = r * s * math.sqrt(2 * math.pi) * 0.5 * (1 + math.erf(r / s / math.sqrt(2)))
    radius = jnp.sqrt(jnp.sum(z**2) + 1e-12)
    return -0.5 * ((radius - r) / s) ** 2 - math.log(2 * math.pi * (near + away))


def mixture(z: Point) -> Float[Array, ""]:
    """Four Gaussians of σ = 0.4 at (±1.5, ±1.5), alike."""
    centres = jnp.array([[a, b] for a in (-1.5, 1.5) for b in (-1.5, 1.5)])
    each = log_normal(z, centres, jnp.full((4, 2), jnp.log(0.4)))
    return jax.nn.logsumexp(each) - jnp.log(4.0)


def banana(z: Point) -> Float[Array, ""]:
    """z_1 ~ N(0, 1.5²), z_2 ~ N(z_1² / 2 − 1, 0.5²)."""
    first = log_normal(z[:1], jnp.zeros(1), jnp.log(jnp.full(1, 1.5)))
    return first + log_normal(z[1:], z[:1] ** 2 / 2 - 1, jnp.log(jnp.full(1, 0.5)))


def funnel(z: Point) -> Float[Array, ""]:
    """z_1 ~ N(0, 1), z_2 ~ N(0, exp(z_1))."""
    return log_standard_normal(z[:1]) + log_normal(z[1:], jnp.zeros(1), z[:1] / 2)


TARGETS: dict[str, Callable[[Point], Float[Array, ""]]] = {
    "ring": ring,
    "mixture": mixture,
    "banana": banana,
    "funnel": funnel,
}


def draw(name: str, n: int, key: PRNGKeyArray) -> Float[Array, "n 2"]:
    """n exact draws from a target."""
    key_u, key_c = jax.random.split(key)
    u = jax.random.normal(key_u, (n, 2))
    first, second = u[:, 0], u[:, 1]
    if name == "ring":
        return _on_ring(n, key_c) * u / jnp.linalg.norm(u, axis=1, keepdims=True)
    if name == "mixture":
        return 0.4 * u + 1.5 * jax.random.rademacher(key_c, (n, 2))
    if name == "banana":
        return jnp.stack([1.5 * first, (1.5 * first) ** 2 / 2 - 1 + 0.5 * second], axis=1)
    return jnp.stack([first, jnp.exp(first / 2) * second], axis=1)


def _on_ring(n: int, key: PRNGKeyArray) -> Float[Array, "n 1"]:
    """Radii with density ∝ ρ exp(−(ρ − r)² / 2s²), by inverting their distribution on a grid."""
    grid = jnp.linspace(1e-3, RADIUS + 8 * THICKNESS, 4096)
    density = grid * jnp.exp(-0.5 * ((grid - RADIUS) / THICKNESS) ** 2)
    cumulative = jnp.cumsum(density) / jnp.sum(density)
    return jnp.interp(jax.random.uniform(key, (n, 1)), cumulative, grid)


def slides_ring(n: int, key: PRNGKeyArray) -> Float[Array, "n 2"]:
    """n points u / 10 + u / ‖u‖ with u ~ N(0, I) (Hernández-Lobato et al., slides of 2016)."""
    u = jax.random.normal(key, (n, 2))
    return u / 10 + u / jnp.linalg.norm(u, axis=1, keepdims=True)


def slides_ring_log_prob(x: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Their log density: r = 10 (‖x‖ − 1) has the density r exp(−r² / 2) of ‖u‖."""
    radius = jnp.linalg.norm(x, axis=1)
    r = 10 * (radius - 1)
    return jnp.log(r) - 0.5 * r**2 + jnp.log(10) - jnp.log(2 * jnp.pi * radius)


class GaussianProposal(eqx.Module):
    """K independent draws from one Gaussian with diagonal covariance."""

    mu: Float[Array, " d"]
    log_sigma: Float[Array, " d"]

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> Float[Array, "k d"]:
        epsilon = jax.random.normal(key, (k, len(self.mu)))
        return self.mu + jnp.exp(self.log_sigma) * epsilon

    def log_prob(self, x: Array, h: Float[Array, "k d"]) -> Float[Array, " k"]:
        return log_normal(h, self.mu, self.log_sigma)


class OnTarget(eqx.Module):
    """The model whose posterior is a target, with evidence 1; x is `NO_DATA`."""

    proposal: GaussianProposal | HierarchicalProposal
    target: Callable[[Point], Float[Array, ""]] = eqx.field(static=True)

    @property
    def block(self) -> int:
        return block_of(self.proposal)

    @property
    def independent_draws(self) -> bool:
        return not getattr(self.proposal, "shared", False)

    @property
    def density_of_draws(self) -> bool:
        return getattr(self.proposal, "heuristic", "uniform") == "uniform"

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> Any:
        return self.proposal.propose(x, k, key)

    def log_joint(self, x: Array, h: Any) -> Float[Array, " k"]:
        """log p(z), and log r(z_0|z) of a hierarchical proposal."""
        if isinstance(self.proposal, GaussianProposal):
            return jax.vmap(self.target)(h)
        return jax.vmap(self.target)(h.latents[0]) + self.proposal.log_reverse(x, h)

    def log_proposal(self, x: Array, h: Any) -> Float[Array, " k"]:
        return self.proposal.log_prob(x, h)


def gaussian_start() -> GaussianProposal:
    """Where the independent proposal starts: N(0, I)."""
    return GaussianProposal(jnp.zeros(2), jnp.zeros(2))


def hierarchical_start(
    k: int, *, shared: bool, heuristic: Heuristic, key: PRNGKeyArray, width: int = 32
) -> HierarchicalProposal:
    """k heads on a z_0 of two units."""
    nothing: Callable[[Array], Array] = eqx.nn.Identity()
    return hierarchical(
        nothing, 1, 2, n_0=2, width=width, block=k, shared=shared, heuristic=heuristic, key=key
    )


@eqx.filter_jit
def learn(
    model: OnTarget, key: PRNGKeyArray, *, k: int, steps: int, rate: float = 3e-3, batch: int = 64
) -> OnTarget:
    """The model after so many steps of Adam on the mean of L_k over a batch of estimates."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(params: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        model = eqx.combine(params, static)
        bound = lambda key: iwae(draw_log_weights(model, NO_DATA, k, key))
        return -jnp.mean(jax.vmap(bound)(jax.random.split(key, batch)))

    def step(state: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
        params, opt_state = state
        updates, opt_state = adam.update(jax.grad(loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    start = (params, adam.init(params))
    (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
    return eqx.combine(params, static)


class Spread(NamedTuple):
    """How much an estimate p̂ = (1/K) Σ w_i varies; each with its standard error."""

    bound: tuple[float, float]
    """E[log p̂], in nats."""
    variance: tuple[float, float]
    """Var(p̂)."""
    covariance: tuple[float, float]
    """Cov(w_i, w_j), mean over i ≠ j."""


def spread(log_w: np.ndarray) -> Spread:
    """Of log-weights [n, K] of n estimates, relative to the evidence."""
    log_w = np.asarray(log_w, np.float64)
    n, k = log_w.shape
    w = np.exp(log_w)
    apart = w - w.mean(axis=0)
    estimate = w.mean(axis=1)
    pairs = (apart.sum(axis=1) ** 2 - (apart**2).sum(axis=1)) / (k * (k - 1)) if k > 1 else None
    return Spread(
        bound=mean_and_error(np.log(estimate)),
        variance=mean_and_error((estimate - estimate.mean()) ** 2 * n / (n - 1)),
        covariance=(0.0, 0.0) if pairs is None else mean_and_error(pairs * n / (n - 1)),
    )
