"""Rows of a table: our figures of each cell."""

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
    """A cell with its results so far."""

    cell: Cell
    state: str
    """done, or the state of the first unfinished run."""
    results: list[Result]
    """Results by seed; empty until all are finished."""
    reference: list[Result]
    """Results of the cell that it is compared with."""
    failures: list[str]

    @property
    def seeds(self) -> list[int]:
        return [e.seed for e in self.results]

    @property
    def nll(self) -> Figure:
        """Mean and standard error over seeds, or for one seed over examples."""
        if len(self.results) == 1:
            return _figure(self.results[0].nll, self.results[0].nll_se)
        return mean_and_error(np.array([e.nll for e in self.results]))

    @property
    def active_units(self) -> str:
        """Mean over seeds, layer by layer."""
        return units_in_words(mean_units(self.results), "+")

    @property
    def figures(self) -> dict[str, Figure]:
        """Further metrics by name, over seeds or for a single one."""
        each = [
            {name: figure for of in e.figures.values() for name, figure in of.items()}
            for e in self.results
        ]
        if len(each) < 2:
            return {name: _figure(*figure) for of in each for name, figure in of.items()}
        return {name: mean_and_error(np.array([of[name][0] for of in each])) for name in each[0]}

    @property
    def difference(self) -> Figure | None:
        """NLL minus that of the cell to compare with, paired by seed, or for one seed by image."""
        if not (self.results and self.reference):
            return None
        pairs = list(zip(self.results, self.reference, strict=True))
        if len(pairs) == 1:
            return _paired(*pairs[0])
        return mean_difference([a.nll - b.nll for a, b in pairs])


def _figure(value: float, error: float | None) -> Figure:
    return value, UNKNOWN if error is None else error


def mean_difference(differences: Sequence[float]) -> Figure:
    """Mean over seeds and its standard error, which is unknown for one seed or equal runs."""
    if len(differences) == 1 or not any(differences):
        return float(np.mean(differences)), UNKNOWN
    return mean_and_error(np.array(differences))


def _paired(ours: Result, other: Result) -> Figure:
    """NLL minus the other, paired by image; the error is unknown if likelihoods were not kept, or
    both are the same run."""
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
    """The rows of cells by their runs in `out`; `jobs` also holds the cells to compare with."""
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
    """The result of a job, with its likelihoods if they were kept; damaged files count as failure
    of this job in `failed`."""
    try:
        result = recorded(job, out)
        return result and replace(result, log_likelihoods=log_likelihoods(job, out))
    except InputError as error:
        failed.setdefault(job, Failure(str(error)))
        return None


def _state(jobs: Sequence[Job], out: Path) -> str:
    """The state of the first unfinished run, or done."""
    states = [state(job, out) for job in jobs]
    left = [s for s in states if s != "done"]
    if not left:
        return "done"
    several = f" ({len(jobs) - len(left)} of {len(jobs)} seeds done)" if len(jobs) > 1 else ""
    return left[0] + several
