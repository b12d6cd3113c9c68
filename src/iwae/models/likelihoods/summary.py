"""What a model of a table knows of its training rows: the forms of the columns, and their moments.

A number x is modelled as z = T(x): x itself, its logarithm, or the logit of (x − low) / (high −
low). Means, spreads and floors are those of z, each [d].
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from iwae.data import mapped
from iwae.data.schema import CODED, LIKELIHOODS, Column, Schema

KINDS = {
    "lognormal": "normal",
    "logit-normal": "normal",
    "ordered-logistic": "ordinal",
    "softmax": "categorical",
}
"""The kind of the part that models a column, where it is not called as the likelihood is."""

IDENTITY, LOG, LOGIT, LOG1P = 0.0, 1.0, 2.0, 3.0
"""The transforms T. They are numbers in arrays, so that columns with others share a program."""

TRANSFORMS = {"positive": LOG, "bounded": LOGIT, "count": LOG1P}
"""By type, the transform of a number; other types have the identity, of numbers or codes."""

LEAST_NOISE = 1e-3
"""The floor of a noise scale, in units of the column's spread."""

EPSILON = float(np.finfo(np.float32).eps)

SHRINKAGE = 0.05
"""The weight of the identity in the initial correlations."""

LEAST_EIGENVALUE = 1e-4

CELLS = 1 << 23
"""Cells whose moments are computed at once, of two columns or more: of a single one NumPy would add
up in another order."""

ROWS = 1 << 18
"""Rows whose products are added up at once."""


@dataclass(frozen=True)
class Form:
    """What determines the program of a column: equal for tables of equal types."""

    kind: str
    levels: int
    zeros: bool

    @property
    def gaussian(self) -> bool:
        """Whether T(x) is Gaussian given h."""
        return self.kind == "normal"


class Summary(eqx.Module):
    """The forms of a table's columns, and the moments of its training rows."""

    forms: tuple[Form, ...] = eqx.field(static=True)
    transforms: Float[Array, " d"]
    """Which T each column has."""
    low: Float[Array, " d"]
    high: Float[Array, " d"]
    mean: Float[Array, " d"]
    """Of T(x), or of the codes."""
    spread: Float[Array, " d"]
    """Of T(x), or of the codes; 1 where they are constant."""
    floor: Float[Array, " d"]
    """The least noise scale of T(x)."""
    own_mean: Float[Array, " d"]
    """Of x itself, without zeros where they are modelled apart."""
    own_spread: Float[Array, " d"]
    zeros: Float[Array, " d"]
    """The share of zeros, smoothed by half a row on either side."""
    missing: Float[Array, " d"]
    """The share of missing values, smoothed by half a row on either side."""
    counts: Float[Array, "d l"]
    """Rows in each category; 0 for numbers."""
    correlation: Float[Array, "g g"]
    """Of the Gaussian columns' T(x), shrunk towards the identity."""

    def columns(self, kind: str) -> tuple[int, ...]:
        """The indices of the columns of a kind."""
        return tuple(i for i, form in enumerate(self.forms) if form.kind == kind)


def summarize(schema: Schema, rows: Float[np.ndarray, "n d"] | None = None) -> Summary:
    """The summary of training rows with NaN where values are missing, in float64 throughout.

    Without rows, a summary of the same shapes.
    """
    d = len(schema.columns)
    x = np.full((0, d), np.nan) if rows is None else rows
    forms = tuple(_form(column) for column in schema.columns)
    width = max(2, CELLS // max(len(x), 1))
    ends = np.linspace(0, d, max(1, d // width) + 1).astype(int)
    parts = [slice(*pair) for pair in itertools.pairwise(ends.tolist())]
    levels = max([form.levels for form in forms], default=0)
    of_parts = [_of_columns(schema.columns[part], x[:, part], levels) for part in parts]
    arrays = [np.concatenate(a) for a in zip(*of_parts, strict=True)]
    how, low, high, mean, unit = arrays[:5]
    gaussian = [j for j, form in enumerate(forms) if form.gaussian]

    def standard(block: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m g"]:
        z = [_transformed(_own(block[:, j], forms[j]), how[j], low[j], high[j]) for j in gaussian]
        columns = [(column - mean[j]) / unit[j] for j, column in zip(gaussian, z, strict=True)]
        return np.stack(columns).T if columns else np.zeros((len(block), 0))

    blocks = mapped.blocks_of(x, ROWS) if len(x) else iter([x])
    correlation = _correlation(map(standard, blocks))
    return Summary(forms, *(jnp.asarray(a, jnp.float32) for a in (*arrays, correlation)))


def _of_columns(
    columns: Sequence[Column], rows: Float[np.ndarray, "n d"], levels: int
) -> tuple[np.ndarray, ...]:
    """What a `Summary` holds of some columns, apart from their forms and correlations."""
    x, forms = np.asarray(rows, np.float64), [_form(column) for column in columns]
    how = np.array([TRANSFORMS.get(c.type, IDENTITY) for c in columns])
    low = np.array([c.low for c in columns], np.float64)
    high = np.array([c.high for c in columns], np.float64)
    z = np.full_like(x, np.nan)
    own, zeros = np.full_like(x, np.nan), np.full(len(columns), 0.5)
    for j, form in enumerate(forms):
        if form.zeros:
            none = np.sum(x[:, j] == 0)
            zeros[j] = (none + 0.5) / (np.sum(~np.isnan(x[:, j])) + 1)
        own[:, j] = _own(x[:, j], form)
        z[:, j] = _transformed(own[:, j], how[j], low[j], high[j])
    mean, spread = _moments(z)
    own_mean, own_spread = _moments(own)
    slopes = [_slope(own[:, j], how[j], low[j], high[j]) for j in range(len(columns))]
    step = np.array([c.resolution for c in columns]) * np.array(slopes) / np.sqrt(12)
    unit = np.where(spread > 0, spread, 1.0)
    floor = np.maximum(np.maximum(step, LEAST_NOISE * unit), EPSILON * np.abs(mean))
    counts = np.stack([_counts(x[:, j], form, levels) for j, form in enumerate(forms)])
    missing = (np.isnan(x).sum(axis=0) + 0.5) / (len(x) + 1)
    moments = (how, low, high, mean, unit, floor, own_mean, own_spread, zeros, missing)
    return (*moments, counts)


def _own(x: Float[np.ndarray, " n"], form: Form) -> Float[np.ndarray, " n"]:
    """The values in float64, NaN for zeros that are modelled apart."""
    values = np.asarray(x, np.float64)
    return np.where(values == 0, np.nan, values) if form.zeros else values


def _form(column: Column) -> Form:
    name = column.likelihood
    if name == "auto":
        name = next(iter(LIKELIHOODS[column.type]))
    levels = max(column.levels, 1) if column.type in CODED else 0
    return Form(KINDS.get(name, name), levels, column.type == "positive" and column.zeros)


def _transformed(x: np.ndarray, transform: float, low: float, high: float) -> np.ndarray:
    """T(x) of one column, NaN outside the support."""
    if transform == LOG:
        inside = x > 0
        return np.where(inside, np.log(np.where(inside, x, 1.0)), np.nan)
    if transform == LOGIT:
        inside = (x > low) & (x < high)
        safe = np.where(inside, x, (low + high) / 2)
        return np.where(inside, np.log(safe - low) - np.log(high - safe), np.nan)
    if transform == LOG1P:
        inside = x >= 0
        return np.where(inside, np.log1p(np.where(inside, x, 0.0)), np.nan)
    return x


def _slope(x: np.ndarray, transform: float, low: float, high: float) -> float:
    """dT/dx at the median."""
    seen = x[~np.isnan(x)]
    middle = float(np.median(seen)) if len(seen) else 0.0
    if transform == LOG:
        return 1 / middle if middle > 0 else 0.0
    if transform == LOGIT:
        return 1 / (middle - low) + 1 / (high - middle) if low < middle < high else 0.0
    return 1.0


def _moments(x: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations (divisor n) of what is seen; 0 where nothing is."""
    seen = ~np.isnan(x)
    n = np.maximum(seen.sum(axis=0), 1)
    mean = np.where(seen, x, 0.0).sum(axis=0) / n
    spread = np.sqrt((np.where(seen, x - mean, 0.0) ** 2).sum(axis=0) / n)
    return mean, np.where(spread > 1e-9 * np.abs(mean), spread, 0.0)


def _counts(x: np.ndarray, form: Form, levels: int) -> np.ndarray:
    codes = x[~np.isnan(x)].astype(np.int64) if form.levels else np.zeros(0, np.int64)
    codes = codes[(codes >= 0) & (codes < form.levels)]
    return np.bincount(codes, minlength=levels)[:levels].astype(np.float64)


def _correlation(standard: Iterable[Float[np.ndarray, "m g"]]) -> Float[np.ndarray, "g g"]:
    """Correlations over the rows that have both values, positive definite and shrunk.

    The rows come in blocks, at least one.
    """
    products = []
    for block in standard:
        seen = ~np.isnan(block)
        z = np.where(seen, block, 0.0)
        products.append((seen.T.astype(np.float64) @ seen, z.T @ z))
    both, cross = (functools.reduce(np.add, of) for of in zip(*products, strict=True))
    raw = (1 - SHRINKAGE) * cross / np.maximum(both, 1) + SHRINKAGE * np.eye(len(both))
    values, vectors = np.linalg.eigh((raw + raw.T) / 2)
    positive = (vectors * np.maximum(values, LEAST_EIGENVALUE)) @ vectors.T
    scale = np.sqrt(np.diag(positive))
    return positive / np.outer(scale, scale)


def inside(how: Array, low: Array, high: Array, x: Array) -> Bool[Array, " m"]:
    """Whether x lies in the support of T, each [m]; zeros that are modelled apart do not."""
    positive = jnp.where(how == LOG, x > 0, True) & jnp.where(how == LOG1P, x >= 0, True)
    return positive & jnp.where(how == LOGIT, (x > low) & (x < high), True) & jnp.isfinite(x)


def usual(how: Array, low: Array, high: Array) -> Float[Array, " m"]:
    """A value in the support of each column."""
    return jnp.where(how == LOGIT, (low + high) / 2, 1.0)


def transform(how: Array, low: Array, high: Array, x: Array) -> Float[Array, " m"]:
    """T(x) of values in the support."""
    between = jnp.where(how == LOGIT, x, (low + high) / 2)
    z = jnp.where(how == LOG, jnp.log(jnp.where(how == LOG, x, 1.0)), x)
    z = jnp.where(how == LOG1P, jnp.log1p(jnp.where(how == LOG1P, x, 0.0)), z)
    return jnp.where(how == LOGIT, jnp.log(between - low) - jnp.log(high - between), z)


def log_slope(how: Array, low: Array, high: Array, x: Array) -> Float[Array, " m"]:
    """log dT/dx of values in the support: the Jacobian of a density of x."""
    between = jnp.where(how == LOGIT, x, (low + high) / 2)
    by_logit = jnp.log(high - low) - jnp.log(between - low) - jnp.log(high - between)
    by_log = jnp.where(how == LOG, -jnp.log(jnp.where(how == LOG, x, 1.0)), 0.0)
    return jnp.where(how == LOGIT, by_logit, by_log)
