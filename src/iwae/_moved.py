"""Modules under the names that version 0.2 had for them, for one version and with a warning."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "applied": "cli.applied",
    "bayesian": "models.bayesian",
    "build": "models.build",
    "cells": "experiments.jobs",
    "checkpoint": "storage.checkpoint",
    "checks": "_utils.checks",
    "densities": "models.likelihoods.densities",
    "dependence": "experiments.hiwae",
    "devices": "_utils.distributed",
    "draws": "models.likelihoods.draws",
    "figures": "plotting.figures",
    "files": "_utils.files",
    "flags": "cli.flags",
    "folder": "storage.run_directory",
    "gradients": "estimators.surrogate",
    "jackknife": "bounds.jackknife",
    "laboratory": "estimators.diagnostics",
    "likelihoods": "models.likelihoods",
    "loop": "training.trainer",
    "measures": "evaluation.metrics",
    "model": "models.autoencoder",
    "networks": "models.networks",
    "observation": "models.observation",
    "outputs": "cli.outputs",
    "papers": "experiments.papers",
    "persisted": "storage.persisted",
    "plates": "experiments.figures",
    "posterior": "evaluation.posterior",
    "programs": "_utils.programs",
    "progress": "cli.progress",
    "proposals": "models.hierarchical",
    "published": "cli.published",
    "records": "experiments.records",
    "replication": "experiments.replication",
    "report": "plotting.report",
    "reproduce": "experiments.reproduce",
    "research": "cli.research",
    "results": "experiments.results",
    "settings": "config.io",
    "soap": "training.soap",
    "special": "models.likelihoods.special",
    "starts": "models.likelihoods.starts",
    "svi": "numpyro",
    "tables": "experiments.tables",
    "targets": "experiments.toy_densities",
    "terminal": "cli.terminal",
    "threefry": "_utils.threefry",
    "trained": "evaluation.trained",
    "workers": "experiments.executors",
}
"""Where each module of 0.2 is now."""


class _Moved:
    """Finds `iwae.OLD`, and gives a module whose attributes are those of the present one.

    A finder and loader by its methods alone: `importlib.abc` takes longer to import than iwae.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "iwae" or name not in MODULES:
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """The module is a plain one."""

    def exec_module(self, module: ModuleType) -> None:
        import warnings

        here = f"iwae.{MODULES[module.__name__.partition('.')[2]]}"
        warnings.warn(
            f"{module.__name__} is {here} now; the former name goes with the next version.",
            DeprecationWarning,
            stacklevel=2,
        )
        present = importlib.import_module(here)
        module.__dict__.update({n: v for n, v in vars(present).items() if not n.startswith("__")})
        module.__doc__ = present.__doc__


def install() -> None:
    """Have `import` look here for what it does not find."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
