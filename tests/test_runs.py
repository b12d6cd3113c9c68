"""Runs: what is saved, what is refused, and that a killed run ends exactly as an unharmed one."""

import errno
import fcntl
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwae
from callbacks import Interrupting
from early import forget
from iwae import evaluation, runs
from iwae._utils import files
from iwae.cli.progress import print_evaluation
from iwae.config.io import override, read
from iwae.config.schema import RunConfig
from iwae.config.tables import TableSettings
from iwae.errors import InputError, Interrupted
from iwae.evaluation.trained import TrainedModel
from iwae.plotting import report
from iwae.storage import checkpoint, evaluations, run_directory
from iwae.training import trainer
from iwae.training.callbacks import Callback, StepChunk, Validation
from iwae.training.trainer import NonFiniteError
from refusals import refused
from thinned import thinned


def same_models(a: Path, b: Path) -> bool:
    """Whether two runs ended with bit-for-bit the same model and optimiser state."""
    names = (run_directory.MODEL, run_directory.CHECKPOINT)
    tensors = [[_tensors(path / name) for path in (a, b)] for name in names]
    return all(
        left.keys() == right.keys() and all(left[n].tobytes() == right[n].tobytes() for n in left)
        for left, right in tensors
    )


def _tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def test_a_run_folder_holds_everything(tiny_run: TrainedModel, tiny: RunConfig) -> None:
    path = tiny_run.path
    present = {p.name for p in path.iterdir()}
    assert present >= {
        run_directory.CONFIG,
        run_directory.METRICS,
        run_directory.CHECKPOINT,
        run_directory.MODEL,
    }
    assert run_directory.read_config(path) == tiny
    rows = run_directory.read_metrics(path)
    assert [row["pass"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [64, 128, 192]
    assert rows[-1]["valid_bound"] > rows[0]["valid_bound"]


def test_loading_gives_the_trained_model(tiny_run: TrainedModel) -> None:
    loaded = iwae.load(tiny_run.path)
    assert loaded.passes == 3
    for a, b in zip(jax.tree.leaves(tiny_run.model), jax.tree.leaves(loaded.model), strict=True):
        np.testing.assert_array_equal(a, b)
    here, there = (t.score("digits:valid", k=7) for t in (tiny_run, loaded))
    np.testing.assert_array_equal(here, there)


def test_a_run_is_a_function_of_its_configuration(tiny_run: TrainedModel, tiny, tmp_path) -> None:
    iwae.train(tiny, out=tmp_path / "again")
    assert same_models(tiny_run.path, tmp_path / "again")
    iwae.train(override(tiny, seed=1), out=tmp_path / "other")
    assert not same_models(tiny_run.path, tmp_path / "other")


def test_training_does_not_depend_on_the_size_of_chunks(tiny_run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 1e-9)
    iwae.train(tiny, out=tmp_path / "steps")
    assert same_models(tiny_run.path, tmp_path / "steps")


@pytest.mark.slow
def test_options_that_keep_more_state_resume_exactly(tiny: RunConfig, tmp_path: Path) -> None:
    kept = {"average": 0.9, "patience": 50, "clip": 1.0, "schedule": "constant"}
    config = override(tiny, epochs=4, **kept)
    iwae.train(config, out=tmp_path / "whole")
    iwae.train(override(config, epochs=2), out=tmp_path / "parts")
    iwae.train(config, out=tmp_path / "parts", resume=True)
    assert same_models(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (run_directory.read_metrics(tmp_path / n) for n in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


SCRIPT = """
import sys
from pathlib import Path
import iwae
from iwae.config.io import read
out = Path(sys.argv[2])
iwae.train(read(Path(sys.argv[1])), out=out, resume=out.exists())
"""

DYING = """
import os, signal, sys
calls, real = [0], os.fsync
def fsync(fd):
    calls[0] += 1
    if calls[0] == int(sys.argv[3]):
        os.truncate(fd, os.fstat(fd).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)
os.fsync = fsync
"""


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory, tiny: RunConfig) -> tuple[Path, Path]:
    """(configuration file, uninterrupted run) with a checkpoint at every one of many epochs."""
    base = tmp_path_factory.mktemp("long")
    np.save(base / "images.npy", iwae.data.load("digits").train)
    config = override(
        tiny,
        dataset=f"{base}/images.npy",
        values="intensity",
        epochs=120,
        checkpoint_every=1,
        validate_every=10,
    )
    (base / "config.toml").write_text(config.to_toml())
    iwae.train(config, out=base / "whole")
    return base / "config.toml", base / "whole"


def start(code: str, *arguments: str | Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen, code: int) -> None:
    """Wait for a process, and check the way it ended."""
    _, error = process.communicate()
    assert process.returncode == code, error.decode()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random(long_run: tuple[Path, Path], tmp_path: Path, times: int) -> None:
    config, whole = long_run
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    while kills < times:
        process = start(SCRIPT, config, out)
        before = _passes(out)
        while process.poll() is None and _passes(out) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        finish(process, -signal.SIGKILL)
        kills += 1
    assert 0 < _passes(out) < 120
    finish(start(SCRIPT, config, out), 0)
    assert same_models(whole, out)
    assert len(run_directory.read_metrics(out)) == 120


def _passes(out: Path) -> int:
    path = out / run_directory.CHECKPOINT
    passes = checkpoint.read_header(path)["passes"] if path.exists() else 0
    assert isinstance(passes, int)
    return passes


@pytest.mark.parametrize("write", thinned((1, 2, 3, 4), 3))
@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(tiny, tiny_run, tmp_path: Path, write: int) -> None:
    config, whole, out = tmp_path / "config.toml", tiny_run.path, tmp_path / "torn"
    config.write_text(override(tiny, checkpoint_every=1).to_toml())
    finish(start(DYING + SCRIPT, config, out, str(write)), -signal.SIGKILL)
    iwae.train(read(config), out=out, resume=None)
    assert same_models(whole, out)


def test_interrupt_saves_and_says_how_to_resume(tiny: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted) as error:
        iwae.train(tiny, out=out, callbacks=[Interrupting(70)])
    passes = _passes(out)
    assert passes in (1, 2)
    assert str(error.value) == (
        f"Interrupted after {passes} of 3 epochs; the run is saved, and "
        f"`iwae train --out {out} --resume` continues it."
    )
    with refused(
        f"{out} holds no trained model yet; finish it with `iwae train --out {out} --resume`."
    ):
        iwae.load(out)
    iwae.train(tiny, out=out, resume=True)
    iwae.train(tiny, out=tmp_path / "whole")
    assert same_models(out, tmp_path / "whole")


def test_an_interrupt_in_the_last_steps_is_heard_where_nothing_is_lost(
    tiny: RunConfig, tiny_run: TrainedModel, tmp_path: Path
) -> None:
    last = Interrupting(run_directory.read_metrics(tiny_run.path)[-1]["step"] - 1)
    out = tmp_path / "run"
    with pytest.raises(Interrupted) as error:
        iwae.train(tiny, out=out, callbacks=[last])
    assert str(error.value) == f"Interrupted after the last epoch; {out} is finished."
    in_memory = iwae.train(tiny, callbacks=[last])
    assert in_memory.passes == iwae.load(out).passes == 3


def test_a_run_says_what_it_was_trained_with(tiny: RunConfig, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "run"
    versions = ("7.0", "8.0", "8.0")
    for version, step in zip(versions, (70, 100), strict=False):
        monkeypatch.setattr(iwae, "__version__", version)
        with pytest.raises(Interrupted):
            iwae.train(tiny, out=out, resume=None, callbacks=[Interrupting(step)])
    trained = iwae.train(tiny, out=out, resume=None)
    assert runs.made_with(trained) == ["cpu, iwae 7.0", "cpu, iwae 8.0"]
    monkeypatch.setattr(iwae, "__version__", "9.0")
    assert runs.made_with(iwae.train(tiny, out=out, resume=None)) == runs.made_with(trained)
    old = run_directory.Progress(seconds=1.0).made_on("cpu, iwae 7.0")
    assert old.made_with == ("iwae before 0.2.0", "cpu, iwae 7.0")


def test_a_file_system_without_locks_is_refused(tiny: RunConfig, tmp_path: Path, monkeypatch):
    def without(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    out = tmp_path / "run"
    with refused(
        f"{out} cannot be locked (No locks available); give an --out on a file system that has "
        f"locks."
    ):
        iwae.train(tiny, out=out)


def test_an_interrupt_is_heard_where_a_run_fails(tiny: RunConfig, tmp_path: Path) -> None:
    class Failing(Interrupting):
        def on_step_chunk(self, event) -> None:
            super().on_step_chunk(event)
            raise InputError("It failed.")

    with pytest.raises(Interrupted, match=r"^It failed\.$"):
        iwae.train(tiny, callbacks=[Failing(0)])


def test_an_interrupt_is_heard_where_a_callback_ends_the_training(tiny: RunConfig) -> None:
    class Ending(Interrupting):
        def on_step_chunk(self, event) -> None:
            super().on_step_chunk(event)
            raise LookupError

    with pytest.raises(KeyboardInterrupt):
        iwae.train(tiny, callbacks=[Ending(0)])
    with pytest.raises(LookupError):
        iwae.train(tiny, callbacks=[Ending(10**6)])


def test_a_torn_last_line_of_metrics_is_dropped(tiny_run: TrainedModel, tmp_path: Path) -> None:
    text = (tiny_run.path / run_directory.METRICS).read_text()
    (tmp_path / run_directory.METRICS).write_text(text + '{"pass": 4, "tr')
    assert run_directory.read_metrics(tmp_path) == run_directory.read_metrics(tiny_run.path)


@pytest.mark.parametrize("line", ['{"pass": 4, "tr\n', "[4]\n", "\xff\n"])
def test_a_damaged_line_of_metrics_is_named(line, tiny_run, tiny, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path)
    whole = (path / run_directory.METRICS).read_bytes()
    (path / run_directory.METRICS).write_bytes(whole + line.encode("latin-1"))
    with refused(
        f"Line 4 of {path / run_directory.METRICS} is damaged; delete that line, or restore the "
        f"file from a copy."
    ):
        iwae.train(override(tiny, epochs=9), out=path, resume=True)
    assert run_directory.read_config(path) == tiny


def test_existing_folders_are_not_touched(
    tiny_run: TrainedModel, tiny: RunConfig, tmp_path
) -> None:
    before = {p.name: p.read_bytes() for p in tiny_run.path.iterdir()}
    path = tiny_run.path
    with refused(f"{path} holds a run already; give --resume to continue it, or another --out."):
        iwae.train(tiny, out=path)
    with refused(
        f"{path} was started with k = 2, not 7; leave the setting out to resume it, or give "
        f"another --out."
    ):
        iwae.train(override(tiny, k=7), out=path, resume=True)
    (tmp_path / "thesis.tex").write_text("precious")
    with refused(
        f"{tmp_path} exists and is not a run of iwae; give the name of a directory that does not "
        f"exist yet."
    ):
        iwae.train(tiny, out=tmp_path)
    with refused(
        f"{tmp_path} is not a run directory; give a directory written by `iwae train --out`."
    ):
        iwae.train(tiny, out=tmp_path, resume=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert before == {p.name: p.read_bytes() for p in tiny_run.path.iterdir()}


def test_a_refused_start_leaves_nothing_in_the_way(tiny: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with refused(
        f"{out} does not exist, so there is no run to resume; leave out --resume to start one."
    ):
        iwae.train(tiny, out=out, resume=True)
    for wrong in ({"likelihood": "bernouli"}, {"batch_size": 5000}, {"learning_rate": 1e30}):
        with pytest.raises(InputError):
            iwae.train(override(tiny, **wrong), out=out)
        assert not out.exists()
    out.mkdir()
    with pytest.raises(InputError):
        iwae.train(override(tiny, likelihood="bernouli"), out=out)
    assert iwae.train(override(tiny, epochs=1), out=out).passes == 1


def test_only_a_constant_schedule_can_be_prolonged(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(tiny, schedule="cosine", epochs=1)
    iwae.train(config, out=tmp_path / "run")
    with refused(
        f"{tmp_path / 'run'} was started with epochs = 1, not 2; the cosine schedule was laid out "
        f"for its epochs, so leave the setting out to resume it, or give another --out."
    ):
        iwae.train(override(config, epochs=2), out=tmp_path / "run", resume=True)


def test_one_process_at_a_time(tiny: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with (
        run_directory.open_run(path, tiny, resume=False),
        refused(f"{path} is being trained by another process; wait for it or give another --out."),
    ):
        iwae.train(tiny, out=path, resume=True)


def test_resuming_a_finished_run_changes_nothing(tiny_run: TrainedModel, tiny: RunConfig) -> None:
    before = (tiny_run.path / run_directory.MODEL).read_bytes()
    again = iwae.train(tiny, out=tiny_run.path, resume=True)
    assert again.passes == 3
    assert (tiny_run.path / run_directory.MODEL).read_bytes() == before


def test_a_model_without_a_checkpoint_is_not_made_anew(tiny_run, tiny, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path)
    (path / run_directory.CHECKPOINT).unlink()
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with refused(
        f"{path} holds a trained model but no checkpoint.safetensors to train it further "
        f"from; give another --out."
    ):
        iwae.train(tiny, out=path, resume=True)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tiny_run, tiny, tmp_path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    shutil.copy(tiny_run.path / run_directory.CONFIG, path)
    row = (tiny_run.path / run_directory.METRICS).read_text().splitlines(keepends=True)[0]
    (path / run_directory.METRICS).write_text(row + row[:20])
    iwae.train(tiny, out=path, resume=True)
    assert same_models(path, tiny_run.path)
    assert [row["pass"] for row in run_directory.read_metrics(path)] == [1, 2, 3]


@pytest.mark.slow
def test_a_refused_resume_changes_nothing(tiny: RunConfig, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((200, 9))
    mine, others = tmp_path / "mine.npy", tmp_path / "others.npy"
    np.save(mine, rows)
    np.save(others, 1 - rows)
    own = override(tiny, dataset=str(mine), epochs=1)
    iwae.train(own, out=tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with refused(
        f"{tmp_path / 'run'} was started on other examples than those of others; resume it with "
        f"its own, or give another --out."
    ):
        iwae.train(override(own, dataset=str(others), epochs=2), out=tmp_path / "run", resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


@pytest.mark.slow
def test_a_run_knows_its_file_from_anywhere_and_again(tiny, tmp_path: Path, monkeypatch) -> None:
    rows = np.random.default_rng(0).random((200, 9))
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "mine.npy", rows)
    np.save(tmp_path / "elsewhere" / "mine.npy", 1 - rows)
    monkeypatch.chdir(tmp_path)
    trained = iwae.train(override(tiny, dataset="mine.npy", epochs=1), out="run")
    nll = trained.evaluate(k=5).nll
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert iwae.load(tmp_path / "run").evaluate(k=5).nll == nll
    np.save(tmp_path / "mine.npy", 1 - rows)
    with refused(
        f"{tmp_path / 'mine.npy'} has changed since the run was trained: its examples differ; "
        f"put the original data back, or give arrays with iwae.load(…, data=…)."
    ):
        iwae.load(tmp_path / "run").evaluate(k=5)
    assert iwae.load(tmp_path / "run", data=rows).evaluate(k=5).nll == nll
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.npy").symlink_to((tmp_path / "mine.npy").rename(tmp_path / "blob"))
    linked = iwae.train(override(tiny, dataset="link.npy", epochs=1), out="linked")
    assert iwae.load("linked").evaluate(k=5).nll == linked.evaluate(k=5).nll
    with refused(
        f"The data that were given hold intensity values of shape (9,) on a scale of 255, but "
        f"{tmp_path / 'run'} was trained on intensity values of shape (9,) on a scale of 1; give "
        f"data of that kind."
    ):
        iwae.load(tmp_path / "run", data=np.rint(255 * rows))
    with refused(
        "values = real was given, but the data are a Dataset of intensity values; leave values "
        "out, or give the array."
    ):
        iwae.train(tiny, data=iwae.data.load("digits"), values="real")


@pytest.mark.slow
def test_other_test_examples_are_another_file(tiny: RunConfig, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((120, 9))
    mine = tmp_path / "mine.npz"
    np.savez(mine, train=rows[:80], valid=rows[80:100], test=rows[100:])
    iwae.train(override(tiny, dataset=str(mine), epochs=1), out=tmp_path / "run")
    np.savez(mine, train=rows[:80], valid=rows[80:100], test=1 - rows[100:])
    with pytest.raises(InputError, match="has changed since the run was trained"):
        iwae.evaluate(tmp_path / "run", k=5)


@pytest.mark.slow
def test_arrays_are_of_the_kind_that_a_run_was_trained_on(tiny: RunConfig, tmp_path) -> None:
    """Whatever kind they would be taken for by themselves."""
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {"likelihood": "gaussian", "epochs": 1}
    iwae.train(tiny, data=rng.normal(size=(200, 9)), out=tmp_path / "real", **settings)
    for rows in (rng.random((50, 9)), (rng.random((50, 9)) < 0.5).astype(float)):
        assert iwae.load(tmp_path / "real", data=rows).evaluate(k=5).n == 5


@pytest.mark.slow
def test_a_run_goes_on_when_one_says_what_its_values_were_taken_for(tiny, tmp_path) -> None:
    """As of an early version, to which auto took integers up to 16 for dark intensities."""
    rows = np.random.default_rng(0).integers(0, 17, (200, 9))
    np.save(tmp_path / "mine.npy", rows)
    own = override(tiny, dataset=str(tmp_path / "mine.npy"), values="intensity", epochs=1)
    iwae.train(own, out=tmp_path / "run")
    forget(tmp_path / "run", override(own, values="auto"))
    assert iwae.evaluate(tmp_path / "run", k=5).n == 20
    longer = override(own, epochs=2)
    assert iwae.train(longer, out=tmp_path / "run", resume=True).passes == 2


def test_a_damaged_model_is_made_again_from_the_checkpoint(tiny_run, tiny, tmp_path) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path)
    whole = (path / run_directory.MODEL).read_bytes()
    (path / run_directory.MODEL).write_bytes(whole[:100])
    iwae.train(tiny, out=path, resume=True)
    assert (path / run_directory.MODEL).read_bytes() == whole


def test_a_checkpoint_of_another_model_is_refused(tiny_run: TrainedModel, tiny, tmp_path) -> None:
    path = tmp_path / "run"
    with run_directory.open_run(path, override(tiny, latents=(4,)), resume=False) as begun:
        begun.save_config(override(tiny, latents=(4,)))
    (path / run_directory.CHECKPOINT).write_bytes(
        (tiny_run.path / run_directory.CHECKPOINT).read_bytes()
    )
    forget(path, override(tiny, latents=(4,)))
    stranger = (path / run_directory.CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=r"belongs to another model: .* is float32\[3, 8\] there"):
        iwae.train(override(tiny, latents=(4,)), out=path, resume=True)
    assert (path / run_directory.CHECKPOINT).read_bytes() == stranger


def test_a_damaged_checkpoint_is_refused(tiny_run: TrainedModel, tiny, tmp_path) -> None:
    path = tmp_path / "run"
    with run_directory.open_run(path, tiny, resume=False) as begun:
        begun.save_config(tiny)
    whole = (tiny_run.path / run_directory.CHECKPOINT).read_bytes()
    (path / run_directory.CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"checkpoint.safetensors is damaged \(.*\); restore it"):
        iwae.train(tiny, out=path, resume=True)


def test_leaves_of_the_same_shape_cannot_be_swapped(tmp_path: Path) -> None:
    a, b = jnp.arange(3.0), jnp.arange(3.0) + 5
    checkpoint.save(tmp_path / "t", {"a": a, "b": b}, {})
    swapped = checkpoint.load(tmp_path / "t", {"b": a, "a": b})
    np.testing.assert_array_equal(swapped["a"], a)
    with pytest.raises(InputError, match="it lacks "):
        checkpoint.load(tmp_path / "t", {"a": a, "b": b, "c": a})
    with pytest.raises(InputError, match="it also holds "):
        checkpoint.load(tmp_path / "t", {"a": a})


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    files.write_atomic(path, "before")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with refused(
        f"{path} could not be written: No space left on device; the previous content is "
        f"unchanged. Free some space or choose another place, then run the command again."
    ):
        files.write_atomic(path, "after")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["kept"]


def test_a_bound_that_is_not_finite_stops_with_the_last_good_checkpoint(tiny, tmp_path) -> None:
    out = tmp_path / "run"
    iwae.train(override(tiny, epochs=1), out=out)
    wild = override(tiny, learning_rate=1e30)
    forget(out, wild)
    good = (out / run_directory.CHECKPOINT).read_bytes()
    with pytest.raises(NonFiniteError) as error:
        iwae.train(wild, out=out, resume=True)
    assert re.fullmatch(
        rf"The bound is not finite at step \d+ \(epoch 2\); the last good checkpoint is kept in "
        rf"{out}. Try a smaller --learning-rate, --skip-spikes 3 or --clip 10, "
        rf"and check that the data fit the likelihood.",
        str(error.value),
    )
    assert (out / run_directory.CHECKPOINT).read_bytes() == good


def test_a_last_step_that_ruins_the_parameters_leaves_no_model(tiny, tmp_path, monkeypatch):
    """Its bound, of the parameters before it, is finite."""
    monkeypatch.setattr(trainer.gradient_step, "all_finite", lambda _: False)
    with refused(
        "The parameters are not finite at step 64 (epoch 1); nothing was saved. Try a smaller "
        "--learning-rate, --skip-spikes 3 or --clip 10, and check that the data fit the likelihood."
    ):
        iwae.train(override(tiny, epochs=1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_configuration_is_refused(tiny: RunConfig) -> None:
    with refused(
        "A ndarray was given as the configuration, but a RunConfig is expected; give examples by "
        "name, as in train(data=x)."
    ):
        iwae.train(cast(Any, np.zeros((20, 3))), epochs=1)
    with refused("recipe is not a setting; give iwae.config.io.recipe(name) as the configuration."):
        iwae.train(tiny, recipe="fast")


def test_patience_keeps_the_best_model(tiny: RunConfig) -> None:
    class Rows(Callback):
        def __init__(self) -> None:
            self.valid: list[float] = []

        def on_validation(self, event: Validation) -> None:
            self.valid.append(event.bound)

    rows = Rows()
    config = override(tiny, epochs=200, patience=2, learning_rate=0.05)
    trained = iwae.train(config, callbacks=[rows])
    assert trained.passes == len(rows.valid) < 200
    assert max(rows.valid) == rows.valid[-3]
    at_best = iwae.train(override(config, epochs=trained.passes - 2, patience=None))
    for a, b in zip(jax.tree.leaves(at_best.model), jax.tree.leaves(trained.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_budget_in_minutes_ends_a_run(tiny: RunConfig, tmp_path: Path) -> None:
    trained = iwae.train(override(tiny, epochs=10_000, minutes=0.01), out=tmp_path / "run")
    assert trained.passes < 10_000
    header = checkpoint.read_header(tmp_path / "run" / run_directory.CHECKPOINT)
    assert header["finished"] == "minutes"
    assert isinstance(header["seconds"], float)
    assert header["seconds"] >= 0.6


def test_too_large_a_batch_is_refused(tiny: RunConfig) -> None:
    with refused(
        "batch_size = 2000 was given, but there are only 1297 training examples; give "
        "--batch-size 1297 or less."
    ):
        iwae.train(tiny, batch_size=2000)


def test_evaluations_are_kept(tiny_run: TrainedModel) -> None:
    first = iwae.evaluate(tiny_run.path, k=10, limit=20)
    second = iwae.evaluate(tiny_run.path, k=20, limit=20)
    kept = run_directory.read_evaluations(tiny_run.path)
    assert kept["test k=10 n=20 seed=0 passes=3"] == first
    assert kept["test k=20 n=20 seed=0 passes=3"].nll == second.nll


@pytest.mark.slow
def test_figures_of_other_models_or_examples_are_not_kept_together(tiny, tmp_path) -> None:
    rows = np.random.default_rng(0).random((200, 9))
    iwae.train(override(tiny, epochs=1), data=rows, out=tmp_path / "run")
    first = iwae.evaluate(iwae.load(tmp_path / "run", data=rows), k=5, without_inactive=True)
    assert first.nll_without_inactive is not None
    other = iwae.evaluate(iwae.load(tmp_path / "run", data=1 - rows), k=5)
    (kept,) = run_directory.read_evaluations(tmp_path / "run").values()
    assert (kept.nll, kept.nll_without_inactive) == (other.nll, None)


def test_two_evaluations_at_once_are_both_kept(tiny_run, tmp_path, monkeypatch) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns(run_directory.EVALUATION))
    both = threading.Barrier(2, timeout=60)

    def evaluated(trained: TrainedModel, **options) -> object:
        result = own(trained, **options)
        both.wait()
        return result

    def slow(path: Path, content: str) -> None:
        time.sleep(0.2)
        files.write_atomic(path, content)

    own = TrainedModel.evaluate
    monkeypatch.setattr(TrainedModel, "evaluate", evaluated)
    monkeypatch.setattr(evaluations, "write_atomic", slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda k: iwae.evaluate(path, k=k, limit=20), (5, 7)))
    assert len(run_directory.read_evaluations(path)) == 2


def test_what_others_are_writing_is_left_alone(tiny_run, tiny, tmp_path) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path)
    theirs, left = path / ".evaluation.json.a.tmp", path / ".model.safetensors.b.tmp"
    theirs.touch()
    left.touch()
    iwae.train(tiny, out=path, resume=True)
    assert theirs.exists()
    assert not left.exists()


def test_the_model_of_an_early_version_is_replaced_by_a_later_one(tmp_path: Path) -> None:
    """Such a model knows its epochs, but not its step."""
    checkpoint.save(tmp_path / run_directory.MODEL, {"a": jnp.zeros(1)}, {"passes": 1})
    assert run_directory.RunDirectory(tmp_path).has_model(passes=1, step=7)
    assert not run_directory.RunDirectory(tmp_path).has_model(passes=3, step=21)


@pytest.mark.slow
def test_an_evaluation_takes_nothing_from_an_earlier_one(tiny_run: TrainedModel) -> None:
    first = iwae.evaluate(tiny_run.path, k=5, limit=30, without_inactive=True)
    second = iwae.evaluate(tiny_run.path, k=5, limit=30, only_used=True)
    iwae.evaluate(tiny_run.path, k=5, limit=30, memory=2**16)
    kept = run_directory.read_evaluations(tiny_run.path)["test k=5 n=30 seed=0 passes=3"]
    assert kept.nll_without_inactive == first.nll_without_inactive
    assert kept.used_units == second.used_units
    assert kept.nll_only_used == second.nll_only_used


@pytest.mark.parametrize("damaged", ["{", "[]", '{"test": 1}'])
def test_damaged_evaluations_are_refused_before_the_work(
    damaged: str, tiny_run: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path)
    (path / run_directory.EVALUATION).write_text(damaged)
    monkeypatch.setattr(TrainedModel, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    with refused(f"{path / run_directory.EVALUATION} is damaged; delete it and evaluate again."):
        iwae.evaluate(path, k=10)


def test_a_run_that_is_only_read_is_evaluated(
    tiny_run: TrainedModel, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns(run_directory.EVALUATION))
    monkeypatch.setattr(runs.os, "access", lambda place, mode: Path(place) != path)
    assert iwae.evaluate(path, k=10, limit=20).n == 20
    assert not (path / run_directory.EVALUATION).exists()


@pytest.mark.slow
def test_a_single_example_has_neither_error_nor_activity(tiny_run, tmp_path, capsys) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns(run_directory.EVALUATION))
    one = iwae.evaluate(path, k=10, limit=1)
    assert one.active_units is one.activity is None
    text = (path / run_directory.EVALUATION).read_text()
    kept = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert kept["test k=10 n=1 seed=0 passes=3"]["active_units"] is None
    print_evaluation(one)
    assert re.search(r"active units +—", capsys.readouterr().out)
    assert "evaluate more" in report.render([path])
    for n, k in ((1, 2), (2, 1)):
        with refused(
            f"The activity of units was requested for n = {n} examples with k = {k} draws, but "
            f"it needs at least 2 of each; give more."
        ):
            images = tiny_run.data().test[:n]
            evaluation.activity(tiny_run.model, images, tiny_run.seen.observer, k=k)


def test_no_examples_have_no_likelihoods(tiny_run: TrainedModel) -> None:
    with refused("No examples were given; give at least 1."):
        tiny_run.log_likelihoods(tiny_run.data().test[:0], k=2)


@pytest.mark.slow
def test_a_run_on_arrays_in_memory_asks_for_them_again(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    settings: dict[str, Any] = {
        "hidden": ((4,),),
        "latents": (2,),
        "k": 2,
        "epochs": 1,
        "batch_size": 10,
    }
    trained = iwae.train(data=x, out=tmp_path / "run", **settings)
    first = trained.evaluate(k=3)
    assert (first.n, first.dataset) == (8, "array")
    with refused(
        "The run was trained on array, which is neither a registered data set nor a file here; put "
        "the file back, or give its examples again, with iwae evaluate --data FILE or iwae.load(…, "
        "data=…)."
    ):
        iwae.evaluate(tmp_path / "run", k=3)
    assert iwae.load(tmp_path / "run", data=x).evaluate(k=3).nll == first.nll
    np.testing.assert_array_equal(
        iwae.load(tmp_path / "run").score(x[:5], k=3), trained.score(x[:5], k=3)
    )


def test_a_run_killed_before_its_last_checkpoint_still_ends_with_a_model(
    tiny_run: TrainedModel, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as dying:
        dying.setattr(run_directory.RunDirectory, "save_model", die)
        with pytest.raises(KeyboardInterrupt):
            iwae.train(tiny, out=out)
    iwae.train(tiny, out=out, resume=True)
    assert same_models(out, tiny_run.path)


@pytest.mark.slow
def test_a_larger_budget_in_minutes_goes_on(tiny: RunConfig, tmp_path: Path) -> None:
    short = override(tiny, epochs=40, minutes=1e-4)
    first = iwae.train(short, out=tmp_path / "run")
    second = iwae.train(override(short, minutes=60), out=tmp_path / "run", resume=True)
    assert first.passes < second.passes == 40


def test_checkpoints_by_time_come_within_a_pass(tiny: RunConfig, tmp_path: Path) -> None:
    steps: list[int] = []

    class Looking(Callback):
        def on_step_chunk(self, event: StepChunk) -> None:
            path = tmp_path / "run" / run_directory.CHECKPOINT
            if path.exists():
                steps.append(int(_tensors(path)["[0].step"]))

    config = override(tiny, checkpoint_minutes=0.0, epochs=1)
    iwae.train(config, out=tmp_path / "run", callbacks=[Looking()])
    assert steps
    assert all(0 < step < 64 for step in steps)


def test_a_run_can_start_from_another(tiny, tiny_run, tmp_path):
    """Its first parameters are those of the other; it has its own objective and optimiser."""
    settings = {"start_from": str(tiny_run.path), "objective": "vae", "optimizer": "soap"}
    config = override(tiny, **settings, learning_rate=1e-12, epochs=1)
    begun = iwae.runs.untrained(config).model
    again = iwae.train(config, out=tmp_path / "on")
    for model in (begun, again.model):
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(tiny_run.model), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-8)
    with refused(
        f"start_from = {tmp_path / 'lost'} was given, but it holds no finished run; give a "
        f"directory written by `iwae train --out`."
    ):
        iwae.train(tiny, start_from=str(tmp_path / "lost"))
    with pytest.raises(InputError, match="belongs to another model"):
        iwae.train(tiny, start_from=str(tiny_run.path), latents=(4,))


class Configured(Exception):  # noqa: N818
    """Instead of training: the configurations that would be trained."""


def test_a_table_takes_settings_for_its_size_unless_others_are_given(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(configs, out):
        raise Configured(configs)

    def configured(train=iwae.train, **given) -> list[RunConfig]:
        with pytest.raises(Configured) as caught:
            train(**given)
        return caught.value.args[0]

    monkeypatch.setattr(runs, "Run", lambda config, *others, **named: config)
    monkeypatch.setattr(runs, "Trainer", begun)
    rng = np.random.default_rng(0)
    table = {name: rng.normal(size=60).round(3) for name in "abc"}
    (chosen,) = configured(data=table, k=50)
    assert chosen.objective.k == 50
    assert chosen.model.networks == "tanh+linear"
    settings = TableSettings.of(48, 3, 3)
    assert chosen.training.batch_size == settings.batch_size == 48
    assert chosen.training.epochs == settings.max_epochs
    assert chosen.training.weight_decay == 1.0
    replicas = configured(iwae.train_replicas, data=table, k=50, seeds=2)
    assert replicas == [chosen, override(chosen, seed=1)]
    file = tmp_path / "mine.csv"
    np.savetxt(file, np.stack([*table.values()], 1), "%.3f", ",", header="a,b,c", comments="")
    (of_file,) = configured(dataset=str(file), k=50)
    assert override(of_file, dataset="table") == chosen
    plain = {"data": table, "values": "real"}
    for given in ({"config": tiny, "data": table}, plain, {"data": table, "layers": 2}):
        (config,) = configured(**given)
        assert config.training.weight_decay == 0
    (few,) = configured(data=table, batch_size=16, epochs=3)
    assert (few.training.batch_size, few.training.epochs) == (16, 3)
