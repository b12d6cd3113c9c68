"""Evaluation against exact values: log p(x) in closed form, digamma, analytic active units."""

from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, logsumexp
from scipy.stats import multivariate_normal

from iwae import bounds
from iwae.config.schema import ModelConfig
from iwae.evaluation.elbo import posterior_means, terms
from iwae.evaluation.examples import mean_and_error, over_examples
from iwae.evaluation.likelihood import CHUNK, bound_value, log_likelihood
from iwae.evaluation.units import ACTIVE, ablation, activity
from iwae.models.autoencoder import log_weights, prune
from iwae.models.observation import Observer
from linear_gaussian import LinearGaussian, chain, generic_chain, orthogonal_chain, random_model

AS_IS = Observer(1.0, dynamic=False)


def agrees(values, expected, *, errors=4.0, at_most):
    """The mean of independent estimates is the expected one, and they can tell: se ≤ at_most."""
    mean, se = mean_and_error(np.asarray(values, np.float64))
    assert se <= at_most
    assert abs(mean - expected) <= errors * se


def repeat(function, n, seed=0):
    """function(key) for n keys."""
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), n))


def l_k(model, x, *, k, seed=0, chunk=CHUNK):
    """L_K of many examples, through the driver that runs evaluate."""
    function = eqx.Partial(log_likelihood, k=k, chunk=chunk)
    return over_examples(function, model, x, AS_IS, seed=seed, draws=min(k, chunk))


# --- the linear-Gaussian model of papers §9, written as a user would --------------------------


@pytest.fixture
def linear_gaussian():
    return LinearGaussian(jnp.array([0.3, -1.0, 0.5]), jnp.array([0.6, -0.2, 0.1]))


X = jnp.array([1.2, 0.4, -0.5])


def test_elbo_of_the_linear_gaussian_model_has_its_closed_form(linear_gaussian):
    values = repeat(lambda key: bound_value(linear_gaussian, X, key, bound=bounds.elbo, k=50), 4000)
    agrees(values, linear_gaussian.elbo(X), at_most=0.01)


def test_l_k_of_the_linear_gaussian_model_converges_to_log_p(linear_gaussian):
    values = repeat(lambda key: log_likelihood(linear_gaussian, X, key, k=5000), 100)
    agrees(values, linear_gaussian.log_evidence(X), at_most=0.002)


@pytest.mark.slow
def test_l_k_over_examples_converges_to_each_examples_log_p(linear_gaussian):
    x = np.asarray(X) + 0.5 * np.random.default_rng(0).normal(size=(150, 3))
    exact = linear_gaussian.log_evidence(x)
    values = l_k(linear_gaussian, x.astype(np.float32), k=5000)
    agrees(values - exact, 0.0, at_most=0.003)
    np.testing.assert_allclose(values, exact, atol=0.15)


# --- linear autoencoders: probabilistic PCA and deeper chains ---------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_with_the_exact_posterior_every_weight_is_p_of_x(layers):
    """Zero variance: log w = log p(x) = L_1 at each draw, in the data's own units."""
    oracle = orthogonal_chain(layers)
    x = oracle.draw(40, seed=1)

    def weights(x, key):
        return log_weights(oracle.model, x, oracle.model.propose(x, 5, key))

    log_w = jax.jit(jax.vmap(weights))(x, jax.random.split(jax.random.key(2), len(x)))
    exact = oracle.log_evidence(x)
    np.testing.assert_allclose(log_w, np.tile(exact[:, None], 5), atol=5e-5)


@pytest.mark.slow
def test_l_k_of_a_detuned_pca_rises_to_log_p():
    """Variances 1.5 times too large: KL(q‖p(h|x)) = (3/2)(1/2 − ln 1.5) below at K = 1."""
    oracle = orthogonal_chain(1, inflate=1.5)
    x = oracle.draw(2000, seed=3)
    sizes = (1, 2, 5, 10, 50, 500)

    def rising(model, x, key):
        log_w = log_weights(model, x, model.propose(x, 500, key))
        return [bounds.iwae(log_w[:k]) for k in sizes]

    values = over_examples(rising, oracle.model, x, AS_IS, seed=0, draws=500)
    gaps = [v - oracle.log_evidence(x) for v in values]
    agrees(gaps[0], -1.5 * (0.5 - np.log(1.5)), at_most=0.015)
    for fewer, more in pairwise(gaps):
        rise, se = mean_and_error(more - fewer)
        assert rise >= -3 * se
    agrees(gaps[-1], 0.0, at_most=5e-4)


@pytest.mark.slow
def test_l_k_of_a_two_layer_chain_with_an_approximate_q_converges_to_log_p():
    oracle = generic_chain((3, 3))
    x = oracle.draw(150, seed=4)
    values = l_k(oracle.model, x, k=4000)
    agrees(values - oracle.log_evidence(x), 0.0, at_most=0.003)


def test_ancestral_samples_have_the_models_mean_and_covariance():
    oracle, n = generic_chain((3, 3, 3)), 40_000
    x = np.asarray(oracle.model.sample(n, jax.random.key(5), mean=False), np.float64)
    sd = np.sqrt(np.diag(oracle.covariance))
    assert np.all(np.abs(x.mean(0) - oracle.mean) < 5 * sd / np.sqrt(n))
    se = np.sqrt((np.outer(sd, sd) ** 2 + oracle.covariance**2) / n)
    assert np.all(np.abs(np.cov(x.T) - oracle.covariance) < 5 * se)
    means = np.asarray(oracle.model.sample(n, jax.random.key(5)), np.float64)
    noise = oracle.covariance - np.cov(means.T)
    np.testing.assert_allclose(noise, np.eye(6), atol=5 * se.max())


def test_a_pca_without_a_column_has_the_evidence_of_that_pca():
    """The removed unit is held at c, so p(x) = N(x; μ + W_u c, Σ_{v≠u} W_v W_vᵀ + σ² I)."""
    rng = np.random.default_rng(6)
    w = np.linalg.qr(rng.normal(size=(6, 3)))[0] * np.array([2.0, 1.5, 0.8])
    mean, spread, c = rng.normal(size=6), rng.uniform(0.5, 2, 6), 0.7
    whole = chain([w], [0.5], mean=mean, spread=spread)
    rest = w[:, [0, 2]]
    covariance = rest @ rest.T + 0.25 * np.eye(6)
    keep, fill = jnp.array([True, False, True]), jnp.array([9.0, c, 9.0])
    model = prune(whole.model, (keep,), (fill,))
    x = whole.draw(50, seed=7)
    exact = multivariate_normal.logpdf(x, mean + c * w[:, 1], covariance)
    np.testing.assert_allclose(l_k(model, x, k=3), exact, atol=1e-4)


# --- streaming over K -------------------------------------------------------------------------


class Weights(eqx.Module):
    """A model whose draws h are the weights themselves: h = weights(k, key), log w = log h."""

    weights: object = eqx.field(static=True)

    def propose(self, x, k, key):
        return self.weights(k, key)

    def log_joint(self, x, h):
        return jnp.log(h)

    def log_proposal(self, x, h):
        return jnp.zeros_like(h)


def positions(k, key):
    """1, 2, …, k."""
    return 1.0 + jnp.arange(k)


def exponential(k, key):
    return jax.random.exponential(key, (k,))


@pytest.mark.parametrize(
    ("k", "chunk", "mean"),
    [(7, 3, 13 / 7), (6, 3, 12 / 6), (5, 250, 15 / 5), (1, 3, 1.0), (4, 1, 1.0), (8, 7, 29 / 8)],
)
def test_streaming_counts_each_of_the_k_draws_once(k, chunk, mean):
    """Chunks of weights 1, 2, … c: the last one is cut short so that there are k in all."""
    value = log_likelihood(Weights(positions), X, jax.random.key(0), k=k, chunk=chunk)
    np.testing.assert_allclose(value, np.log(mean), rtol=1e-6, atol=1e-6)


def test_constant_weights_give_their_log_exactly():
    model = Weights(lambda k, key: jnp.full(k, np.exp(-80.0)))
    value = log_likelihood(model, X, jax.random.key(0), k=7, chunk=3)
    np.testing.assert_allclose(value, -80.0, rtol=1e-6)


class LogWeights(Weights):
    """A model whose draws are the log-weights."""

    def log_joint(self, x, h):
        return h


def test_no_draw_is_lost_beside_a_log_likelihood_of_many_digits():
    """4,000 chunks of which each is worth less than the last digit of -4000 in float32."""
    model = LogWeights(lambda k, key: jnp.full(k, -4000.0))
    value = log_likelihood(model, X, jax.random.key(0), k=10**6)
    np.testing.assert_allclose(value, -4000, atol=2e-3)


@pytest.mark.parametrize("limit", [-np.inf, np.inf])
def test_streaming_passes_on_what_is_not_finite(limit):
    model = LogWeights(lambda k, key: jnp.full(k, limit))
    assert log_likelihood(model, X, jax.random.key(0), k=7, chunk=3) == limit


def test_streamed_exponential_weights_average_to_digamma():
    """E[L_K] = ψ(K) − log K for w ~ Exp(1), with a last chunk that is not full."""
    model = Weights(exponential)
    values = repeat(lambda key: log_likelihood(model, X, key, k=7, chunk=3), 200_000)
    agrees(values, digamma(7) - np.log(7), at_most=1e-3)


def test_streaming_equals_the_direct_log_sum_exp(linear_gaussian):
    """The chunk that starts at draw s takes its draws from fold_in(key, s)."""
    key, k, chunk = jax.random.key(8), 23, 5
    draws = [linear_gaussian.propose(X, chunk, jax.random.fold_in(key, s)) for s in range(0, k, 5)]
    log_w = log_weights(linear_gaussian, X, jnp.concatenate(draws))[:k]
    direct = logsumexp(np.asarray(log_w, np.float64)) - np.log(k)
    streamed = log_likelihood(linear_gaussian, X, key, k=k, chunk=chunk)
    np.testing.assert_allclose(streamed, direct, rtol=1e-6)


# --- the bound's terms and active units -------------------------------------------------------


def autoencoder(layers):
    hidden, latents = ((8,), (6,))[:layers], (4, 3)[:layers]
    config = ModelConfig(layers, hidden, latents, "bernoulli")
    return random_model(config, 6, seed=layers)


BITS = np.random.default_rng(9).integers(0, 2, (20, 6)).astype(np.uint8)


def test_the_terms_add_up_to_the_elbo_of_the_same_draws():
    model, x, key = autoencoder(2), jnp.asarray(BITS[0], float), jax.random.key(10)
    parts = jax.jit(partial(terms, k=50))(model, x, key)
    assert parts.shape == (3,)
    elbo = jax.jit(partial(bound_value, bound=bounds.elbo, k=50))(model, x, key)
    np.testing.assert_allclose(parts[0] - parts[1:].sum(), elbo, rtol=1e-5)


def test_the_kl_term_of_one_layer_is_that_of_two_gaussians():
    """KL(N(μ, σ²) ‖ N(0, 1)) = (μ² + σ² − 1)/2 − log σ, summed over units."""
    model, x = autoencoder(1), jnp.asarray(BITS[0], float)
    mu, log_sigma = (np.asarray(a, np.float64) for a in model.encoder[0](x))
    kl = np.sum((mu**2 + np.exp(2 * log_sigma) - 1) / 2 - log_sigma)
    values = repeat(lambda key: terms(model, x, key, k=250)[1], 400)
    agrees(values, kl, at_most=0.02 * kl)


def test_activity_of_the_first_layer_is_the_variance_of_the_encoders_means():
    model = autoencoder(1)
    mu, _ = jax.vmap(model.encoder[0])(BITS.astype(np.float32))
    result = activity(model, BITS, AS_IS, k=2)
    np.testing.assert_allclose(result.variance[0], np.var(mu, axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(result.mean[0], np.mean(mu, axis=0), rtol=1e-5, atol=1e-7)


def noisy_second_layer():
    """h_1 = (ε, x_1 + ε'/10) and E[h_2|h_1] = (h_11, h_12 / 2): A = (0, Var(x_1)/4) exactly."""
    heads = (
        ((0.0, 0.0), (1.0, 0.0)),
        (0.0, np.log(0.1)),
        ((1.0, 0.0), (0.0, 0.5)),
        (0.0, 0.0),
    )
    config = ModelConfig(2, ((), ()), (2, 2), "bernoulli")
    model = random_model(config, 2, seed=0)
    first, second = model.encoder
    where = lambda q: (q.mu.weight, q.log_sigma.weight, q.log_sigma.bias, q.mu.bias)
    mu1, sigma1, mu2, sigma2 = (jnp.array(a, jnp.float32) for a in heads)
    first = eqx.tree_at(where, first, (mu1, jnp.zeros((2, 2)), sigma1, jnp.zeros(2)))
    second = eqx.tree_at(where, second, (mu2, jnp.zeros((2, 2)), sigma2, jnp.zeros(2)))
    return eqx.tree_at(lambda m: m.encoder, model, (first, second))


def test_a_unit_that_follows_only_noise_is_dead_though_each_estimate_moves():
    x = np.random.default_rng(11).normal(size=(2000, 2)).astype(np.float32)
    model, k = noisy_second_layer(), 20
    means = over_examples(eqx.Partial(posterior_means, k=k), model, x, AS_IS, seed=0, draws=k)
    naive = np.var(means[1][0], axis=0, ddof=1)
    assert naive[0] > 4 * ACTIVE
    result = activity(model, x, AS_IS, k=k)
    dead, live = result.variance[1]
    noise = np.sqrt(2 / len(x)) / k
    assert abs(dead) < 4 * noise
    assert 4 * noise < ACTIVE
    np.testing.assert_allclose(live, np.var(x[:, 0], ddof=1) / 4, rtol=0.01)
    assert result.counts == [1, 1]


def test_activity_of_deep_layers_is_that_of_the_exact_posterior_means():
    """In a linear chain E[h_3|x] = G_3 G_2 G_1 (x − μ), so A_u is a quadratic form of Cov(x)."""
    oracle = orthogonal_chain(3)
    x = oracle.draw(500, seed=12)
    result = activity(oracle.model, x, AS_IS, k=400)
    to_layer = np.eye(6)
    for gain, variance in zip(oracle.gains, result.variance, strict=True):
        to_layer = gain @ to_layer
        expected = np.diag(to_layer @ np.cov(x.T) @ to_layer.T)
        np.testing.assert_allclose(variance, expected, rtol=0.03, atol=2e-3)


@pytest.mark.slow
def test_a_units_usage_is_what_the_layer_below_loses_of_its_density():
    """Where q is the posterior: U_u = ‖a_u‖² Var(h_u) / (2 s²), a_u its map, s the noise."""
    oracle = orthogonal_chain(2)
    result = ablation(oracle.model, oracle.draw(4000, seed=12), AS_IS, seed=0)
    spread = oracle.model.likelihood.spread[:, None]
    maps = (oracle.model.observation.linear.weight[:6] * spread, oracle.model.decoder[0].mu.weight)
    variances = (0.8**2 + 0.6**2, 1.0)
    for i, s in enumerate((0.7, 0.6)):
        expected = np.sum(np.square(maps[i]), axis=0) * variances[i] / (2 * s**2)
        assert np.all(np.abs(result.cost[i] - expected) < 4.5 * result.error[i])
        assert np.all(result.error[i] < 0.05 * expected)
        assert result.used[i].all()


@pytest.mark.slow
def test_a_unit_that_echoes_its_prior_is_active_but_not_used():
    """h_12 goes with h_2, but x does not depend on it: without it p(x) is the same."""
    rng = np.random.default_rng(3)
    maps = [rng.normal(size=(6, 2)) * [1.0, 0.0], np.array([[0.8], [0.9]])]
    oracle = chain(maps, (0.7, 0.6), mean=np.zeros(6), spread=np.ones(6), inflate=1.3)
    x = oracle.draw(400, seed=12)
    active, used = activity(oracle.model, x, AS_IS), ablation(oracle.model, x, AS_IS)
    assert active.counts == [2, 1]
    np.testing.assert_allclose(used.cost[0][1], 0, atol=1e-6)
    np.testing.assert_array_equal(used.used[0], [True, False])
    assert used.used[1].all()
    smaller = prune(
        oracle.model, tuple(map(jnp.asarray, used.used)), tuple(map(jnp.asarray, active.mean))
    )
    assert smaller.latents == (1, 1)
    agrees(l_k(smaller, x, k=2000) - oracle.log_evidence(x), 0, errors=5, at_most=0.01)


# --- the driver over examples -----------------------------------------------------------------


def what_arrives(model, x, key):
    return x, jax.random.key_data(key)


def test_every_example_arrives_once_in_order_with_its_own_key():
    """1,203 examples: several groups, none of them a whole number of blocks at the end."""
    images = np.arange(2406, dtype=np.float32).reshape(1203, 2)
    run = partial(over_examples, what_arrives, None, images, AS_IS, seed=3, draws=1)
    done = []
    x, keys = run(memory=8 * 2 * 7, progress=lambda *seen: done.append(seen))
    np.testing.assert_array_equal(x, images)
    assert len(np.unique(keys, axis=0)) == 1203
    assert len(done) > 1
    assert done[-1] == (1203, 1203)
    x, same = run(memory=None)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(keys, same)


@pytest.mark.slow
def test_values_depend_neither_on_the_block_nor_on_the_workers_nor_on_others(monkeypatch):
    function = eqx.Partial(log_likelihood, k=6, chunk=4)
    observe = Observer(2.0, dynamic=True)
    run = partial(over_examples, function, autoencoder(1), observe=observe, seed=4, draws=6)
    images = BITS + 1  # intensities ½ and 1
    values = run(images=images)
    assert len(np.unique(values)) == 20
    np.testing.assert_allclose(run(images=images, memory=8 * 6 * 6 * 4), values, rtol=1e-6)
    np.testing.assert_allclose(run(images=images[:7]), values[:7], rtol=1e-6)
    assert not np.any(np.isclose(run(images=images, seed=5), values, rtol=1e-4))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    np.testing.assert_allclose(run(images=images), values, rtol=1e-6)
