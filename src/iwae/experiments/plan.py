"""Plans: the chosen cells of a table, on which data, and the jobs of each."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iwae import data
from iwae.config.io import STAGES, differences, override
from iwae.config.schema import RunConfig
from iwae.errors import InputError, nearest
from iwae.experiments import comparisons
from iwae.experiments.jobs import Job
from iwae.experiments.tables import Cell, Experiment, Setting


@dataclass(frozen=True)
class Choice:
    """Which cells of a table to make, and how."""

    cells: str = "*"
    """Pattern of the cells' names."""
    datasets: Sequence[str] = ()
    """Only cells on these data sets; `published=ours` replaces one. Empty: all."""
    everywhere: str | None = None
    """A data set that replaces all others."""
    seeds: Sequence[int] = (0,)
    k: int = 5000
    """Importance samples of the evaluation."""
    limit: int | None = None
    """Number of test examples; None: all."""


@dataclass(frozen=True)
class Plan:
    """The chosen cells of a table, and their jobs."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    jobs: Mapping[str, Sequence[Job]]
    """Jobs by cell, including the cells that chosen ones are compared with."""

    @property
    def named(self) -> dict[str, Job]:
        """The jobs of the chosen cells, by cell and seed."""
        return {f"{c.name}, seed {j.config.seed}": j for c in self.cells for j in self.jobs[c.name]}

    @property
    def distinct(self) -> list[Job]:
        """The same jobs without duplicates, in order."""
        return list(dict.fromkeys(self.named.values()))


def plan(experiment: Experiment, choice: Choice, config: RunConfig, start: RunConfig) -> Plan:
    """The plan of a table with the settings `config`, which started from the recipe `start`.

    `InputError` for a choice without cells, and for settings that cells set themselves.
    """
    everything = placed(experiment, choice.datasets, choice.everywhere)
    cells = fitting(everything, choice.cells)
    config = override(config, seed=start.seed)
    made_of = jobs_of(everything, config, start, seeds=choice.seeds, k=choice.k, limit=choice.limit)
    instead = ", or choose other cells by --cells"
    comparisons.check_own(own_settings(cells), config, start, instead)
    return Plan(experiment, cells, made_of)


def placed(
    experiment: Experiment, datasets: Sequence[str] = (), everywhere: str | None = None
) -> tuple[Cell, ...]:
    """The cells of an experiment on these data sets (none: on all).

    `published=ours` replaces a data set by another; such cells have no published figures.
    `everywhere` replaces all. `InputError` for a data set that no cell uses.
    """
    published = list(dict.fromkeys(cell.dataset for cell in experiment.cells))
    places = dict(part.partition("=")[::2] for part in datasets) or dict.fromkeys(published, "")
    if everywhere is not None and any(places.values()):
        raise InputError(
            f"datasets = {','.join(datasets)} was given, but every cell uses {everywhere} here; "
            f"give another --recipe."
        )
    for name in places:
        if name not in published:
            raise InputError(
                f"datasets = {','.join(datasets)} was given, but no cell uses {name!r}; "
                f"{nearest(name, published)}, or {published[0]}={name} to replace a data set by it."
            )
    cells: dict[str, Cell] = {}
    for cell in experiment.cells:
        dataset = cell.dataset
        if dataset in places:
            moved = _moved(cell, dataset, everywhere or places[dataset] or dataset)
            there = cells.setdefault(moved.name, moved)
            if there.settings["dataset"] != moved.settings["dataset"]:
                raise InputError(
                    f"datasets = {','.join(datasets)} was given, but both would be called "
                    f"{Path(places[dataset]).name}; rename one of the files."
                )
    return tuple(cells.values())


def fitting(cells: Sequence[Cell], pattern: str) -> tuple[Cell, ...]:
    """The cells whose names match a pattern like mnist/1/*; `InputError` if there are none."""
    found = tuple(cell for cell in cells if fnmatch.fnmatch(cell.name, pattern))
    if not found:
        raise InputError(
            f"cells = {pattern} was given, but no cell's name matches; the cells are "
            f"{', '.join(cell.name for cell in cells)}."
        )
    return found


def _moved(cell: Cell, dataset: str, to: str) -> Cell:
    """The cell on another data set, without published figures."""
    if to == dataset:
        return cell
    settings = {**cell.settings, "dataset": to if to in data.NAMES else str(Path(to).resolve())}
    if settings.get("binarization") == "none":  # for published data that are already binary
        settings["binarization"] = "fixed"
    named = lambda name: name and name.replace(dataset, Path(to).name, 1)
    return Cell(
        name=named(cell.name),
        settings=settings,
        against=named(cell.against),
        after=named(cell.after),
        measures=cell.measures,
    )


def jobs_of(
    cells: Sequence[Cell],
    config: RunConfig,
    start: RunConfig,
    *,
    seeds: Sequence[int],
    k: int,
    limit: int | None,
) -> dict[str, list[Job]]:
    """The jobs of each cell by its name, one for each seed.

    `config` started from the recipe `start`; `InputError` if they differ in what cells set
    themselves.
    """
    own = set.intersection(*(set(cell.settings) for cell in cells))
    check_shared(config, start, own, "choose by --cells")
    jobs: dict[str, list[Job]] = {}
    before = {cell.name: cell.after for cell in cells}
    for cell in sorted(cells, key=lambda cell: _depth(cell.name, before)):
        begun = [None] * len(seeds) if cell.after is None else jobs[cell.after]
        basis = config if cell.after is None else continued(config)
        jobs[cell.name] = [
            Job(override(basis, **cell.settings, seed=seed), k, limit, cell.measures, after)
            for seed, after in zip(seeds, begun, strict=True)
        ]
    return jobs


def _depth(name: str, before: Mapping[str, str | None]) -> int:
    """How many cells are trained one after the other before this one."""
    after = before.get(name)
    return 0 if after is None else 1 + _depth(after, before)


def continued(config: RunConfig) -> RunConfig:
    """Settings for training a converged model further: 3^7 of 3,280 epochs, at a tenth of the
    initial learning rate (Burda et al. §5), in the last of its stages."""
    last, _, _ = config.by_stage[-1]
    t = last.training
    epochs = max(1, round(t.epochs * 3**7 / 3280))
    return override(
        last,
        epochs=epochs,
        learning_rate=t.learning_rate / 10,
        **CONTINUED,
    )


CONTINUED: dict[str, Setting] = {"schedule": "constant", "warmup": 0, "kl_warmup": 0, STAGES: ""}
"""The schedules of further training."""


def check_shared(config: RunConfig, start: RunConfig, own: set[str], instead: str) -> None:
    """`InputError` if `config` differs from the recipe in what each model sets itself."""
    for name, value, _ in differences(config, start):
        if name in own:
            raise InputError(
                f"{name} = {value} was given, but every model that is compared has its own; leave "
                f"it out, and {instead}."
            )


def own_settings(cells: Sequence[Cell]) -> dict[str, dict[str, Setting]]:
    """By cell name, the settings that a cell sets itself."""
    return {cell.name: {**cell.settings, **(CONTINUED if cell.after else {})} for cell in cells}
