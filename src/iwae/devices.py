"""Data parallelism: a batch split over the devices of a machine, or of several machines.

On several machines (hosts) every one runs the same program; the first reads and writes the run's
folder, and decides what depends on a clock.
"""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iwae.errors import InputError

Tree = TypeVar("Tree")

BATCH = "batch"
"""The axis that is split."""


@dataclass(frozen=True)
class Devices:
    """Where a run computes: on the devices of a mesh, or (None) on the default one alone."""

    mesh: Mesh | None = None

    @staticmethod
    def of(count: int, batch_size: int) -> "Devices":
        """So many devices of this machine, or all of all hosts if there are several.

        `InputError` if there are not so many, or they cannot share a batch equally.
        """
        several = jax.process_count() > 1
        if count < 1 or count > len(jax.local_devices()):
            raise InputError(
                f"devices = {count} was given, but this machine has {len(jax.local_devices())}; "
                f"give 1 to {len(jax.local_devices())}."
            )
        if several and count not in (1, len(jax.local_devices())):
            raise InputError(
                f"devices = {count} was given with several hosts, which use all they have; leave "
                f"it out."
            )
        chosen = jax.devices() if several else jax.local_devices()[:count]
        if batch_size % len(chosen) != 0:
            raise InputError(
                f"batch_size = {batch_size} was given, but {len(chosen)} devices share a batch "
                f"equally; give a multiple of {len(chosen)}."
            )
        return Devices(Mesh(np.array(chosen), (BATCH,)) if len(chosen) > 1 else None)

    def split(self, tree: Tree) -> Tree:
        """Within a program: arrays whose first axis is shared among the devices."""
        return self._laid_out(tree, PartitionSpec(BATCH))

    def whole(self, tree: Tree) -> Tree:
        """Within a program: the same arrays on every device."""
        return self._laid_out(tree, PartitionSpec())

    def _laid_out(self, tree: Tree, how: PartitionSpec) -> Tree:
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, how))

    def everywhere(self, tree: Tree) -> Tree:
        """A copy of arrays on every device; each host gives the same."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def one(a: Any) -> jax.Array:
            if isinstance(a, jax.Array) and a.sharding == sharding:
                return a
            values = np.asarray(a)
            return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])

        return jax.tree.map(one, tree)

    def here(self, tree: Tree) -> Tree:
        """The copy on the first device of this host."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda a: a.addressable_data(0), tree)


def join(coordinator: str, hosts: int, host: int) -> None:
    """Make this process host number `host` of so many; the first listens at HOST:PORT.

    With coordinator "auto" all three come from the cluster (SLURM, Kubernetes, Open MPI). To be
    called before anything is computed. `InputError` if the hosts do not come together.
    """
    if coordinator != "auto" and not 0 <= host < hosts:
        raise InputError(
            f"host = {host} was given with hosts = {hosts}, but hosts are counted from 0; give 0 "
            f"to {hosts - 1}."
        )
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, hosts, host)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"coordinator = {coordinator} was given, but the hosts did not come together "
            f"({str(error).splitlines()[0]}); start all of them with one --coordinator and --hosts."
        ) from error


def is_first() -> bool:
    """Whether this host reads and writes files."""
    return jax.process_index() == 0


def from_first(tree: Tree) -> Tree:
    """Arrays and numbers as the first host has them."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def json_from_first(content: Any) -> Any:
    """What JSON can hold, as the first host has it."""
    if jax.process_count() == 1:
        return content
    encoded = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(from_first(np.array(len(encoded))))
    return json.loads(bytes(np.asarray(from_first(np.resize(encoded, size)))))


def any_host(condition: bool) -> bool:
    """Whether it holds on some host."""
    if jax.process_count() == 1:
        return condition
    return bool(np.any(multihost_utils.process_allgather(np.array(condition))))


def gathered(tree: Tree) -> Tree:
    """Every host's arrays of equal shape, stacked along a first axis."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda a: a[None], tree)
    return multihost_utils.process_allgather(tree)
