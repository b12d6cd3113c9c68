"""Ladder VAEs: exact posteriors, limits, gradients, and the same services as other models."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import norm

import iwae
from iwae.bounds import BOUNDS, elbo, jvi, miwae, vr_iwae
from iwae.bounds import iwae as iwae_bound
from iwae.config.io import override, recipe
from iwae.config.schema import ModelConfig, RunConfig
from iwae.estimators.estimators import ESTIMATORS
from iwae.estimators.surrogate import surrogate_loss
from iwae.models import build, draw_log_weights, log_weights
from iwae.models.autoencoder import Autoencoder
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.ladder import LadderAutoencoder, Upwards, combined
from iwae.models.likelihoods import Gaussian as GaussianLikelihood
from iwae.models.missing import observed_part
from iwae.runs import load
from iwae.training import gradient_step
from linear_gaussian import random_model
from refusals import refused
from thinned import thinned

X = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
weights = eqx.filter_jit(draw_log_weights)


def small(layers: int = 3, seed: int = 2, **of: Any) -> LadderAutoencoder:
    """A random ladder for 5 pixels."""
    hidden, latents = ((4,), (4, 3), ())[:layers], (3, 2, 2)[:layers]
    config = ModelConfig(layers, hidden, latents, "bernoulli", inference="ladder", **of)
    return random_model(config, 5, seed=seed)


# --- exact values -----------------------------------------------------------------------------


class Known(eqx.Module):
    """v ↦ (gain v, log σ)."""

    gain: jax.Array
    log_sigma: jax.Array

    def __call__(self, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.gain * v, jnp.broadcast_to(self.log_sigma, v.shape)


class KnownEvidence(eqx.Module):
    """The moments of every layer, linear in x."""

    layers: tuple[Known, ...]

    def __call__(self, x: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        return [layer(x) for layer in self.layers]


def exact_chain(gains: list[float], sigmas: list[float]) -> tuple[LadderAutoencoder, float]:
    """Units that do not mix, h_l = gain · h_{l+1} + σ ε with h_0 = x; and the variance of x.

    In terms of h_l x is Gaussian, x = A_l h_l + √V_l ε, which gives the evidence μ̂_l = x / A_l and
    σ̂_l = √V_l / |A_l|; at the top it is combined with N(0, 1). The ladder is then the posterior.
    """
    found, a, v = [], 1.0, 0.0
    for gain, sigma in zip(gains, sigmas, strict=True):
        a, v = a * gain, v + (a * sigma) ** 2
        found.append((1 / a, v / a**2))
    slope, variance = found[-1]
    found[-1] = (slope / (1 + variance), variance / (1 + variance))
    known = lambda gain, var: Known(jnp.float32(gain), jnp.float32(np.log(var) / 2))
    pairs = [known(gain, sigma**2) for gain, sigma in zip(gains, sigmas, strict=True)]
    model = LadderAutoencoder(
        encoder=KnownEvidence(tuple(known(*of) for of in found)),
        decoder=tuple(pairs[1:]),
        observation=lambda h: jnp.concatenate(pairs[0](h)),
        likelihood=GaussianLikelihood(jnp.zeros(3), jnp.ones(3)),
        latents=(3,) * len(gains),
    )
    return model, a**2 + v


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_linear_chain_has_its_posterior_as_a_ladder(layers: int) -> None:
    """Every importance weight is then p(x) itself."""
    model, variance = exact_chain([1.3, -0.7, 0.9, 1.8][:layers], [0.6, 0.8, 1.1, 0.5][:layers])
    x = np.array([0.4, -1.9, 2.2])
    exact = norm.logpdf(x, 0, np.sqrt(variance)).sum()
    log_w = weights(model, jnp.asarray(x, jnp.float32), 50, jax.random.key(0))
    np.testing.assert_allclose(log_w, exact, rtol=2e-6, atol=2e-5)


def test_moments_are_those_of_a_product_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    mu, mu_p = rng.normal(size=(2, 40))
    log_sigma, log_sigma_p = rng.uniform(-6, 6, (2, 40))
    precision = np.exp(-2 * log_sigma) + np.exp(-2 * log_sigma_p)
    mean = (mu * np.exp(-2 * log_sigma) + mu_p * np.exp(-2 * log_sigma_p)) / precision
    as_32 = lambda a, b: (jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    found = combined(as_32(mu, log_sigma), as_32(mu_p, log_sigma_p))
    np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], -np.log(precision) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("log_sigma", [60.0, 1e4, np.inf])
def test_without_evidence_the_proposal_is_the_prior(log_sigma: float) -> None:
    """log w then has no part of h_l; also where the precision is below the least float."""
    evidence = (jnp.array([3.0, -2.0]), jnp.full(2, log_sigma, jnp.float32))
    prior = (jnp.array([0.3, -0.7]), jnp.array([-0.2, 1.4]))
    for found, expected in zip(combined(evidence, prior), prior, strict=True):
        np.testing.assert_array_equal(found, expected)
    model, x = small(2), X
    blind = eqx.tree_at(lambda m: m.encoder.rungs[0].log_sigma.bias, model, jnp.full(3, log_sigma))
    h, _ = blind.propose_and_log_prob(x, 6, jax.random.key(1))
    below, above = blind.log_proposal_terms(x, h), blind.log_prior_terms(h)
    np.testing.assert_array_equal(below[0], above[0])
    assert not np.allclose(below[1], above[1])


def test_certain_evidence_leaves_nothing_of_the_prior() -> None:
    evidence = (jnp.array([3.0]), jnp.array([-40.0]))
    found = combined(evidence, (jnp.array([-50.0]), jnp.array([2.0])))
    for one, expected in zip(found, evidence, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_one_layer_is_the_plain_autoencoder_bit_for_bit() -> None:
    mean, spread = np.full(5, 0.4), np.ones(5)
    of = partial(build, kind="binary", mean=mean, spread=spread, key=jax.random.key(3))
    for how in ("glorot", "fan-in"):
        config = ModelConfig(1, ((4, 3),), (2,), "bernoulli", initialization=how)
        plain, ladder = of(config), of(dataclasses.replace(config, inference="ladder"))
        one, other = (weights(m, X, 7, jax.random.key(1)) for m in (plain, ladder))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_density_of_draws_is_their_own(layers: int) -> None:
    model = small(layers)
    h, log_q = model.propose_and_log_prob(X, 8, jax.random.key(1))
    np.testing.assert_allclose(model.log_proposal(X, h), log_q, rtol=1e-5, atol=1e-5)
    terms = model.log_proposal_terms(X, h)
    np.testing.assert_allclose(sum(terms), log_q, rtol=1e-5, atol=1e-5)
    assert [part.shape for part in h] == [(8, d) for d in model.latents]


def test_weights_have_mean_p_of_x() -> None:
    """p(x) of a model with one unit in each of two layers, on a grid in float64."""
    config = ModelConfig(2, ((4,), (3,)), (1, 1), "bernoulli", inference="ladder")
    model = random_model(config, 5, seed=5)
    points = np.linspace(-8, 8, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    h = (jnp.asarray(grid[:, :1]), jnp.asarray(grid[:, 1:]))
    step = float(points[1] - points[0])
    exact = logsumexp(np.asarray(eqx.filter_jit(model.log_joint)(X, h), np.float64))
    exact += 2 * np.log(step)
    n = 200_000
    log_w = weights(model, X, n, jax.random.key(0))
    relative = np.exp(np.asarray(log_w, np.float64) - exact)
    error = relative.std() / np.sqrt(n)
    assert error < 0.02
    assert abs(relative.mean() - 1) < 4 * error


def test_posterior_means_are_those_of_draws() -> None:
    model = small(3)
    h = model.propose(X, 20_000, jax.random.key(2))
    for layer in (1, 2, 3):
        mean, variance = model.posterior_mean(X, layer, 20_000, jax.random.key(3))
        of = np.asarray(h[layer - 1], np.float64)
        error = np.sqrt(np.asarray(variance) + of.var(axis=0) / len(of))
        assert (np.abs(mean - of.mean(axis=0)) < 4.5 * error).all()
    np.testing.assert_array_equal(variance, 0)  # the top layer is known exactly


# --- gradients --------------------------------------------------------------------------------

K = 4
PAIRS: dict[str, Any] = {
    "elbo": elbo,
    "iwae": iwae_bound,
    "miwae": partial(miwae, m=2),
    "vr-iwae": partial(vr_iwae, alpha=0.5),
    "jvi": partial(jvi, order=1),
}


@eqx.filter_jit
def gradients(model: Any, keys: jax.Array, bound: Any, estimator: str) -> Any:
    """The gradient of the loss for each key."""

    def one(key: jax.Array) -> Any:
        loss = lambda m: surrogate_loss(m, X, key, bound=bound, k=K, estimator=estimator)[0]
        return eqx.filter_grad(loss)(model)

    return jax.vmap(one)(keys)


@pytest.mark.parametrize("bound", thinned([*PAIRS], "iwae"))
def test_doubly_reparametrised_gradients_are_unbiased_for_both_roles_of_the_decoder(
    bound: str,
) -> None:
    """Those of every parameter agree in the mean with the plain ones, which are exact."""
    model, keys = small(2), jax.random.split(jax.random.key(0), 20_000)
    each = []
    for estimator in ("reparam", "dreg"):
        found = jax.tree.leaves(gradients(model, keys, PAIRS[bound], estimator))
        flat = [np.asarray(a, np.float64).reshape(len(keys), -1) for a in found]
        each.append(np.concatenate(flat, axis=1))
    apart = each[0] - each[1]
    z = apart.mean(axis=0) / (apart.std(axis=0) / np.sqrt(len(keys)) + 1e-9)
    assert np.abs(z).max() < 4.8
    assert apart.std(axis=0).max() > 0


@pytest.mark.parametrize("estimator", thinned([*ESTIMATORS], "rws"))
def test_estimators_with_a_divergence_of_their_own_lead_the_decoder_by_p_alone(
    estimator: str,
) -> None:
    """Its gradient is then Σ w̃_i ∇ log p(x, h_i) at fixed draws; else its part in q counts."""
    model, key = small(2), jax.random.key(4)
    (found,) = jax.tree.map(lambda a: a[None], [gradients(model, key[None], iwae_bound, estimator)])
    h = jax.lax.stop_gradient(model.propose(X, K, key))
    w = softmax(np.asarray(log_weights(model, X, h)))
    by_p = eqx.filter_grad(lambda m: -jnp.sum(w * m.log_joint(X, h)))(model)
    pairs = zip(jax.tree.leaves(found.decoder), jax.tree.leaves(by_p.decoder), strict=True)
    alike = [np.allclose(a[0, 0], b, rtol=1e-4, atol=1e-6) for a, b in pairs]
    assert all(alike) is ESTIMATORS[estimator].own_phi
    assert any(np.abs(a).max() > 0 for a in jax.tree.leaves(found.encoder))


@pytest.mark.parametrize("adapted", [False, True])
def test_with_a_bound_of_its_own_for_phi_the_decoder_follows_that_of_theta(adapted: bool) -> None:
    """PIWAE: ∇θ L_K by p(x, h) at fixed draws, also through an object that is no `Model`."""
    model, key = small(2), jax.random.key(4)
    pair = iwae.bounds.named("piwae", m=2)
    asked: Any = Duck(model) if adapted else model
    (found,) = jax.tree.leaves(
        jax.tree.map(
            lambda g: [g.model if adapted else g],
            gradients(asked, key[None], pair, "dreg"),
            is_leaf=lambda part: isinstance(part, Duck | LadderAutoencoder),
        ),
        is_leaf=lambda part: isinstance(part, LadderAutoencoder),
    )
    h = jax.lax.stop_gradient(model.propose(X, K, key))
    w = softmax(np.asarray(log_weights(model, X, h)))
    by_p = eqx.filter_grad(lambda m: -jnp.sum(w * m.log_joint(X, h)))(model)
    pairs = zip(jax.tree.leaves(found.decoder), jax.tree.leaves(by_p.decoder), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6)


class Duck(eqx.Module):
    """A ladder as an object with the methods of a model."""

    model: LadderAutoencoder

    def propose(self, x: Any, k: int, key: Any) -> Any:
        return self.model.propose(x, k, key)

    def log_joint(self, x: Any, h: Any) -> Any:
        return self.model.log_joint(x, h)

    def log_proposal(self, x: Any, h: Any) -> Any:
        return self.model.log_proposal(x, h)

    def with_held_proposal(self) -> "Duck":
        return Duck(self.model.with_held_proposal())


@pytest.mark.parametrize("name", thinned([*BOUNDS], "jvi"))
def test_every_bound_takes_a_ladder(name: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "miwae": {"m": 2},
        "piwae": {"m": 2},
        "ciwae": {"beta": 0.4},
        "vr-iwae": {"alpha": 0.5},
        "jvi": {"order": 1},
    }
    bound = iwae.bounds.named(name, **settings.get(name, {}))

    def loss(model: LadderAutoencoder) -> tuple[jax.Array, jax.Array]:
        return surrogate_loss(model, X, jax.random.key(0), bound=bound, k=K, estimator="dreg")

    (_, value), gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(small(2))
    log_w = weights(small(2), X, K, jax.random.key(0))
    np.testing.assert_allclose(value, bound.theta(log_w), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# --- what every model has ---------------------------------------------------------------------


def test_an_example_has_the_same_weights_alone_and_in_a_batch() -> None:
    model, key = small(3), jax.random.key(0)
    rows = jax.random.bernoulli(jax.random.key(1), 0.5, (6, 5)).astype(jnp.float32)
    of = lambda x: draw_log_weights(model, x, 3, key)
    batch = jax.jit(jax.vmap(of))(rows)
    np.testing.assert_allclose(batch[2], weights(model, rows[2], 3, key), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_removed_units_are_fixed_in_p_and_q() -> None:
    """A model in which they are deterministic to float precision gives the same weights."""
    model = small(2)
    whole = tuple(jnp.ones(d, bool) for d in model.latents)
    nothing = tuple(jnp.zeros(d) for d in model.latents)
    key = jax.random.key(0)
    one, other = (weights(m, X, 5, key) for m in (model, model.pruned(whole, nothing)))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    keep = (jnp.array([True, False, True]), jnp.array([False, True]))
    pruned = model.pruned(keep, (jnp.full(3, 0.4), jnp.full(2, -1.1)))
    assert pruned.latents == (2, 1)
    h = eqx.filter_jit(pruned.propose)(X, 5, key)
    full = (jnp.insert(h[0], 1, 0.4, axis=1), jnp.insert(h[1], 0, -1.1, axis=1))
    np.testing.assert_allclose(
        pruned.log_observation(X, h), model.log_observation(X, full), rtol=1e-5
    )
    mu, log_sigma = combined(model.encoder(X)[0], jax.vmap(model.decoder[0])(full[1]))
    log_q = norm.logpdf(full[0], mu, np.exp(log_sigma))[:, [0, 2]].sum(axis=1)
    np.testing.assert_allclose(pruned.log_proposal_terms(X, h)[0], log_q, rtol=1e-4)


def test_a_mixture_on_top_is_marginalised_with_its_units() -> None:
    model = small(2, prior="mixture", prior_components=3)
    keep = (jnp.ones(3, bool), jnp.array([True, False]))
    pruned = model.pruned(keep, (jnp.zeros(3), jnp.zeros(2)))
    assert pruned.top is not None
    assert pruned.top.sample(4, jax.random.key(0)).shape == (4, 1)


@pytest.mark.slow
def test_the_observed_part_of_complete_rows_is_the_model() -> None:
    for model in (small(2), UncertainAutoencoder.around(small(2), which="decoder", sigma=1e-6)):
        partial_model = observed_part(model)
        one, other = (weights(m, X, 4, jax.random.key(0)) for m in (model, partial_model))
        np.testing.assert_allclose(one, other, rtol=1e-4)
        holed = weights(partial_model, X.at[1].set(jnp.nan), 4, jax.random.key(0))
        assert np.isfinite(holed).all()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["encoder", "decoder", "both"])
def test_certain_uncertain_weights_make_the_plain_ladder(which: Any) -> None:
    model = small(3)
    uncertain = UncertainAutoencoder.around(model, which=which, sigma=1e-7)
    one, other = (weights(m, X, 5, jax.random.key(1)) for m in (model, uncertain))
    np.testing.assert_allclose(one, other, rtol=1e-4)
    assert isinstance(uncertain.at_the_mean(), LadderAutoencoder)
    whole = [jnp.ones(d, bool) for d in model.latents]
    assert uncertain.pruned(tuple(whole), tuple(map(jnp.zeros, model.latents))).ladder
    mean = eqx.filter_jit(lambda m, layer: m.posterior_mean(X, layer, 50, jax.random.key(2))[0])
    for layer in (1, 3):
        one, other = (mean(m, layer) for m in (model, uncertain))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_one_draw_of_uncertain_weights_serves_both_roles_of_the_decoder() -> None:
    """With evidence that weighs nothing q(h_1|h_2, x; θ) is p(h_1|h_2; θ), whatever θ was drawn."""
    blind = eqx.tree_at(lambda m: m.encoder.rungs[0].log_sigma.bias, small(2), jnp.full(3, 1e4))
    model = UncertainAutoencoder.around(blind, which="both", sigma=0.5)
    model = eqx.tree_at(
        lambda m: m.encoder.rungs[0].log_sigma.log_sigma.bias, model, jnp.full(3, -20.0)
    )
    h = eqx.filter_jit(model.propose)(X, 6, jax.random.key(1))
    terms = eqx.filter_jit(lambda m: (m.log_proposal_terms(X, h), m.log_prior_terms(h)))
    below, above = terms(model)
    np.testing.assert_allclose(below[0], above[0], rtol=1e-6)
    held = model.with_held_proposal()
    np.testing.assert_array_equal(terms(held)[0], below)
    log_q = lambda m: jnp.sum(m.log_proposal(X, h))
    slope = eqx.filter_jit(eqx.filter_grad(log_q))
    assert all(not np.any(a) for a in jax.tree.leaves(slope(held).decoder))
    assert any(np.any(a) for a in jax.tree.leaves(slope(model).decoder))


# --- training ---------------------------------------------------------------------------------

LADDER = override(
    recipe("smoke"),
    inference="ladder",
    layers=2,
    hidden=((8,), (6,)),
    latents=(5, 3),
    k=2,
    epochs=2,
    kl_warmup=2,
)


def test_a_ladder_is_trained_resumed_loaded_and_evaluated(tmp_path: Any) -> None:
    whole = iwae.train(LADDER, out=tmp_path / "whole")
    iwae.train(override(LADDER, epochs=1), out=tmp_path / "parts")
    resumed = iwae.train(LADDER, out=tmp_path / "parts", resume=True)
    pairs = zip(*(jax.tree.leaves(m.model) for m in (whole, resumed)), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
    again = load(tmp_path / "whole")
    assert isinstance(again.model, LadderAutoencoder)
    assert isinstance(again.model.encoder, Upwards)
    found = again.evaluate(k=8, limit=20)
    assert found.nll == whole.evaluate(k=8, limit=20).nll
    assert len(found.kl) == 2
    images = again.data().train[:2000]
    active = tuple(int(part.sum()) for part in again.activity(images).active)
    assert again.without_inactive().latents == active
    assert again.config.label == "IWAE, ladder"


def test_wide_rungs_take_shorter_steps() -> None:
    """A base width of 2; what reads x keeps its steps, what reads d_1 does not."""
    found = of_widths(small(2), 2)
    of = lambda name: found[f".encoder.rungs{name}.weight"]
    np.testing.assert_allclose(of("[0].features.layers[0]"), 1)
    np.testing.assert_allclose(of("[0].mu"), 1 / 2)
    np.testing.assert_allclose(of("[1].features.layers[0]"), 1 / 2)
    np.testing.assert_allclose(of("[1].features.layers[1]"), 1 / 2)
    np.testing.assert_allclose(of("[1].log_sigma"), 2 / 3)
    np.testing.assert_allclose(found[".decoder[0].features.layers[0].weight"], 1)


def of_widths(model: Any, base: int) -> dict[str, Any]:
    """By how much a base width shortens the steps of every weight."""
    ones = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    factors = jax.tree_util.tree_leaves_with_path(gradient_step.by_width(ones, base))
    found = {jax.tree_util.keystr(path): np.unique(leaf) for path, leaf in factors}
    return {name: f for name, f in found.items() if name.endswith(".weight")}


def test_rungs_without_hidden_layers_read_the_units_below_them() -> None:
    """Hidden widths (4), (), and (), (4): the second rung reads d_1, or x itself."""
    build_of = lambda hidden: random_model(
        ModelConfig(2, hidden, (3, 2), "bernoulli", inference="ladder"), 5, seed=2
    )
    one = of_widths(build_of(((4,), ())), 2)
    np.testing.assert_allclose(one[".encoder.rungs[1].mu.weight"], 1 / 2)
    other = of_widths(build_of(((), (4,))), 2)
    for name in ("[0].mu", "[0].log_sigma", "[1].features.layers[0]"):
        np.testing.assert_allclose(other[f".encoder.rungs{name}.weight"], 1)
    np.testing.assert_allclose(other[".encoder.rungs[1].mu.weight"], 1 / 2)


@pytest.mark.parametrize("inference", ["bottom-up", "ladder"])
def test_uncertain_weights_take_the_steps_of_certain_ones(inference: Any) -> None:
    """Both the means and the standard deviations, by the same factors."""
    config = ModelConfig(2, ((4, 3), (4,)), (3, 2), "bernoulli", inference=inference)
    model: Any = random_model(config, 5, seed=2)
    certain = of_widths(model, 2)
    found = of_widths(UncertainAutoencoder.around(model, which="both", sigma=0.1), 2)
    assert len(found) == 2 * len(certain)
    for name, factors in certain.items():
        for part in ("mean", "log_sigma"):
            own = found[f"{name.removesuffix('.weight')}.{part}.weight"]
            np.testing.assert_allclose(own, factors, err_msg=name)


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("proposal", "hierarchical", "independent"),
        ("networks", "tanh+linear", "tanh"),
        ("missingness", "linear", "at-random"),
    ],
)
def test_what_a_ladder_does_not_take_is_refused(name: str, value: str, needed: str) -> None:
    with refused(
        f"inference = ladder was given with {name} = {value}, but a ladder takes {needed} only; "
        f"give --{name} {needed}, or leave --inference out."
    ):
        override(RunConfig(), inference="ladder", **{name: value})


def test_ladders_are_final() -> None:
    with pytest.raises(iwae.InputError, match="LadderAutoencoder, which is final"):
        type("Mine", (LadderAutoencoder,), {})
    assert not issubclass(LadderAutoencoder, Autoencoder)
