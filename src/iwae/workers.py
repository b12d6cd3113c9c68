"""Tasks made all at once: in this process, in processes of their own, or on a cluster."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from iwae.cells import Failure, Result, Task, attempt, record, recorded
from iwae.errors import InputError, Interrupted
from iwae.experiments import Watchers
from iwae.loop import Silent
from iwae.settings import parse

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
            record(task, out, result)  # made where no folder is shared
        made(missing[task], result)

    if elsewhere is None:
        for task in itertools.chain(*_turns(missing)):
            name = missing[task]
            watcher = watch.cell(name, task.config.training.epochs)
            keep(task, attempt(task, out, watcher, data_dir))
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


def in_a_process(task: Task, out: Path, data_dir: Path | None) -> Result | Failure:
    """`make` in a process of its own, so that what ends it ends nothing else.

    It is interrupted once nobody waits for it. Raises `RuntimeError` if it was ended from outside,
    and another should try.
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
    code, said = _communicate([sys.executable, "-m", "iwae.workers"], json.dumps(order), _awaited())
    result = recorded(task, out)
    if result is not None:
        return result
    if code == FAILED and said:
        return Failure(said[-1])
    last = f": {said[-1]}" if said else ""
    raise RuntimeError(f"Its process ended with {code}{last}.")


def _communicate(
    command: Sequence[str], given: str, awaited: Callable[[], bool]
) -> tuple[int, list[str]]:
    """Exit code and the lines of standard error of a process that is interrupted once it is no
    longer awaited."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        told, message = False, given
        while True:
            try:
                _, said = process.communicate(message or None, timeout=LOOK)
                return process.returncode, said.strip().splitlines()
            except subprocess.TimeoutExpired:
                message = ""
            if not told and not awaited():
                process.send_signal(signal.SIGINT)
                told = True


LOOK = 1.0
"""Seconds between two looks whether a task is still awaited."""


def _awaited() -> Callable[[], bool]:
    """Whether the task that this thread is at is still awaited: on a worker of a cluster it is not
    when who submitted it has left."""
    if "distributed" not in sys.modules:
        return lambda: True
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # this thread is none of a worker
        return lambda: True
    name = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(name)
        return task is not None and task.state != "cancelled"

    return wanted


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
            result = attempt(task, Path(order["out"]), watch, order["data_dir"])
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
