"""Figures with their standard errors, in words."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Figure = tuple[float, float]
"""A value with its standard error; nan where none is known."""

UNKNOWN = float("nan")


def units_in_words(counts: Sequence[float] | None, plus: str = " + ") -> str:
    """Units, layer by layer, or a dash where they are unknown."""
    return "—" if counts is None else plus.join(f"{round(n, 1):g}" for n in counts)


def mean_units(evaluations: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Mean active units of each layer, unknown where they are of any evaluation."""
    counts = [e["active_units"] for e in evaluations]
    return (
        None if None in counts else [statistics.mean(layer) for layer in zip(*counts, strict=True)]
    )


def excess(runs: Sequence[Mapping[str, Any]], published: Figure) -> Figure:
    """How much more the mean NLL of our runs is than the published one, and its standard error.

    Runs have `nll` and, over test images, `nll_se`. The error is of both figures, of ours over
    seeds, where there are several, and over images; nan where none is known.
    """
    values = [run["nll"] for run in runs]
    over_images = [run["nll_se"] for run in runs if run["nll_se"] is not None]
    errors = [] if math.isnan(published[1]) else [published[1]]
    errors += [statistics.mean(over_images)] if over_images else []
    errors += [statistics.stdev(values) / math.sqrt(len(values))] if len(values) > 1 else []
    return statistics.mean(values) - published[0], math.hypot(*errors) if errors else UNKNOWN


def excess_in_words(runs: Sequence[Mapping[str, Any]], published: Figure) -> str:
    """As +0.46 (+2.0 s.e.)."""
    apart, error = excess(runs, published)
    return f"{apart:+.2f}" + (f" ({apart / error:+.1f} s.e.)" if error > 0 else "")
