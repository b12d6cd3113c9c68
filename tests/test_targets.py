"""The targets are densities, their draws are from them, and proposals learn them."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwae.evaluation.posterior import square
from iwae.experiments import toy_densities
from iwae.experiments.toy_densities import NO_DATA, GaussianProposal, OnTarget
from iwae.models.autoencoder import draw_log_weights
from iwae.models.hierarchical import hierarchical
from iwae.models.networks import MLP
from thinned import thinned

SIDE = {"ring": 5.0, "mixture": 4.0, "banana": 24.0, "funnel": 40.0}


@pytest.mark.parametrize("name", toy_densities.TARGETS)
def test_a_target_integrates_to_one_and_its_draws_have_its_moments(name: str) -> None:
    side, n = SIDE[name], 1000
    grid = square(side, n).reshape(-1, 2)
    density = np.exp(np.asarray(jax.jit(jax.vmap(toy_densities.TARGETS[name]))(grid), np.float64))
    cell = (2 * side / n) ** 2
    np.testing.assert_allclose(density.sum() * cell, 1, atol=3e-3)
    shape = lambda z: np.exp(-np.sum((np.asarray(z, np.float64) - 0.7) ** 2, axis=-1))
    expected = np.sum(density * shape(grid)) * cell
    values = shape(toy_densities.draw(name, 100_000, jax.random.key(0)))
    assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(len(values)) + 1e-3


def proposal(kind: str, heuristic: Any = "uniform", k: int = 4):
    if kind == "plain":
        return GaussianProposal(jnp.zeros(2), jnp.full(2, 0.5))
    start = hierarchical(
        MLP(1, (), key=jax.random.key(0)),
        1,
        2,
        n_0=2,
        width=16,
        block=k,
        shared=kind == "shared",
        heuristic=heuristic,
        key=jax.random.key(1),
    )
    calm = jax.tree.map(lambda a: 0.3 * a if eqx.is_array(a) else a, start.reverse)
    wide = jnp.full(2 * k, 1.2)
    return eqx.tree_at(lambda p: (p.heads.log_sigma.bias, p.reverse), start, (wide, calm))


@pytest.mark.parametrize(
    ("kind", "heuristic"),
    thinned(
        [
            ("plain", "uniform"),
            *itertools.product(("shared", "own"), ("uniform", "balance", "power")),
        ],
        ("plain", "uniform"),
    ),
)
def test_every_proposal_estimates_the_evidence_of_a_mixture(kind: str, heuristic: Any) -> None:
    model = OnTarget(proposal(kind, heuristic), toy_densities.mixture)
    log_w = eqx.filter_jit(draw_log_weights)(model, NO_DATA, 400_000, jax.random.key(2))
    estimates = np.exp(np.asarray(log_w, np.float64)).reshape(-1, 4).mean(axis=1)
    error = estimates.std() / np.sqrt(len(estimates))
    assert error < 0.03
    assert abs(estimates.mean() - 1) < 4 * error
