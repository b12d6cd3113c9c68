"""What is measured of a trained model, against exact posteriors and the model's own evaluation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwae.config.io import override
from iwae.evaluation import metrics
from iwae.evaluation.metrics import MEASURES, ORDERS
from iwae.experiments.papers import EXPERIMENTS
from linear_gaussian import generic_chain, orthogonal_chain


@pytest.fixture(scope="module")
def measured(tiny_run):
    """(run, its evaluation, figures by measure), of 30 images."""
    run = dataclasses.replace(tiny_run, config=override(tiny_run.config, k=4))
    test = run.evaluate(k=20, limit=30, without_inactive=True, only_used=True)
    return (
        run,
        test,
        {name: of.take(run, 20, test.log_likelihoods) for name, of in MEASURES.items()},
    )


def test_every_measure_of_a_table_exists() -> None:
    cells = [cell for experiment in EXPERIMENTS.values() for cell in experiment.cells]
    assert set().union(*(cell.measures for cell in cells)) <= MEASURES.keys()


@pytest.mark.slow
def test_every_published_figure_is_measured(measured) -> None:
    run, test, _ = measured

    @functools.cache
    def taken(name: str, k: int) -> set[str]:
        trained = dataclasses.replace(run, config=override(run.config, k=k))
        return set(MEASURES[name].take(trained, 20, test.log_likelihoods))

    for experiment in EXPERIMENTS.values():
        for cell in experiment.cells:
            if cell.further:
                k = cell.settings["k"] if {"bound", "jackknife"} & set(cell.measures) else 4
                assert cell.further.keys() <= set().union(*(taken(m, k) for m in cell.measures))


@pytest.mark.slow
def test_the_gap_is_to_as_many_training_images(measured) -> None:
    run, test, figures = measured
    train = run.evaluate(k=20, split="train", limit=30)
    gap = figures["gap"]
    assert gap["train NLL"] == pytest.approx((train.nll, train.nll_se))
    error = np.hypot(test.nll_se, train.nll_se)
    assert gap["test − train"] == pytest.approx((test.nll - train.nll, error))


@pytest.mark.slow
def test_units_are_removed_as_in_the_evaluation(measured) -> None:
    _, test, figures = measured
    nll, _ = figures["pruned"]["NLL without inactive units"]
    assert nll == pytest.approx(test.nll_without_inactive)
    change, error = figures["pruned"]["change"]
    assert change == pytest.approx(nll - test.nll, abs=1e-5)
    assert error < test.nll_se
    used = figures["used"]
    assert [used["used units of h1"][0]] == test.used_units
    assert used["NLL of the used units alone"][0] == pytest.approx(test.nll_only_used)


@pytest.mark.slow
def test_the_bound_is_that_of_training(measured) -> None:
    run, _, figures = measured
    k = run.config.objective.k
    at_k = run.evaluate(k=k, limit=30)
    assert figures["bound"] == {f"−L_{k}": pytest.approx((at_k.nll, at_k.nll_se))}


def test_every_estimate_is_exact_where_the_posterior_is() -> None:
    oracle = orthogonal_chain(1)
    x = jnp.asarray(oracle.draw(1, seed=3)[0])
    exact = oracle.log_evidence(x)
    values = metrics.jackknives(oracle.model, x, jax.random.key(0), k=4)
    np.testing.assert_allclose(values, np.full(len(ORDERS), exact), rtol=1e-4)
    repeated = metrics.repeated(oracle.model, x, jax.random.key(0), k=4, repeats=6)
    np.testing.assert_allclose(repeated, np.full(6, exact), rtol=1e-4)


def test_jackknives_take_bias_away() -> None:
    """E[ELBO] < E[IWAE] < E[JVI-1], and JVI-1 is nearest to log p(x)."""
    oracle = generic_chain((3,), inflate=1.4)
    x = jnp.asarray(oracle.draw(1, seed=3)[0])
    keys = jax.random.split(jax.random.key(1), 4000)
    each = jax.jit(jax.vmap(lambda key: metrics.jackknives(oracle.model, x, key, k=6)))(keys)
    elbo, iwae, jvi1, _ = np.asarray(each, np.float64).mean(0)
    exact = float(oracle.log_evidence(x))
    assert elbo < iwae < jvi1
    assert abs(jvi1 - exact) < abs(iwae - exact) < abs(elbo - exact)


@pytest.mark.slow
def test_the_mean_absolute_deviation_is_within_its_limit(measured) -> None:
    figures = measured[2]["deviation"]
    deviation, limit = figures["E|log p̂ − E log p̂|"][0], figures["2 + 2δ"][0]
    assert 0.01 < deviation < limit
    assert limit >= 2
    assert deviation / limit < figures["largest ratio"][0] < 1
