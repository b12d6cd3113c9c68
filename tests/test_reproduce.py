"""Published experiments, as far as they can be run in seconds."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwae
from iwae._utils.formatting import excess, excess_in_words
from iwae.cli.app import main, parse
from iwae.cli.published import Reproduce
from iwae.config.io import override, recipe, recipe_names
from iwae.config.schema import RunConfig
from iwae.experiments import cost, executors, figures, jobs, plan, toy_densities
from iwae.experiments.comparisons import COMPARISONS
from iwae.experiments.jobs import Job
from iwae.experiments.measured import Entry, Result
from iwae.experiments.papers import EXPERIMENTS, OTHERS, PICTURED
from iwae.experiments.rows import Row
from refusals import refused


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_table_is_of_cells_that_mean_something(name: str) -> None:
    experiment = EXPERIMENTS[name]
    names = [cell.name for cell in experiment.cells]
    assert len(set(names)) == len(names)
    for cell in experiment.cells:
        assert cell.name.startswith(str(cell.settings["dataset"]))
        assert cell.is_published == (name not in ("gain", "ladder"))
        assert {cell.against, cell.after} <= {None, *names}
        for of in (experiment.recipe, "smoke", "fast"):
            override(recipe(of), **cell.settings)
    of_own = {"fixed-mnist": 10, "dreg": 9, "li-turner": 4, "rainforth": 5, "iwaeu": 6}
    of_own |= {"swap": 4, "jvi": 3, "mad": 16, "gain": 16, "ladder": 8}
    of_own |= dict.fromkeys(("table1", "dead-units", "gap", "dd2434"), 20)
    tasks = plan.jobs_of(
        experiment.cells,
        recipe(experiment.recipe),
        recipe(experiment.recipe),
        seeds=[0],
        k=9,
        limit=None,
    )
    assert len({task.key for (task,) in tasks.values()}) == of_own[name]


@pytest.mark.parametrize("name", ["table1", "dd2434", "rainforth", "jvi"])
def test_a_vae_of_several_draws_has_its_gradient_through_all_of_them(name: str) -> None:
    fast = recipe("fast")
    tasks = plan.jobs_of(EXPERIMENTS[name].cells, fast, fast, seeds=[0], k=9, limit=None)
    few = {
        task.config.objective.objective: task.config.objective.backward_draws
        for (task,) in tasks.values()
        if task.config.objective.k > 5
    }
    assert few["vae"] is None
    assert few["iwae"] == 3
    compared = {c.name: override(fast, **c.settings) for c in COMPARISONS["objectives"]}
    assert compared["VAE"].objective.backward_draws is None


def test_a_converged_model_is_trained_on_as_the_other() -> None:
    """At 1e-4 for 3^7 passes in the paper; the run begins with that of the same seed."""
    paper = recipe("paper")
    cells = EXPERIMENTS["swap"].cells
    tasks = plan.jobs_of(cells, paper, paper, seeds=[0, 3], k=9, limit=None)
    begun, going_on = tasks["mnist/vae-1"], tasks["mnist/vae-1-then-iwae-50"]
    assert [task.after for task in going_on] == begun
    config = going_on[1].config
    assert (config.seed, config.objective.k, config.training.epochs) == (3, 50, 2187)
    assert config.training.learning_rate == pytest.approx(1e-4)
    assert config.training.schedule == "constant"
    assert begun[1].config.training == paper.training


def test_published_figures_are_those_of_the_papers() -> None:
    """Spot checks of the transcription; with one draw both bounds are one run."""
    tables = ("table1", "fixed-mnist", "iwaeu")
    cells = {cell.name: cell for name in tables for cell in EXPERIMENTS[name].cells}
    of = lambda name: (cells[name].published[0], cells[name].units)
    assert of("mnist/1/iwae-50") == (84.78, "25")
    assert of("mnist/2/vae-5") == (85.01, "17+5")
    assert of("omniglot/2/iwae-50") == (103.38, "44+7")
    assert of("mnist-fixed/2/iwae-5") == (86.17, "21+5")
    swap, jvi, dd2434 = (
        {cell.name: cell for cell in EXPERIMENTS[name].cells} for name in ("swap", "jvi", "dd2434")
    )
    again = {cell.name: cell for cell in EXPERIMENTS["li-turner"].cells}
    doubly = {cell.name: cell for cell in EXPERIMENTS["dreg"].cells}
    assert again["mnist/2/iwae-50"].published[0] == 83.05
    assert doubly["mnist/2/iwae-5"].published[0] == 83.48
    assert doubly["mnist/1/dreg-50"].settings["estimator"] == "dreg"
    assert swap["mnist/iwae-50-then-vae-1"].published[0] == 86.02
    assert jvi["mnist/iwae"].theirs("NLL by JVI-1") == "85.28"
    gap = {cell.name: cell for cell in EXPERIMENTS["gap"].cells}
    assert gap["omniglot/2/vae-5"].theirs("test − train") == "2.39 to 2.65"
    assert gap["mnist/1/vae-5"].theirs("train NLL") == ""
    assert dd2434["omniglot-raw/2/iwae-5"].published[0] == 104.71
    assert dd2434["mnist/1/vae-50"].settings["batch_size"] == 48
    assert of("mnist/IWAEU_rec") == (94.709, "")
    assert cells["mnist/2/iwae-1"].settings == cells["mnist/2/vae-1"].settings
    assert cells["mnist/2/iwae-5"].settings != cells["mnist/2/vae-5"].settings


def test_every_experiment_has_a_recipe_and_one_that_is_none_is_refused() -> None:
    assert set(OTHERS) == figures.FIGURES.keys() | {"hiwae"}
    assert set(PICTURED) == figures.FIGURES.keys()
    recipes = {experiment.recipe for experiment in EXPERIMENTS.values()}
    assert recipes | OTHERS.keys() <= set(recipe_names())
    known = ", ".join(sorted({*EXPERIMENTS, *OTHERS}))
    with refused(f"'foo' was given as the experiment to reproduce; known are {known}."):
        parse("reproduce", ["foo", "--out", "x"]).run()


def test_cells_are_chosen_by_name_and_data() -> None:
    table = EXPERIMENTS["table1"]
    chosen = lambda pattern="*", **how: plan.fitting(plan.placed(table, **how), pattern)
    names = lambda *pattern, **how: [cell.name for cell in chosen(*pattern, **how)]
    assert names("mnist/1/*-50") == ["mnist/1/vae-50", "mnist/1/iwae-50"]
    assert names("*/iwae-5", datasets=["omniglot"]) == [
        "omniglot/1/iwae-5",
        "omniglot/2/iwae-5",
    ]
    assert len(names(everywhere="digits")) == 12
    (moved,) = chosen("*/1/iwae-5", datasets=["omniglot=mine.npy"])
    assert moved.settings["dataset"] == str(Path("mine.npy").resolve())
    assert (moved.published, moved.against) == (None, "mine.npy/1/vae-5")
    fixed = plan.placed(EXPERIMENTS["fixed-mnist"], everywhere="digits")
    assert {cell.settings["binarization"] for cell in fixed} == {"fixed"}
    with refused(
        "datasets = mnist=mine.npy was given, but every cell uses digits here; give another "
        "--recipe."
    ):
        names(datasets=["mnist=mine.npy"], everywhere="digits")
    with refused(
        "datasets = digits was given, but no cell uses 'digits'; known are mnist, omniglot, or "
        "mnist=digits to replace a data set by it."
    ):
        names(datasets=["digits"])
    with refused(
        "cells = mnist/3/* was given, but no cell's name matches; the cells are "
        + ", ".join(cell.name for cell in table.cells if cell.name.startswith("mnist/"))
        + "."
    ):
        names("mnist/3/*", datasets=["mnist"])


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    places = []
    for published in ("mnist", "omniglot"):
        path = tmp_path / published / "mine.npy"
        path.parent.mkdir()
        np.save(path, np.eye(4))
        places.append(f"{published}={path}")
    with refused(
        f"datasets = {','.join(places)} was given, but both would be called mine.npy; rename one "
        f"of the files."
    ):
        plan.placed(EXPERIMENTS["table1"], places)


@pytest.mark.slow
def test_the_time_of_a_run_that_ends_by_minutes_is_known(tmp_path: Path) -> None:
    """A budget that is over while the step is compiled ends no estimate."""
    task = Job(recipe("smoke"), k=9, limit=20)
    brief = dataclasses.replace(task, config=override(task.config, minutes=1e-4))
    (seconds,) = cost.estimate([brief], tmp_path).values()
    assert 0.006 <= seconds < 60


def test_the_time_that_is_left_counts_the_run_that_another_begins_with(tmp_path, monkeypatch):
    """Once: with the task itself where it is one, else with the first that begins with it."""
    monkeypatch.setattr(cost, "_seconds", lambda task, data_dir: (2.0, 3.0))
    smoke = recipe("smoke")
    swap = plan.placed(EXPERIMENTS["swap"], everywhere="digits")
    tasks = plan.jobs_of(swap, smoke, smoke, seeds=[0], k=9, limit=None)
    (vae,), (then,) = tasks["digits/vae-1"], tasks["digits/vae-1-then-iwae-50"]
    long, short = 2 * smoke.training.epochs, 2 * then.config.training.epochs
    assert cost.estimate([vae, then], tmp_path) == {vae: long + 3, then: short + 3}
    assert cost.estimate([then], tmp_path) == {then: short + 3 + long}
    other = dataclasses.replace(then, k=7)
    alone = cost.estimate([then, other], tmp_path)
    assert alone == {then: short + 3 + long, other: short + 3}


def test_the_time_of_a_run_in_stages_is_that_of_each(tmp_path, monkeypatch):
    """An epoch of K samples takes K seconds here, the steps of each stage 1 second to compile."""
    monkeypatch.setattr(cost, "_seconds", lambda job, data_dir: (job.config.objective.k, 3.0, 1.0))
    config = override(recipe("smoke"), k=50, epochs=8, stages="3 k=1 / 1")
    job = Job(config, k=9, limit=20)
    assert cost.estimate([job], tmp_path) == {job: 6 * 1 + 2 * 50 + 2 * 1.0 + 3}
    then = plan.continued(config)
    assert (then.stages, then.objective.k, then.training.learning_rate) == ((), 50, 1e-4)


def test_the_time_that_is_left_is_of_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cost, "_seconds", lambda task, data_dir: (2.0, 3.0))
    monkeypatch.setattr(cost, "state", lambda task, out: "trained")
    there = {""}
    monkeypatch.setattr(cost, "measured", lambda task, out, part="": part in there)
    task = Job(recipe("smoke"), k=9, measures=("gap", "bound"))
    left = lambda: cost.estimate([task], tmp_path)[task]
    assert left() == 2 * 3, "the likelihoods again, and those of the training images"
    there.add("log_likelihoods")
    assert left() == 3
    there.add("gap")
    assert left() == 0


def test_the_time_that_is_left_counts_what_is_compiled_once(tmp_path: Path, monkeypatch) -> None:
    """The step by the first run of its kind, and so the evaluation; seeds are of one kind."""
    monkeypatch.setattr(cost, "_seconds", lambda task, data_dir: (2.0, 3.0, 40.0, 10.0))
    smoke = override(recipe("smoke"), epochs=5)
    first, second, other = (
        Job(override(smoke, **own), k=9, limit=20) for own in ({}, {"seed": 1}, {"k": 2})
    )
    seconds = cost.estimate([first, second, other], tmp_path)
    assert seconds == {first: 10 + 3 + 50, second: 10 + 3, other: 10 + 3 + 50}


@pytest.mark.slow
def test_an_estimate_measures_what_compiling_takes(tmp_path: Path, tiny: RunConfig) -> None:
    task = Job(override(tiny, hidden=((9,),)), k=9, limit=20)
    epoch, evaluation, step, program = cost._seconds(task, None)
    assert step > 10 * epoch > 0
    assert program > evaluation > 0


def test_a_table_whose_data_are_not_here_is_listed_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("iwae.data.files.download", lambda *_: pytest.fail("it was downloaded"))
    monkeypatch.delenv("IWAE_DATA_DIR", raising=False)
    monkeypatch.setattr(cost, "_seconds", lambda task, data_dir: (2.0, 3.0))
    form = ["reproduce", "table1", "--cells", "*/1/vae-1", "--out", str(tmp_path), "--dry-run"]
    main(form)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("unknown until its data are downloaded") == 2
    assert "2 runs to make, 0 done. The data of mnist, omniglot are not downloaded yet" in said
    assert "About" not in said
    main([*form, "--datasets", "mnist=digits,omniglot"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("unknown until its data are downloaded") == 1
    assert "with compilation for those whose data are available" in said


def test_the_smoke_recipe_says_that_it_shows_nothing_of_the_paper(tmp_path: Path, capsys) -> None:
    form = ["reproduce", "table1", "--recipe", "smoke", "--out", str(tmp_path), "--render"]
    main(form)
    assert "neither the figures nor their order say anything" in capsys.readouterr().out


def test_the_figures_of_a_row_are_those_worked_out_by_hand() -> None:
    cell = EXPERIMENTS["iwaeu"].cells[1]
    result = lambda nll, apart=1.0: Result(
        {"nll": nll, "nll_se": 0.5, "active_units": [20, 3], "seed": 0, "k": 5000, "n": 2},
        log_likelihoods=np.array([-nll - apart, -nll + apart]),
    )
    one = Row(cell, "done", [result(94.0)], [result(95.0, 1.5)], [])
    assert one.nll == (94.0, 0.5)
    assert one.active_units == "20+3"
    assert cell.published is not None
    expected = pytest.approx((94.0 - 94.709, np.hypot(0.5, 0.025)))
    assert excess(one.results, cell.published) == expected
    bare = lambda nll: Result({"nll": nll, "nll_se": None, "seed": 0, "k": 5000, "n": 2})
    unsure = [bare(94.5)]
    assert excess_in_words(unsure, (94.0, np.nan)) == "+0.50"
    over_seeds = [result(94.0), result(94.5)]
    assert excess_in_words(over_seeds, (93.25, np.nan)) == "+1.00 (+1.8 s.e.)"
    assert one.difference == pytest.approx((-1, 0.5)), "image by image"
    unknown = pytest.approx((-1, np.nan), nan_ok=True)
    older = dataclasses.replace(result(95.0), log_likelihoods=None)
    assert Row(cell, "done", [result(94.0)], [older], []).difference == unknown
    same = Row(cell, "done", [result(94.0)], [result(94.0)], []).difference
    assert same == pytest.approx((0, np.nan), nan_ok=True), "one run has no error"
    single = Row(cell, "done", [bare(94.0)], [], []).nll
    assert single == pytest.approx((94.0, np.nan), nan_ok=True)
    assert one.figures == {}
    with_figures = lambda value: dataclasses.replace(
        result(94.0), figures={"gap": {"train": (value, None)}}
    )
    (figure,) = Row(cell, "done", [with_figures(3.0)], [], []).figures.values()
    assert figure == pytest.approx((3.0, np.nan), nan_ok=True)
    several = Row(cell, "done", [with_figures(3.0), with_figures(5.0)], [], [])
    assert several.figures == {"train": pytest.approx((4.0, 1.0))}
    two = Row(cell, "done", [result(94.0), result(96.0)], [result(95.0), result(96.5)], [])
    assert two.nll == pytest.approx((95.0, 1.0))
    assert two.difference == pytest.approx((-0.75, 0.25))


@pytest.mark.slow
def test_a_table_from_the_command_line(tmp_path: Path, capsys) -> None:
    out, record = tmp_path / "runs", tmp_path / "record.json"
    form = [
        "reproduce",
        "iwaeu",
        "--epochs",
        "1",
        "--datasets",
        "mnist=digits",
        "--cells",
        "*/IWAE*c",
    ]
    form += ["--k", "5", "--limit", "20", "--out", str(out)]
    main([*form, "--dry-run", "--epochs", "100"])
    said = " ".join(capsys.readouterr().out.split())
    (about,) = re.findall(r"3 runs to make, 0 done\. About ([\d.]+ \w+) one after", said)
    value, unit = about.split()
    assert 3 < float(value) * {"s": 1, "min": 60}[unit] < 3600, "300 passes of 64 short steps"
    form[form.index("*/IWAE*c")] = "*[!U]"
    main([*form, "--render", "--seeds", "2"])
    assert capsys.readouterr().out.count("missing") == 2
    main([*form, "--seeds", "2", "--record", str(record)])
    printed = capsys.readouterr()
    assert "digits/IWAEU_rec" in printed.out
    assert "2/4 digits/IWAE, seed 1: " in printed.err
    kept = json.loads(record.read_text())
    assert kept["settings"]["epochs"] == 1
    plain, rec = kept["cells"]
    assert [plain["name"], rec["name"]] == ["digits/IWAE", "digits/IWAEU_rec"]
    assert plain["difference"] is None
    apart = [a["nll"] - b["nll"] for a, b in zip(rec["runs"], plain["runs"], strict=True)]
    expected = [np.mean(apart), np.std(apart, ddof=1) / np.sqrt(2)]
    assert rec["difference"] == pytest.approx(expected)
    own = {"dataset": "digits", "uncertain_weights": "encoder", "hidden": [[400]], "k": 25}
    assert own.items() <= rec["settings"].items()
    models = sorted(out.rglob("model.safetensors"))
    assert len(models) == 4
    before = [m.stat().st_mtime_ns for m in models]
    main([*form, "--seeds", "2", "--record", str(record), "--overwrite"])
    assert [m.stat().st_mtime_ns for m in models] == before
    assert json.loads(record.read_text()) == kept


@pytest.mark.slow
def test_a_replication_has_its_initial_weights_its_table_and_its_pictures(
    tmp_path: Path, capsys
) -> None:
    out = tmp_path / "runs"
    form = ["reproduce", "dd2434", "--recipe", "smoke", "--cells", "digits/1/*-5", "--limit", "20"]
    main([*form, "--epochs", "1", "--out", str(out)])
    said = capsys.readouterr().out
    for name in ("vae.svg", "iwae.svg", "vae-iwae.svg", "reconstructions.png"):
        path = out / "dd2434" / f"digits-1-{name}"
        assert f"Wrote {path}." in said
        assert path.stat().st_size > 1000
    (config, _) = [iwae.load(p.parent).config for p in sorted(out.rglob("model.safetensors"))]
    assert (config.seed, config.model.initialization) == (42, "fan-in")
    assert config.training.batch_size == 48


def test_the_recipe_is_that_of_the_experiment_and_not_of_a_flags_value() -> None:
    said = parse("reproduce", ["--out", "table1", "iwaeu"])
    assert isinstance(said, Reproduce)
    assert (said.name, said.config.model.latents) == ("iwaeu", (40,))
    said = parse("reproduce", ["--overwrite", "hiwae", "--datasets=ring"])
    assert isinstance(said, Reproduce)
    assert (said.name, said.config.model.proposal) == ("hiwae", "hierarchical")


def test_what_is_finished_is_put_down_though_another_cell_failed(
    tmp_path: Path, monkeypatch
) -> None:
    out, record = tmp_path / "runs", tmp_path / "record.json"
    evaluation: Entry = {
        "seed": 0,
        "passes": 1,
        "k": 100,
        "n": 50,
        "nll": 90.0,
        "nll_se": 1.0,
        "elbo": -91.0,
    }
    evaluation |= {"active_units": [3], "device": "cpu", "note": ""}

    def some(tasks, out: Path, **_):
        first, second = dict.fromkeys(tasks.values())
        jobs.write_result(first, out, Result(evaluation))
        return {first: Result(evaluation), second: jobs.Failure("It is missing.")}

    monkeypatch.setattr(executors, "make_all", some)
    form = ["table1", "--recipe", "smoke", "--cells", "digits/1/*-5"]
    with refused(
        "1 of 2 runs failed, first digits/1/iwae-5: It is missing. The others are finished; the "
        "same command tries again."
    ):
        parse("reproduce", [*form, "--out", str(out), "--record", str(record)]).run()
    (kept,) = json.loads(record.read_text())["cells"]
    assert (kept["name"], kept["nll"]) == ("digits/1/vae-5", [90.0, 1.0])


def test_a_seed_is_that_of_the_run(tmp_path: Path, monkeypatch) -> None:
    asked: dict = {}
    monkeypatch.setattr(executors, "make_all", lambda tasks, out, **how: asked.update(tasks) or {})
    form = ["reproduce", "table1", "--recipe", "smoke", "--cells", "*/1/vae-5"]
    main([*form, "--seed", "7", "--out", str(tmp_path)])
    main([*form, "--seeds", "2,3", "--out", str(tmp_path)])
    assert {name: task.config.seed for name, task in asked.items()} == {
        f"digits/1/vae-5, seed {seed}": seed for seed in (7, 2, 3)
    }
    asked.clear()
    form[1] = "dd2434"
    main([*form, "--out", str(tmp_path)])
    main([*form, "--seed", "0", "--out", str(tmp_path)])
    assert [task.config.seed for task in asked.values()] == [42, 0]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["ring", "--workers", "2"], "--workers was given, but ring is not a table; leave it out."),
        (
            ["table1", "--train-k", "3"],
            "k = 3 was given, but every model that is compared has its own; leave it out, and "
            "choose by --cells.",
        ),
        (
            ["table1", "--stages", "1 k=1 / 1 max_k=9"],
            "The last stage has max_k = 9, but mnist/1/vae-1 has its own; leave it out, or add a "
            "stage in which it is that of each model.",
        ),
        (
            ["table1", "--recipe", "fast", "--backward-draws", "2"],
            "backward_draws = 2 was given, but mnist/1/vae-5 has its own; leave it out, or choose "
            "other cells by --cells.",
        ),
        (
            ["swap", "--schedule", "cosine"],
            "schedule = cosine was given, but mnist/vae-1-then-iwae-50 has its own; leave it out, "
            "or choose other cells by --cells.",
        ),
        (
            ["table1", "--dry-run", "--record", "x.json"],
            "record = x.json was given, but --list and --dry-run have no results; leave one out.",
        ),
        (
            ["ring", "--seeds", "3"],
            "seeds or datasets were given, but ring trains one model on its own data; give "
            "--seed, or leave them out.",
        ),
        (
            ["hiwae", "--train-k", "3"],
            "k = 3 was given, but every model that is compared has its own; leave it out, and "
            "choose by --ks.",
        ),
        (
            ["hiwae", "--dataset", "digits"],
            "dataset = digits was given, but every model that is compared has its own; leave it "
            "out, and choose by --datasets.",
        ),
        (
            ["ring", "--recipe", "smoke"],
            "recipe = smoke was given, but it is for tables only, unlike ring; leave it out, and "
            "give a small --epochs.",
        ),
        (
            ["table1", "--seed", "3", "--seeds", "2"],
            "seed = 3 and seeds were given; give one of the two.",
        ),
        (
            ["table1", "--workers", "0"],
            "workers = 0 was given, but at least 1 is needed; give 1 or more.",
        ),
    ],
)
def test_flags_that_an_experiment_does_not_take_are_refused(
    flags: list[str], sentence: str, tmp_path: Path
) -> None:
    with refused(sentence):
        parse("reproduce", [*flags, "--out", str(tmp_path / "x")]).run()


@pytest.mark.slow
def test_the_rings_density_is_that_of_its_points() -> None:
    """Its entropy by points and by a sum over a grid; it integrates to 1."""
    side, n = 1.8, 2001
    axis = np.linspace(-side, side, n)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    outside = grid[np.linalg.norm(grid, axis=1) > 1]
    log_p = np.asarray(toy_densities.slides_ring_log_prob(outside), np.float64)
    cell = (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(np.sum(np.exp(log_p)) * cell, 1, atol=2e-3)
    entropy = -np.sum(np.exp(log_p) * log_p) * cell
    points = toy_densities.slides_ring(50_000, jax.random.key(0))
    values = -np.asarray(toy_densities.slides_ring_log_prob(points), np.float64)
    assert abs(values.mean() - entropy) < 5 * values.std() / np.sqrt(len(values)) + 2e-3


@pytest.mark.slow
def test_the_ring_from_the_command_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(figures, "POINTS", (400, 50, 200))
    out, record = tmp_path / "runs", tmp_path / "ring.json"
    form = ["reproduce", "ring", "--epochs", "2", "--hidden", "8", "--k", "3", "--draws", "20"]
    main([*form, "--out", str(out), "--record", str(record)])
    assert f"Wrote {out / 'ring' / 'ring.png'}." in capsys.readouterr().out
    measured = json.loads(record.read_text())["measured"]
    assert measured["gap"][0] > 5 * measured["gap"][1]
    assert measured["nll"][0] - measured["exact"][0] == pytest.approx(measured["gap"][0], abs=1e-5)


@pytest.mark.slow
def test_the_plane_goes_through_the_inverse_gaussian(tiny) -> None:
    trained = iwae.runs.untrained(override(tiny, latents=(2,)))
    images = figures.plane(trained, side=4)
    assert images.shape == (16, 8, 8)
    corner = jnp.asarray([-1.1503494, 1.1503494])
    np.testing.assert_allclose(images[0].ravel(), trained.model.expected(corner), rtol=1e-4)
