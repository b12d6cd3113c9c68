"""Writing files so that a reader, or a crash, only ever sees the old one or the whole new one."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iwae.errors import InputError

TEMPORARY = ".tmp"
"""Ends the name of a file that is being written; a crash can leave one behind."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed to the disk and renamed to `path` on success."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, rename it to `path`.

    Raises `InputError` when the disk is full or the folder cannot be written; `path` is then as it
    was before.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(
            f"{path} could not be written: {error.strerror}; what was there before is unharmed. "
            f"Free some space or choose another place, then run the command again."
        ) from error


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits while another process is in such a block on this folder or file, where its system has
    locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """`InputError` if `path` exists and must not be overwritten, or has no folder to lie in."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name, or give --overwrite to replace it.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} into; create it.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
