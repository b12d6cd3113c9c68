"""The plan of the house: imports go one way, and what is light stays light."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import iwae
from iwae import _moved

SOURCE = Path(iwae.__file__).parent

ORDER = (
    "_moved",
    "errors",
    "_utils",
    "config",
    "bounds",
    "data",
    "models",
    "storage",
    "estimators",
    "evaluation",
    "training",
    "runs",
    "sklearn",
    "plotting",
    "numpyro",
    "experiments",
    "cli",
)
"""From the ground up; a package imports from those before it, and from itself."""

ASKED_BY_ALL = "estimators.rules"
"""States rules, imports nothing of the house but `errors` and `_utils`, and so may be asked from
anywhere."""


def _name(path: Path) -> str:
    """The dotted name of a module within the package, a package's own without `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(p): p for p in sorted(SOURCE.rglob("*.py"))}


def _imported(path: Path) -> set[str]:
    """Modules of iwae that a file imports, at the top or within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "iwae":
            module = (node.module or "").removeprefix("iwae").lstrip(".")
            names |= {module, *(f"{module}.{a.name}".lstrip(".") for a in node.names)}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("iwae.") for a in node.names}
    return names & (MODULES.keys() - {""})


def test_every_package_has_its_place() -> None:
    assert {name.split(".")[0] for name in MODULES} - {""} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package: str) -> None:
    for name, path in MODULES.items():
        if name.split(".")[0] == package:
            imported = {other.split(".")[0] for other in _imported(path) - {ASKED_BY_ALL}}
            above = {n for n in imported if ORDER.index(n) > ORDER.index(package)}
            assert not above, f"{name} imports from above: {sorted(above)}"


def test_what_is_asked_from_anywhere_stands_on_the_ground() -> None:
    """And its package is run with it, without what else is in there."""
    imported = {name.split(".")[0] for name in _imported(MODULES[ASKED_BY_ALL])}
    assert imported <= {"errors", "_utils"}
    code = (
        f"import sys, iwae.config, iwae.{ASKED_BY_ALL}; "
        "loaded = {n for n in sys.modules if n.split('.')[0] in ('jax', 'equinox')}; "
        "loaded |= {n for n in sys.modules if n.startswith(('iwae.bounds', 'iwae.models'))}; "
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not even by what `import` does besides: to run the packages around a module."""
    imports = {name: _imported(path) - {name} for name, path in MODULES.items()}
    order = graphlib.TopologicalSorter(
        {
            name: {i for i in of if not name.startswith(f"{i}.")}
            for name, of in imports.items()
            if name
        }
    )
    assert tuple(order.static_order())


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


@pytest.mark.parametrize("name", sorted(_moved.MODULES))
def test_modules_are_found_under_their_former_names(name: str) -> None:
    sys.modules.pop(f"iwae.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"iwae.{name} is iwae.{_moved.MODULES[name]} now"):
        former = importlib.import_module(f"iwae.{name}")
    present = importlib.import_module(f"iwae.{_moved.MODULES[name]}")
    assert [
        n for n, v in vars(present).items() if n[0] != "_" and getattr(former, n) is not v
    ] == []


@pytest.mark.parametrize("name", iwae.__all__)
def test_public_names_are_found_and_listed(name: str) -> None:
    assert getattr(iwae, name) is not None
    assert name in dir(iwae)


def test_a_type_checker_knows_the_public_names() -> None:
    """They are found lazily, so that what is imported for types alone has to name them all."""
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    named = {
        a.asname for node in typed.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    assert named == set(iwae.__all__) - {"__version__"}
