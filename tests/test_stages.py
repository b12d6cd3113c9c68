"""Stages of a training run, and the weight of the latent KL that rises at its beginning."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import iwae
from iwae.bounds import elbo
from iwae.bounds import iwae as iwae_bound
from iwae.config.io import override, parse, recipe, recipe_names, stages_of, text_of
from iwae.config.schema import ModelConfig, RunConfig, Stage
from iwae.errors import InputError
from iwae.estimators.surrogate import Estimator, surrogate_loss
from iwae.evaluation.trained import TrainedModel
from iwae.models.base import FromFunctions, draw_log_weights
from iwae.plotting import report
from iwae.training import gradient_step
from iwae.training.callbacks import Callback, Checkpoint, EpochEnd, Validation
from iwae.training.spans import spans
from linear_gaussian import LinearGaussian, random_model
from test_runtime import compilations
from thinned import thinned

SMALL: dict[str, Any] = {
    "hidden": ((8,),),
    "latents": (3,),
    "k": 4,
    "batch_size": 20,
    "estimator": "dreg",
    "seed": 3,
}
GROWING = "2 k=1 objective=vae estimator=reparam / 1 batch_size=40 learning_rate=5e-4 / 1"


def images(n: int = 130) -> np.ndarray:
    draws = np.random.default_rng(0).uniform(size=(n, 6))
    return (draws < 0.4).astype(np.float32)


def trained(epochs: int = 8, **given: Any) -> TrainedModel:
    data = {"train": images(), "valid": images(30), "test": images(30)}
    return iwae.train(data=data, epochs=epochs, progress=False, **(SMALL | given))


def rejected(act: Callable[[], object], *parts: str) -> None:
    """`InputError` with a sentence that has these parts."""
    with pytest.raises(InputError) as caught:
        act()
    for part in parts:
        assert part in str(caught.value)


def same(one: TrainedModel, other: TrainedModel) -> bool:
    return all(map(np.array_equal, weights(one), weights(other)))


def weights(of: TrainedModel) -> list[Any]:
    return jax.tree.leaves(eqx.filter(of.model, eqx.is_array))


# --- where stages begin and end ---------------------------------------------------------------


def test_stages_share_the_epochs_and_end_with_whole_ones() -> None:
    config = override(RunConfig(), epochs=10, batch_size=20, stages="1 / 1 batch_size=50 / 0.2")
    found = spans(config, 130)
    assert [(s.first_epoch, s.end_epoch) for s in found] == [(0, 5), (5, 9), (9, 10)]
    assert [s.steps_per_epoch for s in found] == [6, 2, 6]
    assert [(s.first_step, s.end_step) for s in found] == [(0, 30), (30, 38), (38, 44)]


@pytest.mark.parametrize("stages", ["1 / 1 k=2 / 3 k=3", "9 / 1 k=2 / 1", "1 / 1 k=2 / 99"])
@pytest.mark.parametrize("epochs", [3, 4, 5, 17])
def test_every_epoch_belongs_to_one_stage(epochs: int, stages: str) -> None:
    config = override(RunConfig(), epochs=epochs, stages=stages)
    found = spans(config, 100)
    assert all(span.end_epoch > span.first_epoch for span in found)
    covered = [e for span in found for e in range(span.first_epoch, span.end_epoch)]
    assert covered == list(range(epochs))
    assert all(one.end_step == next_.first_step for one, next_ in itertools.pairwise(found))


def test_schedules_and_bars_count_epochs_whatever_the_batch() -> None:
    """lr(e) = lr (1 + cos(π e / E)) / 2, at the last step of each epoch e."""
    seen = []

    class Seen(Callback):
        def on_epoch_end(self, event: EpochEnd) -> None:
            seen.append((event.state.position, event.state.step, event.state.steps))

    run = trained(
        schedule="cosine",
        learning_rate=1e-2,
        stages="1 / 1 batch_size=40 / 1",
        callbacks=[Seen()],
    )
    steps = [6] * 3 + [3] * 2 + [6] * 3
    for row, n in zip(run.history.rows, steps, strict=True):
        at = (row.epoch - 1 / n) / 8
        expected = 1e-2 * (1 + np.cos(np.pi * at)) / 2
        np.testing.assert_allclose(row.learning_rate, expected, rtol=1e-5)
    ends = itertools.accumulate(steps)
    assert seen == [(epoch, end, sum(steps)) for epoch, end in enumerate(ends, 1)]


def test_the_settings_of_a_stage_are_those_of_the_run_but_for_its_own() -> None:
    config = override(RunConfig(), objective="miwae", m=2, k=8, encoder_objective="iwae")
    stage = Stage(objective="vae", k=1, learning_rate=0.1)
    own = config.during(stage)
    assert own.objective == dataclasses.replace(RunConfig().objective, objective="vae", k=1)
    assert own.training == dataclasses.replace(config.training, learning_rate=0.1)


def test_a_stage_has_at_most_so_many_draws_as_the_run() -> None:
    """max_k lowers K alone, to whole groups, so that one recipe suits every K of a table."""

    def ks(**given: Any) -> list[int]:
        run = override(RunConfig(), stages="1 objective=vae k=1 / 1 max_k=10 / 1", **given)
        return [own.objective.k for own, _, _ in run.by_stage]

    assert ks(k=50) == [1, 10, 50]
    assert ks(k=10) == [1, 10, 10]
    assert ks(k=5) == [1, 5, 5]
    assert ks(k=1) == [1, 1, 1]
    assert ks(k=64, objective="miwae", m=8) == [1, 8, 64]
    assert ks(k=64, objective="piwae", m=16) == [1, 16, 64]
    own = override(RunConfig(), k=64, stages="1 objective=miwae m=4 max_k=10 / 1")
    assert own.by_stage[0][0].objective.k == 8


# --- training in stages -----------------------------------------------------------------------


def test_stages_that_differ_in_nothing_change_nothing() -> None:
    once, parted = trained(), trained(stages="1 / 2 / 1")
    assert same(once, parted)
    assert [r.train_bound for r in once.history] == [r.train_bound for r in parted.history]


@pytest.mark.slow
def test_the_first_stage_is_a_run_of_its_settings() -> None:
    """Its epochs are those of a run with these settings, bit for bit; after it they are not."""
    alone = trained(k=1, objective="vae", estimator="reparam", epochs=4)
    parted = trained(stages=GROWING)
    bounds = [r.train_bound for r in parted.history]
    assert bounds[:4] == [r.train_bound for r in alone.history]


@pytest.mark.slow
def test_a_stage_is_compiled_once() -> None:
    """Stages with the same settings and batches share their program, and so does a second run."""
    again = "1 k=2 / 1 k=3 / 1 k=2"
    with compilations() as two:
        trained(stages=again, epochs=6, latents=(2,))
    assert two.count("jit(advance)") == 2
    with compilations() as none:
        trained(stages=again, epochs=9, latents=(2,), seed=4)
    assert none == []


@pytest.mark.parametrize("epoch", thinned([3, 4, 7], 4))
def test_a_run_resumes_within_a_stage_and_between_two(tmp_path: Path, epoch: int) -> None:
    """The same bits as at one go: the checkpoint of an epoch is all that a stage needs."""
    whole = trained(stages=GROWING, average=0.9)
    out = tmp_path / "run"

    class Killed(Callback):
        def on_epoch_end(self, event: EpochEnd) -> None:
            if event.state.epoch == epoch + 1:
                raise KeyboardInterrupt

    given: dict[str, Any] = {"stages": GROWING, "average": 0.9, "out": out}
    given["checkpoint_every"] = 1
    with pytest.raises(KeyboardInterrupt):
        trained(**given, callbacks=[Killed()])
    resumed = trained(**given, resume=True)
    assert same(whole, resumed)
    assert [r.step for r in whole.history] == [r.step for r in resumed.history]


def test_the_bound_of_training_is_the_stage_s_and_that_of_validation_the_run_s() -> None:
    """On images without latents in p or q's way: L_1 of one draw, L_4 of four, by their means."""
    short = trained(stages="1 k=1 objective=vae / 1", learning_rate=1e-9, epochs=2)
    first, second = short.history.rows
    assert first.train_bound < second.train_bound  # the ELBO is below L_4 of the same model
    np.testing.assert_allclose(first.valid_bound, second.valid_bound, atol=1e-4)


def test_averaging_starts_with_its_stage() -> None:
    """a ← a + (1 − min(d, (1 + t) / (10 + t))) (θ − a) from the first step t = 0 of the second
    stage on, where a is θ before it. One step an epoch shows all θ."""
    seen: list[Any] = []

    class Seen(Callback):
        def on_validation(self, event: Validation) -> None:
            seen.append(jax.tree.leaves(eqx.filter(event.model(), eqx.is_array)))

    given: dict[str, Any] = {"batch_size": 130, "epochs": 6, "learning_rate": 0.1}
    plain = trained(**given, callbacks=[Seen()])
    assert len(plain.history) == 6
    average = [np.asarray(a, np.float64) for a in seen[1]]
    for t, params in enumerate(seen[2:]):
        rate = 1 - min(0.3, (1 + t) / (10 + t))
        average = [a + rate * (p - a) for a, p in zip(average, params, strict=True)]
    averaged = trained(**given, stages="2 / 4 average=0.3")
    for a, b in zip(weights(averaged), average, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_runs_with_other_stages_train_in_one_program() -> None:
    """Each as alone, whatever the sizes of their batches."""
    config = override(RunConfig(), **SMALL | {"epochs": 4})
    texts = {"a": GROWING, "b": "1 k=2 / 1 batch_size=30", "c": ""}
    data = {"train": images(), "valid": images(30), "test": images(30)}
    several = {name: override(config, stages=text) for name, text in texts.items()}
    together = iwae.train_together(several, data=data, progress=False)
    for name, of in several.items():
        alone = iwae.train(of, data=data, progress=False)
        for a, b in zip(weights(together[name]), weights(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_replicas_take_the_stages_of_each_alone() -> None:
    config = override(RunConfig(), stages=GROWING, **SMALL | {"epochs": 4})
    data = {"train": images(), "valid": images(30), "test": images(30)}
    several = iwae.train_replicas(config, seeds=2, data=data, progress=False)
    for model in several:
        alone = iwae.train(override(config, seed=model.config.seed), data=data, progress=False)
        for a, b in zip(weights(model), weights(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_summary_and_a_report_name_the_stages(tmp_path: Path) -> None:
    run = trained(stages="1 k=1 / 1", epochs=2, out=tmp_path / "run")
    assert "1 k=1 / 1" in run._repr_html_()
    page = tmp_path / "report.html"
    report.write([tmp_path / "run"], page)
    assert "stages 1 k=1 / 1" in page.read_text()


# --- how stages are written -------------------------------------------------------------------


def test_stages_are_read_from_a_recipe_as_from_a_flag() -> None:
    written = """
        [[stages]]
        share = 2
        k = 1
        objective = "vae"
        [[stages]]
        batch_size = 100
    """
    flag = override(RunConfig(), stages="2 k=1 objective=vae / 1 batch_size=100")
    assert parse(written, "mine.toml") == flag
    assert parse(flag.to_toml(), "again") == flag
    assert stages_of(text_of(flag.stages)) == flag.stages
    assert stages_of("") == ()


def test_the_page_shows_the_same_stages_in_both_forms() -> None:
    page = Path(__file__).parents[1].joinpath("docs", "training.md").read_text()
    (shown,) = set(re.findall(r"stages[ =]['\"]([^'\"]+)['\"]", page))
    (block,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    assert parse(block, "page").stages == stages_of(shown) != ()


def test_the_settings_of_a_run_without_stages_do_not_speak_of_them() -> None:
    assert "stages = [" not in RunConfig().to_toml()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_written_as_it_is_read(name: str) -> None:
    assert parse(recipe(name).to_toml(), name) == recipe(name)


def test_stages_that_cannot_be_are_rejected() -> None:
    with_stages = lambda text, **more: override(RunConfig(), stages=text, **more)
    rejected(lambda: with_stages("k=1 / 2"), "Stage 1 of --stages is 'k=1'", "3 k=1")
    rejected(lambda: with_stages("1 kk=3"), "unknown entry 'kk'", "'k'")
    rejected(lambda: with_stages("1 k=x"), "k = 'x'", "whole number")
    rejected(lambda: with_stages("1 k=1 k=2"), "Stage 1", "gives k twice")
    rejected(lambda: with_stages("1 share=5"), "Stage 1", "gives share twice")
    rejected(lambda: with_stages("9 / 1 k=5 / 1", epochs=2), "no epoch of the 2", "at least 3")
    rejected(lambda: with_stages("1 average=0.9 / 1"), "Stage 2 has no average")
    rejected(lambda: parse("[stages]\nk = 3", "mine.toml"), "mine.toml: stages", "[[stages]]")
    rejected(lambda: parse("stages = 3", "mine.toml"), "mine.toml: stages = 3", "[[stages]]")
    rejected(lambda: parse("[[stages]]\nk = 1.5", "mine.toml"), "stages, 1", "whole number")
    rejected(lambda: with_stages("1 / 0"), "share = 0.0", "positive")
    rejected(lambda: with_stages("1 / 1 objective=miwae"), "Stage 2 (1 objective=miwae)", "needs m")
    rejected(
        lambda: override(recipe("fast"), estimator="rws"),
        "Stage 1 (150 objective=vae k=1): estimator = rws was given with k = 1",
        "--stages replaces the stages.",
    )
    rejected(lambda: with_stages("1 batch_size=0"), "Stage 1", "at least 1")
    rejected(lambda: with_stages("1 k=2 max_k=3 / 1"), "k = 2 and max_k = 3", "leave out")
    rejected(lambda: with_stages("1 max_k=0 / 1"), "max_k = 0", "at least 1")
    rejected(lambda: with_stages("1 optimizer=soap"), "unknown entry 'optimizer'", "known are")
    hierarchical = {"proposal": "hierarchical", "estimator": "reparam"}
    rejected(lambda: with_stages("1 k=2", **hierarchical), "Stage 1 has k = 2", "heads")
    rejected(lambda: with_stages("1 max_k=2", **hierarchical), "Stage 1 has max_k = 2", "heads")
    rejected(lambda: override(RunConfig(), stages=[3]), "stages = [3]", "tables")
    with pytest.raises(InputError, match=r"Stage 2: batch_size = 200 .* only 130 training"):
        trained(stages="1 / 1 batch_size=200")


def test_a_later_stage_is_checked_before_the_first_step(tmp_path: Path) -> None:
    """Nothing is trained, and lost, for a stage that the parts of the user's own do not allow."""
    own: dict[str, Any] = {"out": tmp_path / "run", "epochs": 4, "k": 4, "batch_size": 20}

    class Dependent(FromFunctions):
        independent_draws = False

    normal = lambda h, m: -0.5 * jnp.sum((h - m) ** 2, axis=-1)
    build: Any = Dependent
    model = build(
        {"m": jnp.zeros(6)},
        propose=lambda p, x, k, key: p["m"] + jax.random.normal(key, (k, 6)),
        log_joint=lambda p, x, h: normal(h, 0.0) + normal(x, h),
        log_proposal=lambda p, x, h: normal(h, p["m"]),
    )
    train = partial(iwae.train, data=images(), values="real", progress=False, **own)
    stages = "3 / 1 estimator=dreg"
    rejected(lambda: train(model=model, stages=stages), "Stage 2: Estimator dreg", "independent")
    alone = "1 objective=vae"
    rejected(lambda: train(bound=iwae_bound, stages=alone), "Stage 1: objective = vae", "your own")
    named = "1 / 1 objective=vae"
    rejected(lambda: train(bound=iwae_bound, stages=named), "Stage 2: objective = vae", "your own")
    mine = Estimator(path=lambda w: w.c)
    stages = "1 estimator=stl / 1"
    rejected(lambda: train(estimator=mine, stages=stages), "Stage 1: estimator = stl", "your own")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_lies_between_two_stages(tmp_path: Path) -> None:
    saved: list[int] = []

    class Saved(Callback):
        def on_checkpoint(self, event: Checkpoint) -> None:
            saved.append(event.state.epoch)

    trained(stages="1 / 2 k=3 / 1", out=tmp_path / "run", callbacks=[Saved()])
    assert saved == [2, 6, 8]


def test_a_run_in_stages_cannot_be_made_longer(tmp_path: Path) -> None:
    none = trained(epochs=1, out=tmp_path / "none")
    assert none.epochs == 1
    with_some = lambda: trained(epochs=1, out=tmp_path / "none", stages="1 k=2", resume=True)
    rejected(with_some, "stages = none, not 1 k=2")
    trained(stages="1 / 1 k=2", epochs=2, out=tmp_path / "run")
    longer = lambda: trained(stages="1 / 1 k=2", epochs=4, out=tmp_path / "run", resume=True)
    rejected(longer, "epochs = 2, not 4", "stages were laid out")


# --- the weight of the latent KL --------------------------------------------------------------


@eqx.filter_jit
def one(model: Any, x: Any, key: Any, **given: Any) -> Any:
    """(value, gradient of the loss) of one example."""
    loss = partial(surrogate_loss, x=x, key=key, **given)
    (_, value), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
    return value, gradient


def autoencoder(layers: int = 1) -> Any:
    config = ModelConfig(layers, ((4,), (4,))[:layers], (3, 2)[:layers], "bernoulli")
    return random_model(config, 5, seed=2)


X = jnp.array([1.0, 0, 0, 1, 1])


EACH = list(itertools.product(["reparam", "stl", "dreg"], [None, 2]))


@pytest.mark.parametrize(("estimator", "few"), thinned(EACH, ("dreg", 2)))
def test_a_weight_of_one_is_none(estimator: str, few: int | None) -> None:
    given = {"bound": iwae_bound, "k": 5, "estimator": estimator, "backward_draws": few}
    model, key = autoencoder(2), jax.random.key(0)
    value, gradient = one(model, X, key, **given)
    again, weighted = one(model, X, key, **given, kl_weight=1.0)
    np.testing.assert_allclose(value, again, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(weighted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("estimator", "few"), thinned(EACH, ("reparam", None)))
def test_the_value_has_a_weight_of_one(estimator: str, few: int | None) -> None:
    model, key = autoencoder(2), jax.random.key(0)
    log_w = draw_log_weights(model, X, 5, key)
    given = {"bound": iwae_bound, "k": 5, "estimator": estimator, "backward_draws": few}
    value, _ = one(model, X, key, **given, kl_weight=0.3)
    np.testing.assert_allclose(value, iwae_bound(log_w), rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_weighted_bound() -> None:
    """By plain autodiff of log (1/K) Σ exp(log p(x|h) + β [log p(h) − log q(h|x)])."""
    model, key, weight = autoencoder(2), jax.random.key(1), 0.3

    def weighted(model: Any) -> Any:
        h, log_q = model.propose_and_log_prob(X, 5, key)
        prior = sum(model.log_prior_terms(h))
        return -iwae_bound(model.log_observation(X, h) + weight * (prior - log_q))

    expected = eqx.filter_grad(weighted)(model)
    _, got = one(model, X, key, bound=iwae_bound, k=5, kl_weight=weight)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("bound", "estimator", "k", "few"),
    thinned(
        MEANS := [
            (iwae_bound, "dreg", 3, None),
            (iwae_bound, "dreg", 4, 2),
            (iwae_bound, "reparam", 4, 2),
            (elbo, "stl", 1, None),
            (elbo, "dreg", 2, None),
        ],
        MEANS[0],
    ),
)
def test_the_gradient_has_the_same_mean_under_every_estimator(
    bound: Any, estimator: str, k: int, few: int | None
) -> None:
    """Differences of paired gradients from plain ones, over 40,000 draws: all within 5 errors."""
    model, weight = autoencoder(), 0.3

    @eqx.filter_jit
    def difference(keys: Any) -> Any:
        def of(key: Any) -> Any:
            given = {"bound": bound, "k": k, "kl_weight": weight}
            ways: list[dict] = [{"estimator": estimator, "backward_draws": few}, {}]
            both = (one(model, X, key, **given, **way)[1] for way in ways)
            flat = [
                jnp.concatenate([a.ravel() for a in jax.tree.leaves(eqx.filter(g, eqx.is_array))])
                for g in both
            ]
            return flat[0] - flat[1]

        return jax.vmap(of)(keys)

    each = np.asarray(difference(jax.random.split(jax.random.key(5), 40_000)), np.float64)
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    there = error > 1e-9
    assert there.any()
    assert np.all(np.abs(each.mean(axis=0)[there]) < 5 * error[there])
    np.testing.assert_allclose(each[:, ~there], 0.0, atol=1e-5)


def test_the_weight_rises_with_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By (t + 1) / (steps of its epochs) at step t, counted in steps of the present stage's size,
    and at the end of the warm-up it is gone from the step."""
    found: list[Any] = []

    def seen(*given: Any, kl_weight: Any, **settings: Any) -> Any:
        if kl_weight is None:
            found.append(None)
        else:
            jax.debug.callback(lambda weight: found.append(float(weight)), kl_weight)
        return surrogate_loss(*given, kl_weight=kl_weight, **settings)

    monkeypatch.setattr(gradient_step, "surrogate_loss", seen)
    given: dict[str, Any] = {
        "batch_size": 65,
        "epochs": 5,
        "kl_warmup": 4,
        "latents": (2,),
        "hidden": ((5,),),
    }
    trained(**given, stages="2 / 2 batch_size=130 / 1")
    risen = sorted({round(weight, 6) for weight in found if weight is not None})
    assert risen == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 3 / 4, 4 / 4]
    assert None in found


@pytest.mark.slow
def test_the_weight_is_that_of_the_latents() -> None:
    """With one near 0 a code costs nothing: KL(q(h|x) ‖ p(h)) grows beyond that of the ELBO."""
    plain = trained(objective="vae", k=1, epochs=3, learning_rate=1e-2)
    rising = trained(objective="vae", k=1, epochs=3, learning_rate=1e-2, kl_warmup=1000)
    divergence = lambda run: sum(run.evaluate(k=1).kl)
    assert divergence(rising) > 2 * divergence(plain)


def test_a_weight_without_meaning_is_rejected() -> None:
    rejected(lambda: override(RunConfig(), kl_warmup=-1), "kl_warmup = -1", "negative")
    rejected(lambda: override(RunConfig(), kl_warmup=3, estimator="rws"), "rws", "reparam")
    late = override(RunConfig(), kl_warmup=3, epochs=6, stages="1 / 1 estimator=rws")
    assert [own.training.kl_warmup for own, _, _ in late.by_stage] == [3, 0]
    early = {"kl_warmup": 3, "epochs": 5, "stages": "1 / 1 estimator=rws"}
    rejected(lambda: override(RunConfig(), **early), "Stage 2", "rws", "kl_warmup")
    hierarchical = {"proposal": "hierarchical", "kl_warmup": 3}
    rejected(lambda: override(RunConfig(), **hierarchical), "kl_warmup = 3", "jointly")
    mine = LinearGaussian(jnp.zeros(3), jnp.zeros(3), jnp.array(0.0))
    given = {"bound": elbo, "k": 2, "kl_weight": 0.5}
    rejected(lambda: one(mine, jnp.zeros(3), jax.random.key(0), **given), "latent KL", "log_prior")
