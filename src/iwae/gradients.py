"""Gradient estimators: from a bound and a model to a surrogate loss for autodiff.

An estimator is a function (model, x, h, log_q, bound) → (loss, value) of ONE example and its K
draws: the gradient of `loss` with respect to the model is the estimate of −∇bound, and `value` is
the bound itself. `log_q` is log q(h|x) as it came with the draws.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from iwae.bounds import Bound
from iwae.model import Model, draw

Scalar = Float[Array, ""]
Estimator = Callable[[Model, Array, Any, Float[Array, " k"], Bound], tuple[Scalar, Scalar]]


def reparam(
    model: Model, x: Array, h: Any, log_q: Float[Array, " k"], bound: Bound
) -> tuple[Scalar, Scalar]:
    """∇θ,φ bound(log w(x, h_φ(ε); θ, φ)): plain reparametrisation (Burda et al. Eq. 13)."""
    value = bound(model.log_joint(x, h) - log_q)
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
    h, log_q = draw(model, x, k, key)
    return estimator(model, x, h, log_q, bound)
