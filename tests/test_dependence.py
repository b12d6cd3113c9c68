"""Proposals at equal budgets: moments by hand, what sharing z_0 gains, and the command."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwae import runs
from iwae.cli.app import main
from iwae.config.io import override, recipe
from iwae.config.schema import RunConfig
from iwae.experiments import hiwae, toy_densities
from iwae.experiments.toy_densities import NO_DATA, OnTarget
from iwae.models.autoencoder import draw_log_weights
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.training.callbacks import Callback


def test_the_spread_is_that_worked_out_by_hand() -> None:
    """w_1 and w_2 of two estimates: (1, 2) and (3, 1)."""
    spread = hiwae.spread(np.log([[1.0, 2.0], [3.0, 1.0]]))
    np.testing.assert_allclose(spread.bound, np.log([1.5, 2.0]).mean())
    np.testing.assert_allclose(spread.covariance, -1.0)
    np.testing.assert_allclose(spread.variance, 0.125)
    np.testing.assert_allclose(spread.log_variance, np.log(2.0 / 1.5) ** 2 / 2)


def test_the_variance_of_an_estimate_is_made_of_variances_and_covariances() -> None:
    log_w = np.random.default_rng(0).normal(size=(3, 50, 4)) + np.linspace(0, 1, 4)
    spread = hiwae.spread(log_w)
    covariances = np.stack([np.cov(np.exp(each).T) for each in log_w])
    off = (covariances.sum((1, 2)) - np.trace(covariances, axis1=1, axis2=2)) / 12
    np.testing.assert_allclose(spread.covariance, off)
    np.testing.assert_allclose(spread.variance, covariances.sum((1, 2)) / 16)


class Turns(eqx.Module):
    """Heads at 0 with σ = 1, whatever z_0 is."""

    def __call__(self, features, z0):
        return jnp.zeros((2, 2)), jnp.zeros((2, 2))


class ByHead(eqx.Module):
    """r_1(z_0) = N(1, 1/2) and r_2(z_0) = N(−1, 1/2), from (x, e_1, e_2, z)."""

    def __call__(self, v):
        return jnp.full(2, v[1] - v[2]), jnp.full(2, 0.5 * jnp.log(0.5))


@pytest.mark.slow
def test_with_uniform_weights_heads_have_reverse_models_of_their_own() -> None:
    """p(z) = N(0, I) is the heads', so w_j = r_j(z_0) / q(z_0), of mean 1, and they take turns:
    E[w_1 w_2] = Π_units E_q[r_1 r_2 / q²], a Gaussian integral."""
    model = OnTarget(
        hiwae.start("shared z_0", 2, "uniform", jax.random.key(0)),
        lambda z: -jnp.sum(z**2) / 2 - jnp.log(2 * jnp.pi),
    )
    first = lambda m: (m.proposal.first, m.proposal.heads, m.proposal.reverse)
    wide = lambda v: (jnp.zeros(2), jnp.zeros(2))
    model = eqx.tree_at(first, model, (wide, Turns(), ByHead()))
    log_w = eqx.filter_jit(draw_log_weights)(model, NO_DATA, 400_000, jax.random.key(1))
    w = np.exp(np.asarray(log_w, np.float64)).reshape(-1, 2)
    assert np.all(abs(w.mean(axis=0) - 1) < 5 * w.std(axis=0) / np.sqrt(len(w)))
    grid = np.linspace(-9, 9, 4001)
    normal = lambda mean, var: np.exp(-((grid - mean) ** 2) / 2 / var) / np.sqrt(2 * np.pi * var)
    one = np.sum(normal(1, 0.5) * normal(-1, 0.5) / normal(0, 1)) * (grid[1] - grid[0])
    covariance = float(hiwae.spread(np.log(w)).covariance)
    assert covariance == pytest.approx(one**2 - 1, abs=0.02)
    assert covariance < -0.5


@pytest.mark.slow
def test_several_are_learned_together_as_one_by_one() -> None:
    keys = jax.random.split(jax.random.key(3), 2)
    build = lambda key: OnTarget(hiwae.start("IWAE", 2, "uniform", key), toy_densities.mixture)
    learned = lambda model, key: hiwae.learn(model, key, k=2, steps=20)
    together = learned(eqx.filter_vmap(build)(keys), keys)
    alone = learned(build(keys[1]), keys[1])
    second = jax.tree.map(lambda a: a[1], eqx.filter(together, eqx.is_inexact_array))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        second,
        eqx.filter(alone, eqx.is_inexact_array),
    )


@pytest.mark.slow
def test_a_shared_z0_is_tighter_than_one_of_its_own_and_its_weights_keep_apart() -> None:
    """Two draws on eight modes, at equal steps, with three seeds."""
    row = lambda name: hiwae._on_target("mixture", 2, name, "balance", range(3), Callback())[0]
    plain, own, shared = map(row, hiwae.KINDS)
    assert plain.bound[0] < -1
    assert shared.bound[0] - own.bound[0] > 2 * np.hypot(own.bound[1], shared.bound[1])
    assert shared.covariance[0] < -5 * shared.covariance[1]
    assert abs(own.covariance[0]) < 4 * own.covariance[1] + 0.01
    assert shared.log_variance[0] < own.log_variance[0]


@pytest.mark.slow
def test_weights_are_of_the_images_that_were_evaluated(tiny: RunConfig) -> None:
    """Whose binarisation is not that of the run's seed: other pixels are many nats away."""
    trained = runs.untrained(override(tiny, seed=5, binarization="dynamic"))
    evaluation = trained.evaluate(k=400, limit=10)
    spread = hiwae.weights_of(trained, 100, evaluation)
    assert np.mean(np.abs(spread.bound)) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("datasets", "seeds", "kinds"),
    [("banana", "2", ["shared z_0"]), ("banana,digits", "1", list(hiwae.KINDS))],
)
def test_the_comparison_from_the_command_line(
    datasets: str, seeds: str, kinds: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    for name, value in (("STEPS", 16), ("ESTIMATES", 1000), ("BLOCKS", 4), ("POINTS", 50)):
        monkeypatch.setattr(hiwae, name, value)
    monkeypatch.setattr(hiwae, "KINDS", {k: hiwae.KINDS[k] for k in kinds})
    out, record = tmp_path / "runs", tmp_path / "hiwae.json"
    small = ["--hidden", "8", "--latents", "3", "--proposal-latents", "2", "--epochs", "1"]
    form = ["reproduce", "hiwae", *small, "--datasets", datasets, "--ks", "2", "--seeds", seeds]
    form += ["--k", "6", "--limit", "5", "--out", str(out), "--record", str(record)]
    main(form)
    printed = capsys.readouterr().out
    assert f"Seeds: {seeds}; ± is a standard error over them." in printed
    assert f"Wrote {out / 'banana' / 'k-2.png'}." in printed
    assert (out / "banana" / "k-2.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(record.read_text())["rows"]
    assert [(r["dataset"], r["name"]) for r in rows] == [
        (dataset, kind) for dataset in datasets.split(",") for kind in kinds
    ]
    for row in rows:
        assert row["name"] in printed
        assert (row["nll"] is None) == (row["dataset"] == "banana")
        for of in hiwae.Spread._fields:
            value, error = row[of]
            assert np.isfinite(value)
            assert (error is None) == (seeds == "1")
    trained = len(kinds) * ("digits" in datasets)
    assert len(list(out.rglob("model.safetensors"))) == trained


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["hiwae", "--proposal", "hierarchical-independent"],
            "proposal = hierarchical-independent was given, but all proposals are compared; leave "
            "it out.",
        ),
        (
            ["hiwae", "--ks", "1,2"],
            "K = 1 was given, but dependent draws need K = 2 or more; give 2 or more.",
        ),
        (
            ["hiwae", "--datasets", "mixture,digit"],
            "'digit' is neither a data set nor a .npy, .npz, .csv or .parquet file: did you mean "
            "'digits'? Known are digits, mnist, mnist-fixed, omniglot, omniglot-raw.",
        ),
        (
            ["ring", "--ks", "2"],
            "ks were given, but only hiwae takes them; leave them out.",
        ),
    ],
)
def test_what_is_not_compared_is_refused(
    flags: list[str], sentence: str, tmp_path: Path, capsys
) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", *flags, "--out", str(tmp_path / "x")])
    assert capsys.readouterr().err == f"iwae: {sentence}\n"


@pytest.mark.slow
def test_the_recipe_is_of_the_published_proposal() -> None:
    config: RunConfig = recipe("hiwae")
    assert config.model.proposal_latents == config.model.widths[1][0] == 32
    model = runs.untrained(override(config, dataset="digits")).model
    assert isinstance(model, HierarchicalAutoencoder)
