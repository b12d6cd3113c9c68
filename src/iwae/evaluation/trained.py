"""The trained model with its data: evaluate, score, encode, sample, reconstruct."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from iwae import bounds, data
from iwae._utils import threefry
from iwae._utils.checks import COUNTED, check_draws, check_seed
from iwae._utils.distributed import computing
from iwae._utils.notebook import html_table
from iwae.config.schema import RunConfig
from iwae.data import Dataset
from iwae.errors import InputError
from iwae.evaluation import units
from iwae.evaluation.elbo import posterior_means, terms
from iwae.evaluation.examples import Progress, mean_and_error, over_examples
from iwae.evaluation.likelihood import CHUNK, bound_value, log_likelihood
from iwae.evaluation.units import Ablation, Activity
from iwae.models.base import AbstractAutoencoder, block_of
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.build import as_kept, build
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.observation import Observation, prepare
from iwae.models.pruning import prune
from iwae.storage import checkpoint
from iwae.storage.evaluations import Evaluation as Evaluation
from iwae.storage.metrics import History
from iwae.storage.run_directory import identity, open_run, read_model

TERM_DRAWS = 100
"""Draws per example for the ELBO's terms and the active units."""

ACTIVITY_EXAMPLES = 10_000
"""Training examples that determine which units are inactive, to remove these."""

ABLATION_EXAMPLES = 2000
"""Training examples that determine which units are used."""


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A model, the configuration it was trained with, and how it observes its data."""

    config: RunConfig
    model: AbstractAutoencoder
    seen: Observation
    epochs: int
    """Epochs of training."""
    path: Path | None = None
    """The run directory; None for a run in memory."""
    data_dir: str | Path | None = None
    """Where to look first for the files of data sets."""
    dataset: Dataset | None = None
    """The data as the model observes them; None if `data` is to find them."""
    run: str = ""
    """The identity of the run (`run_directory.identity`); empty if unknown."""
    history: History = field(default_factory=History, compare=False)
    """The metrics of each epoch; empty if there are none."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Names of the user's own parts."""
    _found: dict[Hashable, Dataset] = field(default_factory=dict, compare=False)
    """Cache of `data`, shared by copies made with `replace`."""

    @property
    def passes(self) -> int:
        """The former name of `epochs`."""
        return self.epochs

    def __repr__(self) -> str:
        units = self._units()
        parts = [
            f"{self._objective()}, K = {self.config.objective.k}",
            *([f"{units} latent units"] if units else []),
            f"{self.seen.name}, {self.epochs:,} epochs",
            *([] if self.path is None else [repr(str(self.path))]),
        ]
        return f"TrainedModel({', '.join(parts)})"

    def _objective(self) -> str:
        """What was maximised: the settings' objective, or a bound of the user's own."""
        return self.own.get("bound", self.config.label)

    def _units(self) -> str:
        """Latent units of each layer as text; empty for a model that is not an `Autoencoder`."""
        layered = isinstance(self.model, AbstractAutoencoder)
        return " + ".join(map(str, self.model.latents)) if layered else ""

    def _repr_html_(self) -> str:
        """A summary as a table, for a notebook."""
        rows = [
            ("model", f"{self._objective()}, K = {self.config.objective.k}"),
            *([("latent units", self._units())] if self._units() else []),
            ("likelihood", self.config.model.likelihood),
            ("data", f"{self.seen.name}, {self.seen.kind}, {_times(self.seen.shape)}"),
            ("epochs", f"{self.epochs:,}"),
        ]
        if self.path is not None:
            rows.append(("directory", str(self.path)))
        if self.seen.note:
            rows.append(("note", self.seen.note))
        return html_table(rows)

    def save(self, out: str | Path) -> None:
        """Write a run directory that `iwae.load` and every command can read.

        It has no checkpoint, so the model cannot be trained further from it. `InputError` if `out`
        exists, or if the model is not the one its configuration describes, e.g. after units were
        removed.
        """
        own = checkpoint.shapes(eqx.filter(self.model, _is_array))
        built = not self.own.keys() & {"model", "likelihood"}
        described = as_kept(skeleton(self.config, self.seen), own.keys()) if built else self.model
        if checkpoint.shapes(eqx.filter(described, _is_array)) != own:
            raise InputError(
                "The model is not the one that its configuration describes, so it could not be "
                "loaded again; save the model that was trained."
            )
        with open_run(out, self.config, resume=False) as directory:
            directory.own = self.own
            directory.run = identity(self.config, self.seen, self.own)
            directory.save_config(self.config)
            directory.save_model(self.model, self.seen, self.epochs, step=0)

    def is_stored(self) -> bool:
        """Whether this model, rather than a modified one, is stored in the run directory.

        Also True if the stored model has another number of epochs, since the run was then trained
        further. False after weights were fixed at their means, or units were removed.
        """
        if self.path is None:
            return False
        stored, _, epochs = read_model(self.path)
        own = checkpoint.arrays(eqx.filter(self.model, eqx.is_array))
        return epochs != self.epochs or (
            own.keys() == stored.arrays.keys()
            and all(np.array_equal(own[n], stored.arrays[n], equal_nan=True) for n in own)
        )

    def at_the_mean(self) -> "TrainedModel":
        """A copy with uncertain weights fixed at their means; `InputError` if it has none."""
        if not isinstance(self.model, UncertainAutoencoder):
            raise InputError(
                "mean_weights was requested, but no weights are uncertain; leave it out."
            )
        return dataclasses.replace(self, model=self.model.at_the_mean())

    def data(self) -> Dataset:
        """The data set the model was trained on, located as by `iwae.data.load`, and read once.

        `InputError` if it is missing, or has changed since.
        """
        if self.dataset is not None:
            return self.dataset
        key = (self.config.data, self.seen, self.data_dir)
        if key not in self._found:
            self._found[key] = self._read_data()
        return self._found[key]

    def _read_data(self) -> Dataset:
        config = self.config.data
        if config.dataset not in data.NAMES and not Path(config.dataset).exists():
            raise InputError(
                f"The run was trained on {config.dataset}, which is neither a registered data set "
                f"nor a file here; put the file back, or give its examples again, with iwae "
                f"evaluate --data FILE or iwae.load(…, data=…)."
            )
        loaded = data.load(
            config.dataset, data_dir=self.data_dir, values=self.seen.kind, header=config.header
        ).in_order(self.seen.names)
        if not self.seen.fits(loaded):
            raise InputError(
                f"{config.dataset} has changed since the run was trained: it holds "
                f"{loaded.kind} values of shape {loaded.shape} instead of {self.seen.kind} values "
                f"of shape {self.seen.shape}; put the original data back."
            )
        if self.seen.digest not in ("", loaded.whole_digest):
            raise InputError(
                f"{config.dataset} has changed since the run was trained: its examples differ; put "
                f"the original data back, or give arrays with iwae.load(…, data=…)."
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
                f"memory = {memory} was given, but it must be at least 1 byte; give more, or leave "
                f"it out."
            )
        check_draws(k)
        if not len(images):
            raise InputError("No examples were given; give at least 1.")
        return over_examples(
            eqx.Partial(log_likelihood, k=k),
            self.model,
            images,
            self.seen.observer,
            seed=seed,
            draws=min(k, CHUNK),
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
        NAME:SPLIT of a registered data set; `header` is that of `iwae.data.load`. Named columns are
        matched to those of training. If training binarises dynamically, each example is binarised
        with `seed`; a mean over several seeds varies less.

        Warns if a value is not finite in float32: −inf means below −3.4e38, or no density.
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

        If training binarises dynamically, each example is binarised with `seed`.
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

        Intensities are scaled to [0, 1], whatever the scale of the data. If p(x|h_1) has no mean,
        its `loc` or median is returned.
        """
        check_seed(seed)
        self._check_layers("sample")
        if n < 1:
            raise InputError(f"n = {n} was given, but it must be at least 1; give n = 1 or more.")
        if n > COUNTED:
            raise InputError(f"n = {n} was given, but it can be at most {COUNTED:,}; give fewer.")
        # for uncertain weights draw i depends on n; else n is rounded up, to compile less often
        exact = isinstance(self.model, UncertainAutoencoder)
        several = n if exact else 1 << (n - 1).bit_length()
        with computing(self.model):
            images = _sample(self.model, several, threefry.key(seed), mean)
        return np.asarray(images)[:n].reshape(n, *self.seen.shape)

    def reconstruct(
        self, source: str | Path | np.ndarray, *, seed: int = 0, header: str = "auto"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(x as the model observes it, E[x'|h_1] at one draw h_1 ~ q), each [n, *shape].

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
        return units.activity(self.model, images, self.seen.observer, seed=seed, k=TERM_DRAWS)

    def ablation(self, images: np.ndarray, *, seed: int = 0) -> Ablation:
        """U_u of every unit on prepared examples."""
        self._check_layers("ablation")
        return units.ablation(self.model, images, self.seen.observer, seed=seed)

    def usage(self, images: np.ndarray, *, seed: int = 0) -> Ablation:
        """The former name of `ablation`."""
        return self.ablation(images, seed=seed)

    def without_inactive(self, *, seed: int = 0) -> AbstractAutoencoder:
        """The model without the units that are inactive on training examples."""
        return self._with_only(lambda _, activity: activity.active, seed)

    def only_used(self, *, seed: int = 0) -> AbstractAutoencoder:
        """The model with only the units that are used on training examples."""
        used = lambda images: self.ablation(images[:ABLATION_EXAMPLES], seed=seed).used
        return self._with_only(lambda images, _: used(images), seed)

    @computing()
    def _with_only(
        self, chosen: Callable[[np.ndarray, Activity], tuple[np.ndarray, ...]], seed: int
    ) -> AbstractAutoencoder:
        """The model with only the chosen units; the others are fixed at their averages."""
        if isinstance(self.model, HierarchicalAutoencoder):
            raise InputError(
                "without_inactive or only_used was requested, but units of a hierarchical proposal "
                "cannot be removed; leave it out."
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

        `limit` takes only the first examples of the split. Uncertain weights are drawn anew for
        each importance sample, or with `mean_weights` fixed at their means. `without_inactive` and
        `only_used` also evaluate the model without its inactive or unused units.

        A fresh binarisation and all draws derive from `seed`, not from the run's, so that runs on
        the same data see the same pixels. `memory` is the budget of a block in bytes. `InputError`
        if an NLL is not finite.
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
        values = of.log_likelihoods(images, k=k, seed=seed, memory=memory, progress=progress)
        nll = -_mean_of_finite(values, k)
        nll_of = lambda part: of._nll(part, images, k=k, seed=seed, memory=memory)
        return Evaluation(
            dataset=self.seen.name,
            split=split,
            n=len(images),
            epochs=self.epochs,
            k=k,
            nll=nll,
            nll_se=mean_and_error(values)[1],
            bits_per_dim=nll / (images.shape[1] * float(np.log(2))),
            **of._parts(images, seed),
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

    def _parts(self, images: np.ndarray, seed: int) -> "_Parts":
        """The terms of the ELBO and the activity of the units."""
        elbo = self._terms(images, seed)
        layered = isinstance(self.model, AbstractAutoencoder)
        active = self.activity(images, seed=seed) if layered and len(images) > 1 else None
        return {
            "elbo": float(elbo[0] - elbo[1:].sum()),
            "reconstruction": float(elbo[0]) if layered else math.nan,
            "kl": [float(v) for v in elbo[1:]],
            "active_units": None if active is None else active.counts,
            "activity": None if active is None else [a.tolist() for a in active.variance],
        }

    def _nll(
        self,
        part: AbstractAutoencoder,
        images: np.ndarray,
        *,
        k: int,
        seed: int,
        memory: int | None,
    ) -> float:
        """−L_K of a model with some of the units, in nats; `InputError` if it is not finite."""
        smaller = dataclasses.replace(self, model=part)
        return -_mean_of_finite(smaller.log_likelihoods(images, k=k, seed=seed, memory=memory), k)

    def _blocks(self, k: int) -> str:
        """The note on L_K if importance samples are drawn in dependent blocks, or ""."""
        block = block_of(self.model)
        if block == 1:
            return ""
        return f"L_{k} of draws in blocks of {block}, a lower bound of log p(x)"

    def _terms(self, images: np.ndarray, seed: int) -> np.ndarray:
        """The terms of the ELBO, or, for a model that is not an `Autoencoder`, the ELBO itself."""
        function = eqx.Partial(terms, k=TERM_DRAWS)
        if not isinstance(self.model, AbstractAutoencoder):
            function = eqx.Partial(bound_value, bound=bounds.elbo, k=TERM_DRAWS)
        per_example = over_examples(
            function, self.model, images, self.seen.observer, seed=seed, draws=TERM_DRAWS
        )
        return np.atleast_1d(per_example.mean(axis=0, dtype=np.float64))

    def _check_layers(self, what: str) -> None:
        """`InputError` unless the model is an `Autoencoder`."""
        if not isinstance(self.model, AbstractAutoencoder):
            raise InputError(
                f"{what} was requested, but it needs the layers of an Autoencoder, and this run "
                f"was trained with a model of your own, a {type(self.model).__name__}; use the "
                f"methods of that model."
            )

    def _posterior_means(
        self, images: np.ndarray, seed: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        function = eqx.Partial(posterior_means, k=TERM_DRAWS)
        return over_examples(
            function, self.model, images, self.seen.observer, seed=seed, draws=TERM_DRAWS
        )


class _Parts(TypedDict):
    """The fields of an evaluation beside its likelihoods."""

    elbo: float
    reconstruction: float
    kl: list[float]
    active_units: list[int] | None
    activity: list[list[float]] | None


def _times(shape: tuple[int, ...]) -> str:
    """A shape as text, such as 28 × 28."""
    return " × ".join(map(str, shape))


def _without_number(scores: np.ndarray, examples: np.ndarray) -> str:
    """The warning for scores that are not finite."""
    at = np.flatnonzero(~np.isfinite(scores))
    size = float(np.abs(examples[at[0]]).max())
    return (
        f"{len(at)} of {len(scores)} log-likelihoods are not finite, the first that of example "
        f"{at[0]} ({scores[at[0]]:g}), whose values reach {size:g}: it is too far from the "
        f"training data for float32, or where the model has no density; check its values."
    )


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array(leaf)


def skeleton(
    config: RunConfig, seen: Observation, own: AbstractLikelihood | None = None
) -> AbstractAutoencoder:
    """The model that a configuration describes, with shapes and types instead of arrays.

    An `own` likelihood replaces the one that the configuration names.
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
    """The mean of L_K over examples, in nats; `InputError` if it is not finite."""
    lost = np.flatnonzero(~np.isfinite(values))
    if len(lost):
        raise InputError(
            f"L_{k} is {values[lost[0]]:g} for {len(lost)} of {len(values)} examples, the first of "
            f"them number {lost[0]}, so the NLL is not finite; check that the examples fit the "
            f"likelihood, and that the model's parameters are finite."
        )
    return float(values.mean(dtype=np.float64))


def _reconstruction(
    model: AbstractAutoencoder, x: Float[Array, " d"], key: PRNGKeyArray
) -> tuple[Array, Array]:
    return x, model.reconstruct(x, key)


@eqx.filter_jit
def _sample(model: AbstractAutoencoder, n: int, key: PRNGKeyArray, mean: bool) -> Array:
    return model.sample(n, key, mean=mean)
