"""Experiments as data: cells, the runs they make, and the tables they end in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from iwae import report, runs
from iwae.config import RunConfig, override, recipe
from iwae.evaluation import mean_and_error
from iwae.folder import CONFIG
from iwae.runs import Watcher
from iwae.trained import Trained


@dataclass(frozen=True)
class Cell:
    """One entry of a table: an objective with K draws."""

    objective: str
    k: int

    @property
    def name(self) -> str:
        return f"{self.objective.upper()}, K = {self.k}" if self.k > 1 else "VAE = IWAE, K = 1"

    @property
    def folder(self) -> str:
        return f"{self.objective}-{self.k}"


DEMO_CELLS = (Cell("vae", 1), Cell("vae", 5), Cell("vae", 50), Cell("iwae", 5), Cell("iwae", 50))
DEMO_K = 1000


@dataclass(frozen=True)
class Result:
    """A cell's evaluation, and its NLL less the first cell's: (mean, standard error), paired."""

    name: str
    evaluation: dict[str, Any]
    difference: tuple[float, float] | None


class Watchers(Protocol):
    """Gives each cell its watcher."""

    def cell(self, name: str, epochs: int) -> Watcher: ...


def demo(out: Path, *, watch: Watchers) -> tuple[list[Result], Path]:
    """Train and evaluate every cell of the demonstration in `out`, and write the report there.

    A finished cell is reused and an interrupted one resumed. Every model sees the same binarised
    test images, so NLLs are compared image by image.
    """
    evaluations = []
    for cell in DEMO_CELLS:
        config = override(recipe("demo"), objective=cell.objective, k=cell.k)
        trained = finished(out / cell.folder, config, watch.cell(cell.name, config.training.epochs))
        evaluations.append(runs.evaluate(trained, k=DEMO_K))
    first = evaluations[0].log_likelihoods
    results = [
        Result(
            cell.name,
            e.to_json(),
            None if e is evaluations[0] else mean_and_error(first - e.log_likelihoods),
        )
        for cell, e in zip(DEMO_CELLS, evaluations, strict=True)
    ]
    page = out / "report.html"
    report.write([out / cell.folder for cell in DEMO_CELLS], page, overwrite=True)
    return results, page


def finished(path: Path, config: RunConfig, watch: Watcher) -> Trained:
    """The run in `path`, trained, resumed or simply loaded as need be."""
    return runs.train(config, out=path, resume=(path / CONFIG).exists(), watch=watch)
