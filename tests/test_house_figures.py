"""What `python -m benchmarks.house` counts."""

from pathlib import Path

import pytest

from benchmarks import house

FILES = {
    "__init__.py": "from iwae.models.net import Net\n",
    "errors.py": "class InputError(ValueError): ...\n",
    "bounds/__init__.py": "from iwae import errors\n",
    "models/__init__.py": "",
    "models/net.py": (
        "from typing import TYPE_CHECKING, Any\n"
        "from iwae.bounds import iwae\n"
        "if TYPE_CHECKING:\n"
        "    from iwae import cli\n"
        "def asks(model: Any) -> Any:\n"
        "    return getattr(type(model), 'block', getattr(house, 'x', 1))\n"
    ),
    "cli.py": "def main():\n    from iwae.models.net import asks\n" + "    1\n" * 60,
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "src" / "iwae" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_the_figures_of_a_checkout(checkout: Path) -> None:
    figures = house.measured(checkout, follow=False)
    assert figures.sizes == {"bounds": (1, 1), "cli": (1, 62), "errors": (1, 1), "models": (2, 6)}
    assert figures.chain == ["cli", "models.net", "bounds", "errors"]
    assert figures.edges == 3
    assert figures.long == {"cli:main": 62}
    assert figures.any == {"models": 2}
    assert figures.asked == ["models.net:6"]
    assert house.rows(figures)["uses of Any"] == "2"


def test_a_circle_is_left_where_it_would_close() -> None:
    assert house.longest_chain({"a": {"b"}, "b": {"a", "c"}, "c": set()}) == ["a", "b", "c"]


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no src/iwae; give the folder of a checkout"):
        house.measured(tmp_path)


@pytest.mark.slow
def test_every_call_is_followed_to_the_bound(tmp_path: Path) -> None:
    for way in house.ways(house.HERE, folder=tmp_path).values():
        assert way is not None
        assert way[-1][1] in ("iwae", "log_likelihood")
