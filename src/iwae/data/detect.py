"""The type of each column of a table, decided from its training values, with the reason.

A user's decisions, in code or in a TOML file, come first; what they leave open is decided here.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from iwae.data.cells import DATES, Cells, Table, Value, of_column, refuse, repr_of
from iwae.data.columns import listed
from iwae.data.schema import CODED, IGNORED, TYPES, Column, ColumnType, Schema, number_of
from iwae.errors import InputError, nearest, within

MOST_LEVELS = 1000
"""Largest number of categories of a column."""

LEAST_TEXT = 50
"""Words are text, such as names, if they are more than this and more than half the values."""

ORDINAL_LEVELS, PER_LEVEL = 32, 10
"""Whole numbers are ordinal if they have at most so many levels, and so many rows for each."""

FEW_LEVELS = 12
"""Of more levels than these, the lowest has to be 0 or 1, as of scores: others may be ages."""

ZEROS = 0.05
"""Least share of exact zeros to model them by a probability of their own."""

LARGEST_COUNT = 1 << 24
"""Whole numbers up to here are exact in float32."""

CLEARLY = 3.0
"""Standard errors of a difference of log-likelihoods from which on it decides against positive."""

FAR = 10.0
"""Standard deviations above 0 from which on a log-normal is a Normal, but for the digits of its
logarithms."""

MARGIN = 0.25
"""Nats for each value other than 0 by which a density must suit whole numbers better."""

NOISE = 1e-12
"""Relative difference of two numbers that differ only by float64's rounding."""

DATE = re.compile(r"(\d{4}([-/.])\d\d?\2\d\d?|\d\d?([-/.])\d\d?\3\d{4})([ T].*)?")
"""A date with a year of four digits, and perhaps a time."""

Wishes = Mapping[str, Mapping[str, object]]
"""What the user says of columns, by name: any fields of `Column`, or the type "ignored"."""

Decisions = Schema | Mapping[str, object] | str | Path
"""A whole schema; or for some columns a type, or a mapping of fields of `Column`; or the path of a
TOML file with a table for each such column."""


@dataclass(frozen=True)
class Detected:
    """A schema, with the reason for each column."""

    schema: Schema
    reasons: Mapping[str, str]
    unusable: tuple[str, ...] = ()
    """Names of ignored columns that no model can take, for the reason that is given."""


def wishes_of(given: Decisions | None) -> Schema | Wishes:
    """What the user decided: a whole schema, or fields by column.

    Raises InputError for a file that cannot be read, and for unknown fields.
    """
    if given is None:
        return {}
    if isinstance(given, Schema):
        return given
    if isinstance(given, str | Path):
        return _read(Path(given).expanduser())
    if not isinstance(given, Mapping):
        what = f"schema is a {type(given).__name__}"
        raise InputError(f"{what}: give types by column, a Schema, or the path of a .toml file.")
    return _checked(
        {str(n): {"type": v} if isinstance(v, str) else v for n, v in given.items()}, "schema"
    )


def _read(path: Path) -> Wishes:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"The schema {path} cannot be read: {why}.") from None
    try:
        return _checked(tomllib.loads(text), str(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The schema {path} is not valid TOML: {error}.") from None


KINDS: dict[str, tuple[type, ...]] = {
    "type": (str,),
    "categories": (list, tuple),
    "zeros": (bool,),
    "low": (int, float),
    "high": (int, float),
    "resolution": (int, float),
    "likelihood": (str,),
    "whole": (bool,),
}
"""The types of a column's fields in a file."""


def _checked(given: Mapping[str, Any], where: str) -> Wishes:
    """The wishes; InputError for an entry that is no table of known fields."""
    for name, entry in given.items():
        if not isinstance(entry, Mapping):
            what = f"{where} gives {name} = {entry!r}"
            raise InputError(
                f"{what}: give a table of fields for a column, such as type = 'count'."
            )
        for field, value in entry.items():
            if field not in KINDS:
                what = f"{where} has an unknown entry {field!r} for column {name!r}"
                raise InputError(f"{what}; {nearest(field, list(KINDS))}.")
            number = KINDS[field] == (int, float)
            if not isinstance(value, KINDS[field]) or (number and isinstance(value, bool)):
                what = f"{where} gives {field} = {value!r} for column {name!r}"
                raise InputError(f"{what}: give {_in_words(field)}.")
        kind = entry.get("type")
        if kind is not None and kind not in (*TYPES, IGNORED):
            what = f"{where} gives column {name!r} the type {kind!r}, which is unknown"
            raise InputError(f"{what}; {nearest(str(kind), [*TYPES, IGNORED])}.")
        for value in entry.get("categories", ()):
            if not isinstance(value, Value):
                what = f"{where} gives column {name!r} the category {value!r}"
                raise InputError(f"{what}: give words, numbers or truth values.")
    return {str(name): dict(entry) for name, entry in given.items()}


def _in_words(field: str) -> str:
    words = {(str,): "a string", (bool,): "true or false", (int, float): "a number"}
    return words.get(KINDS[field], "a list of its categories")


def detect(
    table: Table,
    given: Decisions | None = None,
    *,
    rows: np.ndarray | None = None,
    others: Sequence[Table] = (),
    where: str = "The table",
    tolerant: bool = False,
) -> Detected:
    """The schema of a table, with reasons.

    Args:
        table: the table of the training rows, whose other rows the types must admit as well.
        given: the user's decisions.
        rows: the training rows, from which categories and resolutions are taken. Default: all.
        others: further tables whose numbers the types must admit.
        where: how messages call the table.
        tolerant: whether to ignore columns that no model can take.

    Raises:
        InputError: for a column that no model can take, unless `tolerant`, and decisions that do
            not fit their column.
    """
    wishes = wishes_of(given)
    if isinstance(wishes, Schema):
        return Detected(wishes, dict.fromkeys(wishes.names, "given"))
    if unknown := [name for name in wishes if name not in table.names]:
        what = f"The schema names {listed(unknown)}, which {within(where)} lacks"
        raise InputError(f"{what}; {nearest(unknown[0], list(table.names))}.")
    found: list[Column] = []
    reasons: dict[str, str] = {}
    unusable: tuple[str, ...] = ()
    ignored = tuple(n for n in table.names if wishes.get(n, {}).get("type") == IGNORED)
    for j, name in enumerate(table.names):
        if name in ignored:
            continue
        whole = [each.columns[j] for each in (table, *others)]
        cells = whole[0] if rows is None else whole[0].take(rows)
        try:
            column, reasons[name] = decide(name, cells, wishes.get(name, {}), whole, where)
            column.check_digits(cells, where)
        except InputError as error:
            if not tolerant or name in wishes:
                raise
            unusable, reasons[name] = (*unusable, name), str(error)
            continue
        found.append(column)
    if not found:
        why = reasons.get(next(iter(unusable), ""), "The schema leaves them out.")
        raise InputError(f"{where} has no column to model, so keep at least one. {why}")
    return Detected(Schema(tuple(found), (*ignored, *unusable)), reasons, unusable)


def decide(
    name: str, cells: Cells, wish: Mapping[str, object], whole: Sequence[Cells], where: str
) -> tuple[Column, str]:
    """One column, with the reason. `whole` are the cells of all tables that will be used."""
    if cells.gaps.all():
        what = f"{of_column(name, where)} has no value in training"
        raise InputError(f"{what}: leave it out.")
    for part in whole:
        _check_finite(name, part, where)
    kind = cast("str | None", wish.get("type"))
    if kind is None and wish.get("categories"):
        kind = "binary" if len(cast("Sequence[Value]", wish["categories"])) == 2 else "categorical"
    if kind is None:
        column, reason = _detected(name, cells, whole, where)
    elif kind in CODED:
        column, reason = _coded(name, kind, cells, wish, where), "given"
    else:
        column, reason = _numeric(name, kind, cells, wish, whole, where), "given"
    further = {k: v for k, v in wish.items() if k not in ("type", "categories")}
    if not further:
        return column, reason
    as_floats = {
        k: float(cast(float, v)) if k in ("low", "high", "resolution") else v
        for k, v in further.items()
    }
    entry = {f.name: getattr(column, f.name) for f in fields(Column)} | as_floats
    return Column(**cast(Any, entry)), reason


def _check_finite(name: str, cells: Cells, where: str) -> None:
    if cells.is_words or cells.values.dtype.kind != "f":
        return
    bad = np.isinf(cells.values) & ~cells.gaps
    if bad.any():
        row = int(np.argmax(bad))
        what = f"{of_column(name, where)} holds {cells.values[row]} in row {row + 1}"
        raise InputError(f"{what}: give a finite number, or leave it empty.")
    if (largest := np.abs(cells.seen()).max(initial=0.0)) > np.finfo(np.float32).max:
        what = f"{of_column(name, where)} holds numbers up to {largest:g}, beyond float32's range"
        raise InputError(f"{what}: rescale the column.")


def _coded(name: str, kind: str, cells: Cells, wish: Mapping[str, object], where: str) -> Column:
    """A column of categories that the user asked for."""
    given = wish.get("categories")
    if given is not None:
        categories = tuple(cast("Sequence[Value]", given))
    elif kind == "ordinal" and cells.is_words and cells.declared != "ordinal":
        what = f"{of_column(name, where)} holds words, whose order is unknown"
        raise InputError(f"{what}: give its categories from the lowest to the highest.")
    else:
        categories = _levels(cells)
        _check_levels(name, len(categories), where)
    if kind == "binary" and len(categories) == 1:
        what = f"{of_column(name, where)} is constant in training, not binary"
        raise InputError(f"{what}: give both categories, or leave it out.")
    column = Column(name, cast(ColumnType, kind), categories)
    if given is not None:
        known = [np.nan if v != v else v for v in (column._code(level) for level in _levels(cells))]
        if np.isnan(known).all():
            what = f"{of_column(name, where)} holds none of the categories that are given"
            raise InputError(f"{what}: its first value is {repr_of(_levels(cells)[0])}.")
    return column


def _numeric(
    name: str,
    kind: str,
    cells: Cells,
    wish: Mapping[str, object],
    whole: Sequence[Cells],
    where: str,
) -> Column:
    """A column of numbers that the user asked for."""
    own = Column(name, cast(ColumnType, kind))
    if cells.is_words:
        whole = [own._numbers(c, where) if c.is_words else c for c in whole]
        cells = own._numbers(cells, where)
    x = np.unique(cells.seen())
    low, high = (float(cast(float, wish.get(b, v))) for b, v in (("low", 0.0), ("high", 1.0)))
    zeros = kind == "positive" and bool(
        wish.get("zeros", any((c.seen() == 0).any() for c in whole))
    )
    column = Column(
        name,
        cast(ColumnType, kind),
        zeros=zeros,
        low=low,
        high=high,
        resolution=resolution(x),
        whole=kind in ("real", "positive") and _whole(whole),
    )
    for part in whole:
        if (found := column.unsupported(part)) is not None:
            row, needs = found
            raise InputError(
                f"{of_column(name, where)} holds {part.shown(row)} in row {row + 1}, but the "
                f"type {kind} needs {needs}: correct it, or give the column another type."
            )
    return column


def _detected(name: str, cells: Cells, whole: Sequence[Cells], where: str) -> tuple[Column, str]:
    """The column as its values suggest, with the reason."""
    if cells.is_words:
        return _of_words(name, cells, whole, where)
    if all(part.is_bool for part in whole):
        return Column(name, "binary", (False, True)), "true or false"
    values = np.unique(cells.seen())
    if len(values) == 1:
        return Column(name, "categorical", _levels(cells)), "constant in training"
    return _of_numbers(name, cells, values, whole)


def _of_words(name: str, cells: Cells, whole: Sequence[Cells], where: str) -> tuple[Column, str]:
    levels = _levels(cells)
    if cells.declared == "ordinal" and len(levels) > 1:
        _check_levels(name, len(levels), where)
        kind = "binary" if len(levels) == 2 else "ordinal"
        return Column(name, cast(ColumnType, kind), levels), "ordered categories, as declared"
    n = int((~cells.gaps).sum())
    if cells.declared == "" and all(DATE.fullmatch(str(level)) for level in levels):
        raise refuse(where, name, f"dates or times, such as {repr_of(levels[0])}", DATES)
    if cells.declared == "" and len(levels) > max(LEAST_TEXT, n / 2):
        _check_mistakes(name, whole, where)
        what = f"text ({len(levels):,} different words in {n:,} rows, such as {repr_of(levels[0])})"
        raise refuse(
            where,
            name,
            what,
            "leave it out, or give it the type ignored or categorical in the schema",
        )
    if cells.declared == "":
        _check_mistakes(name, whole, where)
    _check_levels(name, len(levels), where)
    if len(levels) == 1:
        return Column(name, "categorical", levels), "constant in training"
    if len(levels) == 2:
        return Column(name, "binary", levels), "two different words"
    said = "categories, as declared" if cells.declared else f"{len(levels)} different words"
    return Column(name, "categorical", levels), said


def _check_levels(name: str, n: int, where: str) -> None:
    if n > MOST_LEVELS:
        what = f"{of_column(name, where)} has {n:,} categories, more than {MOST_LEVELS:,}"
        raise InputError(f"{what}: merge the rare ones, or leave it out.")


def _check_mistakes(name: str, whole: Sequence[Cells], where: str) -> None:
    """Raises InputError for a column of numbers with fewer different words among them.

    A few whole numbers beside words may be categories all the same.
    """
    levels = dict.fromkeys(level for part in whole for level in _levels(part) if part.is_words)
    words = [level for level in levels if number_of(level) is None]
    numbers = [v for v in map(number_of, levels) if v is not None]
    few = len(levels) <= FEW_LEVELS and all(v == round(v) for v in numbers if abs(v) < 2**53)
    if not words or few or len(numbers) <= len(words):
        return
    row = next(_row_of(words[0], part) for part in whole if words[0] in (part.levels or ()))
    what = f"{of_column(name, where)} holds {repr_of(words[0])} in row {row + 1} among numbers"
    raise InputError(
        f"{what}: correct it, leave it empty, or give the type categorical in a schema."
    )


def _row_of(level: Value, cells: Cells) -> int:
    """The first row that holds this level."""
    code = (cells.levels or ()).index(level)
    return int(np.argmax((cells.values == code) & ~cells.gaps))


def _levels(cells: Cells) -> tuple[Value, ...]:
    """The categories of a column: as declared if they are ordered, else those that occur, sorted.

    Whole numbers are integers, words that are numbers are in their order.
    """
    if cells.is_bool:
        return (False, True)
    codes = np.unique(cells.seen())
    if cells.levels is None:
        return tuple(int(v) if v == np.rint(v) and abs(v) < 2**53 else float(v) for v in codes)
    if cells.declared == "ordinal":
        return cells.levels
    found = [cells.levels[code] for code in codes]
    numbers = [number_of(level) for level in found]
    if None not in numbers:
        return tuple(level for _, level in sorted(zip(numbers, found, strict=True), key=_first))
    return tuple(sorted(found, key=str))


def _first(pair: tuple[float | None, Value]) -> tuple[float, str]:
    return pair[0] or 0.0, str(pair[1])


def _whole(parts: Sequence[Cells]) -> bool:
    return all(bool((part.seen() == np.rint(part.seen())).all()) for part in parts)


def resolution(values: np.ndarray) -> float:
    """The smallest step between sorted distinct values, beyond the rounding of float64.

    At least the spacing of float32, in which a model sees them.
    """
    largest = float(np.abs(values).max(initial=0.0))
    gaps = np.diff(values)
    gaps = gaps[gaps > NOISE * largest]
    spacing = float(np.spacing(np.float32(min(largest, 1e38)))) if largest else 0.0
    if not len(gaps):
        return spacing
    return max(float(f"{gaps.min():.9g}"), spacing)  # without the rounding of a difference


def _of_numbers(
    name: str, cells: Cells, values: np.ndarray, whole: Sequence[Cells]
) -> tuple[Column, str]:
    """A column of numbers with at least two distinct `values`."""
    x, n = cells.seen(), int((~cells.gaps).sum())
    low = min(float(part.seen().min()) for part in whole if not part.gaps.all())
    is_whole, k = _whole(whole), len(values)
    known = all(bool(np.isin(part.seen(), values).all()) for part in whole)
    if known and k == 2 and (n >= PER_LEVEL or set(values) == {0.0, 1.0}):
        return Column(name, "binary", _levels(cells)), "two different numbers"
    if not is_whole:
        return _continuous(name, x, values, whole)
    if low < 0:
        made = Column(name, "real", resolution=resolution(values), whole=True)
        return made, "whole numbers, some below 0"
    if known and n >= PER_LEVEL * k and _are_levels(x, values):
        why = f"whole numbers on {k} levels, {PER_LEVEL} or more rows for each"
        return Column(name, "ordinal", _levels(cells)), why
    if values.max() > LARGEST_COUNT or _better_continuous(x, values, whole):
        column, why = _continuous(name, x, values, whole)
        return column, f"whole {why}"
    index = k == n and float(np.ptp(values)) == n - 1 and n > FEW_LEVELS
    return Column(name, "count", resolution=1.0), (
        "whole numbers, each once as in an index of rows: consider leaving it out"
        if index
        else "whole numbers from 0"
    )


def _are_levels(x: np.ndarray, values: np.ndarray) -> bool:
    """Whether whole numbers of these distinct values are levels rather than counts.

    That is if they leave no number out and, by BIC, a probability for each is better than a
    negative binomial: counts have no largest value, so that another may come beyond it.
    """
    k, low = len(values), values[0]
    if k > ORDINAL_LEVELS or float(np.ptp(values)) != k - 1 or (k > FEW_LEVELS and low > 1):
        return False
    _, counts = np.unique(x, return_counts=True)
    each = float((counts * np.log(counts / len(x))).sum())
    return each - (k - 1) / 2 * np.log(len(x)) > negative_binomial_fit(x) - np.log(len(x))


def _better_continuous(x: np.ndarray, values: np.ndarray, whole: Sequence[Cells]) -> bool:
    """Whether a continuous distribution, rounded to the step of x, suits counts far better.

    As it does years, multiples of 100, and amounts that are mostly 0.
    """
    scores = {k: v.sum() for k, v in _scores(x, resolution(values), whole).items()}
    others = int((x != 0).sum())
    if not any((part.seen() == 0).any() for part in whole):
        others = len(x)
    step = float(np.gcd.reduce(values.astype(np.int64)))
    best = max(scores.values()) + others * np.log(step)
    return others >= PER_LEVEL and best > negative_binomial_fit(x) + MARGIN * others


def _continuous(
    name: str, x: np.ndarray, values: np.ndarray, whole: Sequence[Cells]
) -> tuple[Column, str]:
    """real, positive or bounded, by the maximum of the log-likelihood in closed form.

    Against real, positive and bounded have the benefit of a doubt of `CLEARLY` standard errors, as
    in Vuong's test (1989): their draws keep the sign and the bounds of the data.
    """
    step, is_whole = resolution(values), _whole(whole)
    real = Column(name, "real", resolution=step, whole=is_whole)
    if _lowest(whole) < 0:
        return real, "numbers, some below 0"
    some = any((part.seen() == 0).any() for part in whole)
    above = "numbers from 0" if some else "numbers above 0"
    scores = _scores(x, step, whole)
    others = {kind: terms for kind, terms in scores.items() if kind != "real"}
    if not others:
        return real, above
    best = max(others, key=lambda kind: float(others[kind].sum()))
    gain = scores["real"] - others[best]
    if gain.sum() > max(1.0, CLEARLY * float(gain.std()) * np.sqrt(len(x))):
        return real, f"{above}, closer to a Normal than to a log{'it' * (best == 'bounded')}-normal"
    if best == "bounded":
        return Column(name, "bounded", resolution=step), "numbers in (0, 1), as of a logit-normal"
    if not some and FAR * np.std(x / x.mean()) < 1:
        return real, f"{above}, and more than {FAR:g} standard deviations away from 0"
    beside = ", beside zeros" if some else ""
    column = Column(name, "positive", zeros=some, resolution=step, whole=is_whole)
    return column, f"numbers above 0, as of a log-normal{beside}"


def _lowest(parts: Sequence[Cells]) -> float:
    return min(float(part.seen().min()) for part in parts if not part.gaps.all())


def _scores(x: np.ndarray, step: float, whole: Sequence[Cells]) -> dict[str, np.ndarray]:
    """The log-likelihoods of x >= 0 [n] under each type that its values admit, in nats [n].

    Where some values are 0, these count by their probability under either type: that of an interval
    of length `step` for a Normal.
    """
    zeros = x == 0
    some = any((part.seen() == 0).any() for part in whole)
    scores = {"real": normal_fit(x) + np.where(zeros, np.log(step), 0.0)}
    if not some:
        scores["positive"] = log_normal_fit(x)
        if max(float(part.seen().max()) for part in whole if not part.gaps.all()) < 1:
            scores["bounded"] = logit_normal_fit(x)
    elif zeros.mean() >= ZEROS and len(np.unique(x)) > 2:
        p = float(zeros.mean())
        mixed = np.full(len(x), np.log(p))
        mixed[~zeros] = np.log1p(-p) + log_normal_fit(x[~zeros])
        scores["positive"] = mixed
    return scores


def normal_fit(x: np.ndarray) -> np.ndarray:
    """The log-density of each x [n] under the Normal of the largest likelihood, in nats [n]."""
    deviations = x - x.mean()
    largest = max(
        float(np.abs(deviations).max()), np.finfo(float).tiny
    )  # whose square may overflow
    sigma = max(largest * float(np.sqrt(np.mean((deviations / largest) ** 2))), 1e-150)
    return -0.5 * (np.log(2 * np.pi) + (deviations / sigma) ** 2) - np.log(sigma)


def log_normal_fit(x: np.ndarray) -> np.ndarray:
    """The same under the log-normal of the largest likelihood, for x > 0."""
    return normal_fit(np.log(x)) - np.log(x)


def logit_normal_fit(x: np.ndarray) -> np.ndarray:
    """The same under the logit-normal of the largest likelihood, for x in (0, 1)."""
    logit = np.log(x) - np.log1p(-x)
    return normal_fit(logit) - np.log(x) - np.log1p(-x)


def negative_binomial_fit(x: np.ndarray) -> float:
    """The maximum of the log-likelihood of a negative binomial, in nats, over r in 1e-3 to 1e7.

    log p(x) = log Γ(x+r)/(Γ(r) x!) + r log r/(r+m) + x log m/(r+m), with the mean m, which is that
    of x for any r.
    """
    from scipy.special import gammaln

    values, counts = np.unique(x, return_counts=True)
    m, low, high, best = float(x.mean()), -3.0, 7.0, -np.inf
    for _ in range(4):  # each grid a finer one about the best of the last
        grid = np.linspace(low, high, 21)
        r = 10 ** grid[:, None]
        terms = gammaln(values + r) - gammaln(r) - gammaln(values + 1)
        terms += r * np.log(r / (r + m)) + values * np.log(m / (r + m))
        sums = terms @ counts
        at, best = int(np.argmax(sums)), float(sums.max())
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, 20)]
    return best
