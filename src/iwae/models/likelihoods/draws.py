"""Draws from numpyro's distributions with any key of `jax.random`, for all parameters.

Some of numpyro's samplers only accept JAX's default keys, and some lose precision in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray

from iwae._utils.threefry import plain_key
from iwae.models.likelihoods.special import log_rise

NARROW = 1e4
"""The concentration above which a von Mises distribution is normal in float32."""


@functools.cache
def drawable(family: str) -> type[dist.Distribution]:
    """The class of numpyro with a `sample` that accepts any key."""
    theirs = getattr(dist, family)
    draw = SAMPLERS.get(family, theirs.sample)

    def sample(
        self: dist.Distribution, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> Array:
        return draw(self, plain_key(key), sample_shape)

    return type(family, (theirs,), {"sample": sample, "__doc__": theirs.__doc__})


LARGE = 1e8
"""The rate above which counts are normal in float32, which lacks some integers there."""


def _poisson(of: dist.Poisson, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Array:
    return _counts(key, jnp.broadcast_to(of.rate, (*sample_shape, *of.batch_shape)))


def _gamma_poisson(
    of: dist.GammaPoisson, key: PRNGKeyArray, sample_shape: tuple[int, ...]
) -> Array:
    key_gamma, key_poisson = jax.random.split(key)
    return _counts(key_poisson, of._gamma.sample(key_gamma, sample_shape))


def _beta_negative_binomial(
    of: dist.BetaNegativeBinomial, key: PRNGKeyArray, sample_shape: tuple[int, ...]
) -> Array:
    key_beta, key_count = jax.random.split(key)
    probs = of._beta.sample(key_beta, sample_shape)
    return _gamma_poisson(dist.NegativeBinomialProbs(of.n, probs), key_count, ())


def _zero_inflated_poisson(
    of: dist.ZeroInflatedPoisson, key: PRNGKeyArray, sample_shape: tuple[int, ...]
) -> Array:
    key_gate, key_count = jax.random.split(key)
    shape = (*sample_shape, *of.batch_shape)
    some = _counts(key_count, jnp.broadcast_to(of.base_dist.rate, shape))
    return jnp.where(jax.random.bernoulli(key_gate, of.gate, shape), 0, some)


def _counts(key: PRNGKeyArray, rate: Array) -> Array:
    """Poisson counts as floats; JAX draws 32-bit integers, which are limited to 2³¹ − 1."""
    few = jax.random.poisson(key, jnp.minimum(rate, LARGE)).astype(rate.dtype)
    many = rate + jnp.sqrt(rate) * jax.random.normal(key, rate.shape, rate.dtype)
    return jnp.where(rate > LARGE, jnp.round(many), few)


def _hurdle_poisson(
    of: dist.HurdlePoisson, key: PRNGKeyArray, sample_shape: tuple[int, ...]
) -> Array:
    """Draw counts above 0 from the time of the first event, without rejection at small rates.

    Given that events of rate λ occur in a unit of time, the first is at
    −log(1 − u (1 − e^−λ)) / λ with u uniform.
    """
    shape = (*sample_shape, *of.batch_shape)
    key_gate, key_first, key_more = jax.random.split(key, 3)
    rate = jnp.broadcast_to(of.base_dist.rate, shape)
    left = rate + jnp.log1p(jax.random.uniform(key_first, shape) * jnp.expm1(-rate))
    some = 1 + _counts(key_more, jnp.broadcast_to(jnp.maximum(left, 0.0), shape))
    return jnp.where(jax.random.bernoulli(key_gate, of.gate, shape), 0, some)


def _kumaraswamy(of: dist.Kumaraswamy, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Array:
    """(1 − u^(1/b))^(1/a) with u uniform."""
    exponential = jax.random.exponential(key, (*sample_shape, *of.batch_shape))
    w = jnp.log(exponential) - jnp.log(of.concentration0)
    return jnp.exp(log_rise(w) / of.concentration1)


def _von_mises(of: dist.VonMises, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> Array:
    shape = (*sample_shape, *of.batch_shape)
    wide = dist.VonMises(of.loc, jnp.minimum(of.concentration, NARROW)).sample(key, sample_shape)
    narrow = of.loc + jax.random.normal(key, shape) / jnp.sqrt(of.concentration)
    narrow = jnp.where(narrow > jnp.pi, narrow - 2 * jnp.pi, narrow)
    narrow = jnp.where(narrow < -jnp.pi, narrow + 2 * jnp.pi, narrow)
    return jnp.where(of.concentration > NARROW, narrow, wide)


SAMPLERS: dict[str, Callable[..., Array]] = {
    "BetaNegativeBinomial": _beta_negative_binomial,
    **dict.fromkeys(
        ("GammaPoisson", "NegativeBinomial2", "NegativeBinomialLogits"), _gamma_poisson
    ),
    "HurdlePoisson": _hurdle_poisson,
    "Kumaraswamy": _kumaraswamy,
    "Poisson": _poisson,
    "VonMises": _von_mises,
    "ZeroInflatedPoisson": _zero_inflated_poisson,
}
