"""How a training ends and is found again: signals, lost terminals, runs in memory, few rows."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iwae
from iwae import runs
from iwae.cli import outputs
from iwae.cli.app import main
from iwae.cli.outputs import StandardError
from iwae.cli.progress import TrainingBars
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError, Interrupted
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.measured import Result
from iwae.plotting import report
from iwae.storage import checkpoint, run_directory
from iwae.training import trainer
from iwae.training.callbacks import Callback, StepChunk
from refusals import refused

SMALL: dict[str, Any] = {"hidden": ((4,),), "latents": (2,), "k": 2, "epochs": 1}


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def in_memory(rows: np.ndarray) -> TrainedModel:
    return iwae.train(data=rows, **SMALL)


# Signals and streams


class HangingUp(Callback):
    """Loses the terminal once the run is past a step; it says so twice."""

    def on_step_chunk(self, event: StepChunk) -> None:
        if event.state.step > 70:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)


def test_a_terminal_that_goes_saves_the_run(tiny: RunConfig, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started by
    try:
        with pytest.raises(Interrupted, match="the run is saved, and"):
            iwae.train(tiny, out=tmp_path / "run", callbacks=[HangingUp()])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    passes = checkpoint.read_header(tmp_path / "run" / run_directory.CHECKPOINT)["passes"]
    assert isinstance(passes, int)
    assert 0 < passes < 3


def test_what_nohup_ignores_stays_ignored(tiny: RunConfig) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert iwae.train(tiny, callbacks=[HangingUp()]).passes == 3
    finally:
        signal.signal(signal.SIGHUP, before)


def _broken() -> object:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def _closed() -> object:
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [_broken, _closed, lambda: None], ids=["pipe", "closed", "none"])
def test_a_standard_error_that_is_gone_ends_nothing(stream, tiny, monkeypatch, capsys) -> None:
    lost = stream()
    monkeypatch.setattr(sys, "stderr", lost)
    with TrainingBars(1) as bars:
        assert iwae.train(tiny, callbacks=[bars.cell("one", 3)]).passes == 3
        bars.made("one", Result({"seed": 0, "k": 1, "n": 1, "nll": 1.0}))
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "/nowhere"])
    assert left.value.code == 2
    assert capsys.readouterr().out == ""
    print("more", file=StandardError())
    if lost is not None and not lost.closed:
        lost.close()  # nothing is left that could not be written


# From the library as from the command line


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_settings(rows: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = iwae.train(data=rows, out=out, **SMALL, learning_rate=0.01)
    again = iwae.train(data=rows, out=out, resume=True)
    assert again.config == first.config
    longer = iwae.train(data=rows, out=out, resume=None, epochs=2)
    assert (longer.passes, longer.config.training.learning_rate) == (2, 0.01)
    with pytest.raises(InputError, match=r"was started with k = 2, not 3; leave the setting out"):
        iwae.train(data=rows, out=out, resume=True, k=3)
    with pytest.raises(InputError, match=r"was started with hidden = "):
        iwae.train(RunConfig(), data=rows, out=out, resume=True)


@pytest.mark.slow
def test_replicas_go_on_with_their_own_settings(rows: np.ndarray, tmp_path: Path) -> None:
    made = iwae.train_replicas(data=rows, out=tmp_path, seeds=1, **SMALL)
    again = iwae.train_replicas(data=rows, out=tmp_path, seeds=1, resume=True)
    assert [one.config for one in again] == [one.config for one in made]


@pytest.mark.slow
def test_what_is_no_run_is_not_evaluated(in_memory: TrainedModel, rows: np.ndarray) -> None:
    wrong: list[Any] = [in_memory.model, rows, None]
    for given in wrong:
        name = type(given).__name__
        with refused(
            f"{name} was given to iwae.evaluate, which takes a run directory or what iwae.train "
            f"and iwae.load return; for a bare model, map iwae.evaluation.log_likelihood over your "
            f"examples."
        ):
            iwae.evaluate(given)
        with pytest.raises(InputError, match=r"^\w+ was given to iwae.load, which takes the path"):
            iwae.load(given)
    with pytest.raises(InputError, match="data was given with a loaded run"):
        iwae.evaluate(in_memory, data=rows)


# Runs in memory


def test_a_run_on_arrays_is_evaluated_from_the_command_line(rows, tmp_path, capsys) -> None:
    out, file = tmp_path / "run", tmp_path / "rows.npy"
    iwae.train(data=rows, out=out, **SMALL)
    with pytest.raises(SystemExit):
        main(["evaluate", str(out), "--k", "5"])
    assert "iwae evaluate --data FILE" in capsys.readouterr().err
    np.save(file, rows)
    main(["evaluate", str(out), "--k", "5", "--data", str(file)])
    (kept,) = run_directory.read_evaluations(out).values()
    assert f"{kept.nll:.2f} ±" in capsys.readouterr().out
    assert (kept.n, kept.note) == (8, "")
    assert iwae.load(out, data=rows).evaluate(k=5).nll == kept.nll
    np.save(file, rows + 1)
    main(["evaluate", str(out), "--k", "5", "--data", str(file)])
    assert runs.OTHERS in " ".join(capsys.readouterr().out.split())


def test_a_run_in_memory_is_saved(in_memory: TrainedModel, rows, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    in_memory.save(out)
    loaded = iwae.load(out, data=rows)
    np.testing.assert_array_equal(loaded.score(rows[:5], k=3), in_memory.score(rows[:5], k=3))
    assert loaded.evaluate(k=5).nll == in_memory.evaluate(k=5).nll
    assert (loaded.config, loaded.passes, loaded.seen.note) == (in_memory.config, 1, "")
    assert runs.made_with(loaded) == []
    with refused(f"{out} holds a run already; give --resume to continue it, or another --out."):
        in_memory.save(out)
    with pytest.raises(InputError, match=r"holds a trained model but no checkpoint\.safetensors"):
        iwae.train(data=rows, out=out, resume=True)
    other = replace(in_memory, config=override(in_memory.config, latents=(3,)))
    with refused(
        "The model is not the one that its configuration describes, so it could not be loaded "
        "again; save the model that was trained."
    ):
        other.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# Few rows


@pytest.mark.slow
def test_a_batch_that_nobody_asked_for_is_as_large_as_there_are_rows(
    rows: np.ndarray, in_memory: TrainedModel, tmp_path: Path, capsys
) -> None:
    few, settings = rows[:13], SMALL | {"epochs": 2}
    trained = iwae.train(data=few, out=tmp_path / "run", **settings)
    assert (trained.config.training.batch_size, trained.passes) == (11, 2)
    assert trained.evaluate(k=3).note == "trained in batches of all 11 training examples"
    longer = iwae.train(data=few, out=tmp_path / "run", resume=True, epochs=3)
    assert longer.seen == trained.seen
    sentence = (
        "batch_size = 20 was given, but there are only 11 training examples; give --batch-size 11 "
        "or less."
    )
    with refused(sentence):
        iwae.train(data=few, **settings, batch_size=20)
    with refused(sentence):
        iwae.train_replicas(data=few, **settings, batch_size=20, seeds=2)
    assert in_memory.seen.note == "", "of batches of the size that they have by default"
    np.save(tmp_path / "few.npy", few)
    form = ["train", "--dataset", str(tmp_path / "few.npy"), "--k", "2", "--hidden", "4"]
    form += ["--latents", "2", "--epochs", "2"]
    for flag in (["--batch-size", "20"], ["--batch-size=20"]):
        with pytest.raises(SystemExit):
            main([*form, "--out", str(tmp_path / "asked"), *flag])
        assert capsys.readouterr().err.strip() == f"iwae: {sentence}"
    main([*form, "--out", str(tmp_path / "own")])
    assert run_directory.read_config(tmp_path / "own").training.batch_size == 11


# What is written


def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(outputs.os, "access", lambda place, mode: Path(place) != tmp_path)
    path = tmp_path / "scores.csv"
    with refused(
        f"{path} was given, but {tmp_path} is not a writable directory; give a file elsewhere."
    ):
        outputs.check_output(path, (".csv",), overwrite=False)


def test_a_report_leaves_out_the_page_that_a_pattern_takes_along(
    tiny_run: TrainedModel, tmp_path: Path, capsys
) -> None:
    (tmp_path / "report.html").write_text("an earlier page")
    out = tmp_path / "page.html"
    main(["report", str(tiny_run.path), str(tmp_path / "report.html"), "--out", str(out)])
    assert capsys.readouterr().out == (
        f"Left out {tmp_path / 'report.html'}, which is a file and not a run directory.\n"
        f"Wrote {out}.\n"
    )
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "report.html"), "--out", str(tmp_path / "other.html")])
    assert "is not a run directory" in capsys.readouterr().err
    assert report.runs_among([tmp_path]) == ([tmp_path], [])


def test_nothing_is_hashed_between_checkpoints(tiny: RunConfig, monkeypatch, tmp_path) -> None:
    """The digests cost a training nothing but at its checkpoints."""
    saved: list[int] = []
    real = checkpoint._digest

    def digest(*of: Any) -> Any:
        saved.append(1)
        return real(*of)

    monkeypatch.setattr(checkpoint, "_digest", digest)
    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 0.01)
    iwae.train(tiny, out=tmp_path / "run")
    assert len(saved) == 2, "of the last checkpoint, and of the model"
