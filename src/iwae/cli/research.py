"""Research commands: gradients, posterior and compare."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from iwae.cli.configured import TRAINED_OTHERWISE, Asked, start_of
from iwae.cli.flags import DataDir, Overwrite, Seed, note
from iwae.cli.outputs import check_output
from iwae.cli.terminal import say
from iwae.config.io import recipe
from iwae.config.schema import Objective, ObjectiveConfig, RunConfig
from iwae.errors import InputError

PLACES = ("out", "data_dir", "overwrite", "run_folder")
"""Flags for places of files, which do not go into records."""


@dataclass(frozen=True)
class Gradients:
    """Measure bias, variance and signal-to-noise ratio of gradient estimators."""

    run_folder: Annotated[Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """The run whose model is measured. Default: the untrained model of --recipe."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.toml")] = None
    """Settings whose untrained model is measured."""
    estimators: str = "reparam,stl,dreg"
    """Names, separated by commas."""
    ks: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of importance samples K."""
    objective: Objective = "iwae"
    """The bound whose gradient is estimated."""
    m: int | None = None
    """Number of groups of miwae and piwae."""
    alpha: float | None = None
    """Order of vr-iwae."""
    beta: float | None = None
    """Weight of the ELBO in ciwae."""
    order: int | None = None
    """Order of jvi."""
    repeats: int = 1000
    """Draws of each gradient; the reference gradient takes four times as many."""
    examples: int = 20
    """Number of training examples that a gradient is averaged over."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg|.json")] = None
    """Also plot SNR against K (.svg), or write all figures (.json)."""
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae._utils.files import write_atomic
        from iwae.cli.progress import print_gradients
        from iwae.experiments import comparisons
        from iwae.plotting import figures

        check_output(self.out, (".svg", ".json"), overwrite=self.overwrite)
        objectives = {
            k: ObjectiveConfig(
                self.objective, k=k, m=self.m, alpha=self.alpha, beta=self.beta, order=self.order
            )
            for k in self.ks
        }
        source = self.run_folder if self.recipe is None else recipe(self.recipe)
        if source is None or (self.run_folder is not None and self.recipe is not None):
            raise InputError(
                "Gradients are measured for one model; give either a run directory or --recipe."
            )
        trained, measured, slopes = comparisons.gradients(
            source,
            objectives,
            self.estimators.split(","),
            repeats=self.repeats,
            examples=self.examples,
            seed=self.seed,
            data_dir=self.data_dir,
        )
        print_gradients(measured, slopes)
        if self.out is not None and self.out.suffix == ".json":
            about = {n: v for n, v in vars(self).items() if v is not None and n not in PLACES}
            record = comparisons.gradients_record(trained, measured, slopes, about)
            write_atomic(self.out, json.dumps(record, indent=1, default=str, allow_nan=False))
        elif self.out is not None:
            write_atomic(self.out, figures.snr_curves(measured))


@dataclass(frozen=True)
class Posterior:
    """Plot q(h|x), the implicit q_EW(h|x) and the exact posterior of a model with 2 latents."""

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")]
    n: int = 4
    """Number of test images, one per row."""
    k: int = 10
    """Importance samples of q_EW."""
    side: float = 4.0
    """The plot shows the square [-side, side]²."""
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs
        from iwae._utils.files import write_atomic
        from iwae.plotting import figures

        check_output(self.out, (".png",), overwrite=self.overwrite)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        picture = figures.posterior_picture(
            trained, n=self.n, k=self.k, side=self.side, seed=self.seed
        )
        write_atomic(self.out, picture)
        say(f"Wrote q, q_EW (K = {self.k}) and the posterior of {self.n} images to {self.out}.")


@dataclass(frozen=True)
class Compare:
    """Train and evaluate several objectives, estimators, precisions or recipes, and print a table.

    `recipes` are also evaluated on the way, by minutes of training.
    """

    name: Annotated[
        Positional[str], tyro.conf.arg(metavar="estimators|objectives|precisions|recipes")
    ]
    """What is compared."""
    config: RunConfig
    """Settings that all models share."""
    out: Path
    """Directory of the runs; finished ones in it are reused, interrupted ones resumed."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME|FILE.toml")] = "paper"
    """Settings to start from; flags replace them."""
    k: int | None = None
    """Importance samples of the evaluation. Default: 5000."""
    draws: int | None = None
    """Former name of --k."""
    limit: int | None = None
    """Evaluate only the first LIMIT test examples."""
    record: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Also write the results with their settings."""
    recipes: str = "fast"
    """Of `compare recipes`: names and .toml files, separated by commas."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N|A,B,C")] = None
    """Of `compare recipes`: how many seeds each has, or which. Default: --seed."""
    split: Literal["valid", "test"] = "valid"
    """Of `compare recipes`: the examples that snapshots are evaluated on, at most 1,000 of them
    unless --limit is given."""
    targets: tuple[float, ...] = ()
    """Of `compare recipes`: NLLs, whose minutes are printed."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg")] = None
    """Of `compare recipes`: also draw NLL against minutes."""
    overwrite: Overwrite = False
    data_dir: DataDir = None
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Names of the settings that flags gave."""

    @classmethod
    def start(cls, asked: Asked) -> RunConfig:
        """The recipe."""
        return start_of(asked.recipe, "paper")

    def run(self) -> None:
        from iwae._utils.checks import check_draws
        from iwae._utils.files import write_atomic
        from iwae.cli.progress import TrainingBars, print_comparison
        from iwae.experiments import comparisons

        k = 5000 if self.k is None else self.k
        check_draws(k)
        if self.k is not None and "k" not in self.given:
            note(TRAINED_OTHERWISE)
        check_output(self.record, (".json",), overwrite=self.overwrite)
        fields = type(self).__dataclass_fields__
        given = [n for n in ("recipe", *OF_RECIPES) if getattr(self, n) != fields[n].default]
        if self.name == RECIPES and "recipe" in given:
            raise InputError("--recipe is for other comparisons; give --recipes.")
        if self.name != RECIPES and {*given} - {"recipe"}:
            raise InputError(f"--{given[-1]} is for `iwae compare recipes`; leave it out.")
        if self.name == RECIPES:
            self._recipes(k)
            return
        cells = comparisons.comparison(self.name, self.config, recipe(self.recipe))
        diverged = None
        with TrainingBars(len(cells)) as bars:
            try:
                results = comparisons.compare(
                    cells,
                    self.config,
                    self.out,
                    k=k,
                    limit=self.limit,
                    data_dir=self.data_dir,
                    callbacks=bars,
                )
            except comparisons.DivergedError as error:
                diverged, results = error, error.results
        if results:
            print_comparison(results)
        if self.record is not None:
            failures = {} if diverged is None else diverged.failures
            record = comparisons.record(self.config, results, failures)
            write_atomic(self.record, json.dumps(record, indent=1, allow_nan=False))
        if diverged is not None:
            raise diverged

    def _recipes(self, k: int) -> None:
        """Train recipes, print their table, draw their curves, and write the record."""
        from iwae import runs
        from iwae._utils.files import write_atomic
        from iwae.cli.progress import TrainingBars, print_curves
        from iwae.config.io import flatten
        from iwae.experiments import against_time, comparisons

        check_output(self.picture, (".svg",), overwrite=self.overwrite)
        for target in self.targets:
            if not math.isfinite(target):
                raise InputError(f"targets = {target} was given, but an NLL is a finite number.")
        settings = flatten(self.config)
        given = {name: settings[name] for name in sorted(self.given) if name != "seed"}
        measure = against_time.Measure(
            self.split, k, SNAPSHOT if self.limit is None else self.limit
        )
        names = [name for name in self.recipes.split(",") if name]
        several = self.seeds or (self.config.seed,)
        seeds = runs.listed(several[0] if self.seeds and len(several) == 1 else several)
        with TrainingBars(len(names) * len(seeds)) as bars:
            curves = against_time.compared(
                names,
                given,
                self.out,
                seeds=seeds,
                measure=measure,
                callbacks=bars,
                data_dir=self.data_dir,
            )
        print_curves(curves, measure, self.targets)
        if self.record is not None:
            record = against_time.record(curves, measure)
            write_atomic(self.record, json.dumps(record, indent=1, allow_nan=False))
        lines = [(curve.name, curve.points) for curve in curves if curve.points]
        if self.picture is not None and lines:
            from iwae.plotting import figures

            write_atomic(self.picture, figures.nll_curves(lines, self.targets))
        failures = {
            f"{curve.name}, seed {seed}": message
            for curve in curves
            for seed, message in curve.failures.items()
        }
        if failures:
            raise InputError(comparisons.diverged(failures))


RECIPES = "recipes"

OF_RECIPES = ("recipes", "seeds", "split", "targets", "picture")
"""Flags of `iwae compare recipes` alone."""

SNAPSHOT = 1000
"""Examples that snapshots are evaluated on."""
