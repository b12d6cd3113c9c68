"""Which parameters the draws depend on, from the jaxpr of a model."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PRNGKeyArray

from iwae.errors import InputError
from iwae.estimators.estimators import Estimator
from iwae.models.base import ModelLike, as_model

Leaves = list[Array]


def check_path(estimator: Estimator, model: ModelLike, x: Array, k: int, key: PRNGKeyArray) -> None:
    """`InputError` if the path gradient of a parameter of the proposal is zero by construction.

    This is decided from the model's jaxpr, so it costs nothing in compiled steps. A model that
    declares `moves_with_its_parameters` is not checked.
    """
    if estimator.path is None or as_model(model).moves_with_its_parameters:
        return
    jumping, apart = unmoved(model, x, k, key)
    names = jumping + apart if estimator.score is None else jumping
    if not names:
        return
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    through = "some of those" if jumping else "those"
    works = "rws, or reparametrised draws" if jumping else "reparam"
    raise InputError(
        f"Estimator {estimator.name} passes gradients through the draws, but through {through} of "
        f"this model none reaches its parameter {names[0]}{more}; give {works}."
    )


def unmoved(model: ModelLike, x: Array, k: int, key: PRNGKeyArray) -> tuple[list[str], list[str]]:
    """Names of parameters of log q(h|x) to which no gradient of the draws h passes.

    The first list has those on which one of the arrays in h depends without a derivative, like a
    Bernoulli variable on its probability; the second those on which no draw depends. Nothing is
    computed: dependence is read off the jaxpr. Hence it is decided per array, and not for single
    entries of an array that mixes both kinds of variables.
    """
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)
    named, structure = jax.tree_util.tree_flatten_with_path(moving)
    names, leaves = [jax.tree_util.keystr(path) for path, _ in named], [leaf for _, leaf in named]
    if not leaves:
        return [], []
    rebuilt = lambda leaves: eqx.combine(jax.tree.unflatten(structure, leaves), fixed)
    draws = lambda leaves: jax.tree.leaves(rebuilt(leaves).propose(x, k, key))

    def density(leaves: Leaves) -> list[Array]:
        rebuilt_model = rebuilt(leaves)
        h = jax.lax.stop_gradient(rebuilt_model.propose(x, k, key))
        return [rebuilt_model.log_proposal(x, h)]

    score = _gradients(density, leaves)
    jumps, reached = set(), set()
    for i, array in enumerate(jax.eval_shape(draws, leaves)):
        one = lambda leaves, i=i: [draws(leaves)[i]]
        depends, path = _reached(one, leaves), [False] * len(leaves)
        if jnp.issubdtype(array.dtype, jnp.inexact):
            path = _gradients(one, leaves)
        reached |= {n for n, d in zip(names, depends, strict=True) if d}
        jumps |= {n for n, d, p in zip(names, depends, path, strict=True) if d and not p}
    scored = [n for n, s in zip(names, score, strict=True) if s]
    return [n for n in scored if n in jumps], [n for n in scored if n not in reached]


def _reached(function: Callable[[Leaves], list[Array]], leaves: Leaves) -> list[bool]:
    """For each argument, whether the results depend on it."""
    program = jax.make_jaxpr(function)(leaves).jaxpr
    return list(dce_jaxpr(program, [True] * len(program.outvars))[1])


def _gradients(function: Callable[[Leaves], list[Array]], leaves: Leaves) -> list[bool]:
    """For each argument, whether the gradient of the results is not zero by construction."""
    results = jax.eval_shape(function, leaves)
    of = lambda given: jax.vjp(function, leaves)[1](given)[0]
    program = jax.make_jaxpr(of)(results).jaxpr
    one = lambda i: [i == j for j in range(len(leaves))]
    return [any(dce_jaxpr(program, one(i))[1]) for i in range(len(leaves))]
