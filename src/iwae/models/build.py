"""From a configuration to a model with its initial parameters."""

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from iwae.config.schema import ModelConfig
from iwae.errors import InputError
from iwae.models.autoencoder import Autoencoder
from iwae.models.base import AbstractAutoencoder
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.encoding import MaskedInput, TableInput
from iwae.models.hierarchical import HierarchicalAutoencoder, hierarchical
from iwae.models.ladder import as_ladder
from iwae.models.likelihoods import AbstractLikelihood, Numpyro, likelihood
from iwae.models.likelihoods.columns import Columns
from iwae.models.likelihoods.summary import Summary
from iwae.models.linear_paths import POSTERIOR, beside, beside_output, started
from iwae.models.missing import ObservedPart, not_at_random
from iwae.models.networks import MLP, Gaussian, Linear, Readout, Standardize, glorot_linear
from iwae.models.priors import Mixture

PRIOR = 7310
"""Folded into the key of the initial parameters for those of the prior."""

Built = TypeVar("Built", bound=AbstractAutoencoder)


def as_kept(model: Built, leaves: Collection[str]) -> Built:
    """The model in the form of a file with these leaves, given by tree paths.

    In files of early versions the decoder of numpyro's families on part of the real line outputs
    their parameters directly, without `Numpyro.start` and `units`.
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
    table: Summary | None = None,
    missing: bool = False,
) -> AbstractAutoencoder:
    """Build the untrained autoencoder of `config`.

    `initialization` sets the initial weights and biases, by default Glorot uniform and zero, with
    the output bias of the likelihood. Real values are standardised in front of the encoder, and
    rows of a table go through `TableInput`. Uncertain weights have these values as initial means.

    Args:
        config: layers, widths, likelihood, proposal.
        kind: "binary", "real" or "table", the kind of the model's input.
        mean: the mean of the training examples, [d].
        spread: their standard deviations, [d].
        key: the key of the initial parameters.
        k: the number of heads of a hierarchical proposal.
        own: a likelihood instead of the one that `config` names.
        table: the summary of a table's training rows; needed for the kind "table" only.
        missing: whether training examples have missing values, given as NaN. The encoder then sees
            which are missing, and the likelihood is that of the others.

    Returns:
        An `Autoencoder`, `LadderAutoencoder`, `UncertainAutoencoder` or `HierarchicalAutoencoder`.

    Raises:
        InputError: for an unknown likelihood, or one that does not fit this kind of values; for a
            table without its summary; for noise or a missingness that needs a table's columns.

    Example:
        >>> model = build(
        ...     ModelConfig(hidden=((8,),), latents=(2,)),
        ...     kind="binary",
        ...     mean=np.full(5, 0.4),
        ...     spread=np.ones(5),
        ...     key=jax.random.key(0),
        ... )
    """
    mean, spread = jnp.asarray(mean, jnp.float32), jnp.asarray(spread, jnp.float32)
    parts = 2 * config.layers + 1 + (config.proposal != "independent")
    keys = iter(jax.random.split(key, parts))
    _check_table(config, kind, own, table)
    observed = own
    if observed is None and table is not None and config.likelihood == "auto":
        observed = Columns.of(table, config.noise, config.noise_rank)
    elif observed is None:
        of = "real" if kind == "table" else kind
        observed = likelihood(config.likelihood, kind=of, mean=mean, spread=spread)
    if missing and not isinstance(observed, Columns):
        observed = ObservedPart(observed, mean)
    entrance = _entrance(kind, mean, spread, table, missing=missing)
    plain, first = _plain(config, observed, entrance, mean, spread, keys)
    if config.networks == "tanh+linear" and table is not None:
        plain = started(plain, table, entrance.width)
    if config.prior == "mixture":
        key_prior = jax.random.fold_in(key, PRIOR)
        top = Mixture.of(config.prior_components, plain.latents[-1], key=key_prior)
        plain = eqx.tree_at(lambda m: m.top, plain, top, is_leaf=lambda part: part is None)
    if config.initialization == "fan-in":
        plain = _by_fan_in(plain, key)
    if config.missingness != "at-random" and table is not None:
        plain = not_at_random(plain, config.missingness, table)
    if config.proposal != "independent":
        return _hierarchical(plain, first, config, k, key=next(keys))
    model = as_ladder(plain) if config.inference == "ladder" else plain
    if config.uncertain_weights == "none":
        return model
    return UncertainAutoencoder.around(
        model, which=config.uncertain_weights, sigma=config.weight_sigma
    )


def _check_table(
    config: ModelConfig, kind: str, own: AbstractLikelihood | None, table: Summary | None
) -> None:
    """`InputError` for settings that need the columns of a table, or a table without them."""
    if kind == "table" and table is None:
        raise InputError(
            "A model of a table was requested without the summary of its training rows; give "
            "build(…, table=summarize(schema, rows))."
        )
    if kind == "table" and own is None and config.likelihood == "auto":
        return
    for name, plain in (("noise", "independent"), ("missingness", "at-random")):
        value = getattr(config, name)
        if value != plain:
            raise InputError(
                f"{name} = {value} was given, but it is for the columns of a table under "
                f"likelihood = auto; give --values table, and leave out --likelihood."
            )


class Entrance(NamedTuple):
    """What stands in front of the encoder's features, and the number of its outputs."""

    width: int
    around: Callable[[Callable[[Array], Array]], Callable[[Array], Array]]


def _entrance(
    kind: str,
    mean: Float[Array, " d"],
    spread: Float[Array, " d"],
    table: Summary | None,
    *,
    missing: bool,
) -> Entrance:
    d = mean.shape[0]
    spread = jnp.where(spread > 0, spread, 1.0)
    if table is not None:
        width = TableInput.width(table.forms, mask=missing)
        return Entrance(width, lambda network: TableInput.of(table, network, mask=missing))
    if missing:
        unit = spread if kind == "real" else jnp.ones_like(spread)
        return Entrance(2 * d, lambda network: MaskedInput(network, mean, unit))
    if kind == "real":
        return Entrance(d, lambda network: Standardize(network, mean, spread))
    return Entrance(d, lambda network: network)


def _plain(
    config: ModelConfig,
    observed: AbstractLikelihood,
    entrance: Entrance,
    mean: Float[Array, " d"],
    spread: Float[Array, " d"],
    keys: Iterator[PRNGKeyArray],
) -> tuple[Autoencoder, Gaussian]:
    """The autoencoder with independent draws and fixed weights, and the Gaussian that reads x.

    For a ladder the encoder's Gaussians read the features of those below them (`as_ladder`).
    """
    bias = observed.initial_bias(mean, spread)
    hidden, latents = config.widths
    inputs = (entrance.width, *latents[:-1])
    if config.inference == "ladder":
        inputs = _path(entrance.width, hidden)
    encoder = [
        gaussian(n, widths, out, key=next(keys))
        for n, widths, out in zip(inputs, hidden, latents, strict=True)
    ]
    linear = config.networks == "tanh+linear"
    if linear:
        encoder = [beside(q, n, log_sigma=POSTERIOR) for q, n in zip(encoder, inputs, strict=True)]
    features = encoder[0].features
    whole = entrance.around(features)
    if whole is not features:
        encoder[0] = eqx.tree_at(lambda q: q.features, encoder[0], whole)
    decoder = [
        gaussian(above, widths[::-1], below, key=next(keys))
        for above, widths, below in zip(latents[1:], hidden[1:], latents[:-1], strict=True)
    ]
    output = _output(latents[0], hidden[0][::-1], bias, key=next(keys))
    if linear:
        decoder = [beside(p, n) for p, n in zip(decoder, latents[1:], strict=True)]
        output = beside_output(output, latents[0])
    plain = Autoencoder(
        encoder=tuple(encoder),
        decoder=tuple(decoder),
        observation=output,
        likelihood=observed,
        latents=latents,
    )
    return plain, encoder[0]


def _path(inputs: int, hidden: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The number of values that each layer's features are a function of, on a path upwards."""
    before = [(inputs, *itertools.chain(*hidden[:layer])) for layer in range(len(hidden))]
    return tuple(widths[-1] for widths in before)


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
    """tanh layers of these widths, followed by a Gaussian of n_out units."""
    key_features, key_heads = jax.random.split(key)
    features = MLP(n_in, widths, key=key_features)
    return Gaussian(features, (n_in, *widths)[-1], n_out, key=key_heads)


def _hierarchical(
    plain: Autoencoder, encoder: Gaussian, config: ModelConfig, k: int, *, key: PRNGKeyArray
) -> HierarchicalAutoencoder:
    """The model with heads on the encoder's features instead of its moments."""
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
    return HierarchicalAutoencoder(
        encoder=(proposal,),
        decoder=(),
        observation=plain.observation,
        likelihood=plain.likelihood,
        latents=plain.latents,
    )


def _output(
    n_in: int, widths: tuple[int, ...], bias: Float[Array, "p d"], *, key: PRNGKeyArray
) -> Readout:
    key_features, key_last = jax.random.split(key)
    last = glorot_linear((n_in, *widths)[-1], bias.size, key=key_last)
    last = eqx.tree_at(lambda linear: linear.bias, last, bias.reshape(-1))
    return Readout(MLP(n_in, widths, key=key_features), last)
