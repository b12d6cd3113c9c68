"""Data parallelism: a batch split over the devices of a machine, or of several machines.

With several machines, each runs the same program in its own process (in JAX's sense); the first
process reads and writes the run directory, and decides whatever depends on a clock.
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
"""A value that JSON can represent, with its sequences as lists."""

PATIENCE = 120.0
"""Seconds to wait for the first process to listen."""

BATCH = "batch"
"""The mesh axis over which a batch is split."""


computed_in: int | None = None
"""The id of the process in which this package has computed; a forked child inherits it."""


@contextlib.contextmanager
def computing(given: PyTree = None) -> Iterator[None]:
    """Context in which this package computes: in 32 bits, or in 64 if `given` holds 64-bit floats.

    The mode does not depend on `JAX_ENABLE_X64`, so that a run is the same with and without it.
    `InputError` in a process that was forked from one that has computed: it lacks XLA's threads,
    and would wait for them for ever.
    """
    global computed_in
    if computed_in not in (None, os.getpid()):
        raise InputError(
            "This process was forked from one in which JAX had already computed, so JAX would hang "
            "here; start processes with multiprocessing.get_context('spawn'), or load and compute "
            "only in the child."
        )
    computed_in = os.getpid()
    config: Any = jax.config
    wide = _holds_64_bits(given)
    with contextlib.nullcontext() if config.jax_enable_x64 == wide else jax.enable_x64(wide):
        yield


def _holds_64_bits(tree: PyTree) -> bool:
    """Whether the tree holds a JAX array of 64-bit floats or larger."""
    wide = lambda a: isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, np.inexact)
    return any(wide(leaf) and leaf.dtype.itemsize >= 8 for leaf in jax.tree.leaves(tree))


@dataclass(frozen=True)
class Devices:
    """The devices of a run: those of a mesh, or (None) the default device."""

    mesh: Mesh | None = None

    @staticmethod
    def of(count: int, batch_size: int) -> "Devices":
        """`count` devices of this machine, or, with several processes, all devices of all of them.

        `InputError` if there are fewer, or if they cannot share a batch equally.
        """
        several = jax.process_count() > 1
        if count < 1 or count > len(jax.local_devices()):
            raise InputError(
                f"devices = {count} was given, but this machine has {len(jax.local_devices())}; "
                f"give 1 to {len(jax.local_devices())}."
            )
        if several and count not in (1, len(jax.local_devices())):
            raise InputError(
                f"devices = {count} was given with several processes, which use all their devices; "
                f"leave it out."
            )
        chosen = jax.devices() if several else jax.local_devices()[:count]
        found = Devices(Mesh(np.array(chosen), (BATCH,)) if len(chosen) > 1 else None)
        found.check(batch_size)
        return found

    def check(self, batch_size: int) -> None:
        """`InputError` if the devices cannot share a batch equally."""
        several = 1 if self.mesh is None else self.mesh.size
        if batch_size % several != 0:
            raise InputError(
                f"batch_size = {batch_size} was given, but {several} devices must share a "
                f"batch equally; give a multiple of {several}."
            )

    def split(self, tree: Tree) -> Tree:
        """Within a compiled program: shard the first axis of arrays over the devices."""
        return self._laid_out(tree, PartitionSpec(BATCH))

    def whole(self, tree: Tree) -> Tree:
        """Within a compiled program: replicate arrays on every device."""
        return self._laid_out(tree, PartitionSpec())

    def _laid_out(self, tree: Tree, how: PartitionSpec) -> Tree:
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, how))

    def everywhere(self, tree: Tree) -> Tree:
        """A copy of the arrays on every device; all processes must pass the same arrays."""
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
    """Make this process number `process` of `processes`.

    The first process listens at `coordinator`, HOST:PORT, and at no other address of its machine.
    With coordinator "auto" the cluster (SLURM, Kubernetes, Open MPI) provides all three values.
    Call it before anything is computed. `InputError` for an invalid address or number, and if the
    first process cannot listen or does not answer.
    """
    if coordinator == "auto":
        return _join_cluster()
    address = re.fullmatch(r"(.+):(\d{1,5})", coordinator)
    if address is None or not 0 < int(address[2]) < 2**16:
        raise InputError(
            f"coordinator = {coordinator} was given, but it must be the address at which the first "
            f"process listens; give HOST:PORT, such as first-machine:9911, or auto."
        )
    if processes < 1 or not 0 <= process < processes:
        raise InputError(
            f"process = {process} was given with processes = {processes}, but processes are "
            f"numbered from 0, and there is at least 1; give a number from 0 to processes - 1."
        )
    name, port = address[1].strip("[]"), int(address[2])
    if process == 0:
        _check_listening(coordinator, name, port)
    if process > 0 and not _reachable(name, port):
        raise InputError(
            f"coordinator = {coordinator} was given, but no process listens there; also start the "
            f"first process, with number 0."
        )
    own = coordinator if process == 0 else None
    return jax.distributed.initialize(coordinator, processes, process, coordinator_bind_address=own)


def _join_cluster() -> None:
    """Join the processes that the cluster describes."""
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise InputError(
            "coordinator = auto was given, but no cluster was detected; give HOST:PORT, the number "
            "of processes, and the number of this one."
        ) from error
    except RuntimeError as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"coordinator = auto was given, but the cluster's processes could not be joined "
            f"({why}); give HOST:PORT, the number of processes, and the number of this one."
        ) from error


def _reachable(name: str, port: int) -> bool:
    """Whether a process listens there within `PATIENCE` seconds."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        with contextlib.suppress(OSError), socket.create_connection((name, port), timeout=1):
            return True
        time.sleep(0.2)
    return False


def _check_listening(coordinator: str, name: str, port: int) -> None:
    """`InputError` if this machine cannot listen there, or if no other machine could reach it."""
    try:
        places = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"coordinator = {coordinator} was given, but {name} cannot be resolved here; give the "
            f"first machine's own name or address."
        ) from error
    addresses = [str(place[4][0]) for place in places]
    alone = all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in addresses)
    if alone and name != "localhost" and name not in addresses:
        raise InputError(
            f"coordinator = {coordinator} was given, but on this machine {name} is {addresses[0]}, "
            f"where no other machine can reach it; give the address by which the others know it."
        )
    if not any(_free(*place[::4]) for place in places):
        raise InputError(
            f"coordinator = {coordinator} was given, but this machine cannot listen there; give "
            f"one of its own addresses, and another port if this one is taken."
        )


def _free(family: int, place: tuple[str | int, ...]) -> bool:
    """Whether this machine can listen at an address."""
    with contextlib.suppress(OSError), socket.socket(family) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        here.bind(place)
        return True
    return False


def is_first() -> bool:
    """Whether this is the first process, which reads and writes files."""
    return jax.process_index() == 0


def from_first(tree: Tree) -> Tree:
    """Arrays and numbers as the first process has them."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def json_from_first(content: Json) -> Json:
    """A value that JSON can represent, as the first process has it."""
    if jax.process_count() == 1:
        return content
    encoded = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(from_first(np.array(len(encoded))))
    return json.loads(bytes(np.asarray(from_first(np.resize(encoded, size)))))


@contextlib.contextmanager
def processes_agree() -> Iterator[None]:
    """Context in which an `InputError` or `OSError` of one process is raised in all of them."""
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
            "Another process failed, so all were stopped; see what that process printed."
        )


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process."""
    if jax.process_count() == 1:
        return condition
    return bool(np.any(multihost_utils.process_allgather(np.array(condition))))


def gathered(tree: Tree) -> Tree:
    """Every process's arrays of equal shape, stacked along a first axis."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda a: a[None], tree)
    return multihost_utils.process_allgather(tree)
