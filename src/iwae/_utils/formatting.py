"""Figures with their standard errors, in words."""

import math
import statistics
from collections.abc import Sequence
from typing import Protocol

Figure = tuple[float, float]
"""A value with its standard error; nan where none is known."""

UNKNOWN = float("nan")


def units_in_words(counts: Sequence[float] | None, plus: str = " + ") -> str:
    """Units, layer by layer, or a dash where they are unknown."""
    return "—" if counts is None else plus.join(f"{round(n, 1):g}" for n in counts)


def with_error(value: float, error: float | None = None, digits: int = 2) -> str:
    """A value with its standard error where that is known, e.g. 86.76 ± 0.25; a count as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    known = error is not None and not math.isnan(error)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")


def to_its_error(value: float, error: float, figures: int = 1) -> str:
    """A value to the leading figures of its standard error, e.g. −0.093 ± 0.002."""
    if not 0 < error < math.inf:
        return f"{value:.4g}"
    return with_error(value, error, max(0, figures - 1 - math.floor(math.log10(error))))


class Evaluated(Protocol):
    """An evaluation of a run."""

    @property
    def nll(self) -> float: ...

    @property
    def nll_se(self) -> float | None: ...

    @property
    def active_units(self) -> Sequence[int] | None: ...


def mean_units(evaluations: Sequence[Evaluated]) -> list[float] | None:
    """Mean active units of each layer, unknown where they are of any evaluation."""
    counts = [e.active_units for e in evaluations]
    known = [layers for layers in counts if layers is not None]
    if len(known) < len(counts):
        return None
    return [statistics.mean(layer) for layer in zip(*known, strict=True)]


def excess(runs: Sequence[Evaluated], published: Figure) -> Figure:
    """How much more the mean NLL of our runs is than the published one, and its standard error.

    The error is of both figures, of ours over seeds, where there are several, and over test images;
    nan where none is known.
    """
    values = [run.nll for run in runs]
    over_images = [run.nll_se for run in runs if run.nll_se is not None]
    errors = [] if math.isnan(published[1]) else [published[1]]
    errors += [statistics.mean(over_images)] if over_images else []
    errors += [statistics.stdev(values) / math.sqrt(len(values))] if len(values) > 1 else []
    return statistics.mean(values) - published[0], math.hypot(*errors) if errors else UNKNOWN


def excess_in_words(runs: Sequence[Evaluated], published: Figure) -> str:
    """As +0.46 (+2.0 s.e.)."""
    apart, error = excess(runs, published)
    return f"{apart:+.2f}" + (f" ({apart / error:+.1f} s.e.)" if error > 0 else "")
