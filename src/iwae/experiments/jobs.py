"""Jobs: runs with their evaluation, made once and then reused.

A job is a configuration and how it is evaluated. Equal configurations share one run directory,
whichever table needs them, and a finished evaluation in it is never replaced.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Float

from iwae import data, runs
from iwae._utils.checks import check_draws
from iwae._utils.files import one_at_a_time, write_atomic
from iwae.config.io import differences, override
from iwae.config.schema import RunConfig
from iwae.errors import TOO_LARGE, InputError, unusable
from iwae.evaluation.metrics import MEASURES
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.comparisons import finished, known, versions
from iwae.experiments.measured import LIKELIHOODS, Entry, Figures, Known, Result
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError, Unbounded
from iwae.storage.run_directory import CONFIG, MODEL, SAVING, InUseError, read_metrics
from iwae.training import soap
from iwae.training.callbacks import Callback

DIRECTORY = "cells"
"""Subdirectory with the runs of a command."""


@dataclass(frozen=True)
class Job:
    """A run to train, and its evaluation by L_k on `limit` test examples (None: all)."""

    config: RunConfig
    k: int
    limit: int | None = None
    measures: tuple[str, ...] = ()
    """Further metrics, by names of `MEASURES`."""
    after: "Job | None" = None
    """The job whose model this one continues to train."""

    def __post_init__(self) -> None:
        check_draws(self.k)
        if self.limit is not None and self.limit < 1:
            raise InputError(
                f"limit = {self.limit} was given, but an evaluation needs at least 1 example; give "
                f"1 or more."
            )

    def __getstate__(self) -> dict[str, object]:
        """Without the key, which depends on files of this machine."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @functools.cached_property
    def key(self) -> str:
        """The name of the run directory: the main settings, then a digest of all that matter.

        The digest covers only settings that differ from their defaults, so that it does not change
        when settings are added. Data files and the model of `start_from` enter by their content.
        """
        given = differences(self.config, RunConfig())
        content: dict[str, object] = {n: v for n, v, _ in given if n not in SAVING}
        source = Path(self.config.data.dataset)
        if str(source) not in data.NAMES and source.is_file():
            content["dataset"] = _digest(source)
        begun = self.config.training.start_from
        if begun is not None and (Path(begun) / MODEL).is_file():
            content["start_from"] = _digest(Path(begun) / MODEL)
        if self.config.training.optimizer == "soap":
            content["soap"] = soap.REVISION
        if self.after is not None:
            content["after"] = self.after.key
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        c = self.config
        words = (source.stem, c.model.layers, c.objective.objective, c.objective.k)
        return "-".join(map(str, (*words, f"seed-{c.seed}", digest)))

    @property
    def evaluation(self) -> str:
        """The name of the result's file."""
        return f"L_{self.k}" + ("" if self.limit is None else f"-of-{self.limit}")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Failure:
    """The reason why a job has no result."""

    message: str
    in_use: bool = False
    """Whether another process is training in the run directory."""


CLOSE = 1e-4
"""Tolerated relative difference between an NLL and the mean of its likelihoods in float64."""


class _Measured(TypedDict):
    """Required and checked fields of a result's file."""

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


AGAIN = "delete it, and the same command writes it again"


def place(job: Job, out: Path) -> Path:
    """The run directory of a job."""
    return out / DIRECTORY / job.key


def _result_file(job: Job, out: Path, part: str = "") -> Path:
    return place(job, out) / f"{job.evaluation}{part and '-'}{part}.json"


def recorded(job: Job, out: Path) -> Result | None:
    """The result of a finished job with all metrics that it asks for, or None.

    `InputError` if one of its files is damaged.
    """
    entry = _entry(job, out)
    taken = {measure: _figures(job, out, measure) for measure in job.measures}
    figures = {measure: of for measure, of in taken.items() if of is not None}
    if entry is None or len(figures) < len(taken):
        return None
    return Result(entry, figures)


def log_likelihoods(job: Job, out: Path) -> Float[np.ndarray, " n"] | None:
    """L_K of each test image, in nats, [n], or None if they were not kept.

    `InputError` if they are damaged, or do not match the job's NLL.
    """
    values = _read(job, out, LIKELIHOODS, list[float])
    if values is None:
        return None
    found, entry = np.array(values, np.float64), _entry(job, out)
    nll = None if entry is None else entry["nll"]
    if nll is not None and not abs(np.sum(found) / max(1, len(found)) + nll) <= CLOSE * abs(nll):
        raise persisted.damaged(_result_file(job, out, LIKELIHOODS), AGAIN)
    return found


def measured(job: Job, out: Path, part: str = "") -> bool:
    """Whether a part of the result exists: a metric, `LIKELIHOODS`, or by default the evaluation.

    `InputError` if it is damaged.
    """
    if part == "":
        return _entry(job, out) is not None
    if part == LIKELIHOODS:
        return log_likelihoods(job, out) is not None
    return _figures(job, out, part) is not None


def _entry(job: Job, out: Path) -> Entry | None:
    """The evaluation of a job; `InputError` if it is damaged or of another job."""
    entry = _read(job, out, "", _Measured)
    if entry is None:
        return None
    of_layers = (entry.get(name) for name in ("kl", "active_units", "activity"))
    lengths = {len(of) for of in of_layers if of is not None}
    limit = entry["n"] if job.limit is None else job.limit
    asked = (job.config.seed, job.k) == (entry["seed"], entry["k"])
    if not asked or entry["n"] > limit or len(lengths) > 1:
        raise persisted.damaged(_result_file(job, out), AGAIN)
    return persisted.finite(entry)


def _figures(job: Job, out: Path, measure: str) -> Figures | None:
    return _read(job, out, measure, dict[str, Known])


def _read(job: Job, out: Path, part: str, kind: Any) -> Any:
    """The content of a part's file; None if there is none, or a crash left it unreadable.

    `InputError` if it is damaged, or belongs to another job.
    """
    path = _result_file(job, out, part)
    if not path.exists():
        return None
    try:
        content = persisted.parsed(persisted.content_of(path))
    except MistypedError:
        return None
    try:
        if isinstance(content, dict):
            content, of = persisted.unsealed(content, part, job.evaluation)
            if of not in (None, job.key):
                raise MistypedError("it is of another job")
            content = content.pop(CONTENT, content) if of is not None else content
        return persisted.typed(content, kind)
    except MistypedError as error:
        raise persisted.damaged(path, AGAIN) from error


CONTENT = "content"
"""Key of the content in sealed files other than the evaluation."""


def state(job: Job, out: Path) -> str:
    """done, trained (but not fully evaluated), begun (with its epochs), missing or damaged."""
    try:
        if recorded(job, out) is not None:
            return "done"
        path = place(job, out)
        if not (path / CONFIG).exists():
            return "missing"
        return (
            "trained" if (path / MODEL).exists() else f"begun, {completed_epochs(job, out)} epochs"
        )
    except InputError:
        return "damaged"


def completed_epochs(job: Job, out: Path) -> int:
    """The number of epochs that a job's run has completed."""
    return len(read_metrics(place(job, out)))


def make(job: Job, out: Path, *, callback: Callback, data_dir: str | Path | None = None) -> Result:
    """Train, resume or reuse the run, evaluate what is missing, and return the recorded result.

    If two commands reach the same run, one evaluates it while the other waits.
    """
    before = recorded(job, out)
    if before is not None:
        return before
    path = place(job, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = job.config
    if job.after is not None:
        begin = _trained(job.after, out, callback, data_dir)
        config = override(config, start_from=str(begin.path))
    trained = finished(path, config, callback, data_dir)
    with one_at_a_time(path):
        _measure(job, trained, out)
    result = recorded(job, out)
    assert result is not None
    return result


def _measure(job: Job, trained: TrainedModel, out: Path) -> None:
    """Evaluate the run, compute the job's metrics, and record those that are missing."""
    if not measured(job, out):
        evaluated = runs.evaluate(trained, k=job.k, limit=job.limit)
        entry = evaluated.to_json() | {
            "seed": job.config.seed,
            "training_seconds": runs.training_seconds(trained),
            "made_with": runs.made_with(trained),
            **versions(),
        }
        _write(job, out, LIKELIHOODS, evaluated.log_likelihoods.tolist())
        _write(job, out, "", entry)
    for measure in job.measures:
        if not measured(job, out, measure):
            values = log_likelihoods(job, out)
            if values is None:
                values = trained.evaluate(k=job.k, limit=job.limit).log_likelihoods
                _write(job, out, LIKELIHOODS, values.tolist())
            taken = MEASURES[measure].take(trained, job.k, values)
            _write(job, out, measure, {name: known(figure) for name, figure in taken.items()})


def _trained(job: Job, out: Path, callback: Callback, data_dir: str | Path | None) -> TrainedModel:
    """The trained run of a job; train it if needed."""
    path = place(job, out)
    return (
        runs.load(path)
        if (path / MODEL).exists()
        else finished(path, job.config, callback, data_dir)
    )


def write_result(job: Job, out: Path, result: Result) -> None:
    """Write the parts of a result that do not exist yet; existing ones are never replaced.

    `InputError` if the same run ended with another NLL here.
    """
    there = _entry(job, out)
    if there is not None and there["nll"] != result.nll:
        raise InputError(
            f"{_result_file(job, out)} holds an NLL of {there['nll']}, but another worker trained "
            f"the same run to {result.nll}; let workers share the directory, so "
            f"that it is trained once."
        )
    if result.log_likelihoods is not None:
        _write(job, out, LIKELIHOODS, result.log_likelihoods.tolist())
    for measure, figures in result.figures.items():
        _write(job, out, measure, {name: list(figure) for name, figure in figures.items()})
    _write(job, out, "", result.entry)  # last, so that its likelihoods exist


def _write(job: Job, out: Path, part: str, content: object) -> None:
    """Write the sealed file of a part, unless it exists."""
    if measured(job, out, part):
        return
    path = _result_file(job, out, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {CONTENT: content} if part else dict(cast(Mapping[str, object], content))
    whole = persisted.sealed(entry, job.key, part, job.evaluation)
    indent = None if part == LIKELIHOODS else 1
    write_atomic(path, json.dumps(whole, indent=indent, allow_nan=False))


def attempt(
    job: Job, out: Path, callback: Callback, data_dir: str | Path | None
) -> Result | Failure:
    """`make`, or what is the matter with this one job, which is no reason to leave the others."""
    try:
        return make(job, out, callback=callback, data_dir=data_dir)
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
