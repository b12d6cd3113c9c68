"""The README's claims that can be run."""

import re
from pathlib import Path

import pytest

from iwae.cli import COMMANDS, parse

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace("epochs=50", "epochs=2").replace("k=1000", "k=10"), names)
    assert len(capsys.readouterr().out.split()) == 2
    assert names["scores"].shape == (400,)
    assert names["codes"].shape == (400, 20)
    assert names["images"].shape == (100, 8, 8)


def test_every_command_line_parses() -> None:
    lines = re.findall(r"^iwae (\w+) (.*?)(?:  +#.*)?$", README, flags=re.MULTILINE)
    assert {name for name, _ in lines} == COMMANDS.keys() - {"demo"}
    for name, arguments in lines:
        parse(name, arguments.split())
