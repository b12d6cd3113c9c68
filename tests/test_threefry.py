"""Our keys draw what JAX's own draw, whatever is drawn and however it is mapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwae._utils import threefry

SEEDS = (0, 7, 2**31 + 5, 2**32 - 1)

DRAWS = {
    "bits": lambda key: jax.random.bits(key, (3, 5)),
    "one word": lambda key: jax.random.bits(key),
    "bytes": lambda key: jax.random.bits(key, (3, 5), "uint8"),
    "nothing": lambda key: jax.random.bits(key, (0, 5)),
    "normal": lambda key: jax.random.normal(key, (4, 1, 3)),
    "bernoulli": lambda key: jax.random.bernoulli(key, jnp.linspace(0, 1, 7)),
    "permutation": lambda key: jax.random.permutation(key, 1000),
    "categorical": lambda key: jax.random.categorical(key, jnp.arange(5.0), shape=(9,)),
    "split": lambda key: jax.random.normal(jax.random.split(key, (2, 3))[1, 2], (3,)),
    "fold_in": lambda key: jax.random.normal(jax.random.fold_in(key, 2**32 - 3), (3,)),
    "mapped": lambda key: jax.vmap(lambda k: jax.random.normal(k, (3,)))(jax.random.split(key, 4)),
    "mapped twice": lambda key: jax.vmap(jax.vmap(lambda k: jax.random.bits(k, (2, 2))))(
        jax.random.split(key, (3, 4))
    ),
    "mapped over data": lambda key: jax.vmap(lambda n: jax.random.bits(jax.random.fold_in(key, n)))(
        jnp.arange(3)
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_is_what_jax_draws(name: str) -> None:
    def both(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        return DRAWS[name](threefry.key(seed)), DRAWS[name](jax.random.key(seed))

    for seed in jnp.array(SEEDS, jnp.uint32):
        ours, theirs = jax.jit(both)(seed)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("seed", SEEDS)
def test_a_python_integer_seeds_as_in_jax(seed: int) -> None:
    ours, theirs = threefry.key(seed), jax.random.key(seed)
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


def test_draws_pass_through_gradients_loops_and_shapes() -> None:
    def path(mu: jax.Array, key: jax.Array) -> jax.Array:
        total = lambda i, s: s + jnp.sum(mu * jax.random.normal(jax.random.fold_in(key, i), (3,)))
        return jax.lax.fori_loop(0, 4, total, jnp.zeros(()))

    slope = jax.jit(jax.jacfwd(path))
    np.testing.assert_array_equal(
        slope(jnp.ones(3), threefry.key(1)), slope(jnp.ones(3), jax.random.key(1))
    )
    gradient = jax.grad(lambda mu: jnp.sum(mu * jax.random.normal(threefry.key(2), (5,))))
    np.testing.assert_array_equal(gradient(jnp.ones(5)), jax.random.normal(jax.random.key(2), (5,)))
    assert jax.eval_shape(lambda: jax.random.normal(threefry.key(0), (2, 3))).shape == (2, 3)


def test_the_words_are_computed_once_for_all_that_use_them() -> None:
    """XLA must leave the rounds in a branch; fused into their users they would be repeated."""

    @jax.jit
    def used(key: jax.Array) -> jax.Array:
        words = jax.vmap(lambda k: jax.random.bits(k, (64,)))(jax.random.split(key, 8))
        return (words[:, None, :] >> 9) * jnp.arange(50, dtype=jnp.uint32)[None, :, None]

    assert " conditional(" in used.lower(threefry.key(0)).compile().as_text()
