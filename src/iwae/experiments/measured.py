"""Results of a run: its evaluation, further metrics, and provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

from iwae.storage.persisted import Unbounded

Known = tuple[float, float | None]
"""A figure in a file: a value and its standard error, or None if that is unknown."""

Figures = Mapping[str, Known]
"""Figures by name."""

LIKELIHOODS = "log_likelihoods"
"""L_K of each test image, in nats, [n]."""


class Entry(TypedDict):
    """A run's evaluation as files hold it."""

    seed: int
    k: int
    n: int
    nll: float
    nll_se: NotRequired[float | None]
    passes: NotRequired[int]
    elbo: NotRequired[Unbounded | None]
    active_units: NotRequired[list[int] | None]
    training_seconds: NotRequired[float]
    made_with: NotRequired[list[str]]
    device: NotRequired[str]
    iwae: NotRequired[str]
    jax: NotRequired[str]
    note: NotRequired[str]
    dataset: NotRequired[str]


@dataclass(frozen=True)
class Result:
    """A run's evaluation, with the figures of each further metric."""

    entry: Entry
    figures: Mapping[str, Figures] = field(default_factory=dict)
    log_likelihoods: Float[np.ndarray, " n"] | None = field(default=None, compare=False)
    """None if they are not loaded."""

    @property
    def seed(self) -> int:
        return self.entry["seed"]

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.entry.get("dataset", "")

    @property
    def epochs(self) -> int:
        return self.entry["passes"]

    @property
    def k(self) -> int:
        return self.entry["k"]

    @property
    def n(self) -> int:
        """Number of test images."""
        return self.entry["n"]

    @property
    def nll(self) -> float:
        """−L_K, mean over test images, in nats."""
        return self.entry["nll"]

    @property
    def nll_se(self) -> float | None:
        """Its standard error over test images; None for a single image."""
        return self.entry.get("nll_se")

    @property
    def active_units(self) -> Sequence[int] | None:
        """Layer by layer; None for a single test image."""
        return self.entry.get("active_units")

    @property
    def device(self) -> str:
        """Device of the evaluation."""
        return self.entry["device"]

    @property
    def note(self) -> str:
        """A note on the data, or an empty string."""
        return self.entry.get("note", "")

    @property
    def made_with(self) -> Sequence[str]:
        """Devices and versions that trained the run, where known."""
        return self.entry.get("made_with", ())

    @property
    def version(self) -> str | None:
        """The version of iwae that evaluated it, if known."""
        return self.entry.get("iwae")

    @property
    def training_seconds(self) -> float | None:
        return self.entry.get("training_seconds")
