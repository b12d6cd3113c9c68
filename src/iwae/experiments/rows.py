"""Rows of a table: our figures of each cell, as its runs stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iwae._utils.formatting import UNKNOWN, Figure, mean_units, units_in_words
from iwae.errors import InputError
from iwae.evaluation.examples import mean_and_error
from iwae.experiments.jobs import Failure, Job, log_likelihoods, recorded, state
from iwae.experiments.measured import Result
from iwae.experiments.tables import Cell


@dataclass(frozen=True)
class Row:
    """A cell with what there is of it."""

    cell: Cell
    state: str
    """done, or what there is instead."""
    results: list[Result]
    """Of each seed, when all are there."""
    reference: list[Result]
    """Of the cell that it is held against."""
    failures: list[str]

    @property
    def seeds(self) -> list[int]:
        return [e.seed for e in self.results]

    @property
    def nll(self) -> Figure:
        """Over seeds, or of a single one over examples."""
        if len(self.results) == 1:
            return _figure(self.results[0].nll, self.results[0].nll_se)
        return mean_and_error(np.array([e.nll for e in self.results]))

    @property
    def active_units(self) -> str:
        """Mean over seeds, layer by layer."""
        return units_in_words(mean_units(self.results), "+")

    @property
    def figures(self) -> dict[str, Figure]:
        """What else was measured, by name, over seeds or of a single one."""
        each = [
            {name: figure for of in e.figures.values() for name, figure in of.items()}
            for e in self.results
        ]
        if len(each) < 2:
            return {name: _figure(*figure) for of in each for name, figure in of.items()}
        return {name: mean_and_error(np.array([of[name][0] for of in each])) for name in each[0]}

    @property
    def difference(self) -> Figure | None:
        """NLL less that of the cell it is held against: seed by seed, or of a single one image by
        image."""
        if not (self.results and self.reference):
            return None
        pairs = list(zip(self.results, self.reference, strict=True))
        if len(pairs) == 1:
            return _paired(*pairs[0])
        return mean_difference([a.nll - b.nll for a, b in pairs])


def _figure(value: float, error: float | None) -> Figure:
    return value, UNKNOWN if error is None else error


def mean_difference(differences: Sequence[float]) -> Figure:
    """Mean over seeds and its standard error, which is unknown of one, or of equal runs."""
    if len(differences) == 1 or not any(differences):
        return float(np.mean(differences)), UNKNOWN
    return mean_and_error(np.array(differences))


def _paired(ours: Result, other: Result) -> Figure:
    """NLL less the other, image by image; the error is unknown where likelihoods were not kept, or
    are those of one run."""
    a, b = ours.log_likelihoods, other.log_likelihoods
    if a is None or b is None or np.array_equal(a, b):
        return ours.nll - other.nll, UNKNOWN
    return mean_and_error(b - a)


def rows(
    cells: Sequence[Cell],
    jobs: Mapping[str, Sequence[Job]],
    out: Path,
    failures: Mapping[Job, Failure] | None = None,
) -> list[Row]:
    """Every cell as its runs in `out` stand; `jobs` may hold more cells, to hold these against."""
    failed = dict(failures or {})
    found: dict[str, list[Result | None]] = {}
    for name, of in jobs.items():
        found[name] = [_found(job, out, failed) for job in of]
    complete = {n: [r for r in of if r is not None] for n, of in found.items() if None not in of}
    return [
        Row(
            cell=cell,
            state=_state(jobs[cell.name], out),
            results=complete.get(cell.name, []),
            reference=complete.get(cell.against or "", []),
            failures=[failed[job].message for job in jobs[cell.name] if job in failed],
        )
        for cell in cells
    ]


def _found(job: Job, out: Path, failed: dict[Job, Failure]) -> Result | None:
    """What is recorded of a job, with its likelihoods if they were kept; where a file is damaged
    the job has `failed`, and the others have not."""
    try:
        result = recorded(job, out)
        return result and replace(result, log_likelihoods=log_likelihoods(job, out))
    except InputError as error:
        failed.setdefault(job, Failure(str(error)))
        return None


def _state(jobs: Sequence[Job], out: Path) -> str:
    """What is left to do first."""
    states = [state(job, out) for job in jobs]
    left = [s for s in states if s != "done"]
    if not left:
        return "done"
    several = f" ({len(jobs) - len(left)} of {len(jobs)} seeds done)" if len(jobs) > 1 else ""
    return left[0] + several
