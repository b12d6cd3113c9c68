"""A part of the work as its process sees it: `python -m benchmarks.gpu.task ITEM …`.

What it measures goes to its standard output, a line for each figure, and is in the record before
the next measurement begins. It ends when its parent does.
"""

import argparse
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu.items import FULL, ITEMS, REHEARSAL, Sizes
from benchmarks.timing import Effort
from iwae.errors import Interrupted


@dataclass
class Task:
    """What an item is given, and what it tells."""

    sizes: Sizes
    work: Path
    """A folder for the runs of this item."""
    data_dir: Path | None
    known: dict[str, dict[str, Any]]
    """By name, what was measured of this item before."""
    before: dict[str, dict[str, dict[str, Any]]]
    """By item and name, what was measured of others."""
    stream: TextIO = field(default=sys.stdout)

    @property
    def effort(self) -> Effort:
        return Effort(self.sizes.turns, self.sizes.seconds, self.sizes.evaluated)

    def missing(self, name: str) -> bool:
        """Whether a figure is not there yet."""
        return name not in self.known

    def tell(self, name: str, **values: Any) -> None:
        """A figure."""
        self.known[name] = values
        self.stream.write(json.dumps({"name": name, "device": _device(), "values": values}) + "\n")
        self.stream.flush()


def _device() -> str:
    """The card; the processor where there is none."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    import jax

    return str(jax.devices()[0].device_kind)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("item")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    figures = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no figure
    item = next(i for i in ITEMS if i.name == given.item)
    module, function = item.function.split(":")
    task = Task(
        sizes=REHEARSAL if given.rehearse else FULL,
        work=given.work,
        data_dir=given.data_dir,
        known=figures.pop(item.name, {}),
        before=figures,
        stream=stream,
    )
    try:
        getattr(import_module(f"benchmarks.gpu.{module}"), function)(task)
    except Interrupted as error:
        sys.exit(f"{error}")


def _end_with_parent() -> None:
    """The parent holds the other end of the standard input, and never writes again."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
