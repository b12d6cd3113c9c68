"""Models of examples with missing values, given as NaN.

With x_o what is observed of x, w = p(x_o|h) p(h) / q(h|x_o), so that every bound is one of
log p(x_o) (MIWAE, Mattei & Frellsen 2019).

Where values are missing by their own size, the mask s of what is observed is modelled too (not-
MIWAE, Ipsen, Mattei & Frellsen 2021): w = p(x_o|h) p(s|x_o, x_m) p(h) / q(h|x_o), with x_m drawn
from p(x_m|x_o, h) by noise ε ~ N(0, I). The noise is one more latent variable whose prior and
posterior are the same, so that the model remains an `Autoencoder` (`not_at_random`).
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from iwae.errors import InputError
from iwae.models.autoencoder import Autoencoder
from iwae.models.base import AbstractAutoencoder, Conditional
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.models.ladder import LadderAutoencoder
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.likelihoods.columns import Columns
from iwae.models.likelihoods.numbers import Gaussians
from iwae.models.likelihoods.summary import Summary
from iwae.models.normal import log_standard_normal
from iwae.models.priors import Prior

Out = TypeVar("Out")
Model = TypeVar("Model")

Missingness = Literal["self-masking", "self-masking-high", "self-masking-low", "linear"]
"""How values go missing, other than at random."""


class ObservedPart(AbstractLikelihood):
    """p(x_o|h) of a likelihood of independent values: the terms of those that are missing are left
    out, and no gradient depends on them."""

    likelihood: AbstractLikelihood
    center: Float[Array, " d"]
    """Values that stand in for missing ones, whose terms are computed and dropped."""

    @property
    def n_parameters(self) -> int:
        return self.likelihood.n_parameters

    def distribution(self, parameters: Float[Array, "p d"]) -> dist.Distribution:
        return self.likelihood.distribution(parameters)

    def log_probs(
        self, parameters: Float[Array, "p d"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        seen = ~jnp.isnan(x)
        filled = jnp.where(seen, x, jax.lax.stop_gradient(self.center))
        return jnp.where(seen, self.likelihood.log_probs(parameters, filled), 0.0)

    def log_prob(self, parameters: Float[Array, "p d"], x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(self.log_probs(parameters, x))

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        return self.likelihood.initial_bias(mean, spread)

    def expected(self, parameters: Float[Array, "p d"]) -> Float[Array, " d"]:
        return self.likelihood.expected(parameters)


class Filled(eqx.Module, Generic[Out]):
    """`network` of x with `center` where values are missing."""

    network: Callable[[Array], Out]
    center: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"]) -> Out:
        return self.network(jnp.where(jnp.isnan(x), jax.lax.stop_gradient(self.center), x))


def observed_part(
    model: AbstractAutoencoder, center: Float[Array, " d"] | None = None
) -> AbstractAutoencoder:
    """A model that was built for complete examples, as one of what is observed of them.

    The encoder sees `center` where values are missing, by default E[x|h_1] at h_1 = 0. Its q(h|x_o)
    is then valid, though not trained for it: L_K bounds log p(x_o), with a larger gap than that of
    a model trained with missing values. Complete examples keep their log-weights. A model that
    accepts missing values is returned as it is. `InputError` for a model of another class than
    those that `build` returns.
    """
    if isinstance(model.likelihood, Columns | ObservedPart | MaskModel):
        return model
    if isinstance(model, HierarchicalAutoencoder):
        at = _center(model, center)
        features = Filled(model.proposal.features, at)
        model = eqx.tree_at(lambda m: m.encoder[0].features, model, features)
        return dataclasses.replace(model, likelihood=ObservedPart(model.likelihood, at))
    if isinstance(model, Autoencoder | LadderAutoencoder | UncertainAutoencoder):
        plain = model.at_the_mean() if isinstance(model, UncertainAutoencoder) else model
        at = _center(plain, center)
        encoder: Any = model.encoder
        chain = isinstance(encoder, tuple)
        encoder = (Filled(encoder[0], at), *encoder[1:]) if chain else Filled(encoder, at)
        return dataclasses.replace(
            model, encoder=encoder, likelihood=ObservedPart(model.likelihood, at)
        )
    raise InputError(
        f"Examples have missing values, but the model, a {type(model).__name__}, was not built for "
        f"them; train a model with examples that have missing values."
    )


def _center(model: AbstractAutoencoder, center: Float[Array, " d"] | None) -> Float[Array, " d"]:
    if center is not None:
        return center
    return jnp.nan_to_num(model.expected(jnp.zeros(model.latents[0], jnp.float32)))


def for_complete_rows(model: Model, *, complete: bool = True) -> Model:
    """The same model for a table's rows without missing values only, which costs less with
    correlated noise; or, unless `complete`, for rows with missing values again."""
    is_part = lambda part: isinstance(part, Gaussians)
    of = lambda part: dataclasses.replace(part, complete_rows=complete) if is_part(part) else part
    return jax.tree.map(of, model, is_leaf=is_part)


# --- values missing by their own size -------------------------------------------------------------


class Mechanism(eqx.Module):
    """p(s|x) of the mask s, given all values z in standard units."""

    @abstractmethod
    def logits(self, z: Float[Array, " g"]) -> Float[Array, " g"]:
        """The logit of each value's being missing."""

    def log_probs(self, z: Float[Array, " g"], seen: Bool[Array, " g"]) -> Float[Array, " g"]:
        """log p(s_j|x) of each value, in nats."""
        logits = self.logits(z)
        return -jax.nn.softplus(jnp.where(seen, logits, -logits))


class SelfMasking(Mechanism):
    """logit p(x_j is missing|x) = a_j z_j + c_j (Ipsen et al. 2021, §3.2)."""

    slope: Float[Array, " g"]
    """a, or its logarithm or that of −a if the sign is known."""
    intercept: Float[Array, " g"]
    sign: int = eqx.field(static=True)
    """1 if large values go missing, −1 if small ones do, 0 if that is unknown."""

    def logits(self, z: Float[Array, " g"]) -> Float[Array, " g"]:
        slope = self.sign * jnp.exp(self.slope) if self.sign else self.slope
        return slope * z + self.intercept


class LinearMasking(Mechanism):
    """logit p(x_j is missing|x) = (A z)_j + c_j."""

    slopes: Float[Array, "g g"]
    intercept: Float[Array, " g"]

    def logits(self, z: Float[Array, " g"]) -> Float[Array, " g"]:
        return jnp.matmul(self.slopes, z, precision="highest") + self.intercept


def mechanism(how: Missingness, missing: Float[Array, " g"]) -> Mechanism:
    """The mechanism before training, at which values are missing at random with these shares."""
    intercept = jax.scipy.special.logit(missing)
    if how == "linear":
        return LinearMasking(jnp.zeros((len(missing), len(missing)), jnp.float32), intercept)
    sign = {"self-masking-high": 1, "self-masking-low": -1}.get(how, 0)
    slope = jnp.full(len(missing), jnp.log(0.5) if sign else 0.0, jnp.float32)
    return SelfMasking(slope, intercept, sign)


class MaskModel(AbstractLikelihood):
    """p(x_o, s|h, ε) = p(x_o|h) p(s|x_o, x_m(x_o, h, ε)), with the parameters (those at h, ε).

    It is a density of the values and a probability of the mask of the `gaussian` columns; other
    columns are missing at random.
    """

    likelihood: Columns
    mechanism: Mechanism

    @property
    def n_parameters(self) -> int:
        return 1

    def _split(self, parameters: Float[Array, "p q"]) -> tuple[Array, Array]:
        """The likelihood's parameters, and ε."""
        own, noise = jnp.split(parameters.reshape(-1), [self.likelihood.size])
        return own[None], noise

    def distribution(self, parameters: Float[Array, "p q"]) -> dist.Distribution:
        return self.likelihood.distribution(self._split(parameters)[0])

    def log_prob(self, parameters: Float[Array, "p q"], x: Float[Array, " d"]) -> Float[Array, ""]:
        own, noise = self._split(parameters)
        of_mask = jnp.sum(self._log_mask(own, noise, x))
        return self.likelihood.log_prob(own, x) + of_mask

    def _log_mask(self, own: Array, noise: Array, x: Array) -> Float[Array, " g"]:
        _, z = self.likelihood.filled(own, x, noise)
        seen = ~jnp.isnan(x[np.array(self.likelihood.gaussian, np.int64)])
        return self.mechanism.log_probs(z, seen)

    def log_probs(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """log p(x_j, s_j|x_rest, h) where x_j is observed, and 0 where it is missing."""
        own, noise = self._split(parameters)
        at = np.array(self.likelihood.gaussian, np.int64)
        seen = jnp.where(jnp.isnan(x[at]), 0.0, self._log_mask(own, noise, x))
        return self.likelihood.log_probs(own, x).at[at].add(seen)

    def log_marginals(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """log p(x_j|h), without the mask."""
        return self.likelihood.log_marginals(self._split(parameters)[0], x)

    def complete(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"], key: PRNGKeyArray
    ) -> Float[Array, " d"]:
        """x_m as ε determines it, which the weights refer to; other columns are drawn."""
        own, noise = self._split(parameters)
        filled, _ = self.likelihood.filled(own, x, noise)
        return self.likelihood.complete(own, filled, key)

    def prediction(
        self, parameters: Float[Array, "p q"], x: Float[Array, " d"]
    ) -> Float[Array, " f"]:
        own, noise = self._split(parameters)
        filled, _ = self.likelihood.filled(own, x, noise)
        return self.likelihood.prediction(own, filled)

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " d"]:
        return self.likelihood.decide(prediction)

    def expected(self, parameters: Float[Array, "p q"]) -> Float[Array, " d"]:
        return self.likelihood.expected(self._split(parameters)[0])

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p q"]:
        return self.likelihood.initial_bias(mean, spread)


class BesideNoise(eqx.Module):
    """N(μ(v), diag σ(v)²) and, beside it, N(0, I) of the noise ε."""

    conditional: Conditional
    n: int = eqx.field(static=True)

    def __call__(self, v: Float[Array, " n_in"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        mu, log_sigma = self.conditional(v)
        return jnp.pad(mu, (0, self.n)), jnp.pad(log_sigma, (0, self.n))


class BeforeNoise(eqx.Module, Generic[Out]):
    """`network` of h_1 alone, from (h_1, ε)."""

    network: Callable[[Array], Out]
    n: int = eqx.field(static=True)

    def __call__(self, v: Float[Array, " n_in"]) -> Out:
        return self.network(v[: v.shape[0] - self.n])


class PassNoise(eqx.Module):
    """(the likelihood's parameters at h_1, ε), flat, from (h_1, ε)."""

    network: Callable[[Array], Array]
    n: int = eqx.field(static=True)

    def __call__(self, v: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        end = v.shape[0] - self.n
        return jnp.concatenate([self.network(v[:end]).reshape(-1), v[end:]])


class PriorBesideNoise(Prior):
    """p(h_1) of a prior and, beside it, N(0, I) of the noise ε."""

    prior: Prior
    units: int = eqx.field(static=True)
    """Units of h_1."""
    n: int = eqx.field(static=True)

    def log_prob(self, h: Float[Array, " d"]) -> Float[Array, ""]:
        return self.prior.log_prob(h[: self.units]) + log_standard_normal(h[self.units :])

    def sample(self, n: int, key: PRNGKeyArray) -> Float[Array, "n d"]:
        key_h, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (n, self.n), jnp.float32)
        return jnp.concatenate([self.prior.sample(n, key_h), noise], axis=1)

    def marginal(self, kept: Int[Array, " u"]) -> Prior:
        own = kept[kept < self.units]
        return PriorBesideNoise(self.prior.marginal(own), len(own), len(kept) - len(own))


def not_at_random(model: Autoencoder, how: Missingness, summary: Summary) -> Autoencoder:
    """A model of a table that also models which of its Gaussian columns' values are missing.

    Args:
        model: an autoencoder whose likelihood is `Columns`.
        how: self-masking, where a value goes missing by its own size; self-masking-high or -low,
            where it is known that large or small ones do; linear, by any linear combination of all.
        summary: that of the training rows, for their shares of missing values.

    Returns:
        The autoencoder with the noise ε of the missing values as further units of h_1, whose prior
        and posterior are N(0, I): their posterior means are 0. log p is that of (x_o, s).

    Raises:
        InputError: if the likelihood is not `Columns`, or has no Gaussian column.
    """
    likelihood = model.likelihood
    if not isinstance(likelihood, Columns):
        raise InputError(
            f"missingness = {how} was given, but it models the columns of a table under "
            f"likelihood = auto; give --values table, or leave it out."
        )
    at = np.array(likelihood.gaussian, np.int64)
    n, (units, *above) = len(at), model.latents
    first, *encoder = model.encoder
    decoder = [BesideNoise(p, n) if i == 0 else p for i, p in enumerate(model.decoder)]
    top = model.top
    if top is not None and not above:
        top = PriorBesideNoise(top, units, n)
    return dataclasses.replace(
        model,
        encoder=(
            BesideNoise(first, n),
            *(BeforeNoise(q, n) if i == 0 else q for i, q in enumerate(encoder)),
        ),
        decoder=tuple(decoder),
        observation=PassNoise(model.observation, n),
        likelihood=MaskModel(likelihood, mechanism(how, summary.missing[at])),
        latents=(units + n, *above),
        top=top,
    )
