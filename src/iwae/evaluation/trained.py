"""A trained model with its data: evaluate, score, encode, sample, reconstruct."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae import bounds, data
from iwae._utils import threefry
from iwae._utils.checks import COUNTED, check_draws, check_seed
from iwae._utils.distributed import computing
from iwae.config.schema import RunConfig
from iwae.data import Dataset
from iwae.errors import InputError
from iwae.evaluation import evaluator
from iwae.evaluation.evaluator import (
    Activity,
    Progress,
    Usage,
    mean_and_error,
    over_examples,
)
from iwae.models.autoencoder import Autoencoder, block_of, prune
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.build import as_kept, build
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.observation import Observation, prepare
from iwae.storage import checkpoint, persisted
from iwae.storage.run_directory import identity, opened, read_model

TERM_DRAWS = 100
"""Draws per example behind the ELBO's terms and the active units."""

ACTIVITY_EXAMPLES = 10_000
"""Training examples that decide which units are inactive when they are to be removed."""

USAGE_EXAMPLES = 2000
"""Training examples that decide which units are used."""


@dataclass(frozen=True)
class Evaluation:
    """The worth of a model on a split; likelihoods are in nats per example."""

    dataset: str
    split: str
    n: int
    """Examples evaluated."""
    passes: int
    """Training passes behind the model."""
    k: int
    nll: float
    """−L_K, mean over examples."""
    nll_se: float
    """Standard error of `nll` over examples."""
    bits_per_dim: float
    elbo: float
    """E_q[log p(x, h) − log q(h|x)]."""
    reconstruction: float
    """E_q[log p(x|h_1)]; nan of a model that is no `Autoencoder`."""
    kl: list[float]
    """E_q[log q(h_l|h_{l−1}) − log p(h_l|h_{l+1})], per layer; none of a model without layers."""
    active_units: list[int] | None
    """Units with A_u > 0.01, per layer; unknown of a single example, or without layers."""
    activity: list[list[float]] | None
    """A_u of every unit, per layer."""
    nll_without_inactive: float | None
    """−L_K of the model without its inactive units, when asked for."""
    used_units: list[int] | None
    """Units that the model needs, per layer (`TrainedModel.only_used`), when asked for."""
    nll_only_used: float | None
    """−L_K of the model with its used units alone."""
    seed: int
    seconds: float
    device: str
    note: str
    """A remark on the data or the draws that the result must carry."""
    mean_weights: bool
    """Whether uncertain weights were held at their means."""
    log_likelihoods: np.ndarray = field(repr=False, compare=False)
    """L_K of every example, [n]."""

    def to_json(self) -> dict[str, Any]:
        """All but the values per example; what JSON has no number for, as the standard error of one
        example, is null."""
        fields = dataclasses.asdict(self)
        fields.pop("log_likelihoods")
        return persisted.finite(fields)


@dataclass(frozen=True)
class TrainedModel:
    """A model, the configuration it was trained with, and what it knows of its data."""

    config: RunConfig
    model: Autoencoder
    seen: Observation
    passes: int
    """Passes over the training split behind the model."""
    path: Path | None = None
    data_dir: str | Path | None = None
    dataset: Dataset | None = None
    run: str = ""
    """The identity of the run (`run_directory.identity`); empty where its files do not say."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Names of the parts of the run that are objects of the user's own."""

    def save(self, out: str | Path) -> None:
        """Write the model, its configuration and what it knows of its data as a run folder, which
        `iwae.load` and every command read; there is no checkpoint to train it on from.

        `InputError` if there is something at `out`, or the model is another than the one its
        configuration describes, as after units were removed.
        """
        own = checkpoint.shapes(eqx.filter(self.model, _is_array))
        built = not self.own.keys() & {"model", "likelihood"}
        described = as_kept(skeleton(self.config, self.seen), own.keys()) if built else self.model
        stands = checkpoint.shapes(eqx.filter(described, _is_array)) == own
        if not stands:
            raise InputError(
                "The model is not the one that its configuration describes, from which it is built "
                "when it is loaded; save the one that was trained."
            )
        with opened(out, self.config, resume=False) as folder:
            folder.own = self.own
            folder.run = identity(self.config, self.seen, self.own)
            folder.save_config(self.config)
            folder.save_model(self.model, self.seen, self.passes, step=0)

    def is_in_its_folder(self) -> bool:
        """Whether the model in the folder of the run, if it is one of as many passes, is this one;
        it is not after weights were held at their means, or units were removed."""
        if self.path is None:
            return False
        stored, _, passes = read_model(self.path)
        own = checkpoint.arrays(eqx.filter(self.model, eqx.is_array))
        return passes != self.passes or (
            own.keys() == stored.arrays.keys()
            and all(np.array_equal(own[n], stored.arrays[n], equal_nan=True) for n in own)
        )

    def at_the_mean(self) -> "TrainedModel":
        """The same with uncertain weights held at their means; `InputError` if it has none."""
        if not isinstance(self.model, UncertainAutoencoder):
            raise InputError(
                "mean_weights was asked for, but the model's weights are fixed; leave it out."
            )
        return dataclasses.replace(self, model=self.model.at_the_mean())

    def data(self) -> Dataset:
        """The data set the model was trained on, found as `iwae.data.load` finds it."""
        if self.dataset is not None:
            return self.dataset
        config = self.config.data
        if config.dataset not in data.NAMES and not Path(config.dataset).exists():
            raise InputError(
                f"The run was trained on {config.dataset}, which is neither a registered data set "
                f"nor a file here; put the file back, or give its examples again, by iwae evaluate "
                f"--data FILE or iwae.load(…, data=…)."
            )
        loaded = data.load(
            config.dataset, data_dir=self.data_dir, values=self.seen.kind, header=config.header
        ).in_order(self.seen.names)
        if not self.seen.fits(loaded):
            raise InputError(
                f"{config.dataset} has changed since the run was trained: it holds "
                f"{loaded.kind} values of shape {loaded.shape}, where {self.seen.kind} values of "
                f"shape {self.seen.shape} were; put the original data back."
            )
        if self.seen.digest not in ("", loaded.whole_digest):
            raise InputError(
                f"{config.dataset} has changed since the run was trained: its examples are others; "
                f"put the original data back, or give arrays with iwae.load(…, data=…)."
            )
        return prepare(loaded, self.seen)

    def log_likelihoods(
        self,
        images: np.ndarray,
        *,
        k: int = 5000,
        seed: int = 0,
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """L_K of prepared examples [n, d], in nats, [n]."""
        check_seed(seed)
        if memory is not None and memory < 1:
            raise InputError(
                f"memory = {memory} was given, but a block of draws needs some; give more, or "
                f"leave it out."
            )
        check_draws(k)
        if not len(images):
            raise InputError("No examples were given; give at least 1.")
        return over_examples(
            eqx.Partial(evaluator.log_likelihood, k=k),
            self.model,
            images,
            self.seen.observer,
            seed=seed,
            draws=min(k, evaluator.CHUNK),
            memory=memory,
            progress=progress,
        )

    def score(
        self,
        source: str | Path | np.ndarray,
        *,
        k: int = 5000,
        seed: int = 0,
        header: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """log p(x) of your own examples, estimated by L_K, in nats, [n].

        `source` is an array [n, …], a data frame, a .npy, .npz, .csv or .csv.gz file, or NAME or
        NAME:SPLIT of a registered data set; `header` is that of `iwae.data.load`. Columns that have
        names are matched to those of training. What training binarises dynamically is binarised
        with `seed`, each example by itself: the mean over several seeds varies less.

        Warns of what float32 cannot hold: −inf stands for what lies below −3.4e38 or has no
        density.
        """
        examples = self.seen.read(source, self.data_dir, header)
        scores = self.log_likelihoods(examples, k=k, seed=seed, progress=progress)
        if not np.isfinite(scores).all():
            warnings.warn(_without_number(scores, examples), RuntimeWarning, stacklevel=2)
        return scores

    def encode(
        self,
        source: str | Path | np.ndarray,
        *,
        layer: int = 1,
        seed: int = 0,
        header: str = "auto",
    ) -> np.ndarray:
        """E_q[h_l|x] of your own examples, [n, d_l]; layers are counted from the image.

        What training binarises dynamically is binarised with `seed`, each example by itself.
        """
        check_seed(seed)
        self._check_layers("encode")
        layers = len(self.model.latents)
        if not 1 <= layer <= layers:
            raise InputError(
                f"layer = {layer} was given, but the model has layers 1 to {layers}; give one."
            )
        examples = self.seen.read(source, self.data_dir, header)
        means = self._posterior_means(examples, seed)
        return means[layer - 1][0]

    def sample(self, n: int, *, seed: int = 0, mean: bool = True) -> np.ndarray:
        """n images from the model [n, *shape]: E[x|h_1], or with `mean=False` draws of x.

        Intensities are on the scale from 0 to 1, whatever that of the data. Where p(x|h_1) has no
        mean its `loc` or median stands for it.
        """
        check_seed(seed)
        self._check_layers("sample")
        if n < 1:
            raise InputError(f"n = {n} was given, but a sample is at least 1; give n = 1 or more.")
        if n > COUNTED:
            raise InputError(
                f"n = {n} was given, but images are counted up to {COUNTED:,}; give fewer."
            )
        counted = isinstance(
            self.model, UncertainAutoencoder
        )  # draw i depends on how many there are
        several = n if counted else 1 << (n - 1).bit_length()
        with computing(self.model):
            images = _sample(self.model, several, threefry.key(seed), mean)
        return np.asarray(images)[:n].reshape(n, *self.seen.shape)

    def reconstruct(
        self, source: str | Path | np.ndarray, *, seed: int = 0, header: str = "auto"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(x as the model sees it, E[x'|h_1] at one draw h_1 ~ q), each [n, *shape].

        `source` is anything that `score` takes.
        """
        return self.reconstructed(self.seen.read(source, self.data_dir, header), seed=seed)

    def reconstructed(self, images: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`reconstruct` of prepared examples [n, d]."""
        check_seed(seed)
        self._check_layers("reconstruct")
        seen, again = over_examples(
            _reconstruction, self.model, images, self.seen.observer, seed=seed, draws=1
        )
        return seen.reshape(-1, *self.seen.shape), again.reshape(-1, *self.seen.shape)

    def activity(self, images: np.ndarray, *, seed: int = 0) -> Activity:
        """A_u of every unit on prepared examples."""
        self._check_layers("activity")
        return evaluator.activity(self.model, images, self.seen.observer, seed=seed, k=TERM_DRAWS)

    def usage(self, images: np.ndarray, *, seed: int = 0) -> Usage:
        """U_u of every unit on prepared examples."""
        self._check_layers("usage")
        return evaluator.usage(self.model, images, self.seen.observer, seed=seed)

    def without_inactive(self, *, seed: int = 0) -> Autoencoder:
        """The model without the units that are inactive on training examples."""
        return self._with_only(lambda _, activity: activity.active, seed)

    def only_used(self, *, seed: int = 0) -> Autoencoder:
        """The model with the units that are used on training examples alone."""
        used = lambda images: self.usage(images[:USAGE_EXAMPLES], seed=seed).used
        return self._with_only(lambda images, _: used(images), seed)

    @computing()
    def _with_only(
        self, chosen: Callable[[np.ndarray, Activity], tuple[np.ndarray, ...]], seed: int
    ) -> Autoencoder:
        """The units chosen by training examples and their activity; others are held at averages."""
        if isinstance(self.model, HierarchicalAutoencoder):
            raise InputError(
                "without_inactive or only_used was asked for, but the heads of a hierarchical "
                "proposal cannot lose units; leave it out."
            )
        images = self.data().train[:ACTIVITY_EXAMPLES]
        active = self.activity(images, seed=seed)
        as_arrays = lambda of: tuple(map(jnp.asarray, of))
        return prune(self.model, as_arrays(chosen(images, active)), as_arrays(active.mean))

    @computing()
    def evaluate(
        self,
        *,
        k: int = 5000,
        split: str = "test",
        limit: int | None = None,
        seed: int = 0,
        memory: int | None = None,
        without_inactive: bool = False,
        only_used: bool = False,
        mean_weights: bool = False,
        progress: Progress | None = None,
    ) -> Evaluation:
        """L_K with its standard error, the ELBO's terms and the active units on a split.

        `limit` takes the first examples of the split only. Uncertain weights are drawn anew for
        each draw of the latents, or with `mean_weights` held at their means.

        One fresh binarisation and all draws come from `seed`, not from the run's, so that runs on
        the same data see the same pixels. `memory` is the budget in bytes of a block of draws.
        `InputError` if an NLL is not finite.
        """
        of = self.at_the_mean() if mean_weights else self
        images = self.data().split(split)
        if limit is not None and limit < 1:
            raise InputError(
                f"limit = {limit} was given, but at least 1 is needed; give 1 or more."
            )
        images = images[:limit]
        began = time.monotonic()
        smaller = of.without_inactive() if without_inactive else None
        used = of.only_used() if only_used else None
        nll_of = lambda part: (
            -_mean_of_finite(
                dataclasses.replace(of, model=part).log_likelihoods(
                    images, k=k, seed=seed, memory=memory
                ),
                k,
            )
        )
        values = of.log_likelihoods(images, k=k, seed=seed, memory=memory, progress=progress)
        _mean_of_finite(values, k)
        parts = of._terms(images, seed)
        layered = _has_layers(of.model)
        active = of.activity(images, seed=seed) if layered and len(images) > 1 else None
        mean, error = mean_and_error(values)
        return Evaluation(
            dataset=self.seen.name,
            split=split,
            n=len(images),
            passes=self.passes,
            k=k,
            nll=-mean,
            nll_se=error,
            bits_per_dim=-mean / (images.shape[1] * float(np.log(2))),
            elbo=float(parts[0] - parts[1:].sum()),
            reconstruction=float(parts[0]) if layered else math.nan,
            kl=[float(v) for v in parts[1:]],
            active_units=None if active is None else active.counts,
            activity=None if active is None else [a.tolist() for a in active.variance],
            nll_without_inactive=None if smaller is None else nll_of(smaller),
            used_units=None if used is None else list(used.latents),
            nll_only_used=None if used is None else nll_of(used),
            seed=seed,
            seconds=time.monotonic() - began,
            device=jax.devices()[0].device_kind,
            note="; ".join(n for n in (self.seen.note, self._blocks(k)) if n),
            mean_weights=mean_weights,
            log_likelihoods=values,
        )

    def _blocks(self, k: int) -> str:
        """What is to be said of L_k where draws depend on one another."""
        block = block_of(self.model)
        if block == 1:
            return ""
        return f"L_{k} of draws in blocks of {block}, a lower bound of log p(x)"

    def _terms(self, images: np.ndarray, seed: int) -> np.ndarray:
        """The terms of the ELBO, or of a model that is no `Autoencoder` the ELBO itself."""
        function = eqx.Partial(evaluator.terms, k=TERM_DRAWS)
        if not _has_layers(self.model):
            function = eqx.Partial(evaluator.bound_value, bound=bounds.elbo, k=TERM_DRAWS)
        per_example = over_examples(
            function, self.model, images, self.seen.observer, seed=seed, draws=TERM_DRAWS
        )
        return np.atleast_1d(per_example.mean(axis=0, dtype=np.float64))

    def _check_layers(self, what: str) -> None:
        """`InputError` of a model that is no `Autoencoder`."""
        if not _has_layers(self.model):
            raise InputError(
                f"{what} was asked for, but it is of the layers of an Autoencoder, and this run "
                f"was trained on a model of its own, a {type(self.model).__name__}; use the "
                f"methods of the model."
            )

    def _posterior_means(self, images: np.ndarray, seed: int) -> list[tuple[Any, Any]]:
        function = eqx.Partial(evaluator.posterior_means, k=TERM_DRAWS)
        return over_examples(
            function, self.model, images, self.seen.observer, seed=seed, draws=TERM_DRAWS
        )


def _without_number(scores: np.ndarray, examples: np.ndarray) -> str:
    """What is to be said of scores that are not finite."""
    at = np.flatnonzero(~np.isfinite(scores))
    size = float(np.abs(examples[at[0]]).max())
    return (
        f"{len(at)} of {len(scores)} log-likelihoods are no finite numbers, the first that of "
        f"example {at[0]} ({scores[at[0]]:g}), whose values reach {size:g}: it lies too far from "
        f"the training data for float32, or where the model has no density; look at its values."
    )


def _has_layers(model: object) -> bool:
    """Whether a model says of its layers what an `Autoencoder` does."""
    return isinstance(model, Autoencoder)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array(leaf)


def skeleton(
    config: RunConfig, seen: Observation, own: AbstractLikelihood | None = None
) -> Autoencoder:
    """The model that a configuration describes, with shapes and types in the place of arrays.

    An `own` likelihood stands in the place of the one that is named.
    """
    d = int(np.prod(seen.shape))
    return eqx.filter_eval_shape(
        build,
        config.model,
        kind=seen.model_kind,
        mean=np.zeros(d),
        spread=np.ones(d),
        key=jax.random.key(0),
        k=config.objective.k,
        own=own,
    )


def _mean_of_finite(values: np.ndarray, k: int) -> float:
    """The mean of L_k over examples, in nats; `InputError` if it is not finite."""
    lost = np.flatnonzero(~np.isfinite(values))
    if len(lost):
        raise InputError(
            f"L_{k} is {values[lost[0]]:g} for {len(lost)} of {len(values)} examples, the first of "
            f"them number {lost[0]}, so the NLL is no number; check that the examples fit the "
            f"likelihood, and that the training ended in a model that is finite."
        )
    return float(values.mean(dtype=np.float64))


def _reconstruction(model: Autoencoder, x: Any, key: Any) -> tuple[Any, Any]:
    return x, model.reconstruct(x, key)


@eqx.filter_jit
def _sample(model: Autoencoder, n: int, key: Any, mean: bool) -> Any:
    return model.sample(n, key, mean=mean)
