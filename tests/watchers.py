"""Watchers of training that tests use."""

import signal

from iwae.experiments.comparisons import Watchers
from iwae.training.trainer import Silent


class Interrupting(Silent):
    """Presses Ctrl-C once the run is past a step."""

    def __init__(self, step: int):
        self.step = step

    def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None:
        if step > self.step:
            signal.raise_signal(signal.SIGINT)


class Quiet(Watchers):
    """Hears of no cell."""

    def cell(self, name: str, epochs: int) -> Silent:
        return Silent()
