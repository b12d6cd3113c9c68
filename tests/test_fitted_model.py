"""The fitted model beside its numbers: its history, what it shows of itself, and its data."""

import json
import math
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iwae
from iwae import runs
from iwae.data import Dataset, arrays
from iwae.errors import InputError
from iwae.evaluation import Evaluation, TrainedModel
from iwae.plotting import report
from iwae.storage import run_config, run_directory
from iwae.storage.metrics import History, Row
from test_data import aged

GOLDEN = Path(__file__).parent / "golden" / "finished"
SMALL: dict[str, Any] = {"hidden": ((4,),), "latents": (2,), "k": 2, "epochs": 1, "batch_size": 20}


# History


@pytest.mark.slow
def test_the_history_of_a_run_is_that_of_its_directory(tiny_run: TrainedModel) -> None:
    history = iwae.load(tiny_run.path).history
    assert history.rows == tiny_run.history.rows
    assert (len(history), history[-1].epoch) == (3, 3)
    assert history.epoch.tolist() == [1, 2, 3]
    rows = run_directory.read_metrics(tiny_run.path)
    np.testing.assert_array_equal(history.train_bound, [row["train_bound"] for row in rows])
    valid = [row.get("valid_bound", math.nan) for row in rows]
    np.testing.assert_array_equal(history.valid_bound, valid)
    assert [row.step for row in history] == history.step.tolist()
    assert repr(history) == f"History(3 epochs, train bound {rows[-1]['train_bound']:.2f} nats)"
    assert history._repr_html_().count("<tr>") == 4
    assert pickle.loads(pickle.dumps(history)).rows == history.rows


def test_a_history_grows_no_longer_and_may_be_empty() -> None:
    row: Row = {"pass": 1, "step": 7, "seconds": 1.0, "learning_rate": 0.1, "train_bound": -2.0}
    rows = [row]
    history = History.of(rows)
    rows.append(row)
    assert (len(history), history[0].valid_bound) == (1, None)
    assert np.isnan(history.valid_bound).all()
    assert (len(History()), repr(History())) == (0, "History(no epochs)")


def test_a_model_is_loaded_where_its_history_is_damaged(tmp_path: Path, tiny_run) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    (run / run_directory.METRICS).write_text("{}\n")
    trained = iwae.load(run)
    with pytest.raises(InputError, match=r"Line 1 of .*metrics.jsonl is damaged"):
        len(trained.history)


# What it shows of itself


def test_a_model_is_shown_in_a_line_and_a_table(tiny_run: TrainedModel) -> None:
    path = str(tiny_run.path)
    assert (
        repr(tiny_run) == f"TrainedModel(IWAE, K = 2, 3 latent units, digits, 3 epochs, {path!r})"
    )
    assert tiny_run.passes == tiny_run.epochs == 3
    odd = replace(tiny_run, path=None, seen=replace(tiny_run.seen, name="<b>", note="a & b"))
    table = odd._repr_html_()
    assert "<b>" not in table
    assert "&lt;b&gt;, intensity, 8 × 8" in table
    assert "a &amp; b" in table


def test_an_evaluation_is_shown_in_a_line_and_a_table() -> None:
    (found,) = run_directory.read_evaluations(GOLDEN).values()
    assert repr(found) == (
        "Evaluation(digits, test, 50 examples, 3 epochs: NLL 27.22 ± 0.51 nats by L_20)"
    )
    table = replace(found, dataset="<i>", nll_se=math.nan)._repr_html_()
    assert "<i>" not in table
    assert "27.22 nats" in table
    assert "±" not in table


# Evaluations in files


def test_evaluations_keep_their_numbers_and_what_later_versions_add(tmp_path: Path) -> None:
    run = Path(shutil.copytree(GOLDEN, tmp_path / "run"))
    file = run / run_directory.EVALUATION
    text = file.read_text()
    file.write_text(text.replace('"seed": 0', '"seed": 0,\n  "later": [1, 2]'))
    (found,) = run_directory.read_evaluations(run).values()
    assert (found.nll, found.epochs, found.activity[0][0]) == (
        27.21510597229004,
        3,
        0.10051245242357254,
    )
    assert found.key == "test k=20 n=50 seed=0 passes=3"
    other = replace(found, k=5, nll_se=math.nan, elbo=math.inf)
    run_directory.keep_evaluation(other, run, "")
    again = run_directory.read_evaluations(run)
    assert again[found.key] == found
    assert math.isnan(again[other.key].elbo)
    assert '"later"' in file.read_text()
    assert '"nll_se": null' in file.read_text()


def test_an_evaluation_is_written_as_it_was(tmp_path: Path) -> None:
    """Field by field, in their order."""
    text = (GOLDEN / run_directory.EVALUATION).read_text()
    (found,) = run_directory.read_evaluations(GOLDEN).values()
    written = json.dumps({found.key: found.to_json()}, indent=1)
    assert written == text.strip()
    assert isinstance(found, Evaluation)


# Its data


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a file of data is read, and a digest taken of all examples."""
    counts: Counter[str] = Counter()
    read, digest = arrays.read_file, vars(Dataset)["whole_digest"].func

    def read_file(path: Path, **how):
        counts["read"] += 1
        return read(path, **how)

    def whole_digest(self: Dataset) -> str:
        counts["digest"] += 1
        return digest(self)

    cached = cached_property(whole_digest)
    cached.__set_name__(Dataset, "whole_digest")
    monkeypatch.setattr(arrays, "read_file", read_file)
    monkeypatch.setattr(Dataset, "whole_digest", cached)
    return counts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (60, 4)).astype(np.uint8)
    return aged(tmp_path / "x.npy", x)


ONCE = Counter(read=1, digest=1)


def taken(counted: Counter[str]) -> Counter[str]:
    """What has been counted since it was last asked for."""
    counts = Counter(counted)
    counted.clear()
    return counts


@pytest.mark.slow
def test_the_data_of_a_run_are_read_once(file, tmp_path, counted, monkeypatch) -> None:
    runs.train_replicas(seeds=2, out=tmp_path / "s", dataset=str(file), **SMALL)
    assert taken(counted) == ONCE
    trained = iwae.load(tmp_path / "s" / "seed-0")
    assert taken(counted) == Counter()
    first = trained.data()
    assert trained.data() is replace(trained, model=trained.model).data() is first
    assert iwae.load(tmp_path / "s" / "seed-1").data() is first
    assert taken(counted) == ONCE
    del trained, first
    monkeypatch.setattr(runs, "evaluate", lambda run, **_: iwae.load(run).data())
    runs.evaluate_replicas(tmp_path / "s")
    assert taken(counted) == ONCE
    aged(file, 255 - np.load(file), 50)
    with pytest.raises(InputError, match="has changed since the run was trained"):
        iwae.load(tmp_path / "s" / "seed-0").data()


@pytest.mark.slow
def test_commands_read_the_data_once(file: Path, tmp_path: Path, counted: Counter[str]) -> None:
    runs.train_replicas(seeds=2, out=tmp_path / "s", dataset=str(file), **SMALL)
    taken(counted)
    run = tmp_path / "s" / "seed-0"
    iwae.train(out=run, resume=True)
    assert taken(counted) == ONCE
    trained = iwae.load(run)
    iwae.evaluate(trained, k=2, limit=4, without_inactive=True)
    iwae.evaluate(run, k=2, limit=4)
    assert taken(counted) == ONCE
    del trained
    runs.evaluate_replicas(tmp_path / "s", k=2, limit=4)
    assert taken(counted) == ONCE
    report.render(run_directory.replicas(tmp_path / "s"))
    assert taken(counted) == ONCE


def test_a_configuration_names_the_parts_that_are_ones_own(tmp_path: Path, tiny) -> None:
    own = {"bound": "mine.power"}
    for parts in (own, None):
        text = run_config.config_text(tiny, "0" * 64, parts)
        (tmp_path / run_config.CONFIG).write_text(text)
        assert run_config.read_config_and_identity(tmp_path) == (tiny, "0" * 64)
        assert run_config.read_own(tmp_path) == (parts or {})
    (tmp_path / run_config.CONFIG).write_text(text.replace("seed = 0", "seed = 1"))
    with pytest.raises(InputError, match="was edited"):
        run_config.read_own(tmp_path)
