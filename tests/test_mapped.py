"""Examples in a file that is mapped into memory: what they give is what they give in memory."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import iwae
from iwae import data
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.data import cells, mapped
from iwae.errors import InputError, UnknownCategoryWarning
from iwae.evaluation.trained import TrainedModel
from iwae.models.likelihoods import summary
from iwae.models.likelihoods.summary import summarize
from iwae.training import examples

RNG = np.random.default_rng(3)
X = (RNG.normal(size=(203, 3)) @ RNG.normal(size=(3, 5))).astype(np.float32)
HOLES = np.where(RNG.random(X.shape) < 0.2, np.float32(np.nan), X)
SPLITS = ("train", "valid", "test")


def on_disk(x: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.fixture
def windows(monkeypatch) -> None:
    """Files are written, and read, a few rows at a time."""
    monkeypatch.setattr(mapped, "WINDOW", 30 * 5 * 4)
    monkeypatch.setattr(mapped, "BLOCK", 7 * 5 * 4)
    monkeypatch.setattr(examples, "READ", 4 * 20 * 5 * 4)


@pytest.mark.parametrize("x", [X, HOLES, (X > 0).astype(np.uint8)], ids=["real", "holes", "bits"])
def test_a_mapped_array_is_the_data_set_of_the_array(x, windows, tmp_path) -> None:
    given, whole = data.load(on_disk(x, tmp_path)), data.load(x)
    for name in SPLITS:
        assert mapped.is_mapped(given.split(name))
        assert not mapped.is_mapped(whole.split(name))
        np.testing.assert_array_equal(given.split(name), whole.split(name))
    assert (given.digest, given.whole_digest) == (whole.digest, whole.whole_digest)
    assert (given.kind, given.missing, repr(given)) == (whole.kind, whole.missing, repr(whole))
    for one, other in zip(*((d.mean(), d.std(), d.usual()) for d in (given, whole)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("missing", [False, True])
def test_a_fixed_binarisation_is_that_of_the_array(missing, windows, tmp_path) -> None:
    x = RNG.random((203, 5)).astype(np.float32)
    x[0, 0] = np.nan if missing else 0.5
    drawn = data.load(on_disk(x, tmp_path)).binarized(3)
    for name in SPLITS:
        assert mapped.is_mapped(drawn.split(name))
        np.testing.assert_array_equal(drawn.split(name), data.load(x).binarized(3).split(name))


def test_columns_of_a_mapped_array_are_turned_in_a_file(windows, tmp_path) -> None:
    given = data.load(on_disk(X, tmp_path)).in_order("abcde")
    turned = given.in_order("edcba")
    assert mapped.is_mapped(turned.train)
    np.testing.assert_array_equal(turned.train, given.train[:, ::-1])


def test_large_files_are_mapped(monkeypatch, windows, tmp_path) -> None:
    on_disk(X.astype(np.float64), tmp_path)
    monkeypatch.setattr(cells, "memory", lambda: 4 * X.nbytes)
    assert not mapped.is_mapped(data.load(tmp_path / "x.npy").train)
    monkeypatch.setattr(cells, "memory", lambda: 4 * X.nbytes - 1)
    large = data.load(tmp_path / "x.npy")
    assert mapped.is_mapped(large.train)
    np.testing.assert_array_equal(large.train, data.load(X).train)


def test_large_tables_are_mapped(monkeypatch, windows, tmp_path) -> None:
    """With words, holes, and a category that training lacks."""
    random = np.random.default_rng(0)
    size, word = random.normal(size=90), random.choice(["a", "b"], size=90).astype(object)
    word[np.random.default_rng(0).permutation(90)[-1]] = "c"
    size[::9] = np.nan
    rows = "".join(
        f"{'' if np.isnan(v) else v},{w},{i}\n"
        for i, (v, w) in enumerate(zip(size, word, strict=True))
    )
    (tmp_path / "t.csv").write_text("size,word,number\n" + rows)
    with pytest.warns(UnknownCategoryWarning, match="'c' in row"):
        whole = data.load(tmp_path / "t.csv")
    monkeypatch.setattr(cells, "memory", lambda: 13 * 90 * 3)
    with pytest.warns(UnknownCategoryWarning, match="'c' in row"):
        large = data.load({"size": size, "word": word, "number": np.arange(90)})
    assert large.schema == whole.schema
    for name in SPLITS:
        assert mapped.is_mapped(large.split(name))
        np.testing.assert_array_equal(large.split(name), whole.split(name))
    one, other = (summarize(d.schema, d.train) for d in (large, whole))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_of_columns_are_those_of_the_table(monkeypatch) -> None:
    """However many columns are taken at once, and, up to rounding, rows."""
    table = data.load({name: x.astype(float) for name, x in zip("abcde", X.T, strict=True)})
    whole = summarize(table.schema, HOLES)
    monkeypatch.setattr(summary, "CELLS", 1)
    monkeypatch.setattr(summary, "ROWS", 50)
    parts = summarize(table.schema, HOLES)
    np.testing.assert_array_equal(parts.mean, whole.mean)
    np.testing.assert_array_equal(parts.spread, whole.spread)
    np.testing.assert_allclose(parts.correlation, whole.correlation, rtol=1e-5)


def test_a_full_disk_is_told_before_anything_is_read(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    says = "The array takes 0.0 GB, which are kept in a file, but"
    with pytest.raises(InputError, match=re.escape(says)):
        data.load(on_disk(X, tmp_path))


@pytest.fixture(scope="module")
def settings(tiny: RunConfig) -> RunConfig:
    return override(tiny, values="real", epochs=2)


def leaves(trained: TrainedModel) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(trained.model) if hasattr(a, "dtype")]


def test_training_from_a_file_is_training_in_memory(
    settings: RunConfig, windows, tmp_path: Path
) -> None:
    """Bit for bit."""
    of_file = iwae.train(settings, data=on_disk(X, tmp_path), batch_size=20)
    in_memory = iwae.train(settings, data=X, batch_size=20)
    for a, b in zip(leaves(of_file), leaves(in_memory), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_run_from_a_file_goes_on_as_in_memory(
    settings: RunConfig, windows, tmp_path: Path
) -> None:
    given, out = on_disk(HOLES, tmp_path), tmp_path / "run"
    config = override(settings, batch_size=20, schedule="constant", epochs=3)
    iwae.train(config, data=given, out=out, epochs=2)
    again = iwae.train(config, data=given, out=out, resume=True)
    for a, b in zip(leaves(again), leaves(iwae.train(config, data=HOLES)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_replicas_read_their_own_examples(settings: RunConfig, windows, tmp_path: Path) -> None:
    """Up to the rounding of programs that are compiled without optimisation."""
    config = override(settings, batch_size=20)
    both = iwae.train_replicas(config, data=on_disk(X, tmp_path), seeds=2)
    for one, seed in zip(both, (0, 1), strict=True):
        for a, b in zip(leaves(one), leaves(iwae.train(config, data=X, seed=seed)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
