"""Everyday commands: train, evaluate, report, data and demo."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from iwae._utils.files import as_argument
from iwae.cli.configured import Asked, start_of
from iwae.cli.flags import ALONE, DataDir, Header, Overwrite, Processes, Seed, note
from iwae.cli.outputs import check_output, write_scores
from iwae.cli.terminal import say
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError

if TYPE_CHECKING:
    from iwae.runs import OverSeeds
    from iwae.storage.evaluations import Evaluation


@dataclass(frozen=True)
class Train:
    """Train a model into a new run directory, or continue a run with --resume."""

    config: RunConfig
    out: Path
    """Run directory."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.toml")] = None
    """Settings to start from; flags replace them. `iwae --help` lists the built-in recipes."""
    resume: bool = False
    """Continue the run in --out with its own settings; --minutes, or --epochs with a constant
    schedule and no stages, can make it longer."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N|A,B,C")] = None
    """Train replicas in one program, each a run in OUT/seed-…: their number, or their seeds."""
    data_dir: DataDir = None
    """Directory in which the files of data sets are looked for first."""
    devices: int = 1
    """Devices of this machine that share each batch; with several processes, all are used."""
    together: Processes = ALONE
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Names of the settings that flags gave."""

    @classmethod
    def start(cls, asked: Asked) -> RunConfig:
        """The run that is resumed, a recipe, or the defaults."""
        if asked.resume and asked.recipe is None and asked.out is not None and asked.out.exists():
            from iwae.storage.run_directory import read_config, replicas

            return read_config(next(iter(replicas(asked.out)), asked.out))
        return start_of(asked.recipe)

    def run(self) -> None:
        from iwae.data.in_use import reading_once

        first, seeds = self.together.join(), self._seeds()
        where: dict[str, Any] = {
            "out": self.out,
            "resume": self.resume,
            "data_dir": self.data_dir,
            "progress": False,
        }
        with reading_once():
            config = self._for_table()
            self._train(config, where, first=first, seeds=seeds)

    def _train(
        self,
        config: RunConfig,
        where: dict[str, Any],
        *,
        first: bool,
        seeds: int | list[int] | tuple[int, ...] | None,
    ) -> None:
        from iwae import runs
        from iwae.cli.progress import TrainingBars

        if "batch_size" in self.given:
            where["batch_size"] = config.training.batch_size
        with TrainingBars() as bars:
            if seeds is None:
                shown = [bars.one("training")] if first else []
                trained = [runs.train(config, callbacks=shown, devices=self.devices, **where)]
            else:
                each = lambda seed: [bars.one(f"seed {seed}")]
                trained = runs.train_replicas(config, seeds=seeds, callbacks=each, **where)
        epochs, completed = config.training.epochs, min(model.epochs for model in trained)
        ended = ""
        if completed < epochs:
            ended = f" for {completed} of {epochs} epochs, as its settings end it"
        if first:
            say(f"Trained {self.out}{ended}. Next: iwae evaluate {as_argument(self.out)}")

    def _for_table(self) -> RunConfig:
        """The settings, those that no flag or recipe gives being `table_defaults` for a table."""
        from iwae import data, runs

        of = self.config.data
        source = Path(of.dataset).expanduser()
        if self.recipe is not None or self.resume or not source.is_file():
            return self.config
        read = data.load(source, values=of.values, header=of.header, schema=of.schema)
        chosen = runs.table_defaults(read, self.given)
        if chosen:
            note(
                f"{source.name} is a table of {len(read.train):,} training rows: settings that no "
                f"flag gives are those for tables of its size (docs/sklearn.md); --recipe takes "
                f"others."
            )
        return override(self.config, **chosen)

    def _seeds(self) -> int | list[int] | tuple[int, ...] | None:
        """Seeds of the replicas, or their number; None for a single run."""
        from iwae.storage import run_directory

        seeds: int | list[int] | tuple[int, ...] | None = self.seeds
        if self.seeds is None and self.resume:
            found = run_directory.replicas(self.out)
            seeds = [run_directory.read_config(p).seed for p in found] or None
        elif self.seeds is not None:
            _check_no_seed(self.config, resume=self.resume)
            seeds = self.seeds[0] if len(self.seeds) == 1 else self.seeds
        if seeds is not None and self.devices > 1:
            raise InputError(
                f"devices = {self.devices} was given, but replicas are trained on one device; "
                f"leave it out."
            )
        return seeds


@dataclass(frozen=True)
class Evaluate:
    """Estimate the log-likelihood by L_K, with its standard error, and count active units."""

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory, or a directory of replicas."""
    k: int = 5000
    """Importance samples per example; the bound tightens with K."""
    split: str = "test"
    """train, valid or test."""
    limit: int | None = None
    """Evaluate only the first LIMIT examples."""
    seed: Seed = 0
    without_inactive: bool = False
    """Also evaluate the model after its inactive units are removed."""
    only_used: bool = False
    """Also evaluate the model with only its used units (docs/units.md)."""
    mean_weights: bool = False
    """Hold uncertain weights at their means instead of drawing them."""
    memory: int | None = None
    """Budget in MiB for a block of draws. Default: chosen for the device."""
    per_example: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npy|.csv")] = None
    """Also write L_K of every example."""
    json: bool = False
    """Print one JSON object."""
    overwrite: Overwrite = False
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .npy, .npz, .csv or .parquet file of the data that the run was trained on; needed if they
    were in memory or the file has moved."""
    data_dir: DataDir = None
    together: Processes = ALONE

    def run(self) -> None:
        from iwae import runs
        from iwae.cli.progress import counting
        from iwae.storage import run_directory

        first = self.together.join()
        if self.memory is not None and self.memory < 1:
            raise InputError(
                f"memory = {self.memory} was given, but a block of draws needs at least 1 MiB; "
                f"give more, or leave it out."
            )
        check_output(self.per_example, (".npy", ".csv"), overwrite=self.overwrite, reads=self.data)
        several = run_directory.replicas(self.run_folder)
        if several and self.per_example is not None:
            raise InputError(
                f"{self.run_folder} holds replicas, but --per-example takes a single run; give "
                f"{several[0]}."
            )
        evaluate: Any = runs.evaluate_replicas if several else runs.evaluate
        unkept: runs.NotKeptError | None = None
        with counting("evaluating", quiet=self.json or not first) as progress:
            try:
                result = evaluate(
                    self.run_folder,
                    data=self.data,
                    data_dir=self.data_dir,
                    k=self.k,
                    split=self.split,
                    limit=self.limit,
                    seed=self.seed,
                    memory=None if self.memory is None else self.memory * 2**20,
                    without_inactive=self.without_inactive,
                    only_used=self.only_used,
                    mean_weights=self.mean_weights,
                    progress=progress,
                )
            except runs.NotKeptError as error:
                unkept, result = error, error.result
        if first:
            try:
                self._print(result)
            finally:  # even if standard output is closed
                if self.per_example is not None:
                    write_scores(self.per_example, result.log_likelihoods)
        if unkept is not None:  # after the figures are printed
            raise unkept

    def _print(self, result: "Evaluation | OverSeeds") -> None:
        from iwae.cli.progress import print_evaluation, print_replicas
        from iwae.runs import OverSeeds

        if self.json:
            print(json.dumps(result.to_json(), allow_nan=False))
        elif isinstance(result, OverSeeds):
            print_replicas(result)
        else:
            print_evaluation(result)


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page of one or several runs, side by side."""

    run_folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
    out: Path = Path("report.html")
    """The page."""
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae.plotting import report

        if not self.run_folders:
            raise InputError(
                "No run was given; give at least one directory that `iwae train` wrote."
            )
        paths, files = report.runs_among(self.run_folders)
        report.write(paths, self.out, data_dir=self.data_dir, overwrite=self.overwrite)
        say(*(f"Left out {file}, which is a file and not a run directory." for file in files))
        say(f"Wrote {self.out}.")


@dataclass(frozen=True)
class Data:
    """List the data sets and their files, or show the columns of your own table."""

    name: Annotated[Positional[str | None], tyro.conf.arg(metavar="[NAME|FILE]")] = None
    """One data set, or a table (.csv, .csv.gz, .parquet): then the type of each column, what it is
    modelled as, and why. Default: all data sets."""
    verify: bool = False
    """Read the files of data sets and check their content."""
    data_dir: DataDir = None
    header: Header = "auto"
    schema: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = None
    """Types of a table's columns, for those that are not to be detected."""
    write_schema: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = None
    """Write the schema of a table, to be edited and given with --schema."""
    overwrite: Overwrite = False

    def run(self) -> None:
        from iwae.data import NAMES

        if self.name is None or self.name in NAMES:
            self._show_files()
        else:
            self._show_table(Path(self.name))

    def _show_table(self, file: Path) -> None:
        from iwae import data
        from iwae._utils.files import write_atomic
        from iwae.cli.progress import print_schema
        from iwae.data import arrays, tabular

        path = arrays.data_path(file, data.NAMES)
        source = data.table_in(path, self.header)
        if source is None:
            raise InputError(f"{path} is no table; give a .csv, .csv.gz or .parquet file.")
        found, table = tabular.described(source, self.schema, str(path))
        if self.write_schema is not None:
            for given in (file, self.schema):
                check_output(self.write_schema, (".toml",), overwrite=self.overwrite, reads=given)
        print_schema(found, table)
        if self.write_schema is not None:
            write_atomic(self.write_schema, found.schema.to_toml(found.reasons))
            say(f"Wrote {self.write_schema}.")

    def _show_files(self) -> None:
        from iwae import data
        from iwae.cli.progress import print_files

        if self.schema is not None or self.write_schema is not None:
            what = "A schema was given without a table"
            raise InputError(f"{what}; give a .csv, .csv.gz or .parquet file before it.")

        found = data.status(self.name, data_dir=self.data_dir, verify=self.verify)
        print_files(found)
        corrupt = [f for f in found if f.state == "corrupt"]
        if corrupt:
            raise InputError(f"{corrupt[0].path} is corrupt; delete it and fetch it again.")


@dataclass(frozen=True)
class Demo:
    """Train a VAE and IWAEs on the embedded digits, compare them, and write a report."""

    out: Path = Path("runs/demo")
    """Directory of the runs and the report; finished runs in it are reused."""

    def run(self) -> None:
        from iwae.cli.progress import TrainingBars, print_demo
        from iwae.experiments import comparisons

        with TrainingBars(len(comparisons.DEMO_CELLS)) as bars:
            results, page = comparisons.demo(self.out, callbacks=bars)
        print_demo(results)
        say(f"Report: {page}")


def _check_no_seed(config: RunConfig, *, resume: bool) -> None:
    if config.seed != RunConfig().seed and not resume:
        raise InputError(f"seed = {config.seed} was given together with --seeds; leave out --seed.")
