"""The schema of a table: what the values of each column are, and their codes in a model's input.

A model sees a row of a table as x [d] in float32, one number for each column: the value itself in
the user's units, or the code i of `categories[i]`; NaN where the value is missing.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from iwae._utils.notebook import html_table
from iwae.data import cells as of_cells
from iwae.data import columns
from iwae.data.cells import Cells, Table, of_column, repr_of
from iwae.data.cells import Value as Value
from iwae.errors import InputError, OutsideSupportWarning, UnknownCategoryWarning, nearest

ColumnType = Literal["real", "positive", "count", "binary", "ordinal", "categorical", "bounded"]
TYPES: tuple[str, ...] = get_args(ColumnType)

CODED = ("binary", "ordinal", "categorical")
"""Types whose values are categories, so that the model sees their codes."""

IGNORED = "ignored"
"""What a schema says instead of a type for a column to leave out."""

LIKELIHOODS: dict[str, dict[str, str]] = {
    "real": {"normal": "Normal", "student": "Student t"},
    "positive": {"lognormal": "log-normal", "gamma": "Gamma"},
    "count": {"negative-binomial": "negative binomial", "poisson": "Poisson"},
    "binary": {"bernoulli": "Bernoulli"},
    "ordinal": {"ordered-logistic": "ordered logistic"},
    "categorical": {"softmax": "categorical"},
    "bounded": {"logit-normal": "logit-normal"},
}
"""The likelihoods of each type by name, each with its usual name in print; the first is "auto"."""

TOLERANCE = 2e-7
"""Relative difference of a float32 number from the category that it was."""

LOST = 1e-3
"""Fraction of a column's range that float32 may lose."""

TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal float32; many processors flush smaller numbers to zero."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    `real`: any number. `positive`: a number above 0; with `zeros`, exactly 0 as well. `count`: 0,
    1, 2, …. `bounded`: a number strictly between `low` and `high`. `binary`, `ordinal` and
    `categorical`: one of `categories`, of which binary has two, and ordinal lists them from the
    lowest to the highest. A column that is constant in training is categorical with one category,
    whose probability is 1.
    """

    name: str
    type: ColumnType
    categories: tuple[Value, ...] = ()
    zeros: bool = False
    low: float = 0.0
    high: float = 1.0
    resolution: float = 0.0
    """The smallest step between two values in training, below which no noise level may fall."""
    likelihood: str = "auto"
    """The likelihood of this column: "auto", or a name that its type admits."""
    whole: bool = False
    """Whether the values of a real or positive column are whole numbers, as they are restored."""

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise InputError(
                f"Column {self.name!r} has the type {self.type!r}, which is unknown; "
                f"{nearest(self.type, list(TYPES))}."
            )
        known = ["auto", *LIKELIHOODS[self.type]]
        if self.likelihood not in known:
            raise InputError(
                f"Column {self.name!r} has the likelihood {self.likelihood!r}, which its type "
                f"{self.type} does not admit; {nearest(self.likelihood, known)}."
            )
        if len(set(map(_key, self.categories))) < len(self.categories):
            raise InputError(f"Column {self.name!r} lists a category twice; list each once.")
        if self.type == "binary" and self.levels != 2:
            raise InputError(
                f"Column {self.name!r} is binary with {self.levels} categories; give two, or the "
                f"type categorical."
            )
        if self.type in CODED and not self.levels:
            raise InputError(f"Column {self.name!r} is {self.type} without categories; list them.")
        finite = np.isfinite([self.low, self.high]).all()
        if self.type == "bounded" and not (self.low < self.high and finite):
            raise InputError(
                f"Column {self.name!r} is bounded by low = {self.low:g} and high = {self.high:g}; "
                f"give a low below high, both finite."
            )
        if not 0 <= self.resolution < np.inf:
            raise InputError(
                f"Column {self.name!r} has the resolution {self.resolution:g}; give a number from "
                f"0, the smallest step between two of its values."
            )

    @property
    def levels(self) -> int:
        """The number of categories; 0 for numbers."""
        return len(self.categories)

    @property
    def is_density(self) -> bool:
        """Whether its values have a density rather than a probability."""
        return self.type in ("real", "positive", "bounded")

    @property
    def model(self) -> str:
        """What the column is modelled as, in words, such as "categorical over 5"."""
        if self.levels == 1:
            return "constant"
        names = LIKELIHOODS[self.type]
        text = names.get(self.likelihood, next(iter(names.values())))
        if self.levels > 2:
            return f"{text} over {self.levels}"
        if self.type == "bounded":
            return f"{text} on ({self.low:g}, {self.high:g})"
        return f"0 or {text}" if self.zeros else text

    def range_of(self, cells: Cells) -> str:
        """The range or the first categories of its values, in words."""
        if self.type in CODED:
            words = [repr(c) if {",", "\n"} & set(str(c)) else str(c) for c in self.categories]
            shown = ", ".join(words[: columns.SHOWN])
            return shown + (f", … ({self.levels})" if self.levels > columns.SHOWN else "")
        if cells.gaps.all():
            return "—"
        values = (self._numbers(cells, "the table") if cells.is_words else cells).seen()
        return f"{values.min():.6g} to {values.max():.6g}"

    @property
    def needs(self) -> str:
        """The numbers that the type admits, in words."""
        words = {"count": "0, 1, 2, …", "positive": "numbers above 0"}
        if self.zeros:
            words["positive"] = "0 or numbers above 0"
        words["bounded"] = f"numbers strictly between {self.low:g} and {self.high:g}"
        return words.get(self.type, "finite numbers")

    def outside(self, x: np.ndarray) -> np.ndarray:
        """Which finite numbers x [n] are outside the support, where the density is 0."""
        if self.type == "count":
            return (x < 0) | (x != np.rint(x)) & np.isfinite(x)
        if self.type == "positive":
            return (x < 0) if self.zeros else (x <= 0)
        if self.type == "bounded":
            return (x <= self.low) | (x >= self.high)
        return np.zeros(x.shape, bool)

    def unsupported(self, cells: Cells) -> tuple[int, str] | None:
        """The row of the first number that is outside the support, and what the type needs."""
        x = np.where(cells.gaps, np.nan, cells.values.astype(np.float64))
        bad = np.isinf(x) | self.outside(x)
        if not bad.any():
            return None
        row = int(np.argmax(bad))
        return row, "finite numbers" if np.isinf(x[row]) else self.needs

    def encode(self, cells: Cells, where: str, *, tolerant: bool = False) -> np.ndarray:
        """The values as a model sees them, float32 [n].

        A category that was never seen in training is NaN, with a warning. Raises InputError for a
        number outside the support unless `tolerant`, for one that is infinite, or that float32
        cannot hold or resolve.
        """
        if self.type in CODED:
            return self._codes(cells, where)
        if cells.is_words and not cells.gaps.all():
            cells = self._numbers(cells, where)
        exact = np.where(cells.gaps, np.nan, cells.values.astype(np.float64))
        found = self.unsupported(cells)
        if found is not None and not (tolerant and not np.isinf(exact).any()):
            row, needs = found
            raise InputError(
                f"{of_column(self.name, where)} holds {cells.shown(row)} in row {row + 1}, but "
                f"its type {self.type} needs {needs}: correct it, or leave it empty."
            )
        with np.errstate(over="ignore"):
            x = exact.astype(np.float32)
        if np.isinf(x).any():
            row = int(np.argmax(np.isinf(x)))
            raise self._beyond(f"{cells.shown(row)} in row {row + 1}", where)
        if self.type == "bounded":  # the neighbour, where rounding reached a bound
            inner = np.nextafter(
                *np.array([[self.low, self.high], [self.high, self.low]], np.float32)
            )
            x = np.where(self.outside(exact), x, np.clip(x, *inner))
        elif self.type == "positive" and ((x == 0) & (exact > 0)).any() and not self.zeros:
            row = int(np.argmax((x == 0) & (exact > 0)))
            raise InputError(
                f"{of_column(self.name, where)} holds {cells.shown(row)} in row {row + 1}, which "
                f"float32 rounds to 0: rescale the column."
            )
        return x

    def check_digits(self, cells: Cells, where: str) -> None:
        """Raises InputError if the column varies by less than float32 can resolve."""
        if self.type in CODED or cells.gaps.all():
            return
        exact = (self._numbers(cells, where) if cells.is_words else cells).seen()
        if (largest := np.abs(exact).max()) > np.finfo(np.float32).max:
            raise self._beyond(f"numbers up to {largest:g}", where)
        span = float(np.ptp(exact))
        if 0 < span < TINY / LOST:
            power = min(300, -int(np.floor(np.log10(span))))
            raise InputError(
                f"{of_column(self.name, where)} varies by {span:g}, less than float32 can "
                f"resolve: multiply it, by 1e{power:+03d} for example."
            )
        if span and np.abs(exact.astype(np.float32) - exact).max() > LOST * span:
            raise InputError(
                f"{of_column(self.name, where)} varies by {span:g} about {exact.mean():g}, which "
                f"float32 cannot resolve: subtract an offset from it."
            )

    def _beyond(self, what: str, where: str) -> InputError:
        held = f"{of_column(self.name, where)} holds {what}, beyond float32's range"
        return InputError(f"{held}: rescale the column.")

    def _numbers(self, cells: Cells, where: str) -> Cells:
        """Words that are all numbers, as numbers."""
        assert cells.levels is not None
        parsed = [number_of(level) for level in cells.levels]
        used = np.unique(cells.seen())
        for code in used:
            if parsed[code] is None:
                row = int(np.argmax((cells.values == code) & ~cells.gaps))
                raise InputError(
                    f"{of_column(self.name, where)} holds {repr_of(cells.levels[code])} in row "
                    f"{row + 1}, but its type {self.type} needs numbers: correct it, or leave it "
                    f"empty."
                )
        values = np.array([np.nan if v is None else v for v in parsed])
        return Cells(values[np.maximum(cells.values, 0)], cells.gaps)

    def _codes(self, cells: Cells, where: str) -> np.ndarray:
        """The codes of categories, float32 [n]; NaN with a warning for one that is not known."""
        if cells.levels is not None:
            known = [self._code(level) for level in cells.levels]
            codes = np.array([*known, np.nan])[np.where(cells.gaps, -1, cells.values)]
        else:
            codes = self._codes_of_numbers(cells)
        lost = np.isnan(codes) & ~cells.gaps
        if lost.any():
            row = int(np.argmax(lost))
            many = f" (with {int(lost.sum()):,} such values in all)" if lost.sum() > 1 else ""
            warnings.warn(
                f"{of_column(self.name, where)} holds {cells.shown(row)} in row {row + 1}, which "
                f"is no category of training and is taken for missing{many}.",
                UnknownCategoryWarning,
                stacklevel=2,
            )
        return codes.astype(np.float32)

    def _code(self, value: Value) -> float:
        """The code of one value; NaN if it is no category."""
        if isinstance(value, str):
            for code, category in enumerate(self.categories):
                if isinstance(category, str) and category == value:
                    return float(code)
        number = number_of(value)
        for code, category in enumerate(self.categories):
            if number is not None and number_of(category) == number:
                return float(code)
        return np.nan

    def _codes_of_numbers(self, cells: Cells) -> np.ndarray:
        """The codes of numbers or truth values, float64 [n]; NaN for those that are no category."""
        given = [(number_of(c), code) for code, c in enumerate(self.categories)]
        known = sorted((number, code) for number, code in given if number is not None)
        x = np.where(cells.gaps, np.nan, cells.values.astype(np.float64))
        if not known:
            return np.full(len(x), np.nan)
        keys = np.array([number for number, _ in known])
        place = np.abs(np.searchsorted(keys, x) - [[1], [0]]).clip(0, len(keys) - 1)
        apart = np.abs(keys[place] - x)
        nearer = np.where(apart[0] < apart[1], place[0], place[1])
        near = np.abs(keys[nearer] - x) <= TOLERANCE * np.abs(keys[nearer]) * (
            cells.values.dtype.kind == "f"
        )
        return np.where(near, np.array([code for _, code in known], float)[nearer], np.nan)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """The values [n] that x [n] stands for, as the user wrote them.

        Codes and counts are rounded. Missing values are None among words and truth values, and NaN
        among numbers, which are then floats.
        """
        gaps = np.isnan(x)
        if self.type in CODED:
            place = np.clip(np.rint(np.where(gaps, 0, x)), 0, self.levels - 1).astype(np.int64)
            made = _array(self.categories)[place]
        elif self.type == "count" or self.whole:
            made = np.rint(np.where(gaps, 0, x)).astype(np.float64)
            made = np.maximum(made, 0) if self.type == "count" else made
            made = made.astype(np.int64) if np.abs(made).max(initial=0) < of_cells.EXACT else made
        else:
            return x
        if not gaps.any():
            return made
        if made.dtype.kind in "if":
            return np.where(gaps, np.nan, made)
        objects = made.astype(object)
        objects[gaps] = None
        return objects


def _array(values: Sequence[Value]) -> np.ndarray:
    """Values as an array of their own type: bool, int64, float64 or object."""
    kinds = {type(value) for value in values}
    if kinds <= {bool} or kinds <= {int} or kinds <= {int, float}:
        return np.array(values)
    made: np.ndarray = np.empty(len(values), object)
    made[:] = values
    return made


def _key(value: Value) -> tuple[bool, Value]:
    """A value such that words, numbers and truth values differ as categories."""
    return isinstance(value, str), value


def number_of(value: Value) -> float | None:
    """The number that a value is or reads as; None for other words. "true" reads as 1."""
    if not isinstance(value, str):
        return float(value)
    truth = {"true": 1.0, "false": 0.0}.get(value.casefold())
    if truth is not None:
        return truth
    try:
        return None if "_" in value else float(value)
    except ValueError:
        return None


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in the order of the model's input."""

    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()
    """Names of columns that the user's tables may hold, and that are left out."""

    def __post_init__(self) -> None:
        names = [*self.names, *self.ignored]
        of_cells.check_names(names, "the schema")
        if not self.columns:
            raise InputError("The schema leaves out every column: keep at least one.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def described(self) -> list[tuple[str, str]]:
        """Each column's name, and its type and model in words."""
        return [(c.name, f"{c.type} ({c.model})") for c in self.columns]

    def _repr_html_(self) -> str:
        return html_table(self.described())

    @property
    def continuous(self) -> int:
        """The number of columns with a density: real, positive or bounded."""
        return len(self.of_type("real", "positive", "bounded"))

    def of_type(self, *types: str) -> np.ndarray:
        """The indices of the columns of these types, int [m]."""
        return np.array([i for i, c in enumerate(self.columns) if c.type in types], np.int64)

    @property
    def measure(self) -> str:
        """What a log-likelihood of a row is the logarithm of, in words."""
        densities = [c.name for c in self.columns if c.is_density]
        others = [c.name for c in self.columns if not c.is_density]
        zeros = [c.name for c in self.columns if c.zeros]
        parts = [f"a density over {columns.listed(densities)}, in your units"] * bool(densities)
        parts += [f"a probability of {columns.listed(others)}"] * bool(others)
        text = f"the likelihood of a row is {' times '.join(parts)}"
        return text + (f"; zeros of {columns.listed(zeros)} count by probability" if zeros else "")

    def in_order(self, names: Sequence[str]) -> "Schema":
        """The schema with its columns in the order of `names`."""
        own = {column.name: column for column in self.columns}
        return replace(self, columns=tuple(own[name] for name in names))

    def select(self, table: Table, where: str) -> Table:
        """The columns of a table that the model takes, in its order, without those left out.

        Columns are matched by name; by position if the table has no names. Raises InputError that
        names the missing and the additional columns.
        """
        kept = [i for i, name in enumerate(table.names) if name not in self.ignored]
        if not table.named or len(kept) == 0:
            kept = list(range(len(table.names)))
        given = tuple(table.names[i] for i in kept) if table.named else ()
        if len(kept) != len(self.columns) and not given:
            what = f"{where} has {len(kept)} columns without names"
            raise InputError(f"{what}: give {len(self.columns)}, in the order of training.")
        at = columns.order(given, self.names, len(self.columns), where)
        at = np.arange(len(kept)) if at is None else at
        if len(at) != len(self.columns):  # counted names, but another number of columns
            what = f"{where} has {len(at)} columns"
            raise InputError(f"{what}: give {len(self.columns)}, as in training.")
        return Table(self.names, tuple(table.columns[kept[i]] for i in at), table.named)

    def outside(self, x: np.ndarray) -> np.ndarray:
        """Which numbers of rows x [n, d] are outside the support of their column, bool [n, d]."""
        return np.stack([c.outside(x[:, j]) for j, c in enumerate(self.columns)], axis=1)

    def inside(self, x: np.ndarray) -> np.ndarray:
        """Rows x [n, d] with NaN for the numbers that are outside the support."""
        return np.where(self.outside(x), np.float32(np.nan), x)

    def encode(
        self, source: object, where: str = "The table", *, tolerant: bool = False
    ) -> np.ndarray:
        """A table as a model sees it, float32 [n, d].

        Args:
            source: a data frame, a mapping from names to values, records, a labelled row, an
                array, or a `Table`. Columns are matched by name, in any order.
            where: how messages call the table.
            tolerant: whether numbers outside the support of their column stay as they are. Their
                density is 0.

        Raises:
            InputError: for columns that are missing or unknown, by name; for a number outside the
                support of its column, by name and row, unless `tolerant`.

        Warns:
            UnknownCategoryWarning: for a category that training lacked, which is taken for missing.
            OutsideSupportWarning: for numbers outside the support.
        """
        from iwae.data.frames import as_table

        table = source if isinstance(source, Table) else as_table(source, where)
        table = self.select(table, where)
        if isinstance(source, np.ndarray) and source.dtype.names is None:
            self._check_words(table, where)
        of_cells.check_memory(len(table), len(self.columns), where, bytes_each=4)
        x = np.empty((len(table), len(self.columns)), np.float32)
        for j, (column, cells) in enumerate(zip(self.columns, table.columns, strict=True)):
            x[:, j] = column.encode(cells, where, tolerant=tolerant)
        if tolerant:
            self._note_outside(x, table, where)
        return x

    def _note_outside(self, x: np.ndarray, table: Table, where: str) -> None:
        """Warns of the first row with a number outside the support, if there is one."""
        rows, at = np.nonzero(self.outside(x))
        if not len(rows):
            return
        column, cells, several = self.columns[at[0]], table.columns[at[0]], len(np.unique(rows))
        value = cells.shown(rows[0])
        many = f" ({several:,} such rows in all)" if several > 1 else ""
        warnings.warn(
            f"{of_column(column.name, where)} holds {value} in row {rows[0] + 1}, but its type "
            f"{column.type} needs {column.needs}: the log-likelihood of the row is -inf, and its "
            f"other values are inferred as if this one were missing{many}.",
            OutsideSupportWarning,
            stacklevel=3,
        )

    def _check_words(self, table: Table, where: str) -> None:
        """Raises InputError for an array of numbers, which may be codes, where words belong."""
        for column, cells in zip(self.columns, table.columns, strict=True):
            words = all(number_of(category) is None for category in column.categories)
            if column.type in CODED and words and not cells.is_words and not cells.gaps.all():
                raise InputError(
                    f"{where} holds numbers in column {column.name!r}, whose categories are words "
                    f"such as {repr_of(column.categories[0])}: give a data frame or a mapping of "
                    f"columns with these words (`Schema.decode` restores them from codes)."
                )

    def decode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The columns that rows x [n, d] or one row [d] stand for, by name (see `Column.decode`).

        Words, truth values and whole numbers are restored.
        """
        rows = np.atleast_2d(np.asarray(x))
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            what = f"x has the shape {np.shape(x)}"
            raise InputError(f"{what}: give [n, {len(self.columns)}], a number for each column.")
        return {column.name: column.decode(rows[:, j]) for j, column in enumerate(self.columns)}

    def to_frame(self, x: np.ndarray, like: Any) -> Any:
        """`decode` as a data frame of the library, and as far as they fit the types, of `like`.

        Where `like` is a mapping, the result is a dict; where it is records, records; where it is
        an array of numbers, an array [n, d] of the values in the user's units.
        """
        from iwae.data import frames

        found = self.decode(x)
        if frames.is_frame(like):
            return frames.like(found, like)
        if frames.is_records(like):
            return frames.like_records(found, like)
        if isinstance(like, np.ndarray) and like.dtype.names is None:
            numbers = all(values.dtype.kind in "biuf" for values in found.values())
            dtype = like.dtype if like.dtype.kind in "fO" else np.dtype(float)
            if not numbers:
                dtype = np.dtype(object)
            return np.stack([v.astype(dtype) for v in found.values()], axis=1)
        labels = {columns.tidy(label): label for label in like}
        return {labels.get(name, name): values for name, values in found.items()}

    def to_toml(self, reasons: Mapping[str, str] | None = None) -> str:
        """The schema as TOML, one table for each column, each below its reason as a comment."""
        import tomli_w

        parts = []
        for column in self.columns:
            entry: dict[str, object] = {
                f.name: value
                for f in fields(column)
                if f.name not in ("name", "categories")
                and (value := getattr(column, f.name)) != f.default
            }
            if column.type == "bounded":
                entry |= {"low": column.low, "high": column.high}
            text = tomli_w.dumps({column.name: entry})
            if column.categories:  # on one line
                each = (tomli_w.dumps({"v": v}).strip()[4:] for v in column.categories)
                text += f"categories = [{', '.join(each)}]\n"
            parts.append(_comment(reasons, column.name) + text)
        for name in self.ignored:
            parts.append(_comment(reasons, name) + tomli_w.dumps({name: {"type": IGNORED}}))
        return "\n".join(parts)


def _comment(reasons: Mapping[str, str] | None, name: str) -> str:
    reason = (reasons or {}).get(name, "")
    return f"# {columns.tidy(reason)}\n" if reason else ""
