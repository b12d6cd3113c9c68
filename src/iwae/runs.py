"""Training a run from its configuration, resuming it, loading and evaluating what it yields.

A run that was killed continues exactly where its last checkpoint stood.
"""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae import checkpoint, data, evaluation, training
from iwae.config import RunConfig, TrainingConfig, override
from iwae.data import Dataset
from iwae.errors import InputError, Interrupted
from iwae.evaluation import over_examples
from iwae.files import write_atomic
from iwae.folder import (
    CHECKPOINT,
    EVALUATION,
    MODEL,
    Folder,
    Progress,
    opened,
    read_config,
    read_evaluations,
    read_metrics,
)
from iwae.model import Autoencoder, build
from iwae.observation import Observation, observation, prepare
from iwae.trained import Evaluation, Trained

CHUNK_SECONDS = 0.5
"""Time between two looks at the clock, the progress bar and a pending Ctrl-C."""


class NonFiniteError(InputError):
    """The bound became nan or infinite; the message names the step and what to try."""


@runtime_checkable
class Watcher(Protocol):
    """What training reports to."""

    def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None:
        """After some steps: bound on the last batch in nats, examples per second."""

    def on_pass(self, row: dict[str, Any]) -> None:
        """After a pass: the row that goes to metrics.jsonl."""


class Silent:
    """A watcher that does nothing."""

    def on_chunk(self, step: int, total: int, bound: float, rate: float) -> None: ...

    def on_pass(self, row: dict[str, Any]) -> None: ...


def train(
    config: RunConfig | None = None,
    *,
    data: Dataset | np.ndarray | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    watch: Watcher | None = None,
    **settings: Any,
) -> Trained:
    """Train a model; `settings` replace fields of the configuration by name, e.g. `k=50`.

    `data` is your own array [n, …] or `Dataset`, in place of `dataset`. With `out` the run is a
    folder that `load` reads; `resume` continues it. Raises `InputError` for unusable input,
    `NonFiniteError` when the bound is not finite, `Interrupted` after Ctrl-C.
    """
    config = override(config or RunConfig(), **settings)
    dataset = _dataset(config, data, data_dir)
    if data is not None:
        config = override(config, dataset=dataset.name)
    with opened(out, config, resume=resume) as folder:
        trained = _train(config, dataset, folder, watch or Silent())
    return replace(trained, data_dir=data_dir)


def _dataset(config: RunConfig, given: Any, data_dir: str | Path | None) -> Dataset:
    if isinstance(given, Dataset):
        return given
    source = config.data.dataset if given is None else given
    return data.load(source, data_dir=data_dir, values=config.data.values)


def _train(config: RunConfig, dataset: Dataset, folder: Folder, watch: Watcher) -> Trained:
    run = Run(config, dataset, folder, watch)
    with _signals() as interrupted:
        while not run.progress.finished:
            run.advance_pass(interrupted)
    return run.trained()


class Run:
    """One run in progress: its state, the compiled steps, and what has been saved of it."""

    def __init__(self, config: RunConfig, dataset: Dataset, folder: Folder, watch: Watcher):
        t = config.training
        self.config, self.folder, self.watch = config, folder, watch
        self.seen = observation(dataset, config.data, config.model)
        self.dataset = prepare(dataset, self.seen)
        self.n = len(self.dataset.train)
        self.steps_per_pass = self.n // t.batch_size
        if self.steps_per_pass == 0:
            raise InputError(
                f"batch_size = {t.batch_size} was given, but there are only {self.n} training "
                f"examples; give --batch-size {self.n} or less."
            )
        model = _initial(config, self.dataset, self.seen)
        params, self.static = eqx.partition(model, eqx.is_inexact_array)
        transform = training.optimizer(t, self.steps_per_pass)
        state = training.init(params, transform, average=t.average is not None)
        best = training.copied(params) if t.patience is not None else None
        (self.state, self.best), self.progress = folder.restore((state, best))
        if not _is_over(self.progress, t):
            self.progress = replace(self.progress, finished="")
        self.schedule = training.learning_rate(t, self.steps_per_pass)
        self.bound_function = eqx.Partial(
            evaluation.bound_value,
            bound=training.objective_bounds(config.objective).theta,
            k=config.objective.k,
        )
        self.images = jnp.asarray(self.dataset.train)
        self.advance = training.make_advance(
            self.static, config.objective, t, transform, self.seen.observer, config.seed
        )
        self.chunk, self.saved = 1, time.monotonic()

    def advance_pass(self, interrupted: list[int]) -> None:
        """The rest of the current pass, its metrics, and a checkpoint when one is due."""
        order = training.order_of_pass(self.config.seed, self.progress.passes, self.n)
        start = self.progress.passes * self.steps_per_pass
        stop = start + self.steps_per_pass
        while int(self.state.step) < stop and not self.progress.finished:
            self._advance_chunk(order, start, stop)
            if interrupted:
                self._leave()
            if time.monotonic() - self.saved >= 60 * self.config.training.checkpoint_minutes:
                self._save()
        if int(self.state.step) == stop:
            self._end_pass()
        every = self.config.training.checkpoint_every
        if self.progress.finished:
            self.folder.save_model(self.model(), self.seen, self.progress.passes)
            self._save()
        elif every is not None and self.progress.passes % every == 0:
            self._save()

    def _advance_chunk(self, order: Any, start: int, stop: int) -> None:
        began, before = time.monotonic(), int(self.state.step)
        until = min(stop, before + self.chunk)
        self.state = self.advance(self.state, self.images, order, start, until)
        bound, step = float(self.state.value), int(self.state.step)
        took = time.monotonic() - began
        if not np.isfinite(bound):
            raise NonFiniteError(self._non_finite_message(step))
        self.chunk = max(1, min(2 * self.chunk, int(CHUNK_SECONDS * (step - before) / took)))
        self.progress = replace(self.progress, seconds=self.progress.seconds + took)
        t = self.config.training
        rate = (step - before) * t.batch_size / took
        self.watch.on_chunk(step, t.epochs * self.steps_per_pass, bound, rate)
        if t.minutes is not None and self.progress.seconds >= 60 * t.minutes:
            self.progress = replace(self.progress, finished="minutes")

    def _end_pass(self) -> None:
        t, p = self.config.training, self.progress
        passes = p.passes + 1
        row: dict[str, Any] = {
            "pass": passes,
            "step": int(self.state.step),
            "seconds": round(p.seconds, 3),
            "learning_rate": float(self.schedule(self.state.step - 1)),
            "train_bound": float(self.state.total) / self.steps_per_pass,
        }
        self.progress = replace(p, passes=passes)
        self.state = eqx.tree_at(lambda s: s.total, self.state, jnp.zeros((), jnp.float32))
        if passes >= t.epochs:
            self.progress = replace(self.progress, finished="epochs")
        if passes % t.validate_every == 0 or self.progress.finished:
            row["valid_bound"] = self._validate()
        self.folder.append(row)
        self.watch.on_pass(row)

    def _validate(self) -> float:
        """The training bound on the validation split, with the same draws each time."""
        values = over_examples(
            self.bound_function,
            self._current(),
            self.dataset.valid,
            self.seen.observer,
            seed=self.config.seed,
            draws=self.config.objective.k,
        )
        value, p = float(np.mean(values)), self.progress
        if p.best is None or value > p.best:
            self.progress = replace(p, best=value, stale=0)
            if self.best is not None:
                self.best = training.copied(self._kept())
        else:
            self.progress = replace(p, stale=p.stale + 1)
        patience = self.config.training.patience
        if patience is not None and self.progress.stale >= patience:
            self.progress = replace(self.progress, finished="patience")
        return value

    def _kept(self) -> Any:
        return self.state.params if self.state.average is None else self.state.average

    def _current(self) -> Autoencoder:
        return eqx.combine(self._kept(), self.static)

    def model(self) -> Autoencoder:
        """The model that the run yields: the best on validation, the average, or the last."""
        if self.best is not None and self.progress.best is not None:
            return eqx.combine(self.best, self.static)
        return self._current()

    def trained(self) -> Trained:
        return Trained(
            self.config,
            self.model(),
            self.seen,
            self.progress.passes,
            path=self.folder.path,
            dataset=self.dataset,
        )

    def _save(self) -> None:
        """A checkpoint, unless the parameters are not finite: the last good one is kept.

        The last of a run is written after the model, so that a finished run always has one.
        """
        if not training.all_finite(self.state.params):
            raise NonFiniteError(self._non_finite_message(int(self.state.step)))
        self.folder.save((self.state, self.best), self.progress)
        self.saved = time.monotonic()

    def _leave(self) -> None:
        self._save()
        done = f"{self.progress.passes} of {self.config.training.epochs} passes"
        if self.folder.path is None:
            raise Interrupted(
                f"Interrupted after {done}; nothing was saved, since no out was given."
            )
        raise Interrupted(
            f"Interrupted after {done}; the run is saved, and "
            f"`iwae train --out {self.folder.path} --resume` continues it."
        )

    def _non_finite_message(self, step: int) -> str:
        kept = "nothing was saved"
        if self.folder.path is not None and (self.folder.path / CHECKPOINT).exists():
            kept = f"the last good checkpoint is kept in {self.folder.path}"
        return (
            f"The bound is not finite at step {step} (pass {self.progress.passes + 1}); {kept}. "
            f"Try a smaller --learning-rate or --clip 10, and check that the data fit the "
            f"likelihood."
        )


def _initial(config: RunConfig, dataset: Dataset, seen: Observation) -> Autoencoder:
    """The model before the first step."""
    return eqx.filter_jit(build)(
        config.model,
        kind=seen.model_kind,
        mean=dataset.mean(),
        spread=dataset.std(),
        key=training.stream(config.seed, training.INIT),
    )


def untrained(config: RunConfig, *, data_dir: str | Path | None = None) -> Trained:
    """The model with which a run of this configuration starts."""
    dataset = _dataset(config, None, data_dir)
    seen = observation(dataset, config.data, config.model)
    dataset = prepare(dataset, seen)
    return Trained(config, _initial(config, dataset, seen), seen, 0, dataset=dataset)


def training_seconds(trained: Trained) -> float:
    """The training time behind a run in a folder."""
    rows = [] if trained.path is None else read_metrics(trained.path)
    return float(rows[-1]["seconds"]) if rows else 0.0


def _is_over(progress: Progress, config: TrainingConfig) -> bool:
    """Whether a run that has finished is so still, now that its budget may have grown."""
    if progress.finished == "epochs":
        return progress.passes >= config.epochs
    if progress.finished == "minutes":
        return config.minutes is not None and progress.seconds >= 60 * config.minutes
    return bool(progress.finished)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM arrives; a second one acts at once."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for name, handler in previous.items():
            signal.signal(name, handler)

    with contextlib.suppress(ValueError):  # only the main thread may handle signals
        for name in (signal.SIGINT, signal.SIGTERM):
            previous[name] = signal.signal(name, note)
    try:
        yield received
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


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
        raise InputError(
            f"{path} holds no trained model yet; finish it with `iwae train --out {path} --resume`."
        )
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
    )
    arrays, static = eqx.partition(skeleton, lambda a: isinstance(a, jax.ShapeDtypeStruct))
    model = eqx.combine(checkpoint.load(path / MODEL, arrays), static)
    dataset = None if data is None else prepare(_dataset(config, data, data_dir), seen)
    return Trained(
        config, model, seen, header["passes"], path=path, data_dir=data_dir, dataset=dataset
    )


def evaluate(
    run: str | Path | Trained, *, data_dir: str | Path | None = None, **options: Any
) -> Evaluation:
    """`Trained.evaluate` of a run, kept in its evaluation.json."""
    trained = run if isinstance(run, Trained) else load(run, data_dir=data_dir)
    result = trained.evaluate(**options)
    if trained.path is not None:
        name = f"{result.split} k={result.k} n={result.n} seed={result.seed} passes={result.passes}"
        kept = read_evaluations(trained.path) | {name: result.to_json()}
        write_atomic(trained.path / EVALUATION, json.dumps(kept, indent=1))
    return result
