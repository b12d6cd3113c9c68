"""Tables from data frames, files, mappings, records and sparse matrices, and missing values."""

import gzip
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse

from iwae import data
from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import DataConfig, ModelConfig, RunConfig
from iwae.data import Schema, cells, frames, tables
from iwae.data.schema import Column
from iwae.errors import InputError, UnknownCategoryWarning
from iwae.models.observation import Observation, Observer, observation
from iwae.storage import persisted
from iwae.storage.run_config import identity

RNG = np.random.default_rng(11)
N = 80


def holes(values: Any, share: float = 0.2) -> list[Any]:
    """The values with some replaced by None."""
    drop = np.random.default_rng(len(values)).random(len(values)) < share
    return [None if d else v for v, d in zip(np.asarray(values).tolist(), drop, strict=True)]


COLUMNS: dict[str, Any] = {
    "age": holes(RNG.integers(18, 90, N)),
    "sex": holes(RNG.choice(["f", "m"], N)),
    "dose, mg": holes(np.round(np.exp(RNG.normal(2, 1, N)), 3)),
    "stage": holes(RNG.integers(1, 4, N)),
    "city": holes(RNG.choice(["Oslo", "St. Louis", "New York, NY"], N)),
    "marker": holes(RNG.normal(size=N)),
}
TYPES = ["count", "binary", "positive", "ordinal", "categorical", "real"]


def text(columns: dict[str, Any], sep: str = ",", point: str = ".") -> str:
    """A .csv of these columns."""
    write = lambda v: "" if v is None else f'"{v}"' if isinstance(v, str) else str(v)
    head = sep.join(f'"{name}"' for name in columns)
    rows = [
        sep.join(write(v) if isinstance(v, str) else write(v).replace(".", point) for v in row)
        for row in zip(*columns.values(), strict=True)
    ]
    return "\n".join([head, *rows]) + "\n"


def saved(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path: Path) -> Path:
    pa.parquet.write_table(pa.table(COLUMNS), path)
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "pandas": lambda _: pd.DataFrame(COLUMNS),
    "pandas, nullable": lambda _: pd.DataFrame(COLUMNS).convert_dtypes(),
    "pandas, categories": lambda _: pd.DataFrame(COLUMNS).astype({"city": "category"}),
    "polars": lambda _: pl.DataFrame(COLUMNS),
    "pyarrow": lambda _: pa.table(COLUMNS),
    "columns": lambda _: COLUMNS,
    "columns of pandas": lambda _: dict(pd.DataFrame(COLUMNS).items()),
    "columns of polars": lambda _: {n: pl.Series(v) for n, v in COLUMNS.items()},
    "csv": lambda p: saved(p / "x.csv", text(COLUMNS)),
    "csv with semicolons": lambda p: saved(p / "x.csv", text(COLUMNS, ";")),
    "csv with decimal commas": lambda p: saved(p / "x.csv", text(COLUMNS, ";", ",")),
    "csv, gzip": lambda p: saved(p / "x.csv.gz", gzip.compress(text(COLUMNS).encode())),
    "csv, utf-16": lambda p: saved(p / "x.csv", text(COLUMNS).encode("utf-16")),
    "parquet": lambda p: parquet(p / "x.parquet"),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_table_is_the_same_wherever_it_comes_from(tmp_path, make):
    source = make(tmp_path)
    dataset, expected = data.load(source), data.load(COLUMNS)
    assert (dataset.kind, dataset.scale, dataset.shape) == ("table", 1.0, (6,))
    assert [column.type for column in dataset.schema.columns] == TYPES
    assert dataset.schema == expected.schema
    assert dataset.names == tuple(COLUMNS)
    assert dataset.missing
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(dataset.split(split), expected.split(split))
    assert dataset.whole_digest == expected.whole_digest
    read = data.read_examples(
        source, kind="table", scale=1.0, shape=(6,), names=dataset.names, schema=dataset.schema
    )
    np.testing.assert_array_equal(read, dataset.schema.encode(COLUMNS))


def test_a_table_is_split_as_an_array_is():
    x = RNG.normal(size=(43, 2))
    table, array = data.load({"a": x[:, 0], "b": x[:, 1]}), data.load(x)
    assert (table.kind, array.kind) == ("table", "real")
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(table.split(split), array.split(split))


def test_the_schema_is_that_of_the_training_rows_of_all_splits():
    part = lambda lo, hi: {n: v[lo:hi] for n, v in COLUMNS.items()}
    test = {**part(60, 80), "city": ["Bergen", *part(60, 80)["city"][1:]]}
    splits = {"test": dict(reversed(test.items())), "train": part(0, 60)}
    with pytest.warns(UnknownCategoryWarning, match=r"mapping \(test\) holds 'Bergen' in row 1"):
        dataset = data.load(splits)
    assert [len(dataset.split(s)) for s in ("train", "valid", "test")] == [54, 6, 20]
    assert dataset.schema.columns[4].categories == ("New York, NY", "Oslo", "St. Louis")
    assert np.isnan(dataset.test[0, 4])
    expected = dataset.schema.encode(part(0, 60))
    np.testing.assert_array_equal(np.concatenate([dataset.train, dataset.valid]), expected)
    lost = {"train": part(0, 60), "test": {n: v for n, v in part(60, 80).items() if n != "sex"}}
    with pytest.raises(InputError, match=r"mapping \(test\) lacks 'sex', where the training data"):
        data.load(lost)


# --- what "auto" takes for a table

BITS = RNG.integers(0, 2, (20, 3))
PIXELS = RNG.integers(0, 256, (20, 64))
FRACTIONS = RNG.random((20, 3))


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (pd.DataFrame(BITS, columns=list("abc")), "binary"),
        (pd.DataFrame(BITS.astype(bool), columns=list("abc")), "binary"),
        (pd.DataFrame(BITS, columns=list("abc")).replace(0, np.nan), "table"),
        (pd.DataFrame(PIXELS, columns=[f"p{i}" for i in range(64)]), "intensity"),
        (pd.DataFrame(PIXELS[:, :63], columns=[f"p{i}" for i in range(63)]), "table"),
        (pd.DataFrame(FRACTIONS, columns=list("abc")), "table"),
        (pd.DataFrame(FRACTIONS), "intensity"),
        (pd.DataFrame(FRACTIONS).mask(FRACTIONS < 0.2), "table"),
        (np.where(FRACTIONS < 0.2, np.nan, FRACTIONS), "intensity"),
        (FRACTIONS.view([("a", float), ("b", float), ("c", float)])[:, 0], "table"),
        (scipy.sparse.csr_matrix(BITS), "binary"),
        (scipy.sparse.csr_array(FRACTIONS * BITS), "intensity"),
        (scipy.sparse.dok_array(FRACTIONS * BITS), "intensity"),
        ({"train": pd.DataFrame(FRACTIONS, columns=list("abc")), "test": FRACTIONS}, "table"),
    ],
)
def test_what_is_a_table_by_itself(source, kind):
    assert data.load(source).kind == kind


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("a,b\n" + "0,1\n1,1\n" * 10, "binary"),
        ("a,b\n" + "0,1\n1,\n" * 10, "table"),
        ("a,b\n" + "0,2.5\n1,3\n" * 10, "table"),
        ("0,2.5\n-1,3\n" * 10, "real"),
        ("0,2.5\n?,3\n" * 10, "table"),
        ("0,2.5,m\n-1,3,f\n" * 10, "table"),
    ],
)
def test_what_is_a_table_in_a_file(tmp_path, content, kind):
    path = saved(tmp_path / "x.csv", content)
    header = "no" if content.startswith("0,2.5,m") else "auto"
    assert data.load(path, header=header).kind == kind
    assert data.load(path, values="table", header=header).kind == "table"


def test_named_values_are_real_where_that_is_asked_for(tmp_path):
    x = np.round(RNG.normal(size=(20, 2)), 3)
    frame = pd.DataFrame(x, columns=["a", "b"])
    path = saved(tmp_path / "x.csv", frame.to_csv(index=False))
    for source in (frame, path, {"a": x[:, 0], "b": x[:, 1]}):
        dataset = data.load(source, values="real")
        assert (dataset.kind, dataset.schema, dataset.names) == ("real", None, ("a", "b"))
        np.testing.assert_array_equal(dataset.train, data.load(x).train)
    with pytest.raises(InputError, match="Column 'c' of the array holds 'u', but numbers are"):
        data.load(frame.assign(c="u"), values="real")


def test_an_array_is_a_table_where_that_is_asked_for():
    x = np.array([[1.5, "a"], [2.5, "b"], [None, "c"]] * 10, dtype=object)
    dataset = data.load(x, values="table")
    assert [column.type for column in dataset.schema.columns] == ["binary", "categorical"]
    assert (dataset.names, dataset.schema.names) == ((), ("x0", "x1"))
    known = {"kind": "table", "scale": 1.0, "shape": (2,), "schema": dataset.schema}
    for source in (x[:3], pd.DataFrame(x[:3]), pd.DataFrame(x[:3], columns=["u", "v"])):
        read = data.read_examples(source, **known)
        np.testing.assert_array_equal(read, [[0, 0], [1, 1], [np.nan, 2]])
    with pytest.raises(InputError, match=r"give 2, in the order of training"):
        data.read_examples(x[:, :1], **known)
    with pytest.raises(InputError, match="holds numbers in column 'x1', whose categories are word"):
        data.read_examples(np.zeros((3, 2)), **known)
    with pytest.raises(InputError, match=r"dtype object, but .* or pass values='table'"):
        data.load(x)


def test_a_schema_is_for_tables():
    with pytest.raises(InputError, match="A schema was given with values='real'"):
        data.load(COLUMNS, values="real", schema={"age": "real"})
    with pytest.raises(InputError, match="so a schema does not fit"):
        data.load("digits", schema={"age": "real"})
    dataset = data.load(FRACTIONS, schema={"x0": "real"})
    assert dataset.schema.columns[0].type == "real"
    again = data.load(COLUMNS, schema=data.load(COLUMNS, schema={"age": "real"}).schema)
    assert again.schema.columns[0].type == "real"


# --- single rows, other orders


@pytest.fixture(scope="module")
def table() -> data.Dataset:
    return data.load(COLUMNS)


def test_rows_in_every_form_are_read_by_name(table, tmp_path):
    known: dict[str, Any] = {"kind": "table", "scale": 1.0, "shape": (6,)}
    known |= {"names": table.names, "schema": table.schema}
    frame = pd.DataFrame(COLUMNS)
    row = frame.iloc[3]
    one = saved(tmp_path / "one.csv", text({n: v[3:4] for n, v in reversed(COLUMNS.items())}))
    records = frame.iloc[3:4].to_records(index=False)
    expected = table.schema.encode(frame)[3:4]
    for source in (row, row[::-1], row.to_dict(), frame[3:4], frame.iloc[3:4, ::-1], one, records):
        np.testing.assert_array_equal(data.read_examples(source, **known), expected)
    with pytest.raises(InputError, match="The table lacks 'sex', where the training data"):
        data.read_examples(frame.drop(columns="sex"), **known)
    more = saved(one, text({"id": ["a"], **{n: v[3:4] for n, v in COLUMNS.items()}}))
    with pytest.raises(InputError, match=r"one\.csv has 'id' besides"):
        data.read_examples(more, **known)
    with pytest.raises(InputError, match="without its schema"):
        data.read_examples(frame, **{**known, "schema": None})
    with pytest.raises(InputError, match="is a set: give a data frame, an array"):
        data.read_examples({1.5}, **known)


def test_a_row_without_any_value_is_kept(table):
    empty = dict.fromkeys(COLUMNS)
    assert np.isnan(table.schema.encode(empty)).all()
    padded = {name: [None, *values] for name, values in COLUMNS.items()}
    assert np.isnan(data.load(padded).schema.encode(padded)[0]).all()


# --- tables restored as frames


def test_values_are_restored_in_the_users_frame(table):
    x = table.schema.encode(COLUMNS)
    for frame in (
        pd.DataFrame(COLUMNS, index=[f"r{i}" for i in range(N)]),
        pd.DataFrame(COLUMNS).convert_dtypes(),
        pl.DataFrame(COLUMNS),
        pa.table(COLUMNS),
    ):
        back = table.schema.to_frame(x, like=frame)
        assert type(back) is type(frame)
        np.testing.assert_array_equal(table.schema.encode(back), x)
    frame = pd.DataFrame(COLUMNS, index=[f"r{i}" for i in range(N)])
    assert table.schema.to_frame(x, like=frame).index.equals(frame.index)
    again = table.schema.to_frame(x, like=pl.DataFrame(COLUMNS))
    assert again.schema == pl.DataFrame(COLUMNS).schema
    assert again["sex"].to_list() == COLUMNS["sex"]
    assert again["age"].to_list() == COLUMNS["age"]


def test_a_lazy_frame_has_to_be_collected_first():
    with pytest.raises(InputError, match=r"A LazyFrame was given.*collect\(\)"):
        data.load(pl.DataFrame(COLUMNS).lazy())


def test_a_data_set_says_what_it_holds(table):
    summary = (
        "Dataset('table', kind: table, shape: 6, train / valid / test: 64 / 8 / 8, missing: 84"
    )
    assert repr(table).startswith(summary)
    page = table._repr_html_()
    for name, column in table.schema.described():
        assert f">{name}</th>" in page
        assert column in table.schema._repr_html_()


def test_draws_fit_the_types_of_a_frame_where_they_can():
    schema = Schema((Column("n", "count"), Column("c", "ordinal", ("lo", "hi"))))
    like = pd.DataFrame({"n": [1], "c": pd.Categorical(["lo"], ["lo", "hi"], ordered=True)})
    back = schema.to_frame(np.float32([[2.2, 0.8], [7, 0]]), like=like)
    assert back["n"].tolist() == [2, 7]
    assert back["c"].tolist() == ["hi", "lo"]
    assert back["n"].dtype == like["n"].dtype
    numbers = Schema((Column("n", "count"), Column("r", "real")))
    made = numbers.to_frame(np.float32([[2.2, 0.5]]), like=np.zeros((1, 2)))
    np.testing.assert_array_equal(made, [[2.0, 0.5]])
    assert schema.to_frame(np.float32([[2.2, 0.8]]), like={})["c"].tolist() == ["hi"]


# --- files


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("m,f\nm,f\nf,m\n", "Line 1 of {} holds 'm', as do other lines in column 1"),
        ("a,b\n1,x\n2\n", "Line 3 of {} has 1 cells and line 2 has 2"),
        ("a,\n1,x\n2,y\n", "Column 2 of {} has no name"),
        ("a,a\n1,x\n2,y\n", "{} has several columns called 'a'"),
        ("a;b\n1,5;x\n1.5;y\n", "Line 3 of {} holds '1.5' where others have decimal commas"),
        ("a;b\n1,500;x\n", "{} holds '1,500', which may be thousands or decimals"),
        ("a,b\n1,x\ninf,y\n" + "2,x\n" * 20, "Column 'a' of {} holds inf in row 2"),
        ("a,b\n" + "1.5,x\n" * 9, "has 9 training examples, and splitting needs at least 10"),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path, content, sentence):
    path = saved(tmp_path / "x.csv", content)
    with pytest.raises(InputError) as error:
        data.load(path)
    assert sentence.format(path) in str(error.value)


def test_cells_are_words_if_one_of_them_is(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LOOK", 3)  # so that the word comes late
    content = "id,zip,n\n" + "".join(f"{i},0{i % 3},{i}\n" for i in range(8)) + "late,00,9\n"
    table = tables.read_table(saved(tmp_path / "x.csv", content))
    assert table.columns[0].levels == (*map(str, range(8)), "late")
    assert table.columns[1].levels == ("00", "01", "02")
    np.testing.assert_array_equal(table.columns[2].values, [*range(8), 9])
    decimals = tables.read_table(saved(tmp_path / "x.csv", "a,b\n0.5,x\n,x\n06,y\n"))
    np.testing.assert_array_equal(decimals.columns[0].values, [0.5, np.nan, 6.0])


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = saved(tmp_path / "x.parquet", b"PAR1 but no more")
    with pytest.raises(InputError, match=r"x\.parquet is damaged, or no Parquet file"):
        data.load(path)


def test_a_parquet_file_of_one_kind_of_values_is_read_as_such(tmp_path):
    pd.DataFrame(BITS, columns=list("abc")).to_parquet(tmp_path / "x.parquet")
    dataset = data.load(tmp_path / "x.parquet")
    assert (dataset.kind, dataset.names, dataset.train.dtype) == ("binary", tuple("abc"), np.uint8)
    known = {"kind": "binary", "scale": 1.0, "shape": (3,), "names": tuple("cba")}
    read = data.read_examples(tmp_path / "x.parquet", **known)
    np.testing.assert_array_equal(read, BITS[:, ::-1])


def test_a_file_is_shared_by_what_is_asked_of_it(tmp_path, monkeypatch):
    import os

    path = saved(tmp_path / "x.csv", text(COLUMNS))
    os.utime(path, (1, 1))
    first = data.load(path)
    assert data.load(path) is first
    assert data.load(path, values="table", schema=first.schema) is first
    other = data.load(path, schema={"age": "real"})
    assert other.schema != first.schema
    assert data.load(path, schema={"age": "real"}) is other


def test_memory_is_stated_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(cells, "memory", lambda: 1 << 30)
    wide = scipy.sparse.csr_matrix((10_000_000, 200))
    with pytest.raises(InputError) as error:
        data.load(wide)
    assert str(error.value) == (
        "The array has 10,000,000 rows of 200 columns, which take 24.0 GB in a memory of 1.1 GB: "
        "give fewer rows or columns, or numbers in a .npy file, which may be larger than the "
        "memory."
    )


def test_frames_of_numbers_need_no_narwhals(monkeypatch):
    monkeypatch.setattr(frames.importlib.util, "find_spec", lambda name: None)
    x = RNG.normal(size=(20, 2))
    assert data.load(pd.DataFrame(x, columns=["a", "b"])).kind == "table"
    monkeypatch.setitem(__import__("sys").modules, "narwhals", None)
    with pytest.raises(InputError, match=r"A data frame needs narwhals.*'iwae\[tables\]'"):
        data.load(pd.DataFrame(COLUMNS))


# --- missing values of other kinds


@pytest.mark.parametrize(
    ("x", "values", "kind"),
    [
        (RNG.normal(size=(30, 4)), "auto", "real"),
        (RNG.integers(0, 2, (30, 4)).astype(float), "auto", "binary"),
        (RNG.random((30, 2, 2)), "auto", "intensity"),
        (RNG.integers(0, 256, (30, 4)).astype(float), "auto", "intensity"),
        (RNG.integers(0, 9, (30, 4)).astype(float), "real", "real"),
    ],
)
def test_arrays_may_lack_values(x, values, kind, tmp_path):
    gaps = np.random.default_rng(0).random(x.shape) < 0.3
    holed = np.where(gaps, np.nan, x)
    np.save(tmp_path / "x.npy", holed)
    whole = data.load(x, values=values)
    for source in (holed, np.ma.masked_array(x, gaps), tmp_path / "x.npy"):
        dataset = data.load(source, values=values)
        assert (dataset.kind, dataset.scale) == (kind, whole.scale)
        assert dataset.train.dtype == np.float32
        order = np.random.default_rng(0).permutation(30)[:24]
        expected = holed[order].reshape(24, -1).astype(np.float32)
        np.testing.assert_array_equal(dataset.train, expected)
        assert dataset.missing
        assert dataset.whole_digest == data.load(holed, values=values).whole_digest
        mean, spread = np.nanmean(expected, 0), np.nanstd(expected, 0)
        np.testing.assert_allclose(dataset.mean(), mean / whole.scale, rtol=1e-5)
        np.testing.assert_allclose(dataset.std(), spread / whole.scale, rtol=1e-5)


def test_a_csv_of_one_kind_of_values_may_lack_some(tmp_path):
    path = saved(tmp_path / "x.csv", "a,b\n" + "1.5,NA\n?,-2\n" * 10)
    dataset = data.load(path, values="real")
    assert np.isnan(dataset.train).mean() == 0.5
    known: dict[str, Any] = {"kind": "real", "scale": 1.0, "shape": (2,), "names": ("a", "b")}
    read = data.read_examples(path, **known, missing=True)
    np.testing.assert_array_equal(read[:2], np.float32([[1.5, np.nan], [np.nan, -2]]))
    with pytest.raises(InputError, match="lacks 20 of its values"):
        data.read_examples(path, **known)


def test_digests_do_not_depend_on_the_bits_of_nan():
    x = RNG.normal(size=(20, 2)).astype(np.float32)
    x[3, 1] = np.nan
    other = x.copy()
    other.view(np.uint32)[3, 1] = 0xFFC00001
    make = lambda x: data.Dataset("x", x, x, x, "real", 1.0, (2,))
    assert make(x).whole_digest == make(other).whole_digest
    assert make(x).digest == make(other).digest
    x[3, 1] = 0
    assert make(x).whole_digest != make(other).whole_digest


def test_what_is_missing_stays_missing_when_intensities_are_binarised():
    x = np.float32([[0.0, 1.0, np.nan, 0.5]] * 50)
    fixed = data.binarize(x, 1.0, 3)
    np.testing.assert_array_equal(np.isnan(fixed), np.isnan(x))
    np.testing.assert_array_equal(fixed[:, :2], x[:, :2])
    complete = data.binarize(np.nan_to_num(x), 1.0, 3)
    np.testing.assert_array_equal(fixed[:, 3], complete[:, 3])
    key = jax.random.key(0)
    drawn = Observer(1.0, dynamic=True, missing=True)(jnp.asarray(x[0]), key)
    plain = Observer(1.0, dynamic=True)(jnp.nan_to_num(jnp.asarray(x[0])), key)
    np.testing.assert_array_equal(np.isnan(drawn), np.isnan(x[0]))
    np.testing.assert_array_equal(drawn[3], plain[3])


# --- what a model sees


def test_the_observation_of_a_table_carries_its_schema_and_what_is_a_density(table):
    seen = observation(table, DataConfig(), ModelConfig())
    assert (seen.kind, seen.model_kind, seen.binarization) == ("table", "table", "none")
    assert (seen.schema, seen.missing, seen.names) == (table.schema, True, table.names)
    assert "a density over 'dose, mg', 'marker', in your units times a probability" in seen.note
    assert seen.fits(table)
    assert not seen.fits(data.load(COLUMNS, schema={"age": "real"}))
    np.testing.assert_array_equal(
        seen.read(pd.DataFrame(COLUMNS)[::-1], None), table.schema.encode(COLUMNS)[::-1]
    )
    with pytest.raises(InputError, match=r"binarization = fixed was given, but .* is a table"):
        observation(table, DataConfig(binarization="fixed"), ModelConfig())
    with pytest.raises(InputError, match=r"likelihood = gaussian was given, but .* is a table"):
        observation(table, DataConfig(), ModelConfig(likelihood="gaussian"))


def test_a_model_of_complete_values_takes_no_gaps():
    x = RNG.normal(size=(30, 2))
    holed = np.where(x > 1, np.nan, x)
    seen = observation(data.load(x), DataConfig(), ModelConfig())
    assert not seen.missing
    assert not seen.fits(data.load(holed))
    with pytest.raises(InputError, match="holds NaN, masked or infinite values"):
        seen.read(holed, None)
    with_gaps = observation(data.load(holed), DataConfig(), ModelConfig(likelihood="Cauchy"))
    assert with_gaps.missing
    assert with_gaps.fits(data.load(x))
    np.testing.assert_array_equal(with_gaps.read(holed, None), holed.astype(np.float32))


def test_an_observation_of_a_table_survives_its_file(table):
    seen = observation(table, DataConfig(), ModelConfig())
    kept = persisted.parsed(__import__("json").dumps(asdict(seen)))
    assert persisted.typed(kept, Observation) == seen


def test_the_schema_is_part_of_the_identity_of_a_run(table):
    config = RunConfig()
    seen = observation(table, config.data, config.model)
    other = data.load(COLUMNS, schema={"age": "real"})
    again = observation(other, config.data, config.model)
    assert seen.digest == again.digest
    assert identity(config, seen) != identity(config, again)
    moved = override(config, values="table", schema="elsewhere.toml")
    assert identity(moved, seen) == identity(config, seen)


def test_columns_in_another_order_are_sorted_with_their_schema(table):
    backwards = data.load(dict(reversed(COLUMNS.items())))
    assert backwards.schema != table.schema
    sorted_back = backwards.in_order(table.names)
    assert sorted_back.schema == table.schema
    np.testing.assert_array_equal(sorted_back.train, table.train)


# --- the command line


def test_the_columns_of_a_table_are_shown_and_their_schema_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    ids = [f"p{i}" for i in range(N)]
    path = saved(tmp_path / "mine.csv", text({"id": ids, **COLUMNS}))
    written = tmp_path / "schema.toml"
    main(["data", str(path), "--write-schema", str(written)])
    shown = capsys.readouterr().out
    for part in ("negative binomial", "two different words", "'New York, NY', Oslo", "holds text"):
        assert part in " ".join(shown.split())
    assert f"Wrote {written}." in shown
    lines = written.read_text("utf-8").replace('type = "count"', 'type = "real"')
    written.write_text(lines, "utf-8")
    dataset = data.load(path, schema=written)
    assert dataset.schema.columns[0].type == "real"
    assert dataset.schema.ignored == ("id",)
    main(["data", str(path), "--schema", str(written)])
    assert "left out: id" in capsys.readouterr().out
    for command, sentence in (
        (["data", str(path), "--write-schema", str(written)], "give --overwrite"),
        (["data", "--schema", str(written)], "A schema was given without a table"),
        (["data", str(tmp_path / "lost.csv")], "is not an existing file"),
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["minst", "mine.xlsx", "nowhere.csv"])
def test_what_is_no_table_is_not_shown(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", name])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "is neither a data set nor a .npy" in error or "is not an existing file" in error


def test_columns_that_are_not_usable_are_named_below_the_others(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    lines = [f"{i / 7},2024-03-{i % 28 + 1:02d}" for i in range(40)]
    path.write_text("\n".join(["dose,day", *lines]))
    main(["data", str(path)])
    told = " ".join(capsys.readouterr().out.split())
    assert "Not usable: Column 'day' of" in told
    assert "write it as a number, such as days since a first day, or leave it out" in told
