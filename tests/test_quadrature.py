"""Every estimator × bound without noise: ε comes in through x and is integrated by quadrature.

z ~ N(0, 1), x ~ N(z + θ, 1), q = N(m, s²), K = 4 draws z_i = m + s ε_i. Over nodes and weights
of Gauss and Hermite the mean gradient is exact; it is held against NumPy in float64: by the table
of weights (b, s), and for those that are unbiased by the derivative of the mean bound.
"""

from functools import partial
from itertools import combinations
from math import comb, factorial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy.special import logsumexp, softmax

from iwae.bounds import Pair, ciwae, elbo, iwae, jvi, miwae, named, vr_iwae
from iwae.estimators.surrogate import ESTIMATORS, surrogate_loss
from iwae.models.autoencoder import FromFunctions
from thinned import thinned

K, NODES = 4, 10
THETA, M, LOG_S, X = 0.2, 0.3, -0.2, 0.9

points, weights = np.polynomial.hermite_e.hermegauss(NODES)
EPS = np.stack(np.meshgrid(*[points] * K, indexing="ij"), axis=-1).reshape(-1, K)
MASS = np.prod(np.stack(np.meshgrid(*[weights] * K, indexing="ij"), -1).reshape(-1, K), axis=1)
MASS /= MASS.sum()


# --- in NumPy: (value [n], gradient [n, K], H_ii [n, K]) of log-weights [n, K] -----------------


def powers(x, a=1.0):
    if a == 0:
        return x.mean(1), np.full(x.shape, 1 / x.shape[1]), np.zeros(x.shape)
    v = softmax(a * x, axis=1)
    return (logsumexp(a * x, axis=1) - np.log(x.shape[1])) / a, v, a * v * (1 - v)


def groups(x, m):
    each = [powers(part) for part in np.split(x, m, axis=1)]
    value, *rest = zip(*each, strict=True)
    return np.mean(value, axis=0), *(np.concatenate(of, axis=1) / m for of in rest)


def between(x, beta):
    pairs = zip(powers(x, 0), powers(x), strict=True)
    return tuple(beta * low + (1 - beta) * high for low, high in pairs)


def subsets(x, order):
    value, gradient, diagonal = np.zeros(len(x)), np.zeros(x.shape), np.zeros(x.shape)
    for j in range(order + 1):
        c = (-1) ** j * (K - j) ** order / (factorial(order - j) * factorial(j))
        for s in map(list, combinations(range(K), K - j)):
            a, b, d = (c / comb(K, j) * of for of in powers(x[:, s]))
            value += a
            gradient[:, s] += b
            diagonal[:, s] += d
    return value, gradient, diagonal


BOUNDS = {
    "iwae": (iwae, powers, powers),
    "vr-iwae": (partial(vr_iwae, alpha=0.4),) + (partial(powers, a=0.6),) * 2,
    "piwae": (named("piwae", m=2), powers, partial(groups, m=2)),
    "jvi-1": (partial(jvi, order=1),) + (partial(subsets, order=1),) * 2,
    "vae": (elbo,) + (partial(powers, a=0),) * 2,
    "vr-iwae, negative": (partial(vr_iwae, alpha=-1.0),) + (partial(powers, a=2.0),) * 2,
    "vr-iwae, above 1": (partial(vr_iwae, alpha=1.7),) + (partial(powers, a=-0.7),) * 2,
    "miwae": (partial(miwae, m=2),) + (partial(groups, m=2),) * 2,
    "ciwae": (partial(ciwae, beta=0.3),) + (partial(between, beta=0.3),) * 2,
    "jvi-2": (partial(jvi, order=2),) + (partial(subsets, order=2),) * 2,
    "a pair": (Pair(elbo, iwae), partial(powers, a=0), powers),
}
"""Ours, and NumPy's for θ and for φ."""
FAST = ("iwae", "piwae")


def log_w(theta, m, log_s):
    z = m + np.exp(log_s) * EPS
    log_p = -0.5 * (z**2 + (X - z - theta) ** 2) - np.log(2 * np.pi)
    return log_p + 0.5 * EPS**2 + log_s + 0.5 * np.log(2 * np.pi)


def by_table(of_theta, of_phi):
    """{estimator: mean of (∂θ, ∂m, ∂log s)}, by the table of `iwae.estimators.estimators`."""
    x, s = log_w(THETA, M, LOG_S), np.exp(LOG_S)
    z, share = M + s * EPS, softmax(x, axis=1)
    (_, c, _), (_, c_phi, h) = of_theta(x), of_phi(x)
    slope = -z + (X - z - THETA) + (z - M) / s**2
    path = np.stack([slope, slope * s * EPS], axis=-1)
    score = np.stack([(z - M) / s**2, EPS**2 - 1], axis=-1)
    zero = np.zeros(x.shape)
    table = {
        "reparam": (c_phi, -c_phi),
        "stl": (c_phi, zero),
        "dreg": (c_phi - h, zero),
        "rws": (zero, share),
        "rws-dreg": (share - share**2, zero),
        "aisle-kl": (share, zero),
        "aisle-chi2": (2 * K * share**2, zero),
    }
    theta = MASS @ np.sum(c * (X - z - THETA), axis=1)
    means = {}
    for name, (b, of_score) in table.items():
        each = np.sum(b[..., None] * path + of_score[..., None] * score, axis=1)
        means[name] = np.array([theta, *(MASS @ each)])
    return means


def by_difference(of_theta, of_phi, step=1e-4):
    """(∂θ of the mean bound of θ, ∂m and ∂log s of that of φ)."""
    at = np.array([THETA, M, LOG_S])
    slopes = []
    for i, bound in enumerate((of_theta, of_phi, of_phi)):
        up, down = (MASS @ bound(log_w(*(at + sign * step * np.eye(3)[i])))[0] for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    return np.array(slopes)


MODEL = FromFunctions(
    {"theta": jnp.float32(THETA), "m": jnp.float32(M), "log_s": jnp.float32(LOG_S)},
    propose=lambda p, x, k, key: p["m"] + jnp.exp(p["log_s"]) * x[1:],
    log_joint=lambda p, x, h: norm.logpdf(h) + norm.logpdf(x[0], h + p["theta"]),
    log_proposal=lambda p, x, h: norm.logpdf(h, p["m"], jnp.exp(p["log_s"])),
)


@pytest.mark.parametrize("name", thinned(BOUNDS, *FAST))
def test_every_estimator_has_its_exact_mean(name):
    bound, of_theta, of_phi = BOUNDS[name]
    paired = isinstance(bound, Pair) and bound.theta is not bound.phi
    usable = [n for n, e in ESTIMATORS.items() if not e.sleep and not (paired and e.own_phi)]
    expected = by_table(of_theta, of_phi)
    given = np.concatenate([np.full((len(EPS), 1), X), EPS], axis=1).astype(np.float32)

    @eqx.filter_jit
    def drawn(model):
        def gradient(estimator, x):
            loss = lambda model: surrogate_loss(
                model, x, jax.random.key(0), bound=bound, k=K, estimator=estimator
            )[0]
            return jnp.stack(
                [eqx.filter_grad(loss)(model).params[n] for n in ("theta", "m", "log_s")]
            )

        return [jax.vmap(partial(gradient, estimator))(given) for estimator in usable]

    for estimator, each in zip(usable, drawn(MODEL), strict=True):
        mean = -MASS @ np.asarray(each, np.float64)
        np.testing.assert_allclose(mean, expected[estimator], rtol=1e-4, atol=2e-5)
        unbiased = estimator in ("reparam", "dreg") or (estimator, name) == ("stl", "vae")
        if unbiased:
            np.testing.assert_allclose(mean, by_difference(of_theta, of_phi), rtol=1e-4, atol=1e-4)
