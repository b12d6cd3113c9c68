"""The files of the registered data sets: located, verified, downloaded."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iwae._utils.extras import require
from iwae._utils.files import cache_folder, replacing
from iwae.data.readers import CorruptError, check_size, gunzip
from iwae.errors import InputError

TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces of an answer

LARGEST = 1 << 27
"""Largest download in bytes; every published file is smaller."""


@dataclass(frozen=True)
class File:
    """A published file: its name, its addresses, and its verifying reader.

    `read` takes the decompressed content, and raises CorruptError if it is not the published one.
    """

    name: str
    addresses: tuple[str, ...]
    read: Callable[[bytes], np.ndarray]
    most: int = 100 << 20
    """Largest content in bytes; the default is GitHub's limit."""
    known: bool = True
    """Whether a checksum of the published content is known."""


@dataclass(frozen=True)
class FileStatus:
    """The result of `status`; `state` is "verified", "present", "missing" or "corrupt"."""

    dataset: str
    file: str
    path: Path | None
    looked_in: tuple[Path, ...]
    state: str
    detail: str


def check_folder(data_dir: Path | None) -> None:
    if data_dir is not None and not data_dir.expanduser().is_dir():
        what = f"The data folder {str(data_dir)!r} does not exist or is not a folder"
        raise InputError(f"{what}: give the folder that holds the data sets, or leave it out.")


def search_path(data_dir: Path | None) -> tuple[Path, ...]:
    """The directories to search, in order: `data_dir`, IWAE_DATA_DIR, the user's cache."""
    check_folder(data_dir)
    variable = os.environ.get("IWAE_DATA_DIR")
    if variable and not Path(variable).expanduser().is_dir():
        what = f"IWAE_DATA_DIR is {variable!r}, which does not exist or is not a folder"
        raise InputError(f"{what}: set it to the folder that holds the data sets, or unset it.")
    given = [data_dir, Path(variable) if variable else None, cache_folder()]
    return tuple(dict.fromkeys(folder.expanduser() for folder in given if folder is not None))


def find(file: File, folders: tuple[str, ...], roots: tuple[Path, ...]) -> Path | None:
    """The first of ROOT/FOLDER/NAME, ROOT/FOLDER/NAME.gz, ROOT/NAME, ROOT/NAME.gz that exists."""
    places = (root / folder for root in roots for folder in (*folders, "."))
    names = (file.name, f"{file.name}.gz")
    return next((p / name for p in places for name in names if (p / name).is_file()), None)


def read(file: File, folders: tuple[str, ...], roots: tuple[Path, ...]) -> np.ndarray:
    """The examples of a file, which is downloaded into the last of `roots` if it is not found.

    InputError if a file is found but damaged: it is neither skipped nor replaced.
    """
    path = find(file, folders, roots)
    if path is None:
        return _download_any(file, folders[0], roots)
    try:
        return _read(file, path)
    except CorruptError as error:
        what = f"{path} cannot be used: {error}"
        raise InputError(
            f"{what}; delete it and fetch it again from {file.addresses[0]}."
        ) from None


def status(
    file: File, dataset: str, folders: tuple[str, ...], roots: tuple[Path, ...], *, verify: bool
) -> FileStatus:
    """The status of a file; `verify` reads it and verifies its content. Downloads nothing."""
    path = find(file, folders, roots)
    if path is None:
        detail = f"served at {file.addresses[0]}"
        return FileStatus(dataset, file.name, None, roots, "missing", detail)
    if not verify:
        return FileStatus(dataset, file.name, path, roots, "present", "content not checked")
    try:
        examples = _read(file, path)
    except CorruptError as error:
        return FileStatus(dataset, file.name, path, roots, "corrupt", str(error))
    detail = f"{len(examples):,} examples"
    if not file.known:
        detail += ", whose form was checked; content not verified"
        return FileStatus(dataset, file.name, path, roots, "present", detail)
    return FileStatus(dataset, file.name, path, roots, "verified", detail)


def _read(file: File, path: Path) -> np.ndarray:
    try:
        check_size(path.stat().st_size, file.most)
        content = path.read_bytes()
    except OSError as error:
        raise CorruptError(f"it cannot be read ({error.strerror})") from None
    return file.read(gunzip(content, file.most))


def _download_any(file: File, folder: str, roots: tuple[Path, ...]) -> np.ndarray:
    """Tries the addresses in order, and keeps the first download with the right content."""
    target, failures = roots[-1] / folder, []
    for address in file.addresses:
        try:
            target.mkdir(parents=True, exist_ok=True)
            with replacing(target / address.rsplit("/", 1)[-1]) as temporary:
                download(address, temporary)
                return _read(file, temporary)
        except (OSError, CorruptError) as error:
            failures.append(f"{address}: {_reason(error)}")
    places = ", ".join(str(root) for root in roots)
    what = f"{file.name} is neither in {places} (nor in a folder {folder} there)"
    tried = f"nor could it be downloaded ({'; '.join(failures)})"
    raise InputError(f"{what}, {tried}: fetch {file.addresses[0]} by hand and put it in {target}.")


def _reason(error: Exception) -> str:
    if isinstance(error, CorruptError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be written ({error.strerror})"
    code = getattr(getattr(error, "response", None), "status_code", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def download(address: str, path: Path) -> None:
    """Downloads `address` to `path`. Raises OSError if that fails, and CorruptError if the file is
    larger than `LARGEST`."""
    pooch = require("pooch", purpose="a download")
    logging.getLogger("iwae").info("downloading %s", address)
    bound = _Bound(path)
    get = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 16, progressbar=bound)
    get(address, str(path), None)


class _Bound:
    """A progress bar for pooch that ends a download which is too large."""

    def __init__(self, path: Path):
        self.path = path

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if name == "total" and isinstance(value, int):  # the size that the server announces
            self._check(value)

    def update(self, _: int) -> None:
        self._check(self.path.stat().st_size)  # the unpacked size, not that of the transfer

    def _check(self, size: int) -> None:
        if size > LARGEST:
            raise CorruptError(f"more than {LARGEST:,} bytes are served")

    def reset(self) -> None: ...

    def close(self) -> None: ...
