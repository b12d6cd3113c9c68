"""Records: results with everything needed to reproduce them.

Cells that are measured later, or on another machine, are added to the record of a table.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from iwae.config.io import differences, flatten
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.examples import mean_and_error
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
    """Settings that are used by name."""

    dataset: NotRequired[str]
    optimizer: NotRequired[str]
    learning_rate: NotRequired[float]
    stages: NotRequired[str]
    proposal_weights: NotRequired[str]
    epochs: NotRequired[int]


class _HiwaeSettings(TypedDict):
    """Settings of a hiwae record that the results page shows."""

    proposal_weights: str
    epochs: int


class _ShownRun(TypedDict):
    """Fields of a run that the results page shows."""

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
    """Fields of a cell that the results page shows."""

    runs: list[_ShownRun]


class _Placed(TypedDict):
    """The settings by which cells are compared."""

    dataset: str


class _JoinableCell(TypedDict):
    """Fields by which a cell is joined to a record."""

    against: str | None
    settings: _Placed


class _Record(TypedDict):
    """Fields of every record."""

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
    """Fields of a table that the results page shows."""

    iwae: str
    cells: list[_ShownCell]


class _JoinableTable(TypedDict):
    """Fields of a table that cells can be added to."""

    cells: list[_JoinableCell]


class _Row(TypedDict):
    """A row of a hiwae record: a proposal at one K."""

    dataset: str
    k: int
    name: str
    bound: Known | None
    nll: Known | None
    covariance: Known | None
    variance: Known | None
    log_variance: Known | None


class _Hiwae(TypedDict):
    """A hiwae record."""

    experiment: str
    source: NotRequired[str]
    rows: list[_Row]
    seeds: list[int]
    device: str
    settings: _HiwaeSettings


class _Pictured(_Record):
    """A record of an experiment whose results are figures."""

    measured: dict[str, Known | float | dict[str, Known | float]]


CONTENTS: dict[str, tuple[str, type]] = {
    "hiwae": ("rows", _Hiwae),
    "ring": ("measured", _Pictured),
    "manifold": ("measured", _Pictured),
}
"""Experiments that are not tables: the key of a record's content, and the record's type."""

KEPT = (
    *("seed", "passes", "k", "n", "nll", "nll_se", "elbo", "active_units"),
    *("training_seconds", "made_with", "device", "iwae", "jax", "note"),
)
"""Fields of a run's evaluation that a record keeps."""


@dataclass(frozen=True)
class RecordedCell:
    """A cell of a table with its runs, in a record."""

    name: str
    settings: Mapping[str, object]
    nll: Known
    difference: Known | None
    """NLL minus that of the cell it is compared with."""
    runs: tuple[Result, ...]
    reference: tuple[tuple[int, float], ...] | None = None
    """(seed, NLL) of the runs compared with, while these are in no cell of the record."""
    against: str | None = None
    after: str | None = None
    published: Known | None = None
    published_units: str = ""
    figures: Figures = field(default_factory=dict)

    @classmethod
    def of_json(cls, cell: Mapping[str, Any]) -> "RecordedCell":
        """The cell from JSON."""
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
        """The cell as JSON."""
        content: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        del content["runs"]
        if self.reference is None:
            del content["reference"]
        return content | {"runs": [run.entry for run in self.runs]}

    @property
    def ended(self) -> dict[int, tuple[int, int, float]]:
        """By seed: K and number of images of the evaluation, and its NLL."""
        return {run.seed: (run.k, run.n, run.nll) for run in self.runs}

    @property
    def knowledge(self) -> int:
        """0 without a difference, 1 for a difference without an error, 2 for one with an error."""
        return 0 if self.difference is None else 1 + (self.difference[1] is not None)


MADE_WITH = ("iwae", "jax", "device")
"""Provenance in a record."""


@dataclass(frozen=True)
class TableRecord:
    """A record of a table."""

    experiment: str
    cells: tuple[RecordedCell, ...]
    settings: Mapping[str, object] | None = None
    """Settings that not every cell sets itself; None if unknown."""
    source: str | None = None
    iwae: str | None = None
    jax: str | None = None
    device: str | None = None

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> "TableRecord":
        """The record from JSON."""
        about = {name: content.get(name) for name in ("settings", "source", *MADE_WITH)}
        cells = tuple(RecordedCell.of_json(cell) for cell in content["cells"])
        return cls(content["experiment"], cells, **about)

    def to_json(self) -> dict[str, object]:
        """The record as JSON, with keys in the order of the file."""
        names = (*MADE_WITH, "experiment", "source", "settings")
        about = {name: getattr(self, name) for name in names}
        content = {name: value for name, value in about.items() if value is not None}
        return json.loads(json.dumps(content | {"cells": [cell.to_json() for cell in self.cells]}))


@dataclass(frozen=True)
class OtherRecord:
    """A record of an experiment that is not a table."""

    experiment: str
    content: Mapping[str, Any]
    """Content of the file, with the type in `CONTENTS`."""


Record = TableRecord | OtherRecord


def _known(figure: Sequence[Any] | None) -> Any:
    """A figure of JSON as a pair."""
    return None if figure is None else tuple(figure)


def of_table(experiment: Experiment, config: RunConfig, rows: Sequence[Row]) -> TableRecord:
    """The record of the finished rows, with the settings that they share."""
    further = {n: v for n, v, _ in differences(continued(config), config)}
    return TableRecord(
        experiment=experiment.name,
        cells=tuple(_cell(row, further) for row in rows if row.results),
        settings=_shared(experiment, config),
        source=experiment.source,
        **versions(),
    )


def _cell(row: Row, further: Mapping[str, object]) -> RecordedCell:
    """The cell of a finished row; `further` are the settings of further training."""
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
    """(seed, NLL) of runs, sorted by seed."""
    return tuple(sorted((run.seed, run.nll) for run in runs))


def _shared(experiment: Experiment, config: RunConfig) -> dict[str, object]:
    """The settings that not every cell of the table sets itself, as JSON values."""
    own = {"seed", *set.intersection(*(set(cell.settings) for cell in experiment.cells))}
    settings = {n: v for n, v in flatten(config).items() if v is not None and n not in own}
    if config.training.optimizer == "soap":
        settings["soap_revision"] = soap.REVISION
    return json.loads(json.dumps(settings))


def read(path: Path) -> Record | None:
    """Read a file of `iwae reproduce --record`; None if it is not a record.

    `InputError` if it is a damaged record.
    """
    content = _content(path)
    if content is None:
        return None
    if "cells" in content:
        return TableRecord.of_json(content)
    return OtherRecord(content["experiment"], content)


def _content(path: Path, kind: type | None = None) -> dict[str, Any] | None:
    """The JSON of a record, validated also as `kind` if it is a table; None for other files."""
    try:
        content = persisted.parsed(persisted.content_of(path))
    except (MistypedError, InputError):
        return None
    experiment = content.get("experiment") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(experiment, str):
        return None
    key, whole = CONTENTS.get(experiment, ("cells", _Table))
    if key not in content:
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
    """`read` a record for the results page; `InputError` if it lacks fields that the page shows."""
    _content(path, _ShownTable)
    return read(path)


def _check_cell(cell: Mapping[str, Any]) -> None:
    """`MistypedError` unless a cell has runs that match its NLL and one another's layers."""
    nlls = [run["nll"] for run in cell["runs"]]
    if nlls and not math.isclose(sum(nlls) / len(nlls), cell["nll"][0], rel_tol=CLOSE):
        raise MistypedError(f"the NLL of {cell['name']} is not that of its runs")
    units = [run.get("active_units") for run in cell["runs"]]
    layers = {len(of) for of in units if of is not None}
    if not units or len(layers) > 1:
        raise MistypedError(f"the runs of {cell['name']} are missing, or of different layers")


def joinable(path: Path, experiment: Experiment, config: RunConfig) -> TableRecord:
    """The record in a file to which cells of this table can be added.

    `InputError` if it is another table's, or has other settings. A setting that the record lacks
    was added later and had its default. Settings of checkpoints do not matter.
    """
    _content(path, _JoinableTable)
    there = read(path)
    of_it = isinstance(there, TableRecord) and there.experiment == experiment.name
    if not isinstance(there, TableRecord) or not of_it or there.settings is None:
        raise InputError(
            f"record = {path} was given, which exists and is not a record of {experiment.name}; "
            f"give another --record, or --overwrite."
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
    """(the cells of both records, those of `order` first; names of cells that could not be added).

    A cell in both is taken from `added` with `replace`, or if its runs include those of `there`.
    Otherwise it has the runs of both, if these can be pooled; if not, it is kept from `there`, and
    could not be added. A difference to runs that are not those in the record is dropped, and a
    missing difference is computed once both cells are in the record.
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
"""Cells by name."""


def _together(
    before: Cells, added: Sequence[RecordedCell], *, replace: bool
) -> tuple[Cells, Cells, list[str]]:
    """(all cells, those taken from `added`, names of cells that could not be added)."""
    cells, taken, left = dict(before), Cells(), list[str]()
    for cell in added:
        name = cell.name
        if replace or name not in cells:
            cells[name] = taken[name] = cell
            continue
        known, ended = cells[name].ended.items(), cell.ended.items()
        if known <= ended:
            cells[name], taken[name] = _updated(cells[name], cell), cell
        elif not ended <= known and _can_be_pooled(cells[name], cell):
            cells[name] = taken[name] = _pooled(cells[name], cell)
        elif not ended <= known:
            left.append(name)
    return cells, taken, left


def _can_be_pooled(before: RecordedCell, cell: RecordedCell) -> bool:
    """Whether runs of other seeds are of the same model, and were measured in the same way.

    Not with further metrics, which a record has over the seeds of a cell only.
    """
    runs, known = (*before.runs, *cell.runs), before.ended
    return (
        _all_settings(before) == _all_settings(cell)
        and (before.against, before.after) == (cell.against, cell.after)
        and all(cell.ended[seed] == known[seed] for seed in cell.ended.keys() & known.keys())
        and len({(run.k, run.n, run.note) for run in runs}) == 1
        and not (before.figures or cell.figures)
    )


def _all_settings(cell: RecordedCell) -> dict[str, object]:
    """The settings of a cell as in JSON; one that it lacks has its default."""
    return json.loads(json.dumps({**flatten(RunConfig()), **cell.settings}))


def _pooled(before: RecordedCell, cell: RecordedCell) -> RecordedCell:
    """The cell with the runs of both by seed, and its NLL over seeds.

    Its difference is known if that of each was to known runs of the same seeds.
    """
    runs = {run.seed: run for run in (*cell.runs, *before.runs)}
    kept = tuple(runs[seed] for seed in sorted(runs))
    nll = known(mean_and_error(np.array([run.nll for run in kept])))
    to = {**dict(cell.reference or ()), **dict(before.reference or ())}
    whole = dataclasses.replace(cell, runs=kept, nll=_known(nll), difference=None, reference=None)
    if to.keys() != runs.keys():
        return whole
    apart = known(mean_difference([run.nll - to[run.seed] for run in kept]))
    reference = tuple(sorted(to.items()))
    return dataclasses.replace(whole, difference=_known(apart), reference=reference)


def _versioned(cell: RecordedCell, record: TableRecord) -> RecordedCell:
    """The cell, with the record's versions in each of its runs."""
    made = {"iwae": record.iwae, "jax": record.jax}
    known = {name: version for name, version in made.items() if version is not None}
    runs = [cast(Entry, {**run.entry, **known, **run.entry}) for run in cell.runs]
    return dataclasses.replace(cell, runs=tuple(map(Result, runs)))


def _updated(before: RecordedCell, cell: RecordedCell) -> RecordedCell:
    """The later cell, with figures that only the earlier one of the same runs has."""
    if len(before.runs) < len(cell.runs):
        return cell
    figures = {**before.figures, **cell.figures}
    return dataclasses.replace(cell, figures=figures, runs=before.runs)


def _with_known_difference(
    cell: RecordedCell, found: Sequence[RecordedCell], cells: Cells
) -> RecordedCell:
    """The cell with the best-known difference among `found` that is to these runs."""
    against = cells.get(cell.against or "")
    fitting = [c for c in found if _is_to(c, against)]
    best = max(fitting, key=lambda c: c.knowledge, default=None)
    if best is None or best.difference is None:
        return dataclasses.replace(cell, difference=None, reference=None)
    reference = best.reference if against is None else None  # until that cell is in the record
    return dataclasses.replace(cell, difference=best.difference, reference=reference)


def _is_to(cell: RecordedCell, other: RecordedCell | None) -> bool:
    """Whether the difference of a cell is to these runs, as far as is known."""
    return other is None or cell.reference is None or cell.reference == _nlls(other.runs)


def _with_difference(cell: RecordedCell, cells: Cells) -> RecordedCell:
    """The cell with its difference, paired by seed, to the cell it is compared with."""
    other = cells.get(cell.against or "")
    if cell.difference is not None or other is None:
        return cell
    ours, theirs = cell.ended, other.ended
    how = lambda ended: {seed: evaluation for seed, (*evaluation, _) in ended.items()}
    if how(ours) != how(theirs) or cell.settings["dataset"] != other.settings["dataset"]:
        return cell
    apart = [ours[seed][-1] - theirs[seed][-1] for seed in ours]
    return dataclasses.replace(cell, difference=_known(known(mean_difference(apart))))
