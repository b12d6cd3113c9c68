"""The input of a table's encoder: standardised numbers, one-hot categories, and what is missing."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.models.likelihoods.summary import Form, Summary, inside, transform, usual


class TableInput(eqx.Module):
    """A row x [d], with NaN where values are missing, as features in front of `network`.

    In this order: T(x) of every number (the logarithm of 1 + x of a count) and the code of every
    flag and level, standardised, with 0 where it is missing; for each column with zeros apart,
    whether x is above 0; for each column of levels or categories a one-hot vector, all 0 where it
    is missing; and, with `mask`, 1 for each column that is missing. Without `mask` a missing value
    looks like the mean, so that rows with missing values can be encoded all the same.
    """

    network: Callable[[Array], Array]
    forms: tuple[Form, ...] = eqx.field(static=True)
    mask: bool = eqx.field(static=True)
    transforms: Float[Array, " d"]
    low: Float[Array, " d"]
    high: Float[Array, " d"]
    mean: Float[Array, " d"]
    spread: Float[Array, " d"]

    @staticmethod
    def of(summary: Summary, network: Callable[[Array], Array], *, mask: bool) -> "TableInput":
        """The input of rows of a table, for a network of `width` inputs."""
        of = (summary.transforms, summary.low, summary.high, summary.mean, summary.spread)
        return TableInput(network, summary.forms, mask, *of)

    @staticmethod
    def width(forms: tuple[Form, ...], *, mask: bool) -> int:
        """The number of features."""
        numbers, gated, one_hot = _places(forms)
        hot = sum(forms[i].levels for i in one_hot)
        return len(numbers) + len(gated) + hot + mask * len(forms)

    @staticmethod
    def places(forms: tuple[Form, ...], columns: tuple[int, ...]) -> np.ndarray:
        """Where the standardised numbers of these columns are among the features, int [m]."""
        numbers, _, _ = _places(forms)
        return np.searchsorted(numbers, np.array(columns, np.int64))

    def features(self, x: Float[Array, " d"]) -> Float[Array, " f"]:
        """The features of a row."""
        how, low, high, mean, spread = jax.lax.stop_gradient(
            (self.transforms, self.low, self.high, self.mean, self.spread)
        )
        numbers, gated, one_hot = _places(self.forms)
        seen = ~jnp.isnan(x)
        there = seen & inside(how, low, high, x)
        z = transform(how, low, high, jnp.where(there, x, usual(how, low, high)))
        standard = jnp.where(there, (z - mean) / spread, 0.0)
        parts = [standard[numbers], jnp.where(x > 0, 1.0, 0.0)[gated]]
        for i in one_hot:
            parts.append((x[i] == jnp.arange(self.forms[i].levels)).astype(x.dtype))
        if self.mask:
            parts.append((~seen).astype(x.dtype))
        return jnp.concatenate(parts)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " n_out"]:
        return self.network(self.features(x))


class MaskedInput(eqx.Module):
    """x with `center` where values are missing, and 1 for each that is, in front of `network`."""

    network: Callable[[Array], Array]
    center: Float[Array, " d"]
    spread: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " n_out"]:
        center, spread = jax.lax.stop_gradient((self.center, self.spread))
        missing = jnp.isnan(x)
        standard = jnp.where(missing, 0.0, (x - center) / spread)
        return self.network(jnp.concatenate([standard, missing.astype(x.dtype)]))


def _places(forms: tuple[Form, ...]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The columns that are numbers or ordered codes, those with zeros apart, and those of
    categories."""
    numbers = [i for i, form in enumerate(forms) if form.kind != "categorical"]
    gated = [i for i, form in enumerate(forms) if form.zeros]
    one_hot = [i for i, form in enumerate(forms) if form.kind in ("ordinal", "categorical")]
    return np.array(numbers, np.int64), np.array(gated, np.int64), one_hot
