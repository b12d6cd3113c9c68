"""Jobs made all at once: in this process, in processes of their own, or on a cluster."""

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from iwae._utils.extras import require
from iwae.config.io import parse
from iwae.errors import InputError, Interrupted
from iwae.experiments.comparisons import Watchers
from iwae.experiments.jobs import (
    Failure,
    Job,
    attempt,
    log_likelihoods,
    recorded,
    state,
    write_result,
)
from iwae.experiments.measured import Result
from iwae.storage import persisted
from iwae.training.callbacks import Callback, StepChunk

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

Outcome = Result | Failure
"""What became of a job."""

Made = Callable[[str, Outcome], None]
"""Hears a job's name and its outcome."""


def make_all(
    jobs: Mapping[str, Job],
    out: Path,
    *,
    elsewhere: Executor | None = None,
    watch: Watchers,
    made: Made = lambda name, result: None,
    data_dir: str | Path | None = None,
) -> dict[Job, Outcome]:
    """The results of all jobs, made in this process or through an executor.

    A job that fails leaves a `Failure`, and the others go on. `watch` gives those that run in this
    process a watcher by the job's name; `made` hears of each that has ended. `Interrupted` after
    Ctrl-C, with all saved.
    """
    results: dict[Job, Outcome] = {}
    missing: dict[Job, str] = {}
    for name, job in jobs.items():
        before = recorded(job, out) if state(job, out) == "done" else None
        if before is None:
            missing.setdefault(job, name)
        else:
            results[job] = before

    def keep(job: Job, result: Outcome) -> None:
        if not isinstance(result, Failure):
            try:
                write_result(job, out, result)  # where it was made without a folder that is shared
                result = replace(result, log_likelihoods=None)
            except InputError as error:
                result = Failure(str(error))
        results[job] = result
        made(missing[job], result)

    try:
        if elsewhere is None:
            for job in itertools.chain(*_turns(missing)):
                watcher = watch.cell(missing[job], job.config.training.epochs)
                keep(job, attempt(job, out, watcher, data_dir))
        else:
            _make_elsewhere(missing, out, data_dir, elsewhere, keep)
    except (Interrupted, KeyboardInterrupt) as error:
        left = len(missing.keys() - results.keys())
        raise Interrupted(
            f"Interrupted with {left} of {left + len(results)} runs left; what there is of them is "
            f"saved, and the same command goes on from there."
        ) from error
    return results


def _make_elsewhere(
    jobs: Iterable[Job],
    out: Path,
    data_dir: str | Path | None,
    elsewhere: Executor,
    keep: Callable[[Job, Outcome], None],
) -> None:
    """Through an executor, which drops what has not begun on Ctrl-C."""
    at, data = out.resolve(), None if data_dir is None else Path(data_dir).resolve()
    with elsewhere as pool:
        try:
            for turn in _turns(jobs):
                waiting = {pool.submit(in_a_process, job, at, data): job for job in turn}
                for future in as_completed(waiting):
                    keep(waiting[future], _outcome(future))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _turns(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that may be made at once: first those that begin anew, then those that go on."""
    anew = [job for job in jobs if job.after is None]
    return [anew, [job for job in jobs if job.after is not None]]


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # whatever became of a worker, the other cells go on
        if type(error).__name__ == "KilledWorker":
            return Failure("Its workers were lost again and again.")
        return Failure(str(error) or type(error).__name__)


class _Processes(ThreadPoolExecutor):
    """A process for each job, which is no longer awaited once the others are cancelled."""

    def __init__(self, workers: int):
        super().__init__(workers)
        self.left = threading.Event()

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        return super().submit(function, *args, **kwargs, left=self.left)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            self.left.set()
        super().shutdown(wait, cancel_futures=cancel_futures)


def processes(workers: int) -> Executor:
    """So many processes at once on this machine."""
    return _Processes(workers)


ANSWER = 10.0
"""Seconds in which a scheduler answers."""


class _Cluster(Executor):
    """Jobs submitted to a Dask client, which is closed with it."""

    def __init__(self, client: "Client"):
        self.client = client
        self.executor = client.get_executor(pure=False, retries=3)

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        return self.executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait)
        self.client.close()  # and what is still wanted of it is cancelled


def cluster(scheduler: str) -> Executor:
    """The workers of a running Dask cluster, which have this package; a lost one's job is made by
    another. `InputError` if the extra is not installed, or no scheduler answers."""
    distributed = require("distributed", purpose="a cluster's scheduler")
    try:
        client = distributed.Client(scheduler, timeout=ANSWER)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"scheduler = {scheduler} was given, but no Dask scheduler answers there; start one "
            f"with `dask scheduler`, and give the address that it prints."
        ) from error
    return _Cluster(client)


def in_a_process(
    job: Job, out: Path, data_dir: Path | None, left: threading.Event | None = None
) -> Outcome:
    """`make` in a process of its own, so that what ends it ends nothing else; the result has its
    likelihoods.

    It is interrupted once `left` is set, or on a worker of a cluster when its client has cancelled
    it or disconnected. Raises `RuntimeError` if it was ended from outside, and another should try.
    """
    unwanted = _cancelled() if left is None else left.is_set
    command = [sys.executable, "-m", "iwae.experiments.executors"]
    code, said = _carry_out(command, Order.of(job, out, data_dir).to_json(), unwanted)
    try:
        result, values = recorded(job, out), log_likelihoods(job, out)
    except InputError as error:
        return Failure(str(error))
    if result is not None:
        return replace(result, log_likelihoods=values)
    if code == FAILED and said:
        return Failure(said[-1])
    if code == 0:
        return Failure("It was made as another run; its worker has another version, or other data.")
    last = f": {said[-1].rstrip('.')}" if said else ""
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
    raise RuntimeError(f"Its process {ended}{last}.")


LOOK = 1.0
"""Seconds between two looks whether a job is still wanted."""


def _carry_out(
    command: Sequence[str], given: str, unwanted: Callable[[], bool]
) -> tuple[int, list[str]]:
    """Exit code of a process, and the lines it wrote to standard error.

    It gets SIGINT once it is unwanted, and again after each `PATIENCE` seconds, since one that
    comes while a library is at work can be lost.
    """
    text = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with text() as order, text() as said:
        order.write(given)
        order.seek(0)
        process = subprocess.Popen(
            command,
            stdin=order,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # a terminal's Ctrl-C comes once, from here
        )
        told = -math.inf
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(LOOK)
                break
            if time.monotonic() - told > PATIENCE and unwanted():
                process.send_signal(signal.SIGINT)
                told = time.monotonic()
        said.seek(0)
        return code, said.read().strip().splitlines()


def _cancelled() -> Callable[[], bool]:
    """Whether the job that this thread of a cluster's worker is at has been cancelled."""
    if "distributed" not in sys.modules:
        return lambda: False
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # this thread is none of a worker
        return lambda: False
    name = worker.get_current_task()

    def cancelled() -> bool:
        job = worker.state.tasks.get(name)
        return job is None or job.state == "cancelled"

    return cancelled


FAILED, INTERRUPTED = 2, 130
"""Exit codes of a process: what was asked for cannot be, and it was told to stop."""


class Orphaned(Callback):
    """Interrupts the run when the process that asked for it is gone."""

    def __init__(self, parent: int):
        self.parent = parent

    def on_step_chunk(self, event: StepChunk) -> None:
        if os.getppid() != self.parent:
            signal.raise_signal(signal.SIGINT)


PATIENCE = 60.0
"""Seconds that a process has to save its run before it is told again, or another takes it over."""


@dataclass(frozen=True)
class Order:
    """What a process of its own is asked to make."""

    config: str
    """TOML."""
    k: int
    limit: int | None
    measures: list[str]
    after: str | None
    """TOML of the run that this one goes on from."""
    out: str
    data_dir: str | None
    parent: int
    """The process that asks for it."""

    @classmethod
    def of(cls, job: Job, out: Path, data_dir: Path | None) -> "Order":
        """The order of this process for a job."""
        return cls(
            config=job.config.to_toml(),
            k=job.k,
            limit=job.limit,
            measures=list(job.measures),
            after=None if job.after is None else job.after.config.to_toml(),
            out=str(out),
            data_dir=None if data_dir is None else str(data_dir),
            parent=os.getpid(),
        )

    def to_json(self) -> str:
        """As the process reads it."""
        return json.dumps(asdict(self))

    @property
    def job(self) -> Job:
        """What is to be made."""
        config = parse(self.config, "the order")
        after = None if self.after is None else Job(parse(self.after, "the order"), self.k)
        return Job(config, self.k, self.limit, tuple(self.measures), after)


def serve(order: Order) -> int:
    """Carry out an order of `in_a_process`; its exit code."""
    job, data_dir = order.job, order.data_dir
    watch, began = Orphaned(order.parent), time.monotonic()
    while True:
        try:
            result = attempt(job, Path(order.out), watch, data_dir)
        except Interrupted as error:
            print(error, file=sys.stderr)
            return INTERRUPTED
        if not isinstance(result, Failure):
            return 0
        if not result.in_use or time.monotonic() - began > PATIENCE:
            print(result.message, file=sys.stderr)
            return INTERRUPTED if result.in_use else FAILED
        time.sleep(0.5)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored
    raise SystemExit(serve(persisted.typed(json.load(sys.stdin), Order)))
