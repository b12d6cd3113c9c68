"""NLL against minutes of training: recipes side by side, with snapshots on the way.

The clock of a run counts its steps over all sessions, and their compilation where there is any:
later seeds find the programs of the first. Validations, snapshots and their evaluations do not
count. Recipes with a schedule are made for their whole length, so where a curve ends counts, and a
shorter budget wants a recipe of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np

from iwae import runs
from iwae._utils.checks import check_draws, require
from iwae._utils.files import write_atomic
from iwae._utils.formatting import with_error
from iwae.config.io import flatten, override, recipe
from iwae.config.schema import RunConfig
from iwae.evaluation.examples import mean_and_error
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.comparisons import CellCallbacks, versions
from iwae.models.base import AbstractAutoencoder
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError
from iwae.storage.run_directory import read_progress
from iwae.training.callbacks import Callback, Start, Validation
from iwae.training.trainer import NonFiniteError

SPACING = 2**0.5
"""The factor from one snapshot to the next in training time."""

FIRST_MINUTES = 0.25


@dataclass(frozen=True)
class Snapshot:
    """A model on the way, evaluated."""

    minutes: float
    """Training time so far."""
    epoch: int
    nll: float
    """−L_K, mean over the examples, in nats."""
    nll_se: float
    """Its standard error over the examples."""
    final: bool
    """Whether it is the resulting model of the run, which with patience is the best one."""


@dataclass(frozen=True)
class Measure:
    """What is evaluated: L_k of the first `limit` examples of a split, with the same draws."""

    split: str
    k: int
    limit: int

    def file_of(self, run: Path) -> Path:
        """The file beside a run directory that holds its snapshots."""
        return run.with_name(f"{run.name}-nll-{self.split}-{self.k}-{self.limit}.json")

    def __post_init__(self) -> None:
        check_draws(self.k)
        require(
            self.split in ("valid", "test"),
            f"split = {self.split!r} was given, but it must be valid or test.",
        )
        require(self.limit >= 1, f"limit = {self.limit} was given, but it must be at least 1.")


class Snapshots(Callback):
    """Evaluates a run's present model at validations, by factors of √2 in training time.

    Snapshots of earlier sessions are read from the file beside the run directory.
    """

    def __init__(self, path: Path, start: TrainedModel, measure: Measure):
        self.file, self.start, self.measure = measure.file_of(path), start, measure
        self.taken: list[Snapshot] = list(read(self.file))

    def on_start(self, event: Start) -> None:
        minutes = event.state.seconds / 60
        self.taken = [s for s in self.taken if s.minutes <= minutes and not s.final]

    def is_due(self, minutes: float) -> bool:
        """Whether the training time has grown enough since the last snapshot."""
        last = self.taken[-1].minutes if self.taken else 0.0
        return minutes >= max(FIRST_MINUTES, SPACING * last)

    def on_validation(self, event: Validation) -> None:
        state, minutes = event.state, event.state.seconds / 60
        if self.is_due(minutes):
            model = cast(AbstractAutoencoder, event.model())
            self.take(replace(self.start, model=model, epochs=state.epoch), minutes)

    def take(self, trained: TrainedModel, minutes: float, *, final: bool = False) -> None:
        """Evaluate a model, and write all snapshots; one of the same time is replaced.

        A snapshot whose NLL is not finite is left out; `NonFiniteError` if it is final.
        """
        images = trained.data().split(self.measure.split)[: self.measure.limit]
        values = trained.log_likelihoods(images, k=self.measure.k, seed=0)
        nll, error = mean_and_error(-np.asarray(values, np.float64))
        if not math.isfinite(nll):
            if final:
                raise NonFiniteError(
                    f"L_{self.measure.k} of the final model is not finite. Try a smaller "
                    f"--learning-rate, and check that the data fit the likelihood."
                )
            return
        before = [s for s in self.taken if s.minutes < minutes]
        self.taken = [*before, Snapshot(minutes, trained.epochs, nll, error, final)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, json.dumps([asdict(s) for s in self.taken], indent=1))


def read(file: Path) -> tuple[Snapshot, ...]:
    """The snapshots in a file, none if there is none; `InputError` if it is damaged."""
    if not file.exists():
        return ()
    try:
        kind = list[Snapshot]
        return tuple(persisted.typed(persisted.parsed(persisted.content_of(file)), kind))
    except MistypedError as error:
        raise persisted.damaged(file, "delete it, and train the run anew", str(error)) from error


@dataclass(frozen=True)
class Curve:
    """The snapshots of a recipe's runs, by seed."""

    name: str
    config: RunConfig
    runs: Mapping[int, Sequence[Snapshot]]
    failures: Mapping[int, str] = field(default_factory=dict)
    """Why runs that were not finite have no final model, by seed."""

    @property
    def finals(self) -> list[Snapshot]:
        """The resulting models of the runs that were trained to their end."""
        return [run[-1] for seed, run in self.runs.items() if seed not in self.failures]

    @property
    def points(self) -> list[list[tuple[float, float]]]:
        """(minutes, NLL) of the snapshots of each run that has any."""
        return [[(s.minutes, s.nll) for s in run] for run in self.runs.values() if run]

    @property
    def minutes(self) -> float | None:
        """Training time of a whole run: the median over seeds; None if none came to its end."""
        return median(s.minutes for s in self.finals) if self.finals else None

    @property
    def nll(self) -> float:
        """NLL of the final models: the median over seeds, infinite for those that failed."""
        return median([s.nll for s in self.finals] + [math.inf] * len(self.failures))

    @property
    def spread(self) -> float | None:
        """From the lowest to the highest NLL of the final models; None for one run, or if any
        failed."""
        if len(self.runs) == 1 or self.failures:
            return None
        return max(s.nll for s in self.finals) - min(s.nll for s in self.finals)

    @property
    def nll_se(self) -> float:
        """The standard error over examples: the largest among the final models."""
        return max((s.nll_se for s in self.finals), default=math.inf)

    @property
    def nll_in_words(self) -> str:
        """The median NLL with its standard error over examples, and how many runs failed."""
        found = (
            with_error(float(self.nll), self.nll_se) if math.isfinite(self.nll) else "not finite"
        )
        if not self.failures:
            return found
        return f"{found} ({len(self.failures)} of {len(self.runs)} failed)"

    def reaching(self, target: float) -> float | None:
        """Minutes to the first snapshot of at most this NLL, the median over seeds; None if more
        than half of the runs do not reach it."""
        each = [
            next((s.minutes for s in run if s.nll <= target), math.inf)
            for run in self.runs.values()
        ]
        found = median(each)
        return found if math.isfinite(found) else None


def compared(
    names: Sequence[str],
    given: Mapping[str, object],
    out: Path,
    *,
    seeds: Sequence[int],
    measure: Measure,
    callbacks: CellCallbacks,
    data_dir: str | Path | None = None,
) -> list[Curve]:
    """Train every recipe by name or file with every seed, in `out`, and evaluate it on the way.

    `given` settings replace those of each recipe. Finished runs are reused, interrupted ones
    resumed; one that is not finite is among the failures of its curve. `InputError` for two recipes
    of one name.
    """
    require(len(names) > 0, "recipes = '' was given, but there is nothing to compare; give some.")
    called = {Path(name).stem: override(recipe(name), **given) for name in names}
    require(
        len(called) == len(names),
        f"recipes = {','.join(names)} was given, but two have the same name; rename a file.",
    )
    first, *others = called.items()
    for name, config in others:
        for of in ("dataset", "values", "binarization", "likelihood"):
            own, shared = flatten(config)[of], flatten(first[1])[of]
            require(
                own == shared,
                f"Recipes are compared on the same data, but {name} has {of} = {own} and "
                f"{first[0]} {shared}; give --{of}.",
            )
    curves = []
    for name, config in called.items():
        found: dict[int, Sequence[Snapshot]] = {}
        failures: dict[int, str] = {}
        for seed in seeds:
            path = out / name / f"seed-{seed}"
            callback = callbacks.cell(f"{name}, seed {seed}", config.training.epochs)
            try:
                found[seed] = _run(override(config, seed=seed), path, measure, callback, data_dir)
            except NonFiniteError as error:
                found[seed], failures[seed] = read(measure.file_of(path)), str(error)
        curves.append(Curve(name, config, found, failures))
    return curves


def _run(
    config: RunConfig,
    path: Path,
    measure: Measure,
    callback: Callback,
    data_dir: str | Path | None,
) -> tuple[Snapshot, ...]:
    """The snapshots of one run, which is trained, resumed or read."""
    snapshots = Snapshots(path, runs.untrained(config, data_dir=data_dir), measure)
    trained = runs.train(
        config, out=path, resume=None, callbacks=[callback, snapshots], data_dir=data_dir
    )
    minutes = read_progress(path).seconds / 60
    last = snapshots.taken[-1] if snapshots.taken else None
    if last is None or not last.final or last.minutes != minutes:
        snapshots.take(trained, minutes, final=True)
    return tuple(snapshots.taken)


def record(curves: Sequence[Curve], measure: Measure) -> dict[str, object]:
    """All snapshots with everything needed to reproduce them."""
    return {
        **versions(),
        "measure": asdict(measure),
        "recipes": [
            {
                "name": curve.name,
                "settings": {n: v for n, v in flatten(curve.config).items() if v is not None},
                "runs": [
                    {
                        "seed": seed,
                        "snapshots": [asdict(s) for s in taken],
                        **({"failure": curve.failures[seed]} if seed in curve.failures else {}),
                    }
                    for seed, taken in curve.runs.items()
                ],
            }
            for curve in curves
        ],
    }
