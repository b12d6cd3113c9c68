"""iwae's own programs as they run in `iwae train` and `iwae evaluate`, and the check of the rival.

The program that is timed is the one that is shipped: `training.make_advance` with its shuffled
order and dynamic binarisation, `evaluation.over_examples` with `evaluation.log_likelihood`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae._utils.threads import one_blas_thread
from iwae.bounds import iwae
from iwae.config.schema import ModelConfig, ObjectiveConfig, TrainingConfig
from iwae.estimators.surrogate import surrogate_loss
from iwae.evaluation.examples import over_examples
from iwae.evaluation.likelihood import CHUNK, log_likelihood
from iwae.models.autoencoder import Autoencoder
from iwae.models.build import build
from iwae.models.observation import Observer
from iwae.training import gradient_step

SEED = 0


def new_model(layers: int, images: np.ndarray, latents: int | None = None) -> Autoencoder:
    """The paper's model with 1 or 2 stochastic layers, as a run on these images would start.

    With `latents`, one layer of so many units.
    """
    intensity = images[:5000] / np.float32(255)
    built = build(
        ModelConfig(layers=layers, latents=None if latents is None else (latents,)),
        kind="binary",
        mean=intensity.mean(axis=0),
        spread=intensity.std(axis=0),
        key=gradient_step.stream(SEED, gradient_step.INIT),
    )
    assert isinstance(built, Autoencoder)
    return built


def parameters(model: Autoencoder) -> list[np.ndarray]:
    """Weights [n_out, n_in] and biases [n_out], from the encoder to the decoder's output."""
    return [np.array(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))]


class TrainingLoop:
    """Called with n, takes n training steps in one compiled program for each pass.

    With `replicas` it takes so many of each step at once, and with `together` one of each of these
    objectives, which share the rest. `chunk` is the most steps in one call of the program.
    """

    def __init__(
        self,
        model: Autoencoder,
        images: np.ndarray,
        *,
        k: int,
        batch: int = 20,
        objective: ObjectiveConfig | None = None,
        config: TrainingConfig | None = None,
        replicas: int = 1,
        together: Sequence[ObjectiveConfig] = (),
        chunk: int | None = None,
    ):
        config = config or TrainingConfig(batch_size=batch)
        objectives = together or [objective or ObjectiveConfig(k=k)] * replicas
        self.steps_per_epoch, self.step = len(images) // config.batch_size, 0
        params, static = eqx.partition(model, eqx.is_inexact_array)
        rates = jnp.asarray(gradient_step.rates(config))
        transform = gradient_step.optimizer(config, self.steps_per_epoch, rates)
        self.chunk = chunk or self.steps_per_epoch
        steps = {
            o: gradient_step.make_step(
                static, o, config, self.steps_per_epoch, Observer(255, dynamic=True)
            )
            for o in objectives
        }
        self.steps = tuple(steps[o] for o in objectives)
        self.rates = (rates,) * len(self.steps)
        self.states = tuple(
            gradient_step.init(params, transform, average=False) for _ in self.steps
        )
        self.seeds = tuple(jnp.uint32(SEED + i) for i in range(len(self.steps)))
        self.images = jnp.asarray(images)
        self.orders = self.orders_of_pass(0)
        advance: Any = gradient_step.make_advance(vectorized=jax.default_backend() != "cpu")
        self.advance = partial(advance, self.steps)
        self.lowered = partial(advance.lower, self.steps)

    @property
    def given(self) -> tuple[Any, ...]:
        """What the program is called with, but for the first and the last step."""
        return self.states, self.orders, self.seeds, self.rates, self.images

    def compiled_text(self) -> str:
        """XLA's program."""
        return self.lowered(*self.given, 0, 1).compile().as_text()

    def compile(self, options: dict[str, Any] | None = None) -> None:
        """Compile now, by these options of XLA's compiler."""
        self.advance = self.lowered(*self.given, 0, 1).compile(options)

    def orders_of_pass(self, number: int) -> tuple[jax.Array, ...]:
        return tuple(
            gradient_step.order_of_epoch(int(s), number, len(self.images)) for s in self.seeds
        )

    def __call__(self, steps: int) -> None:
        until = self.step + steps
        while self.step < until:
            number = self.step // self.steps_per_epoch
            start = number * self.steps_per_epoch
            if self.step == start:
                self.orders = self.orders_of_pass(number)
            self.step = min(until, start + self.steps_per_epoch, self.step + self.chunk)
            with one_blas_thread():
                self.states = self.advance(*self.given, start, self.step)
                jax.block_until_ready(self.states)
        state = self.states[0]
        if int(state.step) != self.step or not np.isfinite(float(state.value)):
            raise RuntimeError(f"Training stopped at step {int(state.step)}: not finite.")


def log_likelihoods(model: Autoencoder, images: np.ndarray, k: int) -> np.ndarray:
    """L_K of binary images [n, d], in nats, [n]."""
    function = eqx.Partial(log_likelihood, k=k)
    observer = Observer(1, dynamic=False)
    return over_examples(function, model, images, observer, seed=SEED, draws=min(k, CHUNK))


def bound_and_gradient(
    model: Autoencoder, x: np.ndarray, k: int
) -> tuple[list[np.ndarray], float, list[np.ndarray]]:
    """(ε of each layer [K, B, d_l], mean L_K, ∇ of −mean L_K) of binary images x [B, d]."""
    keys = jax.random.split(jax.random.key(SEED), len(x))

    def noise(model: Autoencoder, x: jax.Array, key: jax.Array) -> list[jax.Array]:
        h = model.propose(x, k, key)
        given = [model.encoder[0](x)]
        given += [jax.vmap(q)(below) for q, below in zip(model.encoder[1:], h[:-1], strict=True)]
        return [(a - mu) / jnp.exp(s) for a, (mu, s) in zip(h, given, strict=True)]

    def loss(model: Autoencoder, x: jax.Array) -> jax.Array:
        one = lambda x, key: surrogate_loss(model, x, key, bound=iwae, k=k)[0]
        return jnp.mean(jax.vmap(one)(x, keys))

    eps = eqx.filter_vmap(noise, in_axes=(None, 0, 0), out_axes=1)(model, jnp.asarray(x), keys)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model, jnp.asarray(x))
    return [np.array(e) for e in eps], -float(value), parameters(gradient)
