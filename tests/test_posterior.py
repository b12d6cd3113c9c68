"""Posterior expectations, resampled draws and densities, against exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from iwae.evaluation import posterior
from linear_gaussian import LinearGaussian, generic_chain
from refusals import refused

X = jnp.array([1.2, 0.4])
MU, E = jnp.array([0.3, -1.0]), jnp.array([0.2, 0.3])
MODEL = LinearGaussian(MU, E, jnp.array(0.0))
EXACT = np.asarray(MU + X) / 2
"""p(z|x) = N((μ + x)/2, I/2)."""


@pytest.mark.slow
def test_expectations_tend_to_the_exact_posteriors():
    k = 100_000
    of = lambda f, key: posterior.expectation(MODEL, X, f, jax.random.key(key), k=k)
    np.testing.assert_allclose(of(lambda h: h, 0), EXACT, atol=0.02)
    second = of(lambda h: jnp.outer(h - EXACT, h - EXACT), 1)
    np.testing.assert_allclose(second, np.eye(2) / 2, atol=0.02)
    one = posterior.expectation(MODEL, X, lambda h: h, jax.random.key(2), k=1)
    np.testing.assert_allclose(one, MODEL.propose(X, 1, jax.random.key(2))[0], rtol=1e-6)


@pytest.mark.parametrize(("k", "mean", "variance"), [(1, E, 1.0), (500, EXACT, 0.5)])
def test_resampled_draws_go_from_q_to_the_posterior(k, mean, variance):
    n = 4000
    z = np.asarray(posterior.resample(MODEL, X, jax.random.key(3), k=k, n=n))
    assert z.shape == (n, 2)
    np.testing.assert_allclose(z.mean(0), mean, atol=4.5 * np.sqrt(variance / n) + 0.01)
    np.testing.assert_allclose(np.cov(z.T), variance * np.eye(2), atol=6 * variance / np.sqrt(n))


@pytest.mark.slow
def test_densities_on_a_grid():
    """The exact one is the closed form; q_EW is q at K = 1 and comes near the posterior with K."""
    oracle = generic_chain((2,), inflate=2.5)
    x, n, side = oracle.draw(1, seed=4)[0], 80, 4.0
    at = lambda k: posterior.densities(
        oracle.model, jnp.asarray(x), jax.random.key(5), k=k, side=side, n=n, repeats=400
    )
    one, many = at(1), at(30)
    (gain,) = oracle.gains
    mean = gain @ (x - oracle.mean)
    maps = np.linalg.solve(oracle.covariance, np.eye(6))
    joint = gain @ oracle.covariance  # Cov(h, x)
    covariance = np.eye(2) - joint @ maps @ joint.T
    points = np.asarray(posterior.square(side, n))
    exact = multivariate_normal.pdf(points, mean, covariance)
    np.testing.assert_allclose(one.exact, exact, atol=2e-3 * exact.max())
    np.testing.assert_allclose(one.q_ew, one.q, rtol=1e-4)
    cell = (2 * side / n) ** 2
    apart = lambda density: float(np.abs(density - exact).sum() * cell)
    assert apart(one.q) > 0.2
    assert apart(many.q_ew) < 0.25 * apart(one.q)
    assert np.sum(many.q_ew) * cell == pytest.approx(1, abs=0.05)


def test_densities_need_two_latent_units():
    with refused(
        "The model has 3 + 2 latent units, but densities need exactly 2; train a model with "
        "--layers 1 --latents 2."
    ):
        posterior.densities(generic_chain((3, 2)).model, jnp.zeros(6), jax.random.key(0), k=2, n=4)
    with refused("k = 0 was given, but it must be at least 1; give k = 1 or more."):
        posterior.resample(MODEL, X, jax.random.key(0), k=0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"k": 0},
            "k = 0 was given, but it must be at least 1; give k = 1 or more.",
        ),
        ({"n": 0}, "n = 0 was given, but at least 1 is needed; give 1 or more."),
        ({"repeats": 0}, "repeats = 0 was given, but at least 1 is needed; give 1 or more."),
        (
            {"side": 0.0},
            "side = 0.0 was given, but it must be positive; give one above 0.",
        ),
    ],
)
def test_densities_of_nothing_are_refused(given, sentence):
    model = generic_chain((2,)).model
    with refused(sentence):
        posterior.densities(
            model, jnp.zeros(6), jax.random.key(0), **{"k": 2, "n": 4, "repeats": 2} | given
        )
