"""Progress bars for training, in a notebook or in a terminal (with rich)."""

import html
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from iwae.errors import InputError
from iwae.training.callbacks import Callback, End, EpochEnd, StepChunk

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class TerminalBar(Callback):
    """A line of a `rich` bar: epochs, loss, validation bound, examples per second.

    Without a terminal, prints about ten lines a run instead.

    Args:
        description: the text before the bar.
        bar: the bar, which several runs may share.
        alone: whether only this run uses the bar, which is then removed when the run ends.
    """

    def __init__(self, description: str, bar: "Progress", *, alone: bool = False):
        self.description, self.bar, self.alone = description, bar, alone
        self.valid = ""
        self.task: TaskID | None = None

    def on_step_chunk(self, event: StepChunk) -> None:
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task(self.description, figures="")
        state = event.state
        self.bar.update(
            self.task,
            completed=state.position,
            total=state.epochs,
            figures=_figures(event, self.valid),
        )

    def on_epoch_end(self, event: EpochEnd) -> None:
        if event.valid_bound is not None:
            self.valid = f"  validation bound {event.valid_bound:.2f}"
        state = event.state
        if not self.bar.console.is_terminal and _is_milestone(state.epoch, state.epochs):
            self.bar.console.print(
                f"{self.description}: epoch {state.epoch}/{state.epochs}  "
                f"train bound {event.train_bound:.2f}{self.valid}  {state.seconds:.0f} s",
                soft_wrap=True,
            )

    def on_end(self, event: End) -> None:
        if self.alone and self.bar.live.is_started:
            self.bar.stop()


def _figures(event: StepChunk, valid: str) -> str:
    """The progress of a run as text."""
    state = event.state
    loss = f"epoch {state.position:.1f}/{state.epochs}  loss {-event.bound:.2f} nats{valid}"
    return f"{loss}  {event.rate:,.0f} examples/s"


def _is_milestone(number: int, total: int) -> bool:
    """Whether to print a line after this epoch: about ten of `total`."""
    return number == 1 or number == total or number % max(1, total // 10) == 0


@dataclass(frozen=True)
class _Shown:
    """A bar, as HTML for a notebook and as text."""

    text: str
    done: float
    """The fraction that is done, from 0 to 1."""

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        bar = f'<progress value="{self.done:.4f}" max="1" style="width: 16em"></progress>'
        return f"{bar} <code>{html.escape(self.text)}</code>"


class _Handle(Protocol):
    def update(self, shown: _Shown) -> None: ...


class NotebookBar(Callback):
    """A bar under the cell of a notebook, with the same figures as `TerminalBar`.

    Args:
        description: the text before the figures.
        display: stands in for `IPython.display.display`.
    """

    def __init__(self, description: str, display: Callable[..., _Handle] | None = None):
        self.description, self.display = description, display
        self.valid = ""
        self.handle: _Handle | None = None

    def on_step_chunk(self, event: StepChunk) -> None:
        text = f"{self.description}  {_figures(event, self.valid)}"
        self._show(_Shown(text, event.state.position / event.state.epochs))

    def on_epoch_end(self, event: EpochEnd) -> None:
        if event.valid_bound is not None:
            self.valid = f"  validation bound {event.valid_bound:.2f}"

    def on_end(self, event: End) -> None:
        state = event.state
        text = (
            f"{self.description}  {state.epoch}/{state.epochs} epochs in {state.seconds:.0f} s"
            f"{self.valid}  ended by {event.reason}"
        )
        self._show(_Shown(text, state.position / state.epochs))

    def _show(self, shown: _Shown) -> None:
        if self.handle is not None:
            self.handle.update(shown)
            return
        display = self.display or importlib.import_module("IPython.display").display
        self.handle = display(shown, display_id=True)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def bars(progress: bool | None, description: str) -> list[Callback]:
    """The progress bar of a run, as a list; empty if none is shown.

    `progress` None shows one only in a notebook.

    Raises:
        InputError: if `progress` is True, but there is neither a notebook nor rich.
    """
    shown = in_notebook()
    if progress is False or (progress is None and not shown):
        return []
    return [NotebookBar(description) if shown else _terminal_bar(description)]


def _terminal_bar(description: str) -> TerminalBar:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise InputError(
            "progress = True was given, but a bar in a terminal needs rich, which is not "
            "installed; pip install rich, or leave progress out."
        ) from error
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, emoji=False),
        transient=True,
    )
    return TerminalBar(description, bar, alone=True)
