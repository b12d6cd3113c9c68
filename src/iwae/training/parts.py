"""The user's own model, bound, estimator, likelihood or optimiser, as objects, not settings.

A run directory cannot store a function or a class. It stores the model's arrays and the names of
the user's parts, which have to be given again when the run is resumed or loaded.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro.distributions import constraints

from iwae._utils import threefry
from iwae._utils.distributed import computing
from iwae.bounds import Bound, BoundFunction, Pair
from iwae.config.io import override
from iwae.config.schema import ModelConfig, RunConfig, Stage, TrainingConfig
from iwae.errors import InputError
from iwae.estimators.surrogate import ESTIMATORS, Estimator, paired
from iwae.models.base import ModelLike, draw
from iwae.models.likelihoods import AbstractLikelihood
from iwae.training.gradient_step import OptimizerOf


@dataclass(frozen=True, eq=False)
class OwnParts:
    """The parts of a run that are the user's own objects; None for those its settings name."""

    model: ModelLike | None = None
    bound: Pair | None = None
    estimator: Estimator | None = None
    likelihood: AbstractLikelihood | None = None
    optimizer: OptimizerOf | None = None

    @property
    def names(self) -> dict[str, str]:
        """The names of the parts, as the run directory stores them."""
        fields = (f.name for f in dataclasses.fields(self))
        given = {name: vars(self)[name] for name in fields}
        return {name: described(part) for name, part in given.items() if part is not None}


NONE = OwnParts()
"""A run that its settings describe fully."""


@dataclass(frozen=True)
class _Unnamed:
    """The settings of the objective when the user's own bound replaces it."""

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
    optimizer: str | OptimizerOf | None = None,
) -> tuple[OwnParts, dict[str, object]]:
    """Split the parts: objects go to `OwnParts`, names to the settings.

    Raises:
        InputError: if an object has the wrong type, or a setting contradicts a part.
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
    if isinstance(optimizer, str):
        named["optimizer"] = optimizer
    own = OwnParts(
        model=None if model is None else _model(model, named),
        bound=None if bound is None or isinstance(bound, str) else _bound(bound, named),
        estimator=None if isinstance(estimator, str | None) else _estimator(estimator),
        likelihood=None if isinstance(likelihood, str | None) else _likelihood(likelihood, model),
        optimizer=None if isinstance(optimizer, str | None) else _optimizer(optimizer, named),
    )
    if own.likelihood is not None:
        named["likelihood"] = described(own.likelihood)
    if own.bound is not None:
        named |= vars(UNNAMED)
    if own.estimator is not None:
        named["estimator"] = "reparam"
    if own.optimizer is not None:
        named |= OF_OPTIMIZERS
    return own, named


def _model(model: object, settings: Mapping[str, object]) -> ModelLike:
    """A validated model with its arrays on the device."""
    if not isinstance(model, ModelLike):
        raise InputError(
            f"A {type(model).__name__} was given as the model, which must have the methods "
            f"propose, log_joint and log_proposal; write them, or give iwae.models.FromFunctions "
            f"of three functions."
        )
    shaping = {f.name for f in dataclasses.fields(ModelConfig)} & settings.keys()
    if shaping:
        name = min(shaping)
        raise InputError(
            f"{name} = {settings[name]} was given with a model of your own, which it cannot "
            f"change; leave {name} out."
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
    """Whether a leaf is an array of parameters, or the shape of one."""
    shaped = isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return shaped or eqx.is_inexact_array(leaf)


def _bound(bound: object, settings: Mapping[str, object]) -> Pair:
    if not callable(bound) and not isinstance(bound, Pair):
        raise InputError(
            f"A {type(bound).__name__} was given as the bound, which must be a function from K "
            f"log-weights to a number, or the name of an objective; give one, such as "
            f"iwae.bounds.iwae."
        )
    for name in vars(UNNAMED):
        if settings.get(name) is not None:
            raise InputError(
                f"{name} = {settings[name]} was given with a bound of your own, which replaces the "
                f"objective; leave one of the two out."
            )
    return paired(bound)


def _estimator(estimator: object) -> Estimator:
    if not isinstance(estimator, Estimator):
        raise InputError(
            f"A {type(estimator).__name__} was given as the estimator, which must be an "
            f"iwae.estimators.Estimator, or the name of one; give one."
        )
    return estimator


def _likelihood(likelihood: object, model: ModelLike | None) -> AbstractLikelihood:
    if not isinstance(likelihood, AbstractLikelihood):
        raise InputError(
            f"A {type(likelihood).__name__} was given as the likelihood, which must be an instance "
            f"of iwae.models.likelihoods.AbstractLikelihood, or the name of a likelihood; give one."
        )
    if model is not None:
        raise InputError(
            "A likelihood was given with a model of your own, which defines its own likelihood; "
            "leave one of the two out."
        )
    return likelihood


def _optimizer(optimizer: object, settings: Mapping[str, object]) -> OptimizerOf:
    """A function that makes an optimiser, which `check_optimizer` tries."""
    if isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise InputError(
            f"A {type(optimizer).__name__} was given as the optimizer, which must be a function "
            f"from a schedule of the learning rate to an optax optimiser, or the name of one; give "
            f"one, such as optax.lion, or functools.partial of it with settings."
        )
    for name, value in OF_OPTIMIZERS.items():
        if settings.get(name, value) != value:
            raise InputError(
                f"{name} = {settings[name]} was given with an optimizer of your own, which has its "
                f"own settings; leave it out."
            )
    return optimizer


OF_OPTIMIZERS: Mapping[str, object] = {
    f.name: f.default
    for f in dataclasses.fields(TrainingConfig)
    if f.name in ("optimizer", "weight_decay") or f.name.startswith(("adam_", "soap_"))
}
"""Settings of the optimisers that have names, with their defaults."""


def check_optimizer(optimizer: OptimizerOf, params: PyTree) -> None:
    """`InputError` unless the optimiser can take steps from these parameters, and its state can be
    kept in a checkpoint; nothing is computed."""

    def step(params: PyTree, rate: Array) -> tuple[PyTree, PyTree]:
        made = optax.with_extra_args_support(optimizer(lambda _: rate))
        before = made.init(params)
        return before, made.update(params, before, params, value=rate)[1]

    try:
        before, after = jax.eval_shape(step, params, jnp.float32(1e-3))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"The optimizer {described(optimizer)} cannot take a step "
            f"({' '.join(str(error).split())}); give a function from a schedule of the learning "
            f"rate to an optax optimiser whose update needs no more than gradients, parameters and "
            f"the loss."
        ) from error
    kinds = [jax.tree.map(lambda a: (a.shape, a.dtype), state) for state in (before, after)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"The state of the optimizer {described(optimizer)} has other arrays after a step than "
            f"before; let its update return the shapes and types of its init."
        )
    if any(jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in jax.tree.leaves(before)):
        raise InputError(
            f"The state of the optimizer {described(optimizer)} has a key of random numbers, which "
            f"a checkpoint cannot hold; let it keep jax.random.key_data of it."
        )


def check_stage(own: OwnParts, stage: Stage) -> None:
    """`InputError` if a stage names what a part of the user's own replaces."""
    replaced = [*vars(UNNAMED)] if own.bound is not None else []
    replaced += ["estimator"] if own.estimator is not None else []
    for name, value in stage.given.items():
        if name in replaced:
            raise InputError(
                f"{name} = {value} was given, but the run has a bound or an estimator of your own, "
                f"which replaces it; leave one of the two out."
            )


def check_settings(own: OwnParts, config: RunConfig) -> None:
    """`InputError` for settings of the training that a model of the user's own does not take."""
    alpha = config.training.weight_alpha
    if own.model is not None and alpha is not None:
        raise InputError(
            f"weight_alpha = {alpha} was given with a model of your own, but it is for the models "
            f"that uncertain_weights makes; leave one of the two out."
        )


def check_shapes(own: OwnParts, d: int, k: int) -> None:
    """`InputError` unless the parts return arrays of the right shapes; nothing is computed.

    Args:
        own: the parts.
        d: number of values of an example.
        k: number of importance samples K.
    """
    log_w = jax.ShapeDtypeStruct((k,), jnp.float32)
    for bound in own.bound or ():
        shape = _shape(jax.eval_shape(bound, log_w))
        if shape != ():
            raise InputError(
                f"The bound {described(bound)} returns {shape} for K = {k} log-weights, but it "
                f"must return a single number; sum or average over the first axis."
            )
    if own.model is not None:
        given = (own.model, jax.ShapeDtypeStruct((d,), jnp.float32), threefry.key(0))
        for method, shape in _shapes_of_densities(*given, k).items():
            if shape != (k,):
                raise InputError(
                    f"{method} of {described(own.model)} returns the shape {shape} for K = {k} "
                    f"importance samples of one example of {d} values, but there must be one "
                    f"number for each sample; have log_joint and log_proposal return [K]."
                )


def _shapes_of_densities(
    model: ModelLike, x: jax.ShapeDtypeStruct, key: PRNGKeyArray, k: int
) -> dict[str, tuple[int, ...] | str]:
    """What each density of a model returns: a scalar would broadcast into their difference."""

    def densities(model: ModelLike, x: Array, key: PRNGKeyArray) -> dict[str, Array]:
        h, log_q = draw(model, x, k, key)
        joint, proposal = model.log_joint(x, h), model.log_proposal(x, h)
        return {"log_joint": joint, "log_proposal": proposal, "propose_and_log_prob": log_q}

    found = eqx.filter_eval_shape(densities, model, x, key)
    return {method: _shape(value) for method, value in found.items()}


def _shape(value: object) -> tuple[int, ...] | str:
    """The shape of an abstract array, or the name of another type."""
    return value.shape if isinstance(value, jax.ShapeDtypeStruct) else type(value).__name__


def check_same(
    path: object, before: Mapping[str, str], now: Mapping[str, str], *, loading: bool = False
) -> None:
    """`InputError` unless a run is loaded or resumed with the parts it was started with."""
    given, otherwise = "{}=…", ", or another out"
    if loading:
        given, otherwise = "iwae.load(…, {}=…)", ""
    for part in (f.name for f in dataclasses.fields(OwnParts)):
        article = "an" if part in ("estimator", "optimizer") else "a"
        if part in before and part not in now:
            raise InputError(
                f"{path} was trained with {article} {part} of your own, {before[part]}, which its "
                f"files cannot store; give it again as {given.format(part)}{otherwise}."
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
    """The model settings that determine how the data are observed.

    A likelihood object with support {0, 1} observes binarised intensities, as Bernoulli does.
    """
    if own.likelihood is None or not _is_binary(own.likelihood):
        return config.model
    return override(config, likelihood="bernoulli").model


def _is_binary(likelihood: AbstractLikelihood) -> bool:
    parameters = jnp.zeros((likelihood.n_parameters, 1), jnp.float32)
    return likelihood.distribution(parameters).support is constraints.boolean


def described(part: object) -> str:
    """The name of a function, or of an object's class with its plain fields, on one line.

    `mine.bound`, `iwae.bounds.vr_iwae(alpha=0.5)`, `mine.Counts(levels=5)`. Arrays are left out.
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
"""The estimator with default fields, which `described` leaves out."""


def _settings(given: Mapping[str, object]) -> list[str]:
    return [f"{name}={_value(value)}" for name, value in given.items()]


def _value(value: object) -> str:
    return described(value) if callable(value) else " ".join(repr(value).split())


def _is_plain(value: object) -> bool:
    """Whether a value is a number, string or named function, or a tuple of these."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float) or (callable(value) and _is_named(value))


def _is_named(value: Callable[..., object]) -> bool:
    return hasattr(value, "__qualname__") and hasattr(value, "__module__")


def _name(of: Callable[..., object]) -> str:
    """Where a function or class is defined.

    Of a function that its name does not tell from others, as a lambda or one made by another
    function, also a digest of its code and of the plain values that it was made with.
    """
    name = f"{_module(of)}.{of.__qualname__}"
    shared = "<" in of.__qualname__ or of.__module__ == "__main__"
    if not isinstance(of, FunctionType) or not shared:
        return name
    made_with = [*(of.__defaults__ or ()), *(of.__kwdefaults__ or {}).values(), *_enclosed(of)]
    content = (_content(of.__code__), [_stated(value) for value in made_with])
    return f"{name}#{hashlib.sha256(repr(content).encode()).hexdigest()[:8]}"


def _module(of: Callable[..., object]) -> str:
    """The module of a function; of optax's the public one, optax or optax.contrib."""
    path = of.__module__.split(".")
    public = ".".join(itertools.takewhile(lambda name: not name.startswith("_"), path))
    own = path[0] == "optax" and getattr(sys.modules.get(public), of.__qualname__, None) is of
    return public if own else of.__module__


def _content(code: CodeType) -> tuple[object, ...]:
    """What a function does, wherever it stands in its file."""
    constants = [_content(c) if isinstance(c, CodeType) else _stated(c) for c in code.co_consts]
    return (code.co_code, code.co_names, constants)


def _enclosed(of: FunctionType) -> Iterator[object]:
    """Values that a function has from around it, but for those that are not there yet."""
    for cell in of.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def _stated(value: object) -> str:
    """A plain value, or the name of a function; of anything else its type."""
    if callable(value) and _is_named(value):
        named: Callable[..., object] = value
        return f"{named.__module__}.{named.__qualname__}"
    return repr(value) if _is_plain(value) else type(value).__name__


def label(config: RunConfig, own: Mapping[str, str]) -> str:
    """A name for the trained model: `RunConfig.label` with the names of the user's own parts."""
    objective = override(config, estimator="reparam").objective.label
    maximised = own.get("bound", objective)
    named = config.objective.estimator
    how = own.get("estimator", "" if named == "reparam" else named)
    if not own.keys() & {"bound", "estimator"}:
        said = config.label
    else:
        said = f"{maximised} by {how}" if how else maximised
    return f"{said}, {own['model']}" if "model" in own else said
