"""What a published table is: figures, cells, experiments, and how far ours are from them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = tuple[float, float]
"""A value with its standard error; nan where none is known."""

UNKNOWN = float("nan")


def units_in_words(counts: Sequence[float] | None, plus: str = " + ") -> str:
    """Units, layer by layer, or a dash where they are unknown."""
    return "—" if counts is None else plus.join(f"{round(n, 1):g}" for n in counts)


def mean_units(evaluations: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Mean active units of each layer, unknown where they are of any evaluation."""
    counts = [e["active_units"] for e in evaluations]
    return (
        None if None in counts else [statistics.mean(layer) for layer in zip(*counts, strict=True)]
    )


def excess(runs: Sequence[Mapping[str, Any]], published: Figure) -> Figure:
    """How much more the mean NLL of our runs is than the published one, and its standard error.

    Runs have `nll` and, over test images, `nll_se`. The error is of both figures, of ours over
    seeds, where there are several, and over images; nan where none is known.
    """
    values = [run["nll"] for run in runs]
    over_images = [run["nll_se"] for run in runs if run["nll_se"] is not None]
    errors = [] if math.isnan(published[1]) else [published[1]]
    errors += [statistics.mean(over_images)] if over_images else []
    errors += [statistics.stdev(values) / math.sqrt(len(values))] if len(values) > 1 else []
    return statistics.mean(values) - published[0], math.hypot(*errors) if errors else UNKNOWN


def excess_in_words(runs: Sequence[Mapping[str, Any]], published: Figure) -> str:
    """As +0.46 (+2.0 s.e.)."""
    apart, error = excess(runs, published)
    return f"{apart:+.2f}" + (f" ({apart / error:+.1f} s.e.)" if error > 0 else "")


@dataclass(frozen=True)
class Cell:
    """One entry of a table: the settings that are its own, and what was published of it."""

    name: str
    """Parts from the coarsest to the finest, e.g. mnist/1/iwae-50."""
    settings: Mapping[str, Any]
    """Fields of the configuration by name."""
    published: Figure | None = None
    """NLL in nats."""
    units: str = ""
    """Active units that were published, layer by layer."""
    against: str | None = None
    """The cell that the table holds it against."""
    after: str | None = None
    """The cell whose model is trained on (`continued`)."""
    measures: tuple[str, ...] = ()
    """What else is measured, by names of `iwae.measures.MEASURES`."""
    further: Mapping[str, float | str] = field(default_factory=dict)
    """Published figures of these measures, in nats, or what was said of them."""

    def theirs(self, what: str) -> str:
        """What was published of a measured figure, in words; empty where nothing was."""
        figure = self.further.get(what, "")
        return figure if isinstance(figure, str) else f"{figure:.2f}"


@dataclass(frozen=True)
class Experiment:
    """A table of a paper."""

    about: str
    source: str
    recipe: str
    """What all cells start from, unless another is given."""
    cells: tuple[Cell, ...] = field(repr=False)
    seeds: tuple[int, ...] = (0,)
    """Unless they are given."""
    pictured: bool = False
    """Whether training curves and reconstructions are drawn as well."""
