"""Where the stages of a run begin and end, in epochs and in steps."""

from dataclasses import dataclass

from iwae.config.schema import RunConfig
from iwae.errors import InputError


@dataclass(frozen=True)
class Span:
    """A stage of a run of n training examples; a run without stages is a single one.

    The learning rate and everything else that follows a schedule is a function of the epoch, so
    that it goes on where the stage before left it, whatever the size of its batches.
    """

    config: RunConfig
    """The settings of the stage."""
    first_epoch: int
    """Epochs before the stage."""
    end_epoch: int
    """Epochs before and in the stage."""
    first_step: int
    """Steps before the stage."""
    steps_per_epoch: int
    """Whole batches in the training examples."""
    average_from: int = 0
    """The step with which averaging starts."""

    @property
    def end_step(self) -> int:
        return self.step_of(self.end_epoch)

    @property
    def offset(self) -> int:
        """Steps that the epochs before would have with the batches of this stage, less those that
        they had."""
        return self.first_epoch * self.steps_per_epoch - self.first_step

    def step_of(self, epoch: int) -> int:
        """Steps before an epoch of this stage."""
        return self.first_step + (epoch - self.first_epoch) * self.steps_per_epoch

    def epoch_of(self, step: int) -> float:
        """Epochs at a step of this stage, with fractions."""
        return (step + self.offset) / self.steps_per_epoch


def spans(config: RunConfig, n: int) -> tuple[Span, ...]:
    """The stages of a run.

    `InputError` if there are fewer training examples than a batch takes.
    """
    found: list[Span] = []
    step, average_from = 0, None
    for number, (own, first, end) in enumerate(config.by_stage):
        if average_from is None and own.training.average is not None:
            average_from = step
        try:
            steps = _steps_per_epoch(n, own)
        except InputError as error:
            named = f"Stage {number + 1}: {error}" if config.stages else str(error)
            raise InputError(named) from error
        found.append(Span(own, first, end, step, steps, average_from or 0))
        step = found[-1].end_step
    return tuple(found)


def _steps_per_epoch(n: int, config: RunConfig) -> int:
    """Whole batches in n training examples; `InputError` if there are none."""
    batch_size = config.training.batch_size
    if n < batch_size:
        raise InputError(
            f"batch_size = {batch_size} was given, but there are only {n} training examples; give "
            f"--batch-size {n} or less."
        )
    return n // batch_size
