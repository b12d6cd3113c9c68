"""Gradient estimators: from a bound and a model to a surrogate loss for autodiff.

An estimator is a function (model, x, h, bound) → (loss, value): the gradient of `loss` with respect
to the model is the estimate of −∇bound, and `value` is the bound itself. Both are for ONE example.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from iwae.bounds import Bound
from iwae.model import Model, log_weights

Scalar = Float[Array, ""]
Estimator = Callable[[Model, Array, Any, Bound], tuple[Scalar, Scalar]]


def reparam(model: Model, x: Array, h: Any, bound: Bound) -> tuple[Scalar, Scalar]:
    """∇θ,φ bound(log w(x, h_φ(ε); θ, φ)): plain reparametrisation (Burda et al. Eq. 13)."""
    value = bound(log_weights(model, x, h))
    return -value, value


ESTIMATORS: dict[str, Estimator] = {"reparam": reparam}
"""Estimators by the name that `--estimator` takes."""


def surrogate_loss(
    model: Model,
    x: Array,
    key: PRNGKeyArray,
    *,
    bound: Bound,
    k: int,
    estimator: Estimator = reparam,
) -> tuple[Scalar, Scalar]:
    """(loss, value) of one example with K fresh draws; differentiate `loss` in the model."""
    return estimator(model, x, model.propose(x, k, key), bound)
