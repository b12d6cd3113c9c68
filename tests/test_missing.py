"""Missing values: closed forms of Gaussian models, and quadrature for values missing by size."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal, norm

from iwae.config.schema import ModelConfig
from iwae.data.schema import Column, Schema
from iwae.errors import InputError
from iwae.evaluation.likelihood import log_likelihood
from iwae.models import missing
from iwae.models.base import AbstractAutoencoder, draw_log_weights
from iwae.models.build import build
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.likelihoods.columns import Columns
from iwae.models.likelihoods.summary import summarize
from linear_gaussian import orthogonal_chain
from thinned import thinned

D, SIGMA = 5, 0.8
RNG = np.random.default_rng(0)
W = RNG.normal(0, 1.5, D)
MEAN = RNG.normal(0, 3, D)
COVARIANCE = np.outer(W, W) + SIGMA**2 * np.eye(D)
ROWS = RNG.multivariate_normal(MEAN, COVARIANCE, 300).astype(np.float32)
SEEN = RNG.random((20, D)) < 0.5
SEEN[0], SEEN[1] = True, False
HOLED = np.where(SEEN, ROWS[:20], np.nan).astype(np.float32)
REAL = Schema(tuple(Column(f"x{j}", "real") for j in range(D)))


class Posterior(eqx.Module):
    """p(h|x_o) of probabilistic PCA with one factor (exact, so that every log-weight is
    log p(x_o))."""

    def __call__(self, x):
        seen = ~jnp.isnan(x)
        w = jnp.where(seen, jnp.asarray(W, jnp.float32), 0.0)
        precision = 1 + jnp.sum(w**2) / SIGMA**2
        apart = jnp.where(seen, x - jnp.asarray(MEAN, jnp.float32), 0.0)
        mu = jnp.sum(w * apart) / SIGMA**2 / precision
        return mu[None], -0.5 * jnp.log(precision)[None]


class Other(AbstractAutoencoder):
    """A model of a user, without any method of its own."""

    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)

    def propose(self, x, k, key):
        return (jnp.zeros((k, 3)),)

    def log_proposal(self, x, h):
        return jnp.zeros(len(h[0]))

    def log_observation(self, x, h):
        return jnp.zeros(len(h[0]))

    def log_prior_terms(self, h):
        return [jnp.zeros(len(h[0]))]


def factor_model(kind):
    """Probabilistic PCA with one factor, as a model of a table or of real values."""
    mean, spread = ROWS.mean(axis=0), ROWS.std(axis=0)
    model = eqx.filter_jit(build)(
        ModelConfig(hidden=((),), latents=(1,)),
        kind=kind,
        mean=mean,
        spread=spread,
        key=jax.random.key(0),
        table=summarize(REAL, ROWS) if kind == "table" else None,
        missing=True,
    )
    floor = 1e-3 * spread if kind == "table" else 0.0
    scale = np.log(np.sqrt(SIGMA**2 - floor**2) / spread)
    weight = np.concatenate([W / spread, np.zeros(D)])[:, None]
    bias = np.concatenate([(MEAN - mean) / spread, scale])
    return eqx.tree_at(
        lambda m: (m.encoder, m.observation.linear.weight, m.observation.linear.bias),
        model,
        ((Posterior(),), jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)),
    )


def log_evidence(x):
    """log p(x_o) of each row."""
    parts = [
        (row[o], MEAN[o], COVARIANCE[np.ix_(o, o)]) for row, o in zip(x, ~np.isnan(x), strict=True)
    ]
    return np.array([multivariate_normal.logpdf(*of) if len(of[0]) else 0.0 for of in parts])


@eqx.filter_jit
def weights(model, x, key, k):
    return jax.vmap(lambda x: draw_log_weights(model, x, k, key))(x)


@pytest.mark.parametrize("kind", ["table", "real"])
def test_every_weight_of_the_exact_posterior_is_the_evidence_of_what_is_seen(kind):
    log_w = weights(factor_model(kind), jnp.asarray(HOLED), jax.random.key(1), 3)
    exact = np.broadcast_to(log_evidence(HOLED)[:, None], (20, 3))
    np.testing.assert_allclose(log_w, exact, rtol=2e-4, atol=5e-4)


@pytest.mark.parametrize("kind", thinned(["table", "real"], "table"))
def test_missing_values_are_completed_from_their_conditional_distribution(kind):
    model = factor_model(kind)
    o = np.array([True, False, True, False, False])
    row = jnp.asarray(np.where(o, ROWS[0], np.nan), jnp.float32)

    @eqx.filter_jit
    def completed(model, key):
        (h1,) = model.propose(row, 20_000, key)
        one = lambda h, key: model.likelihood.complete(model.parameters(h), row, key)
        return jax.vmap(one)(h1, jax.random.split(key, 20_000))

    full = np.asarray(completed(model, jax.random.key(2)), np.float64)
    m = W[o] @ W[o] + SIGMA**2
    mean = MEAN[~o] + W[~o] / m * (W[o] @ (ROWS[0, o] - MEAN[o]))
    covariance = SIGMA**2 * (np.outer(W[~o], W[~o]) / m + np.eye(3))
    error = np.sqrt(np.diag(covariance) / 20_000)
    assert (np.abs(full[:, ~o].mean(axis=0) - mean) < 4.5 * error).all()
    np.testing.assert_allclose(np.cov(full[:, ~o].T), covariance, atol=0.04 * covariance.max())
    assert (full[:, o] == ROWS[0, o]).all()


@pytest.mark.parametrize("kind", thinned(["table", "real", "binary"], "table"))
def test_training_gradients_are_finite_where_values_are_missing(kind):
    x = (ROWS[:20] > 0).astype(np.float32) if kind == "binary" else ROWS[:20]
    model = eqx.filter_jit(build)(
        ModelConfig(hidden=((8,),), latents=(2,)),
        kind=kind,
        mean=x.mean(axis=0),
        spread=x.std(axis=0),
        key=jax.random.key(0),
        table=summarize(REAL, ROWS) if kind == "table" else None,
        missing=True,
    )

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return jnp.mean(weights(model, jnp.asarray(np.where(SEEN, x, np.nan)), key, 4))

    key = jax.random.key(3)
    for leaf in jax.tree.leaves(gradient(model)):
        assert np.isfinite(leaf).all()


def test_what_stands_in_for_a_missing_value_cannot_matter():
    model = factor_model("real")
    moved = eqx.tree_at(lambda m: m.likelihood.center, model, replace_fn=lambda c: c + 7)
    one, other = (weights(m, jnp.asarray(HOLED), jax.random.key(1), 2) for m in (model, moved))
    np.testing.assert_array_equal(one, other)


def test_the_bound_of_a_row_does_not_depend_on_its_batch():
    model = factor_model("table")
    bound = eqx.filter_jit(
        lambda model, x: jax.vmap(lambda x: log_likelihood(model, x, jax.random.key(0), k=20))(x)
    )
    together = bound(model, jnp.asarray(HOLED))
    alone = np.concatenate([bound(model, jnp.asarray(HOLED[i : i + 1])) for i in range(3)])
    np.testing.assert_allclose(together[:3], alone, rtol=1e-5, atol=1e-5)


# --- a model that was built for complete examples -------------------------------------------------


def test_complete_examples_keep_their_weights_in_the_observed_part():
    chain = orthogonal_chain(2, inflate=1.2)
    x = jnp.asarray(chain.draw(5, 0))
    partial = missing.observed_part(chain.model, jnp.asarray(chain.mean, jnp.float32))
    one, other = (weights(m, x, jax.random.key(0), 3) for m in (chain.model, partial))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_observed_part_bounds_the_evidence_of_what_is_seen():
    chain = orthogonal_chain(1, inflate=1.5)
    x = chain.draw(8, 0)
    seen = np.random.default_rng(1).random(x.shape) < 0.8
    partial = missing.observed_part(chain.model, jnp.asarray(chain.mean, jnp.float32))
    holed = jnp.asarray(np.where(seen, x, np.nan), jnp.float32)
    log_w = np.asarray(weights(partial, holed, jax.random.key(0), 20_000), np.float64)
    of = lambda o: (chain.mean[o], chain.covariance[np.ix_(o, o)])
    exact = [multivariate_normal.logpdf(row[o], *of(o)) for row, o in zip(x, seen, strict=True)]
    relative = np.exp(log_w - np.array(exact)[:, None])
    error = relative.std(axis=1) / np.sqrt(20_000)
    assert (np.abs(relative.mean(axis=1) - 1) < 5 * error + 1e-4).all()


@pytest.mark.parametrize(
    "of", thinned([{}, {"proposal": "hierarchical"}, {"uncertain_weights": "both"}], {}), ids=str
)
def test_every_model_has_an_observed_part(of):
    config = ModelConfig(hidden=((4,),), latents=(2,), **of)
    x = (ROWS[:20] > 0).astype(np.float32)
    model = eqx.filter_jit(build)(
        config, kind="binary", mean=x.mean(0), spread=x.std(0), key=jax.random.key(0), k=2
    )
    partial = missing.observed_part(model)
    one, other = (weights(m, jnp.asarray(x), jax.random.key(0), 2) for m in (model, partial))
    holed = weights(partial, jnp.asarray(np.where(SEEN, x, np.nan)), jax.random.key(0), 2)
    assert np.isfinite(holed).all()
    if "uncertain_weights" not in of:  # whose weights are drawn in the order of the parts
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_model_of_another_class_has_no_observed_part():
    with pytest.raises(InputError, match="was not built for them"):
        missing.observed_part(Other(orthogonal_chain(1).model.likelihood, (3,)))


def test_a_model_that_takes_missing_values_is_its_own_observed_part():
    for kind in ("table", "real"):
        model = factor_model(kind)
        assert missing.observed_part(model, jnp.zeros(D)) is model


# --- values missing by their own size -------------------------------------------------------------

ONE = Schema((Column("x", "real"), Column("word", "categorical", categories=("a", "b"))))
SLOPE, INTERCEPT = 1.7, -0.4


def masked(how, prior="normal"):
    """A model of one number and one word that do not depend on h, and of the number's mask."""
    x = np.stack([np.random.default_rng(3).normal(2, 3, 400), np.arange(400) % 2], axis=1)
    x = x.astype(np.float32)
    x[:50, 0] = np.nan
    model = eqx.filter_jit(build)(
        ModelConfig(hidden=((),), latents=(2,), missingness=how, prior=prior),
        kind="table",
        mean=np.zeros(2),
        spread=np.ones(2),
        key=jax.random.key(0),
        table=summarize(ONE, x),
        missing=True,
    )
    where = lambda m: m.observation.network.linear.weight
    return eqx.tree_at(where, model, replace_fn=jnp.zeros_like)


def _set(model):
    """The model with these parameters of the mask, and the mean and scale of its number."""
    mechanism = missing.SelfMasking(jnp.asarray([SLOPE]), jnp.asarray([INTERCEPT]), 0)
    model = eqx.tree_at(lambda m: m.likelihood.mechanism, model, mechanism)
    standard = model.likelihood.likelihood.parts[0].standard
    spread = float(standard.spread[0])
    return model, float(standard.mean[0]), spread


def test_the_weights_include_the_mask_of_values_missing_by_size():
    model, mean, spread = _set(masked("self-masking"))
    x = jnp.asarray([[jnp.nan, 1.0], [4.0, jnp.nan]])
    log_w = np.asarray(weights(model, x, jax.random.key(0), 20_000), np.float64)
    z = np.linspace(-9, 9, 4001)
    of_mask = expit(SLOPE * z + INTERCEPT)
    density = norm.pdf(z, scale=np.hypot(1, 1e-3))
    absent = np.trapezoid(density * of_mask, z)
    at = (4.0 - mean) / spread
    seen = norm.pdf(4.0, mean, spread * np.hypot(1, 1e-3)) * expit(-SLOPE * at - INTERCEPT)
    level = np.exp(log_w[0]).mean(), np.exp(log_w[1]).mean()
    spare = np.exp(log_w).std(axis=1) / np.sqrt(20_000) * 5
    q_is_prior = np.array([0.5 * absent, seen])  # the words have equal shares
    assert (np.abs(level - q_is_prior) < spare + 1e-3 * q_is_prior).all()


def test_values_missing_by_size_are_imputed_by_the_weights_of_their_mask():
    model, mean, spread = _set(masked("self-masking"))
    row = jnp.asarray([jnp.nan, 1.0])

    @eqx.filter_jit
    def imputed(model, key):
        h, log_q = model.propose_and_log_prob(row, 40_000, key)
        log_w = model.log_joint(row, h) - log_q
        of = jax.vmap(lambda h1: model.likelihood.prediction(model.parameters(h1), row))(h[0])
        return jax.nn.softmax(log_w) @ of

    z = np.linspace(-9, 9, 4001)
    tilted = norm.pdf(z) * expit(SLOPE * z + INTERCEPT)
    exact = mean + spread * np.trapezoid(z * tilted, z) / np.trapezoid(tilted, z)
    assert float(imputed(model, jax.random.key(0))[0]) == pytest.approx(exact, abs=0.08 * spread)
    assert exact > mean + 0.3 * spread


@pytest.mark.parametrize("prior", thinned(["normal", "mixture"], "mixture"))
@pytest.mark.parametrize(
    "how",
    thinned(["self-masking", "self-masking-high", "self-masking-low", "linear"], "self-masking"),
)
@pytest.mark.slow
def test_every_part_of_the_mask_and_the_decoder_gets_a_gradient(how, prior):
    model = masked(how, prior)
    x = jnp.asarray([[jnp.nan, 1.0], [4.0, jnp.nan], [jnp.nan, jnp.nan]])

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return jnp.mean(jax.nn.logsumexp(weights(model, x, jax.random.key(0), 8), axis=1))

    of = gradient(model)
    for leaf in jax.tree.leaves(of):
        assert np.isfinite(leaf).all()
    for leaf in jax.tree.leaves(of.likelihood.mechanism):
        assert (np.asarray(leaf) != 0).all()
    assert (np.asarray(of.observation.network.linear.bias[:2]) != 0).all()


@pytest.mark.parametrize(("how", "sign"), [("self-masking-high", 1), ("self-masking-low", -1)])
def test_a_known_sign_of_the_mask_is_kept(how, sign):
    for size in (-5.0, 5.0):
        of = missing.SelfMasking(jnp.asarray([size]), jnp.zeros(1), sign)
        logits = [float(of.logits(jnp.asarray([z]))[0]) for z in (-1.0, 1.0)]
        assert sign * (logits[1] - logits[0]) > 0
    assert masked(how).likelihood.mechanism.sign == sign


def test_the_mask_before_training_has_the_shares_of_training():
    mechanism = masked("self-masking").likelihood.mechanism
    assert float(expit(mechanism.intercept[0])) == pytest.approx(50.5 / 401, rel=1e-4)


@pytest.mark.slow
def test_the_noise_of_missing_values_costs_nothing():
    plain = masked("self-masking")
    x = jnp.asarray([[4.0, 1.0]])
    without = dataclasses.replace(
        plain,
        encoder=(plain.encoder[0].conditional,),
        observation=plain.observation.network,
        likelihood=plain.likelihood.likelihood,
        latents=(2,),
    )
    share = 50.5 / 401
    model = eqx.tree_at(lambda m: m.likelihood.mechanism.slope, plain, jnp.zeros(1))
    log_w = weights(model, x, jax.random.key(0), 30_000)
    exact = weights(without, x, jax.random.key(1), 30_000)
    of = lambda a: float(jax.nn.logsumexp(a) - jnp.log(30_000))
    assert of(log_w) == pytest.approx(of(exact) + np.log1p(-share), abs=0.02)


def test_missingness_by_size_needs_a_column_that_is_gaussian():
    words = Schema((ONE.columns[1],))
    arguments = {"mean": np.zeros(1), "spread": np.ones(1), "key": jax.random.key(0)}
    config = ModelConfig(hidden=((),), latents=(2,), missingness="self-masking")
    with pytest.raises(InputError, match="no column of the table is real"):
        build(config, kind="table", table=summarize(words, np.ones((4, 1))), **arguments)
    with pytest.raises(InputError, match="give --values table"):
        build(config, kind="real", **arguments)
    with pytest.raises(InputError, match="give --values table"):
        build(dataclasses.replace(config, noise="full"), kind="real", **arguments)


def test_a_table_needs_its_summary():
    with pytest.raises(InputError, match="without the summary"):
        build(
            ModelConfig(hidden=((),), latents=(2,)),
            kind="table",
            mean=np.zeros(1),
            spread=np.ones(1),
            key=jax.random.key(0),
        )


def test_a_table_is_modelled_by_its_columns():
    assert isinstance(factor_model("table").likelihood, Columns)
