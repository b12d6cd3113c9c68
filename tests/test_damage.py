"""Readers of damaged files and of files that unpack without end: one sentence, little memory."""

import gzip
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from iwae import data
from iwae.data import characters, files, readers, registry
from iwae.errors import InputError

X = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(2).integers(0, 256, (6, 28, 28)).astype(np.uint8)


def npy(x=X, header=None):
    """The content of a .npy file, with another header if it is given."""
    buffer = io.BytesIO()
    np.save(buffer, x)
    content = buffer.getvalue()
    if header is None:
        return content
    text = header.encode("latin-1")
    return content[:8] + len(text).to_bytes(2, "little") + text + content[128:]


def npz(compression=zipfile.ZIP_DEFLATED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in (members or {"train.npy": npy()}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def table(x=X):
    return "a,b,c\n" + "\n".join(",".join(f'"{v:.3f}"' for v in row) for row in x)


def drawings():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            picture = io.BytesIO()
            white = np.full((105, 105), 255, np.uint8)
            white[:20, i : i + 9] = 0
            Image.fromarray(white).convert("1").save(picture, "PNG")
            archive.writestr(f"set/{i}.png", picture.getvalue())
    return buffer.getvalue()


def matlab():
    buffer = io.BytesIO()
    columns = IMAGES.reshape(-1, 784).T / 255
    scipy.io.savemat(buffer, {"data": columns, "testdata": columns}, do_compression=True)
    return buffer.getvalue()


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (12, 3), }"

OWN = {
    "x.npy": npy(),
    "f.npy": npy(np.asfortranarray(X)),
    "stored.npz": npz(zipfile.ZIP_STORED),
    "deflated.npz": npz(),
    "bzip2.npz": npz(zipfile.ZIP_BZIP2),
    "lzma.npz": npz(zipfile.ZIP_LZMA),
    "x.csv": table().encode(),
    "tabs.csv": table().replace(",", "\t").encode("utf-16"),
    "x.csv.gz": gzip.compress(table().encode()),
}
"""Whole files of a user's own, by name."""

EDITS = [
    ("'shape': (12, 3)", f"'shape': {shape}")
    for shape in (
        *("(1000000000000, 3)", "(12, 1000000000000)", "(-12, -3)", "(12, -3)", "(12,)", "()"),
        *("(12.0, 3)", "(True, 36)", "None", "'12'", "(0, 3)", "(2, 18)"),
        "(4611686018427387904, 8)",
    )
] + [
    ("'<f4'", f"'{kind}'")
    for kind in ("|O", "<f8", "<c8", "|S4", "<U1", "<M8[s]", "<f2", "|V4", "x", "<i99")
] + [
    ("False", "2"),
    ("'descr'", "'discr'"),
    ("'<f4'", "[('a', '<f4')]"),
    ("{", "{{"),
    ("{", "\0{"),
    ("{", "(" * 300 + "{"),
    ("}", ""),
    ("}", "} + __import__('os')"),
    ("12", "1\0002"),
    ("12", "9" * 400),
    ("'", ""),
]  # fmt: skip
"""What a header may say in place of what it says."""


def damaged(content, rng, n):
    """So many truncations, runs of flipped bits and of other bytes, and of bytes moved."""
    for _ in range(n):
        at, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
        noise = rng.integers(0, 256, length).astype(np.uint8).tobytes()
        flipped = bytes([content[at] ^ (1 << int(rng.integers(8)))])
        yield from (
            content[:at],
            content[:at] + flipped + content[at + 1 :],
            content[:at] + noise + content[at + length :],
            content[:at] + content[at + length :],
            content[:at] + noise + content[at:],
        )


def read(path):
    """Both ways in which a file is read: as data, and as examples."""
    for reader in (
        lambda: data.load(path),
        lambda: data.read_examples(path, kind="real", scale=1.0, shape=(3,)),
    ):
        try:
            reader()
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.filterwarnings("ignore::iwae.errors.UnknownCategoryWarning")
@pytest.mark.parametrize("name", OWN)
def test_no_damage_of_a_users_file_is_more_than_a_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(OWN[name])
    assert data.load(path).train.shape == (10, 3)
    rng = np.random.default_rng(sorted(OWN).index(name))
    for content in damaged(OWN[name], rng, 40):
        path.write_bytes(content)
        read(path)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit[1][:20])
def test_no_header_is_more_than_a_sentence(tmp_path, edit):
    content = npy(header=HEADER.replace(*edit))
    for path, made in (
        (tmp_path / "x.npy", content),
        (tmp_path / "x.npz", npz(**{"train.npy": content})),
    ):
        path.write_bytes(made)
        with pytest.raises(InputError, match=re.escape(str(path))):
            data.load(path)
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        npz(**{"train.npy": b""}),
        npz(**{"readme.txt": b"nothing"}),
        npz(**{"train.npy": npy(), "train": npy(X[:2])}),
        npz(**{"train.npy": npy() + b"more"}),
        npz(**{"train.npy": npy()[:-1]}),
        npz(**{"x/": b""}),
        npz().replace(b"\x08\x00", b"\x63\x00"),  # compressed by a method that nobody has
        npz()[:-22],
        b"PK\x05\x06" + bytes(18),
    ],
)
def test_archives_that_are_none_are_named(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        data.load(path)


# --- registered data sets

PUBLISHED = {
    "mnist": b"".join([np.array([2051, 6, 28, 28], ">u4").tobytes(), IMAGES.tobytes()]),
    "mnist-fixed": b"\n".join(b" ".join(b"%d" % (v & 1) for v in x.flat) for x in IMAGES),
    "omniglot": matlab(),
    "omniglot-raw": drawings(),
}


def trusting(monkeypatch, name):
    """Lets the readers of a data set take any content for the published one."""
    entry = registry.REGISTRY[name]
    any_digest = type("Any", (), {"__eq__": lambda *_: True, "__ne__": lambda *_: False})()
    any_digest.__class__.__getitem__ = lambda *_: "any"
    known = {
        "mnist": partial(readers.read_idx, sha256=any_digest),
        "mnist-fixed": partial(readers.read_amat, rows=6),
        "omniglot": partial(readers.read_chardata, blob=any_digest),
        "omniglot-raw": partial(characters.read_characters, blob=any_digest, pixels=any_digest),
    }
    small = tuple(replace(file, read=known[name]) for file in entry.files)
    monkeypatch.setitem(registry.REGISTRY, name, replace(entry, files=small))
    return small[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_no_damage_of_a_published_file_is_more_than_a_sentence(tmp_path, monkeypatch, name, packed):
    monkeypatch.setenv("IWAE_CACHE_DIR", str(tmp_path / "cache"))
    file = trusting(monkeypatch, name)
    path = tmp_path / (file.name + ".gz" * packed)
    whole = gzip.compress(PUBLISHED[name]) if packed else PUBLISHED[name]
    path.write_bytes(whole)
    found = data.status(name, data_dir=tmp_path, verify=True)[0]
    assert found.state in ("verified", "present")
    assert found.detail.startswith(("6 ", "12 ", "4 "))
    for content in damaged(whole, np.random.default_rng(len(name)), 10):
        path.write_bytes(content)
        with_state = data.status(name, data_dir=tmp_path, verify=True)[0]
        assert with_state.state in ("verified", "present", "corrupt")


# --- what unpacks without end, and how much memory reading takes

MEASURE = """
import re, sys
import numpy as np
from iwae import data
from iwae.errors import InputError

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before = peak()
try:
    {what}
except InputError as error:
    print(error)
print(peak() - before)
"""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not tell the peak of memory"
)


def measured(what, **environment):
    """What reading printed before its end, and by how much memory grew, in another process."""
    code = MEASURE.format(what=what)
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    *said, grown = done.stdout.splitlines()
    return " ".join(said), int(grown)


def zeros_packed(n):
    """A .npz of [n, 1000] zeros in float64, a thousandth of their size."""
    buffer = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (n, 1000)}
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, about)
        for _ in range(n // 1000):
            member.write(bytes(8_000_000))
    return buffer.getvalue()


ENDLESS = {
    "zeros.npz": lambda: zeros_packed(20_000),
    "nul.csv.gz": lambda: gzip.compress(bytes(1 << 24)) * 32,
    "line.csv.gz": lambda: gzip.compress(b"1.5," * (1 << 22)) * 32,
    "lines.csv.gz": lambda: gzip.compress(b"0.5,1.5\n" * (1 << 20)) * 64,
}
"""Small files that unpack to hundreds of megabytes."""


@needs_proc
@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.slow
def test_what_unpacks_without_end_is_refused_before_it_fills_the_memory(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ENDLESS[name]())
    said, grown = measured(f"data.load({str(path)!r})")
    assert said.startswith((str(path), f"Line 1 of {path}"))
    assert grown < 150e6


@needs_proc
@pytest.mark.parametrize("name", ["mnist", "omniglot-raw"])
def test_published_files_that_unpack_without_end_are_refused(tmp_path, name):
    file = registry.REGISTRY[name].files[0]
    path = tmp_path / f"{file.name}.gz"
    path.write_bytes(gzip.compress(bytes(1 << 24)) * 64)
    said, grown = measured(f"data.load({name!r}, data_dir={str(tmp_path)!r})")
    assert f"holds more than the {file.most:,} bytes" in said
    assert grown < 2.3 * file.most + 40e6


def test_a_picture_that_unpacks_without_end_is_no_drawing(tmp_path, monkeypatch):
    monkeypatch.setenv("IWAE_CACHE_DIR", str(tmp_path))
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(picture, "PNG")
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("set/0.png", picture.getvalue())
    with pytest.raises(readers.CorruptError, match=r"^its member set/0\.png is damaged$"):
        characters.read_characters(buffer.getvalue(), blob="", pixels="")


@needs_proc
@pytest.mark.parametrize("form", ["npy", "npz", "csv", "columns"])
@pytest.mark.parametrize("how", ["load", "read_examples"])
@pytest.mark.slow
def test_reading_takes_at_most_a_few_times_the_size_of_what_is_read(tmp_path, form, how):
    path = tmp_path / f"x.{'npy' if form == 'columns' else form}"
    x = np.tile(np.random.default_rng(0).normal(size=(1000, 100)), (25, 1))
    if form == "npz":
        np.savez(path, x)
    elif form == "csv":
        lines = [",".join(f"{v:.5f}" for v in row) for row in x[:1000]]
        path.write_text("\n".join([",".join(f"c{i}" for i in range(100)), *lines * 25]))
    else:
        np.save(path, np.asfortranarray(x) if form == "columns" else x)
    reading = "kind='real', scale=1.0, shape=(100,)" if how == "read_examples" else ""
    said, grown = measured(f"data.{how}({str(path)!r}, {reading})")
    assert not said
    table = (form, how) == ("csv", "load")  # which keeps what it is read from in float64
    assert grown < (4 if table else 2) * path.stat().st_size


@pytest.mark.parametrize("how", ["told", "untold", "packed"])
def test_a_download_without_end_is_ended(tmp_path, monkeypatch, how):
    piece = gzip.compress(bytes(1 << 22)) if how == "packed" else bytes(1 << 16)

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if how == "told":
                self.send_header("Content-Length", str(10**12))
            if how == "packed":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(piece)
            except OSError:
                pass

        def log_message(self, *_): ...

    monkeypatch.setattr(files, "LARGEST", 1 << 20)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(readers.CorruptError, match="more than 1,048,576 bytes are served"):
            files.download(f"http://127.0.0.1:{server.server_port}/x", tmp_path / "x")
        server.shutdown()
    assert (tmp_path / "x").stat().st_size <= 1 << 27


def test_content_without_a_checksum_is_said_wherever_its_numbers_are_shown(tmp_path, monkeypatch):
    file = trusting(monkeypatch, "mnist-fixed")
    for other in registry.REGISTRY["mnist-fixed"].files:
        (tmp_path / other.name).write_bytes(PUBLISHED["mnist-fixed"])
    assert "content not verified" in data.load("mnist-fixed", data_dir=tmp_path).note
    found = data.status("mnist-fixed", data_dir=tmp_path, verify=True)[0]
    assert (found.file, found.state) == (file.name, "present")
    assert "content not verified" in found.detail


def test_a_header_of_more_rows_than_fit_the_memory_is_refused_by_name(tmp_path):
    path = tmp_path / "x.npy"
    content = npy(header=HEADER.replace("12", str(10**12)))
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path} is damaged")):
        data.load(path)
    with path.open("r+b") as file:  # as long as it says, but nearly all of it a hole
        try:
            file.truncate(len(content) - X.nbytes + 12 * 10**12)
        except OSError:
            pytest.skip("the file system has no files of that size")
    with pytest.raises(InputError, match=re.escape(f"{path} takes 12,000.0 GB, which are kept")):
        data.load(path)


def test_an_archive_that_has_lost_a_member_is_damaged(tmp_path):
    """Whose directory reads on without it, after a bit of the first entry's lengths is flipped."""
    whole = npz(**{"train.npy": npy(), "test.npy": npy()})
    at = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", at + 1)
    (tmp_path / "x.npz").write_bytes(whole)
    assert len(data.load(tmp_path / "x.npz").test) == len(X)
    length = len(whole[second:]) - 22
    torn = bytearray(whole)
    torn[at + 32 : at + 34] = length.to_bytes(2, "little")  # the first entry's comment
    (tmp_path / "x.npz").write_bytes(torn)
    with pytest.raises(InputError, match="is damaged"):
        data.load(tmp_path / "x.npz")
