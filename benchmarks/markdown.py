"""Tables in Markdown."""

from collections.abc import Iterable


def section(title: str, heads: list[str], rows: Iterable[list[str]]) -> str:
    """A titled table; nothing if it has no rows."""
    body = list(rows)
    if not body:
        return ""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *body)]
    return "\n".join([f"## {title}", "", *lines, ""])


def number(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:#.3g}".rstrip(".")
