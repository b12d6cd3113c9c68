"""The contract of models.

A model is written for ONE example x and yields K log-weights. Its draws h are a pytree whose leaves
have the leading axis K. Within the package a model is a `Model`, which declares what it can do;
public functions also accept any object with `propose`, `log_joint` and `log_proposal`
(`ModelLike`), which `as_model` adapts.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from iwae._utils.checks import check_draws
from iwae.errors import InputError
from iwae.models.likelihoods import AbstractLikelihood

Latents = tuple[Float[Array, "k _"], ...]
"""h_1, …, h_L, from the data upwards."""
Conditional = Callable[[Array], tuple[Array, Array]]
"""Maps a vector to (μ, log σ)."""
Frozen = TypeVar("Frozen")


# --- the contract -----------------------------------------------------------------------------


@runtime_checkable
class ModelLike(Protocol):
    """The methods that a model needs."""

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> PyTree:
        """K draws h ~ q(h|x)."""

    def log_joint(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        """log p(x, h) of each draw, in nats."""

    def log_proposal(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        """log q(h|x) of each draw, in nats."""


class Model(eqx.Module):
    """A latent-variable model: subclass it and define the three abstract methods.

    The attributes declare properties of the draws. Their defaults hold for independent draws with a
    density; a subclass overrides them by an attribute, a field or a property of the same name.
    """

    block: ClassVar[int] = 1
    """Number of draws that the proposal makes at once."""
    in_blocks: ClassVar[bool] = False
    """Whether draws are weighted in such blocks together, so that single draws have no density."""
    independent_draws: ClassVar[bool] = True
    """Whether the K draws of an example are independent of one another, as `dreg` needs."""
    density_of_draws: ClassVar[bool] = True
    """Whether `log_proposal` is the density of the draws, as partial gradients need."""
    made_from_noise: ClassVar[bool] = False
    """Whether the draws are `reparametrize` of `noise`."""
    moves_with_its_parameters: ClassVar[bool] = False
    """Whether the draws are known to depend on every parameter of q(h|x); else this is checked."""
    samples_joint: ClassVar[bool] = False
    """Whether `sample_joint` is defined."""
    by_place: ClassVar[bool] = False
    """Whether draws are made and weighted by their place among the K, so that no draw can be made
    again alone."""

    @abstractmethod
    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> PyTree:
        """K draws h ~ q(h|x), reparametrised if a gradient has to pass through them."""

    @abstractmethod
    def log_joint(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        """log p(x, h) of each draw, in nats."""

    @abstractmethod
    def log_proposal(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        """log q(h|x) of each draw, in nats."""

    def propose_and_log_prob(
        self, x: Array, k: int, key: PRNGKeyArray
    ) -> tuple[PyTree, Float[Array, " k"]]:
        """K draws and log q(h|x) of each; override it if both are cheaper together."""
        h = self.propose(x, k, key)
        return h, self.log_proposal(x, h)

    def noise(self, k: int, key: PRNGKeyArray) -> PyTree:
        """The noise of K draws; for models that declare `made_from_noise`."""
        raise self._cannot("draw noise", "noise")

    def reparametrize(self, x: Array, epsilon: PyTree) -> tuple[PyTree, Float[Array, " k"]]:
        """(h, log q(h|x)) of the draws made from noise."""
        raise self._cannot("make draws from noise", "reparametrize")

    def with_held_proposal(self) -> "Model":
        """The same model with those parameters held constant in q(h|x) that p(x, h) has as well.

        θ then follows its own bound alone where φ follows another bound or divergence. A model
        without shared parameters is returned as it is.
        """
        return self

    def sample_joint(self, n: int, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """n draws (x, h) ~ p(x, h); for models that declare `samples_joint`."""
        raise self._cannot("draw (x, h) from p(x, h)", "sample_joint")

    def _cannot(self, what: str, method: str) -> InputError:
        return InputError(
            f"{type(self).__name__} does not define how to {what}; give it a method {method}."
        )


class Adapted(Model):
    """A `Model` from an object with the three methods of a `ModelLike`, and its attributes."""

    model: ModelLike

    @property
    def block(self) -> int:  # type: ignore[override]
        return self.model.block if isinstance(self.model, StatesBlock) else 1

    @property
    def in_blocks(self) -> bool:  # type: ignore[override]
        return isinstance(self.model, StatesBlock)

    @property
    def independent_draws(self) -> bool:  # type: ignore[override]
        stated = self.model
        return stated.independent_draws if isinstance(stated, StatesDependence) else True

    @property
    def density_of_draws(self) -> bool:  # type: ignore[override]
        return self.model.density_of_draws if isinstance(self.model, StatesDensity) else True

    @property
    def samples_joint(self) -> bool:  # type: ignore[override]
        return isinstance(self.model, SamplesJoint | Dreams)

    def with_held_proposal(self) -> "Adapted":
        held = self.model
        return Adapted(held.with_held_proposal()) if isinstance(held, HoldsProposal) else self

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> PyTree:
        return self.model.propose(x, k, key)

    def log_joint(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        return self.model.log_joint(x, h)

    def log_proposal(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        return self.model.log_proposal(x, h)

    def sample_joint(self, n: int, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        if isinstance(self.model, SamplesJoint):
            return self.model.sample_joint(n, key)
        if isinstance(self.model, Dreams):
            _warn_of_dream()
            return self.model.dream(n, key)
        return super().sample_joint(n, key)


@runtime_checkable
class StatesBlock(Protocol):
    """An object whose proposal makes draws in blocks."""

    block: int


@runtime_checkable
class StatesDependence(Protocol):
    """An object that declares whether its draws are independent."""

    independent_draws: bool


@runtime_checkable
class StatesDensity(Protocol):
    """An object that declares whether its density is that of its draws."""

    density_of_draws: bool


@runtime_checkable
class SamplesJoint(Protocol):
    """An object with `sample_joint`."""

    def sample_joint(self, n: int, key: PRNGKeyArray) -> tuple[PyTree, PyTree]: ...


@runtime_checkable
class HoldsProposal(Protocol):
    """An object whose p(x, h) and q(h|x) share parameters."""

    def with_held_proposal(self) -> ModelLike: ...


@runtime_checkable
class Dreams(Protocol):
    """An object with `dream`, the former name of `sample_joint`."""

    def dream(self, n: int, key: PRNGKeyArray) -> tuple[PyTree, PyTree]: ...


@runtime_checkable
class HasEncoder(Protocol):
    """A model whose recognition parameters φ are those of its encoder."""

    encoder: PyTree


@runtime_checkable
class HasLatents(Protocol):
    """Draws that hold h_1, …, h_L beside other variables."""

    latents: Latents


def _warn_of_dream() -> None:
    warnings.warn(
        "dream was renamed to sample_joint; the former name will be removed in the next version.",
        DeprecationWarning,
        stacklevel=3,
    )


def as_model(model: object) -> Model:
    """Return a `Model`, adapting other objects with its three methods.

    The attributes `block`, `independent_draws` and `density_of_draws` of such an object are used if
    it has them. `InputError` for an object without the three methods.
    """
    if isinstance(model, Model):
        return model
    if not isinstance(model, ModelLike):
        raise InputError(
            f"{type(model).__name__} was given as a model, but a model has the methods propose, "
            f"log_joint and log_proposal; define those that are missing."
        )
    return Adapted(model)


def block_of(model: ModelLike) -> int:
    """Number of draws that the model's proposal makes at once."""
    return as_model(model).block


def draw(
    model: ModelLike, x: Array, k: int, key: PRNGKeyArray
) -> tuple[PyTree, Float[Array, " k"]]:
    """(h, log q(h|x)) of K draws."""
    check_draws(k)
    return as_model(model).propose_and_log_prob(x, k, key)


def log_weights(model: ModelLike, x: Array, h: PyTree) -> Float[Array, " k"]:
    """log w_i = log p(x, h_i) − log q(h_i|x), in nats (Burda et al. §3)."""
    return model.log_joint(x, h) - model.log_proposal(x, h)


def draw_log_weights(model: ModelLike, x: Array, k: int, key: PRNGKeyArray) -> Float[Array, " k"]:
    """The log-weights of K fresh draws, in nats."""
    h, log_q = draw(model, x, k, key)
    return model.log_joint(x, h) - log_q


def frozen(model: Frozen) -> Frozen:
    """The model with its parameters held constant: gradients pass through its inputs only."""
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, model)


class FromFunctions(Model):
    """A model from your own functions, each of which takes the parameters first.

    Args:
        params: any pytree; gradients are with respect to its arrays.
        propose: `propose(params, x, k, key)` makes K reparametrised draws h, any pytree whose
            leaves have the leading axis K.
        log_joint: `log_joint(params, x, h)`, log p(x, h) of each draw [K], in nats.
        log_proposal: `log_proposal(params, x, h)`, log q(h|x) of each draw [K], in nats.

    Returns:
        A model for bounds, estimators and evaluation.

    Raises:
        TypeError: if one of the functions is left out.

    Example:
        >>> model = FromFunctions(
        ...     {"m": jnp.zeros(3)},
        ...     propose=lambda p, x, k, key: p["m"] + jax.random.normal(key, (k, 3)),
        ...     log_joint=lambda p, x, h: jnp.sum(norm.logpdf(h) + norm.logpdf(x, h), -1),
        ...     log_proposal=lambda p, x, h: jnp.sum(norm.logpdf(h, p["m"]), -1),
        ... )
    """

    params: PyTree
    proposal: Callable[[PyTree, Array, int, PRNGKeyArray], PyTree] = eqx.field(static=True)
    joint: Callable[[PyTree, Array, PyTree], Float[Array, " k"]] = eqx.field(static=True)
    density: Callable[[PyTree, Array, PyTree], Float[Array, " k"]] = eqx.field(static=True)

    def __init__(
        self,
        params: PyTree,
        *,
        propose: Callable[[PyTree, Array, int, PRNGKeyArray], PyTree],
        log_joint: Callable[[PyTree, Array, PyTree], Float[Array, " k"]],
        log_proposal: Callable[[PyTree, Array, PyTree], Float[Array, " k"]],
    ):
        self.params = params
        self.proposal, self.joint, self.density = propose, log_joint, log_proposal

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> PyTree:
        return self.proposal(self.params, x, k, key)

    def log_joint(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        return self.joint(self.params, x, h)

    def log_proposal(self, x: Array, h: PyTree) -> Float[Array, " k"]:
        return self.density(self.params, x, h)


# --- models with layers of latents ------------------------------------------------------------


class AbstractAutoencoder(Model):
    """A model with L layers of latents whose densities are known term by term.

    In every class below, summed over the terms,

        log_joint − log_proposal = log_observation + Σ log_prior_terms − Σ log_proposal_terms.

    Methods about layers, codes and samples have defaults that are valid for any draws, or raise
    `InputError` until a subclass defines them.
    """

    likelihood: eqx.AbstractVar[AbstractLikelihood]
    latents: eqx.AbstractVar[tuple[int, ...]]
    """Units of h_1, …, h_L."""
    own_proposal: ClassVar[bool] = False
    """Whether a subclass has another q(h|x), by `propose` and `log_proposal`."""
    own_prior: ClassVar[bool] = False
    """Whether a subclass has another p(h), by `log_prior_terms`."""
    own_observation: ClassVar[bool] = False
    """Whether a subclass has another p(x|h), by `log_observation`."""
    samples_joint: ClassVar[bool] = True

    @abstractmethod
    def log_observation(self, x: Float[Array, " d"], h: PyTree) -> Float[Array, " k"]:
        """log p(x|h_1), per draw."""

    @abstractmethod
    def log_prior_terms(self, h: PyTree) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}) for l = 1 … L, where the last is log p(h_L)."""

    def log_joint(self, x: Float[Array, " d"], h: PyTree) -> Float[Array, " k"]:
        """log p(x, h) = log p(x|h_1) + Σ_l log p(h_l|h_{l+1}), per draw."""
        return self.log_observation(x, h) + sum(self.log_prior_terms(h))

    def log_proposal_terms(self, x: Float[Array, " d"], h: PyTree) -> list[Float[Array, " k"]]:
        """The terms of log q(h|x) for h_1 … h_L; one if q does not factorise by layers."""
        return [self.log_proposal(x, h)]

    def layers(self, h: PyTree) -> PyTree:
        """h_1, …, h_L of draws, in the form that `latents_of` checks."""
        return h.latents if isinstance(h, HasLatents) else h

    def posterior_mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] under q, as the average of k draws, and its squared standard error."""
        h = latents_of(self, self.propose(x, k, key))[layer - 1]
        return jnp.mean(h, axis=0), jnp.var(h, axis=0, ddof=1) / k

    def prior(self, n: int, key: PRNGKeyArray) -> Latents:
        """n draws h ~ p(h), from the data upwards."""
        raise self._cannot("draw from its prior", "prior")

    def draw(self, h1: Float[Array, " d1"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """x ~ p(x|h_1)."""
        raise self._cannot("draw x from p(x|h_1)", "draw")

    def expected(self, h1: Float[Array, " d1"]) -> Float[Array, " d"]:
        """E[x|h_1]."""
        raise self._cannot("compute E[x|h_1]", "expected")

    def sample_joint(self, n: int, key: PRNGKeyArray) -> tuple[Float[Array, "n d"], PyTree]:
        """n draws (x, h) ~ p(x, h)."""
        key_h, key_x = jax.random.split(key)
        h = self.prior(n, key_h)
        return jax.vmap(self.draw)(h[0], jax.random.split(key_x, n)), h

    def dream(self, n: int, key: PRNGKeyArray) -> tuple[Float[Array, "n d"], PyTree]:
        """The former name of `sample_joint`."""
        _warn_of_dream()
        return self.sample_joint(n, key)

    def sample(self, n: int, key: PRNGKeyArray, *, mean: bool = True) -> Float[Array, "n d"]:
        """n images from the model: E[x|h_1] of ancestral draws, or x itself with `mean=False`."""
        if mean:
            return jax.vmap(self.expected)(self.prior(n, jax.random.split(key)[0])[0])
        return self.sample_joint(n, key)[0]

    def reconstruct(self, x: Float[Array, " d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """E[x'|h_1] at one draw h_1 ~ q(h_1|x)."""
        return self.expected(latents_of(self, self.propose(x, 1, key))[0][0])

    def pruned(
        self, keep: tuple[Bool[Array, " _"], ...], fill: tuple[Array, ...]
    ) -> "AbstractAutoencoder":
        """The model with the latent units outside `keep` removed and fixed at `fill`."""
        raise self._cannot("remove units", "pruned")


class FromNoise(AbstractAutoencoder):
    """An autoencoder whose draws are made from noise: define `noise` and `reparametrize`."""

    made_from_noise: ClassVar[bool] = True

    def propose(self, x: Float[Array, " d"], k: int, key: PRNGKeyArray) -> PyTree:
        """K draws h ~ q(h|x)."""
        return self.propose_and_log_prob(x, k, key)[0]

    def propose_and_log_prob(
        self, x: Float[Array, " d"], k: int, key: PRNGKeyArray
    ) -> tuple[PyTree, Float[Array, " k"]]:
        """K draws and log q(h|x) of each, from their noise."""
        return self.reparametrize(x, self.noise(k, key))


def final(cls: type, base: str) -> InputError:
    """The error for a subclass of a final class."""
    return InputError(
        f"{cls.__name__} is a subclass of {base}, which is final; write a subclass of "
        f"iwae.models.Model that holds one in a field."
    )


def latents_of(model: AbstractAutoencoder, h: PyTree) -> Latents:
    """h_1, …, h_L of the model's draws, each [k, d_l]; `InputError` if they have another form."""
    latents = model.layers(h)
    fits = isinstance(latents, tuple | list) and (
        [jnp.shape(part)[1:] for part in latents] == [(d,) for d in model.latents]
    )
    if not fits:
        raise InputError(
            f"The draws of {type(model).__name__} are not (h_1, …, h_L) of {model.latents} units, "
            f"so its layers are unknown; let propose return such a tuple, or an object with such a "
            f"tuple as attribute latents."
        )
    return tuple(latents)
