"""Records: what was measured, with all that is needed to have it again.

The record of a table grows: cells that are measured later, or on another machine, join it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwae.config import RunConfig
from iwae.errors import InputError
from iwae.experiments import known, versions
from iwae.papers import EXPERIMENTS
from iwae.reproduce import Row, apart, continued
from iwae.settings import differences, flatten

Record = dict[str, Any]

HELD = {"hiwae": "rows", "ring": "measured", "manifold": "measured"}
"""What a record of an experiment that is no table holds."""

KEPT = (
    *("seed", "passes", "k", "n", "nll", "nll_se", "elbo", "active_units"),
    *("training_seconds", "made_with", "device", "iwae", "note"),
)
"""What is kept of a run's evaluation."""


def of_table(name: str, config: RunConfig, rows: Sequence[Row]) -> Record:
    """The finished rows, and the settings that they share."""
    experiment = EXPERIMENTS[name]
    own = {"seed", *set.intersection(*(set(cell.settings) for cell in experiment.cells))}
    settings = {n: v for n, v in flatten(config).items() if v is not None and n not in own}
    further = {n: v for n, v, _ in differences(continued(config), config)}
    return {
        **versions(),
        "experiment": name,
        "source": experiment.source,
        "settings": settings,
        "cells": [
            {
                "name": row.cell.name,
                "settings": dict(row.cell.settings) | (further if row.cell.after else {}),
                "nll": known(row.nll),
                "difference": known(row.difference),
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


def read(path: Path) -> Record | None:
    """What `iwae reproduce --record` wrote, or None if the file is nothing of the kind."""
    try:
        record = json.loads(path.read_text("utf-8"))
        held = "cells" if record["experiment"] in EXPERIMENTS else HELD[record["experiment"]]
        whole = held in record and all(cell["runs"] for cell in record.get("cells", ()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def growing(path: Path, name: str, config: RunConfig) -> Record:
    """The record of this table that is in a file; `InputError` if it is of anything else.

    A setting that it does not know is one that came later, and stood at its default.
    """
    there = read(path)
    if there is None or there["experiment"] != name:
        raise InputError(
            f"record = {path} was given, which is there and no record of {name}; give another "
            f"name, or --overwrite."
        )
    defaults = _plain(flatten(RunConfig()))
    ours = _plain(of_table(name, config, ())["settings"])
    theirs = there.get("settings", {})
    for setting in sorted({*ours, *theirs}):
        own, other = (s.get(setting, defaults.get(setting)) for s in (ours, theirs))
        if own != other:
            raise InputError(
                f"record = {path} was given, whose cells have {setting} = {other} where these have "
                f"{own}; give another name, or --overwrite."
            )
    return there


def joined(there: Record, added: Record, path: Path) -> Record:
    """The cells of both, in the order of the table.

    A cell without a difference to the one it is held against gets it if both are there now.
    `InputError` if the record in `path` holds a cell whose runs are others.
    """
    cells: dict[str, Record] = {}
    for cell in there["cells"]:
        runs = [{**run, "iwae": run.get("iwae", there["iwae"])} for run in cell["runs"]]
        cells[cell["name"]] = {**cell, "runs": runs}
    for cell in added["cells"]:
        before = cells.get(cell["name"], cell)
        ended = [[(run["seed"], run["nll"]) for run in of["runs"]] for of in (before, cell)]
        if ended[0] != ended[1]:
            raise InputError(
                f"{path} holds {cell['name']} with an NLL of {before['nll'][0]:.4f}, but here it "
                f"is {cell['nll'][0]:.4f}; give another --record, or --overwrite."
            )
        cells[cell["name"]] = {**before, **{n: v for n, v in cell.items() if v not in (None, {})}}
    published = [cell.name for cell in EXPERIMENTS[added["experiment"]].cells]
    names = dict.fromkeys(name for name in (*published, *cells) if name in cells)
    return {**added, "cells": [_compared(cells[name], cells) for name in names]}


def _compared(cell: Record, cells: Mapping[str, Record]) -> Record:
    """The cell with its difference, seed by seed, to the one that it is held against."""
    other = cells.get(cell["against"] or "")
    if cell["difference"] is not None or other is None:
        return cell
    nll, reference = ({run["seed"]: run["nll"] for run in of["runs"]} for of in (cell, other))
    if nll.keys() != reference.keys():
        return cell
    return cell | {"difference": known(apart([nll[seed] - reference[seed] for seed in nll]))}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(settings))
