"""Evaluations of a model, and their file, evaluation.json."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iwae._utils.files import one_at_a_time, write_atomic
from iwae._utils.formatting import units_in_words
from iwae._utils.notebook import html_table
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.storage import persisted
from iwae.storage.persisted import MistypedError, Nullable
from iwae.storage.run_config import EVALUATION, MODEL, read_config_and_identity

IN_FILES = {"epochs": "passes"}
"""Fields of an evaluation that have another name in files."""

OPTIONAL = ("nll_without_inactive", "used_units", "nll_only_used")
"""Results of an evaluation that are computed on request."""

SAME = 1e-6
"""Relative tolerance within which two NLLs, summed in different orders, count as equal."""

REMEDY = "delete it and evaluate again"


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The evaluation of a model on a split; likelihoods are in nats per example."""

    dataset: str
    split: str
    n: int
    """Examples evaluated."""
    epochs: int
    """Epochs of training behind the model."""
    k: int
    nll: float
    """−L_K, mean over examples."""
    nll_se: Nullable
    """Standard error of `nll` over examples; nan for a single example."""
    bits_per_dim: float
    elbo: Nullable
    """E_q[log p(x, h) − log q(h|x)]."""
    reconstruction: Nullable
    """E_q[log p(x|h_1)]."""
    kl: list[Nullable]
    """E_q[log q(h_l|h_{l−1}) − log p(h_l|h_{l+1})], per layer."""
    active_units: list[int] | None
    """Units with A_u > 0.01, per layer; None for a single example."""
    activity: list[list[Nullable]] | None
    """A_u of every unit, per layer."""
    nll_without_inactive: float | None = None
    """−L_K of the model without its inactive units, if requested."""
    used_units: list[int] | None = None
    """Units that the model uses, per layer (`TrainedModel.only_used`), if requested."""
    nll_only_used: float | None = None
    """−L_K of the model with only its used units, if requested."""
    seed: int
    seconds: float
    device: str
    note: str
    """A note on the data or the samples that must accompany the result."""
    mean_weights: bool = False
    """Whether uncertain weights were fixed at their means."""
    log_likelihoods: np.ndarray = field(
        default_factory=lambda: np.empty(0), repr=False, compare=False
    )
    """L_K of every example, [n]; empty if the evaluation was read from a file."""

    @property
    def passes(self) -> int:
        """`epochs`, under its name in files."""
        return self.epochs

    @property
    def key(self) -> str:
        """Its key in evaluation.json."""
        name = f"{self.split} k={self.k} n={self.n} seed={self.seed} passes={self.epochs}"
        return name + " mean weights" * self.mean_weights

    def to_json(self) -> dict[str, Any]:
        """All fields but `log_likelihoods`; numbers that are not finite, such as the standard error
        of a single example, become null."""
        fields = dataclasses.asdict(self)
        fields.pop("log_likelihoods")
        return persisted.finite({IN_FILES.get(name, name): v for name, v in fields.items()})

    def __repr__(self) -> str:
        error = "" if math.isnan(self.nll_se) else f" ± {self.nll_se:.2f}"
        return (
            f"Evaluation({self.dataset}, {self.split}, {self.n:,} examples, "
            f"{self.epochs:,} epochs: NLL {self.nll:.2f}{error} nats by L_{self.k})"
        )

    def _repr_html_(self) -> str:
        """The results as a table, for a notebook."""
        error = "" if math.isnan(self.nll_se) else f" ± {self.nll_se:.2f}"
        rows = [
            ("data", f"{self.dataset}, {self.split}, {self.n:,} examples"),
            ("epochs", f"{self.epochs:,}"),
            (f"NLL (L_{self.k})", f"{self.nll:.2f}{error} nats"),
            ("bits per dimension", f"{self.bits_per_dim:.4f}"),
            ("ELBO", f"{self.elbo:.2f} nats"),
            ("KL, per layer", f"{', '.join(f'{v:.2f}' for v in self.kl)} nats"),
            ("active units", units_in_words(self.active_units)),
        ]
        if self.nll_without_inactive is not None:
            rows.append(("NLL without inactive units", f"{self.nll_without_inactive:.2f} nats"))
        if self.nll_only_used is not None:
            rows.append(("used units", units_in_words(self.used_units)))
            rows.append(("NLL of the used units alone", f"{self.nll_only_used:.2f} nats"))
        if self.note:
            rows.append(("note", self.note))
        return html_table(rows)


def read_evaluations(path: Path) -> dict[str, Evaluation]:
    """The evaluations in a run directory, by `key`.

    `InputError` if the file is damaged, or holds evaluations of another run.
    """
    return {name: evaluation for name, (_, evaluation) in _read(path).items()}


def keep_evaluation(result: Evaluation, path: Path, run: str) -> None:
    """Add an evaluation of the run with the identity `run` to its file.

    It replaces one with the same `key`, of which the optional results are kept if its NLL is the
    same. `InputError` as in `read_evaluations`, and if the file cannot be written.
    """
    with one_at_a_time(path / MODEL):
        found, entry = _read(path), result.to_json()
        before = found.get(result.key)
        if before is not None and math.isclose(before[1].nll, result.nll, rel_tol=SAME):
            entry |= {name: before[0].get(name) for name in OPTIONAL if entry[name] is None}
        entries = {name: kept for name, (kept, _) in found.items()} | {result.key: entry}
        of_run = {name: persisted.sealed(one, run, name) for name, one in entries.items()}
        write_atomic(path / EVALUATION, json.dumps(of_run, indent=1, allow_nan=False))


def _read(path: Path) -> dict[str, tuple[dict[str, object], Evaluation]]:
    """Every entry of evaluation.json, as (fields without the seal, evaluation), by key."""
    file = path / EVALUATION
    if not file.exists():
        return {}
    config, run = read_config_and_identity(path)
    found: dict[str, tuple[dict[str, object], Evaluation]] = {}
    try:
        content = persisted.parsed(persisted.content_of(file))
        for name, sealed in persisted.typed(content, dict[str, dict[str, object]]).items():
            plain, of = persisted.unsealed(sealed, name)
            evaluation = _parsed(plain, name)
            if (of or run) != run or not (of or _could_be_of(config, evaluation)):
                raise InputError(f"{file} holds evaluations of another run; {REMEDY}.")
            found[name] = (persisted.finite(plain), evaluation)
    except MistypedError as error:
        raise persisted.damaged(file, REMEDY) from error
    return found


def _parsed(entry: Mapping[str, object], name: str) -> Evaluation:
    """The evaluation in an entry; `MistypedError` if it is not one, or if its fields differ in the
    number of layers."""
    own = {there: here for here, there in IN_FILES.items()}
    fields = {own.get(field, field): value for field, value in entry.items()}
    fields.pop("log_likelihoods", None)
    evaluation = persisted.typed(persisted.known(fields, Evaluation, name), Evaluation, name)
    units, activity = evaluation.active_units, evaluation.activity
    lengths = {len(evaluation.kl), *(len(of) for of in (units, activity) if of is not None)}
    if len(lengths) > 1 or (units is None) != (activity is None):
        raise MistypedError(f"{name} has values for different numbers of layers")
    return evaluation


def _could_be_of(config: RunConfig, evaluation: Evaluation) -> bool:
    """Whether an evaluation without a run's identity could belong to a run of this configuration.

    It must be on data of the same name (unless from a file), after no more epochs, and of a model
    with the same layers and units.
    """
    dataset = config.data.dataset
    if not Path(dataset).suffix and evaluation.dataset != dataset:
        return False
    if evaluation.epochs > config.training.epochs:
        return False
    latents: Sequence[int] = config.model.widths[1]
    activity = evaluation.activity
    units = latents if activity is None else tuple(map(len, activity))
    return len(evaluation.kl) == len(latents) and tuple(units) == tuple(latents)
