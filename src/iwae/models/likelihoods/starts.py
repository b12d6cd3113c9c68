"""Initial parameters of numpyro distributions, and the units of the decoder's output.

With the unconstrained parameters η [p, d] and the decoder's output a [p, d], η = start + units a,
where `units` [p, p, d] is a matrix for each pixel. At a = 0 the distribution has approximately the
moments of the training data; an output of ±1 moves its mean by about their standard deviation, or
its shape at constant mean by a factor of e. So training does not depend on the scale of the data.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logit
from jaxtyping import Array, Bool, Float

RARE = 1e-3
"""The assumed mean of counts that are all 0 in training."""

SHARPEST, WIDEST = 1e-4, 10.0
"""Bounds of the standard deviation in units of the mean."""

OVERDISPERSED = 0.05
"""The least excess of a count's variance over its mean, in units of the mean; without it, families
other than Poisson have no maximum."""

Moments = tuple[Bool[Array, " d"], Array, Array]
Entry = Array | float | int
Rows = tuple[Sequence[Entry], Sequence[Sequence[Entry]]]


def start(
    family: str, mean: Float[Array, " d"], spread: Float[Array, " d"]
) -> tuple[Float[Array, "p d"], Float[Array, "p p d"]]:
    """`start` and `units` of a family in `STARTS`, from the mean and the standard deviation.

    If no distribution of the family has such moments (such as a mean of 0 with a spread), η = a.
    Constant pixels (spread 0) are assumed to vary: counts like Poisson's, positive values by their
    mean.
    """
    moments, of = STARTS[family]
    known, mean, spread = moments(mean, spread)
    first, matrix = of(mean, spread)
    rows = lambda values: jnp.stack([jnp.zeros_like(mean) + value for value in values])
    units, plain = (
        jnp.stack([rows(row) for row in matrix]),
        jnp.eye(len(first), dtype=mean.dtype)[..., None],
    )
    return jnp.where(known, rows(first), 0.0), jnp.where(known, units, plain)


def unit(mean: Float[Array, " d"], spread: Float[Array, " d"]) -> Float[Array, " d"]:
    """The factor that gives a χ² variable these moments; 1 where there is none."""
    known, mean, spread = _positive(mean, spread)
    return jnp.where(known, (spread / mean) * spread / 2, 1.0)


# --- moments that are possible --------------------------------------------------------------------


def _counts(mean: Array, spread: Array) -> Moments:
    never = (mean == 0) & (spread == 0)
    known = (mean > 0) | never
    mean = jnp.where(never, RARE, jnp.where(known, mean, 1.0))
    return known, mean, jnp.maximum(spread, jnp.sqrt((1 + OVERDISPERSED) * mean))


def _positive(mean: Array, spread: Array) -> Moments:
    known = mean > 0
    mean = jnp.where(known, mean, 1.0)
    spread = jnp.where(spread > 0, jnp.clip(spread, SHARPEST * mean, WIDEST * mean), mean)
    return known, mean, spread


def _in_unit(mean: Array, spread: Array) -> Moments:
    known = (mean > 0) & (mean < 1)
    mean = jnp.where(known, mean, 0.5)
    most = mean * (1 - mean)
    spread = jnp.where(spread > 0, spread, most)
    return known, mean, jnp.clip(spread, SHARPEST * most, jnp.sqrt(0.75 * most))


def _angles(mean: Array, spread: Array) -> Moments:
    known = (jnp.abs(mean) <= jnp.pi) & (spread > 0)
    return known, mean, jnp.where(known, jnp.maximum(spread, 1e-8), 1.0)


def _chances(mean: Array, spread: Array) -> Moments:
    return jnp.isfinite(mean), jnp.clip(mean, RARE, 1 - RARE), spread


# --- 0 and 1, and counts --------------------------------------------------------------------------


def _bernoulli(mean: Array, spread: Array) -> Rows:
    return [logit(mean)], [[1]]


def _geometric(mean: Array, spread: Array) -> Rows:
    return [-jnp.log(mean)], [[1]]


def _poisson(mean: Array, spread: Array) -> Rows:
    return [jnp.log(mean)], [[_unit(mean, spread)]]


def _zero_inflated_poisson(mean: Array, spread: Array) -> Rows:
    excess = (spread / mean) * spread - 1
    gate, rate = jnp.log(excess / mean), jnp.log(mean + excess)
    return [gate, rate], [[1, 0], [0, _unit(mean, spread)]]


def _hurdle_poisson(mean: Array, spread: Array) -> Rows:
    excess = (spread / mean) * spread - 1
    rate = mean + excess
    gate = jnp.log(excess + mean * jnp.exp(-rate)) - jnp.log(-mean * jnp.expm1(-rate))
    return [gate, jnp.log(rate)], [[1, 0], [0, _unit(mean, spread)]]


def _concentration(mean: Array, spread: Array) -> Array:
    """log n of a negative binomial: its variance is μ + μ² / n."""
    return jnp.log(mean) - jnp.log((spread / mean) * spread - 1)


def _negative_binomial(mean: Array, spread: Array) -> Rows:
    return [jnp.log(mean), _concentration(mean, spread)], [[_unit(mean, spread), 0], [0, 1]]


def _gamma_poisson(mean: Array, spread: Array) -> Rows:
    n = _concentration(mean, spread)
    return [n, n - jnp.log(mean)], [[1, 0], [1, _unit(mean, spread)]]


def _negative_binomial_logits(mean: Array, spread: Array) -> Rows:
    n = _concentration(mean, spread)
    return [n, jnp.log(mean) - n], [[1, 0], [-1, _unit(mean, spread)]]


def _beta_negative_binomial(mean: Array, spread: Array) -> Rows:
    """With a = n and B = b − 1 the mean is n² / B and the variance about μ (1 + μ / n)²."""
    ratio = spread / jnp.sqrt(mean) - 1
    b = jnp.maximum(mean / ratio**2, 1.5)
    n = jnp.log(mean * b) / 2
    matrix: list[list[Entry]] = [[_unit(mean, spread), 1, -1], [0, 1, 0], [0, 0, 1]]
    return [n, jnp.log1p(b), n], matrix


# --- positive values ------------------------------------------------------------------------------


def _exponential(mean: Array, spread: Array) -> Rows:
    return [-jnp.log(mean)], [[1]]


def _half_normal(mean: Array, spread: Array) -> Rows:
    return [jnp.log(mean) + jnp.log(jnp.pi / 2) / 2], [[1]]


def _half_cauchy(mean: Array, spread: Array) -> Rows:
    return [jnp.log(spread)], [[1]]


def _chi_square(mean: Array, spread: Array) -> Rows:
    """In the unit of `unit`."""
    return [jnp.log(2.0) + 2 * jnp.log(mean / spread)], [[_unit(mean, spread)]]


def _gamma(mean: Array, spread: Array) -> Rows:
    a = 2 * jnp.log(mean / spread)
    return [a, a - jnp.log(mean)], [[1, 0], [1, _unit(mean, spread)]]


def _inverse_gamma(mean: Array, spread: Array) -> Rows:
    a = 2 + (mean / spread) ** 2
    return [jnp.log(a), jnp.log(mean) + jnp.log(a - 1)], [[1, 0], [1, _unit(mean, spread)]]


def _log_normal(mean: Array, spread: Array) -> Rows:
    log_sd = _log_sd(mean, spread)
    return [jnp.log(mean) - log_sd**2 / 2, jnp.log(log_sd)], [[log_sd, 0], [0, 1]]


def _weibull(mean: Array, spread: Array) -> Rows:
    k = jnp.minimum(-1.086 * jnp.log(spread / mean), jnp.log(1.283 * mean / spread))
    scale = jnp.log(mean) - gammaln(1 + jnp.exp(-k))
    return [scale, k], [[_unit(mean, spread), 0], [0, 1]]


def _dagum(mean: Array, spread: Array) -> Rows:
    """With concentration 1 it is log-logistic: log x has the scale 1 / sharpness."""
    sharpness = jnp.maximum(jnp.pi / (3**0.5 * _log_sd(mean, spread)), 1.5)
    scale = jnp.log(mean) + jnp.log(jnp.sinc(1 / sharpness))
    rows: list[Entry] = [0, jnp.log(sharpness), scale]
    return rows, [[1, 0, 0], [0, 1, 0], [0, 0, _unit(mean, spread)]]


def _gompertz(mean: Array, spread: Array) -> Rows:
    c = jnp.maximum(spread / mean, 0.02)
    shape = jnp.where(c < 0.15, -0.577 - 1.283 / c, jnp.interp(c, *GOMPERTZ[:2]))
    peaked = jnp.log(jnp.maximum(-shape - 0.577, 1.0))
    age = jnp.where(shape < -7, peaked, jnp.interp(shape, *GOMPERTZ[1:]))
    return [shape, age - jnp.log(mean)], [[1, 0], [0, _unit(mean, spread)]]


def _hurdle_gamma(mean: Array, spread: Array) -> Rows:
    """Half of the squared relative spread c² is from zeros, half from the values above."""
    gate, above, c = _halves(mean, spread)
    a = -2 * jnp.log(c)
    matrix: list[list[Entry]] = [[1, 0, 0], [0, 1, 0], [0, 1, _unit(mean, spread)]]
    return [gate, a, a - above], matrix


def _hurdle_log_normal(mean: Array, spread: Array) -> Rows:
    gate, above, c = _halves(mean, spread)
    log_sd = jnp.sqrt(jnp.log1p(c**2))
    rows = [gate, above - log_sd**2 / 2, jnp.log(log_sd)]
    return rows, [[1, 0, 0], [0, log_sd, 0], [0, 0, 1]]


def _halves(mean: Array, spread: Array) -> tuple[Array, Array, Array]:
    """The logit of zeros, and log E[x] and the relative spread of the values above."""
    square = (spread / mean) ** 2
    gate = square / (2 + 2 * square)
    return logit(gate), jnp.log(mean) - jnp.log1p(-gate), jnp.sqrt(square / 2)


# --- values in (0, 1) and angles ------------------------------------------------------------------


def _beta(mean: Array, spread: Array) -> Rows:
    both = _log_size(mean, spread)
    rows = [jnp.log(mean) + both, jnp.log1p(-mean) + both]
    return rows, [[1, 0], [1, _odds_unit(mean, spread)]]


def _beta_proportion(mean: Array, spread: Array) -> Rows:
    rows = [logit(mean), _log_size(mean, spread)]
    return rows, [[_odds_unit(mean, spread), 0], [0, 1]]


def _kumaraswamy(mean: Array, spread: Array) -> Rows:
    """log a from the spread, with b from the mean; for large b, a is that of Gumbel's."""
    square = (spread / mean) ** 2

    def b_of(a: Array) -> Array:
        too_large = lambda b: _kumaraswamy_moment(1, a, b) > jnp.log(mean)
        return _halved(too_large, jnp.full_like(mean, -4.0), jnp.full_like(mean, 60.0))

    def too_wide(a: Array) -> Array:
        first, second = (_kumaraswamy_moment(r, a, b_of(a)) for r in (1, 2))
        return second - 2 * first > jnp.log1p(square)

    a = _halved(too_wide, jnp.full_like(mean, -2.0), jnp.full_like(mean, 5.0))
    a = jnp.where(square < 4e-4, jnp.log(1.283) - jnp.log(square) / 2, a)
    return [a, b_of(a)], _followed(b_of(a))


def _kumaraswamy_moment(r: int, log_a: Array, log_b: Array) -> Array:
    """log E[x^r] = log b B(1 + r/a, b); for large b the ratio of Γs is approximated by a power."""
    s, b = r * jnp.exp(-log_a), jnp.exp(log_b)
    some = jnp.minimum(b, 100.0)
    ratio = gammaln(some + 1) - gammaln(some + 1 + s)
    return gammaln(1 + s) + jnp.where(b < 100, ratio, -s * jnp.log(b + (1 + s) / 2))


def _halved(beyond: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The point where `beyond` turns from true to false, by bisection."""

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        short = beyond(middle)
        return jnp.where(short, middle, ends[0]), jnp.where(short, ends[1], middle)

    return jax.lax.fori_loop(0, 30, halve, (low, high))[0]


def _relaxed_bernoulli(mean: Array, spread: Array) -> Rows:
    """The logit of x is logistic, with about this centre and spread."""
    square = jnp.log1p((spread / (mean * (1 - mean))) ** 2)
    temperature = jnp.log(jnp.pi / jnp.sqrt(3 * square))
    logits = jnp.exp(temperature) * (logit(mean) + (mean - 0.5) * square)
    return [temperature, logits], _followed(logits)


def _von_mises(mean: Array, spread: Array) -> Rows:
    return [mean, -2 * jnp.log(spread)], [[jnp.minimum(spread, 1.0), 0], [0, 1]]


def _followed(by: Array) -> Sequence[Sequence[Entry]]:
    """Units in which the second parameter follows the first in this proportion."""
    slow = 1 / (1 + jnp.abs(by))
    return [[slow, 0], [slow * by, 1]]


def _log_sd(mean: Array, spread: Array) -> Array:
    """The standard deviation of the logarithm, assumed normal."""
    return jnp.sqrt(jnp.log1p((spread / mean) ** 2))


def _log_size(mean: Array, spread: Array) -> Array:
    """The logarithm of the sum of both concentrations; the variance is μ (1 − μ) / (1 + size)."""
    return jnp.log((mean / spread) * ((1 - mean) / spread) - 1)


def _unit(mean: Array, spread: Array) -> Array:
    """The change of the log-mean for one standard deviation, at most 1."""
    return jnp.minimum(spread / mean, 1.0)


def _odds_unit(mean: Array, spread: Array) -> Array:
    return jnp.minimum(spread / (mean * (1 - mean)), 1.0)


GOMPERTZ = np.array(
    [
        [0.1359, 0.2699, 0.3238, 0.3933, 0.4810, 0.5868, 0.7041, 0.8168, 0.9044, 0.9572],
        [-10.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0],
        [2.243, 1.495, 1.2541, 0.9548, 0.576, 0.0927, -0.5169, -1.2592, -2.115, -3.0465],
    ],
    np.float32,
)
"""For Gompertz: relative spread, log concentration and log (rate · mean)."""

STARTS: dict[str, tuple[Callable[..., Moments], Callable[..., Rows]]] = {
    "BernoulliLogits": (_chances, _bernoulli),
    "BernoulliProbs": (_chances, _bernoulli),
    "Beta": (_in_unit, _beta),
    "BetaNegativeBinomial": (_counts, _beta_negative_binomial),
    "BetaProportion": (_in_unit, _beta_proportion),
    "Chi2": (_positive, _chi_square),
    "Dagum": (_positive, _dagum),
    "Exponential": (_positive, _exponential),
    "Gamma": (_positive, _gamma),
    "GammaPoisson": (_counts, _gamma_poisson),
    "GeometricLogits": (_counts, _geometric),
    "GeometricProbs": (_counts, _geometric),
    "Gompertz": (_positive, _gompertz),
    "HalfCauchy": (_positive, _half_cauchy),
    "HalfNormal": (_positive, _half_normal),
    "HurdleGamma": (_positive, _hurdle_gamma),
    "HurdleLogNormal": (_positive, _hurdle_log_normal),
    "HurdlePoisson": (_counts, _hurdle_poisson),
    "InverseGamma": (_positive, _inverse_gamma),
    "Kumaraswamy": (_in_unit, _kumaraswamy),
    "LogNormal": (_positive, _log_normal),
    "NegativeBinomial2": (_counts, _negative_binomial),
    "NegativeBinomialLogits": (_counts, _negative_binomial_logits),
    "NegativeBinomialProbs": (_counts, _negative_binomial_logits),
    "Poisson": (_counts, _poisson),
    "RelaxedBernoulliLogits": (_in_unit, _relaxed_bernoulli),
    "VonMises": (_angles, _von_mises),
    "Weibull": (_positive, _weibull),
    "ZeroInflatedPoisson": (_counts, _zero_inflated_poisson),
}
"""By family: the moments that it can have, and the function of its initial parameters."""
