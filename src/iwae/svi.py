"""NumPyro models and guides under any bound and estimator of this package.

`numpyro.infer.SVI(model, guide, optimizer, ImportanceELBO(iwae, "dreg", num_particles=50))` trains
the parameters of a model (θ) and of a reparametrised guide (φ).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array
from numpyro.distributions import Delta
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import RenyiELBO
from numpyro.primitives import Messenger

from iwae.bounds import Bound, Pair, iwae
from iwae.errors import InputError
from iwae.gradients import ESTIMATORS, Estimator, Weights, check, named, paired

Params = dict[str, Any]


class ImportanceELBO(RenyiELBO):
    """A bound on the log-evidence with K = `num_particles`, and an estimator of its gradient.

    As in NumPyro's `RenyiELBO`, whose log-weights and plates these are, the bound is taken for each
    entry of the plates that enclose every site, and summed. With the bound `iwae` the loss equals
    that of `RenyiELBO(alpha=0)` on the same draws. The surrogate is

    −Σ c_i ℓ_i(θ, φ̄, h̄) − Σ b_i ℓ_i(θ̄, φ̄, h_φ) + Σ s_i ℓ_i(θ̄, φ, h̄),

    ℓ the log-weights and bars held constant; b, c and s are those of `iwae.gradients`. Plain
    reparametrisation of one bound differentiates the log-weights themselves, for any guide that
    `RenyiELBO` takes. The others evaluate the guide's density at draws made before: `InputError`
    for draws that are not reparametrised, point masses with parameters, transforms without an
    inverse, and random keys that a guide draws for itself.
    """

    def __init__(
        self,
        bound: Bound | Pair = iwae,
        estimator: str | Estimator = "reparam",
        num_particles: int = 2,
    ) -> None:
        super().__init__(alpha=0, num_particles=num_particles)
        self.pair, self.estimator = paired(bound), named(estimator)
        if self.estimator.dreams:
            raise InputError(
                "The sleep phase needs draws (x, h) from the model, which NumPyro's models do not "
                "give by themselves; use rws for the wake phase, or dreg."
            )
        check(self.estimator, self.pair, num_particles, self)

    def loss(
        self,
        rng_key: Array,
        param_map: Params,
        model: Any,
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Array:
        """−bound, whose gradient is the estimator's."""
        plate_key, rng_key = jax.random.split(rng_key)
        hidden = ["sample", "prng_key", "control_flow"]
        model, guide = (seed(f, plate_key, hide_types=hidden) for f in (model, guide))
        keys = jax.random.split(rng_key, self.num_particles)
        if self.estimator == ESTIMATORS["reparam"] and self.pair.theta is self.pair.phi:
            one = lambda key: self._single_particle_elbo(model, guide, param_map, args, kwargs, key)
            log_w, scale = jax.vmap(one)(keys)
            return -scale[0] * jnp.sum(self.pair.theta(log_w))
        h = jax.vmap(lambda key: _draw(guide, param_map, key, args, kwargs))(keys)

        def log_weights(theta: Params, phi: Params, h: Params) -> tuple[Array, Array]:
            def one(key: Array, h: Params) -> tuple[Array, Any]:
                fixed = substitute(substitute(guide, data=phi), data=h)
                posed = substitute(model, data=theta)
                return self._single_particle_elbo(posed, fixed, {}, args, kwargs, key)

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


class _OwnKeys(Messenger):
    """Notes whether `numpyro.prng_key` is called within."""

    drawn = False

    def process_message(self, msg: Any) -> None:
        self.drawn = self.drawn or msg["type"] == "prng_key"


def _draw(guide: Any, params: Params, key: Array, args: Any, kwargs: Any) -> Params:
    """The guide's draws by site, with the key that `RenyiELBO` gives it.

    Point masses are left out: those that a transform of other draws makes are made again of them.
    """
    _, guide_key = jax.random.split(key)
    own = _OwnKeys()
    with own:
        sites = trace(substitute(seed(guide, guide_key), data=params)).get_trace(*args, **kwargs)
    if own.drawn:
        raise InputError(
            "The guide draws a random key for itself, which would be another one when its density "
            "is evaluated; use the estimator reparam."
        )
    draws: Params = {}
    masses: list[str] = []
    for name, site in sites.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        distribution = site["fn"]
        while hasattr(distribution, "base_dist"):
            distribution = distribution.base_dist
        if not distribution.has_rsample:
            raise InputError(
                f"The guide's site {name!r} draws from {type(distribution).__name__}, which is not "
                f"reparametrised, so no gradient passes through it; use a reparametrised "
                f"distribution there, or numpyro.infer.TraceGraph_ELBO."
            )
        if isinstance(distribution, Delta):
            masses.append(name)
        else:
            _check_density(name, site)
            draws[name] = site["value"]
    if not draws:
        raise InputError(
            "The guide is a point mass, of which there is no density to differentiate; use the "
            "estimator reparam."
        )
    if masses:
        _check_masses(masses, guide, params, draws, guide_key, args, kwargs)
    return draws


def _check_masses(
    names: list[str],
    guide: Any,
    params: Params,
    draws: Params,
    key: Array,
    args: Any,
    kwargs: Any,
) -> None:
    """`InputError` if a parameter reaches the value of a point mass but through the draws."""

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


def _check_density(name: str, site: Any) -> None:
    """`InputError` if the site's density is known where it draws only, as of some flows."""
    try:
        jax.eval_shape(site["fn"].log_prob, site["value"])
    except NotImplementedError as e:
        raise InputError(
            f"The guide's site {name!r} draws through a transform without an inverse, so its "
            f"density cannot be evaluated at draws made before; use the estimator reparam."
        ) from e


def _per_column(
    log_w: Array, pair: Pair, estimator: Estimator
) -> tuple[Array | None, Array, Array | None]:
    """(b, c, s) [K, *plates]; b or s is None where the estimator has none."""

    def column(log_w: Array) -> tuple[Array | None, Array, Array | None]:
        weights = Weights(log_w, pair.phi)
        b = None if estimator.path is None else estimator.path(weights)
        s = None if estimator.score is None else estimator.score(weights)
        return b, jax.grad(lambda log_w: pair.theta(log_w))(log_w), s

    columns = log_w.reshape(len(log_w), -1)
    return jax.tree.map(
        partial(jnp.reshape, shape=log_w.shape), jax.vmap(column, in_axes=1, out_axes=1)(columns)
    )
