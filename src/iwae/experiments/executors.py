"""Make many jobs: in this process, in separate processes, or on a Dask cluster."""

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
from iwae.experiments.comparisons import CellCallbacks
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
"""The outcome of a job."""

Made = Callable[[str, Outcome], None]
"""Called with a job's name and its outcome."""


def make_all(
    jobs: Mapping[str, Job],
    out: Path,
    *,
    elsewhere: Executor | None = None,
    callbacks: CellCallbacks,
    made: Made = lambda name, result: None,
    data_dir: str | Path | None = None,
) -> dict[Job, Outcome]:
    """Make all jobs in this process or through an executor, and return their outcomes.

    A job that fails has the outcome `Failure` and does not stop the others. `callbacks` gives each
    job that runs in this process its callback; `made` is called when a job has ended. Raises
    `Interrupted` after Ctrl-C, with all runs saved.
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
                write_result(job, out, result)  # in case its worker does not share the directory
                result = replace(result, log_likelihoods=None)
            except InputError as error:
                result = Failure(str(error))
        results[job] = result
        made(missing[job], result)

    try:
        if elsewhere is None:
            for job in itertools.chain(*_turns(missing)):
                callback = callbacks.cell(missing[job], job.config.training.epochs)
                keep(job, attempt(job, out, callback, data_dir))
        else:
            _make_elsewhere(missing, out, data_dir, elsewhere, keep)
    except (Interrupted, KeyboardInterrupt) as error:
        left = len(missing.keys() - results.keys())
        raise Interrupted(
            f"Interrupted with {left} of {left + len(results)} runs left; their progress is saved, "
            f"and the same command resumes them."
        ) from error
    return results


def _make_elsewhere(
    jobs: Iterable[Job],
    out: Path,
    data_dir: str | Path | None,
    elsewhere: Executor,
    keep: Callable[[Job, Outcome], None],
) -> None:
    """Make jobs through an executor; on Ctrl-C, cancel those that have not started."""
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
    """Jobs that can run at once: first those that start anew, then those that continue a run."""
    anew = [job for job in jobs if job.after is None]
    return [anew, [job for job in jobs if job.after is not None]]


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # a worker's error must not stop the other jobs
        if type(error).__name__ == "KilledWorker":
            return Failure("Its workers were lost several times.")
        return Failure(str(error) or type(error).__name__)


class _Processes(ThreadPoolExecutor):
    """Run each job in a process, and stop waiting for it once the others are cancelled."""

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
    """An executor that runs up to `workers` jobs at once in processes of this machine."""
    return _Processes(workers)


ANSWER = 10.0
"""Seconds to wait for a scheduler's answer."""


class _Cluster(Executor):
    """Submit jobs to a Dask client, which is closed on shutdown."""

    def __init__(self, client: "Client"):
        self.client = client
        self.executor = client.get_executor(pure=False, retries=3)

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        return self.executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait)
        self.client.close()  # which cancels what is still pending


def cluster(scheduler: str) -> Executor:
    """An executor on the workers of a running Dask cluster; another worker takes a lost one's job.

    `InputError` if the extra is not installed, or no scheduler answers.
    """
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
    """Run `make` in a separate process, so that a crash stays there; the result has its
    likelihoods.

    The process is interrupted once `left` is set, or on a cluster when the client has cancelled the
    job or disconnected. `RuntimeError` if it was killed from outside, so that another one retries.
    """
    unwanted = _cancelled() if left is None else left.is_set
    command = [sys.executable, "-m", "iwae.experiments.executors"]
    code, lines = _carry_out(command, Order.of(job, out, data_dir).to_json(), unwanted)
    try:
        result, values = recorded(job, out), log_likelihoods(job, out)
    except InputError as error:
        return Failure(str(error))
    if result is not None:
        return replace(result, log_likelihoods=values)
    if code == FAILED and lines:
        return Failure(lines[-1])
    if code == 0:
        return Failure("Its worker made another run; it has another version, or other data.")
    last = f": {lines[-1].rstrip('.')}" if lines else ""
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    raise RuntimeError(f"Its process {ended}{last}.")


LOOK = 1.0
"""Seconds between checks whether a job is still wanted."""


def _carry_out(
    command: Sequence[str], given: str, unwanted: Callable[[], bool]
) -> tuple[int, list[str]]:
    """The exit code of a process, and the lines it wrote to standard error.

    It gets SIGINT once it is unwanted, and again every `PATIENCE` seconds, since a library may
    swallow one.
    """
    text = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with text() as order, text() as errors:
        order.write(given)
        order.seek(0)
        process = subprocess.Popen(
            command,
            stdin=order,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # so that Ctrl-C reaches it only from here
        )
        signalled = -math.inf
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(LOOK)
                break
            if time.monotonic() - signalled > PATIENCE and unwanted():
                process.send_signal(signal.SIGINT)
                signalled = time.monotonic()
        errors.seek(0)
        return code, errors.read().strip().splitlines()


def _cancelled() -> Callable[[], bool]:
    """A function that tells whether the job of this thread of a Dask worker was cancelled."""
    if "distributed" not in sys.modules:
        return lambda: False
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # this thread does not belong to a worker
        return lambda: False
    name = worker.get_current_task()

    def cancelled() -> bool:
        job = worker.state.tasks.get(name)
        return job is None or job.state == "cancelled"

    return cancelled


FAILED, INTERRUPTED = 2, 130
"""Exit codes of a process: unusable input, and interrupted."""


class Orphaned(Callback):
    """Interrupt the run when the process that ordered it has ended."""

    def __init__(self, parent: int):
        self.parent = parent

    def on_step_chunk(self, event: StepChunk) -> None:
        if os.getppid() != self.parent:
            signal.raise_signal(signal.SIGINT)


PATIENCE = 60.0
"""Seconds for a process to save its run, before it is signalled again or another takes over."""


@dataclass(frozen=True)
class Order:
    """A job for a separate process, as JSON."""

    config: str
    """TOML."""
    k: int
    limit: int | None
    measures: list[str]
    after: str | None
    """TOML of the run that this one continues."""
    out: str
    data_dir: str | None
    parent: int
    """Id of the process that ordered it."""

    @classmethod
    def of(cls, job: Job, out: Path, data_dir: Path | None) -> "Order":
        """An order by this process."""
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
        """JSON as the process reads it."""
        return json.dumps(asdict(self))

    @property
    def job(self) -> Job:
        """The job to make."""
        config = parse(self.config, "the order")
        after = None if self.after is None else Job(parse(self.after, "the order"), self.k)
        return Job(config, self.k, self.limit, tuple(self.measures), after)


def serve(order: Order) -> int:
    """Carry out an order of `in_a_process`; return the exit code."""
    job, data_dir = order.job, order.data_dir
    callback, began = Orphaned(order.parent), time.monotonic()
    while True:
        try:
            result = attempt(job, Path(order.out), callback, data_dir)
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if the parent ignored it
    raise SystemExit(serve(persisted.typed(json.load(sys.stdin), Order)))
