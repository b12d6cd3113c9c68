"""SOAP: Adam where nothing is turned, and the same steps however the axes lie."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iwae.training.soap import LARGEST, soap


def walk(transform, gradient, start, steps=40):
    """The parameters after so many steps down a gradient that is a function of them."""

    def step(carry, _):
        params, state = carry
        updates, state = transform.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.default_matmul_precision("highest"):
        carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, None, steps))(
            (start, transform.init(start))
        )
    return carry[0]


def test_what_is_no_matrix_or_too_wide_gets_adams_steps():
    key = jax.random.key(0)
    start = {"bias": jax.random.normal(key, (7,)), "wide": jnp.ones((LARGEST + 1, LARGEST + 1))}
    gradient = lambda p: jax.tree.map(lambda a: jnp.sin(3 * a) + a, p)
    settings = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    ours = walk(soap(0.05, **settings), gradient, start)
    adams = walk(optax.adam(0.05, **settings), gradient, start)
    for name in start:
        np.testing.assert_allclose(ours[name], adams[name], rtol=1e-5)


def quadratic(key, m, n, left=None, right=None, spread=1.5):
    """W ↦ the gradient of ½ ‖A (W − W*) B‖², W* and the axes turned by `left` and `right`."""
    keys = jax.random.split(key, 3)
    a = jnp.diag(jnp.logspace(0, spread, m)) @ jax.random.orthogonal(keys[0], m)
    b = jax.random.orthogonal(keys[1], n) @ jnp.diag(jnp.logspace(0, spread, n))
    target = jax.random.normal(keys[2], (m, n))
    left = jnp.eye(m) if left is None else left
    right = jnp.eye(n) if right is None else right

    def gradient(w):
        apart = a @ (left.T @ w @ right - target) @ b
        return left @ (a.T @ apart @ b.T) @ right.T

    return gradient, left @ target @ right.T


def test_steps_turn_with_the_axes():
    """On f(U W Vᵀ) from turned parameters SOAP takes the turned steps; Adam does not."""
    keys = jax.random.split(jax.random.key(1), 3)
    u, v = jax.random.orthogonal(keys[0], 5), jax.random.orthogonal(keys[1], 5)
    plain, _ = quadratic(keys[2], 5, 5, spread=0.5)
    turned, _ = quadratic(keys[2], 5, 5, u, v, spread=0.5)
    start = jnp.zeros((5, 5))
    settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-2}
    a, b = (walk(soap(0.02, every=3, **settings), g, start, 12) for g in (plain, turned))
    np.testing.assert_allclose(u @ a @ v.T, b, atol=2e-3)
    a, b = (walk(optax.adam(0.02, **settings), g, start, 12) for g in (plain, turned))
    assert np.max(np.abs(u @ a @ v.T - b)) > 0.05


def test_a_side_that_is_too_wide_keeps_its_axes():
    state = soap(0.1).init({"w": jnp.zeros((LARGEST + 1, 3)), "b": jnp.zeros(5)})
    shapes = [[None if q is None else q.shape for q in kept.bases] for kept in state.arrays]
    assert shapes == [[], [None, (3, 3)]]


@pytest.mark.slow
def test_bad_conditioning_costs_soap_less_than_adam():
    gradient, target = quadratic(jax.random.key(2), 8, 5)
    schedule = optax.cosine_decay_schedule(0.1, 300)
    settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-8}
    apart = [
        float(
            jnp.linalg.norm(
                walk(of(schedule, **settings), gradient, jnp.zeros((8, 5)), 300) - target
            )
        )
        for of in (soap, optax.adam)
    ]
    assert apart[0] < 0.1 * apart[1]


def test_the_bases_are_orthogonal_and_turned_every_so_often():
    gradient, _ = quadratic(jax.random.key(3), 5, 4)
    transform = soap(0.02, every=4)
    w = jnp.zeros((5, 4))
    state, bases = transform.init(w), []
    for _ in range(9):
        updates, state = jax.jit(transform.update)(gradient(w), state)
        w += updates
        bases.append(np.asarray(state.arrays[0].bases[0]))
    for q in bases:
        np.testing.assert_allclose(q.T @ q, np.eye(5), atol=1e-5)
    moved = [bool(np.any(a != b)) for a, b in pairwise(bases)]
    assert moved == [False, False, False, True] * 2


@pytest.mark.parametrize(
    ("b1", "b2"), [(0.8, 0.64), (0.7, 0.49), (0.9, 0.0), (0.0, 0.9), (0.0, 0.0)]
)
def test_any_decays_go_down(b1: float, b2: float) -> None:
    gradient, target = quadratic(jax.random.key(4), 4, 3, spread=0.3)
    ended = walk(soap(0.02, b1=b1, b2=b2), gradient, jnp.zeros((4, 3)), 30)
    if b1**2 <= b2 or b1 == 0:
        assert np.linalg.norm(ended - target) < 0.9 * np.linalg.norm(target)
    assert np.all(np.isfinite(ended))


@pytest.mark.parametrize(("b1", "every"), [(0.9, 3), (0.9, 1), (0.98, 3)])
def test_no_step_is_longer_than_adams_can_be(b1: float, every: int) -> None:
    """Turned axes meet second moments that are next to nothing where a gradient is rare."""
    b2, rate = 0.95, b1**2 / 0.95
    transform = soap(1.0, b1=b1, b2=b2, eps=1e-12, every=every)
    w = jnp.zeros((LARGEST + 1, 2))
    state, update = transform.init(w), jax.jit(transform.update)
    rng = np.random.default_rng(0)
    ratios = []
    for t in range(1, 40):
        angle = 0.3 if t > 20 else 0.0
        c, s = np.cos(angle), np.sin(angle)
        g = rng.normal(size=w.shape) * [2, 1] @ [[c, s], [-s, c]]
        g[0] = [1.0, 0.0] if t == 20 else 0.0
        updates, state = update(jnp.asarray(g, jnp.float32), state)
        (kept,) = state.arrays
        longest = (1 - b1) * np.sqrt(sum(rate**i for i in range(t)) / (1 - b2))
        longest *= np.sqrt(1 - b2**t) / (1 - b1**t)
        ratios.append(np.abs(updates @ kept.bases[1]).max() / longest)
    assert max(ratios[20:]) == pytest.approx(1, rel=1e-3), "some step is held"
    assert max(ratios) < 1.001
