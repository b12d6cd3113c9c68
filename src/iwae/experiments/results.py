"""The results page: every cell of every table, with provenance, or marked as not yet run.

All figures come from records of `iwae reproduce --record`; none is typed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwae._utils.formatting import (
    UNKNOWN,
    Figure,
    excess_in_words,
    mean_units,
    to_its_error,
    units_in_words,
    with_error,
)
from iwae.errors import InputError
from iwae.experiments import records
from iwae.experiments.measured import Known, Result
from iwae.experiments.papers import EXPERIMENTS
from iwae.experiments.records import OtherRecord, Record, RecordedCell, TableRecord
from iwae.experiments.tables import Cell, Experiment, Setting

HEAVY = "of autoencoders Cov and Var(p̂) are sums over a few huge weights, Var(log p̂) is not"

HEAD = """# Results

Negative log-likelihoods in nats, ± standard errors: over seeds where there are several, else over
test images. Active units in brackets. How far ours is from the published figure is given in
standard errors of both, of ours over seeds and test images, as if the images were others; they are
the same, and of a single seed it is not known how others differ. Δ is the difference, in pairs, to
the cell that the table holds it against; its error is missing where both are one run, or a single
seed was measured apart from the other. Tables of `ours / published` take of several records of a
cell that of the most test images, then of the largest K, passes and seeds, and the last version;
the lines below them say of every record how it was made, with the seconds of a training, beside
which the machine may have had other work. `iwae reproduce --page FILE.md --records
FOLDER` writes this page from the records that are named in it.
"""

GAINS = """\
IWAE gains less over the VAE here than in the paper, for our VAEs are better than the published
ones. Our Δ is the published one, plus what IWAE is worse here than published, minus what the VAE is
worse; better is negative. Ours − published is {} nats for the VAEs, and {} for IWAE.
"""

LENGTHS = """\
By the paper's optimiser a gain comes with training: in short schedules IWAE is behind the VAE. And
`dreg`, which the recipes of our tables use, makes the VAE better, too.

"""

Tables = Mapping[str, TableRecord]
"""Records of tables by file name."""

Measured = Mapping[tuple[str, str], RecordedCell]
"""Recorded cells by file and name."""


def page(directory: Path) -> str:
    """The page in Markdown of all records in a directory; `InputError` if there is none."""
    if not directory.is_dir():
        raise InputError(
            f"records = {directory} was given, which is not a directory; give that of the "
            f"files that `iwae reproduce --record` wrote."
        )
    found = {path.name: _read(path) for path in sorted(directory.glob("*.json"))}
    records_of = {file: record for file, record in found.items() if isinstance(record, TableRecord)}
    experiments = EXPERIMENTS | _own_tables(records_of)
    of = {
        name: {file: record for file, record in records_of.items() if record.experiment == name}
        for name in experiments
    }
    parts = [HEAD, _overview(experiments, of)]
    for name, experiment in experiments.items():
        parts.append(_table(name, experiment, of[name]))
        if name == "gain":
            parts += _by_length(of[name])
            parts += _gains(experiments["table1"], of["table1"])
    parts += [
        _other(file, record.experiment, record.content)
        for file, record in found.items()
        if isinstance(record, OtherRecord)
    ]
    return "\n".join(parts)


def _read(path: Path) -> Record:
    record = records.shown(path)
    if record is None:
        raise InputError(
            f"{path} was found among the records, but it is none of `iwae reproduce --record`; "
            f"take it out of there."
        )
    return record


def _own_tables(found: Tables) -> dict[str, Experiment]:
    """Tables that are none of this package, as far as their records tell."""
    own: dict[str, list[TableRecord]] = {}
    for record in found.values():
        if record.experiment not in EXPERIMENTS:
            own.setdefault(record.experiment, []).append(record)
    return {name: _own_table(name, records_of) for name, records_of in own.items()}


def _own_table(name: str, found: Sequence[TableRecord]) -> Experiment:
    cells = {
        cell.name: Cell(
            name=cell.name,
            settings=dict[str, Setting](),
            published=None if cell.published is None else _figure_of(cell.published),
            units=cell.published_units,
            against=cell.against,
        )
        for record in found
        for cell in record.cells
    }
    return Experiment(
        name=name,
        about="a table of one's own",
        source=next((record.source for record in found if record.source), "not known where"),
        recipe="",
        cells=tuple(cells.values()),
    )


def _figure_of(known: Known) -> Figure:
    value, error = known
    return value, UNKNOWN if error is None else error


def _overview(experiments: Mapping[str, Experiment], found: Mapping[str, Tables]) -> str:
    """How many cells of each table there is a record of."""
    heads = (
        "table",
        "published cells",
        "of them measured, by any schedule",
        "measured on other data",
    )
    lines = [_row(heads), _row(["---"] * len(heads))]
    for name, experiment in experiments.items():
        cells = {cell.name for cell in experiment.cells}
        known = {cell.name for cell in experiment.cells if cell.is_published}
        ours = {cell.name for record in found[name].values() for cell in record.cells}
        counts = (len(known), len(known & ours), len(ours - cells))
        lines.append(_row([name, *map(str, counts)]))
    return "\n".join([*lines, ""])


def _table(name: str, experiment: Experiment, found: Tables) -> str:
    """The published cells, each with every record of it; then the cells on other data."""
    known = any(cell.is_published for cell in experiment.cells)
    source = f"{'Published:' if known else 'After'} {experiment.source}."
    lines = [f"## {name}: {experiment.about}", "", source, ""]
    if not found:
        cells = ", ".join(f"`{cell.name}`" for cell in experiment.cells)
        return "\n".join([*lines, f"Not yet run: {cells}.", ""])
    of = {cell.name: cell for cell in experiment.cells}
    measured = {(file, c.name): c for file, r in found.items() for c in r.cells}
    lines += _glance(of, measured)
    heads = ("cell", "published", "ours", "ours − published", "Δ", "published Δ", "how", "record")
    lines += [_row(heads), _row(["---"] * len(heads))]
    others = [name for _, name in measured if name not in of]
    for cell_name in (*of, *dict.fromkeys(others)):
        entries = {file: c for (file, n), c in measured.items() if n == cell_name}
        published = _published(of.get(cell_name), of)
        if not entries:
            empty = [""] * (len(heads) - 3)
            lines.append(_row([f"`{cell_name}`", published[0], "not yet run", *empty]))
        for file, entry in entries.items():
            lines.append(_row(_entry(cell_name, entry, of, file, found[file])))
    return "\n".join([*lines, "", *_figures(of, measured)])


def _by_length(found: Tables) -> list[str]:
    """Δ of the columns of a table, by its rows."""
    deltas: dict[str, dict[str, str]] = {}
    for cell in (cell for record in found.values() for cell in record.cells):
        row, _, column = cell.name.rpartition("/")
        if cell.difference is not None and cell.against is not None:
            pair = f"`{column}` to `{cell.against.rpartition('/')[2]}`"
            deltas.setdefault(pair, {})[row] = with_error(*cell.difference)
    if not deltas:
        return []
    rows = list(dict.fromkeys(row for by_row in deltas.values() for row in by_row))
    lines = [_row(["Δ", *(f"`{row}`" for row in rows)]), _row(["---"] * (1 + len(rows)))]
    lines += [
        _row([pair, *(by_row.get(row, "") for row in rows)]) for pair, by_row in deltas.items()
    ]
    return [LENGTHS + "\n".join([*lines, ""])]


def _gains(experiment: Experiment, found: Tables) -> list[str]:
    """How far the gains of a table are from the published ones, and whose change makes them so."""
    of = {cell.name: cell for cell in experiment.cells}
    rows, every = [], []
    for file, record in found.items():
        nll = {cell.name: cell.nll[0] for cell in record.cells}
        for cell in experiment.cells:
            other = of.get(cell.against or "")
            if other is None or not {cell.name, other.name} <= nll.keys():
                continue
            if cell.published is None or other.published is None or cell.settings == other.settings:
                continue
            theirs, ours = cell.published[0], nll[cell.name]
            their_vae, our_vae = other.published[0], nll[other.name]
            apart = (theirs - their_vae, ours - our_vae, our_vae - their_vae, ours - theirs)
            signed = (f"{value:+.2f}" for value in apart)
            rows.append(_row([f"`{cell.name}` to `{other.name}`", *signed, f"`{file}`"]))
            every.append(apart[2:])
    if not rows:
        return []
    text = GAINS.format(
        *(f"{min(each):+.2f} to {max(each):+.2f}" for each in zip(*every, strict=True))
    )
    heads = ("cells", "published Δ", "our Δ", "ours − published, VAE", "IWAE", "record")
    table = [_row(heads), _row(["---"] * len(heads)), *rows]
    return ["\n".join([f"### The gains of {experiment.name}", "", text, *table, ""])]


def _glance(of: Mapping[str, Cell], entries: Measured) -> list[str]:
    """Ours / published as the paper has them, a row for each data set and number of layers."""
    ours: dict[str, RecordedCell] = {}
    for (_, name), entry in entries.items():
        if name not in ours or _weight(entry) >= _weight(ours[name]):
            ours[name] = entry
    places = [name.rpartition("/") for name in dict.fromkeys((*of, *ours))]
    rows, columns = (list(dict.fromkeys(place[i] for place in places)) for i in (0, 2))
    if any(cell.measures for cell in of.values()) or not all("/" in row for row in rows):
        return []

    def pair(name: str) -> str:
        own = _ours(ours[name]) if name in ours else "—"
        theirs, _ = _published(of.get(name), of)
        return f"{own} / {theirs}" if theirs else own

    lines = [_row(["ours / published", *(f"`{column}`" for column in columns)])]
    lines.append(_row(["---"] * (1 + len(columns))))
    lines += [_row([f"`{row}`", *(pair(f"{row}/{column}") for column in columns)]) for row in rows]
    return [*lines, ""]


def _weight(entry: RecordedCell) -> tuple[object, ...]:
    """The order by which one entry is preferred to another."""
    first, versions = entry.runs[0], " ".join(entry.runs[0].made_with)
    version = re.findall(r"\d+", versions.rpartition("iwae ")[2] or first.version or "")
    order = (first.n, first.k, first.epochs, len(entry.runs))
    return (*order, tuple(map(int, version)))


def _figures(of: Mapping[str, Cell], measured: Measured) -> list[str]:
    """Further metrics of each cell, beside the published ones."""
    heads = ("cell", "measured", "published", "ours", "record")
    theirs = lambda name, what: of[name].theirs(what) if name in of else ""
    lines = [
        _row([f"`{name}`", what, theirs(name, what), with_error(*figure), f"`{file}`"])
        for (file, name), entry in measured.items()
        for what, figure in entry.figures.items()
    ]
    return [_row(heads), _row(["---"] * len(heads)), *lines, ""] if lines else []


def _published(cell: Cell | None, of: Mapping[str, Cell]) -> tuple[str, str]:
    """Published NLL (units), and the difference to the cell it is compared with."""
    if cell is None or cell.published is None:
        return "", ""
    units = f" ({cell.units})" if cell.units else ""
    other = of.get(cell.against or "")
    known = None if other is None else other.published
    apart = "" if known is None else f"{cell.published[0] - known[0]:.2f}"
    return with_error(*cell.published) + units, apart


def _entry(
    name: str, entry: RecordedCell, of: Mapping[str, Cell], file: str, record: TableRecord
) -> list[str]:
    runs, first = entry.runs, entry.runs[0]
    how = [_epochs(entry, record), f"L_{first.k} of {first.n:,} images"]
    how += [f"seed{'s' * (len(runs) > 1)} {', '.join(str(run.seed) for run in runs)}"]
    how += _made_with(runs, record)
    how += [first.note] if first.note else []
    difference, cell = entry.difference, of.get(name)
    published, apart = _published(cell, of)
    more = ""
    if cell is not None and cell.published is not None:
        more = excess_in_words(runs, cell.published)
    delta = "" if difference is None else with_error(*difference)
    return [f"`{name}`", published, _ours(entry), more, delta, apart, ", ".join(how), f"`{file}`"]


def _epochs(entry: RecordedCell, record: TableRecord) -> str:
    """How long the runs were trained, and how."""
    before = f" after those of `{entry.after}`" if entry.after else ""
    seconds = [run.training_seconds for run in entry.runs if run.training_seconds]
    took = f" in {np.mean(seconds):,.0f} s" if seconds else ""
    return f"{entry.runs[0].epochs} passes{_stepping(entry, record)}{before}{took}"


def _ours(entry: RecordedCell) -> str:
    """NLL (active units), these layer by layer and their mean over seeds."""
    return f"{with_error(*entry.nll)} ({units_in_words(mean_units(entry.runs), '+')})"


def _stepping(entry: RecordedCell, record: TableRecord) -> str:
    """The optimiser, its learning rate and the stages, as far as the record or cell holds them."""
    settings = {**(record.settings or {}), **entry.settings}
    known = "optimizer" in settings and "learning_rate" in settings
    by = f" of {settings['optimizer']} at {settings['learning_rate']:g}" if known else ""
    stages = "" if entry.after else settings.get("stages", "")
    return f"{by} in stages `{stages}`" if stages else by


def _made_with(runs: Sequence[Result], record: TableRecord) -> list[str]:
    """Devices and versions of the trainings, and those of the evaluations if they were others."""
    trained = dict.fromkeys(part for run in runs for part in run.made_with)
    evaluated = dict.fromkeys(f"{run.device}, iwae {run.version or record.iwae}" for run in runs)
    others = [part for part in evaluated if part not in trained]
    return [*trained, *(f"evaluated on {part}" if trained else part for part in others)]


def _other(file: str, name: str, record: Mapping[str, Any]) -> str:
    """The section of a record that is not a table."""
    source = record.get("source")
    lines = [f"## {name}: `{file}`", ""]
    lines += [f"After {source}.", ""] if source else []
    if "rows" not in record:
        lines += [f"- {of}: {_measured(value)}" for of, value in record["measured"].items()]
        return "\n".join([*lines, ""])
    heads = ("data", "K", "proposal", "bound", "NLL", "Cov(w_i, w_j)", "Var(p̂)", "Var(log p̂)")
    lines += [_row(heads), _row(["---"] * len(heads))]
    for row in record["rows"]:
        figures = ("bound", "nll", "covariance", "variance", "log_variance")
        cells = ["" if row[of] is None else _measured(row[of]) for of in figures]
        lines.append(_row([row["dataset"], f"{row['k']}", row["name"], *cells]))
    settings, how = record["settings"], [f"Seeds: {len(record['seeds'])}"]
    how += [f"heads weighted by {settings['proposal_weights']}", record["device"]]
    if any(row["nll"] is not None for row in record["rows"]):
        how.insert(1, f"autoencoders after {settings['epochs']} passes")
        how.append(HEAVY)
    return "\n".join([*lines, "", f"{'; '.join(how)}.", ""])


def _measured(value: Any) -> str:
    """A figure to two digits of its error, a count, a number, or several of these by name."""
    match value:
        case {}:
            return ", ".join(f"{of} {_measured(v)}" for of, v in value.items())
        case [number, error] if error and 0 < error < math.inf:
            return to_its_error(number, error, 2)
        case [number, error]:
            return with_error(number, error, 3)
    return with_error(value, None, 3)


BAR = r"\|"
"""A bar that does not end a cell, as in E|log p̂ − E log p̂|."""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"
