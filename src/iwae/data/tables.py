"""Text tables (.csv): a line of cells for each example, optionally below a line of names."""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from iwae.data.cells import Cells, Table, check_memory, table_of
from iwae.data.columns import tidy
from iwae.data.rows import Rows, Summary, check_ratio, of_block
from iwae.errors import InputError, nearest

HEADERS = ("auto", "yes", "no")

MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "null", "nil", "none", "missing", "?", "-", "."}
"""Cells that stand for a missing value, in lower case."""

LOOK = 1000
"""Number of lines to decide what the first line is."""

BLANKS = " \r\n\f\v"
"""The characters of a blank line; tabs separate cells."""

LONGEST = 1 << 24
"""Largest number of characters in a line."""

PIECE = 1 << 15
"""Characters that are read at once."""

DELIMITERS = ",;\t"

MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte-order marks of the encodings other than UTF-8."""

WHOLE = re.compile(r"[+-]?\d+")
HALVES = re.compile(r"[+-]?\d+,\d+")
POINTS = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")
PADDED = re.compile(r"[+-]?0\d+")
UNUSUAL = re.compile(r"_|(^|\n)\s*[+-]?0\d")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")

ASK = "give --header yes or --header no (in Python: header='yes' or 'no')"


class Line(NamedTuple):
    """A line that is not blank, and its number in the file.

    A cell in quotes may hold line breaks: its line then is several of the file, and has the number
    of the first.
    """

    number: int
    text: str


class Block(NamedTuple):
    """Consecutive lines that are not blank, and their numbers in the file."""

    numbers: Sequence[int]
    texts: list[str]
    rows: list[list[str]] | None = None
    """Their cells, with the blanks around them, where a quote stands in any."""

    def after(self, n: int) -> "Block":
        """The block without its first n lines."""
        return Block(self.numbers[n:], self.texts[n:], self.rows and self.rows[n:])


@dataclass(frozen=True)
class Form:
    """The delimiter of cells, and whether they have decimal commas."""

    delimiter: str
    comma: bool = False

    def cells(self, text: str) -> list[str]:
        """The cells of a line, without quotes and blanks around them."""
        if '"' not in text:
            return [cell.strip() for cell in text.split(self.delimiter)]
        try:
            return [cell.strip() for cell in next(self._reader([text]))]
        except csv.Error:  # a cell that is too long
            return [text]

    def _reader(self, texts: list[str]) -> Iterator[list[str]]:
        return csv.reader(texts, delimiter=self.delimiter, skipinitialspace=True)

    def whole(self, texts: list[str]) -> list[list[str]] | None:
        """`cells` of several lines, with the blanks around them; None if one ends within quotes."""
        try:
            rows = list(self._reader(texts))
        except csv.Error:
            return None
        whole = len(rows) == len(texts) and not ends_within_quotes(texts[-1], self.delimiter)
        return rows if whole else None

    def columns(self, block: Block, width: int) -> list[Sequence[str]] | None:
        """The cells of lines by column, with blanks around them; None unless all have `width`."""
        texts, rows = block.texts, block.rows
        text = self.delimiter.join(texts)
        if rows is None and '"' in text:
            rows = list(map(self.cells, texts))
        if rows is not None:
            return None if set(map(len, rows)) != {width} else list(zip(*rows, strict=True))
        if set(map(str.count, texts, itertools.repeat(self.delimiter))) != {width - 1}:
            return None
        cells = text.split(self.delimiter)
        return [cells[j::width] for j in range(width)]

    def is_usual(self, texts: list[str]) -> bool:
        """Whether no cell of these lines can be a number that `UNUSUAL` holds for unusual."""
        text = self.delimiter.join(["", *texts])
        return not ("_" in text or _padded(self.delimiter).search(text))

    def plain(self, text: str) -> str:
        """The line as NumPy reads it: without quotes, and with decimal points.

        Raises ValueError for a line that NumPy would split into other cells, or skip.
        """
        if '"' not in text:
            points = self.comma and self.delimiter != ","
            return text.replace(",", ".") if points else text
        cells = [c.replace(",", ".") if self.comma else c for c in self.cells(text)]
        if cells == [""] or any(self.delimiter in cell for cell in cells):
            raise ValueError("no cells of numbers")
        return self.delimiter.join(cells)


def read_csv(
    path: Path,
    *,
    header: str = "auto",
    names: Sequence[str] = (),
    width: int | None = None,
    missing: bool = False,
) -> Rows:
    """Rows [n, d] in 8 bits or float32, with the names of their columns where they have any.

    Cells are separated by commas, semicolons or tabs, and may be quoted. Decimals have a point, or
    a comma if it does not separate cells. `header` says whether the first line holds names: "yes",
    "no", or "auto", which recognises a line without numbers, and the expected `names`. With
    `missing`, cells in `MISSING` are NaN. Raises InputError for a table that is ambiguous or cannot
    be read, and `CellError` for one with words, or without `missing` with gaps.
    """
    form, named, first = _opened(path, header, names)
    if len(first) == 1:
        _check_gaps(path, form)
    examples = lambda: itertools.islice(_lines(path, form), int(named), None)
    _check_halves(path, examples(), form, named=named, width=width)
    form = _with_decimals(path, examples(), form)
    try:
        blocks, known = _numbers((_plain(path, line, form) for line in examples()), form.delimiter)
    except InputError:
        raise
    except ValueError:
        if not missing:
            raise _bad_line(path, examples(), form) from None
        blocks, known = _numbers_and_gaps(path, examples(), form)
    shape = (sum(map(len, blocks)), blocks[0].shape[1])
    dtype = np.result_type(*blocks)
    names = tuple(map(tidy, first)) if named else ()
    return Rows(shape, dtype, lambda: iter(blocks), names, known=known)


def _opened(path: Path, header: str, names: Sequence[str]) -> tuple[Form, bool, list[str]]:
    """The form of a table, whether its first line holds names, and the cells of that line.

    Raises InputError for a file that is no table, and for a first line that is ambiguous.
    """
    if header not in HEADERS:
        raise InputError(f"header={header!r} is unknown: {nearest(header, list(HEADERS))}.")
    _check_unpacked(path)
    top = list(itertools.islice(_lines(path), 2))
    if not top:
        raise InputError(f"{path} holds no numbers: give one example per line.")
    form = _form(top)
    top = list(itertools.islice(_lines(path, form), 2))
    first = form.cells(top[0].text)
    named = _has_names(path, top, form, header, names)
    if named:
        _check_names(path, first, top, form)
    if named and len(top) == 1:
        raise InputError(f"{path} holds no numbers: give one example per line.")
    return form, named, first


def has_names(path: Path, header: str) -> bool:
    """Whether the first line of a table holds the names of its columns; errors as `read_csv`."""
    return _opened(path, header, ())[1]


def read_table(path: Path, *, header: str = "auto", names: Sequence[str] = ()) -> Table:
    """A table of numbers, words and gaps: lines, header and decimals as in `read_csv`.

    A cell in `MISSING` is a gap. A column is of words if any of its cells is no number, or a whole
    number that begins with 0, such as 007, among whole ones. Raises InputError for a table that is
    ambiguous, or whose lines differ in length.
    """
    form, named, first = _opened(path, header, names)
    if len(first) == 1:
        _check_gaps(path, form)
    if named:
        _check_not_values(path, first, form)
    form = _decimals_of(path, form, named=named)
    words: set[int] = set()
    while True:
        readers = [_Words() if j in words else _Numbers(form) for j in range(len(first))]
        late = _fill(path, form, readers, named=named)
        if not late:
            break
        words |= late
    called = list(map(tidy, first)) if named else [f"x{j}" for j in range(len(first))]
    pairs = [(name, reader.cells()) for name, reader in zip(called, readers, strict=True)]
    return table_of(pairs, str(path), named=named)


def form_of(path: Path, *, header: str = "auto", names: Sequence[str] = ()) -> tuple[Form, bool]:
    """The form of a table, and whether its first line holds names; errors as `read_table`."""
    form, named, _ = _opened(path, header, names)
    return _decimals_of(path, form, named=named), named


def _fill(path: Path, form: Form, readers: list["_Words | _Numbers"], *, named: bool) -> set[int]:
    """Gives each column's cells to its reader; the columns that have to be read as words instead.

    A column whose words are in the first lines is read as words at once.
    """
    late: set[int] = set()
    n, first, width = 0, 0, len(readers)
    for block in _examples(path, form, named=named):
        first = first or block.numbers[0]
        columns = form.columns(block, width)
        if columns is None or (form.comma and any("." in text for text in block.texts)):
            _check_rows(path, form, block, first=first, width=width)
        usual = form.is_usual(block.texts)
        for j, cells in enumerate(columns or ()):
            if not readers[j].add(cells, usual=usual):
                late |= {j} if n else set()
                readers[j] = _Words()
                readers[j].add(cells)
        n += len(block.texts)
        check_memory(n, width, str(path))
    return late


def _examples(path: Path, form: Form, *, named: bool) -> Iterator[Block]:
    """The lines below that of the names, in blocks."""
    skipped = int(named)
    for block in _blocks(path, form):
        rest, skipped = block.after(skipped), max(0, skipped - len(block.texts))
        if rest.texts:
            yield rest


def _check_rows(path: Path, form: Form, block: Block, *, first: int, width: int) -> None:
    """Raises InputError for lines with more or fewer cells, or decimal points beside commas."""
    for number, text in zip(block.numbers, block.texts, strict=True):
        row = form.cells(text)
        if len(row) != width:
            what = f"Line {number} of {path} has {len(row)} cells and line {first} has"
            raise InputError(f"{what} {width}: give the same number in every line.")
        if form.comma and (point := next(filter(POINTS.fullmatch, row), None)) is not None:
            what = f"Line {number} of {path} holds {_short(point)!r} where others have"
            raise InputError(f"{what} decimal commas: write all decimals alike.")


class _Numbers:
    """The cells of a column of numbers, in float64, NaN where missing."""

    def __init__(self, form: Form):
        self.comma, self.gaps = form.comma, False
        self.parts: list[np.ndarray] = []

    def add(self, cells: Sequence[str], *, usual: bool = False) -> bool:
        """Whether all cells are numbers or gaps; if not, none is added.

        With `usual`, none of them is a number that `UNUSUAL` holds for unusual.
        """
        found = self._fast(cells) if usual or not UNUSUAL.search("\n".join(cells)) else None
        try:
            self.parts.append(np.array(list(map(self._number, cells))) if found is None else found)
        except ValueError:
            return False
        return True

    def _fast(self, cells: Sequence[str]) -> np.ndarray | None:
        """The numbers of plain and empty cells; None if any cell is another."""
        if self.comma:
            cells = [cell.replace(",", ".") for cell in cells]
        try:
            if not self.gaps:
                return np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            self.gaps = True
        try:
            return np.array([float(cell or "nan") for cell in cells])
        except ValueError:
            return None

    def _number(self, cell: str) -> float:
        cell = cell.strip()
        try:
            number = float(cell.replace(",", ".") if self.comma else cell)
        except ValueError:
            if cell.casefold() in MISSING:
                return np.nan
            raise
        if "_" in cell or (cell[0] in "0+-" and PADDED.fullmatch(cell)):
            raise ValueError
        return number

    def values(self) -> np.ndarray:
        """All numbers, float64 [n]."""
        return np.concatenate(self.parts)

    def cells(self) -> Cells:
        x = self.values()
        return Cells(x, np.isnan(x))


class _Words:
    """The cells of a column of words, as codes."""

    def __init__(self) -> None:
        self.place: dict[str, int] = {}  # of words with the blanks around them
        self.levels: dict[str, int] = {}
        self.parts: list[np.ndarray] = []

    def add(self, cells: Sequence[str], *, usual: bool = False) -> bool:
        for cell in (c for c in dict.fromkeys(cells) if c not in self.place):
            word = cell.strip()
            gap = word.casefold() in MISSING
            self.place[cell] = -1 if gap else self.levels.setdefault(word, len(self.levels))
        self.parts.append(np.fromiter(map(self.place.__getitem__, cells), np.int64, len(cells)))
        return True

    def cells(self) -> Cells:
        codes, levels = np.concatenate(self.parts), tuple(self.levels)
        if all(map(_is_number, levels)) and any(map(POINTS.fullmatch, levels)):
            values = np.array([*map(float, levels), np.nan])  # one of which begins with 0
            return Cells(values[codes], codes < 0)
        return Cells(codes, codes < 0, levels)


def _check_not_values(path: Path, names: list[str], form: Form) -> None:
    """Raises InputError if a name is also a value of its column, as where no line holds names."""
    below = [form.cells(line.text) for line in itertools.islice(_lines(path, form), 1, LOOK)]
    for j, name in enumerate(names):
        if np.isnan(_value(name)) and any(name in row[j : j + 1] for row in below):
            what = f"Line 1 of {path} holds {_short(name)!r}, as do other lines in column {j + 1}"
            raise InputError(f"{what}, so that it may be names or an example: {ASK}.")


def _decimals_of(path: Path, form: Form, *, named: bool) -> Form:
    """The form, with decimal commas if the first decimal numbers have them.

    Raises InputError where commas may stand for thousands.
    """
    commas: list[str] = []
    for line in itertools.islice(_lines(path, form), int(named), None):
        if form.delimiter == "," and '"' not in line.text:
            if "." in line.text and POINTS.search(line.text) and not commas:
                return form
            continue
        if "," not in line.text and "." not in line.text:
            continue
        cells = form.cells(line.text)
        commas += [cell for cell in cells if HALVES.fullmatch(cell) or THOUSANDS.fullmatch(cell)]
        if not commas and any(POINTS.fullmatch(cell) for cell in cells):
            return form
        if any(not THOUSANDS.fullmatch(cell) for cell in commas):
            return Form(form.delimiter, comma=True)
    _check_no_thousands(path, commas)
    return form


def _numbers_and_gaps(
    path: Path, lines: Iterator[Line], form: Form
) -> tuple[list[np.ndarray], Summary]:
    """`_numbers` of lines in which cells may be missing, which are NaN."""
    blocks: list[np.ndarray] = []
    known: Summary | None = None
    first = (0, 0)
    while some := list(itertools.islice(lines, LOOK)):
        rows = [form.cells(line.text) for line in some]
        first = first if first[0] else (some[0].number, len(rows[0]))
        reader, cells = _Numbers(form), list(itertools.chain.from_iterable(rows))
        if any(len(row) != first[1] for row in rows) or not reader.add(cells):
            raise _bad_line(path, iter(some), form, first=first)
        block = reader.values().reshape(len(rows), -1)
        found = of_block(block)
        known = found if known is None else known + found
        with np.errstate(over="ignore"):
            blocks.append(block.astype(np.float32))
    assert known is not None
    return blocks, known


def _numbers(lines: Iterator[str], delimiter: str) -> tuple[list[np.ndarray], Summary]:
    """Blocks of rows, as uint8 if they fit and else as float32, and their summary in float64.

    Raises ValueError for lines that are not numbers or differ in length, and for NaN.
    """
    blocks: list[np.ndarray] = []
    known: Summary | None = None
    while some := list(itertools.islice(lines, LOOK)):
        block = np.loadtxt(some, np.float64, delimiter=delimiter, comments=None, ndmin=2)
        found = of_block(block)
        if found.gaps or (blocks and block.shape[1] != blocks[0].shape[1]):
            raise ValueError("no numbers, or other ones")
        known = found if known is None else known + found
        small = found.whole and found.low.min() >= 0 and found.high.max() <= 255
        with np.errstate(over="ignore"):
            blocks.append(block.astype(np.uint8 if small else np.float32))
    assert known is not None
    return blocks, known


def _lines(path: Path, form: Form | None = None, *, blank: bool = False) -> Iterator[Line]:
    """All lines that are not blank, or with `blank` all, of a file of this form, if it is known.

    Raises InputError if the file is not text, or if a quote is not closed.
    """
    for block in _blocks(path, form, blank=blank):
        yield from map(Line, block.numbers, block.texts)


def _blocks(path: Path, form: Form | None, *, blank: bool = False) -> Iterator[Block]:
    """`_lines` in blocks."""
    number = 1
    opened: Block | None = None  # lines that end within a cell in quotes
    for lines in _physical(path):
        block = Block(range(number, number + len(lines)), lines)
        number += len(lines)
        quoted = '"' in "".join(lines)
        if quoted and opened is None and form is not None:
            block = block._replace(rows=form.whole(lines))
        if (quoted or opened is not None) and block.rows is None:
            marks = DELIMITERS if form is None else form.delimiter
            block, opened = _joined(path, opened, block, marks)
        block = block if blank else _without_blanks(block)
        if block.texts:
            yield block
    if opened is not None:
        raise _unclosed(path, opened.numbers[0])


def _without_blanks(block: Block) -> Block:
    """The block without its blank lines."""
    if all(map(str.strip, block.texts)):
        return block
    kept = [bool(text.strip(BLANKS)) for text in block.texts]
    parts = (None if part is None else list(itertools.compress(part, kept)) for part in block)
    return Block(*cast("tuple[list[int], list[str], list[list[str]] | None]", tuple(parts)))


def _joined(
    path: Path, opened: Block | None, block: Block, marks: str
) -> tuple[Block, Block | None]:
    """Lines of which those that end within a cell in quotes are joined with the next ones.

    Those that are `opened` come first; those that remain so are returned as well.
    """
    numbers, texts = list[int](), list[str]()
    parts = [] if opened is None else opened.texts
    start, size = (0, 0) if opened is None else (opened.numbers[0], sum(map(len, parts)))
    for number, text in zip(block.numbers, block.texts, strict=True):
        start = start if parts else number
        try:
            inside = ends_within_quotes(text, marks, inside=bool(parts))
        except ValueError:
            raise _unclosed(path, start) from None
        parts.append(text)
        size = size + len(text) + 1
        if inside and size < LONGEST:
            continue
        if inside:
            raise _unclosed(path, start)
        numbers.append(start)
        texts.append("\n".join(parts))
        parts, size = [], 0
    return Block(numbers, texts), Block([start], parts) if parts else None


def ends_within_quotes(text: str, marks: str, *, inside: bool = False) -> bool:
    """Whether a line ends within a cell in quotes; with `inside` it begins in one.

    Raises ValueError if a cell that an earlier line began goes on after its closing quote, so that
    the quote is not likely to be one.
    """
    if inside:
        end = CLOSING.match(text)
        if end is None:
            return True
        text = text[end.end() :].lstrip(" ")
        if text and text[0] not in marks:
            raise ValueError("text behind a closing quote")
        text = text[1:]
    return '"' in text and _closed(marks).fullmatch(text) is None


CLOSING = re.compile(r'(?:[^"]++|"")*+"')
"""The rest of a cell in quotes, in which a quote is doubled."""


@functools.cache
def _closed(marks: str) -> re.Pattern[str]:
    """The pattern of lines whose quotes are closed; those within a cell without are its text."""
    cell = rf'(?: *+"{CLOSING.pattern}|(?! *"))[^{marks}]*+'
    return re.compile(rf"{cell}(?:[{marks}]{cell})*+")


@functools.cache
def _padded(mark: str) -> re.Pattern[str]:
    """The pattern of the start of a cell whose number begins with 0 and another digit."""
    return re.compile(rf'{mark}[\s"+-]*0\d')


def _unclosed(path: Path, number: int) -> InputError:
    what = f"Line {number} of {path} opens a quote that is not closed"
    return InputError(f"{what}: close it, or double it within a cell in quotes.")


def _physical(path: Path) -> Iterator[list[str]]:
    """The lines of the file without their ends, in blocks. Raises InputError if it is not text."""
    with path.open("rb") as file, _damage(path):
        stream = _unpacked(file)
        try:
            head = stream.peek(4)[:4]  # type: ignore[attr-defined]
            if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
                what = f"{path} is an archive or a spreadsheet, not text"
                raise InputError(f"{what}: save it as a plain .csv file.")
            encoding = next((MARKS[m] for m in MARKS if head.startswith(m)), "utf-8-sig")
            text = io.TextIOWrapper(stream, encoding)
            number, rest = 1, ""
            while piece := text.read(PIECE):
                lines = (rest + piece).split("\n")
                if number == 1 and not rest:
                    lines[0] = lines[0].lstrip("\ufeff")
                bad = _not_text(lines) if "\0" in piece or len(rest) + PIECE > LONGEST else None
                if bad is not None:
                    yield lines[:bad]
                    what = f"Line {number + bad} of {path} is not a line of text"
                    raise InputError(f"{what}: save it as a plain .csv file, in UTF-8.")
                rest = lines.pop()
                number += len(lines)
                yield lines
            if rest:
                yield [rest]
        except UnicodeError:
            raise InputError(f"{path} is not UTF-8 text: save it as a plain .csv file.") from None


def _not_text(lines: list[str]) -> int | None:
    """The index of the first line that is no text, or too long."""
    return next((i for i, t in enumerate(lines) if "\0" in t or len(t) >= LONGEST), None)


def _unpacked(file: BinaryIO) -> BinaryIO:
    """The file itself, or its decompressed stream if it is gzipped."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file


def _check_unpacked(path: Path) -> None:
    """Raises InputError if the file unpacks to far more than its size, before it is read."""
    with path.open("rb") as file, _damage(path):
        stream, unpacked = _unpacked(file), 0
        if stream is file:
            return
        size = path.stat().st_size
        while piece := stream.read(1 << 20):
            unpacked += len(piece)
            check_ratio(path, unpacked, size)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns the errors of a damaged gzip stream into an InputError."""
    try:
        yield
    except (EOFError, OSError, zlib.error):
        what = f"{path} is damaged: its gzip stream is broken or ends early"
        raise InputError(f"{what}; restore it from a copy.") from None


def _form(top: list[Line]) -> Form:
    """The form of the last of the first two lines, which holds numbers if there are any."""
    text = re.sub(r'"[^"]*"', "", top[-1].text)
    return Form(next((mark for mark in ";\t" if mark in text), ","))


def _has_names(path: Path, top: list[Line], form: Form, header: str, names: Sequence[str]) -> bool:
    """Whether the first line holds names. Raises InputError if that is ambiguous."""
    cells = form.cells(top[0].text)
    if header != "auto":
        return header == "yes"
    if names and sorted(map(tidy, cells)) == sorted(names):
        return True
    numbers = [c for c in cells if not np.isnan(_value(c))]
    words = [c for c in cells if np.isnan(_value(c)) and c.casefold() not in MISSING]
    where = f"Line {top[0].number} of {path}"
    if words and numbers:
        what = f"{where} holds {_short(words[0])!r} beside numbers such as {_short(numbers[0])!r}"
        raise InputError(f"{what}: {ASK}.")
    if words:
        return True
    if not numbers:
        what = f"{where} holds {_some(cells)}, which may be names or values that are missing"
        raise InputError(f"{what}: {ASK}.")
    if len(top) == 1 or len(numbers) < len(cells):
        return False
    if top[0].text.count('"') == 2 * len(cells) and '"' not in top[1].text:
        return True
    if _may_be_names(path, cells, form):
        what = f"{where} holds {_some(cells)}, which may be names or an example"
        raise InputError(f"{what}: {ASK}.")
    return False


def _may_be_names(path: Path, cells: list[str], form: Form) -> bool:
    """Whether a first line of numbers could name the columns.

    It could if the numbers are evenly spaced and rising. It could also if they are distinct
    integers, and the lines below are not integers, or are all far from them, or are not rising
    where more than 5 integers are.
    """
    first = np.array([_value(cell) for cell in cells])
    steps = np.diff(first)
    if len(cells) > 2 and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-9, atol=0):
        return True
    if not all(map(WHOLE.fullmatch, cells)) or len(set(cells)) < len(cells):
        return False
    below = [form.cells(line.text) for line in itertools.islice(_lines(path, form), 1, LOOK)]
    below = [row for row in below if np.isfinite([_value(c) for c in row]).all()]
    if not below or any(len(row) != len(cells) for row in below):
        return False
    values = np.array([[_value(cell) for cell in row] for row in below])
    low, high = values.min(axis=0), values.max(axis=0)
    return (
        not any(all(map(WHOLE.fullmatch, row)) for row in below)
        or bool((np.maximum(low - first, first - high) > np.maximum(high - low, 1)).all())
        or bool(len(cells) > 5 and (steps > 0).all() and (np.diff(values).min(axis=1) <= 0).any())
    )


def _check_names(path: Path, first: list[str], top: list[Line], form: Form) -> None:
    """Raises InputError unless every column of the first examples has a name."""
    if len(first) > 1 and not tidy(first[0]):
        what = f"The first column of {path} has no name, as an index of rows has"
        raise InputError(f"{what}: leave it out (in pandas: index=False).")
    if len(top) > 1 and len(first) != (n := len(form.cells(top[1].text))):
        what = f"Line {top[0].number} of {path} names {len(first)} columns and line "
        what += f"{top[1].number} has {n} cells"
        commas = ", with points for decimals" if n == 2 * len(first) else ""
        raise InputError(f"{what}: give the same number in every line{commas}.")


def _check_gaps(path: Path, form: Form) -> None:
    """Raises InputError for a blank line within a single column, where a value may be missing."""
    gap, begun = 0, False
    for line in _lines(path, form, blank=True):
        blank = not line.text.strip(BLANKS)
        begun |= not blank
        if begun and blank:
            gap = gap or line.number
        elif gap:
            what = f"Line {gap} of {path} is blank, where a value may be missing"
            raise InputError(f"{what}: fill it in, or take the line out.")


def _check_halves(
    path: Path, examples: Iterator[Line], form: Form, *, named: bool, width: int | None
) -> None:
    """Raises InputError for lines such as 1,5: two integers, or one number with a decimal comma."""
    if named or width == 2 or form.delimiter != ",":
        return
    first = next(examples)
    if HALVES.fullmatch(first.text.strip()) and all(
        HALVES.fullmatch(line.text.strip()) for line in examples
    ):
        what = f"Line {first.number} of {path} holds {_short(first.text.strip())}, as all lines do"
        raise InputError(
            f"{what}, which may be two whole numbers or one with a decimal comma: write decimals "
            f"with a point, or name both columns in the first line."
        )


def _check_no_thousands(path: Path, commas: Sequence[str]) -> None:
    """Raises InputError if there are cells whose commas may stand for thousands or decimals."""
    if commas:
        what = f"{path} holds {_short(commas[0])!r}, which may be thousands or decimals"
        raise InputError(f"{what}: write numbers without commas.")


def _with_decimals(path: Path, examples: Iterator[Line], form: Form) -> Form:
    """The form, with decimal commas if the first decimal numbers have them."""
    commas: list[str] = []
    for line in examples:
        if form.delimiter == "," and '"' not in line.text and not commas:
            if "." in line.text:
                break
            continue
        cells = form.cells(line.text)
        commas += [cell for cell in cells if "," in cell]
        if not commas and any("." in cell for cell in cells):
            break
        if any(not THOUSANDS.fullmatch(cell) for cell in commas):
            return Form(form.delimiter, comma=True)
    _check_no_thousands(path, commas)
    return form


def _plain(path: Path, line: Line, form: Form) -> str:
    if form.comma and "." in line.text:
        cell = next(cell for cell in form.cells(line.text) if "." in cell)
        what = f"Line {line.number} of {path} holds {_short(cell)!r} where others have decimal"
        raise InputError(f"{what} commas: write all decimals alike.")
    return form.plain(line.text)


class CellError(InputError):
    """A cell of a table of numbers holds a word, or nothing."""


def _bad_line(
    path: Path, examples: Iterator[Line], form: Form, *, first: tuple[int, int] | None = None
) -> InputError:
    """The error for the first line that cannot be read, or on the number of missing values.

    With `first`, the number of a line and of its cells, missing values are no error.
    """
    kinds = {";": "semicolons", "\t": "tabs", ",": "commas"}
    numbers, gaps = f"numbers separated by {kinds[form.delimiter]}", first is not None
    missing: list[tuple[int, int]] = []
    for line in examples:
        cells = form.cells(line.text)
        first = first or (line.number, len(cells))
        for column, cell in enumerate(cells, 1):
            if cell.casefold() in MISSING:
                missing.append((line.number, column))
            elif not _is_number(cell.replace(",", ".") if form.comma else cell):
                where = f"Line {line.number} of {path} holds {_short(cell)!r}"
                return CellError(f"{where}: give {numbers}.")
        if len(cells) != first[1]:
            what = f"Line {line.number} of {path} has {len(cells)} cells and line {first[0]} has"
            return InputError(f"{what} {first[1]}: give the same number in every line.")
    if not missing or gaps:
        what = f"{path} cannot be read as numbers"
        return InputError(f"{what}: give {numbers}, one example per line.")
    what = f"{path} lacks {len(missing)} of its values, the first in column {missing[0][1]} of line"
    return CellError(f"{what} {missing[0][0]}: fill them in, or leave their lines out.")


def _value(cell: str) -> float:
    """The number in a cell, whether its commas are decimal or thousands; NaN if it has none."""
    for text in (cell, cell.replace(",", "."), cell.replace(",", "")):
        if _is_number(text):
            return float(text)
    return np.nan


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _short(cell: str) -> str:
    return cell if len(cell) <= 40 else f"{cell[:40]}…"


def _some(cells: list[str]) -> str:
    """The first cells and the last."""
    shown = [_short(cell) or "nothing" for cell in cells]
    return ", ".join(shown if len(shown) <= 3 else [*shown[:2], "…", shown[-1]])
