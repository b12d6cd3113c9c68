"""The command that reproduces what was published: tables, pictures, and the proposals of H-IWAE."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from iwae.cli.flags import DataDir, Overwrite
from iwae.cli.outputs import check_output
from iwae.cli.terminal import say
from iwae.config.io import override, recipe
from iwae.config.schema import RunConfig
from iwae.errors import InputError, nearest
from iwae.experiments.papers import EXPERIMENTS

PICTURED = {
    "ring": "a ring in the plane, learned by a decoder that is a factorised Gaussian",
    "manifold": "the manifold of 2 latents, and samples of models with few",
}
"""Experiments that end in pictures."""

OTHERS = {"hiwae": "independent and dependent draws, on densities and in autoencoders", **PICTURED}
"""Experiments that are not a table of cells."""

SMOKE, SMOKE_DATA, SMOKE_DRAWS = "smoke", "digits", 100
"""The recipe for trying a table out, what it puts in the place of all data, and its K."""

TOO_SHORT = (
    "The smoke recipe only shows that the table can be made: after a few passes over digits "
    "neither the figures nor their order say anything of the paper."
)

SWITCHES = ("--list", "--dry-run", "--render", "--overwrite")
"""Flags that take no value."""

TABLE = ("cells", "workers", "scheduler", "list", "dry_run", "render")
"""Flags that only tables take."""

RECIPES = {name: e.recipe for name, e in EXPERIMENTS.items()} | {name: name for name in OTHERS}
"""What each experiment starts from unless --recipe is given."""


@dataclass(frozen=True)
class Reproduce:
    """Train and evaluate what a paper compares, and print its figures beside the published ones."""

    config: RunConfig
    """Settings that all its models share."""
    name: Annotated[Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """Which experiment; --list names them."""
    out: Path = Path("runs/papers")
    """Folder of the runs; finished ones in it are reused, interrupted ones resumed."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.toml")] = None
    """Settings to start from; left out: those of the experiment. smoke puts embedded digits in the
    place of all data."""
    cells: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Only the cells of a table whose names fit, e.g. 'mnist/1/*'."""
    datasets: str = ""
    """Names, separated by commas; left out: those of the experiment. In a table omniglot=mine.npy
    puts other data in the place of published ones."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N|A,B,C")] = None
    """How many seeds, or which; left out: that of --seed if it is given, else 0 for the tables of
    long runs, 42 for dd2434 and 3 seeds for the others."""
    seeded: tyro.conf.Suppress[bool] = False
    """Whether --seed was given."""
    ks: tuple[int, ...] | None = None
    """Numbers of draws that hiwae compares, in place of --k; left out: 2,5,10,20."""
    draws: int | None = None
    """K of the evaluation; left out: 5000, and 100 with --recipe smoke."""
    limit: int | None = None
    """Only the first so many test examples."""
    workers: int = 1
    """Processes that train and evaluate the cells of a table at once."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="tcp://HOST:PORT")] = None
    """A running Dask cluster whose workers make the cells, in a folder that all share."""
    list: bool = False
    """Only list the experiments, or the cells of the one that is named."""
    dry_run: bool = False
    """Only say which cells are missing, and about how long they take on this machine."""
    render: bool = False
    """Only print the table of the cells that are finished."""
    page: Annotated[Path | None, tyro.conf.arg(metavar="FILE.md")] = None
    """Only write the page of all tables, from the records of earlier commands."""
    records: Path = Path("results/reproduced")
    """Folder of these records."""
    record: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Also write the results with their settings. Cells of a table join those that are in the file
    already, if these have the same settings; --overwrite replaces cells of the same name, and a
    file of anything else as a whole."""
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        if self.list and self.name is None:
            from iwae.cli.progress import print_experiments

            return print_experiments(
                {n: (e.about, len(e.cells)) for n, e in EXPERIMENTS.items()}
                | {n: (about, None) for n, about in OTHERS.items()}
            )
        if self.page is not None:
            from iwae._utils.files import write_atomic
            from iwae.experiments import results

            check_output(self.page, (".md",), overwrite=self.overwrite)
            write_atomic(self.page, results.page(self.records))
            return say(f"Wrote {self.page}.")
        self._check()
        if self.name in EXPERIMENTS:
            self._table(EXPERIMENTS[self.name])
        else:
            check_output(self.record, (".json",), overwrite=self.overwrite)
            self._keep(self._draw() if self.name in PICTURED else self._depend())
        return None

    def _keep(self, content: dict[str, Any]) -> None:
        """Write the record if one is wanted."""
        from iwae._utils.files import write_atomic

        if self.record is not None:
            write_atomic(self.record, json.dumps(content, indent=1, allow_nan=False))

    def _joinable(self) -> dict[str, Any] | None:
        """The record that the cells of a table join, if there is one."""
        from iwae.experiments import records

        check_output(self.record, (".json",), overwrite=True)
        if self.record is None or not self.record.exists():
            return None
        try:
            return records.joinable(self.record, str(self.name), self.config)
        except InputError:
            if self.overwrite:
                return None
            raise

    def _put_down(self, rows: Sequence[Any]) -> str:
        """Record the finished rows beside those that are there, and say which could not be."""
        from iwae._utils.files import one_at_a_time
        from iwae.experiments import records

        if self.record is None:
            return ""
        content = records.of_table(str(self.name), self.config, rows)
        if not content["cells"]:
            say(f"No cell is finished, so {self.record} is left as it was.")
            return ""
        with one_at_a_time(self.record.parent):
            there = self._joinable() or {"cells": []}
            content, refused = records.joined(there, content, replace=self.overwrite)
            self._keep(content)
        if not refused:
            return ""
        return (
            f"{self.record} holds other runs of {', '.join(refused)} than those here, and keeps "
            f"them; give --overwrite to replace them, or --render and another --record."
        )

    def _check(self) -> None:
        """`InputError` for a name that is none, and for flags that it does not take."""
        if self.name not in RECIPES:
            known = nearest(self.name or "", sorted(RECIPES))
            given = "No name" if self.name is None else repr(self.name)
            raise InputError(f"{given} was given as the experiment to reproduce; {known}.")
        if self.ks is not None and self.name != "hiwae":
            raise InputError(
                f"ks were given, but {self.name} has the K of its models; leave them out."
            )
        given_flags = [
            f.name for f in fields(self) if f.name in TABLE and getattr(self, f.name) != f.default
        ]
        if given_flags and self.name in OTHERS:
            flag = given_flags[0].replace("_", "-")
            raise InputError(f"--{flag} was given, but {self.name} is no table; leave it out.")
        if self.recipe == SMOKE and self.name in OTHERS:
            raise InputError(
                f"recipe = {SMOKE} was given, which has no models of {self.name}; leave it out, "
                f"and give a small --epochs."
            )
        if self.workers < 1:
            raise InputError(
                f"workers = {self.workers} was given, but somebody has to do it; give 1 or more."
            )
        if self.workers > 1 and self.scheduler is not None:
            raise InputError(
                f"workers = {self.workers} and a scheduler were given, but the cluster has workers "
                f"of its own; give one of the two."
            )
        if self.record is not None and (self.list or self.dry_run):
            raise InputError(
                f"record = {self.record} was given, but --list and --dry-run have no results; "
                f"leave one out."
            )

    def _executor(self) -> Any:
        """Where cells are made; None stands for this process."""
        from iwae.experiments import executors

        if self.scheduler is not None:
            return executors.cluster(self.scheduler)
        return None if self.workers == 1 else executors.processes(self.workers)

    def _k(self) -> int:
        if self.draws is not None:
            return self.draws
        return SMOKE_DRAWS if self.recipe == SMOKE else 5000

    def _listed(self, otherwise: Sequence[int] = range(3)) -> tuple[Sequence[str], Sequence[int]]:
        """Data sets and seeds; --seed is the only one unless there are --seeds."""
        from iwae import runs

        seeded = self.seeded or self.config.seed != 0
        if seeded and self.seeds is not None:
            raise InputError(
                f"seed = {self.config.seed} and seeds were given; give one of the two."
            )
        datasets = [name for name in self.datasets.split(",") if name]
        if seeded:
            return datasets, [self.config.seed]
        if self.seeds is None:
            return datasets, list(otherwise)
        return datasets, runs.listed(self.seeds[0] if len(self.seeds) == 1 else self.seeds)

    def _start(self) -> RunConfig:
        """The recipe, before flags replaced its settings."""
        return recipe(self.recipe or RECIPES[str(self.name)])

    def _table(self, experiment: Any) -> None:
        """Make what is missing of a table, print it, and record it."""
        from iwae.cli.progress import TrainingBars, print_cells, print_estimate, print_table
        from iwae.experiments import comparisons, executors, jobs, reproduce

        datasets, seeds = self._listed(experiment.seeds)
        everywhere = SMOKE_DATA if self.recipe == SMOKE else None
        placed = reproduce.placed(experiment, datasets, everywhere)
        chosen = reproduce.fitting(placed, self.cells)
        start, k = self._start(), self._k()
        config = override(self.config, seed=start.seed)
        tasks = reproduce.tasks_of(placed, config, start, seeds=seeds, k=k, limit=self.limit)
        own, instead = reproduce.own_settings(chosen), ", or choose other cells by --cells"
        comparisons.refuse_unheard(own, config, start, instead)
        out = self.out
        if self.list:
            print_cells(reproduce.rows(chosen, tasks, out))
            return
        each = {f"{c.name}, seed {t.config.seed}": t for c in chosen for t in tasks[c.name]}
        distinct = list(dict.fromkeys(each.values()))
        if self.dry_run:
            seconds = reproduce.estimate(distinct, out, data_dir=self.data_dir)
            print_estimate(each, seconds, self.workers)
            return
        self._joinable()  # a record of other settings is refused before hours of work
        failures: dict[jobs.Job, jobs.Failure] = {}
        if not self.render:
            left = sum(jobs.state(task, out) != "done" for task in distinct)
            with TrainingBars(left) as bars:
                results = executors.make_all(
                    each,
                    out,
                    elsewhere=self._executor() if left else None,
                    watch=bars,
                    made=bars.made,
                    data_dir=self.data_dir,
                )
            failures = {t: r for t, r in results.items() if isinstance(r, jobs.Failure)}
        rows = reproduce.rows(chosen, tasks, out, failures)
        try:
            kept = self._put_down(rows)
        except InputError as error:  # it could not be written; the figures are shown all the same
            kept = str(error)
        print_table(rows, experiment)
        if self.recipe == SMOKE:
            say(TOO_SHORT)
        if experiment.pictured:
            from iwae.experiments import replication

            first = {cell.name: tasks[cell.name][0] for cell in chosen}
            pictures = replication.draw(first, out, out / str(self.name), self.data_dir)
            say(*(f"Wrote {path}." for path in pictures))
        sentences = [_failed(rows, len(failures), len(distinct))] if failures else []
        if not failures:  # files that are damaged, of which the table says no more
            sentences = list(dict.fromkeys(said for row in rows for said in row.failures))
        sentences += [kept] if kept else []
        if sentences:
            raise InputError(" ".join(sentences))

    def _depend(self) -> dict[str, Any]:
        """Print the table, write the pictures, and return the record."""
        from iwae.cli.progress import TrainingBars, print_dependence
        from iwae.experiments import hiwae
        from iwae.experiments.reproduce import refuse

        datasets, seeds = self._listed()
        refuse(self.config, self._start(), {"dataset"}, "choose by --datasets")
        refuse(self.config, self._start(), {"k"}, "choose by --ks")
        ks = self.ks or hiwae.KS
        with TrainingBars(hiwae.count(datasets, seeds, ks)) as bars:
            rows, pictures = hiwae.run(
                self.config,
                self.out,
                seeds=seeds,
                k=self._k(),
                watch=bars,
                datasets=datasets,
                ks=ks,
                limit=self.limit,
                data_dir=self.data_dir,
            )
        print_dependence(rows, len(seeds))
        for path in pictures:
            say(f"Wrote {path}.")
        return hiwae.record(self.config, rows, seeds)

    def _draw(self) -> dict[str, Any]:
        """Write the pictures, print what was measured, and return the record."""
        from iwae.cli.progress import TrainingBars
        from iwae.experiments import figures

        if self.seeds is not None or self.datasets:
            raise InputError(
                f"seeds or datasets were given, but {self.name} is drawn of one model on its own "
                f"data; give --seed, or leave them out."
            )
        draw, models = figures.PLATES[str(self.name)]
        with TrainingBars(models) as bars:
            plate = draw(
                self.config,
                self.out,
                k=self._k(),
                watch=bars,
                limit=self.limit,
                data_dir=self.data_dir,
            )
        say(*plate.lines, *(f"Wrote {path}." for path in plate.pictures))
        return figures.record(str(self.name), self.config, plate)


def _failed(rows: Sequence[Any], failures: int, runs: int) -> str:
    """How many runs failed, why the first did, and how to go on."""
    first = next(row for row in rows if row.failures)
    again = "the same command tries again."
    rest = f"The others are finished; {again}" if failures < runs else again.capitalize()
    return f"{failures} of {runs} runs failed, first {first.cell.name}: {first.failures[0]} {rest}"
