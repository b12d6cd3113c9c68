"""Trees of arrays in one safetensors file, keyed by tree path, with a JSON header.

With paths instead of an order, two fields of the same shape cannot be swapped silently, and a file
whose leaves differ from the tree's is rejected. State and header are one file, so that one rename
replaces both. The file carries a digest of its content, which every read verifies.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, PyTree

from iwae._utils.files import write_atomic
from iwae.errors import InputError
from iwae.storage import persisted

Tree = TypeVar("Tree")

Leaf = Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
"""An array of a tree, or its shape and type."""

HEADER, DIGEST = "header", "digest"
"""Entries of the file's metadata, beside those that the writer adds."""

RESTORE = "restore it from a copy or train again"


@dataclass(frozen=True)
class Stored:
    """The content of a file."""

    path: Path
    header: dict[str, object]
    arrays: dict[str, np.ndarray]
    """The arrays by tree path."""
    about: dict[str, str]
    """Texts by which the writer says what the file belongs to."""
    verified: bool
    """Whether the file has a digest; files of early versions have none."""


def save(path: Path, tree: PyTree, header: Mapping[str, object], **about: str) -> None:
    """Write the array leaves of `tree` and a `header` atomically.

    `header` holds values that JSON can represent, and `about` texts on what the file belongs to.
    """
    leaves = arrays(tree)
    metadata = {HEADER: json.dumps(header), **about}
    metadata[DIGEST] = _digest(leaves, metadata)
    write_atomic(path, _with_metadata(safetensors.numpy.save(leaves), metadata))


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The content of a file with its metadata in a fixed order, so that equal trees make equal
    files; safetensors itself shuffles them."""
    ends = 8 + int.from_bytes(content[:8], "little")
    table = json.dumps({"__metadata__": metadata} | json.loads(content[8:ends])).encode()
    table += b" " * (-len(table) % 8)
    return len(table).to_bytes(8, "little") + table + content[ends:]


def read(path: Path) -> Stored:
    """Read a file of `save`; `InputError` if it is missing, damaged or not written by iwae."""
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        try:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # a type that NumPy lacks, or an offset beyond the file
            raise persisted.damaged(path, RESTORE, f"{error}") from error
    if HEADER not in metadata:
        raise InputError(f"{path} was not written by iwae; give the directory of an iwae run.")
    digest = metadata.pop(DIGEST, None)
    about = {name: text for name, text in metadata.items() if name != HEADER}
    if digest is None and about:
        raise persisted.damaged(path, RESTORE, "it lacks its digest")
    if digest not in (None, _digest(stored, metadata)):
        raise persisted.damaged(path, RESTORE, "its digest does not match its content")
    try:
        header = persisted.typed(persisted.parsed(metadata[HEADER]), dict[str, object], HEADER)
    except persisted.MistypedError as error:
        raise persisted.damaged(path, RESTORE, str(error)) from error
    return Stored(path, header, stored, about, digest is not None)


def read_header(path: Path) -> dict[str, object]:
    """The header of a file; errors as in `read`."""
    return read(path).header


def names(path: Path) -> list[str]:
    """The tree paths of a file's arrays, without reading these; `InputError` if it is not a
    safetensors file."""
    with _opened(path) as file:
        return sorted(file.keys())


def written_about(path: Path) -> dict[str, str]:
    """The metadata of a file, without verification; empty if it cannot be read."""
    try:
        with _opened(path) as file:
            return dict(file.metadata() or {})
    except InputError:
        return {}


def load(path: Path, like: Tree) -> Tree:
    """`like` with its arrays read from the file; `InputError` names a mismatch."""
    return fitted(read(path), like)


def fitted(stored: Stored, like: Tree) -> Tree:
    """`like` with the stored arrays; `InputError` names a mismatch."""
    expected = _leaves(like)
    _check(stored.path, stored.arrays, expected)
    return jax.tree.unflatten(
        jax.tree.structure(like), [jnp.asarray(stored.arrays[name]) for name in expected]
    )


def arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The array leaves of a tree, by path."""
    return {name: np.asarray(leaf) for name, leaf in _leaves(tree).items()}


def shapes(tree: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array leaf of a tree, by path."""
    return {name: (tuple(a.shape), str(a.dtype)) for name, a in _leaves(tree).items()}


def _digest(leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata and of the name, type, shape and bytes of every array."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[name])
        about = [name, str(leaf.dtype), list(leaves[name].shape)]
        digest.update(json.dumps(about).encode())
        digest.update(leaf.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check(path: Path, stored: Mapping[str, np.ndarray], expected: Mapping[str, Leaf]) -> None:
    for name in expected.keys() ^ stored.keys():
        side = "lacks" if name in expected else "also holds"
        raise InputError(
            f"{path} belongs to another model: it {side} {name}; use it with the configuration "
            f"it was trained with, or if an earlier version of iwae trained it, train it again."
        )
    for name, leaf in expected.items():
        if stored[name].shape != leaf.shape or stored[name].dtype != leaf.dtype:
            raise InputError(
                f"{path} belongs to another model: {name} is {stored[name].dtype}"
                f"{list(stored[name].shape)} there, where {leaf.dtype}{list(leaf.shape)} is "
                f"expected; use it with the configuration it was trained with."
            )


def _leaves(tree: PyTree) -> dict[str, Leaf]:
    return {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _opened(path: Path) -> safetensors.safe_open:
    persisted.check_regular(path)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise persisted.damaged(path, RESTORE, f"{error}") from error
