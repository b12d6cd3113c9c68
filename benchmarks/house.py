"""`python -m benchmarks.house [--against PATH]`: figures of the code, here and in another checkout.

How large packages are and how they hang together, what is long or loosely typed, and how many
functions a K passes on its way from a command to the bound.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent.parent
LONG = 60
"""Lines beyond which a function is named."""


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    """Dotted, within the package; that of a package's own file is the package's."""
    lines: int
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def modules(root: Path) -> dict[str, Module]:
    """All modules of the checkout, by their names; the package's own first file has none."""
    source = root / "src" / "iwae"
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text("utf-8")
        found[name] = Module(name, len(text.splitlines()), ast.parse(text))
    found.pop("", None)
    return found


def imports(all_modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Modules that each imports, at the top or within functions, but not for types alone."""
    return {
        name: set(_imported(module.tree, all_modules.keys())) - {name}
        for name, module in all_modules.items()
    }


def _imported(tree: ast.Module, known: Set[str]) -> Iterator[str]:
    """Of `known` modules those that are named; of `from package import module` the module alone."""
    for node in _run(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "iwae":
            module = (node.module or "").removeprefix("iwae").lstrip(".")
            for alias in node.names:
                within = f"{module}.{alias.name}".lstrip(".")
                yield from {within if within in known else module} & known
        elif isinstance(node, ast.Import):
            yield from {alias.name.removeprefix("iwae.") for alias in node.names} & known


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below that are run, without `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _run(child)


def longest_chain(edges: Mapping[str, set[str]]) -> list[str]:
    """The longest way along edges; a circle is left where it would close."""
    longest: dict[str, list[str]] = {}

    def below(name: str, above: frozenset[str]) -> list[str]:
        if name not in longest:
            further = sorted(edges[name] - above)
            ways = [below(other, above | {name}) for other in further]
            longest[name] = [name, *max(ways, key=len, default=[])]
        return longest[name]

    return max((below(name, frozenset({name})) for name in sorted(edges)), key=len, default=[])


def package_edges(edges: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Pairs of packages of which the first imports from the second."""
    top = lambda name: name.partition(".")[0]
    return {
        (top(name), top(other))
        for name, others in edges.items()
        for other in others
        if top(name) != top(other)
    }


def long_functions(all_modules: Mapping[str, Module]) -> dict[str, int]:
    """Lines of the functions that have more than `LONG`, longest first."""
    found: dict[str, int] = {}
    for module in all_modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONG:
                    found[f"{module.name}:{node.name}"] = lines
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def uses_of_any(all_modules: Mapping[str, Module]) -> Counter[str]:
    """How often `Any` stands in each package, imports left out."""
    counts: Counter[str] = Counter()
    for module in all_modules.values():
        names = (node for node in ast.walk(module.tree) if isinstance(node, ast.Name))
        counts[module.package] += sum(node.id == "Any" for node in names)
    return +counts


def questions_to_models(all_modules: Mapping[str, Module]) -> list[str]:
    """Places where a model is asked by `hasattr` or `getattr` what it is."""
    return [
        f"{module.name}:{node.lineno}"
        for module in all_modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and node.args
        and "model" in ast.unparse(node.args[0])
    ]


# The way of K

CALLS: dict[str, str] = {
    "iwae train --k 50": "main(['train', '--dataset', 'x.npy', '--out', 'new', *SMALL])",
    "iwae evaluate RUN --k 50": "main(['evaluate', 'run', '--k', '50'])",
    "iwae.train(data=…, k=50)": "iwae.train(data=x, k=50, epochs=1, hidden=((5,),), latents=(2,))",
    "iwae reproduce, a cell": (
        "main(['reproduce', 'table1', '--recipe', 'smoke', '--cells', 'digits/1/iwae-50', '--out', "
        "'table'])"
    ),
}
"""What is called, by how it is shown; each is stopped where it comes to the bound."""

FOLLOW = """
import contextlib, io, json, os, sys, threading
from pathlib import Path
import numpy as np
import iwae
from iwae.cli import main

SOURCE = str(Path(iwae.__file__).parent)
SMALL = ["--k", "50", "--epochs", "1", "--hidden", "4", "--latents", "2"]
x = np.random.default_rng(0).integers(0, 2, (40, 6)).astype(np.float32)
np.save("x.npy", x)


class There(BaseException):
    pass


def arrives(frame, event, _):
    code = frame.f_code
    place = code.co_filename.removeprefix(SOURCE).lstrip("/")
    bound = code.co_name == "iwae" and place.startswith("bounds")
    estimate = code.co_name == "log_likelihood" and place.startswith("evaluation")
    if event == "call" and code.co_filename.startswith(SOURCE) and (bound or estimate):
        found = list(above(frame))
        if threading.current_thread() is not threading.main_thread():  # which waits for this one
            found += above(sys._current_frames()[threading.main_thread().ident])
        threading.setprofile(None)
        sys.setprofile(None)
        ways.append(list(dict.fromkeys(reversed(found))))
        raise There


def above(frame):
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(SOURCE) and not code.co_name.startswith("<"):
            place = code.co_filename.removeprefix(SOURCE).lstrip("/")
            yield place, getattr(code, "co_qualname", code.co_name)
        frame = frame.f_back


ways, every = [], {}
for name, call in json.loads(sys.argv[1]).items():
    ways.clear()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if "evaluate" in call:
            main(["train", "--dataset", "x.npy", "--out", "run", *SMALL])
        threading.setprofile(arrives)
        sys.setprofile(arrives)
        try:
            eval(call)
        except (There, SystemExit, RuntimeError):
            pass
        threading.setprofile(None)
        sys.setprofile(None)
    every[name] = ways[0] if ways else None
print(json.dumps(every))
os._exit(0)
"""

Way = list[tuple[str, str]]
"""(file, function), from the command to the bound."""


def ways(root: Path, calls: Mapping[str, str] = CALLS, *, folder: Path) -> dict[str, Way | None]:
    """The functions on the stack when each call of the checkout at `root` comes to the bound."""
    environment = os.environ | {
        "PYTHONPATH": str(root.resolve() / "src"),
        "JAX_PLATFORMS": "cpu",
        "IWAE_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, json.dumps(calls)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{root} could not be followed: {done.stderr.strip()}")
    found: dict[str, Way | None] = json.loads(done.stdout.splitlines()[-1])
    return found


# What is printed


@dataclass(frozen=True)
class House:
    """The figures of one checkout."""

    sizes: dict[str, tuple[int, int]]
    """Modules and lines of each package."""
    chain: list[str]
    edges: int
    long: dict[str, int]
    any: Counter[str]
    asked: list[str]
    ways: dict[str, Way | None]


def measured(root: Path, *, follow: bool = True) -> House:
    """The figures of the checkout at `root`; with `follow` K is followed too."""
    found = modules(root)
    if not found:
        raise SystemExit(f"{root} has no src/iwae; give the folder of a checkout.")
    sizes: dict[str, tuple[int, int]] = {}
    for module in found.values():
        count, lines = sizes.get(module.package, (0, 0))
        sizes[module.package] = (count + 1, lines + module.lines)
    edges = imports(found)
    passed: dict[str, Way | None] = {}
    if follow:
        with tempfile.TemporaryDirectory() as folder:
            passed = ways(root, folder=Path(folder))
    return House(
        sizes=sizes,
        chain=longest_chain(edges),
        edges=len(package_edges(edges)),
        long=long_functions(found),
        any=uses_of_any(found),
        asked=questions_to_models(found),
        ways=passed,
    )


def rows(house: House) -> dict[str, str]:
    """The figures by what they are of."""
    sizes = house.sizes.values()
    figures = {
        "packages": str(len(sizes)),
        "modules": str(sum(count for count, _ in sizes)),
        "lines": f"{sum(lines for _, lines in sizes):,}",
        "longest chain of imports": str(len(house.chain)),
        "imports between packages": str(house.edges),
        f"functions of more than {LONG} lines": str(len(house.long)),
        "uses of Any": str(house.any.total()),
        "hasattr and getattr on models": str(len(house.asked)),
    }
    for name, way in house.ways.items():
        files = len({file for file, _ in way or ()})
        figures[name] = f"{len(way)} functions, {files} files" if way else "not followed"
    return figures


def details(house: House) -> Iterator[str]:
    """What stands behind the figures, line by line."""
    for package, (count, lines) in sorted(house.sizes.items()):
        yield f"  {package:16} {count:3} modules {lines:7,} lines, Any {house.any[package]}"
    yield f"  chain: {' → '.join(house.chain)}"
    yield from (f"  {lines} lines: {name}" for name, lines in house.long.items())
    if house.asked:
        yield f"  asked: {', '.join(house.asked)}"
    for name, way in house.ways.items():
        yield f"  {name}: {' → '.join(f'{file}:{function}' for file, function in way or ())}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout")
    parser.add_argument("--static", action="store_true", help="run nothing, read the code alone")
    given = parser.parse_args()
    roots = [HERE, *([given.against] if given.against else [])]
    houses = [measured(root, follow=not given.static) for root in roots]
    columns = [rows(house) for house in houses]
    names = ["here", "against"][: len(houses)]
    print(f"{'':36}", *(f"{name:>24}" for name in names))
    for label in columns[0]:
        print(f"{label:36}", *(f"{column[label]:>24}" for column in columns))
    for root, house in zip(roots, houses, strict=True):
        print(f"\n{root.resolve()}", *details(house), sep="\n")


if __name__ == "__main__":
    main()
