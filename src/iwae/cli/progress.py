"""Progress bars and tables on the terminal."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from iwae._utils.formatting import excess_in_words, to_its_error, units_in_words, with_error
from iwae.cli.outputs import StandardError
from iwae.cli.terminal import visible
from iwae.data import FileStatus
from iwae.data import cells as tables
from iwae.data.detect import Detected
from iwae.estimators.diagnostics import Measurement, Slope
from iwae.evaluation.examples import Progress as Counter
from iwae.evaluation.trained import Evaluation
from iwae.experiments import comparisons
from iwae.experiments.against_time import Curve, Measure
from iwae.experiments.jobs import Failure, Job
from iwae.experiments.measured import Result
from iwae.experiments.rows import Row
from iwae.experiments.tables import Cell, Experiment
from iwae.runs import OverSeeds
from iwae.training.progress import TerminalBar


class _Console(Console):
    """A console that escapes control characters, without markup or emoji."""

    def render(self, *given: Any, **options: Any) -> Iterator[Segment]:
        for text, style, control in super().render(*given, **options):
            yield Segment(text if control else visible(text), style, control)


def _console(*, stderr: bool = False) -> Console:
    file = cast(IO[str], StandardError()) if stderr else None
    return _Console(file=file, markup=False, emoji=False)


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
        console=_console(stderr=True),
        transient=True,
    )


def _stop(bar: Progress) -> None:
    """Remove a bar from the screen; one that was never drawn leaves no empty line."""
    if bar.live.is_started:
        bar.stop()


@contextlib.contextmanager
def counting(what: str, *, quiet: bool = False) -> Iterator[Counter | None]:
    """A function that shows how many examples are done."""
    if quiet:
        yield None
        return
    bar = _bar()
    task = bar.add_task(what, total=None, figures="")

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, figures=f"{done:,}/{total:,} examples")

    try:
        yield show
    finally:
        _stop(bar)


class TrainingBars:
    """Progress bars of several runs."""

    def __init__(self, cells: int = 0):
        self.cells, self.started, self.ended = cells, 0, 0
        self.bar = _bar()

    def __enter__(self) -> "TrainingBars":
        return self

    def __exit__(self, *exception: object) -> None:
        _stop(self.bar)

    def made(self, name: str, result: Result | Failure) -> None:
        """Print that a cell has finished or failed."""
        self.ended += 1
        how = f"{result.nll:.2f} nats" if isinstance(result, Result) else result.message
        self.bar.console.print(f"{self.ended}/{self.cells} {name}: {how}", soft_wrap=True)

    def one(self, description: str) -> TerminalBar:
        """The progress bar of a run, as a callback."""
        return TerminalBar(description, self.bar)

    def cell(self, name: str, epochs: int) -> TerminalBar:
        """The progress bar of the next of `cells` runs, as a callback."""
        self.started += 1
        return self.one(f"{self.started}/{self.cells} {name}")


def print_evaluation(result: Evaluation) -> None:
    """Print the figures of an evaluation, one per line."""
    table = Table(show_header=False, box=None)
    rows = [
        ("data", f"{result.dataset}, {result.split}, {result.n:,} examples"),
        (f"NLL (L_{result.k})", f"{with_error(result.nll, result.nll_se)} nats"),
        ("bits per dimension", f"{result.bits_per_dim:.4f}"),
        ("ELBO", f"{result.elbo:.2f} nats"),
        ("reconstruction E[log p(x|h)]", f"{result.reconstruction:.2f} nats"),
        ("KL, per layer", f"{', '.join(f'{v:.2f}' for v in result.kl)} nats"),
        ("active units", units_in_words(result.active_units)),
        ("seconds", f"{result.seconds:.1f} on {result.device}"),
    ]
    if result.nll_without_inactive is not None:
        rows.append(("NLL without inactive units", f"{result.nll_without_inactive:.2f} nats"))
    if result.nll_only_used is not None:
        rows.append(("used units", units_in_words(result.used_units)))
        rows.append(("NLL of the used units alone", f"{result.nll_only_used:.2f} nats"))
    if result.note:
        rows.append(("note", result.note))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    _console().print(table)


def print_replicas(result: OverSeeds) -> None:
    """Print NLL, ELBO and active units of every seed, and their means."""
    first = result.evaluations[0]
    table = Table("seed", f"NLL (L_{first.k}, nats)", "ELBO", "active units")
    for seed, e in zip(result.seeds, result.evaluations, strict=True):
        units = units_in_words(e.active_units)
        table.add_row(f"{seed}", with_error(e.nll, e.nll_se), f"{e.elbo:.2f}", units)
    table.add_section()
    counts = result.active_units
    units = units_in_words(None) if counts is None else " + ".join(with_error(*u) for u in counts)
    table.add_row("mean", with_error(*result.nll), with_error(*result.elbo), units)
    console = _console()
    console.print(table)
    console.print(
        f"{first.dataset}, {first.split}, {first.n:,} examples; ± is a standard error over "
        "examples, of the means over seeds."
    )
    _print_notes((e.dataset, e.note) for e in result.evaluations)


def _print_notes(notes: Iterable[tuple[str, str]]) -> None:
    """Print the notes on results, (data set, note), once each."""
    for dataset, note in dict.fromkeys(notes):
        if note:
            Console().print(Text(f"Note on {dataset}: {note}."))


def print_files(found: list[FileStatus]) -> None:
    """Print the files of data sets, one per line, and where they were looked for."""
    names = ("data set", "file", "state", "where", "note")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for f in found:
        table.add_row(*map(Text, (f.dataset, f.file, f.state, str(f.path or "—"), f.detail)))
    console = _console()
    console.print(table)
    for place in dict.fromkeys(place for f in found for place in f.looked_in):
        console.print(Text(f"looked in {place}"))


def print_schema(found: Detected, table: tables.Table) -> None:
    """Print the columns of a table: types, models, missing values, ranges, and reasons."""
    names = ("column", "type", "modelled as", "missing", "values", "why")
    shown = Table(*(Column(name, overflow="fold") for name in names))
    for column in found.schema.columns:
        cells = table.columns[table.names.index(column.name)]
        gaps = f"{cells.gaps.mean():.1%}" if cells.gaps.any() else "—"
        described = (column.name, column.type, column.model, gaps, column.range_of(cells))
        shown.add_row(*map(Text, (*described, found.reasons[column.name])))
    console = _console()
    console.print(shown)
    for name in found.unusable:
        console.print(Text(f"Not usable: {found.reasons[name]}"))
    if left_out := [name for name in found.schema.ignored if name not in found.unusable]:
        console.print(Text(f"left out: {', '.join(left_out)}"))
    console.print(Text(f"{len(table):,} rows; {found.schema.measure}"))


def print_comparison(results: list[comparisons.Result]) -> None:
    """Print the table of a comparison."""
    first = results[0].evaluation
    table = Table(
        "model", f"NLL (L_{first.k}, nats)", f"Δ to {results[0].name}", "active units", "s"
    )
    for r in results:
        e = r.evaluation
        table.add_row(
            Text(r.name),
            with_error(e.nll, e.nll_se),
            "" if r.difference is None else with_error(*r.difference),
            units_in_words(e.active_units),
            f"{r.seconds:.0f}",
        )
    console = _console()
    console.print(table)
    console.print(
        f"{first.n:,} test images of {first.dataset}; ± is a standard error over "
        "images, of Δ over paired differences; s is the training time."
    )
    _print_notes((r.evaluation.dataset, r.evaluation.note) for r in results)


def print_curves(curves: Sequence[Curve], measure: Measure, targets: Sequence[float] = ()) -> None:
    """Print a line for each recipe: minutes, NLL, and minutes to each target."""
    table = Table("recipe", "runs", "minutes", f"NLL (L_{measure.k}, nats)", "range")
    for target in targets:
        table.add_column(f"minutes to {target:g}")
    for curve in curves:
        reached = [curve.reaching(target) for target in targets]
        table.add_row(
            Text(curve.name),
            f"{len(curve.runs)}",
            "" if curve.minutes is None else f"{curve.minutes:.2f}",
            curve.nll_in_words,
            "" if curve.spread is None else f"{curve.spread:.2f}",
            *("not reached" if minutes is None else f"{minutes:.2f}" for minutes in reached),
        )
    console = _console()
    console.print(table)
    console.print(
        f"At most {measure.limit:,} examples of the split {measure.split} of "
        f"{curves[0].config.data.dataset}; medians and ranges over runs; ± is a standard error "
        f"over examples; minutes are those of training alone."
    )


def print_experiments(experiments: dict[str, tuple[str, int | None]]) -> None:
    """Print the experiments that can be reproduced, and their numbers of cells."""
    table = Table("experiment", "cells", "what")
    for name, (about, cells) in experiments.items():
        table.add_row(name, "" if cells is None else f"{cells}", about)
    _console().print(table)


def print_cells(rows: list[Row]) -> None:
    """Print the cells of a table with their published figures and their state."""
    table = Table(Column("cell", no_wrap=True), "published", "state")
    for row in rows:
        table.add_row(Text(row.cell.name), _published(row.cell), Text(row.state))
    _console().print(table)


def print_table(rows: list[Row], experiment: Experiment) -> None:
    """Print our figures beside the published ones."""
    known = any(row.cell.published is not None for row in rows)
    table = Table(Column("cell", no_wrap=True), "NLL (units)", "Δ", title=experiment.about)
    for name in ("published", "ours − published", "published Δ") if known else ():
        table.add_column(name)
    published = {row.cell.name: row.cell.published for row in rows}
    for row in rows:
        other = published.get(row.cell.against or "")
        apart = other and row.cell.published and row.cell.published[0] - other[0]
        theirs = (
            _published(row.cell),
            excess_in_words(row.results, row.cell.published)
            if row.results and row.cell.published
            else "",
            "" if apart is None else f"{apart:.2f}",
        )
        table.add_row(
            Text(row.cell.name),
            f"{with_error(*row.nll)} ({row.active_units})" if row.results else Text(row.state),
            "" if row.difference is None else with_error(*row.difference),
            *(theirs if known else ()),
        )
    console = _console()
    console.print(table)
    if any(row.figures for row in rows):
        console.print(_figures(rows))
    lines = [_how(row) for row in rows if row.results]
    if lines:
        alike = lines[0] if len(set(lines)) == 1 else "; ".join(dict.fromkeys(lines))
        over = "seeds" if any(len(row.results) > 1 for row in rows) else "test images"
        lines = [f"Ours: {alike}; nats, ± standard errors over {over}."]
    against = {row.cell.name: row.cell.against for row in rows if row.difference is not None}
    if against:
        to = ", ".join(f"{a} to {b}" for a, b in against.items())
        lines.append(f"Δ: {to}, paired.")
    lines += [f"Published: {experiment.source}."] if known else []
    console.print(*lines, sep="\n")
    _print_notes((result.dataset, result.note) for row in rows for result in row.results)


def _figures(rows: list[Row]) -> Table:
    """The other metrics of each cell, beside the published ones."""
    table = Table(Column("cell", no_wrap=True), "measured", "ours", "published")
    for row in rows:
        for name, figure in row.figures.items():
            table.add_row(
                Text(row.cell.name), Text(name), with_error(*figure), row.cell.theirs(name)
            )
    return table


def _how(row: Row) -> str:
    first = row.results[0]
    n = f"L_{first.k} of {first.n:,} test images"
    seeds = ", ".join(map(str, row.seeds))
    before = f" after those of {row.cell.after}" if row.cell.after else ""
    return f"{first.epochs} epochs{before}, {n}, seed{'s' * (len(row.seeds) > 1)} {seeds}"


def _published(cell: Cell) -> str:
    if cell.published is None:
        return ""
    return with_error(*cell.published) + (f" ({cell.units})" if cell.units else "")


def print_estimate(jobs: dict[str, Job], seconds: dict[Job, float | None], workers: int) -> None:
    """Print the unfinished jobs and estimates of their time, where they are known."""
    table = Table(Column("run", no_wrap=True), "takes about")
    named = {job: name for name, job in reversed(jobs.items())}
    for job, each in seconds.items():
        takes = "unknown until its data are downloaded" if each is None else _duration(each)
        table.add_row(Text(named[job]), takes)
    console = _console()
    console.print(table)
    done, known = len(named) - len(seconds), [s for s in seconds.values() if s is not None]
    lines = [f"{len(seconds)} runs to make, {done} done."]
    missing = {t.config.data.dataset: None for t, each in seconds.items() if each is None}
    if known or not missing:
        shared = f"; {workers} workers share the processors" if workers > 1 else ""
        others = " for those whose data are available" if missing else ""
        about = _duration(sum(known))
        lines.append(f"About {about} one after the other, with compilation{others}{shared}.")
    if missing:
        lines.append(
            f"The data of {', '.join(missing)} are not downloaded yet; the command without "
            f"--dry-run downloads them first."
        )
    console.print(*lines)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def print_hiwae(rows: list[Any], seeds: int) -> None:
    """Print bounds, NLL and moments of the weights of every proposal, one table per data set."""
    console = _console()
    for dataset in dict.fromkeys(row.dataset for row in rows):
        names = ("bound", "NLL", "Cov(w_i, w_j)", "Var(p̂)", "Var(log p̂)")
        table = Table("K", Column("proposal", no_wrap=True), *names, title=dataset)
        for row in rows:
            if row.dataset != dataset:
                continue
            table.add_row(
                f"{row.k}",
                Text(row.name),
                to_its_error(*row.bound),
                "–" if row.nll is None else to_its_error(*row.nll),
                to_its_error(*row.covariance),
                to_its_error(*row.variance),
                to_its_error(*row.log_variance),
                end_section=row.name == rows[-1].name,
            )
        console.print(table)
    console.print(
        f"Seeds: {seeds}; ± is a standard error over them. Bound (L_K at the K of the row) and NLL "
        f"in nats; p̂ = (1/K) Σ w_i, with weights relative to p(x), which is 1 in the plane and "
        f"exp(−NLL) elsewhere, where Cov and Var(p̂) are sums over a few huge weights."
    )


def print_gradients(measured: list[Measurement], slopes: list[Slope]) -> None:
    """Print SNR, variance and bias of every estimator, then the exponent of SNR in K."""
    table = Table("estimator", "K", "of", "SNR", "‖E g‖", "tr Cov g", "relative bias²")
    for m in measured:
        table.add_row(
            m.estimator,
            f"{m.k}",
            {"theta": "θ", "phi": "φ"}[m.parameters],
            f"{m.snr:.3g} ± {m.snr_se:.1g}",
            f"{m.norm:.3g}",
            f"{m.variance:.3g}",
            "–" if math.isnan(m.bias) else f"{m.bias:.2g} ± {m.bias_se:.1g}",
        )
    console = _console()
    console.print(table)
    for s in slopes:
        name = {"theta": "θ", "phi": "φ"}[s.parameters]
        console.print(
            f"{s.estimator}, {name}: SNR ∝ K^({s.slope:.2f} ± {s.slope_se:.2f}), {s.points} K"
        )
    console.print(
        f"{measured[0].repeats:,} draws of each gradient; bias against the mean of "
        f"{measured[0].reference}, which is unbiased for a smooth bound; rws and aisle follow a "
        f"divergence of their own."
    )


def print_demo(results: list[comparisons.Result]) -> None:
    """Print the table of the demonstration."""
    first = results[0].evaluation
    table = Table("model", f"NLL (L_{first.k}, nats)", "Δ to the VAE, K = 1", "active units")
    for r in results:
        e = r.evaluation
        table.add_row(
            r.name,
            with_error(e.nll, e.nll_se),
            "" if r.difference is None else with_error(*r.difference),
            units_in_words(e.active_units),
        )
    console = _console()
    console.print(table)
    console.print(
        f"{first.n} test images of digits; ± is a standard error over images, "
        "of Δ over paired differences."
    )
