"""Metrics of a trained model that papers report beside L_K, with standard errors."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from iwae import bounds
from iwae._utils.formatting import UNKNOWN, Figure
from iwae.evaluation.examples import mean_and_error, over_examples
from iwae.evaluation.likelihood import repetitions
from iwae.evaluation.trained import TrainedModel
from iwae.models.base import AbstractAutoencoder, ModelLike, draw_log_weights

Figures = dict[str, Figure]
"""Values in nats with their standard errors, by name."""


LogLikelihoods = Float[np.ndarray, " n"]
"""L_K of each test image, in nats."""


@dataclass(frozen=True)
class Measure:
    """A metric of a model, given the K and the L_K of its evaluation."""

    take: Callable[[TrainedModel, int, LogLikelihoods], Figures]
    evaluations: int = 0
    """Number of further evaluations with as many importance samples and images that it needs."""


def _gap(trained: TrainedModel, k: int, l_k: LogLikelihoods) -> Figures:
    images = trained.data().split("train")[: len(l_k)]
    train, error = mean_and_error(-trained.log_likelihoods(images, k=k))
    nll, nll_error = mean_and_error(-l_k)
    return {
        "train NLL": (train, error),
        "test − train": (nll - train, math.hypot(nll_error, error)),
    }


def _pruned(trained: TrainedModel, k: int, l_k: LogLikelihoods) -> Figures:
    nll, change = _of_part(trained, trained.without_inactive(), k, l_k)
    return {"NLL without inactive units": nll, "change": change}


def _used(trained: TrainedModel, k: int, l_k: LogLikelihoods) -> Figures:
    used = trained.only_used()
    nll, change = _of_part(trained, used, k, l_k)
    units = {f"used units of h{i}": (n, UNKNOWN) for i, n in enumerate(used.latents, 1)}
    return units | {"NLL of the used units alone": nll, "change by the unused": change}


def _of_part(
    trained: TrainedModel, part: AbstractAutoencoder, k: int, l_k: LogLikelihoods
) -> tuple[Figure, Figure]:
    """The NLL of a model with some of the units, and its difference to the NLL with all."""
    images = trained.data().split("test")[: len(l_k)]
    values = dataclasses.replace(trained, model=part).log_likelihoods(images, k=k)
    return mean_and_error(-values), mean_and_error(l_k - values)


def _bound(trained: TrainedModel, _: int, l_k: LogLikelihoods) -> Figures:
    k = trained.config.objective.k
    images = trained.data().split("test")[: len(l_k)]
    return {f"−L_{k}": mean_and_error(-trained.log_likelihoods(images, k=k))}


ORDERS = {"ELBO": bounds.elbo, "IWAE": bounds.iwae} | {
    f"JVI-{m}": eqx.Partial(bounds.jvi, order=m) for m in (1, 2)
}
"""Estimators of log p(x) of Nowozin (2018)."""


def jackknives(
    model: ModelLike, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int
) -> Float[Array, " estimators"]:
    """Every estimate of `ORDERS` from the same K importance samples."""
    log_w = draw_log_weights(model, x, k, key)
    return jnp.stack([estimate(log_w) for estimate in ORDERS.values()])


def _jackknife(trained: TrainedModel, _: int, l_k: LogLikelihoods) -> Figures:
    k = trained.config.objective.k
    images = trained.data().split("test")[: len(l_k)]
    values = over_examples(
        eqx.Partial(jackknives, k=k), trained.model, images, trained.seen.observer, seed=0, draws=k
    )
    return {f"NLL by {name}": mean_and_error(-v) for name, v in zip(ORDERS, values.T, strict=True)}


REPEATS, REPEATED = 200, 200
"""Number of estimates per image, and of images, for the mean absolute deviation."""


def repeated(
    model: ModelLike, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int, repeats: int
) -> Float[Array, " repeats"]:
    """Independent estimates log p̂(x) = log (1/K) Σ_i w_i, from other draws than L_K."""
    one = lambda key: bounds.iwae(draw_log_weights(model, x, k, key))
    return jax.lax.map(one, repetitions(key, repeats))


def _deviation(trained: TrainedModel, _: int, l_k: LogLikelihoods) -> Figures:
    """E|log p̂ − E log p̂| ≤ 2 + 2δ, δ = log p(x) − L_K (Burda et al., appendix).

    δ uses the L_K of the evaluation in place of log p(x), which makes it smaller.
    """
    k = trained.config.objective.k
    images = trained.data().split("test")[: min(len(l_k), REPEATED)]
    values = over_examples(
        eqx.Partial(repeated, k=k, repeats=REPEATS),
        trained.model,
        images,
        trained.seen.observer,
        seed=0,
        draws=k,
    )
    means = values.mean(axis=1, dtype=np.float64)
    deviations = np.abs(values - means[:, None]).mean(axis=1)
    limits = 2 + 2 * np.maximum(0, l_k[: len(images)] - means)
    return {
        "E|log p̂ − E log p̂|": mean_and_error(deviations),
        "2 + 2δ": mean_and_error(limits),
        "largest ratio": (float(np.max(deviations / limits)), UNKNOWN),
    }


MEASURES = {
    "gap": Measure(_gap, evaluations=1),
    "pruned": Measure(_pruned, evaluations=1),
    "used": Measure(_used, evaluations=1),
    "bound": Measure(_bound),
    "jackknife": Measure(_jackknife),
    "deviation": Measure(_deviation),
}
"""Metrics by the name in a job: the NLL of as many training images; the NLL without inactive units;
the used units, and the NLL with only these; the bound at the K of training; jackknife estimates of
log p(x) at that K; the mean absolute deviation of log p̂ and its limit."""
