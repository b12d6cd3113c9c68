"""Pictures of tables: what they show, read from matplotlib's objects."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from iwae import plotting
from iwae.data.schema import Column, Schema
from iwae.errors import InputError
from iwae.plotting import tables

SCHEMA = Schema(
    (
        Column("size $x^", "real"),
        Column("visits", "count"),
        Column("colour", "categorical", ("red", "_green", "blue")),
        Column("smoker", "binary", (False, True)),
    )
)
RNG = np.random.default_rng(0)
N = 400
SIZE = RNG.normal(10, 2, N)
DATA = np.column_stack(
    [SIZE, RNG.poisson(3, N), RNG.choice(3, N, p=[0.6, 0.3, 0.1]), SIZE > 10]
).astype(np.float32)
DATA[:40, 0] = np.nan
SAMPLES = DATA[::-1][:200]


def heights(ax):
    return np.array([patch.get_height() for patch in ax.patches])


def saved(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()[:4] == b"\x89PNG"


def test_bars_are_shares_of_categories():
    ax = plotting.marginal(SCHEMA.columns[2], DATA[:, 2], SAMPLES[:, 2])
    shares = lambda x: np.bincount(x[:, 2].astype(int), minlength=3) / len(x)
    np.testing.assert_allclose(heights(ax), np.concatenate([shares(DATA), shares(SAMPLES)]))
    saved(ax.figure)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["red", "_green", "blue"]
    assert ax.get_title() == "colour"


def test_only_frequent_categories_have_bars():
    column = Column("city", "categorical", tuple(f"city {i}" for i in range(30)))
    codes = np.repeat(np.arange(30.0), np.arange(1, 31))
    ax = plotting.marginal(column, codes)
    np.testing.assert_allclose(heights(ax) * len(codes), np.arange(19, 31))


def test_histograms_are_densities_on_the_grid_of_the_data():
    ax = plotting.marginal(SCHEMA.columns[0], DATA[:, 0], SAMPLES[:, 0])
    bars = [p for p in ax.patches if hasattr(p, "get_width")]
    area = sum(p.get_height() * p.get_width() for p in bars)
    assert 0.98 <= area <= 1
    (steps,) = [p for p in ax.patches if not hasattr(p, "get_width")]
    values, edges, _ = steps.get_data()
    inside = SAMPLES[(SAMPLES[:, 0] >= edges[0]) & (SAMPLES[:, 0] < edges[-1]), 0]
    of = len(SAMPLES) - np.isnan(SAMPLES[:, 0]).sum()
    np.testing.assert_allclose(values @ np.diff(edges), len(inside) / of, atol=0.01)


def test_counts_have_a_bin_each_and_constants_one_width():
    ax = plotting.marginal(SCHEMA.columns[1], DATA[:, 1])
    at = [p.get_x() for p in ax.patches]
    np.testing.assert_allclose(np.diff(at), 1)
    assert at[0] == -0.5
    np.testing.assert_allclose(heights(ax)[:6], np.bincount(DATA[:, 1].astype(int))[:6] / N)
    constant = plotting.marginal(Column("c", "real"), np.full(5, 3.0))
    assert sum(p.get_height() * p.get_width() for p in constant.patches) == pytest.approx(1)


def test_a_figure_of_marginals_has_a_panel_for_each_column():
    figure = plotting.marginals(SCHEMA, DATA, SAMPLES)
    assert [ax.get_title() for ax in figure.axes] == [*SCHEMA.names]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", "samples"]
    assert saved(figure)
    some = plotting.marginals(SCHEMA, DATA, columns=["smoker", "visits"])
    assert [ax.get_title() for ax in some.axes] == ["smoker", "visits"]
    with pytest.raises(InputError, match=r"'weight' were to be drawn.*'visits'"):
        plotting.marginals(SCHEMA, DATA, columns=["weight"])


def test_correlations_are_those_of_the_rows_that_have_both_values():
    figure = plotting.correlations(SCHEMA, DATA, SAMPLES)
    of_data, of_samples = (ax.images[0].get_array().filled(np.nan) for ax in figure.axes[:2])
    both = ~np.isnan(DATA[:, 0])
    for i, j in ((0, 1), (0, 3), (1, 3)):
        rows = both if 0 in (i, j) else np.full(N, True)
        wanted = np.corrcoef(DATA[rows][:, i], DATA[rows][:, j])[0, 1]
        np.testing.assert_allclose([of_data[i, j], of_data[j, i]], wanted, rtol=1e-5)
    assert np.isnan(of_data[2]).all()
    assert of_samples.shape == (4, 4)
    assert saved(figure)


def test_a_constant_column_has_no_correlation():
    rows = np.column_stack([np.full(50, 1e6 + 0.1), RNG.normal(size=50)])
    schema = Schema((Column("a", "real"), Column("b", "real")))
    found = plotting.correlation(schema, rows).images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(np.isnan(found), [[True, True], [True, False]])


def test_codes_are_coloured_by_a_column():
    codes = RNG.normal(size=(N, 2))
    ax = plotting.latents(codes, by=DATA[:, 2], column=SCHEMA.columns[2])
    drawn = [c.get_offsets() for c in ax.collections if len(c.get_offsets())]
    assert [len(d) for d in drawn] == np.bincount(DATA[:, 2].astype(int)).tolist()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["red", "green", "blue"]
    ax = plotting.latents(codes, by=DATA[:, 0], column=SCHEMA.columns[0])
    sizes = [len(c.get_offsets()) for c in ax.collections]
    assert sizes[:2] == [40, N - 40]
    assert saved(ax.figure)


def test_many_units_are_shown_by_their_principal_components():
    codes = RNG.normal(size=(N, 5)) * [1, 5, 0.1, 3, 0.1]
    points = plotting.latents(codes).collections[0].get_offsets()
    found = np.linalg.svd(codes - codes.mean(0), compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), found, rtol=1e-5)
    with pytest.raises(InputError, match=r"Codes of shape \(3,\)"):
        plotting.latents(codes[0, :3])
    one = plotting.latents(codes[:, :1]).collections[0].get_offsets()
    np.testing.assert_allclose(one[:, 0], codes[:, 0])


def test_what_codes_tell_of_a_column_is_a_share_of_its_variance():
    codes = RNG.normal(size=(N, 2))
    noise = RNG.normal(size=N)
    values = codes @ [2.0, 1.0] + noise
    fit = np.linalg.lstsq(np.column_stack([np.ones(N), codes]), values, rcond=None)
    assert tables.told(codes, values) == pytest.approx(1 - fit[1][0] / (N * values.var()))
    values[:10] = np.nan
    assert 0.7 < tables.told(codes, values) < 0.95
    assert tables.told(codes, np.full(N, 3.0)) == 0
    assert tables.told(codes[:4], noise[:4]) == 0


def test_scores_are_shares_of_each_set():
    ax = plotting.scores({"train": SIZE, "test": np.append(SIZE[:50], -np.inf)})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "test"]
    top = [p.get_xy()[:, 1].max() for p in ax.patches]
    edges = np.histogram_bin_edges(np.append(SIZE, SIZE[:50]), tables.BINS)
    wanted = [np.histogram(v, edges)[0].max() / len(v) for v in (SIZE, SIZE[:50])]
    np.testing.assert_allclose(top, wanted)
    assert plotting.scores(SIZE).get_legend() is None
    with pytest.raises(InputError, match="No finite log-likelihood"):
        plotting.scores(np.array([np.nan]))


def test_missing_values_are_shown_where_they_are():
    ax = plotting.missingness(SCHEMA, DATA)
    np.testing.assert_array_equal(ax.images[0].get_array(), np.isnan(DATA))
    assert ax.get_title() == "2.5% of the values are missing"
    assert saved(ax.figure)
    assert ax.get_xticklabels()[1].get_text() == "visits (0%)"
    assert len(plotting.missingness(SCHEMA, DATA, most=20).images[0].get_array()) == 20


def test_pictures_are_drawn_on_the_axes_given():
    ax = Figure().subplots()
    assert plotting.marginal(SCHEMA.columns[0], DATA[:, 0], ax=ax) is ax
    assert plotting.scores(SIZE, ax=ax) is ax
    assert plotting.missingness(SCHEMA, DATA, ax=ax) is ax
    with pytest.raises(InputError, match=r"Column 'size \$x\^' has no observed value"):
        plotting.marginal(SCHEMA.columns[0], np.full(3, np.nan))
