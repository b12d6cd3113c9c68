"""What a process is: JAX's two widths, forks, compiled programs, and systems other than Linux."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import iwae
import widths
from iwae._utils import distributed, files, programs
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.trained import TrainedModel
from refusals import refused
from thinned import thinned


@pytest.mark.slow
def test_both_widths_of_jax_give_the_same_numbers(tiny_run: TrainedModel, tmp_path: Path) -> None:
    """Those of whole runs bit for bit; of programs of one's own, constants may round otherwise."""
    whole, parts = widths.of_a_run(tiny_run), widths.composed()
    code = [sys.executable, widths.__file__, str(tmp_path / "wide")]
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    done = subprocess.run(code, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    wide, bound = map(json.loads, done.stdout.splitlines())
    for name, values in whole.items():
        np.testing.assert_array_equal(np.ravel(values), np.float32(wide[name]), err_msg=name)
    for name, values in parts.items():
        np.testing.assert_allclose(np.ravel(values), wide[name], 2e-5, 1e-6, err_msg=name)
    # q is p(z|x), so every draw says log p(x), x ~ N(0, 2)
    exact = -np.sum(-0.25 * np.array([0.3, 1.5]) ** 2 - 0.5 * np.log(4 * np.pi))
    assert bound == pytest.approx(dict.fromkeys(bound, exact), rel=1e-5)


FORKED = """
import os, sys
import iwae
trained = iwae.load(sys.argv[1])
x = trained.data().test[:2]
trained.score(x, k=2)
child = os.fork()
if child == 0:
    try:
        trained.score(x, k=2)
    except iwae.errors.InputError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.slow
def test_a_forked_child_says_why_it_computes_nothing(tiny_run: TrainedModel) -> None:
    code = [sys.executable, "-W", "ignore", "-c", "import iwae.errors\n" + FORKED]
    done = subprocess.run(
        [*code, str(tiny_run.path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "forked from one in which JAX had already computed" in done.stdout
    assert "spawn" in done.stdout


ELSEWHERE = """
import importlib, pkgutil, sys, warnings
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp"):
    sys.modules[name] = None
warnings.filterwarnings("ignore", "only soft file lock")  # of filelock, where it is not Windows
import iwae
for module in pkgutil.walk_packages(iwae.__path__, "iwae."):
    importlib.import_module(module.name)
from pathlib import Path
from typing import Any
from iwae._utils import files
place = Path(sys.argv[1])
files.write_atomic(place / "file", "content")
with files.one_at_a_time(place), files.one_at_a_time(place / "file"):
    assert (place / "file").read_text() == "content"
with files.locked(place / "lock", wait=False):
    try:
        with files.locked(place / "lock", wait=False):
            raise SystemExit("two hold one lock")
    except BlockingIOError:
        pass
"""


@pytest.mark.slow
def test_no_module_needs_what_posix_alone_has(tmp_path: Path) -> None:
    code = [sys.executable, "-W", "error", "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_lock_is_held_by_one_and_waited_for(tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / "lock", wait=False),
        pytest.raises(BlockingIOError),
        files.locked(tmp_path / "lock", wait=False),
    ):
        pass
    with files.locked(tmp_path / "lock", wait=True):
        pass


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list of the programs that the compiler is asked for, or the persistent cache instead."""
    asked: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            asked.append(str(kwargs.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield asked
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize("objective", thinned([{}, {"objective": "vr-iwae", "alpha": 0.5}], {}))
def test_a_second_fit_compiles_nothing(tiny: RunConfig, objective: dict) -> None:
    """Of the same kind: seed, learning rate and number of passes are its own."""
    kind = override(tiny, hidden=((7,),), average=0.9, **objective)
    with compilations() as first:
        iwae.train(kind, epochs=1)
    assert first
    with compilations() as second:
        other = iwae.train(kind, epochs=2, seed=1, learning_rate=3e-4, validate_every=2)
    assert second == []
    assert other.passes == 2
    with compilations() as third:
        iwae.train(kind, epochs=1, adam_beta1=0.5)
    assert third, "another optimiser is another step"


@pytest.mark.slow
def test_runs_that_share_a_step_are_those_that_do_not(tiny: RunConfig) -> None:
    """A fit after others of its kind, and of almost its kind, is the one that comes first."""
    kind = override(tiny, epochs=1)
    draws = lambda trained: trained.sample(2)
    alone = draws(iwae.train(kind))
    for other in ({"learning_rate": 0.1}, {"k": 3}, {"clip": 0.1}, {"seed": 5}):
        assert not np.array_equal(draws(iwae.train(kind, **other)), alone)
    np.testing.assert_array_equal(draws(iwae.train(kind)), alone)


@pytest.mark.slow
def test_few_programs_serve_any_number_of_examples(tiny_run: TrainedModel) -> None:
    """Of which each is what it is among others."""
    x = tiny_run.data().test
    whole, drawn = tiny_run.score(x[:50], k=6), tiny_run.sample(50)
    with compilations() as asked:
        for n in (1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 49, 50):
            np.testing.assert_allclose(tiny_run.score(x[:n], k=6), whole[:n], rtol=1e-6)
            np.testing.assert_allclose(tiny_run.sample(n), drawn[:n], rtol=1e-5, atol=1e-6)
    assert max(asked.count(name) for name in asked if "over_group" in name) <= 7
    assert max(asked.count(name) for name in asked if "sample" in name) <= 6
    assert len(asked) <= 30, asked


PROCESS = """
import jax
from iwae import runs
from iwae.config.io import recipe
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
for hits in (False, True):
    jax.clear_caches()
    runs.untrained(recipe("smoke"))
    assert ("/jax/compilation_cache/cache_hits" in found) == hits
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.slow
def test_programs_are_kept_in_the_users_cache(tmp_path: Path) -> None:
    env = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    env["IWAE_CACHE_DIR"] = str(tmp_path)
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    code = [sys.executable, "-c", PROCESS]
    done = subprocess.run(code, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    place = Path(done.stdout.strip())
    assert place.is_relative_to(tmp_path / "programs")
    assert list(place.iterdir())


def test_the_users_own_place_for_programs_stays(tmp_path: Path, monkeypatch) -> None:
    """And with IWAE_COMPILATION_CACHE=off none is set."""
    config: Any = jax.config
    own = config.jax_compilation_cache_dir
    programs.keep_programs()
    assert config.jax_compilation_cache_dir == own
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # said to be none
        programs.keep_programs()
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv(programs.VARIABLE, "off")
        programs.keep_programs()
        assert config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", own)
    assert not programs.folder().exists()


def test_what_the_variable_of_the_cache_cannot_say_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(programs.VARIABLE, "perhaps")
    with refused("IWAE_COMPILATION_CACHE is 'perhaps', but must be on or off; change or unset it."):
        programs.keep_programs()


def test_numbers_of_64_bits_that_are_given_are_kept() -> None:
    with jax.enable_x64(True):
        wide = jax.numpy.ones(2)
        with distributed.computing(wide):
            assert jax.numpy.ones(()).dtype == np.float64
        with distributed.computing(wide.astype(np.float32)):
            assert jax.numpy.ones(()).dtype == np.float32
            with distributed.computing(wide):
                assert jax.numpy.ones(()).dtype == np.float64
        assert jax.numpy.ones(()).dtype == np.float64


@pytest.mark.slow
def test_a_model_of_64_bits_is_computed_in_64_bits(tiny_run: TrainedModel) -> None:
    """To the same numbers, up to the rounding of 32 bits, and more digits of them."""
    x = tiny_run.data().test[:2]
    narrow = tiny_run.score(x, k=4), tiny_run.sample(2)
    with jax.enable_x64(True):
        widened = lambda a: a.astype(np.float64) if eqx.is_inexact_array(a) else a
        model = dataclasses.replace(tiny_run, model=jax.tree.map(widened, tiny_run.model))
        wide = model.score(x, k=4), model.sample(2)
        assert model.evaluate(k=4, limit=2).nll == pytest.approx(-narrow[0].mean(), rel=1e-5)
    for ours, theirs in zip(wide, narrow, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_process_that_computes_for_itself_is_not_refused(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "computed_in", os.getpid() + 1)
    with pytest.raises(InputError, match="forked"), distributed.computing():
        pass
    monkeypatch.setattr(distributed, "computed_in", None)
    with distributed.computing():
        pass
