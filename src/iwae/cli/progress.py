"""What the terminal shows: progress bars and tables."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from iwae._utils.formatting import excess_in_words, units_in_words
from iwae.cli.outputs import StandardError
from iwae.cli.terminal import visible
from iwae.data import FileStatus
from iwae.estimators.diagnostics import Measurement, Slope
from iwae.evaluation.evaluator import Progress as Counter
from iwae.evaluation.trained import Evaluation
from iwae.experiments.tables import Experiment
from iwae.runs import OverSeeds
from iwae.training.progress import TerminalBar


class _Console(Console):
    """A console on which content is `visible`, and brackets and colons are themselves."""

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
    """Take a bar off the screen; one that was never drawn leaves no empty line."""
    if bar.live.is_started:
        bar.stop()


@contextlib.contextmanager
def counting(what: str, *, quiet: bool = False) -> Iterator[Counter | None]:
    """A callback that shows how many examples are done."""
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
    """Bars of several runs, one below the other."""

    def __init__(self, cells: int = 0):
        self.cells, self.started, self.ended = cells, 0, 0
        self.bar = _bar()

    def __enter__(self) -> "TrainingBars":
        return self

    def __exit__(self, *exception: object) -> None:
        _stop(self.bar)

    def made(self, name: str, result: Any) -> None:
        """Say that a cell has ended."""
        self.ended += 1
        how = f"{result['nll']:.2f} nats" if isinstance(result, dict) else result.sentence
        self.bar.console.print(f"{self.ended}/{self.cells} {name}: {how}", soft_wrap=True)

    def one(self, description: str) -> TerminalBar:
        """The callback of a run."""
        return TerminalBar(description, self.bar)

    def cell(self, name: str, epochs: int) -> TerminalBar:
        """The callback of the next cell of `cells`."""
        self.started += 1
        return self.one(f"{self.started}/{self.cells} {name}")


def nats(value: float, error: float) -> str:
    """A value with its standard error, e.g. 86.76 ± 0.25; a count as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if math.isnan(error) else f"{value:.2f} ± {error:.2f}"


def measured(value: float, error: float) -> str:
    """A value to the leading digit of its standard error, e.g. −0.093 ± 0.002."""
    if not 0 < error < math.inf:
        return f"{value:.4g}"
    digits = max(0, -math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def print_evaluation(result: Evaluation) -> None:
    """The figures of an evaluation, a line each."""
    table = Table(show_header=False, box=None)
    rows = [
        ("data", f"{result.dataset}, {result.split}, {result.n:,} examples"),
        (f"NLL (L_{result.k})", f"{nats(result.nll, result.nll_se)} nats"),
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
    """NLL and active units of every seed, and their means."""
    first = result.evaluations[0]
    table = Table("seed", f"NLL (L_{first.k}, nats)", "ELBO", "active units")
    for seed, e in zip(result.seeds, result.evaluations, strict=True):
        units = units_in_words(e.active_units)
        table.add_row(f"{seed}", nats(e.nll, e.nll_se), f"{e.elbo:.2f}", units)
    table.add_section()
    counts = result.active_units
    units = units_in_words(None) if counts is None else " + ".join(nats(*u) for u in counts)
    table.add_row("mean", nats(*result.nll), nats(*result.elbo), units)
    console = _console()
    console.print(table)
    console.print(
        f"{first.dataset}, {first.split}, {first.n:,} examples; ± is a standard error over "
        "examples, of the means over seeds."
    )
    _print_notes([e.to_json() for e in result.evaluations])


def _print_notes(results: Iterable[dict[str, Any]]) -> None:
    """What results must carry, once for each data set."""
    noted = dict.fromkeys((r["dataset"], r["note"]) for r in results if r.get("note"))
    for dataset, note in noted:
        Console().print(Text(f"Note on {dataset}: {note}."))


def print_files(found: list[FileStatus]) -> None:
    """The files of data sets, a line each, and where they were looked for."""
    names = ("data set", "file", "state", "where", "remark")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for f in found:
        table.add_row(*map(Text, (f.dataset, f.file, f.state, str(f.path or "—"), f.detail)))
    console = _console()
    console.print(table)
    for place in dict.fromkeys(place for f in found for place in f.looked_in):
        console.print(Text(f"looked in {place}"))


def print_comparison(results: list[Any]) -> None:
    """The table of a comparison."""
    k, n = (results[0].evaluation[name] for name in ("k", "n"))
    table = Table("model", f"NLL (L_{k}, nats)", f"Δ to {results[0].name}", "active units", "s")
    for r in results:
        e = r.evaluation
        table.add_row(
            Text(r.name),
            nats(e["nll"], e["nll_se"]),
            "" if r.difference is None else nats(*r.difference),
            units_in_words(e["active_units"]),
            f"{r.seconds:.0f}",
        )
    console = _console()
    console.print(table)
    console.print(
        f"{n:,} test images of {results[0].evaluation['dataset']}; ± is a standard error over "
        "images, of Δ over paired differences; s is the training time."
    )
    _print_notes(r.evaluation for r in results)


def print_experiments(experiments: dict[str, tuple[str, int | None]]) -> None:
    """What can be reproduced, and of how many cells."""
    table = Table("experiment", "cells", "what")
    for name, (about, cells) in experiments.items():
        table.add_row(name, "" if cells is None else f"{cells}", about)
    _console().print(table)


def print_cells(rows: list[Any]) -> None:
    """The cells of a table, what was published, and what there is of them."""
    table = Table(Column("cell", no_wrap=True), "published", "state")
    for row in rows:
        table.add_row(Text(row.cell.name), _published(row.cell), Text(row.state))
    _console().print(table)


def print_table(rows: list[Any], experiment: Experiment) -> None:
    """Our figures beside the published ones."""
    known = any(row.cell.published is not None for row in rows)
    table = Table(Column("cell", no_wrap=True), "NLL (units)", "Δ", title=experiment.about)
    for name in ("published", "ours − published", "published Δ") if known else ():
        table.add_column(name)
    published = {row.cell.name: row.cell.published for row in rows}
    for row in rows:
        other = published.get(row.cell.against)
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
            f"{nats(*row.nll)} ({row.active_units})" if row.results else Text(row.state),
            "" if row.difference is None else nats(*row.difference),
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
    _print_notes(result for row in rows for result in row.results)


def _figures(rows: list[Any]) -> Table:
    """What else was measured of each cell, beside what was published."""
    table = Table(Column("cell", no_wrap=True), "measured", "ours", "published")
    for row in rows:
        for name, figure in row.figures.items():
            table.add_row(Text(row.cell.name), Text(name), nats(*figure), row.cell.theirs(name))
    return table


def _how(row: Any) -> str:
    first = row.results[0]
    n = f"L_{first['k']} of {first['n']:,} test images"
    seeds = ", ".join(map(str, row.seeds))
    before = f" after those of {row.cell.after}" if row.cell.after else ""
    return f"{first['passes']} passes{before}, {n}, seed{'s' * (len(row.seeds) > 1)} {seeds}"


def _published(cell: Any) -> str:
    if cell.published is None:
        return ""
    return nats(*cell.published) + (f" ({cell.units})" if cell.units else "")


def print_estimate(tasks: dict[str, Any], seconds: dict[Any, float | None], workers: int) -> None:
    """Which tasks are left, and about how long each and all of them take, where that is known."""
    table = Table(Column("run", no_wrap=True), "takes about")
    named = {task: name for name, task in reversed(tasks.items())}
    for task, each in seconds.items():
        takes = "unknown until its data are here" if each is None else _duration(each)
        table.add_row(Text(named[task]), takes)
    console = _console()
    console.print(table)
    done, known = len(named) - len(seconds), [s for s in seconds.values() if s is not None]
    said = [f"{len(seconds)} runs to make, {done} done."]
    missing = {t.config.data.dataset: None for t, each in seconds.items() if each is None}
    if known or not missing:
        shared = f"; {workers} workers share the processors" if workers > 1 else ""
        others = " for those whose data are here" if missing else ""
        about = _duration(sum(known))
        said.append(f"About {about} one after the other, with compilation{others}{shared}.")
    if missing:
        said.append(
            f"The data of {', '.join(missing)} are not here yet: the command without --dry-run "
            f"downloads them first."
        )
    console.print(*said)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def print_dependence(rows: list[Any], seeds: int) -> None:
    """Bounds, NLL and the moments of weights of every proposal, a table for each data set."""
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
                measured(*row.bound),
                "–" if row.nll is None else measured(*row.nll),
                measured(*row.covariance),
                measured(*row.variance),
                measured(*row.log_variance),
                end_section=row.name == rows[-1].name,
            )
        console.print(table)
    console.print(
        f"Seeds: {seeds}; ± is a standard error over them. Bound (L_K at the K of the row) and NLL "
        f"in nats; p̂ = (1/K) Σ w_i, with weights relative to p(x), which is 1 in the plane and "
        f"exp(−NLL) elsewhere, where Cov and Var(p̂) are sums over a few huge weights."
    )


def print_gradients(measured: list[Measurement], slopes: list[Slope]) -> None:
    """SNR, variance and bias of every estimator, then how SNR grows with K."""
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


def print_demo(results: list[Any]) -> None:
    """The table of the demonstration."""
    k = results[0].evaluation["k"]
    table = Table("model", f"NLL (L_{k}, nats)", "Δ to the VAE, K = 1", "active units")
    for r in results:
        e = r.evaluation
        table.add_row(
            r.name,
            nats(e["nll"], e["nll_se"]),
            "" if r.difference is None else nats(*r.difference),
            units_in_words(e["active_units"]),
        )
    console = _console()
    console.print(table)
    console.print(
        f"{results[0].evaluation['n']} test images of digits; ± is a standard error over images, "
        "of Δ over paired differences."
    )
