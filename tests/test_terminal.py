"""What reaches a terminal: plain letters where it has no others, and nothing that steers it."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iwae._utils.files import as_argument
from iwae.cli import app, progress
from iwae.cli.terminal import speak_plainly, visible
from iwae.estimators.diagnostics import Measurement, Slope
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.measured import Result

NASTY = "a\x1b[31m\u202eb\x07\u2028\x9b"

SHOWN = (
    ["--help"],
    ["reproduce", "--list"],
    ["data"],
    ["evaluate", "RUN", "--k", "2", "--limit", "3"],
)
IN_ASCII = (
    *([name, "--help"] for name in app.COMMANDS),
    ["reproduce", "table1", "--list"],
)


def spoken(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    """The bytes that standard output gets from here on, as a script's is on such a console."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    return raw


@pytest.mark.parametrize(
    ("arguments", "encoding"),
    [
        *((a, e) for a in SHOWN for e in ("cp1252", "latin-1", "ascii", "utf-8")),
        *((a, "ascii") for a in IN_ASCII),
    ],
    ids=lambda of: of if isinstance(of, str) else " ".join(of),
)
def test_every_console_can_show_it(
    arguments: list[str], encoding: str, tiny_run: TrainedModel, monkeypatch
) -> None:
    raw = spoken(monkeypatch, encoding)
    with contextlib.suppress(SystemExit):
        app.main([str(tiny_run.path) if a == "RUN" else a for a in arguments])
    assert len(raw.getvalue().decode(encoding)) > 100


def test_gradients_are_shown_after_their_work(monkeypatch) -> None:
    raw = spoken(monkeypatch, "ascii")
    speak_plainly()
    one = Measurement("dreg", 4, "theta", 1.0, 0.1, 2.0, 3.0, 0.1, 0.1, 20, "dreg")
    progress.print_gradients([one], [Slope("dreg", "phi", 0.5, 0.1, 3)])
    said = raw.getvalue().decode("ascii")
    assert "dreg, phi: SNR ~ K^(0.50 +- 0.10)" in said


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("ascii", "-1 +-2... theta phi ||g|| sqrtK Delta p ->"),
        ("cp1252", "-1 ±2… theta phi ||g|| sqrtK Delta p ->"),
        ("utf-8", "−1 ±2… θ φ ‖g‖ √K Δ p̂ →"),
    ],
)
def test_signs_become_plain_letters(encoding: str, said: str, monkeypatch) -> None:
    raw = spoken(monkeypatch, encoding)
    speak_plainly()
    print("−1 ±2… θ φ ‖g‖ √K Δ p̂ →", end="")
    assert raw.getvalue().decode(encoding) == said


def test_what_steers_a_terminal_is_escaped(capsys, tiny_run: TrainedModel, tmp_path: Path) -> None:
    assert visible("a\nb ü 😀") == "a\nb ü 😀"
    assert visible(NASTY) == "a\\x1b[31m\\u202eb\\x07\\u2028\\x9b"
    assert visible(os.fsdecode(b"\xff")) == "\\xff"
    with pytest.raises(SystemExit):
        app.main(["evaluate", f"{NASTY}"])
    x = tmp_path / f"{NASTY}.npy"
    np.save(x, tiny_run.data().test[:2])
    out = str(tmp_path / f"{NASTY}.csv")
    app.main(["score", str(tiny_run.path), str(x), "--out", out, "--k", "2"])
    progress._console().print(progress.Text(NASTY))
    bar = progress.TrainingBars(1)
    bar.made(f"[bold]{NASTY}", Result({"seed": 0, "k": 1, "n": 1, "nll": 1.0}))
    said = "".join(capsys.readouterr())
    assert not set("\x1b\u202e\x07\u2028\x9b") & set(said)
    assert "\\x1b[31m" in said
    assert "[bold]" in said


@pytest.mark.parametrize(
    "name", ["-x", "--out", "a b", "it's", NASTY, "ü\n1", os.fsdecode(b"\xff7"), "plain"]
)
def test_a_path_that_is_shown_in_a_command_can_be_pasted(name: str) -> None:
    shown = as_argument(Path(name))
    assert visible(shown) == shown
    if name.isprintable():
        (read,) = shlex.split(shown)
        assert not read.startswith("-")
        assert Path(read) == Path(name)
    bash = ["bash", "-c", f"printf %s {shown}"]
    said = subprocess.run(bash, capture_output=True, check=True).stdout
    assert os.fsencode(Path(os.fsdecode(said))) == os.fsencode(name)


def test_the_next_command_can_be_pasted(
    tiny_run: TrainedModel, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = ["--recipe", "smoke", "--k", "2", "--hidden", "8", "--latents", "3"]
    app.main(["train", "--out", "./-x", *settings, "--epochs", "1"])
    said = capsys.readouterr().out
    assert said.endswith("Next: iwae evaluate ./-x\n")
    app.main([*shlex.split(said.split("Next: iwae ")[1]), "--k", "2", "--limit", "2"])
