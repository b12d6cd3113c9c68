"""Table 1 of Burda et al. by the paper's own protocol, as far as the time goes.

The runs are those of `iwae reproduce table1`, in the same folders: what is begun here goes on
there, and the other way round.
"""

import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import CELLS, step_name
from benchmarks.gpu.task import Task
from iwae import data, runs
from iwae.config.io import override, recipe
from iwae.experiments import jobs
from iwae.experiments.jobs import DIRECTORY, Failure
from iwae.experiments.measured import Result
from iwae.experiments.papers import EXPERIMENTS
from iwae.experiments.plan import jobs_of, placed
from iwae.training.callbacks import Callback, EpochEnd

EVERY = 5.0
"""Seconds between two figures of a run that is under way."""

SAVE = 0.75
"""Minutes between two checkpoints."""


class Told(Callback):
    """Tells how far a cell is."""

    def __init__(self, task: Task, name: str):
        self.task, self.name, self.last = task, name, 0.0

    def on_epoch_end(self, event: EpochEnd) -> None:
        if time.monotonic() - self.last < EVERY:
            return
        self.last = time.monotonic()
        row = event.row
        figures = ("seconds", "train_bound", "valid_bound", "step")
        self.task.tell(self.name, passes=row["pass"], **{f: row[f] for f in figures if f in row})


def papers(task: Task) -> None:
    """Train the cells with the fewest layers first, together where one program is faster for all;
    evaluate those that are trained."""
    out = task.work
    start = recipe(task.sizes.recipe)
    config = override(start, checkpoint_minutes=SAVE)
    if task.sizes.epochs is not None:
        config = override(config, epochs=task.sizes.epochs)
    table = placed(EXPERIMENTS["table1"], task.sizes.datasets)
    found = jobs_of(table, config, start, seeds=(0,), k=task.sizes.draws, limit=None)
    named: dict[jobs.Job, str] = {}
    for name, (of,) in found.items():
        named.setdefault(of, name)
    failures = []
    for layers in task.sizes.layers:
        group = {n: of for of, n in named.items() if of.config.model.layers == layers}
        left = {n: of for n, of in group.items() if jobs.recorded(of, out) is None}
        if len(left) > 1 and together_is_faster(task):
            train_at_once(task, left, out)
        for name, of in left.items():
            result = jobs.attempt(of, out, Told(task, name), task.data_dir)
            if isinstance(result, Failure):
                failures.append(f"{name}: {result.message}")
            else:
                tell_result(task, name, result)
    if failures:
        sys.exit("\n".join(failures))


def tell_result(task: Task, name: str, result: Result) -> None:
    """What a finished cell is worth."""
    wanted = ("nll", "nll_se", "active_units", "n", "k", "seed", "training_seconds", "made_with")
    task.tell(name, passes=None, **{n: v for n, v in result.entry.items() if n in wanted})


def train_at_once(task: Task, left: dict[str, jobs.Job], out: Path) -> None:
    """All in one program; `Interrupted` when the time is over, with all saved."""
    (dataset,) = {of.config.data.dataset for of in left.values()}
    names = {of.key: name for name, of in left.items()}
    runs.train_together(
        {of.key: of.config for of in left.values()},
        data=data.load(dataset, data_dir=task.data_dir),
        out=out / DIRECTORY,
        resume=True,
        callbacks=lambda key: [Told(task, names[key])],
    )


def together_is_faster(task: Task) -> bool:
    """Whether a step of all one-layer cells in one program took less time than one of each."""
    alone = {**task.before.get("steps", {}), **task.before.get("chunks", {})}
    names = [step_name(1, k) for k in task.sizes.ks]
    names += [f"{step_name(1, k)}, vae" for k in task.sizes.ks if k > 1]
    times: list[Any] = [alone.get(name, {}).get("ms") for name in (CELLS, *names)]
    if not all(times):
        return False
    all_at_once, *each = (min(turns) for turns in times)
    return all_at_once < sum(each)
