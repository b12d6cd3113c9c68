"""Comparisons: cells, the runs that they train, and the resulting tables."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

import iwae
from iwae import runs
from iwae._utils import threefry
from iwae._utils.checks import check_seed
from iwae._utils.distributed import computing
from iwae.config.io import differences, flatten, override, recipe
from iwae.config.schema import PARAMETERS, ObjectiveConfig, Precision, RunConfig
from iwae.data import Dataset
from iwae.errors import InputError, nearest
from iwae.estimators import diagnostics
from iwae.estimators.diagnostics import Measurement, Slope
from iwae.evaluation.examples import mean_and_error
from iwae.evaluation.trained import Evaluation, TrainedModel
from iwae.experiments.tables import Setting
from iwae.plotting import report
from iwae.training import gradient_step
from iwae.training.callbacks import Callback
from iwae.training.trainer import NonFiniteError


@dataclass(frozen=True)
class Cell:
    """One entry of a comparison: its name, its directory, and its own settings."""

    name: str
    directory: str
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class Result:
    """A cell's evaluation, and its NLL minus the first cell's, paired: (mean, standard error)."""

    cell: Cell
    evaluation: Evaluation
    difference: tuple[float, float] | None
    seconds: float = field(compare=False)
    """Training time."""

    @property
    def name(self) -> str:
        return self.cell.name


class DivergedError(NonFiniteError):
    """Trainings of a comparison that were not finite, by name, beside the results of the others."""

    def __init__(self, results: Sequence[Result], failures: Mapping[str, str]):
        self.results, self.failures = list(results), dict(failures)
        super().__init__(diverged(failures))


def diverged(failures: Mapping[str, str]) -> str:
    """The message about trainings that were not finite, from a message for each by its name."""
    first = next(iter(failures))
    if len(failures) == 1:
        return f"{first} was not trained to its end. {failures[first]}"
    return (
        f"{', '.join(failures)} were not trained to their end. The first of them: {failures[first]}"
    )


class CellCallbacks(Protocol):
    """Something that gives each cell its callback."""

    def cell(self, name: str, epochs: int) -> Callback: ...


def _bound_cell(objective: str, k: int) -> Cell:
    name = f"{objective.upper()}, K = {k}" if k > 1 else "VAE = IWAE, K = 1"
    return Cell(name, f"{objective}-{k}", {"objective": objective, "k": k})


DEMO_CELLS = tuple(
    _bound_cell(*of) for of in (("vae", 1), ("vae", 5), ("vae", 50), ("iwae", 5), ("iwae", 50))
)
DEMO_K = 1000


def demo(out: Path, *, callbacks: CellCallbacks) -> tuple[list[Result], Path]:
    """Train and evaluate every cell of the demonstration in `out`, and write the report there."""
    report.check_installed()
    results = compare(DEMO_CELLS, recipe("demo"), out, k=DEMO_K, callbacks=callbacks)
    page = out / "report.html"
    report.write([out / cell.directory for cell in DEMO_CELLS], page, overwrite=True)
    return results, page


def _objective_cell(name: str, objective: str, **shape: Setting) -> Cell:
    unshaped: dict[str, Setting] = dict.fromkeys(PARAMETERS.values())
    return Cell(name, name.lower(), {**unshaped, "objective": objective, **shape})


COMPARISONS = {
    "estimators": tuple(
        Cell(e, e, {"estimator": e})
        for e in ("reparam", "stl", "dreg", "rws-dreg", "aisle-kl", "aisle-chi2", "rws")
    ),
    "objectives": (
        _objective_cell("IWAE", "iwae"),
        _objective_cell("VAE", "vae", backward_draws=None),
        _objective_cell("CIWAE-0.5", "ciwae", beta=0.5),
        _objective_cell("MIWAE-5", "miwae", m=5),
        _objective_cell("PIWAE-5", "piwae", m=5, backward_draws=None),
        _objective_cell("VR-IWAE-0.5", "vr-iwae", alpha=0.5),
        _objective_cell("JVI-1", "jvi", order=1),
    ),
    "precisions": tuple(Cell(p, p, {"precision": p}) for p in get_args(Precision)),
}
"""Comparisons of `iwae compare`: estimators of one objective, objectives under one estimator, and
precisions of matrix products in training, with all other settings equal."""


def comparison(name: str, config: RunConfig, start: RunConfig) -> tuple[Cell, ...]:
    """The cells of a comparison; `InputError` for an unknown name, or if `config` differs from the
    recipe `start` in what the comparison varies."""
    if name not in COMPARISONS:
        known = nearest(name, list(COMPARISONS))
        raise InputError(f"There is no comparison {name!r}; {known}.")
    varied = name.removesuffix("s")
    given = flatten(config)[varied]
    if given != flatten(start)[varied]:
        raise InputError(
            f"{varied} = {given} was given, but a comparison of {name} trains every one of them; "
            f"leave it out."
        )
    check_own({cell.name: cell.settings for cell in COMPARISONS[name]}, config, start)
    k = config.objective.k
    for cell in COMPARISONS[name]:
        groups = cell.settings.get("m")
        if isinstance(groups, int) and k % groups:
            raise InputError(
                f"k = {k} was given, but {cell.name} needs {groups} groups of importance samples "
                f"of equal size; give a --train-k that {groups} divides."
            )
    return COMPARISONS[name]


def check_own(
    own: Mapping[str, Mapping[str, Setting]], config: RunConfig, start: RunConfig, instead: str = ""
) -> None:
    """`InputError` if `config` differs from the recipe in a setting that a cell sets itself.

    `own` holds the settings of each cell by its name; `instead` is the advice after "leave it out".
    """
    for setting, given, _ in differences(config, start):
        for name, settings in own.items():
            if settings.get(setting, given) != given:
                raise InputError(
                    f"{setting} = {given} was given, but {name} has its own; leave it out{instead}."
                )
    for setting, given in config.stages[-1].given.items() if config.stages else ():
        limited = "k" if setting == "max_k" else setting
        for name, settings in own.items():
            if limited in settings:
                raise InputError(
                    f"The last stage has {setting} = {given}, but {name} has its own; leave it "
                    f"out, or add a stage in which it is that of each model."
                )


def compare(
    cells: Sequence[Cell],
    config: RunConfig,
    out: Path,
    *,
    k: int,
    callbacks: CellCallbacks,
    limit: int | None = None,
    data_dir: str | Path | None = None,
) -> list[Result]:
    """Train a run in `out` for every cell, with `config` and its own settings, and evaluate L_k.

    Finished runs are reused and interrupted ones resumed. All models are evaluated on the same
    binarised test images, so NLLs are compared with the first cell's image by image.
    `DivergedError`, after all others were made, if the training of a cell is not finite.
    """
    configs = [override(config, **cell.settings) for cell in cells]
    results: list[Result] = []
    failures: dict[str, str] = {}
    first: np.ndarray | None = None
    for cell, own in zip(cells, configs, strict=True):
        callback = callbacks.cell(cell.name, own.training.epochs)
        try:
            trained = finished(out / cell.directory, own, callback, data_dir)
        except NonFiniteError as error:
            failures[cell.name] = str(error)
            continue
        e = runs.evaluate(trained, k=k, limit=limit)
        values = e.log_likelihoods
        apart = None if first is None else mean_and_error(first - values)
        first = values if first is None else first
        results.append(Result(cell, e, apart, runs.training_seconds(trained)))
    if failures:
        raise DivergedError(results, failures)
    return results


def record(
    config: RunConfig, results: list[Result], failures: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The results with everything needed to reproduce them, and why others are missing."""
    settings = _given(flatten(config))
    own = {name for result in results for name in result.cell.settings}
    others = {name: settings.pop(name) for name in own & settings.keys()}
    return {
        **versions(),
        "settings": settings,
        "cells": [
            {
                "name": r.name,
                "settings": {
                    n: v for n, v in {**others, **r.cell.settings}.items() if v is not None
                },
                **_kept(r.evaluation),
                "difference": known(r.difference),
                "training_seconds": r.seconds,
            }
            for r in results
        ],
        **({"failures": dict(failures)} if failures else {}),
    }


def _given(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings without those that are None."""
    return {name: value for name, value in settings.items() if value is not None}


def _kept(evaluation: Evaluation) -> dict[str, object]:
    """The fields of an evaluation that a record keeps."""
    whole = evaluation.to_json()
    return {n: whole[n] for n in ("k", "n", "nll", "nll_se", "active_units", "seed")}


@computing()
def gradients(
    source: Path | RunConfig,
    objectives: Mapping[int, ObjectiveConfig],
    estimators: Sequence[str],
    *,
    repeats: int,
    examples: int,
    seed: int,
    data_dir: str | Path | None = None,
) -> tuple[TrainedModel, list[Measurement], list[Slope]]:
    """Gradient diagnostics of the model of a run, or of the untrained model of a configuration."""
    check_seed(seed)
    if not objectives:
        raise InputError("ks = () was given, but there is nothing to measure; give one K or more.")
    if isinstance(source, RunConfig):
        trained = runs.untrained(source, data_dir=data_dir)
    else:
        trained = runs.load(source, data_dir=data_dir)
    train = trained.data().train
    if not 1 <= examples <= len(train):
        raise InputError(
            f"examples = {examples} was given, but there are {len(train)} to train on; give 1 to "
            f"{len(train)}."
        )
    images = jnp.asarray(train[:examples])
    keys = jax.random.split(threefry.key(seed), len(images))
    measured = diagnostics.measure(
        trained.model,
        jax.vmap(trained.seen.observer)(images, keys),
        bounds=lambda k: gradient_step.objective_bounds(objectives[k]),
        estimators=estimators,
        ks=objectives,
        repeats=repeats,
        seed=seed,
    )
    return trained, measured, diagnostics.slopes(measured)


def gradients_record(
    trained: TrainedModel,
    measured: list[Measurement],
    slopes: list[Slope],
    about: Mapping[str, object],
) -> dict[str, object]:
    """Gradient diagnostics with everything needed to reproduce them."""
    return {
        **versions(),
        "settings": dict(about),
        "model": _given(flatten(trained.config)),
        "passes": trained.epochs,
        "measurements": [_finite(dataclasses.asdict(m)) for m in measured],
        "slopes": [_finite(dataclasses.asdict(s)) for s in slopes],
    }


def _finite(row: Mapping[str, object]) -> dict[str, object]:
    """The row with None for non-finite numbers, which JSON lacks."""
    lost = lambda v: isinstance(v, float) and not math.isfinite(v)
    return {name: None if lost(value) else value for name, value in row.items()}


def versions() -> dict[str, str]:
    """Versions and device, for a record."""
    return {
        "iwae": iwae.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def known(figure: tuple[float, float] | None) -> list[float | None] | None:
    """A figure for a record, with None for an unknown error, which is nan."""
    return None if figure is None else [None if math.isnan(v) else v for v in figure]


def finished(
    path: Path,
    config: RunConfig,
    callback: Callback,
    data_dir: str | Path | None = None,
    data: Dataset | None = None,
) -> TrainedModel:
    """The run in `path`: trained, resumed or loaded as needed."""
    return runs.train(
        config, data=data, out=path, resume=None, callbacks=[callback], data_dir=data_dir
    )
