"""Runs that are known by their content: made once, reused, resumed.

A job is a configuration and how it is evaluated. Equal configurations have one folder, whatever
table asks for them, and a finished evaluation in it is never replaced.
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

FOLDER = "cells"
"""Where runs lie in the folder of a command."""


@dataclass(frozen=True)
class Job:
    """A run to train, and the L_k of how many test examples (None: all) it is evaluated by."""

    config: RunConfig
    k: int
    limit: int | None = None
    measures: tuple[str, ...] = ()
    """What else is measured, by names of `MEASURES`."""
    after: "Job | None" = None
    """The job with whose model this one's run begins."""

    def __post_init__(self) -> None:
        check_draws(self.k)
        if self.limit is not None and self.limit < 1:
            raise InputError(
                f"limit = {self.limit} was given, but an evaluation needs at least 1; give 1 or "
                f"more."
            )

    def __getstate__(self) -> dict[str, object]:
        """Without the key, which is that of the machine's own files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @functools.cached_property
    def key(self) -> str:
        """The folder's name: what one looks for, then a digest of every setting that matters.

        Only those that are not the default are in it, so that it outlives the settings to come. Of
        a data file, and of the model that `start_from` names, it is the content that counts.
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
        """The name of its result."""
        return f"L_{self.k}" + ("" if self.limit is None else f"-of-{self.limit}")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Failure:
    """Why a job has no result."""

    message: str
    in_use: bool = False
    """Whether another process trains in the folder."""


CLOSE = 1e-4
"""Relative difference of an NLL from minus the mean of its likelihoods, which float64 sums."""


class _Measured(TypedDict):
    """What the file of a result has to hold, beside an evaluation's other figures."""

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


AGAIN = "delete it, and the same command measures it again"


def place(job: Job, out: Path) -> Path:
    """The folder of a job's run."""
    return out / FOLDER / job.key


def _result_file(job: Job, out: Path, part: str = "") -> Path:
    return place(job, out) / f"{job.evaluation}{part and '-'}{part}.json"


def recorded(job: Job, out: Path) -> Result | None:
    """The result of a job that is finished, with the figures of every measure that it asks for;
    `InputError` if a file of it is damaged."""
    entry = _entry(job, out)
    taken = {measure: _figures(job, out, measure) for measure in job.measures}
    figures = {measure: of for measure, of in taken.items() if of is not None}
    if entry is None or len(figures) < len(taken):
        return None
    return Result(entry, figures)


def log_likelihoods(job: Job, out: Path) -> Float[np.ndarray, " n"] | None:
    """L_K of each test image, in nats, [n], if they were kept; `InputError` if they are damaged, or
    others than those of the job's NLL."""
    values = _read(job, out, LIKELIHOODS, list[float])
    if values is None:
        return None
    found, entry = np.array(values, np.float64), _entry(job, out)
    nll = None if entry is None else entry["nll"]
    if nll is not None and not abs(np.sum(found) / max(1, len(found)) + nll) <= CLOSE * abs(nll):
        raise persisted.damaged(_result_file(job, out, LIKELIHOODS), AGAIN)
    return found


def measured(job: Job, out: Path, part: str = "") -> bool:
    """Whether there is this part of a job's result: a measure, `LIKELIHOODS`, or (none named) its
    evaluation. `InputError` if it is damaged."""
    if part == "":
        return _entry(job, out) is not None
    if part == LIKELIHOODS:
        return log_likelihoods(job, out) is not None
    return _figures(job, out, part) is not None


def _entry(job: Job, out: Path) -> Entry | None:
    """The evaluation of a job; `InputError` if it is damaged, or another's."""
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
    """The content of a part's file; None if there is none, or only what a crash left.

    `InputError` if it is damaged, or was written of another job.
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
"""Where a sealed file holds what is no result, but a list or figures."""


def state(job: Job, out: Path) -> str:
    """done, trained (but not all is measured), begun (after so many passes), missing or damaged."""
    try:
        if recorded(job, out) is not None:
            return "done"
        path = place(job, out)
        if not (path / CONFIG).exists():
            return "missing"
        return "trained" if (path / MODEL).exists() else f"begun, {passes(job, out)} passes"
    except InputError:
        return "damaged"


def passes(job: Job, out: Path) -> int:
    """How many a job's run has behind it."""
    return len(read_metrics(place(job, out)))


def make(job: Job, out: Path, *, watch: Callback, data_dir: str | Path | None = None) -> Result:
    """Train, resume or reuse the run, measure what is missing, and return the recorded result.

    Of two commands that come to one run, one measures while the other waits.
    """
    before = recorded(job, out)
    if before is not None:
        return before
    path = place(job, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = job.config
    if job.after is not None:
        begin = _trained(job.after, out, watch, data_dir)
        config = override(config, start_from=str(begin.path))
    trained = finished(path, config, watch, data_dir)
    with one_at_a_time(path):
        _measure(job, trained, out)
    result = recorded(job, out)
    assert result is not None
    return result


def _measure(job: Job, trained: TrainedModel, out: Path) -> None:
    """Evaluate the run, take the job's measures of it, and record what is not yet there."""
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


def _trained(job: Job, out: Path, watch: Callback, data_dir: str | Path | None) -> TrainedModel:
    """The run of a job, trained if it is not yet."""
    path = place(job, out)
    return (
        runs.load(path) if (path / MODEL).exists() else finished(path, job.config, watch, data_dir)
    )


def write_result(job: Job, out: Path, result: Result) -> None:
    """Write the parts that are given and not there yet: what is finished is never replaced.

    `InputError` if they are of a run that ended elsewhere with another NLL than the one here.
    """
    there = _entry(job, out)
    if there is not None and there["nll"] != result.nll:
        raise InputError(
            f"{_result_file(job, out)} holds an NLL of {there['nll']}, but another worker trained "
            f"the same run to {result.nll}; let workers share the folder, so that one is made."
        )
    if result.log_likelihoods is not None:
        _write(job, out, LIKELIHOODS, result.log_likelihoods.tolist())
    for measure, figures in result.figures.items():
        _write(job, out, measure, {name: list(figure) for name, figure in figures.items()})
    _write(job, out, "", result.entry)  # last, so that its likelihoods are there


def _write(job: Job, out: Path, part: str, content: object) -> None:
    """Write the file of a part, sealed, unless it is there."""
    if measured(job, out, part):
        return
    path = _result_file(job, out, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {CONTENT: content} if part else dict(cast(Mapping[str, object], content))
    whole = persisted.sealed(entry, job.key, part, job.evaluation)
    indent = None if part == LIKELIHOODS else 1
    write_atomic(path, json.dumps(whole, indent=indent, allow_nan=False))


def attempt(job: Job, out: Path, watch: Callback, data_dir: str | Path | None) -> Result | Failure:
    """`make`, or what is the matter with this one job, which is no reason to leave the others."""
    try:
        return make(job, out, watch=watch, data_dir=data_dir)
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
