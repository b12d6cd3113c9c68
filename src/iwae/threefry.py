"""Keys for `jax.random` that draw the same numbers as its own Threefry, faster on a CPU.

There JAX runs the twenty rounds as a loop over arrays in memory. Here they are written out, so that
they become one pass.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, PRNGKeyArray, UInt32

Words = UInt32[Array, "..."]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
"""Constants of Threefry-2x32 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3)."""


def key(seed: int | Array) -> PRNGKeyArray:
    """A key of which everything in `jax.random` makes what it makes of `jax.random.key(seed)`."""
    return jax.random.key(seed, impl=THREEFRY)


def _threefry(key: tuple[Words, Words], count: Words) -> tuple[Words, Words]:
    """Threefry-2x32 with 20 rounds of the blocks (0, count), by broadcasting."""
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(PARITY))
    a, b = schedule[0], count + schedule[1]
    for i in range(5):
        for rotation in ROTATIONS[i % 2]:
            a += b
            b = a ^ (b << jnp.uint32(rotation) | b >> jnp.uint32(32 - rotation))
        a += schedule[(i + 1) % 3]
        b += schedule[(i + 2) % 3] + jnp.uint32(i + 1)
    return a, b


@custom_vmap
def _words(key_0: Words, key_1: Words, count: Words) -> Words:
    """A random word for each count, in memory before anything is made of them.

    XLA's CPU compiler takes integer arithmetic for cheap and would repeat it wherever a word is
    used, K times for an image that meets K draws. It does not look into the branches of a
    condition, so there stands one, which always holds.
    """

    def words() -> Words:
        a, b = _threefry((key_0, key_1), count)
        return a ^ b

    def apart() -> Words:
        zeros = jnp.zeros(jnp.broadcast_shapes(key_0.shape, count.shape), jnp.uint32)
        return jax.lax.cond(key_0.ravel()[0] | jnp.uint32(1) > 0, words, lambda: zeros)

    return jax.lax.platform_dependent(cpu=apart, default=words)


@_words.def_vmap
def _words_of_many(
    n: int, batched: list[bool], key_0: Words, key_1: Words, count: Words
) -> tuple[Words, bool]:
    """One condition for all keys: mapped over, it would become a selection from both branches."""
    arrays = zip((key_0, key_1, count), batched, strict=True)
    return _words(*(a if mapped else a[None] for a, mapped in arrays)), True


def _counts(shape: tuple[int, ...]) -> Words:
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


@partial(jax.jit, static_argnums=(1, 2))
def _random_bits(key: Words, width: int, shape: tuple[int, ...]) -> Array:
    if width != 32 or not 0 < math.prod(shape) < 2**32:
        return threefry_prng_impl.random_bits(key, width, shape)
    ones = [1] * len(shape)
    return _words(key[0].reshape(ones), key[1].reshape(ones), _counts(shape))


@partial(jax.jit, static_argnums=1)
def _split(key: Words, shape: tuple[int, ...]) -> Words:
    return jnp.stack(_threefry((key[0], key[1]), _counts(shape)), axis=-1)


@jax.jit
def _fold_in(key: Words, data: Array) -> Words:
    return jnp.stack(_threefry((key[0], key[1]), jnp.asarray(data).astype(jnp.uint32)))


THREEFRY = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="iwae_threefry2x32",
    tag="iwae_fry",
)
"""Threefry-2x32, as `jax.random.key(seed, impl=THREEFRY)` takes it."""
