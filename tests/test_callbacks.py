"""Callbacks: what they hear of, what they may ask for, and what their errors leave behind."""

import json
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest

import iwae
from callbacks import Interrupting
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError, Interrupted
from iwae.models.base import ModelLike
from iwae.storage import checkpoint, run_directory
from iwae.training import SAVE, Callback, EarlyStopping, Stop, progress, trainer
from iwae.training.callbacks import Validation
from refusals import refused


class Recorded(Callback):
    """Keeps every event, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def on_start(self, event) -> None:
        self.events.append(("start", event))

    def on_step_chunk(self, event) -> None:
        self.events.append(("chunk", event))

    def on_validation(self, event) -> None:
        self.events.append(("validation", event))

    def on_epoch_end(self, event) -> None:
        self.events.append(("epoch", event))

    def on_checkpoint(self, event) -> None:
        self.events.append(("checkpoint", event))

    def on_end(self, event) -> None:
        self.events.append(("end", event))

    def of(self, name: str) -> list:
        return [event for kind, event in self.events if kind == name]

    @property
    def names(self) -> list[str]:
        """The kinds of events, a row of chunks as one."""
        kinds = ["", *(kind for kind, _ in self.events)]
        return [kind for before, kind in pairwise(kinds) if (before, kind) != ("chunk", "chunk")]


def same(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_callbacks_hear_of_all_that_happens(tiny: RunConfig, tmp_path: Path) -> None:
    recorded, out = Recorded(), tmp_path / "run"
    config = override(tiny, checkpoint_every=2, validate_every=3)
    iwae.train(config, out=out, callbacks=[recorded])
    epochs = ["chunk", "epoch", "chunk", "epoch", "checkpoint", "chunk", "validation", "epoch"]
    assert recorded.names == ["start", *epochs, "checkpoint", "end"]
    assert [event.row for event in recorded.of("epoch")] == run_directory.read_metrics(out)
    (start,), (validation,), (end,) = map(recorded.of, ("start", "validation", "end"))
    assert (start.config, start.state.step, start.state.steps) == (config, 0, 3 * 64)
    assert (validation.improved, validation.state.best) == (True, validation.bound)
    assert (end.reason, end.state.epoch, end.state.path) == ("epochs", 3, out)
    chunks = recorded.of("chunk")
    assert sum(chunk.state.step % 64 == 0 for chunk in chunks) == 3
    assert all(chunk.rate > 0 and np.isfinite(chunk.bound) for chunk in chunks)
    iwae.train(config, out=out, resume=True, callbacks=[quiet := Recorded()])
    assert quiet.events == []


class Stopping(Callback):
    """Stops after an epoch, or after a step within one."""

    def __init__(self, *, epoch: int = 10**9, step: int = 10**9):
        self.epoch, self.step = epoch, step

    def on_step_chunk(self, event):
        return Stop("enough steps") if event.state.step >= self.step else None

    def on_epoch_end(self, event):
        return Stop("enough epochs") if event.state.epoch == self.epoch else None


def test_a_callback_stops_the_training(tiny: RunConfig, tmp_path: Path) -> None:
    out, recorded = tmp_path / "run", Recorded()
    trained = iwae.train(tiny, out=out, callbacks=[Stopping(epoch=2), recorded])
    assert trained.passes == 2
    assert recorded.of("end")[0].reason == "enough epochs"
    header = checkpoint.read_header(out / run_directory.CHECKPOINT)
    assert header["finished"] == "enough epochs"
    same(iwae.load(out).model, iwae.train(tiny, epochs=2).model)
    assert iwae.train(out=out, resume=True, epochs=9).passes == 2


def test_a_callback_stops_within_an_epoch(tiny: RunConfig, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 1e-9)
    trained = iwae.train(tiny, out=tmp_path / "run", callbacks=[Stopping(step=70)])
    assert trained.passes == 1
    assert len(run_directory.read_metrics(tmp_path / "run")) == 1
    assert iwae.load(tmp_path / "run").passes == 1


@pytest.mark.parametrize("reason", ["", "epochs", "minutes"])
def test_reasons_of_the_trainer_are_its_own(reason: str) -> None:
    with pytest.raises(InputError, match="give a text other than epochs and minutes"):
        Stop(reason)


def test_early_stopping_is_patience(tiny: RunConfig) -> None:
    config = override(tiny, epochs=200, learning_rate=0.05)
    with_setting = iwae.train(config, patience=2)
    with_callback = iwae.train(config, callbacks=[EarlyStopping(2)])
    assert with_setting.passes == with_callback.passes < 200


def test_a_callback_has_a_checkpoint_written(tiny: RunConfig, tmp_path: Path) -> None:
    class Saving(Recorded):
        def on_epoch_end(self, event):
            return SAVE if event.state.epoch == 1 else None

    saving = Saving()
    iwae.train(tiny, out=tmp_path / "run", callbacks=[saving])
    assert [event.state.epoch for event in saving.of("checkpoint")] == [1, 3]


def test_an_error_of_a_callback_leaves_the_last_checkpoint(tiny: RunConfig, tmp_path: Path) -> None:
    class Failing(Callback):
        def on_epoch_end(self, event) -> None:
            if event.state.epoch == 2:
                raise LookupError("no such thing")

    out, recorded = tmp_path / "run", Recorded()
    config = override(tiny, checkpoint_every=1)
    with pytest.raises(LookupError, match=r"^no such thing\n") as error:
        iwae.train(config, out=out, callbacks=[recorded, Failing()])
    assert error.value.__notes__ == [
        f"Raised by the callback Failing; the last checkpoint is in {out}."
    ]
    assert recorded.of("end")[0].reason == "failed"
    assert checkpoint.read_header(out / run_directory.CHECKPOINT)["passes"] == 1
    same(iwae.train(out=out, resume=True).model, iwae.train(tiny).model)


def test_an_interrupted_training_ends_for_callbacks(tiny: RunConfig) -> None:
    recorded = Recorded()
    with pytest.raises(Interrupted):
        iwae.train(tiny, callbacks=[Interrupting(70), recorded])
    assert [event.reason for event in recorded.of("end")] == ["interrupted"]


def test_what_is_no_callback_is_refused(tiny: RunConfig) -> None:
    class Answering(Callback):
        def on_step_chunk(self, event):
            return True

    with refused(
        "The callback Answering returned True, but a callback returns None, SAVE or Stop('why'); "
        "return one of these."
    ):
        iwae.train(tiny, callbacks=[Answering()])
    with refused(
        "A int was given among the callbacks, which must be instances of iwae.training.Callback; "
        "derive its class from that."
    ):
        iwae.train(tiny, callbacks=[3])  # type: ignore[list-item]
    alone = Callback()
    assert iwae.train(tiny, epochs=1, callbacks=alone).passes == 1


def test_what_watched_before_still_does(tiny: RunConfig) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.rows: list[Mapping[str, float]] = []

        def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None:
            self.steps.append(step)

        def on_pass(self, row: Mapping[str, float]) -> None:
            self.rows.append(row)

    alone, first, second = Watcher(), Watcher(), Recorded()
    with pytest.warns(DeprecationWarning, match="^watch is deprecated and will be removed"):
        iwae.train(tiny, epochs=1, watch=alone)
    with pytest.warns(DeprecationWarning, match="^watch is deprecated"):
        iwae.train_replicas(tiny, seeds=2, epochs=1, watch=lambda seed: second if seed else first)
    for watcher in (alone, first):
        assert watcher.steps[-1] == 64
        assert [row["pass"] for row in watcher.rows] == [1]
    assert second.names[-1] == "end"


# Bars


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel, and all that it displays."""
    shown: list[str] = []
    keep = lambda bar: shown.append(bar._repr_html_())

    def display(bar, *, display_id: bool):
        keep(bar)
        return SimpleNamespace(update=keep)

    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_a_notebook_shows_a_bar_by_itself(tiny: RunConfig, notebook: list[str]) -> None:
    iwae.train(tiny, epochs=2, progress=False)
    assert notebook == []
    iwae.train(tiny, epochs=2)
    assert "<progress" in notebook[0]
    assert "epoch" in notebook[0]
    assert "loss" in notebook[0]
    assert "2/2 epochs" in notebook[-1]
    assert "validation bound" in notebook[-1]


def test_a_terminal_shows_a_bar_where_it_is_asked_for(tiny, capsys, monkeypatch) -> None:
    iwae.train(tiny, epochs=1)
    assert capsys.readouterr().err == ""
    iwae.train(tiny, epochs=1, progress=True)
    assert "training: epoch 1/1  train bound" in capsys.readouterr().err
    assert not progress.in_notebook()
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(InputError, match="needs rich, which is not installed; pip install rich"):
        iwae.train(tiny, progress=True)


def test_rows_are_those_of_the_metrics_file(tiny_run) -> None:
    """The format of early versions: names, and their order."""
    text = (tiny_run.path / run_directory.METRICS).read_text().splitlines()
    names = ["pass", "step", "seconds", "learning_rate", "train_bound", "valid_bound"]
    assert [list(json.loads(line)) for line in text] == [names] * 3


class Models(Callback):
    """Keeps the model of each validation."""

    def __init__(self) -> None:
        self.found: list[ModelLike] = []

    def on_validation(self, event: Validation) -> None:
        self.found.append(event.model())


def test_a_callback_keeps_the_model_of_a_validation(tiny: RunConfig) -> None:
    """Each is a copy, which later steps leave as it is; the last is the result."""
    models = Models()
    trained = iwae.train(tiny, epochs=2, callbacks=models)
    first, last = (jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in models.found)
    result = jax.tree.leaves(eqx.filter(trained.model, eqx.is_array))
    for a, b in zip(last, result, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(np.asarray(a) != b) for a, b in zip(first, last, strict=True))
