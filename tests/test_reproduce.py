"""Published experiments, as far as they can be run in seconds."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwae
from iwae import plates, reproduce, targets
from iwae.cli import main, parse
from iwae.research import PICTURED, REPRODUCED
from iwae.settings import override, recipe, recipe_names
from refusals import refused

SMALL = ["--hidden", "8", "--latents", "3", "--k", "2", "--epochs", "1"]


def test_every_experiment_has_a_recipe_and_models_that_mean_something() -> None:
    assert set(REPRODUCED) == reproduce.EXPERIMENTS.keys() | plates.PLATES.keys() | {"hiwae"}
    assert set(PICTURED) == plates.PLATES.keys()
    assert set(REPRODUCED) <= set(recipe_names())
    for name, about in reproduce.EXPERIMENTS.items():
        config = recipe(name)
        configs = {override(config, **settings) for settings in about.models.values()}
        assert len(configs) == len(about.models)
        assert about.published.keys() <= {(d, m) for d in about.datasets for m in about.models}
    with refused(
        "There is no experiment 'foo' to reproduce; known are hiwae, iwaeu, manifold, ring."
    ):
        parse("reproduce", ["foo", "--out", "x"]).run()


def test_an_experiment_from_the_command_line(tmp_path: Path, capsys, monkeypatch) -> None:
    about = reproduce.EXPERIMENTS["iwaeu"]
    models = {name: about.models[name] for name in ("IWAE", "IWAEU_rec")}
    monkeypatch.setitem(reproduce.EXPERIMENTS, "iwaeu", replace(about, models=models))
    out, record = tmp_path / "runs", tmp_path / "record.json"
    form = ["reproduce", "iwaeu", *SMALL, "--datasets", "digits", "--seeds", "2"]
    form += ["--draws", "5", "--limit", "20", "--out", str(out), "--record", str(record)]
    main(form)
    table = capsys.readouterr().out
    assert "IWAEU_rec" in table
    assert "Seeds: 2; passes: 1; test images: 20." in table
    kept = json.loads(record.read_text())
    assert kept["settings"]["hidden"] == [[8]]
    assert [m["model"] for m in kept["models"]] == ["IWAE", "IWAEU_rec"]
    plain, rec = kept["models"]
    assert plain["difference"] is None
    apart = [a["nll"] - b["nll"] for a, b in zip(rec["runs"], plain["runs"], strict=True)]
    expected = [np.mean(apart), np.std(apart, ddof=1) / np.sqrt(2)]
    assert rec["difference"] == pytest.approx(expected)
    assert rec["settings"] == {"uncertain_weights": "encoder"}
    models = sorted(out.rglob("model.safetensors"))
    assert len(models) == 4
    before = [m.stat().st_mtime_ns for m in models]
    main([*form, "--overwrite"])
    assert [m.stat().st_mtime_ns for m in models] == before
    assert json.loads(record.read_text())["models"][1]["nll"] == rec["nll"]


def test_published_differences_are_those_of_the_published_figures(tmp_path: Path) -> None:
    about = reproduce.EXPERIMENTS["iwaeu"]
    assert about.published["mnist", "IWAEU"][0] - about.published["mnist", "IWAE"][0] < -0.8
    assert reproduce.count("iwaeu", (), (0, 1, 2)) == 18


def test_the_rings_density_is_that_of_its_points() -> None:
    """Its entropy by points and by a sum over a grid; it integrates to 1."""
    side, n = 1.8, 2001
    axis = np.linspace(-side, side, n)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    outside = grid[np.linalg.norm(grid, axis=1) > 1]
    log_p = np.asarray(targets.slides_ring_log_prob(outside), np.float64)
    cell = (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(np.sum(np.exp(log_p)) * cell, 1, atol=2e-3)
    entropy = -np.sum(np.exp(log_p) * log_p) * cell
    points = targets.slides_ring(50_000, jax.random.key(0))
    values = -np.asarray(targets.slides_ring_log_prob(points), np.float64)
    assert abs(values.mean() - entropy) < 5 * values.std() / np.sqrt(len(values)) + 2e-3


def test_the_ring_from_the_command_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(plates, "POINTS", (400, 50, 200))
    out, record = tmp_path / "runs", tmp_path / "ring.json"
    form = ["reproduce", "ring", "--epochs", "2", "--hidden", "8", "--k", "3", "--draws", "20"]
    main([*form, "--out", str(out), "--record", str(record)])
    assert f"Wrote {out / 'ring' / 'ring.png'}." in capsys.readouterr().out
    measured = json.loads(record.read_text())["measured"]
    assert measured["gap"][0] > 5 * measured["gap"][1]
    assert measured["nll"][0] - measured["exact"][0] == pytest.approx(measured["gap"][0], abs=1e-5)
    with pytest.raises(SystemExit):
        main([*form, "--seeds", "3", "--out", str(out)])
    assert capsys.readouterr().err == (
        "iwae: seeds or datasets were given, but ring is drawn of one model on its own data; give "
        "--seed, or leave them out.\n"
    )


def test_the_plane_goes_through_the_inverse_gaussian(tiny) -> None:
    trained = iwae.runs.untrained(override(tiny, latents=(2,)))
    images = plates.plane(trained, side=4)
    assert images.shape == (16, 8, 8)
    corner = jnp.asarray([-1.1503494, 1.1503494])
    np.testing.assert_allclose(images[0].ravel(), trained.model.expected(corner), rtol=1e-4)
