"""Every likelihood that is offered, against closed forms in float64 over all parameters in reach.

The reference of each takes unconstrained parameters by numpyro's names, as the likelihood does.
"""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special, stats

import iwae
from iwae._utils import threefry
from iwae.models import likelihoods
from iwae.models.likelihoods import likelihood
from iwae.models.likelihoods.special import less_log
from refusals import refused
from thinned import thinned

LOG_2PI = np.log(2 * np.pi)
MANY = 400
"""Values at a time, everywhere: a shape is compiled once."""

DRAWN = 8000
CLOSE = {"rtol": 1e-4, "atol": 1e-3}

exp, xlogy, gammaln = np.exp, special.xlogy, special.gammaln
yes = lambda logit: -np.logaddexp(0, -logit)
no = lambda logit: -np.logaddexp(0, logit)


# --- closed forms in float64 ----------------------------------------------------------------------


def of_z(density):
    """A density of (x − loc) / scale and of what else there is, on the whole line."""
    return lambda x, loc, scale, **more: density((x - loc) * exp(-scale), **more) - scale


def student_t(z, df):
    n = exp(df)
    norm = gammaln((n + 1) / 2) - gammaln(n / 2) - (df + np.log(np.pi)) / 2
    return norm - (n + 1) / 2 * np.log1p(z**2 / n)


def asymmetric_laplace(z, asymmetry):
    slope = exp(np.where(z < 0, -asymmetry, asymmetry))
    return -np.abs(z) * slope - np.logaddexp(asymmetry, -asymmetry)


def asymmetric_laplace_quantile(z, quantile):
    slope = special.expit(np.where(z < 0, -quantile, quantile))
    return -np.abs(z) * slope + yes(quantile) + no(quantile)


def gamma(x, concentration, rate):
    a = exp(concentration)
    return a * rate + (a - 1) * np.log(x) - exp(rate) * x - gammaln(a)


def log_normal(x, loc, scale):
    return -(((np.log(x) - loc) * exp(-scale)) ** 2) / 2 - scale - LOG_2PI / 2 - np.log(x)


def weibull(x, scale, concentration):
    w = exp(concentration) * (np.log(x) - scale)
    return concentration - np.log(x) + w - exp(w)


def dagum(x, concentration, sharpness, scale):
    w = exp(sharpness) * (np.log(x) - scale)
    whole = concentration + sharpness - np.log(x)
    return whole + exp(concentration) * w - (exp(concentration) + 1) * np.logaddexp(0, w)


def beta(x, concentration1, concentration0):
    a, b = exp(concentration1), exp(concentration0)
    return (a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - special.betaln(a, b)


def kumaraswamy(x, concentration1, concentration0):
    a, b = exp(concentration1), exp(concentration0)
    beyond = np.log(-np.expm1(a * np.log(x)))
    return concentration1 + concentration0 + (a - 1) * np.log(x) + (b - 1) * beyond


def relaxed_bernoulli(x, temperature, logits):
    z = exp(temperature) * special.logit(x) - logits
    return temperature + yes(z) + no(z) - np.log(x) - np.log1p(-x)


def von_mises(x, loc, concentration):
    k = exp(concentration)
    far = -0.5 * (LOG_2PI + concentration) + np.log1p(1 / (8 * k) + 9 / (128 * k**2))
    log_bessel = np.where(k > 1e3, far, np.log(special.ive(0, np.minimum(k, 1e3))))
    return -2 * k * np.sin((x - loc) / 2) ** 2 - LOG_2PI - log_bessel


def poisson(x, rate):
    return x * rate - exp(rate) - gammaln(x + 1)


def negative_binomial(x, mean, concentration):
    n, both = exp(concentration), np.logaddexp(mean, concentration)
    arranged = gammaln(x + n) - gammaln(n) - gammaln(x + 1)
    return arranged - n * np.logaddexp(0, mean - concentration) + x * (mean - both)


def beta_negative_binomial(x, concentration1, concentration0, n):
    a, b, n = exp(concentration1), exp(concentration0), exp(n)
    arranged = gammaln(x + n) - gammaln(n) - gammaln(x + 1)
    return arranged + special.betaln(a + x, b + n) - special.betaln(a, b)


def hurdle(x, gate, above):
    return np.where(x > 0, no(gate) + above(np.where(x > 0, x, 1.0)), yes(gate))


def truncated_poisson(x, rate):
    return poisson(x, rate) - np.log(-np.expm1(-exp(rate)))


def zero_inflated(x, gate, rate):
    some = no(gate) + poisson(x, rate)
    return np.where(x > 0, some, np.logaddexp(yes(gate), no(gate) - exp(rate)))


REFERENCES = {
    "AsymmetricLaplace": of_z(asymmetric_laplace),
    "AsymmetricLaplaceQuantile": of_z(asymmetric_laplace_quantile),
    "BernoulliLogits": lambda x, logits: np.where(x > 0, yes(logits), no(logits)),
    "BernoulliProbs": lambda x, probs: np.where(x > 0, yes(probs), no(probs)),
    "Beta": beta,
    "BetaNegativeBinomial": beta_negative_binomial,
    "BetaProportion": lambda x, mean, concentration: beta(
        x, concentration + yes(mean), concentration + no(mean)
    ),
    "Cauchy": of_z(lambda z: -np.log(np.pi) - np.log1p(z**2)),
    "Chi2": lambda x, df: gamma(x, df - np.log(2), -np.log(2)),
    "Dagum": dagum,
    "Exponential": lambda x, rate: rate - exp(rate) * x,
    "Gamma": gamma,
    "GammaPoisson": lambda x, concentration, rate: negative_binomial(
        x, concentration - rate, concentration
    ),
    "GeometricLogits": lambda x, logits: x * no(logits) + yes(logits),
    "GeometricProbs": lambda x, probs: x * no(probs) + yes(probs),
    "Gompertz": lambda x, concentration, rate: (
        concentration + rate + x * exp(rate) - exp(concentration) * np.expm1(x * exp(rate))
    ),
    "Gumbel": of_z(lambda z: -z - exp(-z)),
    "HalfCauchy": lambda x, scale: np.log(2 / np.pi) - scale - np.log1p((x * exp(-scale)) ** 2),
    "HalfNormal": lambda x, scale: np.log(2) - LOG_2PI / 2 - scale - (x * exp(-scale)) ** 2 / 2,
    "HurdleGamma": lambda x, gate, concentration, rate: hurdle(
        x, gate, lambda x: gamma(x, concentration, rate)
    ),
    "HurdleLogNormal": lambda x, gate, loc, scale: hurdle(
        x, gate, lambda x: log_normal(x, loc, scale)
    ),
    "HurdlePoisson": lambda x, gate, rate: hurdle(x, gate, lambda x: truncated_poisson(x, rate)),
    "InverseGamma": lambda x, concentration, rate: (
        gamma(1 / x, concentration, rate) - 2 * np.log(x)
    ),
    "Kumaraswamy": kumaraswamy,
    "Laplace": of_z(lambda z: -np.log(2) - np.abs(z)),
    "LogNormal": log_normal,
    "Logistic": of_z(lambda z: yes(z) + no(z)),
    "NegativeBinomial2": negative_binomial,
    "NegativeBinomialLogits": lambda x, total_count, logits: negative_binomial(
        x, total_count + logits, total_count
    ),
    "NegativeBinomialProbs": lambda x, total_count, probs: negative_binomial(
        x, total_count + probs, total_count
    ),
    "Normal": of_z(lambda z: -(z**2) / 2 - LOG_2PI / 2),
    "Poisson": poisson,
    "RelaxedBernoulliLogits": relaxed_bernoulli,
    "SoftLaplace": of_z(lambda z: np.log(2 / np.pi) - np.logaddexp(z, -z)),
    "StudentT": of_z(student_t),
    "VonMises": von_mises,
    "Weibull": weibull,
    "ZeroInflatedPoisson": zero_inflated,
}
NAMES = sorted(REFERENCES)

USUAL = (
    *("Laplace", "StudentT", "Logistic", "Gamma", "LogNormal", "Weibull", "Beta", "HurdleGamma"),
    *("Poisson", "NegativeBinomial2", "BetaNegativeBinomial", "ZeroInflatedPoisson"),
)
"""One or two families of every kind, for the default suite."""


def support(name):
    return getattr(dist, name).support


def arguments(name):
    """numpyro's names, in the order in which the decoder gives them."""
    return list(getattr(dist, name).arg_constraints)


def reference(name, parameters, x):
    """log p of each pixel in float64, of unconstrained parameters [p, d]."""
    rows = dict(zip(arguments(name), np.asarray(parameters, np.float64), strict=True))
    return REFERENCES[name](np.asarray(x, np.float64), **rows)


def slopes(name, parameters, x):
    """The gradient of the reference [p, d], by differences of the fourth order."""
    parameters = np.asarray(parameters, np.float64)
    found = np.zeros(parameters.shape)
    for i, of in enumerate(arguments(name)):
        step = np.full(len(x), 1e-3)
        if of == "loc":  # in units of what goes with it
            width = parameters[arguments(name).index("scale")] if name != "VonMises" else 0
            step *= exp(np.minimum(width, 0))
        moved = np.zeros(parameters.shape)
        moved[i] = step
        back, down, up, on = (reference(name, parameters + t * moved, x) for t in (-2, -1, 1, 2))
        found[i] = (8 * (up - down) - on + back) / (12 * step)
    return found


# --- parameters and values in reach ---------------------------------------------------------------

ODDS = ("logits", "probs", "gate", "quantile", "mean")


def drawn(name, rng):
    """Parameters [p, n] over all that training reaches, and values x [n] of every likelihood."""
    rows = {}
    for of in arguments(name):
        low, high = (-12, 14)
        if of in ("concentration", "df", "n") or of.startswith(("concentration", "total")):
            low, high = (-12, 18)
        if of in ODDS and name != "NegativeBinomial2":
            low, high = (-30, 30)
        if of == "loc" or (of == "scale" and support(name) is dist.constraints.real):
            low, high = (-6, 6)
        if of == "scale" and name.endswith("LogNormal"):
            low, high = (-8, 3)
        if of == "loc" and name == "VonMises":
            low, high = (-3, 3)
        if of in ("sharpness", "temperature", "asymmetry") or name in ("Weibull", "Kumaraswamy"):
            low, high = (-5, 5)
        rows[of] = rng.uniform(low, high, MANY)
    parameters = np.stack([rows[of] for of in arguments(name)]).astype(np.float32)
    one = likelihoods.Numpyro(name)
    x = np.asarray(one.distribution(jnp.asarray(parameters)).sample(threefry.key(3)), np.float64)
    x = np.where(rng.random(MANY) < 0.6, x, anywhere(name, rng)).astype(np.float32)
    return parameters, np.where(inside(name, x), x, 0.25 if of_unit(name) else 1).astype(np.float32)


def of_unit(name):
    return support(name) is dist.constraints.unit_interval


def anywhere(name, rng):
    """Values over the whole support."""
    of = support(name)
    if of is dist.constraints.boolean:
        return rng.integers(0, 2, MANY)
    if of is dist.constraints.real:
        return rng.normal(size=MANY) * exp(rng.uniform(-6, 6, MANY))
    if of is dist.constraints.circular:
        return rng.uniform(-3.14, 3.14, MANY)
    if of is dist.constraints.unit_interval:
        return special.expit(rng.uniform(-14, 14, MANY))
    x = exp(rng.uniform(-14, 14, MANY))
    if of.is_discrete:
        return np.floor(x)
    return np.where(rng.random(MANY) < 0.1, 0, x) if name.startswith("Hurdle") else x


def inside(name, x):
    x = np.asarray(x)
    ok = np.asarray(support(name)(x)) & np.isfinite(x) & (np.abs(x) < 2**24)
    return ok & (x > 0) & (x < 1) if support(name) is dist.constraints.unit_interval else ok


def scored(one, parameters, x):
    """log p of each pixel by a likelihood, or one of this name, and its gradient [p, n]."""
    one = likelihoods.Numpyro(one) if isinstance(one, str) else one
    return tuple(map(np.asarray, _scored(one, parameters, x)))


@eqx.filter_jit
def _scored(one, parameters, x):
    value, pull = jax.vjp(lambda parameters: one.log_probs(parameters, x), parameters)
    return value, pull(jnp.ones_like(value))[0]


def test_every_family_has_a_reference():
    assert set(likelihoods.names()) == set(NAMES) | {"bernoulli", "gaussian"}


KINKED = ("Laplace", "AsymmetricLaplace", "AsymmetricLaplaceQuantile")
SHARED = ("Beta", "BetaProportion", "BetaNegativeBinomial")
"""Families whose concentrations e^a divide up a whole: float32 has e^(a − b) to 10⁻⁷ only."""


@pytest.mark.parametrize("name", thinned(NAMES, *USUAL))
def test_values_and_gradients_are_those_of_float64_over_all_parameters_in_reach(name):
    parameters, x = drawn(name, np.random.default_rng(NAMES.index(name)))
    with np.errstate(all="ignore"):
        right, steep = reference(name, parameters, x), slopes(name, parameters, x)
    told = np.abs(right) < 1e30
    assert told.mean() > 0.5
    value, slope = scored(name, jnp.asarray(parameters), jnp.asarray(x))
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(value[told], right[told], **CLOSE)
    assert np.all(value[~told] <= 0)

    allowed = CLOSE["atol"] + CLOSE["rtol"] * np.abs(steep) + 1e-12 * np.abs(right)
    if name in SHARED:
        allowed += 1e-7 * exp(parameters.max(axis=0, initial=0))
    if name in KINKED:
        told &= np.abs(x - parameters[0]) > 0.01 * exp(parameters[1])
    assert np.all((np.abs(slope - steep) <= allowed)[:, told])


@pytest.mark.parametrize("constant", [(), (0,), (1,), (0, 1)], ids=str)
def test_a_difference_to_a_logarithm_keeps_its_digits_in_every_program(constant):
    """Compilers know that (a + b) − a is b of real numbers, and try it where a is a constant."""
    x = exp(np.random.default_rng(0).uniform(-20, 20, MANY)).astype(np.float32)
    given = (np.log(x), x)
    right = given[0].astype(np.float64) - np.log(x.astype(np.float64))

    def inside(*moving):
        rest = iter(moving)
        return less_log(
            *(jnp.asarray(a if i in constant else next(rest)) for i, a in enumerate(given))
        )

    moving = [a for i, a in enumerate(given) if i not in constant]
    for found in (inside(*moving), jax.jit(inside)(*moving)):
        np.testing.assert_allclose(found, right, atol=3e-9)


@pytest.mark.parametrize(
    ("name", "parameters", "x", "right"),
    [
        ("StudentT", [17.0, 0.0, 0.0], 0.5, -1.04393853),
        ("NegativeBinomial2", [1.0, 18.0], 3.0, -1.51004123),
        ("BernoulliProbs", [40.0], 0.0, -40.0),
        ("GeometricProbs", [40.0], 2.0, -80.0),
        ("Poisson", [np.log(1e6)], 1e6, -7.82669391),
        ("ZeroInflatedPoisson", [-40.0, 5.0], 0.0, -40.0),
        ("HurdlePoisson", [0.0, -40.0], 1.0, -np.log(2)),
    ],
)
def test_values_that_float32_loses(name, parameters, x, right):
    one = likelihood(name, kind="real", mean=jnp.zeros(1), spread=jnp.ones(1))
    value = one.log_prob(jnp.array(parameters, jnp.float32)[:, None], jnp.array([x], jnp.float32))
    np.testing.assert_allclose(value, right, rtol=2e-6)


def test_far_parameters_are_the_limits_of_their_families():
    """Concentrations and degrees of freedom of e^60: Poisson and the normal distribution."""
    x, far = jnp.resize(jnp.array([0.0, 3.0, 50.0]), MANY), jnp.full(MANY, 60.0)
    rate = jnp.log(jnp.resize(jnp.array([0.1, 3.0, 40.0]), MANY))
    limits = {
        "NegativeBinomial2": (jnp.stack([rate, far]), "Poisson", rate[None]),
        "GammaPoisson": (jnp.stack([far, far - rate]), "Poisson", rate[None]),
        "StudentT": (jnp.stack([far, rate, -rate]), "Normal", jnp.stack([rate, -rate])),
    }
    for name, (parameters, other, fewer) in limits.items():
        value, slope = scored(name, parameters, x)
        np.testing.assert_allclose(value, scored(other, fewer, x)[0], rtol=1e-4)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 1e3, 1e6])
def test_negative_binomials_are_scipys_until_they_are_poisson(concentration):
    mean, x = 12.0, np.arange(MANY)
    parameters = np.log(np.repeat([[mean], [concentration]], MANY, axis=1))
    value, _ = scored("NegativeBinomial2", jnp.float32(parameters), jnp.float32(x))
    right = stats.nbinom.logpmf(x, concentration, concentration / (concentration + mean))
    np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-5)
    assert exp(np.asarray(value, float)).sum() <= 1 + 1e-6


BERNOULLIS = ("BernoulliLogits", "BernoulliProbs")
COUNTING = [n for n in NAMES if support(n).is_discrete]


@pytest.mark.parametrize("name", COUNTING)
def test_no_probability_is_above_one(name):
    """Where almost all probability lies at one value: as far as float32 goes."""
    rng = np.random.default_rng(7)
    ends = np.array([-80.0, -40, -20, -5, 0, 5, 20, 40, 80], np.float32)
    parameters = rng.choice(ends, (len(arguments(name)), MANY))
    x = rng.choice([0.0, 1] if name in BERNOULLIS else [0.0, 1, 2, 1000, 1e6], MANY)
    value, slope = scored(name, jnp.asarray(parameters), jnp.asarray(x, jnp.float32))
    assert np.all(value <= 0)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_mass_is_one_and_nothing_lies_outside_the_support(name):
    one = likelihoods.Numpyro(name)
    parameters = jnp.array([[0.3], [0.8], [0.5]])[: one.n_parameters]
    if name == "HurdleLogNormal" or name == "BetaNegativeBinomial":
        parameters = parameters.at[1].set(2.5 if name.startswith("Beta") else 0.1)
    of = support(name)
    x, weights = grid(name)
    wide = jnp.broadcast_to(parameters, (len(parameters), len(x)))
    each = np.asarray(one.log_probs(wide, jnp.asarray(x, jnp.float32)), np.float64)
    mass = np.sum(exp(each) * weights)
    if name.startswith("Hurdle") and not of.is_discrete:
        mass += exp(one.log_prob(parameters, jnp.zeros(1)))
    np.testing.assert_allclose(mass, 1, atol=2e-3)
    if of is not dist.constraints.real:
        outside = [np.inf, -np.inf, -4.0, *([0.5, 2.5] if of.is_discrete else [])]
        x = jnp.asarray(np.resize(outside, MANY), jnp.float32)
        value, slope = scored(name, jnp.broadcast_to(parameters, (len(parameters), MANY)), x)
        assert np.all(value == -np.inf)
        assert not np.isnan(slope).any()


def grid(name, n=40_000):
    """Values over the support, and the length around each."""
    of, line = support(name), np.linspace(-1, 1, n + 1)
    if of.is_discrete:
        return np.arange(float(n)), 1.0
    if of is dist.constraints.circular:
        edges = np.pi * line
    elif of is dist.constraints.real:
        edges = np.sinh(16 * line)
    elif of_unit(name):
        edges = special.expit(23 * line - 7)
    else:
        edges = exp(24 * line - 6)
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


# --- draws ----------------------------------------------------------------------------------------

NO_MEAN = ("Cauchy", "HalfCauchy", "HurdleLogNormal", "LogNormal")
"""Whose moments, or those of their squares, do not show in a few draws."""


@pytest.mark.parametrize("name", thinned(NAMES, *USUAL))
def test_every_family_is_drawn_from_by_the_projects_keys(name):
    """Draws have the moments of the density, found by weighing values with it."""
    one = likelihoods.Numpyro(name)
    rows = dict.fromkeys(arguments(name), 0.4)
    rows |= {of: 2.5 for of in ("concentration0", "df", "sharpness", "concentration") if of in rows}
    column = np.array([[rows[of]] for of in arguments(name)], np.float32)
    of = one.distribution(jnp.asarray(column))
    draw = lambda key: np.asarray(of.sample(key, (DRAWN,)), np.float64)[:, 0]
    x = draw(threefry.key(5))
    np.testing.assert_array_equal(x, draw(jax.random.key(5)))
    assert inside(name, x.astype(np.float32)).all()
    if name in NO_MEAN:
        x = np.log1p(np.abs(x))
    mean, spread = moments(name, column)
    np.testing.assert_allclose(x.mean(), mean, atol=5 * spread / DRAWN**0.5)
    np.testing.assert_allclose(x.std(), spread, rtol=0.1)


def moments(name, column):
    """Mean and standard deviation of the reference, of log(1 + |x|) where x has none."""
    x, weights = grid(name)
    if name in BERNOULLIS:
        x = x[:2]
    with np.errstate(all="ignore"):
        chance = exp(reference(name, np.broadcast_to(column, (len(column), len(x))), x)) * weights
    values = np.log1p(np.abs(x)) if name in NO_MEAN else x
    mean, square = np.nansum(chance * values), np.nansum(chance * values**2)
    return mean, np.sqrt(square - mean**2)


def test_other_keys_draw_too():
    of = likelihoods.Numpyro("Poisson").distribution(jnp.zeros((1, 3)))
    assert of.sample(jax.random.key(5, impl="rbg")).shape == (3,)
    assert of.sample(jax.random.PRNGKey(5)).shape == (3,)


LARGE = ["BetaNegativeBinomial", "NegativeBinomialProbs", "Poisson", "ZeroInflatedPoisson"]


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.slow
def test_counts_beyond_32_bits_are_drawn(name):
    rows = {"gate": -30.0, "rate": 24.0, "total_count": 20.0, "probs": 4.0}
    rows |= {"concentration1": 20.0, "concentration0": 16.0, "n": 20.0}
    column = jnp.array([[rows[of]] for of in arguments(name)])
    x = np.asarray(likelihoods.Numpyro(name).distribution(column).sample(threefry.key(0), (500,)))
    np.testing.assert_allclose(x.mean(), exp(24), rtol=1e-3)
    assert x.std() > 0


def test_the_mean_of_gompertz_is_finite_everywhere():
    """e^c E₁(c) / rate, of concentrations c from e^−60 to e^40 beside one another."""
    log_c = np.linspace(-60, 40, MANY, dtype=np.float32)
    rate = np.linspace(3, -3, MANY, dtype=np.float32)
    got = likelihoods.Numpyro("Gompertz").expected(jnp.stack([log_c, rate]))
    c = exp(log_c.astype(float))
    large = 1 / c - 1 / c**2 + 2 / c**3 - 6 / c**4
    with np.errstate(over="ignore", invalid="ignore"):
        right = np.where(c > 500, large, exp(np.minimum(c, 500)) * special.exp1(np.minimum(c, 500)))
    np.testing.assert_allclose(got, right / exp(rate.astype(float)), rtol=3e-6)


def test_rare_counts_are_drawn_in_no_time():
    """A zero-truncated count at rate 10⁻⁹ is 1; drawing until one comes would take for ever."""
    one = likelihoods.Numpyro("HurdlePoisson")
    draws = one.distribution(jnp.array([[-40.0], [-20.0]])).sample(threefry.key(0), (50,))
    np.testing.assert_array_equal(draws, 1)


# --- starts and units -----------------------------------------------------------------------------

NO_MOMENTS = ("Exponential", "GeometricLogits", "GeometricProbs", "HalfNormal", "Poisson")
"""Families with a mean and no spread of their own."""

SCALES = (1e-6, 1.0, 1e6)


def typical(name):
    """Training moments that fit the family, in units of 1."""
    if support(name) is dist.constraints.unit_interval:
        return [(0.3, 0.1), (0.5, 0.2), (1e-6, 1e-6)]
    if support(name) is dist.constraints.boolean:
        return [(0.3, 0.46)]
    if support(name) is dist.constraints.circular:
        return [(0.5, 0.3), (1e-6, 1e-6)]
    if support(name).is_discrete:
        return [(0.1, 0.35), (3, 2.5), (1e6, 1.2e3)]
    return [(3 * s, 1.8 * s) for s in SCALES] + [(3.0, 0.3)]


BOUNDED = [n for n in NAMES if support(n) is not dist.constraints.real]


def begun(name, mean, spread, n=MANY):
    """The likelihood of n pixels with these moments, and its first bias."""
    mean, spread = jnp.full(n, mean, jnp.float32), jnp.full(n, spread, jnp.float32)
    one = likelihood(name, kind="real", mean=mean, spread=spread)
    return one, one.initial_bias(mean, spread)


SOME = ("Beta", "Gamma", "HurdlePoisson", "LogNormal", "NegativeBinomial2", "Poisson", "VonMises")


@pytest.mark.parametrize("name", thinned(BOUNDED, *SOME))
def test_every_family_starts_at_the_moments_of_the_training_data(name):
    for mean, spread in typical(name):
        one, bias = begun(name, mean, spread)
        x = np.asarray(one.distribution(bias).sample(threefry.key(1)), np.float64)
        if name == "HalfCauchy":
            np.testing.assert_allclose(np.median(x), spread, rtol=0.2)
            continue
        np.testing.assert_allclose(x.mean(), mean, rtol=0.2)
        if name not in NO_MOMENTS:
            assert 0.6 < x.std() / spread < 1.5


SCALED = [
    n
    for n in BOUNDED
    if not support(n).is_discrete
    and support(n) not in (dist.constraints.unit_interval, dist.constraints.circular)
]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.slow
def test_a_density_of_positive_values_does_not_depend_on_units(name, scale):
    """log p(s x | h) = log p(x | h) − log s for one and the same decoder, and so its gradient."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.gamma(3.0, size=MANY) / 3, jnp.float32)
    (one, bias), (other, start) = begun(name, 1.0, 0.6), begun(name, scale, 0.6 * scale)
    np.testing.assert_array_equal(bias, start)
    output = bias + jnp.asarray(rng.normal(size=bias.shape), jnp.float32)
    plain, slope = scored(one, output, x)
    scaled, other_slope = scored(other, output, x * scale)
    np.testing.assert_allclose(scaled, plain - np.log(scale), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other_slope, slope, rtol=1e-3, atol=1e-3)


POSITIVE_OR_REAL = [*SCALED, *(n for n in NAMES if support(n) is dist.constraints.real)]


def trained_on(x, name):
    small = {"hidden": ((8,),), "latents": (2,), "k": 5, "epochs": 20, "schedule": "constant"}
    return iwae.train(data=x, values="real", likelihood=name, **small)


@pytest.mark.slow
@pytest.mark.parametrize("name", POSITIVE_OR_REAL)
def test_training_does_not_depend_on_units(name):
    """The NLL of s x is that of x, and log s more for each value."""
    rng = np.random.default_rng(1)
    x = np.exp(0.4 * rng.normal(size=(200, 1)) @ rng.normal(size=(1, 3))) * rng.gamma(
        4, size=(200, 3)
    )
    found = []
    for scale in (1e-6, 1.0, 1e6):
        moved = np.asarray(x * scale, np.float32)
        found.append(trained_on(moved, name).evaluate(k=50).nll - 3 * np.log(scale))
    np.testing.assert_allclose(found, found[1], atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.3, 30.0, 1e5])
@pytest.mark.parametrize("name", [n for n in COUNTING if n not in BERNOULLIS])
def test_counts_of_any_size_are_learned_from_where_their_columns_stand(name, mean):
    """No worse than the family's own columns, each by itself, which is where training starts."""
    rng = np.random.default_rng(2)
    x = rng.poisson(mean * np.exp(0.3 * rng.normal(size=(200, 1)) @ rng.normal(size=(1, 3))))
    trained = trained_on(np.asarray(x, np.float32), name)
    train, test = trained.data().train, trained.data().test
    mean, spread = (jnp.asarray(m, jnp.float32) for m in (train.mean(axis=0), train.std(axis=0)))
    one = likelihood(name, kind="real", mean=mean, spread=spread)
    alone = jax.vmap(one.log_prob, in_axes=(None, 0))(one.initial_bias(mean, spread), test)
    assert trained.evaluate(k=50).nll < -np.mean(alone) + 0.1


@pytest.mark.parametrize("name", thinned(BOUNDED, *SOME))
def test_an_output_of_one_costs_about_a_nat_at_every_scale(name):
    """As for a Gaussian in standard units; a decoder's first outputs are of that size."""
    for mean, spread in typical(name):
        one, bias = begun(name, mean, spread)
        x = one.distribution(bias).sample(threefry.key(1)).astype(jnp.float32)
        ok = inside(name, x)
        nll = lambda o, one=one, x=x, ok=ok: -np.mean(np.asarray(one.log_probs(o, x))[ok])
        least = nll(bias)
        for i in range(len(bias)):
            for by in (-1.0, 1.0):
                assert -0.1 < nll(bias.at[i].add(by)) - least < 10


@pytest.mark.parametrize("name", thinned(COUNTING, *SOME))
def test_counts_that_are_never_seen_start_low_and_their_gradient_is_finite(name):
    one, bias = begun(name, 0.0, 0.0)
    value, slope = scored(one, bias, jnp.arange(MANY) % 2.0)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    assert np.all(value[::2] > -0.01)


def test_the_shapes_that_numpyro_has_are_those_of_the_rows():
    for name in NAMES:
        signature = inspect.signature(getattr(dist, name)).parameters
        assert set(arguments(name)) <= set(signature)
        assert likelihoods.Numpyro(name).n_parameters == len(arguments(name))


def test_what_ends_where_its_parameters_say_is_refused():
    with refused(
        "likelihood = Pareto was given, but a parameter of it is an end of its support, "
        "which training moves past the data; give Gamma, LogNormal or Weibull."
    ):
        likelihood("Pareto", kind="real", mean=jnp.ones(1), spread=jnp.ones(1))


@pytest.mark.parametrize("name", thinned(NAMES, *USUAL))
def test_what_a_model_keeps_says_how_its_outputs_are_meant(name):
    """A run of other units has other leaves, and is refused rather than taken for one of these."""
    kept = likelihood(name, kind="real", mean=jnp.full(1, 0.3), spread=jnp.full(1, 0.2))
    leaves = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(kept)}
    of_units = {".start", ".units"} | ({".spread"} if name == "Chi2" else set())
    whole = support(name) is dist.constraints.real
    expected = {".mean", ".spread"} if whole else set() if name in BERNOULLIS else of_units
    assert leaves == expected
