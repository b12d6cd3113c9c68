"""Bounds and gradient estimators for NumPyro models and guides.

`numpyro.infer.SVI(model, guide, optimizer, ImportanceELBO(iwae, "dreg", num_particles=50))` trains
the parameters of a model (θ) and of a guide (φ).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array, PyTree
from numpyro.distributions import Delta, Distribution
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import ELBO
from numpyro.infer.util import get_importance_trace
from numpyro.primitives import Messenger
from numpyro.util import check_model_guide_match

from iwae._utils.checks import check_draws
from iwae.bounds import BoundFunction, Pair, iwae
from iwae.errors import InputError
from iwae.estimators import rules
from iwae.estimators.estimators import ESTIMATORS, Estimator, Weights, named
from iwae.estimators.surrogate import paired

Params = dict[str, PyTree]
"""Parameters, or draws, by the name of their site."""
Site = dict[str, Any]
"""A site of a NumPyro trace."""
Trace = dict[str, Site]
Program = Callable[..., object]
"""A model or a guide."""
Arguments = tuple[object, ...]
Keywords = Mapping[str, object]


class ImportanceELBO(ELBO):
    """A bound on the log-evidence with K = `num_particles`, and an estimator of its gradient.

    The bound is computed for each entry of the plates that enclose every site of the model AND of
    the guide, and summed, since the weights factorise over these plates only. A guide with a joint
    density, such as `AutoMultivariateNormal`, has one weight for all. With common plates and the
    bound `iwae` the loss equals that of NumPyro's `RenyiELBO(alpha=0)` on the same draws. The
    surrogate is

    −Σ c_i ℓ_i(θ, φ̄, h̄) − Σ b_i ℓ_i(θ̄, φ̄, h_φ) + Σ s_i ℓ_i(θ̄, φ, h̄),

    with the log-weights ℓ, bars held constant, and b, c and s of `iwae.estimators`. Plain
    reparametrisation of one bound differentiates the log-weights themselves. The others evaluate
    the guide's density at earlier draws: `InputError` for point masses with parameters, transforms
    without an inverse, and guides that draw random keys themselves. All but `rws` pass gradients
    through the draws: `InputError` for draws that are not reparametrised. Subsampled plates that do
    not enclose every site, and sites that only the model or only the guide has, also raise it.

    A point mass counts as density 1, so with one the loss is not a bound on the log-evidence.
    """

    def __init__(
        self,
        bound: BoundFunction | Pair = iwae,
        estimator: str | Estimator = "reparam",
        num_particles: int = 2,
    ) -> None:
        super().__init__(num_particles=num_particles)
        self.pair, self.estimator = paired(bound), named(estimator)
        if self.estimator.sleep:
            raise InputError(
                "The sleep phase needs draws (x, h) from the model, which NumPyro's models do not "
                "provide; use rws for the wake phase, or dreg."
            )
        check_draws(num_particles)
        two, draws = self.pair.theta is not self.pair.phi, rules.Capabilities()
        rules.validate(rules.check(self.estimator, k=num_particles, two=two, draws=draws))

    def loss(
        self,
        rng_key: Array,
        param_map: Params,
        model: Program,
        guide: Program,
        *args: object,
        **kwargs: object,
    ) -> Array:
        """−bound, with the estimator's gradient."""
        plate_key, rng_key = jax.random.split(rng_key)
        hidden = ["sample", "prng_key", "control_flow"]
        model, guide = (seed(f, plate_key, hide_types=hidden) for f in (model, guide))
        keys = jax.random.split(rng_key, self.num_particles)
        if self.estimator == ESTIMATORS["reparam"] and self.pair.theta is self.pair.phi:
            one = lambda key: _weigh(
                model, guide, param_map, args, kwargs, key, differentiable=True
            )
            log_w, scale = jax.vmap(one)(keys)
            return -scale[0] * jnp.sum(self.pair.theta(log_w))
        differentiable = self.estimator.path is not None
        draw = lambda key: _draw(guide, param_map, key, args, kwargs, differentiable=differentiable)
        h = jax.vmap(draw)(keys)

        def log_weights(theta: Params, phi: Params, h: Params) -> tuple[Array, Array]:
            def one(key: Array, h: Params) -> tuple[Array, Any]:
                fixed = substitute(substitute(guide, data=phi), data=h)
                posed = substitute(model, data=theta)
                return _weigh(posed, fixed, {}, args, kwargs, key, differentiable=False)

            log_w, scale = jax.vmap(one)(keys, h)
            return log_w, scale[0]

        still, h_still = jax.lax.stop_gradient((param_map, h))
        log_w, scale = jax.lax.stop_gradient(log_weights(still, still, h_still))
        b, c, s = _per_column(log_w, self.pair, self.estimator)
        surrogate = -jnp.sum(c * log_weights(param_map, still, h_still)[0])
        if b is not None:
            surrogate -= jnp.sum(b * log_weights(still, still, h)[0])
        if s is not None:
            surrogate += jnp.sum(s * log_weights(still, param_map, h_still)[0])
        value = -jnp.sum(self.pair.theta(log_w))
        return scale * (value + surrogate - jax.lax.stop_gradient(surrogate))


def _weigh(
    model: Program,
    guide: Program,
    params: Params,
    args: Arguments,
    kwargs: Keywords,
    key: Array,
    *,
    differentiable: bool,
) -> tuple[Array, Any]:
    """(log w of one draw for each entry of the common plates, the scale by subsampling).

    With `differentiable` a gradient has to pass through the draw.
    """
    model_key, guide_key = jax.random.split(key)
    model, guide = seed(model, model_key), seed(guide, guide_key)
    of_model, of_guide = get_importance_trace(model, guide, args, kwargs, params)
    _check_sites(of_model, of_guide)
    if differentiable:
        for name, site in _latent(of_guide).items():
            _check_path(name, site)
    check_model_guide_match(of_model, of_guide)
    common, scale = _common_plates(of_model, of_guide)
    log_p, log_q = (_log_density(of, common) for of in (of_model, of_guide))
    return (log_p - log_q) / scale, scale


def _samples(sites: Trace) -> Trace:
    return {name: site for name, site in sites.items() if site["type"] == "sample"}


def _latent(sites: Trace) -> Trace:
    return {name: site for name, site in _samples(sites).items() if not site["is_observed"]}


def _check_sites(model: Trace, guide: Trace) -> None:
    """`InputError` unless model and guide have the same latent sites."""
    posed, drawn = _latent(model), _latent(guide)
    for name in posed.keys() - drawn.keys():
        raise InputError(
            f"The model's site {name!r} is neither observed nor drawn by the guide, so the weights "
            f"would lack its density; give the guide a site {name!r}."
        )
    for name in drawn.keys() - posed.keys():
        if not drawn[name]["infer"].get("is_auxiliary"):
            raise InputError(
                f"The guide's site {name!r} is not in the model, so the weights would divide by a "
                f"density without a counterpart; remove it, or if the guide accounts for it, "
                f"mark it by infer={{'is_auxiliary': True}}."
            )


def _common_plates(model: Trace, guide: Trace) -> tuple[set[int], float]:
    """(axes of the plates that enclose every site, their full size divided by the drawn size)."""
    stacks = [set(s["cond_indep_stack"]) for of in (model, guide) for s in _samples(of).values()]
    common = set.intersection(*stacks) if stacks else set()
    scale = 1.0
    for frame in sorted(set().union(*stacks), key=lambda frame: frame.name):
        size = (model if frame.name in model else guide)[frame.name]["args"][0]
        if size > frame.size and frame not in common:
            raise InputError(
                f"The plate {frame.name!r} is subsampled, but does not enclose every site of the "
                f"model and of the guide, so the weights do not factorise over it; leave out "
                f"subsample_size, or use a guide whose sites are all in it, such as AutoNormal."
            )
        if frame in common:
            scale *= size / frame.size
    return {frame.dim for frame in common}, scale


def _log_density(sites: Trace, common: set[int]) -> Array:
    """Σ over sites of log-densities, by entry of the axes in `common`."""
    total = jnp.zeros(())
    for site in _samples(sites).values():
        log_prob = jnp.asarray(site["log_prob"])
        others = [axis for axis in range(log_prob.ndim) if axis - log_prob.ndim not in common]
        total += jnp.sum(log_prob, axis=others)
    return total


class _OwnKeys(Messenger):
    """Records whether `numpyro.prng_key` is called in its context."""

    drawn = False

    def process_message(self, msg: Site) -> None:
        self.drawn = self.drawn or msg["type"] == "prng_key"


def _draw(
    guide: Program,
    params: Params,
    key: Array,
    args: Arguments,
    kwargs: Keywords,
    *,
    differentiable: bool,
) -> Params:
    """The guide's draws by site, with the key that `_weigh` gives it.

    Point masses are left out, since they follow from the other draws. With `differentiable` a
    gradient has to pass through the draws.
    """
    _, guide_key = jax.random.split(key)
    own = _OwnKeys()
    with own:
        sites = trace(substitute(seed(guide, guide_key), data=params)).get_trace(*args, **kwargs)
    if own.drawn:
        raise InputError(
            "The guide draws a random key itself, which would differ when its density is "
            "evaluated; use the estimator reparam."
        )
    draws: Params = {}
    masses: list[str] = []
    for name, site in _latent(sites).items():
        if differentiable:
            _check_path(name, site)
        if any(isinstance(part, Delta) for part in _parts(site["fn"])):
            masses.append(name)
        else:
            _check_density(name, site)
            draws[name] = site["value"]
    if not draws:
        raise InputError(
            "The guide is a point mass, which has no density to differentiate; use the estimator "
            "reparam."
        )
    if masses:
        _check_masses(masses, guide, params, draws, guide_key, args, kwargs)
    return draws


def _check_masses(
    names: list[str],
    guide: Program,
    params: Params,
    draws: Params,
    key: Array,
    args: Arguments,
    kwargs: Keywords,
) -> None:
    """`InputError` if the value of a point mass depends on a parameter other than through draws."""

    def values(params: Params) -> list[Array]:
        fixed = substitute(substitute(seed(guide, key), data=params), data=draws)
        sites = trace(fixed).get_trace(*args, **kwargs)
        return [jnp.asarray(sites[name]["value"]) for name in names]

    program = jax.make_jaxpr(values)(params).jaxpr
    reached = set(program.invars)
    for equation in program.eqns:
        if any(isinstance(v, Var) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    for name, value in zip(names, program.outvars, strict=True):
        if isinstance(value, Var) and value in reached:
            raise InputError(
                f"The guide's site {name!r} is a point mass with parameters, which only plain "
                f"gradients reach; use the estimator reparam, or give the site a density."
            )


def _parts(distribution: Distribution | None) -> Iterator[Distribution]:
    """A distribution and its base distributions, from the outside in."""
    while distribution is not None:
        yield distribution
        distribution = getattr(distribution, "base_dist", None)


def _check_path(name: str, site: Site) -> None:
    """`InputError` if no gradient passes through the draws of a site.

    NumPyro calls mixtures reparametrised, but no gradient passes through the choice of a component.
    """
    for part in reversed(list(_parts(site["fn"]))):
        if not part.has_rsample or hasattr(part, "mixing_distribution"):
            raise InputError(
                f"The guide's site {name!r} draws from {type(part).__name__}, which is not "
                f"reparametrised, so no gradient passes through it; use the estimator rws, a "
                f"reparametrised distribution there, or numpyro.infer.TraceGraph_ELBO."
            )


def _check_density(name: str, site: Site) -> None:
    """`InputError` if the site's density is only known at its own draws, as in some flows."""
    try:
        jax.eval_shape(site["fn"].log_prob, site["value"])
    except NotImplementedError as e:
        raise InputError(
            f"The guide's site {name!r} draws through a transform without an inverse, so its "
            f"density cannot be evaluated at earlier draws; use the estimator reparam."
        ) from e


def _per_column(
    log_w: Array, pair: Pair, estimator: Estimator
) -> tuple[Array | None, Array, Array | None]:
    """(b, c, s) [K, *plates]; b or s is None if the estimator lacks it."""

    def column(log_w: Array) -> tuple[Array | None, Array, Array | None]:
        weights = Weights(log_w, pair.phi)
        b = None if estimator.path is None else estimator.path(weights)
        s = None if estimator.score is None else estimator.score(weights)
        return b, jax.grad(lambda log_w: pair.theta(log_w))(log_w), s

    columns = log_w.reshape(len(log_w), -1)
    return jax.tree.map(
        partial(jnp.reshape, shape=log_w.shape), jax.vmap(column, in_axes=1, out_axes=1)(columns)
    )
