"""Schemas of tables: what columns are taken for, and how their values are coded and restored."""

import tomllib
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from iwae.data import Column, Schema
from iwae.data.cells import of_numpy, of_objects
from iwae.data.detect import (
    Detected,
    detect,
    log_normal_fit,
    logit_normal_fit,
    negative_binomial_fit,
    normal_fit,
    resolution,
)
from iwae.data.frames import as_table
from iwae.errors import InputError, OutsideSupportWarning, UnknownCategoryWarning

RNG = np.random.default_rng(3)
N = 300


def found(values: Any, **wish: Any) -> Detected:
    """The schema of a table of one column, x."""
    return detect(as_table({"x": values}, "The table"), {"x": wish} if wish else None)


def column(values: Any, **wish: Any) -> Column:
    return found(values, **wish).schema.columns[0]


ZEROS = np.where(RNG.random(N) < 0.4, 0, np.exp(RNG.normal(size=N)))
AMOUNTS = np.where(RNG.random(N) < 0.9, 0, RNG.integers(100, 99_999, N))

DETECTED: dict[str, tuple[Any, str, str]] = {
    "truth values": ([True, False, None] * 20, "binary", "true or false"),
    "two words": (["m", "f", None, " f "] * 20, "binary", "two different words"),
    "words": (["a", "b", "c"] * 20, "categorical", "3 different words"),
    "versions": (["1.2.3", "1.10.2", "2024"] * 20, "categorical", "3 different words"),
    "words that are numbers": (["10", "9", "8"] * 20, "categorical", "3 different words"),
    "words and numbers": ([1, "a", 2, "b"] * 20, "categorical", "4 different words"),
    "zeros and ones": ([0, 1, 1], "binary", "two different numbers"),
    "two numbers": ([0.5, 1.5] * 20, "binary", "two different numbers"),
    "two numbers once each": ([0.5, 1.5], "positive", "as of a log-normal"),
    "levels": (RNG.integers(1, 6, N), "ordinal", "5 levels"),
    "levels from 0 to 16": (np.repeat(np.arange(17), [60, *[10] * 15, 90]), "ordinal", "17 levels"),
    "hours": (np.arange(720) % 24, "ordinal", "24 levels"),
    "counts without a gap": (np.repeat(np.arange(6), [90, 80, 60, 40, 20, 10]), "count", "from 0"),
    "ages of the young": (18 + np.arange(250) % 15, "count", "whole numbers from 0"),
    "few rows for each level": (np.arange(9), "count", "whole numbers from 0"),
    "counts": (RNG.negative_binomial(2, 0.05, N), "count", "whole numbers from 0"),
    "ages": (RNG.integers(18, 90, N), "count", "whole numbers from 0"),
    "years": (RNG.integers(1990, 2020, N), "real", "standard deviations away from 0"),
    "multiples of 100": (np.rint(np.exp(RNG.normal(7, 0.5, N))) * 100, "positive", "log-normal"),
    "amounts that are mostly 0": (AMOUNTS, "positive", "beside zeros"),
    "an index": (np.arange(N), "count", "as in an index of rows: consider leaving it out"),
    "whole numbers below 0": (RNG.integers(-9, 9, N), "real", "some below 0"),
    "huge whole numbers": (RNG.integers(1 << 25, 1 << 30, N), "real", "closer to a Normal"),
    "numbers": (RNG.normal(size=N), "real", "some below 0"),
    "heights": (RNG.normal(170, 10, N), "real", "standard deviations away from 0"),
    "distances from 5": (np.abs(RNG.normal(5, 2, N)), "real", "closer to a Normal than to a log-"),
    "widths": (np.round(RNG.normal(3, 0.4, N), 1), "positive", "as of a log-normal"),
    "incomes": (np.exp(RNG.normal(10, 1, N)), "positive", "as of a log-normal"),
    "shares": (RNG.beta(2, 8, N), "bounded", "as of a logit-normal"),
    "zeros beside others": (ZEROS, "positive", "beside zeros"),
    "a constant": (np.full(N, 3.5), "categorical", "constant in training"),
    "one word": (["a"] * N, "categorical", "constant in training"),
    "one value": ([None, 2.0, None], "categorical", "constant in training"),
    "one row": ([5], "categorical", "constant in training"),
    "missing first": ([None, *RNG.normal(size=N)], "real", "some below 0"),
    "negative zero": ([-0.0, 0.0, 1.0] * 20, "binary", "two different numbers"),
}


@pytest.mark.parametrize(("values", "kind", "reason"), DETECTED.values(), ids=DETECTED)
def test_the_type_of_a_column_is_detected_with_a_reason(values, kind, reason):
    detected = found(values)
    assert detected.schema.columns[0].type == kind
    assert reason in detected.reasons["x"]


@pytest.mark.parametrize("values", [v for v, *_ in DETECTED.values()], ids=DETECTED)
def test_every_value_is_restored_from_its_code(values):
    table = as_table({"x": values}, "The table")
    schema = detect(table).schema
    back = schema.decode(schema.encode(table))["x"]
    for given, again in zip(values, back, strict=True):
        given = given.strip() if isinstance(given, str) else given
        given = str(given) if isinstance(again, str) else given
        if given is None:
            assert again is None or np.isnan(again)
        elif isinstance(again, str):
            assert again == given
        else:
            assert np.float32(again) == np.float32(given)


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (["10", "9", "x"] * 9, ("10", "9", "x")),
        (["10", "9", "8"] * 9, ("8", "9", "10")),
        ([3, 1, 2] * 30, (1, 2, 3)),
        ([True, True], (False, True)),
        ([-0.0, 1.0] * 9, (0, 1)),
    ],
)
def test_categories_are_in_their_order(values, categories):
    assert column(values).categories == categories
    assert list(map(type, column(values).categories)) == list(map(type, categories))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([None, np.nan], "Column 'x' of the table has no value in training: leave it out."),
        ([1.0, np.inf, 2.5], "Column 'x' of the table holds inf in row 2: give a finite number"),
        ([f"n{i}" for i in range(99)], "holds text (99 different words in 99 rows, such as 'n0')"),
        ([f"n{i % 1100}" for i in range(4400)], "has 1,100 categories, more than 1,000: merge"),
        ([0.5, "x", 1.5], "holds 'x' in row 2 among numbers: correct it"),
        ([*map(str, range(40)), "4O"], "holds '4O' in row 41 among numbers: correct it"),
        (np.array(["2020-01-01"] * 9, "M8[D]"), "holds dates or times: write it as a number"),
        (np.array([5], "m8[s]"), "holds dates or times"),
        (
            ["2024-01-31", "2024-02-01 08:30"] * 9,
            "holds dates or times, such as '2024-01-31'",
        ),
        (["1.2.2024", "28.02.2024", "3.12.2023"] * 9, "holds dates or times"),
        ([[1], [2]], "holds a list: give one number or word in each cell"),
        (np.array([1j]), "holds values of type complex128"),
        (np.array([b"a"]), "holds bytes: decode them to words"),
        ([10**400, 1], "holds whole numbers beyond float64: rescale it"),
        (1.7e9 + RNG.random(N), "which float32 cannot resolve: subtract an offset from it"),
        (1e-300 * RNG.random(N), "less than float32 can resolve: multiply it, by 1e+300"),
        (1e300 * (1 + RNG.random(N)), "beyond float32's range: rescale the column"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_columns_that_no_model_can_take_are_refused_by_name(values, sentence):
    def read() -> np.ndarray:
        table = as_table({"x": values}, "The table")
        return detect(table).schema.encode(table)

    with pytest.raises(InputError) as error:
        read()
    assert sentence in str(error.value)
    assert "'x'" in str(error.value)


def test_what_only_other_rows_hold_moves_the_type_but_not_the_categories():
    train, other = np.exp(RNG.normal(size=N)), [1.0, -2.0]
    rows = as_table({"x": train, "c": ["a", "b", "c"] * 100, "n": [0, 1, 2] * 100}, "train")
    test = as_table({"x": other, "c": ["a", "z"], "n": [1, 7]}, "test")
    schema = detect(rows, others=[test]).schema
    assert [c.type for c in detect(rows).schema.columns] == ["positive", "categorical", "ordinal"]
    assert [c.type for c in schema.columns] == ["real", "categorical", "count"]
    assert schema.columns[1].categories == ("a", "b", "c")


def test_a_word_among_numbers_is_found_in_whatever_rows_it_is():
    numbers = list(map(str, range(40)))
    rows, test = (as_table({"x": values}, "") for values in (numbers, ["1", "4O"]))
    with pytest.raises(InputError, match="'x' of the table holds '4O' in row 2 among numbers"):
        detect(rows, others=[test])


# --- fits in closed form


def test_fits_are_scipys_log_densities_of_the_largest_likelihood():
    x = np.exp(RNG.normal(1, 0.7, 50))
    share = x / (1 + x)
    log, logit = np.log(x), np.log(share / (1 - share))
    expected = scipy.stats.norm(x.mean(), x.std()).logpdf(x)
    np.testing.assert_allclose(normal_fit(x), expected, rtol=1e-12)
    expected = scipy.stats.lognorm(log.std(), scale=np.exp(log.mean())).logpdf(x)
    np.testing.assert_allclose(log_normal_fit(x), expected, rtol=1e-12)
    expected = scipy.stats.norm(logit.mean(), logit.std()).logpdf(logit)
    expected = expected - np.log(share * (1 - share))
    np.testing.assert_allclose(logit_normal_fit(share), expected, rtol=1e-12)


@pytest.mark.parametrize("r", [0.3, 4.0, 1e6])
def test_the_fit_of_a_negative_binomial_is_the_largest_over_r(r):
    m = 6.0
    x = np.random.default_rng(0).negative_binomial(r, r / (r + m), 400).astype(float)
    loss = lambda log_r: -scipy.stats.nbinom.logpmf(x, s := 10**log_r, s / (s + x.mean())).sum()
    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 7), method="bounded")
    np.testing.assert_allclose(negative_binomial_fit(x), -best.fun, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (np.round(RNG.normal(size=N), 1), 0.1),
        (np.array([0.1 * 3, 0.3, 0.5]), 0.2),
        (np.array([0.0, 250.0, 1000.0]), 250.0),
        (np.array([1e6, 1e6 + 1e-3]), float(np.spacing(np.float32(1e6)))),
        (np.zeros(3), 0.0),
    ],
)
def test_the_resolution_is_the_smallest_step_beyond_rounding(values, step):
    assert resolution(np.unique(values)) == pytest.approx(step, rel=1e-6)


# --- decisions of the user


def test_decisions_come_first_and_leave_the_rest_to_detection(tmp_path):
    table = as_table(
        {"id": ["p1", "p2", "p3"], "stage": ["low", "high", "mid"], "n": [1, 2, 5], "t": [1, 2, 3]},
        "The table",
    )
    text = """
        [id]
        type = "ignored"
        [stage]
        type = "ordinal"
        categories = ["low", "mid", "high"]
        [t]
        likelihood = "poisson"
    """
    (tmp_path / "mine.toml").write_text(text)
    for decisions in (tmp_path / "mine.toml", str(tmp_path / "mine.toml"), tomllib.loads(text)):
        schema = detect(table, decisions).schema
        assert schema.ignored == ("id",)
        assert schema.names == ("stage", "n", "t")
        assert schema.columns[0] == Column("stage", "ordinal", ("low", "mid", "high"))
        assert [c.type for c in schema.columns[1:]] == ["count", "count"]
        assert schema.columns[2].likelihood == "poisson"
        np.testing.assert_array_equal(schema.encode(table), [[0, 1, 1], [2, 2, 2], [1, 5, 3]])
    assert detect(table, {"id": "categorical"}).schema.columns[0].levels == 3


def test_types_that_are_given_take_what_they_need():
    assert column([1, 2, 3] * 20, type="real").whole
    assert column([0.0, 2.5, 1.0], type="positive").zeros
    assert column(["1.5", "2"], type="real").type == "real"
    assert column([1, 2, 3], type="categorical").categories == (1, 2, 3)
    assert column([20, 80], type="bounded", low=0, high=100).high == 100.0
    assert column(["a", "b"], categories=["b", "a"]).categories == ("b", "a")
    assert column(["a"] * 3, type="binary", categories=["a", "b"]).levels == 2


@pytest.mark.parametrize(
    ("values", "wish", "sentence"),
    [
        ([1, -2], {"type": "count"}, "holds -2 in row 2, but the type count needs 0, 1, 2, …"),
        ([1, 2.5], {"type": "count"}, "holds 2.5 in row 2"),
        ([1, 0], {"type": "positive", "zeros": False}, "needs numbers above 0"),
        ([1, 5], {"type": "bounded"}, "needs numbers strictly between 0 and 1"),
        (["a", "2"], {"type": "real"}, "holds 'a' in row 1, but its type real needs numbers"),
        (["a", "b"], {"type": "ordinal"}, "whose order is unknown: give its categories"),
        (["a", "b", "c"], {"type": "binary"}, "is binary with 3 categories; give two"),
        (["a", "a"], {"type": "binary"}, "is constant in training, not binary"),
        (["a", "b"], {"type": "binary", "categories": ["c", "d"]}, "none of the categories"),
        (["a", "b"], {"categories": ["a", "a"]}, "lists a category twice"),
        ([1, 2], {"type": "reel"}, "the type 'reel', which is unknown; did you mean 'real'?"),
        ([1, 2], {"typ": "real"}, "has an unknown entry 'typ' for column 'x'"),
        ([1, 2], {"type": 3}, "gives type = 3 for column 'x': give a string"),
        ([1, 2], {"low": True}, "gives low = True for column 'x': give a number"),
        ([1, 2], {"categories": [[1]]}, "gives column 'x' the category [1]"),
        ([1.5, 2], {"type": "real", "likelihood": "gamma"}, "which its type real does not admit"),
        ([1.5, 2], {"type": "bounded", "low": 3, "high": 1}, "give a low below high, both finite"),
        ([1.5, 2], {"type": "bounded", "low": 0, "high": np.inf}, "both finite"),
        ([1.5, 2], {"type": "real", "resolution": -1.0}, "has the resolution -1"),
        ([1.5, 2], {"type": "ignored"}, "has no column to model"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(values, wish, sentence):
    with pytest.raises(InputError) as error:
        found(values, **wish)
    assert sentence in str(error.value)


def test_decisions_that_are_no_decisions_are_refused(tmp_path):
    table = as_table({"x": [1, 2]}, "The table")
    (tmp_path / "broken.toml").write_text("[x")
    for given, sentence in (
        ({"y": "real"}, r"The schema names 'y', which the table lacks; known are x"),
        ({"x": 3}, "gives x = 3: give a table of fields"),
        (3, "schema is a int: give types by column"),
        (tmp_path / "lost.toml", "cannot be read: No such file or directory"),
        (tmp_path / "broken.toml", "is not valid TOML"),
    ):
        with pytest.raises(InputError, match=sentence):
            detect(table, given)


MIXED: dict[str, Any] = {
    "weight (kg)": [61.5, None, 80.25, 74.0, -1.0] * 8,
    "a, “b”": ["x", "y", "z", None, 'q"'] * 8,
    "visits": [3, 40, 7, 12, None] * 8,
    "level": [1, 2, 3, 2] * 10,
    "smoker": [True, None] * 20,
    "dose": [0.0, 0.25, 2.5, 40.0] * 10,
    "share": [0.1, 0.9, 0.2, 0.5] * 10,
}


def test_a_schema_that_is_written_is_read_again(tmp_path):
    table = as_table({**MIXED, "id": list(map(str, range(40)))}, "The table")
    first = detect(table, {"id": "ignored", "share": {"type": "bounded", "high": 2.0}})
    path = tmp_path / "schema.toml"
    path.write_text(first.schema.to_toml(first.reasons), "utf-8")
    again = detect(table, path)
    assert again.schema == first.schema
    assert "# 4 different words\n" in path.read_text("utf-8")
    assert 'categories = ["q\\"", "x", "y", "z"]' in path.read_text("utf-8")


def test_columns_that_no_model_can_take_are_left_out_where_that_is_tolerated():
    table = as_table({"name": [f"n{i}" for i in range(60)], "x": RNG.normal(size=60)}, "The table")
    tolerated = detect(table, tolerant=True)
    assert tolerated.unusable == tolerated.schema.ignored == ("name",)
    assert "holds text" in tolerated.reasons["name"]
    with pytest.raises(InputError, match="holds text"):
        detect(table)


# --- codes


@pytest.fixture(scope="module")
def schema() -> Schema:
    return detect(as_table(MIXED, "The table")).schema


def test_columns_are_matched_by_name_and_checked_by_name(schema):
    x = schema.encode(MIXED)
    assert x.dtype == np.float32
    backwards = dict(reversed(MIXED.items()))
    np.testing.assert_array_equal(schema.encode(backwards), x)
    lost = {n: v for n, v in MIXED.items() if n != "level"}
    with pytest.raises(InputError, match="The table lacks 'level', where the training data have"):
        schema.encode(lost)
    with pytest.raises(InputError, match="lacks 'level' and has 'lvl' besides"):
        schema.encode({**lost, "lvl": MIXED["level"]})


def test_ignored_columns_may_be_there_or_not():
    schema = Schema((Column("x", "real"),), ignored=("id",))
    np.testing.assert_array_equal(schema.encode({"id": ["a"], "x": [2.5]}), [[2.5]])
    np.testing.assert_array_equal(schema.encode({"x": [2.5]}), [[2.5]])
    with pytest.raises(InputError, match="has 'y' besides"):
        schema.encode({"x": [2.5], "y": [1]})


def test_one_row_is_a_table(schema):
    row = {name: values[1] for name, values in MIXED.items()}
    np.testing.assert_array_equal(schema.encode(row), schema.encode(MIXED)[1:2])
    back = schema.decode(schema.encode(row)[0])
    assert np.isnan(back["weight (kg)"][0])
    assert back["smoker"][0] is None
    assert (back["a, “b”"][0], back["visits"][0], back["level"][0]) == ("y", 40, 2)


def test_a_category_that_training_lacked_is_missing_with_a_warning(schema):
    row = {name: values[:4] for name, values in MIXED.items()}
    row["a, “b”"] = ["x", "new", "new", None]
    with pytest.warns(UnknownCategoryWarning) as caught:
        x = schema.encode(row, "mine.csv")
    assert str(caught[0].message) == (
        "Column 'a, “b”' of mine.csv holds 'new' in row 2, which is no category of training and is "
        "taken for missing (with 2 such values in all)."
    )
    np.testing.assert_array_equal(np.isnan(x[:, 1]), [False, True, True, True])
    row["a, “b”"], row["level"] = ["x"] * 4, [1, 2, 9, 3]
    with pytest.warns(UnknownCategoryWarning, match="'level' of the table holds 9 in row 3"):
        assert np.isnan(schema.encode(row)[2, 3])


@pytest.mark.parametrize(
    ("categories", "values", "codes"),
    [
        ((0, 1), [True, False, None], [1, 0, np.nan]),
        ((False, True), [1, 0, 1.0], [1, 0, 1]),
        ((False, True), ["True", "false", " TRUE"], [1, 0, 1]),
        (("False", "True"), [True, False], [1, 0]),
        (("1", "2"), [2, 1.0], [1, 0]),
        ((1, 2), ["2", "1.0"], [1, 0]),
        (("01", "1"), ["1", "01"], [1, 0]),
        ((0.1, 0.2), np.array([0.2, 0.1], np.float32), [1, 0]),
        ((16777216, 16777217), [16777217, 16777216], [1, 0]),
        (("b", "a"), ["a", "b"], [1, 0]),
    ],
)
def test_categories_are_known_however_they_are_written(categories, values, codes):
    cells = (
        of_numpy(values, "x", "") if isinstance(values, np.ndarray) else of_objects(values, "x", "")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(Column("x", "binary", categories).encode(cells, ""), codes)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (Column("x", "positive"), "holds 0 in row 2, but its type positive needs numbers above 0"),
        (Column("x", "bounded", high=2.0), "holds 0 in row 2, but .* strictly between 0 and 2"),
        (Column("x", "count"), "holds 1.5 in row 1, but its type count needs 0, 1, 2, …"),
    ],
)
def test_numbers_outside_the_support_are_refused_by_row(given, sentence):
    with pytest.raises(InputError, match=sentence):
        Schema((given,)).encode({"x": [1.5, 0.0, None]})


def test_numbers_outside_the_support_stay_with_one_warning_where_that_is_tolerated():
    columns = (Column("a", "count"), Column("b", "bounded", high=0.1), Column("c", "positive"))
    schema = Schema(columns)
    rows = np.array([[1, 0.05, 2], [2.5, 0.1, -1], [np.nan, 0.1 - 1e-12, 1], [-1, 0.05, 0]])
    with pytest.warns(OutsideSupportWarning) as caught:
        x = schema.encode(rows, "mine.csv", tolerant=True)
    assert [str(warning.message) for warning in caught] == [
        "Column 'a' of mine.csv holds 2.5 in row 2, but its type count needs 0, 1, 2, …: the "
        "log-likelihood of the row is -inf, and its other values are inferred as if this one were "
        "missing (2 such rows in all)."
    ]
    outside = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]], bool)
    np.testing.assert_array_equal(schema.outside(x), outside)
    np.testing.assert_array_equal(x[outside], rows[outside].astype(np.float32))
    np.testing.assert_array_equal(np.isnan(schema.inside(x)), outside | np.isnan(rows))
    with pytest.raises(InputError, match="holds inf in row 1, but its type count needs finite"):
        schema.encode(np.array([[np.inf, 0.05, 1]]), tolerant=True)


def test_a_number_stays_inside_its_bounds_when_it_is_rounded():
    inside = Schema((Column("x", "bounded"),)).encode({"x": [1 - 1e-12, 1e-300]})
    assert (inside > 0).all()
    assert (inside < 1).all()
    with pytest.raises(InputError, match="which float32 rounds to 0: rescale the column"):
        Schema((Column("x", "positive"),)).encode({"x": [1e-300]})


def test_draws_are_restored_as_values_of_their_type():
    columns = (
        Column("n", "count"),
        Column("c", "categorical", ("a", "b", "c")),
        Column("w", "real", whole=True),
        Column("r", "real"),
        Column("t", "binary", (False, True)),
        Column("m", "categorical", ("a", 2)),
    )
    x = np.float32([[2.4, 1.6, -3.7, 0.1, 0.9, 1], [-0.2, 5.0, 2.0, np.nan, np.nan, 0]])
    back = Schema(columns).decode(x)
    assert back["n"].tolist() == [2, 0]
    assert back["n"].dtype == back["w"].dtype == np.int64
    assert back["c"].tolist() == ["c", "c"]
    assert back["w"].tolist() == [-4, 2]
    np.testing.assert_array_equal(back["r"], np.float32([0.1, np.nan]))
    assert back["t"].tolist() == [True, None]
    assert back["m"].tolist() == [2, "a"]
    with pytest.raises(InputError, match=r"x has the shape \(2, 3\): give \[n, 6\]"):
        Schema(columns).decode(x[:, :3])


def test_what_a_likelihood_is_a_density_of_is_said(schema):
    assert schema.measure == (
        "the likelihood of a row is a density over 'weight (kg)', 'dose', 'share', in your units "
        "times a probability of 'a, “b”', 'visits', 'level', 'smoker'; zeros of 'dose' count by "
        "probability"
    )


def test_columns_say_what_they_are_modelled_as(schema):
    models = {column.name: column.model for column in schema.columns}
    assert models["a, “b”"] == "categorical over 4"
    assert models["dose"] == "0 or log-normal"
    assert models["level"] == "ordered logistic over 3"
    assert Column("x", "bounded", high=5.0).model == "logit-normal on (0, 5)"
    assert Column("x", "positive", likelihood="gamma").model == "Gamma"
    assert column(["a"] * 9).model == "constant"
