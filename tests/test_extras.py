"""What is optional is asked for by the name of its extra, and the core does without all of it."""

import io
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import iwae
from iwae._utils.extras import COMMAND_LINE, EXTRAS, require
from iwae.data import characters, files, in_use
from iwae.experiments import executors
from iwae.plotting import figures, report

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Libraries that are installed under another name than they are imported by."""


def hide(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """As though the library was not installed."""
    for name in [n for n in sys.modules if n.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)


def _characters() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.png", b"")
    characters.read_characters(content.getvalue(), blob="", pixels="")


USES: list[tuple[str, Callable[[Path], object], str]] = [
    ("sklearn", lambda _: iwae.data.load("digits"), "digits needs scikit-learn.*data"),
    ("pooch", lambda to: files.download("https://x.invalid", to / "x"), "download needs pooch"),
    ("PIL", lambda _: _characters(), r"Omniglot-raw needs Pillow.*'iwae\[data\]'"),
    ("PIL", lambda _: figures.png(np.zeros((2, 2), np.uint8)), r"needs Pillow.*iwae\[report\]"),
    ("matplotlib", lambda _: figures.training_curves([]), "A picture needs matplotlib"),
    ("matplotlib", lambda to: report.write([to], to / "x.html"), "A report needs matplotlib"),
    ("jinja2", lambda to: report.write([to], to / "x.html"), "A report needs Jinja2"),
    ("distributed", lambda _: executors.cluster("tcp://x:1"), "needs Dask's distributed"),
]


@pytest.mark.parametrize(("library", "use", "message"), USES)
def test_a_library_that_is_missing_is_asked_for_by_its_extra(
    library: str,
    use: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, library)
    monkeypatch.setattr(in_use, "_in_use", {})  # nothing that another test holds
    with pytest.raises(iwae.InputError, match=message) as raised:
        use(tmp_path)
    assert "which is not installed; pip install 'iwae[" in str(raised.value)


def test_what_another_library_lacks_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        require("half_installed", purpose="this", extra="data")


def _names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


@pytest.mark.parametrize(("library", "extra"), EXTRAS.items())
def test_each_library_is_in_the_extra_that_is_named_and_not_in_the_core(
    library: str, extra: str
) -> None:
    distribution = DISTRIBUTIONS.get(library, library)
    assert distribution not in _names(PROJECT["dependencies"])
    if library != "markupsafe":  # which comes with Jinja2
        assert distribution in _names(PROJECT["optional-dependencies"][extra])


def test_the_extra_all_has_every_extra_that_a_user_may_want() -> None:
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    both = {"sklearn"}  # the libraries of data and of tables
    assert everything.extras == set(EXTRAS.values()) | both
    others = {"all", "bench", "dev", "gpu"}
    assert everything.extras | others == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_the_core_trains_evaluates_and_keeps_a_run_without_any_of_them(tmp_path: Path) -> None:
    hidden = [*EXTRAS, *COMMAND_LINE, "pandas", "polars", "torch", "IPython"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({hidden!r}))
import numpy as np
import iwae
x = np.random.default_rng(0).integers(0, 2, (20, 6))
made = iwae.train(data=x, k=2, epochs=1, hidden=((4,),), latents=(2,), out="run")
print(iwae.evaluate(iwae.load("run", data=x), k=2).nll == iwae.evaluate(made, k=2).nll)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize("library", COMMAND_LINE)
def test_the_command_line_says_what_it_lacks(library: str) -> None:
    hidden = f"import sys; sys.modules[{library!r}] = None"
    run = "from iwae.cli import main; main(['data'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}; {run}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"iwae: The command line needs {library}, which is not installed; pip install iwae.\n"
    )
