"""Runs that are addressed by their content: made once, reused, resumed.

A task is a configuration and how it is evaluated. Equal configurations have one folder, whatever
table asks for them, and a finished evaluation in it is never replaced.
"""

import functools
import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from iwae import data, runs, soap
from iwae.checks import check_draws
from iwae.config import RunConfig
from iwae.errors import TOO_LARGE, InputError, unusable
from iwae.experiments import finished, known, versions
from iwae.files import one_at_a_time, write_atomic
from iwae.folder import CONFIG, MODEL, SAVING, InUseError, read_metrics
from iwae.loop import Watcher
from iwae.measures import MEASURES
from iwae.settings import differences, override
from iwae.trained import Trained

FOLDER = "cells"


@dataclass(frozen=True)
class Task:
    """A run to train, and the L_k of how many test examples (None: all) it is evaluated by."""

    config: RunConfig
    k: int
    limit: int | None = None
    measures: tuple[str, ...] = ()
    """What else is measured, by names of `MEASURES`."""
    after: "Task | None" = None
    """The task with whose model this one's run begins."""

    def __post_init__(self) -> None:
        check_draws(self.k, "draws")
        if self.limit is not None and self.limit < 1:
            raise InputError(
                f"limit = {self.limit} was given, but an evaluation needs at least 1; give 1 or "
                f"more."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the address, which is that of the machine's own files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @functools.cached_property
    def address(self) -> str:
        """The folder's name: what one looks for, then a digest of every setting that matters.

        Only those that are not the default are in it, so that it outlives the settings to come. Of
        a data file, and of the model that `start_from` names, it is the content that counts.
        """
        given = differences(self.config, RunConfig())
        content: dict[str, Any] = {n: v for n, v, _ in given if n not in SAVING}
        source = Path(self.config.data.dataset)
        if str(source) not in data.NAMES and source.is_file():
            content["dataset"] = _digest(source)
        begun = self.config.training.start_from
        if begun is not None and (Path(begun) / MODEL).is_file():
            content["start_from"] = _digest(Path(begun) / MODEL)
        if self.config.training.optimizer == "soap":
            content["soap"] = soap.REVISION
        if self.after is not None:
            content["after"] = self.after.address
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        c = self.config
        words = (source.stem, c.model.layers, c.objective.objective, c.objective.k)
        return "-".join(map(str, (*words, f"seed-{c.seed}", digest)))

    @property
    def evaluation(self) -> str:
        """The name of its result."""
        return f"L_{self.k}" + ("" if self.limit is None else f"-of-{self.limit}")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Failure:
    """Why a task has no result."""

    sentence: str
    in_use: bool = False
    """Whether another process trains in the folder."""


Result = dict[str, Any]
"""An evaluation, the seed and the seconds of the training, and what it was made with; besides, in
files of their own, `LIKELIHOODS` and the `figures` of each measure."""

LIKELIHOODS = "log_likelihoods"
"""L_K of each test image, in nats, [n]."""


def place(task: Task, out: Path) -> Path:
    """The folder of a task's run."""
    return out / FOLDER / task.address


def _result_file(task: Task, out: Path, part: str = "") -> Path:
    return place(task, out) / f"{task.evaluation}{part and '-'}{part}.json"


def recorded(task: Task, out: Path) -> Result | None:
    """The result of a task that is finished, with its `figures` by measure if it asks for any."""
    result = _read(_result_file(task, out))
    figures = {measure: _read(_result_file(task, out, measure)) for measure in task.measures}
    if result is None or None in figures.values():
        return None
    return result | ({"figures": figures} if figures else {})


def log_likelihoods(task: Task, out: Path) -> np.ndarray | None:
    """L_K of each test image, in nats, [n], if they were kept."""
    values = _read(_result_file(task, out, LIKELIHOODS))
    return None if values is None else np.array(values)


def measured(task: Task, out: Path, part: str = "") -> bool:
    """Whether there is this part of a task's result: a measure, `LIKELIHOODS`, or (none named) its
    evaluation."""
    return _read(_result_file(task, out, part)) is not None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def state(task: Task, out: Path) -> str:
    """done, trained (but not all is measured), begun (after so many passes) or missing."""
    if recorded(task, out) is not None:
        return "done"
    path = place(task, out)
    if not (path / CONFIG).exists():
        return "missing"
    return "trained" if (path / MODEL).exists() else f"begun, {passes(task, out)} passes"


def passes(task: Task, out: Path) -> int:
    """How many a task's run has behind it."""
    return len(read_metrics(place(task, out)))


def make(task: Task, out: Path, *, watch: Watcher, data_dir: str | Path | None = None) -> Result:
    """Train, resume or reuse the run, measure what is missing, and return the recorded result.

    Of two commands that come to one run, one measures while the other waits.
    """
    before = recorded(task, out)
    if before is not None:
        return before
    path = place(task, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = task.config
    if task.after is not None:
        begin = _trained(task.after, out, watch, data_dir)
        config = override(config, start_from=str(begin.path))
    trained = finished(path, config, watch, data_dir)
    with one_at_a_time(path):
        _measure(task, trained, out)
    whole = recorded(task, out)
    assert whole is not None
    return whole


def _measure(task: Task, trained: Trained, out: Path) -> None:
    """Evaluate the run, take the task's measures of it, and record what is not yet there."""
    if not measured(task, out):
        evaluated = runs.evaluate(trained, k=task.k, limit=task.limit)
        result = evaluated.to_json() | {
            "seed": task.config.seed,
            "training_seconds": runs.training_seconds(trained),
            "made_with": runs.made_with(trained),
            **versions(),
        }
        write_result(task, out, {LIKELIHOODS: evaluated.log_likelihoods.tolist()} | result)
    for measure in task.measures:
        if not measured(task, out, measure):
            values = log_likelihoods(task, out)
            if values is None:
                values = trained.evaluate(k=task.k, limit=task.limit).log_likelihoods
                write_result(task, out, {LIKELIHOODS: values.tolist()})
            taken = MEASURES[measure].take(trained, task.k, values)
            figures = {name: known(figure) for name, figure in taken.items()}
            write_result(task, out, {"figures": {measure: figures}})


def _trained(task: Task, out: Path, watch: Watcher, data_dir: str | Path | None) -> Trained:
    """The run of a task, trained if it is not yet."""
    path = place(task, out)
    return (
        runs.load(path) if (path / MODEL).exists() else finished(path, task.config, watch, data_dir)
    )


def write_result(task: Task, out: Path, result: Result) -> None:
    """Write the parts that are given and not there yet: what is finished is never replaced.

    `InputError` if they are of a run that ended elsewhere with another NLL than the one here.
    """
    parts = dict(result)
    files = {LIKELIHOODS: parts.pop(LIKELIHOODS, None), **parts.pop("figures", {})}
    files[""] = parts or None  # last, so that its likelihoods are there
    there = _read(_result_file(task, out))
    if parts and there is not None and there["nll"] != parts["nll"]:
        raise InputError(
            f"{_result_file(task, out)} holds an NLL of {there['nll']}, but another worker trained "
            f"the same run to {parts['nll']}; let workers share the folder, so that one is made."
        )
    for part, content in files.items():
        path = _result_file(task, out, part)
        if content is None or _read(path) is not None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content, indent=None if part == LIKELIHOODS else 1))


def attempt(task: Task, out: Path, watch: Watcher, data_dir: str | Path | None) -> Result | Failure:
    """`make`, or what is the matter with this one task, which is no reason to leave the others."""
    try:
        return make(task, out, watch=watch, data_dir=data_dir)
    except InputError as error:
        return Failure(str(error), in_use=isinstance(error, InUseError))
    except OSError as error:
        return Failure(unusable(error))
    except MemoryError:
        return Failure(TOO_LARGE)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Failure(TOO_LARGE)
