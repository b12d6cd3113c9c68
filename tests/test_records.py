"""Records of tables grow by the cells that are measured later, and refuse what does not fit."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwae._utils import files
from iwae.cli import progress
from iwae.cli.app import parse
from iwae.config.io import override, recipe
from iwae.experiments import executors, jobs, records
from iwae.experiments.measured import Entry, Result
from iwae.experiments.papers import EXPERIMENTS
from iwae.experiments.records import RecordedCell, TableRecord
from iwae.training import soap
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
            result: Entry = {"seed": c.seed, "k": 100, "n": 50, "nll": value, "nll_se": 1.0}
            result |= {"passes": 1, "elbo": -99.0, "active_units": [3], "device": "cpu", "note": ""}
            result |= {"iwae": "0.1.0", "jax": "0.10"}
            values = np.array([-value - 1, -value + 1])
            jobs.write_result(task, out, Result(result, log_likelihoods=values))
        return {}

    monkeypatch.setattr(executors, "make_all", make_all)
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
    expected = [f"digits/1/{name}" for name in ("iwae-1", "iwae-5", "iwae-50", "vae-5")]
    assert names(again) == expected
    (later,) = (cell for cell in again["cells"] if cell["name"] == "digits/1/iwae-5")
    assert later == first["cells"][1] | {"difference": [-1.5, None]}, "of vae-5 at 95"
    assert put_down(tmp_path, "digits/1/vae-5", out="here") == again


def entry(name: str, *nll: float, **more) -> dict:
    """A cell of a record, with a run of each NLL."""
    runs = [
        {"seed": i, "k": 9, "n": 7, "nll": value, "iwae": "0.1.0", "jax": "0.10"}
        for i, value in enumerate(nll)
    ]
    cell = {"name": name, "nll": [nll[0], None], "difference": None, "against": None, "runs": runs}
    cell |= {"settings": {"dataset": "mine"}, "figures": {}} | more
    return json.loads(json.dumps(RecordedCell.of_json(cell).to_json()))


def joined_with(there: dict, added: dict, *, replace: bool = False) -> tuple[dict, list[str]]:
    """`records.joined` of what files hold."""
    order = [cell.name for cell in EXPERIMENTS["table1"].cells]
    both = TableRecord.of_json(there), TableRecord.of_json(added)
    whole, left = records.joined(*both, order, replace=replace)
    return whole.to_json(), left


def record_of(*entries: dict, iwae: str = "0.1.0") -> dict:
    return {"iwae": iwae, "jax": "0.10", "experiment": "table1", "cells": list(entries)}


def names(record: dict) -> list[str]:
    return [cell["name"] for cell in record["cells"]]


def test_published_cells_stand_in_their_order() -> None:
    """Those on other data follow as they came."""
    there = record_of(entry("mine/1/vae-5", 1.0), entry("omniglot/1/vae-1", 1.0))
    joined, refused = joined_with(there, record_of(entry("mnist/2/iwae-5", 2.0)))
    assert names(joined) == ["mnist/2/iwae-5", "omniglot/1/vae-1", "mine/1/vae-5"]
    assert refused == []


def test_differences_over_seeds_are_known_with_their_error(tmp_path: Path, measured) -> None:
    for seed, nll in enumerate((93.0, 95.25, 94.5)):
        measured[f"digits/1/iwae-5, seed {seed}"] = nll
    put_down(tmp_path, "digits/1/iwae-5", "--seeds", "3", out="there")
    apart = [93.0 - 95, 95.25 - 95.25, 94.5 - 95.5]
    error = (sum((a + 1) ** 2 for a in apart) / 2 / 3) ** 0.5
    joined = put_down(tmp_path, "digits/1/vae-5", "--seeds", "3", out="here")
    assert joined["cells"][0]["difference"] == pytest.approx([-1.0, error])


def of_seeds(name: str, *runs: tuple[int, float], **more) -> dict:
    """A cell of a record with the (seed, NLL) of runs."""
    cell = entry(name, *(nll for _, nll in runs), **more)
    for run, (seed, _) in zip(cell["runs"], runs, strict=True):
        run["seed"] = seed
    return cell


def test_runs_of_other_seeds_are_pooled() -> None:
    """The mean and its error are over all seeds, and so is the difference, once both have them."""
    vae = of_seeds("a/1/vae-5", (0, 3.0))
    iwae = of_seeds("a/1/iwae-5", (0, 2.0), against="a/1/vae-5")
    more = of_seeds("a/1/iwae-5", (2, 2.5), (1, 1.5), against="a/1/vae-5")
    joined, refused = joined_with(record_of(vae, iwae), record_of(more))
    assert refused == []
    cell = joined["cells"][1]
    assert [(run["seed"], run["nll"]) for run in cell["runs"]] == [(0, 2.0), (1, 1.5), (2, 2.5)]
    assert cell["nll"] == pytest.approx([2.0, 0.5 / 3**0.5])
    assert cell["difference"] is None
    both, refused = joined_with(joined, record_of(of_seeds("a/1/vae-5", (1, 3.0), (2, 3.0))))
    assert refused == []
    assert both["cells"][1]["difference"] == pytest.approx([-1.0, 0.5 / 3**0.5])
    assert joined_with(both, record_of(more)) == (both, []), "they are there"


def test_differences_to_what_no_record_has_are_pooled() -> None:
    of = lambda seed, nll, to: of_seeds(
        "a/1/iwae-5", (seed, nll), against="a/1/vae-5", reference=[[seed, to]], difference=[0, None]
    )
    joined, _ = joined_with(record_of(of(0, 2.0, 3.0)), record_of(of(1, 2.0, 5.0)))
    assert joined["cells"][0]["difference"] == pytest.approx([-2.0, 1.0])
    assert joined["cells"][0]["reference"] == [[0, 3.0], [1, 5.0]]


@pytest.mark.parametrize(
    ("of", "changed"),
    [
        ("run", {"k": 10}),
        ("run", {"n": 8}),
        ("run", {"seed": 0}),
        ("run", {"note": "other images"}),
        ("settings", {"dataset": "/mine.npy"}),
        ("settings", {"hidden": [[8, 8]]}),
        ("figures", {"mad": [1.0, None]}),
        ("cell", {"after": "a/1/vae-1"}),
    ],
    ids=str,
)
def test_runs_of_another_model_or_measure_are_not_pooled(of: str, changed: dict) -> None:
    there, more = of_seeds("a/1/vae-5", (0, 3.0)), of_seeds("a/1/vae-5", (1, 4.0))
    part = {"run": more["runs"][0], "cell": more}.get(of) or more[of]
    part |= changed
    if of == "figures":
        more[of] = changed
    joined, refused = joined_with(record_of(there), record_of(more))
    assert refused == ["a/1/vae-5"]
    assert joined["cells"] == [there]


@pytest.mark.parametrize(
    "other", [{"k": 10}, {"n": 8}, {"seed": 1}, {"dataset": "/elsewhere/mine.npy"}], ids=str
)
def test_what_was_measured_in_another_way_has_no_difference(other: dict) -> None:
    vae, iwae = entry("a/1/vae-5", 3.0), entry("a/1/iwae-5", 2.0, against="a/1/vae-5")
    joined, _ = joined_with(record_of(vae), record_of(iwae))
    assert joined["cells"][1]["difference"] == [-1.0, None]
    vae["runs"][0] |= {name: value for name, value in other.items() if name != "dataset"}
    vae["settings"] |= {name: value for name, value in other.items() if name == "dataset"}
    joined, _ = joined_with(record_of(vae), record_of(iwae))
    assert joined["cells"][1]["difference"] is None


def test_a_cell_takes_more_seeds_in_any_order_and_no_other_runs() -> None:
    there = record_of(entry("a/1/vae-5", 3.0), entry("b/1/vae-5", 5.0))
    more, other = entry("a/1/vae-5", 3.0, 4.0), entry("b/1/vae-5", 5.5)
    more["runs"].reverse()
    joined, refused = joined_with(there, record_of(more, other, entry("c/1/vae-5", 1.0)))
    assert refused == ["b/1/vae-5"]
    assert joined["cells"] == [more, there["cells"][1], entry("c/1/vae-5", 1.0)]
    again, refused = joined_with(joined, record_of(entry("a/1/vae-5", 3.0)))
    assert again == joined, "it holds that seed"
    assert refused == []
    joined, refused = joined_with(joined, record_of(other), replace=True)
    assert refused == []
    assert joined["cells"] == [more, other, entry("c/1/vae-5", 1.0)]


def test_a_difference_is_to_the_runs_that_are_in_the_record() -> None:
    vae = entry("a/1/vae-5", 3.0)
    iwae = entry("a/1/iwae-5", 2.0, against="a/1/vae-5", difference=[-1.0, 0.05])
    there, other = record_of(vae, iwae), record_of(entry("a/1/vae-5", 3.5))
    joined, _ = joined_with(there, other, replace=True)
    assert joined["cells"][1]["difference"] == [-1.5, None]
    joined, _ = joined_with(there, record_of(entry("a/1/vae-5", 3.0, 4.0)))
    assert joined["cells"][1]["difference"] is None, "of one seed, to a mean over two"
    joined, _ = joined_with(there, record_of(vae, entry("b/1/vae-5", 1.0)))
    assert joined["cells"][1] == iwae


def test_a_difference_to_runs_that_are_elsewhere_does_not_join() -> None:
    there = record_of(entry("a/1/vae-5", 3.0))
    apart = {"against": "a/1/vae-5", "difference": [-1.5, 0.05], "reference": [[0, 3.5]]}
    iwae = entry("a/1/iwae-5", 2.0, **apart)
    for added in (record_of(entry("a/1/vae-5", 3.5), iwae), record_of(iwae)):
        joined, _ = joined_with(there, added)
        assert joined["cells"][1]["difference"] == [-1.0, None]
        assert "reference" not in joined["cells"][1]
    alone, _ = joined_with(record_of(), record_of(iwae))
    assert alone["cells"][0]["difference"] == [-1.5, 0.05], "as long as its runs are nowhere else"
    joined, _ = joined_with(alone, record_of(entry("a/1/vae-5", 3.0)))
    assert joined["cells"][0]["difference"] == [-1.0, None]
    joined, _ = joined_with(alone, record_of(entry("a/1/vae-5", 3.5)))
    assert joined["cells"][0]["difference"] == [-1.5, 0.05]
    own = iwae | {"difference": [-1.0, 0.05], "reference": [[0, 3.0]]}
    joined, _ = joined_with(there, record_of(own))
    assert joined["cells"][1]["difference"] == [-1.0, 0.05]
    joined, _ = joined_with(joined, record_of(iwae))
    assert joined["cells"][1]["difference"] == [-1.0, 0.05]


def test_nothing_that_is_known_is_forgotten() -> None:
    """Neither an error of a difference, nor a measured figure, nor by what runs were made."""
    known = entry("a/1/vae-5", 3.0, difference=[-1.0, 0.05], figures={"gap": [0.6, 0.1]})
    there = record_of(known, iwae="0.0.7")
    for name in ("iwae", "jax"):
        del known["runs"][0][name]
    later = entry("a/1/vae-5", 3.0, difference=[-1.0, None], figures={"change": [0.1, None]})
    joined, _ = joined_with(there, record_of(later, entry("b/1/vae-5", 1.0), iwae="0.3.0"))
    cell, _ = joined["cells"]
    assert cell["difference"] == [-1.0, 0.05]
    assert cell["figures"] == {"gap": [0.6, 0.1], "change": [0.1, None]}
    assert (cell["runs"][0]["iwae"], cell["runs"][0]["jax"]) == ("0.0.7", "0.10")
    assert joined["iwae"] == "0.3.0"
    unchanged, _ = joined_with(joined, record_of(later, iwae="0.4.0"))
    assert unchanged == joined, "with the versions that made it"


def test_a_setting_that_came_later_stood_at_its_default(tmp_path: Path, measured) -> None:
    old = put_down(tmp_path, "digits/1/vae-5")
    del old["settings"]["soap_every"], old["settings"]["adam_beta1"]
    old["settings"]["checkpoint_minutes"] = 77.0
    (tmp_path / "record.json").write_text(json.dumps(old))
    assert len(put_down(tmp_path, "digits/1/iwae-5")["cells"]) == 2
    with refused(
        f"record = {tmp_path / 'record.json'} was given, whose cells have adam_beta1 = 0.9 where "
        f"these have 0.8; give another --record, or --overwrite."
    ):
        put_down(tmp_path, "digits/1/iwae-50", "--adam-beta1", "0.8", out="other")


def test_cells_of_another_optimiser_do_not_join(tmp_path: Path) -> None:
    path, config = tmp_path / "record.json", recipe("fast")
    table = EXPERIMENTS["table1"]
    content: dict[str, Any] = records.of_table(table, config, ()).to_json()
    content["cells"] = [entry("a/1/vae-5", 1.0)]
    path.write_text(json.dumps(content))
    assert records.joinable(path, table, config).to_json() == content
    unknown = {n: v for n, v in content["settings"].items() if n != "soap_revision"}
    path.write_text(json.dumps(content | {"settings": unknown}))
    with refused(
        f"record = {path} was given, whose cells have soap_revision = None where these have "
        f"{soap.REVISION}; give another --record, or --overwrite."
    ):
        records.joinable(path, EXPERIMENTS["table1"], config)


def test_what_does_not_fit_a_record_is_refused_before_any_work(tmp_path: Path, measured) -> None:
    put_down(tmp_path, "digits/1/vae-5")
    record, out = tmp_path / "record.json", tmp_path / "other"
    before = record.read_text()
    form = ["--recipe", "smoke", "--out", str(out), "--record", str(record)]
    with refused(
        f"record = {record} was given, whose cells have epochs = 2 where these have 3; give "
        f"another --record, or --overwrite."
    ):
        _run(["reproduce", "table1", *form, "--epochs", "3"])
    with refused(
        f"record = {record} was given, which exists and is not a record of swap; give another "
        f"--record, or --overwrite."
    ):
        _run(["reproduce", "swap", *form])
    assert not out.exists()
    assert record.read_text() == before
    put_down(tmp_path, "digits/1/iwae-5", "--epochs", "3", "--overwrite", out="other")
    assert names(json.loads(record.read_text())) == ["digits/1/iwae-5"]


def test_cells_of_other_runs_keep_none_of_the_others_from_joining(tmp_path: Path, measured) -> None:
    put_down(tmp_path, "digits/1/vae-5")
    record = tmp_path / "record.json"
    measured["digits/1/vae-5, seed 0"] = 95.5
    with refused(
        f"{record} already holds other runs of digits/1/vae-5, which were kept; give "
        f"--overwrite to replace them, or --render and another --record."
    ):
        put_down(tmp_path, "digits/1/*-5", out="other")
    nll = lambda: {cell["name"]: cell["nll"][0] for cell in json.loads(record.read_text())["cells"]}
    assert nll() == {"digits/1/vae-5": 95.0, "digits/1/iwae-5": 95.0}
    put_down(tmp_path, "digits/1/vae-5", "--overwrite", out="other")
    assert nll() == {"digits/1/vae-5": 95.5, "digits/1/iwae-5": 95.0}


def test_two_that_record_at_once_wait_for_each_other(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with files.one_at_a_time(tmp_path):
            order.append("second")

    with files.one_at_a_time(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_it_is_recorded_whoever_reads_the_table(tmp_path: Path, measured, monkeypatch) -> None:
    """As by `iwae reproduce … | head -1`."""

    def closed(*_) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(progress, "print_table", closed)
    with pytest.raises(BrokenPipeError):
        put_down(tmp_path, "digits/1/vae-5")
    assert names(json.loads((tmp_path / "record.json").read_text())) == ["digits/1/vae-5"]


def test_where_nothing_is_finished_nothing_is_written(tmp_path: Path, capsys) -> None:
    record = tmp_path / "record.json"
    _run([*FORM, "--render", "--out", str(tmp_path / "none"), "--record", str(record)])
    assert f"No cell is finished, so {record} was not changed." in capsys.readouterr().out
    assert not record.exists()


def test_the_settings_of_a_record_are_those_that_not_every_cell_has_of_its_own() -> None:
    config = override(recipe("fast"), epochs=7)
    settings = records.of_table(EXPERIMENTS["table1"], config, ()).settings
    assert settings["backward_draws"] == 3, "VAEs have their own"
    assert settings["soap_revision"] == soap.REVISION
    assert settings["epochs"] == 7
    own = {"dataset", "layers", "k", "objective", "seed"}
    assert not own & settings.keys()
    dreg = records.of_table(EXPERIMENTS["dreg"], config, ()).settings
    assert dreg.keys() == settings.keys() - {"estimator"}
    assert (
        "soap_revision" not in records.of_table(EXPERIMENTS["table1"], recipe("paper"), ()).settings
    )
