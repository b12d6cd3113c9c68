"""Callbacks of training that tests use."""

import signal

from iwae.experiments.comparisons import CellCallbacks
from iwae.training.callbacks import Callback, StepChunk


class Interrupting(Callback):
    """Presses Ctrl-C once the run is past a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_chunk(self, event: StepChunk) -> None:
        if event.state.step > self.step:
            signal.raise_signal(signal.SIGINT)


class Quiet(CellCallbacks):
    """Hears of no cell."""

    def cell(self, name: str, epochs: int) -> Callback:
        return Callback()
