"""Data parallelism: a batch split over the devices of a machine, or of several machines.

On several machines (hosts) every one runs the same program; the first reads and writes the run's
folder, and decides what depends on a clock.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iwae.errors import InputError

Tree = TypeVar("Tree")

PATIENCE = 120.0
"""Seconds in which the first host has to listen."""

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
    called before anything is computed. `InputError` for an address or number that is none, and if
    the first host cannot listen or does not answer.
    """
    if coordinator == "auto":
        try:
            return jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                "coordinator = auto was given, but no cluster says where its hosts are; give "
                "--coordinator HOST:PORT, --hosts and --host."
            ) from error
        except RuntimeError as error:
            why = str(error).partition("\n")[0].rstrip(".")
            raise InputError(
                f"coordinator = auto was given, but the cluster's hosts could not be joined "
                f"({why}); give --coordinator HOST:PORT, --hosts and --host."
            ) from error
    address = re.fullmatch(r"(.+):(\d{1,5})", coordinator)
    if address is None or not 0 < int(address[2]) < 2**16:
        raise InputError(
            f"coordinator = {coordinator} was given, but it is where the first host listens; give "
            f"HOST:PORT, as first-machine:9911, or auto."
        )
    if hosts < 1 or not 0 <= host < hosts:
        raise InputError(
            f"host = {host} was given with hosts = {hosts}, but hosts are counted from 0, and are "
            f"at least 1; give a --host less than --hosts."
        )
    name, port = address[1], int(address[2])
    if host == 0 and not _free(port):
        raise InputError(
            f"coordinator = {coordinator} was given, but this machine cannot listen there; give "
            f"another port."
        )
    if host > 0 and not _reachable(name, port):
        raise InputError(
            f"coordinator = {coordinator} was given, but nobody listens there; start the first "
            f"host as well, with --host 0."
        )
    return jax.distributed.initialize(coordinator, hosts, host)


def _reachable(host: str, port: int) -> bool:
    """Whether somebody listens there before `PATIENCE` is over."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        time.sleep(0.2)
    return False


def _free(port: int) -> bool:
    """Whether this machine can listen there."""
    with contextlib.suppress(OSError), socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        here.bind(("", port))
        return True
    return False


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


@contextlib.contextmanager
def hosts_agree() -> Iterator[None]:
    """What ends one host within it ends all, each with a sentence."""
    failure: InputError | OSError | None = None
    try:
        yield
    except (InputError, OSError) as error:
        failure = error
    elsewhere = any_host(failure is not None)
    if failure is not None:
        raise failure
    if elsewhere:
        raise InputError(
            "Another host could not go on, and none goes on without it; see what it printed."
        )


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
