"""Callbacks: objects that the trainer calls, and that may stop it or ask for a checkpoint.

A callback is a subclass of `Callback` that overrides some of its methods. Each method is called
with a frozen dataclass, the event, after a chunk of compiled steps rather than after every step, so
that callbacks cost next to nothing. A method that returns `Stop("why")` ends the training, as a
budget in minutes does: the model is saved, and can be evaluated. One that returns `SAVE` requests a
checkpoint.

    class Printed(Callback):
        def on_epoch_end(self, event):
            print(event.state.epoch, event.train_bound)

An exception ends the training and propagates unchanged; `resume=True` continues from the last
checkpoint. With several processes, each calls its own callbacks, so one that writes files should do
so in the first process only; a stop that any of them requests stops all.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from iwae.config.schema import RunConfig
from iwae.errors import InputError

if TYPE_CHECKING:
    from iwae.models.base import Model

PATIENCE = "patience"
"""The reason of a run stopped early, because its validation bound no longer rose."""

Row = Mapping[str, int | float]
"""A line of metrics.jsonl."""

RESERVED = ("epochs", "minutes", "interrupted", "failed")
"""Reasons reserved for the trainer: a run that ended by one continues if its budget grows."""


@dataclass(frozen=True)
class TrainerState:
    """The progress of a training run."""

    epoch: int
    """Completed epochs."""
    epochs: int
    """Epochs to train for."""
    step: int
    """Completed steps, over all epochs."""
    steps: int
    """Steps to train for, over all epochs."""
    seconds: float
    """Training time, over all sessions of the run."""
    best: float | None = None
    """The best validation bound so far, in nats."""
    stale: int = 0
    """Validations since the best."""
    path: Path | None = None
    """The run directory; None for a run in memory, and in all processes but the first."""
    position: float = 0.0
    """Completed epochs, with the fraction of the present one."""


@dataclass(frozen=True)
class Start:
    """The training starts, or continues from the last checkpoint."""

    state: TrainerState
    config: RunConfig


@dataclass(frozen=True)
class StepChunk:
    """A chunk of steps, about half a second long and within one epoch, was made."""

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
    """In nats per example, with the same random numbers each time."""
    improved: bool
    """Whether it is the best so far."""
    model: Callable[[], "Model"] = field(repr=False, compare=False)
    """Copies the model that was validated, which the next step would overwrite."""


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is complete."""

    state: TrainerState
    learning_rate: float
    """The learning rate of the last step."""
    train_bound: float
    """Mean over the batches of the epoch, in nats per example."""
    valid_bound: float | None
    """The bound on the validation split; None if this epoch was not validated."""

    @property
    def row(self) -> Row:
        """The event as a line of metrics.jsonl."""
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
    """A checkpoint was written to `state.path`."""

    state: TrainerState


@dataclass(frozen=True)
class End:
    """The training has ended."""

    state: TrainerState
    reason: str
    """"epochs", "minutes" or "patience"; the reason given to `Stop` by a callback; "interrupted",
    after Ctrl-C, with the run saved; or "failed", by an exception that is then raised."""


@dataclass(frozen=True)
class Stop:
    """Returned by a callback to end the training now.

    The run is then finished: resuming it does not train it further.

    Raises:
        InputError: if the reason is empty or reserved for the trainer.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason or self.reason in RESERVED:
            raise InputError(
                f"Stop({self.reason!r}) was given, but the reason is stored with the run and says "
                f"why it ended; give a text other than {' and '.join(RESERVED)}."
            )


class Save(Enum):
    """Returned by a callback, as `SAVE`, to write a checkpoint after this chunk of steps."""

    SAVE = "save"


SAVE = Save.SAVE

Request = Stop | Save | None
"""The return value of a callback's method."""


class Callback:
    """Base class of callbacks. Its methods do nothing; override those that you need."""

    def on_start(self, event: Start) -> None:
        """Called before the first step of a session."""

    def on_step_chunk(self, event: StepChunk) -> Request:
        """Called after a chunk of steps."""
        return None

    def on_validation(self, event: Validation) -> Request:
        """Called after a validation, before `on_epoch_end` of the same epoch."""
        return None

    def on_epoch_end(self, event: EpochEnd) -> Request:
        """Called after an epoch."""
        return None

    def on_checkpoint(self, event: Checkpoint) -> Request:
        """Called after a checkpoint was written; a request takes effect after the next chunk."""
        return None

    def on_end(self, event: End) -> None:
        """Called once per session, however it ends."""


class MetricsFile(Callback):
    """Appends a row to the metrics of a run after every epoch."""

    def __init__(self, append: Callable[[Row], None]):
        self.append = append

    def on_epoch_end(self, event: EpochEnd) -> None:
        self.append(event.row)


class EarlyStopping(Callback):
    """Stops when the validation bound has not risen for `patience` validations.

    Use the setting `patience` of a run to also keep the parameters of the best validation.
    """

    def __init__(self, patience: int):
        if patience < 1:
            raise InputError(
                f"patience = {patience} was given, but at least 1 validation is needed to stop; "
                f"give 1 or more."
            )
        self.patience = patience

    def on_validation(self, event: Validation) -> Stop | None:
        return Stop(PATIENCE) if event.state.stale >= self.patience else None


class Checkpointing(Callback):
    """Requests a checkpoint every `epochs` epochs, and `minutes` minutes after the last one."""

    def __init__(self, minutes: float, epochs: int | None = None):
        self.minutes, self.epochs = minutes, epochs
        self.last = time.monotonic()

    def _is_due(self) -> bool:
        return time.monotonic() - self.last >= 60 * self.minutes

    def on_step_chunk(self, event: StepChunk) -> Save | None:
        return SAVE if self._is_due() else None

    def on_epoch_end(self, event: EpochEnd) -> Save | None:
        scheduled = self.epochs is not None and event.state.epoch % self.epochs == 0
        return SAVE if scheduled or self._is_due() else None

    def on_checkpoint(self, event: Checkpoint) -> None:
        self.last = time.monotonic()


class Watcher(Protocol):
    """The deprecated interface of callbacks."""

    def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None:
        """Called after some steps: bound on the last batch in nats, examples per second."""

    def on_pass(self, row: Row) -> None:
        """Called after an epoch with its row of metrics.jsonl."""


class FromWatcher(Callback):
    """Adapts a deprecated `Watcher` to a `Callback`."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher

    def on_step_chunk(self, event: StepChunk) -> None:
        self.watcher.on_chunk(event.state.step, event.state.steps, event.bound, event.rate)

    def on_epoch_end(self, event: EpochEnd) -> None:
        self.watcher.on_pass(event.row)


def checked(callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    """The callbacks as a tuple; `InputError` if one is not a `Callback`."""
    if not isinstance(callbacks, Callback | Iterable):
        raise InputError(
            f"callbacks = {callbacks!r} was given, but it must be a list of instances of "
            f"iwae.training.Callback; give [] for none."
        )
    given = (callbacks,) if isinstance(callbacks, Callback) else tuple(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            raise InputError(
                f"A {type(callback).__name__} was given among the callbacks, which must be "
                f"instances of iwae.training.Callback; derive its class from that."
            )
    return given
