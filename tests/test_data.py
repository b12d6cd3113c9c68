"""Readers on tiny files of the published formats, splits, own arrays, and every error sentence."""

import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from PIL import Image

from iwae import data
from iwae.data import arrays, characters, files, in_use, readers, registry
from iwae.data.dataset import rescale
from iwae.errors import InputError

REAL = os.environ.get("IWAE_DATA_DIR")
RNG = np.random.default_rng(7)
NAMES = "digits, mnist, mnist-fixed, omniglot, omniglot-raw"
MNIST_HOST = "https://ossci-datasets.s3.amazonaws.com/mnist"
TRAIN, T10K = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


@contextmanager
def says(sentence):
    """The block raises InputError with exactly this message."""
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no IWAE_DATA_DIR, and no network."""

    def refuse(address, path):
        raise ConnectionError(address)

    monkeypatch.setenv("IWAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("IWAE_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "download", refuse)
    return tmp_path / "cache"


def idx(images):
    return np.array([2051, *images.shape], ">u4").tobytes() + images.tobytes()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def expect(monkeypatch, name, *readers_, **sizes):
    """Gives the registered data set's files other readers, and its splits other sizes."""
    entry = registry.REGISTRY[name]
    small = tuple(replace(f, read=r) for f, r in zip(entry.files, readers_, strict=True))
    build = partial(entry.build, **sizes)
    monkeypatch.setitem(registry.REGISTRY, name, replace(entry, build=build, files=small))


@pytest.fixture
def mnist(monkeypatch):
    """Contents of two tiny IDX files that pass for MNIST: five and two images of 28×28."""
    images = [RNG.integers(0, 256, (n, 28, 28)).astype(np.uint8) for n in (5, 2)]
    contents = [idx(x) for x in images]
    digests = [hashlib.sha256(c).hexdigest() for c in contents]
    expect(monkeypatch, "mnist", *(partial(readers.read_idx, sha256=d) for d in digests), valid=2)
    return images, contents


def store(folder, contents, suffix="", pack=bytes):
    for name, content in zip((TRAIN, T10K), contents, strict=True):
        put(folder / (name + suffix), pack(content))


# --- the data set itself


def tiny(kind="intensity", scale=4.0, dtype=np.uint8):
    x = np.array([[0, 4, 1], [2, 4, 3], [4, 4, 2], [2, 4, 2]], dtype)
    return data.Dataset("tiny", x, x[:2], x[2:], kind, scale, (3,))


def test_mean_and_std_are_of_the_scaled_training_split():
    np.testing.assert_array_equal(tiny().mean(), np.float32([0.5, 1.0, 0.5]))
    expected = np.std(tiny().train / 4.0, axis=0).astype(np.float32)
    np.testing.assert_allclose(tiny().std(), expected, rtol=1e-6)
    assert tiny().mean().dtype == tiny().std().dtype == np.float32


def test_std_of_many_blocks_is_exact():
    x = RNG.integers(0, 256, (10_000, 3)).astype(np.uint8)
    dataset = data.Dataset("many", x, x[:1], x[:1], "intensity", 255.0, (3,))
    np.testing.assert_allclose(dataset.std(), (x / 255).std(axis=0), rtol=1e-6)


def test_splits_are_contiguous_and_read_only_and_leave_the_callers_array_writable():
    x = np.asfortranarray(np.ones((4, 3), np.float32))
    dataset = data.Dataset("tiny", x, x, x, "real", 1.0, (3,))
    assert dataset.train.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0, 0] = 2
    x[0, 0] = 5.0


def test_split_by_name():
    np.testing.assert_array_equal(tiny().split("valid"), tiny().valid)
    np.testing.assert_array_equal(tiny().split("test"), [[4, 4, 2], [2, 4, 2]])
    with says("'tests' is not a split: did you mean 'test'? Known are test, train, valid."):
        tiny().split("tests")


def test_binarize_draws_ones_with_the_intensity_as_probability():
    x = np.repeat(np.array([[0, 51, 128, 255]], np.uint8), 40_000, axis=0)
    draws = data.binarize(x, 255.0, seed=3)
    assert draws.dtype == np.uint8
    np.testing.assert_allclose(draws.mean(axis=0), [0, 0.2, 128 / 255, 1], atol=0.01)
    assert draws[:, 0].max() == 0
    assert draws[:, 3].min() == 1
    np.testing.assert_array_equal(draws, data.binarize(x, 255.0, seed=3))
    assert (draws != data.binarize(x, 255.0, seed=4)).any()


def test_binarize_refuses_values_beyond_the_scale():
    with says(
        "Values from 0 to 17 are not intensities on the scale 16: give values between 0 and 16."
    ):
        data.binarize(np.array([0, 17]), 16.0, seed=0)


def test_binarized_gives_each_split_its_own_stream():
    x = np.full((50, 20), 128, np.uint8)
    dataset = data.Dataset("grey", x, x, x, "intensity", 255.0, (20,), "a note")
    drawn = dataset.binarized(5)
    assert (drawn.kind, drawn.scale, drawn.note) == ("binary", 1.0, "a note")
    assert (drawn.train != drawn.valid).any()
    assert (drawn.valid != drawn.test).any()
    np.testing.assert_array_equal(drawn.valid, data.binarize(x, 255.0, [5, 1]))
    assert drawn.binarized(6) is drawn
    with says(
        "'tiny' holds real values, which have no fixed binarisation: "
        "use data of the kind intensity or binary."
    ):
        tiny("real", 1.0, np.float32).binarized(0)


def test_rescale_keeps_integers_as_uint8_and_others_as_float32():
    exact = (np.arange(256) / 255).astype(np.float32)
    np.testing.assert_array_equal(rescale(exact, 255.0), np.arange(256))
    assert rescale(exact, 255.0).dtype == np.uint8
    np.testing.assert_allclose(rescale(np.array([0.5]), 255.0), [127.5])


# --- registered data sets


def test_names():
    assert ", ".join(data.NAMES) == NAMES


def test_digits():
    digits = data.load("digits")
    assert [len(digits.split(s)) for s in ("train", "valid", "test")] == [1297, 100, 400]
    assert (digits.kind, digits.scale, digits.shape, digits.note) == ("intensity", 16.0, (8, 8), "")
    assert digits.train.dtype == np.uint8
    assert digits.train.max() == 16
    everything = np.concatenate([digits.train, digits.valid, digits.test])
    assert everything.sum() == 561_718
    np.testing.assert_array_equal(digits.test, data.load("digits").test)


@pytest.mark.parametrize("folder", ["mnist", "."])
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_mnist_from_plain_and_gzipped_idx_files(tmp_path, mnist, folder, suffix, pack):
    (train, test), contents = mnist
    store(tmp_path / folder, contents, suffix, pack)
    dataset = data.load("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.train, train[:3].reshape(3, 784))
    np.testing.assert_array_equal(dataset.valid, train[3:].reshape(2, 784))
    np.testing.assert_array_equal(dataset.test, test.reshape(2, 784))
    assert (dataset.name, dataset.kind, dataset.scale) == ("mnist", "intensity", 255.0)
    assert dataset.shape == (28, 28)
    assert dataset.train.dtype == np.uint8


def test_search_order_is_data_dir_then_variable_then_cache(tmp_path, monkeypatch, mnist, cache):
    folders = [tmp_path / "given", tmp_path / "variable", cache]
    for folder in folders:
        store(folder / "mnist", mnist[1])
    monkeypatch.setenv("IWAE_DATA_DIR", str(folders[1]))

    def found():
        return data.status("mnist", data_dir=folders[0])[0].path

    for folder in folders:
        assert found() == folder / "mnist" / TRAIN
        found().unlink()
    assert found() is None


def test_a_damaged_file_is_not_passed_over(tmp_path, mnist, cache):
    store(cache / "mnist", mnist[1])
    path = put(tmp_path / "mine" / f"{TRAIN}.gz", gzip.compress(mnist[1][0])[:-9])
    with says(
        f"{path} cannot be used: its gzip stream is damaged or ends early; "
        f"delete it and fetch it again from {MNIST_HOST}/{TRAIN}.gz."
    ):
        data.load("mnist", data_dir=tmp_path / "mine")
    assert path.exists()


def test_a_wrong_checksum_is_named(tmp_path, mnist):
    other = idx(np.zeros((5, 28, 28), np.uint8))
    store(tmp_path, [other, mnist[1][1]])
    given = hashlib.sha256(other).hexdigest()[:12]
    wanted = hashlib.sha256(mnist[1][0]).hexdigest()[:12]
    with says(
        f"{tmp_path / TRAIN} cannot be used: its SHA-256 is {given}… and not {wanted}…; "
        f"delete it and fetch it again from {MNIST_HOST}/{TRAIN}.gz."
    ):
        data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08\x01" + bytes(12), idx(np.zeros((1, 2, 2), np.uint8)) + b"x"]
)
def test_idx_of_something_else(content):
    with pytest.raises(readers.CorruptError, match=r"^it is not an IDX file of images$"):
        readers.read_idx(content, sha256=hashlib.sha256(content).hexdigest())


def test_an_unreadable_file_is_named(tmp_path, mnist, monkeypatch):
    store(tmp_path, mnist[1])

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with says(
        f"{tmp_path / TRAIN} cannot be used: it cannot be read (Permission denied); "
        f"delete it and fetch it again from {MNIST_HOST}/{TRAIN}.gz."
    ):
        data.load("mnist", data_dir=tmp_path)


def test_no_file_and_no_network_is_one_sentence(tmp_path, cache, mnist):
    (tmp_path / "empty").mkdir()
    with says(
        f"{TRAIN} is neither in {tmp_path / 'empty'}, {cache} (nor in a folder mnist there), "
        f"nor could it be downloaded ({MNIST_HOST}/{TRAIN}.gz: ConnectionError; "
        f"https://storage.googleapis.com/cvdf-datasets/mnist/{TRAIN}.gz: ConnectionError): "
        f"fetch {MNIST_HOST}/{TRAIN}.gz by hand and put it in {cache / 'mnist'}."
    ):
        data.load("mnist", data_dir=tmp_path / "empty")
    assert list((cache / "mnist").iterdir()) == []


def test_a_partial_download_is_discarded_and_the_next_address_tried(monkeypatch, mnist, cache):
    asked = []

    def serve(address, path):
        asked.append(address)
        content = gzip.compress(mnist[1][TRAIN not in address])
        path.write_bytes(content[:-20] if "ossci" in address else content)

    monkeypatch.setattr(files, "download", serve)
    dataset = data.load("mnist")
    np.testing.assert_array_equal(dataset.test, mnist[0][1].reshape(2, 784))
    assert len(asked) == 4
    assert sorted(p.name for p in (cache / "mnist").iterdir()) == [f"{T10K}.gz", f"{TRAIN}.gz"]
    monkeypatch.setattr(files, "download", None)
    np.testing.assert_array_equal(data.load("mnist").train, dataset.train)


def test_reasons_for_a_failed_download_are_told(monkeypatch, mnist):
    import requests

    def serve(address, path):
        if "ossci" in address:
            path.write_bytes(b"<html>log in</html>")
        else:
            raise requests.HTTPError(response=type("R", (), {"status_code": 404})())

    monkeypatch.setattr(files, "download", serve)
    given = hashlib.sha256(b"<html>log in</html>").hexdigest()[:12]
    wanted = hashlib.sha256(mnist[1][0]).hexdigest()[:12]
    reasons = (
        f"({MNIST_HOST}/{TRAIN}.gz: its SHA-256 is {given}… and not {wanted}…; "
        f"https://storage.googleapis.com/cvdf-datasets/mnist/{TRAIN}.gz: HTTPError 404)"
    )
    with pytest.raises(InputError, match=re.escape(reasons)):
        data.load("mnist")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch, mnist):
    put(tmp_path / "file", b"")
    monkeypatch.setenv("IWAE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/mnist cannot be written \(Not a directory\)"):
        data.load("mnist")


def test_the_download_has_a_short_connect_timeout(monkeypatch, tmp_path):
    import pooch

    made = {}

    class Downloader:
        def __init__(self, **options):
            made.update(options)

        def __call__(self, address, path, _):
            put(Path(path), address.encode())

    monkeypatch.undo()
    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    files.download("https://example.org/x", tmp_path / "x")
    assert made["timeout"][0] == 10
    assert (tmp_path / "x").read_bytes() == b"https://example.org/x"


def test_folders_that_do_not_exist(tmp_path, monkeypatch):
    lost = tmp_path / "lost"
    sentence = (
        f"The data folder {str(lost)!r} does not exist or is not a folder: "
        "give the folder that holds the data sets, or leave it out."
    )
    for name in ("mnist", "digits"):
        with says(sentence):
            data.load(name, data_dir=lost)
    with says(sentence):
        data.status(data_dir=lost)
    monkeypatch.setenv("IWAE_DATA_DIR", str(lost))
    with says(
        f"IWAE_DATA_DIR is {str(lost)!r}, which does not exist or is not a folder: "
        "set it to the folder that holds the data sets, or unset it."
    ):
        data.load("mnist")
    assert len(data.load("digits").test) == 400


def amat(x, end=" \n"):
    return "".join(" ".join(map(str, row)) + end for row in x).encode()


@pytest.mark.parametrize("folder", ["mnist-fixed", "binarized_mnist", "."])
@pytest.mark.parametrize("end", [" \n", "\r\n"])
def test_mnist_fixed_from_amat_files(tmp_path, monkeypatch, folder, end):
    x = [RNG.integers(0, 2, (n, 784)) for n in (3, 2, 2)]
    expect(monkeypatch, "mnist-fixed", *(partial(readers.read_amat, rows=len(s)) for s in x))
    for split, rows in zip(("train", "valid", "test"), x, strict=True):
        put(tmp_path / folder / f"binarized_mnist_{split}.amat.gz", gzip.compress(amat(rows, end)))
    dataset = data.load("mnist-fixed", data_dir=tmp_path)
    for split, rows in zip(("train", "valid", "test"), x, strict=True):
        np.testing.assert_array_equal(dataset.split(split), rows)
    assert (dataset.kind, dataset.scale, dataset.shape) == ("binary", 1.0, (28, 28))
    assert dataset.train.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "clause"),
    [
        (b"0 1\n2 1\n", "it holds other characters than 0, 1 and blanks"),
        (b"0 1\n0.0 1\n", "it holds other characters than 0, 1 and blanks"),
        (b"0 1\n", "it has 1 lines and not 2"),
        (b"", "it has 0 lines and not 2"),
        (b"0 1\n1\n", "not every line has 2 values with blanks between them"),
        (b"0 1 1\n1\n", "not every line has 2 values with blanks between them"),
        (b"0 1\n10\n", "not every line has 2 values with blanks between them"),
    ],
)
def test_amat_of_something_else(content, clause):
    with pytest.raises(readers.CorruptError, match=f"^{clause}$"):
        readers.read_amat(content, rows=2, width=2)


def chardata(upright, test):
    """A chardata.mat of these upright images: one image per column, each transposed."""
    columns = [x.transpose(0, 2, 1).reshape(-1, 784).T / 255.0 for x in (upright, test)]
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"data": columns[0], "testdata": columns[1], "other": [1]})
    return buffer.getvalue()


def use_chardata(tmp_path, monkeypatch, content, **sizes):
    put(tmp_path / "omniglot" / "chardata.mat", content)
    reader = partial(readers.read_chardata, blob=readers.git_blob(content))
    expect(monkeypatch, "omniglot", reader, **sizes)
    return data.load("omniglot", data_dir=tmp_path)


def test_omniglot_images_are_upright_permuted_and_8_bit(tmp_path, monkeypatch):
    train = np.zeros((6, 28, 28), np.uint8)
    train[:, 2, 3:20] = 10 * np.arange(1, 7)[:, None]  # a horizontal stroke in the third row
    test = RNG.integers(0, 256, (3, 28, 28)).astype(np.uint8)
    dataset = use_chardata(tmp_path, monkeypatch, chardata(train, test), valid=2, test=3)
    permuted = train[np.random.default_rng(0).permutation(6)].reshape(6, 784)
    np.testing.assert_array_equal(dataset.train, permuted[:4])
    np.testing.assert_array_equal(dataset.valid, permuted[4:])
    np.testing.assert_array_equal(dataset.test, test.reshape(3, 784))
    assert (dataset.train.dtype, dataset.scale, dataset.kind) == (np.uint8, 255.0, "intensity")
    assert dataset.note == ""


def test_omniglot_of_other_fractions_stays_float32(tmp_path, monkeypatch):
    train, test = RNG.random((4, 28, 28)) * 255, RNG.random((1, 28, 28)) * 255
    dataset = use_chardata(tmp_path, monkeypatch, chardata(train, test), valid=1, test=1)
    np.testing.assert_allclose(dataset.test[0], test.reshape(784) / 255, rtol=1e-6)
    assert (dataset.train.dtype, dataset.scale) == (np.float32, 1.0)


def test_omniglot_of_another_blob(tmp_path):
    path = put(tmp_path / "chardata.mat", b"something else")
    given = readers.git_blob(b"something else")[:12]
    with says(
        f"{path} cannot be used: its git blob id is {given}… and not 016a3536ffe5…; delete it "
        "and fetch it again from "
        "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat."
    ):
        data.load("omniglot", data_dir=tmp_path)


def test_git_blob_is_gits():
    assert readers.git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drawings(n, first=0, mode="1"):
    """A zip of n drawings, out of order, the i-th with a black square of 21 + i pixels."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("set/readme.txt", "no image")
        for i in reversed(range(first, first + n)):
            white = np.full((105, 105), 255, np.uint8)
            white[:21, 42 : 63 + i] = 0
            archive.writestr(f"set/{i:04}.png", png(Image.fromarray(white).convert(mode)))
    return buffer.getvalue()


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Tiny zips that pass for Omniglot's: 6 drawings of background, 7 of evaluation."""
    contents = [drawings(6), drawings(7, first=6)]
    for name, content in zip(("background", "evaluation"), contents, strict=True):
        put(tmp_path / "omniglot" / f"images_{name}.zip", content)
    reads = [
        partial(characters.read_characters, blob=readers.git_blob(c), pixels="") for c in contents
    ]
    expect(monkeypatch, "omniglot-raw", *reads, train=9, valid=2, test=3)
    return contents


def resized(content):
    return characters._resize_all(content)[0]


def test_characters_are_inverted_resized_and_in_the_order_of_their_names():
    x = resized(drawings(3)).reshape(3, 28, 28)
    ink = [int(image.sum()) for image in x]
    assert ink == sorted(ink)
    assert x.dtype == np.uint8
    assert (x[0].max(), x[0].min()) == (255, 0)
    assert x[0, :4, 13].min() > 240  # ink at the top, in the middle
    assert x[0, 12:].max() == 0
    assert 250 < ink[0] / 255 / 21**2 * 3.75**2 * 255 < 260  # area is kept
    np.testing.assert_array_equal(x, resized(drawings(3, mode="L")).reshape(3, 28, 28))


def test_omniglot_raw_moves_evaluation_images_to_the_training_set(tmp_path, raw):
    dataset = data.load("omniglot-raw", data_dir=tmp_path)
    background, evaluation = (resized(c) for c in raw)
    rng = np.random.default_rng(42)
    order = rng.permutation(7)
    train = np.concatenate([background, evaluation[order[:3]]])[rng.permutation(9)]
    np.testing.assert_array_equal(dataset.train, train[:7])
    np.testing.assert_array_equal(dataset.valid, train[7:])
    np.testing.assert_array_equal(dataset.test, evaluation[np.sort(order[3:6])])
    assert dataset.note == (
        "not the authors' 28×28 images: Lake et al.'s 105×105 drawings, "
        "inverted and resized to 28×28 with Pillow's Lanczos filter"
    )


def test_resized_characters_are_cached_and_a_damaged_cache_is_rebuilt(
    tmp_path, raw, cache, monkeypatch
):
    first = data.load("omniglot-raw", data_dir=tmp_path)
    kept = sorted(cache.glob("*.npz"))
    assert len(kept) == 2
    assert hashlib.sha256(raw[0]).hexdigest() in "".join(p.name for p in kept)
    with monkeypatch.context() as patch:
        patch.setattr(characters, "_resize_all", None)
        again = data.load("omniglot-raw", data_dir=tmp_path)
    np.testing.assert_array_equal(again.train, first.train)
    kept[0].write_bytes(kept[0].read_bytes()[:-50])
    np.savez(kept[1], images=np.zeros(3))
    rebuilt = data.load("omniglot-raw", data_dir=tmp_path)
    np.testing.assert_array_equal(rebuilt.train, first.train)
    with np.load(kept[1]) as arrays:
        assert arrays["images"].shape[1] == 784


def test_a_cache_that_cannot_be_written_is_skipped(tmp_path, raw, monkeypatch):
    put(tmp_path / "file", b"")
    monkeypatch.setenv("IWAE_CACHE_DIR", str(tmp_path / "file"))
    assert len(data.load("omniglot-raw", data_dir=tmp_path).test) == 3


def test_characters_compressed_anew_are_accepted_by_their_pixels(cache):
    digest = characters._resize_all(drawings(3))[1]
    again = drawings(3, mode="L")
    assert digest == characters._resize_all(again)[1]
    assert len(characters.read_characters(again, blob="", pixels=digest)) == 3


def test_other_characters_are_refused_and_not_cached(tmp_path, raw, cache):
    path = put(tmp_path / "omniglot" / "images_evaluation.zip", drawings(5))
    host = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    with says(
        f"{path} cannot be used: its images are not the published ones; "
        f"delete it and fetch it again from {host}/images_evaluation.zip."
    ):
        data.load("omniglot-raw", data_dir=tmp_path)
    assert len(list(cache.glob("*.npz"))) == 1


def test_damaged_zips_are_named():
    whole = drawings(2)
    with pytest.raises(readers.CorruptError, match=r"^it is not a whole zip file$"):
        resized(whole[:-40])
    at = whole.index(b"IDAT") + 10
    broken = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    with pytest.raises(readers.CorruptError, match=r"^its member set/0001\.png is damaged$"):
        resized(broken)


def test_status_of_files(tmp_path, mnist, cache):
    put(tmp_path / "mnist" / TRAIN, mnist[1][0])
    put(tmp_path / f"{T10K}.gz", gzip.compress(b"other"))
    looked_in = (tmp_path, cache)
    train = data.FileStatus(
        "mnist",
        TRAIN,
        tmp_path / "mnist" / TRAIN,
        looked_in,
        "present",
        "content not checked",
    )
    test = replace(train, file=T10K, path=tmp_path / f"{T10K}.gz")
    assert data.status("mnist", data_dir=tmp_path) == [train, test]
    found = data.status("mnist", data_dir=tmp_path, verify=True)
    assert found[0] == replace(train, state="verified", detail="5 examples")
    assert found[1].state == "corrupt"
    assert found[1].detail.startswith("its SHA-256 is ")
    missing = data.status("mnist")[0]
    assert (missing.path, missing.state) == (None, "missing")
    assert missing.detail == f"served at {MNIST_HOST}/{TRAIN}.gz"


def test_status_of_all_and_of_an_unknown_name():
    found = data.status()
    assert list(dict.fromkeys(s.dataset for s in found)) == list(data.NAMES)
    assert [len(data.status(name)) for name in data.NAMES] == [1, 2, 3, 1, 2]
    assert (found[0].state, found[0].detail) == ("present", "part of scikit-learn")
    with says(f"'minst' is not a data set: did you mean 'mnist'? Known are {NAMES}."):
        data.status("minst")


# --- a user's own arrays


def test_one_array_is_split_by_a_fixed_permutation():
    x = np.arange(46, dtype=np.float32).reshape(23, 2) - 7.5
    dataset = data.load(x)
    permuted = x[np.random.default_rng(0).permutation(23)]
    np.testing.assert_array_equal(dataset.train, permuted[:19])
    np.testing.assert_array_equal(dataset.valid, permuted[19:21])
    np.testing.assert_array_equal(dataset.test, permuted[21:])
    assert (dataset.name, dataset.kind, dataset.scale) == ("array", "real", 1.0)
    assert dataset.shape == (2,)


X = np.repeat(np.linspace(0, 1, 20)[:, None], 3, axis=1)


@pytest.mark.parametrize(
    ("x", "values", "kind", "scale", "dtype"),
    [
        (X > 0.5, "auto", "binary", 1.0, np.uint8),
        ((X > 0.5).astype(float), "auto", "binary", 1.0, np.uint8),
        (X, "auto", "intensity", 1.0, np.float32),
        ((X * 255).astype(np.int64), "auto", "intensity", 255.0, np.uint8),
        (np.rint(X * 255), "auto", "intensity", 255.0, np.uint8),
        (X * 255, "auto", "real", 1.0, np.float32),
        (X - 0.5, "auto", "real", 1.0, np.float32),
        (np.rint(X * 300).astype(int), "auto", "real", 1.0, np.float32),
        (X > 0.5, "real", "real", 1.0, np.float32),
        (X > 0.5, "intensity", "intensity", 1.0, np.float32),
        ((X * 255).astype(np.uint8), "intensity", "intensity", 255.0, np.uint8),
        (X > 0.5, "binary", "binary", 1.0, np.uint8),
    ],
)
def test_values_are_understood(x, values, kind, scale, dtype):
    dataset = data.load(x, values=values)
    assert (dataset.kind, dataset.scale, dataset.train.dtype) == (kind, scale, dtype)
    joined = np.concatenate([dataset.train, dataset.valid, dataset.test])
    np.testing.assert_array_equal(np.sort(joined, axis=0), x.astype(dtype))


@pytest.mark.parametrize(
    ("x", "values", "sentence"),
    [
        (
            X * 255 - 0.2,
            "intensity",
            "The array holds numbers from -0.2 to 254.8, but values='intensity' needs integers in "
            "0..255 or numbers in [0, 1]: convert them, or pass values='real'.",
        ),
        (
            np.rint(X * 300).astype(int),
            "intensity",
            "The array holds integers from 0 to 300, but values='intensity' needs integers in "
            "0..255 or numbers in [0, 1]: convert them, or pass values='real'.",
        ),
        (
            X,
            "binary",
            "The array holds numbers from 0 to 1, but values='binary' needs only 0 and 1: "
            "convert them, or pass values='real'.",
        ),
        (
            X * 1e300,
            "auto",
            "The array holds values from 0 to 1e+300, beyond float32's range: rescale them.",
        ),
        (
            X,
            "intensities",
            "values='intensities' is unknown: did you mean 'intensity'? "
            "Known are auto, binary, intensity, real, table.",
        ),
    ],
)
def test_values_that_contradict_the_data(x, values, sentence):
    with says(sentence):
        data.load(x, values=values)


def test_images_keep_their_shape_and_vectors_are_not_guessed_as_images():
    assert data.load(np.zeros((10, 4, 5))).shape == (4, 5)
    assert data.load(np.zeros((10, 4, 5, 3))).shape == (4, 5, 3)
    assert data.load(np.zeros((10, 4, 5, 3))).train.shape == (8, 60)
    assert data.load(np.zeros((10, 784))).shape == (784,)


def test_mapping_of_splits():
    x = {"train": X, "valid": X[:4] * 255, "test": X[:1]}
    dataset = data.load(x)
    assert dataset.kind == "real"  # judged over all splits
    np.testing.assert_array_equal(dataset.valid, (X[:4] * 255).astype(np.float32))
    assert [len(dataset.split(s)) for s in ("train", "valid", "test")] == [20, 4, 1]
    no_valid = data.load({"train": X, "test": X[:3]})
    np.testing.assert_array_equal(no_valid.train, X[:18].astype(np.float32))
    np.testing.assert_array_equal(no_valid.valid, X[18:].astype(np.float32))
    no_test = data.load({"train": X, "valid": X[:3]})
    permuted = X[np.random.default_rng(0).permutation(20)].astype(np.float32)
    np.testing.assert_array_equal(no_test.train, permuted[:18])
    np.testing.assert_array_equal(no_test.test, permuted[18:])
    np.testing.assert_array_equal(data.load({"train": X}).train, data.load(X).train)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            np.array([["a"]]),
            "The array has the dtype <U1, but numbers are expected: "
            "convert it to float32 or uint8, or pass values='table'.",
        ),
        (
            np.zeros((0, 3)),
            "The array is empty (shape (0, 3)): "
            "give at least one example with at least one feature.",
        ),
        (
            np.zeros((20, 0)),
            "The array is empty (shape (20, 0)): "
            "give at least one example with at least one feature.",
        ),
        (
            np.where(X > 0.9, np.inf, X),
            "The array holds infinite values: replace them, or drop the examples that have them.",
        ),
        (
            np.where([False, True, False], np.nan, X),
            "The array has no value in column 1 in training: leave it out.",
        ),
        (
            np.arange(60).reshape(20, 3) % 17,
            "The array holds integers from 0 to 16, which may be dark 8-bit intensities or "
            "other values: divide intensities by their largest value, or pass values='intensity' "
            "(of 0..255) or values='real' (as they are).",
        ),
        (
            np.array([0, 1.7e9, 4.0]) + 10 * X,
            f"The array varies in column 1 by {10 * np.ptp(X[:, 1]):g} about 1.7e+09, which "
            f"float32 cannot resolve: subtract an offset from that column.",
        ),
        (
            np.zeros(20),
            "The array has the shape (20,): give examples as [n, d], [n, h, w] or [n, h, w, c].",
        ),
        (
            X[:9],
            "The array has 9 training examples, and splitting needs at least 10: "
            "give more, or give train, valid and test.",
        ),
        (
            {"train": X, "tset": X},
            "The mapping has the keys 'train', 'tset': "
            "give 'train' and, if there are any, 'valid' and 'test'.",
        ),
        (
            {"train": X, "test": X[:, :2]},
            "The mapping has examples of different shapes (train (3,), test (2,)): "
            "give all splits the same shape after the first axis.",
        ),
        (
            {"train": X, "test": [[1.0, 2.0, 3.0]]},
            "The mapping (test) is a list: give a NumPy array, for example np.asarray(x).",
        ),
        (
            {"train": X, "test": np.full((1, 3), np.inf)},
            "The mapping (test) holds infinite values: "
            "replace them, or drop the examples that have them.",
        ),
        (
            [[1.0]],
            "Data cannot be a list: give a name, a path, an array, a data frame or a mapping of "
            "arrays.",
        ),
        (
            "minst",
            "'minst' is neither a data set nor a .npy, .npz, .csv or .parquet file: "
            f"did you mean 'mnist'? Known are {NAMES}.",
        ),
        (
            Path("there/data.txt"),
            f"'there/data.txt' is neither a data set nor a .npy, .npz, .csv or .parquet file: "
            f"known are {NAMES}.",
        ),
        (
            "lost.npy",
            "lost.npy is not an existing file: check its name and directory.",
        ),
    ],
)
def test_unusable_sources(source, sentence):
    with says(sentence):
        data.load(source)


def test_values_do_not_reinterpret_a_registered_data_set():
    assert data.load("digits", values="intensity").scale == 16
    with says(
        "'digits' holds intensity values, so values='real' does not fit: "
        "leave values out for a registered data set."
    ):
        data.load("digits", values="real")


def test_npy_and_npz_files(tmp_path):
    np.save(tmp_path / "mine.npy", X)
    np.savez(tmp_path / "one.npz", whatever=X)
    np.savez_compressed(tmp_path / "three.npz", train=X, valid=X[:3], test=X[:2])
    for name in ("mine.npy", "one.npz"):
        dataset = data.load(str(tmp_path / name))
        np.testing.assert_array_equal(dataset.train, data.load(X).train)
        assert dataset.name == name[:-4]
    three = data.load(tmp_path / "three.npz")
    assert [len(three.split(s)) for s in ("train", "valid", "test")] == [20, 3, 2]
    np.savez(tmp_path / "odd.npz", a=X, b=X)
    with says(
        f"{tmp_path / 'odd.npz'} has the keys 'a', 'b': "
        "give 'train' and, if there are any, 'valid' and 'test'."
    ):
        data.load(tmp_path / "odd.npz")


def test_files_of_objects_and_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, 1], dtype=object))
    np.savez(tmp_path / "cut.npz", x=X)
    put(tmp_path / "cut.npz", (tmp_path / "cut.npz").read_bytes()[:-30])
    np.save(tmp_path / "cut.npy", X)
    put(tmp_path / "cut.npy", (tmp_path / "cut.npy").read_bytes()[:-30])
    put(tmp_path / "empty.npy", b"")
    for path in sorted(tmp_path.glob("*.np?")):
        with says(
            f"{path} is damaged, or holds Python objects, which are never unpickled: "
            "save it again from arrays of numbers."
        ):
            data.load(path)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    path = put(tmp_path / "x.csv", b"1")

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with says(f"{path} cannot be read (Permission denied): check its permissions."):
        data.load(path)


@pytest.mark.parametrize("head", ["", "a,b\n", "\n\ufeffa, b\n", "\n"])
def test_csv_with_and_without_a_header(tmp_path, head):
    rows = [[i, -i / 4] for i in range(12)]
    kind = "table" if head.strip() else "real"
    lines = head + "\n".join(f"{a}, {b}" for a, b in rows) + "\n\n"
    path = put(tmp_path / "table.csv", lines.replace("\n", "\r\n").encode())
    dataset = data.load(path)
    np.testing.assert_array_equal(dataset.train, data.load(np.array(rows)).train)
    assert (dataset.name, dataset.kind) == ("table", kind)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a,b\n1,2\n3,x y \n",
            "Line 3 of {path} holds 'x y': give numbers separated by commas.",
        ),
        (
            "id,1\n3,4\n",
            "Line 1 of {path} holds 'id' beside numbers such as '1': give --header yes or "
            "--header no (in Python: header='yes' or 'no').",
        ),
        ("1,2\n1_0,4\n", "Line 2 of {path} holds '1_0': give numbers separated by commas."),
        (
            "a,b\n1,2\n3\n",
            "Line 3 of {path} has 1 cells and line 2 has 2: give the same number in every line.",
        ),
        ("a,b\n\n", "{path} holds no numbers: give one example per line."),
        ("", "{path} holds no numbers: give one example per line."),
        (
            "1,2\n3,inf\n",
            "{path} holds infinite values: replace them, or drop the examples that have them.",
        ),
        (
            "1,2.5\n3,4\n",
            "{path} has 2 training examples, and splitting needs at least 10: "
            "give more, or give train, valid and test.",
        ),
    ],
)
def test_unusable_csv(tmp_path, text, sentence):
    path = put(tmp_path / "table.csv", text.encode())
    with says(sentence.format(path=path)):
        data.load(path, values="real")


def test_csv_that_is_no_text(tmp_path):
    path = put(tmp_path / "table.csv", b"1,\xff\n")
    with says(f"{path} is not UTF-8 text: save it as a plain .csv file."):
        data.load(path)


# --- examples for a trained model

EIGHT_BIT: dict[str, Any] = {"kind": "intensity", "scale": 255.0, "shape": (2, 3)}
GREY = np.array([[0, 51, 255, 1, 2, 3]], np.uint8)


@pytest.mark.parametrize(
    "x",
    [
        GREY,
        GREY.reshape(1, 2, 3),
        GREY.reshape(1, 2, 3, 1),
        GREY[0],
        GREY.reshape(2, 3),
        GREY.astype(np.float64),
        GREY.astype(np.int64),
        GREY / 255,
        (GREY / 255).astype(np.float32),
    ],
)
def test_8_bit_intensities_in_every_form(x):
    found = data.read_examples(x, **EIGHT_BIT)
    np.testing.assert_array_equal(found, GREY)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_zeros_and_ones_are_intensities(dtype):
    x = np.array([[0, 1, 1, 0, 1, 0]])
    for kind, scale, factor in (
        ("intensity", 255.0, 255),
        ("intensity", 16.0, 16),
        ("intensity", 1.0, 1),
        ("binary", 1.0, 1),
        ("real", 1.0, 1),
    ):
        found = data.read_examples(x.astype(dtype), kind=kind, scale=scale, shape=(6,))
        np.testing.assert_array_equal(found, x * factor)
        stored = np.uint8 if scale > 1 or kind == "binary" else np.float32
        assert found.dtype == stored


def test_other_fractions_stay_on_the_models_scale_as_float32():
    found = data.read_examples(np.array([0.5, 0.25]), kind="intensity", scale=255.0, shape=(2,))
    np.testing.assert_array_equal(found, np.float32([[127.5, 63.75]]))
    assert found.dtype == np.float32


def test_a_model_of_vectors_takes_images_of_as_many_pixels():
    x = GREY.reshape(1, 2, 3)
    found = data.read_examples(x, kind="intensity", scale=255.0, shape=(6,))
    np.testing.assert_array_equal(found, GREY)
    with says("The array has the shape (2, 3): give examples as [n, 6] for this model."):
        data.read_examples(GREY.reshape(2, 3), kind="intensity", scale=255.0, shape=(6,))


def test_a_model_of_one_channel_takes_images_without_it():
    found = data.read_examples(GREY.reshape(2, 3), kind="intensity", scale=255.0, shape=(2, 3, 1))
    np.testing.assert_array_equal(found, GREY)


@pytest.mark.parametrize(
    ("x", "expected", "sentence"),
    [
        (
            np.zeros((4, 5)),
            EIGHT_BIT,
            "The array has the shape (4, 5): give examples as [n, 6] or [n, 2, 3] for this model.",
        ),
        (
            np.zeros((4, 3, 2)),
            EIGHT_BIT,
            "The array has the shape (4, 3, 2): "
            "give examples as [n, 6] or [n, 2, 3] for this model.",
        ),
        (
            np.full((1, 6), 256),
            EIGHT_BIT,
            "The array holds integers from 256 to 256, but this model was trained on intensity "
            "values: give intensities in [0, 1] or integers in 0..255.",
        ),
        (
            np.full((1, 6), 1.5),
            EIGHT_BIT,
            "The array holds numbers from 1.5 to 1.5, but this model was trained on intensity "
            "values: give intensities in [0, 1] or integers in 0..255.",
        ),
        (
            np.full((1, 6), -1),
            {**EIGHT_BIT, "scale": 1.0},
            "The array holds integers from -1 to -1, but this model was trained on intensity "
            "values: give intensities in [0, 1].",
        ),
        (
            np.full((1, 6), 0.5),
            {**EIGHT_BIT, "kind": "binary"},
            "The array holds numbers from 0.5 to 0.5, but this model was trained on binary "
            "values: give only 0 and 1.",
        ),
        (
            np.full((1, 6), np.inf),
            {**EIGHT_BIT, "kind": "real"},
            "The array holds NaN, masked or infinite values: "
            "replace them, or drop the examples that have them.",
        ),
        (
            np.zeros((1, 6)),
            {**EIGHT_BIT, "kind": "intensty"},
            "'intensty' is not a kind of values: did you mean 'intensity'? "
            "Known are binary, intensity, real, table.",
        ),
        (
            3.0,
            EIGHT_BIT,
            "Examples must be an array, a path or a data set's name, not a float.",
        ),
        (
            "digits",
            EIGHT_BIT,
            "digits has the shape (400, 64): give examples as [n, 6] or [n, 2, 3] for this model.",
        ),
        (
            "digits:tst",
            EIGHT_BIT,
            "'tst' is not a split: did you mean 'test'? Known are test, train, valid.",
        ),
        (
            "digit:test",
            EIGHT_BIT,
            "'digit:test' is neither a data set nor a .npy, .npz, .csv or .parquet file: "
            f"did you mean 'digits'? Known are {NAMES}.",
        ),
    ],
)
def test_examples_that_do_not_fit(x, expected, sentence):
    with says(sentence):
        data.read_examples(x, **expected)


def test_examples_of_registered_data_sets():
    digits = data.load("digits")
    same = {"kind": "intensity", "scale": 16.0, "shape": (8, 8)}
    np.testing.assert_array_equal(data.read_examples("digits", **same), digits.test)
    np.testing.assert_array_equal(data.read_examples("digits:valid", **same), digits.valid)
    assert data.read_examples("digits", **same).dtype == np.uint8
    finer = data.read_examples("digits", **{**same, "scale": 255.0})
    np.testing.assert_allclose(finer, digits.test / 16 * 255, rtol=1e-6)
    real = data.read_examples("digits", kind="real", scale=1.0, shape=(64,))
    np.testing.assert_array_equal(real, digits.test.astype(np.float32))


def test_examples_of_binary_data_for_an_intensity_model(tmp_path, monkeypatch):
    x = RNG.integers(0, 2, (2, 784))
    expect(monkeypatch, "mnist-fixed", *[partial(readers.read_amat, rows=2)] * 3)
    for split in ("train", "valid", "test"):
        put(tmp_path / f"binarized_mnist_{split}.amat", amat(x))
    found = data.read_examples(
        "mnist-fixed:test", kind="intensity", scale=255.0, shape=(28, 28), data_dir=tmp_path
    )
    np.testing.assert_array_equal(found, x * 255)


def test_examples_of_files(tmp_path):
    np.save(tmp_path / "x.npy", GREY)
    np.savez(tmp_path / "x.npz", x=GREY)
    put(tmp_path / "x.csv", b"0,51,255,1,2,3\n")
    for name in ("x.npy", "x.npz", "x.csv"):
        np.testing.assert_array_equal(data.read_examples(tmp_path / name, **EIGHT_BIT), GREY)
    np.savez(tmp_path / "two.npz", train=GREY, test=GREY)
    with says(
        f"{tmp_path / 'two.npz'} holds the arrays train, test, but one is expected: "
        "save the examples alone with np.save."
    ):
        data.read_examples(tmp_path / "two.npz", **EIGHT_BIT)


# --- the whole


def test_importing_the_module_imports_numpy_only():
    heavy = "jax, scipy, PIL, pooch, sklearn, requests"
    code = f"import sys, iwae.data; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


needs_real = pytest.mark.skipif(not REAL, reason="IWAE_DATA_DIR is not set")


@needs_real
def test_real_mnist():
    if data.status("mnist", data_dir=REAL)[0].path is None:
        pytest.skip("IWAE_DATA_DIR holds no MNIST")
    mnist = data.load("mnist", data_dir=REAL)
    assert [len(mnist.split(s)) for s in ("train", "valid", "test")] == [59_600, 400, 10_000]
    everything = mnist.train.sum(dtype=np.int64) + mnist.valid.sum(dtype=np.int64)
    assert everything / (60_000 * 784) == pytest.approx(33.318421, abs=1e-6)


@needs_real
@pytest.mark.slow
def test_real_omniglot_raw():
    if data.status("omniglot-raw", data_dir=REAL)[0].path is None:
        pytest.skip("IWAE_DATA_DIR holds no Omniglot")
    omniglot = data.load("omniglot-raw", data_dir=REAL)
    sizes = [len(omniglot.split(s)) for s in ("train", "valid", "test")]
    assert sizes == [23_000, 1345, 8070]
    assert omniglot.train.mean() / 255 == pytest.approx(0.0827, abs=1e-4)
    assert omniglot.train.reshape(-1, 28, 28)[:, :, 14].mean() > 20  # ink is in the middle


def test_arrays_of_other_libraries_are_arrays() -> None:
    class Frame:
        def __init__(self, rows):
            self.rows = rows

        def __array__(self, dtype=None, copy=None):
            return self.rows

    rows = np.arange(200, 260).reshape(10, 6) % 256
    others: dict[str, Any] = {"train": Frame(rows), "test": jnp.asarray(rows[:3])}
    split = data.load(others)
    np.testing.assert_array_equal(split.test, rows[:3])
    for given in (Frame(rows), jnp.asarray(rows)):
        np.testing.assert_array_equal(data.read_examples(cast(Any, given), **EIGHT_BIT), rows)
        np.testing.assert_array_equal(data.load(cast(Any, given)).train, data.load(rows).train)


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.int64, np.float64])
def test_digits_that_float32_lacks_are_missed_in_every_kind(kind) -> None:
    stamps = np.stack([17 * 10**8 + np.arange(30), np.arange(30)], axis=1).astype(kind)
    with says(
        "The array varies in column 0 by 29 about 1.7e+09, which float32 cannot resolve: "
        "subtract an offset from that column."
    ):
        data.load(stamps)
    assert data.load(stamps - stamps[:1], values="real").kind == "real"


def test_a_column_that_is_constant_but_for_rounding_is_constant() -> None:
    rows = RNG.normal(size=(30, 2))
    rows[:, 1] = 0.3
    rows[::2, 1] += 1e-16
    assert np.unique(rows[:, 1]).size == 2
    assert data.load(rows).kind == "real"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            ",a,b\n0,0.5,0.25\n1,0.5,0.75\n",
            "The first column of {path} has no name, as an index of rows has: leave it out (in "
            "pandas: index=False).",
        ),
        (
            "0,1,2\n0.5,0.25,1\n0.1,0.3,0.2\n",
            "Line 1 of {path} holds 0, 1, 2, which may be names or an example: give --header yes "
            "or --header no (in Python: header='yes' or 'no').",
        ),
    ],
)
def test_headers_and_indices_of_data_frames_are_not_data(tmp_path, text, sentence) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with says(sentence.format(path=path)):
        data.load(path)


# Data sets in use


@pytest.fixture
def reads(monkeypatch):
    """The files that are read."""
    seen = []
    own = arrays.read_file

    def read_file(path, **how):
        seen.append(path.name)
        return own(path, **how)

    monkeypatch.setattr(arrays, "read_file", read_file)
    return seen


def aged(path, x, seconds=100):
    """A file that was written so many seconds ago."""
    np.save(path, x)
    at = time.time() - seconds
    os.utime(path, (at, at))
    return path


def test_a_file_that_is_in_use_is_read_once_until_it_changes(tmp_path, reads):
    x = RNG.random((20, 3))
    path = aged(tmp_path / "x.npy", x)
    first = data.load(path)
    assert data.load(path) is first
    assert data.load(str(path), values=first.kind) is first
    assert reads == ["x.npy"]
    real = data.load(path, values="real")
    assert real.kind == "real" != first.kind
    other = data.load(aged(path, 1 - x, 50))
    assert len(reads) == 3
    np.testing.assert_array_equal(sorted(other.train[:, 0]), sorted(data.load(1 - x).train[:, 0]))


def test_a_file_that_was_written_just_now_or_is_not_in_use_is_read_again(tmp_path, reads):
    path = tmp_path / "x.npy"
    np.save(path, RNG.random((20, 3)))
    first, second = data.load(path), data.load(path)
    assert first is not second
    aged(path, RNG.random((20, 3)))
    del first, second
    for _ in range(2):
        data.load(path)
    assert len(reads) == 4
    with in_use.reading_once():
        for _ in range(2):
            data.load(path)
    assert len(reads) == 5


def test_registered_data_in_use_are_read_once():
    digits = data.load("digits")
    assert data.load("digits", values="intensity") is digits
