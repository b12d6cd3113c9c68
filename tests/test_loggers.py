"""Callbacks that write to TensorBoard, Weights & Biases and MLflow."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from iwae.config.schema import RunConfig
from iwae.training import End, EpochEnd, Start, StepChunk, TrainerState, loggers
from refusals import refused


def followed(logger: loggers.Logger, *, reason: str = "epochs", path: Path | None = None) -> None:
    """A session of one chunk and two epochs, of which the second is validated."""
    state = lambda epoch: TrainerState(epoch, 2, 10 * epoch, 20, 1.5 * epoch, path=path)
    logger.on_start(Start(state(0), RunConfig()))
    logger.on_step_chunk(StepChunk(state(0), -90.0, 1000.0))
    logger.on_epoch_end(EpochEnd(state(1), 1e-3, -80.0, None))
    logger.on_epoch_end(EpochEnd(state(2), 5e-4, -70.0, -75.0))
    logger.on_end(End(state(2), reason))


BATCH = {"batch/bound": -90.0, "batch/examples_per_second": 1000.0}
FIRST = {"train/bound": -80.0, "train/learning_rate": 1e-3, "train/epoch": 1}
SECOND = {
    "train/bound": -70.0,
    "train/learning_rate": 5e-4,
    "train/epoch": 2,
    "valid/bound": -75.0,
}
LOGGED = [(BATCH, 0), (FIRST, 10), (SECOND, 20)]


def test_weights_and_biases_has_every_figure_and_the_settings(monkeypatch) -> None:
    logged, given, codes = [], {}, []
    run = SimpleNamespace(
        log=lambda figures, step: logged.append((figures, step)),
        finish=lambda exit_code: codes.append(exit_code),
    )
    fake = SimpleNamespace(init=lambda **settings: given.update(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    followed(loggers.WeightsAndBiases("digits", mode="offline"))
    assert logged == LOGGED
    assert (given["project"], given["mode"], given["config"]["k"]) == ("digits", "offline", 50)
    assert "minutes" not in given["config"]
    followed(loggers.WeightsAndBiases(), reason="failed")
    assert codes == [0, 1]


class FakeClient:
    """What of MLflow's client is called."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, str, float, int]] = []
        self.params: dict[str, object] = {}
        self.ended: list[tuple[str, str]] = []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"id of {name}"

    def create_run(self, experiment: str, run_name: str | None) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name} in {experiment}"))

    def log_param(self, run: str, name: str, value: object) -> None:
        self.params[name] = value

    def log_metric(self, run: str, name: str, value: float, *, step: int) -> None:
        self.metrics.append((run, name, value, step))

    def set_terminated(self, run: str, status: str) -> None:
        self.ended.append((run, status))


def test_mlflow_has_every_figure_and_the_settings(monkeypatch, tmp_path: Path) -> None:
    client = FakeClient()
    fake = SimpleNamespace(MlflowClient=lambda: client, active_run=lambda: None)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    followed(loggers.MLflow("digits"), reason="interrupted", path=tmp_path / "mine")
    name = "mine in id of digits"
    expected = [(name, n, v, step) for figures, step in LOGGED for n, v in figures.items()]
    assert client.metrics == expected
    assert client.params["k"] == 50
    assert client.ended == [(name, "KILLED")]
    fake.active_run = lambda: SimpleNamespace(info=SimpleNamespace(run_id="open"))
    followed(loggers.MLflow())
    assert client.metrics[-1][0] == "open"
    assert len(client.ended) == 1, "a run that was active stays open"


def test_tensorboard_has_every_figure(monkeypatch, tmp_path: Path) -> None:
    written: list[object] = []
    folders: list[str] = []
    writer = SimpleNamespace(
        add_scalar=lambda name, value, step: written.append((name, value, step)),
        close=lambda: written.append("closed"),
    )

    def open_writer(folder: str) -> SimpleNamespace:
        folders.append(folder)
        return writer

    fake = SimpleNamespace(SummaryWriter=open_writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    followed(loggers.TensorBoard(), path=tmp_path)
    expected = [(n, v, step) for figures, step in LOGGED for n, v in figures.items()]
    assert written == [*expected, "closed"]
    assert folders == [str(tmp_path / "tensorboard")]
    with refused(
        "TensorBoard() was given for a run in memory, which has no directory to write to; give "
        "TensorBoard(folder), or train with out=…."
    ):
        followed(loggers.TensorBoard())


def _records(file: Path) -> Iterator[bytes]:
    """The records of an event file, each between its length and checksums."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack("<Q", content[at : at + 8])
        yield content[at + 12 : at + 12 + size]
        at += 16 + size


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_writes_files_that_it_reads(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    followed(loggers.TensorBoard(tmp_path))
    (file,) = tmp_path.iterdir()
    events = [event_pb2.Event.FromString(record) for record in _records(file)]
    read = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }
    expected = {(n, step): v for figures, step in LOGGED for n, v in figures.items()}
    assert read == pytest.approx(expected)


@pytest.mark.parametrize(
    ("callback", "module", "extra"),
    [
        ("TensorBoard", "tensorboardX", "tensorboard"),
        ("WeightsAndBiases", "wandb", "wandb"),
        ("MLflow", "mlflow", "mlflow"),
    ],
)
def test_a_library_that_is_missing_is_named(callback, module, extra, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with refused(
        f"The callback {callback} needs {module}, which is not installed; pip install "
        f"'iwae[{extra}]'."
    ):
        getattr(loggers, callback)()


def test_other_processes_than_the_first_write_nothing(monkeypatch) -> None:
    monkeypatch.setattr(loggers, "is_first", lambda: False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    followed(loggers.WeightsAndBiases())


def test_loggers_are_callbacks_that_can_be_given(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    assert isinstance(loggers.WeightsAndBiases(), loggers.Callback)
