"""The training examples of a chunk of steps: on the device as a whole, or read from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from iwae._utils.distributed import Devices
from iwae.data import mapped

READ = 1 << 25
"""Bytes of examples that are read from a file at once, unless a single step takes more."""


@dataclass(frozen=True)
class Read:
    """Examples on the device, and where the steps of a chunk find theirs."""

    images: Array
    """[m, d]."""
    orders: tuple[Array, ...]
    """For each replica, the indices of the examples of all steps from `start` on."""
    start: int


class Examples(Protocol):
    """The training split, as steps take it."""

    def most_steps(self, batch: int, replicas: int) -> int:
        """The largest number of steps in a chunk."""

    def read(self, orders: Sequence[Array], batch: int, start: int, steps: slice) -> Read:
        """The examples of some steps of the epoch that began at step `start`.

        `orders` [n] are those of the epoch, one for each replica.
        """


def examples_of(train: np.ndarray, devices: Devices) -> Examples:
    """The training split on the device, unless it is mapped from a file."""
    if mapped.is_mapped(train):
        return OnDisk(train, devices)
    return OnDevice(devices.everywhere(jnp.asarray(train)))


@dataclass(frozen=True)
class OnDevice:
    """All examples on the device."""

    images: Array

    def most_steps(self, batch: int, replicas: int) -> int:
        return int(np.iinfo(np.int32).max)

    def read(self, orders: Sequence[Array], batch: int, start: int, steps: slice) -> Read:
        return Read(self.images, tuple(orders), start)


@dataclass(frozen=True)
class OnDisk:
    """Examples in a file, of which a chunk of steps has its own on the device.

    There are always as many, so that chunks of any length run the same program.
    """

    train: np.ndarray
    devices: Devices

    def most_steps(self, batch: int, replicas: int) -> int:
        each = batch * replicas * self.train.itemsize * self.train.shape[1]
        return max(1, min(READ // each, len(self.train) // batch))

    def read(self, orders: Sequence[Array], batch: int, start: int, steps: slice) -> Read:
        size, several = batch * self.most_steps(batch, len(orders)), len(orders)
        images: np.ndarray = np.zeros((several, size, self.train.shape[1]), self.train.dtype)
        part = slice((steps.start - start) * batch, (steps.stop - start) * batch)
        for own, order in zip(images, orders, strict=True):
            rows = np.asarray(order)[part]
            own[: len(rows)] = mapped.gathered(self.train, rows)
        places = np.arange(several * size, dtype=np.int32).reshape(several, size)
        return Read(
            self.devices.everywhere(jnp.asarray(images.reshape(several * size, -1))),
            tuple(self.devices.everywhere(jnp.asarray(own)) for own in places),
            steps.start,
        )
