"""Imputation, conditional draws and p(x_j|x_rest), against closed forms and enumeration."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from iwae.config.schema import ModelConfig
from iwae.errors import InputError
from iwae.evaluation import imputation
from iwae.evaluation.examples import over_examples
from iwae.evaluation.likelihood import log_likelihood
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.build import build
from iwae.models.observation import Observer
from with_holes import SeenBernoulli, ppca, with_holes

PPCA = ppca()
X = with_holes(PPCA.draw(6, seed=1), 0.4, seed=2)


def mapped(function, x, *, model=PPCA.model, seed=3, **given):
    """The function on the rows of x."""
    keys = jax.random.split(jax.random.key(seed), len(x))
    found = over_rows(eqx.Partial(function, **given), model, jnp.asarray(x), keys)
    return jax.tree.map(np.asarray, found)


@eqx.filter_jit
def over_rows(function, model, x, keys):
    return jax.vmap(lambda x, key: function(model, x, key))(x, keys)


def test_imputed_values_are_the_conditional_means():
    values, (log_p, error, effective) = mapped(imputation.impute, X, k=20_000)
    for i, x in enumerate(X):
        hole = np.isnan(x)
        assert np.isfinite(values[i]).all()
        np.testing.assert_array_equal(values[i][~hole], x[~hole])
        mean, _ = PPCA.missing(x)
        np.testing.assert_allclose(values[i][hole], mean, atol=0.03)
        assert abs(log_p[i] - PPCA.log_evidence(x)) < 4 * error[i] + 1e-4
    assert (effective > 1000).all()
    assert (effective < 20_000).all()


def test_the_densities_of_values_alone():
    exact = norm.logpdf(X, PPCA.mean, np.sqrt(np.diag(PPCA.covariance)))
    exact = np.where(np.isnan(X), 0.0, exact)
    found = mapped(imputation.marginals, X, k=20_000)
    np.testing.assert_allclose(found, exact, atol=0.06)
    in_parts = mapped(imputation.marginals, X, k=20_050, chunk=400)
    np.testing.assert_allclose(in_parts, exact, atol=0.06)


@pytest.mark.parametrize("shift", [0.0, 8.0])
def test_the_densities_of_values_given_the_rest(shift):
    """Also of a value as odd as exp(−100), where the draws of q(h|x) alone are far off."""
    x = X.copy()
    x[np.arange(len(x)), np.argmax(~np.isnan(x), axis=1)] += shift
    (log_p, error, _), columns = mapped(imputation.explain, x, k=8000)
    for i, row in enumerate(x):
        np.testing.assert_allclose(columns[i], PPCA.given_rest(row), atol=0.06)
        assert abs(log_p[i] - PPCA.log_evidence(row)) < 4 * error[i] + 1e-4
    assert shift == 0 or np.nanmin(columns) < -100


@pytest.mark.slow
def test_draws_of_missing_values_have_their_conditional_distribution():
    n = 4000
    draws = mapped(imputation.complete, X, k=20_000, n=n)
    for i, x in enumerate(X):
        hole = np.isnan(x)
        assert (draws[i][:, ~hole] == x[~hole]).all()
        mean, covariance = PPCA.missing(x)
        scale = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(draws[i][:, hole].mean(0), mean, atol=0.08 * scale.max())
        found = np.cov(draws[i][:, hole].T)
        np.testing.assert_allclose(found, covariance, atol=0.12 * np.max(scale) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_intervals_hold_the_missing_values_as_often_as_they_say(level):
    whole = PPCA.draw(400, seed=5)
    x = with_holes(whole, 0.4, seed=6)
    draws = np.moveaxis(mapped(imputation.complete, x, k=500, n=200), 1, 0)
    low, high = imputation.intervals(draws, level)
    hole = np.isnan(x)
    inside = ((low <= whole) & (whole <= high))[hole]
    assert abs(inside.mean() - level) < 4 * np.sqrt(level * (1 - level) / inside.size) + 0.01
    assert (low[~hole] == x[~hole]).all()


def test_an_interval_has_a_level():
    with pytest.raises(InputError, match=r"level = 95 was given"):
        imputation.intervals(np.zeros((3, 2, 2)), 95)


@pytest.mark.slow
def test_the_log_likelihood_is_that_of_score_on_the_same_draws():
    wanted = mapped(log_likelihood, X, k=500)
    estimates = (
        mapped(imputation.estimate, X, k=500),
        mapped(imputation.impute, X, k=500).estimate,
        mapped(imputation.explain, X, k=500).estimate,
    )
    for of in estimates:
        np.testing.assert_allclose(of.log_likelihood, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(of.effective, estimates[0].effective, rtol=1e-5)


def test_the_standard_error_is_that_of_repeated_estimates():
    x = np.repeat(X[:1], 2000, axis=0)
    of = mapped(imputation.estimate, x, k=200)
    assert abs(of.standard_error.mean() / of.log_likelihood.std(ddof=1) - 1) < 0.1
    assert np.isnan(mapped(imputation.estimate, X, k=1).standard_error).all()
    np.testing.assert_allclose(mapped(imputation.estimate, X, k=1).effective, 1, rtol=1e-6)


@pytest.mark.slow
def test_an_example_without_values_is_imputed_from_the_prior():
    """Though q(h|x) is far from it: all draws have equal weights."""
    narrow = eqx.tree_at(lambda m: m.encoder[0].inflate, PPCA.model, 0.01)
    x = np.full((2, 5), np.nan, np.float32)
    values, of = mapped(imputation.impute, x, model=narrow, k=20_000, empty=True)
    np.testing.assert_allclose(values, np.tile(PPCA.mean, (2, 1)), atol=0.06)
    np.testing.assert_allclose(of.log_likelihood, 0, atol=1e-6)
    np.testing.assert_allclose(of.effective, 20_000, rtol=1e-3)
    draws = mapped(imputation.complete, x, model=narrow, k=20_000, n=4000, empty=True)
    np.testing.assert_allclose(np.cov(draws[0].T), PPCA.covariance, atol=0.35)


@pytest.mark.slow
def test_rows_with_values_are_the_same_beside_rows_without():
    alone = mapped(imputation.impute, X, k=250)
    beside = mapped(imputation.impute, X, k=250, empty=True)
    np.testing.assert_allclose(alone.values, beside.values, rtol=1e-5, atol=1e-6)
    alone = mapped(imputation.complete, X, k=250, n=7)
    beside = mapped(imputation.complete, X, k=250, n=7, empty=True)
    np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_rows_after_it():
    observer = Observer(1.0, dynamic=False)
    of = lambda x: over_examples(
        eqx.Partial(imputation.impute, k=250), PPCA.model, x, observer, seed=1, draws=250
    )
    whole = of(np.tile(X, (10, 1)))
    np.testing.assert_allclose(of(X[:4]).values, whole.values[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_columns_in_another_order_give_the_same():
    order = np.array([3, 0, 4, 1, 2])
    model = PPCA.model
    other = eqx.tree_at(
        lambda m: (m.encoder[0].maps, m.encoder[0].mean, m.observation, m.likelihood),
        model,
        (
            model.encoder[0].maps[order],
            model.encoder[0].mean[order],
            InOrder(model.observation, order),
            type(model.likelihood)(model.likelihood.mean[order], model.likelihood.spread[order]),
        ),
    )
    for function in (imputation.impute, imputation.explain):
        here, there = (
            mapped(function, X, k=250),
            mapped(function, X[:, order], model=other, k=250),
        )
        if function is imputation.impute:
            np.testing.assert_allclose(here.values[:, order], there.values, rtol=1e-4, atol=1e-4)
        else:
            apart = np.abs(here.columns[:, order] - there.columns)
            assert np.nanmax(apart) < 0.3  # their further draws are others


class InOrder(eqx.Module):
    """A decoder whose columns are in another order."""

    decoder: object
    order: object = eqx.field(static=True)

    def __init__(self, decoder, order):
        self.decoder, self.order = decoder, tuple(order.tolist())

    def __call__(self, h):
        return self.decoder(h).reshape(2, -1)[:, np.array(self.order)]


# A discrete toy, by enumeration


def binary_model(d=4, seed=0):
    """A Bernoulli model of d pixels with one latent, whose encoder sees missing pixels as 0.5."""
    config = ModelConfig(1, ((4,),), (1,), "bernoulli")
    model = build(
        config, kind="binary", mean=np.full(d, 0.5), spread=np.ones(d), key=jax.random.key(seed)
    )
    rng = np.random.default_rng(seed)
    draw = lambda a: jnp.asarray(0.8 * rng.normal(size=a.shape), a.dtype)
    model = jax.tree.map(lambda a: draw(a) if eqx.is_array(a) else a, model)
    return eqx.tree_at(
        lambda m: (m.encoder, m.likelihood), model, ((Filled(model.encoder[0]),), SeenBernoulli())
    )


class Filled(eqx.Module):
    """An encoder of pixels where missing ones are 0.5."""

    encoder: object

    def __call__(self, x):
        mu, _ = self.encoder(jnp.where(jnp.isnan(x), 0.5, x))
        return 0.5 * mu, jnp.zeros_like(mu)


def probabilities(model, d=4):
    """p(x) of all 2^d images, by quadrature over the latent."""
    grid = np.linspace(-8, 8, 2001)
    weights = norm.pdf(grid) * (grid[1] - grid[0])
    rate = jax.vmap(lambda h: jax.nn.sigmoid(model.parameters(h))[0])(
        jnp.asarray(grid, jnp.float32)[:, None]
    )
    rate = np.asarray(rate, np.float64)
    images = np.array(list(itertools.product([0.0, 1.0], repeat=d)))
    each = np.prod(np.where(images[:, None] == 1, rate, 1 - rate), axis=2)
    return images, each @ weights


@pytest.mark.slow
def test_a_discrete_model_agrees_with_enumeration():
    model = binary_model()
    images, p = probabilities(model)
    assert abs(p.sum() - 1) < 1e-6
    nan = np.nan
    x = np.array([[1, nan, 0, nan], [nan, 0, 0, 1], [1, 1, nan, nan]], np.float32)
    values, of = mapped(imputation.impute, x, model=model, k=20_000)
    draws = mapped(imputation.complete, x, model=model, k=20_000, n=8000)
    columns = mapped(imputation.explain, x, model=model, k=20_000).columns
    for i, row in enumerate(x):
        o = ~np.isnan(row)
        fits = lambda row, o: (images[:, o] == row[o]).all(1)
        known = p[fits(row, o)]
        mean = (images[fits(row, o)] * known[:, None]).sum(0) / known.sum()
        np.testing.assert_allclose(values[i], mean, atol=0.02)
        assert abs(of.log_likelihood[i] - np.log(known.sum())) < 4 * of.standard_error[i]
        for j in np.flatnonzero(o):
            rest = o & (np.arange(4) != j)
            wanted = np.log(known.sum() / p[fits(row, rest)].sum())
            assert abs(columns[i, j] - wanted) < 0.02
        pairs = draws[i][:, ~o]
        for image, share in zip(images[fits(row, o)], known / known.sum(), strict=True):
            found = (pairs == image[~o]).all(1).mean()
            assert abs(found - share) < 4 * np.sqrt(share / 8000) + 0.01


# What cannot be


def test_models_without_one_decoder_are_refused():
    config = ModelConfig(1, ((4,),), (2,), "bernoulli", uncertain_weights="both")
    model = build(
        config, kind="binary", mean=np.full(4, 0.5), spread=np.ones(4), key=jax.random.key(0)
    )
    assert isinstance(model, UncertainAutoencoder)
    x, key = jnp.zeros(4), jax.random.key(0)
    with pytest.raises(InputError, match=r"filled in by a UncertainAutoencoder.*at_the_mean"):
        imputation.impute(model, x, key, k=3)
    assert imputation.impute(model.at_the_mean(), x, key, k=3).values.shape == (4,)
    with pytest.raises(InputError, match="0 draws were requested"):
        imputation.complete(model.at_the_mean(), x, key, k=3, n=0)
    with pytest.raises(InputError, match="k = 0"):
        imputation.explain(model.at_the_mean(), x, key, k=0)
