"""The benchmark of tables: its errors, codings, densities and page, on small made tables."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.tables import anomalies, imputation, ours, page, record, sets
from benchmarks.tables.coding import Coding
from benchmarks.tables.densities import kernels, marginals, single_gaussian
from benchmarks.tables.imputers import marginal, neighbours, ridge
from benchmarks.tables.record import Figure, Record
from benchmarks.tables.sets import Mixed
from iwae.data import frames
from iwae.data.detect import detect


def made(rows: np.ndarray, types: tuple[str, ...], classes: tuple[int, ...]) -> Mixed:
    return Mixed("made", rows, types, classes, np.zeros(rows.shape, bool), Path())


@pytest.fixture
def table() -> Mixed:
    """A number, twice the number, a category of three that follows from it, and its level."""
    z = np.random.default_rng(0).normal(size=60)
    level = np.digitize(z, [-0.5, 0.5]).astype(float)
    rows = np.column_stack([z, 2 * z + 1, np.array([7.0, 3.0, 5.0])[level.astype(int)], level])
    return made(rows, ("real", "pos", "cat", "ordinal"), (0, 0, 3, 3))


@pytest.fixture
def holes(table: Mixed) -> np.ndarray:
    return np.random.default_rng(1).random(table.rows.shape) < 0.2


def test_errors_are_those_of_the_protocol():
    rows = np.array([[0.0, 1.0, 1.0], [10.0, 2.0, 3.0], [4.0, 1.0, 2.0]])
    guess = np.array([[3.0, 2.0, 3.0], [6.0, 2.0, 3.0], [4.0, 1.0, 2.0]])
    holes = np.array([[True, True, True], [True, True, True], [False, False, False]])
    found = imputation.errors(made(rows, ("count", "cat", "ordinal"), (0, 2, 4)), guess, holes)
    numeric = np.sqrt((9 + 16) / 2) / 10
    assert found["numeric"] == pytest.approx(numeric)
    assert found["categorical"] == 0.5
    assert found["ordinal"] == 2 / 2 / 4
    assert found["mean"] == pytest.approx((numeric + 0.5 + 0.25) / 3)


def test_coding_and_decoding_is_the_identity(table):
    coding = Coding.of(table, table.rows)
    coded = coding.encode(table.rows)
    assert coded.shape == (60, 1 + 1 + 2 + 1)
    np.testing.assert_allclose(coding.decode(coded), table.rows, atol=1e-12)


def test_a_missing_value_is_missing_in_all_its_numbers(table, holes):
    rows = np.where(holes, np.nan, table.rows)
    coded = Coding.of(table, rows).encode(rows)
    missing = np.isnan(coded)[:, [0, 1, 2, 3, 4]]
    np.testing.assert_array_equal(missing, holes[:, [0, 1, 2, 2, 3]])


@pytest.mark.parametrize("imputer", [marginal, neighbours, ridge])
def test_imputers_fill_holes_only(imputer, table, holes):
    rows = np.where(holes, np.nan, table.rows)
    filled = imputer(table, rows, 0)
    np.testing.assert_array_equal(filled[~holes], table.rows[~holes])
    assert set(filled[:, 2]) <= {3.0, 5.0, 7.0}
    assert set(filled[:, 3]) <= {0.0, 1.0, 2.0}


def test_marginal_imputation_is_mean_mode_and_median(table):
    rows = table.rows.copy()
    rows[0] = np.nan
    filled = marginal(table, rows, 0)[0]
    known = table.rows[1:]
    assert filled[0] == pytest.approx(known[:, 0].mean())
    assert filled[2] == stats.mode(known[:, 2]).mode
    assert filled[3] == np.median(known[:, 3])


def test_ridge_uses_the_other_columns(table, holes):
    rows = np.where(holes, np.nan, table.rows)
    error = lambda impute: imputation.errors(table, impute(table, rows, 0), holes)
    by_ridge, by_marginals = error(ridge), error(marginal)
    assert by_ridge["numeric"] < by_marginals["numeric"] / 2


def test_ridge_learns_flags_from_the_other_columns():
    z = np.random.default_rng(0).normal(size=80)
    table = made(np.column_stack([z, 3.0 + (z > 0)]), ("real", "cat"), (0, 2))
    rows = table.rows.copy()
    rows[:30, 1] = np.nan
    wrong = lambda impute: np.mean(impute(table, rows, 0)[:30, 1] != table.rows[:30, 1])
    assert wrong(ridge) <= 0.1 < wrong(marginal)


def test_intervals_cover_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(size=(imputation.DRAWS + 1, 40, 50))
    found = imputation.covered(draws[1:], draws[0], np.ones((40, 50), bool))
    for level, share in found.items():
        p = level / 100
        assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 2000))


def test_discrete_columns_are_whole_or_have_two_values():
    rows = np.array([[0.5, 1.0, -0.3, 1.5], [1.25, 4.0, 0.2, 2.0], [2.0, 2.0, 0.2, 0.1]])
    np.testing.assert_allclose(sets.steps(rows), [0.0, 1.0, 0.5, 0.0])
    noisy = sets.dequantised(rows, sets.steps(rows), 0)
    np.testing.assert_array_equal(noisy[:, [0, 3]], rows[:, [0, 3]])
    np.testing.assert_array_equal(np.round(noisy[:, 1]), rows[:, 1])


def test_splits_part_the_rows():
    train, test = sets.split(50, 3)
    assert (len(train), len(test)) == (40, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(50))


def test_densities_are_in_the_units_of_the_rows():
    rows = np.random.default_rng(0).normal(size=(80, 2)) @ [[3.0, 100.0], [0.0, 40.0]]
    train, test = rows[:60], rows[60:]
    scores, _ = single_gaussian(train, test, 0)
    spread = np.diag(train.var(axis=0))
    covariance = np.cov(train.T, bias=True) + 1e-6 * spread
    exact = stats.multivariate_normal(train.mean(axis=0), covariance).logpdf(test)
    np.testing.assert_allclose(scores, exact, rtol=1e-9)
    scores, note = kernels(train, test, 0)
    width = float(note.removeprefix("bandwidth "))
    each = stats.norm(train[:, None], width * train.std(axis=0)).logpdf(test).sum(axis=-1)
    np.testing.assert_allclose(scores, np.log(np.exp(each).mean(axis=0)), atol=0.2)


def test_the_given_types_are_those_of_a_schema():
    rows = np.array([[0.0, 1.0, 5.0, 2.0], [1.5, 2.0, 7.0, 4.0], [2.5, np.nan, 6.0, 3.0]])
    table = made(rows, ("pos", "cat", "ordinal", "count"), (0, 2, 3, 0))
    found = ours.schema(table, rows)
    assert found == {
        "x0": {"type": "positive", "zeros": True},
        "x1": {"type": "binary", "categories": (1.0, 2.0)},
        "x2": {"type": "ordinal", "categories": (5.0, 6.0, 7.0)},
        "x3": {"type": "count"},
    }
    detected = detect(frames.as_table(ours.frame(rows), "rows"), found, where="rows").schema
    assert [column.type for column in detected.columns] == [c["type"] for c in found.values()]


def test_marginals_are_frequencies_and_kernels():
    z = np.random.default_rng(0).normal(size=400)
    train = np.column_stack([z, np.repeat([3.0, 4.0], [100, 300])])
    test = np.array([[0.0, 3.0], [1.0, 4.0], [1.0, 9.0]])
    scores = marginals(train, test, np.array([0.0, 1.0]))
    width = z.std() * 400**-0.2
    density = np.log(stats.norm(z[:, None], width).pdf(test[:, 0]).mean(axis=0))
    exact = density + np.log(np.array([101, 301, 1]) / 403)
    np.testing.assert_allclose(scores, exact, atol=1e-6)


def test_the_odd_class_is_not_trained_on():
    rows = np.arange(40.0)[:, None]
    table = sets.Table("made", rows, np.repeat([0, 1], [30, 10]))
    train, test, is_odd = anomalies.task(table, 1, 0)
    assert train.max() < 30
    np.testing.assert_array_equal(is_odd, test[:, 0] >= 30)
    assert is_odd.sum() == 6


def test_files_are_read_whatever_ends_their_lines(tmp_path, monkeypatch):
    folder = tmp_path / "mixed" / "wine"
    folder.mkdir(parents=True)
    (folder / "data.csv").write_bytes(b"1.5,2\r2.5,1\r3.5,1")
    (folder / "data_types.csv").write_bytes(b"type,dim,nclass\r\nreal,1,\r\ncat,2,2\r\n")
    (folder / "Missing50_1.csv").write_bytes(b"1,2\n3,1\n")
    monkeypatch.setenv("IWAE_DATA_DIR", str(tmp_path))
    table = sets.mixed("wine")
    np.testing.assert_array_equal(table.rows, [[1.5, 2], [2.5, 1], [3.5, 1]])
    assert (table.types, table.classes) == (("real", "cat"), (0, 2))
    assert table.masks(50) == ["Missing50_1.csv"]
    mask = table.mask("Missing50_1.csv")
    np.testing.assert_array_equal(np.argwhere(mask), [[0, 1], [2, 0]])
    assert sets.present() == ("wine",)


def figures(by: str, *values: float) -> list[Figure]:
    return [Figure("made", by, "error", str(i), value, 2.0) for i, value in enumerate(values)]


def test_a_record_is_read_as_written_and_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    first = Record("about", {"a": "b"}, {}, tuple(figures("one", 1.0, 2.0)))
    record.write("made", first)
    assert record.read("made") == first
    second = Record("about", {"a": "b"}, {}, tuple(figures("one", 5.0) + figures("two", 3.0)))
    record.write("made", second)
    both = record.read("made")
    np.testing.assert_array_equal(both.values("made", "one", "error"), [5.0, 2.0])
    np.testing.assert_array_equal(both.values("made", "two", "error"), [3.0])


def test_the_page_shows_means_errors_and_the_best():
    each = [*figures("one", 1.0, 2.0), *figures("two", 5.0, 6.5), *figures("near", 1.1, 1.95)]
    text = page.table("Title", Record("", {}, {}, tuple(each)), ["made"], "error",
                      largest=False, digits=2)  # fmt: skip
    assert "| made | **1.50 ± 0.50 (2.00 s)** | 5.75 ± 0.75 (2.00 s) |" in text
    assert "**1.52 ± 0.42 (2.00 s)**" in text


def test_the_page_is_that_of_the_records(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert page.PAGE.read_text() == page.rendered()
