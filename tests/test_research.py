"""The researcher's commands: what they print, write and reuse."""

import json
from pathlib import Path

import pytest
from PIL import Image

from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.evaluation.trained import TrainedModel
from iwae.experiments import comparisons
from refusals import refused


@pytest.mark.slow
def test_gradients_of_a_run(tiny_run: TrainedModel, tmp_path: Path, capsys) -> None:
    form = ["gradients", str(tiny_run.path), "--repeats", "40", "--examples", "3"]
    main([*form, "--ks", "1,2,4", "--estimators", "reparam,dreg", "--out", f"{tmp_path}/g.json"])
    text = capsys.readouterr().out
    assert "reparam, θ: SNR ∝ K^(" in text
    assert "40 draws of each gradient" in text
    found = json.loads((tmp_path / "g.json").read_text())
    assert [(m["estimator"], m["k"], m["parameters"]) for m in found["measurements"]] == [
        (e, k, p) for k in (1, 2, 4) for e in ("reparam", "dreg") for p in ("theta", "phi")
    ]
    slope = next(
        s for s in found["slopes"] if (s["estimator"], s["parameters"]) == ("dreg", "theta")
    )
    assert 0.2 < slope["slope"] < 0.8


@pytest.mark.slow
def test_gradients_of_a_recipe_under_another_bound(tmp_path: Path, capsys) -> None:
    form = ["gradients", "--recipe", "smoke", "--repeats", "20", "--examples", "2", "--ks", "4"]
    out = tmp_path / "snr.svg"
    main([*form, "--objective", "ciwae", "--beta", "0.5", "--estimators", "stl", "--out", str(out)])
    assert "<svg" in out.read_text()
    with pytest.raises(SystemExit):
        main([*form, "--objective", "ciwae"])
    assert capsys.readouterr().err == "iwae: objective = ciwae needs beta; give --beta.\n"


@pytest.mark.slow
def test_posterior_picture(tmp_path: Path, capsys) -> None:
    run, out = tmp_path / "run", tmp_path / "p.png"
    flags = ["--recipe", "smoke", "--epochs", "1", "--latents", "2", "--hidden", "8", "--k", "2"]
    main(["train", *flags, "--out", str(run)])
    main(["posterior", str(run), "--n", "2", "--k", "3", "--out", str(out)])
    with Image.open(out) as image:
        assert min(image.size) > 200


@pytest.mark.slow
def test_a_comparison_is_recorded_and_reused(tmp_path: Path, monkeypatch, capsys) -> None:
    two = comparisons.COMPARISONS["estimators"][:3:2]
    monkeypatch.setitem(comparisons.COMPARISONS, "estimators", two)
    form = ["compare", "estimators", "--recipe", "smoke", "--epochs", "1", "--k", "3"]
    form += ["--hidden", "8", "--latents", "2", "--k", "10", "--limit", "40"]
    form += ["--out", str(tmp_path / "runs")]
    main([*form, "--record", str(tmp_path / "record.json")])
    table = capsys.readouterr().out
    assert "dreg" in table
    found = json.loads((tmp_path / "record.json").read_text())
    assert found["settings"]["epochs"] == 1
    assert "estimator" not in found["settings"]
    plain, dreg = found["cells"]
    assert dreg["settings"] == {"estimator": "dreg"}
    assert plain["difference"] is None
    assert dreg["difference"][0] == pytest.approx(dreg["nll"] - plain["nll"], abs=1e-4)
    before = (tmp_path / "runs" / "dreg" / "model.safetensors").stat().st_mtime_ns
    main(form)
    assert (tmp_path / "runs" / "dreg" / "model.safetensors").stat().st_mtime_ns == before


def test_every_comparison_is_a_set_of_runs_that_mean_something() -> None:
    for name in comparisons.COMPARISONS:
        cells = comparisons.comparison(name, RunConfig(), RunConfig())
        configs = {override(RunConfig(), **c.settings) for c in cells}
        assert len(configs) == len({c.directory for c in cells}) == len(cells)
    dreg = override(RunConfig(), estimator="dreg", objective="miwae", m=5)
    assert (
        len(
            comparisons.comparison(
                "objectives", override(RunConfig(), estimator="dreg"), RunConfig()
            )
        )
        == 7
    )
    with refused(
        "estimator = dreg was given, but a comparison of estimators trains every one of them; "
        "leave it out."
    ):
        comparisons.comparison("estimators", dreg, RunConfig())
    few = override(RunConfig(), k=50, backward_draws=3, estimator="dreg")
    with refused("backward_draws = 3 was given, but VAE has its own; leave it out."):
        comparisons.comparison("objectives", few, RunConfig())
