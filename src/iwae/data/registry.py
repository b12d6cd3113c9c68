"""The published data sets: their files, checksums, splits and provenance."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from iwae._utils.extras import require
from iwae.data import files
from iwae.data.characters import read_characters
from iwae.data.dataset import Dataset
from iwae.data.files import File, FileStatus
from iwae.data.in_use import shared
from iwae.data.readers import read_amat, read_chardata, read_idx
from iwae.errors import InputError, nearest

UNVERIFIED = "content not verified: no checksum of the published files is known"

OMNIGLOT_RAW = (
    "not the authors' 28×28 images: Lake et al.'s 105×105 drawings, "
    "inverted and resized to 28×28 with Pillow's Lanczos filter"
)


@dataclass(frozen=True)
class Entry:
    """A registered data set; `build` makes it from the arrays of its files, in their order."""

    build: Callable[..., Dataset]
    files: tuple[File, ...] = ()
    folders: tuple[str, ...] = ()


def load_named(name: str, data_dir: Path | None) -> Dataset:
    """The registered data set `name`, from its verified (or downloaded) files."""
    entry = REGISTRY[name]
    files.check_folder(data_dir)
    roots = files.search_path(data_dir) if entry.files else ()

    def read() -> Dataset:
        return entry.build(*[files.read(file, entry.folders, roots) for file in entry.files])

    found = [files.find(file, entry.folders, roots) for file in entry.files]
    return shared(found, read, entry)


def status(
    name: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    verify: bool = False,
) -> list[FileStatus]:
    """The status of the files of one or all data sets, without downloading any.

    `verify` reads each file as `load` would, and verifies its content.
    """
    if name is not None and name not in REGISTRY:
        raise InputError(f"{name!r} is not a data set: {nearest(name, list(NAMES))}.")
    roots = files.search_path(None if data_dir is None else Path(data_dir))
    return [
        found
        for dataset in (NAMES if name is None else (name,))
        for found in _entry_status(dataset, roots, verify=verify)
    ]


def _entry_status(name: str, roots: tuple[Path, ...], *, verify: bool) -> list[FileStatus]:
    entry = REGISTRY[name]
    if not entry.files:
        return [FileStatus(name, "load_digits", None, (), "present", "part of scikit-learn")]
    return [files.status(f, name, entry.folders, roots, verify=verify) for f in entry.files]


def _digits() -> Dataset:
    """1,797 images of 8×8, shuffled by default_rng(0): 1,297 train, 100 valid, 400 test."""
    datasets = require("sklearn.datasets", purpose="the data set digits")
    x = datasets.load_digits().data.astype(np.uint8)
    x = x[np.random.default_rng(0).permutation(len(x))]
    return Dataset("digits", x[:1297], x[1297:1397], x[1397:], "intensity", 16.0, (8, 8))


def _mnist(train: np.ndarray, test: np.ndarray, *, valid: int) -> Dataset:
    """The last `valid` training images held out, as in Burda et al.'s code."""
    return Dataset("mnist", train[:-valid], train[-valid:], test, "intensity", 255.0, (28, 28))


def _mnist_fixed(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> Dataset:
    return Dataset("mnist-fixed", train, valid, test, "binary", 1.0, (28, 28), UNVERIFIED)


def _omniglot(images: np.ndarray, *, valid: int, test: int) -> Dataset:
    """The last `test` images are the test set; train permuted, its last `valid` held out."""
    train = images[:-test]
    train = train[np.random.default_rng(0).permutation(len(train))]
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    splits = (train[:-valid], train[-valid:], images[-test:])
    return Dataset("omniglot", *splits, "intensity", scale, (28, 28))


def _omniglot_raw(
    background: np.ndarray, evaluation: np.ndarray, *, train: int, valid: int, test: int
) -> Dataset:
    """The paper's sizes by moving evaluation images to the background set (DD2434, seed 42).

    default_rng(42) permutes the evaluation images: the first are moved until there are `train`
    training images, the next `test` are the test set (in the files' order), and the rest (45)
    are left out. The same generator then permutes the training images, whose last `valid` are
    held out.
    """
    rng = np.random.default_rng(42)
    order, moved = rng.permutation(len(evaluation)), train - len(background)
    examples = np.concatenate([background, evaluation[order[:moved]]])
    examples = examples[rng.permutation(train)]
    kept = evaluation[np.sort(order[moved : moved + test])]
    splits = (examples[:-valid], examples[-valid:], kept)
    return Dataset("omniglot-raw", *splits, "intensity", 255.0, (28, 28), OMNIGLOT_RAW)


def _mnist_file(name: str, sha256: str) -> File:
    hosts = (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    )
    reader = partial(read_idx, sha256=sha256)
    return File(name, tuple(f"{h}/{name}.gz" for h in hosts), reader, most=16 + 60_000 * 784)


def _amat_file(split: str, rows: int) -> File:
    name = f"binarized_mnist_{split}.amat"
    host = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
    reader, most = partial(read_amat, rows=rows), rows * (2 * 784 + 2)
    return File(name, (f"{host}/{name}",), reader, most, known=False)


def _characters_file(name: str, blob: str, pixels: str) -> File:
    host = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    reader = partial(read_characters, blob=blob, pixels=pixels)
    return File(name, (f"{host}/{name}",), reader, most=1 << 26)


# SHA-256 and git blob ids are of the published content, decompressed. The digests of names and
# pixels were computed on zips with the official layout that had been compressed again.
REGISTRY: dict[str, Entry] = {
    "digits": Entry(_digits),
    "mnist": Entry(
        partial(_mnist, valid=400),
        (
            _mnist_file(
                "train-images-idx3-ubyte",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            _mnist_file(
                "t10k-images-idx3-ubyte",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
        ),
        ("mnist",),
    ),
    "mnist-fixed": Entry(
        _mnist_fixed,
        (_amat_file("train", 50_000), _amat_file("valid", 10_000), _amat_file("test", 10_000)),
        ("mnist-fixed", "binarized_mnist"),
    ),
    "omniglot": Entry(
        partial(_omniglot, valid=1345, test=8070),
        (
            File(
                "chardata.mat",
                (
                    "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat",
                ),
                partial(read_chardata, blob="016a3536ffe5e1d38e42563a18d7a78bfaf643ec"),
            ),
        ),
        ("omniglot",),
    ),
    "omniglot-raw": Entry(
        partial(_omniglot_raw, train=24_345, valid=1345, test=8070),
        (
            _characters_file(
                "images_background.zip",
                "71fd167eb6fdd312049395fbd247147a4b234231",
                "dfcc28b41758e7305321a1f7c56692e4ab67441f581bbc58aac99d8be7f15209",
            ),
            _characters_file(
                "images_evaluation.zip",
                "8ccde0ed1565641f1fa8c57cdc6ff634e15fc5c1",
                "1445ff97df5bf67dddc15b43f0dff2f1e64327b54dad479d185aa7d9b11dbb00",
            ),
        ),
        ("omniglot",),
    ),
}
NAMES = tuple(REGISTRY)
