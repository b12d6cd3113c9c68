"""Callbacks that log metrics to TensorBoard, Weights & Biases or MLflow.

Each needs its library, which is imported when the callback is created and comes with an extra of
the package: `pip install 'iwae[tensorboard]'`, `'iwae[wandb]'`, `'iwae[mlflow]'`. All log the same
metrics under the same names, by step; bounds are in nats per example. Of several processes, only
the first logs.
"""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwae._utils.distributed import is_first
from iwae._utils.extras import require
from iwae.config.io import flatten
from iwae.errors import InputError
from iwae.training.callbacks import Callback, End, EpochEnd, Start, StepChunk

Metrics = Mapping[str, float]
"""Values by name."""


class Logger(Callback):
    """A callback that logs metrics by name with a library.

    Logs `batch/bound` and `batch/examples_per_second` after every chunk of steps, and
    `train/bound`, `valid/bound`, `train/learning_rate` and `train/epoch` after every epoch.
    """

    writes = False
    """Whether this process is logging a session."""

    @abc.abstractmethod
    def open(self, event: Start) -> None:
        """Start logging."""

    @abc.abstractmethod
    def log(self, metrics: Metrics, step: int) -> None:
        """Log the metrics of a step."""

    @abc.abstractmethod
    def close(self, event: End) -> None:
        """Flush, and stop logging."""

    def on_start(self, event: Start) -> None:
        if is_first():
            self.open(event)
            self.writes = True

    def on_step_chunk(self, event: StepChunk) -> None:
        if self.writes:
            metrics = {"batch/bound": event.bound, "batch/examples_per_second": event.rate}
            self.log(metrics, event.state.step)

    def on_epoch_end(self, event: EpochEnd) -> None:
        if not self.writes:
            return
        metrics = {
            "train/bound": event.train_bound,
            "train/learning_rate": event.learning_rate,
            "train/epoch": event.state.epoch,
        }
        if event.valid_bound is not None:
            metrics["valid/bound"] = event.valid_bound
        self.log(metrics, event.state.step)

    def on_end(self, event: End) -> None:
        if self.writes:
            self.writes = False
            self.close(event)


class TensorBoard(Logger):
    """Writes event files for TensorBoard, with tensorboardX.

    Args:
        folder: the directory to write to. Default: `tensorboard` in the run directory.

    Raises:
        InputError: if tensorboardX is not installed, or if no folder is given for a run in memory.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder
        self.library = require("tensorboardX", purpose="the callback TensorBoard")
        self.writer: Any = None

    def open(self, event: Start) -> None:
        folder, path = self.folder, event.state.path
        if folder is None and path is not None:
            folder = path / "tensorboard"
        if folder is None:
            raise InputError(
                "TensorBoard() was given for a run in memory, which has no directory to write "
                "to; give TensorBoard(folder), or train with out=…."
            )
        self.writer = self.library.SummaryWriter(str(folder))

    def log(self, metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self, event: End) -> None:
        self.writer.close()


class WeightsAndBiases(Logger):
    """Logs to a new run of Weights & Biases, with the configuration.

    Args:
        project: its project. Default: that of wandb's own settings.
        settings: further arguments of `wandb.init`.

    Raises:
        InputError: if wandb is not installed.
    """

    def __init__(self, project: str | None = None, **settings: object):
        self.project, self.settings = project, settings
        self.library = require("wandb", purpose="the callback WeightsAndBiases")
        self.run: Any = None

    def open(self, event: Start) -> None:
        given = {"project": self.project, "config": _settings(event)} | self.settings
        self.run = self.library.init(**given)

    def log(self, metrics: Metrics, step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self, event: End) -> None:
        self.run.finish(exit_code=int(event.reason == "failed"))


class MLflow(Logger):
    """Logs to the active run of MLflow, which stays open, or else to a new run.

    Args:
        experiment: the experiment of a new run. Default: MLflow's default experiment.
        name: the name of a new run. Default: that of the run directory.

    Raises:
        InputError: if mlflow is not installed.
    """

    def __init__(self, experiment: str | None = None, name: str | None = None):
        self.experiment, self.name = experiment, name
        self.library = require("mlflow", purpose="the callback MLflow")
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

    def log(self, metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self, event: End) -> None:
        if self.own:
            status = {"failed": "FAILED", "interrupted": "KILLED"}.get(event.reason, "FINISHED")
            self.client.set_terminated(self.run, status)


def _settings(event: Start) -> dict[str, object]:
    """The fields of the configuration by name, without those that are None."""
    return {n: v for n, v in flatten(event.config).items() if v is not None}
