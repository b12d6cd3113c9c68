"""Pictures of tables: marginals, correlations, codes, scores and missing values.

Rows are [n, d] as a model sees them: a number in the user's units or the code of a category, NaN
where a value is missing. Functions that draw one picture take an `ax` to draw on, and return it; by
default they make a figure of their own, without a screen (`ax.figure.savefig(…)`). matplotlib is
imported when something is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from iwae._utils.extras import require
from iwae.data.schema import CODED, Column, Schema
from iwae.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

needed = partial(require, purpose="a picture", extra="report")
"""A module of matplotlib; `InputError` if it is not installed."""

DATA, MODEL, HOLE = "#85909a", "#3d85c6", "#cc4f5f"
"""The colours of data, of what the model makes, and of missing values."""

BARS, BINS, NAMED = 12, 30, 40
"""Most categories with a bar of their own, bins of a histogram, and columns that are named."""

CUT = 0.005
"""The share of the data beyond each end of a histogram, which it leaves out."""


def marginal(
    column: Column,
    data: Float[np.ndarray, " n"],
    samples: Float[np.ndarray, " m"] | None = None,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """The values of one column in the data, and beside them those of samples.

    Bars show shares of categories, of which the most frequent are drawn; histograms show densities
    of numbers on a common grid, which holds 99 % of the data.
    """
    ax = _axes(ax)
    parts = [("data", _seen(data), DATA)]
    if samples is not None:
        parts.append(("samples", _seen(samples), MODEL))
    if not len(parts[0][1]):
        raise InputError(f"Column {column.name!r} has no observed value; give rows that have some.")
    if column.type in CODED:
        _bars(ax, column, parts)
    else:
        _histogram(ax, column, parts)
    _titled(ax, column.name)
    return ax


def marginals(
    schema: Schema,
    data: Float[np.ndarray, "n d"],
    samples: Float[np.ndarray, "m d"] | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> "Figure":
    """`marginal` of each column, or of those named, in a figure."""
    chosen = range(len(schema.columns)) if columns is None else _places(schema, columns)
    across = min(4, len(chosen))
    down = math.ceil(len(chosen) / across)
    figure = _figure(2.4 * across, 1.9 * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for ax, j in zip(panels, chosen, strict=False):
        marginal(schema.columns[j], data[:, j], None if samples is None else samples[:, j], ax=ax)
    for ax in panels[len(chosen) :]:
        ax.set_axis_off()
    if samples is not None:
        handles, labels = panels[0].get_legend_handles_labels()
        of = dict(zip(labels, handles, strict=True))
        names = ["data", "samples"]
        figure.legend([of[n] for n in names], names, loc="outside lower center", ncols=2)
    return figure


def correlations(
    schema: Schema, data: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"]
) -> "Figure":
    """The correlation matrices of the data and of samples, side by side."""
    figure = _figure(8.0, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for ax, title, rows in zip(panels, ("data", "samples"), (data, samples), strict=True):
        image = correlation(schema, rows, ax=ax).images[0]
        _titled(ax, title)
    figure.colorbar(image, ax=panels, shrink=0.8, label="correlation")
    return figure


def correlation(
    schema: Schema, rows: Float[np.ndarray, "n d"], *, ax: "Axes | None" = None
) -> "Axes":
    """Pearson's correlation of each pair of columns, over the rows that have both.

    Ordinal and binary columns count by their codes; categorical ones, whose codes have no order,
    and pairs without variation are left white.
    """
    ax = _axes(ax)
    matrix = _correlations(rows)
    unordered = schema.of_type("categorical")
    matrix[unordered] = matrix[:, unordered] = np.nan
    ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    _named_ticks(ax, schema, ("x", "y"))
    return ax


def latents(
    codes: Float[np.ndarray, "n u"],
    *,
    by: Float[np.ndarray, " n"] | None = None,
    column: Column | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Codes in the plane, coloured by the values `by` of a column.

    More than two units are shown by their first two principal components. Examples whose value is
    missing are grey.
    """
    ax = _axes(ax)
    if codes.ndim != 2 or len(codes) < 2:
        raise InputError(
            f"Codes of shape {codes.shape} were given, but a scatter needs [n, units] of at least "
            f"2 examples; give those of TrainedModel.encode."
        )
    points, axes_names = _plane(codes)
    ax.set_xlabel(axes_names[0])
    ax.set_ylabel(axes_names[1])
    if by is None:
        ax.scatter(points[:, 0], points[:, 1], s=6, color=MODEL, alpha=0.6)
        return ax
    hole = np.isnan(by)
    ax.scatter(points[hole, 0], points[hole, 1], s=6, color=DATA, alpha=0.4)
    if column is not None and column.type in CODED:
        _by_category(ax, points[~hole], by[~hole].astype(int), column)
    else:
        x, y = points[~hole].T
        drawn = ax.scatter(x, y, s=6, c=by[~hole], cmap="viridis", alpha=0.8)
        if (~hole).any():
            ax.get_figure().colorbar(drawn, ax=ax, label="" if column is None else column.name)  # type: ignore[union-attr]
    if column is not None:
        _titled(ax, f"coloured by {column.name}")
    return ax


def scores(
    of: Mapping[str, Float[np.ndarray, " n"]] | Float[np.ndarray, " n"],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Histograms of log-likelihoods, in nats, of one or more sets of examples by name."""
    ax = _axes(ax)
    named = dict(of) if isinstance(of, Mapping) else {"": of}
    finite = {name: values[np.isfinite(values)] for name, values in named.items()}
    whole = np.concatenate(list(finite.values()))
    if not len(whole):
        raise InputError("No finite log-likelihood was given; give at least 1.")
    edges = np.histogram_bin_edges(whole, BINS).tolist()
    for (name, values), colour in zip(finite.items(), _colours(len(finite)), strict=True):
        weights = np.full(len(values), 1 / max(1, len(values)))
        ax.hist(
            values,
            edges,
            weights=weights,
            histtype="stepfilled",
            alpha=0.5,
            color=colour,
            label=name or None,
        )
    ax.set_xlabel("log p(x) in nats")
    ax.set_ylabel("share of the examples")
    if any(finite):
        ax.legend()
    return ax


def missingness(
    schema: Schema, rows: Float[np.ndarray, "n d"], *, ax: "Axes | None" = None, most: int = 500
) -> "Axes":
    """Where values are missing: a line for each row, at most `most`, evenly spaced.

    The title has the share of all missing values; the ticks have those of the columns, if few.
    """
    ax = _axes(ax)
    holes = np.isnan(rows)
    at = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    colours = needed("matplotlib.colors").ListedColormap(["#e6e9ec", HOLE])
    ax.imshow(holes[at], aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    shares = [
        f"{c.name} ({s:.0%})" for c, s in zip(schema.columns, holes.mean(axis=0), strict=True)
    ]
    _named_ticks(ax, schema, ("x",), shares)
    ax.set_yticks([])
    ax.set_ylabel(f"{len(rows):,} rows")
    _titled(ax, f"{holes.mean():.1%} of the values are missing")
    return ax


def told(codes: Float[np.ndarray, "n u"], values: Float[np.ndarray, " n"]) -> float:
    """The share of the variance of a column that a linear function of the codes explains; 0 for a
    column with fewer than 2 values per unit, or without variation."""
    seen = np.isfinite(values)
    x, y = codes[seen].astype(np.float64), values[seen].astype(np.float64)
    if len(y) < 2 * (x.shape[1] + 1) or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(axis=0), y - y.mean()
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - (rest**2).sum() / (y**2).sum())


def _seen(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _bars(ax: "Axes", column: Column, parts: list[tuple[str, np.ndarray, str]]) -> None:
    counts = [np.bincount(v.astype(int), minlength=column.levels) for _, v, _ in parts]
    shown = np.arange(column.levels)
    if len(shown) > BARS:
        shown = np.sort(np.argsort(-counts[0], kind="stable")[:BARS])
    width = 0.8 / len(parts)
    for i, ((label, values, colour), count) in enumerate(zip(parts, counts, strict=True)):
        x = np.arange(len(shown)) + (i + 0.5) * width - 0.4
        ax.bar(x, count[shown] / max(1, len(values)), width, color=colour, label=label)
    words = [_shortened(str(column.categories[i])) for i in shown]
    ax.set_xticks(range(len(shown)))
    ax.xaxis.set_major_formatter(needed("matplotlib.ticker").FixedFormatter(words))
    for text in ax.get_xticklabels():
        text.set_parse_math(False)
        text.set_rotation(90 if sum(map(len, words)) > 24 else 0)


def _histogram(ax: "Axes", column: Column, parts: list[tuple[str, np.ndarray, str]]) -> None:
    low, high = np.quantile(parts[0][1], [CUT, 1 - CUT])
    if column.type == "count" and high - low <= BINS:
        edges = np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    else:
        pad = 0.02 * (high - low) or max(abs(low), 1.0) * 0.05
        edges = np.linspace(low - pad, high + pad, BINS + 1)
    steps = np.diff(edges)
    for i, (label, values, colour) in enumerate(parts):
        density = np.histogram(values, edges)[0] / (len(values) or 1) / steps
        if i == 0:
            ax.bar(edges[:-1], density, steps, align="edge", color=colour, alpha=0.6, label=label)
        else:
            ax.stairs(density, edges, color=colour, linewidth=1.4, label=label)
    ax.set_yticks([])


def _correlations(rows: np.ndarray) -> np.ndarray:
    """Correlations over the rows that have both values, [d, d]; NaN without variation."""
    seen = np.isfinite(rows)
    x, o = np.where(seen, rows, 0.0).astype(np.float64), seen.astype(np.float64)
    centre = x.sum(axis=0) / np.maximum(o.sum(axis=0), 1)
    x = np.where(seen, x - centre, 0.0)
    n = o.T @ o
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_i, mean_j = x.T @ o / n, o.T @ x / n
        covariance = x.T @ x / n - mean_i * mean_j
        variance_i, variance_j = (x**2).T @ o / n - mean_i**2, o.T @ x**2 / n - mean_j**2
        found = covariance / np.sqrt(variance_i * variance_j)
    tiny = 1e-12 * np.maximum((x**2).sum(axis=0), 1e-300)
    flat = (variance_i * n <= tiny[:, None]) | (variance_j * n <= tiny[None])
    return np.where(flat | (n < 2), np.nan, np.clip(found, -1, 1))


def _plane(codes: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Codes as points [n, 2], and what the axes are."""
    if codes.shape[1] == 1:
        return np.column_stack([codes[:, 0], np.zeros(len(codes))]), ("h", "")
    if codes.shape[1] == 2:
        return codes, ("h₁", "h₂")
    centred = codes - codes.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    share = singular**2 / max((singular**2).sum(), 1e-300)
    name = lambda i: f"component {i + 1} ({share[i]:.0%} of the variance)"
    return centred @ axes[:2].T, (name(0), name(1))


def _by_category(ax: "Axes", points: np.ndarray, codes: np.ndarray, column: Column) -> None:
    frequent = np.argsort(-np.bincount(codes, minlength=column.levels), kind="stable")[:BARS]
    for code, colour in zip(sorted(frequent), _colours(len(frequent)), strict=True):
        at = points[codes == code]
        if len(at):
            name = _shortened(str(column.categories[code]))
            ax.scatter(
                at[:, 0], at[:, 1], s=6, color=colour, alpha=0.7, label=name.lstrip("_") or name
            )
    rare = points[~np.isin(codes, frequent)]
    if len(rare):
        ax.scatter(rare[:, 0], rare[:, 1], s=6, color=DATA, alpha=0.4, label="others")
    for text in ax.legend(fontsize=7, markerscale=1.5).get_texts():
        text.set_parse_math(False)


def _colours(n: int) -> list[Any]:
    found = needed("matplotlib").colormaps["tab20" if n > 10 else "tab10"]
    return [found(i) for i in range(n)]


def _places(schema: Schema, names: Sequence[str]) -> list[int]:
    unknown = [name for name in names if name not in schema.names]
    if unknown or not names:
        raise InputError(
            f"The columns {', '.join(map(repr, names)) or 'none'} were to be drawn, but the table "
            f"has {', '.join(map(repr, schema.names[:10]))}; give some of these."
        )
    return [schema.names.index(name) for name in names]


def _named_ticks(
    ax: "Axes", schema: Schema, which: Sequence[str], labels: Sequence[str] | None = None
) -> None:
    """Names of the columns along the axes, unless there are many."""
    ticker = needed("matplotlib.ticker")
    words = [_shortened(name) for name in (labels or schema.names)]
    for side in which:
        axis = ax.xaxis if side == "x" else ax.yaxis
        if len(words) > NAMED:
            axis.set_ticks([])
            continue
        axis.set_ticks(range(len(words)))
        axis.set_major_formatter(ticker.FixedFormatter(words))
        for text in axis.get_ticklabels():
            text.set_parse_math(False)
            text.set_fontsize(7)
            if side == "x":
                text.set_rotation(90)


def _titled(ax: "Axes", title: str) -> None:
    ax.set_title(_shortened(title, 48), fontsize=9, parse_math=False)


def _shortened(name: str, length: int = 16) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _axes(ax: "Axes | None") -> "Axes":
    """The axes given, or those of a figure of its own."""
    if ax is not None:
        return ax
    found: Axes = _figure(4.2, 3.2).subplots()
    return found


def _figure(width: float, height: float) -> "Figure":
    made: Figure = needed("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return made
