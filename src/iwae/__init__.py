"""Importance weighted autoencoders on JAX.

`train`, `evaluate` and `load` are the front door; `bounds`, `gradients`, `model`, `data` and the
other modules compose freely. Modules are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwae.runs import evaluate, load, train, train_replicas, train_together

__version__ = "0.2.3"
__all__ = ["__version__", "evaluate", "load", "train", "train_replicas", "train_together"]

_MODULES = (
    "models.bayesian",
    "bounds",
    "models.build",
    "storage.checkpoint",
    "config.schema",
    "data",
    "evaluation.evaluator",
    "storage.run_directory",
    "estimators.surrogate",
    "estimators.diagnostics",
    "models.likelihoods",
    "training.trainer",
    "models.autoencoder",
    "models.networks",
    "models.observation",
    "experiments.figures",
    "evaluation.posterior",
    "models.hierarchical",
    "plotting.report",
    "experiments.reproduce",
    "runs",
    "config.io",
    "numpyro",
    "experiments.toy_densities",
    "_utils.threefry",
    "evaluation.trained",
    "training.step",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("iwae.runs"), name)
    if name in _MODULES:
        return importlib.import_module(f"iwae.{name}")
    raise AttributeError(f"module 'iwae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
