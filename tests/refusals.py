"""What bad input must raise."""

import re

import pytest

from iwae.errors import InputError


def refused(sentence: str) -> pytest.RaisesExc:
    return pytest.raises(InputError, match=f"^{re.escape(sentence)}$")
