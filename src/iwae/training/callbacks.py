"""Callbacks: what watches a training, and may end it or have it saved.

A callback is a class with some of the methods of `Callback`. Each is called with one frozen
dataclass of facts, after a chunk of compiled steps and never after every step, so that watching
costs nothing. A method that returns `Stop("why")` ends the training, as a budget in minutes does:
the model is saved, and can be evaluated. One that returns `SAVE` has a checkpoint written.

    class Printed(Callback):
        def on_epoch_end(self, event):
            print(event.state.epoch, event.train_bound)

An exception ends the training and is raised as it is; the last checkpoint stands, from which
`resume=True` goes on. In a program of several processes every process calls its own callbacks, so
those that write are for the first alone; a stop that one of them asks for holds for all.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from iwae.config.schema import RunConfig
from iwae.errors import InputError

PATIENCE = "patience"
"""Why a training ended whose validation bound has not risen for long enough."""

Row = Mapping[str, int | float]
"""A line of metrics.jsonl."""

RESERVED = ("epochs", "minutes")
"""Reasons that are the trainer's own: a run that ended by one goes on when its budget grows."""


@dataclass(frozen=True)
class TrainerState:
    """Where a training stands."""

    epoch: int
    """Completed epochs."""
    epochs: int
    """Epochs that were asked for."""
    step: int
    """Completed steps, over all epochs."""
    steps: int
    """Steps of all epochs together."""
    seconds: float
    """Training time, over all sessions of the run."""
    best: float | None = None
    """The best validation bound so far, in nats."""
    stale: int = 0
    """Validations since the best."""
    path: Path | None = None
    """The run directory; None where the run is in memory alone, and on other processes than the
    first."""


@dataclass(frozen=True)
class Start:
    """The training begins, or goes on where the last checkpoint stood."""

    state: TrainerState
    config: RunConfig


@dataclass(frozen=True)
class StepChunk:
    """Some steps were made, about half a second of them, and never of two epochs."""

    state: TrainerState
    bound: float
    """The bound on the last batch, in nats per example."""
    rate: float
    """Examples per second."""


@dataclass(frozen=True)
class Validation:
    """The training bound was evaluated on the validation split."""

    state: TrainerState
    bound: float
    """In nats per example, with the same draws each time."""
    improved: bool
    """Whether it is the best so far."""


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is complete."""

    state: TrainerState
    learning_rate: float
    """Of the last step."""
    train_bound: float
    """Mean over the batches of the epoch, in nats per example."""
    valid_bound: float | None
    """The bound on the validation split; None if this epoch was not validated."""

    @property
    def row(self) -> Row:
        """The facts as they stand in a line of metrics.jsonl."""
        row: dict[str, int | float] = {
            "pass": self.state.epoch,
            "step": self.state.step,
            "seconds": round(self.state.seconds, 3),
            "learning_rate": self.learning_rate,
            "train_bound": self.train_bound,
        }
        if self.valid_bound is not None:
            row["valid_bound"] = self.valid_bound
        return row


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint was written, into `state.path`."""

    state: TrainerState


@dataclass(frozen=True)
class End:
    """The training has ended."""

    state: TrainerState
    reason: str
    """epochs, minutes or patience; the reason that a callback gave to `Stop`; interrupted, after
    Ctrl-C, with the run saved; or failed, by an exception that is raised next."""


@dataclass(frozen=True)
class Stop:
    """Returned by a callback: end the training here. A run that ended so is finished, and is not
    trained on when it is resumed.

    Raises:
        InputError: if the reason is empty, or one that the trainer gives itself.
    """

    reason: str

    def __post_init__(self) -> None:
        if not self.reason or self.reason in RESERVED:
            raise InputError(
                f"Stop({self.reason!r}) was returned by a callback, but the reason is kept with "
                f"the run and tells how it ended; give one other than {' and '.join(RESERVED)}."
            )


class Save(Enum):
    """Returned by a callback, as `SAVE`: write a checkpoint after this chunk of steps."""

    SAVE = "save"


SAVE = Save.SAVE

Request = Stop | Save | None
"""What a callback may return."""


class Callback:
    """Watches a training. Every method does nothing until a subclass says what."""

    def on_start(self, event: Start) -> None:
        """Before the first step of a session."""

    def on_step_chunk(self, event: StepChunk) -> Request:
        """After a chunk of steps."""
        return None

    def on_validation(self, event: Validation) -> Request:
        """After a validation, and before the end of the epoch that it belongs to."""
        return None

    def on_epoch_end(self, event: EpochEnd) -> Request:
        """After an epoch."""
        return None

    def on_checkpoint(self, event: Checkpoint) -> Request:
        """After a checkpoint was written; what is asked for is done after the next chunk."""
        return None

    def on_end(self, event: End) -> None:
        """Once a session, however it ends."""


class MetricsFile(Callback):
    """Appends a row to the metrics of a run after every epoch."""

    def __init__(self, append: Callable[[Row], None]):
        self.append = append

    def on_epoch_end(self, event: EpochEnd) -> None:
        self.append(event.row)


class EarlyStopping(Callback):
    """Stops when the validation bound has not risen for `patience` validations.

    The setting `patience` of a run also keeps the parameters of the best validation.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_validation(self, event: Validation) -> Stop | None:
        return Stop(PATIENCE) if event.state.stale >= self.patience else None


class Checkpointing(Callback):
    """Has a checkpoint written after every `epochs` epochs, and when `minutes` have gone by since
    the last."""

    def __init__(self, minutes: float, epochs: int | None = None):
        self.minutes, self.epochs = minutes, epochs
        self.last = time.monotonic()

    def _is_due(self) -> bool:
        return time.monotonic() - self.last >= 60 * self.minutes

    def on_step_chunk(self, event: StepChunk) -> Save | None:
        return SAVE if self._is_due() else None

    def on_epoch_end(self, event: EpochEnd) -> Save | None:
        counted = self.epochs is not None and event.state.epoch % self.epochs == 0
        return SAVE if counted or self._is_due() else None

    def on_checkpoint(self, event: Checkpoint) -> None:
        self.last = time.monotonic()


class Watcher(Protocol):
    """What training reported to before there were callbacks."""

    def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None:
        """After some steps: bound on the last batch in nats, examples per second."""

    def on_pass(self, row: Row) -> None:
        """After an epoch: the row that goes to metrics.jsonl."""


class FromWatcher(Callback):
    """Tells a `Watcher` what it understands."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher

    def on_step_chunk(self, event: StepChunk) -> None:
        self.watcher.on_chunk(event.state.step, event.state.steps, event.bound, event.rate)

    def on_epoch_end(self, event: EpochEnd) -> None:
        self.watcher.on_pass(event.row)


def checked(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """The callbacks; `InputError` if one is none."""
    given = (callbacks,) if isinstance(callbacks, Callback) else tuple(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            raise InputError(
                f"A {type(callback).__name__} was given among the callbacks, which are of classes "
                f"derived from iwae.training.Callback; derive its class from that."
            )
    return given
