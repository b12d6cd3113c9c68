"""From gradients to steps: schedules, Adam, and the compiled loop."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import iwae
from iwae.config.schema import ModelConfig, ObjectiveConfig, TrainingConfig
from iwae.errors import InputError
from iwae.evaluation.likelihood import log_likelihood
from iwae.models.hierarchical import hierarchical
from iwae.models.linear_paths import beside, beside_output
from iwae.models.networks import Linear, at_precision
from iwae.models.observation import Observer
from iwae.training import gradient_step
from linear_gaussian import orthogonal_chain, random_model
from programs import products
from thinned import thinned

AS_IS = Observer(1.0, dynamic=False)


def small_model(layers=1):
    config = ModelConfig(layers, ((4,), (4,))[:layers], (3, 2)[:layers], "bernoulli")
    return random_model(config, 5, seed=2)


# --- schedules and Adam -----------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_stages_are_the_papers(steps_per_epoch):
    """3,280 passes: 1 at 1e-3, 3 at 1e-3·10^(−1/7), … 2,187 at 1e-4."""
    config = TrainingConfig(epochs=3280, schedule="stages")
    rate = gradient_step.learning_rate(config, steps_per_epoch, gradient_step.rates(config))
    passes = [1, 3, 9, 27, 81, 243, 729, 2187]
    expected = np.repeat(1e-3 * 10 ** (-np.arange(8) / 7), passes).repeat(steps_per_epoch)
    got = jax.jit(jax.vmap(rate))(jnp.arange(len(expected)))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_constant_and_cosine_schedules(schedule):
    config = TrainingConfig(epochs=10, schedule=schedule, learning_rate=0.02)
    steps = jnp.arange(41)
    cosine = 0.01 * (1 + np.cos(np.pi * np.arange(41) / 40))
    expected = {"constant": np.full(41, 0.02), "cosine": cosine}[schedule]
    learning_rate = gradient_step.learning_rate(config, 4, gradient_step.rates(config))
    rate = jax.vmap(lambda step: jnp.asarray(learning_rate(step)))
    got = np.broadcast_to(rate(steps), 41)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)


def test_a_warm_up_rises_to_the_schedule():
    config = TrainingConfig(epochs=10, schedule="cosine", learning_rate=0.02, warmup=2)
    plain = replace(config, warmup=0)
    steps = jnp.arange(41)
    warm, cosine = (
        jax.vmap(gradient_step.learning_rate(c, 4, gradient_step.rates(c)))(steps)
        for c in (config, plain)
    )
    np.testing.assert_allclose(warm[:8], cosine[:8] * np.arange(1, 9) / 8, rtol=1e-5)
    np.testing.assert_array_equal(warm[8:], cosine[8:])


def test_adam_on_the_mean_steps_like_the_papers_adam_on_the_sum():
    """Gradients of the size of ε, so that a wrong ε shows."""
    sums = 1e-3 * jax.random.normal(jax.random.key(5), (15, 8))

    def updates(transform, gradients):
        _, every = jax.lax.scan(
            lambda s, g: transform.update(g, s)[::-1], transform.init(sums[0]), gradients
        )
        return every

    config = TrainingConfig(batch_size=20)
    mine = updates(gradient_step.optimizer(config, 100, gradient_step.rates(config)), sums / 20)
    np.testing.assert_allclose(mine, updates(optax.adam(1e-3, eps=1e-4), sums), rtol=1e-5)
    wrong = updates(optax.adam(1e-3, eps=1e-4), sums / 20)
    assert not np.any(np.isclose(mine, wrong, rtol=0.1))


def test_clipping_bounds_the_norm_that_reaches_adam():
    config = TrainingConfig(batch_size=1, clip=0.01, adam_epsilon=1.0)
    transform = gradient_step.optimizer(config, 1, gradient_step.rates(config))
    gradient = jnp.array([30.0, 40.0])
    update, _ = transform.update(gradient, transform.init(gradient))
    clipped = np.array([0.006, 0.008])
    np.testing.assert_allclose(update, -1e-3 * clipped / (clipped + 1), rtol=1e-4)


# --- the loop ---------------------------------------------------------------------------------


def test_every_pass_has_its_own_order_of_all_examples():
    orders = [
        np.asarray(gradient_step.order_of_epoch(s, i, 50)) for s, i in ((0, 0), (0, 1), (1, 0))
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert not any(np.array_equal(a, b) for a, b in combinations(orders, 2))
    np.testing.assert_array_equal(orders[1], gradient_step.order_of_epoch(0, 1, 50))


@cache
def loop(make_model, observe, **settings):
    """(maker of fresh states, advance) for batches of 2."""
    config = TrainingConfig(batch_size=2, **settings)
    params, static = eqx.partition(make_model(), eqx.is_inexact_array)
    rates = jnp.asarray(gradient_step.rates(config))
    transform = gradient_step.optimizer(config, 30, rates)
    step = gradient_step.make_step(static, ObjectiveConfig("iwae", k=3), config, 30, observe)
    together = gradient_step.make_advance()

    def advance(state, images, order, start, stop):
        given = ((state,), (order,), (jnp.uint32(6),), (rates,))
        return together((step,), *given, images, start, stop)[0]

    return lambda: gradient_step.init(
        params, transform, average=config.average is not None
    ), advance


def test_an_xla_without_the_options_of_training_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = gradient_step.compiler_options()
    assert known in (None, gradient_step.EIGEN)
    monkeypatch.setattr(gradient_step, "EIGEN", {"xla_cpu_of_another_time": "1"})
    gradient_step.compiler_options.cache_clear()
    assert gradient_step.compiler_options() is None
    gradient_step.compiler_options.cache_clear()


BITS_LOOP = (small_model, Observer(255.0, dynamic=True))
DECAY = 0.15


def pca():
    return orthogonal_chain(1).model


def detuned_pca():
    return orthogonal_chain(1, inflate=3.0).model


PIXELS = np.random.default_rng(7).integers(0, 256, (60, 5)).astype(np.uint8)


def test_a_step_returns_what_it_takes_so_that_it_is_compiled_once():
    fresh, advance = loop(*BITS_LOOP, average=DECAY)
    before = [jax.typeof(a) for a in jax.tree.leaves(fresh())]
    after = advance(fresh(), jnp.asarray(PIXELS), jnp.arange(60), 0, 1)
    assert [jax.typeof(a) for a in jax.tree.leaves(after)] == before


@pytest.mark.parametrize("optimizer", thinned(["adam", "soap"], "adam"))
def test_a_pass_cut_into_chunks_is_the_same_bit_for_bit(optimizer):
    fresh, advance = loop(*BITS_LOOP, average=DECAY, optimizer=optimizer)
    images, order = jnp.asarray(PIXELS), gradient_step.order_of_epoch(0, 0, 60)
    whole = advance(fresh(), images, order, 0, 30)
    cut = fresh()
    for stop in (10, 20, 30):
        cut = advance(cut, images, order, 0, stop)
    assert int(cut.step) == 30
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_array_equal(a, b)
    start = jax.tree.leaves(fresh().params)
    moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(whole.params), start, strict=True)]
    assert all(moved)


@pytest.mark.parametrize(
    ("batch", "draws", "size"),
    [
        *((20, 50, 20), (100, 50, 25), (500, 5, 500), (500, 1, 500)),
        *((20, 64, 20), (20, 5000, 1), (101, 50, 101)),
    ],
)
def test_groups_divide_a_batch_and_hold_enough_draws(batch, draws, size):
    assert gradient_step.group_size(batch, draws, rows=1250) == size


@pytest.mark.parametrize(
    ("batch", "draws", "size"), [(500, 50, 5), (500, 5, None), (20, 50, None), (4000, 50, 1)]
)
def test_chunks_hold_enough_draws_of_a_batch(batch, draws, size):
    assert gradient_step.chunk_size(batch, draws, rows=1250) == size


@pytest.mark.slow
def test_a_batch_in_groups_and_draws_in_chunks_are_the_whole(monkeypatch):
    """The same draws and the same mean gradient, summed in another order."""
    params, static = eqx.partition(small_model(), eqx.is_inexact_array)
    config = TrainingConfig(batch_size=12)
    rates = jnp.asarray(gradient_step.rates(config))
    transform = gradient_step.optimizer(config, 5, rates)
    ended, asked, scans = [], [], []
    for size, few in ((12, None), (3, None), (3, 2)):
        group = lambda *given, size=size: asked.append(given) or size
        chunk = lambda *given, few=few: asked.append(given) or few
        monkeypatch.setattr(gradient_step, "group_size", group)
        monkeypatch.setattr(gradient_step, "chunk_size", chunk)
        observe = Observer(255.0, dynamic=True)
        objective = ObjectiveConfig("iwae", k=3, backward_draws=2)
        step = gradient_step.make_step(static, objective, config, 5, observe)
        state = gradient_step.init(params, transform, average=False)
        key = gradient_step.stream(0, gradient_step.STEPS)
        given = (jnp.arange(60), key, rates, jnp.asarray(PIXELS), 0)
        scans.append(str(jax.make_jaxpr(step)(state, *given)).count("scan["))
        for _ in range(3):
            state = jax.jit(step)(state, *given)
        ended.append(state)
    assert [n - scans[0] for n in scans[1:]] == [1, 2]
    assert asked[::2] == [(12, 2)] * 3, "examples, and draws that are passed back through"
    assert asked[1::2] == [(12, 3), (3, 3), (3, 3)], "examples, and draws that are weighed"
    for whole, *others in zip(*map(jax.tree.leaves, ended), strict=True):
        for parts in others:
            np.testing.assert_allclose(parts, whole, rtol=2e-4, atol=1e-6)


def test_each_step_sees_its_own_rows_of_the_order():
    """With the exact posterior the bound is log p(x) for any draws, so it names the batch."""
    oracle = orthogonal_chain(1)
    x, n = oracle.draw(10, seed=8), 5
    fresh, advance = loop(pca, AS_IS, learning_rate=1e-12)
    exact, state = oracle.log_evidence(x), fresh()
    for number in range(2):
        order = gradient_step.order_of_epoch(1, number, 10)
        expected = exact[np.asarray(order)].reshape(n, 2).mean(1)
        before = float(state.total)
        for i in range(n):
            state = advance(state, jnp.asarray(x), order, number * n, number * n + i + 1)
            np.testing.assert_allclose(state.value, expected[i], rtol=1e-5)
        np.testing.assert_allclose(float(state.total) - before, expected.sum(), rtol=1e-5)


def test_a_nan_in_the_data_stops_the_loop_at_its_step():
    x, order = orthogonal_chain(1).draw(10, seed=8), gradient_step.order_of_epoch(1, 0, 10)
    x[order[7]] = np.nan
    fresh, advance = loop(pca, AS_IS, learning_rate=1e-12)
    state = advance(fresh(), jnp.asarray(x), order, 0, 5)
    assert int(state.step) == 4
    assert np.isnan(state.value)
    assert not gradient_step.all_finite(state.params)
    again = advance(state, jnp.asarray(x), order, 0, 5)
    assert int(again.step) == 4
    before = advance(fresh(), jnp.asarray(x), order, 0, 3)
    assert gradient_step.all_finite(before.params)


def test_training_a_detuned_encoder_brings_the_bound_to_the_likelihood():
    """The ELBO's gap is KL(q‖p(h|x)) = 3 · (3 − 1 − ln 3)/2 at the start: Adam closes it."""
    oracle = orthogonal_chain(1, inflate=3.0)
    x = oracle.draw(60, seed=9)
    fresh, advance = loop(detuned_pca, AS_IS, learning_rate=0.01)
    state = fresh()
    for number in range(20):
        state = replace(state, total=jnp.zeros(()))
        order = gradient_step.order_of_epoch(2, number, 60)
        state = advance(state, jnp.asarray(x), order, 30 * number, 30 * (number + 1))
        if number == 0:
            first = float(state.total) / 30
    assert first < oracle.log_evidence(x).mean() - 0.3
    assert float(state.total) / 30 > oracle.log_evidence(x).mean() - 0.05


def test_the_moving_average_is_the_one_worked_out_by_hand():
    """a ← r p + (1 − r) a, 1 − r = min(decay, (1 + t)/(10 + t)): 0.1 at t = 0, then the decay."""
    fresh, advance = loop(*BITS_LOOP, average=DECAY)
    state = fresh()
    by_hand = [np.asarray(a, np.float64) for a in jax.tree.leaves(state.params)]
    images, order = jnp.asarray(PIXELS), jnp.arange(60)
    for t in range(4):
        state = advance(state, images, order, 0, t + 1)
        keep = min(DECAY, (1 + t) / (10 + t))
        params = jax.tree.leaves(state.params)
        by_hand = [keep * a + (1 - keep) * p for a, p in zip(by_hand, params, strict=True)]
    for got, expected in zip(jax.tree.leaves(state.average), by_hand, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


# --- observation ------------------------------------------------------------------------------


def test_a_dynamic_observation_is_a_fresh_bit_with_the_pixels_intensity():
    pixels, n = jnp.array([0, 1, 64, 128, 200, 255], jnp.uint8), 20_000
    observe = Observer(255.0, dynamic=True)
    bits = np.asarray(
        jax.vmap(lambda key: observe(pixels, key))(jax.random.split(jax.random.key(10), n))
    )
    assert set(np.unique(bits)) == {0.0, 1.0}
    p = np.asarray(pixels) / 255
    assert np.all(np.abs(bits.mean(0) - p) <= 4.5 * np.sqrt(p * (1 - p) / n))
    np.testing.assert_allclose(
        Observer(255.0, dynamic=False)(pixels, jax.random.key(0)), p, rtol=1e-6
    )


# --- precision --------------------------------------------------------------------------------


@cache
def step_products(precision):
    """(types of the factors, precision) of every matrix product in a step."""
    params, static = eqx.partition(small_model(2), eqx.is_inexact_array)
    config = TrainingConfig(batch_size=2, precision=precision)
    rates = jnp.asarray(gradient_step.rates(config))
    objective = ObjectiveConfig("iwae", k=3)
    step = gradient_step.make_step(static, objective, config, 30, Observer(255.0, dynamic=True))
    state = gradient_step.init(params, gradient_step.optimizer(config, 30, rates), average=False)
    given = (
        jnp.arange(60),
        gradient_step.stream(0, gradient_step.STEPS),
        rates,
        jnp.asarray(PIXELS),
        0,
    )
    jaxpr = jax.make_jaxpr(step)(state, *given)
    types = lambda variables: [v.aval.dtype.name for v in variables]
    return [
        (*types(p.invars), *types(p.outvars), p.params["precision"]) for p in products(jaxpr.jaxpr)
    ]


def test_float32_products_are_not_left_to_the_device():
    high, low = jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH
    float32 = step_products("float32")
    assert len(float32) > 30
    assert set(float32) == {("float32", "float32", "float32", (high, high))}
    model, x = small_model(2), jnp.zeros(len(PIXELS[0]))
    scored = lambda model: log_likelihood(model, x, jax.random.key(0), k=300)
    of = list(products(jax.make_jaxpr(scored)(model).jaxpr))
    assert len(of) > 10
    assert {p.params["precision"] for p in of} == {(high, high)}
    assert set(step_products("tf32")) == {("float32", "float32", "float32", (low, low))}


def test_bfloat16_products_sum_in_float32():
    rounded = [p for p in step_products("bfloat16") if "bfloat16" in p[:2]]
    assert len(rounded) == len(step_products("float32"))
    forward = [p for p in rounded if p[:2] == ("bfloat16", "bfloat16")]
    assert {p[2] for p in forward} == {"float32"}


def test_a_product_in_bfloat16_is_exact_in_its_rounded_factors():
    rng = np.random.default_rng(3)
    w, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 40), (40,)))
    linear = Linear(w, jnp.zeros(7))
    exact = np.asarray(w, np.float64) @ np.asarray(v, np.float64)
    np.testing.assert_allclose(linear(v), exact, rtol=1e-5)
    low = lambda a: np.asarray(a.astype(jnp.bfloat16), np.float64)
    got = at_precision(linear, "bfloat16")(v)
    np.testing.assert_allclose(got, low(w) @ low(v), rtol=1e-5)
    assert np.max(np.abs(got / exact - 1)) > 1e-3


@pytest.mark.slow
def test_the_precision_is_of_training_only(tiny, tiny_run):
    exact, low = tiny_run, iwae.train(tiny, precision="bfloat16")
    last = exact.model.observation.linear.weight, low.model.observation.linear.weight
    assert 0 < np.max(np.abs(last[0] - last[1])) < 0.05
    assert low.model.observation.linear.precision == "float32"
    a, b = (iwae.evaluate(t, k=50, limit=100) for t in (exact, low))
    assert abs(a.nll - b.nll) < 0.5


@pytest.mark.slow
def test_a_step_on_data_that_are_not_binarised_compiles_in_time(tmp_path):
    """At the optimisation that users have, where LLVM vectorises loops; the batch is in groups, and
    no image takes a key."""
    code = (
        "import numpy as np, iwae; "
        "x = np.random.default_rng(0).normal(size=(200, 2)); "
        "small = {'hidden': ((8,),), 'latents': (2,)}; "
        "iwae.train(data=x, k=50, batch_size=60, epochs=1, **small)"
    )
    plain = {n: v for n, v in os.environ.items() if n != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], env=plain, check=True, timeout=120)


def test_weight_decay_shrinks_the_weights_of_the_networks_alone():
    """AdamW: beside Adam's step, each weight W of a linear map moves by −λ · lr · W."""
    params = eqx.filter(small_model(2), eqx.is_inexact_array)
    gradient = jax.tree.map(jnp.ones_like, params)
    moved = {}
    for decay in (0.0, 0.5):
        config = TrainingConfig(learning_rate=0.01, weight_decay=decay)
        transform = gradient_step.optimizer(config, 5, gradient_step.rates(config))
        moved[decay] = transform.update(gradient, transform.init(params), params)[0]
    by_decay = jax.tree.map(jnp.subtract, moved[0.5], moved[0.0])
    for path, by in jax.tree_util.tree_leaves_with_path(by_decay):
        name = jax.tree_util.keystr(path)
        own = dict(jax.tree_util.tree_leaves_with_path(params))[path]
        expected = -0.005 * own if name.endswith(".weight") else jnp.zeros_like(own)
        np.testing.assert_allclose(by, expected, atol=1e-7, err_msg=name)


def test_a_spike_among_gradients_is_left_out() -> None:
    """‖g‖ ≤ 3 a with a = Σ 0.99^(t−1−i) min(‖g_i‖, 3 a_i) / Σ 0.99^(t−1−i), in float64 by hand."""
    norms = [2.0, 5.0, 1.0, 40.0, 3.0, np.inf, 3.0, 9.0, 9.0, np.nan, 2.0, 7.4]
    transform = gradient_step.without_spikes(3.0)
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    update = jax.jit(transform.update)
    state, seen = transform.init(params), list[float]()
    for norm in norms:
        gradient = {"w": jnp.full((2, 2), 0.8 * norm / 2), "b": jnp.asarray([0.6 * norm, 0, 0])}
        taken, state = update(gradient, state, params)
        weights = 0.99 ** np.arange(len(seen))[::-1]
        limit = 3 * weights @ seen / weights.sum() if seen else np.inf
        kept = norm <= limit
        expected = gradient if kept else jax.tree.map(jnp.zeros_like, gradient)
        jax.tree.map(np.testing.assert_array_equal, taken, expected)
        seen.append(norm if kept else limit)
    assert seen.count(0.0) == 0
    assert int(state.seen) == len(norms)
    first = update({"w": jnp.full((2, 2), jnp.inf), "b": jnp.zeros(3)}, transform.init(params))
    assert int(first[1].seen) == 0
    assert not np.any(first[0]["w"])
    state = transform.init(params)
    for norm in (0.0, 0.0, 5.0):
        taken, state = update({"w": jnp.full((2, 2), norm), "b": jnp.zeros(3)}, state)
    assert taken["w"][0, 0] == 5.0


def test_without_a_spike_steps_are_those_of_the_optimiser_alone() -> None:
    params = {"w": jnp.ones((3, 4))}

    def stepped(norms: list[float], **given: Any) -> Any:
        config = TrainingConfig(optimizer="soap", **given)
        transform = gradient_step.optimizer(config, 5, gradient_step.rates(config))
        state, moved = transform.init(params), []
        for i, norm in enumerate(norms):
            gradient = {"w": norm * jax.random.normal(jax.random.key(i), (3, 4))}
            step, state = jax.jit(transform.update)(gradient, state, params)
            moved.append(np.asarray(step["w"]))
        return moved

    calm, spiking = [1.0, 1.2, 0.8], [1.0, 1.2, 1e6]
    np.testing.assert_array_equal(stepped(calm), stepped(calm, skip_spikes=3.0))
    steps = stepped(spiking, skip_spikes=3.0)
    assert np.abs(steps[2]).max() < np.abs(stepped(spiking)[2]).max()


@pytest.mark.parametrize("most", [1.0, 0.0, float("inf"), float("nan")])
def test_a_spike_is_larger_than_the_average(most: float) -> None:
    with pytest.raises(InputError, match=r"skip_spikes = .* was given, but it must be more than 1"):
        TrainingConfig(skip_spikes=most)


def test_weight_decay_is_for_adam():
    with pytest.raises(InputError, match=r"weight_decay = 0\.1 was given, but it is for optimizer"):
        TrainingConfig(optimizer="soap", weight_decay=0.1)


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_wide_layers_move_as_one_of_the_base_width_does(optimizer: Any) -> None:
    """Weights that read n hidden units move base / n times as far; all others as they did."""
    two = ModelConfig(2, ((4, 6), ()), (5, 3), "bernoulli")
    params = eqx.filter(random_model(two, 7, seed=2), eqx.is_inexact_array)
    gradient = jax.tree.map(jnp.ones_like, params)

    def moved(base: int | None) -> Any:
        config = TrainingConfig(optimizer=optimizer, base_width=base)
        transform = gradient_step.optimizer(config, 5, gradient_step.rates(config))
        return jax.jit(transform.update)(gradient, transform.init(params), params)[0]

    plainly = jax.tree_util.tree_leaves_with_path(moved(None))
    reading = {
        *(f".encoder[0].{of}.weight" for of in ("features.layers[1]", "mu", "log_sigma")),
        *(f".observation.{of}.weight" for of in ("features.layers[1]", "linear")),
    }
    for base in (2, 5, 6):
        for (path, plain), by in zip(plainly, jax.tree.leaves(moved(base)), strict=True):
            name = jax.tree_util.keystr(path)
            factor = min(1, base / plain.shape[-1]) if name in reading else 1
            np.testing.assert_allclose(by, factor * plain, rtol=1e-6, err_msg=name)


def narrowed(model: Any, base: int) -> dict[str, Any]:
    """By how much a base width shortens Adam's steps of every parameter."""
    params = eqx.filter(model, eqx.is_inexact_array)
    ones = jax.tree.map(jnp.ones_like, params)
    factors = jax.tree_util.tree_leaves_with_path(gradient_step.by_width(ones, base))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in factors}


def test_inputs_beside_the_hidden_layers_keep_their_steps() -> None:
    """6 hidden units beside 7 values of an example, 4 beside 3 latents, and a base width of 2."""
    model = random_model(ModelConfig(1, ((4, 6),), (3,), "bernoulli"), 7, seed=2)
    model = eqx.tree_at(
        lambda m: (m.encoder[0], m.observation),
        model,
        (beside(model.encoder[0], 7), beside_output(model.observation, 3)),
    )
    expected = {
        ".encoder[0].features.features.layers[1].weight": [0.5] * 4,
        ".encoder[0].mu.weight": [1 / 3] * 6 + [1] * 7,
        ".encoder[0].log_sigma.weight": [1 / 3] * 6 + [1] * 7,
        ".observation.features.features.layers[1].weight": [1 / 3] * 6,
        ".observation.linear.weight": [0.5] * 4 + [1] * 3,
    }
    for name, factors in narrowed(model, 2).items():
        row = expected.get(name, 1.0)
        np.testing.assert_allclose(factors, np.broadcast_to(row, factors.shape), err_msg=name)


def test_skip_connections_of_hierarchical_proposals_keep_their_steps() -> None:
    """Heads and a reverse model of 6 hidden units, on 5 features of an example."""
    found = narrowed(
        hierarchical(
            eqx.nn.Identity(),
            5,
            4,
            n_0=3,
            width=6,
            block=2,
            shared=False,
            heuristic="uniform",
            key=jax.random.key(0),
        ),
        2,
    )
    factors = {".first": 2 / 5, ".heads": 1 / 3, ".reverse.conditional": 1 / 3}
    heads = {
        f"{of}.{linear}.weight": f for of, f in factors.items() for linear in ("mu", "log_sigma")
    }
    assert found.keys() > heads.keys()
    for name, factor in found.items():
        np.testing.assert_allclose(factor, heads.get(name, 1.0), rtol=1e-6, err_msg=name)
