"""Cells made at once, in processes that may be killed and on a cluster that loses a worker."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from callbacks import Interrupting, Quiet
from iwae import runs
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError, Interrupted
from iwae.experiments import executors, jobs
from iwae.experiments.comparisons import CellCallbacks
from iwae.experiments.jobs import Failure, Job
from iwae.experiments.measured import Entry, Result
from refusals import refused
from test_cells import result_of, small


@pytest.mark.slow
def test_other_processes_make_what_this_one_makes(tiny, tmp_path: Path, monkeypatch) -> None:
    """Where they share no folder, all that was measured is sent back."""
    measured = replace(small(tiny), measures=("bound",))
    tasks = {"a": measured, "lost": small(tiny, dataset=str(tmp_path / "lost.npy"))}
    here = executors.make_all(tasks, tmp_path / "here", callbacks=Quiet())
    in_a_process = executors.in_a_process
    far = lambda task, out, *rest, **more: in_a_process(task, tmp_path / "far", *rest, **more)
    monkeypatch.setattr(executors, "in_a_process", far)
    pool = executors.processes(2)
    there = executors.make_all(tasks, tmp_path / "there", elsewhere=pool, callbacks=Quiet())
    mine, sent = result_of(here[measured]), result_of(there[measured])
    sent_entry = dict(sent.entry)
    for name, value in mine.entry.items():
        assert name.endswith("seconds") or sent_entry[name] == value
    assert mine.figures == sent.figures != {}
    assert there[tasks["lost"]] == here[tasks["lost"]]
    assert jobs.recorded(measured, tmp_path / "there") == there[measured]
    other = Result({"seed": 0, "k": 5, "n": 20, "nll": 1.0})
    with pytest.raises(InputError, match=r"trained the same run to 1\.0; let workers share"):
        jobs.write_result(measured, tmp_path / "there", other)
    kept, kept_there = [
        jobs.log_likelihoods(measured, tmp_path / name) for name in ("here", "there")
    ]
    np.testing.assert_array_equal(kept, kept_there)
    assert -kept.mean() == pytest.approx(sent.nll)


def test_an_interrupted_table_says_that_the_same_command_goes_on(tiny, tmp_path: Path) -> None:
    class Pressing(CellCallbacks):
        def cell(self, name: str, epochs: int) -> Interrupting:
            return Interrupting(70)

    task = small(tiny, epochs=3)
    runs.train(small(tiny).config, out=jobs.place(small(tiny), tmp_path))
    tasks = {"there": small(tiny), "mine, seed 0": task, "never": small(tiny, seed=1)}
    with pytest.raises(Interrupted) as stopped:
        executors.make_all(tasks, tmp_path, callbacks=Pressing())
    assert str(stopped.value) == (
        "Interrupted with 2 of 3 runs left; their progress is saved, and the same command resumes "
        "them."
    )
    assert 0 < jobs.completed_epochs(task, tmp_path) < 3


WILLING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
pathlib.Path(sys.stdin.read()).touch()
time.sleep(60)
"""


def test_a_process_that_nobody_wants_is_interrupted_and_a_long_order_is_read(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(executors, "LOOK", 0.05)
    python, ready = lambda script: [sys.executable, "-c", script], tmp_path / "ready"
    code, _ = executors._carry_out(python(WILLING), str(ready), ready.exists)
    assert code == -signal.SIGINT
    reading = "import sys, time; time.sleep(0.2); print(len(sys.stdin.read()), file=sys.stderr)"
    assert executors._carry_out(python(reading), "x" * 200_000, lambda: False) == (0, ["200000"])


STUBBORN = """
import pathlib, signal, sys, time
forgive = lambda *_: signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGINT, forgive)
pathlib.Path(sys.stdin.read()).touch()
time.sleep(60)
time.sleep(60)
"""


def test_a_signal_that_is_lost_is_sent_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(executors, "LOOK", 0.05)
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    ready = tmp_path / "ready"
    code, _ = executors._carry_out([sys.executable, "-c", STUBBORN], str(ready), ready.exists)
    assert code == -signal.SIGINT


@pytest.mark.slow
def test_cells_of_other_processes_are_saved_when_they_are_cancelled(tiny, tmp_path: Path) -> None:
    task = small(tiny, epochs=10_000, checkpoint_every=10_000)
    pool = executors.processes(1)
    future = pool.submit(executors.in_a_process, task, tmp_path, None)
    until(lambda: jobs.completed_epochs(task, tmp_path) > 0)
    pool.shutdown(cancel_futures=True)
    assert "the run is saved" in str(future.exception())
    assert list(tmp_path.rglob("checkpoint*"))


def test_a_failure_without_words_is_named() -> None:
    future: Future = Future()
    future.set_exception(TimeoutError())
    assert executors._outcome(future) == Failure("TimeoutError")


def test_what_breaks_in_one_cell_leaves_the_others(tiny: RunConfig, tmp_path: Path, monkeypatch):
    """Too little memory is such a thing; a mistake of ours is none."""
    tasks = {"large": small(tiny), "b": small(tiny, seed=1)}

    def breaking(task: Job, out: Path, **how) -> Result:
        if task == tasks["large"]:
            raise RuntimeError(message)
        return whole

    entry: Entry = {"seed": 1, "passes": 3, "k": 5, "n": 20, "nll": 1.0, "nll_se": 0.1}
    entry |= {"active_units": [2], "device": "cpu", "note": ""}
    whole = Result(entry)
    monkeypatch.setattr(jobs, "make", breaking)
    message = "RESOURCE_EXHAUSTED: out of memory"
    results = executors.make_all(tasks, tmp_path, callbacks=Quiet())
    assert isinstance(results[tasks["large"]], Failure)
    assert results[tasks["b"]] == jobs.recorded(tasks["b"], tmp_path) == whole
    message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        executors.make_all(tasks, tmp_path, callbacks=Quiet())


COMMAND = [
    *(sys.executable, "-c", "from iwae.cli.app import main; main()"),
    *("reproduce", "table1", "--recipe", "smoke", "--epochs", "40", "--limit", "20"),
    *("--checkpoint-every", "1"),
]


def until(condition) -> None:
    """Wait, but not for ever."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 300
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_table_is_finished_without_redoing_a_cell(tmp_path: Path) -> None:
    out, record = tmp_path / "runs", tmp_path / "record.json"
    own = ["--out", str(out)]
    first = [*COMMAND, "--cells", "digits/1/vae-1", *own]
    subprocess.run(first, check=True, capture_output=True)
    (done,) = out.rglob("model.safetensors")
    written = lambda: {p: p.stat().st_mtime_ns for p in done.parent.iterdir()}
    before = written()
    command = [*COMMAND, "--cells", "digits/1/vae-*", "--workers", "2", *own]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    begun = lambda: [p for p in out.rglob("metrics.jsonl") if p.parent != done.parent]
    until(lambda: len(begun()) == 2 and all(len(p.read_text().splitlines()) > 2 for p in begun()))
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()
    behind = {p: len(p.read_text().splitlines()) for p in begun()}
    assert all(2 < n < 40 for n in behind.values())
    subprocess.run([*command, "--record", record], check=True, capture_output=True)
    assert written() == before
    rows = {p: [json.loads(line)["pass"] for line in p.read_text().splitlines()] for p in behind}
    assert all(passes == list(range(1, 41)) for passes in rows.values())
    names = [cell["name"] for cell in json.loads(record.read_text())["cells"]]
    assert names == ["digits/1/vae-1", "digits/1/vae-5", "digits/1/vae-50"]


@pytest.mark.slow
def test_a_cluster_of_which_a_worker_dies_makes_every_cell(tiny: RunConfig, tmp_path: Path) -> None:
    import distributed

    tasks = {f"{s}": small(tiny, seed=s, checkpoint_every=1) for s in range(3)}
    tasks = {n: replace(t, config=override(t.config, epochs=60)) for n, t in tasks.items()}
    out = tmp_path / "out"
    local = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with local:
        results: dict = {}
        make = lambda: results.update(
            executors.make_all(
                tasks, out, elsewhere=executors.cluster(local.scheduler_address), callbacks=Quiet()
            )
        )
        thread = threading.Thread(target=make)
        thread.start()
        until(lambda: len(list(out.rglob("checkpoint*"))) >= 2)
        os.kill(local.workers[0].pid, signal.SIGKILL)
        thread.join()
    assert all(isinstance(results[t], Result) for t in tasks.values())
    alone = executors.make_all({"0": tasks["0"]}, tmp_path / "alone", callbacks=Quiet())
    assert results[tasks["0"]].nll == result_of(alone[tasks["0"]]).nll


SBATCH = """#!/usr/bin/env bash
cat "$1" > "$0.job"
setsid bash "$0.job" > "$0.log" 2>&1 < /dev/null &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/usr/bin/env bash
for job; do kill -TERM -- "-$job"; done
"""


@pytest.mark.slow
def test_the_example_for_slurm_makes_a_table(tmp_path: Path) -> None:
    """As the documentation has it, with commands of SLURM that start its jobs on this machine."""
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    guide = Path(__file__).parent.parent / "docs" / "cluster.md"
    (example,) = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    record = tmp_path / "record.json"
    small = ["--recipe", "smoke", "--cells", "*/1/vae-5", "--record", str(record)]
    here = {
        '"source /shared/iwae/.venv/bin/activate"': '"true"',
        '"iwae", "reproduce"': ", ".join(map(repr, [*COMMAND[:3], "reproduce"])),
        '"/shared/papers"': repr(str(tmp_path / "out")),
        '"--data-dir", "/shared/data"': ", ".join(map(repr, small)),
    }
    for there, instead in here.items():
        assert there in example
        example = example.replace(there, instead)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-c", example],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"PATH": path},
        cwd=tmp_path,
    )
    assert "#SBATCH --gres=gpu:1" in (tmp_path / "sbatch.job").read_text()
    (cell,) = json.loads(record.read_text())["cells"]
    assert cell["name"] == "digits/1/vae-5"


@pytest.mark.slow
def test_a_cell_that_nobody_waits_for_any_more_is_saved_and_stopped(tiny: RunConfig, tmp_path):
    import distributed

    task = small(tiny, epochs=10_000, checkpoint_every=10_000)
    local = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with local:
        elsewhere = executors.cluster(local.scheduler_address)
        elsewhere.submit(executors.in_a_process, task, tmp_path, None)
        worker = psutil.Process(local.workers[0].pid)
        until(lambda: jobs.completed_epochs(task, tmp_path) > 0 and worker.children())
        elsewhere.shutdown(wait=False, cancel_futures=True)
        until(lambda: not worker.children())
    assert list(tmp_path.rglob("checkpoint*"))
    assert jobs.state(task, tmp_path).startswith("begun")


def test_a_scheduler_that_does_not_answer_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(executors, "ANSWER", 0.5)
    with refused(
        "scheduler = tcp://127.0.0.1:1 was given, but no Dask scheduler answers there; start one "
        "with `dask scheduler`, and give the address that it prints."
    ):
        executors.cluster("tcp://127.0.0.1:1")


@pytest.mark.slow
def test_an_orphan_saves_its_run_and_stops(tiny: RunConfig, tmp_path: Path) -> None:
    """Its parent is said to be a process that is none of its own."""
    task = small(tiny, epochs=10_000)
    order = {"config": task.config.to_toml(), "k": 5, "limit": 20, "out": str(tmp_path)}
    order |= {"measures": [], "after": None}
    done = subprocess.run(
        [sys.executable, "-m", "iwae.experiments.executors"],
        input=json.dumps(order | {"data_dir": None, "parent": 1}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == executors.INTERRUPTED, done.stderr
    assert "the run is saved" in done.stderr
    assert list(tmp_path.rglob("checkpoint*"))
