"""Models for the tests: those whose log p(x) is known in closed form, and random ones."""

from dataclasses import dataclass
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from scipy.stats import multivariate_normal

from iwae.config.schema import ModelConfig
from iwae.models.autoencoder import Autoencoder
from iwae.models.build import build


class LinearGaussian(eqx.Module):
    """p(z) = N(μ, I), p(x|z) = N(z, I), q(z|x) = N(e, s² I): a model that a user might write."""

    mu: jax.Array
    e: jax.Array
    log_s: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.5 * np.log(2 / 3)))

    def propose(self, x, k, key):
        return self.e + jnp.exp(self.log_s) * jax.random.normal(key, (k, x.shape[0]))

    def log_joint(self, x, h):
        return jnp.sum(norm.logpdf(h, self.mu) + norm.logpdf(x, h), axis=-1)

    def log_proposal(self, x, h):
        return jnp.sum(norm.logpdf(h, self.e, jnp.exp(self.log_s)), axis=-1)

    def log_evidence(self, x):
        """log p(x) = log N(x; μ, 2I)."""
        return multivariate_normal.logpdf(np.asarray(x), np.asarray(self.mu), 2.0)

    def elbo(self, x):
        """E[ELBO] for s² = ⅔ (papers §9 at α = 1)."""
        mu, e, x = (np.asarray(a, np.float64) for a in (self.mu, self.e, x))
        misfit = np.sum((e - mu) ** 2 + (e - x) ** 2)
        return -len(e) * (0.5 * np.log(3 * np.pi) + 1 / 6) - misfit / 2


@dataclass(frozen=True)
class Chain:
    """h_L → … → h_1 → x, all maps linear, as an `Autoencoder`; its marginal is N(mean, cov)."""

    model: Autoencoder
    mean: np.ndarray
    covariance: np.ndarray
    gains: list[np.ndarray]
    """E[h_1|x] = gains[0] (x − mean), E[h_2|h_1] = gains[1] h_1, …"""

    def draw(self, n, seed):
        rng = np.random.default_rng(seed)
        return rng.multivariate_normal(self.mean, self.covariance, n).astype(np.float32)

    def log_evidence(self, x):
        return multivariate_normal.logpdf(np.asarray(x), self.mean, self.covariance)


def chain(maps, scales, *, mean, spread, inflate=1.0):
    """The chain with h_l = maps[l] h_{l+1} + scales[l] ε (x is h_0), and q from exact conditionals.

    q(h_{l+1}|h_l) has the exact conditional's mean, and its variances times `inflate`: where the
    exact conditionals have diagonal covariance and inflate = 1, q is the posterior.
    """
    latents = tuple(a.shape[1] for a in maps)
    layers = len(maps)
    config = ModelConfig(layers, ((),) * layers, latents, "gaussian")
    model = eqx.filter_jit(build)(
        config, kind="real", mean=mean, spread=spread, key=jax.random.key(0)
    )
    covariances = [np.eye(latents[-1])]
    for a, s in zip(maps[::-1], scales[::-1], strict=True):
        covariances.insert(0, a @ covariances[0] @ a.T + s**2 * np.eye(len(a)))
    gains = [
        above @ a.T @ np.linalg.inv(below)
        for a, above, below in zip(maps, covariances[1:], covariances[:-1], strict=True)
    ]
    variances = [
        inflate * np.diag(above - gain @ a @ above)
        for a, gain, above in zip(maps, gains, covariances[1:], strict=True)
    ]
    seen = [gains[0] * spread, *gains[1:]]
    encoder = [
        _conditional(q, gain, np.sqrt(v))
        for q, gain, v in zip(model.encoder, seen, variances, strict=True)
    ]
    decoder = [
        _conditional(p, a, np.full(len(a), s))
        for p, a, s in zip(model.decoder, maps[1:], scales[1:], strict=True)
    ]
    weight = np.concatenate([maps[0] / spread[:, None], np.zeros_like(maps[0])])
    bias = np.concatenate([np.zeros_like(mean), np.log(scales[0] / spread)])
    observation = eqx.tree_at(
        lambda o: (o.linear.weight, o.linear.bias),
        model.observation,
        (jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)),
    )
    model = eqx.tree_at(
        lambda m: (m.encoder, m.decoder, m.observation),
        model,
        (tuple(encoder), tuple(decoder), observation),
    )
    return Chain(model, mean, covariances[0], gains)


def _conditional(gaussian, weight, sigma):
    """The `Gaussian` with μ = weight v and σ constant."""
    return eqx.tree_at(
        lambda g: (g.mu.weight, g.log_sigma.weight, g.log_sigma.bias),
        gaussian,
        (
            jnp.asarray(weight, jnp.float32),
            jnp.zeros_like(gaussian.log_sigma.weight),
            jnp.asarray(np.log(sigma), jnp.float32),
        ),
    )


def orthogonal_chain(layers, *, inflate=1.0, seed=0):
    """A chain whose exact conditionals are diagonal: scaled rotations, then orthogonal columns."""
    rng = np.random.default_rng(seed)
    d, n = 6, 3
    columns = np.linalg.qr(rng.normal(size=(d, n)))[0] * rng.uniform(0.5, 2, n)
    rotations = [c * np.linalg.qr(rng.normal(size=(n, n)))[0] for c in (0.8, 1.3)[: layers - 1]]
    mean, spread = rng.normal(size=d), rng.uniform(0.5, 2, d)
    scales = (0.7, 0.6, 0.9)[:layers]
    return chain([columns, *rotations], scales, mean=mean, spread=spread, inflate=inflate)


def generic_chain(latents, *, inflate=1.3, seed=1):
    """A chain with no special structure: q can only come near the posterior."""
    rng = np.random.default_rng(seed)
    d = 6
    sizes = (d, *latents)
    maps = [0.6 * rng.normal(size=shape) for shape in pairwise(sizes)]
    mean, spread = rng.normal(size=d), rng.uniform(0.5, 2, d)
    return chain(maps, (1.0, 0.8, 0.9)[: len(latents)], mean=mean, spread=spread, inflate=inflate)


def random_model(config, d, seed, scale=0.4):
    """The Bernoulli autoencoder of `config` for d pixels, every weight and bias N(0, scale²)."""
    shapes = eqx.filter_eval_shape(
        build, config, kind="binary", mean=np.zeros(d), spread=np.ones(d), key=jax.random.key(0)
    )
    rng = np.random.default_rng(seed)
    draw = lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype)
    is_shape = lambda a: isinstance(a, jax.ShapeDtypeStruct)
    return jax.tree.map(lambda a: draw(a) if is_shape(a) else a, shapes)
