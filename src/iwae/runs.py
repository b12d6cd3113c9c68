"""Training a run from its configuration, resuming it, loading and evaluating what it yields.

A run that was killed continues exactly where its last checkpoint stood.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from iwae import data
from iwae._utils.checks import check_seed
from iwae._utils.distributed import Devices, computing, is_first, json_from_first, processes_agree
from iwae._utils.files import as_argument
from iwae._utils.programs import keep_programs
from iwae.config.io import differences, override, parse
from iwae.config.schema import RunConfig
from iwae.data import Dataset
from iwae.data.in_use import reading_once
from iwae.errors import InputError, unusable
from iwae.evaluation.examples import mean_and_error
from iwae.evaluation.trained import Evaluation, TrainedModel, skeleton
from iwae.models.build import as_kept
from iwae.models.observation import Observation, observation, prepare
from iwae.storage import checkpoint
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
    read_progress,
    replicas,
)
from iwae.training.trainer import Observed, Run, Silent, Together, Watcher, initial


@computing()
def train(
    config: RunConfig | None = None,
    *,
    data: Dataset | np.ndarray | None = None,
    out: str | Path | None = None,
    resume: bool | None = False,
    data_dir: str | Path | None = None,
    watch: Watcher | None = None,
    devices: int = 1,
    **settings: Any,
) -> TrainedModel:
    """Train a model; `settings` replace fields of the configuration by name, e.g. `k=50`.

    `data` is your own array [n, …] or `Dataset`, in place of `dataset`. With `out` the run is a
    folder that `load` reads; `resume` continues it, and None starts or continues it, with its own
    configuration where none is given. A batch that is larger than the training split, and was not
    asked for, is as large as that. So many `devices` of this machine share each batch; in a program
    of several processes (`iwae._utils.distributed.join`) all do, and the first writes. Raises
    `InputError` for unusable input, `NonFiniteError` when the bound is not finite, `Interrupted`
    after Ctrl-C.
    """
    keep_programs()
    with processes_agree():
        config = override(_started(config, out, resume=resume), **settings)
    if jax.process_count() > 1:
        config = parse(json_from_first(config.to_toml()), "the first process's settings")
    with processes_agree():
        config, observed = _observed(config, data, data_dir, asked="batch_size" in settings)
        where = Devices.of(devices, config.training.batch_size)
    _check_same_in_processes(observed.dataset)
    with _opened_by_first(out, config, resume=resume) as folder:
        run = Run(config, observed, folder, watch or Silent(), where)
        Together([run], None if out is None else Path(out)).train()
    return replace(run.trained(), data_dir=data_dir)


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
    data: Dataset | np.ndarray | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    watch: Callable[[int], Watcher] | None = None,
    **settings: Any,
) -> list[TrainedModel]:
    """`train_together` for several seeds: 5 stands for the seeds 0 … 4.

    With `out`, replica s lies in out/seed-s. `watch` gives each seed its watcher.
    """
    config = override(_started(config, out, resume=resume), **settings)
    named = {f"{REPLICA}{seed}": override(config, seed=seed) for seed in listed(seeds)}
    if resume and out is not None and not replicas(Path(out)):
        raise InputError(f"{out} holds no replicas to resume; leave out --resume to start them.")
    watchers = None if watch is None else lambda name: watch(named[name].seed)
    asked = "batch_size" in settings
    trained = _train_together(named, data, out, data_dir, watchers, resume=resume, asked=asked)
    return list(trained.values())


@computing()
def train_together(
    configs: Mapping[str, RunConfig],
    *,
    data: Dataset | np.ndarray | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    watch: Callable[[str], Watcher] | None = None,
) -> dict[str, TrainedModel]:
    """`train` for several configurations in one compiled program, by name.

    They may differ in all but the data and the batch size. On a CPU each is bit for bit the run
    that `train` makes; elsewhere those that differ in nothing but seed and learning rate make one
    batched product of each matrix product, which rounds differently. With `out` a run lies in
    out/name. `resume` continues those that are there and starts the others; `watch` gives each its
    watcher. Raises what `train` raises.
    """
    return _train_together(configs, data, out, data_dir, watch, resume=resume)


def _train_together(
    configs: Mapping[str, RunConfig],
    data: Dataset | np.ndarray | None,
    out: str | Path | None,
    data_dir: str | Path | None,
    watch: Callable[[str], Watcher] | None,
    *,
    resume: bool,
    asked: bool = False,
) -> dict[str, TrainedModel]:
    """`train_together`; `asked` says whether the size of batches was asked for."""
    if jax.process_count() > 1:
        raise InputError(
            "Several runs were given to several processes, which share the batches of one; train "
            "them one by one."
        )
    keep_programs()
    observed = _observed_together(configs, data, data_dir, asked=asked)
    configs = {name: config for name, (config, _) in observed.items()}
    with open_runs(out, configs, resume=resume) as folders:
        together = {
            name: Run(config, data, folders[name], Silent() if watch is None else watch(name))
            for name, (config, data) in observed.items()
        }
        Together(list(together.values()), None if out is None else Path(out)).train()
    return {n: replace(run.trained(), data_dir=data_dir) for n, run in together.items()}


def _observed_together(
    configs: Mapping[str, RunConfig], given: Any, data_dir: str | Path | None, *, asked: bool
) -> dict[str, tuple[RunConfig, Observed]]:
    """What `_observed` makes of each, the same data for all; `InputError` if that cannot be."""
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
    first, config = next(iter(configs.items()))
    own, dataset = _found(config, given, data_dir, asked=asked)
    observed = _as_seen(own, dataset)
    shared = {"dataset": own.data.dataset, "batch_size": own.training.batch_size}
    for name, other in configs.items():
        apart = [n for n, *_ in differences(config, other) if n in SHARED]
        if not apart and _seen(override(other, **shared), dataset) != observed.seen:
            apart = ["likelihood"]
        if apart:
            raise InputError(
                f"Runs in one program share their data and batch size, but {first} and {name} "
                f"differ in {apart[0]}; train them one by one."
            )
    return {n: (override(c, **shared), observed) for n, c in configs.items()}


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
    config: RunConfig, given: Any, data_dir: str | Path | None, *, asked: bool = False
) -> tuple[RunConfig, Observed]:
    """What `_found` gives, the data as the model sees them."""
    config, dataset = _found(config, given, data_dir, asked=asked)
    return config, _as_seen(config, dataset)


def _as_seen(config: RunConfig, dataset: Dataset) -> Observed:
    seen = _seen(config, dataset)
    return Observed(prepare(dataset, seen), seen)


def _seen(config: RunConfig, dataset: Dataset) -> Observation:
    """The observation, with a remark where the batches are smaller than they are by default."""
    seen, n = observation(dataset, config.data, config.model), len(dataset.train)
    if not config.training.batch_size == n < RunConfig().training.batch_size:
        return seen
    return noted(seen, f"trained in batches of all {n} training examples")


def _found(
    config: RunConfig, given: Any, data_dir: str | Path | None, *, asked: bool
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
    data: Dataset | np.ndarray | str | Path | None = None,
    data_dir: str | Path | None = None,
) -> TrainedModel:
    """The trained model in a run folder; `data` again, or a file of them, if it was trained
    on arrays in memory.

    `InputError` if the folder is no run, holds no model yet, or its files are damaged or do not
    belong together.
    """
    keep_programs()
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{type(path).__name__} was given to iwae.load, which takes the path of a run; give "
            f"the folder that it was trained into."
        )
    path = Path(path)
    config, run = read_config_and_identity(path)
    if not (path / MODEL).exists():
        finish = f"iwae train --out {as_argument(path)} --resume"
        raise InputError(f"{path} holds no trained model yet; finish it with `{finish}`.")
    stored, seen, passes = read_model(path)
    if not stored.verified:
        seen = noted(seen, UNVERIFIED)
    described = as_kept(skeleton(config, seen), stored.arrays.keys())
    arrays, static = eqx.partition(described, lambda a: isinstance(a, jax.ShapeDtypeStruct))
    model = eqx.combine(checkpoint.fitted(stored, arrays), static)
    as_before = override(config, values=seen.kind)
    given = data if isinstance(data, Dataset | None) else _dataset(as_before, data, data_dir)
    given = given and given.in_order(seen.names)
    if given is not None and not seen.fits(given):
        raise InputError(
            f"The data that were given hold {given.kind} values of shape {given.shape} on a scale "
            f"of {given.scale:g}, but {path} was trained on {seen.kind} values of shape "
            f"{seen.shape} on a scale of {seen.scale:g}; give such data."
        )
    if given is not None and seen.digest not in ("", given.whole_digest):
        seen = noted(replace(seen, digest=given.whole_digest), OTHERS)
    dataset = None if given is None else prepare(given, seen)
    return TrainedModel(
        config,
        model,
        seen,
        passes,
        path=path,
        data_dir=data_dir,
        dataset=dataset,
        run=run,
        history=history_of(path),
    )


OTHERS = "the data that were given are not those of the run"
"""What the results on such data carry."""


class NotKeptError(InputError):
    """An evaluation that could not be written down; `result` has it all the same."""

    def __init__(self, sentence: str, result: Any):
        super().__init__(sentence)
        self.result = result


def evaluate(
    run: str | Path | TrainedModel,
    *,
    data: Dataset | np.ndarray | str | Path | None = None,
    data_dir: str | Path | None = None,
    **options: Any,
) -> Evaluation:
    """`TrainedModel.evaluate` of a run, kept in its evaluation.json if that can be written.

    `data` again if it was trained on arrays in memory. What was asked for in an earlier evaluation
    with the same draws stays there, and one of a model that is not that of the folder is not kept.
    `NotKeptError`, which has the result, if it could not be written.
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

    def to_json(self) -> dict[str, Any]:
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
    data: Dataset | np.ndarray | str | Path | None = None,
    data_dir: str | Path | None = None,
    **options: Any,
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
            evaluations.append(error.result)
            lost = lost or error
    result = OverSeeds(seeds, evaluations)
    if lost is not None:
        raise NotKeptError(str(lost), result)
    return result
