"""Trees of arrays in one safetensors file, keyed by tree path, with a JSON header.

Paths rather than order: two fields of the same shape cannot be swapped in silence, and a file that
has other leaves than the tree is refused. State and header are one file, so that one rename
replaces both.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from iwae.errors import InputError
from iwae.files import write_atomic

Tree = TypeVar("Tree")


def save(path: Path, tree: Any, header: dict[str, Any]) -> None:
    """Write the array leaves of `tree` and a JSON-able `header`, atomically."""
    leaves = {name: np.asarray(leaf) for name, leaf in _leaves(tree).items()}
    write_atomic(path, safetensors.numpy.save(leaves, {"header": json.dumps(header)}))


def read_header(path: Path) -> dict[str, Any]:
    """The header that `save` wrote; `InputError` if the file is missing, damaged or not ours."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if "header" not in metadata:
        raise InputError(f"{path} was not written by iwae; give the folder of an iwae run.")
    return json.loads(metadata["header"])


def load(path: Path, like: Tree) -> Tree:
    """`like` with its arrays taken from the file; `InputError` names what does not fit."""
    with _opened(path) as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = _leaves(like)
    _check(path, stored, expected)
    arrays = [jnp.asarray(stored[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _check(path: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in expected.keys() ^ stored.keys():
        side = "lacks" if name in expected else "also holds"
        raise InputError(
            f"{path} belongs to another model: it {side} {name}; use it with the configuration "
            f"it was trained with."
        )
    for name, leaf in expected.items():
        if stored[name].shape != leaf.shape or stored[name].dtype != leaf.dtype:
            raise InputError(
                f"{path} belongs to another model: {name} is {stored[name].dtype}"
                f"{list(stored[name].shape)} there, where {leaf.dtype}{list(leaf.shape)} is "
                f"expected; use it with the configuration it was trained with."
            )


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _opened(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged ({error}); restore it from a copy or train again."
        ) from error
