"""Densities of a table's columns far from where training starts: values and gradients in float32
beside closed forms in extended precision, whose slopes are central differences."""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from iwae.data.schema import Column, Schema
from iwae.models.likelihoods.columns import Columns
from iwae.models.likelihoods.numbers import JITTER, Gaussians
from iwae.models.likelihoods.parts import Part
from iwae.models.likelihoods.summary import summarize
from iwae.models.priors import Mixture

Reference = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(parameters [p, n], x [n]) ↦ log p(x) [n] in extended precision."""

RNG = np.random.default_rng(0)
ROWS = 200
FAR = (-1e4, -30.0, -1.0, 0.0, 0.5, 30.0, 1e4)
"""Locations and logits, in standard units."""
SCALES = (-15.0, -4.0, 0.0, 4.0, 15.0)
"""Logarithms of scales."""
DENSE = tuple(np.linspace(-2.9, 2.9, 13))


def part_of(column: Column, values: np.ndarray) -> Part:
    """The part of a table of one column."""
    (part,) = Columns.of(summarize(Schema((column,)), values[:, None])).parts
    return part


@eqx.filter_jit
def scored(part: Part, parameters: Array, x: Array) -> tuple[Array, Array]:
    """log p(x) and its gradient, of each column of parameters [p, n] and value [n]."""
    one = jax.value_and_grad(lambda p, x: part.log_prob(p, x[None]))
    return jax.vmap(one, in_axes=(1, 0))(parameters, x)


def check(part: Part, reference: Reference, *axes: tuple[float, ...]) -> None:
    """Compares with the reference on the product of the axes, of which the last are values."""
    *parameters, x = np.array([*itertools.product(*axes)], np.float32).T
    wide = np.array(parameters, np.longdouble)
    value, gradient = map(np.asarray, scored(part, jnp.asarray(parameters), jnp.asarray(x)))
    right = reference(wide, x.astype(np.longdouble))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, right.astype(float), rtol=1e-4, atol=1e-4)
    for i, of in enumerate(wide):
        step = 1e-6 * np.maximum(1, np.abs(of))
        up, down = (reference(_moved(wide, i, sign * step), x) for sign in (1, -1))
        slope = ((up - down) / (2 * step)).astype(float)
        np.testing.assert_allclose(gradient[:, i], slope, rtol=3e-4, atol=1e-4)


def _moved(parameters: np.ndarray, row: int, by: np.ndarray) -> np.ndarray:
    made = parameters.copy()
    made[row] += by
    return made


def log_sigmoid(u: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -u)


def test_ordered_levels_far_from_their_thresholds() -> None:
    """log(σ(u) − σ(l)), by the tail in which neither is near 1."""
    codes = RNG.choice(4, ROWS, p=[0.7, 0.2, 0.08, 0.02]).astype(float)
    part = part_of(Column("x", "ordinal", categories=(0, 1, 2, 3)), codes)
    inner = np.asarray(part._thresholds()[0], np.longdouble)  # type: ignore[attr-defined]
    ends = np.concatenate([[-np.inf], inner, [np.inf]]).astype(np.longdouble)

    def reference(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
        a, b = parameters
        at = x.astype(int)
        low, high = ((ends[at + i] - a) * np.exp(-b) for i in (0, 1))
        low, high = np.where(low + high > 0, (-high, -low), (low, high))
        with np.errstate(all="ignore"):
            return log_sigmoid(high) + np.log(-np.expm1(log_sigmoid(low) - log_sigmoid(high)))

    check(part, reference, FAR, (-4.0, 0.0, 4.0, 15.0), (0.0, 1.0, 2.0, 3.0))
    check(part, reference, DENSE, (-2.0, -0.5, 0.5), (0.0, 1.0, 2.0, 3.0))


def test_levels_of_an_extreme_scale_have_finite_gradients() -> None:
    part = part_of(Column("x", "ordinal", categories=(0, 1, 2, 3)), RNG.integers(0, 4, ROWS) * 1.0)
    axes = ((-1e20, -5e4, 0.0, 5e4, 1e20), (-1e4, -79.0, 79.0, 1e4), (0.0, 1.0, 2.0, 3.0))
    *parameters, x = np.array([*itertools.product(*axes)], np.float32).T
    for found in scored(part, jnp.asarray(parameters), jnp.asarray(x)):
        assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("column", "values", "x"),
    [
        (Column("x", "real"), RNG.normal(5, 3, ROWS), (-1e4, 0.0, 5.5, 1e4)),
        (Column("x", "positive"), np.exp(RNG.normal(1, 1, ROWS)), (1e-37, 0.01, 2.0, 1e37)),
        (
            Column("x", "bounded"),
            RNG.beta(2, 3, ROWS),
            (1e-37, 0.01, 0.4, float(np.nextafter(np.float32(1), 0, dtype=np.float32))),
        ),
    ],
    ids=["real", "positive", "bounded"],
)
def test_numbers_far_from_training(column: Column, values: np.ndarray, x: tuple) -> None:
    """N(T(x); m + s a, f² + (s e^b)²) |dT/dx|."""
    part = part_of(column, values)
    assert isinstance(part, Gaussians)
    m, s, floor = (
        np.longdouble(np.asarray(getattr(part.standard, name))[0])
        for name in ("mean", "spread", "floor")
    )

    def reference(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
        a, b = parameters
        x = x.astype(np.longdouble)
        z, slope = x, np.zeros_like(x)
        if column.type == "positive":
            z, slope = np.log(x), -np.log(x)
        if column.type == "bounded":
            z, slope = np.log(x) - np.log1p(-x), -np.log(x) - np.log1p(-x)
        variance = floor**2 + (s * np.exp(b)) ** 2
        return slope - (np.log(2 * np.pi * variance) + (z - m - s * a) ** 2 / variance) / 2

    check(part, reference, (-1e4, -30.0, 0.25, 30.0, 1e4), SCALES[1:], x)


def test_zeros_apart_at_any_odds() -> None:
    values = np.where(RNG.random(ROWS) < 0.3, 0.0, np.exp(RNG.normal(1, 1, ROWS)))
    part = part_of(Column("x", "positive", zeros=True), values)
    share = (np.sum(values == 0) + 0.5) / (ROWS + 1)

    def reference(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
        return log_sigmoid(np.log(share / (1 - share)) + parameters[2])

    check(part, reference, (0.5,), (0.0,), (-1e4, -30.0, 0.0, 30.0, 1e4), (0.0,))


@pytest.mark.parametrize("kind", ["binary", "categorical"])
def test_categories_at_any_odds(kind: str) -> None:
    codes = RNG.choice(2, ROWS, p=[0.9, 0.1]).astype(float)
    part = part_of(Column("x", kind, categories=("a", "b")), codes)  # type: ignore[arg-type]
    count = np.array([np.sum(codes == i) for i in (0, 1)]) + 0.5
    start = np.log(count / count.sum()).astype(np.longdouble)

    def reference(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
        first, second = (0, parameters[0]) if kind == "binary" else parameters
        odds = start[1] - start[0] + second - first
        return log_sigmoid(np.where(x == 1, odds, -odds))

    check(part, reference, *[FAR] * part.size, (0.0, 1.0))


def test_a_mixture_prior_far_from_its_components() -> None:
    """log Σ π_c N(h; μ_c, σ_c²), and its gradient in h."""
    mu, log_sigma = np.array([[-2.0], [3.0]]), np.array([[-8.0], [4.0]])
    logits = np.array([0.5, -40.0])
    of = [jnp.asarray(part, jnp.float32) for part in (logits, mu, log_sigma)]
    h = np.array([-1e4, -30.0, -2.5, 0.0, 3.5, 30.0, 1e4], np.float32)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(Mixture(*of).log_prob)))(h[:, None])
    e = (h - mu) * np.exp(-log_sigma)
    weights = logits - np.logaddexp(*logits)
    terms = weights[:, None] - e**2 / 2 - log_sigma - np.log(2 * np.pi) / 2
    right = np.logaddexp(*terms)
    np.testing.assert_allclose(value, right, rtol=1e-4)
    slope = np.sum(np.exp(terms - right) * -e * np.exp(-log_sigma), axis=0)
    np.testing.assert_allclose(gradient[:, 0], slope, rtol=1e-3)


def test_correlations_of_an_exploding_factor() -> None:
    """C ∝ L Lᵀ of rows that grow without bound: the density is that of float64."""
    values = RNG.normal(size=(ROWS, 3))
    schema = Schema(tuple(Column(name, "real") for name in "abc"))
    (part,) = Columns.of(summarize(schema, values), "full").parts
    assert isinstance(part, Gaussians)
    x = jnp.asarray([0.5, -1.0, 2.0])

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def of_part(part: Part) -> Array:
        return part.log_prob(jnp.zeros(6), x)

    for size in (10.0, 1e6, 1e15):
        far = eqx.tree_at(lambda p: p.correlation.below, part, jnp.full((3, 3), size))
        value, gradient = of_part(far)
        root = np.tril(np.full((3, 3), size), -1) + np.eye(3)
        root /= np.sqrt((root**2).sum(axis=1, keepdims=True))
        matrix = (1 - JITTER) * root @ root.T + JITTER * np.eye(3)
        of = part.standard
        spread, floor = np.asarray(of.spread, float), np.asarray(of.floor, float)
        sigma = np.sqrt(floor**2 + spread**2)
        e = (np.asarray(x, float) - np.asarray(of.mean, float)) / sigma
        right = -(e @ np.linalg.solve(matrix, e) + np.linalg.slogdet(2 * np.pi * matrix)[1]) / 2
        np.testing.assert_allclose(value, right - np.log(sigma).sum(), rtol=1e-3)
        for leaf in jax.tree.leaves(gradient):
            assert np.isfinite(leaf).all()
