"""Records of tables grow by the cells that are measured later, and refuse what does not fit."""

import json
from pathlib import Path

import pytest

from iwae import cells, records, reproduce, workers
from iwae.cli import parse
from iwae.papers import EXPERIMENTS
from iwae.settings import override, recipe
from refusals import refused

FORM = ["reproduce", "table1", "--recipe", "smoke"]


@pytest.fixture
def measured(monkeypatch):
    """Instead of training, every run asked for has the NLL 90 + its K, or what is set here."""
    nll: dict[str, float] = {}

    def make_all(tasks, out: Path, **_):
        for name, task in tasks.items():
            c = task.config
            value = nll.get(name, 90.0 + c.objective.k + c.seed / 4)
            result = {"passes": 1, "k": 100, "n": 50, "nll": value, "nll_se": 1.0, "elbo": -99.0}
            result |= {"active_units": [3], "seed": c.seed, "device": "cpu", "note": ""}
            result |= {"iwae": "0.1.0", cells.LIKELIHOODS: [-value - 1, -value + 1]}
            cells.write_result(task, out, result)
        return {}

    monkeypatch.setattr(workers, "make_all", make_all)
    return nll


def _run(arguments: list[str]) -> None:
    parse(arguments[0], arguments[1:]).run()


def put_down(tmp_path: Path, pattern: str, *more: str, out: str = "runs") -> dict:
    record = tmp_path / "record.json"
    form = [*FORM, "--cells", pattern, "--out", str(tmp_path / out), "--record", str(record)]
    _run([*form, *more])
    return json.loads(record.read_text())


def test_a_record_grows_by_cells_and_by_their_differences(tmp_path: Path, measured) -> None:
    measured["digits/1/iwae-5, seed 0"] = 93.5
    first = put_down(tmp_path, "digits/1/iwae-[15]*", out="there")
    assert [cell["difference"] for cell in first["cells"]] == [[0.0, None], None, None]
    again = put_down(tmp_path, "digits/1/vae-5", out="here")
    names = [f"digits/1/{name}" for name in ("iwae-1", "iwae-5", "iwae-50", "vae-5")]
    assert [cell["name"] for cell in again["cells"]] == names
    (later,) = (cell for cell in again["cells"] if cell["name"] == "digits/1/iwae-5")
    assert later == first["cells"][1] | {"difference": [-1.5, None]}, "of vae-5 at 95"
    assert put_down(tmp_path, "digits/1/vae-5", out="here") == again


def test_published_cells_stand_in_their_order() -> None:
    """Those on other data follow as they came."""
    entry = {"nll": [1.0, None], "difference": None, "against": None, "runs": [{"seed": 0}]}
    entry["runs"][0] |= {"nll": 1.0, "iwae": "0.1.0"}
    of = lambda *names: {
        "iwae": "0.1.0",
        "experiment": "table1",
        "cells": [{"name": name, **entry} for name in names],
    }
    there = of("mine/1/vae-5", "omniglot/1/vae-1")
    joined = records.joined(there, of("mnist/2/iwae-5"), Path("x.json"))
    names = [cell["name"] for cell in joined["cells"]]
    assert names == ["mnist/2/iwae-5", "omniglot/1/vae-1", "mine/1/vae-5"]


def test_differences_over_seeds_are_known_with_their_error(tmp_path: Path, measured) -> None:
    for seed, nll in enumerate((93.0, 95.25, 94.5)):
        measured[f"digits/1/iwae-5, seed {seed}"] = nll
    put_down(tmp_path, "digits/1/iwae-5", "--seeds", "3", out="there")
    apart = [93.0 - 95, 95.25 - 95.25, 94.5 - 95.5]
    error = (sum((a + 1) ** 2 for a in apart) / 2 / 3) ** 0.5
    joined = put_down(tmp_path, "digits/1/vae-5", "--seeds", "3", out="here")
    assert joined["cells"][0]["difference"] == pytest.approx([-1.0, error])


def test_a_run_without_a_version_keeps_that_of_its_record(tmp_path: Path, measured) -> None:
    old = put_down(tmp_path, "digits/1/vae-5")
    old["iwae"] = "0.0.7"
    del old["cells"][0]["runs"][0]["iwae"]
    (tmp_path / "record.json").write_text(json.dumps(old))
    grown = put_down(tmp_path, "digits/1/iwae-5")["cells"]
    assert [cell["runs"][0]["iwae"] for cell in grown] == ["0.0.7", "0.1.0"]


def test_a_setting_that_came_later_stood_at_its_default(tmp_path: Path, measured) -> None:
    old = put_down(tmp_path, "digits/1/vae-5")
    del old["settings"]["soap_every"], old["settings"]["adam_beta1"]
    (tmp_path / "record.json").write_text(json.dumps(old))
    assert len(put_down(tmp_path, "digits/1/iwae-5")["cells"]) == 2


def test_what_does_not_fit_a_record_is_refused_before_any_work(tmp_path: Path, measured) -> None:
    put_down(tmp_path, "digits/1/vae-5")
    record, out = tmp_path / "record.json", tmp_path / "other"
    before = record.read_text()
    form = ["reproduce", "table1", "--out", str(out), "--record", str(record)]
    with refused(
        f"record = {record} was given, whose cells have epochs = 2 where these have 3; give "
        f"another name, or --overwrite."
    ):
        _run([*form, "--recipe", "smoke", "--epochs", "3"])
    swap = ["reproduce", "swap", "--recipe", "smoke", *form[2:]]
    with refused(
        f"record = {record} was given, which is there and no record of swap; give another name, "
        f"or --overwrite."
    ):
        _run(swap)
    assert not out.exists()
    measured["digits/1/vae-5, seed 0"] = 95.5
    with refused(
        f"{record} holds digits/1/vae-5 with an NLL of 95.0000, but here it is 95.5000; give "
        f"another --record, or --overwrite."
    ):
        put_down(tmp_path, "digits/1/vae-5", out="other")
    assert record.read_text() == before
    put_down(tmp_path, "digits/1/iwae-5", "--overwrite", out="other")
    assert [cell["name"] for cell in json.loads(record.read_text())["cells"]] == ["digits/1/iwae-5"]


def test_where_nothing_is_finished_nothing_is_written(tmp_path: Path, capsys) -> None:
    record = tmp_path / "record.json"
    _run([*FORM, "--render", "--out", str(tmp_path / "none"), "--record", str(record)])
    assert f"No cell is finished, so {record} was not written." in capsys.readouterr().out
    assert not record.exists()


def test_the_settings_of_a_record_are_those_that_not_every_cell_has_of_its_own() -> None:
    config = override(recipe("fast"), epochs=7)
    settings = records.of_table("table1", config, ())["settings"]
    assert settings["backward_draws"] == 5, "VAEs have their own"
    assert settings["epochs"] == 7
    own = {"dataset", "layers", "k", "objective", "seed"}
    assert not own & settings.keys()
    assert records.of_table("dreg", config, ())["settings"].keys() == settings.keys() - {
        "estimator"
    }


def test_every_published_table_can_be_recorded() -> None:
    for name, experiment in EXPERIMENTS.items():
        content = records.of_table(name, recipe(experiment.recipe), ())
        assert content["experiment"] == name
        assert content["cells"] == []
        assert reproduce.own_settings(experiment.cells).keys() == {
            cell.name for cell in experiment.cells
        }
