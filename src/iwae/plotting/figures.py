"""Images as PNG, and curves and histograms as SVG.

SVGs suit light and dark pages, and are reproducible byte by byte. matplotlib and Pillow are
imported when something is drawn.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from iwae._utils import threefry
from iwae._utils.checks import check_seed
from iwae._utils.extras import require
from iwae.data.schema import Schema
from iwae.errors import InputError
from iwae.estimators.diagnostics import Measurement
from iwae.evaluation.posterior import densities
from iwae.evaluation.trained import TrainedModel
from iwae.evaluation.units import ACTIVE
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.plotting import tables
from iwae.storage.metrics import Row

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

needed = partial(require, purpose="a picture")
"""A module of matplotlib or Pillow; `InputError` if it is not installed."""

Bounds = Literal["train_bound", "valid_bound"]

CELL, GAP, SEPARATOR = 64, 2, 128
"""Maximal size of an enlarged image in pixels, and width and grey value of separators."""

SEEN, RECONSTRUCTION = "what the model saw", "the reconstruction E[x′ | h₁]"
"""The last two rows of a reconstruction picture; above them the intensities, if they differ."""

LOG_FROM = 50
"""Number of epochs above which training curves have a logarithmic axis."""

LOWEST, HIGHEST, BIN = -6.0, 1.0, 0.25
"""Range and bin width of log10 A_u; values outside are drawn in the outermost bins."""

INK = "#010203"
"""A placeholder for the text colour in matplotlib, which the SVG replaces by currentColor."""

COLOURS = ("#3d85c6", "#e07b39", "#3f9f5f", "#cc4f5f", "#8f6cc0", "#a07a50", "#d36ba8", "#85909a")

STYLE: dict[Any, str | float | bool] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}

SCHEME = (
    "<style>:root{color:#24292f}@media(prefers-color-scheme:dark){:root{color:#d9dee4}}</style>"
)


def grid(images: np.ndarray, columns: int | None = None, *, stretched: bool = False) -> np.ndarray:
    """Images side by side, row after row: uint8 [H, W], or [H, W, 3] for three channels.

    `images` is [n, h, w], [n, h, w, c] (averaged over channels unless c = 3), [n, c, h, w] with c
    of 1 or 3, or vectors [n, d], each drawn as a strip with a column per value. Channels are last
    if the last axis has size 1 or 3, else first if the second has and the others are larger than 4.
    Values in [0, 1] are shown as they are; if one lies outside, or with `stretched`, all are mapped
    linearly from their common range to [0, 1]. Each pixel becomes a square of CELL // max(h, w)
    pixels, at least 1; GAP grey pixels surround every image. `columns` is by default the square
    root of n, rounded up, and 1 for vectors.
    """
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise InputError(
            f"An array of shape {images.shape} was given, but a picture needs at least one image: "
            f"[n, h, w], [n, h, w, c] or [n, d]."
        )
    if columns is None:
        columns = 1 if images.ndim == 2 else math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise InputError(f"columns = {columns} was given, but a picture needs at least 1.")
    pixels = _pixels(_with_channels(images), stretched=stretched)
    n, h, w, c = pixels.shape
    scale = max(1, CELL // max(h, w))
    h, w = h * scale, w * scale
    rows = -(-n // columns)
    sheet = np.full((GAP + rows * (h + GAP), GAP + columns * (w + GAP), c), SEPARATOR, np.uint8)
    for i, image in enumerate(pixels):
        row, column = divmod(i, columns)
        top, left = GAP + row * (h + GAP), GAP + column * (w + GAP)
        sheet[top : top + h, left : left + w] = image.repeat(scale, 0).repeat(scale, 1)
    return sheet if c == 3 else sheet[..., 0]


def _with_channels(images: np.ndarray) -> np.ndarray:
    """Images [n, h, w, 1 or 3]; a vector of d values becomes d // 8 equal lines, from 1 to 8."""
    if images.ndim == 2:
        lines = min(8, max(1, images.shape[1] // 8))
        images = images[:, None].repeat(lines, 1)
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
        images = np.moveaxis(images, 1, 3)
    return images if images.shape[3] == 3 else images.mean(axis=3, keepdims=True)


def _pixels(values: np.ndarray, *, stretched: bool) -> np.ndarray:
    """round(255 x) for values mapped to x in [0, 1]; 0 where they are not finite."""
    x = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
    low, high = x.min(), x.max()
    if stretched or low < 0 or high > 1:
        x = (x - low) / (high - low) if high > low else np.zeros_like(x)
    return np.rint(255 * x).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """A uint8 image [h, w] or [h, w, 3] as a PNG file."""
    pillow = needed("PIL.Image")
    buffer = io.BytesIO()
    pillow.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sample_picture(trained: TrainedModel, n: int = 100, seed: int = 0) -> bytes:
    """n samples E[x|h_1] with h from the prior, as a PNG; vectors are drawn as lines.

    Those of a table are draws of x, whose marginals are drawn.
    """
    if trained.seen.schema is not None:
        return marginal_picture(trained, trained.sampled(n, seed=seed, mean=False))
    samples = trained.sampled(n, seed=seed)
    return _lines([samples]) if samples.ndim == 2 else sheet(trained, samples)


def marginal_picture(trained: TrainedModel, samples: np.ndarray) -> bytes:
    """The marginals of samples of a table, beside those of its training rows, as a PNG.

    Where these are no longer found, the samples stand alone.
    """
    schema = _schema(trained)
    with _drawing():
        try:
            return _png(tables.marginals(schema, trained.data().train, samples))
        except InputError:
            return _png(tables.marginals(schema, samples))


def correlation_picture(trained: TrainedModel, samples: np.ndarray) -> bytes:
    """The correlation matrices of a table's training rows and of samples, as a PNG."""
    with _drawing():
        return _png(tables.correlations(_schema(trained), trained.data().train, samples))


def latent_picture(trained: TrainedModel, rows: np.ndarray, *, seed: int = 0) -> tuple[bytes, str]:
    """(the codes of prepared rows of a table as a PNG, the name of the column of their colours).

    The column is the one that a linear function of the codes tells most of.
    """
    schema, codes = _schema(trained), trained.encoded(rows, seed=seed)
    j = int(np.argmax([tables.told(codes, rows[:, j]) for j in range(rows.shape[1])]))
    with _drawing():
        axes = tables.latents(codes, by=rows[:, j], column=schema.columns[j])
        figure: Any = axes.figure
        return _png(figure), schema.columns[j].name


def score_picture(found: Mapping[str, np.ndarray]) -> bytes:
    """Histograms of the log-likelihoods of sets of examples, as a PNG."""
    with _drawing():
        figure: Any = tables.scores(found).figure
        return _png(figure)


def missing_picture(trained: TrainedModel) -> bytes:
    """The missing values of a table's training rows, as a PNG."""
    with _drawing():
        figure: Any = tables.missingness(_schema(trained), trained.data().train).figure
        return _png(figure)


def _schema(trained: TrainedModel) -> Schema:
    """The columns of a table; `InputError` for a model of other data."""
    if trained.seen.schema is None:
        raise InputError(
            f"A picture of columns was requested, but {trained.seen.name} is no table; give a run "
            f"that was trained on one."
        )
    return trained.seen.schema


def sheet(trained: TrainedModel, images: np.ndarray, columns: int | None = None) -> bytes:
    """Images as a PNG: real values span the grey scale, and intensities are clipped to [0, 1]."""
    real = trained.seen.kind == "real"
    return png(grid(images if real else np.clip(images, 0, 1), columns, stretched=real))


def reconstruction_picture(
    trained: TrainedModel, n: int = 10, seed: int = 0, split: str = "test"
) -> bytes:
    """The first n examples of a split, with the rows of `reconstruction_rows`, as a PNG.

    Vectors are drawn as lines, the input in grey under the reconstruction, and the columns of a
    table each in units of its range. `InputError` if the data are no longer found.
    """
    if n < 1:
        raise InputError(f"n = {n} was given, but at least 1 example is needed.")
    images = trained.data().split(split)[:n]
    seen, again = trained.reconstructed(images, seed=seed)
    if seen.ndim == 2:
        return _lines([seen, again] if trained.seen.schema is None else _alike(seen, again))
    rows = [seen, again]
    if len(reconstruction_rows(trained)) == 3:
        rows.insert(0, (images / trained.seen.observer.scale).reshape(seen.shape))
    return sheet(trained, np.concatenate(rows), columns=len(images))


def reconstruction_rows(trained: TrainedModel) -> tuple[str, ...]:
    """Captions of the rows of `reconstruction_picture`, from the top."""
    drawn = trained.seen.observer.dynamic and len(trained.seen.shape) > 1
    return ("the original intensities", SEEN, RECONSTRUCTION) if drawn else (SEEN, RECONSTRUCTION)


def training_curves(runs: Sequence[tuple[str, Sequence[Row]]]) -> bytes:
    """Bounds in nats against epochs, for pairs (name, rows of metrics.jsonl), as an SVG.

    Solid lines show the validation split, dashed lines averages over the steps of an epoch.
    """
    lines = needed("matplotlib.lines")
    last = max((row["pass"] for _, rows in runs for row in rows), default=1)
    with _drawing():
        figure = _figure(6.0, 3.2 + 0.2 * math.ceil((len(runs) + 2) / 2))
        axes = figure.subplots()
        for i, (_, rows) in enumerate(runs):
            colour = COLOURS[i % len(COLOURS)]
            _curve(axes, rows, "train_bound", color=colour, linestyle="--", linewidth=1, alpha=0.7)
            _curve(axes, rows, "valid_bound", color=colour, linewidth=1.6)
        _epoch_axis(axes, last)
        axes.set_ylabel("bound (nats)")
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        line = lambda **style: lines.Line2D([], [], **style)
        handles = [line(color=COLOURS[i % len(COLOURS)]) for i in range(len(runs))]
        handles += [line(color=INK), line(color=INK, linestyle="--")]
        names = [name for name, _ in runs]
        _legend(figure, handles, [*names, "validation split", "training split"])
        return _svg(figure)


def _curve(
    axes: "Axes", rows: Sequence[Row], key: Literal["train_bound", "valid_bound"], **style: Any
) -> None:
    points = [(row["pass"], row[key]) for row in rows if key in row]
    if points:
        marker = "o" if len(points) < 20 else ""
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, **style)


def _epoch_axis(axes: "Axes", last: float) -> None:
    ticker = needed("matplotlib.ticker")
    if last > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epochs")


def _legend(figure: "Figure", handles: "Sequence[Artist]", names: list[str]) -> None:
    """Add a legend; texts are set afterwards, since matplotlib interprets some names, as `_x`."""
    blank = [f"{i}" for i in range(len(names))]
    legend = figure.legend(handles, blank, loc="outside lower left", ncols=2)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(_shortened(name))


def _shortened(name: str, length: int = 44) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def activity_histogram(runs: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> bytes:
    """Histograms of log10 A_u for pairs (name, A_u of the units of each layer), as an SVG.

    The threshold A_u = 0.01 is marked. The unbiased estimate of A_u may be 0 or negative; it is
    then drawn at 1e-6.
    """
    panels = [
        (f"{_shortened(name)}, " if len(runs) > 1 else "", layer, np.asarray(values))
        for name, layers in runs
        for layer, values in enumerate(layers, start=1)
    ]
    with _drawing():
        figure = _figure(4.2, 0.5 + 1.3 * len(panels))
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (name, layer, values) in zip(all_axes, panels, strict=True):
            _histogram(axes, values)
            active = f"{np.sum(values > ACTIVE)} of {len(values)} units active"
            axes.set_title(f"{name}layer {layer}: {active}", loc="left", parse_math=False)
        all_axes[-1].set_xlabel("log₁₀ of the activity A")
        return _svg(figure)


def _histogram(axes: "Axes", values: np.ndarray) -> None:
    ticker = needed("matplotlib.ticker")
    log_a = np.log10(np.clip(values[np.isfinite(values)], 10**LOWEST, 10**HIGHEST))
    bins = np.arange(LOWEST, HIGHEST + BIN, BIN)
    threshold = math.log10(ACTIVE)
    counts, _ = np.histogram(log_a, bins)
    colours = [COLOURS[0] if left >= threshold else COLOURS[-1] for left in bins[:-1]]
    axes.bar(bins[:-1], counts, width=0.9 * BIN, align="edge", color=colours)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle=":")
    axes.set_xlim(LOWEST - BIN, HIGHEST + BIN)
    axes.set_ylim(0, max(1, counts.max()) * 1.1)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    axes.set_ylabel("units")


def nll_curves(
    curves: Sequence[tuple[str, Sequence[Sequence[tuple[float, float]]]]],
    targets: Sequence[float] = (),
) -> bytes:
    """NLL in nats against minutes of training, as an SVG.

    `curves` are pairs of a name and its runs, each a sequence of (minutes, NLL); `targets` are
    dotted lines where the picture reaches them. Values more than `TALLEST` nats above the lowest
    are cut off.
    """
    ends = [nll for _, runs in curves for run in runs for _, nll in run]
    lowest, highest = min(ends), min(min(ends) + TALLEST, max(ends) + 0.2)
    with _drawing():
        figure = _figure(6.0, 3.2 + 0.2 * math.ceil(len(curves) / 2))
        axes = figure.subplots()
        handles: Any = []
        for i, (_, runs) in enumerate(curves):
            colour = COLOURS[i % len(COLOURS)]
            for run in runs:
                (line,) = axes.plot(*zip(*run, strict=True), color=colour, linewidth=1.2)
                axes.plot(*run[-1], color=colour, marker="o", markersize=4)
            handles.append(line)
        for target in (t for t in targets if lowest - 1 <= t <= highest):
            axes.axhline(target, color=INK, linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_ylim(min([lowest, *(t for t in targets if t >= lowest - 1)]) - 0.2, highest)
        ticker = needed("matplotlib.ticker")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("NLL (nats)")
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        _legend(figure, handles, [name for name, _ in curves])
        return _svg(figure)


TALLEST = 10.0
"""Height of a picture of NLLs in nats."""


def snr_curves(measured: Sequence[Measurement]) -> bytes:
    """SNR against K of every estimator, for θ and for φ, as an SVG."""
    names = list(dict.fromkeys(m.estimator for m in measured))
    with _drawing():
        figure = _figure(6.0, 3.4)
        for axes, part in zip(figure.subplots(1, 2, sharex=True), ("theta", "phi"), strict=True):
            for colour, name in zip(COLOURS, names, strict=False):
                rows = [m for m in measured if (m.estimator, m.parameters) == (name, part)]
                ks, snr, error = np.array([(m.k, m.snr, m.snr_se) for m in rows]).T
                axes.errorbar(ks, snr, error, color=colour, marker="o", markersize=3, linewidth=1.2)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("K")
            axes.set_title({"theta": "θ, the decoder", "phi": "φ, the encoder"}[part])
            axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        figure.axes[0].set_ylabel("SNR of the gradient")
        handles: Any = [figure.axes[0].containers[i] for i in range(len(names))]
        _legend(figure, handles, names)
        return _svg(figure)


def posterior_picture(
    trained: TrainedModel, *, n: int = 4, k: int = 10, side: float = 4.0, seed: int = 0
) -> bytes:
    """A row per test image with the image, q(h|x), q_EW(h|x) and p(h|x), as a PNG.

    `InputError` unless the model has 2 latent units in one layer and a density q(h|x). Uncertain
    weights are fixed at their means.
    """
    check_seed(seed)
    model = trained.model
    if isinstance(model, UncertainAutoencoder):
        model = model.at_the_mean()
    if isinstance(model, HierarchicalAutoencoder):
        raise InputError(
            "A hierarchical proposal has no density q(h|x) in closed form; give a run with "
            "independent draws."
        )
    if n < 1:
        raise InputError(
            f"n = {n} was given, but a picture needs at least 1 image; give 1 or more."
        )
    images = trained.data().test[:n]
    keys = jax.random.split(threefry.key(seed), len(images))
    rows = []
    for image, key in zip(images, keys, strict=True):
        key_x, key_h = jax.random.split(key)
        x = trained.seen.observer(jnp.asarray(image), key_x)
        rows.append((x, densities(model, x, key_h, k=k, side=side)))
    with _drawing():
        figure = _figure(7.0, 1.8 * len(rows))
        table = figure.subplots(len(rows), 4, squeeze=False)
        for axes, (x, row) in zip(table, rows, strict=True):
            axes[0].imshow(grid(np.asarray(x).reshape(1, *trained.seen.shape)), cmap="gray")
            top = max(float(a.max()) for a in row)
            for one, density in zip(axes[1:], row, strict=True):
                one.imshow(density, origin="lower", extent=(-side, side) * 2, vmin=0, vmax=top)
        for one in table.flat:
            one.set_xticks([])
            one.set_yticks([])
        for one, title in zip(table[0], ("x", "q(h|x)", f"q_EW, K = {k}", "p(h|x)"), strict=True):
            one.set_title(title)
        return _png(figure)


class Panel(NamedTuple):
    """Points in the plane with a title and a hue for each point, or None for one colour."""

    title: str
    points: Float[np.ndarray, "n 2"]
    hue: Float[np.ndarray, " n"] | None = None


def scatter_picture(rows: Sequence[Sequence[Panel]]) -> bytes:
    """Rows of panels, all on the same scale, as a PNG."""
    side = 1.05 * max(float(np.abs(panel.points).max()) for row in rows for panel in row)
    with _drawing():
        figure = _figure(2.8 * len(rows[0]), 3.0 * len(rows))
        shape = (len(rows), len(rows[0]))
        grid = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
        for all_axes, row in zip(grid, rows, strict=True):
            for axes, panel in zip(all_axes, row, strict=True):
                if panel.hue is None:
                    axes.plot(*panel.points.T, ".", color=COLOURS[0], markersize=1.5, alpha=0.4)
                else:
                    hue = panel.hue % 1
                    axes.scatter(*panel.points.T, c=hue, cmap="hsv", vmin=0, vmax=1, s=1.5)
                axes.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
                axes.set_title(panel.title)
        return _png(figure)


def _lines(rows: list[np.ndarray], columns: int = 10) -> bytes:
    """Vectors [n, d] as lines on a common scale, later rows over earlier ones, as a PNG."""
    n, d = rows[0].shape
    low, high = _range(rows)
    span = high - low if high > low else 1.0
    columns = min(n, columns)
    x = 0.1 + 0.8 * (np.linspace(0, 1, d) if d > 1 else np.array([0.5]))
    with _drawing():
        height = -(-n // columns)
        figure = _figure(0.72 * columns, 0.72 * height, layout="none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(-height, 0))
        axes.axis("off")
        marker = "." if d <= 12 else ""
        colours = [COLOURS[-1], COLOURS[0]][-len(rows) :]
        for values, colour in zip(rows, colours, strict=True):
            for i, v in enumerate(values):
                row, column = divmod(i, columns)
                y = 0.1 + 0.8 * (v - low) / span - row - 1
                axes.plot(x + column, y, color=colour, marker=marker, markersize=3, linewidth=1)
        for at in range(1, columns):
            axes.axvline(at, color="0.85", linewidth=0.6)
        for at in range(1, height):
            axes.axhline(-at, color="0.85", linewidth=0.6)
        return _png(figure, dpi=100)


def _alike(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Two sets of rows with each column in units of its range over both."""
    both = np.concatenate([first, second])
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # columns of NaN
        low, high = np.nanmin(both, axis=0), np.nanmax(both, axis=0)
    return [(rows - low) / np.where(high > low, high - low, 1) for rows in (first, second)]


def _range(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """The smallest and the largest finite value; 0 and 0 if there is none."""
    finite = np.concatenate([a[np.isfinite(a)].ravel() for a in arrays])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Apply matplotlib's settings, and ignore warnings about letters that its font lacks."""
    matplotlib = needed("matplotlib")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """A figure of this size in inches, without a screen."""
    return needed("matplotlib.figure").Figure(figsize=(width, height), layout=layout)


def _png(figure: "Figure", dpi: int = 120) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: "Figure") -> bytes:
    """The figure as an SVG without a date, with text and lines in the text colour of the page."""
    matplotlib = needed("matplotlib")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "iwae"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    head, tag, rest = buffer.getvalue().decode().partition("<defs>")
    return f"{head}{SCHEME}{tag}{rest}".replace(f": {INK}", ": currentColor").encode()
