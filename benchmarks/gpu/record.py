"""What was measured on a GPU, and what is left to measure: typed, with one reader and one writer.

The record is written anew after every figure, so that it holds all that was measured, however the
program ends.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from iwae._utils.files import write_atomic
from iwae.errors import InputError

State = Literal["done", "failed", "cut short", "not begun"]


@dataclass(frozen=True)
class Figure:
    """What one measurement gave."""

    item: str
    """The item of the work list that it belongs to."""
    name: str
    device: str
    """The card that it was measured on."""
    values: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """How far an item of the work list is."""

    item: str
    state: State = "not begun"
    seconds: float = 0.0
    """Over all calls."""
    why: str = ""
    """What ended it, if it is not done."""


@dataclass(frozen=True)
class Record:
    """The work list and every figure."""

    rehearsal: bool
    """Whether sizes were tiny, so that the figures mean nothing."""
    work: tuple[Work, ...] = ()
    figures: tuple[Figure, ...] = field(default=(), repr=False)

    def state(self, item: str) -> Work:
        """How far an item is; of one that is not in the list, that it is not begun."""
        return next((w for w in self.work if w.item == item), Work(item))

    def of(self, item: str) -> dict[str, dict[str, Any]]:
        """The figures of an item by name."""
        return {f.name: f.values for f in self.figures if f.item == item}

    def with_work(self, work: Work) -> "Record":
        """The record with an item's state replaced, or added."""
        names = [w.item for w in self.work]
        if work.item not in names:
            return replace(self, work=(*self.work, work))
        return replace(self, work=tuple(work if w.item == work.item else w for w in self.work))

    def with_figure(self, figure: Figure) -> "Record":
        """The record with a figure replaced, or added."""
        same = lambda f: (f.item, f.name) == (figure.item, figure.name)
        return replace(self, figures=(*(f for f in self.figures if not same(f)), figure))


def write(path: Path, record: Record) -> None:
    """Write the record as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(record), indent=1) + "\n")


def read(path: Path) -> Record:
    """The record that `write` wrote; `InputError` if the file is another, or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
        work = tuple(Work(**entry) for entry in content["work"])
        figures = tuple(Figure(**entry) for entry in content["figures"])
        if not all(w.state in get_args(State) for w in work):
            raise ValueError("an unknown state")
        return Record(bool(content["rehearsal"]), work, figures)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a record of `python -m benchmarks.gpu`, or is damaged ({error}); "
            f"give another --out, or delete it to measure everything again."
        ) from error
