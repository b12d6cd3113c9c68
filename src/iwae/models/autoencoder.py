"""The autoencoder of L Gaussian stochastic layers."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae.errors import InputError
from iwae.models.base import AbstractAutoencoder as AbstractAutoencoder
from iwae.models.base import Conditional as Conditional
from iwae.models.base import FromFunctions as FromFunctions
from iwae.models.base import Latents as Latents
from iwae.models.base import Model as Model
from iwae.models.base import ModelLike as ModelLike
from iwae.models.base import as_model as as_model
from iwae.models.base import draw as draw
from iwae.models.base import draw_log_weights as draw_log_weights
from iwae.models.base import latents_of as latents_of
from iwae.models.base import log_weights as log_weights
from iwae.models.chains import Generation, Recognition
from iwae.models.likelihoods import AbstractLikelihood
from iwae.models.normal import log_normal as log_normal
from iwae.models.normal import log_standard_normal as log_standard_normal
from iwae.models.priors import Prior
from iwae.models.pruning import HasSlots, Keep, prune_parts
from iwae.models.pruning import prune as prune


class Autoencoder(HasSlots):
    """L Gaussian stochastic layers in both directions (Burda et al. §2 and §5).

    q(h|x) = q(h_1|x) q(h_2|h_1) … q(h_L|h_{L−1}) and
    p(x, h) = p(h_L) p(h_{L−1}|h_L) … p(h_1|h_2) p(x|h_1) with p(h_L) = N(0, I), or `top`.

    The slots take any callable equinox modules: each conditional maps a vector to (μ, log σ), and
    `observation` maps h_1 to the likelihood's parameters, flat or [n_parameters, d].

    A subclass may replace parts, and declares which:

    - `own_proposal = True`, with `propose` and `log_proposal`: another q(h|x). Posterior means are
      then averages over its draws, and the ELBO has one KL term for all layers.
    - `own_prior = True`, with `log_prior_terms`: another p(h); define `prior` as well to sample.
    - `own_observation = True`, with `log_observation`: another p(x|h); define `draw` and `expected`
      as well to sample and reconstruct.

    Inherited methods that would be wrong for a replaced part raise `InputError`. So does defining a
    class that overrides one of these methods without declaring it, or only half of a part, since
    its results would be those of the original part.
    """

    encoder: tuple[Conditional, ...]
    """q(h_1|x), q(h_2|h_1), …, from the data upwards."""
    decoder: tuple[Conditional, ...]
    """p(h_1|h_2), p(h_2|h_3), …, from the data upwards: one fewer than the encoder."""
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)
    """Units of h_1, …, h_L."""
    top: Prior | None = eqx.field(default=None, kw_only=True)
    """p(h_L); None for N(0, I)."""

    def __init_subclass__(cls, **given: object) -> None:
        super().__init_subclass__(**given)
        _check_parts(cls)

    @property
    def recognition(self) -> Recognition:
        """q(h|x)."""
        return Recognition(self.encoder, self.latents)

    @property
    def generation(self) -> Generation:
        """p(x, h)."""
        return Generation(self.decoder, self.observation, self.likelihood, self.latents, self.top)

    @property
    def made_from_noise(self) -> bool:  # type: ignore[override]
        return not self.own_proposal

    @property
    def moves_with_its_parameters(self) -> bool:  # type: ignore[override]
        """The built-in draws are differentiable wherever the density is."""
        return not self.own_proposal

    def propose(self, x: Float[Array, " d"], k: int, key: PRNGKeyArray) -> PyTree:
        """K draws h_l = μ_l + σ_l ε_l, layer by layer; q(h_1|x) is computed once for all K."""
        return self.reparametrize(x, self.noise(k, key))[0]

    def propose_and_log_prob(
        self, x: Float[Array, " d"], k: int, key: PRNGKeyArray
    ) -> tuple[PyTree, Float[Array, " k"]]:
        """K draws and log q(h|x) of each, from their noise (`Recognition.reparametrize`)."""
        if self.own_proposal:
            return super().propose_and_log_prob(x, k, key)
        return self.reparametrize(x, self.noise(k, key))

    def noise(self, k: int, key: PRNGKeyArray) -> Latents:
        """ε_l ~ N(0, I) of K draws, from the data upwards."""
        return self.recognition.noise(k, key)

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Latents
    ) -> tuple[Latents, Float[Array, " k"]]:
        """(h, log q(h|x)) of the draws made from ε."""
        return self.recognition.reparametrize(x, epsilon)

    def log_proposal(self, x: Float[Array, " d"], h: PyTree) -> Float[Array, " k"]:
        """log q(h|x) = Σ_l log q(h_l|h_{l−1}), per draw."""
        return self.recognition.log_prob(x, h)

    def log_proposal_terms(self, x: Float[Array, " d"], h: PyTree) -> list[Float[Array, " k"]]:
        """log q(h_l|h_{l−1}) for l = 1 … L, where the first is log q(h_1|x)."""
        if self.own_proposal:
            return super().log_proposal_terms(x, h)
        return self.recognition.terms(x, h)

    def posterior_mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] under q, which A_u needs, and its squared standard error.

        For l = 1 it is exactly the encoder's mean; above, an average over k draws.
        """
        if self.own_proposal:
            return super().posterior_mean(x, layer, k, key)
        return self.recognition.mean(x, layer, k, key)

    def log_observation(self, x: Float[Array, " d"], h: PyTree) -> Float[Array, " k"]:
        """log p(x|h_1), per draw."""
        return self.generation.log_observation(x, self.layers(h))

    def log_prior_terms(self, h: PyTree) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}) for l = 1 … L, where the last is log p(h_L)."""
        return self.generation.prior_terms(self.layers(h))

    def parameters(self, h1: Float[Array, " d1"]) -> Float[Array, "p d"]:
        """The likelihood's parameters at h_1."""
        return self.generation.parameters(h1)

    def prior(self, n: int, key: PRNGKeyArray) -> Latents:
        """n ancestral draws through p(h_L) … p(h_1|h_2), from the data upwards."""
        if self.own_prior:
            self._reject("own_prior", "prior")
        return self.generation.prior(n, key)

    def draw(self, h1: Float[Array, " d1"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """x ~ p(x|h_1)."""
        if self.own_observation:
            self._reject("own_observation", "draw")
        return self.generation.draw(h1, key)

    def expected(self, h1: Float[Array, " d1"]) -> Float[Array, " d"]:
        """E[x|h_1]."""
        if self.own_observation:
            self._reject("own_observation", "expected")
        return self.generation.expected(h1)

    def pruned(self, keep: Keep, fill: tuple[Array, ...]) -> "Autoencoder":
        """The model with the latent units outside `keep` removed from p and q and fixed at `fill`.

        What remains is again a latent-variable model, so its log-weights bound its own log p(x).
        """
        for part, own in _stated(type(self)).items():
            if own:
                self._reject(part, "pruned")
        pruned = prune_parts(self, keep, fill)
        if self.top is None:
            return pruned
        return dataclasses.replace(pruned, top=self.top.marginal(jnp.flatnonzero(keep[-1])))

    def _reject(self, part: str, method: str) -> NoReturn:
        raise InputError(
            f"{type(self).__name__} declares {part} = True, for which Autoencoder.{method} is not "
            f"valid; define {method} in it."
        )


PARTS: dict[str, tuple[str, ...]] = {
    "own_proposal": ("propose", "log_proposal"),
    "own_prior": ("log_prior_terms",),
    "own_observation": ("log_observation",),
}
"""Parts that a subclass may declare as its own, and the methods that it then has to define."""

FOLLOWING: dict[str, str] = {
    "propose_and_log_prob": "own_proposal",
    "log_proposal_terms": "own_proposal",
    "posterior_mean": "own_proposal",
    "prior": "own_prior",
    "draw": "own_observation",
    "expected": "own_observation",
}
"""Further methods that a subclass may define, and the part that each belongs to."""

SEALED: dict[str, str] = {
    "log_joint": "define log_prior_terms or log_observation",
    "noise": "define propose and log_proposal",
    "reparametrize": "define propose and log_proposal",
    "dream": "define sample_joint",
}
"""Methods that a subclass cannot override, and what to do instead; log_joint is the sum of the
parts."""


def _stated(cls: type[Autoencoder]) -> dict[str, bool]:
    """Which of `PARTS` a class declares as its own."""
    return {
        "own_proposal": cls.own_proposal,
        "own_prior": cls.own_prior,
        "own_observation": cls.own_observation,
    }


def _check_parts(cls: type[Autoencoder]) -> None:
    """`InputError` for a subclass that replaces a part without declaring it, or half of one."""
    if Autoencoder not in cls.__bases__:
        raise InputError(
            f"{cls.__name__} is a subclass of {cls.__bases__[0].__name__}, but subclasses "
            f"of Autoencoder are final; make it a direct subclass of Autoencoder."
        )
    writes = partial(_writes, cls)
    for name, instead in SEALED.items():
        if writes(name):
            raise InputError(f"{cls.__name__} defines {name}, but must not; {instead} instead.")
    stated = _stated(cls)
    methods = {name: part for part, names in PARTS.items() for name in names} | FOLLOWING
    for name, part in methods.items():
        if writes(name) and not stated[part]:
            raise InputError(
                f"{cls.__name__} defines {name}, but does not declare that this part is its own; "
                f"declare {part} = True in it, and define {' and '.join(PARTS[part])}."
            )
    for part, names in PARTS.items():
        for name in names:
            if stated[part] and not writes(name):
                raise InputError(
                    f"{cls.__name__} declares {part} = True, but does not define {name}; define "
                    f"{' and '.join(names)}, or keep the inherited one by `{name} = "
                    f"Autoencoder.{name}`."
                )


def _writes(cls: type[Autoencoder], name: str) -> bool:
    """Whether a class overrides a method of `Autoencoder`, itself or through another base."""
    inherited = inspect.getattr_static(Autoencoder, name)
    return name in vars(cls) or inspect.getattr_static(cls, name) is not inherited
