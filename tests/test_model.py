"""The autoencoder and its likelihoods against independent implementations."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

from iwae.config.schema import ModelConfig
from iwae.evaluation.likelihood import log_likelihood
from iwae.models import likelihoods
from iwae.models.autoencoder import (
    Autoencoder,
    draw,
    draw_log_weights,
    log_normal,
    log_standard_normal,
    log_weights,
    prune,
)
from iwae.models.build import build
from iwae.models.likelihoods import likelihood
from iwae.models.networks import Linear
from linear_gaussian import random_model
from programs import products
from refusals import refused
from thinned import thinned

D, K = 7, 5
WIDTHS, LATENTS = ((11,), (6,), (8,)), (4, 3, 2)


def model_with(layers):
    config = ModelConfig(layers, WIDTHS[:layers], LATENTS[:layers], "bernoulli")
    return random_model(config, D, seed=layers)


X = jnp.array([1.0, 0, 1, 1, 0, 0, 1])


@eqx.filter_jit
def drawn(model, x, key):
    """K draws and their log-weights."""
    h = model.propose(x, K, key)
    return h, log_weights(model, x, h)


@eqx.filter_jit
def weigh(model, x, h):
    return log_weights(model, x, h)


# --- log-weights ------------------------------------------------------------------------------


def tanh_layers(network, v):
    for layer in network.layers:
        v = np.tanh(np.asarray(layer.weight, np.float64) @ v + np.asarray(layer.bias, np.float64))
    return v


def gaussian(conditional, v):
    """(μ, σ) of a `Gaussian`, in numpy."""
    v = tanh_layers(conditional.features, v)
    mu, log_sigma = (
        np.asarray(head.weight, np.float64) @ v + np.asarray(head.bias, np.float64)
        for head in (conditional.mu, conditional.log_sigma)
    )
    return mu, np.exp(log_sigma)


def reference_log_w(model, x, h):
    """log p(h_L) … p(h_1|h_2) p(x|h_1) − log q(h_1|x) … q(h_L|h_{L−1}) of ONE draw."""
    v = tanh_layers(model.observation.features, h[0])
    last = model.observation.linear
    z = np.asarray(last.weight, np.float64) @ v + np.asarray(last.bias)
    log_w = np.sum(x * z - np.logaddexp(0, z)) + np.sum(norm.logpdf(h[-1]))
    for below, above, p in zip(h[:-1], h[1:], model.decoder, strict=True):
        log_w += np.sum(norm.logpdf(below, *gaussian(p, above)))
    for given, drawn, q in zip([x, *h[:-1]], h, model.encoder, strict=True):
        log_w -= np.sum(norm.logpdf(drawn, *gaussian(q, given)))
    return log_w


@pytest.mark.parametrize("layers", thinned([1, 2, 3], 2))
def test_draws_come_with_their_own_log_density(layers):
    model = model_with(layers)
    x, key = jnp.ones(model.encoder[0].features.layers[0].weight.shape[1]), jax.random.key(3)
    h, log_q = draw(model, x, 20, key)
    np.testing.assert_allclose(log_q, model.log_proposal(x, h), rtol=2e-5)
    for one, same in zip(h, model.propose(x, 20, key), strict=True):
        np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(
        draw_log_weights(model, x, 20, key), model.log_joint(x, h) - log_q
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_log_weights_are_those_of_a_loop_over_draws_in_numpy(layers):
    model = model_with(layers)
    h, log_w = drawn(model, X, jax.random.key(1))
    assert [a.shape for a in h] == [(K, n) for n in LATENTS[:layers]]
    draws = [[np.asarray(layer[i], np.float64) for layer in h] for i in range(K)]
    reference = [reference_log_w(model, np.asarray(X), draw) for draw in draws]
    assert np.ptp(reference) > 0.1
    np.testing.assert_allclose(log_w, reference, rtol=2e-5)


def test_draws_follow_the_conditionals_that_weigh_them():
    """Standardised by q's own (μ, σ), the draws of each layer are N(0, I), and independent."""
    model, k = model_with(2), 4000
    h1, h2 = jax.jit(lambda key: model.propose(X, k, key))(jax.random.key(2))
    mu1, log_sigma1 = model.encoder[0](X)
    mu2, log_sigma2 = jax.vmap(model.encoder[1])(h1)
    noise = [(h1 - mu1) / jnp.exp(log_sigma1), (h2 - mu2) / jnp.exp(log_sigma2)]
    noise = np.concatenate([np.asarray(e) for e in noise], axis=1)
    assert np.all(np.abs(noise.mean(0)) < 4.5 / np.sqrt(k))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(noise.shape[1]), atol=5 * np.sqrt(2 / k))


def test_log_normal_equals_numpyros():
    h, mu, log_sigma = jax.random.normal(jax.random.key(3), (3, 4, 5)) * 2
    expected = dist.Normal(mu, jnp.exp(log_sigma)).log_prob(h).sum(-1)
    np.testing.assert_allclose(log_normal(h, mu, log_sigma), expected, rtol=1e-5)
    standard = dist.Normal().log_prob(h).sum(-1)
    np.testing.assert_allclose(log_standard_normal(h), standard, rtol=1e-6)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_encoder_sees_each_image_once_not_once_per_draw(streamed):
    """One product with the first encoder layer, which has no axis K."""
    model = model_with(2)

    def run(x, key):
        if streamed:
            return log_likelihood(model, x, key, k=10, chunk=5)
        return draw_log_weights(model, x, 12, key)

    found = products(jax.make_jaxpr(run)(X, jax.random.key(4)).jaxpr)
    shapes = [([v.aval.shape for v in p.invars], p.outvars[0].aval.shape) for p in found]
    (first,) = (out for factors, out in shapes if (D, 11) in factors)
    (second,) = (out for factors, out in shapes if (4, 6) in factors)
    assert first == (11,)
    assert second == (5 if streamed else 12, 6)


# --- a user's own parts -----------------------------------------------------------------------


class Quadratic(eqx.Module):
    """(μ, log σ) = (a v², b)."""

    a: jax.Array
    b: jax.Array

    def __call__(self, v):
        return self.a @ v**2, self.b


class Rate(eqx.Module):
    c: jax.Array

    def __call__(self, h1):
        return self.c @ h1


class Poisson(likelihoods.AbstractLikelihood):
    n_parameters = 1

    def distribution(self, parameters):
        return dist.Poisson(jnp.exp(parameters[0]))

    def log_prob(self, parameters, x):
        return self.distribution(parameters).log_prob(x).sum()

    def initial_bias(self, mean, spread):
        return jnp.log(mean)[None]


def test_own_modules_fit_every_slot_and_receive_gradients():
    rng = np.random.default_rng(5)
    a1, a2, a3 = (0.3 * rng.normal(size=s) for s in ((3, 4), (2, 3), (3, 2)))
    b1, b2, b3 = (0.3 * rng.normal(size=n) for n in (3, 2, 3))
    c, x = 0.3 * rng.normal(size=(4, 3)), np.array([1.0, 3.0, 1.0, 2.0])
    parts = [Quadratic(jnp.asarray(a), jnp.asarray(b)) for a, b in ((a1, b1), (a2, b2), (a3, b3))]
    model = Autoencoder(tuple(parts[:2]), (parts[2],), Rate(jnp.asarray(c)), Poisson(), (3, 2))
    (h1, h2), log_w = drawn(model, jnp.asarray(x), jax.random.key(6))
    z = h1 @ c.T
    log_p = np.sum(x * z - np.exp(z) - np.log([1, 6, 1, 2]), axis=1)
    log_p += norm.logpdf(h2).sum(1) + norm.logpdf(h1, np.square(h2) @ a3.T, np.exp(b3)).sum(1)
    log_q = norm.logpdf(h1, a1 @ x**2, np.exp(b1)).sum(1)
    log_q += norm.logpdf(h2, np.square(h1) @ a2.T, np.exp(b2)).sum(1)
    np.testing.assert_allclose(log_w, log_p - log_q, rtol=2e-5)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return log_weights(model, jnp.asarray(x), model.propose(jnp.asarray(x), 3, key)).mean()

    key = jax.random.key(7)
    assert all(np.all(np.abs(g) > 1e-7) for g in jax.tree.leaves(gradient(model)))


# --- build ------------------------------------------------------------------------------------


def linear_layers(model):
    leaves = jax.tree.leaves(model, is_leaf=lambda m: isinstance(m, Linear))
    return [layer for layer in leaves if isinstance(layer, Linear)]


def test_build_stacks_the_layers_of_the_configuration_and_mirrors_them_in_the_decoder():
    config = ModelConfig(2, ((64, 32), (16,)), (20, 10), "auto")
    moments, key = np.ones(48), jax.random.key(0)
    model = eqx.filter_eval_shape(
        build, config, kind="binary", mean=moments, spread=moments, key=key
    )
    encoder = [(64, 48), (32, 64), (20, 32), (20, 32), (16, 20), (10, 16), (10, 16)]
    decoder = [(16, 10), (20, 16), (20, 16), (32, 20), (64, 32), (48, 64)]
    assert [layer.weight.shape for layer in linear_layers(model)] == encoder + decoder


def test_build_draws_glorot_uniform_weights_and_zero_biases():
    config, mean = ModelConfig(1, ((64,),), (20,), "auto"), np.linspace(0, 1, 48)
    model = eqx.filter_jit(build)(
        config, kind="binary", mean=mean, spread=np.ones(48), key=jax.random.key(8)
    )
    layers = linear_layers(model)
    for layer in layers:
        limit = np.sqrt(6 / sum(layer.weight.shape))
        assert 0.95 * limit < np.max(np.abs(layer.weight)) <= limit * (1 + 1e-6)
        np.testing.assert_allclose(np.std(layer.weight), limit / np.sqrt(3), rtol=0.1)
    assert not any(np.any(layer.bias) for layer in layers[:-1])
    clipped = np.clip(mean, 0.001, 0.999)
    np.testing.assert_allclose(layers[-1].bias, np.log(clipped / (1 - clipped)), rtol=1e-5)


# --- prune ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_restricting_to_all_units_changes_nothing():
    model, key = model_with(3), jax.random.key(9)
    keep = tuple(jnp.ones(n, bool) for n in LATENTS)
    fill = tuple(jnp.full(n, jnp.nan) for n in LATENTS)
    whole = prune(model, keep, fill)
    (h, log_w), (same_h, same_log_w) = drawn(model, X, key), drawn(whole, X, key)
    for mine, theirs in zip(same_h, h, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(same_log_w, log_w, rtol=1e-6)


@pytest.mark.slow
def test_units_that_say_nothing_weigh_nothing():
    """q(h_u) = p(h_u) and no weights lead away from u: log w is that of the other units."""
    model, u, v = model_with(2), 1, 2

    def where(m):
        (q1, q2), (p1,) = m.encoder, m.decoder
        rows = [q1.mu, q1.log_sigma, q2.mu, q2.log_sigma, p1.mu, p1.log_sigma]
        networks = [q2.features, p1.features, m.observation.features]
        columns = [network.layers[0].weight for network in networks]
        return [*(r.weight for r in rows), *(r.bias for r in rows), *columns]

    units = [u, u, v, v, u, u]
    old = where(model)
    new = [a.at[i].set(0) for a, i in zip(old[:12], units * 2, strict=True)]
    new += [a.at[:, i].set(0) for a, i in zip(old[12:], [u, v, u], strict=True)]
    model = eqx.tree_at(where, model, new)
    keep = tuple(jnp.arange(n) != i for n, i in ((4, u), (3, v)))
    smaller = prune(model, keep, (jnp.full(4, 5.0), jnp.full(3, -5.0)))
    assert smaller.latents == (3, 2)
    shapes = jax.eval_shape(lambda key: smaller.propose(X, K, key), jax.random.key(0))
    assert [a.shape for a in shapes] == [(K, 3), (K, 2)]
    h, log_w = drawn(model, X, jax.random.key(10))
    fewer = tuple(a[:, mask] for a, mask in zip(h, keep, strict=True))
    np.testing.assert_allclose(weigh(smaller, X, fewer), log_w, rtol=1e-5)


# --- likelihoods ------------------------------------------------------------------------------


def test_bernoulli_is_exact_at_extreme_logits():
    z = jnp.array([[1e4], [-1e4], [1e4], [-1e4]])
    x = jnp.array([[1.0], [0.0], [0.0], [1.0]])
    each = [likelihoods.Bernoulli().log_prob(z_i[None], x_i) for z_i, x_i in zip(z, x, strict=True)]
    np.testing.assert_array_equal(each, [0, 0, -1e4, -1e4])


@pytest.mark.parametrize("d", thinned([1, 13, 64, 100, 784], 13, 784))
def test_bernoulli_is_the_same_with_and_without_a_gradient(d):
    """Its value alone multiplies before it takes logarithms."""
    rng = np.random.default_rng(d)
    z, x = rng.normal(0, 20, d), (rng.random(d) < 0.4) * 1.0
    exact = np.sum(x * z - np.logaddexp(0, z))
    log_prob = likelihoods.Bernoulli().log_prob
    alone = jax.jit(log_prob)(jnp.asarray(z[None], jnp.float32), jnp.asarray(x, jnp.float32))
    beside, _ = jax.value_and_grad(log_prob)(jnp.asarray(z[None]), jnp.asarray(x))
    np.testing.assert_allclose(alone, exact, rtol=2e-6)
    np.testing.assert_allclose(beside, exact, rtol=2e-6)


def test_bernoulli_equals_numpyros_and_its_gradient_is_x_minus_sigmoid():
    z = jnp.array([-1e4, -30.0, -3.0, -0.1, 0.0, 0.0, 0.1, 3.0, 30.0, 1e4])
    x = jnp.array([0.0, 1, 0, 1, 0, 1, 1, 0, 1, 0])
    value, gradient = jax.value_and_grad(likelihoods.Bernoulli().log_prob)(z[None], x)
    np.testing.assert_allclose(value, dist.Bernoulli(logits=z).log_prob(x).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], x - jax.nn.sigmoid(z), rtol=1e-5, atol=1e-12)


def test_gaussian_is_the_density_of_x_in_its_own_units():
    rng = np.random.default_rng(11)
    mean, spread, a, b, x = rng.normal(size=(5, 4))
    spread = np.exp(spread)
    one = likelihood("auto", kind="real", mean=jnp.asarray(mean), spread=jnp.asarray(spread))
    expected = norm.logpdf(x, mean + spread * a, spread * np.exp(b)).sum()
    parameters = jnp.asarray([a, b])
    np.testing.assert_allclose(one.log_prob(parameters, jnp.asarray(x)), expected, rtol=1e-5)
    numpyros = one.distribution(parameters).log_prob(jnp.asarray(x)).sum()
    np.testing.assert_allclose(numpyros, expected, rtol=1e-5)
    start = one.distribution(one.initial_bias(jnp.asarray(mean), jnp.asarray(spread)))
    np.testing.assert_allclose(start.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(start.variance, spread**2, rtol=1e-5)


def make(name, *, kind="binary"):
    return likelihood(name, kind=kind, mean=jnp.array([0.2, 0.5]), spread=jnp.array([0.4, 1.5]))


def test_initial_biases_are_the_moments_of_the_training_data():
    mean = jnp.array([0.0, 0.3, 1.0])
    bias = likelihoods.Bernoulli().initial_bias(mean, mean)
    np.testing.assert_allclose(jax.nn.sigmoid(bias[0]), [0.001, 0.3, 0.999], rtol=1e-5)
    for name in ("Normal", "Laplace", "StudentT"):
        one = make(name)
        start = one.distribution(one.initial_bias(jnp.array([0.2, 0.5]), jnp.array([0.4, 1.5])))
        np.testing.assert_allclose(start.loc, [0.2, 0.5], rtol=1e-6)
        np.testing.assert_allclose(start.scale, [0.4, 1.5], rtol=1e-5)

    start = likelihoods.Numpyro("LogNormal").initial_bias(jnp.array([1133.0]), jnp.array([604.0]))
    np.testing.assert_allclose(start[0], np.log(1000), atol=1e-3)  # e^σ²/2 = 1.133 and σ = 0.5
    np.testing.assert_allclose(jnp.exp(start[1]), 0.5, atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "Normal", "Laplace", "StudentT", "AsymmetricLaplace"])
def test_a_density_over_the_whole_line_does_not_depend_on_units(name):
    """log p(s x + m | h) = log p(x | h) − d log s for one and the same decoder."""
    x, parameters = jnp.array([0.7, -1.2]), jnp.full((3, 2), 0.3)
    s, m = 1e4, -30.0
    plain = likelihood(name, kind="real", mean=jnp.zeros(2), spread=jnp.ones(2))
    other = likelihood(name, kind="real", mean=jnp.full(2, m), spread=jnp.full(2, s))
    parameters = parameters[: plain.n_parameters]
    np.testing.assert_array_equal(
        plain.initial_bias(jnp.zeros(2), jnp.ones(2)), other.initial_bias(m + x, jnp.full(2, s))
    )
    np.testing.assert_allclose(
        other.log_prob(parameters, s * x + m),
        plain.log_prob(parameters, x) - 2 * np.log(s),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Normal", 0.2),
        ("Cauchy", 0.2),
        ("HalfCauchy", 0.4),
    ],
)
def test_where_there_is_no_mean_the_middle_stands_for_it(name, expected):
    mean, spread = jnp.array([0.2]), jnp.array([0.4])
    one = likelihood(name, kind="real", mean=mean, spread=spread)
    np.testing.assert_allclose(one.expected(one.initial_bias(mean, spread)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"), [("RelaxedBernoulliLogits", 0.5), ("BetaNegativeBinomial", np.inf)]
)
def test_a_middle_that_is_not_known_is_not_made_up(name, expected):
    one = likelihoods.Numpyro(name)
    assert one.expected(jnp.zeros((one.n_parameters, 1))) == expected


def test_students_t_has_a_mean_at_its_start():
    one = make("StudentT")
    start = one.distribution(one.initial_bias(jnp.array([0.2, 0.5]), jnp.array([0.4, 1.5])))
    np.testing.assert_allclose(start.df, 5, rtol=1e-5)
    np.testing.assert_allclose(start.mean, [0.2, 0.5], rtol=1e-6)


def test_densities_are_told_from_probabilities():
    for name, kind in (("auto", "real"), ("gaussian", "binary"), ("Beta", "intensity")):
        assert likelihoods.is_continuous(name, kind)
    for name, kind in (("auto", "binary"), ("bernoulli", "binary"), ("Poisson", "real")):
        assert not likelihoods.is_continuous(name, kind)


def sampled(family, noise):
    """A sample, as the model draws it."""
    return family.sample(jax.random.key(13)).astype(float)


def mapped(family, noise):
    """A point of the support that takes no sampler: 0 and 1, or the image of real numbers."""
    if family.support.is_discrete:
        return jnp.array([0.0, 1.0])
    return dist.biject_to(family.support)(noise[0])


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def scored(observe, noise):
    """Per name: parameters near the initial bias, an x, its log p, and that of each pixel."""
    found = {}
    for name in USABLE:
        one = make(name)
        start = one.initial_bias(jnp.array([0.2, 0.5]), jnp.array([0.4, 1.5]))
        parameters = start + noise[: len(start)]
        family = one.distribution(parameters)
        x = observe(family, noise)
        found[name] = parameters, x, one.log_prob(parameters, x), family.log_prob(x)
    return found


def problem(name, parameters, x, whole, pixels):
    """What is wrong with a likelihood at an x of its own, or ""."""
    one = make(name)
    if parameters.shape != (one.n_parameters, 2) or x.shape != (2,):
        return f"parameters of shape {parameters.shape} observe shape {x.shape}"
    if not np.isfinite(whole):
        return f"log p({x}) is {whole}"
    rounding = 1e-6 * np.abs(pixels).sum()
    if pixels.shape != (2,) or not np.isclose(whole, pixels.sum(), rtol=1e-5, atol=rounding):
        return f"log p {whole} is not the sum over pixels {pixels}"
    if not np.all(one.distribution(jnp.asarray(parameters)).support(x)):
        return f"{x} is outside its support"
    return ""


USABLE = likelihoods.names()


@pytest.mark.slow
@pytest.mark.parametrize("observe", [mapped, pytest.param(sampled, marks=pytest.mark.slow)])
def test_every_named_likelihood_scores_what_it_can_observe(observe):
    assert len(USABLE) > 30
    noise = 0.3 * jax.random.normal(jax.random.key(12), (3, 2))
    found = jax.device_get(scored(observe, noise))
    problems = {name: problem(name, *values) for name, values in found.items()}
    assert {name: what for name, what in problems.items() if what} == {}


def test_a_numpyro_likelihood_is_that_distribution():
    x, parameters = jnp.array([1.5, 0.2]), jnp.array([[0.3, -0.2], [0.1, 0.7]])
    expected = dist.Gamma(jnp.exp(parameters[0]), jnp.exp(parameters[1])).log_prob(x).sum()
    value = likelihoods.Numpyro("Gamma").log_prob(parameters, x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_likelihood_that_does_not_exist_is_refused():
    with refused("There is no likelihood 'gausian'; the nearest is 'gaussian'."):
        make("gausian")


def test_bernoulli_of_real_values_is_refused():
    with refused(
        "likelihood = bernoulli was given, but the data have real values; give "
        "--likelihood gaussian, or bring the data into [0, 1]."
    ):
        make("bernoulli", kind="real")


@pytest.mark.slow
def test_weights_by_fan_in_are_uniform_to_its_root_and_biases_zero():
    """U[±1/√n_in] (DD2434): the edges are approached, the variance is 1 / (3 n_in)."""
    config = ModelConfig(2, ((200, 90), (60,)), (40, 30), "bernoulli", initialization="fan-in")
    mean = np.full(300, 0.2)
    given = {"kind": "binary", "mean": mean, "spread": np.ones(300), "key": jax.random.key(4)}
    model = eqx.filter_jit(build)(config, **given)
    is_linear = lambda part: isinstance(part, Linear)
    linears = [p for p in jax.tree.leaves(model, is_leaf=is_linear) if is_linear(p)]
    assert len(linears) == 3 + 4 * 2 + 1 + 1
    for linear in linears:
        edge = linear.weight.shape[1] ** -0.5
        largest = np.max(np.abs(linear.weight))
        assert 0.97 * edge < largest <= edge
        np.testing.assert_allclose(np.var(linear.weight), edge**2 / 3, rtol=0.15)
        assert not np.any(linear.bias)
    first = [np.asarray(linear.weight).ravel()[0] for linear in linears]
    assert len(set(first)) == len(first)
