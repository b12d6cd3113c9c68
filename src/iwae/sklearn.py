"""Estimators for scikit-learn: `IWAE`, a density model of tables, and `IWAEImputer`.

Both take arrays, data frames, records and mappings of columns with missing values, and sparse
matrices. All densities are in the user's own units.
"""

import dataclasses
import itertools
import json
import math
import numbers
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32
from scipy.special import logsumexp, softmax

import iwae
from iwae import runs
from iwae._utils import extras, threefry
from iwae._utils.checks import require
from iwae._utils.distributed import computing
from iwae._utils.files import write_atomic
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.config.tables import DEEP, RECIPE, Size, TableSettings, noises, sizes
from iwae.data import Dataset, cells, frames
from iwae.data.columns import order as order_of
from iwae.data.columns import tidy
from iwae.data.detect import Decisions, detect
from iwae.data.schema import Schema, number_of
from iwae.evaluation import imputation
from iwae.evaluation.elbo import posterior_means
from iwae.evaluation.examples import PerExample, over_examples
from iwae.evaluation.filling import filled
from iwae.evaluation.likelihood import CHUNK, log_likelihood
from iwae.evaluation.trained import TERM_DRAWS, TrainedModel
from iwae.models.base import AbstractAutoencoder
from iwae.storage import persisted
from iwae.training import Callback
from iwae.training.callbacks import Validation
from iwae.training.trainer import NonFiniteError

extras.require("sklearn", purpose="iwae.IWAE", extra="sklearn")

from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
    clone,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import (
    _check_feature_names_in,
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

STATE = "estimator.json"
"""The file of a saved estimator, beside the directories of its members."""

LEAST_DRAWS = 50
"""Least importance samples of each model for missing values, unless k_score is smaller."""

FEWER = 4
"""By how much fewer importance samples are enough for averages than for draws."""

SCORING = 0
"""Seed of the draws of `score_samples`, mixed with the digest of each row."""


@dataclass(frozen=True)
class Structure:
    """What held-out rows may decide on."""

    noise: str
    prior: str
    size: Size


@dataclass(frozen=True)
class Settings(TableSettings):
    """What "auto" stands for."""

    noises: tuple[str, ...]
    priors: tuple[str, ...]
    sizes: tuple[Size, ...]
    n_models: int
    patience: int | None
    """Epochs without a better validation bound before the training of a model stops; None chooses
    one epoch for all models."""

    @property
    def structures(self) -> tuple[Structure, ...]:
        """The candidates."""
        each = (self.noises, self.priors, self.sizes)
        return tuple(itertools.starmap(Structure, itertools.product(*each)))


SETTINGS = {
    "n_latents": "n_latents",
    "hidden": "hidden",
    "noise": "noises",
    "prior": "priors",
    "n_models": "n_models",
    "max_epochs": "max_epochs",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "batch_size": "batch_size",
    "patience": "patience",
}
"""The parameters that may be "auto", and where their values stand in `Settings`."""

TRIALS = 2
"""Models of each candidate that are trained, to choose one by the rows that these hold out."""

MODELS, FEWER_MODELS = 5, 3
"""Models of a mixture, and of one for a table of `DEEP` rows and more, where further ones take long
and add little. With a fifth of the rows held out by each, no row is held out twice."""


def _defaults(schema: Schema, n: int) -> Settings:
    """The settings for n rows of these columns."""
    chosen = TableSettings.of(n, len(schema.columns), schema.continuous)
    return Settings(
        **dataclasses.asdict(chosen),
        noises=noises(n, schema.continuous),
        priors=(chosen.prior,),
        sizes=sizes(n, len(schema.columns)),
        n_models=FEWER_MODELS if n >= DEEP else MODELS,
        patience=None,
    )


class IWAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A density model of the rows of a table: an importance weighted autoencoder.

    p(x) = ∫ p(x|h) p(h) dh with Gaussian h, trained by an importance weighted bound on the observed
    part of each row. Several models trained on different parts of the data make a mixture with
    equal weights, whose log-likelihood is at least the mean of theirs (Jensen).

    Args:
        n_latents: units of h.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        k: importance samples of each row in training.
        objective: the bound to maximise, by its name in `iwae.config`.
        estimator: the estimator of its gradient, by its name in `iwae.estimators`.
        noise: the noise of the real columns given h: "independent", "full" or "low-rank"; or
            several of them, of which the bound on held-out rows chooses.
        prior: p(h): "normal", or "mixture" of normals; or both, to be chosen from.
        n_models: number of models in the mixture.
        max_epochs: most passes over the training rows.
        learning_rate: the learning rate of Adam, from which it falls to 0 along a cosine.
        weight_decay: the decoupled decay of the networks' weights.
        batch_size: rows of each step.
        validation_fraction: share of the rows that each model holds out of its training; a fifth
            leaves every row out of one of five models.
        patience: epochs without a better bound on these rows before the training of a model stops,
            which then keeps the parameters of its best epoch. None trains all models for
            `max_epochs`, and keeps the parameters of one epoch for all: that with the best mean
            bound on the rows that were held out, which varies less with the seed.
        k_score: importance samples of each row: by each model in `score_samples`, by all together
            for draws of `impute`, and a quarter of them for its means. A larger number gives larger
            scores, which approach log p(x) from below.
        schema: the types of columns that are not to be detected: an `iwae.data.schema.Schema`, the
            path of its TOML file, or {column: type}.
        random_state: seed of the training and of draws; None takes another one each time.
        verbose: whether to show the progress of training.
        warm_start: whether `fit` starts from the parameters of the last fit.

    Where "auto" is admitted, the setting follows from the size and the types of the data.

    Attributes:
        schema_: the columns, `iwae.data.schema.Schema`.
        models_: the trained models, `iwae.evaluation.trained.TrainedModel`.
        validation_scores_: the bound of each model on its held-out rows, in nats per row.
        n_iter_: the largest number of epochs of a model whose parameters were kept.
        n_features_in_: number of columns.
        feature_names_in_: their names, if they have any.

    Example:
        >>> from iwae import IWAE
        >>> model = IWAE(random_state=0).fit(x)  # doctest: +SKIP
        >>> odd = x[model.score_samples(x) < -40]  # doctest: +SKIP
    """

    def __init__(
        self,
        n_latents: int | str = "auto",
        *,
        hidden: int | Sequence[int] | str = "auto",
        k: int = 8,
        objective: str = "iwae",
        estimator: str = "dreg",
        noise: str | Sequence[str] = "auto",
        prior: str | Sequence[str] = "auto",
        n_models: int | str = "auto",
        max_epochs: int | str = "auto",
        learning_rate: float | str = "auto",
        weight_decay: float | str = "auto",
        batch_size: int | str = "auto",
        validation_fraction: float = 0.2,
        patience: int | str | None = "auto",
        k_score: int = 1000,
        schema: object = None,
        random_state: object = None,
        verbose: int = 0,
        warm_start: bool = False,
    ):
        self.n_latents = n_latents
        self.hidden = hidden
        self.k = k
        self.objective = objective
        self.estimator = estimator
        self.noise = noise
        self.prior = prior
        self.n_models = n_models
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.k_score = k_score
        self.schema = schema
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start

    def fit(self, X: Any, y: object = None, sample_weight: object = None) -> Self:
        """Train on rows X [n, d].

        Args:
            X: an array, a data frame, records, or a mapping from names to columns, in which NaN,
                None and masked values are missing; or a sparse matrix, in which what is not stored
                is 0, and which is made an array.
            y: ignored.
            sample_weight: weights of the rows [n], at least 0. The training and the held-out rows
                are then resampled in proportion to them.

        Returns:
            The estimator.

        Raises:
            InputError: if the data or a parameter cannot be used.
            NonFiniteError: if the bound does not stay finite, even at an eighth of the learning
                rate; each halving is a `ConvergenceWarning`.
        """
        begin = self.models_ if self.warm_start and hasattr(self, "models_") else None
        rows = self._read_training(X, reset=begin is None)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        self._train(rows, weights, begin)
        return self

    def partial_fit(self, X: Any, y: object = None) -> Self:
        """Train one epoch on rows X [n, d], from the parameters of the last fit if there is one.

        The types of the columns and the units of their standardisation remain those of the first
        rows. No row is held out, and each call starts the optimiser anew.
        """
        first = not hasattr(self, "models_")
        rows = self._read_training(X, reset=first)
        self._train(rows, None, None if first else self.models_, one_epoch=True)
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """log p(x) of rows X [n, d] in nats, as L_K with K = k_score, [n].

        Of a row with missing values it is the log-likelihood of those that are not. It is −inf,
        with a warning, for a row with a number that its column's type excludes, such as 0 in a
        positive column. A row's draws depend only on its own values, so that its score is the same
        in any company.
        """
        check_is_fitted(self)
        return self._log_likelihoods(self._read(X)).astype(np.float32)

    def score(self, X: Any, y: object = None) -> float:
        """The mean of `score_samples`, in nats per row."""
        return float(np.mean(self.score_samples(X), dtype=np.float64))

    def transform(self, X: Any) -> Float[np.ndarray, "n h"]:
        """E_q[h|x] of rows X [n, d], by the model with the best bound, [n, n_latents]."""
        check_is_fitted(self)
        of = eqx.Partial(_first_layer, k=TERM_DRAWS)
        rows = self.schema_.inside(self._read(X))
        means: np.ndarray = _over_rows(of, self._best, rows, draws=TERM_DRAWS)
        return means

    def inverse_transform(self, X: Any) -> Any:
        """E[x|h] for codes X [n, n_latents] of `transform`, as rows in the units of the data."""
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float32)
        require(
            codes.shape[1] == self._n_features_out,
            f"Codes with {codes.shape[1]} columns were given, but the model has "
            f"{self._n_features_out} latent units; give what transform returns.",
        )
        with computing(self._best.model):
            rows = _expected(self._best.model, jnp.asarray(codes))
        return self._decoded(np.asarray(rows))

    def sample(self, n_samples: int = 1) -> Any:
        """n_samples rows from the model, in the form of the rows in `fit`.

        Like scikit-learn's `KernelDensity`, and unlike its mixtures, it returns the rows alone.
        With an integer `random_state` it returns the same rows each time.
        """
        check_is_fitted(self)
        require(
            isinstance(n_samples, numbers.Integral) and n_samples >= 1,
            f"n_samples = {n_samples} was given, but it must be a whole number of at least 1.",
        )
        random = check_random_state(self.random_state)
        whose = random.randint(len(self.models_), size=n_samples)
        rows = np.empty((n_samples, len(self.schema_.columns)), np.float32)
        for number, trained in enumerate(self.models_):
            own, seed = whose == number, random.randint(2**31)
            if own.any():
                rows[own] = _sampled(trained.model, int(own.sum()), int(seed))
        return self._decoded(rows)

    def impute(self, X: Any, n_draws: int | None = None) -> Any:
        """Rows X [n, d] with their missing values filled in; observed ones stay as they are.

        Without `n_draws` a number becomes E[x_m|x_o], a category the most probable one, and a level
        the median. With `n_draws` missing values are drawn jointly from p(x_m|x_o) for multiple
        imputation, by resampling k_score importance samples.

        Args:
            X: rows as in `fit`.
            n_draws: the number of imputations of each row.

        Returns:
            The rows in the form of X, sparse matrices as arrays: [n, d], or with `n_draws`
            [n_draws, n, d], as a list for data frames and mappings.
        """
        check_is_fitted(self)
        require(
            n_draws is None or (isinstance(n_draws, numbers.Integral) and n_draws >= 1),
            f"n_draws = {n_draws} was given, but it must be a whole number of at least 1.",
        )
        rows, seen = self._read(X), self._best.seen
        given = X if frames.is_tabular(X) else np.asarray(dense(X))
        holes = np.isnan(rows).any(axis=1)
        parts = np.repeat(rows[None], n_draws or 1, axis=0)
        if holes.any():
            some = self.schema_.inside(rows[holes])
            parts[:, holes] = (
                self._imputed(some) if n_draws is None else self._completed(some, n_draws)
            )
        made = [filled(given, part, seen) for part in parts]
        if n_draws is None:
            return made[0]
        return np.stack(made) if isinstance(made[0], np.ndarray) else made

    def _imputed(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """The best single values, from the models' predictions weighted by p_m(x_o)."""
        draws = self._draws_of_each(FEWER)
        of = eqx.Partial(imputation.predict, k=draws, empty=True)
        draws = min(draws, CHUNK)
        found = [_over_rows(of, model, rows, draws=draws) for model in self.models_]
        shares = softmax([p.estimate.log_likelihood for p in found], axis=0)
        mean = np.einsum("mn,mnf->nf", shares, np.stack([p.prediction for p in found]))
        with computing(self._best.model):
            values = _decided(self._best.model, jnp.asarray(mean, jnp.float32))
        return np.where(np.isnan(rows), np.asarray(values), rows)

    def _completed(
        self, rows: Float[np.ndarray, "n d"], n_draws: int
    ) -> Float[np.ndarray, "m n d"]:
        """Draws of the missing values, each from a model drawn by p_m(x_o)."""
        random = check_random_state(self.random_state)
        seed, several = int(random.randint(2**31)), len(self.models_)
        of = eqx.Partial(imputation.complete, k=self._draws_of_each(), n=int(n_draws), empty=True)
        drawn = np.stack(
            [
                over_examples(
                    of, trained.model, rows, trained.seen.observer, seed=seed, draws=CHUNK
                )
                for trained in self.models_
            ]
        )
        scores = self._log_likelihoods_of_each(rows)
        shares = np.cumsum(softmax(scores, axis=0), axis=0)
        at = random.uniform(size=(n_draws, 1, len(rows)))
        whose = np.minimum((at > shares).sum(axis=1), several - 1)
        chosen: np.ndarray = drawn[whose, np.arange(len(rows)), np.arange(n_draws)[:, None]]
        return chosen

    def _draws_of_each(self, fewer: int = 1) -> int:
        """Importance samples of each model for a row, so many times fewer than k_score in all."""
        least = min(LEAST_DRAWS, self.k_score)
        return max(least, self.k_score // (fewer * len(self.models_)))

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to a new directory, without pickle.

        Its members are run directories, which `iwae.load` and every command can read. A
        `random_state` that is no integer is not kept.

        Raises:
            InputError: if the directory exists, or cannot be written.
        """
        check_is_fitted(self)
        folder = Path(path)
        require(
            not folder.exists(),
            f"{folder} exists already; give the path of a directory that does not exist yet.",
        )
        for number, model in enumerate(self.models_):
            model.save(folder / f"model-{number}")
        write_atomic(folder / STATE, json.dumps(self._state(), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator in a directory written by `save`.

        Raises:
            InputError: if there is none, or its files are damaged.
        """
        folder = Path(path)
        file = folder / STATE
        require(
            file.is_file(),
            f"{folder} holds no saved estimator; give a directory that `save` has written.",
        )
        stored = persisted.typed(persisted.parsed(file.read_bytes()), dict[str, Any], STATE)
        estimator = cls(**stored["parameters"])
        for name, value in stored["fitted"].items():
            setattr(estimator, name, value)
        if "feature_names_in_" in stored["fitted"]:
            names = stored["fitted"]["feature_names_in_"]
            estimator.feature_names_in_ = np.array(names, dtype=object)
        several = len(stored["fitted"]["validation_scores_"])
        estimator.models_ = [runs.load(folder / f"model-{i}") for i in range(several)]
        seen = estimator.models_[0].seen
        require(seen.schema is not None, f"{folder} holds no models of tables; restore it.")
        estimator.schema_ = cast(Schema, seen.schema)
        estimator._like = _empty(stored["form"], estimator.schema_)
        return estimator

    def _state(self) -> dict[str, object]:
        """Parameters and fitted attributes as JSON, without the models."""
        parameters = self.get_params(deep=False)
        if not isinstance(self.random_state, int):
            parameters["random_state"] = None
        fitted = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name in (*KEPT, "feature_names_in_")
            if (value := getattr(self, name, None)) is not None
        }
        parameters["schema"] = as_plain(self.schema)
        known = {"version": iwae.__version__, "form": _form(self._like)}
        return known | {"parameters": parameters, "fitted": fitted}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self._best.model.latents[0])

    @property
    def _best(self) -> TrainedModel:
        """The model with the best validation bound."""
        model: TrainedModel = self.models_[int(np.argmax(self.validation_scores_))]
        return model

    def _read(self, X: Any) -> Float[np.ndarray, "n d"]:
        """Rows as the models see them, with the numbers that the types of their columns exclude."""
        return self.schema_.encode(validated(self, X, reset=False), "X", tolerant=True)

    def _read_training(self, X: Any, *, reset: bool) -> Float[np.ndarray, "n d"]:
        """Rows to train on; with `reset` they set what later rows have to look like."""
        given = validated(self, X, reset=reset)
        if reset:
            wishes = cast(Decisions | None, self.schema)
            self.schema_ = detect(frames.as_table(given, "X"), wishes, where="X").schema
            self._like = head(given)
        return self.schema_.encode(given, "X")

    def _decoded(self, rows: Float[np.ndarray, "n d"]) -> Any:
        """Rows of the models in the form of those of the fit."""
        return self.schema_.to_frame(rows, self._like)

    def _log_likelihoods(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """log of the mean of the models' densities, float64 [n]."""
        each = self._log_likelihoods_of_each(rows)
        mean: np.ndarray = logsumexp(each, axis=0) - np.log(len(each))
        return mean

    def _log_likelihoods_of_each(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m n"]:
        of = eqx.Partial(log_likelihood, k=int(self.k_score))
        draws = min(self.k_score, CHUNK)
        each = [_over_rows(of, model, rows, draws=draws) for model in self.models_]
        return np.where(np.isnan(rows).all(axis=1), 0.0, np.array(each, np.float64))

    def _train(
        self,
        rows: Float[np.ndarray, "n d"],
        weights: np.ndarray | None,
        begin: list[TrainedModel] | None,
        *,
        one_epoch: bool = False,
    ) -> None:
        """Train the models on these rows, and set the fitted attributes."""
        settings = self._settings(len(rows))
        random = check_random_state(self.random_state)
        order = random.permutation(len(rows))
        seeds = random.randint(2**31, size=settings.n_models)
        structures = settings.structures
        if begin is not None:
            require(
                len(begin) == settings.n_models,
                f"n_models = {settings.n_models} was given, but training goes on from "
                f"{len(begin)}; give n_models = {len(begin)}, or fit anew.",
            )
            structures = (self._as_before(_structure(begin[0]), settings),)
        parts = [self._split(order, number) for number in range(settings.n_models)]
        if one_epoch:
            parts, structures = [(order, order[:1])] * settings.n_models, structures[:1]
        if weights is not None:
            again = lambda part: _resampled(part, weights, random)
            parts = [(again(train), again(valid)) for train, valid in parts]

        def member(number: int, structure: Structure) -> tuple[TrainedModel, Kept]:
            train, valid = parts[number]
            batch, seed = min(settings.batch_size, len(train)), int(seeds[number])
            of = dataclasses.replace(
                settings,
                noise=structure.noise,
                prior=structure.prior,
                **dataclasses.asdict(structure.size),
            )
            config = self._config(of, len(train), batch, seed, one_epoch=one_epoch)
            if not one_epoch:
                train = _rounds(train, batch)
            start = None if begin is None else begin[number]
            data = self._dataset(rows[train], rows[valid])
            return _trained(config, data, start, progress=bool(self.verbose))

        found = _with_best(structures, settings.n_models, member)
        at = None if settings.patience is not None else _best_epoch([kept for _, kept in found])
        chosen = [_at_epoch(model, kept, at) for model, kept in found]
        self.models_ = [model for model, _ in chosen]
        self.validation_scores_ = [score for _, score in chosen]
        self.n_iter_ = max(m.epochs for m in self.models_)

    @property
    def noise_(self) -> str:
        """The noise of the real columns given h, of those in `noise`."""
        check_is_fitted(self)
        return _structure(self._best).noise

    @property
    def prior_(self) -> str:
        """p(h), of those in `prior`."""
        check_is_fitted(self)
        return _structure(self._best).prior

    def _is_auto(self, name: str) -> bool:
        given = getattr(self, name)
        return isinstance(given, str) and given == "auto"

    def _as_before(self, structure: Structure, settings: Settings) -> Structure:
        """The structure of a model that is trained further, but for what the parameters say."""
        names = [f.name for f in dataclasses.fields(Size) if not self._is_auto(f.name)]
        given = {name: getattr(settings, name) for name in names}
        return dataclasses.replace(structure, size=dataclasses.replace(structure.size, **given))

    @property
    def hidden_(self) -> tuple[int, ...]:
        """The widths of the hidden layers."""
        check_is_fitted(self)
        return _structure(self._best).size.hidden

    def _settings(self, n: int) -> Settings:
        """The parameters, with what "auto" stands for. `InputError` if one cannot be used."""
        found = _defaults(self.schema_, n)
        for name, field in SETTINGS.items():
            given = getattr(self, name)
            if self._is_auto(name):
                continue
            if name == "hidden":
                given = (given,) if isinstance(given, numbers.Integral) else tuple(given)
            if name in ("noise", "prior"):
                given = (given,) if isinstance(given, str) else tuple(given)
                require(len(given) > 0, f"{name} = () was given; give one name, or several.")
            found = dataclasses.replace(found, **{field: given})
        few = is_whole(found.n_models) and found.n_models <= TRIALS
        if isinstance(self.noise, str) and few:
            found = dataclasses.replace(found, noises=found.noises[:1])
        compared = self._is_auto("hidden") and self._is_auto("n_latents") and not few
        own = Size(found.n_latents, found.hidden, found.learning_rate)
        for name in ("n_latents", "n_models", "max_epochs", "batch_size", "patience"):
            given = getattr(found, name)
            require(
                (name == "patience" and given is None) or (is_whole(given) and given >= 1),
                f"{name} = {given!r} was given, but it must be a whole number of at least 1, or "
                f"'auto'.",
            )
        for name, least in (("learning_rate", "above 0"), ("weight_decay", "0 or more")):
            given = getattr(found, name)
            number = isinstance(given, numbers.Real) and math.isfinite(given)
            require(
                number and (given > 0 or (given == 0 and name == "weight_decay")),
                f"{name} = {given!r} was given, but it must be a number {least}, or 'auto'.",
            )
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction = {self.validation_fraction} was given, but it must lie between "
            f"0 and 1.",
        )
        if not compared:
            return dataclasses.replace(found, sizes=(own,))
        if self._is_auto("learning_rate"):
            return found
        at = [dataclasses.replace(size, learning_rate=found.learning_rate) for size in found.sizes]
        return dataclasses.replace(found, sizes=tuple(at))

    def _split(self, order: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The training and the held-out rows of a model: the next fold for each."""
        n = len(order)
        held = min(n - 1, max(1, round(self.validation_fraction * n)))
        turned = np.roll(order, -(number * held) % n)
        return turned[held:], turned[:held]

    def _dataset(self, train: np.ndarray, valid: np.ndarray) -> Dataset:
        schema, shape = self.schema_, (train.shape[1],)
        splits = (train, valid, valid)
        return Dataset("rows", *splits, "table", 1.0, shape, names=schema.names, schema=schema)

    def _config(
        self, settings: Settings, n: int, batch: int, seed: int, *, one_epoch: bool = False
    ) -> RunConfig:
        """The configuration of a model for n training rows."""
        passes = len(_rounds(np.arange(n), batch)) / n
        rounds = max(1, round(settings.max_epochs / passes))
        patience = settings.patience
        given = RECIPE | {
            "hidden": (tuple(map(int, settings.hidden)),),
            "latents": (int(settings.n_latents),),
            "noise": settings.noise,
            "prior": settings.prior,
            "k": int(self.k),
            "objective": self.objective,
            "estimator": self.estimator,
            "epochs": rounds,
            "batch_size": int(batch),
            "learning_rate": float(settings.learning_rate),
            "weight_decay": float(settings.weight_decay),
            "patience": None if patience is None else max(1, round(patience / passes)),
            "seed": seed,
        }
        if one_epoch:
            given |= {"epochs": 1, "schedule": "constant", "patience": None, "average": None}
            given |= {"warmup": 0}
        return override(RunConfig(), **given)


class IWAEImputer(TransformerMixin, BaseEstimator):
    """Fills the missing values of tables, from a density model of their rows.

    A number becomes E[x_m|x_o], a category the most probable one, and a level the median: the best
    single values. For standard errors that know of the holes, draw several with
    `IWAE.impute(X, n_draws=…)`.

    Args:
        estimator: the density model; None is `IWAE()`, and others set its parameters.
        sample_posterior: whether to draw the values from p(x_m|x_o) instead.
        keep_empty_features: whether columns without any value in `fit` remain, filled with 0;
            otherwise they are left out.
        random_state: seed of the training and of draws; None leaves it to the estimator.
        verbose: whether to show the progress of training; 0 leaves it to the estimator.

    Attributes:
        estimator_: the fitted density model.
        n_features_in_: number of columns.
        feature_names_in_: their names, if they have any.

    Example:
        >>> from iwae import IWAEImputer
        >>> full = IWAEImputer(random_state=0).fit_transform(frame)  # doctest: +SKIP
    """

    def __init__(
        self,
        estimator: IWAE | None = None,
        *,
        sample_posterior: bool = False,
        keep_empty_features: bool = False,
        random_state: object = None,
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.sample_posterior = sample_posterior
        self.keep_empty_features = keep_empty_features
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: object = None) -> Self:
        """Train the density model on rows X [n, d], in any form that `IWAE` takes; y is ignored.

        Raises:
            InputError: if the data or a parameter cannot be used.
        """
        given = validated(self, X, reset=True)
        columns = frames.as_table(given, "X").columns
        self._kept = np.flatnonzero([not cells.gaps.all() for cells in columns])
        require(len(self._kept) > 0, "X has no value in any column; give rows with some values.")
        model = IWAE() if self.estimator is None else clone(self.estimator)
        if self.random_state is not None:
            model.set_params(random_state=self.random_state)
        if self.verbose:
            model.set_params(verbose=self.verbose)
        self.estimator_ = model.fit(_columns(given, self._kept))
        return self

    def transform(self, X: Any) -> Any:
        """Rows X [n, d] with their missing values filled in, in the form of X.

        Observed values stay as they are, bit for bit.
        """
        check_is_fitted(self)
        given = validated(self, X, reset=False)
        part = _columns(given, self._kept)
        if self.sample_posterior:
            made = self.estimator_.impute(part, n_draws=1)[0]
        else:
            made = self.estimator_.impute(part)
        if not self.keep_empty_features or len(self._kept) == self.n_features_in_:
            return made
        return _with_zeros(made, given, self._kept)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The names of the columns that `transform` returns."""
        check_is_fitted(self)
        names = _check_feature_names_in(self, input_features)
        return names if self.keep_empty_features else names[self._kept]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _columns(X: Any, kept: np.ndarray) -> Any:
    """Some columns of an array, records, a mapping or a data frame."""
    if frames.is_records(X):
        return X[[X.dtype.names[i] for i in kept]]
    if isinstance(X, Mapping):
        named = list(X.items())
        return dict(named[i] for i in kept)
    if isinstance(X, np.ndarray):
        return X[:, kept]
    if len(kept) == X.shape[1]:
        return X
    narwhals = extras.require("narwhals", purpose="a data frame")
    return narwhals.from_native(X, eager_only=True)[:, kept.tolist()].to_native()


def _with_zeros(made: Any, X: Any, kept: np.ndarray) -> Any:
    """The columns of `made` in their places among those of X, and 0 in the others."""
    if isinstance(X, Mapping):
        n = len(next(iter(made.values())))
        return {name: made[name] if name in made else np.zeros(n) for name in X}
    if frames.is_records(X):
        records: np.ndarray = np.zeros(X.shape, X.dtype)
        for name in made.dtype.names:
            records[name] = made[name]
        return records
    if isinstance(X, np.ndarray):
        whole: np.ndarray = np.zeros(X.shape, made.dtype)
        whole[:, kept] = made
        return whole
    nw = extras.require("narwhals", purpose="a data frame")
    given, own = nw.from_native(X, eager_only=True), nw.from_native(made, eager_only=True)
    zero = lambda name: nw.lit(0.0).alias(name)
    named = given.columns
    return (
        own.with_columns(*[zero(name) for name in named if name not in own.columns])
        .select(named)
        .to_native()
    )


KEPT = ("n_features_in_", "n_iter_", "validation_scores_")
"""Fitted attributes that `save` writes."""

RETRIES = 3
"""How often a training that was not finite starts again at half the learning rate."""

ROUND = 40
"""Least steps between two validations. Rows of smaller data are repeated to make so many, so that
the trainer's work between them does not outweigh the steps, and data of any size share programs."""


class Kept(Callback):
    """Keeps the model of every validation, with its bound on the held-out rows."""

    def __init__(self) -> None:
        self.models: list[AbstractAutoencoder] = []
        self.bounds: list[float] = []

    def on_validation(self, event: Validation) -> None:
        self.models.append(cast(AbstractAutoencoder, event.model()))
        self.bounds.append(event.bound)


def _trained(
    config: RunConfig, data: Dataset, start: TrainedModel | None, *, progress: bool
) -> tuple[TrainedModel, Kept]:
    """A model trained on these data from the parameters of `start`, without the data, and those of
    all its epochs unless the configuration chooses by `patience`."""
    kept = Kept()
    watched = [kept] if config.training.patience is None else []
    with tempfile.TemporaryDirectory() as folder:
        begun = config
        if start is not None:
            place = Path(folder) / "start"
            start.save(place)
            begun = override(config, start_from=str(place))
        trained = _finite(begun, data, progress=progress, callbacks=watched)
    own = override(trained.config, start_from=None)
    return dataclasses.replace(trained, config=own, dataset=None), kept


Member = Callable[[int, Structure], tuple[TrainedModel, Kept]]
"""(number, structure) ↦ a trained model of the mixture, and all its epochs."""


def _with_best(
    candidates: Sequence[Structure], several: int, member: Member
) -> list[tuple[TrainedModel, Kept]]:
    """The models of the candidate whose first `TRIALS` have the best bound on held-out rows."""
    trials = min(TRIALS, several) if len(candidates) > 1 else 0
    found = {of: [member(number, of) for number in range(trials)] for of in candidates}
    best = max(candidates, key=lambda of: _best_bound(found[of])) if trials else candidates[0]
    return found[best] + [member(number, best) for number in range(trials, several)]


def _best_bound(found: Sequence[tuple[TrainedModel, Kept]]) -> float:
    """The mean bound of models on their held-out rows, at the epoch where it is largest."""
    bounds = [model.history.valid_bound for model, _ in found]
    several = min(map(len, bounds))
    return float(np.max(np.mean([bound[:several] for bound in bounds], axis=0)))


def _structure(of: TrainedModel) -> Structure:
    """The candidate that a model was trained by."""
    (hidden,), (n_latents,) = of.config.model.widths
    size = Size(n_latents, hidden, of.config.training.learning_rate)
    return Structure(of.config.model.noise, of.config.model.prior, size)


def _finite(
    config: RunConfig, data: Dataset, *, progress: bool, callbacks: Sequence["Kept"]
) -> TrainedModel:
    """A trained model, at half the learning rate each time that its bound did not stay finite."""
    for _ in range(RETRIES):
        try:
            return runs.train(config, data=data, progress=progress, callbacks=callbacks)
        except NonFiniteError:
            rate = config.training.learning_rate / 2
            warnings.warn(
                f"Training was not finite, and starts again with learning_rate = {rate:g}.",
                ConvergenceWarning,
                stacklevel=2,
            )
            config = override(config, learning_rate=rate)
            for kept in callbacks:
                kept.models, kept.bounds = [], []
    return runs.train(config, data=data, progress=progress, callbacks=callbacks)


def _best_epoch(found: Sequence[Kept]) -> int:
    """The validation with the best mean over the models of their bounds on held-out rows."""
    several = min(len(kept.bounds) for kept in found)
    return int(np.argmax(np.mean([kept.bounds[:several] for kept in found], axis=0)))


def _at_epoch(trained: TrainedModel, kept: Kept, at: int | None) -> tuple[TrainedModel, float]:
    """The model of a validation and its bound there; without `at`, that of the trainer's choice."""
    if at is None:
        return trained, float(np.nanmax(trained.history.valid_bound))
    model = dataclasses.replace(trained, model=kept.models[at], epochs=at + 1)
    return model, kept.bounds[at]


def _rounds(train: np.ndarray, batch: int) -> np.ndarray:
    """The training rows of an epoch of the trainer: whole batches, at least `ROUND` of them."""
    least = ROUND * batch
    size = least if len(train) <= least else len(train) - len(train) % batch
    return np.resize(train, size)


def _resampled(part: np.ndarray, weights: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """As many rows, each as often as its weight demands up to one (systematic resampling)."""
    share = weights[part]
    if share.sum() == 0:
        return part
    edges = np.cumsum(share) * (len(part) / share.sum())
    at = np.arange(len(part)) + random.uniform()
    return part[np.searchsorted(edges, at, side="right").clip(0, len(part) - 1)]


def _over_rows(
    function: PerExample, model: TrainedModel, rows: np.ndarray, *, draws: int
) -> PyTree:
    """function(model, x, key) of every row, with a key that depends on its values alone."""
    return over_examples(
        eqx.Partial(_keyed_by_row, function=function),
        model.model,
        rows,
        model.seen.observer,
        seed=SCORING,
        draws=draws,
    )


def _keyed_by_row(
    model: PyTree, x: Float[Array, " d"], key: PRNGKeyArray, *, function: PerExample
) -> PyTree:
    return function(model, x, jax.random.fold_in(threefry.key(SCORING), _digest(x)))


def _digest(x: Float[Array, " d"]) -> UInt32[Array, ""]:
    """A number for the values of a row: the sum of the mixed bits of each (MurmurHash3's mixer)."""
    bits = jax.lax.bitcast_convert_type(jnp.where(jnp.isnan(x), jnp.nan, x), jnp.uint32)
    word = bits + jnp.uint32(0x9E3779B9) * jnp.arange(1, len(x) + 1, dtype=jnp.uint32)
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(word ^ (word >> 16), dtype=jnp.uint32)


def validated(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """X after scikit-learn's checks: an array of numbers with NaN, or of words, or named columns.

    Sparse matrices are arrays, in which what is not stored is 0. Records and mappings have their
    columns in the order of the fit.
    """
    least = 2 if reset else 1
    mapping = isinstance(X, Mapping) and not frames.is_columns(X) and not frames.is_sparse(X)
    require(
        not mapping and not isinstance(X, str | Path),
        f"X is a {type(X).__name__}, but rows are expected as an array [n, d], a data frame, "
        f"records, or a mapping of columns; give one, for example pandas.DataFrame(X).",
    )
    if not frames.is_tabular(X):
        how = {"ensure_all_finite": "allow-nan", "ensure_min_samples": least, "reset": reset}
        words = isinstance(X, np.ndarray) and X.dtype.kind in "OUT" and holds_words(X)
        return validate_data(estimator, dense(X), dtype=object if words else "numeric", **how)
    found = X
    if frames.is_frame(X):
        cells.check_names(list(map(str, X.columns)), "X")
        validate_data(estimator, X, skip_check_array=True, reset=reset)
    else:
        found = _in_order(estimator, X, reset=reset)
    n = len(next(iter(X.values()))) if isinstance(X, Mapping) else X.shape[0]
    require(
        n >= least,
        f"X has n_samples = {n}, but at least {least} rows are needed; give more.",
    )
    return found


def dense(X: Any) -> Any:
    """A sparse matrix as an array [n, d]; others as they are."""
    if not frames.is_sparse(X):
        return X
    require(X.ndim == 2, f"X has the shape {X.shape}, but rows are expected as [n, d]; reshape it.")
    return frames.densified(X, "X")


def _in_order(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Records or a mapping with their columns as in the fit; with `reset` their names are kept.

    Columns are matched by name, in any order, and by position if those of the fit had no names.
    """
    labels = list(X.dtype.names if frames.is_records(X) else X)
    names = list(map(tidy, labels))
    cells.check_names(names, "X")
    if reset:
        estimator.feature_names_in_ = np.array(names, dtype=object)
        estimator.n_features_in_ = len(names)
        return X
    wanted = getattr(estimator, "feature_names_in_", ())
    at = order_of(names, tuple(map(tidy, wanted)), estimator.n_features_in_, "X")
    require(
        len(names) == estimator.n_features_in_,
        f"X has {len(names)} columns; give {estimator.n_features_in_}, as in the fit.",
    )
    return X if at is None else _columns(X, at)


def _form(like: Any) -> str | list[list[str]]:
    """What rows look like: the dtype of an array, the names and dtypes of records, or the library
    of a data frame."""
    if frames.is_records(like):
        return [[name, like.dtype[name].str] for name in like.dtype.names]
    if isinstance(like, Mapping):
        return MAPPING
    if isinstance(like, np.ndarray):
        return str(like.dtype)
    narwhals = extras.require("narwhals", purpose="a data frame")
    return str(narwhals.from_native(like).implementation.value)


MAPPING = "mapping"
"""The form of a mapping of columns."""


def _empty(form: str | list[list[str]], schema: Schema) -> Any:
    """An array, a mapping or a data frame without rows, of a form from `_form`."""
    if form == MAPPING:
        return head(dict.fromkeys(schema.names))
    if not isinstance(form, str):
        return np.empty(0, [(name, kind) for name, kind in form])
    if form not in frames.FRAMES:
        return np.empty((0, len(schema.names)), np.dtype(form))
    narwhals = extras.require("narwhals", purpose="a data frame")
    found = schema.decode(np.zeros(len(schema.names), np.float32))
    lists = {name: values.tolist() for name, values in found.items()}
    return head(narwhals.from_dict(lists, backend=form).to_native())


def as_plain(schema: object) -> object:
    """The parameter `schema` in a form that JSON can hold."""
    if isinstance(schema, Schema):
        return tomllib.loads(schema.to_toml())
    return str(schema) if isinstance(schema, Path) else schema


def is_whole(value: object) -> bool:
    """Whether it is a whole number, of Python or NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def holds_words(X: np.ndarray) -> bool:
    """Whether an array of objects holds a string that is no number."""
    return any(isinstance(v, str) and number_of(v) is None for v in X.flat)


def head(X: Any) -> Any:
    """An array, a mapping or a data frame like X, without its rows."""
    if isinstance(X, Mapping):
        return {name: np.empty(0) for name in X}
    if isinstance(X, np.ndarray):
        return X[:0].copy()
    narwhals = extras.require("narwhals", purpose="a data frame")
    return narwhals.from_native(X, eager_only=True).head(0).to_native()


def _sampled(model: AbstractAutoencoder, n: int, seed: int) -> Float[np.ndarray, "n d"]:
    """n draws of x; their number is rounded up, to compile less often."""
    several = 1 << (n - 1).bit_length()
    with computing(model):
        return np.asarray(_drawn(model, several, threefry.key(seed)))[:n]


@eqx.filter_jit
def _drawn(model: AbstractAutoencoder, n: int, key: PRNGKeyArray) -> Float[Array, "n d"]:
    return model.sample(n, key, mean=False)


@eqx.filter_jit
def _decided(model: AbstractAutoencoder, means: Float[Array, "n f"]) -> Float[Array, "n d"]:
    return jax.vmap(imputation.generation_of(model).likelihood.decide)(means)


def _first_layer(
    model: AbstractAutoencoder, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int
) -> Float[Array, " h"]:
    return posterior_means(model, x, key, k=k)[0][0]


@eqx.filter_jit
def _expected(model: AbstractAutoencoder, codes: Float[Array, "n h"]) -> Float[Array, "n d"]:
    return jax.vmap(model.expected)(codes)
