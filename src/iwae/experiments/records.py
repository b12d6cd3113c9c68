"""Records: what was measured, with all that is needed to have it again.

The record of a table grows: cells that are measured later, or on another machine, join it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from iwae.config.io import differences, flatten
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.experiments.comparisons import known, versions
from iwae.experiments.jobs import CLOSE
from iwae.experiments.measured import Entry, Figures, Known, Result
from iwae.experiments.plan import continued
from iwae.experiments.rows import Row, mean_difference
from iwae.experiments.tables import Experiment
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError
from iwae.storage.run_directory import SAVING
from iwae.training import soap


class _Settings(TypedDict):
    """Settings by name; of these something is made."""

    dataset: NotRequired[str]
    optimizer: NotRequired[str]
    learning_rate: NotRequired[float]
    proposal_weights: NotRequired[str]
    epochs: NotRequired[int]


class _HiwaeSettings(TypedDict):
    """Settings that the page of results shows of a record of dependent draws."""

    proposal_weights: str
    epochs: int


class _ShownRun(TypedDict):
    """What the page of results shows of a run."""

    passes: int
    nll_se: float | None
    active_units: list[int] | None
    device: str
    note: str


class _Cell(TypedDict):
    """A cell of a table, with its runs."""

    name: str
    settings: NotRequired[_Settings]
    nll: Known
    difference: Known | None
    reference: NotRequired[list[tuple[int, float]]]
    against: NotRequired[str | None]
    after: NotRequired[str | None]
    published: NotRequired[Known | None]
    published_units: NotRequired[str]
    figures: NotRequired[dict[str, Known]]
    runs: list[Entry]


class _ShownCell(TypedDict):
    """What the page of results shows of a cell."""

    runs: list[_ShownRun]


class _Placed(TypedDict):
    """The settings by which cells are compared."""

    dataset: str


class _JoinableCell(TypedDict):
    """What a cell is joined by."""

    against: str | None
    settings: _Placed


class _Record(TypedDict):
    """What every record says."""

    experiment: str
    iwae: NotRequired[str]
    jax: NotRequired[str]
    device: NotRequired[str]
    source: NotRequired[str]
    settings: NotRequired[_Settings]


class _Table(_Record):
    """A record of a table."""

    cells: list[_Cell]


class _ShownTable(TypedDict):
    """What the page of results shows of a table."""

    iwae: str
    cells: list[_ShownCell]


class _JoinableTable(TypedDict):
    """A table that cells can join."""

    cells: list[_JoinableCell]


class _Row(TypedDict):
    """A proposal at one K."""

    dataset: str
    k: int
    name: str
    bound: Known | None
    nll: Known | None
    covariance: Known | None
    variance: Known | None
    log_variance: Known | None


class _Hiwae(TypedDict):
    """A record of dependent draws."""

    experiment: str
    source: NotRequired[str]
    rows: list[_Row]
    seeds: list[int]
    device: str
    settings: _HiwaeSettings


class _Pictured(_Record):
    """A record of an experiment that ends in pictures."""

    measured: dict[str, Known | float | dict[str, Known | float]]


HELD: dict[str, tuple[str, type]] = {
    "hiwae": ("rows", _Hiwae),
    "ring": ("measured", _Pictured),
    "manifold": ("measured", _Pictured),
}
"""What a record of an experiment that is no table holds, and its type."""

KEPT = (
    *("seed", "passes", "k", "n", "nll", "nll_se", "elbo", "active_units"),
    *("training_seconds", "made_with", "device", "iwae", "jax", "note"),
)
"""What is kept of a run's evaluation."""


@dataclass(frozen=True)
class RecordedCell:
    """A cell of a table with its runs, as a record holds it."""

    name: str
    settings: Mapping[str, object]
    nll: Known
    difference: Known | None
    """Of its NLL to that of the cell it is held against."""
    runs: tuple[Result, ...]
    reference: tuple[tuple[int, float], ...] | None = None
    """(seed, NLL) of the runs that the difference is to, as long as these are in no cell here."""
    against: str | None = None
    after: str | None = None
    published: Known | None = None
    published_units: str = ""
    figures: Figures = field(default_factory=dict)

    @classmethod
    def of_json(cls, cell: Mapping[str, Any]) -> "RecordedCell":
        """The cell as it was read."""
        runs = tuple(Result(run) for run in cell["runs"])
        reference = cell.get("reference")
        return cls(
            name=cell["name"],
            settings=cell.get("settings", {}),
            nll=_known(cell["nll"]),
            difference=_known(cell["difference"]),
            runs=runs,
            reference=None if reference is None else tuple((seed, nll) for seed, nll in reference),
            against=cell.get("against"),
            after=cell.get("after"),
            published=_known(cell.get("published")),
            published_units=cell.get("published_units", ""),
            figures={name: _known(figure) for name, figure in cell.get("figures", {}).items()},
        )

    def to_json(self) -> dict[str, object]:
        """What a file holds of it."""
        content: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        del content["runs"]
        if self.reference is None:
            del content["reference"]
        return content | {"runs": [run.entry for run in self.runs]}

    @property
    def ended(self) -> dict[int, tuple[int, int, float]]:
        """How each seed's run was evaluated, and to what NLL."""
        return {run.seed: (run.k, run.n, run.nll) for run in self.runs}

    @property
    def knowledge(self) -> int:
        """0 of no difference, 1 of one without an error, 2 of one with it."""
        return 0 if self.difference is None else 1 + (self.difference[1] is not None)


MADE_WITH = ("iwae", "jax", "device")
"""What a record says that it was made with."""


@dataclass(frozen=True)
class TableRecord:
    """A record of a table."""

    experiment: str
    cells: tuple[RecordedCell, ...]
    settings: Mapping[str, object] | None = None
    """Those that not every cell has of its own; None where they are not known."""
    source: str | None = None
    iwae: str | None = None
    jax: str | None = None
    device: str | None = None

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> "TableRecord":
        """The record as it was read."""
        about = {name: content.get(name) for name in ("settings", "source", *MADE_WITH)}
        cells = tuple(RecordedCell.of_json(cell) for cell in content["cells"])
        return cls(content["experiment"], cells, **about)

    def to_json(self) -> dict[str, object]:
        """What a file holds, in its order."""
        names = (*MADE_WITH, "experiment", "source", "settings")
        about = {name: getattr(self, name) for name in names}
        content = {name: value for name, value in about.items() if value is not None}
        return json.loads(json.dumps(content | {"cells": [cell.to_json() for cell in self.cells]}))


@dataclass(frozen=True)
class OtherRecord:
    """A record of an experiment that is no table."""

    experiment: str
    content: Mapping[str, Any]
    """What its file holds, as `HELD` types it."""


Record = TableRecord | OtherRecord


def _known(figure: Sequence[Any] | None) -> Any:
    """A figure of JSON as a pair."""
    return None if figure is None else tuple(figure)


def of_table(experiment: Experiment, config: RunConfig, rows: Sequence[Row]) -> TableRecord:
    """The finished rows, and the settings that they share."""
    further = {n: v for n, v, _ in differences(continued(config), config)}
    return TableRecord(
        experiment=experiment.name,
        cells=tuple(_cell(row, further) for row in rows if row.results),
        settings=_shared(experiment, config),
        source=experiment.source,
        **versions(),
    )


def _cell(row: Row, further: Mapping[str, object]) -> RecordedCell:
    """A row that is finished; `further` are settings of a training that goes on."""
    cell = row.cell
    return RecordedCell(
        name=cell.name,
        settings={**cell.settings, **(further if cell.after else {})},
        nll=_known(known(row.nll)),
        difference=_known(known(row.difference)),
        runs=tuple(Result(cast(Entry, _kept(run))) for run in row.results),
        reference=_nlls(row.reference),
        against=cell.against,
        after=cell.after,
        published=_known(known(cell.published)),
        published_units=cell.units,
        figures={name: _known(known(figure)) for name, figure in row.figures.items()},
    )


def _kept(run: Result) -> dict[str, object]:
    entry = cast(Mapping[str, object], run.entry)
    return {name: entry[name] for name in KEPT if name in entry}


def _nlls(runs: Sequence[Result]) -> tuple[tuple[int, float], ...]:
    """(seed, NLL) of runs, by seed."""
    return tuple(sorted((run.seed, run.nll) for run in runs))


def _shared(experiment: Experiment, config: RunConfig) -> dict[str, object]:
    """The settings that not every cell of the table has of its own, as JSON gives them back."""
    own = {"seed", *set.intersection(*(set(cell.settings) for cell in experiment.cells))}
    settings = {n: v for n, v in flatten(config).items() if v is not None and n not in own}
    if config.training.optimizer == "soap":
        settings["soap_revision"] = soap.REVISION
    return json.loads(json.dumps(settings))


def read(path: Path) -> Record | None:
    """What `iwae reproduce --record` wrote, or None if the file is nothing of the kind.

    `InputError` if it is a record that is damaged.
    """
    content = _content(path)
    if content is None:
        return None
    if "cells" in content:
        return TableRecord.of_json(content)
    return OtherRecord(content["experiment"], content)


def _content(path: Path, kind: type | None = None) -> dict[str, Any] | None:
    """The JSON of a record, of a table also as `kind`; None if the file is none."""
    try:
        content = persisted.parsed(persisted.content_of(path))
    except (MistypedError, InputError):
        return None
    experiment = content.get("experiment") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(experiment, str):
        return None
    held, whole = HELD.get(experiment, ("cells", _Table))
    if held not in content:
        return None
    try:
        record: dict[str, Any] = persisted.typed(content, whole)
        for cell in record.get("cells", ()):
            _check_cell(cell)
        if kind is not None and "cells" in record:
            persisted.typed(json.loads(json.dumps(record)), kind)
    except MistypedError as error:
        raise persisted.damaged(path, REMEDY) from error
    return json.loads(json.dumps(record))


REMEDY = "restore it from a copy, or measure again"


def shown(path: Path) -> Record | None:
    """`read` of a record that the page of results shows; `InputError` if it lacks what that
    needs."""
    _content(path, _ShownTable)
    return read(path)


def _check_cell(cell: Mapping[str, Any]) -> None:
    """`MistypedError` unless a cell has runs, whose NLL it has, with units of as many layers."""
    nlls = [run["nll"] for run in cell["runs"]]
    if nlls and not math.isclose(sum(nlls) / len(nlls), cell["nll"][0], rel_tol=CLOSE):
        raise MistypedError(f"the NLL of {cell['name']} is not that of its runs")
    units = [run.get("active_units") for run in cell["runs"]]
    layers = {len(of) for of in units if of is not None}
    if not units or len(layers) > 1:
        raise MistypedError(f"the runs of {cell['name']} are missing, or of different layers")


def joinable(path: Path, experiment: Experiment, config: RunConfig) -> TableRecord:
    """The record in a file that cells of this table can join; `InputError` if it is another's.

    A setting that it does not know came later, and stood at its default. How often runs were saved
    does not matter.
    """
    _content(path, _JoinableTable)
    there = read(path)
    of_it = isinstance(there, TableRecord) and there.experiment == experiment.name
    if not isinstance(there, TableRecord) or not of_it or there.settings is None:
        raise InputError(
            f"record = {path} was given, which is there and no record of {experiment.name}; give "
            f"another --record, or --overwrite."
        )
    ours, theirs = _shared(experiment, config), there.settings
    defaults = json.loads(json.dumps(flatten(RunConfig())))
    for setting in sorted({*ours, *theirs} - {*SAVING}):
        own, other = (s.get(setting, defaults.get(setting)) for s in (ours, theirs))
        if own != other:
            raise InputError(
                f"record = {path} was given, whose cells have {setting} = {other} where these have "
                f"{own}; give another --record, or --overwrite."
            )
    return there


def joined(
    there: TableRecord | None,
    added: TableRecord,
    order: Sequence[str],
    *,
    replace: bool = False,
) -> tuple[TableRecord, list[str]]:
    """(the cells of both, those of `order` first; the names of those that could not join).

    A cell that is in both is that of `added` if its runs hold those of `there`, or with `replace`;
    else that of `there`, and could not join if it has other runs. A difference to runs of the cell
    that it is held against which are not those in the record is dropped, and one that is missing is
    taken when both are in it.
    """
    before = {} if there is None else {cell.name: _versioned(cell, there) for cell in there.cells}
    cells, taken, left = _together(before, added.cells, replace=replace)
    others = {name for name, cell in before.items() if cells[name].ended != cell.ended}
    for name, cell in cells.items():
        found = [taken[name]] if name in taken else []
        if name in before and not {name, cell.against} & others:
            found.append(before[name])
        cells[name] = _with_known_difference(cell, found, cells)
    names = dict.fromkeys(name for name in (*order, *cells) if name in cells)
    whole = tuple(_with_difference(cells[name], cells) for name in names)
    if there is not None and {cell.name: cell for cell in whole} == before:
        return there, left
    return dataclasses.replace(added, cells=whole), left


Cells = dict[str, RecordedCell]
"""By their names."""


def _together(
    before: Cells, added: Sequence[RecordedCell], *, replace: bool
) -> tuple[Cells, Cells, list[str]]:
    """(all cells, those that were taken of `added`, the names of those that could not join)."""
    cells, taken, left = dict(before), Cells(), list[str]()
    for cell in added:
        name = cell.name
        if replace or name not in cells:
            cells[name] = taken[name] = cell
            continue
        held, ended = cells[name].ended.items(), cell.ended.items()
        if held <= ended:
            cells[name], taken[name] = _updated(cells[name], cell), cell
        elif not ended <= held:
            left.append(name)
    return cells, taken, left


def _versioned(cell: RecordedCell, record: TableRecord) -> RecordedCell:
    """The cell, of whose runs each says what versions made it."""
    made = {"iwae": record.iwae, "jax": record.jax}
    known = {name: version for name, version in made.items() if version is not None}
    runs = [cast(Entry, {**run.entry, **known, **run.entry}) for run in cell.runs]
    return dataclasses.replace(cell, runs=tuple(map(Result, runs)))


def _updated(before: RecordedCell, cell: RecordedCell) -> RecordedCell:
    """The later entry, with what only the earlier one of the same runs knows."""
    if len(before.runs) < len(cell.runs):
        return cell
    figures = {**before.figures, **cell.figures}
    return dataclasses.replace(cell, figures=figures, runs=before.runs)


def _with_known_difference(
    cell: RecordedCell, found: Sequence[RecordedCell], cells: Cells
) -> RecordedCell:
    """The cell with the difference of that of `found` which knows most, if it is to these runs."""
    against = cells.get(cell.against or "")
    fitting = [c for c in found if _is_to(c, against)]
    best = max(fitting, key=lambda c: c.knowledge, default=None)
    if best is None or best.difference is None:
        return dataclasses.replace(cell, difference=None, reference=None)
    reference = best.reference if against is None else None  # until that is there to be compared
    return dataclasses.replace(cell, difference=best.difference, reference=reference)


def _is_to(cell: RecordedCell, other: RecordedCell | None) -> bool:
    """Whether the difference of a cell is to these runs, or none are there to say."""
    return other is None or cell.reference is None or cell.reference == _nlls(other.runs)


def _with_difference(cell: RecordedCell, cells: Cells) -> RecordedCell:
    """The cell with its difference, seed by seed, to the one that it is held against."""
    other = cells.get(cell.against or "")
    if cell.difference is not None or other is None:
        return cell
    ours, theirs = cell.ended, other.ended
    how = lambda ended: {seed: evaluation for seed, (*evaluation, _) in ended.items()}
    if how(ours) != how(theirs) or cell.settings["dataset"] != other.settings["dataset"]:
        return cell
    apart = [ours[seed][-1] - theirs[seed][-1] for seed in ours]
    return dataclasses.replace(cell, difference=_known(known(mean_difference(apart))))
