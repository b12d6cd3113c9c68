"""The metrics of a run: rows of metrics.jsonl, one for each epoch, and the `History` of a run."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import NotRequired, TypedDict, overload

import numpy as np
from jaxtyping import Float, Int

from iwae.errors import InputError
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError, Unbounded

Row = TypedDict(
    "Row",
    {
        "pass": int,
        "step": int,
        "seconds": float,
        "learning_rate": float,
        "train_bound": Unbounded,
        "valid_bound": NotRequired[Unbounded],
    },
)
"""A line of metrics.jsonl; `pass` is the epoch."""

SHOWN = 10
"""Number of epochs, the last ones, that a notebook shows of a history."""


def parsed_rows(file: Path) -> list[Row]:
    """The rows of a metrics.jsonl; empty if there is no such file.

    A last line cut short by a crash is left out. `InputError` if another line is damaged.
    """
    if not file.exists():
        return []
    lines = persisted.content_of(file).splitlines(keepends=True)
    return [_row(line, file, i) for i, line in enumerate(lines, 1) if line[-1:] == b"\n"]


def _row(line: bytes, file: Path, number: int) -> Row:
    try:
        return persisted.typed(persisted.parsed(line), Row)
    except MistypedError:
        raise InputError(
            f"Line {number} of {file} is damaged; delete that line, or restore the file from a "
            f"copy."
        ) from None


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of an epoch; bounds are in nats per example."""

    epoch: int
    """Counted from 1."""
    step: int
    """Steps so far."""
    seconds: float
    """Training time so far."""
    learning_rate: float
    """The learning rate of the last step."""
    train_bound: float
    """Mean over the epoch's batches."""
    valid_bound: float | None
    """The bound on the validation split; None if the epoch was not validated."""


@dataclass(frozen=True)
class History(Sequence[EpochMetrics]):
    """The metrics of a run, with a row for each epoch and a column for each metric.

    `history[-1].train_bound` is the bound of the last epoch, `history.train_bound` has those of all
    epochs, [n]. `read` returns the rows and is called on first access; `InputError` if their file
    is damaged.
    """

    read: Callable[[], Sequence[Row]] = tuple

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "History":
        """A history of a copy of rows of metrics.jsonl."""
        return cls(partial(tuple, tuple(rows)))

    @cached_property
    def rows(self) -> tuple[EpochMetrics, ...]:
        """The metrics of each epoch."""
        return tuple(
            EpochMetrics(
                epoch=row["pass"],
                step=row["step"],
                seconds=row["seconds"],
                learning_rate=row["learning_rate"],
                train_bound=row["train_bound"],
                valid_bound=row.get("valid_bound"),
            )
            for row in self.read()
        )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> EpochMetrics: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[EpochMetrics, ...]: ...
    def __getitem__(self, index: int | slice) -> EpochMetrics | tuple[EpochMetrics, ...]:
        return self.rows[index]

    def __iter__(self) -> Iterator[EpochMetrics]:
        return iter(self.rows)

    @property
    def epoch(self) -> Int[np.ndarray, " n"]:
        """The numbers of the epochs, from 1."""
        return np.array([row.epoch for row in self], int)

    @property
    def step(self) -> Int[np.ndarray, " n"]:
        """Steps at the end of each epoch."""
        return np.array([row.step for row in self], int)

    @property
    def seconds(self) -> Float[np.ndarray, " n"]:
        """Training time up to the end of each epoch."""
        return np.array([row.seconds for row in self], float)

    @property
    def learning_rate(self) -> Float[np.ndarray, " n"]:
        """The learning rate of the last step of each epoch."""
        return np.array([row.learning_rate for row in self], float)

    @property
    def train_bound(self) -> Float[np.ndarray, " n"]:
        """The mean training bound of each epoch, in nats."""
        return np.array([row.train_bound for row in self], float)

    @property
    def valid_bound(self) -> Float[np.ndarray, " n"]:
        """The validation bound after each epoch, in nats; nan if it was not validated."""
        values = [math.nan if row.valid_bound is None else row.valid_bound for row in self]
        return np.array(values, float)

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no epochs)"
        last = self.rows[-1]
        return f"History({len(self)} epochs, train bound {last.train_bound:.2f} nats)"

    def _repr_html_(self) -> str:
        """The last epochs as a table, for a notebook."""
        names = ("epoch", "step", "seconds", "learning rate", "train bound", "valid bound")
        rows = [
            (r.epoch, r.step, f"{r.seconds:.1f}", f"{r.learning_rate:.3g}", f"{r.train_bound:.2f}",
             "" if r.valid_bound is None else f"{r.valid_bound:.2f}")
            for r in self.rows[-SHOWN:]
        ]  # fmt: skip
        cells = lambda tag, of: "".join(f"<{tag}>{escape(str(v))}</{tag}>" for v in of)
        lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
        return f"<table><tr>{cells('th', names)}</tr>{lines}</table>"
