"""Verifying readers, from the bytes of a published file to its array of examples."""

import gzip
import hashlib
import io
import math
import zlib

import numpy as np

from iwae.data.dataset import rescale


class CorruptError(ValueError):
    """A file does not have the expected content; the message is a clause that says why."""


def gunzip(content: bytes, most: int) -> bytes:
    """The content, decompressed if it is gzipped; CorruptError if it has more than `most` bytes.

    No more than that is decompressed.
    """
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
        except (EOFError, OSError, zlib.error):
            raise CorruptError("its gzip stream is damaged or ends early") from None
    check_size(len(content), most)
    return content


def check_size(n: int, most: int) -> None:
    """Raises CorruptError for more bytes than a published file has."""
    if n > most:
        raise CorruptError(f"it holds more than the {most:,} bytes that are expected")


def git_blob(content: bytes) -> str:
    """The id git gives this content: sha1("blob <length>\\0" + content)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_idx(content: bytes, *, sha256: str) -> np.ndarray:
    """Images of an IDX file (LeCun et al.), uint8 [n, h·w]."""
    given = hashlib.sha256(content).hexdigest()
    if given != sha256:
        raise CorruptError(f"its SHA-256 is {given[:12]}… and not {sha256[:12]}…")
    header = [int(v) for v in np.frombuffer(content[: len(content[:16]) // 4 * 4], ">u4")]
    if len(header) != 4 or header[0] != 2051 or len(content) != 16 + math.prod(header[1:]):
        raise CorruptError("it is not an IDX file of images")
    return np.frombuffer(content, np.uint8, offset=16).reshape(int(header[1]), -1)


def read_amat(content: bytes, *, rows: int, width: int = 784) -> np.ndarray:
    """Lines of zeros and ones between blanks (Larochelle & Murray 2011), uint8 [rows, width]."""
    if content.translate(None, b"01 \t\r\n"):
        raise CorruptError("it holds other characters than 0, 1 and blanks")
    lines = [line.translate(None, b" \t") for line in content.rstrip().splitlines()]
    if len(lines) != rows:
        raise CorruptError(f"it has {len(lines):,} lines and not {rows:,}")
    touching = any(pair in content for pair in (b"00", b"01", b"10", b"11"))
    if touching or any(len(line) != width for line in lines):
        raise CorruptError(f"not every line has {width} values with blanks between them")
    return np.frombuffer(b"".join(lines), np.uint8).reshape(rows, width) - np.uint8(ord("0"))


def read_chardata(content: bytes, *, blob: str) -> np.ndarray:
    """The IWAE authors' chardata.mat: `data`, then `testdata`, upright, [n, 784].

    8-bit (uint8) when all intensities are multiples of 1/255, else float32 in [0, 1].
    """
    import scipy.io

    given = git_blob(content)
    if given != blob:
        raise CorruptError(f"its git blob id is {given[:12]}… and not {blob[:12]}…")
    try:
        found = scipy.io.loadmat(io.BytesIO(content), variable_names=["data", "testdata"])
        images = np.concatenate([_upright(found["data"]), _upright(found["testdata"])])
    except Exception:  # SciPy raises many kinds on other files
        raise CorruptError("it is not a MATLAB file of data and testdata") from None
    scaled = rescale(images, 255.0)
    return scaled if scaled.dtype == np.uint8 else images.astype(np.float32)


def _upright(columns: np.ndarray) -> np.ndarray:
    """[784, n], each column a transposed image -> [n, 784]."""
    return columns.T.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784)
