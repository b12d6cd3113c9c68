"""A .csv file with its holes filled, and every other character as it was."""

import gzip
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from iwae.data.tables import BLANKS, MARKS, MISSING, Form, ends_within_quotes, form_of

LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|$)")
"""A line and its end."""

NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")

Holes = Mapping[int, tuple[Bool[np.ndarray, " n"], np.ndarray]]
"""By the position of a column: where it has holes [n], and the values that fill them, in order."""


@dataclass(frozen=True)
class CsvText:
    """The text of a .csv file, divided into lines."""

    lines: tuple[tuple[str, str], ...]
    """Each line and its end; one with line breaks in quotes is several of the file."""
    rows: tuple[int, ...]
    """The numbers of the lines that hold an example, from 0."""
    header: int | None
    """The number of the line of names."""
    form: Form
    encoding: str
    mark: bool
    """Whether the text starts with a byte-order mark."""

    @classmethod
    def read(cls, path: Path, *, header: str = "auto", names: Sequence[str] = ()) -> "CsvText":
        """The text of a file that `read_table` reads with these arguments, packed or not."""
        form, named = form_of(path, header=header, names=names)
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        encoding = next((MARKS[m] for m in MARKS if content.startswith(m)), "utf-8")
        text = content.decode(encoding)
        lines = _joined(LINE.finditer(text.lstrip("\ufeff")), form.delimiter)
        full = [i for i, (line, _) in enumerate(lines) if line.strip(BLANKS)]
        return cls(
            lines=tuple(lines),
            rows=tuple(full[1:] if named else full),
            header=full[0] if named else None,
            form=form,
            encoding=encoding,
            mark=text.startswith("\ufeff"),
        )

    def filled(self, holes: Holes) -> bytes:
        """The file with its holes filled."""
        made = [line for line, _ in self.lines]
        for at, row in zip(self.rows, self._filled_rows(holes), strict=True):
            made[at] = row
        return self._written(row + end for row, (_, end) in zip(made, self.lines, strict=True))

    def stacked(self, imputations: Sequence[Holes]) -> bytes:
        """The rows as they are, and below them those of each filling, as mice's long format.

        Two columns come first: `.imp`, 0 for the rows as they are and then the number of the
        imputation, and `.id`, the number of the row from 1.
        """
        mark, end = self.form.delimiter, self.lines[self.rows[0]][1] or "\n"
        first = "" if self.header is None else self.lines[self.header][0]
        made = [f".imp{mark}.id{mark}{first}{end}"] if first else []
        for number, holes in enumerate([{}, *imputations]):
            rows = enumerate(self._filled_rows(holes), start=1)
            made += [f"{number}{mark}{i}{mark}{row}{end}" for i, row in rows]
        return self._written(made)

    def _filled_rows(self, holes: Holes) -> list[str]:
        """The rows with their holes filled."""
        texts: dict[int, dict[int, str]] = {}
        for column, (gaps, values) in holes.items():
            for row, value in zip(np.flatnonzero(gaps).tolist(), values.tolist(), strict=True):
                texts.setdefault(row, {})[column] = self._cell(value)
        rows = [self.lines[at][0] for at in self.rows]
        for row, cells in texts.items():
            places = spans(rows[row], self.form)
            for column in sorted(cells, reverse=True):
                start, end = places[column]
                if is_hole(rows[row][start:end]):
                    rows[row] = rows[row][:start] + cells[column] + rows[row][end:]
        return rows

    def _cell(self, value: str | float | bool) -> str:
        """A value as a cell: 7 digits, the file's decimal mark, and quotes where they are needed.

        7 digits are those of float32.
        """
        number = isinstance(value, float) and not isinstance(value, bool)
        text = f"{value:.7g}" if number else str(value)
        if self.form.comma and NUMBER.fullmatch(text):
            text = text.replace(".", ",")
        if any(c in text for c in (self.form.delimiter, '"', "\n")) or text != text.strip():
            return '"{}"'.format(text.replace('"', '""'))
        return text

    def _written(self, lines: Iterable[str]) -> bytes:
        return ("\ufeff" * self.mark + "".join(lines)).encode(self.encoding)


def _joined(found: Iterable[re.Match[str]], mark: str) -> list[tuple[str, str]]:
    """Each line and its end; those that end within a cell in quotes are joined with the next."""
    lines: list[tuple[str, str]] = []
    inside = False
    for line, end in (m.groups() for m in found if m[0]):
        before = "".join(lines.pop()) if inside else ""
        inside = ends_within_quotes(line, mark, inside=inside)
        lines.append((before + line, end))
    return lines


def is_hole(cell: str) -> bool:
    """Whether the text of a cell stands for a missing value."""
    return cell.strip('"').strip().casefold() in MISSING


def spans(text: str, form: Form) -> list[tuple[int, int]]:
    """Where each cell of a line starts and ends, without blanks around it, but with its quotes."""
    edges = [-1, *_delimiters(text, form.delimiter), len(text)]
    found = []
    for before, after in itertools.pairwise(edges):
        cell = text[before + 1 : after]
        start = before + 1 + len(cell) - len(cell.lstrip(" \t"))
        found.append((start, max(start, before + 1 + len(cell.rstrip(" \t")))))
    return found


def _delimiters(text: str, mark: str) -> list[int]:
    """The positions of the delimiters that stand outside quotes."""
    quoted, opening, found = False, True, []
    for i, c in enumerate(text):
        if quoted:
            quoted = c != '"'
        elif c == '"' and (opening or text[i - 1] == '"'):
            quoted = True
        elif c == mark:
            found.append(i)
            opening = True
            continue
        opening = opening and c == " "
    return found
