"""Training as pure functions: a state, and one compiled program that advances it by many steps.

All random numbers derive from (seed, step), so a run is a function of its configuration and its
data, and a resumed run continues exactly.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from iwae import bounds
from iwae._utils import threefry
from iwae._utils.distributed import Devices
from iwae.bounds import Pair
from iwae.config.schema import ObjectiveConfig, TrainingConfig
from iwae.estimators.surrogate import Estimator, surrogate_loss
from iwae.models.bayesian import UncertainLinear
from iwae.models.hierarchical import Heads, Reverse
from iwae.models.ladder import Upwards
from iwae.models.networks import MLP, Gaussian, Linear, Readout, WithInput, at_precision
from iwae.models.observation import Observer
from iwae.models.shared_weights import SharedWeights
from iwae.training.soap import soap

INIT, ORDER, STEPS = range(3)
"""Purposes of a run's random numbers: initial parameters, the order of examples, steps."""

WEIGHTS = 2**32 - 4
"""Number that the key of a step is folded with for the weights that its examples share."""

STAGES = 8

DEFAULT = Devices()
"""The default device alone."""


def stream(seed: int | Array, purpose: int) -> PRNGKeyArray:
    """The key for one purpose of a run."""
    return jax.random.fold_in(threefry.key(seed), purpose)


class TrainState(eqx.Module):
    """The state that a run carries from step to step."""

    params: PyTree
    """The model's trainable arrays."""
    opt_state: PyTree
    average: PyTree
    """Moving average of `params`, or None."""
    step: Int[Array, ""]
    value: Float[Array, ""]
    """Bound on the last batch, mean over its examples; the run stops if it is not finite."""
    total: Float[Array, ""]
    """Sum of `value` over the steps of the current epoch."""


def rates(config: TrainingConfig) -> np.ndarray:
    """The initial learning rate, [1], or the rates of all "stages", [8]; then the weight decay, if
    there is one."""
    n = STAGES if config.schedule == "stages" else 1
    falling = [config.learning_rate * 10 ** (-i / 7) for i in range(n)]
    decay = [config.weight_decay] if config.weight_decay > 0 else []
    return np.array([*falling, *decay], np.float32)


def stages(rates: Sequence[float] | np.ndarray | Array, total_steps: int) -> optax.Schedule:
    """`rates`, lr · 10^(−i/7), for a fraction 3^i / 3,280 of the steps, i = 0 … 7 (Burda §5)."""
    parts = [3**i for i in range(STAGES)]
    ends = [round(total_steps * sum(parts[: i + 1]) / sum(parts)) for i in range(STAGES - 1)]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], ends)


def learning_rate(
    config: TrainingConfig, steps_per_epoch: int, rates: np.ndarray | Array, *, offset: int = 0
) -> optax.Schedule:
    """Learning rate as a function of the step, from `rates`; that of `config` is not used.

    `offset` is added to the step, in a stage whose batches have another size than those before.
    """
    total_steps = config.epochs * steps_per_epoch
    if config.schedule == "stages":
        schedule = stages(rates[:STAGES], total_steps)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rates[0], total_steps)
    else:
        schedule = optax.constant_schedule(rates[0])
    rising = config.warmup * steps_per_epoch
    if rising > 0:
        whole = schedule
        schedule = lambda step: whole(step) * jnp.minimum(1.0, (step + 1) / rising)
    return schedule if offset == 0 else lambda step: schedule(step + offset)


OptimizerOf = Callable[[optax.Schedule], optax.GradientTransformation]
"""Makes an optimiser that follows a schedule of the learning rate, as `optax.lion` does."""


def optimizer(
    config: TrainingConfig,
    steps_per_epoch: int,
    rates: np.ndarray | Array,
    *,
    own: OptimizerOf | None = None,
    offset: int = 0,
) -> optax.GradientTransformation:
    """Adam, SOAP or the user's `own`, for a mean over the batch, and what settings put around it.

    Its update takes `value`, minus the bound, which it hands to an optimiser that uses it.
    """
    schedule = learning_rate(config, steps_per_epoch, rates, offset=offset)
    chosen = _adam_or_soap(config, schedule, rates) if own is None else own(schedule)
    if config.base_width is not None:
        narrowed = optax.stateless(lambda steps, _: by_width(steps, config.base_width))
        chosen = optax.chain(chosen, narrowed)
    if config.clip is not None:
        chosen = optax.chain(optax.clip_by_global_norm(config.clip), chosen)
    if config.skip_spikes is not None:
        chosen = optax.chain(without_spikes(config.skip_spikes), chosen)
    return optax.with_extra_args_support(chosen)


def _adam_or_soap(
    config: TrainingConfig, schedule: optax.Schedule, rates: np.ndarray | Array
) -> optax.GradientTransformation:
    """Adam or SOAP; with ε / batch_size it steps for a mean over the batch as for the sum.

    With `weight_decay` λ Adam is AdamW (Loshchilov & Hutter 2019) for the networks' weights W,
    which also move by −λ · lr · W.
    """
    moments = {"b1": config.adam_beta1, "b2": config.adam_beta2}
    eps = config.adam_epsilon / config.batch_size
    if config.optimizer == "soap":
        return soap(
            schedule,
            **moments,
            eps=eps,
            decay=config.soap_decay,
            every=config.soap_every,
            moments_every=config.soap_moments_every,
            largest=config.soap_largest,
        )
    if config.weight_decay > 0:
        shrink = rates[-1]
        return optax.adamw(schedule, **moments, eps=eps, weight_decay=shrink, mask=decaying)
    return optax.adam(schedule, **moments, eps=eps)


class Norms(NamedTuple):
    """The moving average of gradients' norms, not corrected for its start, and their number."""

    average: Float[Array, ""]
    seen: Int[Array, ""]


SPIKE_DECAY = 0.99
"""Decay of the average that a spike is measured by."""


def without_spikes(most: float) -> optax.GradientTransformation:
    """Gradients g_t, and 0 in place of one with ‖g_t‖ > most · a_t or one that is not finite.

    a_t is the average of min(‖g_i‖, most · a_i) over i < t, whose weights decay by `SPIKE_DECAY` a
    step, so that it follows norms that stay large; after norms of 0 alone none is too large. A
    spike that Adam and SOAP are given moves every weight by several times the learning rate,
    whatever its size, since it outweighs all that their moments hold.
    """

    def init(params: PyTree) -> Norms:
        return Norms(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def update(gradient: PyTree, state: Norms, params: PyTree = None) -> tuple[PyTree, Norms]:
        norm = optax.tree_utils.tree_norm(gradient)
        none = state.average == 0
        start = 1 - SPIKE_DECAY ** jnp.maximum(state.seen, 1)
        limit = jnp.where(none, jnp.inf, most * state.average / start)
        kept = (norm <= limit) & jnp.isfinite(norm)
        taken = jax.tree.map(lambda g: jnp.where(kept, g, 0.0), gradient)
        counted = kept | ~none
        least = jnp.where(kept, norm, limit)
        average = SPIKE_DECAY * state.average + (1 - SPIKE_DECAY) * least
        average = jnp.where(counted, average, state.average)
        return taken, Norms(average, state.seen + counted)

    return optax.GradientTransformation(init, update)


def by_width(steps: PyTree, base: int) -> PyTree:
    """Steps of the parameters, those of weights that read n > `base` values times base / n.

    Adam's steps of all entries are as long as the learning rate, so that n of them move what they
    are summed to by n times as much; with this factor a wide layer moves as one of width `base`.
    Biases keep their steps, and so do weights that read an example or latents themselves: the
    first layer of an `MLP`, a `Gaussian` or `Readout` without hidden layers, of one that reads them
    beside its features (`WithInput`) the columns for them, and the skip connections of H-IWAE.
    """
    known = (Linear, MLP, Gaussian, Readout, Heads, Reverse, Upwards)

    def narrowed(part: PyTree) -> PyTree:
        return jax.tree.map(of, part, is_leaf=lambda p: isinstance(p, known))

    def inside(part: PyTree) -> PyTree:
        return jax.tree.map(of, part, is_leaf=lambda p: p is not part and isinstance(p, known))

    def of(part: PyTree) -> PyTree:
        if isinstance(part, Heads | Reverse):
            return eqx.tree_at(lambda p: p.skip, inside(part), part.skip)
        features = _features_of(part)
        if features is not None:
            n = _width(features.layers[-1]) if features.layers else 0
            return eqx.tree_at(_maps, inside(part), [shortened(v, n) for v in _maps(part)])
        if isinstance(part, Gaussian | Readout):
            return inside(part)
        if isinstance(part, Upwards):
            return along(part)
        if isinstance(part, MLP) and part.layers:
            first, *others = part.layers
            return eqx.tree_at(lambda p: p.layers, part, (first, *map(narrowed, others)))
        if isinstance(part, Linear):
            return shortened(part, part.weight.shape[-1])
        return part

    def along(path: Upwards) -> Upwards:
        """The steps of a path upwards, whose layers read x or the n hidden units below them."""
        n, rungs = 0, []

        def layers(part: PyTree) -> PyTree:
            nonlocal n
            if not isinstance(part, MLP):
                return part
            found = []
            for layer in part.layers:
                found.append(shortened(layer, n))
                n = _width(layer)
            return eqx.tree_at(lambda p: p.layers, part, tuple(found)) if found else part

        for rung in path.rungs:
            is_mlp = lambda p: isinstance(p, MLP)
            features = jax.tree.map(layers, rung.features, is_leaf=is_mlp)
            heads = [shortened(v, n) for v in _maps(rung)]
            where = lambda r: [r.features, *_maps(r)]
            rungs.append(eqx.tree_at(where, rung, [features, *heads]))
        return Upwards(tuple(rungs))

    def shortened(part: PyTree, n: int) -> PyTree:
        """The steps of a linear map, or an uncertain one, whose first n inputs are hidden units."""
        if n <= base:
            return part
        if isinstance(part, UncertainLinear):
            return UncertainLinear(shortened(part.mean, n), shortened(part.log_sigma, n))
        factors = jnp.where(jnp.arange(part.weight.shape[-1]) < n, base / n, 1.0)
        return eqx.tree_at(lambda p: p.weight, part, part.weight * factors)

    return narrowed(steps)


def _maps(part: PyTree) -> list[Linear | UncertainLinear]:
    """The linear maps that are fields of a `Gaussian` or `Readout`."""
    return [v for v in vars(part).values() if isinstance(v, Linear | UncertainLinear)]


def _width(layer: Linear | UncertainLinear) -> int:
    """The number of outputs of a layer."""
    mean = layer.mean if isinstance(layer, UncertainLinear) else layer
    return mean.weight.shape[0]


def _features_of(part: PyTree) -> MLP | None:
    """The hidden layers that a `Gaussian` or `Readout` reads, if these are an `MLP`."""
    features = part.features if isinstance(part, Gaussian | Readout) else None
    features = features.features if isinstance(features, WithInput) else features
    return features if isinstance(features, MLP) else None


def decaying(params: PyTree) -> PyTree:
    """Which parameters `weight_decay` applies to: the weights of linear maps."""

    def of(part: PyTree) -> PyTree:
        none = jax.tree.map(lambda _: False, part)
        return eqx.tree_at(lambda p: p.weight, none, True) if isinstance(part, Linear) else none

    return jax.tree.map(of, params, is_leaf=lambda part: isinstance(part, Linear))


def init(params: PyTree, transform: optax.GradientTransformation, *, average: bool) -> TrainState:
    """The state before the first step, of copies, whose memory the steps can reuse."""
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
    """A copy of every array."""
    return jax.tree.map(jnp.copy, tree)


@lru_cache(maxsize=64)
def objective_bounds(config: ObjectiveConfig) -> Pair:
    """The bounds for θ and φ; the same object if they are equal."""
    shape = {"m": config.m, "alpha": config.alpha, "beta": config.beta, "order": config.order}
    pair = bounds.named(config.objective, **shape)
    if config.encoder_objective is None:
        return pair
    return Pair(pair.theta, bounds.named(config.encoder_objective, **shape).phi)


def over_weights(pair: Pair, alpha: float, groups: int) -> Pair:
    """The black-box α bounds of a pair, in groups that have their draw of the weights each; one
    object if those of the pair are."""
    of = lambda each: bounds.black_box_alpha.with_settings(
        of_group=each, alpha=alpha, groups=groups
    )
    theta = of(pair.theta)
    return Pair(theta, theta if pair.theta is pair.phi else of(pair.phi))


def order_of_epoch(seed: int, number: int, n: int) -> Int[Array, " n"]:
    """The order of the n training examples in epoch `number`."""
    return _permutation(np.uint32(seed), np.uint32(number), n)


@partial(jax.jit, static_argnames="n")
def _permutation(seed: Array, number: Array, n: int) -> Int[Array, " n"]:
    return jax.random.permutation(jax.random.fold_in(stream(seed, ORDER), number), n)


ROWS = 1250
"""Importance samples of a batch per backward pass on a CPU: about the fastest for the paper's
models. Without a gradient, which needs no stored activations, twice as many are weighted at once.
"""


def group_size(batch: int, draws: int, rows: int = ROWS) -> int:
    """Examples per backward pass, for a batch with `draws` importance samples of each example.

    The largest divisor of the batch with at most `rows` samples in all, or 1. The whole batch if it
    has at most 2 · `rows` samples, or if a group would have fewer than `rows` / 4.
    """
    if batch * draws <= 2 * rows:
        return batch
    dividing = [n for n in range(1, batch + 1) if batch % n == 0 and n * draws <= rows]
    size = max(dividing, default=1)
    return size if 4 * size * draws >= rows else batch


def chunk_size(examples: int, draws: int, rows: int = ROWS) -> int | None:
    """Importance samples of each example weighted at once without a gradient; None is all.

    2 · `rows` over all examples together, and at least 1 of each.
    """
    chunk = max(1, 2 * rows // examples)
    return chunk if chunk < draws else None


Replicas = tuple[PyTree, ...]
"""One tree for each replica."""


class Moment(NamedTuple):
    """A step, and the key of what its examples share."""

    step: Array
    key: PRNGKeyArray


Loss = Callable[[PyTree, Array, Array, Moment], tuple[Array, Array]]
"""(parameters, examples, their keys, moment) ↦ (loss, value of the bound)."""

Gradient = Callable[[PyTree, Array, Array, Moment], tuple[tuple[Array, Array], PyTree]]
"""(parameters, examples, their keys, moment) ↦ ((loss, value), gradient of the loss)."""

Step = Callable[..., TrainState]
Advance = Callable[..., Replicas]


KEPT = 16
"""Step functions, and compiled programs, that are cached for further runs of the same kind."""


def shared_step(
    static: PyTree,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    steps_per_epoch: int,
    observe: Observer,
    devices: Devices = DEFAULT,
    *,
    bound: Pair | None = None,
    estimator: Estimator | None = None,
    own_optimizer: OptimizerOf | None = None,
    offset: int = 0,
    average_from: int = 0,
) -> Step:
    """`make_step`, cached: arguments that give the same step return the same function.

    A second run then reuses the compiled program.
    """
    given = (objective, shaping(config), steps_per_epoch, observe, devices)
    own = _Named(bound, estimator, own_optimizer, offset, average_from)
    try:
        return _kept_step(_Structure(static), *given, own)
    except TypeError:  # an argument cannot be hashed
        return make_step(static, *given, **own._asdict())


class _Named(NamedTuple):
    """The keyword arguments of `make_step`."""

    bound: Pair | None
    estimator: Estimator | None
    own_optimizer: OptimizerOf | None
    offset: int
    average_from: int


def shaping(config: TrainingConfig) -> TrainingConfig:
    """The configuration with every setting that does not shape a step at its default."""
    default = TrainingConfig()
    names = [*IRRELEVANT]
    if config.schedule == "constant":
        names.append("epochs")
    decay = 1.0 if config.weight_decay > 0 else 0.0
    given = {name: getattr(default, name) for name in names} | {"weight_decay": decay}
    return dataclasses.replace(config, **given)


IRRELEVANT = (
    "learning_rate",
    "minutes",
    "patience",
    "validate_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "start_from",
)
"""Training settings that do not shape a step: when to stop, what to save, what `rates` replaces. Of
the weight decay it only matters whether there is one."""


class _Structure:
    """The part of a model that is not trained, hashable, and compared leaf by leaf."""

    def __init__(self, static: PyTree):
        self.static = static
        leaves, tree = jax.tree.flatten(static)
        self.key = (tree, tuple(map(_identity, leaves)))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self.key == other.key


def _identity(leaf: Hashable) -> Hashable:
    if eqx.is_array_like(leaf):
        array = np.asarray(leaf)
        return type(leaf), array.dtype, array.shape, array.tobytes()
    return leaf


@lru_cache(maxsize=KEPT)
def _kept_step(
    structure: _Structure,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    steps_per_epoch: int,
    observe: Observer,
    devices: Devices,
    own: _Named,
) -> Step:
    given = (objective, config, steps_per_epoch, observe, devices)
    return make_step(structure.static, *given, **own._asdict())


@lru_cache(maxsize=KEPT)
def shared_advance(steps: frozenset[Step], *, vectorized: bool) -> Advance:
    """`make_advance`, cached by its steps."""
    return make_advance(vectorized=vectorized)


@lru_cache(maxsize=KEPT)
def first_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """The named optimiser whose state `init` makes, cached by the configuration."""
    return optimizer(config, 1, rates(config))


def make_step(
    static: PyTree,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    steps_per_epoch: int,
    observe: Observer,
    devices: Devices = DEFAULT,
    *,
    bound: Pair | None = None,
    estimator: Estimator | None = None,
    own_optimizer: OptimizerOf | None = None,
    offset: int = 0,
    average_from: int = 0,
) -> Step:
    """`step(state, order, key, rates, images, start)`: one step of the optimiser on one batch.

    `start` is the first step of the epoch. `rates` replaces the learning rate of `config`, so that
    replicas with different rates can share the step. `devices` share the batch. `bound`,
    `estimator` and `own_optimizer`, if given, replace those that the settings name. Schedules are
    taken `offset` steps later (`Span`), and averaging starts at step `average_from`.
    """
    batch = config.batch_size
    group, chunk = batch, None
    if devices.mesh is None and jax.default_backend() == "cpu":
        group = group_size(batch, min(objective.k, objective.backward_draws or objective.k))
        chunk = chunk_size(group, objective.k)
    pair = objective_bounds(objective) if bound is None else bound
    if config.weight_alpha is not None:
        pair = over_weights(pair, config.weight_alpha, config.weight_groups(objective.k))
    loss = _loss(static, objective, config, steps_per_epoch, pair, estimator, chunk, offset)
    of_batch = _in_groups(jax.value_and_grad(loss, has_aux=True), batch, group)

    def step(
        state: TrainState,
        order: Array,
        key: PRNGKeyArray,
        rates: Array,
        images: Array,
        start: Array,
    ) -> TrainState:
        key = jax.random.fold_in(key, state.step)
        keys = jax.random.split(key, (2, batch))
        with jax.named_scope("images"):
            rows = jax.lax.dynamic_slice(order, ((state.step - start) * batch,), (batch,))
            x = devices.split(jax.vmap(observe)(images[rows], keys[0]))
        given = (state.params, x, keys[1], Moment(state.step, jax.random.fold_in(key, WEIGHTS)))
        (_, value), gradient = devices.whole(of_batch(*given))
        transform = optimizer(config, steps_per_epoch, rates, own=own_optimizer, offset=offset)
        with jax.named_scope("optimizer"):
            before = (gradient, state.opt_state, state.params)
            updates, opt_state = transform.update(*before, value=-value)
            params = optax.apply_updates(state.params, updates)
        return TrainState(
            params=params,
            opt_state=opt_state,
            average=_averaged(state.average, params, state.step - average_from, config.average),
            step=state.step + 1,
            value=value,
            total=state.total + value,
        )

    return step


def _loss(
    static: PyTree,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    steps_per_epoch: int,
    bound: Pair,
    estimator: Estimator | None,
    chunk: int | None,
    offset: int,
) -> Loss:
    """`loss(params, x, keys, at)`: (loss, value of the bound), means over the examples, in nats.

    The step follows the gradient of the loss, a surrogate whose value is not the bound.
    """
    scale = config.batch_size * steps_per_epoch

    def loss(
        params: PyTree, x: Array, keys: Key[Array, " batch"], at: Moment
    ) -> tuple[Array, Array]:
        step = at.step + offset if offset else at.step
        rising = config.kl_warmup * steps_per_epoch
        kl_weight = jnp.minimum(1.0, (step + 1) / rising) if rising else None
        whole = at_precision(eqx.combine(params, static), config.precision)
        model = whole
        if config.weight_alpha is not None:
            model = SharedWeights.of(whole, config.weight_groups(objective.k), at.key)
        losses, values = jax.vmap(
            lambda x, key: surrogate_loss(
                model,
                x,
                key,
                bound=bound,
                k=objective.k,
                estimator=objective.estimator if estimator is None else estimator,
                backward_draws=objective.backward_draws,
                chunk=chunk,
                kl_weight=kl_weight,
            )
        )(x, keys)
        penalty = _weight_penalty(whole, config, step / steps_per_epoch) / scale
        return jnp.mean(losses) + penalty, jnp.mean(values)

    return loss


def _in_groups(of_group: Gradient, batch: int, group: int) -> Gradient:
    """((loss, value), gradient) of a batch, accumulated over groups of `group` examples."""
    if group == batch:
        return of_group

    def of_batch(
        params: PyTree, x: Array, keys: Key[Array, " batch"], at: Moment
    ) -> tuple[tuple[Array, Array], PyTree]:
        x, keys = (a.reshape(batch // group, group, *a.shape[1:]) for a in (x, keys))
        one = lambda given: of_group(params, given[0], given[1], at)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, (x[0], keys[0])))
        add = lambda total, given: (jax.tree.map(jnp.add, total, one(given)), None)
        total, _ = jax.lax.scan(add, zeros, (x, keys))
        return jax.tree.map(lambda a: a * (group / batch), total)

    return of_batch


def make_advance(*, vectorized: bool = False) -> Advance:
    """Compile `advance(steps, states, orders, seeds, rates, images, start, stop)`.

    It goes up to step `stop` of the epoch that began at step `start`. Each replica has a step
    function (`make_step`), state, order, seed (uint32) and `rates`; all are at the same step. A
    replica takes the same steps as alone, bit for bit on a CPU. With `vectorized`, replicas with
    the same step function share batched matrix products, equal up to rounding. `start` and `stop`
    are arguments of the compiled program, so every step runs the same code however a run is cut
    into chunks. It ends early if a bound is not finite. `states` are donated.
    """

    def advance(
        steps: Sequence[Step],
        states: Replicas,
        orders: Replicas,
        seeds: Replicas,
        rates: Replicas,
        images: Array,
        start: Array,
        stop: Array,
    ) -> Replicas:
        groups = _alike(steps) if vectorized else [[i] for i in range(len(steps))]
        gathered = lambda replicas: [_stacked([replicas[i] for i in group]) for group in groups]
        moves = [_mapped(steps[group[0]], len(group)) for group in groups]
        keys = [stream(seed, STEPS) for seed in seeds]
        given = list(zip(moves, *map(gathered, (orders, keys, rates)), strict=True))

        def going(states: list[TrainState]) -> Array:
            on = [jnp.all((s.step < stop) & jnp.isfinite(s.value)) for s in states]
            return jnp.all(jnp.stack(on))

        def each(states: list[TrainState]) -> list[TrainState]:
            pairs = zip(states, given, strict=True)
            return [move(state, *own, images, start) for state, (move, *own) in pairs]

        ended = jax.lax.while_loop(going, each, gathered(states))
        alone = {
            i: jax.tree.map(itemgetter(j), state) if len(group) > 1 else state
            for group, state in zip(groups, ended, strict=True)
            for j, i in enumerate(group)
        }
        return tuple(alone[i] for i in range(len(steps)))

    options = compiler_options() if jax.default_backend() == "cpu" else None
    return jax.jit(advance, static_argnums=0, donate_argnums=1, compiler_options=options)


EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}
"""Leaves all matrix products to Eigen, where XLA gives some of them to YNNPACK. What a step gains
is among the cases of `benchmarks`, "recipe fast"."""


@lru_cache(maxsize=1)
def compiler_options() -> dict[str, str] | None:
    """The options of XLA's compiler for training on a CPU; None if this XLA does not have them."""
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=EIGEN)()
    except jax.errors.JaxRuntimeError:
        return None
    return EIGEN


def _alike(steps: Sequence[Step]) -> list[list[int]]:
    """Indices of the replicas, grouped by step function."""
    return [[i for i, s in enumerate(steps) if s is step] for step in dict.fromkeys(steps)]


def _stacked(replicas: list[PyTree]) -> PyTree:
    """The trees of several replicas stacked; that of a single replica unchanged."""
    if len(replicas) == 1:
        return replicas[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)


def _mapped(step: Step, replicas: int) -> Step:
    return step if replicas == 1 else jax.vmap(step, in_axes=(0, 0, 0, 0, None, None))


def _weight_penalty(model: PyTree, config: TrainingConfig, epoch: Array) -> Array | float:
    """The weighted KL divergence of uncertain weights after `epoch` epochs, in nats."""
    if config.weight_kl == 0:
        return 0.0
    share = jnp.minimum(1.0, epoch / config.weight_kl_passes) if config.weight_kl_passes else 1.0
    return share * config.weight_kl * model.weight_kl(config.weight_prior)


def _averaged(average: PyTree, params: PyTree, step: Array, decay: float | None) -> PyTree:
    """Exponential moving average whose window grows from the first step to 1/(1−decay) steps.

    Without a decay it is the parameters themselves, in a stage before the averaging.
    """
    if average is None:
        return None
    if decay is None:
        return copied(params)
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, rate)


def all_finite(tree: PyTree) -> bool:
    """Whether every number in the tree is finite."""
    leaves = jax.device_get(jax.tree.leaves(tree))  # NumPy has nothing to compile
    return all(bool(np.isfinite(leaf).all()) for leaf in leaves)
