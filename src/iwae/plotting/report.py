"""The report: one self-contained HTML page of one or several runs, side by side.

Everything is derived from the files of the runs; the same files give the same page.
"""

import base64
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from iwae import runs
from iwae._utils.files import as_argument, refuse_existing, write_atomic
from iwae._utils.formatting import units_in_words
from iwae.config.io import flatten
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.evaluator import ACTIVE, Progress
from iwae.evaluation.trained import TERM_DRAWS, TrainedModel
from iwae.models.likelihoods import is_continuous, is_mixed
from iwae.plotting import figures
from iwae.storage.run_directory import (
    read_config,
    read_evaluations,
    read_metrics,
    read_own,
    replicas,
)
from iwae.training.parts import label

SAMPLES, RECONSTRUCTIONS, SEED, SPLIT = 100, 10, 0, "test"
"""What the pictures show, and the seed of their draws."""


@dataclass(frozen=True)
class Entry:
    """A run as the page needs it."""

    name: str
    path: Path
    config: RunConfig
    rows: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    evaluations: list[dict[str, Any]]
    trained: TrainedModel | None
    missing: str
    """Why there is no model, and which files are damaged."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Names of the parts of the run that are objects of the user's own."""

    @property
    def passes(self) -> int:
        """Passes behind the model, or so far."""
        if self.trained is not None:
            return self.trained.passes
        return self.rows[-1]["pass"] if self.rows else 0

    @property
    def dataset(self) -> str:
        return self.config.data.dataset if self.trained is None else self.trained.seen.name

    @property
    def latest(self) -> dict[str, Any] | None:
        """The evaluation of most passes; among these one on the test split, the largest."""
        order = lambda e: (e["passes"], e["split"] == SPLIT, e["n"], e["k"])
        return max(self.evaluations, key=order, default=None)


def runs_among(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(runs, each of a folder of replicas by itself; files among folders, as a pattern like demo/*
    takes along the page that is there)."""
    files = [path for path in paths if path.is_file()]
    folders = [path for path in paths if not path.is_file()]
    if not folders:
        return list(paths), []
    return [run for path in folders for run in replicas(path) or [path]], files


def write(
    paths: Sequence[Path | TrainedModel],
    out: Path,
    *,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the page of some runs to `out`; `InputError` if it exists or a path is no run.

    A run that was loaded with parts of its own, which its directory does not hold, is given as
    loaded.
    """
    refuse_existing(out, overwrite=overwrite)
    write_atomic(out, render(paths, data_dir=data_dir))


def render(
    paths: Sequence[Path | TrainedModel],
    *,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> str:
    """The page of some runs as HTML without references to anything outside it.

    A run that has no model or evaluation yet, whose data are gone or of which a file is damaged, is
    shown with what there is and a sentence. Raises `InputError` for a path that is not a run.
    """
    entries = _entries(paths, data_dir)
    cards = []
    for i, entry in enumerate(entries, start=1):
        cards.append(_card(entry))
        if progress is not None:
            progress(i, len(entries))
    table = [row for entry in entries for row in _rows(entry)]
    _mark_best(table)
    return _template().render(
        title=_title(entries),
        single=len(entries) == 1,
        table=table,
        pruned=any(row.get("pruned") for row in table),
        notes=_number_notes(table),
        curves=_curves(entries),
        cards=cards,
        names=[e.name for e in entries],
        differing=_differing([e.config for e in entries]),
        configurations=[(e.name, e.config.to_toml()) for e in entries],
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iwae.plotting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _entries(given: Sequence[Path | TrainedModel], data_dir: str | Path | None) -> list[Entry]:
    if not given:
        raise InputError("No run was given; name at least one folder of `iwae train`.")
    loaded = {of.path: of for of in given if isinstance(of, TrainedModel)}
    if None in loaded:
        raise InputError(
            "A run in memory was given for a report, which is of the files of runs; train it with "
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
    said: list[str] = []

    def there(read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except InputError as error:
            said.append(_printable(str(error)))
            return otherwise

    trained = loaded or there(lambda: runs.load(path, data_dir=data_dir), None)
    rows = there(lambda: read_metrics(path), [])
    evaluations = there(lambda: list(read_evaluations(path).values()), [])
    missing = " ".join(dict.fromkeys(said))
    return Entry(name, path, config, rows, evaluations, trained, missing, read_own(path))


def _names(paths: list[Path]) -> list[str]:
    """The last part of each path, or as many as tell the runs apart."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return [_printable(name) for name in names]


def _printable(text: str) -> str:
    """A folder's name may hold control characters or bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _title(entries: list[Entry]) -> str:
    datasets = _listed([_printable(d) for d in dict.fromkeys(e.dataset for e in entries)])
    if len(entries) == 1:
        return f"{entries[0].name}: a model of {datasets}"
    return f"{len(entries)} models of {datasets} compared"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# The table of likelihoods


def _rows(entry: Entry) -> list[dict[str, Any]]:
    """What the table prints of a run: a row for each evaluation, or one that says there is none."""
    model, objective = entry.config.model, entry.config.objective
    run = {
        "run": entry.name,
        "objective": label(entry.config, entry.own),
        "k": objective.k,
        "layers": "—" if "model" in entry.own else model.layers,
        "best": False,
    }
    if not entry.evaluations:
        command = f"iwae evaluate {as_argument(entry.path)}"
        hint = {"command": command} if entry.trained else {"unfinished": True}
        return [run | hint | {"passes": _count(entry.passes), "evaluated": False}]
    return [run | _figures_of(e) | {"alike": _alike(entry, e)} for e in entry.evaluations]


def _figures_of(e: dict[str, Any]) -> dict[str, Any]:
    pruned = e.get("nll_without_inactive")
    return {
        "evaluated": True,
        "passes": _count(e["passes"]),
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
        "note": "; ".join(
            n for n in (e["note"], "mean weights" * e.get("mean_weights", False)) if n
        ),
        "value": e["nll"],
    }


def _alike(entry: Entry, e: dict[str, Any]) -> tuple[Any, ...]:
    """NLLs are compared where this is equal: data and their units, binarisation, probabilities or
    densities, split, examples and draws."""
    how = (e["dataset"], e["split"], e["n"], e["k"])
    if entry.trained is None:
        return (*how, entry.config.data.binarization)
    seen, digest = entry.trained.seen, entry.trained.seen.digest
    if not digest:  # of an early version
        with contextlib.suppress(InputError):
            digest = entry.trained.data().whole_digest
    name = entry.config.model.likelihood
    density: str | bool = "mixed" if is_mixed(name) else is_continuous(name, seen.model_kind)
    if entry.own.keys() & {"model", "likelihood"} and seen.model_kind != "binary":
        density = f"of its own, {entry.own}"
    return (*how, digest, seen.kind, seen.scale, seen.binarization, density)


def _mark_best(table: list[dict[str, Any]]) -> None:
    """Marks the lowest NLL among each two or more rows that were evaluated alike."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table:
        if row["evaluated"]:
            groups.setdefault(row["alike"], []).append(row)
    for rows in groups.values():
        if len(rows) > 1:
            min(rows, key=lambda row: row["value"])["best"] = True


def _number_notes(table: list[dict[str, Any]]) -> list[str]:
    """Gives each row the number of its footnote, 0 for none; returns the footnotes."""
    notes = list(dict.fromkeys(row["note"] for row in table if row.get("note")))
    for row in table:
        row["footnote"] = notes.index(row["note"]) + 1 if row.get("note") else 0
    return notes


def _number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for one that was not finite."""
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
    alt = f"Bound in nats against passes, on the training and validation split, of {names}"
    return {"source": _uri(figures.training_curves(drawn), "svg+xml"), "alt": alt}


def _card(entry: Entry) -> dict[str, Any]:
    """What the page shows of one run: each figure is a picture with a caption, or a sentence."""
    objective, layers = entry.config.objective, entry.config.model.layers
    of_layers = f"{layers} stochastic {'layer' if layers == 1 else 'layers'}"
    summary = [
        f"{label(entry.config, entry.own)}, K = {objective.k}",
        "a model of its own" if "model" in entry.own else of_layers,
        f"{_count(entry.passes)} of {_count(entry.config.training.epochs)} passes",
    ]
    return {
        "name": entry.name,
        "summary": "; ".join(summary),
        "missing": _with_code(entry.missing),
        "figures": [*_pictures(entry), {"heading": "Active units", **_histogram(entry)}],
    }


def _pictures(entry: Entry) -> list[dict[str, Any]]:
    if entry.trained is None:
        return []
    return [
        _picture(entry.name, entry.trained, "Samples", _samples),
        _picture(entry.name, entry.trained, "Reconstructions", _reconstructions),
    ]


def _picture(
    name: str,
    trained: TrainedModel,
    heading: str,
    draw: Callable[[TrainedModel], tuple[bytes, str, str]],
) -> dict[str, Any]:
    """The picture that `draw` makes; its error's sentence if the data are not to be found."""
    try:
        picture, alt, caption = draw(trained)
    except InputError as error:
        return {"heading": heading, "sentence": _with_code(_printable(str(error)))}
    alt = f"{alt} of {name}"
    return {"heading": heading, "source": _uri(picture, "png"), "alt": alt, "caption": caption}


def _samples(trained: TrainedModel) -> tuple[bytes, str, str]:
    caption = (
        f"{SAMPLES} draws of the latents from the prior (seed {SEED}), each shown as the mean "
        f"E[x | h₁] given these latents.{_remark(trained)}"
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
        f"from q(h | x) (seed {SEED}).{_remark(trained)}"
    )
    return picture, f"{n} {SPLIT} examples and their reconstructions", caption


def _remark(trained: TrainedModel) -> str:
    if len(trained.seen.shape) == 1:
        d = trained.seen.shape[0]
        return f" Each line is an example, its {d} values from left to right."
    if trained.seen.kind == "real":
        return " Grey values span the range of all values in the picture."
    return ""


def _histogram(entry: Entry) -> dict[str, Any]:
    e = entry.latest
    if e is None:
        return {"sentence": "Not evaluated yet."}
    if e["active_units"] is None:
        alone = "One example alone has no activity; evaluate more."
        of_own = "A model of its own has no layers whose units could be counted."
        return {"sentence": of_own if "model" in entry.own else alone}
    active = units_in_words(e["active_units"])
    known = [[a for a in layer if a is not None] for layer in e["activity"]]
    caption = (
        f"Activity A = Var(E[h | x]) of each latent unit over {_count(e['n'])} {e['split']} "
        f"examples ({TERM_DRAWS} draws, seed {e['seed']}, after {_count(e['passes'])} passes). "
        f"Units right of the dotted line, A > {ACTIVE:g}, are active."
    )
    return {
        "source": _uri(figures.activity_histogram([(entry.name, known)]), "svg+xml"),
        "alt": f"Histogram of the activity of the latent units of {entry.name}: {active} active",
        "caption": caption,
    }


def _with_code(sentence: str) -> Markup:
    """A sentence as HTML, with what stands between backticks as code."""
    parts = [escape(part) for part in sentence.split("`")]
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(p) if i % 2 else p for i, p in enumerate(parts))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Configuration


def _differing(configs: list[RunConfig]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) for settings that are not the same in all runs."""
    flat = [flatten(config) for config in configs]
    return [
        (name, [_setting(f[name]) for f in flat])
        for name in flat[0]
        if any(f[name] != flat[0][name] for f in flat)
    ]


def _setting(value: Any) -> str:
    """As the command line writes it: 100,50 for latents, 200,200/100,100 for hidden layers."""
    if value is None:
        return "—"
    if isinstance(value, tuple):
        nested = any(isinstance(v, tuple) for v in value)
        return ("/" if nested else ",").join(map(_setting, value))
    return str(value)
