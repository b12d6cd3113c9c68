"""From a configuration to a model: which parts it has, and where its parameters start."""

import dataclasses
from collections.abc import Collection

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from iwae.config.schema import ModelConfig
from iwae.models.autoencoder import Autoencoder
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.hierarchical import HierarchicalAutoencoder, hierarchical
from iwae.models.likelihoods import AbstractLikelihood, Numpyro, likelihood
from iwae.models.networks import MLP, Gaussian, Linear, Readout, Standardize, glorot_linear


def as_kept(model: Autoencoder, leaves: Collection[str]) -> Autoencoder:
    """The model as a file has it that holds these leaves, by their tree paths.

    In files of early versions a decoder gives the parameters of numpyro's families on a part of
    the line as they are, without `Numpyro.start` and `units`.
    """
    own = model.likelihood
    if not isinstance(own, Numpyro) or own.start is None:
        return model
    if any(".likelihood.start" in leaf for leaf in leaves):
        return model
    return eqx.tree_at(lambda m: m.likelihood, model, Numpyro(own.family))


def build(
    config: ModelConfig,
    *,
    kind: str,
    mean: ArrayLike,
    spread: ArrayLike,
    key: PRNGKeyArray,
    k: int = 1,
    own: AbstractLikelihood | None = None,
) -> Autoencoder:
    """The autoencoder that `config` describes, for data of a kind with these moments [d].

    Weights and biases start as `initialization` says, by default Glorot uniform and zero, with the
    output bias of the likelihood. Real values are standardised in front of the encoder. Uncertain
    weights start from these as their means. A hierarchical proposal has `k` heads. An `own`
    likelihood stands in the place of the one that is named.
    """
    mean, spread = jnp.asarray(mean, jnp.float32), jnp.asarray(spread, jnp.float32)
    if own is None:
        own = likelihood(config.likelihood, kind=kind, mean=mean, spread=spread)
    observed = own
    bias = observed.initial_bias(mean, spread)
    spread = jnp.where(spread > 0, spread, 1.0)
    hidden, latents = config.widths
    parts = 2 * config.layers + 1 + (config.proposal != "independent")
    keys = iter(jax.random.split(key, parts))
    inputs = (mean.shape[0], *latents[:-1])
    encoder = [
        gaussian(n, widths, out, key=next(keys))
        for n, widths, out in zip(inputs, hidden, latents, strict=True)
    ]
    if kind == "real":
        whole = Standardize(encoder[0].features, mean, spread)
        encoder[0] = eqx.tree_at(lambda q: q.features, encoder[0], whole)
    decoder = [
        gaussian(above, widths[::-1], below, key=next(keys))
        for above, widths, below in zip(latents[1:], hidden[1:], latents[:-1], strict=True)
    ]
    plain = Autoencoder(
        encoder=tuple(encoder),
        decoder=tuple(decoder),
        observation=_output(latents[0], hidden[0][::-1], bias, key=next(keys)),
        likelihood=observed,
        latents=latents,
    )
    if config.initialization == "fan-in":
        plain = _by_fan_in(plain, key)
    if config.proposal != "independent":
        return _hierarchical(plain, encoder[0], config, k, key=next(keys))
    if config.uncertain_weights == "none":
        return plain
    return UncertainAutoencoder.around(
        plain, which=config.uncertain_weights, sigma=config.weight_sigma
    )


def _by_fan_in(model: Autoencoder, key: PRNGKeyArray) -> Autoencoder:
    """Every linear map with weights U[±1/√n_in] and zero biases."""
    is_linear = lambda part: isinstance(part, Linear)
    parts, structure = jax.tree.flatten(model, is_leaf=is_linear)
    keys = jax.random.split(key, len(parts))
    drawn = [
        _fan_in(part, key) if is_linear(part) else part
        for part, key in zip(parts, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _fan_in(linear: Linear, key: PRNGKeyArray) -> Linear:
    edge = linear.weight.shape[1] ** -0.5
    weight = jax.random.uniform(key, linear.weight.shape, jnp.float32, -edge, edge)
    return Linear(weight, jnp.zeros_like(linear.bias), linear.precision)


def gaussian(n_in: int, widths: tuple[int, ...], n_out: int, *, key: PRNGKeyArray) -> Gaussian:
    """tanh layers of these widths, topped by a Gaussian of n_out units."""
    key_features, key_heads = jax.random.split(key)
    features = MLP(n_in, widths, key=key_features)
    return Gaussian(features, (n_in, *widths)[-1], n_out, key=key_heads)


def _hierarchical(
    plain: Autoencoder, encoder: Gaussian, config: ModelConfig, k: int, *, key: PRNGKeyArray
) -> HierarchicalAutoencoder:
    """The model with heads on the features of its encoder in place of its moments."""
    (latents,) = plain.latents
    proposal = hierarchical(
        encoder.features,
        encoder.mu.weight.shape[1],
        latents,
        n_0=config.proposal_latents,
        width=config.proposal_width,
        block=k,
        shared=config.proposal == "hierarchical",
        heuristic=config.proposal_weights,
        key=key,
    )
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    return HierarchicalAutoencoder(**fields | {"encoder": (proposal,)})


def _output(
    n_in: int, widths: tuple[int, ...], bias: Float[Array, "p d"], *, key: PRNGKeyArray
) -> Readout:
    key_features, key_last = jax.random.split(key)
    last = glorot_linear((n_in, *widths)[-1], bias.size, key=key_last)
    last = eqx.tree_at(lambda linear: linear.bias, last, bias.reshape(-1))
    return Readout(MLP(n_in, widths, key=key_features), last)
