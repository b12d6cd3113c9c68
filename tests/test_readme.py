"""What the README and the documentation show can be run."""

import importlib
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwae
from iwae import bounds
from iwae.cli.app import COMMANDS, main, parse
from iwae.estimators import surrogate_loss

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
CALLBACKS = (ROOT / "docs" / "callbacks.md").read_text()
TABLES = (ROOT / "docs" / "tutorial-tables.md").read_text()


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.slow
def test_every_extension_is_short_and_does_what_it_says() -> None:
    names: dict[str, Any] = {}
    for code in examples(EXTENDING):
        assert len([line for line in code.splitlines() if line]) < 20
        exec(code, names)
        assert np.isfinite(names.get("value", 0.0))
    log_w = jnp.array([-3.0, -2.0, -2.5])
    chi_squared = partial(bounds.vr_iwae, alpha=-1.0)
    np.testing.assert_allclose(names["cubo"](log_w), chi_squared(log_w), rtol=1e-6)
    np.testing.assert_allclose(names["h_ii"], bounds.curvature(chi_squared, log_w), rtol=1e-5)
    model, x, key = names["model"], names["x"], names["key"]
    one_mode = names["MixturePrior"](model, jnp.zeros((1, 2)))
    given: dict[str, Any] = {"bound": bounds.iwae, "k": 8}
    plain, wrapped = (surrogate_loss(m, x, key, **given)[1] for m in (model, one_mode))
    np.testing.assert_allclose(wrapped, plain, rtol=1e-6)
    assert names["scores"].shape == (5,)
    assert names["trained"].own.keys() == {"model", "bound", "estimator"}


@pytest.mark.slow
def test_the_callback_that_is_shown_prints_every_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples(CALLBACKS)
    names: dict[str, Any] = {}
    exec(code, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1: -")
    assert len(lines) == names["model"].epochs + 1


@pytest.mark.slow
def test_the_estimator_that_is_shown_lies_halfway() -> None:
    names: dict[str, Any] = {}
    for code in examples(EXTENDING)[:3]:
        exec(code, names)
    model, x, key = names["model"], names["x"], names["key"]

    @eqx.filter_jit
    def gradient(by: Any) -> Any:
        return eqx.filter_grad(
            lambda m: surrogate_loss(m, x, key, bound=bounds.iwae, k=8, estimator=by)[0]
        )(model)

    each = [jax.tree.leaves(gradient(by)) for by in (names["halfway"], "dreg", "reparam")]
    for half, dreg, reparam in zip(*each, strict=True):
        np.testing.assert_allclose(half, (dreg + reparam) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_table_of_ones_own_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (content,) = re.findall(r"```toml\n(.*?)```", EXTENDING, flags=re.DOTALL)
    assert tomllib.loads(content)["rows"]
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(content)
    main(["reproduce", "own.toml", "--dry-run"])
    assert "2 runs to make" in capsys.readouterr().out


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == {
        p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_links_to_or_names_is_there(page: Path) -> None:
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (page.parent / link).exists(), link
    code = "".join(re.findall(r"`[^`]+`|^```python\n.*?^```", text, flags=re.DOTALL | re.MULTILINE))
    if page.name == "CHANGELOG.md":  # which tells of what was
        return
    for name in re.findall(r"\biwae((?:\.[A-Za-z_]\w*)+)", code):
        _resolve(name.split(".")[1:])


def _resolve(names: list[str]) -> object:
    """What `iwae.a.b.c` stands for, be it a module or what is in one."""
    found: Any = iwae
    for i, name in enumerate(names):
        try:
            found = getattr(found, name)
        except AttributeError:
            found = importlib.import_module(".".join(["iwae", *names[: i + 1]]))
    return found


def test_one_version_is_given_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/iwae/__init__.py"
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [iwae.__version__]


def test_changes_are_kept_by_kind() -> None:
    """Keep a Changelog: what is not released has the headings that it knows."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    unreleased = changes.partition("## Unreleased")[2].partition("\n## ")[0]
    kinds = re.findall(r"^### (.*)$", unreleased, flags=re.MULTILINE)
    known = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert kinds == sorted(set(kinds), key=known.index)
    assert f"## {iwae.__version__}" in changes


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


def _patients(n: int = 120) -> str:
    """A table like that of the tutorial, whose last patient is odd."""
    rng = np.random.default_rng(0)
    age = rng.normal(60, 12, n).round()
    columns: list[Any] = [
        age.astype(int),
        rng.choice(["male", "female"], n),
        rng.choice(["never", "former", "current"], n),
        (100 + age / 2 + rng.normal(0, 8, n)).round(1),
        rng.negative_binomial(2, 0.3, n),
        np.exp(rng.normal(1, 0.8, n)).round(2),
        rng.integers(0, 7, n),
    ]
    rows = [
        [str(v) if rng.random() > 0.1 else "" for v in row] for row in zip(*columns, strict=True)
    ]
    rows[-1] = ["61", "male", "never", "310", "50", "0.01", "6"]
    header = TABLES.partition("```\n")[2].splitlines()[0]
    return "\n".join([header, *map(",".join, rows)]) + "\n"


@pytest.mark.slow
def test_the_tutorial_of_tables_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("patients.csv").write_text(_patients())
    (code,) = examples(TABLES)
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(code, {})
    assert "row 120: " in capsys.readouterr().out.splitlines()[0]
    before, after = (Path(f"{name}.csv").read_text() for name in ("patients", "filled"))
    assert ",," in before
    assert ",," not in after
    assert "<title>" in Path("patients.html").read_text()


def test_the_command_lines_of_the_tutorial_show_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("patients.csv").write_text(_patients())
    lines = re.findall(r"^iwae (\w+) (.*)$", TABLES, flags=re.MULTILINE)
    assert {name for name, _ in lines} >= {"data", "train", "impute", "anomalies", "report"}
    for name, arguments in lines:
        parse(name, arguments.split())
        if name == "data":
            main([name, *arguments.split()])
    words = capsys.readouterr().out.split()
    assert {"count", "binary", "categorical", "positive", "ordinal"} <= set(words)
    assert tomllib.loads(Path("types.toml").read_text())["pain"]["type"] == "ordinal"


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
