"""The trained model with its data: evaluate, score, encode, sample, reconstruct."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, get_args

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
from iwae.config.io import text_of
from iwae.config.schema import RunConfig
from iwae.data import Dataset
from iwae.errors import InputError
from iwae.evaluation import filling, imputation, units
from iwae.evaluation.anomalies import Anomaly, By, ranked
from iwae.evaluation.elbo import posterior_means, terms
from iwae.evaluation.examples import Progress, mean_and_error, over_examples
from iwae.evaluation.likelihood import CHUNK, bound_value, log_likelihood
from iwae.evaluation.units import Ablation, Activity
from iwae.models.autoencoder import Autoencoder
from iwae.models.base import AbstractAutoencoder, block_of
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.build import as_kept, build
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.models.ladder import LadderAutoencoder
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.likelihoods.summary import summarize
from iwae.models.missing import observed_part
from iwae.models.observation import Observation, Observer, prepare
from iwae.models.pruning import prune
from iwae.storage import checkpoint
from iwae.storage.evaluations import Evaluation as Evaluation
from iwae.storage.metrics import History
from iwae.storage.run_directory import identity, open_run, read_model

TERM_DRAWS = 100
"""Draws per example for the ELBO's terms and the active units."""

ACTIVITY_EXAMPLES = 10_000
"""Training examples that determine which units are inactive, to remove these."""

IMPUTATION_DRAWS = 1000
"""Importance samples per example for imputed values."""

TYPICAL_DRAWS = 200
"""Draws of the model that say how probable rows with the same holes usually are."""

REFERENCE_ROWS = 200
"""Rows of training that say how surprising a column's values usually are."""

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
            *([("stages", text_of(self.config.stages))] if self.config.stages else []),
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
            config.dataset,
            data_dir=self.data_dir,
            values=self.seen.kind,
            header=config.header,
            schema=self.seen.schema,
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
        """L_K of prepared examples [n, d], in nats, [n]; 0 of those without any value."""
        check_seed(seed)
        if memory is not None and memory < 1:
            raise InputError(
                f"memory = {memory} was given, but it must be at least 1 byte; give more, or leave "
                f"it out."
            )
        check_draws(k)
        if not len(images):
            raise InputError("No examples were given; give at least 1.")
        model, observer = self._for(images)
        values = over_examples(
            eqx.Partial(log_likelihood, k=k),
            model,
            images,
            observer,
            seed=seed,
            draws=min(k, CHUNK),
            memory=memory,
            progress=progress,
        )
        return np.where(_without_values(images), values.dtype.type(0), values)

    def score(
        self,
        source: Any,
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

        Missing values (NaN, None) are left out: log p(x_o) of what is observed, 0 if nothing is. A
        row of a table with a number outside the support of its column, such as 0 in a positive one,
        has a density of 0: −inf, with a warning.

        Warns if another value is not finite in float32: −inf means below −3.4e38, or no density.
        """
        examples = self.seen.read(source, self.data_dir, header, missing=True)
        scores = self.log_likelihoods(examples, k=k, seed=seed, progress=progress)
        if not np.isfinite(np.where(self._outside(examples).any(axis=1), 0, scores)).all():
            said = _without_number(scores, examples, table=self.seen.schema is not None)
            warnings.warn(said, RuntimeWarning, stacklevel=2)
        return scores

    def _outside(self, examples: np.ndarray) -> np.ndarray:
        """Which numbers of a table's rows have a density of 0 (`Schema.outside`), [n, d]."""
        schema = self.seen.schema
        return np.zeros(examples.shape, bool) if schema is None else schema.outside(examples)

    def _inside(self, examples: np.ndarray) -> np.ndarray:
        """Examples with NaN for such numbers, to infer from the others of their row."""
        return examples if self.seen.schema is None else self.seen.schema.inside(examples)

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
        return self.encoded(self.seen.read(source, self.data_dir, header), layer=layer, seed=seed)

    def encoded(self, examples: np.ndarray, *, layer: int = 1, seed: int = 0) -> np.ndarray:
        """`encode` of prepared examples [n, d]."""
        return self._posterior_means(self._inside(examples), seed)[layer - 1][0]

    def sample(self, n: int, *, seed: int = 0, mean: bool | None = None) -> Any:
        """n examples from the model: E[x|h_1], or with `mean=False` draws of x.

        For a table: draws by default, as a mapping from the names of its columns to their values
        [n], words included, which every library of data frames takes. For others: means by default,
        as an array [n, *shape], with intensities scaled to [0, 1], whatever the scale of the data;
        if p(x|h_1) has no mean, its `loc` or median is returned.
        """
        schema = self.seen.schema
        means = schema is None if mean is None else mean
        drawn = self.sampled(n, seed=seed, mean=means)
        return drawn if schema is None else schema.decode(drawn)

    def sampled(self, n: int, *, seed: int = 0, mean: bool = True) -> np.ndarray:
        """`sample` in the values that the model sees, [n, *shape]."""
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

    def impute(
        self,
        source: Any,
        *,
        k: int = IMPUTATION_DRAWS,
        n_draws: int | None = None,
        seed: int = 0,
        header: str = "auto",
        progress: Progress | None = None,
    ) -> Any:
        """Your own examples with their missing values filled in, in the form they came in.

        Single imputation takes E[x_m|x_o] of numbers, rounded for counts, and the most probable
        category. Multiple imputation draws x_m ~ p(x_m|x_o) (`imputation.complete`): use each table
        alike and pool the results, and the spread among them is the uncertainty about the holes.

        Args:
            source: anything that `score` takes. Missing values are NaN or None; in a .csv file also
                words such as NA.
            k: importance samples per example.
            n_draws: the number of multiple imputations; None for single imputation.
            seed: of the draws, those of an example depend only on it and on the example's number.
            header: whether the first line of a .csv file holds names.
            progress: called with the number of examples done and their total.

        Returns:
            An array, data frame, mapping or record array like `source`, in which observed cells are
            those of `source`, bit for bit. With `n_draws`, an array [n_draws, n, …], or a list of
            data frames or mappings.

        Raises:
            InputError: for examples that do not fit the model, or a k or n_draws below 1.

        Example:
            >>> filled = model.impute(frame)
            >>> tables = model.impute(frame, n_draws=20)
        """
        examples = self.seen.read(source, self.data_dir, header, missing=True)
        rows = self.imputed(examples, k=k, n_draws=n_draws, seed=seed, progress=progress)
        restored = lambda part: filling.filled(source, part, self.seen, header)
        if n_draws is None:
            return restored(rows)
        tables = [restored(part) for part in rows]
        return np.stack(tables) if isinstance(tables[0], np.ndarray) else tables

    def imputed(
        self,
        examples: np.ndarray,
        *,
        k: int = IMPUTATION_DRAWS,
        n_draws: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """`impute` of prepared examples [n, d], as the model sees them: [n, d] or [n_draws, n, d].

        Counts are not rounded, and categories are codes.
        """
        check_seed(seed)
        check_draws(k)
        if n_draws is not None and n_draws < 1:
            raise InputError(
                f"n_draws = {n_draws} was given, but at least 1 is needed; give 1 or more, or "
                f"leave it out for single imputation."
            )
        given, examples = examples, self._inside(examples)
        empty = bool(_without_values(examples).any())
        function: Any = eqx.Partial(imputation.impute, k=k, empty=empty)
        if n_draws is not None:
            function = eqx.Partial(imputation.complete, k=k, n=n_draws, empty=empty)
        model, observer = self._for(examples)
        found = over_examples(
            function,
            model,
            examples,
            observer,
            seed=seed,
            draws=min(k, CHUNK) + (n_draws or 0),
            progress=progress,
        )
        made = found.values if n_draws is None else np.moveaxis(found, 1, 0)
        return made if given is examples else np.where(np.isnan(given), made, given)

    def sample_given(
        self, given: Any, n: int = 1, *, k: int = 10 * IMPUTATION_DRAWS, seed: int = 0
    ) -> Any:
        """n draws of an example given some of its values: x_m ~ p(x_m|x_o) beside x_o.

        `given` is a mapping from names of columns to values, of which those that are left out are
        drawn, or one example as an array with NaN. The result has the form of `sample`, n rows.
        The draws of h are resampled from k importance samples: give k well above n.
        """
        schema = self.seen.schema
        row = given
        if schema is not None and isinstance(given, Mapping):
            row = {name: [given.get(name)] for name in (*schema.names, *given)}
        examples = self.seen.read(row, self.data_dir, missing=True)
        if len(examples) != 1:
            raise InputError(
                f"{len(examples)} examples were given, but sample_given takes one; give one row."
            )
        if isinstance(row, Mapping) and schema is not None:
            for name, value in zip(schema.names, examples[0], strict=True):
                if given.get(name) is not None and given[name] == given[name] and np.isnan(value):
                    raise InputError(
                        f"{name} = {given[name]!r} was given, but training has no such category; "
                        f"give one of its categories, or leave it out."
                    )
        never = np.flatnonzero(self._outside(examples))
        if schema is not None and len(never):
            column = schema.columns[never[0]]
            raise InputError(
                f"{column.name} = {examples[0, never[0]]:g} was given, but its type {column.type} "
                f"needs {column.needs}; give such a number, or leave it out."
            )
        drawn = self.imputed(examples, k=k, n_draws=n, seed=seed)[:, 0]
        return drawn.reshape(n, *self.seen.shape) if schema is None else schema.decode(drawn)

    def anomalies(
        self,
        source: Any,
        *,
        top: int = 20,
        by: By = "likelihood",
        k: int = 5000,
        seed: int = 0,
        header: str = "auto",
        progress: Progress | None = None,
    ) -> list[Anomaly]:
        """The `top` oddest of your own examples, and the columns that make them odd.

        Rows are ranked by what `by` names:

        - likelihood: log p(x_o). A row with more holes has fewer terms, so that rows compare if
          they have the same holes, or few. It is −inf for a row with a number outside the support
          of its column, which is the oddest of all by any measure.
        - ratio: log p(x_o) − Σ_j log p(x_j) over the observed values, with the model's own
          marginals: how well the values of a row go together. Units cancel; what is odd in a column
          alone does too, as does that simple rows are more probable than complex ones.
        - typical: (log p(x_o) − m) / s with the mean and the standard deviation of log p over
          `TYPICAL_DRAWS` draws of the model with the same holes, which is fair to rows with
          different ones. It takes a further evaluation for each pattern of holes.

        For the rows returned, log p(x_j|x_rest) of each value is estimated from k further draws
        (`imputation.explain`), beside its median over rows of training.

        `InputError` for a `top` below 1, another `by`, or for examples that do not fit the model.
        """
        check_seed(seed)
        check_draws(k)
        if by not in get_args(By):
            raise InputError(
                f"by = {by!r} was given, but rows are ranked by {', '.join(get_args(By))}; give "
                f"one of these."
            )
        if top < 1:
            raise InputError(f"top = {top} was given, but at least 1 is needed; give 1 or more.")
        examples = self.seen.read(source, self.data_dir, header, missing=True)
        outside, inside = self._outside(examples), self._inside(examples)
        of = self._over(imputation.estimate, inside, k=k, seed=seed, progress=progress)
        nothing, never = _without_values(inside), outside.any(axis=1)
        log_p = np.where(never, -np.inf, np.where(nothing, 0, of.log_likelihood))
        error = np.where(nothing | never, 0, of.standard_error)
        of = of._replace(log_likelihood=log_p, standard_error=error)
        scores = np.where(never, -np.inf, self._scores(by, inside, log_p, k=k, seed=seed))
        order = np.argsort(scores, kind="stable")[:top]
        rows = np.concatenate([inside[order], self._reference(inside)])  # one program for both
        columns = self._over(imputation.explain, rows, k=k, seed=seed).columns
        odd, usual = columns[: len(order)], columns[len(order) :]
        odd = np.where(outside[order], -np.inf, odd)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            median = np.nanmedian(usual, axis=0)  # NaN for a column without values
        names = self.seen.names or tuple(f"x{j}" for j in range(examples.shape[1]))
        values: list[Any] = list(examples[order].T)
        if self.seen.schema is not None:
            names = self.seen.schema.names
            values = list(self.seen.schema.decode(examples[order]).values())
            for j in np.flatnonzero(outside[order].any(axis=0)):
                values[j] = np.where(outside[order, j], examples[order, j], values[j])
        return ranked(order.tolist(), by, scores, of, odd, median, names, values)

    def _scores(
        self, by: By, examples: np.ndarray, log_p: np.ndarray, *, k: int, seed: int
    ) -> np.ndarray:
        """What rows are ranked by, from their log p(x_o); the lower, the odder."""
        if by == "likelihood":
            return log_p
        if by == "ratio":
            return log_p - self._over(imputation.marginals, examples, k=k, seed=seed).sum(axis=1)
        drawn = self.sampled(TYPICAL_DRAWS, seed=seed, mean=False).reshape(TYPICAL_DRAWS, -1)
        patterns, which = np.unique(np.isnan(examples), axis=0, return_inverse=True)
        scores = np.zeros_like(log_p)
        for i, holes in enumerate(patterns):
            if not holes.all():
                of = self.log_likelihoods(np.where(holes, np.nan, drawn), k=k, seed=seed)
                scores[which == i] = (log_p[which == i] - of.mean()) / of.std(ddof=1)
        return scores

    def _over(
        self,
        function: Callable[..., Any],
        rows: np.ndarray,
        *,
        k: int,
        seed: int,
        progress: Progress | None = None,
    ) -> Any:
        """A function of one example with k draws, over prepared examples."""
        model, observer = self._for(rows)
        draws, of = min(k, CHUNK), eqx.Partial(function, k=k)
        return over_examples(of, model, rows, observer, seed=seed, draws=draws, progress=progress)

    def _reference(self, examples: np.ndarray) -> np.ndarray:
        """Rows of training, or where these are no longer found some of the examples."""
        try:
            rows = self.data().train
        except InputError:
            rows = examples
        return rows[:: max(1, len(rows) // REFERENCE_ROWS)][:REFERENCE_ROWS]

    def _for(self, examples: np.ndarray) -> tuple[AbstractAutoencoder, Observer]:
        """The model and its observer, for examples with holes if these have some.

        A model that was trained without holes becomes that of the observed part, whose encoder sees
        the mean of the training data where values are missing.
        """
        model, observer = self.model, self.seen.observer
        made_for = self.seen.missing or self.seen.kind == "table"
        if made_for or examples.dtype.kind != "f" or not np.isnan(examples).any():
            return model, observer
        if not isinstance(model, Autoencoder | LadderAutoencoder):
            raise InputError(
                f"Examples with missing values were given, but a {type(model).__name__} that was "
                f"trained without any cannot take them; fill them in, or train on such examples."
            )
        center = jnp.asarray(self.data().mean())
        return observed_part(model, center), dataclasses.replace(observer, missing=True)

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
        images = self._inside(images)
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


def _without_values(examples: np.ndarray) -> np.ndarray:
    """Which examples have no observed value, [n]."""
    if examples.dtype.kind != "f":
        return np.zeros(len(examples), bool)
    return np.isnan(examples).all(axis=1)


def _without_number(scores: np.ndarray, examples: np.ndarray, *, table: bool) -> str:
    """The warning for scores that are not finite, which counts rows from 1 and examples from 0."""
    at = np.flatnonzero(~np.isfinite(scores))
    size = float(np.nanmax(np.abs(examples[at[0]])))
    which = f"row {at[0] + 1}" if table else f"example {at[0]}"
    return (
        f"{len(at)} of {len(scores)} log-likelihoods are not finite, the first that of {which} "
        f"({scores[at[0]]:g}), whose values reach {size:g}: it is too far from the "
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
    table = None if seen.schema is None else summarize(seen.schema)
    return eqx.filter_eval_shape(
        build,
        config.model,
        kind=seen.model_kind,
        mean=np.zeros(d),
        spread=np.ones(d),
        key=jax.random.key(0),
        k=config.objective.k,
        own=own,
        table=table,
        missing=seen.missing,
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
