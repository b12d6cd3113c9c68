"""Parts of a table's likelihood for numbers: Gaussian in transformed space, Student's t, Gamma,
and counts.

The decoder outputs standard units: a location m + s a and a scale s exp b, with m and s the mean
and spread of T(x) in training. A scale is never below the floor f of its column:
σ² = f² + (s exp b)², so that no repeated value has an unbounded density.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from iwae.models.likelihoods import LOG_2PI, Numpyro
from iwae.models.likelihoods.densities import gamma, student_t
from iwae.models.likelihoods.draws import drawable
from iwae.models.likelihoods.parts import Part, outside
from iwae.models.likelihoods.special import exp
from iwae.models.likelihoods.starts import start
from iwae.models.likelihoods.summary import (
    LOG,
    LOGIT,
    Form,
    Summary,
    inside,
    log_slope,
    transform,
)

JITTER = 1e-3
"""The weight of the identity in a correlation matrix, so that it is never singular: a column that
copies another adds at most ½ log(1 / JITTER), 3.5 nats."""

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
"""Gauss–Hermite quadrature of N(0, 1), for the mean of a logit-normal."""

FARTHEST = 5.0
"""Standard deviations of a positive column above its mean: larger ones count as these in means."""

Split = tuple[Array, ...]


class Standard(eqx.Module):
    """T(x) and standard units of the columns of a part, and which of them have zeros apart."""

    forms: tuple[Form, ...] = eqx.field(static=True)
    transforms: Float[Array, " m"]
    low: Float[Array, " m"]
    high: Float[Array, " m"]
    mean: Float[Array, " m"]
    spread: Float[Array, " m"]
    floor: Float[Array, " m"]
    zeros: Float[Array, " m"]
    most: Float[Array, " m"]
    """What larger values of positive columns count as in a mean: `FARTHEST` standard deviations of
    x above its mean."""

    @staticmethod
    def of(summary: Summary, at: tuple[int, ...]) -> "Standard":
        """That of some columns of a table."""
        rows = np.array(at, np.int64)
        forms = tuple(summary.forms[i] for i in at)
        names = ("transforms", "low", "high", "mean", "spread", "floor", "zeros")
        most = (summary.own_mean + FARTHEST * summary.own_spread)[rows]
        return Standard(forms, most=most, **{name: getattr(summary, name)[rows] for name in names})

    @property
    def fixed(self) -> "Standard":
        """The same without gradients."""
        return jax.lax.stop_gradient(self)

    @property
    def gated(self) -> Bool[np.ndarray, " m"]:
        """Which columns have a probability of exactly 0 apart."""
        return np.array([form.zeros for form in self.forms], bool)

    def gates(self, parameters: Float[Array, " g"]) -> Float[Array, " m"]:
        """The logit of P(x_j = 0), of no use where zeros are not apart."""
        logits = jax.scipy.special.logit(self.fixed.zeros)
        if not self.gated.any():
            return logits
        return logits + jnp.zeros(len(self.forms)).at[np.flatnonzero(self.gated)].set(parameters)

    def observe(self, x: Float[Array, " m"]) -> "Observed":
        """What is seen of x."""
        of = self.fixed
        seen = ~jnp.isnan(x)
        zero = jnp.asarray(self.gated) & (x == 0)
        there = inside(of.transforms, of.low, of.high, x) & ~zero
        number = seen & there
        usual = self.inverse(of.mean)
        safe = jnp.where(number, x, usual)
        z = (transform(of.transforms, of.low, of.high, safe) - of.mean) / of.spread
        slope = log_slope(of.transforms, of.low, of.high, safe) - jnp.log(of.spread)
        return Observed(seen, zero, there | zero, number, jnp.where(number, z, 0.0), slope)

    def log_gate(self, gates: Float[Array, " m"], seen: "Observed") -> Float[Array, " m"]:
        """log P(x_j = 0 or not), of the columns that have zeros apart."""
        terms = -jax.nn.softplus(jnp.where(seen.zero, -gates, gates))
        return jnp.where(jnp.asarray(self.gated) & seen.seen, terms, 0.0)

    def inverse(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """T⁻¹(z)."""
        of = self.fixed
        log, logit = of.transforms == LOG, of.transforms == LOGIT
        positive = jnp.where(log, exp(jnp.where(log, z, 0.0)), z)
        between = of.low + (of.high - of.low) * jax.nn.sigmoid(z)
        return jnp.where(logit, between, positive)

    def number(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """x of z in standard units."""
        return self.inverse(self.fixed.mean + self.fixed.spread * z)

    def mean_of(self, location: Array, scale: Array) -> Float[Array, " m"]:
        """E[T⁻¹(z)] of z ~ N(location, scale²), where positive columns have E[min(x, most)].

        E[x] of a log-normal is exp(μ + σ²/2): one draw of h with a wide σ and hardly any weight
        would outweigh all others.
        """
        log, logit = self.fixed.transforms == LOG, self.fixed.transforms == LOGIT
        bound = jnp.log(jnp.where(log, self.fixed.most, 1.0))
        plain = jnp.where(log, log_mean_up_to(bound, location, scale), location)
        by_nodes = lambda: self._mean_by_nodes(location, scale)
        between = jax.lax.cond(jnp.any(logit), by_nodes, lambda: jnp.zeros_like(location))
        return jnp.where(logit, between, self.inverse(plain))

    def _mean_by_nodes(self, location: Array, scale: Array) -> Float[Array, " m"]:
        """E[T⁻¹(z)] by quadrature."""
        weights = jnp.asarray(WEIGHTS / WEIGHTS.sum(), jnp.float32)
        at = jax.vmap(lambda node: self.inverse(location + scale * node))
        return weights @ at(jnp.asarray(NODES, jnp.float32))


def log_mean_up_to(bound: Array, mu: Array, sigma: Array) -> Float[Array, " m"]:
    """log E[min(e^z, e^bound)] of z ~ N(μ, σ²).

    With b = (bound − μ) / σ the mean is e^(μ + σ²/2) Φ(b − σ) + e^bound Φ(−b).
    """
    b = (bound - mu) / sigma
    below = mu + sigma**2 / 2 + jax.scipy.special.log_ndtr(b - sigma)
    return jnp.minimum(jnp.logaddexp(below, bound + jax.scipy.special.log_ndtr(-b)), bound)


class Observed(NamedTuple):
    """What a part sees of its columns, each [m]."""

    seen: Array
    """Which are not missing."""
    zero: Array
    """Which are a zero that is modelled apart."""
    inside: Array
    """Which are in the support."""
    number: Array
    """Which have a T(x)."""
    z: Array
    """T(x) in standard units, 0 where there is none."""
    slope: Array
    """The log of dz/dx."""


def log_scale(of: Standard, b: Float[Array, " m"]) -> Float[Array, " m"]:
    """log σ in units of the spread, with σ² = floor² + (spread · exp b)²."""
    floor = jnp.log(of.fixed.floor / of.fixed.spread)
    return jnp.logaddexp(2 * floor, 2 * b) / 2


class Correlation(eqx.Module):
    """A learned correlation matrix of the Gaussian columns, the same for every h."""

    @property
    @abstractmethod
    def root(self) -> Float[Array, "g r"]:
        """R with C ∝ R Rᵀ."""

    @property
    def matrix(self) -> Float[Array, "g g"]:
        """C with a unit diagonal and no eigenvalue below `JITTER`."""
        root = self.root
        root = root / jnp.sqrt(jnp.sum(root**2, axis=1, keepdims=True))
        product = jnp.matmul(root, root.T, precision="highest")
        eye = jnp.eye(len(root), dtype=root.dtype)
        return (1 - JITTER) * jnp.where(eye > 0, 1.0, product) + JITTER * eye


class FullCorrelation(Correlation):
    """C ∝ L Lᵀ with L lower triangular and a diagonal of ones."""

    below: Float[Array, "g g"]
    """The entries of L below the diagonal; the others are not used."""

    @property
    def root(self) -> Float[Array, "g g"]:
        return jnp.tril(self.below, -1) + jnp.eye(len(self.below), dtype=self.below.dtype)

    @staticmethod
    def of(correlation: Float[Array, "g g"]) -> "FullCorrelation":
        """That with these correlations."""
        lower = jnp.linalg.cholesky(correlation)
        return FullCorrelation(jnp.tril(lower / jnp.diag(lower)[:, None], -1))


class LowRankCorrelation(Correlation):
    """C ∝ I + U Uᵀ."""

    factors: Float[Array, "g r"]
    """U."""

    @property
    def root(self) -> Float[Array, "g r"]:
        eye = jnp.eye(len(self.factors), dtype=self.factors.dtype)
        return jnp.concatenate([eye, self.factors], axis=1)

    @staticmethod
    def of(correlation: Float[Array, "g g"], rank: int) -> "LowRankCorrelation":
        """U from the largest eigenvalues of these correlations, as in principal factors."""
        values, vectors = jnp.linalg.eigh(correlation)
        most = min(rank, len(correlation))
        largest, axes = values[-most:], vectors[:, -most:]
        rest = (len(correlation) - jnp.sum(largest)) / max(len(correlation) - most, 1)
        rest = jnp.clip(rest, 0.1, 1.0)
        return LowRankCorrelation(axes * jnp.sqrt(jnp.maximum(largest / rest - 1, 1e-2)))


@jax.custom_jvp
def inverted(matrix: Float[Array, "g g"]) -> tuple[Float[Array, "g g"], Float[Array, ""]]:
    """The inverse and the log-determinant of a positive definite matrix, by sweeping its columns.

    Mapped over examples, XLA's own factorisations can wait for one another for ever on processors
    with few cores; this one is plain arithmetic.
    """
    places = jnp.arange(len(matrix))

    def sweep(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, log_det = state
        pivot, column, own = a[k, k], a[:, k], places == k
        row, col = own[:, None], own[None, :]
        cross = jnp.where(row, column[None, :], column[:, None]) / pivot
        rest = a - column[:, None] * (column / pivot)[None, :]
        swept = jnp.where(row & col, -1 / pivot, jnp.where(row | col, cross, rest))
        return swept, log_det + jnp.log(pivot)

    start = (matrix, jnp.zeros((), matrix.dtype))
    swept, log_det = jax.lax.fori_loop(0, len(matrix), sweep, start)
    return -swept, log_det


@inverted.defjvp
def _inverted_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (matrix,), (tangent,) = primals, tangents
    inverse, log_det = inverted(matrix)
    moved = -_dot(inverse, _dot(tangent, inverse))
    return (inverse, log_det), (moved, jnp.sum(inverse * tangent))


def of_observed(
    matrix: Float[Array, "g g"], seen: Bool[Array, " g"]
) -> tuple[Float[Array, "g g"], Float[Array, ""]]:
    """The inverse and the log-determinant of the observed block, beside the identity."""
    mask = seen[:, None] & seen[None, :]
    return inverted(jnp.where(mask, matrix, jnp.eye(len(matrix), dtype=matrix.dtype)))


def without(
    inverse: Float[Array, "g g"],
    log_det: Float[Array, ""],
    at: Int[np.ndarray, " z"],
    missing: Bool[Array, " z"],
) -> tuple[Float[Array, "g g"], Float[Array, ""]]:
    """The inverse and the log-determinant of a matrix without some of its columns `at`, from those
    of the whole: C_oo⁻¹ = P_oo − P_om P_mm⁻¹ P_mo and |C_oo| = |C| |P_mm|, beside zeros.
    """
    block, log_block = of_observed(inverse[np.ix_(at, at)], missing)
    across = jnp.where(missing, inverse[:, at], 0.0)
    return inverse - _dot(across, _dot(block, across.T)), log_det + log_block


class Gaussians(Part):
    """T(x) ~ N(m + s a, Σ) with Σ = S C S, S = diag σ, of columns that may have zeros apart.

    Without a `correlation` C is the identity. A zero says nothing about the number that would be
    there otherwise: given h, x_j is 0 with its own probability, and T⁻¹ of a Gaussian z_j else.
    """

    standard: Standard
    correlation: Correlation | None
    complete_rows: bool = eqx.field(static=True, default=False)
    """Whether no value is missing but zeros apart, so that C is inverted once for all rows."""

    @property
    def size(self) -> int:
        return 2 * len(self.standard.forms) + int(self.standard.gated.sum())

    def _precision(
        self, matrix: Float[Array, "g g"], of: "Observed"
    ) -> tuple[Float[Array, "g g"], Float[Array, ""]]:
        """The inverse and the log-determinant of C restricted to the numbers that are seen."""
        if not self.complete_rows:
            return of_observed(matrix, of.number)
        gated = np.flatnonzero(self.standard.gated)
        return (
            without(*inverted(matrix), gated, ~of.number[gated]) if len(gated) else inverted(matrix)
        )

    def _split(self, parameters: Float[Array, " p"]) -> tuple[Array, Array, Array]:
        """(a, log σ in units of the spread, gates)."""
        m = len(self.standard.forms)
        a, b, gates = jnp.split(parameters, [m, 2 * m])
        return a, log_scale(self.standard, b), self.standard.gates(gates)

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        """The exact conditionals log p(x_j|x_rest, h): N(e_j − (P e)_j / P_jj, 1 / P_jj) of the
        standardised residuals e, with P the precision of those that are observed."""
        a, log_sigma, gates = self._split(parameters)
        of = self.standard.observe(x)
        e = jnp.where(of.number, (of.z - a) * jnp.exp(-log_sigma), 0.0)
        terms = of.slope - log_sigma - LOG_2PI / 2
        if self.correlation is None:
            terms -= e**2 / 2
        else:
            inverse, _ = self._precision(self.correlation.matrix, of)
            precision = jnp.where(of.number, jnp.diag(inverse), 1.0)
            terms += (jnp.log(precision) - _dot(inverse, e) ** 2 / precision) / 2
        terms = jnp.where(of.number, terms, 0.0) + self.standard.log_gate(gates, of)
        return outside(of.seen, of.inside, terms)

    def log_prob(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, ""]:
        if self.correlation is None:
            return jnp.sum(self.log_probs(parameters, x))
        a, log_sigma, gates = self._split(parameters)
        of = self.standard.observe(x)
        e = jnp.where(of.number, (of.z - a) * jnp.exp(-log_sigma), 0.0)
        inverse, log_det = self._precision(self.correlation.matrix, of)
        terms = jnp.where(of.number, of.slope - log_sigma - LOG_2PI / 2, 0.0)
        terms = outside(of.seen, of.inside, terms + self.standard.log_gate(gates, of))
        return jnp.sum(terms) - (jnp.sum(e * _dot(inverse, e)) + log_det) / 2

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        key_gate, key_z = jax.random.split(key)
        _, _, gates = self._split(parameters)
        noise = jax.random.normal(key_z, x.shape, jnp.float32)
        number = self.standard.number(self.filled(parameters, x, noise))
        none = jax.random.bernoulli(key_gate, jax.nn.sigmoid(gates)) & self.standard.gated
        return jnp.where(jnp.isnan(x), jnp.where(none, 0.0, number), x)

    def filled(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], noise: Float[Array, " m"]
    ) -> Float[Array, " m"]:
        """z in standard units, its missing values drawn from p(z_m|z_o, h) by noise ε ~ N(0, I).

        By Matheron's rule: e = chol(C) ε, moved by C (M C M + I − M)⁻¹ M (e_o − e).
        """
        a, log_sigma, _ = self._split(parameters)
        of = self.standard.observe(x)
        e = jnp.where(of.number, (of.z - a) * jnp.exp(-log_sigma), 0.0)
        drawn = noise
        if self.correlation is not None:
            matrix = self.correlation.matrix
            drawn = _dot(jnp.linalg.cholesky(matrix), drawn)
            inverse, _ = self._precision(matrix, of)
            short = jnp.where(of.number, e - drawn, 0.0)
            drawn += _dot(matrix, _dot(inverse, short))
        return jnp.where(of.number, of.z, a + jnp.exp(log_sigma) * drawn)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        """E[x_m|x_o, h] in the user's units, beside x_o."""
        a, log_sigma, gates = self._split(parameters)
        of = self.standard.observe(x)
        e = jnp.where(of.number, (of.z - a) * jnp.exp(-log_sigma), 0.0)
        given, variance = jnp.zeros_like(e), jnp.ones_like(e)
        if self.correlation is not None:
            matrix = self.correlation.matrix
            cross = jnp.where(of.number[:, None], matrix, 0.0)
            inverse, _ = self._precision(matrix, of)
            weighed = _dot(inverse, cross)
            given = _dot(weighed.T, e)
            variance = jnp.maximum(1 - jnp.sum(cross * weighed, axis=0), JITTER)
        fixed = self.standard.fixed
        scale = jnp.exp(log_sigma)
        location = fixed.mean + fixed.spread * (a + scale * given)
        mean = self.standard.mean_of(location, fixed.spread * scale * jnp.sqrt(variance))
        missing = jnp.where(self.standard.gated, jax.nn.sigmoid(-gates), 1.0) * mean
        return jnp.where(of.seen, x, missing)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


class Students(Part):
    """Student's t with location m + s a, scale σ and 1 + exp c degrees of freedom, 5 at c = 0."""

    standard: Standard

    @property
    def size(self) -> int:
        return 3 * len(self.standard.forms)

    def _split(self, parameters: Float[Array, " p"]) -> tuple[Array, Array, Array]:
        """(a, log σ in units of the spread, log df)."""
        a, b, c = jnp.split(parameters, 3)
        return a, log_scale(self.standard, b), jax.nn.softplus(c + jnp.log(4.0))

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        a, log_sigma, df = self._split(parameters)
        of = self.standard.observe(x)
        e = jnp.where(of.number, (of.z - a) * jnp.exp(-log_sigma), 0.0)
        return outside(of.seen, of.inside, student_t(e, log_sigma, df) + of.slope)

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        a, log_sigma, df = self._split(parameters)
        of = self.standard.fixed
        noise = drawable("StudentT")(exp(df), 0.0, 1.0).sample(key)
        return jnp.where(jnp.isnan(x), of.mean + of.spread * (a + jnp.exp(log_sigma) * noise), x)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        a, _, _ = self._split(parameters)
        return self.standard.fixed.mean + self.standard.fixed.spread * a


class Gammas(Part):
    """Gamma with log-mean start + units a, and a relative spread r with r² = floor² + e^−c / n.

    n is the concentration of the training data. With zeros apart, as in `Gaussians`.
    """

    standard: Standard
    log_mean: Float[Array, " m"]
    units: Float[Array, " m"]
    log_concentration: Float[Array, " m"]

    MOST: ClassVar[float] = 30.0
    """The largest logarithm of a mean or a concentration."""

    @staticmethod
    def of(summary: Summary, at: tuple[int, ...]) -> "Gammas":
        rows = np.array(at, np.int64)
        mean, spread = summary.own_mean[rows], summary.own_spread[rows]
        (log_n, _), units = start("Gamma", mean, spread)
        log_mean = jnp.log(jnp.where(mean > 0, mean, 1.0))
        return Gammas(Standard.of(summary, at), log_mean, units[1, 1], log_n)

    @property
    def size(self) -> int:
        return 2 * len(self.standard.forms) + int(self.standard.gated.sum())

    def _split(self, parameters: Float[Array, " p"]) -> tuple[Array, Array, Array]:
        """(log mean, log concentration, gates)."""
        m = len(self.standard.forms)
        a, c, gates = jnp.split(parameters, [m, 2 * m])
        first, units, log_n = jax.lax.stop_gradient(
            (self.log_mean, self.units, self.log_concentration)
        )
        log_mean = jnp.clip(first + units * a, -self.MOST, self.MOST)
        least = 2 * jnp.log(self.standard.fixed.floor)
        log_concentration = -jnp.logaddexp(least, -jnp.clip(log_n + c, -self.MOST, self.MOST))
        return log_mean, log_concentration, self.standard.gates(gates)

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        log_mean, log_n, gates = self._split(parameters)
        of = self.standard.observe(x)
        usual = self.standard.inverse(self.standard.fixed.mean)
        terms = gamma(jnp.where(of.number, x, usual), log_n, log_n - log_mean)
        terms = jnp.where(of.number, terms, 0.0) + self.standard.log_gate(gates, of)
        return outside(of.seen, of.inside, terms)

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        key_gate, key_x = jax.random.split(key)
        log_mean, log_n, gates = self._split(parameters)
        n = jnp.exp(log_n)
        drawn = drawable("Gamma")(n, n * jnp.exp(-log_mean)).sample(key_x)
        drawn = jnp.maximum(drawn, jnp.finfo(jnp.float32).tiny)
        none = jax.random.bernoulli(key_gate, jax.nn.sigmoid(gates)) & self.standard.gated
        return jnp.where(jnp.isnan(x), jnp.where(none, 0.0, drawn), x)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        log_mean, _, gates = self._split(parameters)
        return jnp.where(self.standard.gated, jax.nn.sigmoid(-gates), 1.0) * jnp.exp(log_mean)


class Counts(Part):
    """Counts by a family of numpyro, whose parameters start at the moments of the training data."""

    family: Numpyro

    @staticmethod
    def of(summary: Summary, at: tuple[int, ...], family: str) -> "Counts":
        rows = np.array(at, np.int64)
        first, units = start(family, summary.own_mean[rows], summary.own_spread[rows])
        return Counts(Numpyro(family, start=first, units=units))

    @property
    def size(self) -> int:
        assert self.family.start is not None
        return self.family.start.size

    def _shaped(self, parameters: Float[Array, " p"]) -> Float[Array, "q m"]:
        return parameters.reshape(self.family.n_parameters, -1)

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        seen = ~jnp.isnan(x)
        terms = self.family.log_probs(self._shaped(parameters), jnp.where(seen, x, 1.0))
        return jnp.where(seen, terms, 0.0)

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        drawn = self.family.distribution(self._shaped(parameters)).sample(key)
        return jnp.where(jnp.isnan(x), drawn.astype(jnp.float32), x)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        return self.family.distribution(self._shaped(parameters)).mean
