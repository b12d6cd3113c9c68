"""SOAP: Adam where nothing is turned, and the same steps however the axes lie."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from threadpoolctl import threadpool_info

from iwae._utils.threads import one_blas_thread
from iwae.storage import checkpoint
from iwae.training.soap import WIDE, from_own_axes, soap


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
    start = {"bias": jax.random.normal(key, (7,)), "wide": jnp.ones((WIDE + 1, WIDE + 1))}
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
    state = soap(0.1).init({"w": jnp.zeros((WIDE + 1, 3)), "b": jnp.zeros(5)})
    shapes = [[None if q is None else q.shape for q in kept.bases] for kept in state.arrays]
    assert shapes == [[], [None, (3, 3)]]


@pytest.mark.parametrize(
    ("shape", "largest", "turned"),
    [
        ((WIDE, 784), WIDE, (True, False)),
        ((400, 784), WIDE, (False, False)),
        ((400, 784), 1024, (True, False)),
        ((784, 400), 1024, (False, True)),
        ((400, 400), 1024, (True, True)),
        ((50, 400), 1024, (True, False)),
        ((400, 400), 399, (False, False)),
        ((40, 30), 35, (False, True)),
    ],
)
def test_sides_are_turned_up_to_the_largest(
    shape: tuple[int, int], largest: int, turned: tuple[bool, bool]
) -> None:
    """Above WIDE only the narrower one: the side of the pixels would cost more than the network."""
    (kept,) = jax.eval_shape(soap(0.1, largest=largest).init, jnp.zeros(shape)).arrays
    assert tuple(side is not None for side in kept.bases) == turned


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
    w = jnp.zeros((WIDE + 1, 2))
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


def reference(gradient, w, steps, *, rate, b1, b2, eps, decay, every, moments_every):
    """SOAP with the first moment in G's own axes, in float64."""
    qr = lambda a: np.linalg.qr(a)[0]
    mu = nu = 0.0
    left, right = np.zeros((w.shape[0],) * 2), np.zeros((w.shape[1],) * 2)
    for t in range(1, steps + 1):
        g = np.asarray(gradient(jnp.asarray(w, jnp.float32)), np.float64)
        if (t - 1) % moments_every == 0:
            left = decay * left + (1 - decay) * g @ g.T
            right = decay * right + (1 - decay) * g.T @ g
        if t == 1:
            q, p = (np.linalg.eigh(m)[1][:, ::-1] for m in (left, right))
        elif (t - 1) % every == 0:
            q, p = qr(left @ q), qr(right @ p)
        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * (q.T @ g @ p) ** 2
        longest = (1 - b1) * np.sqrt(sum((b1**2 / b2) ** i for i in range(t)) / (1 - b2) * nu)
        turned = np.clip(q.T @ mu @ p, -longest, longest) / (1 - b1**t)
        w = w - rate * q @ (turned / (np.sqrt(nu / (1 - b2**t)) + eps)) @ p.T
    return w


@pytest.mark.parametrize(("every", "moments_every"), [(1, 1), (4, 1), (6, 3), (5, 2)])
def test_steps_are_those_of_the_equations(every: int, moments_every: int) -> None:
    gradient, _ = quadratic(jax.random.key(5), 5, 4, spread=0.5)
    settings: dict[str, Any] = {"b1": 0.9, "b2": 0.95, "eps": 1e-2, "decay": 0.9}
    settings |= {"every": every, "moments_every": moments_every}
    ours = walk(soap(0.02, **settings), gradient, jnp.zeros((5, 4)), 25)
    right = reference(gradient, np.zeros((5, 4)), 25, rate=0.02, **settings)
    np.testing.assert_allclose(ours, right, rtol=1e-3, atol=1e-4)


def test_a_first_moment_in_its_own_axes_is_turned_into_the_bases() -> None:
    gradient, _ = quadratic(jax.random.key(6), 5, 4, spread=0.3)
    wide = lambda a: jnp.sin(a) + 1
    transform = optax.chain(optax.clip_by_global_norm(1e9), soap(0.02, every=2))
    params = {"w": jnp.zeros((5, 4)), "b": jnp.ones(3), "wide": jnp.ones((WIDE + 1, 2))}
    state = transform.init(params)
    for _ in range(4):
        found = {"w": gradient(params["w"]), "b": wide(params["b"]), "wide": wide(params["wide"])}
        updates, state = transform.update(found, state)
        params = optax.apply_updates(params, updates)
    kept = checkpoint.arrays({"opt_state": state})
    early = {}
    for name, value in kept.items():
        of, last = name.rpartition(".")[::2]
        if last == "rotated_mu":
            q, p = (kept.get(f"{of}.bases[{side}]") for side in range(2))
            own = value if q is None else q @ value
            early[f"{of}.mu"] = own if p is None else own @ p.T
        else:
            early[name] = value
    assert early.keys() != kept.keys()
    again = from_own_axes(early)
    assert again.keys() == kept.keys()
    for name, value in kept.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert from_own_axes(kept) == kept


def test_decompositions_have_one_thread_of_blas() -> None:
    threads = lambda: {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}
    before = threads()
    with one_blas_thread():
        assert threads() == {1}
    assert threads() == before
    first, second = one_blas_thread(), one_blas_thread()
    with first:
        second.__enter__()
    assert threads() == {1}, "another training needs it still"
    second.__exit__(None, None, None)
    assert threads() == before
