"""Models of examples with missing values (NaN), for which the tests know all in closed form."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.stats import multivariate_normal, norm

from iwae.models.autoencoder import Autoencoder
from iwae.models.likelihoods import Bernoulli, Gaussian
from linear_gaussian import chain


class SeenGaussian(Gaussian):
    """`Gaussian` of the observed values."""

    def log_prob(self, parameters, x):
        return jnp.sum(self.log_probs(parameters, x))


class SeenBernoulli(Bernoulli):
    """`Bernoulli` of the observed values."""

    def log_prob(self, parameters, x):
        return jnp.sum(self.log_probs(parameters, x))


class Posterior(eqx.Module):
    """(μ, log σ) of p(z|x_o), its variances times `inflate`, for x = W z + mean + σ ε."""

    maps: Array
    mean: Array
    sigma: float
    inflate: float

    def __call__(self, x):
        seen = ~jnp.isnan(x)
        maps = jnp.where(seen[:, None], self.maps, 0.0)
        inverse = jnp.linalg.inv(jnp.eye(maps.shape[1]) + maps.T @ maps / self.sigma**2)
        centred = jnp.where(seen, x - self.mean, 0.0)
        mu = inverse @ maps.T @ centred / self.sigma**2
        return mu, 0.5 * jnp.log(self.inflate * jnp.diag(inverse))


@dataclass(frozen=True)
class Ppca:
    """x = W z + mean + σ ε: its marginals and conditionals are Gaussian (papers.md §11)."""

    model: Autoencoder
    mean: np.ndarray
    covariance: np.ndarray

    def draw(self, n, seed):
        rng = np.random.default_rng(seed)
        return rng.multivariate_normal(self.mean, self.covariance, n).astype(np.float32)

    def log_evidence(self, x):
        """log p(x_o) of one example."""
        o = ~np.isnan(x)
        if not o.any():
            return 0.0
        return multivariate_normal.logpdf(x[o], self.mean[o], self.covariance[np.ix_(o, o)])

    def missing(self, x):
        """(E[x_m|x_o], Cov[x_m|x_o]) of one example."""
        o = ~np.isnan(x)
        of = lambda rows, columns: self.covariance[np.ix_(rows, columns)]
        gain = of(~o, o) @ np.linalg.inv(of(o, o))
        mean = self.mean[~o] + gain @ (x[o] - self.mean[o])
        return mean, of(~o, ~o) - gain @ of(o, ~o)

    def given_rest(self, x):
        """log p(x_j|x_rest) of the values of one example; NaN where they are missing."""
        values = np.full(len(x), np.nan)
        for j in np.flatnonzero(~np.isnan(x)):
            rest = np.where(np.arange(len(x)) == j, np.nan, x)
            mean, covariance = self.missing(rest)
            at = np.flatnonzero(np.isnan(rest)) == j
            values[j] = norm.logpdf(x[j], mean[at][0], np.sqrt(covariance[at, at][0]))
        return values


def ppca(d=5, latents=2, *, sigma=0.6, inflate=1.5, seed=0):
    """Probabilistic PCA as an `Autoencoder` whose q is near the posterior of any observed part."""
    rng = np.random.default_rng(seed)
    maps, mean = rng.normal(size=(d, latents)), rng.normal(size=d)
    made = chain([maps], (sigma,), mean=mean, spread=rng.uniform(0.5, 2, d))
    encoder = Posterior(jnp.asarray(maps), jnp.asarray(mean), sigma, inflate)
    seen = SeenGaussian(made.model.likelihood.mean, made.model.likelihood.spread)
    model = eqx.tree_at(lambda m: (m.encoder, m.likelihood), made.model, ((encoder,), seen))
    return Ppca(model, made.mean, made.covariance)


def with_holes(x, share, seed):
    """x with this share of its values missing at random."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(x.shape) < share, np.nan, x).astype(np.float32)
