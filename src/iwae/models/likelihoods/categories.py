"""Parts of a table's likelihood for values that are categories: flags, ordered levels, and others.

The columns see codes 0, 1, …; at parameters of 0 a category has its smoothed share of the training
rows.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from iwae.models.likelihoods.parts import Part, outside
from iwae.models.likelihoods.special import exp, log_rise
from iwae.models.likelihoods.summary import Summary

SMOOTHING = 0.5
"""Rows added to each category, so that none has an initial probability of 0."""

STEEPEST = 20.0
"""Largest absolute logarithm of the scale of ordered levels: e^20 times a location stays finite."""

NEVER = -1e9
"""The logit of a category that a column does not have."""


def shares(summary: Summary, at: tuple[int, ...]) -> tuple[Bool[np.ndarray, "m l"], Array]:
    """Which categories each column has, and their smoothed shares, each [m, levels]."""
    levels = [summary.forms[i].levels for i in at]
    exists = np.arange(max(levels))[None, :] < np.array(levels)[:, None]
    counts = summary.counts[np.array(at, np.int64), : max(levels)]
    smooth = jnp.where(exists, counts + SMOOTHING, 0.0)
    return exists, smooth / jnp.sum(smooth, axis=1, keepdims=True)


class Flags(Part):
    """Codes 0 and 1: P(1) = sigmoid(start + a)."""

    start: Float[Array, " m"]

    @staticmethod
    def of(summary: Summary, at: tuple[int, ...]) -> "Flags":
        _, share = shares(summary, at)
        both = jnp.pad(share, ((0, 0), (0, max(0, 2 - share.shape[1]))))
        return Flags(jnp.log(both[:, 1]) - jnp.log(both[:, 0]))

    @property
    def size(self) -> int:
        return len(self.start)

    def _logits(self, parameters: Float[Array, " p"]) -> Float[Array, " m"]:
        return jax.lax.stop_gradient(self.start) + parameters

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        logits = self._logits(parameters)
        terms = -jax.nn.softplus(jnp.where(x == 1, -logits, logits))
        return outside(~jnp.isnan(x), (x == 0) | (x == 1), terms)

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        drawn = jax.random.bernoulli(key, self.prediction(parameters, x))
        return jnp.where(jnp.isnan(x), drawn.astype(jnp.float32), x)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        return jax.nn.sigmoid(self._logits(parameters))

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " m"]:
        return (prediction > 0.5).astype(jnp.float32)


class Choices(Part):
    """Categories without an order: a softmax of start + a over those that a column has."""

    levels: tuple[int, ...] = eqx.field(static=True)
    start: Float[Array, "m l"]

    @staticmethod
    def of(summary: Summary, at: tuple[int, ...]) -> "Choices":
        exists, share = shares(summary, at)
        logits = jnp.log(jnp.where(exists, share, 1.0))
        return Choices(tuple(summary.forms[i].levels for i in at), logits)

    @property
    def size(self) -> int:
        return self.start.size

    def _log_probabilities(self, parameters: Float[Array, " p"]) -> Float[Array, "m l"]:
        most = self.start.shape[1]
        exists = np.arange(most)[None, :] < np.array(self.levels)[:, None]
        logits = jax.lax.stop_gradient(self.start) + parameters.reshape(self.start.shape)
        return jax.nn.log_softmax(jnp.where(exists, logits, NEVER), axis=1)

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        log_p = self._log_probabilities(parameters)
        chosen = x[:, None] == jnp.arange(log_p.shape[1])
        terms = jnp.sum(jnp.where(chosen, log_p, 0.0), axis=1)
        return outside(~jnp.isnan(x), _is_code(x, self.levels), terms)

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        drawn = jax.random.categorical(key, self._log_probabilities(parameters), axis=1)
        return jnp.where(jnp.isnan(x), drawn.astype(jnp.float32), x)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        return jnp.exp(self._log_probabilities(parameters)).reshape(-1)

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " m"]:
        """The most probable category."""
        return jnp.argmax(prediction.reshape(self.start.shape), axis=1).astype(jnp.float32)


class Levels(Part):
    """Ordered levels: P(x ≤ k) = sigmoid((τ_k − a) exp −b), with learned thresholds τ_k; |b| counts
    as `STEEPEST` at most.

    The thresholds are the first, and the logarithms of the gaps between them; they start at the
    logits of the marginal distribution function.
    """

    levels: tuple[int, ...] = eqx.field(static=True)
    first: Float[Array, " m"]
    log_gaps: Float[Array, "m g"]
    """Of τ_{k+1} − τ_k for k = 0 …, max(levels) − 3; those that a column lacks are not used."""

    @staticmethod
    def of(summary: Summary, at: tuple[int, ...]) -> "Levels":
        exists, share = shares(summary, at)
        most = exists.shape[1]
        below = jnp.cumsum(share, axis=1)[:, : max(most - 1, 1)]
        above = jnp.flip(jnp.cumsum(jnp.flip(share, 1), axis=1), 1)[:, 1:]
        above = above if most > 1 else jnp.ones_like(below)
        thresholds = jnp.log(jnp.where(above > 0, below, 1.0)) - jnp.log(
            jnp.where(above > 0, above, 1.0)
        )
        gaps = jnp.where(exists[:, 2:], jnp.diff(thresholds, axis=1), 1.0)
        levels = tuple(summary.forms[i].levels for i in at)
        return Levels(levels, thresholds[:, 0], jnp.log(jnp.maximum(gaps, 1e-3)))

    @property
    def size(self) -> int:
        return 2 * len(self.levels)

    def _split(self, parameters: Float[Array, " p"]) -> tuple[Array, Array]:
        """(location, log scale)."""
        a, b = jnp.split(parameters, 2)
        return a, jnp.clip(b, -STEEPEST, STEEPEST)

    def _thresholds(self) -> Float[Array, "m t"]:
        gaps = jnp.cumsum(exp(self.log_gaps), axis=1)
        return self.first[:, None] + jnp.pad(gaps, ((0, 0), (1, 0)))

    def _log_probability(self, parameters: Float[Array, " p"], code: Array) -> Float[Array, " m"]:
        """log P(x = code): with u and l the ends of its interval, in units of the logistic,
        log(σ(u) − σ(l)) = −softplus(−u) − softplus(l) + log(1 − exp(l − u))."""
        a, b = self._split(parameters)
        thresholds, last = self._thresholds(), np.array(self.levels) - 1
        rows = np.arange(len(last))
        most = thresholds.shape[1] - 1
        upper = (thresholds[rows, jnp.clip(code, 0, most)] - a) * jnp.exp(-b)
        lower = (thresholds[rows, jnp.clip(code - 1, 0, most)] - a) * jnp.exp(-b)
        terms = jnp.where(code < last, -jax.nn.softplus(-upper), 0.0)
        terms += jnp.where(code > 0, -jax.nn.softplus(lower), 0.0)
        if not self.log_gaps.shape[1]:
            return terms
        gap = self.log_gaps[rows, jnp.clip(code - 1, 0, most - 1)] - b
        return terms + jnp.where((code > 0) & (code < last), log_rise(gap), 0.0)

    def log_probs(self, parameters: Float[Array, " p"], x: Float[Array, " m"]) -> Float[Array, "m"]:
        inside = _is_code(x, self.levels)
        code = jnp.where(inside, x, 0.0).astype(jnp.int32)
        return outside(~jnp.isnan(x), inside, self._log_probability(parameters, code))

    def _distribution(self, parameters: Float[Array, " p"]) -> Float[Array, "m l"]:
        """P(x ≤ k) of k = 0, …, max(levels) − 1, which is 1 from a column's last level on."""
        a, b = self._split(parameters)
        below = jax.nn.sigmoid((self._thresholds() - a[:, None]) * jnp.exp(-b)[:, None])
        last = np.array(self.levels)[:, None] - 1
        codes = np.arange(max(self.levels))
        padded = jnp.pad(below, ((0, 0), (0, 1)))[:, : len(codes)]
        return jnp.where(codes < last, padded, 1.0)

    def _probabilities(self, parameters: Float[Array, " p"]) -> Float[Array, "m l"]:
        return jnp.diff(self._distribution(parameters), axis=1, prepend=0.0)

    def complete(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"], key: PRNGKeyArray
    ) -> Float[Array, " m"]:
        below = self._distribution(parameters)
        uniform = jax.random.uniform(key, (len(self.levels), 1))
        drawn = jnp.minimum(jnp.sum(uniform > below, axis=1), np.array(self.levels) - 1)
        return jnp.where(jnp.isnan(x), drawn.astype(jnp.float32), x)

    def prediction(
        self, parameters: Float[Array, " p"], x: Float[Array, " m"]
    ) -> Float[Array, "f"]:
        return self._probabilities(parameters).reshape(-1)

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " m"]:
        """The median level."""
        below = jnp.cumsum(prediction.reshape(len(self.levels), -1), axis=1)
        median = jnp.minimum(jnp.sum(below < 0.5, axis=1), np.array(self.levels) - 1)
        return median.astype(jnp.float32)


def _is_code(x: Float[Array, " m"], levels: tuple[int, ...]) -> Bool[Array, " m"]:
    """Whether x is one of the codes of its column."""
    return (x >= 0) & (x < np.array(levels)) & (x == jnp.floor(x))
