"""Cells of tables: addressed by content, made once, reused and resumed."""

import contextlib
import pickle
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import iwae
from callbacks import Interrupting, Quiet
from iwae import runs
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import Interrupted
from iwae.experiments import executors, jobs
from iwae.experiments.jobs import Failure, Job
from iwae.experiments.measured import Result
from iwae.storage import run_directory
from iwae.training import soap
from iwae.training.callbacks import Callback
from refusals import refused


def small(tiny: RunConfig, **settings) -> Job:
    return Job(override(tiny, **{"epochs": 1, **settings}), k=5, limit=20)


def result_of(outcome: Result | Failure) -> Result:
    assert isinstance(outcome, Result), outcome
    return outcome


def test_an_address_is_that_of_what_the_run_becomes(tiny: RunConfig) -> None:
    task = small(tiny)
    assert task.key == small(tiny).key
    assert task.key == small(tiny, checkpoint_every=1, checkpoint_minutes=1.0).key
    assert task.key == Job(task.config, k=7).key
    others = [small(tiny, **o) for o in ({"seed": 1}, {"k": 7}, {"learning_rate": 2e-3})]
    assert len({task.key, *(o.key for o in others)}) == 4


def test_addresses_stay_what_they_are() -> None:
    """So that runs of years ago are found again."""
    config = override(RunConfig(), dataset="mnist", k=5, epochs=3280, schedule="stages")
    assert Job(config, k=5000).key == "mnist-1-iwae-5-seed-0-4a32042b59fd"


@pytest.mark.slow
def test_what_is_finished_is_reused_and_a_failure_stops_nothing(
    tiny: RunConfig, tmp_path: Path
) -> None:
    lost = tmp_path / "lost.npy"
    tasks = {
        "a": small(tiny),
        "lost": small(tiny, dataset=str(lost)),
        "same as a": small(tiny),
        "b": small(tiny, seed=1),
    }
    told: list[str] = []
    make = lambda: executors.make_all(
        tasks, tmp_path / "out", callbacks=Quiet(), made=lambda name, result: told.append(name)
    )
    results = make()
    seeds = [result_of(results[tasks[name]]).seed for name in ("a", "b")]
    assert seeds == [0, 1]
    assert told == ["a", "lost", "b"]
    failure = results[tasks["lost"]]
    assert isinstance(failure, Failure)
    assert str(lost) in failure.message
    a = result_of(results[tasks["a"]])
    assert (a.k, a.n, a.epochs) == (5, 20, 1)
    assert [jobs.state(t, tmp_path / "out") for t in tasks.values()] == [
        "done",
        "missing",
        "done",
        "done",
    ]
    told.clear()
    again = make()
    assert told == ["lost"]
    assert again == results
    more = Job(tasks["a"].config, k=6, limit=20)
    assert jobs.state(more, tmp_path / "out") == "trained"
    assert jobs.make(more, tmp_path / "out", callback=Callback()).k == 6
    assert jobs.recorded(tasks["a"], tmp_path / "out") == a
    (jobs.place(more, tmp_path / "out") / "L_6-of-20.json").write_text("{torn")
    assert jobs.recorded(more, tmp_path / "out") is None
    assert jobs.make(more, tmp_path / "out", callback=Callback()).k == 6


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_begins_where_another_ended(
    tiny: RunConfig, tmp_path: Path, processes: int, monkeypatch
) -> None:
    """It comes after it, whatever their order, and has an address and measures of its own."""
    first = small(tiny)
    second = replace(small(tiny, learning_rate=1e-12), after=first, measures=("gap",))
    assert second.key != small(tiny, learning_rate=1e-12).key
    out, told = tmp_path / "out", []
    results = executors.make_all(
        {"second": second, "first": first},
        out,
        elsewhere=executors.processes(processes) if processes > 1 else None,
        callbacks=Quiet(),
        made=lambda name, result: told.append(name),
    )
    assert told == ["first", "second"]
    assert result_of(results[second]).nll == pytest.approx(result_of(results[first]).nll, abs=1e-4)
    assert result_of(results[second]).figures["gap"].keys() == {"train NLL", "test − train"}
    assert jobs.recorded(second, out) == results[second]
    assert not jobs.recorded(replace(second, measures=()), out).figures
    other = replace(second, measures=("gap", "bound"))
    assert jobs.state(other, out) == "trained"
    (out / "cells").rename(tmp_path / "moved")
    (out / "cells").symlink_to(tmp_path / "moved")
    monkeypatch.setattr(runs, "evaluate", None)  # what is measured later evaluates nothing again
    again = jobs.make(other, out, callback=Callback())
    assert again.figures.keys() == {"gap", "bound"}
    (likelihoods,) = jobs.place(other, out).glob("L_*-log_likelihoods.json")
    likelihoods.unlink()
    monkeypatch.undo()
    third = jobs.make(replace(other, measures=("gap", "pruned")), out, callback=Callback())
    assert third.figures["gap"] == again.figures["gap"]
    assert np.isfinite(third.figures["pruned"]["change"]).all()
    assert likelihoods.exists(), "they are made again"


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_under_another_way_of_saving(
    tiny: RunConfig, tmp_path: Path
) -> None:
    task = small(tiny, epochs=3)
    with pytest.raises(Interrupted):
        jobs.make(task, tmp_path, callback=Interrupting(70))
    assert jobs.state(task, tmp_path).startswith("begun, ")
    again = small(tiny, epochs=3, checkpoint_minutes=1.0, checkpoint_every=2)
    result = jobs.make(again, tmp_path, callback=Callback())
    assert result.epochs == 3


@pytest.mark.slow
def test_of_two_commands_one_evaluates(tiny: RunConfig, tmp_path: Path, monkeypatch) -> None:
    """The other comes while it is at it, waits, and has the same result."""
    task, evaluate = small(tiny), runs.evaluate
    runs.train(task.config, out=jobs.place(task, tmp_path))
    others: list[Future] = []

    def slow(*given, **how):
        if not others:
            others.append(pool.submit(jobs.make, task, tmp_path, callback=Callback()))
            time.sleep(0.5)
            assert not others[0].done()
        else:
            pytest.fail("It is evaluated twice.")
        return evaluate(*given, **how)

    monkeypatch.setattr(runs, "evaluate", slow)
    with ThreadPoolExecutor(1) as pool:
        result = jobs.make(task, tmp_path, callback=Callback())
        assert others[0].result() == result


def test_a_folder_that_another_process_takes_meanwhile_is_in_use(
    tiny: RunConfig, tmp_path: Path, monkeypatch
) -> None:
    """It begins between the first look at the folder and the lock."""
    task = small(tiny)
    path = jobs.place(task, tmp_path)
    look, held = run_directory._is_blank, contextlib.ExitStack()

    def taken(at: Path) -> bool:
        blank = look(at)
        path.mkdir(parents=True)
        (path / run_directory.CONFIG).write_text(task.config.to_toml())
        held.enter_context(run_directory._locked(path))
        return blank

    monkeypatch.setattr(run_directory, "_is_blank", taken)
    with held:
        result = jobs.attempt(task, tmp_path, Callback(), None)
    assert isinstance(result, Failure)
    assert result.in_use


def test_an_evaluation_that_cannot_be_is_refused_before_anything_is_trained(
    tiny: RunConfig,
) -> None:
    with refused(
        "limit = 0 was given, but an evaluation needs at least 1 example; give 1 or more."
    ):
        Job(tiny, k=5, limit=0)
    with refused("k = 0 was given, but it must be at least 1; give k = 1 or more."):
        Job(tiny, k=0)
    with refused("k = 2147483648 was given, but it can be at most 2,147,483,647; give fewer."):
        Job(tiny, k=2**31)


def test_a_file_called_like_a_data_set_is_not_it(tiny: RunConfig, tmp_path, monkeypatch) -> None:
    there = small(tiny).key
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("notes")
    assert small(tiny).key == there


def test_steps_that_are_others_have_another_address(tiny: RunConfig, monkeypatch) -> None:
    adam, turned = small(tiny).key, small(tiny, optimizer="soap").key
    monkeypatch.setattr(soap, "REVISION", soap.REVISION + 1)
    assert small(tiny).key == adam
    assert small(tiny, optimizer="soap").key != turned


@pytest.mark.slow
def test_a_run_is_finished_from_an_equal_file_elsewhere(tiny: RunConfig, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((200, 9))
    paths = [tmp_path / name / "mine.npy" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        np.save(path, rows)
    first, second = (small(tiny, dataset=str(path)) for path in paths)
    made = jobs.make(first, tmp_path / "out", callback=Callback())
    assert made.made_with == [f"{made.device}, iwae {iwae.__version__}"]
    again = jobs.make(replace(second, k=6), tmp_path / "out", callback=Callback())
    assert (again.k, again.training_seconds) == (6, made.training_seconds)
    paths[1].unlink()
    assert jobs.make(replace(first, k=7), tmp_path / "out", callback=Callback()).k == 7
    np.save(paths[0], 1 - rows)
    path = jobs.place(first, tmp_path / "out")
    with refused(
        f"{path} was started on other examples than those of mine; resume it with its own, or give "
        f"another --out."
    ):
        iwae.train(first.config, out=path, resume=True)


def test_another_machine_has_an_address_of_its_own_files(tiny: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    task = small(tiny, dataset=str(path))
    here = task.key
    np.save(path, np.eye(4))
    assert task.key == here, "that of a task stays while it is made"
    assert pickle.loads(pickle.dumps(task)) == task
    assert pickle.loads(pickle.dumps(task)).key != here


def test_of_a_data_file_the_content_counts(tiny: RunConfig, tmp_path: Path) -> None:
    path, other = tmp_path / "mine.npy", tmp_path / "folder" / "mine.npy"
    other.parent.mkdir()
    for at in (path, other):
        np.save(at, np.eye(4))
    before = small(tiny, dataset=str(path)).key
    assert small(tiny, dataset=str(other)).key == before
    np.save(path, np.ones((4, 4)))
    assert small(tiny, dataset=str(path)).key != before
