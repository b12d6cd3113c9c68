"""Log-densities and log-probabilities of numpyro's distributions, from unconstrained parameters.

Parameters have the names of numpyro's arguments and are what `biject_to` maps to them: logarithms
of positive arguments, logits of arguments in (0, 1). They are used directly, so that nothing
saturates, and small differences of large terms come from `special`. x, parameters and results, in
nats, are arrays [d]. x lies in the support.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import softplus
from jaxtyping import Array

from iwae.models.likelihoods.special import (
    LOG_2PI,
    binet,
    divergence,
    excess,
    exp,
    four_counts,
    less_log,
    log_bessel,
    log_rise,
    log_root,
    two_counts,
    two_counts_by_odds,
)

LOG_2 = 0.6931471805599453
LOG_PI = LOG_2PI - LOG_2

MOST = 40.0
"""Concentrations and degrees of freedom are limited to e^40: beyond it, float32 cannot distinguish
the density from its limit. Those of the beta negative binomial are also at least e^−40."""


# --- the whole line: z = (x − loc) / scale --------------------------------------------------------


def normal(z: Array, scale: Array) -> Array:
    return -(z**2) / 2 - scale - LOG_2PI / 2


def cauchy(z: Array, scale: Array) -> Array:
    return -log_root(z) - scale - LOG_PI


def laplace(z: Array, scale: Array) -> Array:
    return -jnp.abs(z) - scale - LOG_2


def logistic(z: Array, scale: Array) -> Array:
    size = jnp.abs(z)
    return -size - 2 * jnp.log1p(jnp.exp(-size)) - scale


def soft_laplace(z: Array, scale: Array) -> Array:
    size = jnp.abs(z)
    return -size - jnp.log1p(jnp.exp(-2 * size)) - scale + LOG_2 - LOG_PI


def gumbel(z: Array, scale: Array) -> Array:
    return -z - exp(-z) - scale


def asymmetric_laplace(z: Array, scale: Array, asymmetry: Array) -> Array:
    slope = exp(jnp.where(z < 0, -asymmetry, asymmetry))
    return -jnp.abs(z) * slope - jnp.logaddexp(asymmetry, -asymmetry) - scale


def asymmetric_laplace_quantile(z: Array, scale: Array, quantile: Array) -> Array:
    slope = jax.nn.sigmoid(jnp.where(z < 0, -quantile, quantile))
    return -jnp.abs(z) * slope - softplus(quantile) - softplus(-quantile) - scale


def student_t(z: Array, scale: Array, df: Array) -> Array:
    """With h = df / 2 and Stirling's remainder B, log Γ(h + ½) − log Γ(h) − ½ log h is
    h log(1 + 1 / 2h) − ½ + B(h + ½) − B(h)."""
    df = jnp.minimum(df, MOST)
    h = exp(df) / 2
    norm = h * softplus(-df) - 0.5 + binet(h + 0.5) - binet(h) - LOG_2PI / 2
    return norm - (h + 0.5) * log_root(z * exp(-df / 2)) - scale


# --- positive values ------------------------------------------------------------------------------


def exponential(x: Array, rate: Array) -> Array:
    return rate - x * exp(rate)


def half_normal(x: Array, scale: Array) -> Array:
    z = -less_log(scale, x)
    return LOG_2 - LOG_2PI / 2 - scale - exp(2 * z) / 2


def half_cauchy(x: Array, scale: Array) -> Array:
    return LOG_2 - LOG_PI - scale - softplus(-2 * less_log(scale, x))


def gamma(x: Array, concentration: Array, rate: Array) -> Array:
    log_x = jnp.log(x)
    t = -less_log(concentration, x, rate)
    return _log_gamma(concentration, rate + log_x, t) - log_x


def chi_square(x: Array, df: Array) -> Array:
    log_x = jnp.log(x)
    return _log_gamma(df - LOG_2, log_x - LOG_2, -less_log(df, x)) - log_x


def inverse_gamma(x: Array, concentration: Array, rate: Array) -> Array:
    log_x = jnp.log(x)
    t = less_log(rate, x, concentration)
    return _log_gamma(concentration, rate - log_x, t) - log_x


def _log_gamma(a: Array, s: Array, t: Array) -> Array:
    """The log-density of log x of a Gamma with concentration e^a, where e^s is x times the rate and
    t = s − a."""
    return (a - LOG_2PI) / 2 - binet(exp(a)) - divergence(a, s, t)


def log_normal(x: Array, loc: Array, scale: Array) -> Array:
    return normal(less_log(loc, x) * exp(-scale), scale) - jnp.log(x)


def weibull(x: Array, scale: Array, concentration: Array) -> Array:
    w = -exp(concentration) * less_log(scale, x)
    return concentration + w - exp(w) - jnp.log(x)


def dagum(x: Array, concentration: Array, sharpness: Array, scale: Array) -> Array:
    w = -exp(sharpness) * less_log(scale, x)
    shape = softplus(w) + exp(concentration) * softplus(-w)
    return sharpness + concentration - shape - jnp.log(x)


def gompertz(x: Array, concentration: Array, rate: Array) -> Array:
    age = x * exp(rate)
    old = age > 1
    spent = exp(concentration) * jnp.expm1(jnp.where(old, 0.0, age))
    spent = jnp.where(old, exp(concentration + age) - exp(concentration), spent)
    return concentration + rate + age - spent


# --- values in (0, 1) -----------------------------------------------------------------------------


def beta(x: Array, concentration1: Array, concentration0: Array) -> Array:
    return _beta(x, concentration1, concentration0, concentration0 - concentration1)


def beta_proportion(x: Array, mean: Array, concentration: Array) -> Array:
    return _beta(x, concentration - softplus(-mean), concentration - softplus(mean), -mean)


def _beta(x: Array, a: Array, b: Array, odds: Array) -> Array:
    """Of concentrations e^a and e^b with b − a = odds; `low` is log(x / E[x]) and `high` that of
    1 − x."""
    rare = odds > 0
    low = -less_log(jnp.where(rare, -odds, 0.0), x) + softplus(jnp.where(rare, -odds, odds))
    high = jnp.log1p(-x) + softplus(-odds)
    rest = binet(exp(a)) + binet(exp(b)) - binet(exp(a) + exp(b))
    root = (jnp.minimum(a, b) - softplus(-jnp.abs(odds)) - LOG_2PI) / 2
    log_x, log_rest = jnp.log(x), jnp.log1p(-x)
    spent = divergence(a, log_x, low) + divergence(b, log_rest, high)
    return root - rest - spent - log_x - log_rest


def kumaraswamy(x: Array, concentration1: Array, concentration0: Array) -> Array:
    log_x = jnp.log(x)
    beyond = log_rise(concentration1 + jnp.log(-log_x))  # log(1 − x^a)
    of_x = (exp(concentration1) - 1) * log_x
    return concentration1 + concentration0 + of_x + (exp(concentration0) - 1) * beyond


def relaxed_bernoulli(x: Array, temperature: Array, logits: Array) -> Array:
    beyond = jnp.log1p(-x)
    z = exp(temperature) * (jnp.log(x) - beyond) - logits
    return logistic(z, -temperature) - jnp.log(x) - beyond


# --- angles ---------------------------------------------------------------------------------------


def von_mises(x: Array, loc: Array, concentration: Array) -> Array:
    half = jnp.sin((x - loc) / 2)
    return -2 * exp(concentration) * half**2 - LOG_2PI - log_bessel(concentration)


# --- 0 and 1, and counts --------------------------------------------------------------------------


def bernoulli(x: Array, logits: Array) -> Array:
    return x * logits - softplus(logits)


def geometric(x: Array, logits: Array) -> Array:
    return -x * softplus(logits) - softplus(-logits)


def poisson(x: Array, rate: Array) -> Array:
    n = _positive(x)
    some = -n * excess(less_log(rate, n)) - (jnp.log(n) + LOG_2PI) / 2 - binet(n)
    return jnp.where(x > 0, some, -exp(rate))


def zero_inflated_poisson(x: Array, gate: Array, rate: Array) -> Array:
    none = jnp.logaddexp(-softplus(-gate), -softplus(gate) - exp(rate))
    return jnp.where(x > 0, poisson(_positive(x), rate) - softplus(gate), none)


def hurdle_poisson(x: Array, gate: Array, rate: Array) -> Array:
    some = poisson(_positive(x), rate) - log_rise(rate)
    return _hurdle(x, gate, some)


def negative_binomial(x: Array, mean: Array, concentration: Array) -> Array:
    """A negative binomial; for concentration n → ∞ it is Poisson."""
    n, seen = jnp.minimum(concentration, MOST), _positive(x)
    none = -exp(n) * softplus(mean - n)
    return jnp.where(x > 0, _arranged(seen, n) - two_counts(mean, n, seen), none)


def negative_binomial_logits(x: Array, total_count: Array, logits: Array) -> Array:
    seen = _positive(x)
    some = _arranged(seen, total_count) - two_counts_by_odds(logits, total_count, seen)
    return jnp.where(x > 0, some, -exp(total_count) * softplus(logits))


def gamma_poisson(x: Array, concentration: Array, rate: Array) -> Array:
    return negative_binomial_logits(x, concentration, -rate)


def _arranged(x: Array, log_n: Array) -> Array:
    """log p(x) of a negative binomial of mean x."""
    n = exp(log_n)
    root = softplus(-less_log(log_n, x)) + jnp.log(x) + LOG_2PI
    return binet(x + n) - binet(n) - binet(x) - root / 2


def beta_negative_binomial(
    x: Array, concentration1: Array, concentration0: Array, n: Array
) -> Array:
    logs = [jnp.clip(row, -MOST, MOST) for row in (concentration1, concentration0, n)]
    a, b, n = (exp(row) for row in logs)
    seen = _positive(x)
    whole, total = a + b, a + b + n + x
    none = binet(b + n) + binet(whole) - binet(total) - binet(b)
    none += (jnp.log1p((n + x) / whole) - jnp.log1p(n / b)) / 2
    some = binet(n + seen) - binet(n) - binet(seen) + binet(a + seen) - binet(a)
    some -= (jnp.log1p(seen / n) + jnp.log1p(seen / a) + jnp.log(seen) + LOG_2PI) / 2
    return none + jnp.where(x > 0, some, 0.0) - four_counts(*logs, x)


# --- a probability of 0, and a density of what is above -------------------------------------------


def hurdle_gamma(x: Array, gate: Array, concentration: Array, rate: Array) -> Array:
    return _hurdle(x, gate, gamma(_positive(x), concentration, rate))


def hurdle_log_normal(x: Array, gate: Array, loc: Array, scale: Array) -> Array:
    return _hurdle(x, gate, log_normal(_positive(x), loc, scale))


def _hurdle(x: Array, gate: Array, above: Array) -> Array:
    return jnp.where(x > 0, above - softplus(gate), -softplus(-gate))


def _positive(x: Array) -> Array:
    """x with 0 replaced by 1, so that both branches of a `where` are finite."""
    return jnp.where(x > 0, x, 1.0)


WHOLE_LINE: dict[str, Callable[..., Array]] = {
    "AsymmetricLaplace": asymmetric_laplace,
    "AsymmetricLaplaceQuantile": asymmetric_laplace_quantile,
    "Cauchy": cauchy,
    "Gumbel": gumbel,
    "Laplace": laplace,
    "Logistic": logistic,
    "Normal": normal,
    "SoftLaplace": soft_laplace,
    "StudentT": student_t,
}
"""Functions of z = (x − loc) / scale, and of the other parameters by name."""

BOUNDED: dict[str, Callable[..., Array]] = {
    "BernoulliLogits": bernoulli,
    "BernoulliProbs": lambda x, probs: bernoulli(x, probs),
    "Beta": beta,
    "BetaNegativeBinomial": beta_negative_binomial,
    "BetaProportion": beta_proportion,
    "Chi2": chi_square,
    "Dagum": dagum,
    "Exponential": exponential,
    "Gamma": gamma,
    "GammaPoisson": gamma_poisson,
    "GeometricLogits": geometric,
    "GeometricProbs": lambda x, probs: geometric(x, probs),
    "Gompertz": gompertz,
    "HalfCauchy": half_cauchy,
    "HalfNormal": half_normal,
    "HurdleGamma": hurdle_gamma,
    "HurdleLogNormal": hurdle_log_normal,
    "HurdlePoisson": hurdle_poisson,
    "InverseGamma": inverse_gamma,
    "Kumaraswamy": kumaraswamy,
    "LogNormal": log_normal,
    "NegativeBinomial2": negative_binomial,
    "NegativeBinomialLogits": negative_binomial_logits,
    "NegativeBinomialProbs": lambda x, total_count, probs: negative_binomial_logits(
        x, total_count, probs
    ),
    "Poisson": poisson,
    "RelaxedBernoulliLogits": relaxed_bernoulli,
    "VonMises": von_mises,
    "Weibull": weibull,
    "ZeroInflatedPoisson": zero_inflated_poisson,
}
"""Functions of x in part of the real line, and of all parameters by name."""
