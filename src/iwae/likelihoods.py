"""p(x|h1): what the decoder's last layer parametrises, one example at a time.

A likelihood turns an array of unconstrained parameters [n_parameters, d] into a numpyro
distribution over x [d]. Bernoulli and Gaussian are written out; every other numpyro distribution
with one parameter per pixel and argument comes through `Numpyro`.
"""

import abc
import functools
import inspect
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints, transforms

from iwae.errors import InputError, nearest

UNUSABLE = ("DoublyTruncatedPowerLaw", "LogUniform", "Uniform", "Unit")
"""Families whose arguments must be in order, which a transform for each cannot ensure, or that
have nothing to observe."""

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
        """log p(x|h1) in nats, summed over pixels."""

    @abc.abstractmethod
    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        """The decoder's output bias, from the moments of the training data."""

    def expected(self, parameters: Float[Array, "p d"]) -> Float[Array, " d"]:
        """E[x|h1]; where it is not finite the middle instead: `loc` on the whole line, else the
        median, if it is known."""
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
"""Factors 1 + exp(−|z|) ≤ 2 behind one logarithm."""


@jax.custom_jvp
def _log_bernoulli(z: Float[Array, " d"], x: Float[Array, " d"]) -> Float[Array, ""]:
    """Σ_j x_j z_j − max(z_j, 0) − log(1 + exp(−|z_j|)), with a logarithm for many pixels at once.

    A product of slices needs no reduction across a vector register; the gradient is better off with
    the plain formula, which shares its exponentials.
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

    The decoder works in standard units (a, b) while the density is that of x in its own.
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
        return jnp.zeros((2, mean.shape[0]))


class Numpyro(AbstractLikelihood):
    """Any numpyro distribution, its arguments mapped from the real line by `biject_to`.

    Of a distribution over the whole line the decoder gives `loc` and `scale` in standard units, as
    `Gaussian` has them, by the training `mean` and `spread`. Biases start where each argument's
    transform is 0, but for `scale` (training spread), `loc` (training mean, of log x for a
    log-normal one) and the `df` of Student's t, 5.
    """

    family: str = eqx.field(static=True)
    mean: Float[Array, " d"] | None = None
    spread: Float[Array, " d"] | None = None

    @property
    def n_parameters(self) -> int:
        return len(self._arguments())

    def _arguments(self) -> dict[str, transforms.Transform]:
        constraints = getattr(dist, self.family).arg_constraints
        return {name: transforms.biject_to(c) for name, c in constraints.items()}

    def distribution(self, parameters: Float[Array, "p d"]) -> dist.Distribution:
        rows = zip(self._arguments().items(), parameters, strict=True)
        arguments = {name: to(row) for (name, to), row in rows}
        if self.mean is not None:
            mean, spread = jax.lax.stop_gradient((self.mean, self.spread))
            arguments["loc"] = mean + spread * arguments["loc"]
            arguments["scale"] = spread * arguments["scale"]
        return getattr(dist, self.family)(**arguments)

    def log_prob(self, parameters: Float[Array, "p d"], x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(self.distribution(parameters).log_prob(x))

    def initial_bias(
        self, mean: Float[Array, " d"], spread: Float[Array, " d"]
    ) -> Float[Array, "p d"]:
        zero = jnp.zeros_like(mean)
        if self.mean is not None:
            mean, spread = zero, zero + 1
        elif self.family.endswith("LogNormal"):
            mean = jnp.where(mean > 0, mean, spread)  # what is not positive is refused elsewhere
            ratio = jnp.log1p((spread / mean) ** 2)
            mean, spread = jnp.log(mean) - ratio / 2, jnp.sqrt(ratio)
        start = {"loc": mean, "scale": spread}
        if self.family == "StudentT":
            start["df"] = zero + 5
        rows = [t.inv(start[n]) if n in start else zero for n, t in self._arguments().items()]
        return jnp.stack(rows)


def names() -> list[str]:
    """The likelihoods that `likelihood` accepts by name."""
    families: list[type[dist.Distribution]] = [
        f for f in vars(dist).values() if inspect.isclass(f) and issubclass(f, dist.Distribution)
    ]
    return [*WRITTEN_OUT, *sorted(f.__name__ for f in families if _is_elementwise(f))]


def check_values(name: str, values: Float[np.ndarray, "n d"], of: str, scale: float = 1.0) -> None:
    """`InputError` if a numpyro distribution of a part of the real line gives some of these values
    no finite density.

    Where it starts and a little to either side: the density of Beta, say, is finite at 0 for one
    value of its parameters. The values are those of the data divided by `scale`.
    """
    if name not in names()[len(WRITTEN_OUT) :] or getattr(dist, name).support is constraints.real:
        return
    family = Numpyro(name)
    mean, spread = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-3)
    start = family.initial_bias(jnp.asarray(mean), jnp.asarray(spread))
    for apart in (-0.5, 0.0, 0.5):
        distribution = family.distribution(start + apart)
        usable = np.broadcast_to(distribution.support(values), values.shape)
        if usable.all():
            usable = np.isfinite(distribution.log_prob(values))
        if not usable.all():
            value = f"{values[~usable][0]:g}"
            what = f"the value {value}" if scale == 1 else f"x / {scale:g} = {value}"
            inside = "" if scale == 1 else ", by --values real if x itself lies there"
            raise InputError(
                f"likelihood = {name} was given, but to {what} in {of} it gives no finite density; "
                f"give another likelihood, or bring the data inside its support{inside}."
            )


def is_binary(name: str) -> bool:
    """Whether the likelihood `name` is of 0 and 1 only: Bernoulli, however it is parametrised."""
    return name.lower().startswith("bernoulli")


def _is_elementwise(family: type[dist.Distribution]) -> bool:
    """Whether a distribution of scalars is built from scalars that map to the real line."""
    if "base_dist" in inspect.signature(family).parameters or family.__name__ in UNUSABLE:
        return False
    try:
        maps = [transforms.biject_to(c) for c in family.arg_constraints.values()]
        scalar = bool(maps) and all(t.domain.event_dim == 0 for t in maps)
        return scalar and family.support.event_dim == 0
    except (AttributeError, NotImplementedError):
        return False


def likelihood(name: str, *, kind: str, mean: Array, spread: Array) -> AbstractLikelihood:
    """The likelihood `name` for data of a kind (binary, intensity, real) with these moments [d].

    `InputError` for an unknown name, or for a Bernoulli likelihood of real values.
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
        return Gaussian(mean, spread)
    if name not in names():
        raise InputError(f"There is no likelihood {name!r}; {nearest(name, names())}.")
    whole = getattr(dist, name).support is constraints.real
    return Numpyro(name, mean, spread) if whole else Numpyro(name)


def is_continuous(name: str, kind: str) -> bool:
    """Whether p(x|h1) of the likelihood `name` is a density, of data of this kind."""
    if name in ("auto", *WRITTEN_OUT):
        return name == "gaussian" or (name == "auto" and kind == "real")
    return name in names() and not getattr(dist, name).support.is_discrete
