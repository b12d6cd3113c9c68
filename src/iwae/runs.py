"""Training a run from its configuration, resuming it, loading and evaluating what it yields.

A run that was killed continues exactly where its last checkpoint stood.
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
from iwae.data import Dataset
from iwae.data.in_use import reading_once
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
from iwae.training import callbacks as watching
from iwae.training import parts as own_parts
from iwae.training import progress as progress_bars
from iwae.training.callbacks import Callback, FromWatcher, Watcher
from iwae.training.parts import OwnParts
from iwae.training.trainer import Observed, Run, Trainer, initial

Data = Dataset | np.ndarray | Mapping[str, np.ndarray]
"""Data of one's own: an array, or arrays of splits by name; a data frame is read as an array is."""

Name = TypeVar("Name", int, str)
"""A run among several: by its seed, or by its name."""


@computing()
def train(
    config: RunConfig | None = None,
    *,
    data: Data | None = None,
    out: str | Path | None = None,
    resume: bool | None = False,
    data_dir: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    devices: int = 1,
    model: ModelLike | None = None,
    bound: str | BoundFunction | Pair | None = None,
    estimator: str | Estimator | None = None,
    likelihood: str | AbstractLikelihood | None = None,
    watch: Callback | Watcher | None = None,
    **settings: object,
) -> TrainedModel:
    """Train a model.

    Args:
        config: the settings; left out, the defaults, or those of the run that is resumed.
        data: an array [n, …], a data frame or a `Dataset`, in place of the setting `dataset`.
        out: the run directory, which `load` reads; left out, the run is in memory alone.
        resume: whether to go on with the run in `out`; None goes on if there is one.
        data_dir: where to look first for the files of data sets.
        callbacks: what watches the training (`iwae.training.Callback`).
        progress: whether to show a bar; left out, in a notebook alone.
        devices: how many devices of this machine share each batch; in a program of several
            processes (`iwae._utils.distributed.join`) all do, and the first writes.
        model: an equinox module with `propose`, `log_joint` and `log_proposal`.
        bound: a function from K log-weights to a number, a `Pair`, or the name of an objective.
        estimator: an `iwae.estimators.Estimator`, or the name of one.
        likelihood: an `AbstractLikelihood`, or the name of one.
        watch: the former name of `callbacks`, for one.
        settings: fields of the configuration by name, such as `k=50`. A batch that is larger than
            the training split, and was not asked for, is as large as that.

    Returns:
        The trained model with its data.

    Raises:
        InputError: for unusable input.
        NonFiniteError: when the bound is not finite.
        Interrupted: after Ctrl-C, with the run saved.

    Example:
        >>> trained = iwae.train(data=x, k=50, epochs=20, out="runs/mine")  # doctest: +SKIP
    """
    keep_programs()
    parts, settings = own_parts.of(
        settings, model=model, bound=bound, estimator=estimator, likelihood=likelihood
    )
    told = _told(callbacks, watch, progress)
    config = _agreed(config, out, resume, parts, settings)
    with processes_agree():
        asked = "batch_size" in settings
        config, observed = _observed(config, data, data_dir, asked=asked, parts=parts)
        where = Devices.of(devices, config.training.batch_size)
    _check_same_in_processes(observed.dataset)
    with _opened_by_first(out, config, resume=resume) as folder:
        run = Run(config, observed, folder, told, where, parts)
        Trainer([run], None if out is None else Path(out)).train()
    return replace(run.trained(), data_dir=data_dir)


def _agreed(
    config: RunConfig | None,
    out: str | Path | None,
    resume: bool | None,
    parts: OwnParts,
    settings: Mapping[str, object],
) -> RunConfig:
    """The settings of a run as the first process has them."""
    with processes_agree():
        if resume is not False:
            _check_parts(out, parts)
        config = override(_started(config, out, resume=resume), **settings)
    if jax.process_count() == 1:
        return config
    return parse(json_from_first(config.to_toml()), "the first process's settings")


def _told(
    callbacks: Iterable[Callback],
    watch: Callback | Watcher | None,
    progress: bool | None,
    description: str = "training",
) -> list[Callback]:
    """The callbacks, with the bar of the first process, and what the former name gives."""
    told = [*(progress_bars.bars(progress, description) if is_first() else ())]
    told += watching.checked(callbacks)
    if watch is not None:
        _warn_of_watch(stacklevel=5)
        told.append(watch if isinstance(watch, Callback) else FromWatcher(watch))
    return told


def _warn_of_watch(*, stacklevel: int) -> None:
    warnings.warn(
        "watch is callbacks now, which takes several; the former name goes with the next version.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def _check_parts(out: str | Path | None, parts: OwnParts) -> None:
    """`InputError` unless the run in `out`, if there is one, has these parts of its own."""
    if out is not None and is_first() and (Path(out) / CONFIG).is_file():
        own_parts.check_same(out, read_own(Path(out)), parts.names)


def _started(
    config: RunConfig | None, out: str | Path | None = None, *, resume: bool | None = False
) -> RunConfig:
    """The configuration that is given, that of the run to go on with, or the default; `InputError`
    if it is none."""
    if config is None and out is not None and resume is not False and is_first():
        path = next(iter(replicas(Path(out))), Path(out))
        if (path / CONFIG).exists():
            return read_config(path)
    if config is not None and not isinstance(config, RunConfig):
        raise InputError(
            f"A {type(config).__name__} was given as the configuration, which is a RunConfig; give "
            f"examples by name, as in train(data=x)."
        )
    return config or RunConfig()


def _check_same_in_processes(dataset: Dataset) -> None:
    """`InputError` if another process has other examples than the first."""
    first = json_from_first(dataset.whole_digest)
    with processes_agree():
        if dataset.whole_digest != first:
            raise InputError(
                f"The examples of {dataset.name} in this process are others than those of the "
                f"first; give every process the same data."
            )


@contextlib.contextmanager
def _opened_by_first(
    out: str | Path | None, config: RunConfig, *, resume: bool | None
) -> Iterator[RunDirectory]:
    """`open_run` in the first process; the others have no folder."""
    with contextlib.ExitStack() as stack:
        folder = RunDirectory(None)
        with processes_agree():
            if is_first():
                folder = stack.enter_context(open_run(out, config, resume=resume))
        yield folder


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
    watch: Callable[[int], Callback | Watcher] | None = None,
    **settings: object,
) -> list[TrainedModel]:
    """`train_together` for several seeds.

    Args:
        seeds: which, or how many: 5 stands for the seeds 0 … 4.
        out: replica s lies in out/seed-s.
        callbacks: gives each seed its callbacks.
        watch: the former name of `callbacks`, for one each.
        config, data, resume, data_dir, progress, bound, estimator, likelihood, settings: as for
            `train`.

    Returns:
        The trained models, in the order of the seeds.

    Raises:
        InputError: what `train` raises, and for seeds of which one comes twice.

    Example:
        >>> five = iwae.train_replicas(data=x, seeds=5, out="runs/five")  # doctest: +SKIP
    """
    if "model" in settings:
        raise InputError(
            "model was given to train_replicas, whose replicas would all start from its "
            "parameters; train one after the other by iwae.train(model=…, seed=…)."
        )
    parts, settings = own_parts.of(
        settings, bound=bound, estimator=estimator, likelihood=likelihood
    )
    which = listed(seeds)
    if resume and out is not None:
        for path in replicas(Path(out)):
            _check_parts(path, parts)
    config = override(_started(config, out, resume=resume), **settings)
    named = {f"{REPLICA}{seed}": override(config, seed=seed) for seed in which}
    if resume and out is not None and not replicas(Path(out)):
        raise InputError(f"{out} holds no replicas to resume; leave out --resume to start them.")
    of_seed = _each(callbacks, watch, stacklevel=5)
    of = None if of_seed is None else lambda name: of_seed(named[name].seed)
    asked = "batch_size" in settings
    trained = _train_together(
        named,
        data,
        out,
        data_dir,
        of,
        resume=resume,
        asked=asked,
        progress=progress,
        parts=parts,
    )
    return list(trained.values())


def _each(
    callbacks: Callable[[Name], Iterable[Callback]] | None,
    watch: Callable[[Name], Callback | Watcher] | None,
    *,
    stacklevel: int,
) -> Callable[[Name], Iterable[Callback]] | None:
    """What gives each run its callbacks, under whichever name it was given."""
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

    On a CPU each is bit for bit the run that `train` makes; elsewhere those that differ in nothing
    but seed and learning rate make one batched product of each matrix product, which rounds
    differently.

    Args:
        configs: by name. They may differ in all but the data and the batch size.
        out: a run lies in out/name.
        resume: continues the runs that are there and starts the others.
        callbacks: gives each run its callbacks, by its name.
        watch: the former name of `callbacks`, for one each.
        data, data_dir, progress: as for `train`.

    Returns:
        The trained models by name.

    Raises:
        InputError: what `train` raises, and for configurations that cannot share a program.

    Example:
        >>> a, b = override(c, k=5), override(c, k=50)  # doctest: +SKIP
        >>> both = iwae.train_together({"k5": a, "k50": b}, data=x)  # doctest: +SKIP
    """
    of = _each(callbacks, watch, stacklevel=5)
    return _train_together(configs, data, out, data_dir, of, resume=resume, progress=progress)


def _train_together(
    configs: Mapping[str, RunConfig],
    data: Data | None,
    out: str | Path | None,
    data_dir: str | Path | None,
    callbacks: Callable[[str], Iterable[Callback]] | None,
    *,
    resume: bool,
    asked: bool = False,
    progress: bool | None = None,
    parts: OwnParts = own_parts.NONE,
) -> dict[str, TrainedModel]:
    """`train_together`; `asked` says whether the size of batches was asked for."""
    if jax.process_count() > 1:
        raise InputError(
            "Several runs were given to several processes, which share the batches of one; train "
            "them one by one."
        )
    keep_programs()
    observed = _observed_together(configs, data, data_dir, asked=asked, parts=parts)
    configs = {name: config for name, (config, _) in observed.items()}
    told = {
        name: _told(() if callbacks is None else callbacks(name), None, progress, name)
        for name in configs
    }
    with open_runs(out, configs, resume=resume) as folders:
        together = {
            name: Run(config, data, folders[name], told[name], parts=parts)
            for name, (config, data) in observed.items()
        }
        Trainer(list(together.values()), None if out is None else Path(out)).train()
    return {n: replace(run.trained(), data_dir=data_dir) for n, run in together.items()}


def _observed_together(
    configs: Mapping[str, RunConfig],
    given: object,
    data_dir: str | Path | None,
    *,
    asked: bool,
    parts: OwnParts,
) -> dict[str, tuple[RunConfig, Observed]]:
    """What `_observed` makes of each, the same data for all; `InputError` if that cannot be."""
    _check_names(configs)
    first, config = next(iter(configs.items()))
    own, dataset = _found(config, given, data_dir, asked=asked)
    observed = _as_seen(own, dataset, parts)
    shared = {"dataset": own.data.dataset, "batch_size": own.training.batch_size}
    for name, other in configs.items():
        apart = [n for n, *_ in differences(config, other) if n in SHARED]
        if not apart and _seen(override(other, **shared), dataset, parts) != observed.seen:
            apart = ["likelihood"]
        if apart:
            raise InputError(
                f"Runs in one program share their data and batch size, but {first} and {name} "
                f"differ in {apart[0]}; train them one by one."
            )
    return {n: (override(c, **shared), observed) for n, c in configs.items()}


def _check_names(configs: Mapping[str, RunConfig]) -> None:
    """`InputError` unless configurations are given by names that folders can have."""
    if not isinstance(configs, Mapping) or not configs:
        raise InputError(
            "train_together takes configurations by name; give at least one, as in "
            "{'plain': config}."
        )
    for name in configs:
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(
                f"{name!r} was given as the name of a run, but it names a folder in out; give one "
                f"without a path."
            )


SHARED = ("dataset", "values", "header", "binarization", "batch_size")
"""Settings in which runs in one program do not differ."""


def listed(seeds: int | Sequence[int]) -> list[int]:
    """The seeds that are meant; `InputError` if there are none, or one comes twice."""
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
    asked: bool = False,
    parts: OwnParts = own_parts.NONE,
) -> tuple[RunConfig, Observed]:
    """What `_found` gives, the data as the model sees them; `InputError` if parts of one's own do
    not fit them."""
    config, dataset = _found(config, given, data_dir, asked=asked)
    own_parts.check_shapes(parts, math.prod(dataset.shape), config.objective.k)
    return config, _as_seen(config, dataset, parts)


def _as_seen(config: RunConfig, dataset: Dataset, parts: OwnParts) -> Observed:
    seen = _seen(config, dataset, parts)
    return Observed(prepare(dataset, seen), seen)


def _seen(config: RunConfig, dataset: Dataset, parts: OwnParts) -> Observation:
    """The observation, with a remark where the batches are smaller than they are by default."""
    seen = observation(dataset, config.data, own_parts.observed_as(config, parts))
    n = len(dataset.train)
    if not config.training.batch_size == n < RunConfig().training.batch_size:
        return seen
    return noted(seen, f"trained in batches of all {n} training examples")


def _found(
    config: RunConfig, given: object, data_dir: str | Path | None, *, asked: bool
) -> tuple[RunConfig, Dataset]:
    """The configuration with the name of its data and whole paths, and the data.

    Batches of the size that they have by default, unless it was `asked` for, are made as small as
    the training split.
    """
    if isinstance(given, str | os.PathLike):  # as `dataset` is, which the run then knows
        config, given = override(config, dataset=os.fspath(given)), None
    begin = config.training.start_from
    if begin is not None:
        config = override(config, start_from=str(Path(begin).resolve()))
    dataset = _dataset(config, given, data_dir)
    batch, n = config.training.batch_size, len(dataset.train)
    if n < batch == RunConfig().training.batch_size and not asked:
        config = override(config, batch_size=n)
    file = Path(config.data.dataset).expanduser()
    if given is not None:
        config = override(config, dataset=dataset.name)
    elif config.data.dataset not in data.NAMES and file.is_file():
        config = override(config, dataset=os.path.abspath(file))
    return config, dataset


def _dataset(config: RunConfig, given: Any, data_dir: str | Path | None) -> Dataset:
    if isinstance(given, Dataset):
        if config.data.values not in ("auto", given.kind):
            raise InputError(
                f"values = {config.data.values} was given, but the data are a Dataset of "
                f"{given.kind} values; leave it out, or give the array."
            )
        return given
    source = config.data.dataset if given is None else given
    how = {"values": config.data.values, "header": config.data.header}
    return data.load(source, data_dir=data_dir, **how)


@computing()
def untrained(config: RunConfig, *, data_dir: str | Path | None = None) -> TrainedModel:
    """The model with which a run of this configuration starts."""
    keep_programs()
    config, observed = _observed(config, None, data_dir)
    return TrainedModel(
        config, initial(config, observed), observed.seen, 0, dataset=observed.dataset
    )


def training_seconds(trained: TrainedModel) -> float:
    """The training time behind a run in a folder; `InputError` if its metrics are missing."""
    if trained.path is None:
        return 0.0
    rows = read_metrics(trained.path)
    if len(rows) < trained.passes:
        raise InputError(
            f"{trained.path / METRICS} has {len(rows)} of the {trained.passes} passes behind the "
            f"model, so it is not known how long they took; restore it from a copy."
        )
    return float(rows[-1]["seconds"]) if rows else 0.0


def made_with(trained: TrainedModel) -> list[str]:
    """Devices and versions that a run in a folder was trained with, as its checkpoint knows."""
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
        path: the directory.
        model: of a run that was trained on a model of one's own, one of the same structure; its
            numbers are replaced, and may be shapes alone (`equinox.filter_eval_shape`).
        likelihood: of a run that was trained with a likelihood of one's own, the same.
        data: the data again, or a file of them, if it was trained on arrays in memory.
        data_dir: where to look first for the files of data sets.

    Returns:
        The model, which can be evaluated, and trained on by `train(out=path, resume=True)`.

    Raises:
        InputError: if the directory is no run, holds no model yet, its files are damaged or do not
            belong together, or it was trained with parts of its own that are not given.

    Example:
        >>> trained = iwae.load("runs/mine")  # doctest: +SKIP
    """
    keep_programs()
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{type(path).__name__} was given to iwae.load, which takes the path of a run; give "
            f"the folder that it was trained into."
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
    seen, dataset = _given_again(path, config, seen, data, data_dir)
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
    """The model of a run with its arrays, by the settings or by parts of one's own."""
    described = parts.model
    if described is None:
        built = skeleton(config, seen, own=parts.likelihood)
        described = as_kept(built, stored.arrays.keys())
    is_array = lambda a: isinstance(a, jax.ShapeDtypeStruct) or eqx.is_array(a)
    arrays, static = eqx.partition(described, is_array)
    return eqx.combine(checkpoint.fitted(stored, arrays), static)


def _given_again(
    path: Path,
    config: RunConfig,
    seen: Observation,
    data: Data | str | Path | None,
    data_dir: str | Path | None,
) -> tuple[Observation, Dataset | None]:
    """The data of a run that are given with it; `InputError` if they do not fit the model."""
    as_before = override(config, values=seen.kind)
    given = data if isinstance(data, Dataset | None) else _dataset(as_before, data, data_dir)
    if given is None:
        return seen, None
    given = given.in_order(seen.names)
    if not seen.fits(given):
        raise InputError(
            f"The data that were given hold {given.kind} values of shape {given.shape} on a scale "
            f"of {given.scale:g}, but {path} was trained on {seen.kind} values of shape "
            f"{seen.shape} on a scale of {seen.scale:g}; give such data."
        )
    if seen.digest not in ("", given.whole_digest):
        seen = noted(replace(seen, digest=given.whole_digest), OTHERS)
    return seen, prepare(given, seen)


OTHERS = "the data that were given are not those of the run"
"""What the results on such data carry."""


class NotKeptError(InputError):
    """An evaluation that could not be written down; `result` has it all the same."""

    def __init__(self, sentence: str, result: "Evaluation | OverSeeds"):
        super().__init__(sentence)
        self.result = result


class EvaluationOptions(TypedDict, total=False):
    """What `TrainedModel.evaluate` takes."""

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
    """`TrainedModel.evaluate` of a run, kept in its evaluation.json if that can be written.

    What was asked for in an earlier evaluation with the same draws stays there, and one of a model
    that is not that of the directory is not kept.

    Args:
        run: a run directory, or what `train` and `load` return.
        data: the data again, if a directory is given that was trained on arrays in memory.
        data_dir: where to look first for the files of data sets.
        options: those of `TrainedModel.evaluate`, such as `k=5000`.

    Returns:
        L_K and what else was measured, in nats.

    Raises:
        InputError: if the run cannot be loaded, or an NLL is not finite.
        NotKeptError: if the evaluation, which it has, could not be written.

    Example:
        >>> iwae.evaluate("runs/mine", k=5000).nll  # doctest: +SKIP
    """
    if isinstance(run, str | os.PathLike):
        run = load(run, data=data, data_dir=data_dir)
    elif not isinstance(run, TrainedModel):
        raise InputError(
            f"{type(run).__name__} was given to iwae.evaluate, which takes a run: its folder, or "
            f"what iwae.train and iwae.load return; of a model alone map "
            f"iwae.evaluation.log_likelihood over your examples."
        )
    elif data is not None:
        raise InputError("data was given with a loaded run; give it to iwae.load(…, data=…).")
    path = run.path
    if path is not None:
        read_evaluations(path)  # a damaged file is refused before hours of work
    result = run.evaluate(**options)
    if path is not None and is_first() and os.access(path, os.W_OK):
        try:
            if run.is_in_its_folder():
                keep_evaluation(result, path, run.run)
        except (InputError, OSError) as error:
            said = unusable(error) if isinstance(error, OSError) else str(error)
            raise NotKeptError(said, result) from error
    return result


@dataclass(frozen=True)
class OverSeeds:
    """The evaluations of replicas; means are over seeds, each with its standard error."""

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
        """Per layer; unknown of a single example."""
        counts = [e.active_units for e in self.evaluations]
        return None if None in counts else [mean_and_error(layer) for layer in np.array(counts).T]

    def to_json(self) -> dict[str, object]:
        """All of it, with the evaluation of each seed; what JSON has no number for, as the standard
        error of one seed, is null."""
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
    """`evaluate` of every run of `train_replicas` in a folder; `InputError` if there are none.

    All see the same binarised images and draws of the latents. `NotKeptError`, which has the
    result, if some could not be written.
    """
    paths = replicas(Path(path))
    if not paths:
        raise InputError(f"{path} holds no replicas; give a folder that `iwae train --seeds` made.")
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
