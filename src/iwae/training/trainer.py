"""The training loop, for one run or for several that share a compiled program."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import iwae
from iwae._utils.distributed import (
    Devices,
    any_process,
    from_first,
    is_first,
    json_from_first,
    processes_agree,
)
from iwae._utils.files import as_argument
from iwae._utils.threads import one_blas_thread
from iwae.bounds import Pair
from iwae.config.io import override
from iwae.config.schema import RunConfig, TrainingConfig
from iwae.data import Dataset
from iwae.errors import InputError, Interrupted
from iwae.evaluation.examples import over_examples
from iwae.evaluation.likelihood import bound_value
from iwae.evaluation.trained import TrainedModel
from iwae.models.base import AbstractAutoencoder
from iwae.models.build import as_kept, build
from iwae.models.likelihoods.summary import summarize
from iwae.models.missing import for_complete_rows
from iwae.models.observation import Observation
from iwae.storage.checkpoint import fitted
from iwae.storage.metrics import History
from iwae.storage.run_directory import (
    CONFIG,
    MODEL,
    UNVERIFIED,
    Progress,
    RunDirectory,
    identity,
    noted,
    read_model,
    replicas,
)
from iwae.training import gradient_step
from iwae.training import parts as own_parts
from iwae.training.callbacks import (
    PATIENCE,
    SAVE,
    Callback,
    Checkpoint,
    Checkpointing,
    EarlyStopping,
    End,
    EpochEnd,
    MetricsFile,
    Request,
    Start,
    StepChunk,
    Stop,
    TrainerState,
    Validation,
)
from iwae.training.examples import examples_of
from iwae.training.gradient_step import TrainState
from iwae.training.parts import OwnParts
from iwae.training.soap import from_own_axes
from iwae.training.spans import Span, spans

CHUNK_SECONDS = 0.5
"""Target time of a chunk of steps; between chunks callbacks run and Ctrl-C is handled."""


class NonFiniteError(InputError):
    """The bound is nan or infinite; the message names the step and what to try."""


@dataclass(frozen=True)
class Observed:
    """A data set as it is stored on the device, and how the model observes it."""

    dataset: Dataset
    seen: Observation

    def in_order(self, names: Sequence[str]) -> "Observed":
        """The same data with the columns in the order of `names`.

        `InputError` if the columns differ, or if moving them would change a fixed binarisation,
        which depends on their positions.
        """
        dataset = self.dataset.in_order(names)
        if dataset is self.dataset:
            return self
        moved = dataset.whole_digest != self.dataset.whole_digest
        if moved and self.seen.binarization == "fixed":
            raise InputError(
                f"{dataset.name} has its columns in another order than when the run was started, "
                f"and binarization = fixed depends on the order; restore it, with {names[0]!r} "
                f"first."
            )
        digest = dataset.whole_digest if moved else self.seen.digest
        return Observed(
            dataset, replace(self.seen, names=dataset.names, digest=digest, schema=dataset.schema)
        )


Saved = tuple[TrainState, PyTree]
"""The content of a checkpoint: the state, and the best parameters or None."""


@dataclass(frozen=True)
class Requests:
    """The pending requests of callbacks."""

    stop: str = ""
    """The reason to stop; empty if no callback has asked to."""
    save: bool = False
    """Whether to write a checkpoint."""

    def with_(self, request: object, callback: Callback) -> "Requests":
        """Add a request; the first reason to stop is kept. `InputError` if it is not a request."""
        if request is None:
            return self
        if isinstance(request, Stop):
            return replace(self, stop=self.stop or request.reason)
        if request is SAVE:
            return replace(self, save=True)
        raise InputError(
            f"The callback {type(callback).__name__} returned {request!r}, but a callback returns "
            f"None, SAVE or Stop('why'); return one of these."
        )


class Run:
    """One run: its state, its callbacks and its run directory."""

    def __init__(
        self,
        config: RunConfig,
        data: Observed,
        directory: RunDirectory,
        callbacks: Sequence[Callback] = (),
        devices: Devices = gradient_step.DEFAULT,
        parts: OwnParts = own_parts.NONE,
    ):
        t = config.training
        with processes_agree():
            data = data.in_order(json_from_first(_names_before(config, directory)))
        self.config, self.data, self.directory = config, data, directory
        self.devices, self.parts = devices, parts
        self.callbacks = (MetricsFile(directory.append), *_of_settings(t), *callbacks)
        self.requests = Requests()
        self.begun = self.ended = False
        self.n = len(data.dataset.train)
        self.spans = spans(config, self.n)
        self.bound_function = eqx.Partial(
            bound_value, bound=self.bounds.theta, k=config.objective.k
        )
        directory.own = parts.names
        directory.run = identity(config, data.seen, directory.own)
        start, self.static = self._first()
        (state, best), self.progress = self._restored(start)
        self.state, self.best = devices.everywhere(from_first((state, best)))
        self.step = int(self.state.step)
        if not _is_over(self.progress, t):
            self.progress = replace(self.progress, finished="")
        each = [jnp.asarray(gradient_step.rates(span.config.training)) for span in self.spans]
        self.rates_of = [devices.everywhere(rates) for rates in each]
        self.seed = devices.everywhere(jnp.uint32(config.seed))
        self.order, self.ordered = jnp.zeros(0, jnp.int32), -1
        if config.stages and not self.progress.finished:
            self._check_stages()
        if self.progress.finished and not directory.has_model(self.progress.passes, self.step):
            self._save_model()  # it was killed between the checkpoint and the model

    def _check_stages(self) -> None:
        """`InputError` for a stage that the model, its devices or the user's own parts do not
        allow, before the first step; nothing is computed."""
        data, example = self.data.dataset.train, jax.ShapeDtypeStruct
        images, order = example(data.shape, data.dtype), example((self.n,), jnp.int32)
        key, zero = gradient_step.stream(0, gradient_step.STEPS), jnp.int32(0)
        for i, span in enumerate(self.spans):
            try:
                self.devices.check(span.config.training.batch_size)
                own_parts.check_stage(self.parts, self.config.stages[i])
                given = (order, key, self.rates_of[i], images, zero)
                jax.eval_shape(self._step_of(span), self.state, *given)
            except InputError as error:
                raise InputError(f"Stage {i + 1}: {error}") from error

    def _first(self) -> tuple[Saved, PyTree]:
        """The state before the first step, and the part of the model that is not trained."""
        t, directory = self.config.training, self.directory
        with processes_agree():
            anew = directory.begun or not is_first()
            start = initial(self.config, self.data, anew=anew, parts=self.parts)
            leaves = json_from_first(directory.leaves)
            if leaves and self.parts.model is None:
                start = as_kept(start, leaves)
        if not self.data.seen.missing:
            start = for_complete_rows(start)
        params, static = eqx.partition(start, eqx.is_inexact_array)
        shaping, own = gradient_step.shaping(t), self.parts.optimizer
        if own is None:
            transform = gradient_step.first_optimizer(shaping)
        else:
            own_parts.check_optimizer(own, params)
            transform = gradient_step.optimizer(shaping, 1, gradient_step.rates(t), own=own)
        averaged = any(span.config.training.average is not None for span in self.spans)
        state = gradient_step.init(params, transform, average=averaged)
        best = gradient_step.copied(params) if t.patience is not None else None
        return (state, best), static

    def _restored(self, start: Saved) -> tuple[Saved, Progress]:
        """The last checkpoint and its progress; `start` and no progress if there is none.

        `InputError` if the run was started on other examples.
        """
        data, directory = self.data, self.directory
        examples = data.dataset.digest
        with processes_agree():
            if directory.progress.data not in ("", examples) or directory.is_of_others():
                raise InputError(
                    f"{directory.path} was started on other examples than those of "
                    f"{data.dataset.name}; resume it with its own, or give another --out."
                )
            saved, progress = directory.restore(start, from_own_axes)
        if not directory.verified:
            self.data = replace(data, seen=noted(data.seen, UNVERIFIED))
        progress = replace(progress, **json_from_first(asdict(progress)))
        here = f"{jax.devices()[0].device_kind}, iwae {iwae.__version__}"
        return saved, replace(progress.made_on(here), data=examples, names=data.dataset.names)

    @property
    def current(self) -> int:
        """Index of the present stage among `spans`; of the last, when the run has ended."""
        passes, last = self.progress.passes, len(self.spans) - 1
        return next((i for i, span in enumerate(self.spans) if passes < span.end_epoch), last)

    @property
    def span(self) -> Span:
        """The present stage."""
        return self.spans[self.current]

    @property
    def rates(self) -> Array:
        """The learning rates of the present stage."""
        return self.rates_of[self.current]

    @property
    def start_of_epoch(self) -> int:
        return self.span.step_of(self.progress.passes)

    @property
    def end_of_epoch(self) -> int:
        return self.start_of_epoch + self.span.steps_per_epoch

    @property
    def place(self) -> tuple[int, int, int]:
        """What runs that advance together have in common: the present epoch's first step and last,
        and the size of its batches."""
        return self.start_of_epoch, self.end_of_epoch, self.span.config.training.batch_size

    @property
    def bounds(self) -> Pair:
        """The bounds of the run, which validations take; a stage may maximise another."""
        if self.parts.bound is not None:
            return self.parts.bound
        return gradient_step.objective_bounds(self.config.objective)

    @property
    def facts(self) -> TrainerState:
        """The progress of the run, for callbacks."""
        p, epochs = self.progress, self.config.training.epochs
        return TrainerState(
            epoch=p.passes,
            epochs=epochs,
            step=self.step,
            steps=self.spans[-1].end_step,
            seconds=p.seconds,
            best=p.best,
            stale=p.stale,
            path=self.directory.path,
            position=self.span.epoch_of(self.step),
        )

    def order_of_epoch(self) -> Array:
        """The order of the training examples in the current epoch."""
        if self.ordered != self.progress.passes:
            self.ordered = self.progress.passes
            order = gradient_step.order_of_epoch(self.config.seed, self.ordered, self.n)
            self.order = self.devices.everywhere(order)
        return self.order

    def make_step(self) -> gradient_step.Step:
        """The step function of the present stage, shared by runs that differ only in seed or
        learning rate."""
        return self._step_of(self.span)

    def _step_of(self, span: Span) -> gradient_step.Step:
        observer = self.data.seen.observer
        return gradient_step.shared_step(
            self.static,
            span.config.objective,
            span.config.training,
            span.steps_per_epoch,
            observer,
            self.devices,
            bound=self.parts.bound,
            estimator=self.parts.estimator,
            own_optimizer=self.parts.optimizer,
            offset=span.offset,
            average_from=span.average_from,
        )

    def start(self) -> None:
        """Call `on_start` of the callbacks."""
        self.begun = True
        self._notify(lambda callback: callback.on_start(Start(self.facts, self.config)))

    def advance_to(self, state: TrainState, before: int, took: float) -> None:
        """Take over the state reached from step `before` in `took` seconds.

        Calls the callbacks, and saves the run if it is due or finished. `NonFiniteError` if the
        bound is not finite, or, at the end of an epoch, a parameter.
        """
        self.state, t = state, self.span.config.training
        self.step = step = int(state.step)
        bound = float(state.value)
        if not np.isfinite(bound):
            raise NonFiniteError(self._non_finite_message("The bound is"))
        self.progress = replace(self.progress, seconds=self.progress.seconds + took)
        chunk = StepChunk(self.facts, bound, rate=(step - before) * t.batch_size / took)
        self._notify(lambda callback: callback.on_step_chunk(chunk))
        if t.minutes is not None and self.progress.seconds >= 60 * t.minutes:
            self.progress = replace(self.progress, finished="minutes")
        self._heed_stop()
        ended = step == self.end_of_epoch
        if ended or self.progress.finished:
            self._check_finite()
        if ended:
            self._end_epoch()
        if self.progress.finished or self.requests.save:
            self.save()
        if self.progress.finished:
            self._save_model()
            self.end(self.progress.finished)

    def end(self, reason: str) -> None:
        """Call `on_end` of every callback, once per session, even if one of them raises."""
        if not self.begun or self.ended:
            return
        self.ended = True
        ended = End(self.facts, reason)
        with contextlib.ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(self._notify_one, callback, lambda callback: callback.on_end(ended))

    def _notify(self, event: Callable[[Callback], Request]) -> None:
        """Call every callback with an event, and record their requests."""
        for callback in self.callbacks:
            self._notify_one(callback, event)

    def _notify_one(self, callback: Callback, event: Callable[[Callback], Request]) -> None:
        try:
            self.requests = self.requests.with_(event(callback), callback)
        except Exception as error:
            kept = f"; the last checkpoint is in {self.directory.path}" * self.directory.begun
            error.add_note(f"Raised by the callback {type(callback).__name__}{kept}.")
            raise

    def _heed_stop(self) -> None:
        """Finish if a callback, here or in another process, has asked to stop."""
        if any_process(bool(self.requests.stop)) and not self.progress.finished:
            reason = json_from_first(self.requests.stop) or self.requests.stop or "another process"
            self.progress = replace(self.progress, finished=reason)

    def _end_epoch(self) -> None:
        t, p, span = self.config.training, self.progress, self.span
        schedule = gradient_step.learning_rate(
            span.config.training, span.steps_per_epoch, self.rates, offset=span.offset
        )
        rate = float(schedule(self.state.step - 1))
        bound = float(self.state.total) / span.steps_per_epoch
        self.progress = replace(p, passes=p.passes + 1)
        self.state = replace(self.state, total=jnp.zeros((), jnp.float32))
        if self.progress.passes >= t.epochs:
            self.progress = replace(self.progress, finished="epochs")
        elif self.progress.passes == span.end_epoch:  # what the next stage needs may not be there
            self.requests = replace(self.requests, save=True)
        due = self.progress.passes % t.validate_every == 0 or self.progress.finished
        valid = self._validate() if due else None
        epoch = EpochEnd(self.facts, rate, bound, valid)
        self._notify(lambda callback: callback.on_epoch_end(epoch))
        self._heed_stop()

    def _validate(self) -> float:
        """The training bound on the validation split, with the same random numbers each time."""
        values = over_examples(
            self.bound_function,
            self._current(),
            self.data.dataset.valid,
            self.data.seen.observer,
            seed=self.config.seed,
            draws=self.config.objective.k,
        )
        value, p = float(np.mean(values)), self.progress
        improved = p.best is None or value > p.best
        if improved:
            self.progress = replace(p, best=value, stale=0)
            if self.best is not None:
                self.best = gradient_step.copied(self._kept())
        else:
            self.progress = replace(p, stale=p.stale + 1)
        validation = Validation(self.facts, value, improved, self._copied)
        self._notify(lambda callback: callback.on_validation(validation))
        if self.requests.stop == PATIENCE:  # in the last epoch this reason wins over "epochs"
            self.progress = replace(self.progress, finished=PATIENCE)
        return value

    def _kept(self) -> PyTree:
        return self.state.params if self.state.average is None else self.state.average

    def _copied(self) -> AbstractAutoencoder:
        """A copy of the current model, which the next steps leave as it is."""
        kept = gradient_step.copied(self.devices.here(self._kept()))
        return self._whole(kept)

    def _current(self) -> AbstractAutoencoder:
        return eqx.combine(self.devices.here(self._kept()), self.static)

    def _whole(self, params: PyTree) -> AbstractAutoencoder:
        """The model with these parameters, for any rows."""
        model: AbstractAutoencoder = eqx.combine(params, self.static)
        return for_complete_rows(model, complete=False)

    def model(self) -> AbstractAutoencoder:
        """The resulting model: the best on validation, the average, or the last."""
        if self.best is not None and self.progress.best is not None:
            return self._whole(self.devices.here(self.best))
        return self._whole(self.devices.here(self._kept()))

    def trained(self) -> TrainedModel:
        return TrainedModel(
            self.config,
            self.model(),
            self.data.seen,
            self.progress.passes,
            path=self.directory.path,
            dataset=self.data.dataset,
            run=self.directory.run,
            history=History.of(self.directory.rows),
            own=self.directory.own,
        )

    def save(self) -> None:
        """Write a checkpoint; if the parameters are not finite, raise and keep the last one."""
        self._check_finite()
        self.directory.save(self.devices.here((self.state, self.best)), self.progress)
        self.requests = replace(self.requests, save=False)
        self._notify(lambda callback: callback.on_checkpoint(Checkpoint(self.facts)))

    def _save_model(self) -> None:
        self.directory.save_model(self.model(), self.data.seen, self.progress.passes, self.step)

    def _check_finite(self) -> None:
        if not gradient_step.all_finite(self.devices.here(self.state.params)):
            raise NonFiniteError(self._non_finite_message("The parameters are"))

    def _non_finite_message(self, what: str) -> str:
        epoch = 1 + int(self.span.epoch_of(self.step - 1))
        there = f"the last good checkpoint is kept in {self.directory.path}"
        kept = there if self.directory.begun else "nothing was saved"
        return (
            f"{what} not finite at step {self.step} (epoch {epoch}); {kept}. Try a smaller "
            f"--learning-rate, --skip-spikes 3 or --clip 10, and check that the data fit the "
            f"likelihood."
        )


class Trainer:
    """Trains runs on the same data, in batches of the same size, with one compiled program.

    Runs at the same step advance together. One that is ahead, after a crash between two
    checkpoints, waits for the others.
    """

    def __init__(self, runs: Sequence[Run], out: Path | None):
        self.runs, self.out, self.chunk = list(runs), out, 1
        self.failed: dict[Run, NonFiniteError] = {}
        with processes_agree():  # every process has validated its runs
            if len({run.data.seen.names for run in self.runs}) > 1:
                raise InputError(
                    "Runs in one program share the order of their columns, but these were started "
                    "with different orders; resume them one by one."
                )
            for run in self.runs:
                run.directory.save_config(run.config)
        self.devices = runs[0].devices
        self.examples = examples_of(runs[0].data.dataset.train, self.devices)
        self.kinds = {run: _kind(run) for run in self.runs}
        self.steps: dict[tuple[Kind, int], gradient_step.Step] = {}
        self.programs: dict[frozenset[gradient_step.Step], gradient_step.Advance] = {}
        self.batched = jax.default_backend() != "cpu" and all(
            run.config.training.optimizer != "soap" and run.parts.optimizer is None
            for run in runs  # vmap takes both ways of a `cond`, as of SOAP's bases, at each step
        )

    def train(self) -> None:
        """Train all runs to their end.

        `Interrupted` after Ctrl-C, once the runs are saved; not if all have ended and are in memory
        only. A run that is not finite is dropped, and its `NonFiniteError` is raised when the
        others have ended. However the training ends, `on_end` of the callbacks is called once.
        """
        try:
            with _signals() as interrupted:
                for run in self._going():
                    run.start()
                while going := self._going():
                    self._advance(going)
                    if any_process(bool(interrupted)):
                        self._interrupt(self._going())
                for error in self.failed.values():
                    raise error
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            for run in self.runs:
                with contextlib.suppress(Exception):  # the first error is the one to raise
                    run.end("interrupted" if stopped and run not in self.failed else "failed")
            raise

    def _going(self) -> list[Run]:
        return [r for r in self.runs if not r.progress.finished and r not in self.failed]

    def _steps_of(self, group: Sequence[Run]) -> tuple[gradient_step.Step, ...]:
        """The step function of each run in its present stage; those of a stage are made once."""
        stages = [(self.kinds[run], run.current) for run in group]
        for run, stage in zip(group, stages, strict=True):
            if stage not in self.steps:
                self.steps[stage], self.chunk = run.make_step(), 1
        return tuple(self.steps[stage] for stage in stages)

    def _program_of(self, steps: frozenset[gradient_step.Step]) -> gradient_step.Advance:
        """The compiled program of some step functions."""
        if steps not in self.programs:
            self.programs[steps] = gradient_step.shared_advance(steps, vectorized=self.batched)
        return self.programs[steps]

    def _advance(self, going: list[Run]) -> None:
        """Advance the runs that are furthest behind by a chunk of steps."""
        before = min(r.step for r in going)
        place = next(r.place for r in going if r.step == before)
        group = [r for r in going if r.step == before and r.place == place]
        ahead = [r.step for r in going if r.step > before]
        batch, start = group[0].span.config.training.batch_size, group[0].start_of_epoch
        steps = self._steps_of(group)
        advance = self._program_of(frozenset(steps))
        most = self.examples.most_steps(batch, len(group))
        until = min(before + min(self.chunk, most), group[0].end_of_epoch, *ahead)
        began = time.monotonic()
        read = self.examples.read(
            [r.order_of_epoch() for r in group], batch, start, slice(before, until)
        )
        with one_blas_thread():
            states = advance(
                steps,
                tuple(r.state for r in group),
                read.orders,
                tuple(r.seed for r in group),
                tuple(r.rates for r in group),
                read.images,
                read.start,
                until,
            )
            reached = int(states[0].step)
        took = float(from_first(np.array(time.monotonic() - began)))
        for run, state in zip(group, states, strict=True):
            try:
                run.advance_to(state, before, took)
            except NonFiniteError as error:
                self.failed[run] = error
        fitting = int(CHUNK_SECONDS * (reached - before) / took)
        self.chunk = max(1, min(2 * self.chunk, fitting))

    def _interrupt(self, going: list[Run]) -> None:
        """Save the runs that have not ended, and raise `Interrupted`, which says how to resume."""
        if not going:
            if self.out is not None and not self.failed:
                raise Interrupted(f"Interrupted after the last epoch; {self.out} is finished.")
            return
        for run in going:
            run.save()
        progress, epochs = going[0].progress, going[0].config.training.epochs
        kept = "nothing was saved, since no out was given"
        if self.out is not None:
            known = (self.out / CONFIG).exists() or replicas(self.out)
            place = as_argument(self.out)
            again = f"iwae train --out {place} --resume" if known else "resume=True"
            kept = f"the run is saved, and `{again}` continues it"
        raise Interrupted(f"Interrupted after {progress.passes} of {epochs} epochs; {kept}.")


def _names_before(config: RunConfig, directory: RunDirectory) -> tuple[str, ...]:
    """Column names of the run to resume, or of the model in `start_from`; empty if unknown."""
    if directory.begun or config.training.start_from is None:
        return directory.progress.names
    begin = Path(config.training.start_from)
    return read_model(begin)[1].names if (begin / MODEL).exists() else ()


Kind = tuple[RunConfig, int]


def _kind(run: Run) -> Kind:
    """A key that is equal for runs that can share the step of a stage."""
    return override(run.config, seed=0, learning_rate=1.0), id(run.parts)


def _of_settings(config: TrainingConfig) -> Iterator[Callback]:
    """The callbacks that the configuration implies."""
    if config.patience is not None:
        yield EarlyStopping(config.patience)
    yield Checkpointing(config.checkpoint_minutes, config.checkpoint_every)


def initial(
    config: RunConfig, data: Observed, *, anew: bool = False, parts: OwnParts = own_parts.NONE
) -> AbstractAutoencoder:
    """The model before the first step.

    It is the user's own model or is built from the configuration. Its parameters are those of
    `start_from`, if given, unless the model is built `anew`.
    """
    model = cast(AbstractAutoencoder | None, parts.model)
    if model is None:
        schema = data.seen.schema
        model = eqx.filter_jit(build)(
            config.model,
            kind=data.seen.model_kind,
            mean=data.dataset.mean(),
            spread=data.dataset.std(),
            key=gradient_step.stream(config.seed, gradient_step.INIT),
            k=config.objective.k,
            own=parts.likelihood,
            table=None if schema is None else summarize(schema, data.dataset.train),
            missing=data.seen.missing,
        )
    if anew or config.training.start_from is None:
        return model
    file = Path(config.training.start_from) / MODEL
    if not file.exists():
        raise InputError(
            f"start_from = {file.parent} was given, but it holds no finished run; give a directory "
            f"written by `iwae train --out`."
        )
    stored = read_model(file.parent)[0]
    if parts.model is None:
        model = as_kept(model, stored.arrays.keys())
    arrays, static = eqx.partition(model, eqx.is_array)
    return eqx.combine(fitted(stored, arrays), static)


def _is_over(progress: Progress, config: TrainingConfig) -> bool:
    """Whether a finished run remains finished, given that its budget may have grown."""
    if progress.finished == "epochs":
        return progress.passes >= config.epochs
    if progress.finished == "minutes":
        return config.minutes is not None and progress.seconds >= 60 * config.minutes
    return bool(progress.finished)


def _hangup() -> list[signal.Signals]:
    """SIGHUP, which a closing terminal sends, if it exists here and is not ignored."""
    number = getattr(signal, "SIGHUP", None)
    return [] if number is None or signal.getsignal(number) is signal.SIG_IGN else [number]


Handler = Callable[[int, FrameType | None], object] | int | None
"""The handler of a signal."""


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and, unless it is ignored (nohup), SIGHUP in the list it yields.

    A second signal takes effect at once.
    """
    received: list[int] = []
    previous: dict[signal.Signals, Handler] = {}

    def receive(number: int, frame: object) -> None:
        received.append(number)
        for name, handler in previous.items():  # a closing terminal sends SIGHUP more than once
            signal.signal(name, signal.SIG_IGN if name in _hangup() else handler)

    with contextlib.suppress(ValueError):  # only the main thread may handle signals
        for name in (signal.SIGINT, signal.SIGTERM, *_hangup()):
            previous[name] = signal.signal(name, receive)
    try:
        yield received
    except Interrupted:
        raise
    except InputError as error:
        raise (Interrupted(str(error)) if received else error) from error
    except Exception as error:
        raise (KeyboardInterrupt() if received else error) from error
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
