"""The activity A_u of latent units, and the cost U_u of their ablation."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from iwae.errors import InputError
from iwae.evaluation.elbo import posterior_means
from iwae.evaluation.examples import over_examples
from iwae.models.base import AbstractAutoencoder, latents_of
from iwae.models.observation import Observer

ACTIVE = 1e-2
"""A unit is active when A_u = Var_x(E_q[h_u|x]) exceeds this (Burda et al. §5)."""

USED, CLEAR = 1e-2, 3.0
"""A unit is used when U_u exceeds USED nats and CLEAR standard errors."""


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
class Ablation:
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

    Above the first layer, and in a ladder below the top, E is an average over k draws. The variance
    of that average is subtracted, so that the estimate of A_u is unbiased and noise does not make a
    dead unit active. `InputError` for fewer than 2 examples or draws.
    """
    if len(images) < 2 or k < 2:
        raise InputError(
            f"The activity of units was requested for n = {len(images)} examples with k = {k} "
            f"draws, but it needs at least 2 of each; give more."
        )
    means = over_examples(
        eqx.Partial(posterior_means, k=k), model, images, observe, seed=seed, draws=k, memory=memory
    )
    return Activity(
        variance=tuple(np.var(m, axis=0, ddof=1) - np.mean(se2, axis=0) for m, se2 in means),
        mean=tuple(np.mean(m, axis=0) for m, _ in means),
    )


def ablated(
    model: AbstractAutoencoder,
    x: Float[Array, " d"],
    key: PRNGKeyArray,
    *,
    averages: tuple[Array, ...],
    k: int,
) -> list[Array]:
    """The loss of E_q[log p(h_{l−1}|h_l)] when h_u is fixed at its average, per unit of each layer.

    h_0 = x; the same k draws serve all units.
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


def ablation(
    model: AbstractAutoencoder,
    images: np.ndarray | Array,
    observe: Observer,
    *,
    seed: int = 0,
    k: int = 4,
) -> Ablation:
    """U_u = E_{x,q}[log p(h_{l−1}|h_l) − log p(h_{l−1}|h_l with h_u at its average)], h_0 = x.

    U_u is the loss in log density of the layer below without the unit. A_u can mislead in layers
    with a learned prior: a unit with q(h_u|h_{l−1}) = p(h_u|h_{l+1}) carries no information on x,
    yet its mean moves with h_{l+1}, and A_u depends on the scale of the unit. `InputError` for
    fewer than 2 examples.
    """
    averages = activity(model, images, observe, seed=seed).mean
    function = eqx.Partial(ablated, averages=tuple(map(jnp.asarray, averages)), k=k)
    lost = over_examples(function, model, images, observe, seed=seed, draws=k)
    return Ablation(
        cost=tuple(values.mean(axis=0, dtype=np.float64) for values in lost),
        error=tuple(values.std(axis=0, ddof=1) / math.sqrt(len(values)) for values in lost),
    )
