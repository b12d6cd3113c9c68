"""HTML representations for notebooks."""

from collections.abc import Sequence
from html import escape


def html_table(rows: Sequence[tuple[str, str]]) -> str:
    """A table of (name, value) rows; both are text, and are escaped."""
    line = "<tr><th style='text-align: left'>{}</th><td style='text-align: left'>{}</td></tr>"
    return f"<table>{''.join(line.format(escape(a), escape(b)) for a, b in rows)}</table>"
