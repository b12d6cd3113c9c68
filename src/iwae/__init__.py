"""Importance weighted autoencoders on JAX.

`train`, `evaluate` and `load` are the main entry points. Each package covers one idea: the
`bounds`, the `models` that yield log-weights, the `estimators` of a bound's gradient, `evaluation`
and `training`; all compose freely. What is named here is imported when it is first used.
"""

import importlib

from iwae import _moved

TYPE_CHECKING = False  # what typing has, which takes longer to import than this package

if TYPE_CHECKING:
    from iwae import bounds as bounds
    from iwae import config as config
    from iwae import data as data
    from iwae import errors as errors
    from iwae import estimators as estimators
    from iwae import evaluation as evaluation
    from iwae import experiments as experiments
    from iwae import models as models
    from iwae import numpyro as numpyro
    from iwae import plotting as plotting
    from iwae import runs as runs
    from iwae import storage as storage
    from iwae import training as training
    from iwae.config import RunConfig as RunConfig
    from iwae.errors import InputError as InputError
    from iwae.runs import evaluate as evaluate
    from iwae.runs import load as load
    from iwae.runs import train as train
    from iwae.runs import train_replicas as train_replicas
    from iwae.runs import train_together as train_together
    from iwae.sklearn import IWAE as IWAE
    from iwae.sklearn import IWAEImputer as IWAEImputer

__version__ = "0.2.3"

_MODULES = (
    "bounds",
    "config",
    "data",
    "errors",
    "estimators",
    "evaluation",
    "experiments",
    "models",
    "numpyro",
    "plotting",
    "runs",
    "storage",
    "training",
)

_NAMES = {
    "IWAE": "iwae.sklearn",
    "IWAEImputer": "iwae.sklearn",
    "InputError": "iwae.errors",
    "RunConfig": "iwae.config",
    "evaluate": "iwae.runs",
    "load": "iwae.runs",
    "train": "iwae.runs",
    "train_replicas": "iwae.runs",
    "train_together": "iwae.runs",
}

__all__ = ["__version__", *_MODULES, *_NAMES]

_moved.install()


def __getattr__(name: str) -> object:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES or name in _moved.MODULES:
        return importlib.import_module(f"iwae.{name}")
    raise AttributeError(f"module 'iwae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
