"""Records: what was measured, with all that is needed to have it again.

The record of a table grows: cells that are measured later, or on another machine, join it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from iwae.config.io import differences, flatten
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.experiments.comparisons import known, versions
from iwae.experiments.jobs import CLOSE
from iwae.experiments.papers import EXPERIMENTS
from iwae.experiments.reproduce import Row, continued, mean_difference
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError, Unbounded
from iwae.storage.run_directory import SAVING
from iwae.training import soap

Record = dict[str, Any]

Figure = tuple[float, float | None]
"""A value with its standard error, where one is known."""


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


class _Run(TypedDict):
    """A run's evaluation."""

    seed: int
    passes: NotRequired[int]
    k: int
    n: int
    nll: float
    nll_se: NotRequired[float | None]
    elbo: NotRequired[Unbounded | None]
    active_units: NotRequired[list[int] | None]
    training_seconds: NotRequired[float]
    made_with: NotRequired[list[str]]
    device: NotRequired[str]
    iwae: NotRequired[str]
    jax: NotRequired[str]
    note: NotRequired[str]


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
    nll: Figure
    difference: Figure | None
    reference: NotRequired[list[tuple[int, float]]]
    against: NotRequired[str | None]
    after: NotRequired[str | None]
    published: NotRequired[Figure | None]
    published_units: NotRequired[str]
    figures: NotRequired[dict[str, Figure]]
    runs: list[_Run]


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
    bound: Figure | None
    nll: Figure | None
    covariance: Figure | None
    variance: Figure | None
    log_variance: Figure | None


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

    measured: dict[str, Figure | float | dict[str, Figure | float]]


HELD: dict[str, tuple[str, Any]] = {
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


def of_table(name: str, config: RunConfig, rows: Sequence[Row]) -> Record:
    """The finished rows, and the settings that they share."""
    further = {n: v for n, v, _ in differences(continued(config), config)}
    return {
        **versions(),
        "experiment": name,
        "source": EXPERIMENTS[name].source,
        "settings": _shared(name, config),
        "cells": [
            {
                "name": row.cell.name,
                "settings": dict(row.cell.settings) | (further if row.cell.after else {}),
                "nll": known(row.nll),
                "difference": known(row.difference),
                "reference": _nlls(row.reference),
                "against": row.cell.against,
                "after": row.cell.after,
                "published": known(row.cell.published),
                "published_units": row.cell.units,
                "figures": {name: known(figure) for name, figure in row.figures.items()},
                "runs": [{n: e[n] for n in KEPT if n in e} for e in row.results],
            }
            for row in rows
            if row.results
        ],
    }


def _nlls(runs: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """[seed, NLL] of runs, by seed."""
    return sorted([run["seed"], run["nll"]] for run in runs)


def _shared(name: str, config: RunConfig) -> dict[str, Any]:
    """The settings that not every cell of the table has of its own, as JSON gives them back."""
    own = {"seed", *set.intersection(*(set(cell.settings) for cell in EXPERIMENTS[name].cells))}
    settings = {n: v for n, v in flatten(config).items() if v is not None and n not in own}
    if config.training.optimizer == "soap":
        settings["soap_revision"] = soap.REVISION
    return json.loads(json.dumps(settings))


def read(path: Path) -> Record | None:
    """What `iwae reproduce --record` wrote, or None if the file is nothing of the kind.

    `InputError` if it is a record that is damaged.
    """
    try:
        record = persisted.parsed(persisted.content_of(path))
    except (MistypedError, InputError):
        return None
    if not isinstance(record, dict):
        return None
    experiment = record.get("experiment")
    if not isinstance(experiment, str) or experiment not in {*EXPERIMENTS, *HELD}:
        return None
    held, kind = HELD.get(experiment, ("cells", _Table))
    if held not in record:
        return None
    try:
        whole = persisted.typed(record, kind)
        for cell in whole.get("cells", ()):
            _check_cell(cell)
    except MistypedError as error:
        raise persisted.damaged(path, REMEDY) from error
    return json.loads(json.dumps(whole))


REMEDY = "restore it from a copy, or measure again"


def shown(path: Path) -> Record | None:
    """`read` of a record that the page of results shows; `InputError` if it lacks what that
    needs."""
    return _with(path, _ShownTable)


def _with(path: Path, kind: Any) -> Record | None:
    """`read` of a record whose cells have what is asked for."""
    record = read(path)
    try:
        if record is not None and "cells" in record:
            persisted.typed(record, kind)
    except MistypedError as error:
        raise persisted.damaged(path, REMEDY) from error
    return record


def _check_cell(cell: Record) -> None:
    """`MistypedError` unless a cell has runs, whose NLL it has, with units of as many layers."""
    nlls = [run["nll"] for run in cell["runs"]]
    if nlls and not math.isclose(sum(nlls) / len(nlls), cell["nll"][0], rel_tol=CLOSE):
        raise MistypedError(f"the NLL of {cell['name']} is not that of its runs")
    units = [run.get("active_units") for run in cell["runs"]]
    layers = {len(of) for of in units if of is not None}
    if not units or len(layers) > 1:
        raise MistypedError(f"the runs of {cell['name']} are missing, or of different layers")


def joinable(path: Path, name: str, config: RunConfig) -> Record:
    """The record in a file that cells of this table can join; `InputError` if it is another's.

    A setting that it does not know came later, and stood at its default. How often runs were saved
    does not matter.
    """
    there = _with(path, _JoinableTable)
    if there is None or there["experiment"] != name or "settings" not in there:
        raise InputError(
            f"record = {path} was given, which is there and no record of {name}; give another "
            f"--record, or --overwrite."
        )
    ours, theirs = _shared(name, config), there["settings"]
    defaults = json.loads(json.dumps(flatten(RunConfig())))
    for setting in sorted({*ours, *theirs} - {*SAVING}):
        own, other = (s.get(setting, defaults.get(setting)) for s in (ours, theirs))
        if own != other:
            raise InputError(
                f"record = {path} was given, whose cells have {setting} = {other} where these have "
                f"{own}; give another --record, or --overwrite."
            )
    return there


def joined(there: Record, added: Record, *, replace: bool = False) -> tuple[Record, list[str]]:
    """(the cells of both in the order of the table, the names of those that could not join).

    A cell that is in both is that of `added` if its runs hold those of `there`, or with `replace`;
    else that of `there`, and could not join if it has other runs. A difference to runs of the cell
    that it is held against which are not those in the record is dropped, and one that is missing is
    taken when both are in it.
    """
    made = {name: there[name] for name in ("iwae", "jax") if name in there}
    cells: dict[str, Record] = {
        cell["name"]: {**cell, "runs": [run | made | run for run in cell["runs"]]}
        for cell in there["cells"]
    }
    before, refused, taken = dict(cells), [], {}
    for cell in added["cells"]:
        name = cell["name"]
        if replace or name not in cells:
            cells[name] = taken[name] = cell
            continue
        held, ended = _ended(cells[name]).items(), _ended(cell).items()
        if held <= ended:
            cells[name], taken[name] = _updated(cells[name], cell), cell
        elif not ended <= held:
            refused.append(name)
    others = {name for name, cell in before.items() if _ended(cells[name]) != _ended(cell)}
    for name, cell in cells.items():
        against = cells.get(cell["against"] or "")
        found = [taken[name]] if name in taken else []
        if name in before and not {name, cell["against"]} & others:
            found.append(before[name])
        best: Record = max((c for c in found if _is_to(c, against)), key=_knowledge, default={})
        rest = {part: value for part, value in cell.items() if part != "reference"}
        cells[name] = rest | {"difference": best.get("difference")}
        known = best.get("difference") is not None and "reference" in best
        if known and against is None:  # until that is there to be compared
            cells[name]["reference"] = best["reference"]
    published = [cell.name for cell in EXPERIMENTS[added["experiment"]].cells]
    names = dict.fromkeys(name for name in (*published, *cells) if name in cells)
    whole = [_with_difference(cells[name], cells) for name in names]
    if {cell["name"]: cell for cell in whole} == before:
        return there, refused
    return {**added, "cells": whole}, refused


def _ended(cell: Record) -> dict[int, tuple[int, int, float]]:
    """How each seed's run was evaluated, and to what NLL."""
    return {run["seed"]: (run["k"], run["n"], run["nll"]) for run in cell["runs"]}


def _updated(before: Record, cell: Record) -> Record:
    """The later entry, with what only the earlier one of the same runs knows."""
    if len(before["runs"]) < len(cell["runs"]):
        return cell
    figures = {**before.get("figures", {}), **cell["figures"]}
    return {**cell, "figures": figures, "runs": before["runs"]}


def _is_to(cell: Record, other: Record | None) -> bool:
    """Whether the difference of a cell is to these runs, or none are there to say."""
    if other is None or "reference" not in cell:
        return True
    return cell["reference"] == _nlls(other["runs"])


def _knowledge(cell: Record) -> int:
    """0 of no difference, 1 of one without an error, 2 of one with it."""
    figure = cell["difference"]
    return 0 if figure is None else 1 + (figure[1] is not None)


def _with_difference(cell: Record, cells: Mapping[str, Record]) -> Record:
    """The cell with its difference, seed by seed, to the one that it is held against."""
    other = cells.get(cell["against"] or "")
    if cell["difference"] is not None or other is None:
        return cell
    ours, theirs = _ended(cell), _ended(other)
    how = lambda ended: {seed: evaluation for seed, (*evaluation, _) in ended.items()}
    if how(ours) != how(theirs) or cell["settings"]["dataset"] != other["settings"]["dataset"]:
        return cell
    apart = [ours[seed][-1] - theirs[seed][-1] for seed in ours]
    return cell | {"difference": known(mean_difference(apart))}
