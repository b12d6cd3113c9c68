"""A mixture as the prior of the top layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from iwae.config.schema import ModelConfig
from iwae.errors import InputError
from iwae.models.autoencoder import prune
from iwae.models.base import draw_log_weights
from iwae.models.build import build
from iwae.models.priors import Mixture
from iwae.storage import checkpoint
from thinned import thinned

MIXTURE = Mixture(
    jnp.asarray([0.3, -0.5, 1.0]),
    jnp.asarray([[1.0, -2.0], [0.5, 0.0], [-1.5, 3.0]]),
    jnp.asarray([[0.1, -0.3], [0.4, 0.0], [-0.6, 0.2]]),
)


def built(prior, layers=1):
    latents = ((3, 2), (2,))[layers == 1]
    config = ModelConfig(layers, ((6,),) * layers, latents, prior=prior, prior_components=3)
    return eqx.filter_jit(build)(
        config, kind="real", mean=np.zeros(4), spread=np.ones(4), key=jax.random.key(0)
    )


def exact(h, mixture=MIXTURE):
    """log p(h) in float64."""
    logits, mu, log_sigma = (np.asarray(a, np.float64) for a in jax.tree.leaves(mixture))
    of_each = norm.logpdf(h[:, None], mu, np.exp(log_sigma)).sum(axis=-1)
    return logsumexp(logits - logsumexp(logits) + of_each, axis=1)


def test_the_density_of_a_mixture_is_that_of_scipy():
    h = np.random.default_rng(0).normal(0, 3, (50, 2))
    own = jax.vmap(MIXTURE.log_prob)(jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(own, exact(h), rtol=1e-5, atol=1e-5)


def test_draws_of_a_mixture_have_its_moments():
    n = 40_000
    h = np.asarray(MIXTURE.sample(n, jax.random.key(0)), np.float64)
    share = np.asarray(jax.nn.softmax(MIXTURE.logits), np.float64)
    mu, sigma = np.asarray(MIXTURE.mu, np.float64), np.exp(np.asarray(MIXTURE.log_sigma))
    mean = share @ mu
    covariance = (mu.T * share) @ mu - np.outer(mean, mean) + np.diag(share @ sigma**2)
    assert (np.abs(h.mean(axis=0) - mean) < 4.5 * np.sqrt(np.diag(covariance) / n)).all()
    np.testing.assert_allclose(np.cov(h.T), covariance, atol=0.03 * covariance.max())


def test_the_marginal_of_a_mixture_integrates_the_other_units_out():
    grid = np.linspace(-15, 15, 2001)
    joint = np.exp(exact(np.stack([np.full_like(grid, 0.7), grid], axis=1)))
    marginal = MIXTURE.marginal(jnp.asarray([0])).log_prob(jnp.asarray([0.7]))
    assert float(marginal) == pytest.approx(np.log(np.trapezoid(joint, grid)), abs=1e-4)


@pytest.mark.parametrize("layers", thinned([1, 2], 2))
@pytest.mark.slow
def test_the_top_layer_has_the_prior_of_the_model(layers):
    model = built("mixture", layers)
    model = eqx.tree_at(lambda m: m.top, model, MIXTURE)
    h = model.prior(6, jax.random.key(1))
    terms = model.log_prior_terms(h)
    assert len(terms) == layers
    np.testing.assert_allclose(terms[-1], exact(np.asarray(h[-1], np.float64)), rtol=1e-4)


@pytest.mark.slow
def test_a_mixture_of_one_standard_component_is_the_standard_prior():
    plain = built("normal")
    standard = Mixture(jnp.zeros(1), jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    mixed = eqx.tree_at(lambda m: m.top, plain, standard, is_leaf=lambda part: part is None)
    x, key = jnp.arange(4.0), jax.random.key(2)
    one, other = (draw_log_weights(m, x, 5, key) for m in (plain, mixed))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_the_standard_prior_has_no_parameters():
    plain, mixed = built("normal"), built("mixture")
    names = checkpoint.arrays(plain).keys()
    assert checkpoint.arrays(mixed).keys() - names == {".top.logits", ".top.mu", ".top.log_sigma"}
    for name in names:
        one, other = (checkpoint.arrays(m)[name] for m in (plain, mixed))
        np.testing.assert_array_equal(one, other)


def test_every_component_learns():
    model, x = built("mixture"), jnp.arange(4.0)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return jnp.mean(draw_log_weights(model, x, 64, jax.random.key(0)))

    for leaf in jax.tree.leaves(gradient(model).top):
        assert (np.asarray(leaf) != 0).all()


def test_units_are_removed_from_the_mixture_too():
    model = eqx.tree_at(lambda m: m.top, built("mixture"), MIXTURE)
    smaller = prune(model, (jnp.asarray([False, True]),), (jnp.zeros(2),))
    h = smaller.prior(5, jax.random.key(0))
    assert h[0].shape == (5, 1)
    own = MIXTURE.marginal(jnp.asarray([1]))
    np.testing.assert_allclose(
        smaller.log_prior_terms(h)[0], exact(np.asarray(h[0], np.float64), own), rtol=1e-4
    )


@pytest.mark.parametrize("other", [{"proposal": "hierarchical"}, {"uncertain_weights": "both"}])
def test_a_mixture_is_for_independent_draws_and_fixed_weights(other):
    with pytest.raises(InputError, match="prior = mixture"):
        ModelConfig(prior="mixture", **other)
    with pytest.raises(InputError, match="missingness = linear"):
        ModelConfig(missingness="linear", **other)
