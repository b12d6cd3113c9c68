"""Formatting of values with their standard errors."""

import math
import statistics
from collections.abc import Sequence
from typing import Protocol

Figure = tuple[float, float]
"""A value with its standard error; nan where none is known."""

UNKNOWN = float("nan")


def units_in_words(counts: Sequence[float] | None, plus: str = " + ") -> str:
    """Units of each layer, such as 20 + 5, or a dash if they are unknown."""
    return "—" if counts is None else plus.join(f"{round(n, 1):g}" for n in counts)


def with_error(value: float, error: float | None = None, digits: int = 2) -> str:
    """A value with its standard error if known, e.g. 86.76 ± 0.25; integers without an error."""
    if isinstance(value, int):
        return f"{value:,}"
    known = error is not None and not math.isnan(error)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")


def to_its_error(value: float, error: float, figures: int = 1) -> str:
    """A value rounded to the leading digits of its standard error, e.g. −0.093 ± 0.002."""
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
    """Mean active units of each layer; None if they are unknown in any evaluation."""
    counts = [e.active_units for e in evaluations]
    known = [layers for layers in counts if layers is not None]
    if len(known) < len(counts):
        return None
    return [statistics.mean(layer) for layer in zip(*known, strict=True)]


def excess(runs: Sequence[Evaluated], published: Figure) -> Figure:
    """Mean NLL of our runs minus the published NLL, with its standard error.

    The error combines the published one with ours, over test images and, if there are several runs,
    over seeds; nan if none is known.
    """
    values = [run.nll for run in runs]
    over_images = [run.nll_se for run in runs if run.nll_se is not None]
    errors = [] if math.isnan(published[1]) else [published[1]]
    errors += [statistics.mean(over_images)] if over_images else []
    errors += [statistics.stdev(values) / math.sqrt(len(values))] if len(values) > 1 else []
    return statistics.mean(values) - published[0], math.hypot(*errors) if errors else UNKNOWN


def excess_in_words(runs: Sequence[Evaluated], published: Figure) -> str:
    """The excess as text, e.g. +0.46 (+2.0 s.e.)."""
    apart, error = excess(runs, published)
    return f"{apart:+.2f}" + (f" ({apart / error:+.1f} s.e.)" if error > 0 else "")
