"""Published tables: the settings and published figures of each cell, and the TOML files of tables.

A table is a TOML file with these entries:

- `about`, `source`: one line each; `recipe`: settings that all cells start from (default paper);
  `seeds`: default seeds ([0]); `pictured`: whether to draw curves and reconstructions as well.
- `[nll]`: rows of published figures in nats, under the names in `columns`: "84.78",
  "84.78 ± 0.02", or with active units "84.78 (25)", by layer "82.90 (26+7)". An empty entry is no
  cell. Without `[nll]` every row has every column, and no NLL was published.
- `[settings]`: fields of the configuration for all cells; `[rows]` and `[columns]`: those of each
  row and column, which override them. `unset` lists fields to set to None. `against` names the
  column to compare with, and `after` the column whose model is trained further.
- `measures`: further metrics, by names of `iwae.evaluation.metrics.MEASURES`; `[further]`: their
  published values, in nats or in words, by patterns of cell names.
- `like`: another table whose cells are used; `only`: patterns of their names.
- `order`: numeric settings by which cells are sorted; by default they are listed row by row.

A cell is named ROW/COLUMN, and a row DATASET or DATASET/….
"""

import fnmatch
import graphlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from iwae._utils.formatting import UNKNOWN, Figure
from iwae.config.io import override, read_text, recipe
from iwae.errors import InputError, nearest
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError

PUBLISHED = Path(__file__).parent / "published"
"""The tables of this package."""

Widths = tuple[int, ...] | tuple[tuple[int, ...], ...]

Setting = int | float | str | Widths | None
"""A field of the configuration."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table: its own settings and its published figures."""

    name: str
    """Parts from the coarsest to the finest, e.g. mnist/1/iwae-50."""
    settings: Mapping[str, Setting]
    """Fields of the configuration by name."""
    published: Figure | None = None
    """NLL in nats."""
    units: str = ""
    """Published active units, layer by layer."""
    against: str | None = None
    """The cell that it is compared with."""
    after: str | None = None
    """The cell whose model is trained further (`continued`)."""
    measures: tuple[str, ...] = ()
    """Further metrics, by names of `iwae.evaluation.metrics.MEASURES`."""
    further: Mapping[str, float | str] = field(default_factory=dict)
    """Published values of these metrics, in nats or in words."""

    @property
    def dataset(self) -> str:
        """The data set or file in its settings."""
        return str(self.settings["dataset"])

    @property
    def is_published(self) -> bool:
        """Whether there is a published figure of it."""
        return self.published is not None or bool(self.further)

    def theirs(self, what: str) -> str:
        """The published value of a metric, in words; empty if there is none."""
        figure = self.further.get(what, "")
        return figure if isinstance(figure, str) else f"{figure:.2f}"


@dataclass(frozen=True)
class Experiment:
    """A table of a paper."""

    name: str
    about: str
    source: str
    recipe: str
    """Settings that all cells start from, unless another recipe is given."""
    cells: tuple[Cell, ...] = field(repr=False)
    seeds: tuple[int, ...] = (0,)
    """Default seeds."""
    pictured: bool = False
    """Whether to draw training curves and reconstructions as well."""


Entry = dict[str, int | float | str | list[int] | list[list[int]] | list[str]]
"""Settings of a row or column, and entries in `_RESERVED`."""

_RESERVED = ("unset", "against", "after")
"""Entries of a row or column that are not settings."""


@dataclass(frozen=True)
class _File:
    """The content of a table's file."""

    about: str
    source: str
    recipe: str = "paper"
    seeds: list[int] = field(default_factory=lambda: [0])
    pictured: bool = False
    nll: dict[str, list[str | float]] = field(default_factory=dict)
    settings: Entry = field(default_factory=dict)
    rows: dict[str, Entry] = field(default_factory=dict)
    columns: dict[str, Entry] = field(default_factory=dict)
    measures: list[str] = field(default_factory=list)
    further: dict[str, dict[str, float | str]] = field(default_factory=dict)
    like: str | None = None
    only: list[str] = field(default_factory=lambda: ["*"])
    order: list[str] = field(default_factory=list)


def read(path: Path) -> Experiment:
    """Read the table in a file, which is named like the file.

    `InputError` names an invalid entry, or a cell with invalid settings.
    """
    from iwae.evaluation.metrics import MEASURES

    experiment = _read(path)
    start = recipe(experiment.recipe)
    for measure in {measure for cell in experiment.cells for measure in cell.measures} - {
        *MEASURES
    }:
        raise InputError(
            f"{path} asks for the measure {measure!r}, which does not exist; "
            f"{nearest(measure, list(MEASURES))}."
        )
    for cell in experiment.cells:
        try:
            override(start, **cell.settings)
        except InputError as error:
            raise InputError(
                f"{path} has a cell {cell.name} with invalid settings: {error}"
            ) from error
    return experiment


def published(name: str) -> Experiment:
    """The table of this package with this name."""
    return _read(PUBLISHED / f"{name}.toml")


def _read(path: Path, within: tuple[Path, ...] = ()) -> Experiment:
    """`read` without validating the settings of cells; `within` are the tables that are like it."""
    try:
        file = persisted.typed(tomllib.loads(read_text(path)), _File)
        cells = _cells(file) if file.like is None else _like(file, path, within)
        if file.like is None and file.only != ["*"]:
            raise MistypedError("only chooses among the cells of like, which it lacks")
        if not cells:
            raise MistypedError("it has no cells")
        _check_names(cells)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error
    except MistypedError as error:
        raise InputError(
            f"{path} is not a published table, since {error}; write it like those in "
            f"iwae/experiments/published."
        ) from error
    measures = tuple(file.measures)
    for pattern in file.further:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            raise InputError(f"further of {path} has {pattern!r}, which matches none of its cells.")
    cells = [replace(c, measures=measures, further=_further(c.name, file)) for c in cells]
    return Experiment(
        name=path.stem,
        about=file.about,
        source=file.source,
        recipe=file.recipe,
        cells=tuple(cells),
        seeds=tuple(file.seeds),
        pictured=file.pictured,
    )


def _further(name: str, file: _File) -> dict[str, float | str]:
    """Published metrics of a cell, from every pattern that matches its name."""
    fitting = [of for pattern, of in file.further.items() if fnmatch.fnmatchcase(name, pattern)]
    return {figure: value for of in fitting for figure, value in of.items()}


def _cells(file: _File) -> list[Cell]:
    """The cells of rows and columns, in order."""
    names = file.nll.get("columns", list(file.columns))
    cells: list[Cell] = []
    for row in file.nll.keys() - file.rows.keys() - {"columns"}:
        raise MistypedError(f"rows lacks {row}")
    for row, own in file.rows.items():
        figures = file.nll.get(row, [] if file.nll else [None] * len(names))
        if len(figures) != len(names):
            raise MistypedError(f"nll.{row} has {len(figures)} figures under {len(names)} columns")
        for column, figure in zip(map(str, names), figures, strict=True):
            if column not in file.columns:
                raise MistypedError(f"columns lacks {column}")
            if figure != "":
                cells.append(_cell(row, column, figure, file.settings, own, file.columns[column]))
    return sorted(cells, key=lambda cell: [_number(cell, name) for name in file.order])


def _cell(row: str, column: str, figure: str | float | None, *entries: Entry) -> Cell:
    """A cell from entries of which later ones override earlier ones."""
    settings: dict[str, Setting] = {}
    for entry in entries:
        for name in _texts(entry.get("unset", [])):
            settings[name] = None
        settings |= {n: _frozen(v) for n, v in entry.items() if n not in _RESERVED}
    if "dataset" not in settings:
        raise MistypedError(f"rows.{row} lacks dataset")
    published, units = (None, "") if figure is None else _figure(str(figure), f"nll.{row}")
    other = lambda what: f"{row}/{entries[-1][what]}" if what in entries[-1] else None
    return Cell(
        name=f"{row}/{column}",
        settings=settings,
        published=published,
        units=units,
        against=other("against"),
        after=other("after"),
    )


def _number(cell: Cell, name: str) -> float:
    """A setting of a cell by which it is sorted."""
    value = cell.settings.get(name)
    if not isinstance(value, int | float):
        raise MistypedError(f"order has {name}, which is not a number in {cell.name}")
    return value


FIGURE = re.compile(r"(\d+(?:\.\d+)?)(?: (?:±|\+-) (\d+(?:\.\d+)?))?(?: \((\d+(?:\+\d+)*)\))?")
"""An NLL, its standard error, and active units."""


def _figure(text: str, where: str) -> tuple[Figure, str]:
    """(NLL with its standard error, active units) from a text like 94.35 ± 0.02 or 82.90 (26+7)."""
    found = FIGURE.fullmatch(text)
    if found is None:
        raise MistypedError(f"{where} has {text!r}, which is not of the form 84.78 ± 0.02 (25)")
    value, error, units = found.groups()
    return (float(value), UNKNOWN if error is None else float(error)), units or ""


def _texts(value: object) -> Sequence[str]:
    """A list of names."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise MistypedError(f"unset is {value!r}, not a list of names of settings")
    return value


def _frozen(value: object) -> Setting:
    """A TOML value with tuples instead of lists."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))  # type: ignore[return-value]
    return value  # type: ignore[return-value]


def _like(file: _File, path: Path, within: tuple[Path, ...]) -> list[Cell]:
    """The cells of another table: one of this package, or a file in the same directory."""
    name = str(file.like)
    known = sorted(p.stem for p in PUBLISHED.glob("*.toml"))
    if not name.endswith(".toml") and name not in known:
        raise MistypedError(f"like is {name!r}; {nearest(name, known)}")
    source = path.parent / name if name.endswith(".toml") else PUBLISHED / f"{name}.toml"
    within = (*within, path.resolve())
    if source.resolve() in within:
        raise MistypedError(f"like goes in a circle: {name} is like this table")
    other = _read(source, within)
    fits = lambda cell: any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in file.only)
    cells = [cell for cell in other.cells if fits(cell)]
    names = {cell.name for cell in cells}
    return [c if c.against in names else replace(c, against=None) for c in cells]


def _check_names(cells: Sequence[Cell]) -> None:
    """`MistypedError` for a cell that refers to a missing one."""
    names = {cell.name for cell in cells}
    for cell in cells:
        if cell.against == cell.name:
            raise MistypedError(f"{cell.name} is held against itself")
        for other in {cell.against, cell.after} - names - {None}:
            raise MistypedError(f"{cell.name} refers to {other}, which is not one of its cells")
    try:
        graphlib.TopologicalSorter({c.name: {c.after} - {None} for c in cells}).prepare()
    except graphlib.CycleError as error:
        raise MistypedError(f"after goes in a circle: {', '.join(error.args[1])}") from error
