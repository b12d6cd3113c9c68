"""Reproduce published tables: list, plan, run, render, and write the results page.

experiments = listed()                              # all experiments
plan = planned(find("table1"), Choice(), config, recipe("paper"))
failures = carried_out(plan, out, callbacks=bars)   # make what is missing
rows = rendered(plan, out, failures)                # our figures beside the published ones
text = page(Path("results/reproduced"))             # the page of all records
"""

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

from iwae.errors import InputError, nearest
from iwae.experiments import cost, executors, tables
from iwae.experiments.comparisons import CellCallbacks
from iwae.experiments.executors import Made, Outcome
from iwae.experiments.jobs import Failure, Job, state
from iwae.experiments.papers import EXPERIMENTS, OTHERS
from iwae.experiments.plan import Choice as Choice
from iwae.experiments.plan import Plan
from iwae.experiments.plan import plan as planned
from iwae.experiments.results import page as page
from iwae.experiments.rows import Row, rows
from iwae.experiments.tables import Experiment

__all__ = [
    "Choice",
    "carried_out",
    "estimated",
    "find",
    "listed",
    "missing",
    "page",
    "planned",
    "rendered",
]


def listed() -> dict[str, tuple[str, int | None]]:
    """Experiments by name: a description, and the number of cells if it is a table."""
    known = {name: (e.about, len(e.cells)) for name, e in EXPERIMENTS.items()}
    return known | {name: (about, None) for name, about in OTHERS.items()}


def find(name: str | None) -> Experiment | None:
    """The table of a name or TOML file; None for an experiment that is not a table.

    `InputError` for an unknown name.
    """
    if name in OTHERS:
        return None
    if name is not None and name.endswith(".toml"):
        return _own(Path(name))
    if name is None or name not in EXPERIMENTS:
        given = "No name" if name is None else repr(name)
        known = nearest(name or "", sorted({*EXPERIMENTS, *OTHERS}))
        raise InputError(f"{given} was given as the experiment to reproduce; {known}.")
    return EXPERIMENTS[name]


def _own(path: Path) -> Experiment:
    """The table in a file; its records are named like the file."""
    if path.stem in {*EXPERIMENTS, *OTHERS}:
        raise InputError(
            f"{path} was given, but {path.stem} is an experiment of this package; rename the file."
        )
    return tables.read(path)


def estimated(
    plan: Plan, out: Path, *, data_dir: str | Path | None = None
) -> dict[Job, float | None]:
    """Remaining seconds of each unfinished job of a plan (`iwae.experiments.cost.estimate`)."""
    return cost.estimate(plan.distinct, out, data_dir=data_dir)


def missing(plan: Plan, out: Path) -> int:
    """Number of unfinished jobs of a plan."""
    return sum(state(job, out) != "done" for job in plan.distinct)


def carried_out(
    plan: Plan,
    out: Path,
    *,
    callbacks: CellCallbacks,
    elsewhere: Executor | None = None,
    made: Made = lambda name, result: None,
    data_dir: str | Path | None = None,
) -> dict[Job, Failure]:
    """Make the missing jobs of a plan (`iwae.experiments.executors.make_all`); return failures."""
    outcomes: Mapping[Job, Outcome] = executors.make_all(
        plan.named, out, elsewhere=elsewhere, callbacks=callbacks, made=made, data_dir=data_dir
    )
    return {job: of for job, of in outcomes.items() if isinstance(of, Failure)}


def rendered(plan: Plan, out: Path, failures: Mapping[Job, Failure] | None = None) -> list[Row]:
    """Our figures of every chosen cell."""
    return rows(plan.cells, plan.jobs, out, failures)
