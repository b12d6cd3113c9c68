"""Replicas: each is the run of its own seed, however many are trained together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwae
from callbacks import Interrupting
from iwae import runs
from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import ModelConfig, ObjectiveConfig, RunConfig, TrainingConfig
from iwae.errors import InputError, Interrupted
from iwae.evaluation.trained import TrainedModel
from iwae.models.autoencoder import Autoencoder
from iwae.models.networks import Readout
from iwae.models.observation import Observer
from iwae.storage import checkpoint, run_directory
from iwae.training import gradient_step, trainer
from iwae.training.trainer import NonFiniteError
from linear_gaussian import random_model
from refusals import refused


def same(a: TrainedModel, b: TrainedModel) -> None:
    """Up to rounding, which may differ as the suite compiles (conftest.py)."""
    for ours, theirs in zip(*map(jax.tree.leaves, (a.model, b.model)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tiny: RunConfig) -> dict[int, TrainedModel]:
    """Solo runs."""
    return {seed: iwae.train(tiny, seed=seed) for seed in (0, 3)}


EXACT = """
import sys
import jax, numpy as np
import iwae
from iwae.errors import Interrupted
from iwae.config.io import override, parse
sys.path.insert(0, sys.argv[3])
from callbacks import Interrupting
config = parse(sys.argv[1], "the test")
for given in (config, override(config, batch_size=100, k=50, epochs=2)):
    out = f"{sys.argv[2]}-{given.objective.k}"
    try:
        each = {0: [Interrupting(5)], 3: []}.get
        iwae.train_replicas(given, seeds=(3, 0), out=out, callbacks=each)
        raise SystemExit("It was not interrupted.")
    except Interrupted:
        together = iwae.train_replicas(given, seeds=(3, 0), out=out, resume=True)
    for trained, seed in zip(together, (3, 0)):
        alone = iwae.train(given, seed=seed)
        for ours, theirs in zip(*map(jax.tree.leaves, (trained.model, alone.model)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
"""


@pytest.mark.slow
def test_replicas_are_bit_for_bit_the_runs_of_their_seeds(tiny, tmp_path: Path) -> None:
    """Interrupted and resumed, of small batches and of one in groups, compiled as for users."""
    folders = [str(tmp_path / "out"), str(Path(__file__).parent)]
    command = [sys.executable, "-c", EXACT, tiny.to_toml(), *folders]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, check=True)


def test_a_replica_is_the_run_of_its_seed(tiny, alone, tmp_path: Path) -> None:
    together = iwae.train_replicas(tiny, seeds=(3, 0), out=tmp_path / "out")
    for trained, seed in zip(together, (3, 0), strict=True):
        assert trained.path == tmp_path / "out" / f"seed-{seed}"
        assert trained.config == override(tiny, seed=seed)
        same(trained, alone[seed])
        same(iwae.load(trained.path), alone[seed])
    assert [p.name for p in run_directory.replicas(tmp_path / "out")] == ["seed-0", "seed-3"]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["reparam", "dreg"])
def test_batched_products_change_a_replica_by_rounding_only(estimator: Any) -> None:
    """As on a GPU, after 10 steps of Adam at its full rate; one replica has a step of its own."""
    config = TrainingConfig(batch_size=2)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (60, 5)), jnp.uint8)
    models = [
        random_model(ModelConfig(1, ((4,),), (3,), "bernoulli"), 5, seed=seed) for seed in range(4)
    ]
    static = eqx.partition(models[0], eqx.is_inexact_array)[1]
    rates = [jnp.asarray([rate]) for rate in (1e-3, 1e-3, 3e-4, 1e-3)]
    observe = Observer(255.0, dynamic=True)
    shared, own = (
        gradient_step.make_step(static, objective, config, 30, observe)
        for objective in (ObjectiveConfig("iwae", k=3, estimator=estimator), ObjectiveConfig("vae"))
    )

    def after(vectorized: bool) -> tuple:
        advance = gradient_step.make_advance(vectorized=vectorized)
        transform = gradient_step.optimizer(config, 30, rates[0])
        params = [eqx.filter(m, eqx.is_inexact_array) for m in models]
        return advance(
            (shared, own, shared, shared),
            tuple(gradient_step.init(p, transform, average=False) for p in params),
            tuple(gradient_step.order_of_epoch(seed, 0, 60) for seed in range(4)),
            tuple(jnp.uint32(seed) for seed in range(4)),
            tuple(rates),
            images,
            0,
            10,
        )

    each, batched = after(vectorized=False), after(vectorized=True)
    for a, b in zip(*map(jax.tree.leaves, (each, batched)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    first, second = (jax.tree.leaves(s.params) for s in each[:2])
    assert all(np.any(a != b) for a, b in zip(first, second, strict=True))


DIFFERENT: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 2},
    "slow": {"learning_rate": 1e-4, "seed": 3, "epochs": 1},
    "vae": {"objective": "vae", "hidden": [[4]], "latents": [2], "schedule": "cosine"},
}


@pytest.mark.slow
def test_different_runs_in_one_program_are_what_each_is_alone(tiny, tmp_path: Path) -> None:
    configs = {name: override(tiny, **settings) for name, settings in DIFFERENT.items()}
    together = iwae.train_together(configs, out=tmp_path / "out")
    assert list(together) == list(DIFFERENT)
    for name, trained in together.items():
        assert trained.path == tmp_path / "out" / name
        same(trained, iwae.train(configs[name]))
        same(iwae.load(trained.path), trained)


@pytest.mark.slow
def test_different_runs_that_were_interrupted_go_on(tiny, tmp_path: Path) -> None:
    configs = {name: override(tiny, **DIFFERENT[name]) for name in ("plain", "vae")}
    out = tmp_path / "out"
    with pytest.raises(
        Interrupted,
        match=r"^Interrupted after [12] of [23] epochs; the run is saved, "
        r"and `resume=True` continues it\.$",
    ):
        iwae.train_together(
            configs, out=out, callbacks={"plain": [Interrupting(70)], "vae": []}.get
        )
    with refused(
        f"{out / 'plain'} holds a run already; give --resume to continue it, or another --out."
    ):
        iwae.train_together(configs, out=out)
    for name, trained in iwae.train_together(configs, out=out, resume=True).items():
        same(trained, iwae.train(configs[name]))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"batch_size": 10}, "batch_size"), ({"likelihood": "gaussian"}, "likelihood")],
)
def test_runs_that_cannot_share_a_program_are_refused(tiny, settings: dict, name: str) -> None:
    sentence = (
        f"Runs in one program share their data and batch size, but a and b differ in {name}; "
        f"train them one by one."
    )
    with refused(sentence):
        iwae.train_together({"a": tiny, "b": override(tiny, **settings)})


def test_runs_that_cannot_be_named_are_refused(tiny) -> None:
    sentence = (
        "train_together takes configurations by name; give at least one, as in {'plain': config}."
    )
    unnamed: list[Any] = [{}, [tiny]]
    for nameless in unnamed:
        with refused(sentence):
            iwae.train_together(nameless)
    for name in ("../a", "a/b", ".."):
        with refused(
            f"{name!r} was given as the name of a run, but it cannot be the name of a directory in "
            f"out; give a name without a path."
        ):
            iwae.train_together({name: tiny})


def test_a_replica_that_is_behind_catches_up_and_ends_as_it_would_alone(
    tiny, alone, tmp_path: Path
) -> None:
    """Seed 3 has been interrupted in its second epoch; seed 0 has not begun."""

    out = tmp_path / "out"
    config = override(tiny, checkpoint_every=1)
    with pytest.raises(Interrupted):
        iwae.train(config, seed=3, out=out / "seed-3", callbacks=[Interrupting(70)])
    assert run_directory.read_config(out / "seed-3").seed == 3
    again = iwae.train_replicas(config, seeds=(0, 3), out=out, resume=True)
    for trained in again:
        same(trained, alone[trained.config.seed])
        assert len(run_directory.read_metrics(trained.path)) == 3


def test_interrupted_replicas_are_saved_and_resumed_by_the_command_it_names(
    tiny, alone, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted) as error:
        iwae.train_replicas(
            tiny, seeds=(0, 3), out=out, callbacks={0: [Interrupting(70)], 3: []}.get
        )
    passes = checkpoint.read_header(out / "seed-0" / run_directory.CHECKPOINT)["passes"]
    assert passes in (1, 2)
    assert str(error.value) == (
        f"Interrupted after {passes} of 3 epochs; the run is saved, and `iwae train --out {out} "
        f"--resume` continues it."
    )
    main(["train", "--out", str(out), "--resume"])
    assert capsys.readouterr().out == f"Trained {out}. Next: iwae evaluate {out}\n"
    for seed in (0, 3):
        same(iwae.load(out / f"seed-{seed}"), alone[seed])


def test_a_replica_that_is_not_finite_leaves_the_others_to_their_end(
    tiny, alone, tmp_path: Path, monkeypatch
) -> None:
    real = trainer.initial

    def poisoned(config: RunConfig, data: trainer.Observed, **how):
        model = real(config, data, **how)
        if config.seed != 7:
            return model
        assert isinstance(model, Autoencoder)
        bias = cast(Readout, model.observation).linear.bias
        return eqx.tree_at(lambda m: m.observation.linear.bias, model, bias * jnp.nan)

    monkeypatch.setattr(trainer, "initial", poisoned)
    out = tmp_path / "out"
    with pytest.raises(NonFiniteError, match=r"^The bound is not finite at step 1 \(epoch 1\); "):
        iwae.train_replicas(tiny, seeds=(7, 3), out=out)
    same(iwae.load(out / "seed-3"), alone[3])


@pytest.mark.slow
def test_replicas_at_the_command_line(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    flags = ["--recipe", "smoke", "--epochs", "1", "--hidden", "8", "--latents", "3", "--k", "2"]
    main(["train", *flags, "--seeds", "2", "--out", str(out)])
    form = ["evaluate", str(out), "--k", "5", "--limit", "30"]
    capsys.readouterr()
    main(form)
    table = capsys.readouterr().out
    main([*form, "--json"])
    found = json.loads(capsys.readouterr().out)
    a, b = (found["replicas"][seed]["nll"] for seed in ("0", "1"))
    assert a != b
    assert found["nll"] == pytest.approx([(a + b) / 2, abs(a - b) / 2])
    assert f"{(a + b) / 2:.2f} ± {abs(a - b) / 2:.2f}" in table
    main(["report", str(out), "--out", str(tmp_path / "r.html")])
    assert "seed-1" in (tmp_path / "r.html").read_text()
    with pytest.raises(SystemExit):
        main([*form, "--per-example", str(tmp_path / "s.npy")])
    assert capsys.readouterr().err == (
        f"iwae: {out} holds replicas, but --per-example takes a single run; give {out}/seed-0.\n"
    )


@pytest.mark.slow
def test_replicas_of_a_fixed_binarisation(tiny) -> None:
    fixed = override(tiny, binarization="fixed", epochs=1)
    for seed, replica in enumerate(iwae.train_replicas(fixed, seeds=2)):
        same(replica, iwae.train(fixed, seed=seed))


def test_a_refused_resume_of_replicas_changes_none(tiny, tmp_path: Path) -> None:
    out = tmp_path / "two"
    iwae.train_replicas(tiny, seeds=2, epochs=1, out=out)
    damaged = out / "seed-1" / run_directory.CHECKPOINT
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged"):
        iwae.train_replicas(tiny, seeds=2, epochs=9, out=out, resume=True)
    for path in run_directory.replicas(out):
        assert run_directory.read_config(path).training.epochs == 1


def test_refusals(tiny, tiny_run: TrainedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with refused(
        "seeds = 3,3 was given, but replicas need seeds that differ; give how many (5), or which "
        "(0,3,7)."
    ):
        iwae.train_replicas(tiny, seeds=(3, 3), out=out)
    with refused(
        "seeds = 0 was given, but replicas need seeds that differ; give how many (5), or which "
        "(0,3,7)."
    ):
        iwae.train_replicas(tiny, seeds=0, out=out)
    with refused(
        "seeds = -3 was given, but replicas need seeds that differ; give how many (5), or which "
        "(0,3,7)."
    ):
        iwae.train_replicas(tiny, seeds=-3, out=out)
    with refused(f"{tiny_run.path} holds a single run; give another --out for replicas."):
        iwae.train_replicas(tiny, seeds=2, out=tiny_run.path)
    with refused(f"{out} holds no replicas to resume; leave out --resume to start them."):
        iwae.train_replicas(tiny, seeds=2, out=out, resume=True)
    with refused(f"{out} holds no replicas; give a directory written by `iwae train --seeds`."):
        runs.evaluate_replicas(out)
    assert not out.exists()
    iwae.train(tiny, seed=1, epochs=1, out=out / "seed-1")
    with refused(
        f"{out}/seed-1 holds a run already; give --resume to continue it, or another --out."
    ):
        iwae.train_replicas(tiny, seeds=2, out=out)
    assert not (out / "seed-0").exists()
    with refused(f"{out} holds replicas, not a run; give one of them: {out}/seed-1."):
        iwae.load(out)
    with refused(
        f"{out} holds replicas already; give --resume to continue them, or another --out."
    ):
        iwae.train(tiny, out=out)
    iwae.train(tiny, seed=1, epochs=1, out=out / "seed-5")
    assert [p.name for p in run_directory.replicas(out)] == ["seed-1"]


def test_a_seed_beside_seeds_is_refused(tmp_path: Path, capsys) -> None:
    form = ["train", "--recipe", "smoke", "--seeds", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*form, "--seed", "4"])
    assert capsys.readouterr().err == (
        "iwae: seed = 4 was given together with --seeds; leave out --seed.\n"
    )
