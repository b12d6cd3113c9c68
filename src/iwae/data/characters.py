"""Omniglot's drawings (Lake, Salakhutdinov & Tenenbaum) resized to 28×28, and their cache."""

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iwae._utils.extras import require
from iwae._utils.files import cache_folder, replacing
from iwae.data.readers import CorruptError, git_blob

RECIPE = "lanczos-28-v1"  # part of the cache's key: change it whenever the arrays would change


SIDES, LARGEST, MANY = (105, 105), 1 << 16, 1 << 16
"""Size of a drawing in pixels; largest file of a drawing in bytes; most members of a zip."""


def read_characters(content: bytes, *, blob: str, pixels: str) -> np.ndarray:
    """All drawings of one zip in the order of their names, uint8 [n, 784], ink 255.

    The zip is verified by its git blob id or, if it was compressed again, by the digest `pixels` of
    its names and decoded pixels. Each drawing is inverted and resized with Pillow's antialiasing
    Lanczos filter; values are clipped to 0..255. The result is cached, keyed by the zip's SHA-256;
    an unusable cache is ignored.
    """
    path = cache_folder() / f"{RECIPE}-{hashlib.sha256(content).hexdigest()}.npz"
    images = _read_cache(path)
    if images is None:
        images, digest = _resize_all(content)
        if git_blob(content) != blob and digest != pixels:
            raise CorruptError("its images are not the published ones")
        _write_cache(path, images)
    return images


def _resize_all(content: bytes) -> tuple[np.ndarray, str]:
    """Resized drawings, and the SHA-256 of names and pixels (one bit per pixel, ink 1)."""
    pillow = require("PIL.Image", purpose="omniglot-raw", extra="data")
    digest, small = hashlib.sha256(), []
    for name, ink in _drawings(content):
        digest.update(name.encode() + np.packbits(ink > 127).tobytes())
        image = pillow.fromarray(ink).resize((28, 28), pillow.Resampling.LANCZOS)
        small.append(np.asarray(image).reshape(784))
    return np.array(small, dtype=np.uint8).reshape(-1, 784), digest.hexdigest()


def _drawings(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Name and ink (uint8, 255 = ink) of each PNG in the zip, in the order of the names."""
    name = ""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if len(archive.namelist()) > MANY:
                raise ValueError("more than there are")
            for name in sorted(archive.namelist()):
                if name.endswith(".png") and not name.startswith("__MACOSX"):
                    yield name, _ink(archive, name)
    except Exception:  # zipfile, its decompressors and Pillow raise many kinds on damaged bytes
        where = f"its member {name} is damaged" if name else "it is not a whole zip file"
        raise CorruptError(where) from None


def _ink(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The ink of one drawing; ValueError if its size is not that of a drawing."""
    pillow = require("PIL.Image", purpose="omniglot-raw", extra="data")
    with archive.open(name) as member:
        content = member.read(LARGEST + 1)
    with pillow.open(io.BytesIO(content)) as image:
        if len(content) > LARGEST or image.size != SIDES:
            raise ValueError("no drawing of Omniglot's size")
        return 255 - np.asarray(image.convert("L"))


def _read_cache(path: Path) -> np.ndarray | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images = arrays["images"]
    except Exception:  # a damaged file can raise anything
        return None
    usable = images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 784
    return images if usable else None


def _write_cache(path: Path, images: np.ndarray) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images)
