"""A run is a folder: configuration, metrics, checkpoint, model and evaluations.

Everything in it is written atomically, a second command never destroys it, and one process at a
time trains in it. Every file says which run it belongs to (`identity`) and carries a digest of its
content, and both are verified when it is read; files of early versions are read without.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import equinox as eqx

from iwae._utils.files import OF_A_RUN, TEMPORARY, locked, write_atomic
from iwae.config.io import differences, parse, read_text
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.models.base import AbstractAutoencoder
from iwae.models.observation import Observation
from iwae.storage import checkpoint, persisted
from iwae.storage.checkpoint import Stored
from iwae.storage.persisted import MistypedError, Unbounded

CONFIG, METRICS, CHECKPOINT, MODEL, EVALUATION = OF_A_RUN
LOCK = ".lock"

REPLICA = "seed-"
"""What the folder of a replica is called, before its seed."""


EARLY = "early"
"""What a checkpoint has in addition if the run began without digests."""

UNVERIFIED = "the run is of an early version, whose files have no digests that show damage"
"""What the results of such a run carry."""

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
    names: tuple[str, ...] = ()
    """Of the examples' columns, in the order in which the model takes them."""

    def made_on(self, here: str) -> "Progress":
        """With the device and version that take part from here on."""
        before = self.made_with or ((UNRECORDED,) if self.seconds else ())
        return replace(self, made_with=tuple(dict.fromkeys((*before, here))))


class _Saved(TypedDict):
    """The header of a checkpoint: a `Progress`, in which early versions kept less."""

    passes: int
    seconds: float
    best: Unbounded | None
    stale: int
    finished: str
    made_with: NotRequired[list[str]]
    data: NotRequired[str]
    names: NotRequired[list[str]]


class _Yielded(TypedDict):
    """What the header of a model says, beside what it knows of its data."""

    passes: int
    step: NotRequired[int]


class _Seen(_Yielded):
    """The header of a model."""

    seen: Observation


Row = TypedDict(
    "Row",
    {
        "pass": int,
        "step": int,
        "seconds": float,
        "learning_rate": float,
        "train_bound": Unbounded,
        "valid_bound": NotRequired[Unbounded],
    },
)
"""A line of metrics.jsonl."""


class Evaluated(TypedDict):
    """An entry of evaluation.json: an `Evaluation` without its values per example."""

    dataset: str
    split: str
    n: int
    passes: int
    k: int
    nll: float
    nll_se: float | None
    bits_per_dim: float
    elbo: Unbounded | None
    reconstruction: Unbounded | None
    kl: list[Unbounded | None]
    active_units: list[int] | None
    activity: list[list[Unbounded | None]] | None
    nll_without_inactive: NotRequired[float | None]
    used_units: NotRequired[list[int] | None]
    nll_only_used: NotRequired[float | None]
    seed: int
    seconds: float
    device: str
    note: str
    mean_weights: NotRequired[bool]


def identity(config: RunConfig, seen: Observation) -> str:
    """A digest of what a run is: its data, and its settings but for those that say where the data
    lie, when it is saved, or how long it runs.

    Only settings that are not the default count, so that it outlives the settings to come.
    """
    free = {*SAVING, *MOVED, "minutes"}
    if config.training.schedule == "constant":
        free.add("epochs")
    own = {n: v for n, v, _ in differences(config, RunConfig()) if n not in free}
    begun = config.training.start_from is not None
    data = [seen.kind, seen.scale, list(seen.shape), seen.binarization, seen.digest]
    return persisted.digest([own, begun, data])


class RunDirectory:
    """The files of one run, or of none (`path` None) when training in memory."""

    def __init__(self, path: Path | None):
        self.path = path
        self.run = ""
        """The identity of the run; empty while it is not known."""
        self.verified = True
        """Whether all of the run was saved with digests."""
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

    @property
    def leaves(self) -> list[str]:
        """The tree paths of what was last saved; empty if nothing was."""
        if self.path is None or not self.begun:
            return []
        return checkpoint.names(self.path / CHECKPOINT)

    def is_of_others(self) -> bool:
        """Whether what was begun here is another run, by its identity."""
        if self.path is None or not (self.begun and (self.path / CONFIG).exists()):
            return False
        return read_stated(self.path)[1] not in ("", self.run)

    def save_config(self, config: RunConfig) -> None:
        if self.path is not None:
            write_atomic(self.path / CONFIG, stated(config, self.run))

    def save(self, tree: Any, progress: Progress) -> None:
        if self.path is not None:
            about = {"run": self.run, "metrics": persisted.digest(self.rows)}
            about |= {} if self.verified else {EARLY: UNVERIFIED}
            checkpoint.save(self.path / CHECKPOINT, tree, asdict(progress), **about)

    def restore(self, like: Any) -> tuple[Any, Progress]:
        """The last checkpoint, and metrics cut back to it; `like` itself if there is none yet.

        `InputError` if the files are damaged or do not belong together.
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
        tree = checkpoint.fitted(stored, like)
        self.rows = _metrics(self.path, stored)[: progress.passes]
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomic(self.path / METRICS, lines)
        return tree, progress

    def has_model(self, passes: int, step: int) -> bool:
        """Whether the model of this step is there; that of an early version knows no step."""
        if self.path is None or not (self.path / MODEL).exists():
            return False
        try:
            stored = checkpoint.read(self.path / MODEL)
            _check_own(stored, self.run)
            header = _header(stored, _Yielded)
        except InputError:  # damaged, or of another run
            return False
        return (header["passes"], header.get("step", step)) == (passes, step)

    def save_model(
        self, model: AbstractAutoencoder, seen: Observation, passes: int, step: int
    ) -> None:
        if self.path is not None:
            header = {"seen": asdict(seen), "passes": passes, "step": step}
            write_model(self.path, model, header, self.run)


@contextlib.contextmanager
def opened(
    out: str | Path | None, config: RunConfig, *, resume: bool | None
) -> Iterator[RunDirectory]:
    """The locked folder of a run: made for a first start, checked for a resume; None stands for
    whichever there is to do.

    `InputError` if `out` exists and is not to be resumed, is no run, was configured otherwise, or
    is in use, or if there is nothing to resume. A start that fails before its first checkpoint
    leaves no folder behind.
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
        if fresh and (path / CONFIG).exists():  # another process was here first
            _check_resumable(path, config)
            fresh = False
        for name in (CONFIG, METRICS, CHECKPOINT, MODEL):  # of the others somebody may be at work
            for leftover in path.glob(f".{name}.*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
        try:
            yield RunDirectory(path)
        except Exception:
            if fresh and not (path / CHECKPOINT).exists():
                _unmake(path)
            raise


@contextlib.contextmanager
def opened_together(
    out: str | Path | None, configs: Mapping[str, RunConfig], *, resume: bool
) -> Iterator[dict[str, RunDirectory]]:
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
        moved = name == "start_from" and None not in (before, now)  # as all in MOVED
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

MOVED = ("dataset", "values", "start_from")
"""Settings that say where something lies, or what its values were taken for by themselves; it is
what they lead to that counts."""


class InUseError(InputError):
    """Another process trains in the folder."""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock that the operating system drops when the process ends, however it ends."""
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


def read_config(path: Path) -> RunConfig:
    """The configuration of a run folder; `InputError` if it is not one, or is damaged."""
    return read_stated(path)[0]


STATED = re.compile(r"# iwae: run ([0-9a-f]{64}), sha256 of the settings ([0-9a-f]{64})\n")


def stated(config: RunConfig, run: str) -> str:
    """The text of config.toml: a comment with the identity of the run and a digest, which are left
    out while that is not known, and the settings."""
    text = config.to_toml()
    if not run:
        return text
    return f"# iwae: run {run}, sha256 of the settings {_sha256(run, text)}\n{text}"


def read_stated(path: Path) -> tuple[RunConfig, str]:
    """The configuration of a run folder, and the identity of the run, empty if an early version
    kept none; `InputError` if it is no run folder, or the file is damaged or was edited."""
    if not (path / CONFIG).is_file():
        if several := replicas(path):
            raise InputError(f"{path} holds replicas, not a run; give one of them: {several[0]}.")
        exists = "is not the folder of a run" if path.exists() else "does not exist"
        raise InputError(f"{path} {exists}; give a folder that `iwae train --out` made.")
    file = path / CONFIG
    text = read_text(file)
    found = STATED.match(text)
    if found is None:
        _check_early(path, text)
        return parse(text, str(file)), ""
    settings = text[found.end() :]
    if found[2] != _sha256(found[1], settings):
        raise _edited(file, "its digest is not that of its settings")
    return parse(settings, str(file)), found[1]


def _check_early(path: Path, text: str) -> None:
    """`InputError` unless a configuration without a digest is whole, and its run has none."""
    others = (checkpoint.written_about(path / name) for name in (MODEL, CHECKPOINT))
    if text.startswith("#") or any(other.get("run") for other in others):
        raise _edited(path / CONFIG, "it lacks its digest")
    if "\n[training]\n" not in text or "\ncheckpoint_minutes = " not in text:
        raise _edited(path / CONFIG, "it has no end")


def _edited(file: Path, why: str) -> InputError:
    remedy = "put it back as `iwae train` wrote it, or train with other settings into another --out"
    return InputError(f"{file} is damaged or was edited ({why}); {remedy}.")


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def read_model(path: Path) -> tuple[Stored, Observation, int]:
    """The model of a run folder, what it knows of its data, and the passes behind it; `InputError`
    if it is missing or damaged, or that of another run."""
    stored = checkpoint.read(path / MODEL)
    if (path / CONFIG).exists():
        _check_own(stored, read_stated(path)[1])
    header = _header(stored, _Seen)
    return stored, header["seen"], header["passes"]


def write_model(path: Path, model: AbstractAutoencoder, header: dict[str, Any], run: str) -> None:
    """The model of a run folder, with its header."""
    checkpoint.save(path / MODEL, eqx.filter(model, eqx.is_array), header, run=run)


def _check_own(stored: Stored, run: str) -> None:
    """`InputError` if a file is of another run; those of early versions do not say."""
    other = stored.about.get("run", "")
    if run and other not in ("", run):
        raise InputError(
            f"{stored.path} belongs to another run than the {CONFIG} beside it, with other "
            f"settings or data; put back the file of this one."
        )


def _header(stored: Stored, kind: Any) -> Any:
    try:
        return persisted.typed(stored.header, kind, checkpoint.HEADER)
    except MistypedError as error:
        raise persisted.damaged(stored.path, checkpoint.RESTORE, str(error)) from error


def _progress_of(stored: Stored) -> Progress:
    header = _header(stored, _Saved)
    for name in header.keys() - _Saved.__annotations__.keys():
        why = f"{checkpoint.HEADER}.{name} is an entry that is not known"
        raise persisted.damaged(stored.path, checkpoint.RESTORE, why)
    lists = {name: tuple(header.get(name, ())) for name in ("made_with", "names")}
    return Progress(**header | lists)


def read_progress(path: Path) -> Progress:
    """How far the run in a folder was when it was last saved."""
    return _progress_of(checkpoint.read(path / CHECKPOINT))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a crash cut short is left out.

    `InputError` if another is no row, or if rows of passes that are saved are missing or others.
    """
    begun = (path / CHECKPOINT).exists()
    return _metrics(path, checkpoint.read(path / CHECKPOINT) if begun else None)


def _metrics(path: Path, stored: Stored | None) -> list[dict[str, Any]]:
    """`read_metrics` of a run that was last saved so."""
    file, rows = path / METRICS, []
    if file.exists():
        lines = persisted.content_of(file).splitlines(keepends=True)
        rows = [_row(line, file, i) for i, line in enumerate(lines, 1) if line[-1:] == b"\n"]
    saved = 0 if stored is None else _progress_of(stored).passes
    numbers = [row["pass"] for row in rows]
    remedy = "restore it from a copy, or train again"
    if numbers != list(range(1, len(rows) + 1)) or len(rows) < saved:
        missing = next(i for i in range(1, saved + len(rows) + 2) if i not in numbers[i - 1 : i])
        raise persisted.damaged(file, remedy, f"it lacks the row of pass {missing}")
    kept = None if stored is None else stored.about.get("metrics")
    if kept not in (None, persisted.digest(rows[:saved])):
        raise persisted.damaged(file, remedy, "its rows are not those that were saved")
    return rows


def _row(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        return persisted.typed(persisted.parsed(line), Row)
    except MistypedError:
        raise InputError(
            f"Line {number} of {file} is damaged; delete that line, or restore the file from a "
            f"copy."
        ) from None


def read_evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """The evaluations kept in a run folder, by split, K, examples, seed and training passes.

    `InputError` if the file is damaged, or holds evaluations of another run.
    """
    file = path / EVALUATION
    if not file.exists():
        return {}
    remedy = "delete it and evaluate again"
    config, run = read_stated(path)
    kept: dict[str, dict[str, Any]] = {}
    try:
        found = persisted.parsed(persisted.content_of(file))
        entries = persisted.typed(found, dict[str, Evaluated])
        for name, entry in entries.items():
            plain, other = persisted.unsealed(entry, name)
            kept[name] = persisted.finite(plain)
            _check_layers(kept[name], name)
            if (other or run) != run or not (other or _could_be_of(config, kept[name])):
                raise InputError(f"{file} holds evaluations of another run; {remedy}.")
    except MistypedError as error:
        raise persisted.damaged(file, remedy) from error
    return kept


def evaluations_text(entries: Mapping[str, Mapping[str, Any]], run: str) -> str:
    """The text of evaluation.json: all evaluations of a run, each with its digest."""
    of_run = {name: persisted.sealed(entry, run, name) for name, entry in entries.items()}
    return json.dumps(of_run, indent=1, allow_nan=False)


def noted(seen: Observation, remark: str) -> Observation:
    """The observation with a further remark that results must carry."""
    return replace(seen, note="; ".join(note for note in (seen.note, remark) if note))


def _check_layers(entry: Mapping[str, Any], name: str) -> None:
    """`MistypedError` unless what an evaluation has of each layer is of as many."""
    units, activity = entry["active_units"], entry["activity"]
    lengths = {len(entry["kl"]), *(len(of) for of in (units, activity) if of is not None)}
    if len(lengths) > 1 or (units is None) != (activity is None):
        raise MistypedError(f"{name} has figures of different layers")


def _could_be_of(config: RunConfig, entry: Mapping[str, Any]) -> bool:
    """Whether an evaluation that does not say could be of a run: of data of this name, which files
    can change, after as many passes at most, and of a model with as many layers and units."""
    dataset = config.data.dataset
    if not Path(dataset).suffix and entry["dataset"] != dataset:
        return False
    if entry["passes"] > config.training.epochs:
        return False
    latents: Sequence[int] = config.model.widths[1]
    activity = entry["activity"]
    units = latents if activity is None else tuple(map(len, activity))
    return len(entry["kl"]) == len(latents) and tuple(units) == tuple(latents)
