"""Keys for `jax.random` that draw the same numbers as its own Threefry, faster on a CPU.

On a CPU, JAX runs the twenty rounds as a loop over arrays in memory. Here they are unrolled, so
that XLA fuses them into one loop.
"""

import math
from collections.abc import Callable
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
    """A key with which `jax.random` draws the same numbers as with `jax.random.key(seed)`."""
    return jax.random.key(seed, impl=THREEFRY)


def plain_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key of JAX's own Threefry, for functions that take no other (`jax.random.poisson`).

    A Threefry key keeps its two words, so that the draws are the same.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    words = jax.random.key_data(key)
    if words.shape[-1] != 2:
        words = jax.random.bits(key, (2,), jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


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


def _in_memory(make: Callable[[], Words], key: Words) -> Words:
    """Evaluate `make()` and store the result in memory before it is used.

    XLA's CPU compiler considers integer arithmetic cheap and would repeat it wherever a word is
    used, K times for an image with K draws. Where all lanes of a loop share the word, LLVM's
    vectoriser walks every path through the rounds, which takes for ever. XLA does not fuse through
    the branches of a conditional, so one is inserted whose condition always holds.
    """

    def apart() -> Words:
        zeros = jnp.zeros(jax.eval_shape(make).shape, jnp.uint32)
        return jax.lax.cond(key.ravel()[0] | jnp.uint32(1) > 0, make, lambda: zeros)

    return jax.lax.platform_dependent(cpu=apart, default=make)


def _mapped_whole(function: Callable[..., Words]) -> Callable[..., Words]:
    """Use one conditional for all keys: under vmap it would become a select of both branches."""
    whole = custom_vmap(function)

    @whole.def_vmap
    def of_many(n: int, batched: list[bool], *given: Words) -> tuple[Words, bool]:
        arrays = zip(given, batched, strict=True)
        return whole(*(a if mapped else a[None] for a, mapped in arrays)), True

    return whole


@_mapped_whole
def _words(key_0: Words, key_1: Words, count: Words) -> Words:
    """A random word for each count."""

    def words() -> Words:
        a, b = _threefry((key_0, key_1), count)
        return a ^ b

    return _in_memory(words, key_0)


@_mapped_whole
def _keys(key_0: Words, key_1: Words, count: Words) -> Words:
    """The two words of a new key for each count, along the last axis."""
    return _in_memory(lambda: jnp.stack(_threefry((key_0, key_1), count), axis=-1), key_0)


def _counts(shape: tuple[int, ...]) -> Words:
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _beside(key: Words, shape: tuple[int, ...]) -> tuple[Words, Words]:
    """The words of a key, reshaped to broadcast with counts of this shape."""
    ones = [1] * len(shape)
    return key[0].reshape(ones), key[1].reshape(ones)


@partial(jax.jit, static_argnums=(1, 2))
def _random_bits(key: Words, width: int, shape: tuple[int, ...]) -> Array:
    if width != 32 or not 0 < math.prod(shape) < 2**32:
        return threefry_prng_impl.random_bits(key, width, shape)
    return _words(*_beside(key, shape), _counts(shape))


@partial(jax.jit, static_argnums=1)
def _split(key: Words, shape: tuple[int, ...]) -> Words:
    return _keys(*_beside(key, shape), _counts(shape))


@jax.jit
def _fold_in(key: Words, data: Array) -> Words:
    return _keys(key[0], key[1], jnp.asarray(data).astype(jnp.uint32))


THREEFRY = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="iwae_threefry2x32",
    tag="iwae_fry",
)
"""Threefry-2x32, the `impl` of `jax.random.key(seed, impl=THREEFRY)`."""
