"""`iwae reproduce`: published tables, figures, and the comparison of H-IWAE's proposals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from iwae.cli.configured import TRAINED_OTHERWISE, Asked, start_of
from iwae.cli.flags import DataDir, Overwrite, note
from iwae.cli.outputs import check_output
from iwae.cli.terminal import say
from iwae.config.schema import RunConfig
from iwae.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from iwae.experiments.jobs import Failure, Job
    from iwae.experiments.plan import Choice, Plan
    from iwae.experiments.records import TableRecord
    from iwae.experiments.rows import Row
    from iwae.experiments.tables import Experiment

SMOKE, SMOKE_DATA, SMOKE_K = "smoke", "digits", 100
"""The recipe that tries a table out, the data set it uses for all cells, and its K."""

TOO_SHORT = (
    "The smoke recipe only shows that the table can be made: after a few epochs on digits, "
    "neither the figures nor their order say anything about the paper."
)

TABLE = ("cells", "workers", "scheduler", "list", "dry_run", "render")
"""Flags that only published tables take."""


@dataclass(frozen=True)
class Reproduce:
    """Train and evaluate the models of a paper, and print our figures beside the published ones."""

    config: RunConfig
    """Settings that all models share."""
    name: Annotated[Positional[str | None], tyro.conf.arg(metavar="NAME|FILE.toml")] = None
    """An experiment, see --list; or a file that describes a table (docs/tables.md)."""
    out: Path = Path("runs/papers")
    """Directory of the runs; finished ones in it are reused, interrupted ones resumed."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.toml")] = None
    """Settings to start from. Default: those of the experiment. smoke trains all cells on the
    embedded digits."""
    cells: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Only the cells of a table whose names match, e.g. 'mnist/1/*'."""
    datasets: str = ""
    """Names, separated by commas. Default: those of the experiment. In a table, omniglot=mine.npy
    replaces a published data set by other data."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N|A,B,C")] = None
    """Number of seeds, or a list of them. Default: --seed if it is given, else 0 for the tables of
    long runs, 42 for dd2434 and 3 seeds for the others."""
    ks: tuple[int, ...] | None = None
    """Numbers of importance samples that hiwae compares. Default: 2,5,10,20."""
    k: int | None = None
    """Importance samples of the evaluation. Default: 5000, and 100 with --recipe smoke."""
    draws: int | None = None
    """Former name of --k."""
    limit: int | None = None
    """Evaluate only the first LIMIT test examples."""
    workers: int = 1
    """Processes that train and evaluate the cells of a table at once."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="tcp://HOST:PORT")] = None
    """A running Dask cluster whose workers make the cells, in a directory that all share."""
    list: bool = False
    """Only list the experiments, or the cells of NAME."""
    dry_run: bool = False
    """Only list the missing cells and estimate how long they take on this machine."""
    render: bool = False
    """Only print the table of the finished cells."""
    page: Annotated[Path | None, tyro.conf.arg(metavar="FILE.md")] = None
    """Only write a page of all tables, from the records of earlier commands."""
    records: Path = Path("results/reproduced")
    """Directory of these records."""
    record: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Also write the results with their settings. Cells of a table, and runs of other seeds where
    cells have no further metrics, are added to those that the file has, if these have the same
    settings; --overwrite replaces cells of the same name, and any other file as a whole."""
    overwrite: Overwrite = False
    data_dir: DataDir = None
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Names of the settings that flags gave."""

    @classmethod
    def start(cls, asked: Asked) -> RunConfig:
        """The given recipe, or that of the experiment."""
        return start_of(asked.recipe, _recipe_of(asked.name))

    def run(self) -> None:
        from iwae.experiments import papers, reproduce

        if self.list and self.name is None:
            return self._list_experiments()
        if self.page is not None:
            return self._write_page(self.page)
        experiment = reproduce.find(self.name)
        self._check(is_table=experiment is not None)
        if experiment is not None:
            return self._table(experiment)
        check_output(self.record, (".json",), overwrite=self.overwrite)
        content = self._figures() if self.name in papers.PICTURED else self._proposals()
        if self.record is not None:
            _write_record(self.record, content)
        return None

    def _list_experiments(self) -> None:
        from iwae.cli.progress import print_experiments
        from iwae.experiments import reproduce

        print_experiments(reproduce.listed())

    def _write_page(self, path: Path) -> None:
        from iwae._utils.files import write_atomic
        from iwae.experiments import reproduce

        check_output(path, (".md",), overwrite=self.overwrite)
        write_atomic(path, reproduce.page(self.records))
        say(f"Wrote {path}.")

    def _check(self, *, is_table: bool) -> None:
        """`InputError` for flags that the experiment does not take."""
        if self.ks is not None and self.name != "hiwae":
            raise InputError("ks were given, but only hiwae takes them; leave them out.")
        defaults = {f.name: f.default for f in fields(self) if f.name in TABLE}
        tables_only = [n for n, value in defaults.items() if vars(self)[n] != value]
        if tables_only and not is_table:
            flag = tables_only[0].replace("_", "-")
            raise InputError(f"--{flag} was given, but {self.name} is not a table; leave it out.")
        if self.recipe == SMOKE and not is_table:
            raise InputError(
                f"recipe = {SMOKE} was given, but it is for tables only, unlike {self.name}; leave "
                f"it out, and give a small --epochs."
            )
        if self.workers < 1:
            raise InputError(
                f"workers = {self.workers} was given, but at least 1 is needed; give 1 or more."
            )
        if self.workers > 1 and self.scheduler is not None:
            raise InputError(
                f"workers = {self.workers} and a scheduler were given, but the cluster has its own "
                f"workers; give one of the two."
            )
        if self.record is not None and (self.list or self.dry_run):
            raise InputError(
                f"record = {self.record} was given, but --list and --dry-run have no results; "
                f"leave one out."
            )

    def _table(self, experiment: "Experiment") -> None:
        """List the cells of a table, estimate their time, or make, print and record them."""
        from iwae.cli.progress import print_cells, print_estimate
        from iwae.experiments import reproduce

        start = self._start()
        plan = reproduce.planned(experiment, self._choice(experiment), self.config, start)
        if self.list:
            return print_cells(reproduce.rendered(plan, self.out))
        if self.dry_run:
            seconds = reproduce.estimated(plan, self.out, data_dir=self.data_dir)
            return print_estimate(plan.named, seconds, self.workers)
        self._joinable(experiment)  # raises for a record of other settings, before hours of work
        failures = {} if self.render else self._make(plan)
        return self._show(plan, failures)

    def _make(self, plan: "Plan") -> "dict[Job, Failure]":
        """Make the missing runs, with a progress bar for each; return the failures."""
        from iwae.cli.progress import TrainingBars
        from iwae.experiments import reproduce

        left = reproduce.missing(plan, self.out)
        with TrainingBars(left) as bars:
            return reproduce.carried_out(
                plan,
                self.out,
                callbacks=bars,
                elsewhere=self._executor() if left else None,
                made=bars.made,
                data_dir=self.data_dir,
            )

    def _show(self, plan: "Plan", failures: "Mapping[Job, Failure]") -> None:
        """Print the table, draw its figures and record it; `InputError` if runs failed."""
        from iwae.cli.progress import print_table
        from iwae.experiments import reproduce

        rows = reproduce.rendered(plan, self.out, failures)
        try:
            kept = self._add_to_record(plan.experiment, rows)
        except InputError as error:  # the record could not be written; still print the table
            kept = str(error)
        print_table(rows, plan.experiment)
        if self.recipe == SMOKE:
            say(TOO_SHORT)
        if plan.experiment.pictured:
            from iwae.experiments import replication

            first = {cell.name: plan.jobs[cell.name][0] for cell in plan.cells}
            directory = self.out / plan.experiment.name
            pictures = replication.draw(first, self.out, directory, self.data_dir)
            say(*(f"Wrote {path}." for path in pictures))
        messages = [_failed(rows, len(failures), len(plan.distinct))] if failures else []
        if not failures:  # damaged files, which the table does not explain
            messages = list(dict.fromkeys(message for row in rows for message in row.failures))
        messages += [kept] if kept else []
        if messages:
            raise InputError(" ".join(messages))

    def _joinable(self, experiment: "Experiment") -> "TableRecord | None":
        """The existing record to which the cells are added, if any."""
        from iwae.experiments import records

        check_output(self.record, (".json",), overwrite=True)
        if self.record is None or not self.record.exists():
            return None
        try:
            return records.joinable(self.record, experiment, self.config)
        except InputError:
            if self.overwrite:
                return None
            raise

    def _add_to_record(self, experiment: "Experiment", rows: "Sequence[Row]") -> str:
        """Add the finished rows to the record; return a message about those it keeps instead."""
        from iwae._utils.files import one_at_a_time
        from iwae.experiments import records

        if self.record is None:
            return ""
        added = records.of_table(experiment, self.config, rows)
        if not added.cells:
            say(f"No cell is finished, so {self.record} was not changed.")
            return ""
        with one_at_a_time(self.record.parent):
            there = self._joinable(experiment)
            order = [cell.name for cell in experiment.cells]
            whole, left = records.joined(there, added, order, replace=self.overwrite)
            _write_record(self.record, whole.to_json())
        if not left:
            return ""
        return (
            f"{self.record} already holds other runs of {', '.join(left)}, which were kept; give "
            f"--overwrite to replace them, or --render and another --record."
        )

    def _executor(self) -> "Executor | None":
        """Where cells are made; None stands for this process."""
        from iwae.experiments import executors

        if self.scheduler is not None:
            return executors.cluster(self.scheduler)
        return None if self.workers == 1 else executors.processes(self.workers)

    def _start(self) -> RunConfig:
        """The recipe, before flags replaced its settings."""
        return self.start(Asked(recipe=self.recipe, name=self.name))

    def _k(self) -> int:
        """Importance samples of the evaluation."""
        from iwae._utils.checks import check_draws

        k = SMOKE_K if self.recipe == SMOKE else 5000
        k = k if self.k is None else self.k
        check_draws(k)
        return k

    def _choice(self, experiment: "Experiment") -> "Choice":
        """The choice of cells that the flags make."""
        from iwae.experiments.reproduce import Choice

        return Choice(
            cells=self.cells,
            datasets=self._datasets(),
            everywhere=SMOKE_DATA if self.recipe == SMOKE else None,
            seeds=self._seeds(experiment.seeds),
            k=self._k(),
            limit=self.limit,
        )

    def _datasets(self) -> Sequence[str]:
        return [name for name in self.datasets.split(",") if name]

    def _seeds(self, default: Sequence[int]) -> Sequence[int]:
        """The seeds of --seeds, else that of --seed, else `default`."""
        from iwae import runs

        if "seed" in self.given or self.config.seed != 0:
            if self.seeds is not None:
                raise InputError(
                    f"seed = {self.config.seed} and seeds were given; give one of the two."
                )
            return [self.config.seed]
        if self.seeds is None:
            return default
        return runs.listed(self.seeds[0] if len(self.seeds) == 1 else self.seeds)

    def _proposals(self) -> "dict[str, object]":
        """Print the table of proposals, write the figures, and return the record."""
        from iwae.cli.progress import TrainingBars, print_hiwae
        from iwae.experiments import hiwae
        from iwae.experiments.plan import check_shared

        datasets, seeds, start = self._datasets(), self._seeds(range(3)), self._start()
        check_shared(self.config, start, {"dataset"}, "choose by --datasets")
        check_shared(self.config, start, {"k"}, "choose by --ks")
        ks = self.ks or hiwae.KS
        with TrainingBars(hiwae.count(datasets, seeds, ks)) as bars:
            rows, pictures = hiwae.run(
                self.config,
                self.out,
                seeds=seeds,
                k=self._k(),
                callbacks=bars,
                datasets=datasets,
                ks=ks,
                limit=self.limit,
                data_dir=self.data_dir,
            )
        print_hiwae(rows, len(seeds))
        say(*(f"Wrote {path}." for path in pictures))
        return hiwae.record(self.config, rows, seeds)

    def _figures(self) -> "dict[str, object]":
        """Write the figures, print what was measured, and return the record."""
        from iwae.cli.progress import TrainingBars
        from iwae.experiments import figures

        if self.seeds is not None or self.datasets:
            raise InputError(
                f"seeds or datasets were given, but {self.name} trains one model on its own data; "
                f"give --seed, or leave them out."
            )
        if self.k is not None and "k" not in self.given:
            note(TRAINED_OTHERWISE)
        name = str(self.name)
        draw, models = figures.FIGURES[name]
        with TrainingBars(models) as bars:
            drawn = draw(
                self.config,
                self.out,
                k=self._k(),
                callbacks=bars,
                limit=self.limit,
                data_dir=self.data_dir,
            )
        say(*drawn.lines, *(f"Wrote {path}." for path in drawn.pictures))
        return figures.record(name, self.config, drawn)


def _recipe_of(name: str | None) -> str | None:
    """The recipe of an experiment or of a table in a file; None for an unknown name."""
    from iwae.experiments import tables
    from iwae.experiments.papers import EXPERIMENTS, OTHERS

    if name is not None and name.endswith(".toml"):
        return tables.read(Path(name)).recipe
    if name in OTHERS:
        return name
    return EXPERIMENTS[name].recipe if name in EXPERIMENTS else None


def _write_record(path: Path, content: "Mapping[str, object]") -> None:
    from iwae._utils.files import write_atomic

    write_atomic(path, json.dumps(content, indent=1, allow_nan=False))


def _failed(rows: "Sequence[Row]", failures: int, runs: int) -> str:
    """The message about failed runs: their number, the first reason, and how to go on."""
    first = next(row for row in rows if row.failures)
    again = "the same command tries again."
    rest = f"The others are finished; {again}" if failures < runs else again.capitalize()
    return f"{failures} of {runs} runs failed, first {first.cell.name}: {first.failures[0]} {rest}"
