"""NLL against minutes of training: recipes side by side, with snapshots on the way.

The clock of a run counts its steps and their compilation, over all sessions; validations, snapshots
and their evaluations do not count. Recipes with a schedule are made for their whole length, so
where a curve ends counts, and a shorter budget wants a recipe of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypedDict, cast

import numpy as np

from iwae import runs
from iwae._utils.checks import check_draws, require
from iwae._utils.files import write_atomic
from iwae.config.io import flatten, override, recipe
from iwae.config.schema import RunConfig
from iwae.evaluation.examples import mean_and_error
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.comparisons import CellCallbacks, versions
from iwae.models.base import AbstractAutoencoder
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError
from iwae.training.callbacks import Callback, Start, Validation

SNAPSHOTS = "nll-against-minutes.json"
"""The file of a run with its snapshots."""

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


@dataclass(frozen=True)
class Measure:
    """What is evaluated: L_k of the first `limit` examples of a split, with the same draws."""

    split: str
    k: int
    limit: int

    def __post_init__(self) -> None:
        check_draws(self.k)
        require(
            self.split in ("valid", "test"),
            f"split = {self.split!r} was given, but it must be valid or test.",
        )
        require(self.limit >= 1, f"limit = {self.limit} was given, but it must be at least 1.")


class Snapshots(Callback):
    """Evaluates a run's model at validations, by factors of √2 in training time, and the last one.

    Snapshots of earlier sessions are read from the run directory.
    """

    def __init__(self, path: Path, start: TrainedModel, measure: Measure):
        self.path, self.start, self.measure = path, start, measure
        self.taken: list[Snapshot] = []

    def on_start(self, event: Start) -> None:
        before = read(self.path, self.measure)
        self.taken = [s for s in before if s.epoch <= event.state.epoch]

    def is_due(self, minutes: float) -> bool:
        """Whether the training time has grown enough since the last snapshot."""
        last = self.taken[-1].minutes if self.taken else 0.0
        return minutes >= max(FIRST_MINUTES, SPACING * last)

    def on_validation(self, event: Validation) -> None:
        state, minutes = event.state, event.state.seconds / 60
        if self.is_due(minutes) or state.epoch == state.epochs:
            model = cast(AbstractAutoencoder, event.model())
            self.take(replace(self.start, model=model, epochs=state.epoch), minutes)

    def take(self, trained: TrainedModel, minutes: float) -> None:
        """Evaluate a model, and write all snapshots."""
        images = trained.data().split(self.measure.split)[: self.measure.limit]
        values = trained.log_likelihoods(images, k=self.measure.k, seed=0)
        nll, error = mean_and_error(-np.asarray(values, np.float64))
        self.taken.append(Snapshot(minutes, trained.epochs, nll, error))
        content = {**asdict(self.measure), "snapshots": [asdict(s) for s in self.taken]}
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / SNAPSHOTS, json.dumps(content, indent=1))


def read(path: Path, measure: Measure) -> tuple[Snapshot, ...]:
    """The snapshots of a run directory; none if they were evaluated otherwise.

    `InputError` if the file is damaged.
    """
    file = path / SNAPSHOTS
    if not file.exists():
        return ()
    try:
        of = persisted.typed(persisted.parsed(persisted.content_of(file)), _File)
    except MistypedError as error:
        raise persisted.damaged(file, "delete it, and train the run anew", str(error)) from error
    if Measure(of["split"], of["k"], of["limit"]) != measure:
        return ()
    return tuple(of["snapshots"])


class _File(TypedDict):
    """The content of `SNAPSHOTS`."""

    split: str
    k: int
    limit: int
    snapshots: list[Snapshot]


@dataclass(frozen=True)
class Curve:
    """The snapshots of a recipe's runs, by seed."""

    name: str
    config: RunConfig
    runs: Mapping[int, Sequence[Snapshot]]

    @property
    def points(self) -> list[list[tuple[float, float]]]:
        """(minutes, NLL) of the snapshots of each run."""
        return [[(s.minutes, s.nll) for s in run] for run in self.runs.values()]

    @property
    def minutes(self) -> float:
        """Training time of a whole run: the median over seeds."""
        return median(run[-1].minutes for run in self.runs.values())

    @property
    def nll(self) -> float:
        """NLL of the final models: the median over seeds."""
        return median(run[-1].nll for run in self.runs.values())

    @property
    def spread(self) -> float:
        """From the lowest to the highest final NLL."""
        finals = [run[-1].nll for run in self.runs.values()]
        return max(finals) - min(finals)

    @property
    def nll_se(self) -> float:
        """The standard error over examples: the largest among the final models."""
        return max(run[-1].nll_se for run in self.runs.values())

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
    resumed. `InputError` for two recipes of one name.
    """
    called = {Path(name).stem: override(recipe(name), **given) for name in names}
    require(
        len(called) == len(names),
        f"recipes = {','.join(names)} was given, but two have the same name; rename a file.",
    )
    return [
        Curve(
            name,
            config,
            {
                seed: _run(
                    override(config, seed=seed),
                    out / name / f"seed-{seed}",
                    measure,
                    callbacks.cell(f"{name}, seed {seed}", config.training.epochs),
                    data_dir,
                )
                for seed in seeds
            },
        )
        for name, config in called.items()
    ]


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
    snapshots.taken = snapshots.taken or list(read(path, measure))
    if not snapshots.taken or snapshots.taken[-1].epoch < trained.epochs:
        snapshots.take(trained, runs.training_seconds(trained) / 60)
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
                    {"seed": seed, "snapshots": [asdict(s) for s in taken]}
                    for seed, taken in curve.runs.items()
                ],
            }
            for curve in curves
        ],
    }
