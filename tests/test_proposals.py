"""Hierarchical proposals: unbiased for every weighting, plain ones where z_0 says nothing."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

import iwae
from iwae.bounds import iwae as l_k
from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import ModelConfig, RunConfig
from iwae.estimators.surrogate import surrogate_loss
from iwae.evaluation.likelihood import log_likelihood
from iwae.models.autoencoder import draw_log_weights, log_normal, log_weights
from iwae.models.hierarchical import (
    ByProposal,
    Draws,
    HierarchicalAutoencoder,
    HierarchicalProposal,
)
from linear_gaussian import Chain, chain, orthogonal_chain
from refusals import refused
from thinned import thinned

KINDS = list(itertools.product((True, False), ("uniform", "balance", "power")))
"""Whether z_0 is shared, and the weights of the heads."""

CHAIN = orthogonal_chain(1, inflate=2.0)
X = jnp.asarray(CHAIN.draw(1, seed=4)[0])


class Offset(eqx.Module):
    """Heads at μ(x) + offset_j + slope_j z_0, with one σ(x)."""

    conditional: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    offset: jax.Array
    slope: jax.Array

    def __call__(self, features: jax.Array, z0: jax.Array) -> tuple[jax.Array, jax.Array]:
        mu, log_sigma = self.conditional(features)
        mu = mu + self.offset + self.slope * z0
        return mu, jnp.broadcast_to(log_sigma, mu.shape)


class Moments(eqx.Module):
    """(gain v_last + shift, log σ), of the last units of v."""

    gain: float
    shift: jax.Array
    log_sigma: jax.Array

    def __call__(self, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.gain * v[-len(self.shift) :] + self.shift, self.log_sigma


def hierarchical(
    shared: bool, heuristic: Any, *, j: int = 4, apart: float = 0.3, of: Chain = CHAIN
):
    """The linear-Gaussian chain with J heads, spread `apart`; at 0 z_0 says nothing."""
    rng, (n,) = np.random.default_rng(0), of.model.latents
    draw = lambda *shape: apart * jnp.asarray(rng.normal(size=shape), jnp.float32)
    q0 = Moments(0.0, jnp.array([0.3, -0.2, 0.1])[:n], jnp.full(n, -0.3))
    proposal = HierarchicalProposal(
        features=lambda x: x,
        first=q0,
        heads=Offset(of.model.encoder[0], draw(j, n), draw(j, n)),
        reverse=eqx.tree_at(lambda m: m.gain, q0, apart),
        block=j,
        shared=shared,
        heuristic=heuristic,
    )
    plain = of.model
    return cast(Any, HierarchicalAutoencoder)(
        encoder=(proposal,),
        decoder=(),
        observation=plain.observation,
        likelihood=plain.likelihood,
        latents=plain.latents,
    )


@pytest.mark.parametrize(("shared", "heuristic"), thinned(KINDS, KINDS[0]))
def test_the_mean_of_the_weights_is_the_evidence_and_the_bound_is_below_it(
    shared: bool, heuristic: str
) -> None:
    model, exact, n = hierarchical(shared, heuristic), CHAIN.log_evidence(X), 20_000
    log_w = eqx.filter_jit(draw_log_weights)(model, X, 4 * n, jax.random.key(1))
    log_w = np.asarray(log_w, np.float64).reshape(n, 4) - exact
    estimates = np.exp(log_w).mean(axis=1)
    error = estimates.std(ddof=1) / np.sqrt(n)
    assert error < 0.02
    assert abs(estimates.mean() - 1) < 4 * error
    bounds = np.log(estimates)
    assert bounds.mean() < -5 * bounds.std(ddof=1) / np.sqrt(n)


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "heuristic"), thinned(KINDS, (True, "balance")))
def test_on_a_grid_the_mean_of_the_weights_is_the_evidence(shared: bool, heuristic: str) -> None:
    """E[(1/J) Σ_j w_j] = (1/J) Σ_j ∫∫ q(z_0|x) q_j(z|z_0, x) w_j dz_0 dz, all in float64."""
    with jax.enable_x64(True):
        one = chain([np.ones((2, 1))], [0.5], mean=np.array([0.25, -1.0]), spread=np.ones(2))
        whole = hierarchical(shared, heuristic, j=2, of=one)
        double = lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a
        model, x = jax.tree.map(double, whole), jnp.array([0.9, 0.2])
        grid = np.linspace(-9.0, 9.0, 721)
        z0, z, head = (a.ravel() for a in np.meshgrid(grid, grid, [0, 1], indexing="ij"))
        h = Draws((jnp.asarray(z)[:, None],), jnp.asarray(z0)[:, None])
        log_w = log_weights(model, x, h)
        q0 = norm.logpdf(z0, *(float(a[0]) for a in _moments(model.proposal.first(x))))
        mu, sigma = _moments(jax.vmap(model.proposal.heads, (None, 0))(x, h.z0))
        at = np.arange(len(head))
        q = norm.logpdf(z, mu[at, head, 0], sigma[at, head, 0])
        cell = (grid[1] - grid[0]) ** 2
        mean = np.exp(np.asarray(log_w) + q0 + q).sum() * cell / 2
    variance = np.exp(2 * np.float64(np.float32(np.log(0.5))))  # as the model holds it
    covariance = np.ones((2, 2)) + variance * np.eye(2)
    exact = multivariate_normal.pdf(np.asarray(x), [0.25, -1.0], covariance)
    np.testing.assert_allclose(mean, exact, rtol=1e-12)


def _moments(given: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(μ, σ)."""
    return np.asarray(given[0]), np.exp(np.asarray(given[1]))


def test_weights_that_forget_the_reverse_model_are_wrong() -> None:
    """So that the test above can fail."""
    model, exact, n = hierarchical(True, "balance"), CHAIN.log_evidence(X), 20_000

    @eqx.filter_jit
    def without(model):
        h = model.propose(X, 4 * n, jax.random.key(1))
        joint = model.log_observation(X, h) + sum(model.log_prior_terms(h))
        return joint - model.log_proposal(X, h)

    w = np.exp(np.asarray(without(model), np.float64) - exact).reshape(n, 4).mean(axis=1)
    assert np.mean(np.log(w)) > 1, "a bound above the evidence"


@pytest.mark.parametrize(("shared", "heuristic"), thinned(KINDS[::2], KINDS[2]))
def test_where_z0_says_nothing_the_weights_are_the_plain_ones(shared: bool, heuristic: str) -> None:
    """On the same draws, to float precision; the bound and its gradient in θ as well."""
    model, plain = hierarchical(shared, heuristic, apart=0.0), CHAIN.model
    h = eqx.filter_jit(HierarchicalAutoencoder.propose)(model, X, 8, jax.random.key(2))

    @eqx.filter_jit
    @partial(eqx.filter_grad, has_aux=True)
    def bound(observation, model, h):
        model = eqx.tree_at(lambda m: m.observation, model, observation)
        log_w = log_weights(model, X, h)
        return l_k(log_w), log_w

    gradient: Any = bound
    ours, log_w = gradient(plain.observation, model, h)
    theirs, expected = gradient(plain.observation, plain, h.latents)
    np.testing.assert_allclose(log_w, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)


class TwoModes(ByProposal):
    """log p(x, z) of two modes at ±2 in the first unit, x left aside."""

    proposal: HierarchicalProposal

    def drawn_by(self) -> HierarchicalProposal:
        return self.proposal

    def log_joint(self, x: jax.Array, h: Draws) -> jax.Array:
        (z,) = h.latents
        modes = jnp.array([[2.0, 0, 0], [-2.0, 0, 0]])
        each = log_normal(z[:, None], modes, jnp.full((2, 3), jnp.log(0.5)))
        log_p = jax.nn.logsumexp(each, axis=1) - jnp.log(2)
        return log_p + self.proposal.log_reverse(x, h)


@pytest.mark.slow
def test_the_balance_heuristic_varies_no_more_on_two_modes() -> None:
    def variance(heuristic: str) -> tuple[float, float]:
        model = hierarchical(True, heuristic, j=2)
        heads = model.proposal.heads
        offset = jnp.array([[2.0, 0, 0], [-2.0, 0, 0]]) - heads.conditional(X)[0]
        wide = lambda m: m.log_sigma.bias
        conditional = eqx.tree_at(wide, heads.conditional, jnp.full(3, jnp.log(1.5)))
        heads = Offset(conditional, offset, heads.slope)
        model = eqx.tree_at(lambda m: m.encoder[0].heads, model, heads)
        on_modes = TwoModes(model.proposal)
        log_w = eqx.filter_jit(draw_log_weights)(on_modes, X, 40_000, jax.random.key(3))
        estimates = np.exp(np.asarray(log_w, np.float64)).reshape(-1, 2).mean(axis=1)
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - 1) < 5 * error
        return estimates.var(), error

    uniform, _ = variance("uniform")
    balance, _ = variance("balance")
    assert balance < 0.8 * uniform


def test_draws_share_their_z0_or_do_not() -> None:
    for shared in (True, False):
        h = hierarchical(shared, "uniform").propose(X, 8, jax.random.key(5))
        assert len(np.unique(h.z0[:, 0])) == (2 if shared else 8)
        assert len(np.unique(h.latents[0][:, 0])) == 8


@pytest.mark.slow
def test_any_k_is_evaluated_and_more_draws_come_nearer() -> None:
    model, exact = hierarchical(True, "balance"), CHAIN.log_evidence(X)
    each = eqx.filter_jit(lambda key, k: log_likelihood(model, X, key, k=k, chunk=6))
    values = [np.mean([each(jax.random.key(s), k) for s in range(20)]) for k in (4, 41, 403)]
    assert values[0] < values[1] - 0.05
    np.testing.assert_allclose(values[2], exact, atol=0.05)


@pytest.mark.parametrize(("shared", "heuristic"), thinned(KINDS, KINDS[1]))
def test_a_last_block_that_lacks_heads_is_unbiased_too(shared: bool, heuristic: str) -> None:
    model, exact, n = hierarchical(shared, heuristic), CHAIN.log_evidence(X), 20_000

    @eqx.filter_jit
    def estimates(model):
        one = lambda key: draw_log_weights(model, X, 6, key)[4:]
        return jax.vmap(one)(jax.random.split(jax.random.key(8), n))

    w = np.exp(np.asarray(estimates(model), np.float64) - exact).mean(axis=1)
    error = w.std(ddof=1) / np.sqrt(n)
    assert error < 0.02
    assert abs(w.mean() - 1) < 4 * error


@pytest.mark.slow
def test_dreg_has_the_mean_of_reparam_where_every_draw_has_its_own_z0() -> None:
    model = hierarchical(False, "uniform")

    @eqx.filter_jit
    def mean_and_error(estimator: str):
        def gradient(key):
            loss = lambda m: surrogate_loss(m, X, key, bound=l_k, k=4, estimator=estimator)[0]
            leaves = jax.tree.leaves(eqx.filter_grad(loss)(model))
            return jnp.concatenate([leaf.ravel() for leaf in leaves])

        each = jax.lax.map(gradient, jax.random.split(jax.random.key(6), 8000), batch_size=500)
        return each.mean(0), each.std(0) / np.sqrt(8000)

    (a, a_se), (b, b_se) = mean_and_error("reparam"), mean_and_error("dreg")
    z = np.abs(a - b) / np.sqrt(a_se**2 + b_se**2 + 1e-12)
    assert np.max(z) < 5


@pytest.mark.parametrize(
    ("shared", "heuristic", "estimator", "sentence"),
    [
        (
            True,
            "uniform",
            "dreg",
            "Estimator dreg needs independent draws, but this model's proposal makes dependent "
            "ones; give reparam or stl.",
        ),
        (
            False,
            "balance",
            "dreg",
            "Estimator dreg drops the score of the density in the weights, but this model's draws "
            "have another density; give reparam, or uniform weights of the heads.",
        ),
        (
            False,
            "uniform",
            "rws",
            "Estimator rws updates φ by a divergence of p(h|x) and q(h|x), which a hierarchical "
            "proposal does not have; give reparam.",
        ),
    ],
)
def test_partial_gradients_that_would_be_biased_are_refused(
    shared: bool, heuristic: str, estimator: str, sentence: str
) -> None:
    model = hierarchical(shared, heuristic)
    with refused(sentence):
        surrogate_loss(model, X, jax.random.key(0), bound=l_k, k=4, estimator=estimator)


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_command_line(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hierarchical") / "run"
    flags = ["--recipe", "smoke", "--epochs", "1", "--hidden", "8", "--latents", "3", "--k", "3"]
    own = ["--proposal", "hierarchical", "--proposal-weights", "balance", "--proposal-latents", "2"]
    main(["train", *flags, *own, "--out", str(out)])
    return out


@pytest.mark.slow
def test_a_hierarchical_run_is_evaluated_at_any_k(from_command_line: Path, capsys) -> None:
    main(["evaluate", str(from_command_line), "--k", "10", "--limit", "30"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "L_10 of draws in blocks of 3, a lower bound of log p(x)" in printed
    trained = iwae.load(from_command_line)
    assert cast(HierarchicalAutoencoder, trained.model).block == 3
    with refused(
        "without_inactive or only_used was requested, but units of a hierarchical proposal "
        "cannot be removed; leave it out."
    ):
        trained.without_inactive()


@pytest.mark.slow
def test_everything_is_drawn_of_a_hierarchical_run(from_command_line: Path, tmp_path: Path) -> None:
    out = str(from_command_line)
    main(["sample", out, "--n", "4", "--out", str(tmp_path / "s.png")])
    main(["reconstruct", out, "--n", "2", "--out", str(tmp_path / "r.png")])
    main(["encode", out, "digits:test", "--out", str(tmp_path / "c.npy")])
    main(["report", out, "--out", str(tmp_path / "r.html")])
    assert "hierarchical proposal by balance weights" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"proposal": "hierarchical", "layers": 2},
            "proposal = hierarchical was given, but it is for one stochastic layer with fixed "
            "weights; give --layers 1 and leave out --uncertain-weights.",
        ),
        (
            {"proposal_weights": "power"},
            "proposal_weights = power was given, but independent draws have no heads to weigh; "
            "give --proposal hierarchical.",
        ),
        (
            {"proposal": "hierarchical", "estimator": "dreg"},
            "IWAE by dreg was given with proposal = hierarchical and proposal_weights = uniform, "
            "which take IWAE, IWAE by stl; give one.",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, sentence: str) -> None:
    with refused(sentence):
        override(RunConfig(), **settings)
    assert ModelConfig().proposal == "independent"
