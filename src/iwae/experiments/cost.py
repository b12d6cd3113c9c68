"""Estimates of how long jobs take on this machine."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from iwae import data, runs
from iwae.config.io import override
from iwae.evaluation.metrics import MEASURES
from iwae.experiments.jobs import LIKELIHOODS, Job, completed_epochs, measured, state
from iwae.training.callbacks import Callback, StepChunk


class _EnoughError(Exception):
    """Training has been timed for long enough."""


class _Rate(Callback):
    """Measure examples per second after the first chunk of steps, and the seconds up to it, in
    which the step is compiled."""

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
        if seconds > TIMED:
            raise _EnoughError


TIMED, MEASURED = 1.0, 20
"""Seconds of training, and number of test examples, from which times are estimated."""


class Cost(NamedTuple):
    """Seconds that jobs of one kind take."""

    epoch: float
    """One epoch of training."""
    evaluation: float
    step: float = 0.0
    """Compilation of the step, once per kind."""
    program: float = 0.0
    """Compilation of an evaluation."""


def estimate(
    jobs: Sequence[Job], out: Path, *, data_dir: str | Path | None = None
) -> dict[Job, float | None]:
    """Remaining seconds of each unfinished job on this machine; None if its data are missing.

    For each kind of job a second of training and a few examples are timed. Jobs that differ only in
    the seed are of one kind, and compilation counts for the first of them. The first job that
    continues a run outside of `jobs` includes the training of that run. Nothing is downloaded.
    """
    costs = _Costs(out, data_dir)
    seconds: dict[Job, float | None] = {}
    counted = set(jobs)
    for job in jobs:
        if state(job, out) in ("done", "damaged"):
            continue
        if _is_missing(job.config.data.dataset, data_dir):
            seconds[job] = None
            continue
        cost = costs.of_training(job) + costs.of_evaluations(job)
        if job.after is not None and job.after not in counted:
            counted.add(job.after)
            cost += costs.of_training(job.after)
        seconds[job] = cost
    return seconds


class _Costs:
    """Remaining seconds of jobs by the `Cost` of their kind; compilation counts once."""

    def __init__(self, out: Path, data_dir: str | Path | None):
        self.out, self.data_dir = out, data_dir
        self.kinds: dict[Job, Cost] = {}
        self.stepped: set[Job] = set()
        self.evaluated: set[Job] = set()

    def of_training(self, job: Job) -> float:
        """Seconds of the remaining epochs, and of compiling the step."""
        minutes = job.config.training.minutes
        if state(job, self.out) in ("done", "trained"):
            return 0.0
        done, steps, compiling = completed_epochs(job, self.out), 0.0, 0.0
        for config, first, end in job.config.by_stage:
            if end <= max(first, done):
                continue
            kind, cost = self._kind(dataclasses.replace(job, config=config))
            steps += (end - max(first, done)) * cost.epoch
            compiling += 0.0 if kind in self.stepped else cost.step
            self.stepped.add(kind)
        return compiling + (steps if minutes is None else min(steps, 60 * minutes))

    def of_evaluations(self, job: Job) -> float:
        """Seconds of the remaining evaluations, and of compiling one."""
        left = [measure for measure in job.measures if not measured(job, self.out, measure)]
        evaluations = sum(MEASURES[measure].evaluations for measure in left)
        needed = ("", LIKELIHOODS) if left else ("",)
        evaluations += not all(measured(job, self.out, part) for part in needed)
        kind, cost = self._kind(job)
        if not evaluations:
            return 0.0
        compiling = 0.0 if kind in self.evaluated else cost.program
        self.evaluated.add(kind)
        return evaluations * cost.evaluation + compiling

    def _kind(self, job: Job) -> tuple[Job, Cost]:
        """The job without its seed and start, and the cost of such jobs."""
        kind = dataclasses.replace(job, config=override(job.config, seed=0), after=None)
        if kind not in self.kinds:
            self.kinds[kind] = Cost(*_seconds(kind, self.data_dir))
        return kind, self.kinds[kind]


def _is_missing(dataset: str, data_dir: str | Path | None) -> bool:
    """Whether a registered data set has to be downloaded."""
    if dataset not in data.NAMES:
        return False
    return any(f.state == "missing" for f in data.status(dataset, data_dir=data_dir))


def _seconds(job: Job, data_dir: str | Path | None) -> tuple[float, ...]:
    """The fields of a job's `Cost`."""
    config = job.config
    how = {n: getattr(config.data, n) for n in ("values", "header", "schema")}
    dataset = data.load(config.data.dataset, data_dir=data_dir, **how)
    rate = _Rate(config.training.batch_size)
    epochs = max(3, config.training.epochs)
    short = override(config, epochs=epochs, minutes=None, validate_every=10**6)
    with contextlib.suppress(_EnoughError):
        runs.train(short, data_dir=data_dir, callbacks=[rate])
    model = runs.untrained(config, data_dir=data_dir)
    began = time.monotonic()
    model.evaluate(k=job.k, limit=MEASURED)
    again = time.monotonic()
    model.evaluate(k=job.k, limit=MEASURED)
    took = time.monotonic() - again
    each = took / min(MEASURED, len(dataset.test))
    n = len(dataset.test) if job.limit is None else min(job.limit, len(dataset.test))
    program = max(0.0, again - began - took)
    return len(dataset.train) / rate.rate, n * each, rate.compiling, program
