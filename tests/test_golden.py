"""What version 0.2.3 published and persisted, which every later one reads and names alike."""

import json
from pathlib import Path

import pytest

from iwae.config.io import recipe
from iwae.experiments.papers import EXPERIMENTS
from iwae.experiments.plan import jobs_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "published.json").read_text("utf-8"))


@pytest.mark.parametrize("name", GOLDEN)
def test_cells_of_an_early_version_keep_their_settings_figures_and_addresses(name: str) -> None:
    golden, experiment = GOLDEN[name], EXPERIMENTS[name]
    assert golden["about"] == experiment.about
    assert golden["source"] == experiment.source
    assert golden["seeds"] == list(experiment.seeds)
    assert golden["pictured"] == experiment.pictured
    config = recipe(golden["recipe"])
    jobs = jobs_of(experiment.cells, config, config, seeds=experiment.seeds, k=5000, limit=None)
    assert [c["name"] for c in golden["cells"]] == [c.name for c in experiment.cells]
    for theirs, cell in zip(golden["cells"], experiment.cells, strict=True):
        known = [None if v != v else v for v in cell.published or ()] or None
        assert theirs["published"] == known
        assert theirs["settings"] == json.loads(json.dumps(dict(cell.settings)))
        assert theirs["measures"] == list(cell.measures)
        assert theirs["further"] == dict(cell.further)
        assert (theirs["units"], theirs["against"], theirs["after"]) == (
            cell.units,
            cell.against,
            cell.after,
        )
        assert theirs["addresses"] == [job.key for job in jobs[cell.name]]


def test_every_experiment_of_an_early_version_is_there() -> None:
    assert GOLDEN.keys() <= EXPERIMENTS.keys()
