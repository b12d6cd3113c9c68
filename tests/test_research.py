"""The researcher's commands: what they print, write and reuse."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import optax
import pytest
from PIL import Image

from benchmarks import optimizers, search
from benchmarks import page as benchmarks_page
from benchmarks.page import curve_of
from iwae import runs
from iwae.cli.app import main
from iwae.config.io import override, recipe
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.trained import TrainedModel
from iwae.experiments import against_time, comparisons
from iwae.experiments.against_time import Curve, Measure, Snapshot, Snapshots
from iwae.plotting import figures
from iwae.storage.run_directory import read_progress
from iwae.training.callbacks import Callback, Start, TrainerState, Validation
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


def test_a_comparison_goes_on_where_one_training_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rates = {"far": 1e30, "near": 1e-3}
    cells = tuple(comparisons.Cell(n, n, {"learning_rate": r}) for n, r in rates.items())
    monkeypatch.setattr(comparisons, "comparison", lambda *_: cells)
    record = tmp_path / "record.json"
    form = ["compare", "estimators", "--recipe", "smoke", "--epochs", "1", "--train-k", "1"]
    form += ["--hidden", "4", "--latents", "2", "--k", "4", "--limit", "20"]
    form += ["--out", str(tmp_path / "runs"), "--record", str(record)]
    with pytest.raises(SystemExit) as ended:
        main(form)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "iwae: far was not trained to its end. The bound is not finite at step" in printed.err
    assert "near" in printed.out
    found = json.loads(record.read_text())
    assert [(cell["name"], cell["difference"]) for cell in found["cells"]] == [("near", None)]
    assert found["failures"]["far"].startswith("The bound is not finite")


def test_recipes_are_compared_where_one_diverges(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, rate in (("far", "1e30"), ("near", "1e-3")):
        (tmp_path / f"{name}.toml").write_text(f"[training]\nlearning_rate = {rate}\n")
    listed = ",".join(str(tmp_path / f"{name}.toml") for name in ("far", "near"))
    record, picture = tmp_path / "record.json", tmp_path / "minutes.svg"
    form = ["compare", "recipes", "--recipes", listed, "--dataset", "digits", "--epochs", "1"]
    form += ["--hidden", "4", "--latents", "2", "--train-k", "1", "--k", "4", "--limit", "20"]
    form += ["--layers", "1", "--out", str(tmp_path / "runs"), "--targets", "1e9"]
    with pytest.raises(SystemExit) as ended:
        main([*form, "--record", str(record), "--picture", str(picture)])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "iwae: far, seed 0 was not trained to its end. The bound is not finite" in printed.err
    assert "not finite" in printed.out
    assert "<svg" in picture.read_text()
    content = json.loads(record.read_text())
    far, near = (curve_of(each) for each in content["recipes"])
    assert (far.finals, far.nll, far.reaching(1e9)) == ([], math.inf, None)
    assert near.finals
    assert near.reaching(1e9) is not None
    assert "not finite (1 of 1 failed)" in search.compared("Rates", content)


def test_a_median_over_seeds_counts_a_failed_run_as_infinite() -> None:
    def run(nll: float) -> list[Snapshot]:
        return [Snapshot(1.0, 1, nll + 9.0, 0.1, False), Snapshot(2.0, 2, nll, 0.1, True)]

    taken = {0: run(90.0), 1: run(92.0), 2: run(85.0)[:1]}
    curve = Curve("mine", RunConfig(), taken, {2: "The bound is not finite."})
    assert curve.nll == 92.0
    assert curve.spread is None
    assert curve.nll_in_words == "92.00 ± 0.10 (1 of 3 failed)"
    assert curve.reaching(92.0) == 2.0
    assert Curve("mine", RunConfig(), taken, {1: "", 2: ""}).nll_in_words == (
        "not finite (2 of 3 failed)"
    )


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


# --- recipes by minutes -----------------------------------------------------------------------


def test_minutes_to_a_likelihood_are_those_of_the_median_run() -> None:
    taken = lambda i, m, nll: Snapshot(m, i, nll, 0.1 * m, final=False)
    run = lambda *points: tuple(taken(i, *point) for i, point in enumerate(points))
    curve = Curve(
        "mine",
        RunConfig(),
        {0: run((1, 90), (2, 86)), 1: run((1, 86), (3, 84)), 2: run((2, 88), (4, 87))},
    )
    assert curve.reaching(88) == 2  # 2, 1 and 2 minutes
    assert curve.reaching(86) == 2  # 2, 1 and never
    assert curve.reaching(85) is None  # never, 3 and never
    assert (curve.nll, curve.minutes, curve.spread) == (86, 3, 3)
    assert curve.nll_se == pytest.approx(0.4)
    drawn = figures.nll_curves([(curve.name, curve.points)], [84.78]).decode()
    assert "minutes of training" in drawn
    assert "mine" in drawn
    measure = Measure("valid", 20, 30)
    recorded = {
        "machine": {"cores": 2, "processor": "P"},
        "measure": {"split": "valid", "k": 20, "limit": 30},
        "contestants": against_time.record([curve], measure)["recipes"],
    }
    content = json.loads(json.dumps(recorded))
    page = benchmarks_page.minutes("Minutes", content, "minutes.svg", (86, 85))
    assert "| mine | 0, 1, 2 | 3.0 | 86.00 ± 0.40 | 3.00 | 2.0 | not reached |" in page
    assert "not those of the recipe" not in page
    paper = replace(curve, name="paper", config=override(recipe("paper"), k=1, minutes=3.0))
    content["contestants"] = json.loads(
        json.dumps(against_time.record([paper], measure)["recipes"])
    )
    page = benchmarks_page.minutes("Minutes", content, "minutes.svg", (86, 85))
    assert "Settings that are not those of the recipe: paper, k `1`." in page
    wider = replace(curve, config=override(RunConfig(), batch_size=40), runs={1: curve.runs[1]})
    found = against_time.record([curve, wider], measure)
    page = search.compared("Batches", json.loads(json.dumps(found)))
    assert page.index("| `40` | 1 | 3.0 | 84.00 ± 0.30 |") < page.index("| `20` | 0, 1, 2 |")
    page = search.compared("Batches", json.loads(json.dumps({"column": "optimizer", **found})))
    assert "| mine | `40` | 1 | 3.0 | 84.00 ± 0.30 |" in page


@pytest.mark.slow
def test_optimisers_are_trained_once(tiny: RunConfig, tmp_path: Path, monkeypatch) -> None:
    """A second command makes only what the record lacks; one that diverges is recorded as such."""
    monkeypatch.setattr(optimizers, "recipe", lambda name: override(tiny, optimizer="soap"))
    diverging = partial(optax.sgd, momentum=0.9)
    monkeypatch.setattr(optimizers, "OTHERS", {"sgd": (diverging, (1e-3, 1e9))})
    monkeypatch.setattr(optimizers, "SOAP_RATES", (1e-3,))
    record = tmp_path / "optimizers.json"
    measure = ["--k", "2", "--limit", "5", "--epochs", "2", "--record", str(record)]
    command = lambda *names: optimizers.main(["--optimizers", *names, *measure])
    command("sgd")
    first = json.loads(record.read_text())["recipes"]
    command("soap", "sgd")
    content = json.loads(record.read_text())
    names = [(of["name"], of["settings"]["learning_rate"]) for of in content["recipes"]]
    assert names == [
        ("optax.sgd(momentum=0.9)", 1e-3),
        ("optax.sgd(momentum=0.9)", 1e9),
        ("soap", 1e-3),
    ]
    assert content["recipes"][:2] == first
    assert [of["settings"]["epochs"] for of in content["recipes"]] == [3, 3, 2]
    assert "failure" in first[1]["runs"][0]
    assert "not finite (1 of 1 failed)" in search.compared("Optimisers", content)
    with pytest.raises(SystemExit, match="another measure; give another --record"):
        optimizers.main(["--optimizers", "soap", "--k", "3", "--record", str(record)])


def test_pages_of_benchmarks_are_those_of_their_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that has changed since is said to have, so that a change of one writes them anew."""
    monkeypatch.chdir(Path(__file__).parents[1])
    assert search.PAGE.read_text() == search.rendered(search.recorded())
    content = json.loads(benchmarks_page.SOURCE.read_text())
    assert benchmarks_page.PAGE.read_text() == benchmarks_page.rendered(content)


def test_snapshots_are_by_factors_of_time_and_those_of_the_model(tmp_path: Path) -> None:
    """Each is what an evaluation of that model gives; the last is the model's own."""
    config = override(recipe("smoke"), hidden=((8,),), latents=(2,), k=2, epochs=3)
    measure = Measure("valid", 20, 30)
    start = runs.untrained(config)
    taken = Snapshots(tmp_path / "run", start, measure)
    expected = start.evaluate(split="valid", k=20, limit=30)
    for epoch, seconds in ((1, 10), (2, 20), (4, 25), (5, 30), (6, 31), (7, 40)):
        state = TrainerState(epoch, 9, epoch, 9, seconds)
        taken.on_validation(Validation(state, -1.0, False, lambda: start.model))
    assert [(s.minutes * 60, s.epoch) for s in taken.taken] == [(20, 2), (30, 5)]
    assert [s.nll for s in taken.taken] == pytest.approx([expected.nll] * 2, rel=1e-6)
    assert taken.taken[0].nll_se == pytest.approx(expected.nll_se, rel=1e-4)
    resumed = Snapshots(tmp_path / "run", start, measure)
    assert resumed.taken == taken.taken
    resumed.on_start(Start(TrainerState(4, 9, 4, 9, 25.0), config))
    assert [s.epoch for s in resumed.taken] == [2], "what a resumed run repeats is taken again"
    assert Snapshots(tmp_path / "run", start, Measure("test", 20, 30)).taken == []
    assert not (tmp_path / "run").exists(), "a run directory holds nothing but the run"
    measure.file_of(tmp_path / "run").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        Snapshots(tmp_path / "run", start, measure)


@pytest.mark.slow
def test_the_last_point_is_the_resulting_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With patience it is the best one; of a run that ends by minutes the time is the whole; and to
    look at a run otherwise leaves what was measured."""
    monkeypatch.setattr(against_time, "FIRST_MINUTES", 0.0)
    monkeypatch.setattr(against_time, "SPACING", 1.0)
    mine = tmp_path / "mine.toml"
    mine.write_text("[training]\nlearning_rate = 0.3\npatience = 2\n[objective]\nk = 2\n")
    given = {"epochs": 8, "hidden": ((8,),), "latents": (2,)}
    measure, other = Measure("valid", 10, 40), Measure("test", 10, 40)

    def compared(of: Measure) -> Sequence[Snapshot]:
        out, callbacks = tmp_path / "runs", Bars()
        (curve,) = against_time.compared(
            [str(mine)], given, out, seeds=[0], measure=of, callbacks=callbacks
        )
        return curve.runs[0]

    points = compared(measure)
    model = runs.load(tmp_path / "runs" / "mine" / "seed-0")
    found = model.evaluate(split="valid", k=10, limit=40)
    assert points[-1].final
    assert points[-1].nll == pytest.approx(found.nll, rel=1e-6)
    assert points[-1].nll == min(s.nll for s in points)
    seconds = read_progress(tmp_path / "runs" / "mine" / "seed-0").seconds
    assert points[-1].minutes == seconds / 60
    assert len(points) > 2
    assert len(compared(other)) == 1
    assert compared(measure) == points


class Bars:
    def cell(self, name: str, epochs: int) -> Callback:
        return Callback()


@pytest.mark.slow
def test_recipes_are_compared_by_minutes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('stages = [{k = 1, objective = "vae"}, {}]\n[objective]\nk = 3\n')
    form = ["compare", "recipes", "--recipes", f"smoke,{mine}", "--seeds", "2", "--limit", "30"]
    form += ["--epochs", "2", "--hidden", "8", "--latents", "2", "--k", "10"]
    form += ["--out", str(tmp_path / "runs"), "--targets", "500,1"]
    record, picture = tmp_path / "record.json", tmp_path / "minutes.svg"
    main([*form, "--record", str(record), "--picture", str(picture)])
    table = capsys.readouterr().out
    assert "mine" in table
    assert "not reached" in table
    found = json.loads(record.read_text())
    assert [of["name"] for of in found["recipes"]] == ["smoke", "mine"]
    assert found["recipes"][1]["settings"]["stages"] == "1 objective=vae k=1 / 1"
    assert [run["seed"] for run in found["recipes"][1]["runs"]] == [0, 1]
    assert "<svg" in picture.read_text()
    kept = tmp_path / "runs" / "mine" / "seed-1" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    main([*form, "--record", str(record), "--overwrite"])
    assert kept.stat().st_mtime_ns == before
    assert json.loads(record.read_text())["recipes"] == found["recipes"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["estimators", "--seeds", "2"], "--seeds is for `iwae compare recipes`; leave it out."),
        (["recipes", "--recipes", "smoke,smoke"], "recipes = smoke,smoke was given, but two have"),
        (["recipes", "--limit", "0"], "limit = 0 was given, but it must be at least 1."),
        (["recipes", "--recipes", ","], "recipes = '' was given, but there is nothing to compare"),
        (["recipes", "--targets", "nan"], "targets = nan was given, but an NLL is a finite number"),
        (["recipes", "--recipe", "smoke"], "--recipe is for other comparisons; give --recipes."),
        (["recipes", "--recipes", "smoke,fast"], "Recipes are compared on the same data, but fast"),
        (
            ["estimators", "--recipe", "smoke", "--stages", "1 k=2 / 1 estimator=dreg"],
            "The last stage has estimator = dreg, but reparam has its own; leave it out, or add a "
            "stage in which it is that of each model.",
        ),
    ],
)
def test_comparisons_that_cannot_be_are_refused(
    given: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *given, "--out", str(tmp_path / "runs")])
    assert ended.value.code == 2
    assert f"iwae: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
