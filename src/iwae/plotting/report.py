"""The report: one self-contained HTML page of one or several runs, side by side.

The page depends only on the files of the runs.
"""

import base64
import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iwae import runs
from iwae._utils.extras import require
from iwae._utils.files import as_argument, check_writable, write_atomic
from iwae._utils.formatting import units_in_words
from iwae.config.io import flatten, text_of
from iwae.config.schema import RunConfig
from iwae.data.in_use import reading_once
from iwae.errors import InputError
from iwae.evaluation.examples import Progress
from iwae.evaluation.trained import TERM_DRAWS, TrainedModel
from iwae.evaluation.units import ACTIVE
from iwae.models.likelihoods import is_continuous, is_mixed
from iwae.plotting import figures
from iwae.storage.metrics import Row
from iwae.storage.run_directory import (
    read_config,
    read_evaluations,
    read_metrics,
    read_own,
    replicas,
)
from iwae.training.parts import label

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

T = TypeVar("T")

SAMPLES, RECONSTRUCTIONS, SEED, SPLIT = 100, 10, 0, "test"
"""Numbers of samples and reconstructions, the seed of their draws, and the split."""


SCATTERED, SCORED = 1000, 100
"""Most rows of a table in a scatter or a histogram, and importance samples of a histogram."""

Kept = Mapping[str, Any]
"""An evaluation as JSON."""


@dataclass(frozen=True)
class Entry:
    """A run on the page."""

    name: str
    path: Path
    config: RunConfig
    rows: Sequence[Row]
    """The rows of metrics.jsonl."""
    evaluations: list[Kept]
    trained: TrainedModel | None
    missing: str
    """Messages about a missing model and damaged files."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Names of the parts of the run that are objects of the user's own."""

    @property
    def epochs(self) -> int:
        """Epochs that the model was trained for, or so far."""
        if self.trained is not None:
            return self.trained.epochs
        return int(self.rows[-1]["pass"]) if self.rows else 0

    @property
    def dataset(self) -> str:
        return self.config.data.dataset if self.trained is None else self.trained.seen.name

    @property
    def latest(self) -> Kept | None:
        """The evaluation after the most epochs; among these one on the test split, the largest."""
        order = lambda e: (e["passes"], e["split"] == SPLIT, e["n"], e["k"])
        return max(self.evaluations, key=order, default=None)


def runs_among(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(run directories, with replicas listed one by one; other files among the paths).

    A pattern like demo/* matches an existing report as well.
    """
    files = [path for path in paths if path.is_file()]
    directories = [path for path in paths if not path.is_file()]
    if not directories:
        return list(paths), []
    return [run for path in directories for run in replicas(path) or [path]], files


def write(
    paths: Sequence[str | Path | TrainedModel],
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the page of some runs to `out`; `InputError` if it exists or a path is not a run.

    Give a run with your own parts as a loaded `TrainedModel`, since its directory lacks their code.
    """
    check_installed()
    page = Path(out)
    check_writable(page, overwrite=overwrite)
    write_atomic(page, render(paths, data_dir=data_dir))


def check_installed() -> None:
    """`InputError` if a library that the page needs is not installed."""
    for module in ("jinja2", "matplotlib", "PIL"):
        require(module, purpose="a report", extra="report")


@reading_once()
def render(
    paths: Sequence[str | Path | TrainedModel],
    *,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> str:
    """The page of some runs as self-contained HTML.

    Runs without a model, evaluation or data, or with damaged files, are shown with a message.
    `InputError` for a path that is not a run.
    """
    entries = _entries(paths, data_dir)
    cards = []
    for i, entry in enumerate(entries, start=1):
        cards.append(_card(entry))
        if progress is not None:
            progress(i, len(entries))
    lines = _with_best([line for entry in entries for line in _lines(entry)])
    table, notes = _with_footnotes(lines)
    return _template().render(
        title=_title(entries),
        single=len(entries) == 1,
        table=table,
        pruned=any(line.shown.get("pruned") for line in table),
        notes=notes,
        curves=_curves(entries),
        cards=cards,
        names=[e.name for e in entries],
        differing=_differing([e.config for e in entries]),
        configurations=[(e.name, e.config.to_toml()) for e in entries],
    )


def _template() -> "Template":
    jinja2 = require("jinja2", purpose="a report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iwae.plotting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template: Template = environment.get_template("report.html.j2")
    return template


def _entries(
    given: Sequence[str | Path | TrainedModel], data_dir: str | Path | None
) -> list[Entry]:
    if not given:
        raise InputError("No run was given; give at least one run directory of `iwae train`.")
    loaded = {of.path: of for of in given if isinstance(of, TrainedModel)}
    if None in loaded:
        raise InputError(
            "A run in memory was given for a report, which needs a run directory; train it with "
            "out=…."
        )
    paths = [of.path if isinstance(of, TrainedModel) else Path(of) for of in given]
    unique = list({path.resolve(): path for path in paths if path is not None}.values())
    configs = [read_config(path) for path in unique]
    each = zip(_names(unique), unique, configs, map(loaded.get, unique), strict=True)
    return [_entry(*run, data_dir) for run in each]


def _entry(
    name: str,
    path: Path,
    config: RunConfig,
    loaded: TrainedModel | None,
    data_dir: str | Path | None,
) -> Entry:
    messages: list[str] = []

    def attempt(read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except InputError as error:
            messages.append(_printable(str(error)))
            return default

    trained = loaded or attempt(lambda: runs.load(path, data_dir=data_dir), None)
    rows: Sequence[Row] = attempt(lambda: read_metrics(path), [])
    evaluations: list[Kept] = attempt(
        lambda: [e.to_json() for e in read_evaluations(path).values()], []
    )
    missing = " ".join(dict.fromkeys(messages))
    return Entry(name, path, config, rows, evaluations, trained, missing, read_own(path))


def _names(paths: list[Path]) -> list[str]:
    """The last part of each path, or as many parts as make the names unique."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return [_printable(name) for name in names]


def _printable(text: str) -> str:
    """The text with control characters and bytes that are not UTF-8 replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _title(entries: list[Entry]) -> str:
    datasets = _listed([_printable(d) for d in dict.fromkeys(e.dataset for e in entries)])
    if len(entries) == 1:
        return f"{entries[0].name}: a model of {datasets}"
    return f"{len(entries)} models of {datasets} compared"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# The table of likelihoods


@dataclass(frozen=True)
class Line:
    """A line of the table: a run with one evaluation, or without any."""

    run: str
    objective: str
    k: int
    layers: str
    epochs: str
    shown: Mapping[str, str] = field(default_factory=dict)
    """Printed figures of the evaluation; empty if there is none."""
    command: str = ""
    """The command that evaluates the run; empty if it has no model."""
    nll: float = math.inf
    alike: tuple[object, ...] = ()
    """NLLs are compared between lines for which this is equal."""
    note: str = ""
    best: bool = False
    footnote: int = 0
    """The number of its note; 0 without one."""


def _lines(entry: Entry) -> list[Line]:
    """The lines of a run: one for each evaluation, or one without figures."""
    model, objective = entry.config.model, entry.config.objective
    line = Line(
        run=entry.name,
        objective=label(entry.config, entry.own),
        k=objective.k,
        layers="—" if "model" in entry.own else str(model.layers),
        epochs=_count(entry.epochs),
        command=f"iwae evaluate {as_argument(entry.path)}" if entry.trained else "",
    )
    if not entry.evaluations:
        return [line]
    return [
        replace(
            line,
            epochs=_count(e["passes"]),
            shown=_shown(e),
            nll=e["nll"],
            alike=_alike(entry, e),
            note="; ".join(
                n for n in (e["note"], "mean weights" * e.get("mean_weights", False)) if n
            ),
        )
        for e in entry.evaluations
    ]


def _shown(e: Kept) -> dict[str, str]:
    """The printed figures of an evaluation."""
    pruned = e.get("nll_without_inactive")
    return {
        "split": e["split"],
        "n": _count(e["n"]),
        "nll": _number(e["nll"]),
        "error": "" if e["nll_se"] is None else _number(e["nll_se"]),
        "pruned": "" if pruned is None else _number(pruned),
        "bits": _number(e["bits_per_dim"], 4),
        "elbo": _number(e["elbo"]),
        "reconstruction": _number(e["reconstruction"]),
        "kl": " + ".join(map(_number, e["kl"])),
        "active": units_in_words(e["active_units"], "+"),
        "draws": _count(e["k"]),
        "seconds": _number(e["seconds"], 1),
        "device": e["device"],
    }


def _alike(entry: Entry, e: Kept) -> tuple[object, ...]:
    """What must be equal to compare NLLs: data and their units, binarisation, probability or
    density, split, number of examples and K."""
    how = (e["dataset"], e["split"], e["n"], e["k"])
    if entry.trained is None:
        return (*how, entry.config.data.binarization)
    seen, digest = entry.trained.seen, entry.trained.seen.digest
    if not digest:  # a run of an early version
        with contextlib.suppress(InputError):
            digest = entry.trained.data().whole_digest
    name = entry.config.model.likelihood
    density: str | bool = "mixed" if is_mixed(name) else is_continuous(name, seen.model_kind)
    if entry.own.keys() & {"model", "likelihood"} and seen.model_kind != "binary":
        density = f"of its own, {entry.own}"
    return (*how, digest, seen.kind, seen.scale, seen.binarization, density)


def _with_best(table: Sequence[Line]) -> list[Line]:
    """The lines, with the lowest NLL marked in each group of comparable lines."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, line in enumerate(table):
        if line.shown:
            groups.setdefault(line.alike, []).append(i)
    several = [group for group in groups.values() if len(group) > 1]
    best = {min(group, key=lambda i: table[i].nll) for group in several}
    return [replace(line, best=i in best) for i, line in enumerate(table)]


def _with_footnotes(table: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """(the lines, each with the number of its footnote; the footnotes)."""
    notes = list(dict.fromkeys(line.note for line in table if line.note))
    number = {note: i for i, note in enumerate(notes, start=1)}
    return [replace(line, footnote=number.get(line.note, 0)) for line in table], notes


def _number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for a non-finite one."""
    if value is None:
        return "—"
    return f"{value:,.{digits}f}".replace("-", "−")


def _count(value: int) -> str:
    return f"{value:,}"


# Figures


def _curves(entries: list[Entry]) -> dict[str, str] | None:
    drawn = [(e.name, e.rows) for e in entries if e.rows]
    if not drawn:
        return None
    names = _listed([name for name, _ in drawn])
    alt = f"Bound in nats against epochs, on the training and validation split, of {names}"
    return {"source": _uri(figures.training_curves(drawn), "svg+xml"), "alt": alt}


@dataclass(frozen=True)
class Figure:
    """A picture with a caption, or a message instead."""

    heading: str
    source: str = ""
    """A URI; empty if there is a message."""
    alt: str = ""
    caption: str = ""
    message: str = ""


@dataclass(frozen=True)
class Card:
    """What the page shows of one run."""

    name: str
    summary: str
    missing: str
    figures: list[Figure]


def _card(entry: Entry) -> Card:
    """What the page shows of one run."""
    objective, layers = entry.config.objective, entry.config.model.layers
    of_layers = f"{layers} stochastic {'layer' if layers == 1 else 'layers'}"
    summary = [
        f"{label(entry.config, entry.own)}, K = {objective.k}",
        "a user-defined model" if "model" in entry.own else of_layers,
        f"{_count(entry.epochs)} of {_count(entry.config.training.epochs)} epochs",
    ]
    if "optimizer" in entry.own:
        summary.append(f"optimizer {entry.own['optimizer']}")
    if entry.config.stages:
        summary.append(f"stages {text_of(entry.config.stages)}")
    return Card(
        name=entry.name,
        summary="; ".join(summary),
        missing=_with_code(entry.missing),
        figures=[*_pictures(entry), _histogram(entry)],
    )


def _pictures(entry: Entry) -> list[Figure]:
    if entry.trained is None:
        return []
    if entry.trained.seen.schema is not None:
        return [_picture(entry.name, entry.trained, *one) for one in OF_TABLES]
    return [
        _picture(entry.name, entry.trained, "Samples", _samples),
        _picture(entry.name, entry.trained, "Reconstructions", _reconstructions),
    ]


def _picture(
    name: str,
    trained: TrainedModel,
    heading: str,
    draw: Callable[[TrainedModel], tuple[bytes, str, str]],
) -> Figure:
    """The picture that `draw` makes, or the error's message if the data are not found."""
    try:
        picture, alt, caption = draw(trained)
    except InputError as error:
        return Figure(heading, message=_with_code(_printable(str(error))))
    return Figure(heading, _uri(picture, "png"), f"{alt} of {name}", caption)


def _samples(trained: TrainedModel) -> tuple[bytes, str, str]:
    caption = (
        f"{SAMPLES} draws of the latents from the prior (seed {SEED}), each shown as the mean "
        f"E[x | h₁] given these latents.{_how_drawn(trained)}"
    )
    return figures.sample_picture(trained, SAMPLES, SEED), f"{SAMPLES} samples", caption


def _reconstructions(trained: TrainedModel) -> tuple[bytes, str, str]:
    trained = replace(trained, dataset=trained.data())
    n = min(RECONSTRUCTIONS, len(trained.data().split(SPLIT)))
    picture = figures.reconstruction_picture(trained, n, SEED, SPLIT)
    shown = _listed(list(figures.reconstruction_rows(trained)))
    order = "From top: " if len(trained.seen.shape) > 1 else "Grey and blue: "
    caption = (
        f"The first {n} examples of the {SPLIT} split. {order}{shown} at one draw of the latents "
        f"from q(h | x) (seed {SEED}).{_how_drawn(trained)}"
    )
    return picture, f"{n} {SPLIT} examples and their reconstructions", caption


def _marginals(trained: TrainedModel) -> tuple[bytes, str, str]:
    n = len(trained.data().train)
    caption = (
        f"Each column in the {_count(n)} rows of training (grey), and in {_count(n)} draws of the "
        f"model (blue, seed {SEED}): densities of numbers, shares of categories."
    )
    samples = trained.sampled(n, seed=SEED, mean=False)
    return figures.marginal_picture(trained, samples), "Marginals of data and samples", caption


def _correlations(trained: TrainedModel) -> tuple[bytes, str, str]:
    rows = trained.data().train
    samples = trained.sampled(len(rows), seed=SEED, mean=False)
    caption = (
        "Pearson's correlations of pairs of columns, over the rows of training that have both, and "
        "in as many draws of the model. Categories without an order are left white."
    )
    picture = figures.correlation_picture(trained, samples)
    return picture, "Correlations of data and samples", caption


def _codes(trained: TrainedModel) -> tuple[bytes, str, str]:
    rows = trained.data().train[:SCATTERED]
    picture, column = figures.latent_picture(trained, rows, seed=SEED)
    caption = (
        f"Posterior means E[h₁ | x] of {_count(len(rows))} rows of training, coloured by {column}, "
        f"the column that they tell most of."
    )
    return picture, "Codes of rows", caption


def _table_scores(trained: TrainedModel) -> tuple[bytes, str, str]:
    parts = {name: trained.data().split(name)[:SCATTERED] for name in ("train", SPLIT)}
    found = {
        name: trained.log_likelihoods(rows, k=SCORED, seed=SEED)
        for name, rows in parts.items()
        if len(rows)
    }
    sizes = _listed([f"{_count(len(v))} {name} rows" for name, v in found.items()])
    caption = f"L_{SCORED} of {sizes} in nats, of which odd rows have low ones."
    return figures.score_picture(found), "Histogram of log-likelihoods", caption


def _holes(trained: TrainedModel) -> tuple[bytes, str, str]:
    caption = "Missing values of the rows of training (red), with their share in each column."
    return figures.missing_picture(trained), "Missing values", caption


OF_TABLES: list[tuple[str, Callable[[TrainedModel], tuple[bytes, str, str]]]] = [
    ("Marginals", _marginals),
    ("Correlations", _correlations),
    ("Codes", _codes),
    ("Log-likelihoods", _table_scores),
    ("Missing values", _holes),
]
"""The pictures of a table, by their headings."""


def _how_drawn(trained: TrainedModel) -> str:
    if len(trained.seen.shape) == 1:
        d = trained.seen.shape[0]
        return f" Each line is an example, its {d} values from left to right."
    if trained.seen.kind == "real":
        return " Grey values span the range of all values in the picture."
    return ""


def _histogram(entry: Entry) -> Figure:
    e, heading = entry.latest, "Active units"
    if e is None:
        return Figure(heading, message="Not evaluated yet.")
    if e["active_units"] is None:
        alone = "Activity needs more than one example; evaluate more."
        of_own = "A user-defined model has no layers whose units could be counted."
        return Figure(heading, message=of_own if "model" in entry.own else alone)
    active = units_in_words(e["active_units"])
    known = [[a for a in layer if a is not None] for layer in e["activity"]]
    caption = (
        f"Activity A = Var(E[h | x]) of each latent unit over {_count(e['n'])} {e['split']} "
        f"examples ({TERM_DRAWS} draws, seed {e['seed']}, after {_count(e['passes'])} epochs). "
        f"Units right of the dotted line, A > {ACTIVE:g}, are active."
    )
    alt = f"Histogram of the activity of the latent units of {entry.name}: {active} active"
    picture = figures.activity_histogram([(entry.name, known)])
    return Figure(heading, _uri(picture, "svg+xml"), alt, caption)


def _with_code(message: str) -> "Markup":
    """A message as HTML, with text between backticks as code."""
    markup = require("markupsafe", purpose="a report")
    parts = [markup.escape(part) for part in message.split("`")]
    code = markup.Markup("<code>{}</code>")
    joined: Markup = markup.Markup("").join(
        code.format(p) if i % 2 else p for i, p in enumerate(parts)
    )
    return joined


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Configuration


def _differing(configs: list[RunConfig]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) for settings that differ between runs."""
    flat = [flatten(config) for config in configs]
    return [
        (name, [_setting(f[name]) for f in flat])
        for name in flat[0]
        if any(f[name] != flat[0][name] for f in flat)
    ]


def _setting(value: object) -> str:
    """The value as on the command line: 100,50 for latents, 200,200/100,100 for hidden layers."""
    if value is None:
        return "—"
    if isinstance(value, tuple):
        nested = any(isinstance(v, tuple) for v in value)
        return ("/" if nested else ",").join(map(_setting, value))
    return str(value)
