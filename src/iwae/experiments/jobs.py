"""Runs that are addressed by their content: made once, reused, resumed.

A task is a configuration and how it is evaluated. Equal configurations have one folder, whatever
table asks for them, and a finished evaluation in it is never replaced.
"""

import functools
import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from iwae import data, runs
from iwae._utils.checks import check_draws
from iwae._utils.files import one_at_a_time, write_atomic
from iwae.config.io import differences, override
from iwae.config.schema import RunConfig
from iwae.errors import TOO_LARGE, InputError, unusable
from iwae.evaluation.metrics import MEASURES
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.comparisons import finished, known, versions
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError, Unbounded
from iwae.storage.run_directory import CONFIG, MODEL, SAVING, InUseError, read_metrics
from iwae.training import soap
from iwae.training.callbacks import Callback

FOLDER = "cells"


@dataclass(frozen=True)
class Job:
    """A run to train, and the L_k of how many test examples (None: all) it is evaluated by."""

    config: RunConfig
    k: int
    limit: int | None = None
    measures: tuple[str, ...] = ()
    """What else is measured, by names of `MEASURES`."""
    after: "Job | None" = None
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

CLOSE = 1e-4
"""Relative difference of an NLL from minus the mean of its likelihoods, which float64 sums."""


class _Measured(TypedDict):
    """The file of a result: what tables are made of, beside an evaluation's other figures."""

    seed: int
    passes: int
    k: int
    n: int
    nll: float
    nll_se: float | None
    elbo: NotRequired[Unbounded | None]
    kl: NotRequired[list[Unbounded | None]]
    active_units: list[int] | None
    activity: NotRequired[list[list[Unbounded | None]] | None]
    device: str
    note: str
    training_seconds: NotRequired[float]
    made_with: NotRequired[list[str]]
    iwae: NotRequired[str]
    jax: NotRequired[str]


Figures = dict[str, tuple[float, float | None]]
"""A value with its standard error, by name."""

AGAIN = "delete it, and the same command measures it again"


def place(task: Job, out: Path) -> Path:
    """The folder of a task's run."""
    return out / FOLDER / task.address


def _result_file(task: Job, out: Path, part: str = "") -> Path:
    return place(task, out) / f"{task.evaluation}{part and '-'}{part}.json"


def recorded(task: Job, out: Path) -> Result | None:
    """The result of a task that is finished, with its `figures` by measure if it asks for any;
    `InputError` if a file of it is damaged."""
    result = _result(task, out)
    figures = {measure: _figures(task, out, measure) for measure in task.measures}
    if result is None or None in figures.values():
        return None
    return result | ({"figures": figures} if figures else {})


def log_likelihoods(task: Job, out: Path) -> np.ndarray | None:
    """L_K of each test image, in nats, [n], if they were kept; `InputError` if they are damaged, or
    others than those of the task's NLL."""
    values = _read(task, out, LIKELIHOODS, list[float])
    if values is None:
        return None
    found, result = np.array(values, np.float64), _result(task, out)
    nll = None if result is None else result["nll"]
    if nll is not None and not abs(np.sum(found) / max(1, len(found)) + nll) <= CLOSE * abs(nll):
        raise persisted.damaged(_result_file(task, out, LIKELIHOODS), AGAIN)
    return found


def measured(task: Job, out: Path, part: str = "") -> bool:
    """Whether there is this part of a task's result: a measure, `LIKELIHOODS`, or (none named) its
    evaluation. `InputError` if it is damaged."""
    if part == "":
        return _result(task, out) is not None
    if part == LIKELIHOODS:
        return log_likelihoods(task, out) is not None
    return _figures(task, out, part) is not None


def _result(task: Job, out: Path) -> Result | None:
    result = _read(task, out, "", _Measured)
    if result is None:
        return None
    of_layers = (result.get(name) for name in ("kl", "active_units", "activity"))
    lengths = {len(of) for of in of_layers if of is not None}
    limit = result["n"] if task.limit is None else task.limit
    asked = (task.config.seed, task.k) == (result["seed"], result["k"])
    if not asked or result["n"] > limit or len(lengths) > 1:
        raise persisted.damaged(_result_file(task, out), AGAIN)
    return persisted.finite(result)


def _figures(task: Job, out: Path, measure: str) -> dict[str, list[Any]] | None:
    figures = _read(task, out, measure, Figures)
    return None if figures is None else {name: list(figure) for name, figure in figures.items()}


def _read(task: Job, out: Path, part: str, kind: Any) -> Any:
    """The content of a part's file; None if there is none, or only what a crash left.

    `InputError` if it is damaged, or was written of another task.
    """
    path = _result_file(task, out, part)
    if not path.exists():
        return None
    try:
        content = persisted.parsed(persisted.content_of(path))
    except MistypedError:
        return None
    try:
        if isinstance(content, dict):
            content, of = persisted.unsealed(content, part, task.evaluation)
            if of not in (None, task.address):
                raise MistypedError("it is of another cell")
            content = content.pop(CONTENT, content) if of is not None else content
        return persisted.typed(content, kind)
    except MistypedError as error:
        raise persisted.damaged(path, AGAIN) from error


CONTENT = "content"
"""Where a sealed file holds what is no result, but a list or figures."""


def state(task: Job, out: Path) -> str:
    """done, trained (but not all is measured), begun (after so many passes), missing or damaged."""
    try:
        if recorded(task, out) is not None:
            return "done"
        path = place(task, out)
        if not (path / CONFIG).exists():
            return "missing"
        return "trained" if (path / MODEL).exists() else f"begun, {passes(task, out)} passes"
    except InputError:
        return "damaged"


def passes(task: Job, out: Path) -> int:
    """How many a task's run has behind it."""
    return len(read_metrics(place(task, out)))


def make(task: Job, out: Path, *, watch: Callback, data_dir: str | Path | None = None) -> Result:
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


def _measure(task: Job, trained: TrainedModel, out: Path) -> None:
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


def _trained(task: Job, out: Path, watch: Callback, data_dir: str | Path | None) -> TrainedModel:
    """The run of a task, trained if it is not yet."""
    path = place(task, out)
    return (
        runs.load(path) if (path / MODEL).exists() else finished(path, task.config, watch, data_dir)
    )


def write_result(task: Job, out: Path, result: Result) -> None:
    """Write the parts that are given and not there yet: what is finished is never replaced.

    `InputError` if they are of a run that ended elsewhere with another NLL than the one here.
    """
    parts = dict(result)
    files = {LIKELIHOODS: parts.pop(LIKELIHOODS, None), **parts.pop("figures", {})}
    files[""] = parts or None  # last, so that its likelihoods are there
    there = _result(task, out)
    if parts and there is not None and there["nll"] != parts["nll"]:
        raise InputError(
            f"{_result_file(task, out)} holds an NLL of {there['nll']}, but another worker trained "
            f"the same run to {parts['nll']}; let workers share the folder, so that one is made."
        )
    for part, content in files.items():
        path = _result_file(task, out, part)
        if content is None or measured(task, out, part):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = persisted.sealed(
            {CONTENT: content} if part else content, task.address, part, task.evaluation
        )
        indent = None if part == LIKELIHOODS else 1
        write_atomic(path, json.dumps(whole, indent=indent, allow_nan=False))


def attempt(task: Job, out: Path, watch: Callback, data_dir: str | Path | None) -> Result | Failure:
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
