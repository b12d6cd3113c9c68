"""What bad input must raise."""

import re

import pytest

from iwae.errors import InputError


def refused(sentence: str) -> pytest.RaisesExc:
    """The whole sentence; after it, jax may add lines of its own."""
    return pytest.raises(InputError, match=f"^{re.escape(sentence)}(\n|$)")
