"""Latent-variable models that yield log importance weights, written for ONE example.

A model is anything with `propose`, `log_joint` and `log_proposal` (`Model`); `Autoencoder` is the
built-in one. K draws h of one example are a pytree whose leaves lead with the axis K.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from iwae._utils.checks import check_draws
from iwae._utils.distributed import computing
from iwae.errors import InputError
from iwae.models.likelihoods import LOG_2PI, AbstractLikelihood
from iwae.models.networks import PrunedInput, PrunedOutput

Latents = tuple[Float[Array, "k _"], ...]
Conditional = Callable[[Array], tuple[Array, Array]]


@runtime_checkable
class Model(Protocol):
    """What bounds, estimators, training and evaluation need of a model."""

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> Any:
        """K reparametrised draws h ~ q(h|x)."""

    def log_joint(self, x: Array, h: Any) -> Float[Array, " k"]:
        """log p(x, h) of each draw, in nats."""

    def log_proposal(self, x: Array, h: Any) -> Float[Array, " k"]:
        """log q(h|x) of each draw, in nats."""


def draw(model: Model, x: Array, k: int, key: PRNGKeyArray) -> tuple[Any, Float[Array, " k"]]:
    """(h, log q(h|x)) of K draws: by the model's own `propose_and_log_prob` if it has one."""
    check_draws(k)
    if _draws_by(model, "propose_and_log_prob"):
        at_once: Any = model
        return at_once.propose_and_log_prob(x, k, key)
    h = model.propose(x, k, key)
    return h, model.log_proposal(x, h)


def made_from_noise(model: Any) -> bool:
    """Whether the model's draws are those that its `reparametrize` makes of its `noise`.

    So are an `Autoencoder`'s, unless a subclass proposes in a way of its own.
    """
    return _draws_by(model, "reparametrize")


def _draws_by(model: Any, method: str) -> bool:
    """Whether a method belongs to the proposal: a subclass with another proposal inherits it too,
    and it is then that of the class below."""
    proposal = {"propose", "propose_and_log_prob", "log_proposal"}
    own = next((c for c in type(model).__mro__ if proposal & vars(c).keys()), object)
    return method in vars(own)


DRAWS = frozenset({"propose", "reparametrize", "noise"})
DENSITIES = frozenset({"log_joint", "log_observation", "log_prior_terms"})
SAMPLERS = frozenset({"prior", "draw", "expected"})

SPEAKS_OF: dict[str, frozenset[str]] = {
    "reparametrize": frozenset({"noise"}),
    "log_proposal": DRAWS,
    "log_proposal_terms": DRAWS | {"log_proposal"},
    "posterior_mean": DRAWS | {"log_proposal"},
    "log_observation": frozenset({"log_joint"}),
    "log_prior_terms": frozenset({"log_joint"}),
    "prior": frozenset({"log_joint", "log_prior_terms"}),
    "draw": frozenset({"log_joint", "log_observation"}),
    "expected": frozenset({"log_joint", "log_observation"}),
    "dream": DENSITIES | SAMPLERS,
    "sample": DENSITIES | SAMPLERS,
    "reconstruct": DRAWS | DENSITIES | SAMPLERS,
    "pruned": DRAWS | DENSITIES | SAMPLERS | {"log_proposal"},
    "at_the_mean": DRAWS | DENSITIES | SAMPLERS | {"log_proposal"},
}
"""Methods that a subclass may inherit though it has others of those that they speak of."""


def holds(model: Any, method: str) -> bool:
    """Whether an inherited method is true of a model: no class below has others of `SPEAKS_OF`.

    A subclass of which it is true all the same says so, as by `prior = Autoencoder.prior`.
    """
    classes = type(model).__mro__
    place = lambda name: next((i for i, c in enumerate(classes) if name in vars(c)), len(classes))
    others = set(SPEAKS_OF[method])
    if "propose" in others and "propose_and_log_prob" in vars(classes[place("propose")]):
        others.add("propose_and_log_prob")  # by which that `propose` draws
    return all(place(method) <= place(other) for other in others)


def check_holds(model: Any, *methods: str) -> None:
    """`InputError` unless these methods are true of the model, or its own."""
    for method in methods:
        if not holds(model, method):
            base = next(c for c in type(model).__mro__ if method in vars(c)).__name__
            raise InputError(
                f"{type(model).__name__} inherits {method} from {base}, but draws or weighs in a "
                f"way of its own, of which it need not be true; write one, or state that it holds "
                f"by `{method} = {base}.{method}`."
            )


def log_weights(model: Model, x: Array, h: Any) -> Float[Array, " k"]:
    """log w_i = log p(x, h_i) − log q(h_i|x), in nats (Burda et al. §3)."""
    return model.log_joint(x, h) - model.log_proposal(x, h)


def draw_log_weights(model: Model, x: Array, k: int, key: PRNGKeyArray) -> Float[Array, " k"]:
    """The log-weights of K fresh draws, in nats."""
    h, log_q = draw(model, x, k, key)
    return model.log_joint(x, h) - log_q


def block_of(model: Any) -> int:
    """How many draws the model's proposal makes at once."""
    return getattr(model, "block", 1)


class FromFunctions(eqx.Module):
    """A model from your own functions, each of which takes the parameters first.

    `propose(params, x, k, key)` makes K reparametrised draws h, any pytree whose leaves lead with
    the axis K; `log_joint(params, x, h)` and `log_proposal(params, x, h)` return [K], in nats.
    """

    params: Any
    proposal: Callable[[Any, Array, int, PRNGKeyArray], Any] = eqx.field(static=True)
    joint: Callable[[Any, Array, Any], Float[Array, " k"]] = eqx.field(static=True)
    density: Callable[[Any, Array, Any], Float[Array, " k"]] = eqx.field(static=True)

    def __init__(
        self,
        params: Any,
        *,
        propose: Callable[[Any, Array, int, PRNGKeyArray], Any],
        log_joint: Callable[[Any, Array, Any], Float[Array, " k"]],
        log_proposal: Callable[[Any, Array, Any], Float[Array, " k"]],
    ):
        self.params = params
        self.proposal, self.joint, self.density = propose, log_joint, log_proposal

    def propose(self, x: Array, k: int, key: PRNGKeyArray) -> Any:
        return self.proposal(self.params, x, k, key)

    def log_joint(self, x: Array, h: Any) -> Float[Array, " k"]:
        return self.joint(self.params, x, h)

    def log_proposal(self, x: Array, h: Any) -> Float[Array, " k"]:
        return self.density(self.params, x, h)


def log_normal(
    h: Float[Array, "*#b d"], mu: Float[Array, "*#b d"], log_sigma: Float[Array, "*#b d"]
) -> Float[Array, "*#b"]:
    """log N(h; μ, diag σ²), summed over the last axis."""
    standard = (h - mu) * jnp.exp(-log_sigma)
    return -jnp.sum(0.5 * standard**2 + log_sigma, axis=-1) - 0.5 * LOG_2PI * h.shape[-1]


def log_standard_normal(h: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """log N(h; 0, I), summed over the last axis."""
    return -0.5 * jnp.sum(h**2, axis=-1) - 0.5 * LOG_2PI * h.shape[-1]


class Autoencoder(eqx.Module):
    """L Gaussian stochastic layers in both directions (Burda et al. §2 and §5).

    q(h|x) = q(h_1|x) q(h_2|h_1) … q(h_L|h_{L−1}) and
    p(x, h) = p(h_L) p(h_{L−1}|h_L) … p(h_1|h_2) p(x|h_1) with p(h_L) = N(0, I).

    The slots take any callable equinox modules: each conditional maps a vector to (μ, log σ), and
    `observation` maps h_1 to the likelihood's parameters, flat or [n_parameters, d].
    """

    encoder: tuple[Conditional, ...]
    """q(h_1|x), q(h_2|h_1), …, from the image up."""
    decoder: tuple[Conditional, ...]
    """p(h_1|h_2), p(h_2|h_3), …, from the image up: one fewer than the encoder."""
    observation: Callable[[Array], Array]
    likelihood: AbstractLikelihood
    latents: tuple[int, ...] = eqx.field(static=True)
    """Units of h_1, …, h_L."""

    def propose(self, x: Float[Array, " d"], k: int, key: PRNGKeyArray) -> Latents:
        """K draws h_l = μ_l + σ_l ε_l, layer by layer; q(h_1|x) is computed once for all K."""
        return self.propose_and_log_prob(x, k, key)[0]

    def propose_and_log_prob(
        self, x: Float[Array, " d"], k: int, key: PRNGKeyArray
    ) -> tuple[Latents, Float[Array, " k"]]:
        """K draws and log q(h|x) = −Σ_l Σ_u (ε² / 2 + log σ + log(2π) / 2) of each, from ε itself.

        In the gradient each conditional is then passed through once, not once for the draws and
        once for their density.
        """
        check_holds(self, "reparametrize")
        return self.reparametrize(x, self.noise(k, key))

    def noise(self, k: int, key: PRNGKeyArray) -> Latents:
        """ε_l ~ N(0, I) of K draws, from the image up."""
        keys = jax.random.split(key, len(self.encoder))
        shapes = [(k, d) for d in self.latents]
        draw = lambda key, shape: jax.random.normal(key, shape, jnp.float32)
        return tuple(draw(*of) for of in zip(keys, shapes, strict=True))

    def reparametrize(
        self, x: Float[Array, " d"], epsilon: Latents
    ) -> tuple[Latents, Float[Array, " k"]]:
        """(h, log q(h|x)) of the draws that ε stands for."""
        draws: list[Array] = []
        log_q = jnp.zeros(len(epsilon[0]), jnp.float32)
        for conditional, noise in zip(self.encoder, epsilon, strict=True):
            mu, log_sigma = jax.vmap(conditional)(draws[-1]) if draws else conditional(x)
            draws.append(mu + jnp.exp(log_sigma) * noise)
            log_q += log_standard_normal(noise) - jnp.sum(log_sigma, axis=-1)
        return tuple(draws), log_q

    def log_joint(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log p(x, h) = log p(x|h_1) + Σ_l log p(h_l|h_{l+1}), per draw."""
        return self.log_observation(x, h) + sum(self.log_prior_terms(h))

    def log_proposal(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log q(h|x) = Σ_l log q(h_l|h_{l−1}), per draw."""
        check_holds(self, "log_proposal")
        return sum(self.log_proposal_terms(x, h), jnp.zeros(h[0].shape[0], jnp.float32))

    def log_observation(self, x: Float[Array, " d"], h: Latents) -> Float[Array, " k"]:
        """log p(x|h_1), per draw."""
        with computing(h):  # numpyro computes in JAX's own width
            return jax.vmap(lambda h1: self.likelihood.log_prob(self.parameters(h1), x))(h[0])

    def log_prior_terms(self, h: Latents) -> list[Float[Array, " k"]]:
        """log p(h_l|h_{l+1}) for l = 1 … L, where the last is log p(h_L)."""
        given = zip(h[:-1], h[1:], self.decoder, strict=True)
        terms = [log_normal(below, *jax.vmap(p)(above)) for below, above, p in given]
        return [*terms, log_standard_normal(h[-1])]

    def log_proposal_terms(self, x: Float[Array, " d"], h: Latents) -> list[Float[Array, " k"]]:
        """log q(h_l|h_{l−1}) for l = 1 … L, where the first is log q(h_1|x)."""
        check_holds(self, "log_proposal_terms")
        given = zip(h[1:], h[:-1], self.encoder[1:], strict=True)
        terms = [log_normal(above, *jax.vmap(q)(below)) for above, below, q in given]
        mu, log_sigma = self.encoder[0](x)
        return [log_normal(h[0], mu, log_sigma), *terms]

    def parameters(self, h1: Float[Array, " d1"]) -> Float[Array, "p d"]:
        """The likelihood's parameters at h_1."""
        return self.observation(h1).reshape(self.likelihood.n_parameters, -1)

    def prior(self, n: int, key: PRNGKeyArray) -> Latents:
        """n ancestral draws through p(h_L) … p(h_1|h_2), from the image up."""
        check_holds(self, "prior")
        keys = jax.random.split(key, len(self.encoder))
        draws = [jax.random.normal(keys[0], (n, self.latents[-1]), jnp.float32)]
        for conditional, key_l in zip(reversed(self.decoder), keys[1:], strict=True):
            mu, log_sigma = jax.vmap(conditional)(draws[0])
            noise = jax.random.normal(key_l, mu.shape, jnp.float32)
            draws.insert(0, mu + jnp.exp(log_sigma) * noise)
        return tuple(draws)

    def dream(self, n: int, key: PRNGKeyArray) -> tuple[Float[Array, "n d"], Latents]:
        """n draws (x, h) ~ p(x, h)."""
        key_h, key_x = jax.random.split(key)
        h = self.prior(n, key_h)
        return jax.vmap(self.draw)(h[0], jax.random.split(key_x, n)), h

    def sample(self, n: int, key: PRNGKeyArray, *, mean: bool = True) -> Float[Array, "n d"]:
        """n images from the model: E[x|h_1] of ancestral draws, or x itself with `mean=False`."""
        if mean:
            return jax.vmap(self.expected)(self.prior(n, jax.random.split(key)[0])[0])
        return self.dream(n, key)[0]

    def draw(self, h1: Float[Array, " d1"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """x ~ p(x|h_1)."""
        check_holds(self, "draw")
        with computing(h1):
            return self.likelihood.distribution(self.parameters(h1)).sample(key).astype(jnp.float32)

    def expected(self, h1: Float[Array, " d1"]) -> Float[Array, " d"]:
        """E[x|h_1]."""
        check_holds(self, "expected")
        return self.likelihood.expected(self.parameters(h1))

    def reconstruct(self, x: Float[Array, " d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """E[x'|h_1] at one draw h_1 ~ q(h_1|x)."""
        return self.expected(latents_of(self, self.propose(x, 1, key))[0][0])

    def posterior_mean(
        self, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
        """E[h_l|x] under q and the squared standard error of the estimate, from which A_u is made.

        For l = 1 the encoder's mean, exactly; above, the average over k draws of h_{l−1} of the
        mean of q(h_l|h_{l−1}). Of a subclass that draws in a way of its own, the average of its
        draws.
        """
        if not holds(self, "posterior_mean"):
            return mean_of_draws(self, x, layer, k, key)
        if layer == 1:
            mu, _ = self.encoder[0](x)
            return mu, jnp.zeros_like(mu)
        below = self.propose(x, k, key)[layer - 2]
        mu, _ = jax.vmap(self.encoder[layer - 1])(below)
        return jnp.mean(mu, axis=0), jnp.var(mu, axis=0, ddof=1) / k

    def pruned(self, keep: tuple[Bool[Array, " _"], ...], fill: tuple[Array, ...]) -> "Autoencoder":
        """The model with the latent units outside `keep` taken out of p and q, and held at `fill`.

        What remains is again a latent-variable model, so its log-weights bound its own log p(x).
        """
        check_holds(self, "pruned")
        kept = [jnp.flatnonzero(mask) for mask in keep]

        def filled(network: Callable[[Array], Any], layer: int) -> PrunedInput:
            return PrunedInput(network, kept[layer], fill[layer])

        first, *above = self.encoder
        encoder: list[Conditional] = [first, *(filled(q, i) for i, q in enumerate(above))]
        decoder = [filled(p, i + 1) for i, p in enumerate(self.decoder)]
        return dataclasses.replace(
            self,
            encoder=tuple(PrunedOutput(q, kept[i]) for i, q in enumerate(encoder)),
            decoder=tuple(PrunedOutput(p, kept[i]) for i, p in enumerate(decoder)),
            observation=filled(self.observation, 0),
            latents=tuple(len(indices) for indices in kept),
        )


def prune(
    model: Autoencoder, keep: tuple[Bool[Array, " _"], ...], fill: tuple[Array, ...]
) -> Autoencoder:
    """`model.pruned`."""
    return model.pruned(keep, fill)


def latents_of(model: Autoencoder, h: Any) -> Latents:
    """h_1, …, h_L of the model's draws, each [k, d_l]; `InputError` if they are of another form."""
    latents = h.latents if hasattr(h, "latents") else h
    fits = isinstance(latents, tuple | list) and (
        [jnp.shape(part)[1:] for part in latents] == [(d,) for d in model.latents]
    )
    if not fits:
        raise InputError(
            f"The draws of {type(model).__name__} are not (h_1, …, h_L) of {model.latents} units, "
            f"so its layers cannot be told apart; have propose return such a tuple, or something "
            f"with an attribute latents that is one."
        )
    return tuple(latents)


def mean_of_draws(
    model: Autoencoder, x: Float[Array, " d"], layer: int, k: int, key: PRNGKeyArray
) -> tuple[Float[Array, " d_l"], Float[Array, " d_l"]]:
    """The average of k draws of h_l, and its squared standard error."""
    h = latents_of(model, model.propose(x, k, key))[layer - 1]
    return jnp.mean(h, axis=0), jnp.var(h, axis=0, ddof=1) / k
