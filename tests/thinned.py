"""Parameters of which the default suite takes some, and `pytest -m slow` the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(values: Iterable[Any], *taken: Any) -> list[Any]:
    """All values, each a parameter or a tuple of them; those that are not `taken` are slow."""
    together = lambda value: value if isinstance(value, tuple) else (value,)
    late = lambda value: pytest.param(*together(value), marks=pytest.mark.slow)
    return [value if value in taken else late(value) for value in values]
