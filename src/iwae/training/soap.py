"""SOAP: Adam in the eigenbasis of the gradient's second moments (Vyas et al. 2025, 2409.11321).

For a matrix W with gradient G, with exponential moving averages of decay β on both sides,

    L ← βL + (1−β) G Gᵀ,   R ← βR + (1−β) Gᵀ G,   L = Q_L Λ_L Q_Lᵀ,   R = Q_R Λ_R Q_Rᵀ,

Adam runs on Q_Lᵀ G Q_R, and its step is rotated back. A side wider than `largest` keeps its own
axes, as does every array that is not a matrix, and of the sides wider than `WIDE` one that is not
the narrower of its matrix, which would cost more than the network: there SOAP is Adam.

When the bases are updated, Adam's first moment is rotated into them, and its second moment is not.
Where a gradient is rare, as for a pixel that is hardly ever on, the second moment can be nearly
zero in an axis into which the first moment is rotated. With fixed axes, by the Cauchy–Schwarz
inequality,

    |m_t| ≤ √v_t · (1−β₁) √(Σ_{i<t} (β₁²/β₂)^i / (1−β₂)),

and m is clipped to this bound, so that no step is longer than Adam's can be.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

REVISION = 2
"""Increased whenever the same settings come to take other steps, rounding apart."""

WIDE = 256
"""Sides up to this one are rotated whatever the other is."""

Square = Float[Array, "_ _"]
Sides = tuple[Square | None, ...]
"""A matrix for each side, from the left; None for a side that is not rotated."""


class Turned(NamedTuple):
    """The optimiser's state for one array of parameters."""

    rotated_mu: Array
    """First moment of Q_Lᵀ G Q_R."""
    nu: Array
    """Second moment of Q_Lᵀ G Q_R."""
    moments: Sides
    """L and R."""
    bases: Sides
    """Q_L and Q_R, in descending order of eigenvalues."""


class SoapState(NamedTuple):
    """Number of steps taken, and the state of each array."""

    steps: Int[Array, ""]
    arrays: tuple[Turned, ...]


def soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    decay: float = 0.95,
    every: int = 10,
    moments_every: int = 1,
    largest: int = WIDE,
) -> optax.GradientTransformation:
    """The optimiser; `decay` is β, L and R follow one gradient of `moments_every`, and the bases
    are updated every `every` steps, on sides up to `largest`.

    The first basis is the exact eigenbasis; each update is a step of orthogonal iteration, Q of the
    QR decomposition of L Q_L.
    """

    def init(params: PyTree) -> SoapState:
        arrays = tuple(_start(p, largest) for p in jax.tree.leaves(params))
        return SoapState(jnp.zeros((), jnp.int32), arrays)

    def one(g: Array, kept: Turned, t: Array) -> tuple[Array, Turned]:
        if any(q is not None for q in kept.bases):
            kept = _followed(g, kept, t)
        bases, of_g = kept.bases, _into(g, kept.bases)
        mu = b1 * kept.rotated_mu + (1 - b1) * of_g
        nu = b2 * kept.nu + (1 - b2) * of_g**2
        held = mu
        if b2 > 0:
            limit = (1 - b1) * jnp.sqrt(_series(b1**2 / b2, t) / (1 - b2)) * jnp.sqrt(nu)
            held = jnp.clip(mu, -limit, limit)
        mu_hat, nu_hat = held / (1 - b1**t), nu / (1 - b2**t)
        step = _out_of(mu_hat / (jnp.sqrt(nu_hat) + eps), bases)
        return step, kept._replace(rotated_mu=mu, nu=nu)

    def _followed(g: Array, kept: Turned, t: Array) -> Turned:
        """The state with L, R and the bases after step t, and the first moment in these."""

        def squared(moments: Sides) -> Sides:
            return _each(lambda m, new: decay * m + (1 - decay) * new, moments, _squares(g))

        def turned(by: Callable[[Sides, Sides], Sides]) -> Callable[..., tuple[Sides, Array]]:
            def of(moments: Sides, bases: Sides, mu: Array) -> tuple[Sides, Array]:
                found = by(moments, bases)
                return found, _into(_out_of(mu, bases), found)

            return of

        moments = kept.moments
        if moments_every == 1:
            moments = squared(moments)
        else:
            due = (t - 1) % moments_every == 0
            moments = jax.lax.cond(due, squared, lambda before: before, moments)
        which = jnp.where(t == 1, 1, jnp.where((t - 1) % every == 0, 2, 0))
        ways = (lambda _, bases, mu: (bases, mu), turned(_exact), turned(_iterated))
        bases, mu = jax.lax.switch(which, ways, moments, kept.bases, kept.rotated_mu)
        return Turned(mu, kept.nu, moments, bases)

    def update(
        gradient: PyTree, state: SoapState, params: PyTree = None
    ) -> tuple[PyTree, SoapState]:
        leaves, tree = jax.tree.flatten(gradient)
        t = state.steps + 1
        with jax.default_matmul_precision("highest"):
            pairs = [one(g, kept, t) for g, kept in zip(leaves, state.arrays, strict=True)]
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        down = jax.tree.unflatten(tree, [-rate * step for step, _ in pairs])
        return down, SoapState(t, tuple(kept for _, kept in pairs))

    return optax.GradientTransformation(init, update)


def _series(ratio: float, terms: Array) -> Array:
    """1 + ratio + ratio² + …, `terms` terms; for a ratio above 1 at most about 10³⁰."""
    if ratio == 0:
        return jnp.ones((), jnp.float32)
    rate = math.log(ratio)
    if abs(rate) < 1e-6:
        return terms.astype(jnp.float32)
    return jnp.expm1(jnp.minimum(terms * rate, 69.0)) / math.expm1(rate)


def _start(p: Array, largest: int) -> Turned:
    turned = lambda d: d <= largest and (d <= WIDE or d == min(p.shape))
    sides = [d if turned(d) else None for d in p.shape] if p.ndim == 2 else []
    zeros = tuple(None if d is None else jnp.zeros((d, d), p.dtype) for d in sides)
    eyes = tuple(None if d is None else jnp.eye(d, dtype=p.dtype) for d in sides)
    return Turned(jnp.zeros_like(p), jnp.zeros_like(p), zeros, eyes)


def _squares(g: Array) -> tuple[Array, ...]:
    """G Gᵀ and Gᵀ G of a matrix; empty for other arrays."""
    return (g @ g.T, g.T @ g) if g.ndim == 2 else ()


def _each(function: Callable[..., Array], sides: Sides, *others: Sides) -> Sides:
    """Apply `function` to the matrices of each side that is rotated."""
    given = zip(sides, *others, strict=True)
    return tuple(None if side is None else function(side, *more) for side, *more in given)


def _exact(moments: Sides, bases: Sides) -> Sides:
    return _each(lambda m: jnp.linalg.eigh(m)[1][:, ::-1], moments)


def _iterated(moments: Sides, bases: Sides) -> Sides:
    return _each(lambda m, q: jnp.linalg.qr(m @ q)[0], moments, bases)


def _into(g: Array, bases: Sides) -> Array:
    """Q_Lᵀ G Q_R."""
    left, right = bases or (None, None)
    g = g if left is None else left.T @ g
    return g if right is None else g @ right


def _out_of(g: Array, bases: Sides) -> Array:
    """Q_L G Q_Rᵀ."""
    left, right = bases or (None, None)
    g = g if left is None else left @ g
    return g if right is None else g @ right.T


def from_own_axes(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves of a checkpoint by path, with the first moment in its bases.

    Up to version 0.2.3 checkpoints have it in G's own axes, under the name of `mu`.
    """
    found = dict(leaves)
    for path, mu in leaves.items():
        of, name = path.rpartition(".")[::2]
        if name == "mu" and "opt_state" in of and ".arrays[" in of:
            left, right = (leaves.get(f"{of}.bases[{side}]") for side in range(2))
            rotated = mu if left is None else left.T @ mu
            found[f"{of}.rotated_mu"] = rotated if right is None else rotated @ right
            del found[path]
    return found
