"""A pass of training against the paper's own step, written out by hand in NumPy and float64.

The gradient is SUMMED over the 20 examples and Adam's ε is 1e-4 (Burda et al. §5); iwae takes the
mean and ε / 20. The derivatives are those of L_K = log (1/K) Σ_i w_i by the chain rule; the order
of the images and the bits are drawn here once more, by `jax.random` itself.
"""

import jax
import numpy as np
import pytest
from scipy.special import expit, logsumexp

import iwae
from iwae.config.io import override, recipe
from iwae.runs import untrained
from thinned import thinned

K, BATCH = 4, 20


def _parameters(model):
    """Weights and biases by name, float64."""
    (q,) = model.encoder
    parts = {"e": q.features.layers[0], "mu": q.mu, "s": q.log_sigma}
    parts |= {"d": model.observation.features.layers[0], "x": model.observation.linear}
    named = {f"{n}_W": p.weight for n, p in parts.items()}
    named |= {f"{n}_b": p.bias for n, p in parts.items()}
    return {name: np.asarray(a, np.float64) for name, a in named.items()}


def _bound_and_gradient(p, x, eps, *, vae):
    """The bound of one image x [d] with noise ε [K, n], and its gradient by name."""
    e = np.tanh(p["e_W"] @ x + p["e_b"])
    mu, log_sigma = p["mu_W"] @ e + p["mu_b"], p["s_W"] @ e + p["s_b"]
    h = mu + np.exp(log_sigma) * eps
    d = np.tanh(h @ p["d_W"].T + p["d_b"])
    z = d @ p["x_W"].T + p["x_b"]
    log_joint = (x * z - np.logaddexp(0, z)).sum(1) - 0.5 * (h**2).sum(1)
    log_w = log_joint + (0.5 * eps**2 + log_sigma).sum(1)
    bound = log_w.mean() if vae else logsumexp(log_w) - np.log(K)
    c = np.full(K, 1 / K) if vae else np.exp(log_w - logsumexp(log_w))
    dz = c[:, None] * (x - expit(z))
    da = dz @ p["x_W"] * (1 - d**2)
    dh = da @ p["d_W"] - c[:, None] * h
    dmu, ds = dh.sum(0), (dh * np.exp(log_sigma) * eps).sum(0) + 1
    de = (dmu @ p["mu_W"] + ds @ p["s_W"]) * (1 - e**2)
    gradient = {"x_W": dz.T @ d, "x_b": dz.sum(0), "d_W": da.T @ h, "d_b": da.sum(0)}
    gradient |= {"mu_W": np.outer(dmu, e), "mu_b": dmu, "s_W": np.outer(ds, e), "s_b": ds}
    return bound, gradient | {"e_W": np.outer(de, x), "e_b": de}


def _adam(p, summed, moments, step, rate=1e-3, b1=0.9, b2=0.999, epsilon=1e-4):
    """One step up the summed gradient (Kingma & Ba 2015, Algorithm 1)."""
    for name, g in summed.items():
        m, v = moments[name]
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        moments[name] = m, v
        corrected = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        p[name] = p[name] + rate * corrected[0] / (np.sqrt(corrected[1]) + epsilon)


@pytest.mark.parametrize("objective", thinned(["iwae", "vae"], "iwae"))
@pytest.mark.slow
def test_a_pass_is_the_papers_to_the_digits_of_float32(objective):
    small = {"hidden": ((8,),), "latents": (3,), "k": K, "objective": objective, "seed": 5}
    config = override(recipe("smoke"), epochs=1, batch_size=BATCH, **small)
    digits = iwae.data.load("digits")
    images, scale = digits.train, np.float32(digits.scale)
    ours = _parameters(iwae.train(config).model)

    p = _parameters(untrained(config).model)
    moments = {name: (np.zeros_like(a), np.zeros_like(a)) for name, a in p.items()}
    key = jax.random.key(5)
    order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), 0), len(images))
    steps = len(images) // BATCH
    for step in range(steps):
        of_step = jax.random.fold_in(jax.random.fold_in(key, 2), step)
        for_bits, for_noise = jax.random.split(of_step, (2, BATCH))
        rows = np.asarray(images[np.asarray(order[step * BATCH : (step + 1) * BATCH])])
        bits = jax.vmap(jax.random.bernoulli)(for_bits, rows.astype(np.float32) / scale)
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.split(k, 1)[0], (K, 3)))(for_noise)
        each = [
            _bound_and_gradient(p, x, eps, vae=objective == "vae")[1]
            for x, eps in zip(np.asarray(bits, float), np.asarray(noise, float), strict=True)
        ]
        _adam(p, {name: sum(g[name] for g in each) for name in p}, moments, step)

    assert steps == 64
    for name, expected in p.items():
        np.testing.assert_allclose(ours[name], expected, atol=2e-6, rtol=1e-6, err_msg=name)
