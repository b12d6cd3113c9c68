"""The libraries that offer this bound: pythae's IWAE, Pyro's and NumPyro's RenyiELBO.

One stochastic layer with the paper's widths. Each library brings its own bound, its own draws and,
but for pythae, its own optimiser; the batches are those of the plain PyTorch loop or, for NumPyro,
one compiled loop, as `SVI.run` has, which is kinder to it than a call for each step.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pyro
import pyro.distributions
import pyro.infer
import pyro.optim
import torch
from numpyro.contrib.module import eqx_module
from numpyro.infer.svi import SVIState
from pythae.models import IWAE, IWAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor

from benchmarks import torch_iwae
from iwae.models.autoencoder import Autoencoder


class Encoder(BaseEncoder):
    """x ↦ (μ, log σ²)."""

    def __init__(self, net: torch_iwae.Autoencoder):
        super().__init__()
        self.net = net.encoder[0]

    def forward(self, x: Tensor) -> ModelOutput:
        mu, log_sigma = self.net(x)
        return ModelOutput(embedding=mu, log_covariance=2 * log_sigma)


class Decoder(BaseDecoder):
    """h ↦ the pixels' probabilities."""

    def __init__(self, net: torch_iwae.Autoencoder):
        super().__init__()
        self.features, self.output = net.features, net.output

    def forward(self, h: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.output(self.features(h))))


def _latents(conditional: Any) -> int:
    """Units of a Gaussian conditional of the PyTorch model."""
    return int(conditional.mu.out_features)


class Pythae(torch_iwae.TrainingLoop):
    """pythae's model in the plain loop, without its trainer and data loader."""

    def __init__(self, net: torch_iwae.Autoencoder, images: np.ndarray, *, k: int, batch: int):
        super().__init__(net, images, k=k, batch=batch)
        config = IWAEConfig(
            input_dim=(images.shape[1],),
            latent_dim=_latents(net.encoder[0]),
            reconstruction_loss="bce",
            number_samples=k,
        )
        self.model = IWAE(config, encoder=Encoder(net), decoder=Decoder(net))

    def loss(self, x: Tensor) -> Tensor:
        return self.model({"data": x}).loss

    def gradient(self, x: np.ndarray, eps: np.ndarray) -> list[Tensor]:
        """∇ of its loss with given noise [K, B, d_1], in the order of the net's parameters."""
        noise = torch.from_numpy(eps).transpose(0, 1)
        self.model._sample_gauss = lambda mu, std: (mu + noise * std, noise)
        return list(
            torch.autograd.grad(self.loss(torch.from_numpy(x)), list(self.net.parameters()))
        )


def normal(mu: Tensor, log_sigma: Tensor) -> Any:
    """N(μ, diag σ²)."""
    return pyro.distributions.Normal(mu, log_sigma.exp()).to_event(1)


class Pyro(torch_iwae.TrainingLoop):
    """Pyro's SVI with RenyiELBO(α = 0), particles vectorised and validation off."""

    def __init__(self, net: torch_iwae.Autoencoder, images: np.ndarray, *, k: int, batch: int):
        super().__init__(net, images, k=k, batch=batch)
        self.latents = _latents(net.encoder[-1])
        pyro.clear_param_store()
        pyro.enable_validation(False)
        self.elbo = pyro.infer.RenyiELBO(
            0.0, num_particles=k, max_plate_nesting=1, vectorize_particles=True
        )
        adam = cast(Any, pyro.optim).Adam({"lr": 1e-3, "eps": 1e-4})
        self.svi = pyro.infer.SVI(self.model, self.guide, adam, loss=self.elbo)

    def model(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("batch", len(x)):
            zero = x.new_zeros(len(x), self.latents)
            h = pyro.sample(f"h{len(self.net.encoder)}", normal(zero, zero))
            for i, conditional in reversed(list(enumerate(self.net.decoder, 1))):
                h = pyro.sample(f"h{i}", normal(*conditional(h)))
            logits = self.net.output(self.net.features(h))
            bits = pyro.distributions.Bernoulli(logits=logits, validate_args=False)
            pyro.sample("x", bits.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("batch", len(x)):
            h = x
            for i, conditional in enumerate(self.net.encoder, 1):
                h = pyro.sample(f"h{i}", normal(*conditional(h)))

    def step(self, x: Tensor) -> None:
        self.svi.step(x)

    def bound(self, x: np.ndarray, seed: int) -> float:
        """Its estimate of L_K, mean over x."""
        pyro.set_rng_seed(seed)
        return -self.elbo.loss(self.model, self.guide, torch.from_numpy(x)) / len(x)


class NumPyro:
    """NumPyro's SVI with RenyiELBO(α = 0), many steps in one compiled program."""

    def __init__(self, net: Autoencoder, images: np.ndarray, *, k: int, batch: int):
        self.net, self.images, self.batch = net, jnp.asarray(images), batch
        self.elbo = numpyro.infer.RenyiELBO(alpha=0.0, num_particles=k)
        adam = optax.adam(1e-3, eps=1e-4)
        self.svi = numpyro.infer.SVI(self.model, self.guide, adam, self.elbo)
        self.state = self.svi.init(jax.random.key(0), jnp.zeros((batch, images.shape[1])))
        self.advance: Callable = jax.jit(self._advance)
        self.loss: Callable = jax.jit(
            lambda params, key, x: self.elbo.loss(key, params, self.model, self.guide, x)
        )

    def model(self, x: jax.Array) -> None:
        conditionals = [eqx_module(f"p{i}", p) for i, p in enumerate(self.net.decoder, 1)]
        decode = eqx_module("decoder", self.net.observation)
        with numpyro.plate("batch", len(x)):
            top = jnp.zeros((len(x), self.net.latents[-1]))
            h = numpyro.sample(f"h{len(self.net.encoder)}", dist.Normal(top).to_event(1))
            for i, conditional in reversed(list(enumerate(conditionals, 1))):
                mu, log_sigma = jax.vmap(conditional)(h)
                h = numpyro.sample(f"h{i}", dist.Normal(mu, jnp.exp(log_sigma)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=jax.vmap(decode)(h)).to_event(1), obs=x)

    def guide(self, x: jax.Array) -> None:
        conditionals = [eqx_module(f"q{i}", q) for i, q in enumerate(self.net.encoder, 1)]
        with numpyro.plate("batch", len(x)):
            h = x
            for i, conditional in enumerate(conditionals, 1):
                mu, log_sigma = jax.vmap(conditional)(h)
                h = numpyro.sample(f"h{i}", dist.Normal(mu, jnp.exp(log_sigma)).to_event(1))

    def _advance(self, state: SVIState, images: jax.Array, steps: int) -> SVIState:
        def step(i: int, state: SVIState) -> SVIState:
            key = jax.random.fold_in(state.rng_key, i)
            rows = jax.random.randint(key, (self.batch,), 0, len(images))
            x = jax.random.bernoulli(key, images[rows] / 255).astype(jnp.float32)
            return self.svi.update(state, x)[0]

        return jax.lax.fori_loop(0, steps, step, state)

    def __call__(self, steps: int) -> None:
        self.state = jax.block_until_ready(self.advance(self.state, self.images, steps))

    def bound(self, x: np.ndarray, seed: int) -> float:
        """Its estimate of L_K, mean over x."""
        params = self.svi.get_params(self.state)
        return -float(self.loss(params, jax.random.key(seed), jnp.asarray(x))) / len(x)
