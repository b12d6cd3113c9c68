"""Black-box α over uncertain weights: Bayesian linear regression, limits, gradients, runs."""

import itertools
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import iwae
from callbacks import Interrupting
from iwae.bounds import black_box_alpha, ciwae, elbo, miwae, vr_iwae
from iwae.bounds import iwae as l_k
from iwae.config.io import override
from iwae.config.schema import ModelConfig, RunConfig
from iwae.errors import InputError
from iwae.estimators.surrogate import surrogate_loss
from iwae.models import draw_log_weights
from iwae.models.bayesian import UncertainAutoencoder, UncertainLinear
from iwae.models.likelihoods import Gaussian
from iwae.models.networks import Linear
from iwae.models.shared_weights import SharedWeights
from iwae.training.parts import described
from linear_gaussian import random_model
from refusals import refused
from thinned import thinned

# --- Bayesian linear regression ---------------------------------------------------------------

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 3))
Y = FEATURES @ np.array([0.8, -0.5, 0.3]) + 0.4 * RNG.normal(size=6)
SIGMA = 0.5


class Regression(eqx.Module):
    """The Gaussian parameters of all outputs, Φ ω and log σ, whatever h is."""

    weights: Any
    features: jax.Array

    def __call__(self, h: jax.Array) -> jax.Array:
        mean = jax.vmap(self.weights)(self.features)[:, 0]
        return jnp.stack([mean, jnp.full_like(mean, jnp.log(SIGMA))])


def regression(
    mean: np.ndarray, sigma: np.ndarray, features: np.ndarray = FEATURES
) -> UncertainAutoencoder:
    """y ~ N(Φ ω, σ² I) with q(ω) = N(mean, diag sigma²); q(h|y) is p(h), so h has no part in it."""
    certain = jnp.full(1, -30.0)
    weights = UncertainLinear(
        Linear(jnp.asarray(mean, jnp.float32)[None], jnp.zeros(1)),
        Linear(jnp.asarray(np.log(sigma), jnp.float32)[None], certain),
    )
    return UncertainAutoencoder(
        encoder=(lambda x: (jnp.zeros(1), jnp.zeros(1)),),
        decoder=(),
        observation=Regression(weights, jnp.asarray(features, jnp.float32)),
        likelihood=Gaussian(jnp.zeros(6), jnp.ones(6)),
        latents=(1,),
    )


def values(model: UncertainAutoencoder, alpha: float, groups: int, n: int) -> np.ndarray:
    """n estimates of (1/α) log E_q[p(y|ω)^α]."""
    bound = partial(black_box_alpha, of_group=l_k, alpha=alpha, groups=groups)

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        drawn = SharedWeights.of(model, groups, key)
        return bound(draw_log_weights(drawn, jnp.asarray(Y, jnp.float32), groups, key))

    return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(0), n)), np.float64)


MEAN, WIDTH = np.array([0.7, -0.4, 0.2]), np.array([0.12, 0.2, 0.15])


@pytest.mark.parametrize("alpha", thinned([0.3, 1.0, 2.0], 0.3))
def test_the_energy_of_a_linear_regression_is_a_gaussian_integral(alpha: float) -> None:
    """(1/α) log ∫ N(y; Φω, σ²I)^α N(ω; m, V) dω, by large G, whose error falls as 1/G."""
    covariance = SIGMA**2 / alpha * np.eye(6) + FEATURES @ np.diag(WIDTH**2) @ FEATURES.T
    log_integral = multivariate_normal.logpdf(Y, FEATURES @ MEAN, covariance)
    # N(y; μ, σ²)^α = N(y; μ, σ²/α) (2πσ²)^((1−α)/2) / √α for each output
    log_integral += 6 * ((1 - alpha) / 2 * np.log(2 * np.pi * SIGMA**2) - np.log(alpha) / 2)
    found = values(regression(MEAN, WIDTH), alpha, groups=4000, n=60)
    error = found.std() / np.sqrt(len(found))
    assert error < 0.01
    assert abs(found.mean() - log_integral / alpha) < 4 * error + 0.002


def test_the_limit_of_variational_inference_is_tight_at_the_posterior() -> None:
    """With orthogonal features q(ω) can be the posterior; E[log p(y|ω)] − KL is then log p(y)."""
    columns = np.linalg.qr(FEATURES)[0] * np.array([1.5, 0.8, 2.0])
    precision = 1 + np.sum(columns**2, axis=0) / SIGMA**2
    mean = columns.T @ Y / SIGMA**2 / precision
    q = regression(mean, precision**-0.5, columns)
    evidence = multivariate_normal.logpdf(
        Y, np.zeros(6), SIGMA**2 * np.eye(6) + columns @ columns.T
    )
    found = values(q, 0.0, groups=50, n=4000)
    small = values(q, 1e-4, groups=50, n=4000)
    kl = np.sum((1 / precision + mean**2 - 1) / 2 + np.log(precision) / 2)
    error = found.std() / np.sqrt(len(found))
    assert error < 0.01
    assert abs(found.mean() - kl - evidence) < 4 * error
    np.testing.assert_allclose(small, found, atol=1e-3)


# --- the bound --------------------------------------------------------------------------------

LOG_W = jnp.asarray(np.random.default_rng(1).normal(-90, 2, (12, 5)), jnp.float32)


def test_special_cases() -> None:
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    of_groups = partial(black_box_alpha, of_group=l_k)
    power_mean = lambda a, groups: jax.jit(partial(of_groups, alpha=a, groups=groups))(LOG_W)
    close(power_mean(1.0, 4), l_k(LOG_W))
    close(power_mean(0.0, 4), miwae(LOG_W, m=4))
    close(power_mean(0.3, 12), vr_iwae(LOG_W, alpha=0.7))
    close(black_box_alpha(LOG_W, of_group=elbo, alpha=0.5, groups=1), elbo(LOG_W))
    # Power means rise with their power.
    each = [power_mean(a, 4) for a in (-1.0, 0.0, 0.5, 1.0)]
    assert all((low < high).all() for low, high in itertools.pairwise(each))


OF_GROUP: dict[str, Any] = {"iwae": l_k, "vae": elbo, "ciwae": partial(ciwae, beta=0.3)}


@pytest.mark.parametrize("alpha", thinned([0.0, 0.4, 1.0, -0.7], 0.4))
@pytest.mark.parametrize("of_group", thinned(OF_GROUP, "iwae"))
def test_the_curvature_is_the_diagonal_of_the_hessian(alpha: float, of_group: str) -> None:
    given: dict[str, Any] = {"of_group": OF_GROUP[of_group], "alpha": alpha, "groups": 3}
    bound = black_box_alpha.with_settings(**given)
    hessian = jax.jit(jax.hessian(bound))
    for one in LOG_W.T[:2]:
        expected = np.diag(hessian(one))
        np.testing.assert_allclose(bound.curvature(one), expected, atol=2e-6)
    each = np.stack([bound.curvature(one) for one in LOG_W.T], axis=1)
    np.testing.assert_allclose(bound.curvature(LOG_W), each, atol=1e-6)


def test_the_bound_is_named_and_pickled_with_that_of_its_groups() -> None:
    """So that a run is resumed with the same one."""
    each = [
        black_box_alpha.with_settings(of_group=of, alpha=0.5, groups=2)
        for of in (l_k, elbo, ciwae.with_settings(beta=0.3))
    ]
    names = [described(bound) for bound in each]
    assert names[1] == "iwae.bounds.black_box_alpha(of_group=iwae.bounds.elbo, alpha=0.5, groups=2)"
    assert len({*names}) == 3
    for bound in each:
        again = pickle.loads(pickle.dumps(bound))
        assert again == bound
        np.testing.assert_array_equal(again(LOG_W), bound(LOG_W))


def test_what_has_no_such_bound_is_refused() -> None:
    given = partial(black_box_alpha, LOG_W, of_group=l_k)
    with refused(
        "alpha = inf was given, but the α of black-box α must be finite; give 0 for variational "
        "inference."
    ):
        given(alpha=np.inf, groups=2)
    with refused(
        "groups = 5 was given with K = 12 log-weights, but each draw of the weights has an equal "
        "part of them; give a number that divides 12."
    ):
        given(alpha=0.5, groups=5)


# --- a model ----------------------------------------------------------------------------------

X = jnp.array([1.0, 0, 0, 1, 1])


def uncertain(layers: int = 1, which: Any = "both", **of: Any) -> UncertainAutoencoder:
    config = ModelConfig(layers, ((4,), (3,))[:layers], (2, 2)[:layers], "bernoulli", **of)
    return UncertainAutoencoder.around(random_model(config, 5, seed=2), which=which, sigma=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["bottom-up", "ladder"])
def test_shared_weights_have_the_mean_weight_of_separate_ones(inference: Any) -> None:
    """E[w] = p(x) for both."""
    model, n = uncertain(1 if inference == "bottom-up" else 2, inference=inference), 6000

    @jax.jit
    def shared(key: jax.Array) -> jax.Array:
        return draw_log_weights(SharedWeights.of(model, 4, key), X, 8, key)

    keys = jax.random.split(jax.random.key(0), n)
    together = np.asarray(jax.lax.map(shared, keys), np.float64)
    apart = eqx.filter_jit(draw_log_weights)(model, X, 8 * n, jax.random.key(1))
    w, v = np.exp(together).mean(axis=1), np.exp(np.asarray(apart, np.float64))
    error = np.sqrt(w.var() / n + v.var() / len(v))
    assert error < 0.08 * v.mean()
    assert abs(w.mean() - v.mean()) < 4 * error


def test_draws_of_a_group_have_the_same_weights() -> None:
    """The first of K = 6 draws are those of one autoencoder, the others of another."""
    model, key = uncertain(2), jax.random.key(3)
    shared = eqx.filter_jit(SharedWeights.of)(model, 2, key)
    noise = shared.noise(6, key)

    @eqx.filter_jit
    def weighed(model: Any, noise: Any) -> tuple[jax.Array, ...]:
        h, log_q = model.reparametrize(X, noise)
        terms = model.log_observation(X, h) + sum(model.log_prior_terms(h))
        return model.log_joint(X, h) - log_q, terms - log_q, log_q, model.log_proposal(X, h)

    log_w, summed, log_q, again = weighed(shared, noise)
    np.testing.assert_allclose(log_w, summed, rtol=1e-5)
    np.testing.assert_allclose(again, log_q, rtol=1e-5, atol=1e-5)
    for g, key_g in enumerate(jax.random.split(key, 2)):
        own = eqx.filter_jit(model.with_drawn_weights)(key_g)
        expected = weighed(own, tuple(a[3 * g : 3 * g + 3] for a in noise))[0]
        np.testing.assert_allclose(log_w[3 * g : 3 * g + 3], expected, rtol=1e-5)
    with refused(
        "K = 5 draws were requested in 2 groups, each with its own draw of the weights; give a "
        "multiple of 2."
    ):
        shared.propose(X, 5, key)


@pytest.mark.slow
def test_doubly_reparametrised_gradients_are_unbiased_given_the_weights() -> None:
    model, keys = uncertain(1), jax.random.split(jax.random.key(0), 20_000)
    bound = black_box_alpha.with_settings(of_group=l_k, alpha=0.5, groups=2)

    @eqx.filter_jit
    def gradients(estimator: str) -> Any:
        def one(key: jax.Array) -> Any:
            def loss(model: UncertainAutoencoder) -> jax.Array:
                drawn = SharedWeights.of(model, 2, key)
                return surrogate_loss(drawn, X, key, bound=bound, k=4, estimator=estimator)[0]

            return eqx.filter_grad(loss)(model)

        return jax.lax.map(one, keys, batch_size=500)

    each = []
    for estimator in ("reparam", "dreg"):
        leaves = [np.asarray(a, np.float64) for a in jax.tree.leaves(gradients(estimator))]
        each.append(np.concatenate([a.reshape(len(keys), -1) for a in leaves], axis=1))
    apart = each[0] - each[1]
    z = apart.mean(axis=0) / (apart.std(axis=0) / np.sqrt(len(keys)) + 1e-9)
    assert np.abs(z).max() < 4.8
    assert apart.std(axis=0).max() > 0


# --- runs -------------------------------------------------------------------------------------

OF = {"uncertain_weights": "both", "k": 4, "weight_alpha": 0.5, "weight_draws": 2, "weight_kl": 1.0}


@pytest.mark.slow
def test_a_run_is_resumed_bit_for_bit(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(tiny, **OF, epochs=2)
    assert config.label == "IWAE, uncertain weights by black-box α = 0.5"
    whole = iwae.train(config)
    out = tmp_path / "run"
    with pytest.raises(iwae.errors.Interrupted):
        iwae.train(config, out=out, callbacks=[Interrupting(5)])
    resumed = iwae.train(config, out=out, resume=True)
    jax.tree.map(
        np.testing.assert_array_equal,
        eqx.filter(resumed.model, eqx.is_array),
        eqx.filter(whole.model, eqx.is_array),
    )
    assert np.isfinite(iwae.load(out).evaluate(k=8, limit=20).nll)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"uncertain_weights": "none"}, ("the model's weights are fixed", "--uncertain-weights")),
        ({"weight_kl": 0.0}, ("without weight_kl", "give --weight-kl 1")),
        ({"backward_draws": 2}, ("backward_draws = 2", "--backward-draws None")),
        ({"estimator": "rws"}, ("estimator = rws", "reparam, stl or dreg")),
        ({"weight_draws": 3}, ("weight_draws = 3", "k = 4", "divides 4")),
        ({"weight_draws": 1}, ("with 1 draw of the weights", "--weight-alpha 0")),
        ({"weight_alpha": None}, ("weight_draws = 2", "only --weight-alpha")),
        ({"weight_alpha": float("nan")}, ("weight_alpha = nan", "must be finite")),
        ({"weight_draws": 0}, ("weight_draws = 0", "at least 1")),
        ({"objective": "jvi", "order": 2}, ("leaves 2 of the k = 4", "order = 2")),
        ({"stages": "1 k=2 / 1 k=3"}, ("Stage 2 (1 k=3)", "divides 3")),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: dict[str, Any], parts: tuple[str, ...]
) -> None:
    given = {"weight_kl": 0.0, **given} if given.get("uncertain_weights") == "none" else given
    with pytest.raises(InputError) as error:
        override(RunConfig(), **{**OF, **given})
    assert all(part in str(error.value) for part in parts)


def test_stages_have_whole_groups() -> None:
    config = override(RunConfig(), **{**OF, "k": 12, "weight_draws": 4, "stages": "1 max_k=6 / 1"})
    assert [own.objective.k for own, _, _ in config.by_stage] == [4, 12]
    allowed = override(RunConfig(), **OF, backward_draws=4)
    assert allowed.training.weight_alpha == 0.5


def test_draws_of_shared_weights_are_not_resampled() -> None:
    shared = eqx.filter_jit(SharedWeights.of)(uncertain(), 2, jax.random.key(0))
    with pytest.raises(InputError, match="come in blocks"):
        surrogate_loss(shared, X, jax.random.key(1), bound=l_k, k=4, backward_draws=2)


def test_a_model_of_ones_own_takes_no_weight_alpha(tiny: RunConfig) -> None:
    own = random_model(ModelConfig(1, ((4,),), (2,), "bernoulli"), 64, seed=0)
    with refused(
        "weight_alpha = 0.5 was given with a model of your own, but it is for the models that "
        "uncertain_weights makes; leave one of the two out."
    ):
        iwae.train(override(tiny, **OF), model=own)
