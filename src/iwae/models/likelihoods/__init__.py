"""Likelihoods p(x|h_1) of one example, parametrised by the decoder's last layer.

A likelihood turns an array of unconstrained parameters [n_parameters, d] into a numpyro
distribution over x [d]. Bernoulli and Gaussian are implemented here; `Numpyro` provides numpyro's
other families with one parameter per pixel and argument, with the densities in `densities`.
"""

import abc
import functools
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpyro.distributions import constraints, transforms

from iwae.errors import InputError, nearest
from iwae.models.likelihoods.densities import BOUNDED, WHOLE_LINE
from iwae.models.likelihoods.draws import drawable
from iwae.models.likelihoods.special import LARGEST, exp, scaled_e1
from iwae.models.likelihoods.starts import start, unit

MOVING = ("DoublyTruncatedPowerLaw", "LogUniform", "LowerTruncatedPowerLaw", "Pareto", "Uniform")
"""Families whose support depends on their parameters, so that training moves it past the data."""

WRITTEN_OUT = ("bernoulli", "gaussian")

LOG_2PI = float(np.log(2 * np.pi))


class AbstractLikelihood(eqx.Module):
    """Independent observations of d pixels given their parameters."""

    @property
    @abc.abstractmethod
    def n_parameters(self) -> int:
        """Parameters per pixel."""

    @abc.abstractmethod
    def distribution(self, parameters: Float[Array, "p d"]) -> dist.Distribution:
        """The numpyro distribution with batch shape [d]."""

    @abc.abstractmethod
    def log_prob(self, parameters: Float[Array, "p d"], x: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(x|h_1) in nats, summed over pixels."""

    @abc.abstractmethod
    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        """The decoder's output bias, from the moments of the training data."""

    def log_probs(
        self, parameters: Float[Array, "p d"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """log p(x_j|x_rest, h_1) of each value, in nats; 0 where x_j is missing.

        Given h_1 the values are independent unless a subclass says otherwise, and these terms then
        sum to `log_prob`.
        """
        seen = ~jnp.isnan(x)
        usual = self.expected(parameters)  # inside the support, so that gradients stay finite
        inside = jnp.where(seen, x, jax.lax.stop_gradient(usual))
        return jnp.where(seen, self.distribution(parameters).log_prob(inside), 0.0)

    def log_marginals(
        self, parameters: Float[Array, "p d"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """log p(x_j|h_1) of each value alone, in nats; 0 where x_j is missing."""
        return self.log_probs(parameters, x)

    def complete(
        self, parameters: Float[Array, "p d"], x: Float[Array, " d"], key: PRNGKeyArray
    ) -> Float[Array, " d"]:
        """x with its missing values drawn from p(x_m|x_o, h_1)."""
        drawn = self.distribution(parameters).sample(key).astype(jnp.float32)
        return jnp.where(jnp.isnan(x), drawn, x)

    def prediction(
        self, parameters: Float[Array, "p d"], x: Float[Array, " d"]
    ) -> Float[Array, " f"]:
        """What `decide` needs of p(x_m|x_o, h_1), in a form that may be averaged over draws of h_1.

        By default E[x_m|x_o, h_1].
        """
        return self.expected(parameters)

    def decide(self, prediction: Float[Array, " f"]) -> Float[Array, " d"]:
        """The best single values, from an average of `prediction`: by default this average."""
        return prediction

    def expected(self, parameters: Float[Array, "p d"]) -> Float[Array, " d"]:
        """E[x|h_1]; where it is not finite, `loc` on the whole line, else the median if known."""
        distribution = self.distribution(parameters)
        try:
            mean = distribution.mean
        except NotImplementedError:
            mean = jnp.full_like(parameters[0], jnp.nan)
        if distribution.support is constraints.real:
            middle = distribution.loc
        else:
            try:
                middle = distribution.icdf(jnp.full_like(parameters[0], 0.5))
            except (NotImplementedError, ImportError):
                return mean
        return jnp.where(jnp.isfinite(mean), mean, middle)


class Bernoulli(AbstractLikelihood):
    """x_j ~ Bernoulli(sigmoid(z_j)).

    log p = Σ_j x_j z_j − max(z_j, 0) − log(1 + exp(−|z_j|)), finite for every z.
    """

    @property
    def n_parameters(self) -> int:
        return 1

    def distribution(self, parameters: Float[Array, "p d"]) -> dist.Distribution:
        return dist.Bernoulli(logits=parameters[0])

    def log_prob(self, parameters: Float[Array, "p d"], x: Float[Array, " d"]) -> Float[Array, ""]:
        return _log_bernoulli(parameters[0], x)

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        """logit of the mean training pixel, clipped to [0.001, 0.999] (the authors' code)."""
        mean = jnp.clip(mean, 0.001, 0.999)
        return jnp.log(mean / (1 - mean))[None]


MOST_FACTORS = 16
"""Maximal number of factors 1 + exp(−|z|) ≤ 2 per logarithm."""


@jax.custom_jvp
def _log_bernoulli(z: Float[Array, " d"], x: Float[Array, " d"]) -> Float[Array, ""]:
    """Σ_j x_j z_j − max(z_j, 0) − log(1 + exp(−|z_j|)), with one logarithm for several pixels.

    A product of slices needs no reduction across a vector register; the gradient uses the plain
    formula, which shares its exponentials.
    """
    divisors = [n for n in range(1, MOST_FACTORS + 1) if len(z) % n == 0]
    rows = max([n for n in divisors if len(z) // n % 8 == 0] or divisors)
    z, x = z.reshape(rows, -1), x.reshape(rows, -1)
    factors = functools.reduce(operator.mul, 1 + jnp.exp(-jnp.abs(z)))
    linear = functools.reduce(operator.add, x * z - jnp.maximum(z, 0))
    return jnp.dot(linear - jnp.log(factors), jnp.ones_like(linear), precision="highest")


@_log_bernoulli.defjvp
def _plain(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    def plain(z: Array, x: Array) -> Array:
        minus_abs = jnp.minimum(z, -z)  # unlike −|z|, it has derivative 0 at z = 0
        return jnp.sum(x * z - jnp.maximum(z, 0) - jnp.log1p(jnp.exp(minus_abs)))

    return jax.jvp(plain, primals, tangents)


class Gaussian(AbstractLikelihood):
    """x_j ~ N(m_j + s_j a_j, (s_j exp b_j)²), with m and s the training mean and spread.

    The decoder outputs standard units (a, b); the density is that of x in its original units.
    """

    mean: Float[Array, " d"]
    spread: Float[Array, " d"]

    @property
    def n_parameters(self) -> int:
        return 2

    def distribution(self, parameters: Float[Array, "p d"]) -> dist.Distribution:
        mean, spread = jax.lax.stop_gradient((self.mean, self.spread))
        return dist.Normal(mean + spread * parameters[0], spread * jnp.exp(parameters[1]))

    def log_prob(self, parameters: Float[Array, "p d"], x: Float[Array, " d"]) -> Float[Array, ""]:
        mean, spread = jax.lax.stop_gradient((self.mean, self.spread))
        a, b = parameters
        standard = ((x - mean) / spread - a) * jnp.exp(-b)
        return -jnp.sum(0.5 * standard**2 + b + jnp.log(spread) + 0.5 * LOG_2PI)

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        return jnp.zeros((2, mean.shape[0]), mean.dtype)


class Numpyro(AbstractLikelihood):
    """A family of numpyro, its arguments mapped from the real line by `biject_to`.

    For a distribution over the whole line the decoder outputs `loc` and `scale` in standard units,
    like `Gaussian`, by the training `mean` and `spread`; biases start at these, and the `df` of
    Student's t at 5. For others the unconstrained parameters are `start + units a` of the output a,
    from `starts`; χ², which has no scale, is that of x / `spread`. Without these the output is the
    unconstrained parameters, and biases start at the moments of the training data.

    Densities are from `densities`, since numpyro's lose precision in float32. Outside the support
    log p is −∞, and log p of a discrete value is never above 0. Concentrations and degrees of
    freedom are limited to `densities.MOST`, beyond which they make no difference.
    """

    family: str = eqx.field(static=True)
    mean: Float[Array, " d"] | None = None
    spread: Float[Array, " d"] | None = None
    start: Float[Array, "p d"] | None = None
    units: Float[Array, "p p d"] | None = None

    @property
    def n_parameters(self) -> int:
        return len(self._arguments())

    @property
    def _support(self) -> constraints.Constraint:
        return getattr(dist, self.family).support

    def _arguments(self) -> dict[str, transforms.Transform]:
        constraints = getattr(dist, self.family).arg_constraints
        return {name: transforms.biject_to(c) for name, c in constraints.items()}

    def _unconstrained(self, parameters: Float[Array, "p d"]) -> dict[str, Float[Array, " d"]]:
        if self.start is not None and self.units is not None:
            start, units = jax.lax.stop_gradient((self.start, self.units))
            parameters = start + jnp.sum(units * parameters, axis=1)
        return dict(zip(self._arguments(), parameters, strict=True))

    def distribution(self, parameters: Float[Array, "p d"]) -> dist.Distribution:
        rows = self._unconstrained(parameters)
        arguments = {name: _argument(to, rows[name]) for name, to in self._arguments().items()}
        if self.family == "Chi2" and self.spread is not None:
            return drawable("Gamma")(arguments["df"] / 2, 0.5 / jax.lax.stop_gradient(self.spread))
        if self.mean is not None and self.spread is not None:
            mean, spread = jax.lax.stop_gradient((self.mean, self.spread))
            arguments["loc"] = mean + spread * arguments["loc"]
            arguments["scale"] = spread * arguments["scale"]
        if self.family == "NegativeBinomialProbs":  # as accurate in 1 − p as in p
            return drawable("NegativeBinomialLogits")(arguments["total_count"], rows["probs"])
        return drawable(self.family)(**arguments)

    def expected(self, parameters: Float[Array, "p d"]) -> Float[Array, " d"]:
        if self.family == "Gompertz":  # numpyro's mean is not finite, or does not terminate
            rows = self._unconstrained(parameters)
            return scaled_e1(rows["concentration"]) * exp(-rows["rate"])
        return super().expected(parameters)

    def log_prob(self, parameters: Float[Array, "p d"], x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(self.log_probs(parameters, x))

    def log_probs(
        self, parameters: Float[Array, "p d"], x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """log p(x_j|h_1) of each pixel, in nats."""
        rows = self._unconstrained(parameters)
        if self.family in WHOLE_LINE:
            return self._of_the_line(rows, x)
        inside, units = self._inside(x), jnp.zeros_like(x)
        if self.spread is not None:
            spread = jax.lax.stop_gradient(self.spread)
            x, units = x / spread, jnp.log(spread)
        usual = 0.5 if self._support is constraints.unit_interval else 1.0
        value = BOUNDED[self.family](x=jnp.where(inside, x, usual), **rows)
        if self._support.is_discrete:
            value -= jax.lax.stop_gradient(jnp.maximum(value, 0.0))
        return jnp.where(inside, value - units, -jnp.inf)

    def _of_the_line(self, rows: dict[str, Array], x: Float[Array, " d"]) -> Float[Array, " d"]:
        units: Array | float = 0.0
        if self.mean is not None and self.spread is not None:
            mean, spread = jax.lax.stop_gradient((self.mean, self.spread))
            x, units = (x - mean) / spread, jnp.log(spread)
        z = (x - rows.pop("loc")) * exp(-rows["scale"])
        return WHOLE_LINE[self.family](z, **rows) - units

    def _inside(self, x: Float[Array, "*n d"]) -> Bool[Array, "*n d"]:
        """Whether x lies in the support, without its ends for continuous values."""
        inside = self._support(x) & jnp.isfinite(x)
        return inside & (x > 0) & (x < 1) if self._support is constraints.unit_interval else inside

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        zero = jnp.zeros_like(mean)
        if self.family not in WHOLE_LINE:
            first = start(self.family, mean, spread)[0]
            return first if self.start is None else jnp.zeros_like(first)
        values = {"df": zero + jnp.log(5.0)}
        if self.mean is None:
            values |= {"loc": mean, "scale": jnp.log(spread)}
        return jnp.stack([values.get(name, zero) for name in self._arguments()])


def _argument(to: transforms.Transform, row: Float[Array, " d"]) -> Float[Array, " d"]:
    """An argument of numpyro; positive ones are neither 0 nor infinite."""
    if isinstance(to, transforms.IdentityTransform):
        return row
    return to(jnp.clip(row, -LARGEST, LARGEST))


def names() -> list[str]:
    """Names that `likelihood` accepts."""
    return [*WRITTEN_OUT, *sorted(f for f in WHOLE_LINE | BOUNDED if hasattr(dist, f))]


def check_values(name: str, values: Float[np.ndarray, "n d"], of: str, scale: float = 1.0) -> None:
    """`InputError` if a numpyro distribution on part of the real line has no finite density at some
    of these values, for its initial parameters and nearby ones.

    The values are those of the data divided by `scale`.
    """
    if name in MOVING:
        _reject_moving(name)
    if name not in BOUNDED or name not in names():
        return
    mean, spread = (jnp.asarray(m, jnp.float32) for m in (values.mean(axis=0), values.std(axis=0)))
    family = likelihood(name, kind="real", mean=mean, spread=spread)
    for apart in (-0.5, 0.0, 0.5):
        usable = np.isfinite(_density_of_each(family, mean, spread, apart, jnp.asarray(values)))
        if not usable.all():
            value = f"{values[~usable][0]:g}"
            what = f"the value {value}" if scale == 1 else f"x / {scale:g} = {value}"
            inside = "" if scale == 1 else ", by --values real if x itself lies there"
            raise InputError(
                f"likelihood = {name} was given, but it has no finite density at {what} in {of}; "
                f"give another likelihood, or bring the data inside its support{inside}."
            )


@eqx.filter_jit
def _density_of_each(
    family: Any, mean: Array, spread: Array, apart: float | Array, values: Array
) -> Array:
    parameters = family.initial_bias(mean, spread) + apart
    return jax.vmap(family.log_probs, in_axes=(None, 0))(parameters, values)


def is_binary(name: str) -> bool:
    """Whether the likelihood `name` is of 0 and 1 only: Bernoulli in any parametrisation."""
    return name.lower().startswith("bernoulli")


def likelihood(name: str, *, kind: str, mean: Array, spread: Array) -> AbstractLikelihood:
    """The likelihood `name` for data of a kind (binary, intensity, real) with these moments [d].

    `spread` is the standard deviation, 0 where a pixel is constant. `InputError` for an unknown
    name, or for a Bernoulli likelihood of real values.
    """
    if name == "auto":
        name = "gaussian" if kind == "real" else "bernoulli"
    if name == "bernoulli":
        if kind == "real":
            raise InputError(
                "likelihood = bernoulli was given, but the data have real values; give "
                "--likelihood gaussian, or bring the data into [0, 1]."
            )
        return Bernoulli()
    if name == "gaussian":
        return Gaussian(mean, jnp.where(spread > 0, spread, 1.0))
    if name in MOVING:
        _reject_moving(name)
    if name not in names():
        raise InputError(f"There is no likelihood {name!r}; {nearest(name, names())}.")
    if name in WHOLE_LINE:
        return Numpyro(name, mean, jnp.where(spread > 0, spread, 1.0))
    if is_binary(name):
        return Numpyro(name)
    first, units = start(name, mean, spread)
    own = unit(mean, spread) if name == "Chi2" else None
    return Numpyro(name, spread=own, start=first, units=units)


def _reject_moving(name: str) -> None:
    raise InputError(
        f"likelihood = {name} was given, but a parameter of it is an end of its support, which "
        f"training moves past the data; give Gamma, LogNormal or Weibull."
    )


def is_continuous(name: str, kind: str) -> bool:
    """Whether p(x|h_1) of the likelihood `name` for data of this kind is a density, at least above
    0 (`is_mixed`)."""
    if name in ("auto", *WRITTEN_OUT):
        return name == "gaussian" or (name == "auto" and kind == "real")
    return name in names() and not getattr(dist, name).support.is_discrete


def is_mixed(name: str) -> bool:
    """Whether p(x|h_1) is a probability at x = 0 and a density above."""
    return name in ("HurdleGamma", "HurdleLogNormal")
