"""Tables of papers: which tasks they are made of, and our figures beside the published ones."""

import contextlib
import dataclasses
import fnmatch
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae import data, runs
from iwae._utils.formatting import UNKNOWN, Figure, mean_units, units_in_words
from iwae.config.io import differences, override
from iwae.config.schema import RunConfig
from iwae.errors import InputError, nearest
from iwae.evaluation.evaluator import mean_and_error
from iwae.evaluation.metrics import MEASURES
from iwae.experiments.jobs import (
    LIKELIHOODS,
    Failure,
    Job,
    Result,
    log_likelihoods,
    measured,
    passes,
    recorded,
    state,
)
from iwae.experiments.tables import Cell, Experiment
from iwae.training.callbacks import Callback, StepChunk


def placed(
    experiment: Experiment, datasets: Sequence[str] = (), everywhere: str | None = None
) -> tuple[Cell, ...]:
    """The cells of an experiment on these data sets (none: on all).

    A data set may be given as `published=ours`, which puts ours in its place: such cells have no
    published figures. `everywhere` stands for every one. `InputError` if there is none such.
    """
    published = list(dict.fromkeys(str(cell.settings["dataset"]) for cell in experiment.cells))
    places = dict(part.partition("=")[::2] for part in datasets) or dict.fromkeys(published, "")
    if everywhere is not None and any(places.values()):
        raise InputError(
            f"datasets = {','.join(datasets)} was given, but every cell is of {everywhere} here; "
            f"give another --recipe."
        )
    for name in places:
        if name not in published:
            raise InputError(
                f"datasets = {','.join(datasets)} was given, but no cell is of {name!r}; "
                f"{nearest(name, published)}, or {published[0]}={name} to put it in its place."
            )
    cells: dict[str, Cell] = {}
    for cell in experiment.cells:
        dataset = str(cell.settings["dataset"])
        if dataset in places:
            moved = _moved(cell, dataset, everywhere or places[dataset] or dataset)
            there = cells.setdefault(moved.name, moved)
            if there.settings["dataset"] != moved.settings["dataset"]:
                raise InputError(
                    f"datasets = {','.join(datasets)} was given, but both would be called "
                    f"{Path(places[dataset]).name}; rename one of the files."
                )
    return tuple(cells.values())


def fitting(cells: Sequence[Cell], pattern: str) -> tuple[Cell, ...]:
    """Those whose name fits a pattern like mnist/1/*; `InputError` if there are none."""
    found = tuple(cell for cell in cells if fnmatch.fnmatch(cell.name, pattern))
    if not found:
        raise InputError(
            f"cells = {pattern} was given, but no cell has such a name; they are "
            f"{', '.join(cell.name for cell in cells)}."
        )
    return found


def _moved(cell: Cell, dataset: str, to: str) -> Cell:
    """The cell on another data set, of which nothing was published."""
    if to == dataset:
        return cell
    settings = {**cell.settings, "dataset": to if to in data.NAMES else str(Path(to).resolve())}
    if settings.get("binarization") == "none":  # as of data that are binary themselves
        settings["binarization"] = "fixed"
    named = lambda name: name and name.replace(dataset, Path(to).name, 1)
    return Cell(
        name=named(cell.name),
        settings=settings,
        against=named(cell.against),
        after=named(cell.after),
        measures=cell.measures,
    )


def tasks_of(
    cells: Sequence[Cell],
    config: RunConfig,
    start: RunConfig,
    *,
    seeds: Sequence[int],
    k: int,
    limit: int | None,
) -> dict[str, list[Job]]:
    """The tasks of each cell by its name, one for each seed.

    `start` is the recipe that `config` was made from; `InputError` if they differ in what is the
    cells' own.
    """
    own = set.intersection(*(set(cell.settings) for cell in cells))
    refuse(config, start, own, "choose by --cells")
    tasks: dict[str, list[Job]] = {}
    for cell in sorted(cells, key=lambda cell: cell.after is not None):
        begun = [None] * len(seeds) if cell.after is None else tasks[cell.after]
        basis = config if cell.after is None else continued(config)
        tasks[cell.name] = [
            Job(override(basis, **cell.settings, seed=seed), k, limit, cell.measures, after)
            for seed, after in zip(seeds, begun, strict=True)
        ]
    return tasks


def continued(config: RunConfig) -> RunConfig:
    """How a converged model is trained on: 3^7 of the 3,280 passes at a tenth of the first
    learning rate (Burda et al. §5)."""
    t = config.training
    passes = max(1, round(t.epochs * 3**7 / 3280))
    return override(
        config,
        epochs=passes,
        learning_rate=t.learning_rate / 10,
        **CONTINUED,
    )


CONTINUED: dict[str, Any] = {"schedule": "constant", "warmup": 0}
"""How the learning rate of such a training goes, whatever that of the first did."""


def refuse(config: RunConfig, start: RunConfig, own: set[str], instead: str) -> None:
    """`InputError` if `config` differs from the recipe in what is each model's own."""
    for name, value, _ in differences(config, start):
        if name in own:
            raise InputError(
                f"{name} = {value} was given, but every model that is compared has its own; leave "
                f"it out, and {instead}."
            )


def own_settings(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """By the name of each cell, what is its own whatever the recipe says."""
    return {cell.name: {**cell.settings, **(CONTINUED if cell.after else {})} for cell in cells}


@dataclass(frozen=True)
class Row:
    """A cell with what there is of it."""

    cell: Cell
    state: str
    """done, or what there is instead."""
    results: list[dict[str, Any]]
    """Of each seed, when all are there."""
    reference: list[dict[str, Any]]
    """Of the cell that it is held against."""
    failures: list[str]

    @property
    def seeds(self) -> list[int]:
        return [e["seed"] for e in self.results]

    @property
    def nll(self) -> Figure:
        """Over seeds, or of a single one over examples."""
        if len(self.results) == 1:
            nll, error = self.results[0]["nll"], self.results[0]["nll_se"]
            return nll, UNKNOWN if error is None else error
        return mean_and_error(np.array([e["nll"] for e in self.results]))

    @property
    def active_units(self) -> str:
        """Mean over seeds, layer by layer."""
        return units_in_words(mean_units(self.results), "+")

    @property
    def figures(self) -> dict[str, Figure]:
        """What else was measured, by name, over seeds or of a single one."""
        each = [
            dict(i for of in e.get("figures", {}).values() for i in of.items())
            for e in self.results
        ]
        if len(each) < 2:
            return {
                name: (v, UNKNOWN if se is None else se)
                for e in each
                for name, (v, se) in e.items()
            }
        return {name: mean_and_error(np.array([e[name][0] for e in each])) for name in each[0]}

    @property
    def difference(self) -> Figure | None:
        """NLL less that of the cell it is held against: seed by seed, or of a single one image by
        image."""
        if not (self.results and self.reference):
            return None
        pairs = list(zip(self.results, self.reference, strict=True))
        if len(pairs) == 1:
            return _paired(*pairs[0])
        return mean_difference([a["nll"] - b["nll"] for a, b in pairs])


def mean_difference(differences: Sequence[float]) -> Figure:
    """Mean over seeds and its standard error, which is unknown of one, or of equal runs."""
    if len(differences) == 1 or not any(differences):
        return float(np.mean(differences)), UNKNOWN
    return mean_and_error(np.array(differences))


def _paired(ours: Result, other: Result) -> Figure:
    """NLL less the other, image by image; the error is unknown where likelihoods were not kept, or
    are those of one run."""
    a, b = ours.get(LIKELIHOODS), other.get(LIKELIHOODS)
    if a is None or b is None or np.array_equal(a, b):
        return ours["nll"] - other["nll"], UNKNOWN
    return mean_and_error(b - a)


def rows(
    cells: Sequence[Cell],
    tasks: Mapping[str, Sequence[Job]],
    out: Path,
    failures: Mapping[Job, Failure] | None = None,
) -> list[Row]:
    """Every cell as its runs in `out` stand; `tasks` may hold more cells, to hold these against."""
    failed = dict(failures or {})
    found: dict[str, list[Result | None]] = {}
    for name, of in tasks.items():
        found[name] = [_found(task, out, failed) for task in of]
    complete = {n: [r for r in of if r is not None] for n, of in found.items() if None not in of}
    return [
        Row(
            cell=cell,
            state=_state(tasks[cell.name], out),
            results=complete.get(cell.name, []),
            reference=complete.get(cell.against or "", []),
            failures=[failed[task].sentence for task in tasks[cell.name] if task in failed],
        )
        for cell in cells
    ]


def _found(task: Job, out: Path, failed: dict[Job, Failure]) -> Result | None:
    """What is recorded of a task, with its likelihoods if they were kept; where a file is damaged
    the task has `failed`, and the others have not."""
    try:
        result = recorded(task, out)
        return result and result | {LIKELIHOODS: log_likelihoods(task, out)}
    except InputError as error:
        failed.setdefault(task, Failure(str(error)))
        return None


def _state(tasks: Sequence[Job], out: Path) -> str:
    """What is left to do first."""
    states = [state(task, out) for task in tasks]
    left = [s for s in states if s != "done"]
    if not left:
        return "done"
    several = f" ({len(tasks) - len(left)} of {len(tasks)} seeds done)" if len(tasks) > 1 else ""
    return left[0] + several


class _EnoughError(Exception):
    """A training has been watched for long enough."""


class _Rate(Callback):
    """Examples per second, of a second after the first chunk, and seconds up to there, in which the
    step is compiled."""

    def __init__(self, batch_size: int):
        self.batch_size, self.rate = batch_size, math.nan
        self.began, self.compiling = time.monotonic(), 0.0
        self.first: tuple[int, float] | None = None

    def on_step_chunk(self, event: StepChunk) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.compiling = (event.state.step, now), now - self.began
            return
        steps, seconds = event.state.step - self.first[0], now - self.first[1]
        self.rate = steps * self.batch_size / seconds
        if seconds > WATCHED:
            raise _EnoughError


WATCHED, MEASURED = 1.0, 20
"""Seconds of training, and test examples, by which the time of a run is estimated."""


class Cost(NamedTuple):
    """Seconds that runs of one kind take."""

    epoch: float
    """A pass over the training examples."""
    evaluation: float
    step: float = 0.0
    """To compile the step, once for all runs of the kind."""
    program: float = 0.0
    """To compile an evaluation."""


def estimate(
    tasks: Sequence[Job], out: Path, *, data_dir: str | Path | None = None
) -> dict[Job, float | None]:
    """Seconds that each unfinished task has left on this machine; None where its data are missing.

    Of each kind a second is trained and a few examples are evaluated; seeds are of one kind, and
    the first of them is charged for what is compiled. The first task that begins with a run outside
    of `tasks` is charged for training it. Nothing is downloaded.
    """
    kinds: dict[Job, Cost] = {}
    compiled: set[tuple[Job, str]] = set()

    def kind_of(task: Job) -> Job:
        return dataclasses.replace(task, config=override(task.config, seed=0), after=None)

    def of_kind(task: Job) -> Cost:
        kind = kind_of(task)
        if kind not in kinds:
            kinds[kind] = Cost(*_seconds(kind, data_dir))
        return kinds[kind]

    def once(task: Job, what: str) -> float:
        if (kind_of(task), what) in compiled:
            return 0.0
        compiled.add((kind_of(task), what))
        return getattr(of_kind(task), what)

    def training(task: Job) -> float:
        t = task.config.training
        left = max(0, t.epochs - passes(task, out))
        if state(task, out) in ("done", "trained") or left == 0:
            return 0.0
        steps = left * of_kind(task).epoch
        steps = steps if t.minutes is None else min(steps, 60 * t.minutes)
        return steps + once(task, "step")

    seconds: dict[Job, float | None] = {}
    counted = set(tasks)
    for task in tasks:
        if state(task, out) in ("done", "damaged"):
            continue
        if _is_missing(task.config.data.dataset, data_dir):
            seconds[task] = None
            continue
        left = [measure for measure in task.measures if not measured(task, out, measure)]
        evaluations = sum(MEASURES[measure].evaluations for measure in left)
        needed = ("", LIKELIHOODS) if left else ("",)
        evaluations += not all(measured(task, out, part) for part in needed)
        cost = training(task) + of_kind(task).evaluation * evaluations
        cost += once(task, "program") if evaluations else 0.0
        if task.after is not None and task.after not in counted:
            counted.add(task.after)
            cost += training(task.after)
        seconds[task] = cost
    return seconds


def _is_missing(dataset: str, data_dir: str | Path | None) -> bool:
    """Whether a registered data set has a file that would have to be downloaded."""
    if dataset not in data.NAMES:
        return False
    return any(f.state == "missing" for f in data.status(dataset, data_dir=data_dir))


def _seconds(task: Job, data_dir: str | Path | None) -> tuple[float, ...]:
    """What `Cost` holds."""
    config = task.config
    how = {"values": config.data.values, "header": config.data.header}
    dataset = data.load(config.data.dataset, data_dir=data_dir, **how)
    rate = _Rate(config.training.batch_size)
    passes = max(3, config.training.epochs)
    short = override(config, epochs=passes, minutes=None, validate_every=10**6)
    with contextlib.suppress(_EnoughError):
        runs.train(short, data_dir=data_dir, callbacks=[rate])
    model = runs.untrained(config, data_dir=data_dir)
    began = time.monotonic()
    model.evaluate(k=task.k, limit=MEASURED)
    again = time.monotonic()
    model.evaluate(k=task.k, limit=MEASURED)
    took = time.monotonic() - again
    each = took / min(MEASURED, len(dataset.test))
    n = len(dataset.test) if task.limit is None else min(task.limit, len(dataset.test))
    program = max(0.0, again - began - took)
    return len(dataset.train) / rate.rate, n * each, rate.compiling, program
