"""Batches shared by devices: the same run as on one, in one process and in several."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iwae import devices
from iwae.cli import main
from refusals import refused

SHARED = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
import iwae
from iwae import training
from iwae.devices import Devices
from iwae.loop import Observed, Run, Silent
from iwae.folder import Folder
from iwae.observation import observation, prepare
from iwae.settings import override, recipe

config = override(recipe("smoke"), k=2, hidden=((8,),), latents=(3,), epochs=2, seed=1)
values = {}
for count in (1, 4):
    trained = iwae.train(config, devices=count, estimator="dreg")
    leaves = [np.asarray(a) for a in jax.tree.leaves(trained.model)]
    first = values.setdefault("model", leaves)
    for a, b in zip(leaves, first, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    nll = trained.evaluate(k=9, limit=33).nll
    assert abs(nll - values.setdefault("nll", nll)) < 1e-2, (count, nll, values["nll"])

dataset = iwae.data.load("digits")
seen = observation(dataset, config.data, config.model)
run = Run(config, Observed(prepare(dataset, seen), seen), Folder(None), Silent(), Devices.of(4, 20))
step, order, images = run.make_step(), run.order_of_pass(), run.devices.everywhere(dataset.train)
key = run.devices.everywhere(jax.random.key_data(jax.random.key(0)))
compiled = jax.jit(
    lambda state, key: step(state, order, jax.random.wrap_key_data(key), run.rates, images, 0)
).lower(run.state, key).compile()
text = compiled.as_text()
assert "all-reduce" in text
assert "f32[5,64]" in text, "each device has 5 of the 20 images"
print("shared")
"""


def test_four_devices_share_a_batch_and_an_evaluation() -> None:
    """The gradients are summed over devices; a run is that of one device up to rounding."""
    done = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True)
    assert done.stdout.strip().endswith("shared"), done.stderr


def test_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    form = ["train", "--dataset", "digits", "--out", str(tmp_path / "run"), "--epochs", "1"]
    with refused("devices = 3 was given, but this machine has 1; give 1 to 1."):
        devices.Devices.of(3, 20)
    assert devices.Devices.of(1, 7).mesh is None
    with pytest.raises(SystemExit):
        main([*form, "--devices", "2"])
    assert not (tmp_path / "run").exists()


def test_hosts_without_a_coordinator_are_refused(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--out", "x", "--hosts", "2"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "iwae: hosts = 2 and host = 0 were given, but not where the first of them listens; give "
        "--coordinator HOST:PORT.\n"
    )
    with refused("host = 2 was given with hosts = 2, but hosts are counted from 0; give 0 to 1."):
        devices.join("127.0.0.1:1", 2, 2)


COMMAND = [sys.executable, "-c", "from iwae.cli import main; main()"]
SMALL = ["--dataset", "digits", "--hidden", "8", "--latents", "3", "--k", "2", "--batch-size", "20"]


def together(arguments: list[str]) -> list[subprocess.Popen]:
    """Two hosts that run one command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = [*COMMAND, *arguments, "--coordinator", f"127.0.0.1:{port}", "--hosts", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*shared, "--host", str(i)], **pipes) for i in range(2)]


def ended(hosts: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    said = [host.communicate(timeout=300) for host in hosts]
    return [(host.returncode, *texts) for host, texts in zip(hosts, said, strict=True)]


@pytest.mark.slow
def test_two_hosts_train_and_evaluate_one_run(tmp_path: Path) -> None:
    """It is that of one host up to rounding; the second neither writes nor prints."""
    train = ["train", *SMALL, "--epochs", "2", "--out"]
    both, alone = tmp_path / "both", tmp_path / "alone"
    first, second = ended(together([*train, str(both)]))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "Trained" in first[1]
    assert "Trained" not in second[1]
    evaluate = ["--k", "9", "--limit", "33", "--json"]
    first, second = ended(together(["evaluate", str(both), *evaluate]))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    subprocess.run([*COMMAND, *train, str(alone)], check=True, capture_output=True)
    done = subprocess.run(
        [*COMMAND, "evaluate", str(alone), *evaluate], check=True, capture_output=True, text=True
    )
    nll = [json.loads(out.strip().splitlines()[-1])["nll"] for out in (first[1], done.stdout)]
    assert nll[0] == pytest.approx(nll[1], abs=1e-3)
    again = ended(together([*train, str(both)]))
    for code, _, error in again:
        assert code == 2
        assert f"{both} holds a run already; give --resume to continue it" in error


@pytest.mark.slow
def test_two_hosts_stop_together_and_one_goes_on_alone(tmp_path: Path) -> None:
    """Ctrl-C on the second stops both, and the first saves."""
    out = tmp_path / "run"
    form = ["train", *SMALL, "--out", str(out), "--epochs"]
    hosts = together([*form, "100000"])
    began = time.monotonic()
    while not (out / "metrics.jsonl").exists():
        assert time.monotonic() - began < 200
        time.sleep(0.1)
    hosts[1].send_signal(signal.SIGINT)
    for code, _, error in ended(hosts):
        assert code == 130, error
    rows = len((out / "metrics.jsonl").read_text().splitlines())
    more = [*COMMAND, "train", "--out", str(out), "--resume", "--minutes", "0.0001"]
    done = subprocess.run(more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= rows
    assert (out / "model.safetensors").exists()
