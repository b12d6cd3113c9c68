"""The estimators for scikit-learn."""

import copy
import dataclasses
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import coo_array, csr_matrix
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import iwae
from iwae import IWAE, IWAEImputer
from iwae import sklearn as estimators
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.config.tables import Size
from iwae.data import frames
from iwae.data.detect import detect
from iwae.errors import InputError, OutsideSupportWarning
from test_runtime import compilations

SMALL: dict[str, Any] = {
    "n_latents": 1,
    "hidden": 4,
    "k": 2,
    "max_epochs": 2,
    "batch_size": 16,
    "n_models": 1,
    "noise": "independent",
    "prior": "normal",
    "k_score": 4,
    "random_state": 0,
}
"""Settings of a fit of milliseconds."""


def refused(message: str) -> Any:
    """Expect an `InputError` whose message contains this."""
    return pytest.raises(InputError, match=re.escape(message))


EXPECTED = {
    f"check_sample_weight_equivalence_on_{kind}_data": (
        "rows are resampled by their weights, and their order enters the held-out part, so that "
        "fits are equal in expectation only"
    )
    for kind in ("dense", "sparse")
}
"""Checks of scikit-learn that fail, and why they have to."""

WITHOUT_A_FIT = (
    "check_parameters_default_constructible",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_estimator_cloneable",
    "check_estimators_unfitted",
    "check_mixin_order",
    "check_do_not_raise_errors_in_init_or_set_params",
)


@pytest.mark.slow
@parametrize_with_checks(
    [IWAE(**SMALL), IWAEImputer(IWAE(**SMALL))],
    expected_failed_checks=lambda estimator: EXPECTED if isinstance(estimator, IWAE) else {},
)
def test_the_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("estimator", [IWAE(), IWAEImputer()])
@pytest.mark.parametrize("check", WITHOUT_A_FIT)
def test_the_conventions_that_need_no_fit(estimator: Any, check: str) -> None:
    getattr(estimator_checks, check)(type(estimator).__name__, estimator)


def table(n: int = 60) -> pd.DataFrame:
    """A measure, a count and a word that go together, with holes."""
    random = np.random.default_rng(0)
    z = random.normal(size=n)
    frame = pd.DataFrame(
        {
            "size": z + 0.1 * random.normal(size=n),
            "visits": random.poisson(np.exp(2 + 0.5 * z)),
            "word": np.where(z > 0, "high", "low"),
        }
    )
    frame.loc[::7, "size"] = np.nan
    frame["word"] = frame["word"].where(np.arange(n) % 5 > 0)
    return frame


@pytest.fixture(scope="module")
def fitted() -> IWAE:
    """Two small models of `table`."""
    model: IWAE = IWAE(**SMALL | {"n_models": 2, "k_score": 20}).fit(table())
    return model


@pytest.mark.slow
def test_the_density_is_the_mean_of_the_densities_of_the_models(fitted: IWAE) -> None:
    rows = fitted._read(table())
    each = fitted._log_likelihoods_of_each(rows)
    scores = fitted.score_samples(table())
    np.testing.assert_allclose(np.exp(scores), np.exp(each).mean(axis=0), rtol=1e-5)
    assert fitted.score(table()) >= each.mean()
    assert fitted.score(table()) == pytest.approx(scores.mean())


def test_a_row_that_the_types_exclude_is_scored_and_never_trained_on(fitted: IWAE) -> None:
    rows = table().astype({"visits": float})
    rows.loc[3] = [None, None, None]
    expected = fitted.score_samples(rows)
    assert expected[3] == 0, "log p of nothing"
    rows.loc[[0, 4], "visits"] = [-1, 2.5]
    with pytest.warns(OutsideSupportWarning, match="holds -1 in row 1, .*[(]2 such rows") as caught:
        scores = fitted.score_samples(rows)
    assert len(caught) == 1
    expected[[0, 4]] = -np.inf
    np.testing.assert_array_equal(scores, expected)
    with refused("holds -1 in row 1, but its type count needs 0, 1, 2, …"):
        fitted.partial_fit(rows)


@pytest.mark.slow
def test_a_number_that_its_type_excludes_is_kept_and_counts_as_missing(fitted: IWAE) -> None:
    rows = table().astype({"visits": float})
    unknown = rows.copy()
    rows.loc[[0, 4], "visits"] = [-1, 2.5]
    unknown.loc[[0, 4], "visits"] = np.nan
    wanted = fitted.impute(unknown)
    wanted.loc[[0, 4], "visits"] = [-1, 2.5]
    with pytest.warns(OutsideSupportWarning):
        pd.testing.assert_frame_equal(fitted.impute(rows), wanted)
    with pytest.warns(OutsideSupportWarning):
        codes = fitted.transform(rows)
    np.testing.assert_array_equal(codes, fitted.transform(unknown))


@pytest.mark.slow
def test_what_is_said_of_a_row_depends_on_no_other(fitted: IWAE) -> None:
    frame = table()
    some = frame.iloc[[40, 3, 3, 21]]
    at = [40, 3, 3, 21]
    np.testing.assert_allclose(
        fitted.score_samples(some), fitted.score_samples(frame)[at], rtol=1e-5
    )
    np.testing.assert_allclose(
        fitted.transform(some), fitted.transform(frame)[at], rtol=1e-4, atol=1e-6
    )
    pd.testing.assert_frame_equal(fitted.impute(some), fitted.impute(frame).iloc[at], rtol=1e-5)


def test_rows_have_draws_of_their_own() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    rows = np.concatenate([rows, rows[:, ::-1], np.full((1, 3), np.nan, np.float32)])
    digests = {int(estimators._digest(jnp.asarray(row))) for row in rows}
    assert len(digests) == len(rows)
    other = np.array([np.nan, -np.nan, 1], np.float32)
    assert estimators._digest(jnp.asarray(other)) == estimators._digest(jnp.abs(jnp.asarray(other)))


@pytest.mark.slow
def test_draws_have_the_form_of_the_rows_of_the_fit(fitted: IWAE) -> None:
    drawn = fitted.sample(30)
    assert list(drawn.columns) == ["size", "visits", "word"]
    assert set(drawn["word"]) == {"high", "low"}
    assert drawn["visits"].dtype.kind == "i"
    pd.testing.assert_frame_equal(drawn, fitted.sample(30))
    again = fitted.inverse_transform(fitted.transform(table()))
    assert list(again.columns) == list(drawn.columns)
    assert len(again) == 60
    assert list(fitted.get_feature_names_out()) == ["iwae0"]


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("library", ["pandas", "polars", "array"])
def test_holes_are_filled_and_the_rest_is_untouched(library: str, fitted: IWAE) -> None:
    frame = table()
    given: Any = frame
    if library == "polars":
        given = pl.from_pandas(frame)
    elif library == "array":
        given = frame.to_numpy(object)
    made = fitted.impute(given)
    assert type(made) is type(given)
    full = pd.DataFrame(
        made.to_dict(as_series=False) if library == "polars" else made,
    ).set_axis(frame.columns, axis=1)
    assert not full.isna().any(axis=None)
    assert set(full["word"]) == {"high", "low"}
    for name in frame:
        seen = frame[name].notna()
        assert (full[name][seen] == frame[name][seen]).all()


@pytest.mark.parametrize("form", ["records", "mapping"])
def test_records_and_mappings_are_tables_of_named_columns(form: str, fitted: IWAE) -> None:
    """Whatever their order, with the scores of the data frame; results come back in their form."""
    frame = table()
    turned = frame[["word", "size", "visits"]]
    given: Any = turned.to_records(index=False) if form == "records" else dict(turned)
    np.testing.assert_array_equal(fitted.score_samples(given), fitted.score_samples(frame))
    made, expected = fitted.impute(given), fitted.impute(frame)
    assert type(made) is type(given)
    for name in frame:
        np.testing.assert_array_equal(made[name], expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["records", "mapping"])
def test_a_fit_of_named_columns_is_that_of_the_data_frame(form: str, tmp_path: Path) -> None:
    frame = table()
    given: Any = frame.to_records(index=False) if form == "records" else dict(frame)
    model = IWAE(**SMALL).fit(given)
    scores = IWAE(**SMALL).fit(frame).score_samples(frame)
    np.testing.assert_array_equal(model.score_samples(given), scores)
    assert list(model.get_feature_names_out()) == ["iwae0"]
    assert list(model.feature_names_in_) == list(frame.columns)
    model.save(tmp_path / "model")
    for one in (model, IWAE.load(tmp_path / "model")):
        drawn = one.sample(30)
        assert set(drawn["word"]) == {"high", "low"}
        assert drawn["visits"].dtype.kind == "i"
        assert isinstance(drawn, np.ndarray if form == "records" else dict)
    frame["nothing"] = np.nan
    given = frame.to_records(index=False) if form == "records" else dict(frame)
    kept = IWAEImputer(IWAE(**SMALL), keep_empty_features=True).fit_transform(given)
    part = IWAEImputer(IWAE(**SMALL)).fit_transform(given)
    assert list(part.dtype.names if form == "records" else part) == list(frame.columns[:3])
    assert (kept["nothing"] == 0).all()
    np.testing.assert_array_equal(kept["size"], part["size"])


@pytest.mark.slow
def test_sparse_matrices_are_rows_of_numbers(monkeypatch) -> None:
    x = np.random.default_rng(0).poisson(0.7, size=(60, 3)).astype(float)
    x[::9, 0] = np.nan
    model = IWAE(**SMALL).fit(csr_matrix(x))
    np.testing.assert_array_equal(model.score_samples(x), model.score_samples(coo_array(x)))
    made = model.impute(csr_matrix(x))
    np.testing.assert_array_equal(made, model.impute(x))
    monkeypatch.setattr(estimators.cells, "memory", lambda: 1000)
    with refused("X has 60 rows of 3 columns, which take 0.0 GB in a memory of 0.0 GB"):
        model.score_samples(csr_matrix(x))


@pytest.mark.slow
def test_multiple_imputations_differ_where_values_are_missing(fitted: IWAE) -> None:
    several = fitted.impute(table(), n_draws=3)
    assert len(several) == 3
    sizes = np.array([part["size"] for part in several])
    gaps = table()["size"].isna().to_numpy()
    assert (np.ptp(sizes, axis=0)[gaps] > 0).all()
    assert (np.ptp(sizes, axis=0)[~gaps] == 0).all()
    x = table()[["size", "visits"]].to_numpy(float)
    assert IWAE(**SMALL).fit(x).impute(x, n_draws=2).shape == (2, 60, 2)
    with refused("n_draws = 0 was given"):
        fitted.impute(table(), n_draws=0)


@pytest.mark.slow
def test_a_saved_estimator_is_the_same_again(fitted: IWAE, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    scores = fitted.score_samples(table())
    loaded = IWAE.load(tmp_path / "model")
    for again in (loaded, pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(again.score_samples(table()), scores)
        pd.testing.assert_frame_equal(again.sample(5), fitted.sample(5))
        assert again.get_params() == fitted.get_params()
        assert list(again.feature_names_in_) == list(fitted.feature_names_in_)
    with refused("exists already"):
        fitted.save(tmp_path / "model")
    with refused("holds no saved estimator"):
        IWAE.load(tmp_path)


@pytest.mark.slow
def test_training_goes_on_from_where_it_was(fitted: IWAE) -> None:
    frame = table()
    warm = copy.deepcopy(fitted).set_params(warm_start=True)
    before = warm.score(frame)
    assert warm.fit(frame).score(frame) > before
    assert clone(warm).fit(frame).score(frame) == pytest.approx(before)
    more = copy.deepcopy(fitted).partial_fit(frame[:20])
    assert more.score(frame) != before
    assert more.schema_ == fitted.schema_
    with refused("n_models = 3 was given, but training goes on from 2"):
        warm.set_params(n_models=3).fit(frame)


@pytest.mark.slow
def test_partial_fit_starts_without_a_fit() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    model = IWAE(**SMALL).partial_fit(x[:20]).partial_fit(x[20:])
    assert np.isfinite(model.score(x))


def test_rows_are_resampled_by_their_weights() -> None:
    weights = np.array([0.0, 1.0, 2.0, 5.0, 0.5, 0.0])
    part = np.array([0, 1, 3, 4, 5])
    random = np.random.RandomState(0)
    counts = np.array(
        [np.bincount(estimators._resampled(part, weights, random), minlength=6) for _ in range(400)]
    )
    expected = 5 * weights * [1, 1, 0, 1, 1, 1] / 6.5
    assert (np.abs(counts - expected) < 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.1)
    assert (counts.sum(axis=1) == 5).all()


def test_rows_of_an_epoch_are_whole_batches() -> None:
    few = estimators._rounds(np.arange(100), 16)
    assert len(few) == 16 * estimators.ROUND
    assert np.ptp(np.bincount(few)) <= 1
    many = estimators._rounds(np.arange(10_000), 64)
    np.testing.assert_array_equal(many, np.arange(9984))


@pytest.mark.slow
def test_a_search_compiles_once() -> None:
    """Folds, seeds, learning rates and further rows share the programs of the first fit."""
    x = np.random.default_rng(0).normal(size=(90, 2)) * 1.37
    IWAE(**SMALL).fit(x[:60]).score(x[60:])
    model = make_pipeline(StandardScaler(), IWAE(**SMALL))
    grid = {"iwae__learning_rate": [1e-4, 1e-2], "iwae__random_state": [1, 2]}
    with compilations() as asked:
        search = GridSearchCV(model, grid, cv=3).fit(x)
    assert [name for name in asked if "advance" in name or "build" in name] == []
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["iwae__learning_rate"] == 1e-2


def test_weights_are_routed_by_name() -> None:
    with config_context(enable_metadata_routing=True):
        request = IWAE().set_fit_request(sample_weight=True).get_metadata_routing()
    assert request.fit.requests == {"sample_weight": True}


@pytest.mark.slow
def test_the_imputer_drops_or_keeps_empty_columns() -> None:
    frame = table().assign(nothing=np.nan)[["size", "nothing", "visits"]]
    imputer = IWAEImputer(IWAE(**SMALL)).set_output(transform="pandas")
    made = imputer.fit_transform(frame)
    assert list(made.columns) == list(imputer.get_feature_names_out()) == ["size", "visits"]
    kept = IWAEImputer(IWAE(**SMALL), keep_empty_features=True).fit(frame)
    made = kept.transform(frame)
    assert list(made.columns) == list(kept.get_feature_names_out()) == list(frame.columns)
    assert (made["nothing"] == 0).all()
    x = kept.fit_transform(frame.to_numpy())
    assert x.shape == (60, 3)
    assert (x[:, 1] == 0).all()


@pytest.mark.slow
def test_the_imputer_draws_if_asked() -> None:
    frame = table()
    imputer = IWAEImputer(IWAE(**SMALL), sample_posterior=True, random_state=3).fit(frame)
    assert imputer.estimator_.random_state == 3
    made, best = imputer.transform(frame), imputer.estimator_.impute(frame)
    assert not made.isna().any(axis=None)
    assert (made["size"] != best["size"]).any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_latents": 0}, "n_latents = 0 was given"),
        ({"n_models": "many"}, "n_models = 'many' was given"),
        ({"patience": 0}, "patience = 0 was given"),
        ({"validation_fraction": 1.5}, "validation_fraction = 1.5 was given"),
        ({"objective": "elbow"}, "elbow"),
        ({"k": 0}, "k = 0 was given"),
        ({"schema": {"other": "real"}}, "The schema names 'other'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(setting: dict[str, Any], message: str) -> None:
    with refused(message):
        IWAE(**SMALL | setting).fit(np.random.default_rng(0).normal(size=(20, 2)))


def test_rows_that_cannot_be_used_are_refused(fitted: IWAE) -> None:
    frame = table()
    with refused("'nothing' of X has no value"):
        IWAE(**SMALL).fit(frame.assign(nothing=np.nan))
    with refused("X has n_samples = 1, but at least 2 rows are needed"):
        IWAE(**SMALL).fit(frame[:1])
    with refused("X has several columns called 'size'"):
        IWAE(**SMALL).fit(pd.concat([frame, frame[["size"]]], axis=1))
    with refused("X is a dict, but rows are expected as an array"):
        IWAE(**SMALL).fit({"size": 1.0})
    with refused("X lacks 'word'"):
        fitted.score(frame[["visits", "size"]].to_records(index=False))
    with refused("X has 60 values in column 'size' and 2 in 'visits'"):
        fitted.score({"size": frame["size"], "visits": [1, 2], "word": frame["word"]})
    with refused("X is a str, but rows are expected as an array"):
        IWAE(**SMALL).fit("mine.csv")
    with pytest.raises(ValueError, match="same order"):
        fitted.score(frame[["visits", "size", "word"]])
    with pytest.raises(ValueError, match="infinity"):
        IWAE(**SMALL).fit(np.array([[1.0, np.inf], [2.0, 3.0]]))
    with pytest.raises(NotFittedError):
        IWAE().score_samples(frame)
    with pytest.raises(ValueError, match="at least one non-zero"):
        IWAE(**SMALL).fit(frame, sample_weight=np.zeros(60))
    with refused("Codes with 2 columns were given, but the model has 1 latent units"):
        fitted.inverse_transform(np.zeros((3, 2)))


@pytest.mark.slow
def test_a_schema_overrides_what_is_detected() -> None:
    x = np.random.default_rng(0).poisson(3, size=(40, 2)).astype(float)
    model = IWAE(**SMALL | {"schema": {"x0": "real"}}).fit(x)
    assert model.schema_.columns[0].type == "real"
    assert model.schema_.columns[1].type != "real"


@pytest.mark.slow
def test_one_epoch_is_kept_of_all_models() -> None:
    """That with the best mean bound on the rows that were held out."""
    first, second = estimators.Kept(), estimators.Kept()
    first.bounds, second.bounds = [-3.0, -1.0, -2.0], [-3.0, -4.0, -2.0]
    assert estimators._best_epoch([first, second]) == 2
    x = np.random.default_rng(0).normal(size=(40, 2))
    model = IWAE(**SMALL | {"n_models": 2, "max_epochs": 6}).fit(x)
    assert len({m.epochs for m in model.models_}) == 1
    assert model.n_iter_ == model.models_[0].epochs


def test_the_best_structure_on_held_out_rows_makes_the_mixture() -> None:
    """Two models of each candidate, compared where their mean bound is largest; then the others."""
    bounds = {"full": [-9.0, -3.0, -8.0], "independent": [-5.0, -4.0, -2.0], "low-rank": [-4.0] * 3}
    trained: list[tuple[int, str]] = []

    def member(number: int, of: estimators.Structure) -> Any:
        trained.append((number, of.noise))
        return SimpleNamespace(history=SimpleNamespace(valid_bound=bounds[of.noise])), number

    schema = detect(frames.as_table(np.eye(4) / 3, "X"), None, where="X").schema
    settings = estimators._defaults(schema, 4)
    settings = dataclasses.replace(settings, noises=tuple(bounds), priors=("normal",))
    assert estimators._defaults(schema, 4).noises == ("independent", "full")
    found = estimators._with_best(settings.structures, 4, member)
    assert [number for _, number in found] == [0, 1, 2, 3]
    assert {tuple(model.history.valid_bound) for model, _ in found} == {(-5.0, -4.0, -2.0)}
    tried = [(number, noise) for noise in bounds for number in (0, 1)]
    assert trained == [*tried, (2, "independent"), (3, "independent")]
    trained.clear()
    estimators._with_best(settings.structures[:1], 3, member)
    assert trained == [(0, "full"), (1, "full"), (2, "full")]


@pytest.mark.parametrize(
    ("n", "hidden", "n_models"),
    [
        (999, [(64,)], 5),
        (1000, [(64,), (128, 128, 128)], 5),
        (4999, [(64,), (128, 128, 128)], 5),
        (5000, [(128, 128, 128)], 3),
    ],
)
def test_held_out_rows_choose_the_size_of_networks_between_small_and_large_tables(
    n: int, hidden: list[tuple[int, ...]], n_models: int
) -> None:
    schema = detect(frames.as_table(np.eye(4) / 3, "X"), None, where="X").schema
    settings = lambda **given: _with_schema(IWAE(**given), schema)._settings(n)
    chosen = settings()
    assert [of.size.hidden for of in chosen.structures] == hidden
    assert chosen.n_models == n_models
    own = settings(hidden=8)
    assert [of.size.hidden for of in own.structures] == [(8,)], "one's own is not compared"
    assert [of.size.n_latents for of in settings(n_latents=3).structures] == [3]
    assert {of.size.learning_rate for of in settings(learning_rate=0.1).structures} == {0.1}
    assert len(settings(n_models=1).structures) == 1, "a single model is no candidate's trial"


def _with_schema(model: IWAE, schema: Any) -> IWAE:
    model.schema_ = schema
    return model


@pytest.mark.slow
def test_a_larger_network_is_taken_where_held_out_rows_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a model that is trained further keeps its size."""
    small, large = (Size(2, hidden, 1e-2) for hidden in ((2,), (32, 32)))
    monkeypatch.setattr(estimators, "sizes", lambda rows, columns: (small, large))
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, size=400)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    model = IWAE(n_models=3, max_epochs=30, k_score=20, random_state=0).fit(x)
    assert model.hidden_ == (32, 32)
    assert {m.config.model.hidden for m in model.models_} == {((32, 32),)}
    model.save(tmp_path / "kept")
    assert IWAE.load(tmp_path / "kept").hidden_ == (32, 32)
    assert model.set_params(warm_start=True, max_epochs=1).fit(x).hidden_ == (32, 32)


@pytest.mark.slow
def test_held_out_rows_tell_correlated_columns_from_others(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(120, 3))
    x[:, 1:] = x[:, :1] + 0.1 * x[:, 1:]
    settings = SMALL | {"noise": ("independent", "full"), "n_models": 2, "max_epochs": 20}
    model = IWAE(**settings).fit(x)
    assert (model.noise_, model.prior_) == ("full", "normal")
    model.save(tmp_path / "kept")
    assert IWAE.load(tmp_path / "kept").noise_ == "full"
    assert model.set_params(warm_start=True, max_epochs=1).fit(x).noise_ == "full"
    alone = IWAE(**SMALL | {"noise": "auto"}).fit(x)
    assert alone.noise_ == "independent", "a single model is no candidate's trial"
    with refused("noise = () was given; give one name, or several."):
        IWAE(**SMALL | {"noise": ()}).fit(x)


@pytest.mark.slow
def test_patience_stops_each_model_by_itself() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    model = IWAE(**SMALL | {"patience": 1}).fit(x)
    best = max(model.models_[0].history.valid_bound)
    assert model.validation_scores_ == [best]


def test_a_training_that_is_not_finite_starts_again_at_half_the_rate(monkeypatch) -> None:
    rates: list[float] = []

    def failing(config: RunConfig, *, callbacks: list[estimators.Kept], **given: Any) -> RunConfig:
        assert not callbacks[0].bounds, "what was kept of a failed training is dropped"
        callbacks[0].bounds.append(-1.0)
        rates.append(config.training.learning_rate)
        if len(rates) < 3:
            raise estimators.NonFiniteError("The bound is not finite.")
        return config

    monkeypatch.setattr(estimators.runs, "train", failing)
    config, data = override(RunConfig(), learning_rate=0.01), iwae.data.load("digits")
    with pytest.warns(ConvergenceWarning, match="starts again with learning_rate"):
        found: Any = estimators._finite(config, data, progress=False, callbacks=[estimators.Kept()])
    assert rates == [0.01, 0.005, 0.0025]
    assert found.training.learning_rate == 0.0025
