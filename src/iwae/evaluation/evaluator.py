"""What a trained model is worth: L_K with standard errors, its terms, and its active units.

Everything is written for one example and mapped over a split in blocks that fit a memory budget.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from iwae._utils import threefry
from iwae._utils.checks import check_draws
from iwae._utils.distributed import computing, gathered, json_from_first
from iwae.bounds import BoundFunction
from iwae.errors import InputError
from iwae.models.base import (
    AbstractAutoencoder,
    ModelLike,
    block_of,
    draw_log_weights,
    latents_of,
)
from iwae.models.observation import Observer

CHUNK = 250
"""Draws of one example per step of the stream over K."""

ACTIVE = 1e-2
"""A unit is active when A_u = Var_x(E_q[h_u|x]) exceeds this (Burda et al. §5)."""

USED, CLEAR = 1e-2, 3.0
"""A unit is used when U_u exceeds so many nats, and so many of its standard errors."""

GROUP = 250
"""Most examples of one call of the compiled program: what Ctrl-C and the progress bar wait for."""

MOST_WORKERS = 4
"""Most calls at a time on a CPU: one fills the cores that another leaves idle between products."""

PerExample = Callable[[Any, Array, PRNGKeyArray], Any]
Progress = Callable[[int, int], None]
"""Called with how many examples are done, of how many."""


def log_likelihood(
    model: ModelLike, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int, chunk: int = CHUNK
) -> Float[Array, ""]:
    """L_K = log (1/K) Σ_i w_i of one example, in nats (Burda et al. Eq. 8).

    Streams over K in chunks, in memory that does not grow with K. What is summed are the weights
    relative to the largest so far, so that no draw is lost beside a log p(x) of many digits.
    `InputError` for a K below 1.
    """
    check_draws(k)
    block = block_of(model)
    chunk = min(k, max(block, chunk // block * block))

    def add(carry: tuple[Array, Array], size: int, start: Array | int) -> tuple[Array, Array]:
        top, total = carry
        log_w = draw_log_weights(model, x, size, jax.random.fold_in(key, start))
        peak = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(log_w)))
        by = jnp.where(jnp.isfinite(peak), peak, 0)
        return peak, total * jnp.exp(top - by) + jnp.sum(jnp.exp(log_w - by))

    kind = jax.eval_shape(lambda: draw_log_weights(model, x, chunk, key)).dtype
    rest, carry = k % chunk, (jnp.array(-jnp.inf, kind), jnp.array(0.0, kind))
    starts = jnp.arange(0, k - rest, chunk)
    carry, _ = jax.lax.scan(lambda carry, start: (add(carry, chunk, start), None), carry, starts)
    top, total = add(carry, rest, k - rest) if rest else carry
    return jnp.where(jnp.isfinite(top), top, 0) + jnp.log(total / k)


REPETITIONS = 2**32 - 4
"""What an example's key is folded with for further estimates."""


def repetitions(key: PRNGKeyArray, n: int) -> Key[Array, " n"]:
    """Keys of n estimates of one example, [n], under none of which `log_likelihood` draws."""
    return jax.random.split(jax.random.fold_in(key, REPETITIONS), n)


def bound_value(
    model: ModelLike, x: Float[Array, " d"], key: PRNGKeyArray, *, bound: BoundFunction, k: int
) -> Float[Array, ""]:
    """A training bound of one example with K draws, in nats."""
    return bound(draw_log_weights(model, x, k, key))


def terms(
    model: AbstractAutoencoder, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int
) -> Float[Array, " terms"]:
    """E_q[log p(x|h_1)] and E_q[log q(h_l|h_{l−1}) − log p(h_l|h_{l+1})] for l = 1 … L, in nats.

    The first minus the sum of the others is the ELBO. Of a subclass that draws in a way of its own
    and says nothing of layers, the others are one, of all layers together.
    """
    h = model.propose(x, k, key)
    priors, proposals = model.log_prior_terms(h), model.log_proposal_terms(x, h)
    if len(proposals) == 1:
        priors = [sum(priors[1:], priors[0])]
    kl = [q - p for q, p in zip(proposals, priors, strict=True)]
    return jnp.mean(jnp.stack([model.log_observation(x, h), *kl]), axis=1)


def posterior_means(
    model: AbstractAutoencoder, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int
) -> list[tuple[Array, Array]]:
    """(E_q[h_l|x], squared standard error of it) for l = 1 … L."""
    layers = range(1, len(model.latents) + 1)
    keys = jax.random.split(key, len(model.latents))
    return [model.posterior_mean(x, i, k, key) for i, key in zip(layers, keys, strict=True)]


def over_examples(
    function: PerExample,
    model: Any,
    images: np.ndarray | Array,
    observe: Observer,
    *,
    seed: int,
    draws: int,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """function(model, x, key) for every example, stacked.

    Bind other arguments with `eqx.Partial`: equal calls then share one compiled program, which is
    of one of a few numbers of examples (`padded`). It computes in 32 bits whatever JAX's mode,
    unless the model holds numbers of 64 bits.

    Example i is observed and evaluated under keys of (seed, i) alone, so that two models see the
    same binarisation. At the seed of a run the first 3 are those of its purposes
    (`training.stream`), from which parameters, orders and steps descend; the others are apart.
    `draws` latents live at once per example; `memory` (bytes; by default 8 MiB for each worker on a
    CPU, 2 GiB elsewhere) sets how many examples make a block.
    """
    n, d = images.shape
    on_cpu = jax.default_backend() == "cpu"
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if on_cpu else 1
    if memory is None:
        memory = workers * 2**23 if on_cpu else 2**31
    block, group = padded(n, workers, block_size(n, d, draws, memory // workers))
    block, group = json_from_first([block, group])
    starts = range(0, n, group)
    hosts, places = jax.process_count(), jax.local_devices()
    arrays, static = eqx.partition((function, model), eqx.is_array)
    copies = [jax.device_put(arrays, place) for place in places] if len(places) > 1 else [arrays]

    def evaluated(turn: int) -> Any:
        """Of the group that is this host's at its turn; past the end, of the last again."""
        start = starts[min(turn * hosts + jax.process_index(), len(starts) - 1)]
        index = np.minimum(np.arange(start, start + group), n - 1)
        own = turn % len(places)
        device = jax.default_device(places[own] if len(places) > 1 else None)
        with computing(arrays), device:
            bound, of = eqx.combine(copies[own], static)
            rows, numbers = jnp.asarray(images[index]), jnp.asarray(index)
            part = _over_group(bound, of, rows, numbers, jnp.uint32(seed), observe, block)
            return jax.tree.map(np.asarray, part)

    results: list[Any] = []
    turns = range(-(-len(starts) // hosts))
    with computing(arrays), _pool(max(workers, len(places))) as pool:
        for turn, result in zip(turns, pool.map(evaluated, turns), strict=True):
            results.append(result)
            if progress is not None:
                progress(min((turn + 1) * hosts * group, n), n)
    return jax.tree.map(
        lambda a: np.swapaxes(a, 0, 1).reshape(-1, *a.shape[3:])[:n],
        gathered(jax.tree.map(lambda *parts: np.stack(parts), *results)),
    )


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that keep every core busy; what has not begun is dropped on Ctrl-C."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def padded(n: int, workers: int, most: int) -> tuple[int, int]:
    """(block, group): examples at once, of at most `most`, and of a call of the compiled program.

    Each worker has n / workers examples or a few more; `block` is a power of two or `most`, and a
    group is a power of two of blocks, or enough for `GROUP` examples. A group is at most a quarter
    of a worker's share, so that the last of them, which is filled up, costs little.
    """
    share = math.ceil(n / workers)
    block = min(most, 1 << (share - 1).bit_length())
    blocks, enough = math.ceil(share / block), math.ceil(GROUP / block)
    return block, block * min(enough, 1 << max(0, blocks.bit_length() - 3))


def block_size(n: int, d: int, draws: int, memory: int) -> int:
    """Examples evaluated at once: two float32 arrays of [block, draws, d] fit the memory."""
    return max(1, min(n, memory // (8 * d * draws)))


@eqx.filter_jit
def _over_group(
    function: PerExample,
    model: Any,
    images: Array,
    index: Array,
    seed: Array,
    observe: Observer,
    block: int,
) -> Any:
    def one(row: tuple[Array, Array]) -> Any:
        key_x, key = jax.random.split(jax.random.fold_in(threefry.key(seed), row[1]))
        return function(model, observe(row[0], key_x), key)

    return jax.lax.map(one, (images, index), batch_size=block)


@dataclass(frozen=True)
class Activity:
    """A_u per unit of each layer, and the units' average posterior means."""

    variance: tuple[np.ndarray, ...]
    mean: tuple[np.ndarray, ...]

    @property
    def active(self) -> tuple[np.ndarray, ...]:
        """Which units are active, as masks."""
        return tuple(a > ACTIVE for a in self.variance)

    @property
    def counts(self) -> list[int]:
        """Active units per layer."""
        return [int(mask.sum()) for mask in self.active]


@dataclass(frozen=True)
class Usage:
    """U_u per unit of each layer, in nats, and its standard errors over examples."""

    cost: tuple[np.ndarray, ...]
    error: tuple[np.ndarray, ...]

    @property
    def used(self) -> tuple[np.ndarray, ...]:
        """Which units are used, as masks."""
        each = zip(self.cost, self.error, strict=True)
        return tuple(cost > np.maximum(USED, CLEAR * error) for cost, error in each)


def activity(
    model: AbstractAutoencoder,
    images: np.ndarray | Array,
    observe: Observer,
    *,
    seed: int = 0,
    k: int = 100,
    memory: int | None = None,
) -> Activity:
    """A_u = Var_x(E_q[h_u|x]) of every latent unit (Burda et al. §5).

    Above the first layer E is an average over k draws of the layer below, whose own variance is
    subtracted: the estimate of A_u is unbiased, so a dead unit is not counted for its noise.
    `InputError` for fewer than 2 examples or draws.
    """
    if len(images) < 2 or k < 2:
        raise InputError(
            f"The activity of units was asked for of n = {len(images)} examples with k = {k} "
            f"draws, but a variance is of at least 2 of each; give more."
        )
    means = over_examples(
        eqx.Partial(posterior_means, k=k), model, images, observe, seed=seed, draws=k, memory=memory
    )
    return Activity(
        variance=tuple(np.var(m, axis=0, ddof=1) - np.mean(se2, axis=0) for m, se2 in means),
        mean=tuple(np.mean(m, axis=0) for m, _ in means),
    )


def held(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    averages: tuple[Array, ...],
    k: int,
) -> list[Array]:
    """What E_q[log p(h_{l−1}|h_l)] loses where h_u is held at its average, per unit of each layer.

    h_0 = x; from the same k draws for all units.
    """
    draws = model.propose(x, k, key)
    latents_of(model, draws)
    latents = model.layers

    def lost(layer: int) -> Array:
        below = lambda h: [model.log_observation(x, h), *model.log_prior_terms(h)][layer]

        def of_unit(u: Array) -> Array:
            unit = latents(draws)[layer].at[:, u].set(averages[layer][u])
            without = eqx.tree_at(lambda h: latents(h)[layer], draws, unit)
            return jnp.mean(below(draws) - below(without))

        return jax.lax.map(of_unit, jnp.arange(len(averages[layer])))

    return [lost(layer) for layer in range(len(averages))]


def usage(
    model: AbstractAutoencoder,
    images: np.ndarray | Array,
    observe: Observer,
    *,
    seed: int = 0,
    k: int = 4,
) -> Usage:
    """U_u = E_{x,q}[log p(h_{l−1}|h_l) − log p(h_{l−1}|h_l with h_u at its average)], h_0 = x.

    What the layer below loses of its density without the unit. A_u tells another thing in layers
    whose prior is learned: a unit of which q(h_u|h_{l−1}) = p(h_u|h_{l+1}) says nothing of x, yet
    its mean moves with h_{l+1}, and is active by a threshold in units that are its own.
    `InputError` for fewer than 2 examples.
    """
    averages = activity(model, images, observe, seed=seed).mean
    function = eqx.Partial(held, averages=tuple(map(jnp.asarray, averages)), k=k)
    lost = over_examples(function, model, images, observe, seed=seed, draws=k)
    return Usage(
        cost=tuple(values.mean(axis=0, dtype=np.float64) for values in lost),
        error=tuple(values.std(axis=0, ddof=1) / math.sqrt(len(values)) for values in lost),
    )


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean over examples and its standard error (nan for a single example)."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values, dtype=np.float64)), float(error)
