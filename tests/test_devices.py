"""Batches shared by devices: the same run as on one, in one process and in several."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from iwae import runs
from iwae._utils import distributed
from iwae.cli.app import main, parse
from iwae.evaluation.trained import TrainedModel
from iwae.storage.checkpoint import read_header
from refusals import refused

SHARED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
import iwae
from iwae import training
from iwae._utils.distributed import Devices
from iwae.training.trainer import Observed, Run
from iwae.storage.run_directory import RunDirectory
from iwae.models.observation import observation, prepare
from iwae.config.io import override, recipe

config = override(recipe("smoke"), k=2, hidden=((8,),), latents=(3,), epochs=2, seed=1)
values = {}
for count in (1, 4):
    trained = iwae.train(config, devices=count, estimator="dreg")
    leaves = [np.asarray(a) for a in jax.tree.leaves(trained.model)]
    first = values.setdefault("model", leaves)
    for a, b in zip(leaves, first, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


dataset = iwae.data.load("digits")
seen = observation(dataset, config.data, config.model)
observed = Observed(prepare(dataset, seen), seen)
run = Run(config, observed, RunDirectory(None), (), Devices.of(4, 20))
step, order, images = run.make_step(), run.order_of_epoch(), run.devices.everywhere(dataset.train)
key = run.devices.everywhere(jax.random.key_data(jax.random.key(0)))
compiled = jax.jit(
    lambda state, key: step(state, order, jax.random.wrap_key_data(key), run.rates, images, 0)
).lower(run.state, key).compile()
text = compiled.as_text()
assert "all-reduce" in text
assert "f32[5,64]" in text, "each device has 5 of the 20 images"
path, out = sys.argv[1:]
np.save(out, iwae.load(path).log_likelihoods(dataset.test[:33].copy(), k=9))
print("shared")
"""


@pytest.mark.slow
def test_four_devices_share_a_batch_and_an_evaluation(
    tiny_run: TrainedModel, tmp_path: Path
) -> None:
    """The gradients are summed over devices; a run is that of one device up to rounding, and every
    example has the likelihood that one device finds."""
    out = tmp_path / "values.npy"
    command = [sys.executable, "-c", SHARED, str(tiny_run.path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip().endswith("shared"), done.stderr
    alone = tiny_run.log_likelihoods(tiny_run.data().test[:33], k=9)
    np.testing.assert_allclose(np.load(out), alone, rtol=1e-4)


def test_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    form = ["train", "--dataset", "digits", "--out", str(tmp_path / "run"), "--epochs", "1"]
    with refused("devices = 3 was given, but this machine has 1; give 1 to 1."):
        distributed.Devices.of(3, 20)
    assert distributed.Devices.of(1, 7).mesh is None
    with pytest.raises(SystemExit):
        main([*form, "--devices", "2"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_other_examples_than_the_first_are_refused(monkeypatch, tiny_run) -> None:
    monkeypatch.setattr(runs, "json_from_first", lambda own: f"not {own}")
    with refused(
        "The examples of digits in this process differ from those of the first process; give every "
        "process the same data."
    ):
        runs.train(tiny_run.config)


def test_processes_without_a_coordinator_are_refused(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--out", "x", "--processes", "2"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "iwae: processes = 2 and process = 0 were given, but not the address at which the first "
        "process listens; give --coordinator HOST:PORT.\n"
    )


def test_processes_that_cannot_come_together_are_refused(monkeypatch) -> None:
    for coordinator in ("first-machine", "127.0.0.1:abc", "127.0.0.1:99999"):
        with refused(
            f"coordinator = {coordinator} was given, but it must be the address at which the first "
            f"process listens; give HOST:PORT, such as first-machine:9911, or auto."
        ):
            distributed.join(coordinator, 2, 0)
    for processes, process in ((2, 2), (0, 0), (2, -1)):
        with refused(
            f"process = {process} was given with processes = {processes}, but processes are "
            f"numbered from 0, and there is at least 1; give a number from 0 to processes - 1."
        ):
            distributed.join("127.0.0.1:9911", processes, process)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refused(
            f"coordinator = 127.0.0.1:{port} was given, but this machine cannot listen there; give "
            f"one of its own addresses, and another port if this one is taken."
        ):
            distributed.join(f"127.0.0.1:{port}", 2, 0)
    monkeypatch.setattr(distributed, "PATIENCE", 0.3)
    with refused(
        f"coordinator = 127.0.0.1:{port} was given, but no process listens there; also start the "
        f"first process, with number 0."
    ):
        distributed.join(f"127.0.0.1:{port}", 2, 1)


def test_replicas_are_trained_on_one_device(tmp_path: Path) -> None:
    form = ["--out", str(tmp_path / "x"), "--seeds", "2", "--devices", "2"]
    with refused("devices = 2 was given, but replicas are trained on one device; leave it out."):
        parse("train", form).run()


COMMAND = [sys.executable, "-c", "from iwae.cli.app import main; main()"]
PIPES: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
SMALL = ["--dataset", "digits", "--hidden", "8", "--latents", "3", "--k", "2", "--batch-size", "20"]


def free_port(ports: Iterable[int] = (0,)) -> int:
    """The first of these at which no process listens; 0 stands for any."""
    for port in ports:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return free.getsockname()[1]
    raise OSError("no port is free")


def together(arguments: list[str]) -> list[subprocess.Popen]:
    """Two processes that run one command."""
    shared = [*COMMAND, *arguments, "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    return [subprocess.Popen([*shared, "--process", str(i)], **PIPES) for i in range(2)]


def by_slurm(arguments: list[str]) -> list[subprocess.Popen]:
    """Two processes that run one command, in the environment that `srun` gives them."""
    first = 2**16 - 2**12  # of the ports among which JAX takes one by the job's number
    job = free_port(range(first, 2**16)) - first
    shared = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": 2}
    own = [{**shared, "SLURM_PROCID": i, "SLURM_LOCALID": i} for i in range(2)]
    command = [*COMMAND, *arguments, "--coordinator", "auto"]
    environments = [os.environ | {name: str(v) for name, v in of.items()} for of in own]
    return [subprocess.Popen(command, env=env, **PIPES) for env in environments]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    said = [one.communicate(timeout=300) for one in processes]
    return [(one.returncode, *texts) for one, texts in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_one_run(tmp_path: Path) -> None:
    """It is that of one process up to rounding; the second neither writes nor prints."""
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
    assert [code for code, *_ in again] == [2, 2]
    assert f"{both} holds a run already; give --resume to continue it" in again[0][2]
    assert "Another process failed, so all were stopped" in again[1][2]


@pytest.mark.slow
def test_a_cluster_says_where_its_processes_are(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first, second = ended(by_slurm(["train", *SMALL, "--epochs", "1", "--out", str(out)]))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "Trained" in first[1]
    assert "Trained" not in second[1]


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on_alone(tmp_path: Path) -> None:
    """Ctrl-C on the second stops both, and the first saves."""
    out = tmp_path / "run"
    form = ["train", *SMALL, "--out", str(out), "--epochs"]
    both = together([*form, "100000"])
    began = time.monotonic()
    while not (out / "metrics.jsonl").exists():
        assert time.monotonic() - began < 200
        time.sleep(0.1)
    both[1].send_signal(signal.SIGINT)
    for code, _, error in ended(both):
        assert code == 130, error
    rows = len((out / "metrics.jsonl").read_text().splitlines())
    assert read_header(out / "checkpoint.safetensors")["passes"] == rows
    more = [*COMMAND, "train", "--out", str(out), "--resume", "--minutes", "0.0001"]
    done = subprocess.run(more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= rows
    assert (out / "model.safetensors").exists()


LISTENING = """
import socket, jax
from iwae._utils import distributed
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
distributed.join(f"127.0.0.1:{port}", 1, 0)
socket.create_connection(("127.0.0.1", port), timeout=5).close()
try:
    socket.create_connection(("127.0.0.2", port), timeout=5).close()
except ConnectionRefusedError:
    print("only there")
jax.distributed.shutdown()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux alone")
def test_the_first_process_listens_at_the_address_that_was_named() -> None:
    code = [sys.executable, "-c", LISTENING]
    done = subprocess.run(code, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "only there\n", done.stderr[-2000:]


def test_a_coordinator_that_no_other_machine_reaches_is_refused(monkeypatch) -> None:
    """Debian gives a machine's own name an address that is its own."""
    found = lambda name, port, **_: [(socket.AF_INET, None, 0, "", ("127.0.1.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", found)
    with refused(
        "coordinator = first:9911 was given, but on this machine first is 127.0.1.1, where no "
        "other machine can reach it; give the address by which the others know it."
    ):
        distributed.join("first:9911", 2, 0)


def test_a_coordinator_without_an_address_is_refused(monkeypatch) -> None:
    def unknown(*_, **__) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with refused(
        "coordinator = nowhere:9911 was given, but nowhere cannot be resolved here; give the "
        "first machine's own name or address."
    ):
        distributed.join("nowhere:9911", 2, 0)
