"""The plan of the house: imports go one way, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import iwae

SOURCE = Path(iwae.__file__).parent

ROWS = [
    ("errors", "_utils.checks"),
    (
        "_utils.files",
        "persisted",
        "_utils.distributed",
        "config.schema",
        "config.io",
        "_utils.threefry",
        "_utils.formatting",
        "tables",
        "papers",
        "data",
    ),
    ("_utils.programs",),
    ("special", "densities", "starts", "draws", "likelihoods", "observation", "networks"),
    ("model",),
    ("bayesian", "proposals", "build"),
    ("bounds.jackknife", "bounds"),
    ("gradients", "evaluation", "posterior", "svi", "laboratory", "targets"),
    ("soap", "training", "checkpoint"),
    ("folder", "trained"),
    ("loop",),
    ("runs",),
    ("figures",),
    ("report",),
    (
        "experiments",
        "measures",
        "cells",
        "workers",
        "replication",
        "reproduce",
        "records",
        "results",
        "plates",
        "dependence",
    ),
    ("terminal", "outputs", "flags", "progress"),
    ("applied", "research", "published"),
    ("cli",),
]
"""From the ground up; a module may import from its own row's left neighbours and from below."""

ORDER = {name: i for i, name in enumerate(name for row in ROWS for name in row)}


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at the top or within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "iwae":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iwae."):
            module = (node.module or "").removeprefix("iwae.")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("iwae.") for a in node.names}
    return {".".join(n.split(".")[:i]) for n in names for i in (1, 2)} & ORDER.keys()


def _module(path: Path) -> str:
    """The dotted name of a module; of data sets, all of which have one place, their package's."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    name = ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])
    return "data" if parts[0] == "data" else name


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_module_has_its_place() -> None:
    packages = {_module(p) for p in FILES if p.name == "__init__.py"} | {"__init__"}
    assert {_module(p) for p in FILES} - packages == ORDER.keys() - packages


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = _module(path)
    if own not in ORDER:
        return
    above = {n for n in _imported(path) if ORDER[n] > ORDER[own]}
    assert not above, f"{own} imports from above: {sorted(above)}"


@pytest.mark.parametrize("statement", ["import iwae", "import iwae.cli", "import iwae.data"])
def test_light_imports_do_not_load_jax(statement: str) -> None:
    code = f"{statement}; import sys; raise SystemExit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_core_needs_no_plotting_or_terminal_library() -> None:
    code = (
        "import iwae.runs, sys; "
        "heavy = {'matplotlib', 'rich', 'tyro', 'sklearn', 'PIL', 'pooch', 'jinja2'}; "
        "raise SystemExit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
