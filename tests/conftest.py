"""Shared fixtures. Shapes and types of every call in the numerical modules are checked.

No test reads or writes the user's cache, or downloads anything. What one test compiles, in whatever
process, the others load from a folder of this session, or from JAX_COMPILATION_CACHE_DIR. Compiling
takes longer than running here, so LLVM does not optimise, and XLA leaves its newer emitters of
fusions alone, unless XLA_FLAGS say otherwise.
"""

import os
import tempfile
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="iwae-programs-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

import pytest
from jaxtyping import install_import_hook

CHECKED = (
    "_utils.threefry bounds estimators evaluation.blocks evaluation.elbo evaluation.examples "
    "evaluation.likelihood evaluation.metrics evaluation.posterior evaluation.units "
    "experiments.toy_densities models storage.checkpoint training.gradient_step training.soap"
)
with install_import_hook([f"iwae.{name}" for name in CHECKED.split()], "beartype.beartype"):
    import iwae.runs
from iwae.config.io import override, recipe
from iwae.config.schema import RunConfig
from iwae.evaluation.trained import TrainedModel

TINY = override(recipe("smoke"), k=2, hidden=((8,),), latents=(3,), epochs=3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IWAE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """A run of a second or two."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """The tiny configuration, trained on digits into a folder."""
    return iwae.train(TINY, out=tmp_path_factory.mktemp("runs") / "tiny")
