"""Atomic writing of files: a reader, or a crash, sees either the old or the complete new file."""

import contextlib
import errno
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

from iwae.errors import InputError

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; a crash can leave one behind."""

LOCK = ".lock"
"""Suffix of a lock file."""


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
        if os.name == "posix":  # mkstemp makes it unreadable for others
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, rename it to `path`.

    Raises `InputError` if the disk is full or the directory is not writable; `path` is then
    unchanged.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(
            f"{path} could not be written: {error.strerror}; the previous content is unchanged. "
            f"Free some space or choose another place, then run the command again."
        ) from error


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock on the file `path`, which is created for it.

    The operating system releases the lock when the process ends, however it ends.
    `BlockingIOError` if another process holds it and `wait` is False; `OSError` if the file system
    has no locks.
    """
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except filelock.Timeout as error:
        raise BlockingIOError(errno.EAGAIN, "It is locked", str(path)) from error
    except NotImplementedError as error:
        raise OSError(errno.ENOSYS, "No locks available", str(path)) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Context that only one process at a time enters for this directory or file.

    Without effect on file systems without locks.
    """
    place = path / f".turn{LOCK}" if path.is_dir() else path.with_name(f".{path.name}{LOCK}")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(locked(place, wait=True))
        yield


OF_A_RUN = (
    "config.toml",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "model.safetensors",
    "evaluation.json",
)
"""The names of the files of a run, which no other output may replace."""


def check_writable(path: Path, *, overwrite: bool, reads: str | Path | None = None) -> None:
    """`InputError` if `path` exists and must not be overwritten, or its directory does not exist.

    A file that the command `reads`, and a file of a run, must not be overwritten even if
    `overwrite` is True.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name, or give --overwrite to replace it.")
    if path.exists() and reads is not None and Path(reads).exists() and path.samefile(reads):
        raise InputError(f"{path} is the file to be read; give another file to write to.")
    if path.exists() and path.name in OF_A_RUN and (path.parent / OF_A_RUN[0]).exists():
        raise InputError(f"{path} is a file of a run; give another file to write to.")
    if not path.parent.is_dir():
        raise InputError(f"There is no directory {path.parent} to write {path.name} to; create it.")


def as_argument(path: Path | str) -> str:
    """The path as a shell argument: quoted if necessary, and never mistaken for a flag.

    A path with unprintable characters is written as $'…', which bash, zsh and ksh read.
    """
    name = str(path)
    if name.startswith("-"):
        name = f"./{name}"
    if name.isprintable():
        return shlex.quote(name)
    plain = lambda c: c.isprintable() and c not in "\\'"
    return f"$'{''.join(c if plain(c) else _octets(c) for c in name)}'"


def _octets(character: str) -> str:
    octets = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\{octet:03o}" for octet in octets)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder() -> Path:
    """The cache directory: IWAE_CACHE_DIR, or that of the operating system."""
    chosen = os.environ.get("IWAE_CACHE_DIR") or platformdirs.user_cache_dir("iwae")
    return Path(chosen).expanduser()
