"""A run is a folder: configuration, metrics, checkpoint, model and evaluations.

Everything in it is written atomically, a second command never destroys it, and one process at a
time trains in it.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx

from iwae import checkpoint
from iwae.config import RunConfig
from iwae.errors import InputError
from iwae.files import TEMPORARY, write_atomic
from iwae.model import Autoencoder
from iwae.observation import Observation
from iwae.settings import differences, read

CONFIG, METRICS, CHECKPOINT = "config.toml", "metrics.jsonl", "checkpoint.safetensors"
MODEL, EVALUATION, LOCK = "model.safetensors", "evaluation.json", ".lock"

REPLICA = "seed-"
"""What the folder of a replica is called, before its seed."""


UNRECORDED = "iwae before 0.2.0"
"""What a run was begun with whose checkpoint does not say."""


@dataclass(frozen=True)
class Progress:
    """How far a run is; saved in the checkpoint's header."""

    passes: int = 0
    """Completed passes."""
    seconds: float = 0.0
    """Training time so far, over all sessions."""
    best: float | None = None
    """Best validation bound so far."""
    stale: int = 0
    """Validations since then."""
    finished: str = ""
    """Why training ended; empty while it has not."""
    made_with: tuple[str, ...] = ()
    """Devices and versions that took part, e.g. cpu, iwae 0.2.0."""
    data: str = ""
    """A digest of the training examples."""

    def made_on(self, here: str) -> "Progress":
        """With the device and version that take part from here on."""
        before = self.made_with or ((UNRECORDED,) if self.seconds else ())
        return replace(self, made_with=tuple(dict.fromkeys((*before, here))))


class Folder:
    """The files of one run, or of none (`path` None) when training in memory."""

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: list[dict[str, Any]] = []

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.path is not None and (self.path / CHECKPOINT).exists()

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.path is not None:
            with (self.path / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")

    @property
    def progress(self) -> Progress:
        """How far the run was when it was last saved."""
        if self.path is None or not self.begun:
            return Progress()
        return read_progress(self.path)

    def save_config(self, config: RunConfig) -> None:
        if self.path is not None:
            write_atomic(self.path / CONFIG, config.to_toml())

    def save(self, tree: Any, progress: Progress) -> None:
        if self.path is not None:
            checkpoint.save(self.path / CHECKPOINT, tree, asdict(progress))

    def restore(self, like: Any) -> tuple[Any, Progress]:
        """The last checkpoint, and metrics cut back to it; `like` itself if there is none yet."""
        progress = self.progress
        if self.path is None:
            return like, progress
        if not self.begun:
            (self.path / METRICS).unlink(missing_ok=True)
            return like, progress
        tree = checkpoint.load(self.path / CHECKPOINT, like)
        self.rows = [r for r in read_metrics(self.path) if r["pass"] <= progress.passes]
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomic(self.path / METRICS, lines)
        return tree, progress

    def has_model(self, passes: int, step: int) -> bool:
        """Whether the model of this step is there; that of an early version knows no step."""
        if self.path is None or not (self.path / MODEL).exists():
            return False
        try:
            header = checkpoint.read_header(self.path / MODEL)
        except InputError:  # damaged
            return False
        return (header["passes"], header.get("step", step)) == (passes, step)

    def save_model(self, model: Autoencoder, seen: Observation, passes: int, step: int) -> None:
        if self.path is not None:
            arrays = eqx.filter(model, eqx.is_array)
            header = {"seen": asdict(seen), "passes": passes, "step": step}
            checkpoint.save(self.path / MODEL, arrays, header)


@contextlib.contextmanager
def opened(out: str | Path | None, config: RunConfig, *, resume: bool | None) -> Iterator[Folder]:
    """The locked folder of a run: made for a first start, checked for a resume; None stands for
    whichever there is to do.

    `InputError` if `out` exists and is not to be resumed, is no run, was configured otherwise, or
    is in use, or if there is nothing to resume. A start that fails before its first checkpoint
    leaves no folder behind.
    """
    if out is None:
        yield Folder(None)
        return
    path = Path(out)
    if resume and not path.exists():
        raise InputError(
            f"{path} does not exist, so there is no run to resume; leave out --resume to start one."
        )
    blank = _is_blank(path)
    fresh = blank or resume is False or (resume is None and not (path / CONFIG).exists())
    if fresh:
        _make(path, taken=blank and resume is None)
    else:
        _check_resumable(path, config)
    with _locked(path):
        if fresh and (path / CONFIG).exists():  # another process was here first
            _check_resumable(path, config)
            fresh = False
        for name in (CONFIG, METRICS, CHECKPOINT, MODEL):  # of the others somebody may be at work
            for leftover in path.glob(f".{name}.*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
        try:
            yield Folder(path)
        except Exception:
            if fresh and not (path / CHECKPOINT).exists():
                _unmake(path)
            raise


@contextlib.contextmanager
def opened_together(
    out: str | Path | None, configs: Mapping[str, RunConfig], *, resume: bool
) -> Iterator[dict[str, Folder]]:
    """`opened` for each run, in out/name; `resume` also starts those not there yet.

    `InputError` as of `opened`, and if `out` is itself a run.
    """
    parent = None if out is None else Path(out)
    if parent is not None and (parent / CONFIG).exists():
        raise InputError(f"{parent} holds a single run; give another --out for replicas.")
    with contextlib.ExitStack() as stack:
        folders = {}
        for name, config in configs.items():
            path = None if parent is None else parent / name
            again = resume and path is not None and path.exists()
            folders[name] = stack.enter_context(opened(path, config, resume=again))
        yield folders


def replicas(path: Path) -> list[Path]:
    """The runs of `iwae train --seeds` in a folder, by seed."""
    found = [p for p in path.glob(f"{REPLICA}*") if (p / CONFIG).is_file()]
    seeds = {p: read_config(p).seed for p in found}
    own = [p for p in found if p.name == f"{REPLICA}{seeds[p]}"]
    return sorted(own, key=lambda p: seeds[p])


def _is_blank(path: Path) -> bool:
    """Whether there is nothing at `path`, or only what a start that was killed at once leaves."""
    if not path.is_dir():
        return not path.exists()
    return all(p.name == LOCK or p.name.endswith(TEMPORARY) for p in path.iterdir())


def _make(path: Path, *, taken: bool) -> None:
    """The folder; that it is `taken` by now, of those that were blank, is no matter."""
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
            f"{path} exists and is not a run of iwae; give the name of a folder that does not "
            f"exist yet."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made: {error.strerror}.") from error


def _unmake(path: Path) -> None:
    """Take away what a start without a checkpoint has written, so that the next is not refused."""
    for name in (METRICS, CONFIG, LOCK):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _check_resumable(path: Path, config: RunConfig) -> None:
    """Only the saving may differ, where the data file lies, what its values were taken for by
    themselves, the run that this one began with, and the number of passes where it does not shape
    the schedule."""
    stored = read_config(path)
    if (path / MODEL).exists() and not (path / CHECKPOINT).exists():
        raise InputError(
            f"{path} holds a trained model but no {CHECKPOINT}, from which it could be trained on; "
            f"give another --out."
        )
    longer = stored.training.schedule == "constant"
    for name, before, now in differences(stored, config):
        moved = name == "start_from" and None not in (before, now)
        moved |= name == "values" and before == "auto"  # of the same examples, or it is refused
        moved |= name == "dataset" and bool(Path(before).suffix and Path(now).suffix)
        if moved or name in (*SAVING, "minutes") or (name == "epochs" and longer and now > before):
            continue
        hint = "leave the setting out"
        if name == "epochs" and not longer:
            hint = f"the {stored.training.schedule} schedule was laid out for its passes, so {hint}"
        raise InputError(
            f"{path} was started with {name} = {before}, not {now}; {hint} to resume it, or give "
            f"another --out."
        )


SAVING = ("checkpoint_every", "checkpoint_minutes")
"""Settings that say when a run is saved, and nothing of what it becomes."""


class InUseError(InputError):
    """Another process trains in the folder."""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock that the operating system drops when the process ends, however it ends."""
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InUseError(
                f"{path} is being trained by another process; wait for it or give another --out."
            ) from error
        except OSError as error:
            raise InputError(
                f"{path} cannot be locked ({error.strerror}); give an --out on a file system that "
                f"has locks."
            ) from error
        yield


def read_config(path: Path) -> RunConfig:
    """The configuration of a run folder; `InputError` if it is not one."""
    if not (path / CONFIG).is_file():
        if several := replicas(path):
            raise InputError(f"{path} holds replicas, not a run; give one of them: {several[0]}.")
        exists = "is not the folder of a run" if path.exists() else "does not exist"
        raise InputError(f"{path} {exists}; give a folder that `iwae train --out` made.")
    return read(path / CONFIG)


def read_progress(path: Path) -> Progress:
    """How far the run in a folder was when it was last saved."""
    header = checkpoint.read_header(path / CHECKPOINT)
    return Progress(**header | {"made_with": tuple(header.get("made_with", ()))})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a crash cut short is left out.

    `InputError` if another is no row.
    """
    if not (path / METRICS).exists():
        return []
    lines = (path / METRICS).read_bytes().splitlines(keepends=True)
    return [_row(line, path / METRICS, i) for i, line in enumerate(lines, 1) if line[-1:] == b"\n"]


def _row(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(
            f"Line {number} of {file} is damaged; delete that line, or restore the file from a "
            f"copy."
        )
    return row


def read_evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """The evaluations kept in a run folder, by split, K, examples, seed and training passes."""
    if not (path / EVALUATION).exists():
        return {}
    try:
        found = json.loads((path / EVALUATION).read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(e, dict) for e in found.values()):
        raise InputError(f"{path / EVALUATION} is damaged; delete it and evaluate again.")
    return found
