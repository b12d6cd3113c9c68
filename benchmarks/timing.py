"""Timing that survives a noisy machine: rivals take turns, and ratios are taken turn by turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Times = dict[str, list[float]]
"""Seconds per unit of work by contestant, one for each turn."""

Contestant = Callable[[int], None]
"""Does n units of work and returns when they are done."""


@dataclass(frozen=True)
class Effort:
    """How much measuring is worth the wait."""

    turns: int
    """Turns of each contestant."""
    seconds: float
    """What a turn of training steps takes, roughly."""
    images: int
    """Images of an evaluation."""


FULL = Effort(turns=7, seconds=0.7, images=40)
QUICK = Effort(turns=1, seconds=0.05, images=10)
TRIAL = Effort(turns=2, seconds=0.1, images=0)


def interleaved(contestants: Mapping[str, Contestant], effort: Effort) -> Times:
    """Turns A B C, A B C, … of about `effort.seconds` each, after a warm-up of every contestant."""
    units = {name: _units(work, effort.seconds) for name, work in contestants.items()}
    times: Times = {name: [] for name in contestants}
    for _ in range(effort.turns):
        for name, work in contestants.items():
            time.sleep(0.05)  # the last contestant's threads come to rest
            times[name].append(_seconds(work, units[name]) / units[name])
    return times


def _units(work: Contestant, seconds: float) -> int:
    """Units of work that take about `seconds`, at least 1."""
    work(1)
    units = 1
    while (took := _seconds(work, units)) < seconds / 4:
        units *= 2
    return max(1, round(units * seconds / took))


def _seconds(work: Contestant, units: int) -> float:
    began = time.perf_counter()
    work(units)
    return time.perf_counter() - began


def fastest(contestants: Mapping[str, Contestant]) -> str:
    """The contestant with the shortest turn in a trial."""
    times = interleaved(contestants, TRIAL)
    return min(times, key=lambda name: min(times[name]))


def medians(times: Times) -> dict[str, float]:
    """The middle turn of each contestant."""
    return {name: median(turns) for name, turns in times.items()}


def shortest(times: Times) -> dict[str, float]:
    """The shortest turn of each contestant: the least disturbed one on a busy machine."""
    return {name: min(turns) for name, turns in times.items()}


def ratios(times: Times) -> dict[str, dict[str, float]]:
    """How many times longer each rival took than iwae in the same turn: median, min and max."""
    ours = times["iwae"]
    pairs = {
        name: [rival / own for rival, own in zip(turns, ours, strict=True)]
        for name, turns in times.items()
        if name != "iwae"
    }
    return {n: {"median": median(p), "min": min(p), "max": max(p)} for n, p in pairs.items()}
