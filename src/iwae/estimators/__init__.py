"""Gradient estimators: from a bound and a model to a loss; and gradient diagnostics.

Names are imported when first used, so that `rules` can be used without importing JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iwae.estimators.estimators import ESTIMATORS as ESTIMATORS
    from iwae.estimators.estimators import Estimator as Estimator
    from iwae.estimators.estimators import Weights as Weights
    from iwae.estimators.surrogate import surrogate_loss as surrogate_loss

_NAMES = {
    "ESTIMATORS": "iwae.estimators.estimators",
    "Estimator": "iwae.estimators.estimators",
    "Weights": "iwae.estimators.estimators",
    "surrogate_loss": "iwae.estimators.surrogate",
}
_MODULES = ("diagnostics", "estimators", "paths", "rules", "surrogate")

__all__ = [*_NAMES]


def __getattr__(name: str) -> object:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"iwae.estimators.{name}")
    raise AttributeError(f"module 'iwae.estimators' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
