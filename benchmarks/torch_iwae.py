"""The rival: the paper's models and their training loop, written as one would in PyTorch.

Whole batches at a time, draws leading: h is [K, B, d_l]. The encoder runs once per image, nothing
is copied to the host between steps, and there is no data loader: the images are one tensor.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from iwae.config.schema import PRESETS

LOG_2PI = math.log(2 * math.pi)

THREADS = torch.get_num_threads()
"""PyTorch's own choice: one for each core."""


def tanh_layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())))


class Gaussian(nn.Module):
    """v [..., n_in] ↦ (μ, log σ), each [..., n_out]."""

    def __init__(self, n_in: int, widths: Sequence[int], n_out: int):
        super().__init__()
        self.features = tanh_layers(n_in, *widths)
        self.mu = nn.Linear(widths[-1], n_out)
        self.log_sigma = nn.Linear(widths[-1], n_out)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(v)
        return self.mu(features), self.log_sigma(features)


def log_normal(eps: Tensor, log_sigma: Tensor) -> Tensor:
    """log N(μ + σ ε; μ, diag σ²), summed over the last axis."""
    return -(0.5 * eps**2 + log_sigma).sum(-1) - 0.5 * LOG_2PI * eps.shape[-1]


class Autoencoder(nn.Module):
    """L Gaussian layers in both directions and Bernoulli pixels.

    Parameters are registered in the order of iwae's own, so that a list of arrays fills them.
    """

    def __init__(self, layers: int, pixels: int):
        super().__init__()
        hidden, latents = PRESETS[layers]
        inputs = (pixels, *latents[:-1])
        sizes = list(zip(inputs, hidden, latents, strict=True))
        self.encoder = nn.ModuleList(Gaussian(*size) for size in sizes)
        self.decoder = nn.ModuleList(Gaussian(n, w[::-1], below) for below, w, n in sizes[1:])
        self.features = tanh_layers(latents[0], *hidden[0][::-1])
        self.output = nn.Linear(hidden[0][0], pixels)

    @torch.no_grad()
    def fill(self, arrays: list[np.ndarray]) -> None:
        """Take over weights [n_out, n_in] and biases [n_out]."""
        for parameter, array in zip(self.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(array))

    def log_weights(self, x: Tensor, k: int, eps: list[Tensor] | None = None) -> Tensor:
        """log p(x, h) − log q(h|x) of K draws for each image of x [B, d], [K, B]."""
        mu, log_sigma = self.encoder[0](x)
        log_w = mu.new_zeros(())
        draws: list[Tensor] = []
        for i in range(len(self.encoder)):
            if i > 0:
                mu, log_sigma = self.encoder[i](draws[-1])
            noise = torch.randn(k, *mu.shape[-2:], device=mu.device) if eps is None else eps[i]
            draws.append(mu + log_sigma.exp() * noise)
            log_w = log_w - log_normal(noise, log_sigma)
        for below, above, conditional in zip(draws[:-1], draws[1:], self.decoder, strict=True):
            mu, log_sigma = conditional(above)
            log_w = log_w + log_normal((below - mu) * (-log_sigma).exp(), log_sigma)
        log_w = log_w - 0.5 * (draws[-1] ** 2).sum(-1) - 0.5 * LOG_2PI * draws[-1].shape[-1]
        logits = self.output(self.features(draws[0]))
        cross_entropy = functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        )
        return log_w - cross_entropy.sum(-1)

    def bound(self, x: Tensor, k: int, eps: list[Tensor] | None = None) -> Tensor:
        """L_K of each image, [B]."""
        return self.log_weights(x, k, eps).logsumexp(0) - math.log(k)


class TrainingLoop:
    """Called with n, takes n training steps on `threads` cores.

    `fused`: Adam in one kernel for each parameter, in place of one for each operation. `compiled`:
    the bound and its gradient through torch.compile. `bfloat16`: products of factors in it.
    """

    def __init__(
        self,
        net: Autoencoder,
        images: np.ndarray,
        *,
        k: int,
        batch: int,
        threads: int = THREADS,
        fused: bool = False,
        compiled: bool = False,
        device: str = "cpu",
        bfloat16: bool = False,
    ):
        self.low = partial(
            torch.autocast, device, torch.bfloat16, enabled=bfloat16, cache_enabled=False
        )
        self.net, self.k, self.batch_size, self.threads = net.to(device), k, batch, threads
        self.images = torch.from_numpy(images).to(device)
        self.bound_of = torch.compile(net.bound) if compiled else net.bound
        self.optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-4 / batch, fused=fused)
        self.order, self.next = self.shuffled(), 0

    def __call__(self, steps: int) -> None:
        torch.set_num_threads(self.threads)
        for _ in range(steps):
            self.step(self.binarized(self.rows()))
        if self.images.is_cuda:
            torch.cuda.synchronize()

    def shuffled(self) -> Tensor:
        """An order of the images."""
        return torch.randperm(len(self.images), device=self.images.device)

    def rows(self) -> Tensor:
        """Indices of the next images of the shuffled order, [B]."""
        if self.next + self.batch_size > len(self.images):
            self.order, self.next = self.shuffled(), 0
        self.next += self.batch_size
        return self.order[self.next - self.batch_size : self.next]

    def binarized(self, rows: Tensor) -> Tensor:
        """Images as fresh 0/1 samples, [B, d]."""
        intensity = self.images[rows] / 255
        return (torch.rand_like(intensity) < intensity).float()

    def step(self, x: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x).backward()
        self.optimizer.step()

    def loss(self, x: Tensor) -> Tensor:
        with self.low():
            return -self.bound_of(x, self.k).mean()


class GraphedLoop(TrainingLoop):
    """The same step, captured once as a CUDA graph; then nothing but its replay is launched."""

    def __init__(self, net: Autoencoder, images: np.ndarray, *, k: int, batch: int, **how: bool):
        super().__init__(net, images, k=k, batch=batch, device="cuda", **how)
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=1e-3, eps=1e-4 / batch, fused=True, capturable=True
        )
        self.chosen = self.rows().clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.step(self.binarized(self.chosen))
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step(self.binarized(self.chosen))

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            self.chosen.copy_(self.rows())
            self.graph.replay()
        torch.cuda.synchronize()


@torch.inference_mode()
def log_likelihoods(
    net: Autoencoder, images: Tensor, k: int, *, at_once: int, draws: int, threads: int
) -> Tensor:
    """L_K of binary images [n, d], in blocks of images × draws with a running log-sum-exp, [n]."""
    torch.set_num_threads(threads)
    totals = []
    for x in images.split(at_once):
        total = x.new_full((len(x),), -math.inf)
        for done in range(0, k, draws):
            log_w = net.log_weights(x, min(draws, k - done))
            total = torch.logaddexp(total, log_w.logsumexp(0))
        totals.append(total - math.log(k))
    return torch.cat(totals)
