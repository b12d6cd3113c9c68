"""The page of results holds what the records hold, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from iwae._utils.formatting import mean_units, units_in_words
from iwae.cli.app import main
from iwae.experiments import results
from iwae.experiments.measured import Result
from iwae.experiments.papers import EXPERIMENTS
from refusals import refused

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "reproduced"


def test_the_page_in_the_documentation_is_that_of_the_records() -> None:
    assert (ROOT / "docs" / "results.md").read_text() == results.page(RECORDS)


def test_every_published_cell_is_measured_or_not_yet_run() -> None:
    page = results.page(RECORDS)
    for experiment in EXPERIMENTS.values():
        assert all(f"`{cell.name}`" in page for cell in experiment.cells)


def test_every_row_has_as_many_cells_as_its_head() -> None:
    width = 0
    for line in results.page(RECORDS).splitlines():
        cells = len(re.split(r"(?<!\\)\|", line))
        width = cells if width <= 1 else width
        assert cells in (width, 1), line
        width = cells


def test_a_cell_has_the_figures_of_its_record(tmp_path: Path, capsys) -> None:
    run = {"k": 9, "n": 1200, "seed": 3, "passes": 7, "active_units": [20, 4], "note": "odd"}
    run |= {"device": "gpu", "iwae": "0.1.0", "nll": 84.125, "nll_se": 0.25}
    cell = {"name": "mnist/2/iwae-5", "nll": [84.125, 0.25], "difference": [-1.5, None]}
    record = {"experiment": "table1", "device": "cpu", "iwae": "0.1.0"}
    figures = {"train NLL": [83.5, 0.25], "NLL by JVI-9": [1.0, None]}
    figures["used units of h1"] = [21, None]
    content: dict[str, Any] = record | {"cells": [cell | {"runs": [run], "figures": figures}]}
    (tmp_path / "own.json").write_text(json.dumps(content))
    page = tmp_path / "page.md"
    main(["reproduce", "--page", str(page), "--records", str(tmp_path)])
    assert capsys.readouterr().out == f"Wrote {page}.\n"
    assert (
        "| `mnist/2/iwae-5` | 83.89 (21+5) | 84.12 ± 0.25 (20+4) | +0.23 (+0.9 s.e.) | -1.50 "
        "| -1.12 | 7 passes, L_9 of 1,200 images, seed 3, gpu, iwae 0.1.0, odd | `own.json` |"
    ) in page.read_text()
    parts = [["cpu, iwae 0.2.0"], ["gpu, iwae 0.1.0", "cpu, iwae 0.2.0"]]
    content["cells"][0]["runs"] = [run | {"made_with": made} for made in parts]
    content["cells"][0]["runs"][0]["device"] = "tpu"
    content["cells"][0]["after"] = "mnist/2/vae-1"
    for run_of, seconds in zip(content["cells"][0]["runs"], (1000.25, 2000.0), strict=True):
        run_of["training_seconds"] = seconds
    (tmp_path / "own.json").write_text(json.dumps(content))
    made = "cpu, iwae 0.2.0, gpu, iwae 0.1.0, evaluated on tpu, iwae 0.1.0, odd"
    assert f"seeds 3, 3, {made} |" in results.page(tmp_path)
    passes = "7 passes after those of `mnist/2/vae-1` in 1,500 s, L_9 of"
    assert f"| {passes}" in results.page(tmp_path)
    content["settings"] = {"optimizer": "adam", "learning_rate": 0.01}
    content["cells"][0]["settings"] = {"learning_rate": 0.003}
    (tmp_path / "own.json").write_text(json.dumps(content))
    assert f"| {passes.replace('passes', 'passes of adam at 0.003')}" in results.page(tmp_path)
    del content["cells"][0]["after"]
    content["settings"]["stages"] = "1 k=1 / 2"
    (tmp_path / "own.json").write_text(json.dumps(content))
    staged = "| 7 passes of adam at 0.003 in stages `1 k=1 / 2` in 1,500 s, L_9 of"
    assert staged in results.page(tmp_path)
    assert "| `mnist/2/iwae-5` | train NLL |  | 83.50 ± 0.25 | `own.json` |" in page.read_text()
    assert "| `mnist/2/iwae-5` | NLL by JVI-9 |  | 1.00 | `own.json` |" in page.read_text()
    assert "| `mnist/2/iwae-5` | used units of h1 |  | 21 | `own.json` |" in page.read_text()
    assert "| `mnist/2/iwae-50` | 82.90 (26+7) | not yet run |" in page.read_text()
    assert "| 84.12 ± 0.25 (20+4) / 83.89 (21+5) | — / 82.90 (26+7) |\n" in page.read_text()
    assert "| table1 | 24 | 1 | 0 |" in page.read_text()
    assert "| swap | 4 | 0 | 0 |" in page.read_text()
    with refused(
        f"records = {page} was given, which is not a directory; give that of the files that `iwae "
        f"reproduce --record` wrote."
    ):
        results.page(page)


def test_at_a_glance_a_cell_is_of_the_best_measured_and_longest_run(tmp_path: Path) -> None:
    """By images, K, passes, seeds and the version that trained."""
    ways: list[dict[str, Any]] = [
        {"n": 20, "k": 10, "passes": 99},
        {"passes": 9},
        {"made_with": ["cpu, iwae 0.9.1"], "iwae": "0.10.1"},
        {"made_with": ["cpu, iwae 0.9.1", "cpu, iwae 0.10.0"]},
        {"iwae": "0.9.2"},
        {"passes": 3, "iwae": "1"},
    ]
    for i, way in enumerate(ways):
        run: dict[str, Any] = {
            "k": 50,
            "n": 100,
            "seed": 3,
            "passes": 20,
            "active_units": [i],
            "note": "",
        }
        run |= {"device": "gpu", "iwae": "0.1.0", "nll": 90.0 + i, "nll_se": 0.5} | way
        cell = {"name": "mine/1/vae-5", "nll": [90.0 + i, 0.5], "difference": None, "runs": [run]}
        record = {"experiment": "table1", "device": "cpu", "iwae": "2.0", "cells": [cell]}
        (tmp_path / f"{i}.json").write_text(json.dumps(record))
    page = results.page(tmp_path)
    assert "\n| `mine/1` | — | 93.00 ± 0.50 (3) | — | — | — | — |\n" in page
    assert "\n| `mnist/1` | — / 86.76 (19) | — / 86.47 (20) | " in page
    assert page.count("| ours / published |") == 1, "of table1, the only one with a record"


def test_a_gain_is_taken_apart_into_what_both_models_are_better(tmp_path: Path) -> None:
    """84.78 − 86.35 and 85 − 85.5: the VAE is 0.85 nats better, IWAE 0.22 worse than published."""
    run = {"k": 50, "n": 100, "seed": 3, "passes": 20, "active_units": [1], "note": ""}
    run |= {"device": "cpu", "iwae": "0.1.0", "nll_se": 0.5}
    cells = [
        {"name": name, "nll": [nll, 0.5], "difference": None, "runs": [run | {"nll": nll}]}
        for name, nll in (
            ("mnist/1/vae-50", 85.5),
            ("mnist/1/iwae-50", 85.0),
            ("mnist/1/iwae-5", 9),
        )
    ]
    record = {"experiment": "table1", "device": "cpu", "iwae": "2.0", "cells": cells}
    (tmp_path / "own.json").write_text(json.dumps(record))
    gains = results.page(tmp_path).partition("### The gains of table1")[2]
    assert "-0.85 to -0.85 nats for the VAEs, and +0.22 to +0.22 for IWAE." in gains
    pair = "`mnist/1/iwae-50` to `mnist/1/vae-50`"
    assert f"| {pair} | -1.57 | -0.50 | -0.85 | +0.22 | `own.json` |" in gains
    assert gains.count("` to `") == 1


def test_gains_are_listed_by_the_length_of_the_training(tmp_path: Path) -> None:
    run = {"k": 50, "n": 100, "seed": 3, "passes": 20, "active_units": [1], "note": ""}
    run |= {"device": "cpu", "iwae": "0.1.0", "nll": 85.0, "nll_se": 0.5}
    cells = [
        {
            "name": f"mnist/{n}-epochs/iwae-5",
            "nll": [85.0, 0.5],
            "difference": [delta, 0.25],
            "against": f"mnist/{n}-epochs/vae-5",
            "runs": [run],
        }
        for n, delta in ((3, 1.5), (9, -0.5))
    ]
    record = {"experiment": "gain", "device": "cpu", "iwae": "2.0", "cells": cells}
    (tmp_path / "own.json").write_text(json.dumps(record))
    page = results.page(tmp_path)
    assert "| Δ | `mnist/3-epochs` | `mnist/9-epochs` |" in page
    assert "| `iwae-5` to `vae-5` | 1.50 ± 0.25 | -0.50 ± 0.25 |" in page


@pytest.mark.parametrize(
    "text", ["", "[]", '{"cells": []}', '{"experiment": "foo"}', '{"experiment": "iwaeu"}']
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with refused(
        f"{path} was found among the records, but it is none of `iwae reproduce --record`; take it "
        f"out of there."
    ):
        results.page(tmp_path)


def test_units_are_counted_layer_by_layer() -> None:
    assert units_in_words([1234, 20.333, 5]) == "1234 + 20.3 + 5"
    assert units_in_words([20.0, 4.0], "+") == "20+4"
    assert units_in_words(None) == "—"
    of = lambda units: Result({"seed": 0, "k": 5, "n": 20, "nll": 90.0, "active_units": units})
    runs = [of([20, 4]), of([21, 4])]
    assert mean_units(runs) == [20.5, 4]
    assert mean_units([*runs, of(None)]) is None
