"""Parts of a run that are objects of the user's own, in place of what its settings name.

A run directory cannot hold a function or a class. It holds the model's arrays, and says by name
which parts were the user's own; whoever resumes the run or loads it gives them again.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from iwae._utils import threefry
from iwae._utils.distributed import computing
from iwae.bounds import Bound, BoundFunction, Pair
from iwae.config.io import override
from iwae.config.schema import ModelConfig, RunConfig
from iwae.errors import InputError
from iwae.estimators.surrogate import ESTIMATORS, Estimator, paired
from iwae.models.base import ModelLike, draw_log_weights
from iwae.models.likelihoods import AbstractLikelihood


@dataclass(frozen=True, eq=False)
class OwnParts:
    """What of a run is an object of the user's own; None where its settings say it."""

    model: ModelLike | None = None
    bound: Pair | None = None
    estimator: Estimator | None = None
    likelihood: AbstractLikelihood | None = None

    @property
    def names(self) -> dict[str, str]:
        """What the run directory says of each part."""
        fields = (f.name for f in dataclasses.fields(self))
        given = {name: vars(self)[name] for name in fields}
        return {name: described(part) for name, part in given.items() if part is not None}


NONE = OwnParts()
"""A run that its settings say in full."""


@dataclass(frozen=True)
class _Unnamed:
    """The settings of the objective where a bound of one's own stands in its place."""

    objective: str = "iwae"
    encoder_objective: None = None
    m: None = None
    alpha: None = None
    beta: None = None
    order: None = None


UNNAMED = _Unnamed()


def of(
    settings: Mapping[str, object],
    *,
    model: ModelLike | None = None,
    bound: str | BoundFunction | Pair | None = None,
    estimator: str | Estimator | None = None,
    likelihood: str | AbstractLikelihood | None = None,
) -> tuple[OwnParts, dict[str, object]]:
    """The parts that are objects, and the settings with those that are names.

    Raises:
        InputError: if an object is none of its kind, or a setting says the same otherwise.
    """
    named = dict(settings)
    if isinstance(bound, str):
        if "objective" in named:
            raise InputError(
                f"objective = {named['objective']} was given with bound = {bound}, which is "
                f"another name of the same setting; leave one of the two out."
            )
        named["objective"] = bound
    if isinstance(estimator, Estimator):
        known = (name for name, other in ESTIMATORS.items() if other == estimator)
        estimator = next(known, estimator)
    if isinstance(estimator, str):
        named["estimator"] = estimator
    if isinstance(likelihood, str):
        named["likelihood"] = likelihood
    own = OwnParts(
        model=None if model is None else _model(model, named),
        bound=None if bound is None or isinstance(bound, str) else _bound(bound, named),
        estimator=None if isinstance(estimator, str | None) else _estimator(estimator),
        likelihood=None if isinstance(likelihood, str | None) else _likelihood(likelihood, model),
    )
    if own.likelihood is not None:
        named["likelihood"] = described(own.likelihood)
    if own.bound is not None:
        named |= vars(UNNAMED)
    if own.estimator is not None:
        named["estimator"] = "reparam"
    return own, named


def _model(model: object, settings: Mapping[str, object]) -> ModelLike:
    """A model with its arrays on the device."""
    if not isinstance(model, ModelLike):
        raise InputError(
            f"A {type(model).__name__} was given as the model, which has the methods propose, "
            f"log_joint and log_proposal; write them, or give iwae.models.FromFunctions of three "
            f"functions."
        )
    shaping = {f.name for f in dataclasses.fields(ModelConfig)} & settings.keys()
    if shaping:
        name = min(shaping)
        raise InputError(
            f"{name} = {settings[name]} was given with a model of your own, whose shape is its "
            f"own; leave {name} out."
        )
    with computing(model):
        on_device = lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a
        whole: ModelLike = jax.tree.map(on_device, model)
    if not jax.tree.leaves(eqx.filter(whole, _is_trained)):
        raise InputError(
            f"The model that was given, a {type(model).__name__}, has no arrays of floating point "
            f"numbers to train; derive its class from equinox.Module, with its parameters as "
            f"fields."
        )
    return whole


def _is_trained(leaf: object) -> bool:
    """Whether a leaf is an array of parameters, or stands for one."""
    shaped = isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return shaped or eqx.is_inexact_array(leaf)


def _bound(bound: object, settings: Mapping[str, object]) -> Pair:
    if not callable(bound) and not isinstance(bound, Pair):
        raise InputError(
            f"A {type(bound).__name__} was given as the bound, which is a function from K "
            f"log-weights to a number, or its name; give one, such as iwae.bounds.iwae."
        )
    for name in vars(UNNAMED):
        if settings.get(name) is not None:
            raise InputError(
                f"{name} = {settings[name]} was given with a bound of your own, in whose place it "
                f"would stand; leave one of the two out."
            )
    return paired(bound)


def _estimator(estimator: object) -> Estimator:
    if not isinstance(estimator, Estimator):
        raise InputError(
            f"A {type(estimator).__name__} was given as the estimator, which is an "
            f"iwae.estimators.Estimator, or the name of one; give one."
        )
    return estimator


def _likelihood(likelihood: object, model: ModelLike | None) -> AbstractLikelihood:
    if not isinstance(likelihood, AbstractLikelihood):
        raise InputError(
            f"A {type(likelihood).__name__} was given as the likelihood, which is an object of a "
            f"class derived from iwae.models.likelihoods.AbstractLikelihood, or its name; give one."
        )
    if model is not None:
        raise InputError(
            "A likelihood was given with a model of your own, which has its own; leave one out."
        )
    return likelihood


def check_shapes(own: OwnParts, d: int, k: int) -> None:
    """`InputError` unless own parts have values of the right shapes; nothing is computed.

    Args:
        own: the parts.
        d: values of an example.
        k: draws.
    """
    log_w = jax.ShapeDtypeStruct((k,), jnp.float32)
    for bound in own.bound or ():
        shape = _shape(jax.eval_shape(bound, log_w))
        if shape != ():
            raise InputError(
                f"The bound {described(bound)} makes {shape} of K = {k} log-weights, but it is to "
                f"make a single number of them; sum or average over the first axis."
            )
    if own.model is not None:
        given = (own.model, jax.ShapeDtypeStruct((d,), jnp.float32), threefry.key(0))
        weigh = lambda model, x, key: draw_log_weights(model, x, k, key)
        shape = _shape(eqx.filter_eval_shape(weigh, *given))
        if shape != (k,):
            raise InputError(
                f"The log-weights of {described(own.model)} have the shape {shape} for K = {k} "
                f"draws of one example of {d} values, but there is one for each draw; have "
                f"log_joint and log_proposal return [K]."
            )


def _shape(value: object) -> tuple[int, ...] | str:
    """The shape of an array that is not computed, or what there is instead."""
    return value.shape if isinstance(value, jax.ShapeDtypeStruct) else type(value).__name__


def check_same(
    path: object, before: Mapping[str, str], now: Mapping[str, str], *, loading: bool = False
) -> None:
    """`InputError` unless a run is loaded or gone on with by the parts that it was begun with."""
    given, otherwise = "{}=…", ", or another out"
    if loading:
        given, otherwise = "iwae.load(…, {}=…)", ""
    for part in (f.name for f in dataclasses.fields(OwnParts)):
        article = "an" if part == "estimator" else "a"
        if part in before and part not in now:
            raise InputError(
                f"{path} was trained with {article} {part} of its own, {before[part]}, which it "
                f"cannot hold; give the same by {given.format(part)}{otherwise}."
            )
        if part in now and part not in before:
            raise InputError(
                f"{path} was trained with the {part} that its settings name, not {now[part]}; "
                f"leave {part} out{otherwise.replace('or', 'or give')}."
            )
        if before.get(part) != now.get(part):
            raise InputError(
                f"{path} was trained with the {part} {before[part]}, not {now[part]}; give the "
                f"same{otherwise}."
            )


def observed_as(config: RunConfig, own: OwnParts) -> ModelConfig:
    """The settings of the model by which the data reach it.

    An own likelihood of 0 and 1 alone sees intensities binarised, as Bernoulli does.
    """
    if own.likelihood is None or not _is_binary(own.likelihood):
        return config.model
    return override(config, likelihood="bernoulli").model


def _is_binary(likelihood: AbstractLikelihood) -> bool:
    parameters = jnp.zeros((likelihood.n_parameters, 1), jnp.float32)
    return likelihood.distribution(parameters).support is constraints.boolean


def described(part: object) -> str:
    """A function, or an object by its class and what shapes it, on one line.

    `mine.bound`, `iwae.bounds.vr_iwae(alpha=0.5)`, `mine.Counts(levels=5)`. Of arrays nothing is
    said.
    """
    if isinstance(part, Pair):
        names = dict.fromkeys(map(described, part))
        return " / ".join(names)
    if isinstance(part, Bound):
        shaping = _settings(part.settings)
        return _name(part.value) + (f"({', '.join(shaping)})" if shaping else "")
    if isinstance(part, partial | eqx.Partial):
        shaping = [*map(_value, part.args), *_settings(part.keywords)]
        return f"{described(part.func)}({', '.join(shaping)})"
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: vars(part)[f.name] for f in dataclasses.fields(part)}
        said = {n: v for n, v in fields.items() if _is_plain(v)}
        if isinstance(part, Estimator):
            said = {n: v for n, v in said.items() if v != vars(PLAIN)[n]}
            return f"iwae.estimators.Estimator({', '.join(_settings(said))})"
        return f"{_name(type(part))}({', '.join(_settings(said))})"
    return _name(part if callable(part) and _is_named(part) else type(part))


PLAIN = Estimator()
"""What an estimator is that says nothing."""


def _settings(given: Mapping[str, object]) -> list[str]:
    return [f"{name}={_value(value)}" for name, value in given.items()]


def _value(value: object) -> str:
    return described(value) if callable(value) else " ".join(repr(value).split())


def _is_plain(value: object) -> bool:
    """Whether a value says something of what an object computes, on its own."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float) or (callable(value) and _is_named(value))


def _is_named(value: Callable[..., object]) -> bool:
    return hasattr(value, "__qualname__") and hasattr(value, "__module__")


def _name(of: Callable[..., object]) -> str:
    return f"{of.__module__}.{of.__qualname__}"


def label(config: RunConfig, own: Mapping[str, str]) -> str:
    """What was trained, in words: `RunConfig.label`, with the parts of one's own by their names."""
    objective = override(config, estimator="reparam").objective.label
    maximised = own.get("bound", objective)
    named = config.objective.estimator
    how = own.get("estimator", "" if named == "reparam" else named)
    if not own.keys() & {"bound", "estimator"}:
        said = config.label
    else:
        said = f"{maximised} by {how}" if how else maximised
    return f"{said}, {own['model']}" if "model" in own else said
