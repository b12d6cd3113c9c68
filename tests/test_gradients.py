"""Estimators: by hand, identities, agreement in the mean, variances, SNR laws, and refusals."""

import functools
from dataclasses import fields
from functools import partial
from typing import get_args, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy.special import softmax

from iwae.bounds import BOUNDS, Pair, ciwae, curvature, elbo, iwae, jvi, miwae, vr_iwae
from iwae.config.schema import ModelConfig, ObjectiveConfig
from iwae.errors import InputError
from iwae.estimators import diagnostics, rules
from iwae.estimators.surrogate import (
    ESTIMATORS,
    TINY,
    Coefficients,
    Estimator,
    Weights,
    capabilities,
    resampled,
    surrogate_loss,
)
from iwae.models.autoencoder import (
    Autoencoder,
    FromFunctions,
    as_model,
    draw_log_weights,
    log_normal,
    log_weights,
)
from iwae.models.build import build
from linear_gaussian import LinearGaussian, generic_chain, orthogonal_chain, random_model
from refusals import refused
from thinned import thinned

SMOOTH = {
    "elbo": elbo,
    "iwae": iwae,
    "miwae": partial(miwae, m=2),
    "ciwae": partial(ciwae, beta=0.4),
    "vr-iwae": partial(vr_iwae, alpha=0.5),
    "vr-iwae, negative": partial(vr_iwae, alpha=-0.5),
    "jvi-1": partial(jvi, order=1),
    "jvi-2": partial(jvi, order=2),
}

# --- by hand ----------------------------------------------------------------------------------

X = jnp.array([1.2, 0.4, -0.5])


def user_model():
    mu, e = jnp.array([0.3, -1.0, 0.5]), jnp.array([0.6, -0.2, 0.1])
    return LinearGaussian(mu, e, jnp.array(-0.3))


@eqx.filter_jit
def gradients(model, x, key, k, bounds=(elbo, iwae), estimator="reparam"):
    """(value, ∇loss) of one example, for each bound."""

    def one(bound):
        def loss(model):
            return surrogate_loss(model, x, key, bound=bound, k=k, estimator=estimator)

        (_, value), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        return value, gradient

    return [one(bound) for bound in bounds]


def test_the_gradients_are_those_worked_out_by_hand():
    """Σ_i c_i ∇log w_i with z = e + s ε: q's density moves with its draws, so
    ∂/∂e = μ + x − 2z, ∂/∂μ = z − μ, ∂/∂log s = d + (μ + x − 2z)·s ε; c_i = w̃_i or 1/K."""
    model, key, k = user_model(), jax.random.key(1), 6
    z = model.propose(X, k, key)
    log_w = log_weights(model, X, z)
    pull = np.asarray(model.mu + X - 2 * z, np.float64)
    by_scale = 3 + np.sum(pull * np.asarray(z - model.e), axis=1)
    coefficients = np.full(k, 1 / k), softmax(np.asarray(log_w, np.float64))
    results = gradients(model, X, key, k)
    for bound, c, (value, gradient) in zip((elbo, iwae), coefficients, results, strict=True):
        np.testing.assert_allclose(value, bound(log_w), rtol=1e-6)
        np.testing.assert_allclose(-gradient.e, c @ pull, rtol=1e-4)
        np.testing.assert_allclose(-gradient.mu, c @ np.asarray(z - model.mu), rtol=1e-4)
        np.testing.assert_allclose(-gradient.log_s, c @ by_scale, rtol=1e-4)


def small_model(layers=1):
    config = ModelConfig(layers, ((4,), (4,))[:layers], (3, 2)[:layers], "bernoulli")
    return random_model(config, 5, seed=2)


@pytest.mark.slow
def test_the_gradient_of_an_autoencoder_weighs_that_of_each_draw():
    """Σ_i w̃_i ∇ log w(x, h_i), the K gradients taken one by one (Burda et al. Eq. 13)."""
    model, x, key = small_model(2), jnp.array([1.0, 0, 0, 1, 1]), jax.random.key(3)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def each(params):
        def log_w(params):
            model = eqx.combine(params, static)
            return log_weights(model, x, model.propose(x, 4, key))

        return log_w(params), jax.jacrev(log_w)(params)

    log_w, jacobian = each(params)
    weighted = jax.tree.map(lambda g: -jnp.tensordot(jax.nn.softmax(log_w), g, 1), jacobian)
    ((_, gradient),) = gradients(model, x, key, 4, (iwae,))
    for got, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(weighted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def weights_of_the_papers(name, bound, log_w):
    """(c, b, s) in numpy; that c and H are right is for the tests of bounds."""
    k, w = len(log_w), softmax(np.asarray(log_w, np.float64))
    c = np.asarray(jax.jit(jax.grad(bound))(log_w), np.float64)
    h = np.asarray(jax.jit(partial(curvature, bound))(log_w), np.float64)
    zero = np.zeros(k)
    table = {
        "reparam": (c, -c),
        "stl": (c, zero),
        "dreg": (c - h, zero),
        "rws": (zero, w),
        "rws-dreg": (w - w**2, zero),
        "aisle-kl": (w, zero),
        "aisle-chi2": (2 * k * w**2, zero),
    }
    return c, *table[name]


@pytest.mark.parametrize("name", thinned(sorted(set(ESTIMATORS) - {"rws-sleep"}), "rws"))
def test_every_estimator_weighs_paths_and_scores_as_its_paper_says(name):
    """z = e + s ε: path of e is ∂log w/∂z, of log s is that · s ε; scores at fixed z."""
    model, key, k = user_model(), jax.random.key(1), 6
    z = model.propose(X, k, key)
    log_w = log_weights(model, X, z)
    scaled = np.asarray(z - model.e, np.float64)
    precision = np.exp(-2 * float(model.log_s))
    path = np.asarray(model.mu + X - 2 * z, np.float64) + scaled * precision
    score = scaled * precision
    close = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4)
    of_its_own = ESTIMATORS[name].own_phi
    bounds = (iwae, SMOOTH["miwae"]) if of_its_own else tuple(SMOOTH.values())
    results = gradients(model, X, key, k, bounds, name)
    for bound, (value, gradient) in zip(bounds, results, strict=True):
        c, b, s = weights_of_the_papers(name, bound, log_w)
        close(value, bound(log_w))
        close(-gradient.e, b @ path + s @ score)
        close(-gradient.log_s, b @ (path * scaled).sum(1) + s @ ((score * scaled).sum(1) - 3))
        close(-gradient.mu, c @ np.asarray(z - model.mu))


def test_with_one_draw_iwae_and_elbo_have_the_same_gradient():
    results = gradients(user_model(), X, jax.random.key(4), 1)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_doubly_reparametrised_weights_are_those_of_the_papers():
    """c − H_ii: w̃² for L_K (Tucker et al.), αw̃ + (1−α)w̃² for VR-IWAE (Daudel et al.), 1/K."""
    log_w = np.random.default_rng(1).normal(size=7)
    weights = lambda bound: ESTIMATORS["dreg"].path(Weights(jnp.asarray(log_w, jnp.float32), bound))
    close = partial(np.testing.assert_allclose, rtol=1e-4)
    close(weights(iwae), softmax(log_w) ** 2)
    close(weights(elbo), np.full(7, 1 / 7))
    for alpha in (0.3, -0.5, 1.0):
        v = softmax((1 - alpha) * log_w)
        close(weights(partial(vr_iwae, alpha=alpha)), alpha * v + (1 - alpha) * v**2)


# --- identities -------------------------------------------------------------------------------


def flat(gradient):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


@functools.cache
def of_autoencoder(bound, estimator, k=5):
    """−∇loss of a two-layer autoencoder: (θ, φ), flat."""
    model, x = small_model(2), jnp.array([1.0, 0, 0, 1, 1])
    ((_, gradient),) = gradients(model, x, jax.random.key(8), k, (bound,), estimator)
    return -flat((gradient.decoder, gradient.observation)), -flat(gradient.encoder)


@pytest.mark.slow
def test_aisle_is_stl_and_2k_dreg_of_iwae():
    theta, stl = of_autoencoder(iwae, "stl")
    same, kl = of_autoencoder(iwae, "aisle-kl")
    np.testing.assert_allclose(kl, stl, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(same, theta, rtol=1e-5, atol=1e-7)
    _, dreg = of_autoencoder(iwae, "dreg")
    _, chi2 = of_autoencoder(iwae, "aisle-chi2")
    np.testing.assert_allclose(chi2, 2 * 5 * dreg, rtol=1e-4, atol=1e-6)
    _, wake = of_autoencoder(iwae, "rws-dreg")
    np.testing.assert_allclose(wake + dreg, stl, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_dreg_of_the_elbo_is_stl():
    for a, b in zip(of_autoencoder(elbo, "dreg"), of_autoencoder(elbo, "stl"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_theta_has_the_same_gradient_under_every_estimator():
    expected, _ = of_autoencoder(iwae, "reparam")
    for name in ESTIMATORS:
        theta, phi = of_autoencoder(iwae, name)
        np.testing.assert_allclose(theta, expected, rtol=2e-5, atol=1e-7)
        assert np.any(phi != 0)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", thinned(["reparam", "stl", "dreg"], "stl"))
def test_a_pair_takes_each_gradient_from_its_own_bound(estimator):
    theta, phi = of_autoencoder(Pair(iwae, partial(miwae, m=3)), estimator, k=6)
    alone, _ = of_autoencoder(iwae, estimator, k=6)
    _, own = of_autoencoder(partial(miwae, m=3), estimator, k=6)
    np.testing.assert_allclose(theta, alone, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(phi, own, rtol=2e-5, atol=1e-6)


def test_a_weight_that_underflows_keeps_its_path():
    """θ by L_K, where most w̃_i are 0 or denormal, and φ by the ELBO, where each path counts 1/K."""
    model = LinearGaussian(jnp.full(2, 40.0), jnp.full(2, -40.0), jnp.array(0.0))
    args = jnp.zeros(2), jax.random.key(0), 40
    ((value, both),) = gradients(model, *args, (Pair(iwae, elbo),), "dreg")
    ((_, alone),) = gradients(model, *args, (elbo,), "dreg")
    ((same, theta),) = gradients(model, *args, (iwae,), "dreg")
    assert value == same
    np.testing.assert_allclose(both.e, alone.e, rtol=1e-4)
    np.testing.assert_allclose(both.mu, theta.mu, rtol=1e-5)
    w = jax.nn.softmax(log_weights(model, args[0], model.propose(args[0], 40, args[1])))
    assert float(w.min()) < 1e-30


# --- a user's own model -----------------------------------------------------------------------


def test_plain_functions_make_a_model():
    model = user_model()
    params = {"mu": model.mu, "e": model.e, "log_s": model.log_s}
    of = lambda p: LinearGaussian(p["mu"], p["e"], p["log_s"])
    plain = FromFunctions(
        params,
        propose=lambda p, x, k, key: of(p).propose(x, k, key),
        log_joint=lambda p, x, h: of(p).log_joint(x, h),
        log_proposal=lambda p, x, h: of(p).log_proposal(x, h),
    )
    for name in ("reparam", "dreg"):
        ((value, got),) = gradients(plain, X, jax.random.key(2), 4, (iwae,), name)
        ((same, expected),) = gradients(model, X, jax.random.key(2), 4, (iwae,), name)
        np.testing.assert_array_equal(value, same)
        np.testing.assert_allclose(got.params["e"], expected.e, rtol=1e-6)
        np.testing.assert_allclose(got.params["mu"], expected.mu, rtol=1e-6)


# --- in the mean ------------------------------------------------------------------------------


def autoencoder(layers, kind):
    """(model, x): random weights for 0/1 data; for real ones q comes near the posterior."""
    if kind == "binary":
        config = ModelConfig(layers, ((4,), (4,))[:layers], (3, 2)[:layers])
        return random_model(config, 5, seed=2), jnp.array([1.0, 0, 0, 1, 1])
    oracle = generic_chain((3, 2)[:layers], inflate=2.0)
    return oracle.model, jnp.asarray(oracle.draw(1, seed=6)[0])


def moments_of(model, x, key, bounds, estimators, *, k, repeats, chunk=500):
    """{(bound, estimator): laboratory.Moments of θ and φ}, every gradient from one program."""

    @jax.jit
    def draws(key):
        def one(key, bound, estimator):
            gradient = eqx.filter_grad(
                lambda m: -surrogate_loss(m, x, key, bound=bound, k=k, estimator=estimator)[0]
            )(model)
            phi = flat_jax(gradient.encoder)
            return flat_jax((gradient.decoder, gradient.observation)), phi

        keys = jax.random.split(key, chunk)
        every = {}
        for i, (name, bound) in enumerate(bounds.items()):
            for j, estimator in enumerate(estimators):
                own = jax.vmap(partial(jax.random.fold_in, data=10 * i + j))(keys)
                g = jax.vmap(partial(one, bound=bound, estimator=estimator))(own)
                every[name, estimator] = [(a.mean(0), jnp.sum((a - a.mean(0)) ** 2)) for a in g]
        return every

    n = repeats // chunk
    blocks = [draws(jax.random.fold_in(key, i)) for i in range(n)]
    return {
        which: [
            diagnostics.Moments(
                np.stack([b[which][part][0] for b in blocks]),
                np.array([float(b[which][part][1]) for b in blocks]),
                chunk,
            )
            for part in (0, 1)
        ]
        for which in blocks[0]
    }


def flat_jax(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("layers", [1, 2])
def test_dreg_agrees_with_autodiff_in_the_mean_and_varies_less(layers, kind):
    """For every smooth bound; ‖difference‖² within 3 standard errors of 0, θ and φ."""
    (model, x), k = autoencoder(layers, kind), 6
    every = moments_of(
        model, x, jax.random.key(9), SMOOTH, ("reparam", "dreg"), k=k, repeats=20_000
    )
    for name in SMOOTH:
        for part, (plain, dreg) in enumerate(
            zip(every[name, "reparam"], every[name, "dreg"], strict=True)
        ):
            apart = np.sum((plain.mean - dreg.mean) ** 2) - plain.error - dreg.error
            error = np.sqrt(2) * (plain.concentration + dreg.concentration)
            assert abs(apart) < 3 * error, (name, part)
            if part == 1:
                assert dreg.variance < plain.variance, name


def test_a_known_bias_has_a_known_error():
    """Also where the reference is barely clear of its error, and not so without each block."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        means = 0.1 * rng.normal(size=(10, 3)) + [0.19, 0, 0]
        squares = np.full(10, 297.0)  # 100 draws of variance 1 for each of 3
        one = diagnostics.Moments(means, squares, 100)
        found.append(diagnostics.relative_bias(one, one))
    known = [not np.isnan(bias) for bias, _ in found]
    assert 30 < sum(known) < 270
    assert all(np.isnan(error) != of for (_, error), of in zip(found, known, strict=True))


@pytest.mark.slow
def test_stl_is_biased_for_iwae_and_not_for_the_elbo():
    model, x = autoencoder(1, "binary")
    bounds = {"iwae": iwae, "elbo": elbo}
    every = moments_of(model, x, jax.random.key(9), bounds, ("dreg", "stl"), k=6, repeats=20_000)
    for name in bounds:
        dreg, stl = every[name, "dreg"][1], every[name, "stl"][1]
        bias, error = diagnostics.relative_bias(stl, dreg)
        if name == "iwae":
            assert bias > 10 * error
            assert bias > 0.01
        else:
            assert abs(bias) < 3 * error


@pytest.mark.slow
@pytest.mark.parametrize("estimator", thinned(["stl", "dreg"], "stl"))
def test_at_the_exact_posterior_phi_has_no_variance(estimator):
    """log w_i = log p(x) for every draw, so each path is 0, while the plain gradient is not."""
    oracle = orthogonal_chain(1)
    x, bounds = jnp.asarray(oracle.draw(1, seed=3)[0]), tuple(SMOOTH.values())
    ((_, plain),) = gradients(oracle.model, x, jax.random.key(5), 6, (elbo,), "reparam")
    size = np.abs(flat(plain.encoder)).max()
    assert size > 1e-3
    for _, gradient in gradients(oracle.model, x, jax.random.key(5), 6, bounds, estimator):
        assert np.abs(flat(gradient.encoder)).max() < 1e-3 * size


# --- signal to noise --------------------------------------------------------------------------


@pytest.mark.slow
def test_snr_laws():
    """φ falls as K^−½ under reparam and does not fall under DReG; θ rises as K^½."""
    model = LinearGaussian(jnp.array([0.3, -1.0]), jnp.array([0.2, 0.1]), jnp.array(-0.2))
    measured = diagnostics.measure(
        model,
        X[None, :2],
        bounds=lambda k: iwae,
        estimators=["reparam", "dreg"],
        ks=[8, 32, 128],
        repeats=10_000,
        phi=lambda m: (m.e, m.log_s),
    )
    found = {(s.estimator, s.parameters): s for s in diagnostics.slopes(measured)}
    for which, slope in found.items():
        print(*which, f"{slope.slope:.3f} ± {slope.slope_se:.3f}")
    plain, theta = found["reparam", "phi"], found["reparam", "theta"]
    assert abs(plain.slope + 0.5) < 0.1
    assert abs(theta.slope - 0.5) < 0.1
    assert found["dreg", "phi"].slope > 0.3
    assert max(s.slope_se for s in found.values()) < 0.06
    for m in measured:
        assert abs(m.bias) < 4 * m.bias_se


@pytest.mark.slow
def test_moments_are_those_of_all_draws_together():
    model = user_model()
    phi = lambda m: (m.e, m.log_s)
    streamed = diagnostics.moments(
        model, X[None], jax.random.key(3), bound=iwae, k=3, repeats=40, phi=phi
    )["phi"]
    keys = jax.random.split(jax.random.key(3), diagnostics.BLOCKS)

    def one(key):
        (key,) = jax.random.split(key, 1)
        loss = lambda m: -surrogate_loss(m, X, key, bound=iwae, k=3)[0]
        gradient = eqx.filter_grad(loss)(model)
        return jnp.append(gradient.e, gradient.log_s)

    each = np.array([[one(jax.random.fold_in(k, i)) for i in range(4)] for k in keys])
    np.testing.assert_allclose(streamed.means, each.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(streamed.variance, np.cov(each.reshape(40, 4).T).trace(), rtol=1e-4)


@pytest.mark.parametrize("spread", [(1.0,) * 30, (3.0, 1.0, 0.2)])
def test_the_concentration_of_a_mean_is_that_of_its_covariance(spread):
    """√tr Cov(mean)², squared and unbiased, over 3,000 sets of blocks."""
    spread, each = np.array(spread), 5
    draws = np.random.default_rng(0).normal(size=(3000, diagnostics.BLOCKS, each, len(spread)))
    found = [
        diagnostics.Moments(g.mean(1), np.sum((g - g.mean(1, keepdims=True)) ** 2, (1, 2)), each)
        for g in draws * spread
    ]
    covariance = spread**2 / (diagnostics.BLOCKS * each)
    squared = np.array([m.concentration**2 for m in found])
    error = squared.std() / np.sqrt(len(squared))
    expected = np.sum(covariance**2)
    assert abs(squared.mean() - expected) < 4 * error + 0.01 * expected


@pytest.mark.slow
def test_at_an_optimum_there_is_no_relative_bias():
    """θ has no signal at μ = (μ + x)/2 …: nan instead of noise over nothing."""
    model = LinearGaussian(X[:2], X[:2], jnp.asarray(0.5 * np.log(0.5)))
    measured = diagnostics.measure(
        model,
        X[None, :2],
        bounds=lambda k: iwae,
        estimators=["reparam"],
        ks=[3],
        repeats=200,
        phi=lambda m: (m.e, m.log_s),
    )
    assert all(np.isnan(m.bias) for m in measured)


def test_a_draw_without_weight_has_no_part_in_the_gradient_however_large_its_own() -> None:
    """log p = −e^θ (h − x)² with e^θ ~ 10³⁰: the nearest draw has all the weight."""

    class Steep(eqx.Module):
        theta: jax.Array
        mu: jax.Array

        def propose(self, x, k, key):
            return self.mu + jnp.arange(1, k + 1, dtype=jnp.float32)

        def log_joint(self, x, h):
            return -jnp.exp(self.theta) * (h - x) ** 2

        def log_proposal(self, x, h):
            return jnp.zeros_like(h)

    model = Steep(jnp.array(69.0), jnp.array(0.0))
    at = 1 - 1e-14  # one draw at a distance of 0 in float32, the others beyond
    one, far = (
        gradients(model, jnp.array(at), jax.random.key(0), k, (iwae,), "dreg")[0][1] for k in (1, 4)
    )
    np.testing.assert_array_equal(far.theta, one.theta)
    np.testing.assert_array_equal(far.mu, one.mu)


# --- through a few of the draws ---------------------------------------------------------------


def test_draws_are_resampled_by_their_weights():
    """Every count is s p_i rounded up or down, and s p_i in the mean; c_i / (s p_i) is Σ|c| / s.

    A draw whose path weighs more than its c is taken by that, so that no weight explodes.
    """
    c = jnp.array([0.5, -0.2, 0.02, 0.0, 0.28])
    weighted = Coefficients(c.at[3].set(TINY), path=c**2, score=None)
    share = np.abs(c) / np.sum(np.abs(c))
    keys = jax.random.split(jax.random.key(4), 4000)
    which, scaled = jax.vmap(lambda key: resampled(weighted, 3, key))(keys)
    counts = np.asarray(jax.nn.one_hot(which, 5).sum(1))
    assert np.all(np.abs(counts - 3 * share) < 1)
    np.testing.assert_allclose(counts.mean(0), 3 * share, atol=4 * 0.5 / np.sqrt(len(keys)))
    np.testing.assert_allclose(scaled.c, np.sign(c)[which] / 3 * np.sum(np.abs(c)), rtol=1e-5)
    expected = (c**2)[which] / (3 * share[which])
    np.testing.assert_allclose(scaled.path, expected, rtol=1e-4)
    assert scaled.score is None
    heavy = Coefficients(weighted.c, path=jnp.full(5, 0.5), score=None)
    _, scaled = jax.vmap(lambda key: resampled(heavy, 3, key))(keys)
    assert np.max(np.abs(scaled.path)) < 1


BITS = jnp.array([1.0, 0, 0, 1, 1])


def few_and_all(model, x, few, draws, **given):
    """(values, gradients) of a loss through few draws and through all, of the same draws."""

    def gradients(backward_draws):
        def one(key):
            def loss(model):
                return surrogate_loss(model, x, key, **given, backward_draws=backward_draws)

            (_, value), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
            return value, jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(gradient)])

        return eqx.filter_jit(jax.vmap(one))(jax.random.split(jax.random.key(5), draws))

    return gradients(few), gradients(None)


def deviation(few, full):
    """Most standard errors by which the mean of a parameter's gradient is off."""
    apart = np.asarray(few[1] - full[1], np.float64)
    error = apart.std(0) / np.sqrt(len(apart))
    moving = error > 1e-6
    assert moving.sum() >= min(apart.shape[1], 50)
    return np.max(np.abs(apart.mean(0)[moving]) / error[moving])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "estimator"),
    thinned(
        [("iwae", "reparam"), ("iwae", "dreg"), ("iwae", "rws"), ("jvi-1", "dreg")],
        ("jvi-1", "dreg"),
    ),
)
def test_through_two_draws_the_gradient_has_the_same_mean(name, estimator):
    """Of the same draws, paired; each parameter within 4 standard errors."""
    given = {"bound": SMOOTH[name], "k": 6, "estimator": estimator}
    two, full = few_and_all(user_model(), X, 2, 8000, **given)
    np.testing.assert_allclose(two[0], full[0], rtol=1e-5)
    assert deviation(two, full) < 4


@pytest.mark.slow
def test_which_draws_are_taken_does_not_depend_on_their_noise():
    """Every layer takes a part of the key: in three of them too, within 4.5 standard errors."""
    config = ModelConfig(3, ((4,),) * 3, (3, 2, 2))
    model = random_model(config, 5, seed=2)
    given = {"bound": iwae, "k": 4, "estimator": "stl"}
    assert deviation(*few_and_all(model, BITS, 1, 20_000, **given)) < 4.5


def test_through_as_many_draws_as_there_are_is_through_all():
    model, key = user_model(), jax.random.key(1)
    full = surrogate_loss(model, X, key, bound=iwae, k=4)
    assert surrogate_loss(model, X, key, bound=iwae, k=4, backward_draws=9) == full


def small(uncertain):
    """One layer of 3 units for 5 bits, whose weights are uncertain in these networks."""
    config = ModelConfig(1, ((4,),), (3,), "bernoulli", uncertain, 0.3)
    key = jax.random.key(2)
    return build(config, kind="binary", mean=np.full(5, 0.4), spread=np.ones(5), key=key)


@pytest.mark.slow
@pytest.mark.parametrize("uncertain", ["none", "both"])
def test_draws_weighted_in_chunks_are_weighted_alike(uncertain):
    """Also where the last chunk is smaller, and where a draw has weights of its own."""
    model = small(uncertain)
    keys, images = jax.random.split(jax.random.key(3), 4), jnp.stack([BITS, 1 - BITS] * 2)

    def of_batch(chunk):
        def loss(model):
            given = {"bound": iwae, "k": 7, "estimator": "dreg", "backward_draws": 2}
            one = lambda x, key: surrogate_loss(model, x, key, **given, chunk=chunk)
            return jax.tree.map(jnp.mean, jax.vmap(one)(images, keys))

        return eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(model)

    at_once = of_batch(None)
    for chunk in (1, 3, 7):
        for a, b in zip(*map(jax.tree.leaves, (at_once, of_batch(chunk))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Bare(eqx.Module):
    """What a model needs and no more."""

    model: Autoencoder

    def propose(self, x, k, key):
        return self.model.propose(x, k, key)

    def log_joint(self, x, h):
        return self.model.log_joint(x, h)

    def log_proposal(self, x, h):
        return self.model.log_proposal(x, h)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", thinned(["reparam", "dreg", "rws"], "dreg"))
def test_draws_made_again_from_their_noise_have_the_gradient_of_the_first(estimator):
    """In two layers, where a draw of the second passes back through the first."""
    config, key = ModelConfig(2, ((4,), (4,)), (3, 2)), jax.random.key(4)
    model = build(config, kind="binary", mean=np.full(5, 0.4), spread=np.ones(5), key=key)

    def gradient(model):
        given = {"bound": iwae, "k": 6, "estimator": estimator, "backward_draws": 2}
        loss = lambda model: surrogate_loss(model, BITS, key, **given)[0]
        return jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(loss))(model))

    assert model.made_from_noise
    for again, first in zip(gradient(model), gradient(Bare(model)), strict=True):
        np.testing.assert_allclose(again, first, rtol=1e-4, atol=1e-6)
        assert np.any(first)


class Wider(Autoencoder):
    """Proposes with twice the standard deviation."""

    own_proposal = True

    def propose(self, x, k, key):
        mu, log_sigma = self.encoder[0](x)
        return (mu + 2 * jnp.exp(log_sigma) * self.noise(k, key)[0],)

    def log_proposal(self, x, h):
        mu, log_sigma = self.encoder[0](x)
        return log_normal(h[0], mu, log_sigma + jnp.log(2))


class WiderAtOnce(Autoencoder):
    own_proposal = True
    propose, log_proposal = Wider.propose, Wider.log_proposal

    def propose_and_log_prob(self, x, k, key):
        h = self.propose(x, k, key)
        return h, self.log_proposal(x, h)


@pytest.mark.slow
@pytest.mark.parametrize("kind", thinned([Wider, WiderAtOnce], WiderAtOnce))
def test_a_model_that_proposes_in_its_own_way_is_asked_for_its_draws(kind):
    """By every estimator, and by the evaluation."""
    own, key = small("none"), jax.random.key(4)
    wider = kind(**{f.name: getattr(own, f.name) for f in fields(own)})
    expected = log_weights(wider, BITS, wider.propose(BITS, 6, key))
    assert not np.allclose(expected, draw_log_weights(own, BITS, 6, key), rtol=1e-3)
    np.testing.assert_allclose(draw_log_weights(wider, BITS, 6, key), expected, rtol=1e-5)
    for estimator in ("reparam", "stl"):
        for few in (None, 2):
            given = {"bound": iwae, "k": 6, "estimator": estimator, "backward_draws": few}
            _, value = surrogate_loss(wider, BITS, key, **given)
            np.testing.assert_allclose(value, iwae(expected), rtol=1e-5)
    assert own.made_from_noise
    assert small("both").made_from_noise
    assert not wider.made_from_noise
    assert not as_model(user_model()).made_from_noise


@pytest.mark.slow
@pytest.mark.parametrize("which", ["encoder", pytest.param("both", marks=pytest.mark.slow)])
def test_resampled_draws_keep_their_weights(which):
    """With uncertain weights a draw goes on with the weights that it was made with: the same mean
    gradient of the same draws, paired, within 4.5 standard errors."""
    given = {"bound": iwae, "k": 4, "estimator": "stl"}
    assert deviation(*few_and_all(small(which), BITS, 2, 8000, **given)) < 4.5


# --- draws without a path ---------------------------------------------------------------------


def switches(draw=None, *, jitted=False):
    """h ∈ {0, 1}³ of probabilities σ(φ); p(x, h) = p(h) N(x; h + θ, I)."""

    def propose(p, x, k, key):
        made = lambda p: jax.random.bernoulli(key, jax.nn.sigmoid(p["phi"]), (k, 3)) * 1.0
        return (jax.jit(made) if jitted else made)(p)

    log_bernoulli = lambda h, logit: h * logit - jax.nn.softplus(logit)
    return FromFunctions(
        {"phi": jnp.array([-0.4, 0.3, 0.0]), "theta": jnp.array([0.1, 0.0, -0.2])},
        propose=draw or propose,
        log_joint=lambda p, x, h: jnp.sum(
            log_bernoulli(h, 0.5) + norm.logpdf(x, h + p["theta"]), axis=-1
        ),
        log_proposal=lambda p, x, h: jnp.sum(log_bernoulli(h, p["phi"]), axis=-1),
    )


BY_PATH = sorted(n for n, e in ESTIMATORS.items() if e.path is not None)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("estimator", BY_PATH)
def test_draws_that_pass_no_gradient_are_refused(estimator, jitted):
    """Before the first step is compiled; the encoder would learn nothing, or by half its
    gradient."""
    loss = lambda model: surrogate_loss(
        model, X, jax.random.key(0), bound=iwae, k=4, estimator=estimator
    )[0]
    with refused(
        f"Estimator {estimator} passes gradients through the draws, but through some of those of "
        f"this model none reaches its parameter .params['phi']; give rws, or reparametrised draws."
    ):
        eqx.filter_jit(eqx.filter_grad(loss))(switches(jitted=jitted))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("estimator", BY_PATH)
def test_a_draw_that_jumps_beside_one_that_moves_is_refused(estimator, shared):
    """Though a gradient reaches both of their parameters by the other, in one array of them or by
    a trunk that they share."""

    def both(p):
        return (p, p) if shared else (p[0], p[1])

    def propose(p, x, k, key):
        logit, mu = both(p)
        switch = jax.random.bernoulli(key, jax.nn.sigmoid(logit), (k,)) * 1.0
        return switch, mu + jax.random.normal(key, (k,))

    def log_proposal(p, x, h):
        logit, mu = both(p)
        return h[0] * logit - jax.nn.softplus(logit) + norm.logpdf(h[1], mu)

    model = FromFunctions(
        jnp.float32(0.3) if shared else jnp.array([0.3, 0.5]),
        propose=propose,
        log_joint=lambda p, x, h: norm.logpdf(h[1]) + norm.logpdf(x[0], 3 * h[0] + h[1]),
        log_proposal=log_proposal,
    )
    with pytest.raises(InputError, match=r"none reaches its parameter \.params; give rws"):
        surrogate_loss(model, X, jax.random.key(0), bound=iwae, k=4, estimator=estimator)


def test_wake_phi_of_discrete_draws_is_that_of_enumeration():
    """K = 2 over all 64 pairs, each with the key that draws it."""
    model, p = switches(), switches().params
    draw = jax.jit(lambda key: model.propose(X, 2, key))
    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)))
    code = (drawn.reshape(-1, 6) @ 2 ** np.arange(6)).astype(int)
    _, first = np.unique(code, return_index=True)
    assert len(first) == 64
    one = lambda key: gradients(model, X, key, 2, (iwae,), "rws")[0][1].params
    got = jax.vmap(one)(jax.random.split(jax.random.key(0), 4000)[first])
    h, x = drawn[first].astype(np.float64), np.asarray(X, np.float64)
    phi, theta = (np.asarray(p[name], np.float64) for name in ("phi", "theta"))
    log_bernoulli = lambda h, logit: h * logit - np.logaddexp(0, logit)
    log_q = log_bernoulli(h, phi).sum(-1)
    far = x - h - theta
    log_p = (log_bernoulli(h, 0.5) - far**2 / 2 - np.log(2 * np.pi) / 2).sum(-1)
    w = np.exp(log_p - log_q)
    share = (w / w.sum(1, keepdims=True))[..., None]
    chance = np.exp(log_q.sum(1))
    assert chance.sum() == pytest.approx(1)
    for name, each in (("phi", share * (h - 1 / (1 + np.exp(-phi)))), ("theta", share * far)):
        np.testing.assert_allclose(-got[name], each.sum(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(chance @ -got[name], chance @ each.sum(1), rtol=1e-4, atol=1e-6)


HALVES = {
    "a discrete half": lambda p, x, k, key: (
        p["m"] + jax.random.normal(key, (k,)),
        jax.random.categorical(key, p["l"], shape=(k,)),
    ),
    "rounded": lambda p, x, k, key: (
        p["m"] + jax.random.normal(key, (k,)),
        jnp.round(p["l"][0] + jax.random.normal(key, (k,))),
    ),
    "held": lambda p, x, k, key: (
        p["m"] + jax.random.normal(key, (k,)),
        jax.lax.stop_gradient(p["l"][0]) + jax.random.normal(key, (k,)),
    ),
}


def halves(draw):
    return FromFunctions(
        {"m": jnp.zeros(()), "l": jnp.zeros(2)},
        propose=draw,
        log_joint=lambda p, x, h: norm.logpdf(h[0]),
        log_proposal=lambda p, x, h: norm.logpdf(h[0], p["m"]) + h[1] * p["l"][0],
    )


@pytest.mark.parametrize("name", HALVES)
def test_a_half_that_passes_no_gradient_is_refused(name):
    for estimator in ("reparam", "dreg"):
        with pytest.raises(InputError, match=r"none reaches its parameter \.params\['l'\]"):
            surrogate_loss(
                halves(HALVES[name]), X, jax.random.key(0), bound=iwae, k=2, estimator=estimator
            )


@pytest.mark.slow
def test_draws_that_pass_a_gradient_are_taken():
    """Straight-through, implicit, in a loop; and a proposal without parameters of its own."""
    drawn = {
        "straight": lambda p, x, k, key: (
            p["m"] + jax.random.normal(key, (k,)),
            p["l"][0] + jax.lax.stop_gradient(jnp.round(jax.random.normal(key, (k,)))),
        ),
        "implicit": lambda p, x, k, key: (
            p["m"] + jax.random.normal(key, (k,)),
            jax.random.gamma(key, jnp.exp(p["l"][0]), (k,)),
        ),
    }
    for draw in drawn.values():
        loss, _ = surrogate_loss(halves(draw), X, jax.random.key(0), bound=iwae, k=2)
        assert np.isfinite(loss)
    fixed = FromFunctions(
        {"theta": jnp.zeros(3)},
        propose=lambda p, x, k, key: jax.random.bernoulli(key, 0.5, (k, 3)) * 1.0,
        log_joint=lambda p, x, h: jnp.sum(norm.logpdf(x, h * p["theta"]), -1) - 3 * np.log(2),
        log_proposal=lambda p, x, h: jnp.full(len(h), -3 * np.log(2)),
    )
    for estimator in BY_PATH:
        assert np.isfinite(
            surrogate_loss(fixed, X, jax.random.key(0), bound=iwae, k=2, estimator=estimator)[0]
        )


def test_a_density_of_more_than_the_draws_is_refused_where_its_score_is_dropped():
    """r stands in the weights, not in the draws: only `reparam` reaches it."""
    model = FromFunctions(
        {"m": jnp.zeros(3), "r": jnp.zeros(3)},
        propose=lambda p, x, k, key: p["m"] + jax.random.normal(key, (k, 3)),
        log_joint=lambda p, x, h: jnp.sum(norm.logpdf(x, h), -1),
        log_proposal=lambda p, x, h: jnp.sum(norm.logpdf(h, p["m"]) - norm.logpdf(h, p["r"]), -1),
    )
    loss = partial(surrogate_loss, model, X, jax.random.key(0), bound=iwae, k=4)
    assert np.isfinite(loss(estimator="reparam")[0])
    with refused(
        "Estimator stl passes gradients through the draws, but through those of this model none "
        "reaches its parameter .params['r']; give reparam."
    ):
        loss(estimator="stl")


def test_compiled_steps_hold_nothing_of_what_is_checked():
    """The program of the gradient is the one that there is without a look at its path."""
    model = Bare(small("none"))

    def program():
        loss = lambda m: surrogate_loss(m, BITS, jax.random.key(0), bound=iwae, k=3)[0]
        moving, still = eqx.partition(model, eqx.is_inexact_array)
        return str(jax.make_jaxpr(jax.grad(lambda m: loss(eqx.combine(m, still))))(moving))

    with pytest.MonkeyPatch.context() as patch:
        checked = program()
        patch.setattr("iwae.estimators.surrogate.check_path", lambda *given: None)
        assert program() == checked


def test_combinations_without_meaning_are_refused():
    model, key = user_model(), jax.random.key(0)
    loss = partial(surrogate_loss, model, X, key)
    with refused(
        "Estimator rws was given with K = 1, where its φ gradient has mean zero; give K = 2 or "
        "more, or use dreg."
    ):
        loss(bound=iwae, k=1, estimator="rws")
    with refused(
        "Estimator aisle-kl updates φ by its own divergence, so another bound for φ "
        "would never be used; give reparam, stl or dreg, or one bound for θ and φ."
    ):
        loss(bound=Pair(iwae, elbo), k=4, estimator="aisle-kl")
    with refused(
        "Estimator rws-sleep needs draws (x, h) from the model, but this model does not declare "
        "that it makes them; define sample_joint(n, key) and, in a subclass of Model, "
        "samples_joint = True, or use rws."
    ):
        loss(bound=iwae, k=4, estimator="rws-sleep")
    with refused(
        "There is no estimator 'dregs'; did you mean 'dreg'? Known are aisle-chi2, aisle-kl, "
        "dreg, reparam, rws, rws-dreg, rws-sleep, stl."
    ):
        loss(bound=iwae, k=4, estimator="dregs")

    class Dependent(LinearGaussian):
        independent_draws = False

    with refused(
        "Estimator dreg needs independent draws, but this model's proposal makes dependent ones; "
        "give reparam or stl."
    ):
        surrogate_loss(
            Dependent(model.mu, model.e, model.log_s), X, key, bound=iwae, k=4, estimator="dreg"
        )
    with refused(
        "backward_draws was given with another bound for φ, but draws are resampled by the "
        "weights of one bound; leave it out, or give one bound for θ and φ."
    ):
        loss(bound=Pair(iwae, elbo), k=4, backward_draws=2)

    with refused(
        "backward_draws = 0 was given, but a gradient passes through at least 1 draw; give 1 or "
        "more."
    ):
        loss(bound=iwae, k=4, backward_draws=0)
    with refused("k = 0 was given, but it must be at least 1; give k = 1 or more."):
        loss(bound=iwae, k=0)
    with refused("chunk = 0 was given, but a chunk needs at least 1 draw; give 1 or more."):
        loss(bound=iwae, k=4, backward_draws=2, chunk=0)

    class Blocks(LinearGaussian):
        block = 2

    with refused(
        "backward_draws was given, but this model's draws come in blocks that are weighted "
        "together; leave it out."
    ):
        blocks = Blocks(model.mu, model.e, model.log_s)
        surrogate_loss(blocks, X, key, bound=iwae, k=4, backward_draws=2)
    with refused(
        "Another bound was given for φ, but the draws of a hierarchical proposal are weighted "
        "together by one bound; give one bound for θ and φ."
    ):
        surrogate_loss(blocks, X, key, bound=Pair(iwae, elbo), k=4)
    with refused(
        "repeats = 5 was given, but standard errors need a multiple of 10, and at least "
        "20; give one."
    ):
        diagnostics.moments(model, X[None], key, bound=iwae, k=2, repeats=5)


def test_what_is_stated_without_a_subclass_is_believed():
    """As an attribute of the class or of the object, a field or a property."""
    model = as_model(user_model())
    assert (model.block, model.in_blocks, model.samples_joint) == (1, False, False)
    assert model.independent_draws
    assert model.density_of_draws

    class Stated(LinearGaussian):
        block: int = eqx.field(static=True, default=3)
        density_of_draws = False

        @property
        def independent_draws(self):
            return False

        def sample_joint(self, n, key):
            raise AssertionError

    own = user_model()
    model = as_model(Stated(own.mu, own.e, own.log_s))
    assert (model.block, model.in_blocks, model.samples_joint) == (3, True, True)
    assert not model.independent_draws
    assert not model.density_of_draws
    with refused(
        "float was given as a model, but a model has the methods propose, log_joint and "
        "log_proposal; define those that are missing."
    ):
        as_model(1.0)


def test_the_former_name_of_joint_draws_is_taken_with_a_warning():
    class Dreaming(LinearGaussian):
        def dream(self, n, key):
            h = self.mu + jax.random.normal(key, (n, 3))
            return h + jax.random.normal(jax.random.fold_in(key, 1), (n, 3)), h

    class Sampling(LinearGaussian):
        sample_joint = Dreaming.dream

    own = user_model()
    given = {"bound": iwae, "k": 4, "estimator": "rws-sleep"}
    loss = lambda kind: surrogate_loss(
        kind(own.mu, own.e, own.log_s), X, jax.random.key(0), **given
    )
    with pytest.warns(DeprecationWarning, match="dream was renamed to sample_joint"):
        former = loss(Dreaming)
    assert former == loss(Sampling)
    with pytest.warns(DeprecationWarning, match="dream was renamed to sample_joint"):
        x, _ = small("none").dream(2, jax.random.key(0))
    assert x.tolist() == small("none").sample_joint(2, jax.random.key(0))[0].tolist()


def test_an_estimator_of_ones_own_is_one_line():
    """Half the score of `reparam`: halfway between `reparam` and `stl`."""
    halfway = Estimator(path=lambda w: w.c, score=lambda w: -w.c / 2, name="halfway")
    grads = {
        name: gradients(user_model(), X, jax.random.key(2), 5, (iwae,), of)[0][1]
        for name, of in {"halfway": halfway, "reparam": "reparam", "stl": "stl"}.items()
    }
    for got, a, b in zip(*(jax.tree.leaves(g) for g in grads.values()), strict=True):
        np.testing.assert_allclose(got, (a + b) / 2, rtol=1e-5, atol=1e-6)
    with refused(
        "Estimator halfway drops the score of the density in the weights, but this model's draws "
        "have another density; give reparam, or uniform weights of the heads."
    ):
        rules.validate(rules.check_draws_of(halfway, rules.Capabilities(own_density=False)))


def test_every_proposal_of_the_command_line_is_its_model_s():
    """What the rules say of a configuration's draws, the model that is built of it states."""
    for proposal in get_args(get_type_hints(ModelConfig)["proposal"]):
        for weights in get_args(get_type_hints(ModelConfig)["proposal_weights"]):
            if proposal == "independent" and weights != "uniform":
                continue
            config = ModelConfig(
                1, ((4,),), (3,), "bernoulli", proposal=proposal, proposal_weights=weights
            )
            given = {"kind": "binary", "mean": np.full(5, 0.4), "spread": np.ones(5), "k": 2}
            model = build(config, **given, key=jax.random.key(0))
            assert capabilities(model) == rules.capabilities(proposal, weights)


def test_the_names_of_the_command_line_are_those_of_the_library():
    hints = get_type_hints(ObjectiveConfig)
    assert [*get_args(hints["estimator"])] == [*rules.RULES] == [*ESTIMATORS]
    assert set(get_args(hints["objective"])) == set(BOUNDS) | {"piwae"}
    for name, estimator in ESTIMATORS.items():
        stated = {f.name: getattr(rules.RULES[name], f.name) for f in fields(rules.Rules)}
        assert stated == {f: getattr(estimator, f) for f in stated}
