"""Which random keys a training and an evaluation at the same seed have in common."""

import jax
import jax.numpy as jnp
import numpy as np

from iwae.evaluation.examples import over_examples
from iwae.models.observation import Observer
from iwae.training import gradient_step

EXAMPLES, STEPS, BATCH, PARTS = 2000, 3000, 20, 8


def words(keys):
    """Keys as a set of pairs of words."""
    return words_of(jax.random.key_data(keys))


def words_of(pairs):
    return set(map(tuple, np.asarray(pairs).reshape(-1, 2).tolist()))


def of_example(model, x, key):
    """The key of an example's draws, and of every chunk of the stream over K = 5000 of them."""
    chunks = jax.vmap(lambda start: jax.random.fold_in(key, start))(np.arange(0, 5000, 250))
    return jnp.concatenate([jax.random.key_data(key)[None], jax.random.key_data(chunks)])


def evaluated(seed):
    """[EXAMPLES, 21, 2], of which the first is the key that an example is evaluated under."""
    images, observe = np.zeros((EXAMPLES, 1), np.float32), Observer(1.0, dynamic=False)
    return over_examples(of_example, None, images, observe, seed=seed, draws=1)


def trained(seed):
    """Keys of parameters, of orders, of steps, and of what the first 100 steps draw."""
    init, order, steps = (gradient_step.stream(seed, purpose) for purpose in range(3))
    each = lambda key, n: jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(n))
    step = each(steps, STEPS)
    within = jax.vmap(lambda key: jax.random.split(key, 2 * BATCH))(step[:100])
    return {
        "parameters": words(jax.random.split(init, PARTS)),
        "orders": words(each(order, 300)),
        "steps": words(step),
        "draws": words(within),
    }


def test_only_the_first_three_examples_share_keys_with_the_training():
    """Example 0 with the parameters, 1 with the orders, 2 with the second step and its draws."""
    keys, used = evaluated(7), trained(7)
    for name, own in used.items():
        shared = {i for i in range(EXAMPLES) if words_of(keys[i]) & own}
        assert shared == {"parameters": {0}, "orders": {1}, "steps": {2}, "draws": {2}}[name]
    second = jax.random.fold_in(gradient_step.stream(7, gradient_step.STEPS), 1)
    assert words_of(keys[2][0]) == words(second)


def test_an_evaluation_under_another_seed_shares_no_key():
    own = set().union(*trained(7).values())
    assert not words_of(evaluated(8)) & own
