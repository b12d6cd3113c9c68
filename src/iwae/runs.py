"""Training a run from its configuration, resuming it, loading and evaluating what it yields.

A run that was killed continues exactly where its last checkpoint stood.
"""

import contextlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from iwae import checkpoint, data
from iwae.build import build
from iwae.checks import check_seed
from iwae.config import RunConfig
from iwae.data import Dataset
from iwae.devices import Devices, hosts_agree, is_first, json_from_first
from iwae.errors import InputError
from iwae.evaluation import mean_and_error
from iwae.files import one_at_a_time, write_atomic
from iwae.folder import (
    EVALUATION,
    MODEL,
    REPLICA,
    Folder,
    opened,
    opened_together,
    read_config,
    read_evaluations,
    read_metrics,
    read_progress,
    replicas,
)
from iwae.loop import Observed, Run, Silent, Together, Watcher, initial
from iwae.observation import Observation, observation, prepare
from iwae.settings import differences, override, parse
from iwae.trained import Evaluation, Trained


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
) -> Trained:
    """Train a model; `settings` replace fields of the configuration by name, e.g. `k=50`.

    `data` is your own array [n, …] or `Dataset`, in place of `dataset`. With `out` the run is a
    folder that `load` reads; `resume` continues it, and None starts or continues it. So many
    `devices` of this machine share each batch; in a program of several hosts (`iwae.devices.join`)
    all do, and the first writes. Raises `InputError` for unusable input, `NonFiniteError` when the
    bound is not finite, `Interrupted` after Ctrl-C.
    """
    config = override(_started(config), **settings)
    if jax.process_count() > 1:
        config = parse(json_from_first(config.to_toml()), "the first host's settings")
    with hosts_agree():
        config, observed = _observed(config, data, data_dir)
        where = Devices.of(devices, config.training.batch_size)
    _check_same_on_hosts(observed.dataset)
    with _opened_by_first(out, config, resume=resume) as folder:
        run = Run(config, observed, folder, watch or Silent(), where)
        Together([run], None if out is None else Path(out)).train()
    return replace(run.trained(), data_dir=data_dir)


def _started(config: RunConfig | None) -> RunConfig:
    """The configuration that is given, or the default; `InputError` if it is none."""
    if config is not None and not isinstance(config, RunConfig):
        raise InputError(
            f"A {type(config).__name__} was given as the configuration, which is a RunConfig; give "
            f"examples by name, as in train(data=x)."
        )
    return config or RunConfig()


def _check_same_on_hosts(dataset: Dataset) -> None:
    """`InputError` if another host has other examples than the first."""
    first = json_from_first(dataset.whole_digest)
    with hosts_agree():
        if dataset.whole_digest != first:
            raise InputError(
                f"The examples of {dataset.name} on this host are others than those of the first; "
                f"give every host the same data."
            )


@contextlib.contextmanager
def _opened_by_first(
    out: str | Path | None, config: RunConfig, *, resume: bool | None
) -> Iterator[Folder]:
    """`opened` on the first host; the others have no folder."""
    with contextlib.ExitStack() as stack:
        folder = Folder(None)
        with hosts_agree():
            if is_first():
                folder = stack.enter_context(opened(out, config, resume=resume))
        yield folder


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
) -> list[Trained]:
    """`train_together` for several seeds: 5 stands for the seeds 0 … 4.

    With `out`, replica s lies in out/seed-s. `watch` gives each seed its watcher.
    """
    config = override(_started(config), **settings)
    named = {f"{REPLICA}{seed}": override(config, seed=seed) for seed in listed(seeds)}
    if resume and out is not None and not replicas(Path(out)):
        raise InputError(f"{out} holds no replicas to resume; leave out --resume to start them.")
    watchers = None if watch is None else lambda name: watch(named[name].seed)
    trained = train_together(
        named, data=data, out=out, resume=resume, data_dir=data_dir, watch=watchers
    )
    return list(trained.values())


def train_together(
    configs: Mapping[str, RunConfig],
    *,
    data: Dataset | np.ndarray | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    watch: Callable[[str], Watcher] | None = None,
) -> dict[str, Trained]:
    """`train` for several configurations in one compiled program, by name.

    They may differ in all but the data and the batch size. On a CPU each is bit for bit the run
    that `train` makes; elsewhere those that differ in nothing but seed and learning rate make one
    batched product of each matrix product, which rounds differently. With `out` a run lies in
    out/name. `resume` continues those that are there and starts the others; `watch` gives each its
    watcher. Raises what `train` raises.
    """
    if jax.process_count() > 1:
        raise InputError(
            "Several runs were given to several hosts, which share the batches of one; train them "
            "one by one."
        )
    observed = _observed_together(configs, data, data_dir)
    configs = {name: config for name, (config, _) in observed.items()}
    with opened_together(out, configs, resume=resume) as folders:
        together = {
            name: Run(config, data, folders[name], Silent() if watch is None else watch(name))
            for name, (config, data) in observed.items()
        }
        Together(list(together.values()), None if out is None else Path(out)).train()
    return {n: replace(run.trained(), data_dir=data_dir) for n, run in together.items()}


def _observed_together(
    configs: Mapping[str, RunConfig], given: Any, data_dir: str | Path | None
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
    own, dataset = _found(config, given, data_dir)
    observed = _as_seen(own, dataset)
    for name, other in configs.items():
        apart = [n for n, *_ in differences(config, other) if n in SHARED]
        if not apart and observation(dataset, other.data, other.model) != observed.seen:
            apart = ["likelihood"]
        if apart:
            raise InputError(
                f"Runs in one program share their data and batch size, but {first} and {name} "
                f"differ in {apart[0]}; train them one by one."
            )
    return {n: (override(c, dataset=own.data.dataset), observed) for n, c in configs.items()}


SHARED = ("dataset", "values", "binarization", "batch_size")
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
    config: RunConfig, given: Any, data_dir: str | Path | None
) -> tuple[RunConfig, Observed]:
    """What `_found` gives, the data as the model sees them."""
    config, dataset = _found(config, given, data_dir)
    return config, _as_seen(config, dataset)


def _as_seen(config: RunConfig, dataset: Dataset) -> Observed:
    seen = observation(dataset, config.data, config.model)
    return Observed(prepare(dataset, seen), seen)


def _found(config: RunConfig, given: Any, data_dir: str | Path | None) -> tuple[RunConfig, Dataset]:
    """The configuration with the name of its data and whole paths, and the data."""
    begin = config.training.start_from
    if begin is not None:
        config = override(config, start_from=str(Path(begin).resolve()))
    dataset = _dataset(config, given, data_dir)
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
    return data.load(source, data_dir=data_dir, values=config.data.values)


def untrained(config: RunConfig, *, data_dir: str | Path | None = None) -> Trained:
    """The model with which a run of this configuration starts."""
    config, observed = _observed(config, None, data_dir)
    return Trained(config, initial(config, observed), observed.seen, 0, dataset=observed.dataset)


def training_seconds(trained: Trained) -> float:
    """The training time behind a run in a folder."""
    rows = [] if trained.path is None else read_metrics(trained.path)
    return float(rows[-1]["seconds"]) if rows else 0.0


def made_with(trained: Trained) -> list[str]:
    """Devices and versions that a run in a folder was trained with."""
    return [] if trained.path is None else list(read_progress(trained.path).made_with)


def load(
    path: str | Path,
    *,
    data: Dataset | np.ndarray | None = None,
    data_dir: str | Path | None = None,
) -> Trained:
    """The trained model in a run folder; `data` again if it was trained on arrays in memory.

    `InputError` if the folder is no run, holds no model yet, or its files do not fit together.
    """
    path = Path(path)
    config = read_config(path)
    if not (path / MODEL).exists():
        finish = f"iwae train --out {shlex.quote(str(path))} --resume"
        raise InputError(f"{path} holds no trained model yet; finish it with `{finish}`.")
    header = checkpoint.read_header(path / MODEL)
    seen = Observation(**{**header["seen"], "shape": tuple(header["seen"]["shape"])})
    d = int(np.prod(seen.shape))
    skeleton = eqx.filter_eval_shape(
        build,
        config.model,
        kind=seen.model_kind,
        mean=np.zeros(d),
        spread=np.ones(d),
        key=jax.random.key(0),
        k=config.objective.k,
    )
    arrays, static = eqx.partition(skeleton, lambda a: isinstance(a, jax.ShapeDtypeStruct))
    model = eqx.combine(checkpoint.load(path / MODEL, arrays), static)
    as_before = override(config, values=seen.kind)
    given = data if isinstance(data, Dataset | None) else _dataset(as_before, data, data_dir)
    if given is not None and not seen.fits(given):
        raise InputError(
            f"The data that were given hold {given.kind} values of shape {given.shape} on a scale "
            f"of {given.scale:g}, but {path} was trained on {seen.kind} values of shape "
            f"{seen.shape} on a scale of {seen.scale:g}; give such data."
        )
    dataset = None if given is None else prepare(given, seen)
    return Trained(
        config, model, seen, header["passes"], path=path, data_dir=data_dir, dataset=dataset
    )


def evaluate(
    run: str | Path | Trained, *, data_dir: str | Path | None = None, **options: Any
) -> Evaluation:
    """`Trained.evaluate` of a run, kept in its evaluation.json if the folder can be written to.

    What was asked for in an earlier evaluation with the same draws stays there.
    """
    trained = run if isinstance(run, Trained) else load(run, data_dir=data_dir)
    path = trained.path
    if path is not None:
        read_evaluations(path)  # a damaged file is refused before hours of work
    result = trained.evaluate(**options)
    if path is not None and is_first() and os.access(path, os.W_OK):
        name = f"{result.split} k={result.k} n={result.n} seed={result.seed} passes={result.passes}"
        name += " mean weights" * result.mean_weights
        with one_at_a_time(path / MODEL):
            kept, entry = read_evaluations(path), result.to_json()
            before = kept.get(name, {})
            if math.isclose(before.get("nll", math.inf), entry["nll"], rel_tol=SAME):
                entry |= {n: before.get(n) for n in OPTIONAL if entry[n] is None}
            write_atomic(path / EVALUATION, json.dumps(kept | {name: entry}, indent=1))
    return result


SAME = 1e-6
"""Relative difference of NLLs of one model on the same examples, whose sums round otherwise."""

OPTIONAL = ("nll_without_inactive", "used_units", "nll_only_used")
"""Figures of an evaluation that have to be asked for."""


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
        """All of it, with the evaluation of each seed; the standard error of one seed is null."""
        known = lambda figure: [None if np.isnan(v) else v for v in figure]
        units = self.active_units
        return {
            "nll": known(self.nll),
            "elbo": known(self.elbo),
            "active_units": units and [known(layer) for layer in units],
            "replicas": {s: e.to_json() for s, e in zip(self.seeds, self.evaluations, strict=True)},
        }


def evaluate_replicas(
    path: str | Path, *, data_dir: str | Path | None = None, **options: Any
) -> OverSeeds:
    """`evaluate` of every run of `train_replicas` in a folder; `InputError` if there are none.

    All see the same binarised images and draws of the latents.
    """
    paths = replicas(Path(path))
    if not paths:
        raise InputError(f"{path} holds no replicas; give a folder that `iwae train --seeds` made.")
    return OverSeeds(
        seeds=[read_config(p).seed for p in paths],
        evaluations=[evaluate(p, data_dir=data_dir, **options) for p in paths],
    )
