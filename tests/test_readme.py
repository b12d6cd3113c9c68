"""What the README and the documentation show can be run."""

import re
from pathlib import Path

import numpy as np
import pytest

import iwae
from iwae.cli.app import COMMANDS, parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_examples_of_gradients_train_to_the_maximum() -> None:
    text = (ROOT / "docs" / "gradients.md").read_text()
    values, own, posterior, one_line_each, interop = examples(text)
    exec(values, {})
    names: dict = {}
    exec(own, names)
    params = names["model"].params
    np.testing.assert_allclose(params["prior"], names["x"].mean(0), atol=0.15)
    np.testing.assert_allclose(params["gain"], 0.5, atol=0.1)
    np.testing.assert_allclose(params["log_s"], np.log(0.5) / 2, atol=0.1)
    exec(posterior, names)
    assert names["Wider"].own_proposal
    exec(one_line_each, names)
    assert names["median"].name == "median"
    exec(interop, names)
    fitted = names["result"].params
    assert fitted["prior"] == pytest.approx(0.9, abs=0.1)
    assert fitted["scale"] == pytest.approx(np.sqrt(0.5), abs=0.1)


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (code,) = examples(README)
    assert len(code.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace('"epochs": 50', '"epochs": 2').replace("k=1000", "k=10"), names)
    assert len(capsys.readouterr().out.split()) == 2
    assert names["scores"].shape == (400,)
    assert names["codes"].shape == (400, 20)
    assert names["images"].shape == (100, 8, 8)


def test_the_layout_names_every_file() -> None:
    layout = README.partition("## Layout")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w]+)(?:\.py|/)`", layout))
    source = Path(iwae.__file__).parent
    packages = {p.parent.name for p in source.glob("*/__init__.py")}
    assert named == {p.stem for p in source.glob("*.py")} - {"__init__"} | packages


def test_every_record_that_is_named_is_there() -> None:
    texts = [
        p.read_text() for p in (*ROOT.glob("*.md"), *ROOT.glob("src/iwae/config/presets/*.toml"))
    ]
    named = set(re.findall(r"[\w-]*table1[\w-]*\.json", " ".join(texts)))
    assert named
    assert named <= {p.name for p in (ROOT / "results" / "reproduced").iterdir()}


def test_every_command_line_parses() -> None:
    lines = re.findall(r"^iwae (\w+) (.*?)(?:  +#.*)?$", README, flags=re.MULTILINE)
    assert {name for name, _ in lines} == COMMANDS.keys() - {"demo"}
    for name, arguments in lines:
        parse(name, arguments.split())
