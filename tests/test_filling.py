"""Filled tables in the user's own form, ranked rows, and the commands for both."""

import csv
import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import multivariate_normal, norm

from iwae import data
from iwae.cli import main
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.data import Dataset
from iwae.data.refilled import CsvText
from iwae.errors import InputError, OutsideSupportWarning
from iwae.evaluation import TrainedModel, filling
from iwae.models.build import build
from iwae.models.likelihoods.summary import summarize
from iwae.models.observation import Observation, observation
from iwae.plotting import figures, report
from linear_gaussian import orthogonal_chain
from with_holes import ppca, with_holes

N = 200
RNG = np.random.default_rng(0)
AGE = RNG.normal(50, 10, N).round(1)
WHOLE: dict[str, Any] = {
    "age": AGE,
    "sex": np.where(RNG.random(N) < 0.5, "female", "male"),
    "visits": RNG.poisson(12 * np.exp((AGE - 50) / 20)),
    "colour": RNG.choice(["red", "green, dark", "blue"], N, p=[0.6, 0.3, 0.1]),
    "smoker": RNG.random(N) < 0.3,
}


def frame():
    """The table with holes, in pandas."""
    rng = np.random.default_rng(1)
    made = pd.DataFrame(WHOLE)
    made["visits"] = made["visits"].astype("Int64")
    made["smoker"] = made["smoker"].astype("boolean")
    made["colour"] = pd.Categorical(made["colour"])
    for name in made.columns:
        made.loc[rng.random(N) < 0.2, name] = None
    made.loc[3] = None
    made.index = pd.Index(range(10, 10 + N), name="patient")
    return made


FRAME = frame()


@pytest.fixture(scope="module")
def table() -> TrainedModel:
    """An untrained model of the table."""
    config = override(RunConfig(), hidden=((8,),), latents=(2,), k=5)
    dataset = data.load(FRAME, values="table")
    seen = observation(dataset, config.data, config.model)
    model = eqx.filter_jit(build)(
        config.model,
        kind="table",
        mean=np.zeros(5),
        spread=np.ones(5),
        key=jax.random.key(0),
        table=summarize(dataset.schema, dataset.train),
        missing=True,
    )
    return TrainedModel(config, model, seen, epochs=1, dataset=dataset)


@pytest.fixture(scope="module")
def run(table: TrainedModel, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "table"
    table.save(path)
    return path


def check_whole(filled: pd.DataFrame) -> None:
    """The frame is filled, and what was observed is as it was."""
    assert not filled.isna().any().any()
    assert (filled.dtypes == FRAME.dtypes).all()
    pd.testing.assert_frame_equal(filled.where(FRAME.notna()), FRAME, check_dtype=False)
    assert set(filled["sex"]) == {"female", "male"}


@pytest.mark.slow
def test_a_data_frame_is_filled_in_its_own_types(table: TrainedModel) -> None:
    filled = table.impute(FRAME, k=50)
    check_whole(filled)
    assert filled.index.equals(FRAME.index)
    pd.testing.assert_frame_equal(FRAME, frame())
    several = table.impute(FRAME, k=50, n_draws=2)
    for part in several:
        check_whole(part)
    assert not several[0].equals(several[1])


@pytest.mark.slow
def test_columns_in_another_order_are_filled_alike(table: TrainedModel) -> None:
    filled = table.impute(FRAME, k=50)
    other = FRAME[["smoker", "age", "colour", "visits", "sex"]]
    pd.testing.assert_frame_equal(table.impute(other, k=50), filled[other.columns])


@pytest.mark.slow
def test_other_libraries_and_forms_are_filled_alike(table: TrainedModel) -> None:
    wanted = table.impute(FRAME, k=50)
    lists = {name: [None if pd.isna(v) else v for v in FRAME[name]] for name in FRAME}
    polars = pl.DataFrame(
        lists, schema_overrides={"colour": pl.Enum(["blue", "green, dark", "red"])}
    )
    filled = table.impute(polars, k=50)
    assert isinstance(filled, pl.DataFrame)
    assert filled.schema == polars.schema
    arrow = table.impute(pa.table(lists), k=50)
    assert arrow.schema == pa.table(lists).schema
    plain = table.impute(lists, k=50)
    for name in FRAME:
        expected = wanted[name].tolist()
        assert filled[name].to_list() == expected
        assert arrow[name].to_pylist() == expected
        assert plain[name] == expected
    assert filled["age"].to_list()[0] == FRAME["age"].iloc[0]


@pytest.mark.slow
def test_records_are_filled(table: TrainedModel) -> None:
    kinds = [("age", "f8"), ("sex", "O"), ("visits", "f4"), ("colour", "O"), ("smoker", "O")]
    rows = [tuple(None if pd.isna(v) else v for v in row) for row in FRAME.itertuples(index=False)]
    rows = [
        (np.nan if r[0] is None else r[0], r[1], np.nan if r[2] is None else r[2], *r[3:])
        for r in rows
    ]
    records = np.array(rows, dtype=kinds)
    filled = table.impute(records, k=50)
    assert filled.dtype == records.dtype
    wanted = table.impute(FRAME, k=50)
    assert filled["sex"].tolist() == wanted["sex"].tolist()
    np.testing.assert_array_equal(filled["visits"], wanted["visits"].astype(float))
    np.testing.assert_array_equal(filled["age"], wanted["age"])


@pytest.mark.slow
def test_nothing_changes_where_nothing_is_missing(table: TrainedModel) -> None:
    whole = pd.DataFrame(WHOLE)
    pd.testing.assert_frame_equal(table.impute(whole, k=50), whole)


@pytest.mark.slow
def test_a_row_is_filled_alike_whatever_stands_below_it(table: TrainedModel) -> None:
    pd.testing.assert_frame_equal(table.impute(FRAME, k=50)[:7], table.impute(FRAME[:7], k=50))


def test_a_row_without_values_scores_0(table: TrainedModel) -> None:
    scores = table.score(FRAME, k=50)
    assert scores[3] == 0
    assert (np.delete(scores, 3) < 0).all()


def test_a_number_that_its_type_excludes_has_no_density_and_counts_as_missing(
    table: TrainedModel,
) -> None:
    odd = FRAME.astype({"visits": "Float64"})
    odd.loc[[10, 12], "visits"] = [-1, 2.5]
    unknown = odd.copy()
    unknown.loc[[10, 12], "visits"] = None
    with pytest.warns(OutsideSupportWarning, match="holds -1 in row 1, .*[(]2 such rows") as caught:
        scores = table.score(odd, k=50)
    assert len(caught) == 1
    np.testing.assert_array_equal(np.flatnonzero(np.isinf(scores)), [0, 2])
    np.testing.assert_array_equal(
        np.delete(scores, [0, 2]), np.delete(table.score(FRAME, k=50), [0, 2])
    )
    with pytest.warns(OutsideSupportWarning):
        filled = table.impute(odd, k=50)
    wanted = table.impute(unknown, k=50)
    wanted.loc[[10, 12], "visits"] = [-1, 2.5]
    pd.testing.assert_frame_equal(filled, wanted)


@pytest.mark.slow
def test_samples_of_a_table_are_its_columns(table: TrainedModel) -> None:
    drawn = table.sample(50, seed=1)
    made = pd.DataFrame(drawn)
    assert list(made.columns) == list(WHOLE)
    assert set(made["colour"]) <= {"red", "green, dark", "blue"}
    assert made["smoker"].dtype == bool
    assert made["visits"].dtype == np.int64
    assert np.isfinite(table.score(drawn, k=50)).all()
    means = table.sample(5, seed=1, mean=True)
    assert set(means["sex"]) <= {"female", "male"}


@pytest.mark.slow
def test_rows_are_drawn_given_some_values(table: TrainedModel) -> None:
    drawn = table.sample_given({"age": 61.5, "sex": "male"}, n=20, k=50)
    assert set(drawn["age"]) == {61.5}
    assert set(drawn["sex"]) == {"male"}
    assert len(set(drawn["visits"])) > 1
    assert list(drawn) == list(WHOLE)
    refused = pytest.raises(InputError, match="sex = 'other' was given, but training has no such")
    with refused, pytest.warns(UserWarning, match="no category of training"):
        table.sample_given({"sex": "other"})
    refused = pytest.raises(InputError, match="visits = -1 was given, but its type count needs 0")
    with refused, pytest.warns(OutsideSupportWarning):
        table.sample_given({"visits": -1})
    with pytest.raises(InputError, match="'weight'"):
        table.sample_given({"weight": 3})
    with pytest.raises(InputError, match="2 examples were given"):
        table.sample_given(FRAME[:2])


@pytest.mark.slow
def test_odd_rows_are_ranked_with_the_columns_that_make_them_odd(table: TrainedModel) -> None:
    odd = pd.DataFrame(WHOLE)
    odd.loc[17, "age"] = 400.0
    found = table.anomalies(odd, top=3, k=50)
    assert found[0].index == 17
    assert (found[0].columns[0].name, found[0].columns[0].value) == ("age", 400.0)
    assert found[0].columns[0].surprise > 25
    assert [c.surprise for c in found[0].columns] == sorted(
        (c.surprise for c in found[0].columns), reverse=True
    )
    scores = table.score(odd, k=50)
    assert [a.index for a in found] == np.argsort(scores)[:3].tolist()
    np.testing.assert_allclose([a.log_likelihood for a in found], np.sort(scores)[:3], rtol=1e-4)
    assert "row 18: " in str(found[0]), "rows count from 1 in print"
    assert "age = 400 (" in str(found[0])
    odd.loc[30, "visits"] = -1
    for by in ("likelihood", "ratio", "typical"):
        with pytest.warns(OutsideSupportWarning):
            first, *_ = table.anomalies(odd, top=3, k=50, by=by)
        assert (first.index, first.log_likelihood, first.score) == (30, -np.inf, -np.inf)
        assert (first.columns[0].name, first.columns[0].value) == ("visits", -1)
        assert np.isfinite([column.log_density for column in first.columns[1:]]).all()
    with pytest.raises(InputError, match="top = 0"):
        table.anomalies(odd, top=0)


@pytest.mark.slow
def test_missing_values_of_a_row_make_it_no_odder(table: TrainedModel) -> None:
    found = table.anomalies(FRAME, top=N, k=50)
    last = next(a for a in found if a.index == 3)
    assert (last.log_likelihood, last.standard_error, last.columns) == (0, 0, ())
    for anomaly in found:
        names = {column.name for column in anomaly.columns}
        assert names == set(FRAME.columns[FRAME.iloc[anomaly.index].notna()])


@pytest.mark.slow
def test_the_report_of_a_table_shows_its_columns(table: TrainedModel, run: Path) -> None:
    page = report.render([replace(table, path=run)])
    for heading in ("Marginals", "Correlations", "Codes", "Log-likelihoods", "Missing values"):
        assert f">{heading}<" in page
    assert page.count("data:image/png;base64,") >= 5
    assert "Samples" not in page
    other = replace(table, seen=Observation("images", "real", 1.0, (2,), "", "none"))
    with pytest.raises(InputError, match="images is no table"):
        figures.missing_picture(other)
    assert figures.reconstruction_picture(table, 5).startswith(b"\x89PNG")


# Arrays


def real(mean: np.ndarray) -> TrainedModel:
    """Probabilistic PCA as a trained model of arrays with holes."""
    d = len(mean)
    seen = Observation("reals", "real", 1.0, (d,), "", "none", missing=True)
    return TrainedModel(RunConfig(), ppca().model, seen, epochs=1)


@pytest.mark.slow
def test_rows_are_ranked_by_how_well_their_values_go_together() -> None:
    of = ppca()
    x = with_holes(of.draw(8, seed=3), 0.3, seed=4)
    x[2] = np.nan
    log_p = np.array([of.log_evidence(row) for row in x])
    alone = np.nansum(norm.logpdf(x, of.mean, np.sqrt(np.diag(of.covariance))), axis=1)
    found = real(of.mean).anomalies(x, top=8, by="ratio", k=5000)
    scores = np.array([a.score for a in sorted(found, key=lambda a: a.index)])
    np.testing.assert_allclose(scores, log_p - alone, atol=0.15)
    assert [a.score for a in found] == sorted(scores)
    assert ": ratio " in str(found[0])


@pytest.mark.slow
def test_rows_are_ranked_fairly_whatever_their_holes() -> None:
    """log p(x_o) of a Gaussian has the mean −½ log det(2πe S) and the variance d_o / 2."""
    of = ppca()
    x = with_holes(of.draw(8, seed=3), 0.3, seed=4)
    x[2] = np.nan
    found = real(of.mean).anomalies(x, top=8, by="typical", k=500)
    for anomaly in found:
        seen = ~np.isnan(x[anomaly.index])
        d, log_det = seen.sum(), np.linalg.slogdet(of.covariance[np.ix_(seen, seen)])[1]
        mean = -(d * (1 + np.log(2 * np.pi)) + log_det) / 2
        exact = (of.log_evidence(x[anomaly.index]) - mean) / np.sqrt(max(d, 1) / 2)
        assert anomaly.score == pytest.approx(exact, rel=0.25, abs=0.25)
    with pytest.raises(InputError, match="by = 'size' was given"):
        real(of.mean).anomalies(x, by="size")  # type: ignore[arg-type]


@pytest.mark.slow
def test_arrays_are_filled_with_the_observed_values_bit_for_bit() -> None:
    of = ppca()
    model = real(of.mean)
    x = with_holes(of.draw(12, seed=1), 0.3, seed=2)
    for dtype in (np.float32, np.float64):
        given = x.astype(dtype) * (1 + 1e-12)
        filled = model.impute(given, k=500)
        assert filled.dtype == dtype
        seen = ~np.isnan(given)
        assert filled[seen].tobytes() == given[seen].tobytes()
        for row, values in zip(given, filled, strict=True):
            np.testing.assert_allclose(values[np.isnan(row)], of.missing(row)[0], atol=0.15)
    several = model.impute(x, k=500, n_draws=4)
    assert several.shape == (4, 12, 5)
    assert (several[:, ~np.isnan(x)] == x[~np.isnan(x)]).all()
    masked = np.ma.masked_invalid(x)
    np.testing.assert_array_equal(model.impute(masked, k=50), model.impute(x, k=50))
    np.testing.assert_array_equal(model.impute(x[0], k=50), model.impute(x[:1], k=50)[0])
    assert model.sample_given(x[0], n=3, k=50).shape == (3, 5)
    with pytest.raises(InputError, match="n_draws = 0"):
        model.impute(x, n_draws=0)


def test_filled_intensities_are_on_the_scale_of_the_users_values() -> None:
    seen = Observation("images", "intensity", 255.0, (2,), "", "none", missing=True)
    rows = np.array([[0.5, 0.2]], np.float32)
    nan = np.nan
    np.testing.assert_allclose(filling.filled(np.array([[nan, 200.0]]), rows, seen), [[127.5, 200]])
    np.testing.assert_allclose(filling.filled(np.array([[nan, 0.7]]), rows, seen), [[0.5, 0.7]])
    whole = np.ma.array([[0, 200]], np.uint8, mask=[[True, False]])
    np.testing.assert_array_equal(filling.filled(whole, rows, seen), [[128, 200]])


@pytest.mark.slow
def test_a_model_trained_without_holes_takes_examples_with_some() -> None:
    """The likelihood is that of what is observed, and its encoder sees the training means."""
    of = orthogonal_chain(1, inflate=2.0)
    x = of.draw(40, seed=1)
    dataset = Dataset("reals", x, x[:5], x[:5], "real", 1.0, (6,))
    seen = Observation("reals", "real", 1.0, (6,), "", "none")
    model = TrainedModel(RunConfig(), of.model, seen, epochs=1, dataset=dataset)
    holes = with_holes(x[:6], 0.2, seed=3)
    exact = [
        multivariate_normal.logpdf(row[o], of.mean[o], of.covariance[np.ix_(o, o)])
        for row in holes
        for o in [~np.isnan(row)]
    ]
    np.testing.assert_allclose(model.score(holes, k=20_000), exact, atol=0.1)
    assert np.isfinite(model.impute(holes, k=50)).all()
    with pytest.raises(InputError, match="NaN"):
        model.encode(holes)
    far = replace(model, dataset=None)
    with pytest.raises(InputError, match="neither a registered data set nor a file"):
        replace(far, config=override(RunConfig(), dataset="gone.npy")).score(holes)


# Files

TEXT = """\ufeffname ; "visits";size

"Anna; A.";?;1,50
 Bert  ;12;
"" ;NA;  2,25
"""


def test_only_the_holes_of_a_file_change(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    text = TEXT.replace("\n", "\r\n")
    path.write_bytes(text.encode())
    at = lambda *rows: np.isin(np.arange(3), rows)
    holes = {
        0: (at(2), np.array(['Cleo "C"; C.'], object)),
        1: (at(0, 2), np.array([3, 4])),
        2: (at(1), np.array([0.1], np.float32)),
    }
    whole = text.replace("?", "3").replace("Bert  ;12;", "Bert  ;12;0,1")
    whole = whole.replace('"" ;NA', '"Cleo ""C""; C." ;4')
    assert CsvText.read(path).filled(holes).decode() == whole
    assert CsvText.read(path).filled({}) == path.read_bytes()
    path.write_bytes(gzip.compress(text[1:].encode("utf-16")))
    assert CsvText.read(path).filled(holes).decode("utf-16") == whole[1:]


def test_multiple_imputations_stand_below_the_file_in_long_format(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,NA\n2,3.5")
    gap = np.array([True, False])
    made = CsvText.read(path).stacked([{1: (gap, np.array([v]))} for v in (0.5, 7.25)])
    assert made.decode() == (
        ".imp,.id,a,b\n0,1,1,NA\n0,2,2,3.5\n1,1,1,0.5\n1,2,2,3.5\n2,1,1,7.25\n2,2,2,3.5\n"
    )
    path.write_text("1,NA\n2,3.5\n5,0.5\n")
    made = CsvText.read(path, header="no").stacked(
        [{1: (np.array([True, False, False]), np.array([1.5]))}]
    )
    assert made.decode().splitlines()[:4] == ["0,1,1,NA", "0,2,2,3.5", "0,3,5,0.5", "1,1,1,1.5"]


def cells(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text())))


def command(capsys, *arguments: object) -> str:
    main([str(a) for a in arguments])
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_command_fills_a_file(table: TrainedModel, run: Path, tmp_path: Path, capsys) -> None:
    mine, out = tmp_path / "mine.csv", tmp_path / "filled.csv"
    FRAME[FRAME.notna().any(axis=1)].to_csv(mine, index=False)
    printed = command(capsys, "impute", run, mine, "--out", out, "--k", 50)
    before, after = cells(mine), cells(out)
    holes = sum(cell == "" for row in before for cell in row)
    assert f"Filled {holes:,} missing of {5 * (N - 1):,} values, and wrote" in printed
    assert all(
        b in ("", a)
        for row, new in zip(before, after, strict=True)
        for b, a in zip(row, new, strict=True)
    )
    assert not any(cell == "" for row in after for cell in row)
    assert {row[3] for row in after[1:]} <= {"red", "green, dark", "blue"}
    assert all(row[2].isdecimal() for row in after[1:])
    long = tmp_path / "long.csv"
    command(capsys, "impute", run, mine, "--out", long, "--k", 50, "--multiple", 3)
    stacked = pd.read_csv(long)
    assert list(stacked.columns[:2]) == [".imp", ".id"]
    assert stacked[".imp"].value_counts().tolist() == [N - 1] * 4
    assert not stacked[stacked[".imp"] > 0].isna().any().any()
    first = stacked[stacked[".imp"] == 0].drop(columns=[".imp", ".id"])
    pd.testing.assert_frame_equal(first, pd.read_csv(mine))


@pytest.mark.slow
def test_the_command_fills_parquet_and_arrays(run: Path, tmp_path: Path, capsys) -> None:
    mine, out, long = (tmp_path / f"{name}.parquet" for name in ("mine", "out", "long"))
    FRAME.reset_index(drop=True).to_parquet(mine)
    command(capsys, "impute", run, mine, "--out", out, "--k", 50)
    filled = pd.read_parquet(out).set_axis(FRAME.index)
    check_whole(filled.astype({"colour": str}).astype(FRAME.dtypes))
    command(capsys, "impute", run, mine, "--out", long, "--k", 50, "--multiple", 2)
    assert pd.read_parquet(long)[".imp"].value_counts().tolist() == [N] * 3


def test_existing_files_and_other_kinds_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "mine.csv"
    FRAME.to_csv(mine, index=False)
    for arguments, message in (
        (("--out", mine), "mine.csv"),
        (("--out", tmp_path / "f.npy"), "has to be of the same kind"),
        (("--out", tmp_path / "f.csv", "--multiple", 0), "n_draws = 0"),
        (("--out", tmp_path / "f.csv", "--k", 0), "k = 0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["impute", str(run), str(mine), *map(str, arguments)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "f.csv").exists()


@pytest.mark.slow
def test_the_command_ranks_odd_rows(run: Path, tmp_path: Path, capsys) -> None:
    odd = pd.DataFrame(WHOLE)
    odd.loc[17, "age"] = 400.0
    mine, out = tmp_path / "mine.csv", tmp_path / "odd.csv"
    odd.to_csv(mine, index=False)
    printed = command(capsys, "anomalies", run, mine, "--top", 2, "--k", 50, "--out", out)
    assert printed.startswith("row 18: ")
    found = pd.read_csv(out)
    assert list(found.columns) == [
        "rank",
        "row",
        "score",
        "log_likelihood",
        "standard_error",
        *WHOLE,
    ]
    assert found["row"].iloc[0] == 18
    assert found["age"].iloc[0] < -30
    np.testing.assert_array_equal(found["score"], found["log_likelihood"])
    again = ("--by", "ratio", "--top", 2, "--k", 50)
    assert ": ratio " in command(capsys, "anomalies", run, mine, *again)


@pytest.mark.slow
def test_the_command_writes_samples_with_words(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "rows.csv"
    command(capsys, "sample", run, "--out", out, "--n", 30)
    made = pd.read_csv(out)
    assert list(made.columns) == list(WHOLE)
    assert len(made) == 30
    assert set(made["sex"]) == {"female", "male"}
    command(capsys, "sample", run, "--out", tmp_path / "codes.npy", "--n", 30)
    assert np.load(tmp_path / "codes.npy").shape == (30, 5)
    command(capsys, "sample", run, "--out", tmp_path / "marginals.png", "--n", 30)
    assert (tmp_path / "marginals.png").read_bytes().startswith(b"\x89PNG")
