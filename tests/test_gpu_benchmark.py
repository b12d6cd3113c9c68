"""The schedule of `python -m benchmarks.gpu`: its processes, its record, its archives."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import archives, page, record
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.items import ITEMS, Item
from benchmarks.gpu.record import Figure, Record, Work
from benchmarks.gpu.schedule import LOG, RECORD, Schedule
from benchmarks.gpu.steps import CELLS
from iwae.errors import InputError
from iwae.storage.run_directory import CHECKPOINT, CONFIG, MODEL

ROOT = Path(__file__).parents[1]

CHILD = '''
"""Stands for an item's process."""
import json, signal, sys, time
item, known = sys.argv[1], json.loads(sys.stdin.readline())
figure = {"device": "toy", "values": {"x": 1}}
tell = lambda name: print(json.dumps({"name": name, **figure}), flush=True)
tell("first")
if item == "fails":
    print("what a library prints", flush=True)
    sys.exit("it broke")
if item == "saves":
    def stop(*_):
        tell("saved")
        sys.exit(3)
    signal.signal(signal.SIGTERM, stop)
if item in ("hangs", "saves"):
    time.sleep(60)
tell(f"known: {sorted(known.get(item, {}))}")
'''


@pytest.fixture
def schedule(tmp_path, monkeypatch):
    (tmp_path / "toy_item.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr("benchmarks.gpu.schedule.GRACE", 0.5)
    monkeypatch.setattr("benchmarks.gpu.schedule.LEAST", 0.5)
    monkeypatch.setattr("benchmarks.gpu.schedule.ITEMS", TOYS)
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()

    def make(content=None, *, seconds=30.0):
        given = {"until": time.time() + seconds, "rehearse": True, "data_dir": None}
        begin = content or Record(rehearsal=True)
        return Schedule(begin, out, work, **given, items=TOYS, module="toy_item")

    return make


TOYS = (
    Item("fails", "", 10, ""),
    Item("hangs", "", 1, ""),
    Item("works", "", 10, ""),
    Item("saves", "", 0, "", rest=True),
)


@pytest.mark.slow
def test_an_item_that_fails_or_hangs_stops_no_other(schedule, tmp_path):
    made = schedule(seconds=4)
    for item in TOYS:
        made.do(item)
    on_disk = record.read(tmp_path / "out" / RECORD)
    assert on_disk == made.record
    assert {w.item: w.state for w in on_disk.work} == {
        "fails": "failed",
        "hangs": "cut short",
        "works": "done",
        "saves": "cut short",
    }
    assert set(on_disk.of("hangs")) == {"first"}
    assert set(on_disk.of("saves")) == {"first", "saved"}
    log = (tmp_path / "out" / LOG).read_text()
    assert "it broke" in log
    assert "what a library prints" in log


def test_another_call_does_what_is_left_and_knows_what_was_measured(schedule):
    first = schedule()
    first.do(TOYS[2])
    first.do(TOYS[0])
    seconds = first.record.state("works").seconds
    again = schedule(first.record)
    again.do(TOYS[2])
    assert again.record.state("works").seconds == seconds
    undone = first.record.with_work(Work("works", "cut short"))
    once_more = schedule(undone)
    once_more.do(TOYS[2])
    known = sorted({*undone.of("works")})
    assert f"known: {known}" in once_more.record.of("works")


def test_nothing_is_begun_when_the_time_is_over(schedule):
    made = schedule(seconds=0.3)
    made.do(TOYS[2])
    assert made.record.state("works") == Work("works")


def test_a_record_is_read_as_it_was_written_and_refused_when_damaged(tmp_path):
    content = Record(False).with_work(Work("steps", "done", 3.5))
    content = content.with_figure(Figure("steps", "1 layer, K = 1", "toy", {"ms": [0.25]}))
    path = tmp_path / "record.json"
    record.write(path, content)
    assert record.read(path) == content
    for damage in ("{}", "[", '{"work": [{"item": "x", "state": "odd"}], "figures": []}'):
        path.write_text(damage)
        with pytest.raises(InputError, match="damaged"):
            record.read(path)


def _run(folder: Path, **sizes: int) -> None:
    folder.mkdir(parents=True)
    for name, size in sizes.items():
        (folder / {"config": CONFIG, "model": MODEL, "checkpoint": CHECKPOINT}[name]).write_bytes(
            os.urandom(size)
        )


def test_runs_are_packed_into_few_files_and_come_back_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 250_000)
    runs, out = tmp_path / "runs", tmp_path / "out"
    out.mkdir()
    for i in range(4):
        _run(runs / "cells" / f"{i}", config=10, checkpoint=100_000)
    _run(runs / "cells" / "ended", config=10, checkpoint=100_000, model=1000)
    written = archives.pack(runs, out)
    assert [p.name for p in written] == ["papers-1.tar", "papers-2.tar"]
    archives.unpack(out, tmp_path / "again")
    kept = {p.relative_to(runs) for p in runs.rglob("*") if p.is_file()}
    came = {p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.*")}
    assert came == kept - {Path("cells", "ended", CHECKPOINT)}
    assert all((tmp_path / "again" / p).read_bytes() == (runs / p).read_bytes() for p in came)


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with tarfile.open(out / "papers-1.tar", "w") as archive:
        archive.add(__file__, "../escaped.py")
    with pytest.raises(tarfile.OutsideDestinationError):
        archives.unpack(out, tmp_path / "runs")
    assert not (tmp_path / "escaped.py").exists()


def test_the_files_brought_back_are_at_most_eight():
    assert archives.MOST + len({RECORD, LOG}) == 8
    assert archives.LARGEST < 16 * 2**20


def _called(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--minutes", "-1", "--out", "{}/a"], "0 or more"),
        (["--minutes", "1", "--out", "{}/a", "--items", "stpes"], "did you mean 'steps'"),
        (["--minutes", "1", "--out", "{}/a", "--rehearse", "--previous", "{}/b"], "nothing to go"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(
    tmp_path, monkeypatch, capsys, arguments, says
):
    monkeypatch.setattr("sys.argv", ["gpu", *(a.format(tmp_path) for a in arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err


def test_a_figure_of_a_rehearsal_never_joins_a_record_of_a_card(tmp_path):
    record.write(tmp_path / RECORD, Record(rehearsal=True))
    done = _called("--minutes", "0", "--out", tmp_path, "--record", tmp_path / "kept.json")
    assert done.returncode == 2
    assert "rehearsal" in done.stderr
    assert not (tmp_path / "kept.json").exists()


def test_the_page_is_written_from_the_records():
    text = (ROOT / "docs" / "performance.md").read_text()
    sections = page.sections(ROOT / "results" / "gpu")
    assert sections
    for part in sections:
        assert part.replace(f"{ROOT}/", "") in text


def test_steps_together_are_compared_with_the_same_one_by_one(tmp_path):
    """Whatever the figures of `chunks` are called, the page can be written."""
    content = Record(rehearsal=False)
    alone = {"1 layer, K = 1": 1.0, "1 layer, K = 5": 2.0, "1 layer, K = 50": 3.0}
    vae = {"1 layer, K = 5, vae": 4.0, "1 layer, K = 50, vae": 5.0}
    together = {"1 layer, K = 50, 20 replicas": (6.0, 20), CELLS: (7.5, 5)}
    chunks = {
        name: (ms, 1) for name, ms in {"1 layer, K = 1, 10 steps in a call": 0.5, **vae}.items()
    }
    for name, ms in alone.items():
        content = content.with_figure(Figure("steps", name, "toy", {"ms": [ms]}))
    for name, (ms, n) in {**chunks, **together}.items():
        content = content.with_figure(Figure("chunks", name, "toy", {"ms": [ms], "replicas": n}))
    lines = page.rendered(content, tmp_path).splitlines()
    last = {
        row[1]: row[3] for line in lines if len(row := [c.strip() for c in line.split("|")]) == 5
    }
    assert last["1 layer, K = 50, 20 replicas"] == "10.0"
    assert last[CELLS] == "2.00"
    assert last["1 layer, K = 1, 10 steps in a call"] == ""


def test_every_item_has_its_function():
    for item in ITEMS:
        module, function = item.function.split(":")
        source = (ROOT / "benchmarks" / "gpu" / f"{module}.py").read_text()
        assert f"\ndef {function}(task: Task)" in source
    assert sum(item.rest for item in ITEMS) == 1
    assert ITEMS[-1].rest


@pytest.mark.slow
def test_a_rehearsal_that_is_killed_goes_on(tmp_path):
    pytest.importorskip("torch")
    first, second = tmp_path / "first", tmp_path / "second"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--minutes", "9"]
    process = subprocess.Popen([*command, "--out", str(first)], cwd=ROOT)
    deadline = time.time() + 500
    while time.time() < deadline:
        time.sleep(0.5)
        if (first / RECORD).exists() and len(record.read(first / RECORD).of("steps")) >= 2:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = record.read(first / RECORD)
    assert before.state("steps").state == "cut short"
    done = _called("--rehearse", "--minutes", "9", "--out", second, "--previous", first)
    after = record.read(second / RECORD)
    assert {w.item: w.state for w in after.work} == {i.name: "done" for i in ITEMS}, done.stderr
    assert after.state("checks") == replace(before.state("checks"))
    kept = before.of("steps")
    assert {n: after.of("steps")[n] for n in kept} == kept
    assert all("nll" in figure for figure in after.of("papers").values())
    assert page.rendered(after, second / RECORD).startswith("# On a GPU")
    assert len(list(second.iterdir())) <= 8
