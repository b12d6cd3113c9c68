"""`make gpu-wheels`: the pure-Python wheels that iwae needs beside JAX, PyTorch and the like.

For a GPU machine without a package index; what is named in `THERE` comes with it.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

THERE = (
    "equinox",
    "jax",
    "jinja2",
    "matplotlib",
    "numpyro",
    "optax",
    "pillow",
    "pytest",
    "safetensors",
    "scikit-learn",
    "scipy",
)
"""Beside these there is PyTorch, of which iwae needs nothing."""

FOLDER = Path("build/gpu-wheels")

PYTHON = "3.12"


def needed(names: Iterable[str]) -> set[str]:
    """These packages, and all that they need, as they are installed here."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        wanted = [Requirement(line) for line in requires(name) or ()]
        here = {"python_version": PYTHON, "extra": ""}
        left += [
            canonicalize_name(r.name) for r in wanted if not r.marker or r.marker.evaluate(here)
        ]
    return found


def lacking() -> list[str]:
    """Packages with the versions that are installed here, as pip takes them."""
    names = needed(["iwae"]) - needed(THERE) - {"iwae"}
    return [f"{name}=={version(name)}" for name in sorted(names)]


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(FOLDER)]
    command += ["--python-version", PYTHON, "--implementation", "py", "--abi", "none"]
    subprocess.run([*command, "--platform", "any", *lacking()], check=True)
    files = sorted(FOLDER.glob("*.whl"))
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f"{FOLDER}: {len(files)} wheels, {size:.1f} MB")
    print("Where there is no package index, this puts them and iwae on the path:")
    print(ON_THE_PATH)


ON_THE_PATH = (
    f"python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/iwae-wheels "
    f"{FOLDER}/*.whl && export PYTHONPATH=$PWD/src:/tmp/iwae-wheels"
)

if __name__ == "__main__":
    main()
