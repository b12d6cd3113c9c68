"""The command line: parses, prints, nothing else.

JAX is imported by the command that needs it, so that `iwae --help` answers at once.
"""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from iwae._utils.files import as_argument
from iwae.cli.applied import Encode, Reconstruct, Sample, Score
from iwae.cli.flags import ALONE, DataDir, Hosts, Overwrite, Seed
from iwae.cli.outputs import StandardError, check_output, write_scores
from iwae.cli.published import RECIPES, SWITCHES, Reproduce
from iwae.cli.research import Compare, Gradients, Posterior
from iwae.cli.terminal import say, speak_plainly, visible
from iwae.config.io import recipe, recipe_names
from iwae.config.schema import RunConfig
from iwae.errors import TOO_LARGE, InputError, Interrupted, nearest, unusable


@dataclass(frozen=True)
class Train:
    """Train a model into a new run folder, or continue a run with --resume."""

    config: RunConfig
    out: Path
    """Folder of the run."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.toml")] = None
    """Settings to start from; flags replace them. `iwae --help` lists those that are built in."""
    resume: bool = False
    """Continue the run in --out with its own settings; --minutes, or --epochs with a constant
    schedule, can make it longer."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N|A,B,C")] = None
    """Train replicas in one program, each a run in OUT/seed-…: how many, or which seeds."""
    data_dir: DataDir = None
    """Where to look first for the files of data sets."""
    devices: int = 1
    """Devices of this machine that share each batch; several hosts use all they have."""
    together: Hosts = ALONE
    sized: tyro.conf.Suppress[bool] = False
    """Whether --batch-size was given."""

    def run(self) -> None:
        from iwae import runs
        from iwae.cli.progress import TrainingBars

        first, seeds = self.together.join(), self._seeds()
        where: dict[str, Any] = {
            "out": self.out,
            "resume": self.resume,
            "data_dir": self.data_dir,
            "progress": False,
        }
        if self.sized:
            where["batch_size"] = self.config.training.batch_size
        with TrainingBars() as bars:
            if seeds is None:
                shown = [bars.one("training")] if first else []
                made = [runs.train(self.config, callbacks=shown, devices=self.devices, **where)]
            else:
                each = lambda seed: [bars.one(f"seed {seed}")]
                made = runs.train_replicas(self.config, seeds=seeds, callbacks=each, **where)
        epochs, passes = self.config.training.epochs, min(trained.passes for trained in made)
        ended = f" for {passes} of {epochs} passes, as its settings end it" * (passes < epochs)
        if first:
            say(f"Trained {self.out}{ended}. Next: iwae evaluate {as_argument(self.out)}")

    def _seeds(self) -> int | list[int] | tuple[int, ...] | None:
        """Seeds of the replicas, or how many; None for a single run."""
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
                f"devices = {self.devices} was given, but replicas are trained on one; leave it "
                f"out."
            )
        return seeds


@dataclass(frozen=True)
class Evaluate:
    """Estimate the log-likelihood by L_K, with its standard error, and count active units."""

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run, or a folder of replicas."""
    k: int = 5000
    """Draws per example; the bound tightens with K."""
    split: str = "test"
    """train, valid or test."""
    limit: int | None = None
    """Only the first so many examples."""
    seed: Seed = 0
    without_inactive: bool = False
    """Also evaluate the model after its inactive units are removed."""
    only_used: bool = False
    """Also evaluate the model with only the units without which the layer below loses density."""
    mean_weights: bool = False
    """Hold uncertain weights at their means, where they are otherwise drawn."""
    memory: int | None = None
    """Budget in MiB for a block of draws; left out: what suits the device."""
    per_example: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npy|.csv")] = None
    """Also write L_K of every example."""
    json: bool = False
    """Print one JSON object."""
    overwrite: Overwrite = False
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .npy, .npz or .csv file of the data that the run was trained on, where it was trained on
    arrays in memory or the file has moved."""
    data_dir: DataDir = None
    together: Hosts = ALONE

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
                f"{self.run_folder} holds replicas, of which --per-example takes one; give "
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
                self._print(result, several=bool(several))
            finally:  # also where nobody reads what is printed
                if self.per_example is not None:
                    write_scores(self.per_example, result.log_likelihoods)
        if unkept is not None:  # the figures are out first, whatever cannot be written
            raise unkept

    def _print(self, result: Any, *, several: bool) -> None:
        from iwae.cli.progress import print_evaluation, print_replicas

        if self.json:
            print(json.dumps(result.to_json(), allow_nan=False))
        else:
            (print_replicas if several else print_evaluation)(result)


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
            raise InputError("No run was given; name at least one folder of `iwae train`.")
        paths, files = report.runs_among(self.run_folders)
        report.write(paths, self.out, data_dir=self.data_dir, overwrite=self.overwrite)
        say(*(f"Left out {file}, a file among the folders of runs." for file in files))
        say(f"Wrote {self.out}.")


@dataclass(frozen=True)
class Data:
    """List the data sets: which files are there, where they were looked for, whether intact."""

    name: Annotated[Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None
    """One data set; left out: all."""
    verify: bool = False
    """Read the files and check their content."""
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import data
        from iwae.cli.progress import print_files

        found = data.status(self.name, data_dir=self.data_dir, verify=self.verify)
        print_files(found)
        corrupt = [f for f in found if f.state == "corrupt"]
        if corrupt:
            raise InputError(f"{corrupt[0].path} is corrupt; delete it and fetch it again.")


@dataclass(frozen=True)
class Demo:
    """Train a VAE and IWAEs on the embedded digits, compare them, and write a report."""

    out: Path = Path("runs/demo")
    """Folder of the runs and the report; finished runs in it are reused."""

    def run(self) -> None:
        from iwae.cli.progress import TrainingBars, print_demo
        from iwae.experiments import comparisons

        with TrainingBars(len(comparisons.DEMO_CELLS)) as bars:
            results, page = comparisons.demo(self.out, watch=bars)
        print_demo(results)
        say(f"Report: {page}")


def _check_no_seed(config: RunConfig, *, resume: bool) -> None:
    if config.seed != RunConfig().seed and not resume:
        raise InputError(
            f"seed = {config.seed} was given with --seeds, which says all; leave out --seed."
        )


EVERYDAY = (Train, Evaluate, Sample, Reconstruct, Encode, Score, Report, Data, Demo)
COMMANDS: dict[str, type] = {
    c.__name__.lower(): c for c in (*EVERYDAY, Gradients, Posterior, Compare, Reproduce)
}


def main(argv: list[str] | None = None) -> None:
    """The console script: runs a command, and exits 0, 2 (unusable input) or 130 (interrupted)."""
    arguments = sys.argv[1:] if argv is None else argv
    speak_plainly()
    try:
        _dispatch(arguments)
    except InputError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("Interrupted.", 130)
    except MemoryError:
        _leave(TOO_LARGE, 2)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            _leave(TOO_LARGE, 2)
        if type(error).__name__ != "JaxRuntimeError" or _option(arguments, "--coordinator") is None:
            raise
        _leave(f"Another host has stopped, and none goes on without it ({error}).", 2)
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _leave(unusable(error), 2)
    except Interrupted as error:
        _leave(str(error), 130)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
    elif arguments[0] == "--version":
        from iwae import __version__

        print(f"iwae {__version__}")
    elif arguments[0] not in COMMANDS:
        known = nearest(arguments[0], list(COMMANDS))
        raise InputError(f"There is no command {arguments[0]!r}; {known}.")
    else:
        parse(arguments[0], arguments[1:]).run()


def parse(name: str, arguments: list[str]) -> Any:
    """The command `name` from its arguments; prints its help and exits if that is asked for."""
    from iwae.cli import flags

    command = COMMANDS[name]
    default: Any = None
    if command is Train:
        default = _train_default(arguments)
        if any(_option(arguments, name) is not None for name in ("--batch-size", "--batch_size")):
            default = dataclasses.replace(default, sized=True)
    elif command is Compare:
        default = Compare(name=tyro.MISSING, out=tyro.MISSING, config=_recipe(arguments, "paper"))
    elif command is Reproduce:
        asked = RECIPES.get(_positional(arguments))
        seeded = _option(arguments, "--seed") is not None
        default = Reproduce(config=_recipe(arguments, asked), seeded=seeded)
    return flags.parse(command, arguments, prog=f"iwae {name}", default=default)


def _train_default(arguments: list[str]) -> Train:
    """What the flags of `iwae train` start from: the run that is resumed, a recipe, or nothing."""
    out, config = _option(arguments, "--out"), _recipe(arguments, None)
    own = "--resume" in arguments and _option(arguments, "--recipe") is None
    if own and out is not None and Path(out).exists():
        from iwae.storage.run_directory import read_config, replicas

        config = read_config(next(iter(replicas(Path(out))), Path(out)))
    return Train(config=config, out=tyro.MISSING)


def _recipe(arguments: list[str], otherwise: str | None) -> RunConfig:
    """The settings of the recipe that is asked for, or of `otherwise`."""
    name = _option(arguments, "--recipe") or otherwise
    return RunConfig() if name is None else recipe(name)


def _option(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _positional(arguments: list[str]) -> str:
    """The first argument that is no option and no option's value; empty if there is none."""
    value = False
    for argument in arguments:
        if argument.startswith("-"):
            value = "=" not in argument and argument not in SWITCHES
        elif value:
            value = False
        else:
            return argument
    return ""


def _overview() -> str:
    lines = [f"  {name:12s} {c.__doc__.splitlines()[0]}" for name, c in COMMANDS.items()]  # type: ignore[union-attr]
    return "\n".join(
        [
            "usage: iwae COMMAND [OPTIONS]",
            "",
            "Importance weighted autoencoders: train, evaluate, sample, encode, score, report.",
            "",
            *lines,
            "",
            f"Recipes: {', '.join(recipe_names())}. Options: iwae COMMAND --help.",
        ]
    )


def _leave(sentence: str, code: int) -> None:
    print(f"iwae: {visible(sentence)}", file=StandardError())
    raise SystemExit(code)
