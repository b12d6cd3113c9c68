"""From stored examples to the model's input: a fresh 0/1 sample, a fixed one, or the values."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from iwae import data
from iwae.config.schema import DataConfig, ModelConfig
from iwae.data import Dataset, mapped
from iwae.data.dataset import SPLITS
from iwae.data.schema import Schema
from iwae.errors import InputError
from iwae.models import likelihoods

CHECKED = 1000
"""Number of examples that a likelihood is checked on before training."""

REPEATS = 5
"""A column is taken for discrete if its values occur this often on average."""

ON_MIXTURES = (
    "zeros count by their probability and other values by their density, so that this is "
    "comparable with likelihoods of the same kind alone"
)
"""The note on NLLs that mix probabilities and densities."""

FIXED_SEED = 0
"""Seed of the fixed binarisation, the same for every run."""


@dataclass(frozen=True)
class Observer:
    """Maps x to x / scale, or with `dynamic` to a fresh 0/1 sample with P(1) = x / scale.

    With `missing`, a value that is NaN stays so.
    """

    scale: float
    dynamic: bool
    missing: bool = False

    def __call__(self, x: Shaped[Array, " d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        intensity = x.astype(jnp.float32) / self.scale
        if not self.dynamic:
            return intensity
        drawn = jax.random.bernoulli(key, intensity).astype(jnp.float32)
        return jnp.where(jnp.isnan(intensity), jnp.nan, drawn) if self.missing else drawn


@dataclass(frozen=True)
class Observation:
    """How a model sees the values of a data set, and what it records about the data."""

    name: str
    kind: str
    scale: float
    shape: tuple[int, ...]
    note: str
    binarization: str
    digest: str = ""
    """Digest of the stored examples of all splits; empty in runs of early versions."""
    names: tuple[str, ...] = ()
    """Names of the columns, in the order of the model's input; empty if they have none."""
    schema: Schema | None = None
    """The columns of a table; None for other kinds."""
    missing: bool = False
    """Whether the model was built for examples with missing values."""

    @property
    def observer(self) -> Observer:
        """The observer of examples from `prepare`."""
        scale = 1.0 if self.binarization == "fixed" else self.scale
        return Observer(scale, dynamic=self.binarization == "dynamic", missing=self.missing)

    @property
    def model_kind(self) -> str:
        """The kind of the model's input: "binary" or "real" values, or a "table"."""
        if self.kind == "table":
            return "table"
        return "binary" if self.kind == "binary" or self.binarization != "none" else "real"

    def fits(self, dataset: Dataset) -> bool:
        """Whether the values of a data set are of the same kind, scale, shape and schema.

        They may be missing only if the model was built for missing values.
        """
        theirs = (dataset.kind, dataset.scale, dataset.shape, dataset.schema)
        takes = self.missing or self.kind == "table" or not dataset.missing
        return takes and (self.kind, self.scale, self.shape, self.schema) == theirs

    def read(
        self,
        source: object,
        data_dir: str | Path | None,
        header: str = "auto",
        *,
        missing: bool = False,
    ) -> np.ndarray:
        """A user's examples [n, d], checked against the data that the model was trained on.

        Named columns are sorted into the order of training; those of a table hold the user's own
        values, words included. Values may be missing in a table, where training lacked some, and
        with `missing`.

        A fixed binarisation is that of the split if a registered data set is named, and otherwise
        depends on the position of an example.
        """
        examples = data.read_examples(
            source,
            kind=self.kind,
            scale=self.scale,
            shape=self.shape,
            data_dir=data_dir,
            names=self.names,
            header=header,
            schema=self.schema,
            missing=missing or self.missing,
        )
        if self.binarization != "fixed":
            return examples
        name, _, split = str(source).partition(":")
        registered = isinstance(source, str) and name in data.NAMES
        part = [SPLITS.index(split or "test")] if registered else []
        return data.binarize(examples, self.scale, [FIXED_SEED, *part])


def observation(dataset: Dataset, config: DataConfig, model: ModelConfig) -> Observation:
    """The observation of a configuration; `InputError` if the values do not fit it."""
    how, binary = config.binarization, likelihoods.is_binary(model.likelihood)
    if how == "auto":
        intensity = dataset.kind == "intensity"
        how = "dynamic" if intensity and (binary or model.likelihood == "auto") else "none"
    if dataset.schema is not None:
        return _of_table(dataset, dataset.schema, how, model)
    if how != "none" and dataset.kind == "real":
        raise InputError(
            f"binarization = {how} was given, but {dataset.name} has real values; bring them into "
            f"[0, 1], or give --binarization none."
        )
    if how == "none" and dataset.kind == "intensity" and binary:
        raise InputError(
            f"binarization = none was given with likelihood = {model.likelihood}, which is a "
            f"distribution over 0 and 1 only; give --binarization dynamic or fixed, or "
            f"--likelihood gaussian."
        )
    if dataset.kind == "binary":
        how = "none"
    values = dataset.train[:CHECKED] / np.float32(dataset.scale)
    if dataset.missing:  # a value that its column has
        values = np.where(np.isnan(values), dataset.usual(), values)
    if how != "none":
        values = np.repeat([[0.0], [1.0]], values.shape[1], axis=1)
    scale = 1.0 if how != "none" else dataset.scale
    likelihoods.check_values(model.likelihood, values, dataset.name, scale)
    notes = [dataset.note] if dataset.note else []
    if how == "none" and likelihoods.is_continuous(model.likelihood, dataset.kind):
        notes += _notes_on_densities(dataset)
        if likelihoods.is_mixed(model.likelihood):
            notes.append(ON_MIXTURES)
    of = (dataset.name, dataset.kind, dataset.scale, dataset.shape, "; ".join(notes))
    return Observation(
        *of,
        binarization=how,
        digest=dataset.whole_digest,
        names=dataset.names,
        missing=dataset.missing,
    )


def _of_table(dataset: Dataset, schema: Schema, how: str, model: ModelConfig) -> Observation:
    """The observation of a table; `InputError` for settings that are for other kinds of values."""
    if how != "none":
        raise InputError(
            f"binarization = {how} was given, but {dataset.name} is a table, whose columns have "
            f"likelihoods of their own; leave it out."
        )
    if model.likelihood != "auto":
        raise InputError(
            f"likelihood = {model.likelihood} was given, but {dataset.name} is a table, whose "
            f"columns have likelihoods of their own; leave it out, and give them in the schema, or "
            f"give --values real."
        )
    notes = [dataset.note] if dataset.note else []
    of = (dataset.name, dataset.kind, 1.0, dataset.shape, "; ".join([*notes, schema.measure]))
    return Observation(
        *of,
        binarization="none",
        digest=dataset.whole_digest,
        names=dataset.names,
        schema=schema,
        missing=dataset.missing,
    )


def _notes_on_densities(dataset: Dataset) -> list[str]:
    """Notes on densities of these values."""
    edges = [(np.fmin.reduce(b), np.fmax.reduce(b)) for b in mapped.blocks_of(dataset.train)]
    low, high = zip(*edges, strict=True)
    constant = np.fmin.reduce(low) == np.fmax.reduce(high)
    discrete = _look_discrete(dataset.train[:CHECKED]) & ~constant
    notes = []
    if dataset.scale != 1:
        notes.append(f"the density is that of x / {dataset.scale:g}")
    if constant.any():
        notes.append(
            f"{constant.sum()} of {len(constant)} values are constant in training, where a density "
            f"may have no bound"
        )
    if discrete.any():
        notes.append(
            f"{discrete.sum()} of {len(discrete)} values look discrete in training, of which a "
            f"density is no probability and may have no bound"
        )
    return notes


def _look_discrete(values: Shaped[np.ndarray, "n d"]) -> Bool[np.ndarray, " d"]:
    """Columns whose values occur `REPEATS` times or more on average."""
    ordered = np.sort(values, axis=0)  # NaN last
    seen = len(values) - np.isnan(ordered).sum(axis=0)
    distinct = 1 + np.sum((ordered[1:] != ordered[:-1]) & ~np.isnan(ordered[1:]), axis=0)
    return distinct * REPEATS <= seen


def prepare(dataset: Dataset, seen: Observation) -> Dataset:
    """The data set for the device: columns in the order of training, and binarised once if the
    binarisation is fixed."""
    dataset = dataset.in_order(seen.names)
    if seen.binarization != "fixed":
        return dataset
    return replace(dataset.binarized(FIXED_SEED), name=dataset.name)
