"""The run directory: configuration, metrics, checkpoint, model and evaluations.

Its files are written atomically, a second command never destroys them, and one process at a time
trains in it. Every file names the run it belongs to (`identity`) and carries a digest of its
content; both are verified on reading, except in files of early versions, which lack them.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from iwae._utils.files import TEMPORARY, locked, write_atomic
from iwae.config.io import STAGES, differences
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.models.base import AbstractAutoencoder
from iwae.models.observation import Observation
from iwae.storage import checkpoint, persisted
from iwae.storage.checkpoint import Stored
from iwae.storage.evaluations import Evaluation as Evaluation
from iwae.storage.evaluations import keep_evaluation as keep_evaluation
from iwae.storage.evaluations import read_evaluations as read_evaluations
from iwae.storage.metrics import History, Row, parsed_rows
from iwae.storage.persisted import MistypedError, Unbounded
from iwae.storage.run_config import CHECKPOINT as CHECKPOINT
from iwae.storage.run_config import CONFIG as CONFIG
from iwae.storage.run_config import EVALUATION as EVALUATION
from iwae.storage.run_config import METRICS as METRICS
from iwae.storage.run_config import MODEL as MODEL
from iwae.storage.run_config import MOVED as MOVED
from iwae.storage.run_config import REPLICA as REPLICA
from iwae.storage.run_config import SAVING as SAVING
from iwae.storage.run_config import config_text as config_text
from iwae.storage.run_config import identity as identity
from iwae.storage.run_config import read_config as read_config
from iwae.storage.run_config import read_config_and_identity as read_config_and_identity
from iwae.storage.run_config import read_own as read_own
from iwae.storage.run_config import replicas as replicas

LOCK = ".lock"

Leaves = dict[str, np.ndarray]
"""The arrays of a tree, by path."""

EARLY = "early"
"""Metadata of a checkpoint whose run was started without digests."""

UNVERIFIED = "the run is of an early version, whose files have no digests that show damage"
"""The note that results of such a run carry."""

UNRECORDED = "iwae before 0.2.0"
"""The version that started a run whose checkpoint does not name one."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run; saved in the checkpoint's header."""

    passes: int = 0
    """Completed epochs."""
    seconds: float = 0.0
    """Training time so far, over all sessions."""
    best: Unbounded | None = None
    """Best validation bound so far."""
    stale: int = 0
    """Validations since then."""
    finished: str = ""
    """Why training ended; empty if it has not."""
    made_with: tuple[str, ...] = ()
    """Devices and versions that trained the run, e.g. cpu, iwae 0.2.0."""
    data: str = ""
    """A digest of the training examples."""
    names: tuple[str, ...] = ()
    """The names of the columns, in the order in which the model takes them."""

    def made_on(self, here: str) -> "Progress":
        """Add the device and version that train from here on."""
        before = self.made_with or ((UNRECORDED,) if self.seconds else ())
        return replace(self, made_with=tuple(dict.fromkeys((*before, here))))


REQUIRED = ("passes", "seconds", "best", "stale", "finished")
"""Fields in the header of every checkpoint; early versions have no others."""


@dataclass(frozen=True)
class ModelHeader:
    """The header of a model file."""

    passes: int
    """Epochs of training."""
    seen: Observation | None = None
    """How the model observes its data."""
    step: int | None = None
    """Steps of training; None for early versions, which did not store them."""


class RunDirectory:
    """The files of a run; without files (`path` None) when training in memory."""

    def __init__(self, path: Path | None):
        self.path = path
        self.run = ""
        """The identity of the run; empty while it is unknown."""
        self.verified = True
        """Whether the whole run was saved with digests."""
        self.own: Mapping[str, str] = {}
        """Names of the user's own parts."""
        self.rows: list[Row] = []

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.path is not None and (self.path / CHECKPOINT).exists()

    def append(self, row: Mapping[str, object]) -> None:
        """Add the `Row` of a completed epoch."""
        own = dict(row)
        self.rows.append(cast("Row", own))
        if self.path is not None:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(own) + "\n")

    @property
    def progress(self) -> Progress:
        """The progress of the run when it was last saved."""
        if self.path is None or not self.begun:
            return Progress()
        return read_progress(self.path)

    @property
    def leaves(self) -> list[str]:
        """The tree paths in the checkpoint; empty if there is none."""
        if self.path is None or not self.begun:
            return []
        return checkpoint.names(self.path / CHECKPOINT)

    def is_of_others(self) -> bool:
        """Whether the directory holds another run, by its identity."""
        if self.path is None or not (self.begun and (self.path / CONFIG).exists()):
            return False
        return read_config_and_identity(self.path)[1] not in ("", self.run)

    def save_config(self, config: RunConfig) -> None:
        if self.path is not None:
            write_atomic(self.path / CONFIG, config_text(config, self.run, self.own))

    def save(self, tree: PyTree, progress: Progress) -> None:
        if self.path is not None:
            about = {"run": self.run, "metrics": persisted.digest(self.rows)}
            about |= {} if self.verified else {EARLY: UNVERIFIED}
            checkpoint.save(self.path / CHECKPOINT, tree, asdict(progress), **about)

    def restore(
        self, like: PyTree, converted: Callable[[Leaves], Leaves]
    ) -> tuple[PyTree, Progress]:
        """The last checkpoint and its progress; `like` and no progress if there is none yet.

        `converted` maps the stored arrays, by tree path, to those of this version. Metrics after
        the checkpoint are discarded. `InputError` if the files are damaged or do not belong
        together.
        """
        if self.path is None:
            return like, Progress()
        if not self.begun:
            (self.path / METRICS).unlink(missing_ok=True)
            return like, Progress()
        stored = checkpoint.read(self.path / CHECKPOINT)
        progress = _progress_of(stored)
        _check_own(stored, self.run)
        self.verified = stored.verified and EARLY not in stored.about
        tree = checkpoint.fitted(replace(stored, arrays=converted(stored.arrays)), like)
        self.rows = [*_metrics(self.path, stored)[: progress.passes]]
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomic(self.path / METRICS, lines)
        return tree, progress

    def has_model(self, passes: int, step: int) -> bool:
        """Whether the model of this step is stored; that of an early version has no step."""
        if self.path is None or not (self.path / MODEL).exists():
            return False
        try:
            stored = checkpoint.read(self.path / MODEL)
            _check_own(stored, self.run)
            header = _model_header(stored)
        except InputError:  # damaged, or of another run
            return False
        return header.passes == passes and header.step in (None, step)

    def save_model(
        self, model: AbstractAutoencoder, seen: Observation, passes: int, step: int
    ) -> None:
        if self.path is not None:
            write_model(self.path, model, ModelHeader(passes, seen, step), self.run)


@contextlib.contextmanager
def open_run(
    out: str | Path | None, config: RunConfig, *, resume: bool | None
) -> Iterator[RunDirectory]:
    """Open and lock a run directory: create it for a new run, or validate it to resume a run.

    `resume` None resumes the run if there is one, and else starts it. `InputError` if `out` exists
    and is not to be resumed, is not a run, has another configuration, or is in use, or if there is
    nothing to resume. A start that fails before its first checkpoint removes the directory.
    """
    if out is None:
        yield RunDirectory(None)
        return
    path = Path(out)
    if resume and not path.exists():
        raise InputError(
            f"{path} does not exist, so there is no run to resume; leave out --resume to start one."
        )
    for name in (CONFIG, METRICS, CHECKPOINT, MODEL, LOCK):
        persisted.check_regular(path / name)
    blank = _is_blank(path)
    fresh = blank or resume is False or (resume is None and not (path / CONFIG).exists())
    if fresh:
        _make(path, taken=blank and resume is None)
    else:
        _check_resumable(path, config)
    with _locked(path):
        if fresh and (path / CONFIG).exists():  # another process was faster
            _check_resumable(path, config)
            fresh = False
        for name in (CONFIG, METRICS, CHECKPOINT, MODEL):  # others may be being written
            for leftover in path.glob(f".{name}.*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
        try:
            yield RunDirectory(path)
        except Exception:
            if fresh and not (path / CHECKPOINT).exists():
                _unmake(path)
            raise


@contextlib.contextmanager
def open_runs(
    out: str | Path | None, configs: Mapping[str, RunConfig], *, resume: bool
) -> Iterator[dict[str, RunDirectory]]:
    """`open_run` for each run, in out/name; `resume` also starts those that do not exist yet.

    `InputError` as in `open_run`, and if `out` is itself a run.
    """
    parent = None if out is None else Path(out)
    if parent is not None and (parent / CONFIG).exists():
        raise InputError(f"{parent} holds a single run; give another --out for replicas.")
    with contextlib.ExitStack() as stack:
        directories = {}
        for name, config in configs.items():
            path = None if parent is None else parent / name
            again = resume and path is not None and path.exists()
            directories[name] = stack.enter_context(open_run(path, config, resume=again))
        yield directories


def _is_blank(path: Path) -> bool:
    """Whether `path` does not exist, or holds only what a start that was killed at once leaves."""
    if not path.is_dir():
        return not path.exists()
    return all(p.name == LOCK or p.name.endswith(TEMPORARY) for p in path.iterdir())


def _make(path: Path, *, taken: bool) -> None:
    """Create the directory; `InputError` if it is in use, unless it may be `taken`.

    `taken` allows that another process has started the run since the directory was blank.
    """
    if (path / CONFIG).exists() and not taken:
        raise InputError(
            f"{path} holds a run already; give --resume to continue it, or another --out."
        )
    if replicas(path):
        raise InputError(
            f"{path} holds replicas already; give --resume to continue them, or another --out."
        )
    if not (taken or _is_blank(path)):
        raise InputError(
            f"{path} exists and is not a run of iwae; give the name of a directory that does not "
            f"exist yet."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The directory {path} cannot be created: {error.strerror}.") from error


def _unmake(path: Path) -> None:
    """Remove the files of a start without a checkpoint, so that the next start is not rejected."""
    for name in (METRICS, CONFIG, LOCK):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _check_resumable(path: Path, config: RunConfig) -> None:
    """`InputError` if the configuration differs from that of the run in what it must not change.

    It may change the settings in `SAVING` and `MOVED`, `minutes`, and, with a constant schedule and
    no stages, `epochs` to a larger number.
    """
    stored = read_config(path)
    if (path / MODEL).exists() and not (path / CHECKPOINT).exists():
        raise InputError(
            f"{path} holds a trained model but no {CHECKPOINT} to train it further from; give "
            f"another --out."
        )
    longer = stored.has_open_end
    for name, before, now in differences(stored, config):
        moved = name in ("schema", "start_from") and None not in (before, now)  # as all in MOVED
        moved |= name == "values" and before == "auto"  # other examples are rejected later
        moved |= name == "dataset" and bool(Path(before).suffix and Path(now).suffix)
        if moved or name in (*SAVING, "minutes") or (name == "epochs" and longer and now > before):
            continue
        hint = "leave the setting out"
        if name == "epochs" and not longer:
            what = (
                f"{stored.training.schedule} schedule was" if not stored.stages else "stages were"
            )
            hint = f"the {what} laid out for its epochs, so {hint}"
        if name == STAGES:
            before, now = before or "none", now or "none"
        raise InputError(
            f"{path} was started with {name} = {before}, not {now}; {hint} to resume it, or give "
            f"another --out."
        )


class InUseError(InputError):
    """Another process is training in the directory."""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock, which the operating system releases when the process ends."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path / LOCK, wait=False))
        except BlockingIOError as error:
            raise InUseError(
                f"{path} is being trained by another process; wait for it or give another --out."
            ) from error
        except OSError as error:
            raise InputError(
                f"{path} cannot be locked ({error.strerror}); give an --out on a file system that "
                f"has locks."
            ) from error
        yield


def read_model(path: Path) -> tuple[Stored, Observation, int]:
    """The stored model of a run, how it observes its data, and its epochs of training.

    `InputError` if it is missing, damaged or of another run.
    """
    stored = checkpoint.read(path / MODEL)
    if (path / CONFIG).exists():
        _check_own(stored, read_config_and_identity(path)[1])
    header = _model_header(stored)
    if header.seen is None:
        raise persisted.damaged(stored.path, checkpoint.RESTORE, "it lacks header.seen")
    return stored, header.seen, header.passes


def write_model(path: Path, model: AbstractAutoencoder, header: ModelHeader, run: str) -> None:
    """Write the model of a run, with its header."""
    arrays = eqx.filter(model, eqx.is_array)
    of = None if header.seen is None else asdict(header.seen)
    fields = {"seen": of, "passes": header.passes, "step": header.step}
    checkpoint.save(path / MODEL, arrays, fields, run=run)


def _check_own(stored: Stored, run: str) -> None:
    """`InputError` if a file names another run; files of early versions name none."""
    other = stored.about.get("run", "")
    if run and other not in ("", run):
        raise InputError(
            f"{stored.path} belongs to another run than the {CONFIG} beside it, with other "
            f"settings or data; restore the file of this run."
        )


def _model_header(stored: Stored) -> ModelHeader:
    """The header of a model, without entries of later versions; `InputError` if it is damaged."""
    try:
        own = persisted.known(stored.header, ModelHeader, checkpoint.HEADER)
        return persisted.typed(own, ModelHeader, checkpoint.HEADER)
    except MistypedError as error:
        raise persisted.damaged(stored.path, checkpoint.RESTORE, str(error)) from error


def _progress_of(stored: Stored) -> Progress:
    """The progress in the header of a checkpoint; `InputError` if it is damaged."""
    try:
        for name in sorted(set(REQUIRED) - stored.header.keys()):
            raise MistypedError(f"it lacks {checkpoint.HEADER}.{name}")
        return persisted.typed(stored.header, Progress, checkpoint.HEADER)
    except MistypedError as error:
        raise persisted.damaged(stored.path, checkpoint.RESTORE, str(error)) from error


def read_progress(path: Path) -> Progress:
    """The progress of the run in a directory when it was last saved."""
    return _progress_of(checkpoint.read(path / CHECKPOINT))


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.jsonl; a last line cut short by a crash is left out.

    `InputError` if another line is damaged, or if rows of epochs in the checkpoint are missing or
    were changed.
    """
    begun = (path / CHECKPOINT).exists()
    return _metrics(path, checkpoint.read(path / CHECKPOINT) if begun else None)


def history_of(path: Path) -> History:
    """The metrics of a run directory, read on first access."""
    return History(partial(read_metrics, path))


def _metrics(path: Path, stored: Stored | None) -> list[Row]:
    """`read_metrics` of a run with this checkpoint."""
    file = path / METRICS
    rows = parsed_rows(file)
    saved = 0 if stored is None else _progress_of(stored).passes
    numbers = [row["pass"] for row in rows]
    remedy = "restore it from a copy, or train again"
    if numbers != list(range(1, len(rows) + 1)) or len(rows) < saved:
        missing = next(i for i in range(1, saved + len(rows) + 2) if i not in numbers[i - 1 : i])
        raise persisted.damaged(file, remedy, f"it lacks the row of epoch {missing}")
    kept = None if stored is None else stored.about.get("metrics")
    if kept not in (None, persisted.digest(rows[:saved])):
        raise persisted.damaged(file, remedy, "its rows are not those that were saved")
    return rows


def noted(seen: Observation, note: str) -> Observation:
    """The observation with another note that results must carry."""
    return replace(seen, note="; ".join(text for text in (seen.note, note) if text))
