"""Differences that are accurate in float32, for values and gradients.

A log-density of large parameters is a small difference of large terms: of log Γ(x + n) and
log Γ(n), say. Here these differences are separate functions, which are small near the mode of the
density. Gradients are explicit, and finite wherever the values are. Arguments are logarithms of
parameters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

LOG_2PI = 1.8378770664093453

LARGEST = 80.0
"""Exponents are clipped to ± this value: e^80 is nearly the largest float32."""

EULER, TERMS = 0.5772156649015329, 25
"""Euler's constant, and the number of terms of the continued fraction in `scaled_e1`."""

LN2_HEAD, LN2_TAIL = 0.693138122558594, 9.0580006145e-06
"""log 2 in two parts; products of the first with an exponent are exact in float32."""


def exp(a: Array) -> Array:
    """e^a, neither 0 nor infinite in float32."""
    return jnp.exp(jnp.clip(a, -LARGEST, LARGEST))


@jax.custom_jvp
def log_parts(x: Array) -> tuple[Array, Array]:
    """log x as a sum of two parts, with an error of about 10⁻⁹ at any size; x > 0.

    With x = 2^e (1 + f) and s = f / (2 + f) it is e log 2 + 2 (s + s³/3 + s⁵/5 + …).
    """
    mantissa, exponent = jnp.frexp(x)
    low = mantissa < 0.5**0.5
    power = exponent.astype(x.dtype) - low
    f = jnp.where(low, 2 * mantissa, mantissa) - 1
    b_1, _ = _halves(2 + f)
    b_2 = f - (b_1 - 2)  # exact, and not simplified to 0 by a compiler
    s = f / (b_1 + b_2)
    s_1, s_2 = _halves(s)
    rest = ((f - s_1 * b_1) - s_2 * b_1) - s * b_2
    q = s**2
    series = q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13)))))
    head, tail = _two_sum(power * LN2_HEAD, 2 * s)
    return head, tail + (2 * (rest / b_1 + s * series) + power * LN2_TAIL)


def _halves(a: Array) -> tuple[Array, Array]:
    """a in two parts; products of such parts are exact."""
    if a.dtype != jnp.float32:
        return a, jnp.zeros_like(a)
    bits = jax.lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(0xFFFFF000)
    first = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return first, a - first


@log_parts.defjvp
def _log_parts_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,), (dx,) = primals, tangents
    return log_parts(x), (dx / x, jnp.zeros_like(dx))


def less_log(a: Array, x: Array, b: Array | float = 0.0) -> Array:
    """a − log x − b, with an error relative to its own size and not to its terms'; x > 0."""
    head, tail = log_parts(x)
    difference, error = _two_sum(a, -head)
    total, error_b = _two_sum(difference, -jnp.asarray(b, difference.dtype))
    return total + (error + error_b - tail)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, and its rounding error.

    For constants a compiler would simplify (a + b) − a to b; the barrier prevents this.
    """
    total = jax.lax.optimization_barrier(a + b)
    virtual = total - a
    return total, jax.lax.stop_gradient((a - (total - virtual)) + (b - virtual))


@jax.custom_jvp
def excess(t: Array) -> Array:
    """e^t − 1 − t ≥ 0."""
    near = jnp.abs(t) < 0.3
    s = jnp.where(near, t, 0.0)
    series = s**2 / 2 * (1 + s / 3 * (1 + s / 4 * (1 + s / 5 * (1 + s / 6 * (1 + s / 7)))))
    return jnp.where(near, series, jnp.expm1(jnp.minimum(t, LARGEST)) - t)


@excess.defjvp
def _excess_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (t,), (dt,) = primals, tangents
    return excess(t), jnp.expm1(jnp.minimum(t, LARGEST)) * dt


def deviance(a: Array, t: Array) -> Array:
    """e^a (e^t − 1 − t), where e^t alone may overflow."""
    far = t > 1
    near = exp(a) * excess(jnp.where(far, 0.0, t))
    return jnp.where(far, exp(a + t) - exp(a) * (1 + t), near)


@jax.custom_jvp
def divergence(a: Array, s: Array, t: Array) -> Array:
    """e^s − e^a − e^a (s − a) ≥ 0, where t is s − a to full precision.

    Gradients are with respect to a and s.
    """
    return deviance(a, t)


@divergence.defjvp
def _divergence_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (a, s, t), (da, ds, _) = primals, tangents
    far = t > 1
    by_s = exp(a) * jnp.expm1(jnp.where(far, 0.0, t))
    by_s = jnp.where(far, exp(a + t) - exp(a), by_s)
    return divergence(a, s, t), by_s * ds - exp(a) * t * da


@jax.custom_jvp
def binet(y: Array) -> Array:
    """log Γ(y) − (y − ½) log y + y − ½ log 2π, for y > 0.

    By Stirling's series, for y < 3 from log Γ(y + 3).
    """
    small = y < 3
    z = jnp.where(small, y + 3, y)
    r = 1 / z
    series = r / 12 * (1 - r**2 / 30 * (1 - r**2 * 2 / 7 * (1 - r**2 * 3 / 4)))
    s = jnp.where(small, y, 1.0)
    steps = (s + 2.5) * jnp.log(s + 3) - 3 - (s + 0.5) * jnp.log(s) - jnp.log((s + 1) * (s + 2))
    return series + jnp.where(small, steps, 0.0)


@binet.defjvp
def _binet_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (y,), (dy,) = primals, tangents
    small = y < 3
    r = 1 / jnp.where(small, y + 3, y)
    series = -(r**2) / 12 * (1 - r**2 / 10 * (1 - r**2 * 10 / 21 * (1 - r**2 * 21 / 20)))
    s = jnp.where(small, y, 1.0)
    steps = jnp.log1p(3 / s) - 0.5 / (s + 3) - 0.5 / s - 1 / (s + 1) - 1 / (s + 2)
    return binet(y), (series + jnp.where(small, steps, 0.0)) * dy


@jax.custom_jvp
def log_rise(w: Array) -> Array:
    """log(1 − exp(−e^w)), the probability of an event at rate e^w."""
    tiny = w < -7
    r = exp(jnp.where(tiny, 0.0, w))
    return jnp.where(tiny, w - exp(w) / 2, jnp.log(-jnp.expm1(-r)))


@log_rise.defjvp
def _log_rise_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (w,), (dw,) = primals, tangents
    r = exp(jnp.minimum(w, jnp.log(LARGEST)))
    return log_rise(w), r / jnp.expm1(r) * dw


@jax.custom_jvp
def two_counts(mean: Array, n: Array, x: Array) -> Array:
    """(x + n) log((μ + n) / (x + n)) − x log(μ / x) ≥ 0 of e^mean and e^n, for x > 0.

    The log-probability at x that a negative binomial of mean μ and concentration n loses against
    one of mean x; for n → ∞ it is that of Poisson, x log(x / μ) + μ − x.
    """
    return _two_counts(n, x, less_log(mean, x))


@two_counts.defjvp
def _two_counts_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (mean, n, x), (d_mean, d_n, d_x) = primals, tangents
    t = less_log(mean, x)
    change, by_mean = _changes(n, x, t, mean - n)
    tangent = by_mean * d_mean + deviance(n, -change) * d_n + (change - t) * d_x
    return two_counts(mean, n, x), tangent


@jax.custom_jvp
def two_counts_by_odds(odds: Array, n: Array, x: Array) -> Array:
    """`two_counts` of the mean e^(odds + n)."""
    return _two_counts(n, x, less_log(n, x, -odds))


@two_counts_by_odds.defjvp
def _two_counts_by_odds_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (odds, n, x), (d_odds, d_n, d_x) = primals, tangents
    t = less_log(n, x, -odds)
    change, by_mean = _changes(n, x, t, odds)
    tangent = by_mean * d_odds + exp(n) * change * d_n + (change - t) * d_x
    return two_counts_by_odds(odds, n, x), tangent


def _two_counts(log_n: Array, x: Array, log_ratio: Array) -> Array:
    """With τ = log(μ / x) and w = x / (x + n) it is (x + n) (log(1 + w (e^τ − 1)) − w τ): for small
    τ the cumulants of a coin of chance w, from the second on."""
    n, w, t = _coin(log_n, x, log_ratio)
    near = jnp.abs(t) < 0.3
    s = jnp.where(near, t, 0.0)
    v, skew = w * (1 - w), 1 - 2 * w
    fifth, sixth = skew * (1 - 12 * v), 1 - 30 * v + 120 * v**2
    series = 1 + s / 3 * (skew + s / 4 * (1 - 6 * v + s / 5 * (fifth + s / 6 * sixth)))
    whole = jnp.log1p(w * jnp.expm1(jnp.minimum(t, LARGEST))) - w * t
    return (x + n) * jnp.where(near, v * s**2 / 2 * series, whole)


def _changes(log_n: Array, x: Array, log_ratio: Array, odds: Array) -> tuple[Array, Array]:
    """log((μ + n) / (x + n)), and n (μ − x) / (μ + n)."""
    n, w, t = _coin(log_n, x, log_ratio)
    change = jnp.log1p(w * jnp.expm1(jnp.minimum(t, LARGEST)))
    apart = x * jnp.expm1(jnp.minimum(log_ratio, LARGEST - 20))  # finite for counts to e^20
    return jnp.where(x > n, change - t, change), jax.nn.sigmoid(-odds) * apart


def _coin(log_n: Array, x: Array, log_ratio: Array) -> tuple[Array, Array, Array]:
    """n, and w and τ for the side of the coin with probability w ≤ ½."""
    n = exp(log_n)
    return n, jnp.minimum(x, n) / (x + n), jnp.where(x > n, -log_ratio, log_ratio)


@jax.custom_jvp
def four_counts(a: Array, b: Array, n: Array, x: Array) -> Array:
    """−Σ w log r ≥ 0 of e^a, e^b, e^n and x ≥ 0, with a, b, n and x as weights w of the ratios

        (a + x) (a + b) / T a,  (b + n) (a + b) / T b,  (b + n) (n + x) / T n,
        (a + x) (n + x) / T x,  T = a + b + n + x:

    the divergences of the shares a of a + b and x of n + x from that of both together.
    """
    return jnp.sum(jnp.stack([part for part, _ in _four_counts(a, b, n, x)]), axis=0)


@four_counts.defjvp
def _four_counts_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    log_ratios = [log_ratio for _, log_ratio in _four_counts(*primals)]
    a, b, n, _ = (log_r * d for log_r, d in zip(log_ratios, tangents, strict=True))
    by = [exp(row) * change for row, change in zip(primals, (a, b, n), strict=False)]
    return four_counts(*primals), -(by[0] + by[1] + by[2] + log_ratios[3] * tangents[3])


def _four_counts(a: Array, b: Array, n: Array, x: Array) -> list[tuple[Array, Array]]:
    """Each w (r − 1 − log r), of which the sum is the same, and log r."""
    a, b, n = exp(a), exp(b), exp(n)
    total, seen = a + b + n + x, jnp.where(x > 0, x, 1.0)
    moved = a * (n / total) - b * (x / total)
    joint, other = jnp.log1p((n + x) / (a + b)), jnp.log1p((a + x) / (b + n))
    of_x = _spent(seen, moved, jnp.log1p(n / seen) - jnp.log1p((b + n) / (a + seen)))
    return [
        _spent(a, -moved, jnp.log1p(x / a) - joint),
        _spent(b, moved, jnp.log1p(n / b) - joint),
        _spent(n, -moved, jnp.log1p(x / n) - other),
        (jnp.where(x > 0, of_x[0], moved), jnp.where(x > 0, of_x[1], 0.0)),
    ]


def _spent(weight: Array, moved: Array, log_ratio: Array) -> tuple[Array, Array]:
    """w (r − 1 − log r) and log r of r = 1 + moved / w; `log_ratio` is log r where r is not near
    to 1."""
    y = moved / weight
    log_r = jnp.where(jnp.abs(y) < 0.5, jnp.log1p(jnp.where(jnp.abs(y) < 0.5, y, 0.0)), log_ratio)
    near = jnp.abs(y) < 0.1
    s = jnp.where(near, y, 0.0)
    series = s**2 * (1 / 2 - s * (1 / 3 - s * (1 / 4 - s * (1 / 5 - s * (1 / 6 - s / 7)))))
    return jnp.where(near, weight * series, moved - weight * log_r), log_r


def log_bessel(log_k: Array) -> Array:
    """log(e^−k I_0(k)), for k > 20 by its asymptotic series."""
    far = log_k > 3
    k = exp(jnp.where(far, 0.0, log_k))
    r = exp(-jnp.where(far, log_k, 3.0)) / 8
    series = jnp.log1p(r * (1 + r * 9 / 2 * (1 + r * 25 / 3 * (1 + r * 49 / 4))))
    return jnp.where(far, series - (LOG_2PI + log_k) / 2, jnp.log(jax.scipy.special.i0e(k)))


def scaled_e1(log_c: Array) -> Array:
    """e^c E₁(c) of c = e^log_c: by its series below 1, and above by a continued fraction."""
    far = log_c > 0
    c = exp(jnp.where(far, 0.0, log_c))
    term, series = c, c
    for i in range(2, 15):
        term = -term * c * ((i - 1) / i**2)
        series += term
    near = jnp.exp(c) * (series - EULER - jnp.where(far, 0.0, log_c))
    large = exp(jnp.where(far, log_c, 0.0))
    fraction = large + 2 * TERMS + 1
    for i in range(TERMS, 0, -1):
        fraction = large + (2 * i - 1) - i**2 / fraction
    return jnp.where(far, 1 / fraction, near)


def log_root(z: Array) -> Array:
    """log(1 + z²), where z² may be too large to be represented."""
    far = jnp.abs(z) > 1
    inverse = 1 / jnp.where(far, z, 1.0)
    large = jnp.log1p(inverse**2) - 2 * jnp.log(jnp.abs(inverse))
    return jnp.where(far, large, jnp.log1p(jnp.where(far, 0.0, z) ** 2))
