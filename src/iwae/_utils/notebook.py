"""What objects show of themselves in a notebook."""

from collections.abc import Sequence
from html import escape


def html_table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what stands beside them; both are text, not HTML."""
    line = "<tr><th style='text-align: left'>{}</th><td style='text-align: left'>{}</td></tr>"
    return f"<table>{''.join(line.format(escape(a), escape(b)) for a, b in rows)}</table>"
