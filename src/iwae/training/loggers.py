"""Callbacks that write a training's figures to TensorBoard, Weights & Biases or MLflow.

Each needs its library, which is imported when the callback is made and comes with an extra of the
package: `pip install 'iwae[tensorboard]'`, `'iwae[wandb]'`, `'iwae[mlflow]'`. All log the same
figures under the same names, by the step they belong to; bounds are in nats per example. Of several
processes the first alone writes.
"""

import abc
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwae._utils.distributed import is_first
from iwae.config.io import flatten
from iwae.errors import InputError
from iwae.training.callbacks import Callback, End, EpochEnd, Start, StepChunk

Figures = Mapping[str, float]


class Logger(Callback):
    """A callback that hands figures by name to a library.

    `batch/bound` and `batch/examples_per_second` of every chunk of steps; `train/bound`,
    `valid/bound`, `train/learning_rate` and `train/epoch` of every epoch.
    """

    writes = False
    """Whether a session is under way that this process writes of."""

    @abc.abstractmethod
    def open(self, event: Start) -> None:
        """Begin to write."""

    @abc.abstractmethod
    def log(self, figures: Figures, step: int) -> None:
        """Write figures that belong to a step."""

    @abc.abstractmethod
    def close(self, event: End) -> None:
        """Write what is left."""

    def on_start(self, event: Start) -> None:
        if is_first():
            self.open(event)
            self.writes = True

    def on_step_chunk(self, event: StepChunk) -> None:
        if self.writes:
            figures = {"batch/bound": event.bound, "batch/examples_per_second": event.rate}
            self.log(figures, event.state.step)

    def on_epoch_end(self, event: EpochEnd) -> None:
        if not self.writes:
            return
        figures = {
            "train/bound": event.train_bound,
            "train/learning_rate": event.learning_rate,
            "train/epoch": event.state.epoch,
        }
        if event.valid_bound is not None:
            figures["valid/bound"] = event.valid_bound
        self.log(figures, event.state.step)

    def on_end(self, event: End) -> None:
        if self.writes:
            self.writes = False
            self.close(event)


class TensorBoard(Logger):
    """Writes event files for TensorBoard, with tensorboardX.

    Args:
        folder: where to write; left out, `tensorboard` in the run directory.

    Raises:
        InputError: without tensorboardX, or for a run in memory and no folder.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder
        self.library = _library("tensorboardX", "TensorBoard", "tensorboard")
        self.writer: Any = None

    def open(self, event: Start) -> None:
        folder, path = self.folder, event.state.path
        if folder is None and path is not None:
            folder = path / "tensorboard"
        if folder is None:
            raise InputError(
                "TensorBoard() was given for a run in memory, which has no directory to write "
                "into; give TensorBoard(folder), or train with out=…."
            )
        self.writer = self.library.SummaryWriter(str(folder))

    def log(self, figures: Figures, step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self, event: End) -> None:
        self.writer.close()


class WeightsAndBiases(Logger):
    """Logs a run of Weights & Biases, with the configuration of the training.

    Args:
        project: the project there; left out, that of the library's own settings.
        settings: further arguments of `wandb.init`.

    Raises:
        InputError: without wandb.
    """

    def __init__(self, project: str | None = None, **settings: object):
        self.project, self.settings = project, settings
        self.library = _library("wandb", "WeightsAndBiases", "wandb")
        self.run: Any = None

    def open(self, event: Start) -> None:
        given = {"project": self.project, "config": _settings(event)} | self.settings
        self.run = self.library.init(**given)

    def log(self, figures: Figures, step: int) -> None:
        self.run.log(dict(figures), step=step)

    def close(self, event: End) -> None:
        self.run.finish(exit_code=int(event.reason == "failed"))


class MLflow(Logger):
    """Logs a run of MLflow: the active one, which stays open, or a new one.

    Args:
        experiment: the experiment of a new run; left out, the default one.
        name: the name of a new run; left out, that of the run directory.

    Raises:
        InputError: without mlflow.
    """

    def __init__(self, experiment: str | None = None, name: str | None = None):
        self.experiment, self.name = experiment, name
        self.library = _library("mlflow", "MLflow", "mlflow")
        self.client: Any = None
        self.run, self.own = "", False

    def open(self, event: Start) -> None:
        self.client = self.library.MlflowClient()
        active = self.library.active_run()
        self.own = active is None
        self.run = (self._new(event) if active is None else active).info.run_id
        for name, value in _settings(event).items():
            self.client.log_param(self.run, name, value)

    def _new(self, event: Start) -> Any:
        name, path = self.name, event.state.path
        if name is None and path is not None:
            name = path.name
        experiment = "0"
        if self.experiment is not None:
            found = self.client.get_experiment_by_name(self.experiment)
            experiment = (
                self.client.create_experiment(self.experiment)
                if found is None
                else found.experiment_id
            )
        return self.client.create_run(experiment, run_name=name)

    def log(self, figures: Figures, step: int) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self, event: End) -> None:
        if self.own:
            status = {"failed": "FAILED", "interrupted": "KILLED"}.get(event.reason, "FINISHED")
            self.client.set_terminated(self.run, status)


def _settings(event: Start) -> dict[str, object]:
    """The configuration by the names of its fields, without those that say nothing."""
    return {n: v for n, v in flatten(event.config).items() if v is not None}


def _library(module: str, callback: str, extra: str) -> Any:
    """The library of a callback; `InputError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    raise InputError(
        f"The callback {callback} needs {module}, which is not installed; pip install "
        f"'iwae[{extra}]'."
    )
