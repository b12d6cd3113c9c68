"""What a machine has to do at least: matrix products, memory traffic and random numbers.

Each at the rate that this machine reaches with it alone, one after the other. Elementwise
functions, activations that leave the cache and the overhead of calls are not counted: a program
that needs twice the floor spends as much on those as on what cannot be avoided.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp

from iwae._utils import threefry
from iwae.models.autoencoder import Autoencoder
from iwae.models.networks import Readout

ADAM_ARRAYS = 8
"""Arrays of the size of the parameters that Adam reads (θ, g, m, v) and writes (θ, m, v; g)."""


TURNS = 30

MANY = 200
"""How many times as large the arrays are where a call takes longer than what is measured."""


@dataclass(frozen=True)
class Rates:
    """Per second."""

    operations: float
    """float32 additions and multiplications of the best of some matrix products."""
    bytes: float
    """Read and written by an addition to arrays of the size of Adam's."""
    normals: float
    """Standard normal draws."""
    bits: float
    """Random 32-bit words."""


@cache
def rates(parameters: int = 424_000) -> Rates:
    """Measured now; `parameters` is the size of Adam's arrays."""
    product = jax.jit(partial(jnp.dot, precision="highest"))
    shapes = [(1000, 1000, 1000), (2000, 2000, 2000), (1000, 784, 200)]
    if jax.default_backend() != "cpu":
        shapes += [(8000, 8000, 8000)]
    operations = max(
        2 * m * k * n / _seconds(product, jnp.ones((m, k)), jnp.ones((k, n))) for m, k, n in shapes
    )
    times = 1 if jax.default_backend() == "cpu" else MANY
    state = jnp.ones(times * ADAM_ARRAYS // 2 * parameters)
    key, n = threefry.key(0), times * 100_000
    return Rates(
        operations=operations,
        bytes=2 * state.nbytes / _seconds(jax.jit(lambda a: a + 1), state),
        normals=n / _seconds(jax.jit(lambda key: jax.random.normal(key, (n,))), key),
        bits=n / _seconds(jax.jit(lambda key: jax.random.bits(key, (n,))), key),
    )


def _seconds(function: Callable, *arguments: jax.Array) -> float:
    """Of a call: the shortest of many turns, since a rate is what the machine can do."""
    call = lambda: jax.block_until_ready(function(*arguments))
    call()
    began = time.perf_counter()
    call()
    calls = max(1, round(0.05 / (time.perf_counter() - began)))
    turns = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        turns.append((time.perf_counter() - began) / calls)
    return min(turns)


Floor = dict[str, float]
"""Seconds by purpose."""


def step(model: Autoencoder, *, k: int, batch: int) -> Floor:
    """Of a training step: three products for each weight, two for those next to the image."""
    first, others = _sizes(model.encoder[0])
    of_images = 2 * first + 3 * others
    r = rates()
    return {
        "products": 2 * batch * (of_images + 3 * k * _of_draws(model)) / r.operations,
        "memory": ADAM_ARRAYS * 4 * sum(a.size for a in _arrays(model)) / r.bytes,
        "normals": batch * k * sum(model.latents) / r.normals,
        "bits": batch * cast(Readout, model.observation).linear.bias.size / r.bits,
    }


def evaluation(model: Autoencoder, *, k: int) -> Floor:
    """Of L_K of one image: one product for each weight."""
    r = rates()
    of_image = sum(_sizes(model.encoder[0]))
    return {
        "products": 2 * (of_image + k * _of_draws(model)) / r.operations,
        "normals": k * sum(model.latents) / r.normals,
    }


def _of_draws(model: Autoencoder) -> int:
    """Weights that every draw passes through."""
    return sum(sum(_sizes(part)) for part in (model.encoder[1:], model.decoder, model.observation))


def _sizes(part: object) -> tuple[int, int]:
    """Weights of the first matrix of a network, and of the others."""
    sizes = [a.size for a in _arrays(part) if a.ndim == 2]
    return (sizes[0], sum(sizes[1:])) if sizes else (0, 0)


def _arrays(part: object) -> list[jax.Array]:
    return jax.tree.leaves(eqx.filter(part, eqx.is_inexact_array))
