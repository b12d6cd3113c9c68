"""What a published table is: figures, cells, experiments."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iwae._utils.formatting import Figure


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
    """What else is measured, by names of `iwae.evaluation.metrics.MEASURES`."""
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
