"""Bounds of log-weights: exact values, identities, extremes, second derivatives, refusals."""

import pickle
from functools import partial
from itertools import combinations
from math import comb, factorial
from typing import get_args, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, logsumexp, softmax

from iwae import bounds
from iwae.bounds import (
    as_bound,
    ciwae,
    curvature,
    elbo,
    iwae,
    jackknife,
    jvi,
    miwae,
    named,
    vr_iwae,
)
from iwae.config.schema import ObjectiveConfig
from iwae.errors import InputError
from iwae.estimators.rules import SETTINGS
from refusals import refused
from thinned import thinned

SHAPED = {
    "vae": elbo,
    "iwae": iwae,
    "miwae": partial(miwae, m=2),
    "ciwae": partial(ciwae, beta=0.3),
    "vr-iwae": partial(vr_iwae, alpha=0.5),
    "vr-iwae, negative": partial(vr_iwae, alpha=-1.5),
    "vr-iwae, above 1": partial(vr_iwae, alpha=1.7),
    "vr-iwae, near 1": partial(vr_iwae, alpha=1 - 1e-6),
    "jvi-0": partial(jvi, order=0),
    "jvi-1": partial(jvi, order=1),
    "jvi-2": partial(jvi, order=2),
    "jvi-3": partial(jvi, order=3),
}
"""One or more of every kind of bound."""

every_bound = pytest.mark.parametrize(
    "bound",
    [
        pytest.param(bound, marks=pytest.mark.slow if name in ("jvi-0", "jvi-3") else ())
        for name, bound in SHAPED.items()
    ],
    ids=SHAPED,
)


def test_every_bound_by_name_is_among_those_tested():
    tested = {getattr(b, "func", b) for b in SHAPED.values()}
    assert tested == set(bounds.BOUNDS.values())
    assert all(bound.closed is not None for bound in tested)


def test_bounds_are_those_of_the_rules_and_of_the_command_line():
    objectives = get_args(get_type_hints(ObjectiveConfig)["objective"])
    assert {*bounds.BOUNDS, "piwae"} == set(objectives)
    needed = {name: of.needs for name, of in bounds.BOUNDS.items() if of.needs}
    assert needed | {"piwae": ("m",)} == {name: (s,) for name, s in SETTINGS.items()}


def test_a_bound_knows_its_settings_and_its_curvature():
    shaped = vr_iwae.with_settings(alpha=0.5)
    assert (shaped.name, dict(shaped.settings), vr_iwae.needs) == (
        "vr-iwae",
        {"alpha": 0.5},
        ("alpha",),
    )
    assert shaped == named("vr-iwae", alpha=0.5).phi == as_bound(partial(vr_iwae, alpha=0.5))
    assert shaped(LOG_W).tolist() == vr_iwae(LOG_W, alpha=0.5).tolist()
    one = LOG_W[:, 0, 0]
    assert shaped.curvature(one).tolist() == curvature(partial(vr_iwae, alpha=0.5), one).tolist()
    with refused("beta was given, but the bound vr-iwae takes alpha."):
        vr_iwae.with_settings(beta=0.5)
    assert "Li & Turner 2016" in vr_iwae.__doc__


def test_a_bound_of_ones_own_is_one_short_function():
    @bounds.bound("lowest")
    def lowest(log_w):
        """The logarithm of the smallest weight, softly."""
        return -jax.nn.logsumexp(-log_w, axis=0)

    exact = softmax(-np.asarray(LOG_W[:, 0, 0], np.float64))
    got = lowest.curvature(LOG_W[:, 0, 0])
    np.testing.assert_allclose(got, -exact * (1 - exact), atol=1e-6)
    assert (lowest.name, lowest.needs, lowest.closed) == ("lowest", (), None)
    assert as_bound(lowest) is lowest
    with pytest.raises(InputError, match="The log-weights hold nan"):
        lowest(jnp.array([0.0, jnp.nan]))


# --- exact values -----------------------------------------------------------------------------

EXPONENTIAL = {
    5: [-0.103320, 0.0041056, 9.82e-5, -4.45e-5],
    10: [-0.0508325, 9.2286e-4, 3.814e-6, -1.546e-6],
}
"""E[JVI(m)] of w ~ Exp(1) for m = 0 … 3, where log E[w] = 0."""


@pytest.mark.parametrize("k", EXPONENTIAL)
def test_expectations_under_exponential_weights(k):
    """E[L_K] = ψ(K) − log K exactly; JVI(m) combines E[L_{K−j}] with its coefficients."""
    for m, value in enumerate(EXPONENTIAL[k]):
        c = jackknife.coefficients(k, m)
        exact = sum(a * (digamma(k - j) - np.log(k - j)) for j, a in enumerate(c))
        assert exact == pytest.approx(value, rel=1.2e-3)
        assert sum(c) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("k", thinned((5, 10), 5))
@pytest.mark.parametrize("m", thinned(range(4), 0, 1))
def test_draws_of_exponential_weights_reach_the_expectations(k, m):
    """Within 4 standard errors of 200,000 draws, of what is left after a control variate."""
    n = 200_000 if m < 3 else 20_000
    w = np.random.default_rng(k).exponential(size=(k, n))
    values = np.asarray(jvi(jnp.asarray(np.log(w), jnp.float32), order=m), np.float64)
    aside = np.log(w.mean(0))  # E = ψ(K) − log K, known exactly
    slope = np.cov(values, aside)[0, 1] / aside.var()
    values = values - slope * (aside - (digamma(k) - np.log(k)))
    error = values.std() / np.sqrt(n)
    assert abs(values.mean() - EXPONENTIAL[k][m]) < 4 * error + 1e-6
    assert error < 2e-3


@pytest.mark.parametrize("alpha", thinned([-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0], 0.5))
def test_vr_iwae_tends_to_the_closed_form_of_the_linear_gaussian_model(alpha):
    """VR_α of p(z) = N(μ, I), p(x|z) = N(z, I), q = N(e, ⅔I), to the accuracy of γ_α / 2K."""
    d, k = 3, 400_000
    mu, e, x = np.random.default_rng(3).normal(scale=0.4, size=(3, d))
    z = e + np.sqrt(2 / 3) * np.random.default_rng(4).normal(size=(k, d))
    log_w = (
        -0.5 * ((z - mu) ** 2 + (x - z) ** 2 - 1.5 * (z - e) ** 2) - 0.5 * np.log(3 * np.pi)
    ).sum(1)
    far = np.sum((2 * e - mu - x) ** 2)
    close = np.sum((e - mu) ** 2 + (e - x) ** 2) / 2
    if alpha == 1:
        exact = -d * (0.5 * np.log(3 * np.pi) + 1 / 6) - close
        error = log_w.std() / np.sqrt(k)
    else:
        a = 1 - alpha
        size = np.log(3 * np.pi) + np.log(1 + a / 3) / a
        exact = -d / 2 * size - close + a * far / (4 - alpha)
        v = np.exp(a * (log_w - log_w.max()))
        error = v.std() / v.mean() / a / np.sqrt(k)
    value = float(vr_iwae(jnp.asarray(log_w, jnp.float32), alpha=alpha))
    assert abs(value - exact) < 4 * error + 1e-5
    assert error < 5e-3


# --- identities -------------------------------------------------------------------------------

LOG_W = jnp.asarray(np.random.default_rng(0).normal(scale=3, size=(6, 4, 3)), jnp.float32)


def test_values_are_those_of_numpy():
    log_w = np.asarray(LOG_W, np.float64)
    np.testing.assert_allclose(iwae(LOG_W), logsumexp(log_w, axis=0) - np.log(6), rtol=1e-5)
    np.testing.assert_allclose(elbo(LOG_W), log_w.mean(0), rtol=1e-5, atol=1e-6)
    for a in (0.5, 2.5, -0.7, 1e-3):
        expected = (logsumexp(a * log_w, axis=0) - np.log(6)) / a
        np.testing.assert_allclose(vr_iwae(LOG_W, alpha=1 - a), expected, rtol=1e-5, atol=1e-5)
    halves = [iwae(LOG_W[:3]), iwae(LOG_W[3:])]
    np.testing.assert_allclose(miwae(LOG_W, m=2), np.mean(halves, axis=0), rtol=1e-6)


@pytest.mark.parametrize("order", thinned(range(5), 0, 2))
def test_jvi_is_the_sum_over_all_subsets(order):
    """Nowozin 2018, Eq. 21, with every subset spelled out."""
    log_w, k = np.asarray(LOG_W[:, 0, 0], np.float64), 6
    expected = 0.0
    for j in range(order + 1):
        c = (-1) ** j * (k - j) ** order / (factorial(order - j) * factorial(j))
        subsets = [logsumexp(log_w[list(s)]) - np.log(k - j) for s in combinations(range(k), k - j)]
        assert len(subsets) == comb(k, j)
        expected += c * np.mean(subsets)
    np.testing.assert_allclose(jvi(LOG_W[:, 0, 0], order=order), expected, rtol=3e-4)


@every_bound
def test_every_bound_takes_any_batch_and_reduces_the_axis_k(bound):
    assert bound(LOG_W).shape == (4, 3)
    np.testing.assert_allclose(bound(LOG_W[:, 1]), bound(LOG_W)[1], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(bound)(LOG_W), bound(LOG_W), rtol=1e-4)


@every_bound
def test_equal_weights_and_shifts(bound):
    """bound(ℓ + c) = bound(ℓ) + c, and equal log-weights are their own bound."""
    np.testing.assert_allclose(bound(jnp.full(6, -3.0)), -3.0, rtol=1e-4)
    np.testing.assert_allclose(bound(LOG_W + 100), bound(LOG_W) + 100, rtol=2e-4)


def test_identities():
    one = LOG_W[:1]
    for bound in (elbo, iwae, partial(vr_iwae, alpha=0.4), partial(miwae, m=1)):
        np.testing.assert_array_equal(bound(one), LOG_W[0])
    np.testing.assert_allclose(partial(ciwae, beta=0.4)(one), LOG_W[0], rtol=1e-6)
    for bound in (
        partial(vr_iwae, alpha=0.0),
        partial(miwae, m=1),
        partial(ciwae, beta=0.0),
        partial(jvi, order=0),
    ):
        np.testing.assert_allclose(bound(LOG_W), iwae(LOG_W), rtol=1e-6, atol=1e-6)
    for bound in (
        partial(vr_iwae, alpha=1.0),
        partial(vr_iwae, alpha=1 + 1e-7),
        partial(vr_iwae, alpha=1 - 1e-7),
        partial(miwae, m=6),
        partial(ciwae, beta=1.0),
    ):
        np.testing.assert_allclose(bound(LOG_W), elbo(LOG_W), rtol=1e-5, atol=1e-5)


def test_orderings_hold_pointwise():
    """ELBO ≤ CIWAE ≤ L_K, ELBO ≤ MIWAE ≤ L_K, and VR falls as α rises."""
    for between in (ciwae(LOG_W, beta=0.5), miwae(LOG_W, m=2), miwae(LOG_W, m=3)):
        assert np.all((elbo(LOG_W) < between) & (between < iwae(LOG_W)))
    falling = [vr_iwae(LOG_W, alpha=a) for a in (-2.0, -0.5, 0.0, 0.3, 0.9, 1.0, 1.5)]
    assert np.all(np.diff(np.stack(falling), axis=0) < 0)


# --- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_w", "value"),
    [
        ([0.0, -np.inf], -np.log(2)),
        ([1e4, -1e4, -1e4, -1e4], 1e4 - np.log(4)),
        ([-1e4, -1e4], -1e4),
        ([-1e4, -1e4 + 1], -1e4 + np.logaddexp(0, 1) - np.log(2)),
    ],
)
def test_iwae_of_extreme_weights(log_w, value):
    for bound in (iwae, partial(vr_iwae, alpha=0.0), partial(jvi, order=0)):
        np.testing.assert_allclose(bound(jnp.array(log_w)), value, rtol=1e-7)


@pytest.mark.parametrize("order", thinned([1, 2, 3], 2))
def test_jvi_is_stable_when_one_weight_dominates(order):
    """Where log(Σ w − w_max) would be log 0 in float32."""
    log_w = np.array([0.0, -60.0, -61.0, -62.5, -59.0, -64.0])
    k, expected = 6, 0.0
    for j, c in enumerate(jackknife.coefficients(k, order)):
        subsets = combinations(range(k), k - j)
        expected += c * np.mean([logsumexp(log_w[list(s)]) - np.log(k - j) for s in subsets])
    got = jvi(jnp.asarray(log_w, jnp.float32), order=order)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    gradient = jax.jit(jax.grad(partial(jvi, order=order)))(jnp.asarray(log_w, jnp.float32))
    np.testing.assert_allclose(gradient.sum(), 1, atol=2e-3)


@pytest.mark.slow
def test_the_jackknife_pushes_the_largest_weights_apart():
    """JVI-1 of weights far apart is (2 − 1/K) log w_1 − (1 − 1/K) log w_2 up to a constant: K L_K
    has the first, and of the L_{K−1} all but one the first, that one the second."""
    log_w, k = jnp.array([-20.0, 0.0, -45.0, -70.0]), 4
    gradient = jax.grad(partial(jvi, order=1))(log_w)
    np.testing.assert_allclose(gradient, [1 / k - 1, 2 - 1 / k, 0, 0], atol=1e-5)


@every_bound
def test_all_but_one_weight_zero(bound):
    """No nan: L_K is log (w/K); the ELBO is −∞, and JVI, which subtracts log 0, +∞."""
    log_w = jnp.array([-jnp.inf, -jnp.inf, 2.0, -jnp.inf])
    value = float(bound(log_w))
    assert not np.isnan(value)
    if bound in (iwae, SHAPED["jvi-0"]):
        assert value == pytest.approx(2 - np.log(4))
    if bound is SHAPED["vr-iwae"]:
        assert value == pytest.approx(2 - 2 * np.log(4))
    if bound is elbo:
        assert value == -np.inf
    if bound in (SHAPED["jvi-1"], SHAPED["jvi-2"], SHAPED["jvi-3"]):
        assert value == np.inf


@pytest.mark.slow
@pytest.mark.parametrize(("k", "order"), thinned([(50, 1), (50, 2), (200, 2)], (200, 2)))
def test_jvi_keeps_its_digits_far_from_zero(k, order):
    """Log-weights near −90, as of images, in float32 against float64, also where coefficients of
    10⁴ multiply the sums over subsets."""
    log_w = np.random.default_rng(k).normal(-90, 2, size=k)
    bound = partial(jvi, order=order)
    single, double = jnp.asarray(log_w, jnp.float32), np.asarray(log_w, np.float32)
    values = (
        jax.jit(bound)(single),
        jax.jit(jax.grad(bound))(single),
        jax.jit(partial(curvature, bound))(single),
    )
    with jax.enable_x64(True):
        exact = jnp.asarray(double, jnp.float64)
        expected = (
            jax.jit(bound)(exact),
            jax.jit(jax.grad(bound))(exact),
            jax.jit(partial(curvature, bound))(exact),
        )
        np.testing.assert_allclose(values[0], expected[0], atol=3e-4)
        for got, wanted in zip(values[1:], expected[1:], strict=True):
            np.testing.assert_allclose(got, wanted, atol=5e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("k", "order", "error"),
    [(500, 1, 1e-5), (500, 2, 1.5e-4), pytest.param(2000, 2, 4e-4, marks=pytest.mark.slow)],
)
def test_the_jackknife_of_many_draws_errs_by_what_it_says(k, order, error):
    """With r the shares, T_S − T = log (1 − r) of one left out and log (1 − r_i − r_j) of two."""
    x = np.random.default_rng(0).normal(-90, 2, size=k).astype(np.float32)
    r, c = softmax(x.astype(np.float64)), jackknife.coefficients(k, order)
    exact = logsumexp(x.astype(np.float64)) - sum(a * np.log(k - j) for j, a in enumerate(c))
    exact += c[1] * np.log1p(-r).mean()
    if order == 2:
        pairs = np.log1p(-(r[:, None] + r))
        exact += c[2] * (pairs.sum() - np.trace(pairs)) / (k * (k - 1))
    assert abs(jax.jit(partial(jvi, order=order))(x) - exact) < error


@pytest.mark.parametrize("name", sorted(set(SHAPED) - {"vr-iwae, above 1", "jvi-3"}))
def test_one_weight_of_zero_leaves_the_curvature_finite(name):
    """Of the other two the bound itself is infinite there."""
    assert np.all(np.isfinite(curvature(SHAPED[name], jnp.array([0.5, -jnp.inf, -0.2, 0.1]))))


def test_parts_of_weight_zero_do_not_count():
    log_w = jnp.array([0.5, -jnp.inf, -0.2, 0.1])
    np.testing.assert_allclose(ciwae(log_w, beta=0.0), iwae(log_w), rtol=1e-6)
    assert np.all(curvature(partial(vr_iwae, alpha=1.0), log_w) == 0)


def test_a_weight_of_zero_among_others_counts_as_zero():
    log_w = jnp.array([0.5, -jnp.inf, -0.2, 0.1, -jnp.inf])
    w = np.exp([0.5, -0.2, 0.1])
    np.testing.assert_allclose(iwae(log_w), np.log(w.sum() / 5), rtol=1e-6)
    one = np.mean([np.log((w.sum() - r) / 4) for r in [*w, 0, 0]])
    np.testing.assert_allclose(jvi(log_w, order=1), 5 * iwae(log_w) - 4 * one, rtol=1e-4)
    for order in (0, 1, 2):
        assert np.all(np.isfinite(jax.jit(jax.grad(partial(jvi, order=order)))(log_w)))


# --- derivatives ------------------------------------------------------------------------------


def test_first_derivatives():
    log_w = LOG_W[:, 0, 0]
    np.testing.assert_allclose(jax.grad(iwae)(log_w), softmax(np.asarray(log_w)), rtol=2e-5)
    np.testing.assert_allclose(jax.grad(elbo)(log_w), np.full(6, 1 / 6), rtol=1e-6)
    tempered = softmax(0.5 * np.asarray(log_w))
    gradient = jax.grad(partial(vr_iwae, alpha=0.5))(log_w)
    np.testing.assert_allclose(gradient, tempered, rtol=2e-5)
    np.testing.assert_array_equal(jax.grad(iwae)(jnp.array([1e4, 0.0, -np.inf])), [1, 0, 0])


@pytest.mark.slow
def test_vr_iwae_above_1_follows_the_draws_of_weight_0():
    """The limit of α > 1 as one weight, or two alike, go to 0."""
    bound = partial(vr_iwae, alpha=1.7)
    for log_w, share in (
        ([0.3, -np.inf, 1.2], [0, 1, 0]),
        ([-np.inf, 0.3, -np.inf], [0.5, 0, 0.5]),
    ):
        zero = jnp.array(log_w)
        near = jnp.maximum(zero, -200.0)
        assert bound(zero) == -np.inf
        for at in (zero, near):
            np.testing.assert_allclose(jax.grad(bound)(at), share, atol=1e-6)
        np.testing.assert_allclose(curvature(bound, zero), curvature(bound, near), atol=1e-6)


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param(bound, marks=pytest.mark.slow if name.startswith("jvi") else ())
        for name, bound in SHAPED.items()
    ],
    ids=SHAPED,
)
def test_curvature_is_the_diagonal_of_the_hessian(bound):
    """In float64 against the full Hessian, and against the product-by-product way."""
    with jax.enable_x64(True):
        hessian, closed, one_by_one = (
            jax.jit(f)
            for f in (
                jax.hessian(bound),
                partial(curvature, bound),
                partial(curvature, lambda log_w: bound(log_w)),
            )
        )
        for scale in (0.1, 1.0, 10.0):
            log_w = scale * jnp.asarray(np.random.default_rng(5).normal(size=6))
            exact = np.diag(hessian(log_w))
            np.testing.assert_allclose(closed(log_w), exact, rtol=1e-6, atol=1e-10)
            np.testing.assert_allclose(one_by_one(log_w), exact, rtol=1e-9, atol=1e-12)


def sizes(jaxpr):
    """Of every array that is computed, in inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@pytest.mark.parametrize("name", ["vae", "iwae", "miwae", "ciwae", "vr-iwae", "jvi-1"])
def test_curvature_holds_no_table_of_draws_by_draws(name):
    k = 38
    jaxpr = jax.make_jaxpr(partial(curvature, SHAPED[name]))(jnp.zeros(k)).jaxpr
    assert max(sizes(jaxpr)) < 3 * k
    assert max(sizes(jax.make_jaxpr(jax.jit(jax.hessian(iwae)))(jnp.zeros(k)).jaxpr)) >= k * k


# --- every bound in float32, against float64 --------------------------------------------------


def powers(x, a):
    """(value, gradient, H_ii) of (1/a) log (1/K) Σ w^a, or of the ELBO for a = 0."""
    k = len(x)
    if a == 0:
        return x.mean(), np.full(k, 1 / k), np.zeros(k)
    top = x.max() if a > 0 else x.min()
    v = softmax(a * (x - top))
    return top + (logsumexp(a * (x - top)) - np.log(k)) / a, v, a * v * (1 - v)


def groups(x, m):
    each = [powers(part, 1) for part in x.reshape(m, -1)]
    value, *rest = (np.stack(of) for of in zip(*each, strict=True))
    return value.mean(), *(of.ravel() / m for of in rest)


def between(x, beta):
    pairs = zip(powers(x, 0), powers(x, 1), strict=True)
    return tuple(beta * low + (1 - beta) * high for low, high in pairs)


def subsets(x, order):
    k, total = len(x), [0.0, np.zeros(len(x)), np.zeros(len(x))]
    for j in range(order + 1):
        c = (-1) ** j * (k - j) ** order / (factorial(order - j) * factorial(j))
        for s in map(list, combinations(range(k), k - j)):
            value, gradient, diagonal = (c / comb(k, j) * of for of in powers(x[s], 1))
            total[0] += value
            total[1][s] += gradient
            total[2][s] += diagonal
    return tuple(total)


CLOSED = {
    "vae": (elbo, partial(powers, a=0)),
    "iwae": (iwae, partial(powers, a=1)),
    "miwae": (partial(miwae, m=3), partial(groups, m=3)),
    "ciwae": (partial(ciwae, beta=0.3), partial(between, beta=0.3)),
    "piwae, of φ": (named("piwae", m=2).phi, partial(groups, m=2)),
} | {
    f"vr-iwae {alpha}": (partial(vr_iwae, alpha=alpha), partial(powers, a=1 - alpha))
    for alpha in (-5.0, -1.5, 0.4, 1 - 1e-6, 1.0, 1.7, 4.0)
}
CLOSED |= {f"jvi {m}": (partial(jvi, order=m), partial(subsets, order=m)) for m in range(4)}


@pytest.mark.parametrize("name", thinned(CLOSED, "vae", "iwae", "miwae", "vr-iwae 0.4", "jvi 1"))
def test_every_bound_keeps_float32_at_any_offset_and_spread(name):
    """Value, gradient and H_ii of the same float32 log-weights, and under `eqx.Partial` too.

    Errors are relative to the largest log-weight, and to Σ |c_j| of a jackknife.
    """
    bound, exact = CLOSED[name]
    k, size = 6, 1.0
    assert {b.func if isinstance(b, partial) else b for b, _ in CLOSED.values()} >= set(
        bounds.BOUNDS.values()
    )
    if name.startswith("jvi"):
        size = sum(map(abs, jackknife.coefficients(k, int(name[-1]))))
    ours = jax.jit(lambda x: (bound(x), jax.grad(bound)(x), curvature(bound, x)))
    for offset in (0.0, -90.0, 1e6, -1e6):
        for spread in (1e-3, 0.1, 1.0, 30.0, 1000.0):
            draws = np.random.default_rng(3).normal(size=(3, k))
            for x in (offset + spread * draws).astype(np.float32):
                value, *rest = exact(x.astype(np.float64))
                got, *others = ours(x)
                largest = np.abs(x).max()
                assert abs(np.float64(got) - value) < 3e-7 * (largest + size)
                for a, b in zip(others, rest, strict=True):
                    np.testing.assert_allclose(np.float64(a), b, rtol=1e-6, atol=1e-6 * size)


class Unhashed(eqx.Module):
    """A bound of one's own with a setting that has no hash."""

    power: list[float]

    def __call__(self, log_w):
        return vr_iwae(log_w, alpha=1 - self.power[0])


@pytest.mark.parametrize(
    "bound",
    [
        eqx.Partial(jvi, order=1),
        eqx.Partial(partial(vr_iwae, alpha=0.4)),
        partial(eqx.Partial(vr_iwae, alpha=0.9), alpha=0.4),
        eqx.Partial(lambda power, log_w: vr_iwae(log_w, alpha=1 - power), 0.6),
        Unhashed([0.6]),
    ],
)
def test_bounds_without_a_hash_have_their_curvature(bound):
    x = np.random.default_rng(0).normal(size=5).astype(np.float32)
    exact = subsets(x, 1) if getattr(bound, "func", None) is jvi else powers(x, 0.6)
    np.testing.assert_allclose(curvature(bound, jnp.asarray(x)), exact[2], atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------


@every_bound
def test_weights_that_say_nothing_are_refused(bound):
    with refused(
        "The log-weights hold nan or +inf, for which no bound exists; check the model's "
        "log-densities where the proposal draws."
    ):
        bound(jnp.array([0.0, jnp.nan, 1.0, 2.0]))
    with refused(
        "All log-weights of an example are -inf, so none of its draws can have produced it; use a "
        "proposal that covers the posterior, or more draws."
    ):
        bound(jnp.array([[0.0, -jnp.inf]] * 1 + [[1.0, -jnp.inf]] * 3))
    with pytest.raises(InputError, match="a bound needs at least 1 draw"):
        bound(jnp.zeros((0, 3)))


def test_names_and_settings_that_are_missing_are_refused():
    with refused(
        "There is no bound 'miwea'; did you mean 'miwae'? Known are ciwae, iwae, jvi, miwae, "
        "piwae, vae, vr-iwae."
    ):
        named("miwea")
    for name in ("miwae", "piwae"):
        with refused("The bound miwae has a setting m, but none was given; give one."):
            named(name, alpha=0.5)


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        (
            partial(miwae, m=4),
            "m = 4 was given with K = 6 draws, but MIWAE needs M groups of equal size; give an m "
            "that divides 6.",
        ),
        (
            partial(vr_iwae, alpha=np.inf),
            "alpha = inf was given, but α must be finite; give 1 for the ELBO.",
        ),
        (
            partial(ciwae, beta=1.5),
            "beta = 1.5 was given, but CIWAE's β is a weight between 0 (IWAE) and 1 (ELBO); give "
            "one in [0, 1].",
        ),
        (
            partial(jvi, order=6),
            "order = 6 was given with K = 6 draws, but JVI leaves out up to m of them and needs "
            "at least one; give an order from 0 to 5.",
        ),
    ],
)
def test_shapes_of_bounds_that_mean_nothing_are_refused(bound, sentence):
    with refused(sentence):
        bound(LOG_W)
    with pytest.raises(InputError) as traced:
        jax.jit(bound)(LOG_W)
    assert str(traced.value) == sentence


@pytest.mark.parametrize(("k", "order", "subsets"), [(50, 5, "2,118,760"), (30, 28, "155,117,520")])
def test_a_jackknife_that_explodes_is_refused(k, order, subsets):
    with refused(
        f"order = {order} was given with K = {k} draws, which takes up to {subsets} subsets of "
        f"them; give an order of at most 2, or fewer draws."
    ):
        jvi(jnp.zeros(k), order=order)


def test_a_bound_is_pickled_by_its_name_and_batches_have_curvatures() -> None:
    shaped = bounds.vr_iwae.with_settings(alpha=0.5)
    again = pickle.loads(pickle.dumps(shaped))
    assert again == shaped
    log_w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    median = bounds.as_bound(lambda log_w: jnp.log(jnp.mean(jnp.exp(log_w), axis=0)))
    closed = bounds.iwae.curvature(log_w)
    np.testing.assert_allclose(median.curvature(log_w), closed, atol=1e-6)


def test_a_setting_that_was_forgotten_is_asked_for() -> None:
    for use in (bounds.vr_iwae, bounds.vr_iwae.curvature):
        with refused("The bound vr-iwae has a setting alpha, but none was given; give one."):
            use(jnp.zeros(3))


def test_a_curvature_is_of_settings_that_the_bound_has() -> None:
    for shaped in (
        bounds.ciwae.with_settings(beta=2.0),
        bounds.vr_iwae.with_settings(alpha=float("nan")),
        bounds.miwae.with_settings(m=2),
    ):
        for use in (shaped, shaped.curvature):
            with pytest.raises(InputError, match=r"was given"):
                use(jnp.zeros(3))
