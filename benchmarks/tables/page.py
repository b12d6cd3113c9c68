"""`python -m benchmarks.tables.page`: docs/tabular.md from the records in results/tables."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.markdown import number, section
from benchmarks.tables import anomalies, density, imputation, ours, record, speed
from benchmarks.tables.densities import COMPONENTS
from benchmarks.tables.imputers import DONORS, ROUNDS, TREES
from benchmarks.tables.record import Figure, Record

PAGE = Path("docs/tabular.md")

HEAD = """\
# Tables beside other models

`python -m benchmarks.tables.density`, `.imputation` and `.anomalies` measure what follows, and
`python -m benchmarks.tables.page` writes this page from their records in `{folder}`. Figures are
means over splits or masks ± standard errors; a contestant without a figure was not measured.
`{name}` is `iwae.IWAE` or `iwae.IWAEImputer` with no setting but the seed. In brackets: seconds,
beside which the machine may have had other work. The best figures are bold, and those within a
standard error of the best, in pairs over splits or masks.
"""

DENSITY = """\
The mean log-likelihood of the rows of a test split (80 % of the rows train, 20 % test), in nats per
row and in the user's own units. Rivals are fitted on standardised rows: a single Gaussian, a
mixture of Gaussians with full covariances and as many components (1 to {components}) as BIC
chooses, and a kernel density with the bandwidth of a five-fold cross-validation. Where all values
of a column are whole, or there are two, it counts by probabilities: rivals see it with uniform
noise u of one step, E[log p(x + u)] + log step, which is at most the log-probability of the cell;
otherwise a mixture would put a spike of any height on a repeated value. A level that training never
saw counts as missing under ours: a value or two of digits in some splits.
"""

SEEDS = """\
The log-likelihood of one test split in nats per row, by `IWAE` fitted on the rest with other seeds
(`python -m benchmarks.tables.density --seeds`).
"""

IMPUTATION = """\
The protocol of HI-VAE (Nazábal et al. 2020) with its masks: the normalised error averaged over all
columns, then by kind; for `sklearn/…` with values missing completely at random. The types of the
columns are given, as in the paper. Neighbours are sought among {donors} rows, and forests ({trees}
trees, {rounds} rounds) learn from as many, or from all; those by default have 100 trees and 10
rounds.
"""

COVERAGE = """\
The share of missing real and positive values of {shown} rows inside central intervals of {draws}
imputations, in per cent.
"""

MASKING = """\
Values above the mean are missing in the first half of the columns: root mean squared error in
standard deviations, over {turns} seeds. `--missingness self-masking` learns whether high or low
values go missing, and can take it the wrong way round; `self-masking-high` is
told that it is high ones (`python -m benchmarks.tables.imputation self-masking`).
"""

ANOMALIES = """\
A class that training never saw, and as many new rows of the others. A likelihood also tells simple
rows from complex ones, so that rows of another kind may have a higher one than those of training
(Nalisnick et al. 2019). Its ratio to the marginals of training, log p(x) − Σ_j log p_j(x_j), leaves
that out, and with it what is odd in a column alone.
"""


SPEED = """\
`python -m benchmarks.tables.speed`: rows of 30 positive columns, in a process that has compiled
nothing before; {rows} of them for the fits. The search is over {search}.
"""


def main() -> None:
    PAGE.write_text(rendered())


def rendered() -> str:
    """The page, with a section for each record that is there."""
    sections = [HEAD.format(folder=record.FOLDER, name=ours.NAME)]
    writers: dict[str, Callable[[Record], Iterator[str]]] = {
        density.NAME: of_density,
        imputation.NAME: of_imputation,
        anomalies.NAME: of_anomalies,
        speed.NAME: of_speed,
    }
    for name, write in writers.items():
        if record.path_of(name).exists():
            sections += write(record.read(name))
    return "\n".join(text for text in sections if text)


def of_density(found: Record) -> Iterator[str]:
    yield table("Density", found, found.cases(), density.MEASURE, largest=True, digits=2)
    yield DENSITY.format(components=max(COMPONENTS))
    rows = []
    for case in found.cases():
        values = found.values(case, ours.NAME, density.BY_SEED)
        if len(values) > 1:
            numbers = (values.min(), values.max(), np.ptp(values))
            rows.append([case, str(len(values)), *(f"{value:.2f}" for value in numbers)])
    yield section("Spread over seeds", ["", "fits", "lowest", "highest", "apart"], rows)
    if rows:
        yield SEEDS


def of_imputation(found: Record) -> Iterator[str]:
    masks = [case for case in found.cases() if "%" in case]
    for kind in ("mean", "numeric", "categorical", "ordinal"):
        title = "Imputation" if kind == "mean" else f"Imputation, {kind} columns"
        yield table(title, found, masks, f"{kind} error", largest=False, digits=3)
        if kind == "mean":
            yield imputation_note()
    yield from of_intervals(found, masks)
    hidden = [case for case in found.cases() if case.endswith("self-masking")]
    title = "Values missing by their own size"
    yield table(title, found, hidden, "error", largest=False, digits=3)
    if hidden:
        turns = max(len(found.values(case, "MIWAE", "error")) for case in hidden)
        yield MASKING.format(turns=turns)


def imputation_note() -> str:
    return IMPUTATION.format(donors=DONORS, trees=TREES, rounds=ROUNDS)


def of_intervals(found: Record, cases: list[str]) -> Iterator[str]:
    """How often intervals hold the value."""
    levels = list(imputation.LEVELS)
    rows = []
    for case in cases:
        each = [found.values(case, ours.NAME, f"coverage of {level} %") for level in levels]
        if all(map(len, each)):
            rows.append([case, *(shown(100 * values, 1) for values in each)])
    yield section("Multiple imputation", ["", *(f"{level} %" for level in levels)], rows)
    if rows:
        yield COVERAGE.format(shown=imputation.SHOWN, draws=imputation.DRAWS)


def of_anomalies(found: Record) -> Iterator[str]:
    for measure in ("ROC-AUC", "AP"):
        title = f"Anomalies, {measure}"
        yield table(title, found, found.cases(), measure, largest=True, digits=3)
    yield ANOMALIES


def of_speed(found: Record) -> Iterator[str]:
    rows = [[of, shown(found.values(of, ours.NAME, "seconds"), 1)] for of in found.cases()]
    yield section("Time", ["", "seconds"], rows)
    yield SPEED.format(**found.settings)


def table(
    title: str, found: Record, cases: list[str], measure: str, *, largest: bool, digits: int
) -> str:
    """A row for each case, a column for each contestant."""
    measured = {f.by for f in found.figures if f.measure == measure and f.of in cases}
    every = [by for case in found.cases() for by in found.contestants(case)]
    contestants = [by for by in dict.fromkeys(every) if by in measured]
    rows = []
    for case in cases:
        each = [found.of(case, by, measure) for by in contestants]
        if any(each):
            rows.append([case, *compared(each, 1 if largest else -1, digits)])
    return section(title, ["", *contestants], rows)


def compared(each: list[list[Figure]], sign: int, digits: int) -> Iterator[str]:
    """The figures of contestants in one case, those that no other clearly beats in bold."""
    means = [sign * float(np.mean([f.value for f in of] or [-sign * math.inf])) for of in each]
    best = each[int(np.argmax(means))]
    for of in each:
        if not of:
            yield ""
            continue
        seconds = np.mean([f.seconds for f in of])
        text = f"{shown(np.array([f.value for f in of]), digits)} ({number(float(seconds))} s)"
        yield f"**{text}**" if is_level(of, best, sign) else text


def is_level(of: list[Figure], best: list[Figure], sign: int) -> bool:
    """Whether figures are within a standard error of the best, in pairs over their turns."""
    values = {f.turn: f.value for f in best}
    lags = np.array([sign * (values[f.turn] - f.value) for f in of if f.turn in values])
    if of is best or not len(lags):
        return of is best
    mean, error = record.mean_and_error(lags)
    return mean <= (0.0 if math.isnan(error) else error)


def shown(values: np.ndarray, digits: int) -> str:
    """The mean over turns ± its standard error."""
    mean, error = record.mean_and_error(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


if __name__ == "__main__":
    main()
