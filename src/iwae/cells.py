"""Runs that are addressed by their content: made once, reused, resumed, in one process or several.

A task is a configuration and how it is evaluated. Equal configurations have one folder, whatever
table asks for them, and a finished evaluation in it is never replaced.
"""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwae import runs
from iwae.config import RunConfig
from iwae.errors import TOO_LARGE, InputError, Interrupted
from iwae.experiments import Watchers, finished, known, versions
from iwae.files import write_atomic
from iwae.folder import CONFIG, MODEL, SAVING, InUseError, read_metrics
from iwae.loop import Silent, Watcher
from iwae.measures import MEASURES
from iwae.settings import differences, override, parse
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
        for name, value in (("draws", self.k), ("limit", self.limit)):
            if value is not None and value < 1:
                raise InputError(
                    f"{name} = {value} was given, but an evaluation needs at least 1; give 1 or "
                    f"more."
                )

    @property
    def address(self) -> str:
        """The folder's name: what one looks for, then a digest of every setting that matters.

        Only those that are not the default are in it, so that it outlives the settings to come. Of
        a data file it is the content that counts.
        """
        given = differences(self.config, RunConfig())
        content: dict[str, Any] = {n: v for n, v, _ in given if n not in SAVING}
        source = Path(self.config.data.dataset)
        if source.is_file():
            content["dataset"] = hashlib.sha256(source.read_bytes()).hexdigest()
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


@dataclass(frozen=True)
class Failure:
    """Why a task has no result."""

    sentence: str
    in_use: bool = False
    """Whether another process trains in the folder."""


Result = dict[str, Any]
"""An evaluation, the seed and the seconds of the training, and what it was made with."""


def place(task: Task, out: Path) -> Path:
    """The folder of a task's run."""
    return out / FOLDER / task.address


def _result_file(task: Task, out: Path, measure: str = "") -> Path:
    return place(task, out) / f"{task.evaluation}{measure and '-'}{measure}.json"


def recorded(task: Task, out: Path) -> Result | None:
    """The result of a task that is finished, with its `figures` by measure if it asks for any."""
    result = _read(_result_file(task, out))
    figures = {measure: _read(_result_file(task, out, measure)) for measure in task.measures}
    if result is None or None in figures.values():
        return None
    return result | ({"figures": figures} if figures else {})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def state(task: Task, out: Path) -> str:
    """done, trained (but not evaluated), begun (after so many passes) or missing."""
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
    """Train, resume or reuse the run, evaluate it, and record and return the result."""
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
    evaluated = runs.evaluate(trained, k=task.k, limit=task.limit)
    figures = {
        measure: {name: known(f) for name, f in MEASURES[measure].take(trained, evaluated).items()}
        for measure in task.measures
    }
    result = evaluated.to_json() | {
        "seed": task.config.seed,
        "training_seconds": runs.training_seconds(trained),
        **versions(),
    }
    _record(task, out, result | ({"figures": figures} if figures else {}))
    return recorded(task, out) or result


def _trained(task: Task, out: Path, watch: Watcher, data_dir: str | Path | None) -> Trained:
    """The run of a task, trained if it is not yet."""
    path = place(task, out)
    return (
        runs.load(path) if (path / MODEL).exists() else finished(path, task.config, watch, data_dir)
    )


def _record(task: Task, out: Path, result: Result) -> None:
    """Write what is not there yet: a finished evaluation is never replaced."""
    files = {"": {name: value for name, value in result.items() if name != "figures"}}
    files |= {m: result["figures"][m] for m in task.measures}
    for measure, content in files.items():
        path = _result_file(task, out, measure)
        if _read(path) is not None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content, indent=1))


Made = Callable[[str, Result | Failure], None]
"""Hears a task's name and its result."""


def make_all(
    tasks: Mapping[str, Task],
    out: Path,
    *,
    elsewhere: Executor | None = None,
    watch: Watchers,
    made: Made = lambda name, result: None,
    data_dir: str | Path | None = None,
) -> dict[Task, Result | Failure]:
    """The results of all tasks, made in this process or through an executor.

    A task that fails leaves a `Failure`, and the others go on. `watch` gives those that run in this
    process a watcher by the task's name; `made` hears of each that has ended.
    """
    results: dict[Task, Result | Failure] = {}
    missing: dict[Task, str] = {}
    for name, task in tasks.items():
        before = recorded(task, out)
        if before is None:
            missing.setdefault(task, name)
        else:
            results[task] = before

    def keep(task: Task, result: Result | Failure) -> None:
        results[task] = result
        if not isinstance(result, Failure) and recorded(task, out) is None:
            _record(task, out, result)  # made where no folder is shared
        made(missing[task], result)

    if elsewhere is None:
        for task in itertools.chain(*_turns(missing)):
            name = missing[task]
            watcher = watch.cell(name, task.config.training.epochs)
            keep(task, _attempt(task, out, watcher, data_dir))
        return results
    at, data = out.resolve(), None if data_dir is None else Path(data_dir).resolve()
    with elsewhere as pool:
        try:
            for turn in _turns(missing):
                waiting = {pool.submit(in_a_process, task, at, data): task for task in turn}
                for future in as_completed(waiting):
                    keep(waiting[future], _outcome(future))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _turns(tasks: Iterable[Task]) -> list[list[Task]]:
    """Tasks that may be made at once: first those that begin anew, then those that go on."""
    anew = [task for task in tasks if task.after is None]
    return [anew, [task for task in tasks if task.after is not None]]


def _outcome(future: Future) -> Result | Failure:
    try:
        return future.result()
    except Exception as error:  # whatever became of a worker, the other cells go on
        return Failure(f"{error or type(error).__name__}")


def processes(workers: int) -> Executor:
    """So many processes at once on this machine."""
    return ThreadPoolExecutor(workers)


ANSWER = 10.0
"""Seconds in which a scheduler answers."""


class _Cluster(Executor):
    """Tasks submitted to a Dask client, which is closed with it."""

    def __init__(self, client: Any):
        self.client = client
        self.executor = client.get_executor(pure=False, retries=3)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        return self.executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait)
        self.client.close()  # and what is still wanted of it is cancelled


def cluster(scheduler: str) -> Executor:
    """The workers of a running Dask cluster, which have this package; a lost one's task is made by
    another. `InputError` if the extra is not installed, or no scheduler answers."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(
            "scheduler was given, but Dask is not installed; pip install 'iwae[cluster]'."
        ) from error
    try:
        client = Client(scheduler, timeout=ANSWER)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"scheduler = {scheduler} was given, but no Dask scheduler answers there; start one "
            f"with `dask scheduler`, and give the address that it prints."
        ) from error
    return _Cluster(client)


def _attempt(
    task: Task, out: Path, watch: Watcher, data_dir: str | Path | None
) -> Result | Failure:
    """`make`, or what is the matter with this one task, which is no reason to leave the others."""
    try:
        return make(task, out, watch=watch, data_dir=data_dir)
    except (InputError, OSError, MemoryError) as error:
        return Failure(str(error) or TOO_LARGE, in_use=isinstance(error, InUseError))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Failure(TOO_LARGE)


def in_a_process(task: Task, out: Path, data_dir: Path | None) -> Result | Failure:
    """`make` in a process of its own, so that what ends it ends nothing else.

    Raises `RuntimeError` if it was ended from outside, and another should try.
    """
    order = {
        "config": task.config.to_toml(),
        "k": task.k,
        "limit": task.limit,
        "measures": task.measures,
        "after": None if task.after is None else task.after.config.to_toml(),
        "out": str(out),
        "data_dir": None if data_dir is None else str(data_dir),
        "parent": os.getpid(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "iwae.cells"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    result = recorded(task, out)
    if result is not None:
        return result
    said = done.stderr.strip().splitlines()
    if done.returncode == FAILED and said:
        return Failure(said[-1])
    last = f": {said[-1]}" if said else ""
    raise RuntimeError(f"Its process ended with {done.returncode}{last}.")


FAILED, INTERRUPTED = 2, 130
"""Exit codes of a process: what was asked for cannot be, and it was told to stop."""


class Orphaned(Silent):
    """Interrupts the run when the process that asked for it is gone."""

    def __init__(self, parent: int):
        self.parent = parent

    def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None:
        if os.getppid() != self.parent:
            signal.raise_signal(signal.SIGINT)


PATIENCE = 60.0
"""Seconds that an orphan has to save its run before another process takes it over."""


def serve(order: Mapping[str, Any]) -> int:
    """Carry out an order of `in_a_process`; its exit code."""
    config = parse(order["config"], "the order")
    after = order["after"] and Task(parse(order["after"], "the order"), order["k"])
    task = Task(config, order["k"], order["limit"], tuple(order["measures"]), after)
    watch, began = Orphaned(order["parent"]), time.monotonic()
    while True:
        try:
            result = _attempt(task, Path(order["out"]), watch, order["data_dir"])
        except Interrupted as error:
            print(error, file=sys.stderr)
            return INTERRUPTED
        if not isinstance(result, Failure):
            return 0
        if not result.in_use or time.monotonic() - began > PATIENCE:
            print(result.sentence, file=sys.stderr)
            return INTERRUPTED if result.in_use else FAILED
        time.sleep(0.5)


if __name__ == "__main__":
    raise SystemExit(serve(json.load(sys.stdin)))
