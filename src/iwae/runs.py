"""Train a run from its configuration, resume it, load and evaluate it.

A run that was killed continues exactly from its last checkpoint.
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import equinox as eqx
import jax
import numpy as np

from iwae import data
from iwae._utils.checks import check_seed
from iwae._utils.distributed import Devices, computing, is_first, json_from_first, processes_agree
from iwae._utils.files import as_argument
from iwae._utils.programs import keep_programs
from iwae.bounds import BoundFunction, Pair
from iwae.config.io import differences, override, parse
from iwae.config.schema import RunConfig
from iwae.config.tables import TableSettings
from iwae.data import Dataset
from iwae.data.in_use import reading_once
from iwae.data.schema import Schema
from iwae.errors import InputError, unusable
from iwae.estimators.surrogate import Estimator
from iwae.evaluation.examples import Progress, mean_and_error
from iwae.evaluation.trained import Evaluation, TrainedModel, skeleton
from iwae.models.base import AbstractAutoencoder, ModelLike
from iwae.models.build import as_kept
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.observation import Observation, observation, prepare
from iwae.storage import checkpoint
from iwae.storage.checkpoint import Stored
from iwae.storage.persisted import finite
from iwae.storage.run_directory import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    MODEL,
    REPLICA,
    UNVERIFIED,
    RunDirectory,
    history_of,
    keep_evaluation,
    noted,
    open_run,
    open_runs,
    read_config,
    read_config_and_identity,
    read_evaluations,
    read_metrics,
    read_model,
    read_own,
    read_progress,
    replicas,
)
from iwae.training import callbacks as training_callbacks
from iwae.training import parts as own_parts
from iwae.training import progress as progress_bars
from iwae.training.callbacks import Callback, FromWatcher, Watcher
from iwae.training.gradient_step import OptimizerOf
from iwae.training.parts import OwnParts
from iwae.training.trainer import Observed, Run, Trainer, initial

Data = Dataset | np.ndarray | Mapping[str, np.ndarray]
"""Data in memory: an array, a data frame (read as an array), or a mapping of splits to arrays."""

Name = TypeVar("Name", int, str)
"""Identifies one of several runs: its seed or its name."""


@computing()
def train(
    config: RunConfig | None = None,
    *,
    data: Data | None = None,
    out: str | Path | None = None,
    resume: bool | None = False,
    data_dir: str | Path | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    progress: bool | None = None,
    devices: int = 1,
    model: ModelLike | None = None,
    bound: str | BoundFunction | Pair | None = None,
    estimator: str | Estimator | None = None,
    likelihood: str | AbstractLikelihood | None = None,
    optimizer: str | OptimizerOf | None = None,
    watch: Callback | Watcher | None = None,
    **settings: object,
) -> TrainedModel:
    """Train a model.

    Args:
        config: the configuration. Default: `RunConfig()`, or that of the run being resumed.
        data: an array [n, …], a data frame or a `Dataset`, in place of the setting `dataset`.
        out: the run directory, which `load` reads. Default: keep the run in memory only.
        resume: whether to resume the run in `out`; None resumes it if it exists.
        data_dir: where to look first for the files of data sets.
        callbacks: called as the training proceeds (`iwae.training.Callback`).
        progress: whether to show a progress bar. Default: only in a notebook.
        devices: number of local devices that share each batch. With several processes
            (`iwae._utils.distributed.join`) all their devices share it, and the first process
            writes the files.
        model: an equinox module with `propose`, `log_joint` and `log_proposal`.
        bound: a function from K log-weights to a number, a `Pair`, or the name of an objective.
        estimator: an `iwae.estimators.Estimator`, or the name of one.
        likelihood: an `AbstractLikelihood`, or the name of one.
        optimizer: a function from a schedule of the learning rate, `optax.Schedule`, to an optax
            optimiser, such as `optax.lion`, or the name of one.
        watch: deprecated; a single callback.
        settings: fields of the configuration by name, such as `k=50`. If neither a `config` is
            given nor a run resumed, a table takes those of `iwae.config.tables` for what is not
            given here (`table_defaults`). Unless `batch_size` is given, it is reduced to the size
            of a smaller training split.

    Returns:
        The trained model with its data.

    Raises:
        InputError: if an argument cannot be used.
        NonFiniteError: if the bound is not finite.
        Interrupted: after Ctrl-C, once the run is saved.

    Example:
        >>> trained = iwae.train(data=x, k=50, epochs=20, out="runs/mine")  # doctest: +SKIP
    """
    keep_programs()
    parts, settings = own_parts.of(
        settings,
        model=model,
        bound=bound,
        estimator=estimator,
        likelihood=likelihood,
        optimizer=optimizer,
    )
    collected = _all_callbacks(callbacks, watch, progress)
    config, chosen = _resolved_config(config, out, resume, parts, settings)
    with processes_agree():
        asked = _Asked(frozenset(settings), alone=not chosen)
        config, observed = _observed(config, data, data_dir, asked=asked, parts=parts)
        placement = Devices.of(devices, config.training.batch_size)
    _check_same_in_processes(observed.dataset)
    with _opened_by_first(out, config, resume=resume) as directory:
        run = Run(config, observed, directory, collected, placement, parts)
        Trainer([run], None if out is None else Path(out)).train()
    return replace(run.trained(), data_dir=data_dir)


def _resolved_config(
    config: RunConfig | None,
    out: str | Path | None,
    resume: bool | None,
    parts: OwnParts,
    settings: Mapping[str, object],
) -> tuple[RunConfig, bool]:
    """The configuration of a run as the first process has it, and whether it has a `_base_config`
    rather than the defaults below its settings."""
    with processes_agree():
        if resume is not False:
            _check_parts(out, parts)
        base = _base_config(config, out, resume=resume)
        config = override(base or RunConfig(), **settings)
    if jax.process_count() == 1:
        return config, base is not None
    text, chosen = json_from_first(config.to_toml()), json_from_first(base is not None)
    return parse(text, "the first process's settings"), chosen


def _all_callbacks(
    callbacks: Callback | Iterable[Callback],
    watch: Callback | Watcher | None,
    progress: bool | None,
    description: str = "training",
) -> list[Callback]:
    """All callbacks: the progress bar (first process only), `callbacks`, and the one in `watch`."""
    collected = [*(progress_bars.bars(progress, description) if is_first() else ())]
    collected += training_callbacks.checked(callbacks)
    if watch is not None:
        _warn_of_watch(stacklevel=5)
        collected.append(watch if isinstance(watch, Callback) else FromWatcher(watch))
    return collected


def _warn_of_watch(*, stacklevel: int) -> None:
    warnings.warn(
        "watch is deprecated and will be removed in the next version; use callbacks=[…] instead.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def _check_parts(out: str | Path | None, parts: OwnParts) -> None:
    """`InputError` unless the run in `out`, if there is one, was trained with the same parts."""
    if out is not None and is_first() and (Path(out) / CONFIG).is_file():
        own_parts.check_same(out, read_own(Path(out)), parts.names)


def _base_config(
    config: RunConfig | None, out: str | Path | None = None, *, resume: bool | None = False
) -> RunConfig | None:
    """The configuration that was given, or that of the run to resume, or None.

    `InputError` if what was given is not a `RunConfig`.
    """
    if config is None and out is not None and resume is not False and is_first():
        path = next(iter(replicas(Path(out))), Path(out))
        if (path / CONFIG).exists():
            return read_config(path)
    if config is not None and not isinstance(config, RunConfig):
        raise InputError(
            f"A {type(config).__name__} was given as the configuration, but a RunConfig is "
            f"expected; give examples by name, as in train(data=x)."
        )
    return config


def _check_same_in_processes(dataset: Dataset) -> None:
    """`InputError` if the examples of this process differ from those of the first."""
    first = json_from_first(dataset.whole_digest)
    with processes_agree():
        if dataset.whole_digest != first:
            raise InputError(
                f"The examples of {dataset.name} in this process differ from those of the first "
                f"process; give every process the same data."
            )


@contextlib.contextmanager
def _opened_by_first(
    out: str | Path | None, config: RunConfig, *, resume: bool | None
) -> Iterator[RunDirectory]:
    """`open_run` in the first process; the others have no run directory."""
    with contextlib.ExitStack() as stack:
        directory = RunDirectory(None)
        with processes_agree():
            if is_first():
                directory = stack.enter_context(open_run(out, config, resume=resume))
        yield directory


@computing()
def train_replicas(
    config: RunConfig | None = None,
    *,
    seeds: int | Sequence[int],
    data: Data | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    callbacks: Callable[[int], Iterable[Callback]] | None = None,
    progress: bool | None = None,
    bound: str | BoundFunction | Pair | None = None,
    estimator: str | Estimator | None = None,
    likelihood: str | AbstractLikelihood | None = None,
    optimizer: str | OptimizerOf | None = None,
    watch: Callable[[int], Callback | Watcher] | None = None,
    **settings: object,
) -> list[TrainedModel]:
    """`train_together` for several seeds.

    Args:
        seeds: a list of seeds, or their number: 5 stands for the seeds 0 … 4.
        out: the directory of the replicas; replica s is written to out/seed-s.
        callbacks: returns the callbacks of a seed.
        watch: deprecated; returns the single callback of a seed.
        config, data, resume, data_dir, progress, bound, estimator, likelihood, optimizer, settings:
            as for `train`.

    Returns:
        The trained models, in the order of the seeds.

    Raises:
        InputError: as `train`, and if a seed is given twice.

    Example:
        >>> five = iwae.train_replicas(data=x, seeds=5, out="runs/five")  # doctest: +SKIP
    """
    if "model" in settings:
        raise InputError(
            "model was given to train_replicas, but all replicas would then start from the same "
            "parameters; train them one by one with iwae.train(model=…, seed=…)."
        )
    parts, settings = own_parts.of(
        settings, bound=bound, estimator=estimator, likelihood=likelihood, optimizer=optimizer
    )
    which = listed(seeds)
    if resume and out is not None:
        for path in replicas(Path(out)):
            _check_parts(path, parts)
    base = _base_config(config, out, resume=resume)
    config = override(base or RunConfig(), **settings)
    named = {f"{REPLICA}{seed}": override(config, seed=seed) for seed in which}
    if resume and out is not None and not replicas(Path(out)):
        raise InputError(f"{out} holds no replicas to resume; leave out --resume to start them.")
    of_seed = _callbacks_by_run(callbacks, watch, stacklevel=5)
    callbacks_of = None if of_seed is None else lambda name: of_seed(named[name].seed)
    asked = _Asked(frozenset(settings), alone=base is None)
    trained = _train_together(
        named,
        data,
        out,
        data_dir,
        callbacks_of,
        resume=resume,
        asked=asked,
        progress=progress,
        parts=parts,
    )
    return list(trained.values())


def _callbacks_by_run(
    callbacks: Callable[[Name], Iterable[Callback]] | None,
    watch: Callable[[Name], Callback | Watcher] | None,
    *,
    stacklevel: int,
) -> Callable[[Name], Iterable[Callback]] | None:
    """The function that returns the callbacks of a run, from `callbacks` and `watch`."""
    if watch is None:
        return callbacks
    _warn_of_watch(stacklevel=stacklevel)

    def one(name: Name) -> list[Callback]:
        watcher = watch(name)
        own = watcher if isinstance(watcher, Callback) else FromWatcher(watcher)
        return [*(callbacks(name) if callbacks is not None else ()), own]

    return one


@computing()
def train_together(
    configs: Mapping[str, RunConfig],
    *,
    data: Data | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    callbacks: Callable[[str], Iterable[Callback]] | None = None,
    progress: bool | None = None,
    watch: Callable[[str], Callback | Watcher] | None = None,
) -> dict[str, TrainedModel]:
    """`train` for several configurations in one compiled program.

    On a CPU each run equals, bit for bit, the one that `train` gives. Elsewhere runs that differ
    only in seed and learning rate share batched matrix products, which round differently.

    Args:
        configs: configurations by name. They must share the data and the batch size.
        out: the directory of the runs; each is written to out/name.
        resume: whether to resume the runs that exist; the others are started.
        callbacks: returns the callbacks of a run, given its name.
        watch: deprecated; returns the single callback of a run.
        data, data_dir, progress: as for `train`.

    Returns:
        The trained models by name.

    Raises:
        InputError: as `train`, and if the configurations cannot share a program.

    Example:
        >>> a, b = override(c, k=5), override(c, k=50)  # doctest: +SKIP
        >>> both = iwae.train_together({"k5": a, "k50": b}, data=x)  # doctest: +SKIP
    """
    callbacks_of = _callbacks_by_run(callbacks, watch, stacklevel=5)
    return _train_together(
        configs, data, out, data_dir, callbacks_of, resume=resume, progress=progress
    )


def _train_together(
    configs: Mapping[str, RunConfig],
    data: Data | None,
    out: str | Path | None,
    data_dir: str | Path | None,
    callbacks: Callable[[str], Iterable[Callback]] | None,
    *,
    resume: bool,
    asked: "_Asked | None" = None,
    progress: bool | None = None,
    parts: OwnParts = own_parts.NONE,
) -> dict[str, TrainedModel]:
    """`train_together`; `asked` says which settings the user gave by name."""
    if jax.process_count() > 1:
        raise InputError(
            "Several runs were given to several processes, which can share only the batches of a "
            "single run; train them one by one."
        )
    keep_programs()
    observed = _observed_together(configs, data, data_dir, asked=asked, parts=parts)
    configs = {name: config for name, (config, _) in observed.items()}
    callbacks_of = {
        name: _all_callbacks(() if callbacks is None else callbacks(name), None, progress, name)
        for name in configs
    }
    with open_runs(out, configs, resume=resume) as directories:
        together = {
            name: Run(config, data, directories[name], callbacks_of[name], parts=parts)
            for name, (config, data) in observed.items()
        }
        Trainer(list(together.values()), None if out is None else Path(out)).train()
    return {n: replace(run.trained(), data_dir=data_dir) for n, run in together.items()}


def _observed_together(
    configs: Mapping[str, RunConfig],
    given: object,
    data_dir: str | Path | None,
    *,
    asked: "_Asked | None",
    parts: OwnParts,
) -> dict[str, tuple[RunConfig, Observed]]:
    """`_observed` of each configuration, on one shared data set.

    `InputError` if they cannot share it.
    """
    _check_names(configs)
    first, config = next(iter(configs.items()))
    own, dataset = _resolved_data(config, given, data_dir, asked=asked, parts=parts)
    observed = _prepared(own, dataset, parts)
    shared = {"dataset": own.data.dataset, "batch_size": own.training.batch_size}
    if asked is not None:
        shared |= asked.of_table(dataset, parts)
    for name, other in configs.items():
        apart = [n for n, *_ in differences(config, other) if n in SHARED]
        if not apart and _observation(override(other, **shared), dataset, parts) != observed.seen:
            apart = ["likelihood"]
        if apart:
            raise InputError(
                f"Runs in one program share their data and batch size, but {first} and {name} "
                f"differ in {apart[0]}; train them one by one."
            )
    return {n: (override(c, **shared), observed) for n, c in configs.items()}


def _check_names(configs: Mapping[str, RunConfig]) -> None:
    """`InputError` unless configurations are given by names that directories can have."""
    if not isinstance(configs, Mapping) or not configs:
        raise InputError(
            "train_together takes configurations by name; give at least one, as in "
            "{'plain': config}."
        )
    for name in configs:
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(
                f"{name!r} was given as the name of a run, but it cannot be the name of a "
                f"directory in out; give a name without a path."
            )


SHARED = ("dataset", "values", "schema", "header", "binarization", "batch_size")
"""Settings that all runs in one program share."""


def listed(seeds: int | Sequence[int]) -> list[int]:
    """The seeds as a list; `InputError` if there are none, or one is given twice."""
    which = list(range(seeds) if isinstance(seeds, int) else seeds)
    if not which or len(set(which)) < len(which):
        given = seeds if isinstance(seeds, int) else ",".join(map(str, seeds))
        raise InputError(
            f"seeds = {given} was given, but replicas need seeds that differ; give how many (5), "
            f"or which (0,3,7)."
        )
    for seed in which:
        check_seed(seed)
    return which


def _observed(
    config: RunConfig,
    given: object,
    data_dir: str | Path | None,
    *,
    asked: "_Asked | None" = None,
    parts: OwnParts = own_parts.NONE,
) -> tuple[RunConfig, Observed]:
    """The configuration with its data as the model observes them (see `_resolved_data`).

    `InputError` if the user's own parts do not fit the data.
    """
    config, dataset = _resolved_data(config, given, data_dir, asked=asked, parts=parts)
    own_parts.check_settings(parts, config)
    own_parts.check_shapes(parts, math.prod(dataset.shape), config.objective.k)
    return config, _prepared(config, dataset, parts)


def _prepared(config: RunConfig, dataset: Dataset, parts: OwnParts) -> Observed:
    seen = _observation(config, dataset, parts)
    return Observed(prepare(dataset, seen), seen)


def _observation(config: RunConfig, dataset: Dataset, parts: OwnParts) -> Observation:
    """The observation, with a note if the batches are smaller than the default."""
    seen = observation(dataset, config.data, own_parts.observed_as(config, parts))
    n = len(dataset.train)
    if not config.training.batch_size == n < RunConfig().training.batch_size:
        return seen
    return noted(seen, f"trained in batches of all {n} training examples")


NOT_FOR_TABLES = frozenset(
    {
        *("layers", "likelihood", "proposal", "uncertain_weights", "initialization", "networks"),
        *("inference", "encoder_objective", "optimizer", "start_from"),
    }
)
"""Settings that describe another model or training than those of `TableSettings`."""


def table_defaults(dataset: Dataset, given: Iterable[str]) -> dict[str, object]:
    """The settings of `TableSettings` for the training rows of a table, by name.

    Without those that are `given` by name; none for data that are no table, and none if one of
    `NOT_FOR_TABLES` is given.
    """
    schema, named = dataset.schema, frozenset(given)
    if schema is None or named & NOT_FOR_TABLES:
        return {}
    chosen = TableSettings.of(len(dataset.train), len(schema.columns), schema.continuous)
    return {name: value for name, value in chosen.by_name().items() if name not in named}


@dataclass(frozen=True)
class _Asked:
    """What the user gave of a configuration."""

    settings: frozenset[str]
    """The names of the settings that were given by name."""
    alone: bool
    """Whether nothing else was given: no configuration, and no run to resume."""

    def of_table(self, dataset: Dataset, parts: OwnParts) -> dict[str, object]:
        """`table_defaults`, where they apply; none for a model of the user's own."""
        if not self.alone or parts.model is not None:
            return {}
        return table_defaults(dataset, self.settings)


def _resolved_data(
    config: RunConfig,
    given: object,
    data_dir: str | Path | None,
    *,
    asked: _Asked | None = None,
    parts: OwnParts = own_parts.NONE,
) -> tuple[RunConfig, Dataset]:
    """The configuration, with the name of its data and absolute paths, and the data.

    Of what the user did not ask for, a table takes `table_defaults`; else the default batch size is
    reduced to the size of a smaller training split.
    """
    asked = asked or _Asked(frozenset(), alone=False)
    if isinstance(given, str | os.PathLike):  # recorded as the setting `dataset`
        config, given = override(config, dataset=os.fspath(given)), None
    begin = config.training.start_from
    if begin is not None:
        config = override(config, start_from=str(Path(begin).resolve()))
    if config.data.schema is not None:
        config = override(config, schema=str(Path(config.data.schema).expanduser().resolve()))
    dataset = _dataset(config, given, data_dir)
    config = override(config, **asked.of_table(dataset, parts))
    batch, n = config.training.batch_size, len(dataset.train)
    if n < batch == RunConfig().training.batch_size and "batch_size" not in asked.settings:
        config = override(config, batch_size=n)
    file = Path(config.data.dataset).expanduser()
    if given is not None:
        config = override(config, dataset=dataset.name)
    elif config.data.dataset not in data.NAMES and file.is_file():
        config = override(config, dataset=os.path.abspath(file))
    return config, dataset


def _dataset(
    config: RunConfig, given: Any, data_dir: str | Path | None, schema: Schema | None = None
) -> Dataset:
    """The data that are given or configured; with `schema`, that of the run's table."""
    if isinstance(given, Dataset):
        if config.data.schema is not None and schema is None:
            raise InputError(
                f"schema = {config.data.schema} was given, but the data are a Dataset, whose "
                f"columns are decided; leave it out, or give the table."
            )
        if config.data.values not in ("auto", given.kind):
            raise InputError(
                f"values = {config.data.values} was given, but the data are a Dataset of "
                f"{given.kind} values; leave values out, or give the array."
            )
        return given
    source = config.data.dataset if given is None else given
    return data.load(
        source,
        data_dir=data_dir,
        values=config.data.values,
        header=config.data.header,
        schema=config.data.schema if schema is None else schema,
    )


@computing()
def untrained(config: RunConfig, *, data_dir: str | Path | None = None) -> TrainedModel:
    """The model from which a run with this configuration starts."""
    keep_programs()
    config, observed = _observed(config, None, data_dir)
    return TrainedModel(
        config, initial(config, observed), observed.seen, 0, dataset=observed.dataset
    )


def training_seconds(trained: TrainedModel) -> float:
    """Training time of a run in a directory, in seconds; 0 for a run in memory.

    `InputError` if rows of its metrics are missing.
    """
    if trained.path is None:
        return 0.0
    rows = read_metrics(trained.path)
    if len(rows) < trained.epochs:
        raise InputError(
            f"{trained.path / METRICS} has rows for {len(rows)} of the model's {trained.epochs} "
            f"epochs, so their training time is unknown; restore it from a copy."
        )
    return float(rows[-1]["seconds"]) if rows else 0.0


def made_with(trained: TrainedModel) -> list[str]:
    """Devices and versions that trained a run, from its checkpoint; empty if it has none."""
    if trained.path is None or not (trained.path / CHECKPOINT).exists():
        return []
    return list(read_progress(trained.path).made_with)


@computing()
def load(
    path: str | Path,
    *,
    model: ModelLike | None = None,
    likelihood: AbstractLikelihood | None = None,
    data: Data | str | Path | None = None,
    data_dir: str | Path | None = None,
) -> TrainedModel:
    """The trained model in a run directory.

    Args:
        path: the run directory.
        model: for a run trained with `train(model=…)`: a model of the same structure. Its arrays
            are replaced, and may be shapes only (`equinox.filter_eval_shape`).
        likelihood: for a run trained with a likelihood object: the same likelihood.
        data: for a run trained on arrays in memory: the same data, or a file that holds them.
        data_dir: where to look first for the files of data sets.

    Returns:
        The model, which can be evaluated, or trained further with `train(out=path, resume=True)`.

    Raises:
        InputError: if the directory is not a run or holds no model yet, if its files are damaged
            or do not belong together, or if the model or likelihood it was trained with is not
            given.

    Example:
        >>> trained = iwae.load("runs/mine")  # doctest: +SKIP
    """
    keep_programs()
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{type(path).__name__} was given to iwae.load, which takes the path of a run; give "
            f"its directory."
        )
    path = Path(path)
    config, run = read_config_and_identity(path)
    parts, _ = own_parts.of({}, model=model, likelihood=likelihood)
    own = read_own(path)
    part_of_model = lambda names: {n: v for n, v in names.items() if n in ("model", "likelihood")}
    own_parts.check_same(path, part_of_model(own), parts.names, loading=True)
    if not (path / MODEL).exists():
        finish = f"iwae train --out {as_argument(path)} --resume"
        raise InputError(f"{path} holds no trained model yet; finish it with `{finish}`.")
    stored, seen, passes = read_model(path)
    if not stored.verified:
        seen = noted(seen, UNVERIFIED)
    restored = _with_arrays(stored, config, seen, parts)
    seen, dataset = _given_data(path, config, seen, data, data_dir)
    return TrainedModel(
        config,
        restored,
        seen,
        passes,
        path=path,
        data_dir=data_dir,
        dataset=dataset,
        run=run,
        history=history_of(path),
        own=own,
    )


def _with_arrays(
    stored: Stored, config: RunConfig, seen: Observation, parts: OwnParts
) -> AbstractAutoencoder:
    """The model with the stored arrays; its structure is from `parts` or the configuration."""
    structure = parts.model
    if structure is None:
        built = skeleton(config, seen, own=parts.likelihood)
        structure = as_kept(built, stored.arrays.keys())
    is_array = lambda a: isinstance(a, jax.ShapeDtypeStruct) or eqx.is_array(a)
    arrays, static = eqx.partition(structure, is_array)
    return eqx.combine(checkpoint.fitted(stored, arrays), static)


def _given_data(
    path: Path,
    config: RunConfig,
    seen: Observation,
    data: Data | str | Path | None,
    data_dir: str | Path | None,
) -> tuple[Observation, Dataset | None]:
    """The data given to `load`; `InputError` if they do not fit the model."""
    as_before = override(config, values=seen.kind)
    given = data
    if not isinstance(given, Dataset | None):
        given = _dataset(as_before, data, data_dir, seen.schema)
    if given is None:
        return seen, None
    given = given.in_order(seen.names)
    if seen.kind == given.kind == "table" and seen.schema != given.schema:
        raise InputError(
            f"The Dataset that was given has other types or categories of columns than {path} was "
            f"trained on; give the table itself, which is then read as in training."
        )
    if given.missing and not (seen.missing or seen.kind == "table"):
        raise InputError(
            f"The data that were given lack some values, but {path} was trained on complete ones; "
            f"fill them in, or train on data with missing values."
        )
    if not seen.fits(given):
        raise InputError(
            f"The data that were given hold {given.kind} values of shape {given.shape} on a scale "
            f"of {given.scale:g}, but {path} was trained on {seen.kind} values of shape "
            f"{seen.shape} on a scale of {seen.scale:g}; give data of that kind."
        )
    if seen.digest not in ("", given.whole_digest):
        seen = noted(replace(seen, digest=given.whole_digest), OTHERS)
    return seen, prepare(given, seen)


OTHERS = "the data that were given are not those of the run"
"""The note that results on such data carry."""


class NotKeptError(InputError):
    """An evaluation could not be written; `result` holds it."""

    def __init__(self, message: str, result: "Evaluation | OverSeeds"):
        super().__init__(message)
        self.result = result


class EvaluationOptions(TypedDict, total=False):
    """Keyword arguments of `TrainedModel.evaluate`."""

    k: int
    split: str
    limit: int | None
    seed: int
    memory: int | None
    without_inactive: bool
    only_used: bool
    mean_weights: bool
    progress: Progress | None


def evaluate(
    run: str | Path | TrainedModel,
    *,
    data: Data | str | Path | None = None,
    data_dir: str | Path | None = None,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Call `TrainedModel.evaluate` and keep the result in the run's evaluation.json if possible.

    Optional results of an earlier evaluation with the same importance samples are kept. An
    evaluation of a model that differs from the one in the directory is not written.

    Args:
        run: a run directory, or a model that `train` or `load` returned.
        data: for the directory of a run trained on arrays in memory: the same data.
        data_dir: where to look first for the files of data sets.
        options: arguments of `TrainedModel.evaluate`, such as `k=5000`.

    Returns:
        The evaluation: L_K, the terms of the ELBO, active units; in nats.

    Raises:
        InputError: if the run cannot be loaded, or an NLL is not finite.
        NotKeptError: if the evaluation could not be written; its `result` holds it.

    Example:
        >>> iwae.evaluate("runs/mine", k=5000).nll  # doctest: +SKIP
    """
    if isinstance(run, str | os.PathLike):
        run = load(run, data=data, data_dir=data_dir)
    elif not isinstance(run, TrainedModel):
        raise InputError(
            f"{type(run).__name__} was given to iwae.evaluate, which takes a run directory or what "
            f"iwae.train and iwae.load return; for a bare model, map "
            f"iwae.evaluation.log_likelihood over your examples."
        )
    elif data is not None:
        raise InputError("data was given with a loaded run; give it to iwae.load(…, data=…).")
    path = run.path
    if path is not None:
        read_evaluations(path)  # reject a damaged file before hours of work
    result = run.evaluate(**options)
    if path is not None and is_first() and os.access(path, os.W_OK):
        try:
            if run.is_stored():
                keep_evaluation(result, path, run.run)
        except (InputError, OSError) as error:
            message = unusable(error) if isinstance(error, OSError) else str(error)
            raise NotKeptError(message, result) from error
    return result


@dataclass(frozen=True)
class OverSeeds:
    """The evaluations of replicas, and their means over seeds with standard errors."""

    seeds: list[int]
    evaluations: list[Evaluation]

    @property
    def nll(self) -> tuple[float, float]:
        return mean_and_error(np.array([e.nll for e in self.evaluations]))

    @property
    def elbo(self) -> tuple[float, float]:
        return mean_and_error(np.array([e.elbo for e in self.evaluations]))

    @property
    def active_units(self) -> list[tuple[float, float]] | None:
        """Active units per layer; None if evaluated on a single example."""
        counts = [e.active_units for e in self.evaluations]
        return None if None in counts else [mean_and_error(layer) for layer in np.array(counts).T]

    def to_json(self) -> dict[str, object]:
        """Means and the evaluation of each seed; numbers that are not finite, such as the standard
        error of a single seed, become null."""
        units = self.active_units
        return {
            "nll": finite(self.nll),
            "elbo": finite(self.elbo),
            "active_units": units and [finite(layer) for layer in units],
            "replicas": {s: e.to_json() for s, e in zip(self.seeds, self.evaluations, strict=True)},
        }


@reading_once()
def evaluate_replicas(
    path: str | Path,
    *,
    data: Data | str | Path | None = None,
    data_dir: str | Path | None = None,
    **options: Unpack[EvaluationOptions],
) -> OverSeeds:
    """Call `evaluate` on every replica in a directory written by `train_replicas`.

    All replicas see the same binarised images and latent draws. `InputError` if there are no
    replicas; `NotKeptError`, which holds the result, if an evaluation could not be written.
    """
    paths = replicas(Path(path))
    if not paths:
        raise InputError(
            f"{path} holds no replicas; give a directory written by `iwae train --seeds`."
        )
    seeds, evaluations = [read_config(p).seed for p in paths], []
    lost: NotKeptError | None = None
    for replica in paths:
        try:
            evaluations.append(evaluate(replica, data=data, data_dir=data_dir, **options))
        except NotKeptError as error:
            if not isinstance(error.result, Evaluation):
                raise
            evaluations.append(error.result)
            lost = lost or error
    result = OverSeeds(seeds, evaluations)
    if lost is not None:
        raise NotKeptError(str(lost), result)
    return result
