"""Training as pure functions: a state, and one compiled program that advances it by many steps.

Every random draw derives from (seed, step), so a run is a function of its configuration and its
data, and a resumed run continues exactly.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from iwae import bounds, threefry
from iwae.bounds import Pair
from iwae.config import ObjectiveConfig, TrainingConfig
from iwae.gradients import surrogate_loss
from iwae.observation import Observer

INIT, ORDER, STEPS, VALIDATION = range(4)
"""Independent streams of a run's key."""

STAGES = 8


def stream(seed: int | Array, purpose: int) -> PRNGKeyArray:
    """The key of one purpose of a run."""
    return jax.random.fold_in(threefry.key(seed), purpose)


class TrainState(eqx.Module):
    """All that a run carries from step to step."""

    params: PyTree
    """The model's trainable arrays."""
    opt_state: PyTree
    average: PyTree
    """Moving average of `params`, or None."""
    step: Int[Array, ""]
    value: Float[Array, ""]
    """Bound on the last batch, mean over its examples; not finite stops the run."""
    total: Float[Array, ""]
    """Sum of `value` over the steps of the current pass."""


def stages(learning_rate: float, total_steps: int) -> optax.Schedule:
    """lr · 10^(−i/7) for 3^i of 3,280 parts of the steps, i = 0 … 7 (Burda et al. §5)."""
    parts = [3**i for i in range(STAGES)]
    ends = [round(total_steps * sum(parts[: i + 1]) / sum(parts)) for i in range(STAGES - 1)]
    rates = [optax.constant_schedule(learning_rate * 10 ** (-i / 7)) for i in range(STAGES)]
    return optax.join_schedules(rates, ends)


def learning_rate(config: TrainingConfig, steps_per_pass: int) -> optax.Schedule:
    """Learning rate as a function of the step."""
    total_steps = config.epochs * steps_per_pass
    if config.schedule == "stages":
        return stages(config.learning_rate, total_steps)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, total_steps)
    return optax.constant_schedule(config.learning_rate)


def optimizer(config: TrainingConfig, steps_per_pass: int) -> optax.GradientTransformation:
    """Adam on the mean over the batch: ε / batch_size makes its step that of the paper's sum."""
    adam = optax.adam(
        learning_rate(config, steps_per_pass),
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_epsilon / config.batch_size,
    )
    return (
        adam if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adam)
    )


def init(params: PyTree, transform: optax.GradientTransformation, *, average: bool) -> TrainState:
    """The state before the first step, of copies, so that steps can reuse its memory."""
    return TrainState(
        params=copied(params),
        opt_state=jax.jit(transform.init)(params),
        average=copied(params) if average else None,
        step=jnp.array(0, jnp.int32),
        value=jnp.zeros((), jnp.float32),
        total=jnp.zeros((), jnp.float32),
    )


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """The same arrays in memory of their own."""
    return jax.tree.map(jnp.copy, tree)


def objective_bounds(config: ObjectiveConfig) -> Pair:
    """The bounds for θ and φ; one and the same object where they do not differ."""
    shape = {"m": config.m, "alpha": config.alpha, "beta": config.beta, "order": config.order}
    pair = bounds.named(config.objective, **shape)
    if config.encoder_objective is None:
        return pair
    return Pair(pair.theta, bounds.named(config.encoder_objective, **shape).phi)


def order_of_pass(seed: int, number: int, n: int) -> Int[Array, " n"]:
    """The order in which pass `number` visits the n training examples."""
    return _permutation(stream(seed, ORDER), jnp.uint32(number), n)


@partial(jax.jit, static_argnames="n")
def _permutation(key: PRNGKeyArray, number: Array, n: int) -> Int[Array, " n"]:
    return jax.random.permutation(jax.random.fold_in(key, number), n)


Replicas = tuple[Any, ...]
"""Something of each replica."""

Advance = Callable[..., Replicas]


def make_advance(
    static: PyTree,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    transform: optax.GradientTransformation,
    observe: Observer,
    *,
    vectorized: bool = False,
) -> Advance:
    """Compile `advance(states, images, orders, seeds, start, stop)`: steps up to `stop` of a pass.

    One state, order and seed (uint32) for each replica, all at the same step. A replica takes the
    same steps as alone, bit for bit on a CPU; `vectorized`, where all make one batched product of
    each matrix product, up to rounding. `start` is the step at which the pass began. The loop's
    length is an argument of the compiled program, so every step runs the same code however a run is
    cut into chunks. It ends early when a bound is not finite. `states` are consumed.
    """
    bound = objective_bounds(objective)
    batch = config.batch_size

    def loss(params: PyTree, x: Array, keys: Key[Array, " batch"]) -> tuple[Array, Array]:
        model = eqx.combine(params, static)
        losses, values = jax.vmap(
            lambda x, key: surrogate_loss(
                model, x, key, bound=bound, k=objective.k, estimator=objective.estimator
            )
        )(x, keys)
        return jnp.mean(losses), jnp.mean(values)

    def one_step(
        state: TrainState, order: Array, key: PRNGKeyArray, images: Array, start: Array
    ) -> TrainState:
        keys = jax.random.split(jax.random.fold_in(key, state.step), (2, batch))
        rows = jax.lax.dynamic_slice(order, ((state.step - start) * batch,), (batch,))
        x = jax.vmap(observe)(images[rows], keys[0])
        (_, value), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, x, keys[1])
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(
            params=params,
            opt_state=opt_state,
            average=_averaged(state.average, params, state.step, config.average),
            step=state.step + 1,
            value=value,
            total=state.total + value,
        )

    def advance(
        states: Replicas,
        images: Array,
        orders: Replicas,
        seeds: Replicas,
        start: Array,
        stop: Array,
    ) -> Replicas:
        def going(states: Replicas) -> Array:
            return jnp.all(jnp.stack([(s.step < stop) & jnp.isfinite(s.value) for s in states]))

        def step(state: TrainState, order: Array, key: PRNGKeyArray) -> TrainState:
            return one_step(state, order, key, images, start)

        keys = tuple(stream(seed, STEPS) for seed in seeds)
        if not vectorized:
            each = lambda states: tuple(map(step, states, orders, keys))
            return jax.lax.while_loop(going, each, states)
        order, key = _stacked(orders), _stacked(keys)
        (stacked,) = jax.lax.while_loop(
            going, lambda s: (jax.vmap(step)(s[0], order, key),), (_stacked(states),)
        )
        return tuple(jax.tree.map(itemgetter(i), stacked) for i in range(len(states)))

    return jax.jit(advance, donate_argnums=0)


def _stacked(replicas: Replicas) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)


def _averaged(average: PyTree, params: PyTree, step: Array, decay: float | None) -> PyTree:
    """Exponential moving average whose memory grows to 1/(1−decay) steps from the start."""
    if decay is None:
        return None
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, rate)


def all_finite(tree: Any) -> bool:
    """Whether every number in the tree is finite."""
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
