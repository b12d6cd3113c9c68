"""The likelihood of a table: a part for the columns of each kind, given one h.

A log-density of a row is that of its numbers in the user's units, plus the log-probabilities of its
counts and categories, over the values that are observed.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import constraints

from iwae.errors import InputError
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.likelihoods.categories import Choices, Flags, Levels
from iwae.models.likelihoods.numbers import (
    Correlation,
    Counts,
    FullCorrelation,
    Gammas,
    Gaussians,
    LowRankCorrelation,
    Standard,
    Students,
)
from iwae.models.likelihoods.parts import Part
from iwae.models.likelihoods.summary import Form, Summary

Noise = Literal["independent", "full", "low-rank"]


class Columns(AbstractLikelihood):
    """p(x_o|h) of a row of a table with missing values x_m.

    Its parameters are one flat row [1, P]: those of the first part, then those of the second, ….
    Given h the columns are independent, but for the Gaussian ones, which may be correlated.
    """

    parts: tuple[Part, ...]
    at: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    """The columns of each part."""

    @staticmethod
    def of(summary: Summary, noise: Noise = "independent", rank: int = 4) -> "Columns":
        """The likelihood for a table, which starts at its marginals."""
        groups: dict[tuple[str, int], list[int]] = {}
        for i, form in enumerate(summary.forms):
            groups.setdefault(_group(form), []).append(i)
        at = tuple(tuple(columns) for columns in groups.values())
        correlation = _correlation(summary, noise, rank)
        pairs = zip(groups, at, strict=True)
        parts = tuple(_part(kind, summary, columns, correlation) for (kind, _), columns in pairs)
        return Columns(parts, at)

    @property
    def n_parameters(self) -> int:
        return 1

    @property
    def size(self) -> int:
        """P."""
        return sum(part.size for part in self.parts)

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p q"]:
        """Zeros, where the columns have their marginals of training."""
        return jnp.zeros((1, self.size), jnp.float32)

    def distribution(self, parameters: Float[Array, "p q"]) -> dist.Distribution:
        return Rows(self, parameters)

    def log_prob(self, parameters: Float[Array, "p q"], x: Float[Array, " d"]) -> Float[Array, ""]:
        terms = self._each(lambda part, own, x: part.log_prob(own, x), parameters, x)
        return sum(terms, jnp.zeros((), jnp.float32))

    def log_probs(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        return self._joined(self._each(lambda part, *of: part.log_probs(*of), parameters, x))

    def log_marginals(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        of = lambda part, *own: _uncorrelated(part).log_probs(*own)
        return self._joined(self._each(of, parameters, x))

    def complete(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"], key: PRNGKeyArray
    ) -> Float[Array, " d"]:
        keys = iter(jax.random.split(key, len(self.parts)))
        drawn = lambda part, own, x: part.complete(own, x, next(keys))
        return self._joined(self._each(drawn, parameters, x))

    def prediction(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"]
    ) -> Float[Array, " f"]:
        """Means of numbers and probabilities of categories under p(x_m|x_o, h), part by part."""
        return jnp.concatenate(self._each(lambda part, *of: part.prediction(*of), parameters, x))

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " d"]:
        """Means of numbers, the more probable flag or category, and the median of levels."""
        nothing = jnp.full(self.width, jnp.nan, jnp.float32)
        flat = jnp.zeros((1, self.size), jnp.float32)
        shapes = jax.eval_shape(
            lambda: self._each(lambda part, *of: part.prediction(*of), flat, nothing)
        )
        ends = np.cumsum([shape.size for shape in shapes])[:-1].tolist()
        split = jnp.split(prediction, ends)
        pairs = zip(self.parts, split, strict=True)
        return self._joined([part.decide(features) for part, features in pairs])

    def expected(self, parameters: Float[Array, "p q"]) -> Float[Array, " d"]:
        """The best values of a row of which nothing is observed."""
        nothing = jnp.full(self.width, jnp.nan, jnp.float32)
        return self.decide(self.prediction(parameters, nothing))

    @property
    def gaussian(self) -> tuple[int, ...]:
        """The columns whose missing values `filled` draws: Gaussian ones without zeros apart.

        `InputError` if there are none.
        """
        for at, part in zip(self.at, self.parts, strict=True):
            if isinstance(part, Gaussians) and not part.standard.gated.all():
                return tuple(
                    i for i, gated in zip(at, part.standard.gated, strict=True) if not gated
                )
        raise InputError(
            "Values missing by their own size were assumed, but no column of the table is real, "
            "positive without zeros, or bounded, with a normal likelihood; leave out --missingness."
        )

    def gaussian_part(self) -> tuple[int, Gaussians]:
        """The first parameter of the Gaussian columns, and their part, which has to be there."""
        before = 0
        for part in self.parts:
            if isinstance(part, Gaussians):
                return before, part
            before += part.size
        raise ValueError("No column is Gaussian.")

    def filled(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"], noise: Float[Array, " g"]
    ) -> tuple[Float[Array, " d"], Float[Array, " g"]]:
        """x with its missing values of the `gaussian` columns drawn by noise ~ N(0, I), and these
        columns in standard units.

        Unlike `complete` it is differentiable in the parameters.
        """
        start, part = self.gaussian_part()
        (at,) = [at for at, of in zip(self.at, self.parts, strict=True) if of is part]
        rows = np.array(at, np.int64)
        free = np.flatnonzero(~part.standard.gated)
        own = parameters.reshape(-1)[start : start + part.size]
        z = part.filled(own, x[rows], jnp.zeros(len(rows)).at[free].set(noise))
        filled = jnp.where(jnp.isnan(x[rows]), part.standard.number(z), x[rows])
        return x.at[rows[free]].set(filled[free]), z[free]

    @property
    def width(self) -> int:
        """d, the number of columns."""
        return sum(map(len, self.at))

    def _each(
        self, run: Callable[[Part, Array, Array], Array], parameters: Array, x: Array
    ) -> list[Array]:
        """The result of `run` for each part with its parameters and columns."""
        of = zip(self.parts, self._own(parameters), self.at, strict=True)
        return [run(part, flat, x[np.array(at, np.int64)]) for part, flat, at in of]

    def _own(self, parameters: Float[Array, "p q"]) -> list[Array]:
        """The parameters of each part."""
        ends = np.cumsum([part.size for part in self.parts])[:-1].tolist()
        return jnp.split(parameters.reshape(-1), ends)

    def _joined(self, values: list[Array]) -> Float[Array, " d"]:
        """Values of all columns, in the order of the table."""
        order = np.argsort(np.concatenate([np.array(at, np.int64) for at in self.at]))
        return jnp.concatenate(values)[order]


class Rows(dist.Distribution):
    """p(x|h) of whole rows, as a distribution of numpyro."""

    support = constraints.real_vector
    pytree_data_fields = ("columns", "parameters")

    def __init__(self, columns: Columns, parameters: Float[Array, "p q"]):
        self.columns, self.parameters = columns, parameters
        super().__init__(batch_shape=(), event_shape=(columns.width,), validate_args=False)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        nothing = jnp.full(self.columns.width, jnp.nan, jnp.float32)
        draw = lambda key: self.columns.complete(self.parameters, nothing, key)
        if not sample_shape:
            return draw(key)
        keys = jax.random.split(key, int(np.prod(sample_shape)))
        return jax.vmap(draw)(keys).reshape(*sample_shape, -1)

    def log_prob(self, value: Array) -> Array:
        return self.columns.log_prob(self.parameters, value)


def _uncorrelated(part: Part) -> Part:
    """A part with the same marginals, whose columns are independent given h."""
    return dataclasses.replace(part, correlation=None) if isinstance(part, Gaussians) else part


def _group(form: Form) -> tuple[str, int]:
    """What the columns of a part share: their kind, and the power of 2 of their categories."""
    several = form.kind == "categorical"
    return form.kind, (form.levels - 1).bit_length() if several else 0


def _part(
    kind: str, summary: Summary, at: tuple[int, ...], correlation: Correlation | None
) -> Part:
    if kind == "normal":
        return Gaussians(Standard.of(summary, at), correlation)
    if kind == "student":
        return Students(Standard.of(summary, at))
    if kind == "gamma":
        return Gammas.of(summary, at)
    if kind in COUNTS:
        return Counts.of(summary, at, COUNTS[kind])
    return CATEGORIES[kind](summary, at)


COUNTS = {"negative-binomial": "NegativeBinomial2", "poisson": "Poisson"}

CATEGORIES: dict[str, Callable[[Summary, tuple[int, ...]], Part]] = {
    "bernoulli": Flags.of,
    "ordinal": Levels.of,
    "categorical": Choices.of,
}


def _correlation(summary: Summary, noise: Noise, rank: int) -> Correlation | None:
    if noise == "independent" or len(summary.correlation) < 2:
        return None
    if noise == "full":
        return FullCorrelation.of(summary.correlation)
    return LowRankCorrelation.of(summary.correlation, rank)
