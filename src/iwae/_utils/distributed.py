"""Data parallelism: a batch split over the devices of a machine, or of several machines.

On several machines every one runs the same program, in a process of its own (as JAX counts them);
the first reads and writes the run's directory, and decides what depends on a clock.
"""

import contextlib
import ipaddress
import json
import os
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
from jax.typing import ArrayLike
from jaxtyping import PyTree

from iwae.errors import InputError

Tree = TypeVar("Tree")
Json = TypeVar("Json", bound=object)
"""What JSON can hold, its sequences as lists."""

PATIENCE = 120.0
"""Seconds in which the first process has to listen."""

BATCH = "batch"
"""The axis that is split."""


computed_in: int | None = None
"""The process in which this package has computed; a child that is forked inherits it."""


@contextlib.contextmanager
def computing(given: PyTree = None) -> Iterator[None]:
    """Where this package computes: in 32 bits, whatever `JAX_ENABLE_X64` says of other code, so
    that a run is the same in both modes; in 64 if `given` holds numbers of 64 bits.

    `InputError` in a process that was forked from one that has computed: XLA's threads are not
    there, and whoever waits for them waits for ever.
    """
    global computed_in
    if computed_in not in (None, os.getpid()):
        raise InputError(
            "This process was forked from one in which JAX had computed already, where JAX would "
            "wait for ever; start processes by multiprocessing.get_context('spawn'), or load and "
            "compute in the child alone."
        )
    computed_in = os.getpid()
    config: Any = jax.config
    wide = _holds_64_bits(given)
    with contextlib.nullcontext() if config.jax_enable_x64 == wide else jax.enable_x64(wide):
        yield


def _holds_64_bits(tree: PyTree) -> bool:
    """Whether an array of JAX in it has numbers of 64 bits, other than integers."""
    wide = lambda a: isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, np.inexact)
    return any(wide(leaf) and leaf.dtype.itemsize >= 8 for leaf in jax.tree.leaves(tree))


@dataclass(frozen=True)
class Devices:
    """Where a run computes: on the devices of a mesh, or (None) on the default one alone."""

    mesh: Mesh | None = None

    @staticmethod
    def of(count: int, batch_size: int) -> "Devices":
        """So many devices of this machine, or all of all processes if there are several.

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
                f"devices = {count} was given with several processes, which use all they have; "
                f"leave it out."
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
        """A copy of arrays on every device; each process gives the same."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def one(a: ArrayLike) -> jax.Array:
            if isinstance(a, jax.Array) and a.sharding == sharding:
                return a
            values = np.asarray(a)
            return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])

        return jax.tree.map(one, tree)

    def here(self, tree: Tree) -> Tree:
        """The copy on the first device of this process."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda a: a.addressable_data(0), tree)


def join(coordinator: str, processes: int, process: int) -> None:
    """Make this process number `process` of so many; the first listens at HOST:PORT, and at no
    other address of its machine.

    With coordinator "auto" all three come from the cluster (SLURM, Kubernetes, Open MPI). To be
    called before anything is computed. `InputError` for an address or number that is none, and if
    the first process cannot listen or does not answer.
    """
    if coordinator == "auto":
        return _join_cluster()
    address = re.fullmatch(r"(.+):(\d{1,5})", coordinator)
    if address is None or not 0 < int(address[2]) < 2**16:
        raise InputError(
            f"coordinator = {coordinator} was given, but it is where the first process listens; "
            f"give HOST:PORT, as first-machine:9911, or auto."
        )
    if processes < 1 or not 0 <= process < processes:
        raise InputError(
            f"process = {process} was given with processes = {processes}, but processes are "
            f"counted from 0, and are at least 1; give a number less than how many there are."
        )
    name, port = address[1].strip("[]"), int(address[2])
    if process == 0:
        _check_listening(coordinator, name, port)
    if process > 0 and not _reachable(name, port):
        raise InputError(
            f"coordinator = {coordinator} was given, but nobody listens there; start the first "
            f"process as well, with number 0."
        )
    own = coordinator if process == 0 else None
    return jax.distributed.initialize(coordinator, processes, process, coordinator_bind_address=own)


def _join_cluster() -> None:
    """Come together as the cluster says."""
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise InputError(
            "coordinator = auto was given, but no cluster says where its processes are; give "
            "HOST:PORT, how many there are, and which this one is."
        ) from error
    except RuntimeError as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"coordinator = auto was given, but the cluster's processes could not be joined "
            f"({why}); give HOST:PORT, how many there are, and which this one is."
        ) from error


def _reachable(name: str, port: int) -> bool:
    """Whether somebody listens there before `PATIENCE` is over."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        with contextlib.suppress(OSError), socket.create_connection((name, port), timeout=1):
            return True
        time.sleep(0.2)
    return False


def _check_listening(coordinator: str, name: str, port: int) -> None:
    """`InputError` if this machine cannot listen there, or where no other machine reaches it."""
    try:
        places = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"coordinator = {coordinator} was given, but {name} is the name of no machine here; "
            f"give the first machine's own name or address."
        ) from error
    addresses = [str(place[4][0]) for place in places]
    alone = all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in addresses)
    if alone and name != "localhost" and name not in addresses:
        raise InputError(
            f"coordinator = {coordinator} was given, but on this machine {name} is {addresses[0]}, "
            f"where no other reaches it; give the address by which the others know it."
        )
    if not any(_free(*place[::4]) for place in places):
        raise InputError(
            f"coordinator = {coordinator} was given, but this machine cannot listen there; give "
            f"an address of its own, and another port if this one is taken."
        )


def _free(family: int, place: tuple[str | int, ...]) -> bool:
    """Whether this machine can listen at an address."""
    with contextlib.suppress(OSError), socket.socket(family) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        here.bind(place)
        return True
    return False


def is_first() -> bool:
    """Whether this process reads and writes files."""
    return jax.process_index() == 0


def from_first(tree: Tree) -> Tree:
    """Arrays and numbers as the first process has them."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def json_from_first(content: Json) -> Json:
    """What JSON can hold, as the first process has it."""
    if jax.process_count() == 1:
        return content
    encoded = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(from_first(np.array(len(encoded))))
    return json.loads(bytes(np.asarray(from_first(np.resize(encoded, size)))))


@contextlib.contextmanager
def processes_agree() -> Iterator[None]:
    """What ends one process within it ends all, each with a message."""
    failure: InputError | OSError | None = None
    try:
        yield
    except (InputError, OSError) as error:
        failure = error
    elsewhere = any_process(failure is not None)
    if failure is not None:
        raise failure
    if elsewhere:
        raise InputError(
            "Another process could not go on, and none goes on without it; see what it printed."
        )


def any_process(condition: bool) -> bool:
    """Whether it holds in some process."""
    if jax.process_count() == 1:
        return condition
    return bool(np.any(multihost_utils.process_allgather(np.array(condition))))


def gathered(tree: Tree) -> Tree:
    """Every process's arrays of equal shape, stacked along a first axis."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda a: a[None], tree)
    return multihost_utils.process_allgather(tree)
