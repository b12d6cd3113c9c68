"""The likelihood of a table, against SciPy in float64 and closed forms."""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit, softmax

from iwae.config.schema import ModelConfig
from iwae.data.schema import Column, Schema
from iwae.models.autoencoder import Autoencoder
from iwae.models.base import draw_log_weights
from iwae.models.build import build, gaussian
from iwae.models.encoding import TableInput
from iwae.models.likelihoods import numbers
from iwae.models.likelihoods.columns import Columns, Noise
from iwae.models.likelihoods.numbers import Gaussians, inverted, without
from iwae.models.likelihoods.summary import summarize
from iwae.models.linear_paths import Limited
from thinned import thinned

RNG = np.random.default_rng(0)
N = 400

COLUMNS = (
    Column("real", "real"),
    Column("positive", "positive"),
    Column("zeros", "positive", zeros=True),
    Column("bounded", "bounded", low=-1.0, high=3.0),
    Column("count", "count"),
    Column("flag", "binary", categories=("no", "yes")),
    Column("level", "ordinal", categories=(1, 2, 3, 4)),
    Column("word", "categorical", categories=tuple("abcde")),
    Column("heavy", "real", likelihood="student"),
    Column("gamma", "positive", likelihood="gamma"),
    Column("poisson", "count", likelihood="poisson"),
    Column("pair", "categorical", categories=tuple("ab")),
    Column("rain", "positive", likelihood="gamma", zeros=True),
    Column("step", "ordinal", categories=(1, 2)),
)
SCHEMA = Schema(COLUMNS)
ROWS = np.stack(
    [
        RNG.normal(5, 3, N),
        np.exp(RNG.normal(1, 0.5, N)),
        np.where(RNG.random(N) < 0.3, 0, np.exp(RNG.normal(1, 0.5, N))),
        -1 + 4 * RNG.beta(2, 3, N),
        RNG.negative_binomial(3, 0.3, N),
        RNG.random(N) < 0.2,
        RNG.integers(0, 4, N),
        RNG.integers(0, 5, N),
        RNG.standard_t(4, N),
        RNG.gamma(2, 3, N),
        RNG.poisson(3, N),
        RNG.integers(0, 2, N),
        np.where(RNG.random(N) < 0.3, 0, RNG.gamma(2, 3, N)),
        RNG.integers(0, 2, N),
    ],
    axis=1,
).astype(np.float32)
HOLED = np.where(RNG.random(ROWS.shape) < 0.3, np.nan, ROWS).astype(np.float32)
D = len(COLUMNS)


def alone(name: str, **changes: object) -> tuple[Schema, np.ndarray]:
    """One column of the table."""
    at = SCHEMA.names.index(name)
    return Schema((COLUMNS[at],)), ROWS[:, at : at + 1]


def one(name: str, parameters: list[float], x: np.ndarray) -> np.ndarray:
    """log p(x) of a column at these parameters, for each of the values."""
    schema, rows = alone(name)
    likelihood = Columns.of(summarize(schema, rows))
    flat = jnp.asarray(parameters, jnp.float32)[None]
    of = jax.jit(jax.vmap(lambda x: likelihood.log_prob(flat, x)))
    return np.asarray(of(jnp.asarray(x, jnp.float32)[:, None]), np.float64)


def standard(z: np.ndarray) -> tuple[float, float]:
    return float(z.mean()), float(z.std())


def values(name: str) -> np.ndarray:
    return ROWS[:, SCHEMA.names.index(name)].astype(np.float64)


def sigma(spread: float, b: float) -> float:
    return spread * float(np.hypot(1e-3, np.exp(b)))


def test_a_real_column_is_normal() -> None:
    m, s = standard(values("real"))
    x = np.linspace(-5, 15, 7)
    exact = stats.norm.logpdf(x, m + 0.5 * s, sigma(s, -0.7))
    np.testing.assert_allclose(one("real", [0.5, -0.7], x), exact, rtol=2e-5)


def test_a_positive_column_is_log_normal_in_its_own_units() -> None:
    m, s = standard(np.log(values("positive")))
    x = np.array([0.01, 0.5, 2.0, 30.0])
    exact = stats.lognorm.logpdf(x, sigma(s, 0.3), scale=np.exp(m - 0.4 * s))
    np.testing.assert_allclose(one("positive", [-0.4, 0.3], x), exact, rtol=2e-5)


def test_a_bounded_column_is_logit_normal_in_its_own_units() -> None:
    u = (values("bounded") + 1) / 4
    m, s = standard(logit(u))
    x = np.array([-0.9, 0.0, 1.7, 2.99])
    v = (x + 1) / 4
    exact = stats.norm.logpdf(logit(v), m + 0.2 * s, sigma(s, -0.1)) - np.log(v * (1 - v) * 4)
    np.testing.assert_allclose(one("bounded", [0.2, -0.1], x), exact, rtol=3e-5, atol=2e-5)


def test_zeros_are_a_hurdle() -> None:
    x = values("zeros")
    share = (np.sum(x == 0) + 0.5) / (N + 1)
    gate = expit(logit(share) + 0.6)
    m, s = standard(np.log(x[x > 0]))
    at = np.array([0.0, 0.7, 5.0])
    above = np.log1p(-gate) + stats.lognorm.logpdf(at[1:], sigma(s, 0.1), scale=np.exp(m))
    exact = np.concatenate([[np.log(gate)], above])
    np.testing.assert_allclose(one("zeros", [0.0, 0.1, 0.6], at), exact, rtol=3e-5)


def test_heavy_tails_are_students() -> None:
    m, s = standard(values("heavy"))
    x = np.array([-40.0, -1.0, 0.0, 3.0])
    df = 1 + 4 * np.exp(-0.5)
    exact = stats.t.logpdf(x, df, m + 0.3 * s, sigma(s, -0.2))
    np.testing.assert_allclose(one("heavy", [0.3, -0.2, -0.5], x), exact, rtol=3e-5)


@pytest.mark.parametrize("name", ["gamma", "rain"])
def test_a_gamma_column_has_the_mean_and_concentration_of_training(name: str) -> None:
    x = values(name)
    above = x[x > 0]
    mean, spread = standard(above)
    n = 1 / ((1e-3 * np.log(above).std()) ** 2 + (spread / mean) ** 2 * np.exp(-0.4))
    mean *= np.exp(0.3 * min(spread / mean, 1.0))
    at = np.array([0.2, 2.0, 30.0])
    exact = stats.gamma.logpdf(at, n, scale=mean / n)
    parameters = [0.3, 0.4]
    if name == "rain":
        share = (np.sum(x == 0) + 0.5) / (N + 1)
        exact += np.log1p(-share)
        parameters.append(0.0)
    np.testing.assert_allclose(one(name, parameters, at), exact, rtol=1e-4)


def test_counts_start_at_their_moments() -> None:
    x = values("count")
    mean, spread = standard(x)
    n = mean**2 / (spread**2 - mean)
    at = np.array([0.0, 1.0, 8.0, 40.0])
    exact = stats.nbinom.logpmf(at, n, n / (n + mean))
    np.testing.assert_allclose(one("count", [0.0, 0.0], at), exact, rtol=1e-4)
    exact = stats.poisson.logpmf(at, values("poisson").mean())
    np.testing.assert_allclose(one("poisson", [0.0], at), exact, rtol=1e-4)


def test_counts_with_a_large_concentration_are_poisson() -> None:
    at = np.array([0.0, 3.0, 9.0])
    exact = stats.poisson.logpmf(at, values("count").mean())
    np.testing.assert_allclose(one("count", [0.0, 40.0], at), exact, rtol=1e-4)


def test_categories_are_a_softmax_of_their_shares() -> None:
    a = np.array([0.5, -1.0, 0.0, 2.0, 0.3])
    counts = np.bincount(values("word").astype(int), minlength=5) + 0.5
    exact = np.log(softmax(np.log(counts / counts.sum()) + a))
    np.testing.assert_allclose(one("word", [*a], np.arange(5.0)), exact, rtol=1e-4)
    flag = (values("flag").sum() + 0.5) / (N + 1)
    p = expit(logit(flag) + 0.7)
    exact = np.log([1 - p, p])
    np.testing.assert_allclose(one("flag", [0.7], np.arange(2.0)), exact, rtol=1e-4)


def test_levels_are_ordered_logistic() -> None:
    counts = np.bincount(values("level").astype(int), minlength=4) + 0.5
    thresholds = logit(np.cumsum(counts / counts.sum())[:-1])
    below = expit((thresholds - 0.8) * np.exp(0.3))
    exact = np.log(np.diff(np.concatenate([[0.0], below, [1.0]])))
    np.testing.assert_allclose(one("level", [0.8, -0.3], np.arange(4.0)), exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "codes", "size"),
    [
        ("count", 2000, 2),
        ("poisson", 200, 1),
        ("flag", 2, 1),
        ("level", 4, 2),
        ("word", 5, 8),
        ("pair", 2, 2),
        ("step", 2, 2),
    ],
)
def test_the_probabilities_of_a_discrete_column_sum_to_1(name: str, codes: int, size: int) -> None:
    levels = COLUMNS[SCHEMA.names.index(name)].levels
    parameters = np.random.default_rng(1).normal(0, 1, size if not levels or size < 3 else levels)
    total = np.exp(one(name, [*parameters], np.arange(float(codes)))).sum()
    assert total == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("positive", -1.0),
        ("positive", 0.0),
        ("zeros", -1.0),
        ("bounded", 3.0),
        ("bounded", 5.0),
        ("count", 1.5),
        ("count", -1.0),
        ("flag", 2.0),
        ("level", 4.0),
        ("word", 1.5),
        ("gamma", 0.0),
    ],
)
@pytest.mark.slow
def test_there_is_no_density_outside_the_support(name: str, x: float) -> None:
    schema, rows = alone(name)
    likelihood = Columns.of(summarize(schema, rows))
    at = jnp.asarray([x], jnp.float32)
    value, gradient = jax.value_and_grad(lambda p: likelihood.log_prob(p, at))(
        jnp.zeros((1, likelihood.size))
    )
    assert value == -np.inf
    assert np.isfinite(gradient).all()


# --- the whole table ------------------------------------------------------------------------------


def table(noise: Noise = "independent") -> Columns:
    return Columns.of(summarize(SCHEMA, HOLED), noise, 2)


@eqx.filter_jit
def _log_probs(likelihood: Columns, parameters: jax.Array, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: likelihood.log_probs(parameters, x))(x)


@eqx.filter_jit
def _log_prob(likelihood: Columns, parameters: jax.Array, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: likelihood.log_prob(parameters, x))(x)


@eqx.filter_jit
def _gradients(likelihood: Columns, parameters: jax.Array, x: jax.Array) -> Columns:
    def total(of: tuple[Columns, jax.Array]) -> jax.Array:
        return jnp.sum(jax.vmap(lambda x: of[0].log_prob(of[1], x))(x))

    return eqx.filter_grad(total)((likelihood, parameters))


@pytest.mark.parametrize("noise", thinned(["independent", "full", "low-rank"], "full"))
@pytest.mark.slow
def test_gradients_are_finite_with_missing_values_and_extreme_parameters(noise: Noise) -> None:
    likelihood = table(noise)
    for size in (0.0, 3.0, 60.0):
        signs = np.random.default_rng(2).choice([-1, 1], (1, likelihood.size))
        parameters = jnp.asarray(size * signs, jnp.float32)
        for leaf in jax.tree.leaves(_gradients(likelihood, parameters, jnp.asarray(HOLED[:50]))):
            assert np.isfinite(leaf).all()


@pytest.mark.slow
def test_independent_terms_sum_to_the_density_and_missing_ones_are_0() -> None:
    likelihood = table()
    parameters = 0.3 * jax.random.normal(jax.random.key(0), (1, likelihood.size))
    terms = _log_probs(likelihood, parameters, jnp.asarray(HOLED))
    total = _log_prob(likelihood, parameters, jnp.asarray(HOLED))
    np.testing.assert_allclose(terms.sum(axis=1), total, rtol=1e-4, atol=1e-4)
    assert (np.asarray(terms)[np.isnan(HOLED)] == 0).all()
    assert (np.asarray(terms)[~np.isnan(HOLED)] != 0).all()


@pytest.mark.parametrize("noise", ["independent", "full", "low-rank"])
@pytest.mark.slow
def test_the_density_of_a_value_alone_is_that_of_a_row_without_the_others(noise: Noise) -> None:
    likelihood = table(noise)
    parameters = jax.random.normal(jax.random.key(1), (1, likelihood.size)) / 2
    row = ROWS[:1]
    alone = np.where(np.eye(D, dtype=bool), row, np.nan).astype(np.float32)
    each = _log_prob(likelihood, parameters, jnp.asarray(alone))
    found = likelihood.log_marginals(parameters, jnp.asarray(row[0]))
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-5)
    nothing = likelihood.log_marginals(parameters, jnp.full(D, jnp.nan))
    np.testing.assert_array_equal(nothing, np.zeros(D))


def test_means_of_positive_numbers_are_bounded() -> None:
    """E[min(x, most)] of log-normals, as wide as exp(σ²/2) overflows, against quadrature."""
    mu, sigma, bound = np.array([0.3, 0.3, -1.0, 4.0]), np.array([0.2, 1.5, 40.0, 0.5]), 2.0
    z = mu + sigma * np.linspace(-9, 9, 200_001)[:, None]
    weights = stats.norm.pdf(z, mu, sigma)
    exact = np.sum(weights * np.exp(np.minimum(z, bound)), axis=0) / weights.sum(axis=0)
    found = numbers.log_mean_up_to(jnp.full(4, bound), jnp.asarray(mu), jnp.asarray(sigma))
    np.testing.assert_allclose(np.exp(found), exact, rtol=1e-3)
    far = numbers.log_mean_up_to(jnp.full(1, 10.0), jnp.zeros(1), jnp.full(1, 0.3))
    np.testing.assert_allclose(far, [0.3**2 / 2], atol=1e-5)


@pytest.mark.parametrize("noise", thinned(["independent", "full"], "full"))
@pytest.mark.slow
def test_a_row_of_which_nothing_is_known_has_a_log_density_of_0(noise: Noise) -> None:
    likelihood, nothing = table(noise), jnp.full((1, D), jnp.nan)
    assert _log_prob(likelihood, jnp.zeros((1, likelihood.size)), nothing)[0] == 0


@pytest.mark.slow
def test_draws_have_the_marginals_of_training() -> None:
    likelihood = table()
    keys = jax.random.split(jax.random.key(3), 4000)
    of = likelihood.distribution(jnp.zeros((1, likelihood.size)))
    drawn = np.asarray(jax.jit(jax.vmap(of.sample))(keys), np.float64)
    error = np.nanstd(HOLED, axis=0) * np.sqrt(1 / 4000 + 1 / 280)
    assert (np.abs(drawn.mean(axis=0) - np.nanmean(HOLED, axis=0)) < 4.5 * error).all()


@pytest.mark.slow
def test_a_completed_row_keeps_what_is_seen() -> None:
    likelihood = table("full")
    parameters = jnp.zeros((1, likelihood.size))
    draw = jax.jit(jax.vmap(lambda x, key: likelihood.complete(parameters, x, key)))
    full = np.asarray(draw(jnp.asarray(HOLED), jax.random.split(jax.random.key(0), N)))
    seen = ~np.isnan(HOLED)
    np.testing.assert_array_equal(full[seen], HOLED[seen])
    assert np.isfinite(full).all()
    assert np.isfinite(_log_prob(likelihood, parameters, jnp.asarray(full))).all()


@pytest.mark.slow
def test_decisions_are_values_of_their_columns() -> None:
    likelihood = table()
    best = np.asarray(likelihood.expected(jnp.zeros((1, likelihood.size))), np.float64)
    mean = np.nanmean(HOLED.astype(np.float64), axis=0)
    for name in ("real", "count", "poisson", "gamma", "rain", "heavy"):
        at = SCHEMA.names.index(name)
        assert best[at] == pytest.approx(mean[at], rel=0.02, abs=0.02), name
    for name in ("positive", "zeros", "bounded"):  # the means of fitted log- and logit-normals
        at = SCHEMA.names.index(name)
        assert best[at] == pytest.approx(mean[at], rel=0.1), name
    column = lambda name: HOLED[:, SCHEMA.names.index(name)]
    mode = lambda x: np.bincount(x[~np.isnan(x)].astype(int)).argmax()
    assert best[SCHEMA.names.index("flag")] == 0
    assert best[SCHEMA.names.index("word")] == mode(column("word"))
    assert best[SCHEMA.names.index("level")] == np.nanmedian(column("level"))


# --- correlated noise -----------------------------------------------------------------------------

G = 5
MIXED = Schema(
    (
        Column("a", "real"),
        Column("b", "positive"),
        Column("c", "real"),
        Column("d", "bounded", low=0.0, high=2.0),
        Column("e", "positive", zeros=True),
    )
)


def correlated() -> tuple[np.ndarray, np.ndarray]:
    """Rows of five correlated columns, and the same transformed."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(600, G)) @ rng.normal(size=(G, G)) * 0.4 + 0.3 * rng.normal(size=(600, G))
    x = np.stack([z[:, 0], np.exp(z[:, 1]), z[:, 2], 2 * expit(z[:, 3]), np.exp(z[:, 4])], axis=1)
    return x.astype(np.float32), z


def correlation_of(likelihood: Columns) -> np.ndarray:
    part = likelihood.parts[0]
    assert isinstance(part, Gaussians)
    assert part.correlation is not None
    return np.asarray(part.correlation.matrix, np.float64)


@pytest.mark.parametrize("noise", thinned(["full", "low-rank"], "low-rank"))
def test_correlated_noise_is_a_gaussian_of_the_observed_columns(noise: Noise) -> None:
    x, z = correlated()
    likelihood = Columns.of(summarize(MIXED, x), noise, 2)
    rng = np.random.default_rng(6)
    parameters = rng.normal(0, 0.3, likelihood.size)
    mean, spread = z.mean(axis=0), z.std(axis=0)
    location = mean + spread * parameters[:G]
    scale = spread * np.hypot(1e-3, np.exp(parameters[G : 2 * G]))
    matrix = correlation_of(likelihood)
    covariance = matrix * np.outer(scale, scale)
    gate = expit(logit(0.5 / 601) + parameters[2 * G])
    seen = rng.random((20, G)) < 0.6
    seen[0], seen[1] = True, False
    slope = np.stack(
        [0 * z[:, 0], -z[:, 1], 0 * z[:, 2], -np.log(x[:, 3] * (1 - x[:, 3] / 2)), -z[:, 4]], axis=1
    )
    exact, terms = np.zeros(20), np.zeros((20, G))
    gates = np.log1p(-gate) * (np.arange(G) == G - 1)

    def log_density(o: np.ndarray, z: np.ndarray) -> float:
        if not o.any():
            return 0.0
        return stats.multivariate_normal.logpdf(z[o], location[o], covariance[np.ix_(o, o)])

    for i in range(20):
        o = seen[i]
        exact[i] = log_density(o, z[i]) + (slope[i] + gates)[o].sum()
        for j in np.flatnonzero(o):
            rest = o.copy()
            rest[j] = False
            terms[i, j] = log_density(o, z[i]) - log_density(rest, z[i]) + slope[i, j] + gates[j]
    flat = jnp.asarray(parameters, jnp.float32)[None]
    holed = jnp.asarray(np.where(seen, x[:20], np.nan), jnp.float32)
    np.testing.assert_allclose(_log_prob(likelihood, flat, holed), exact, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(_log_probs(likelihood, flat, holed), terms, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_missing_values_are_drawn_from_their_conditional_gaussian() -> None:
    x, z = correlated()
    likelihood = Columns.of(summarize(MIXED, x), "full")
    matrix = correlation_of(likelihood)
    mean, spread = z.mean(axis=0), z.std(axis=0)
    covariance = matrix * np.outer(spread, spread)
    o = np.array([True, False, True, False, True])
    gain = covariance[np.ix_(~o, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
    exact = mean[~o] + gain @ (z[0] - mean)[o]
    rest = covariance[np.ix_(~o, ~o)] - gain @ covariance[np.ix_(o, ~o)]
    row = jnp.asarray(np.where(o, x[0], np.nan), jnp.float32)
    flat = jnp.zeros((1, likelihood.size))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: likelihood.complete(flat, row, k)))(keys))
    back = np.stack([np.log(drawn[:, 1]), logit(drawn[:, 3] / 2)], axis=1)
    error = np.sqrt(np.diag(rest) / 20_000)
    assert (np.abs(back.mean(axis=0) - exact) < 4.5 * error).all()
    np.testing.assert_allclose(np.cov(back.T), rest, atol=0.04 * np.diag(rest).max())
    best = np.asarray(likelihood.prediction(flat, row))
    assert best[1] == pytest.approx(np.exp(exact[0] + rest[0, 0] / 2), rel=1e-3)
    assert best[3] == pytest.approx(float(drawn[:, 3].mean()), abs=float(drawn[:, 3].std()) / 28)


def test_a_zero_says_nothing_about_the_other_columns() -> None:
    x, _ = correlated()
    likelihood = Columns.of(summarize(MIXED, x), "full")
    flat = jnp.zeros((1, likelihood.size))
    zero, hole = x[:1].copy(), x[:1].copy()
    zero[0, 4], hole[0, 4] = 0.0, np.nan
    gate = np.log(0.5 / 601)
    both = _log_prob(likelihood, flat, jnp.asarray(np.concatenate([zero, hole])))
    assert float(both[0] - both[1]) == pytest.approx(gate, rel=1e-4)


# --- floors, shapes, the encoder's input ----------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "x", "bound"),
    [
        (Column("a", "real", resolution=0.1), 5.0, -np.log(0.1 / np.sqrt(12))),
        (Column("a", "real"), 5.0, -np.log(1e-3 * 3)),
        (Column("a", "positive"), 5.0, -np.log(5 * 1e-3 * 0.4)),
        (Column("a", "positive", likelihood="gamma"), 5.0, -np.log(5 * 1e-3 * 0.4)),
        (Column("a", "real", likelihood="student"), 5.0, -np.log(1e-3 * 3)),
    ],
)
def test_a_repeated_value_cannot_buy_any_density(column: Column, x: float, bound: float) -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.full(150, x), np.maximum(rng.normal(x, 4.2, 150), 0.3)])[:, None]
    likelihood = Columns.of(summarize(Schema((column,)), rows.astype(np.float32)))
    parameters = jnp.zeros((1, likelihood.size))
    at = jnp.asarray([x], jnp.float32)

    def step(_: int, p: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda p: likelihood.log_prob(p, at))(p)
        return p + 0.3 * gradient / (1e-6 + jnp.abs(gradient))

    best = jax.jit(lambda p: likelihood.log_prob(jax.lax.fori_loop(0, 300, step, p), at))
    assert float(best(parameters)) < bound + 1


def test_a_constant_column_has_a_bounded_density() -> None:
    rows = np.full((50, 1), 7.0, np.float32)
    likelihood = Columns.of(summarize(Schema((Column("a", "real"),)), rows))
    at = jnp.asarray([7.0])
    assert likelihood.log_prob(jnp.asarray([[0.0, -50.0]]), at) < 7


def test_tables_of_equal_types_share_their_program() -> None:
    renamed = tuple(replace(c, name=f"{c.name}_2", resolution=0.5) for c in COLUMNS)
    first, second = (summarize(s, ROWS) for s in (SCHEMA, Schema(renamed)))
    structures = [
        {jax.tree.structure(s), jax.tree.structure(Columns.of(s))} for s in (first, second)
    ]
    assert structures[0] == structures[1]
    empty = Columns.of(summarize(SCHEMA), "full")
    shapes: Callable[[Columns], list[tuple[int, ...]]] = lambda of: [
        leaf.shape for leaf in jax.tree.leaves(of)
    ]
    assert shapes(empty) == shapes(Columns.of(first, "full"))


def test_the_encoder_sees_standard_numbers_categories_and_holes() -> None:
    summary = summarize(SCHEMA, HOLED)
    entrance = TableInput.of(summary, eqx.nn.Identity(), mask=True)
    features = np.asarray(jax.jit(jax.vmap(entrance))(jnp.asarray(HOLED)), np.float64)
    assert features.shape == (N, TableInput.width(summary.forms, mask=True))
    assert np.isfinite(features).all()
    numbers = 12
    seen = features[:, :numbers] != 0
    assert np.where(seen, features[:, :numbers], 0).mean(axis=0) == pytest.approx(0, abs=1e-5)
    np.testing.assert_array_equal(features[:, -D:], np.isnan(HOLED))
    hot = features[:, numbers + 2 : -D]
    groups = [hot[:, :4], hot[:, 4:9], hot[:, 9:11], hot[:, 11:13]]
    for name, group in zip(("level", "word", "pair", "step"), groups, strict=True):
        at = SCHEMA.names.index(name)
        np.testing.assert_array_equal(group.sum(axis=1), ~np.isnan(HOLED[:, at]))
        known = ~np.isnan(HOLED[:, at])
        np.testing.assert_array_equal(group[known].argmax(axis=1), HOLED[known, at])


def test_without_a_mask_a_hole_looks_like_the_mean() -> None:
    summary = summarize(SCHEMA, ROWS)
    entrance = TableInput.of(summary, eqx.nn.Identity(), mask=False)
    assert (np.asarray(entrance(jnp.full(D, jnp.nan))) == 0).all()


# --- linear paths ---------------------------------------------------------------------------------


def started(noise: Noise, schema: Schema, rows: np.ndarray, latents: int) -> Autoencoder:
    """A model with linear paths before training."""
    model = eqx.filter_jit(build)(
        ModelConfig(hidden=((8,),), latents=(latents,), networks="tanh+linear", noise=noise),
        kind="table",
        mean=np.nanmean(rows, axis=0),
        spread=np.nanstd(rows, axis=0),
        key=jax.random.key(0),
        table=summarize(schema, rows),
    )
    assert isinstance(model, Autoencoder)
    return model


def test_correlated_noise_with_linear_paths_starts_at_the_gaussian_of_training() -> None:
    x, z = correlated()
    rows = x[:, :4]
    model = started("full", Schema(MIXED.columns[:4]), rows, 2)
    h = jnp.zeros((1, 2))
    log_p = jax.jit(jax.vmap(lambda x: model.log_observation(x, (h,))[0]))(jnp.asarray(rows))
    z = z[:, :4]
    correlation = 0.95 * np.corrcoef(z.T) + 0.05 * np.eye(4)
    covariance = correlation * np.outer(z.std(axis=0), z.std(axis=0))
    slope = -z[:, 1] - np.log(rows[:, 3] * (1 - rows[:, 3] / 2))
    exact = stats.multivariate_normal.logpdf(z, z.mean(axis=0), covariance) + slope
    np.testing.assert_allclose(log_p, exact, atol=0.05)


def test_codes_with_linear_paths_start_at_principal_components() -> None:
    x, z = correlated()
    model = started("independent", Schema(MIXED.columns[:4]), x[:, :4], 2)
    mu = np.asarray(jax.jit(jax.vmap(lambda x: model.encoder[0](x)[0]))(jnp.asarray(x[:, :4])))
    standard = (z[:, :4] - z[:, :4].mean(axis=0)) / z[:, :4].std(axis=0)
    values, vectors = np.linalg.eigh(0.95 * np.corrcoef(standard.T) + 0.05 * np.eye(4))
    exact = standard @ vectors[:, ::-1][:, :2] / np.sqrt(values[::-1][:2])
    match = np.abs([np.corrcoef(mu[:, i], exact[:, i])[0, 1] for i in range(2)])
    assert (match > 0.97).all()
    again = jax.vmap(model.parameters)(jnp.asarray(exact, jnp.float32))[:, 0, :4]
    left = np.mean((np.asarray(again) - standard) ** 2)
    assert left < 1.3 * np.mean(
        (standard - 0.9 * standard @ vectors[:, 2:] @ vectors[:, 2:].T) ** 2
    )


@pytest.mark.parametrize("noise", ["independent", "full"])
@pytest.mark.slow
def test_linear_paths_take_every_kind_of_column(noise: Noise) -> None:
    model = started(noise, SCHEMA, HOLED, 3)
    x = jnp.asarray(HOLED[:5])
    weigh = eqx.filter_jit(
        lambda m, x: jax.vmap(lambda x: draw_log_weights(m, x, 3, jax.random.key(0)))(x)
    )
    assert np.isfinite(weigh(model, x)).all()


def test_linear_paths_keep_the_scale_of_codes_within_limits() -> None:
    """Beyond them the gradient leads back; within them nothing changes."""
    plain = gaussian(1, (), 3, key=jax.random.key(0))
    plain = eqx.tree_at(lambda q: q.log_sigma.bias, plain, jnp.array([-30.0, 1.0, 30.0]))
    q, at = Limited(plain), jnp.zeros(1)
    np.testing.assert_array_equal(q(at)[1], [-10.0, 1.0, 2.0])
    np.testing.assert_array_equal(q(at)[0], plain(at)[0])
    slope = eqx.filter_grad(lambda q: jnp.sum(q(at)[1] ** 2))(q).log_sigma.bias
    np.testing.assert_allclose(slope, [-20.0, 2.0, 4.0])


def test_columns_are_taken_out_of_an_inverse() -> None:
    """P_oo − P_om P_mm⁻¹ P_mo is the inverse of C_oo, and |C_oo| = |C| |P_mm|."""
    factors = np.random.default_rng(0).normal(size=(8, 12))
    matrix = np.corrcoef(factors)
    seen = np.ones(8, bool)
    seen[[1, 6]] = False
    at, missing = np.array([1, 4, 6]), jnp.array([True, False, True])
    whole = inverted(jnp.asarray(matrix, jnp.float32))
    inverse, log_det = without(*whole, at, missing)
    observed = matrix[np.ix_(seen, seen)]
    np.testing.assert_allclose(
        np.asarray(inverse)[np.ix_(seen, seen)], np.linalg.inv(observed), atol=1e-5
    )
    np.testing.assert_allclose(np.asarray(inverse)[~seen], 0, atol=1e-5)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(observed)[1], atol=1e-5)


@pytest.mark.slow
def test_complete_rows_need_one_inverse_and_have_the_same_density() -> None:
    """With zeros apart, which leave the numbers of the others; and gradients are finite."""
    likelihood = Columns.of(summarize(SCHEMA, ROWS), "full")
    _, part = likelihood.gaussian_part()
    at = next(at for at, own in zip(likelihood.at, likelihood.parts, strict=True) if own is part)
    rows = jnp.asarray(ROWS[:40, list(at)], jnp.float32)
    parameters = jnp.asarray(0.3 * RNG.normal(size=part.size), jnp.float32)
    once = replace(part, complete_rows=True)
    each = [jax.vmap(p.log_prob, (None, 0))(parameters, rows) for p in (part, once)]
    np.testing.assert_allclose(each[1], each[0], rtol=1e-5, atol=1e-4)
    terms = [jax.vmap(p.log_probs, (None, 0))(parameters, rows) for p in (part, once)]
    np.testing.assert_allclose(terms[1], terms[0], rtol=1e-5, atol=1e-4)
    assert (rows == 0).any()
    of = lambda p: jnp.sum(jax.vmap(p.log_probs, (None, 0))(parameters, rows))
    gradient = jax.tree.leaves(eqx.filter_grad(of)(once))
    assert all(np.isfinite(leaf).all() for leaf in gradient)
