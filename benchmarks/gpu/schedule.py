"""Items one after the other, each in a process of its own, until the time is over."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from benchmarks.gpu import archives, record
from benchmarks.gpu.items import ITEMS, Item
from benchmarks.gpu.record import Figure, Record, Work

RECORD, LOG = "record.json", "log.txt"

PROGRAMS = "programs"
"""Folder of what one item has compiled and others need again."""

GRACE = 15.0
"""Seconds that a process has to save what it is at, once it is told to stop."""

KEEP = 45.0
"""Seconds between two archives of the runs."""

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Flags of XLA's compiler for a rehearsal, which compiles more than it runs."""

LEAST = 5.0
"""Seconds below which nothing is begun."""


class Schedule:
    """The record as it grows, and the processes that make it grow."""

    def __init__(
        self,
        content: Record,
        out: Path,
        work: Path,
        *,
        until: float,
        rehearse: bool,
        data_dir: Path | None,
        items: tuple[Item, ...] = ITEMS,
        module: str = "benchmarks.gpu.task",
    ):
        self.record, self.out, self.work = content, out, work
        self.until, self.rehearse, self.data_dir = until, rehearse, data_dir
        self.module, self.stopped, self.kept = module, False, time.time()
        for item in items:
            self.record = self.record.with_work(self.record.state(item.name))
        self._write()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the item that is at work, and begin no other."""

        def stop(number: int, frame: object) -> None:
            self.stopped = True

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def do(self, item: Item) -> None:
        """Do what is left of an item in the time that is left; whatever happens is recorded."""
        work, left = self.record.state(item.name), self.until - time.time()
        if work.state == "done" or self.stopped or left < LEAST:
            return
        limit = left if item.rest else min(item.limit, left)
        began = time.time()
        self._set(replace(work, state="cut short", why="the program was killed"))
        print(f"{item.name}: {item.about}", flush=True)
        try:
            code, late = self._run(item, began + limit)
        except OSError as error:
            code, late = -1, False
            self._log(f"{item.name}: {error}")
        seconds = round(work.seconds + time.time() - began, 1)
        if code == 0:
            self._set(Work(item.name, "done", seconds))
        elif late or self.stopped:
            why = "interrupted" if self.stopped else f"stopped after {limit:.0f} s"
            self._set(Work(item.name, "cut short", seconds, why))
        else:
            why = f"its process ended with {code}; see {LOG}"
            self._set(Work(item.name, "failed", seconds, why))

    def _run(self, item: Item, end: float) -> tuple[int, bool]:
        """(exit code, whether it was stopped for lack of time) of the item's process."""
        command = [sys.executable, "-u", "-m", self.module, item.name, "--work", str(self.work)]
        command += ["--rehearse"] * self.rehearse
        if self.data_dir is not None:
            command += ["--data-dir", str(self.data_dir.resolve())]
        environment = {
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": str(self.work / PROGRAMS),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        if self.rehearse:
            environment.setdefault("XLA_FLAGS", QUICK)
        if item.platform:
            environment["JAX_PLATFORMS"] = item.platform
        known = {i.name: self.record.of(i.name) for i in ITEMS}
        with (self.out / LOG).open("ab") as log:
            log.write(f"\n--- {item.name}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(known).encode() + b"\n")
                process.stdin.flush()
            return self._listen(item, process, process.stdout, end)

    def _listen(
        self, item: Item, process: subprocess.Popen, stream: IO[bytes], end: float
    ) -> tuple[int, bool]:
        """Take figures down until the process has ended, and see that it does."""
        late, told = False, 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while process.poll() is None or selector.get_map():
                if selector.get_map() and selector.select(timeout=0.2):
                    line = stream.readline()
                    if not line:
                        selector.unregister(stream)
                    self._take(item, line)
                elif not selector.get_map():
                    time.sleep(0.05)
                now = time.time()
                if not told and (now > end or self.stopped):
                    late, told = now > end, now
                    _signal(process, signal.SIGTERM)
                elif told and now > told + GRACE:
                    _signal(process, signal.SIGKILL)
                    told = now
                if item.rest and now > self.kept + KEEP:
                    self.keep()
        stream.close()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        return process.wait(), late

    def _take(self, item: Item, line: bytes) -> None:
        """A line that the process wrote: a figure, or else something for the log."""
        if not line.strip():
            return None
        try:
            told = json.loads(line)
            figure = Figure(item.name, told["name"], told["device"], told["values"])
        except (ValueError, KeyError, TypeError):
            return self._log(line.decode(errors="replace").rstrip())
        self.record = self.record.with_figure(figure)
        return self._write()

    def keep(self) -> None:
        """Archive the runs."""
        archives.pack(self.work, self.out)
        self.kept = time.time()

    def _set(self, work: Work) -> None:
        self.record = self.record.with_work(work)
        self._write()

    def _write(self) -> None:
        record.write(self.out / RECORD, self.record)

    def _log(self, text: str) -> None:
        with (self.out / LOG).open("a") as log:
            log.write(text + "\n")


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    """To the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
