"""The command line: its forms are a contract, and bad input is a sentence and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iwae.cli.app import COMMANDS, main, parse
from iwae.cli.configured import parse as configured
from iwae.cli.everyday import Train
from iwae.cli.research import Compare
from iwae.config.io import override, recipe
from iwae.config.schema import RunConfig
from iwae.evaluation.trained import TrainedModel
from iwae.storage import run_directory


def run(*arguments: str | Path) -> int:
    """The exit code of `iwae ARGUMENTS`."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refusal(capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    """The one line on standard error of a command that must be refused."""
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("iwae: ")
    assert error.count("\n") == 1
    return error.removeprefix("iwae: ").rstrip("\n")


@pytest.fixture(scope="module")
def trained(tiny_run: TrainedModel) -> Path:
    return tiny_run.path


def test_train_writes_a_run(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    flags = ["--objective", "vae", "--k", "2", "--hidden", "8", "--latents", "3", "--epochs", "1"]
    assert run("train", "--dataset", "digits", *flags, "--out", out) == 0
    assert capsys.readouterr().out == f"Trained {out}. Next: iwae evaluate {out}\n"
    config = run_directory.read_config(out)
    assert (config.objective.objective, config.objective.k, config.training.epochs) == ("vae", 2, 1)
    assert config.model.widths == (((8,),), (3,))
    assert run("train", "--out", out, "--resume", "--epochs", "2") == 0
    assert [row["pass"] for row in run_directory.read_metrics(out)] == [1, 2]


def test_a_budget_that_ends_a_run_is_told(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    flags = ["--k", "2", "--hidden", "8", "--latents", "3", "--epochs", "500"]
    assert run("train", *flags, "--minutes", "0.0001", "--out", out) == 0
    epochs = len(run_directory.read_metrics(out))
    assert capsys.readouterr().out == (
        f"Trained {out} for {epochs} of 500 epochs, as its settings end it. Next: iwae evaluate "
        f"{out}\n"
    )


@pytest.mark.slow
def test_train_from_a_recipe_file_and_own_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "mine.npy", rng.normal(size=(60, 4)).astype(np.float32))
    (tmp_path / "mine.toml").write_text(
        f"[data]\ndataset = '{tmp_path}/mine.npy'\n[model]\nhidden = [[5], [4]]\nlatents = [3, 2]\n"
        "layers = 2\n[objective]\nk = 3\n[training]\nepochs = 1\n"
    )
    out = tmp_path / "run"
    assert run("train", "--recipe", tmp_path / "mine.toml", "--k", "2", "--out", out) == 0
    assert run_directory.read_config(out).objective.k == 2
    assert run("score", out, tmp_path / "mine.npy", "--k", "5", "--out", tmp_path / "s.npy") == 0
    assert np.load(tmp_path / "s.npy").shape == (60,)
    codes = tmp_path / "c.npy"
    assert run("encode", out, tmp_path / "mine.npy", "--layer", "2", "--out", codes) == 0
    assert np.load(codes).shape == (60, 2)


def test_evaluate_prints_one_json_object(trained: Path, tmp_path: Path, capsys) -> None:
    scores = tmp_path / "scores.npy"
    form = ["evaluate", str(trained), "--k", "10", "--split", "valid", "--limit", "30", "--json"]
    assert run(*form, "--per-example", scores) == 0
    result = json.loads(capsys.readouterr().out)
    wanted = ["nll", "nll_se", "bits_per_dim", "k", "n", "split", "active_units", "seconds"]
    assert set(wanted) <= result.keys()
    assert (result["k"], result["n"], result["split"]) == (10, 30, "valid")
    assert len(result["active_units"]) == 1
    values = np.load(scores)
    assert result["nll"] == pytest.approx(-values.mean(), rel=1e-6)
    assert result["nll_se"] == pytest.approx(values.std(ddof=1) / np.sqrt(30), rel=1e-5)
    assert result["bits_per_dim"] == pytest.approx(result["nll"] / 64 / np.log(2))


@pytest.mark.slow
def test_evaluate_prints_a_table(trained: Path, capsys) -> None:
    assert (
        run("evaluate", trained, "--k", "3", "--limit", "9", "--without-inactive", "--only-used")
        == 0
    )
    text = capsys.readouterr().out
    for part in ("digits, test, 9 examples", "NLL (L_3)", "nats", "without inactive units"):
        assert part in text


@pytest.mark.slow
def test_sample_reconstruct_encode_score_report(trained: Path, tmp_path: Path) -> None:
    assert run("sample", trained, "--n", "7", "--out", tmp_path / "s.npy") == 0
    assert np.load(tmp_path / "s.npy").shape == (7, 8, 8)
    draws = tmp_path / "draws.npy"
    assert run("sample", trained, "--n", "7", "--values", "draw", "--out", draws) == 0
    assert set(np.unique(np.load(draws))) == {0.0, 1.0}
    for name, extra in (("sample", ["--n", "7"]), ("reconstruct", ["--n", "4"])):
        picture = tmp_path / f"{name}.png"
        assert run(name, trained, *extra, "--out", picture) == 0
        with Image.open(picture) as image:
            assert min(image.size) >= 16
    assert run("encode", trained, "digits", "--out", tmp_path / "c.npy") == 0
    assert np.load(tmp_path / "c.npy").shape == (400, 3)
    table = tmp_path / "scores.csv"
    assert run("score", trained, "digits:valid", "--k", "5", "--out", table) == 0
    lines = table.read_text().splitlines()
    assert lines[0] == "index,log_likelihood"
    assert len(lines) == 101
    assert run("report", trained, "--out", tmp_path / "report.html") == 0
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_data_lists_what_is_missing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("IWAE_DATA_DIR", raising=False)
    assert run("data", "--data-dir", tmp_path) == 0
    text = capsys.readouterr().out
    assert "missing" in text
    assert "digits" in text
    assert f"looked in {tmp_path}" in text.replace("\n", "")


def test_overview_names_every_command(capsys) -> None:
    assert run() == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys) -> None:
    assert run(name, "--help") == 0
    assert f"usage: iwae {name}" in capsys.readouterr().out


def test_refusals(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("IWAE_DATA_DIR", raising=False)
    listed = ", ".join(sorted(COMMANDS))
    cases = [
        (("trian",), f"There is no command 'trian'; did you mean 'train'? Known are {listed}."),
        (
            ("train", "--recipe", "papr", "--out", tmp_path / "x"),
            "There is no recipe 'papr'; did you mean 'paper'? Known are demo, fast, fast-250, "
            "fast-vae, hiwae, iwaeu, manifold, paper, ring, smoke, or give a .toml file.",
        ),
        (
            ("train", "--likelihood", "Poison", "--epochs", "1", "--out", tmp_path / "y"),
            None,
        ),
        (
            ("train", "--out", trained),
            f"{trained} holds a run already; give --resume to continue it, or another --out.",
        ),
        (
            ("evaluate", tmp_path / "nowhere"),
            f"{tmp_path / 'nowhere'} does not exist; give a directory written by "
            "`iwae train --out`.",
        ),
        (
            ("evaluate", trained, "--k", "0"),
            "k = 0 was given, but it must be at least 1; give k = 1 or more.",
        ),
        (
            ("evaluate", trained, "--k", "99999999999"),
            "k = 99999999999 was given, but it can be at most 2,147,483,647; give fewer.",
        ),
        (("evaluate", trained, "--split", "tests"), None),
        (
            ("sample", trained, "--out", tmp_path / "x.gif"),
            f"{tmp_path / 'x.gif'} has no known suffix; give a file that ends in .png, .npy or "
            ".csv.",
        ),
        (
            ("encode", trained, "digits", "--layer", "2", "--out", tmp_path / "c2.npy"),
            "layer = 2 was given, but the model has layers 1 to 1; give one.",
        ),
        (("score", trained, tmp_path / "none.npy", "--out", tmp_path / "s1.csv"), None),
        (("data", "mnits"), None),
        *(
            (
                (name, trained, *rest, "--seed", "-1"),
                "seed = -1 was given, but a seed is a whole number from 0 to 2^32 - 1.",
            )
            for name, *rest in (
                ("evaluate",),
                ("sample", "--out", tmp_path / "a.npy"),
                ("score", "digits", "--out", tmp_path / "b.npy"),
                ("encode", "digits", "--out", tmp_path / "c.npy"),
                ("reconstruct", "--out", tmp_path / "d.png"),
                ("posterior", "--out", tmp_path / "q.png"),
                ("gradients",),
            )
        ),
        (
            ("evaluate", trained, "--memory", "-1"),
            "memory = -1 was given, but a block of draws needs at least 1 MiB; give more, or leave "
            "it out.",
        ),
        (
            ("sample", trained, "--n", "99999999999", "--out", tmp_path / "e.npy"),
            "n = 99999999999 was given, but it can be at most 2,147,483,647; give fewer.",
        ),
        (
            ("gradients", trained, "--ks", ""),
            "ks = () was given, but there is nothing to measure; give one K or more.",
        ),
        (
            ("train", "--resume", "--recipe", "smoke", "--out", trained),
            f"{trained} was started with hidden = ((8,),), not ((16,),); leave the setting out "
            f"to resume it, or give another --out.",
        ),
        (
            ("sample", trained, "--n", "1000000000", "--out", tmp_path / "e.npy"),
            "This needs more memory than there is; give a smaller --k, --n, --batch-size or "
            "--memory.",
        ),
        (
            ("gradients",),
            "Gradients are measured for one model; give either a run directory or --recipe.",
        ),
        (
            (
                "compare",
                "objectives",
                "--recipe",
                "smoke",
                "--train-k",
                "4",
                "--out",
                tmp_path / "g",
            ),
            "k = 4 was given, but MIWAE-5 needs 5 groups of importance samples of equal size; give "
            "a --train-k that 5 divides.",
        ),
        (
            ("compare", "foo", "--out", tmp_path / "f"),
            "There is no comparison 'foo'; known are estimators, objectives, precisions.",
        ),
        (
            ("posterior", trained, "--out", tmp_path / "p.png"),
            "The model has 3 latent units, but densities need exactly 2; train a model with "
            "--layers 1 --latents 2.",
        ),
    ]
    for arguments, sentence in cases:
        said = refusal(capsys, *map(str, arguments))
        assert sentence is None or said == sentence
        assert said.endswith(".")
    assert not (tmp_path / "x").exists()


def test_existing_output_is_kept(trained: Path, tmp_path: Path, capsys) -> None:
    kept = tmp_path / "s.npy"
    kept.write_text("precious")
    said = refusal(capsys, "sample", trained, "--n", "2", "--out", kept)
    assert said == f"{kept} exists; choose another name, or give --overwrite to replace it."
    assert kept.read_text() == "precious"
    assert run("sample", trained, "--n", "2", "--out", kept, "--overwrite") == 0
    assert np.load(kept).shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (np.zeros((3, 63)), "63"),
        (np.full((3, 64), np.inf), "infinite"),
        (np.full((3, 64), 17.0), "17"),
    ],
)
def test_unusable_examples_are_refused(trained: Path, tmp_path: Path, values, part, capsys) -> None:
    np.save(tmp_path / "bad.npy", values)
    said = refusal(capsys, "score", trained, tmp_path / "bad.npy", "--out", tmp_path / "s.csv")
    assert part.lower() in said.lower()
    assert not (tmp_path / "s.csv").exists()


def test_flags_that_do_not_fit_are_one_sentence(trained: Path, tmp_path: Path, capsys) -> None:
    helped = "`iwae train --help` lists what it takes."
    out = ["--out", tmp_path / "x"]
    cases: list[tuple[list[Any], str]] = [
        (
            ["--k", "0", *out],
            "k = 0 was given, but a bound needs at least 1 importance sample; give --k 1 or more.",
        ),
        (["--kk", "5", *out], f"iwae train does not take --kk; did you mean --k? {helped}"),
        (["--lr", "1"], f"iwae train does not take --lr; did you mean --learning-rate? {helped}"),
        (["--kk", "5"], f"iwae train does not take --kk; did you mean --k? {helped}"),
        (["--xyzzy", *out], f"iwae train does not take --xyzzy; {helped}"),
        (["--k", "5"], f"iwae train needs --out PATH; {helped}"),
        (
            ["--objective", "iwaee", *out],
            "--objective iwaee was given, which is not a choice; did you mean 'iwae'? Known are "
            "ciwae, iwae, jvi, miwae, piwae, vae, vr-iwae.",
        ),
        (
            ["--warmup", str(10**25), *out],
            f"warmup = {10**25} was given, but whole numbers can be at most 2,147,483,647; "
            f"give a smaller one.",
        ),
        (["--k", "five", *out], f"--k takes INT, not 'five'; {helped}"),
        ([*out, "--k"], f"--k was given without a value; {helped}"),
        (["--hidden", "a,b", *out], f"--hidden takes N,N/N,N, not 'a'; {helped}"),
        (
            ["--layers", "3", *out],
            "There is no preset with 3 stochastic layers; give both --hidden and --latents, or "
            "choose --layers 1 or 2.",
        ),
    ]
    for flags, sentence in cases:
        said = refusal(capsys, "train", *flags)
        assert said == sentence
    assert refusal(capsys, "evaluate").startswith("iwae evaluate needs RUN;")
    assert refusal(capsys, "sample", trained).startswith("iwae sample needs --out")
    assert not (tmp_path / "x").exists()


def test_console_script_exits_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from iwae.cli.app import main; main()", "trian"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("iwae: There is no command 'trian'")


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    """As of `iwae --help | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", "from iwae.cli.app import main; main(['--help'])"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_former_flags_are_understood_with_a_note(tmp_path: Path, capsys) -> None:
    """Where --draws is given, --k is the K that models are trained with, as it was."""
    said = parse("compare", ["objectives", "--out", "x", "--k", "10", "--draws", "7"])
    assert isinstance(said, Compare)
    assert (said.k, said.draws, said.config.objective.k) == (7, None, 10)
    assert capsys.readouterr().err == (
        "Note: --draws was renamed to --k, and the K of training to --train-k; the former name "
        "will be removed in the next version.\n"
    )
    said = parse("compare", ["objectives", "--out", "x", "--k", "7", "--train-k", "10"])
    assert isinstance(said, Compare)
    assert (said.k, said.config.objective.k, said.given) == (7, 10, {"k"})
    assert capsys.readouterr().err == ""
    lines = refusal_lines(capsys, "train", "--out", tmp_path / "x", "--hosts", "2")
    assert lines[0] == (
        "Note: --hosts was renamed to --processes; the former name will be removed in the next "
        "version."
    )
    assert lines[1].startswith("iwae: processes = 2 and process = 0 were given, but not the")


def refusal_lines(capsys: pytest.CaptureFixture, *arguments: str | Path) -> list[str]:
    """All lines on standard error of a command that is refused."""
    assert run(*arguments) == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("k", ["0", "-3", "99999999999"])
def test_the_number_of_importance_samples_is_checked_before_any_work(
    k: str, trained: Path, tmp_path: Path, capsys
) -> None:
    out = ["--out", str(tmp_path / "x")]
    for form in (
        ["evaluate", str(trained)],
        ["score", str(trained), "digits", "--out", str(tmp_path / "s.npy")],
        ["compare", "objectives", "--recipe", "smoke", *out],
        ["reproduce", "table1", "--recipe", "smoke", *out],
        ["reproduce", "ring", *out],
    ):
        assert refusal_lines(capsys, *form, "--k", k)[-1].startswith(f"iwae: k = {k} was given")
    assert not (tmp_path / "x").exists()


def parse_train(*flags: str) -> Train:
    command = parse("train", list(flags))
    assert isinstance(command, Train)
    return command


def test_only_settings_that_are_given_replace_those_of_the_start(trained: Path) -> None:
    """Whatever the order of flags, and also where a value is one of a flag's names."""
    fast = recipe("fast")
    said = parse_train("--epochs", "3", "--recipe", "fast", "--out", "paper")
    assert said.config == override(fast, epochs=3)
    assert (said.out, said.given) == (Path("paper"), {"epochs"})
    said = parse_train("--batch_size", "7", "--minutes", "None", "--out", "x")
    assert said.given == {"batch_size", "minutes"}
    resumed = parse_train("--resume", "--out", str(trained), "--epochs", "9")
    assert resumed.config == override(run_directory.read_config(trained), epochs=9)
    assert parse_train("--out", "x", "--seed", "0").given == {"seed"}


def test_help_shows_the_settings_of_the_start(trained: Path, capsys) -> None:
    def shown(*arguments: str) -> str:
        assert run(*arguments, "--help") == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    assert "Epochs to train for. (default: 100)" in shown("train")
    assert "Epochs to train for. (default: 3280)" in shown("reproduce", "table1")
    assert "Epochs to train for. (default: 3)" in shown("train", "--out", str(trained), "--resume")
    assert "--train-k INT" in shown("compare")


def test_a_table_is_trained_by_settings_for_its_size_unless_flags_give_others(
    tmp_path: Path, capsys
) -> None:
    """Flags win even where they give the default; another model or a recipe takes its own."""
    table = tmp_path / "mine.csv"
    rows = np.random.default_rng(0).normal(size=(60, 3))
    np.savetxt(table, rows, "%.4f", ",", header="a,b,c", comments="")

    def settled(*flags: str) -> RunConfig:
        given = ["--dataset", str(table), "--out", str(tmp_path / "run"), *flags]
        return configured(Train, given, prog="iwae train")._for_table()

    chosen = settled("--k", "50")
    assert chosen.objective.k == 50
    assert chosen.model.networks == "tanh+linear"
    assert chosen.training.batch_size == 48
    assert chosen.training.weight_decay == 1.0
    assert "mine.csv is a table of 48 training rows" in capsys.readouterr().err
    for others in (("--layers", "2"), ("--recipe", "smoke"), ("--values", "real")):
        assert settled(*others).training.weight_decay == 0
    assert capsys.readouterr().err == ""
