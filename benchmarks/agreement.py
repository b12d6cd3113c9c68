"""Whether a rival computes what iwae computes, without which no comparison would mean anything."""

from functools import cache, partial
from typing import cast

import numpy as np
import torch

from benchmarks import iwae_steps, torch_iwae
from benchmarks.images import synthetic

IMAGES = 60_000
TOLERANCE = 1e-3


class DisagreementError(Exception):
    """The rival does not compute what iwae computes."""


images = cache(partial(synthetic, IMAGES))


def pair(layers: int) -> tuple[iwae_steps.Autoencoder, torch_iwae.Autoencoder]:
    """iwae's model and the rival with the same weights."""
    model = iwae_steps.new_model(layers, images())
    net = torch_iwae.Autoencoder(layers, images().shape[1])
    net.fill(iwae_steps.parameters(model))
    return model, net


@cache
def check(layers: int, k: int = 5) -> None:
    """`DisagreementError` unless both have the same bound and gradient for the same x and ε."""
    model, net = pair(layers)
    x = (images()[:20] > 127).astype(np.float32)
    eps, ours, gradient = iwae_steps.bound_and_gradient(model, x, k)
    theirs = net.bound(torch.from_numpy(x), k, [torch.from_numpy(e) for e in eps]).mean()
    (-theirs).backward()
    if not abs(theirs.item() - ours) < TOLERANCE:
        raise DisagreementError(f"The bound is {ours} in iwae and {theirs.item()} in PyTorch.")
    for own, parameter in zip(gradient, net.parameters(), strict=True):
        other = cast(torch.Tensor, parameter.grad).numpy()
        difference = np.abs(own - other).max() / np.abs(own).max()
        if not difference < TOLERANCE:
            raise DisagreementError(f"The gradients of a {own.shape} differ by {difference:.1e}.")


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    """`DisagreementError` if two estimates of L_K differ by more than 5 standard errors."""
    difference = ours - theirs
    if not abs(difference.mean()) < 5 * difference.std(ddof=1) / len(difference) ** 0.5:
        raise DisagreementError(f"L_K is {ours.mean()} in iwae and {theirs.mean()} in PyTorch.")
