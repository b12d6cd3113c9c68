"""Models, bounds, estimators and likelihoods of one's own, by the door of those that have names."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import iwae
from callbacks import Interrupting
from iwae import bounds
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError, Interrupted
from iwae.estimators.surrogate import ESTIMATORS, Estimator
from iwae.models.autoencoder import FromFunctions
from iwae.models.likelihoods import AbstractLikelihood
from iwae.plotting import report
from iwae.storage import run_directory
from iwae.training import gradient_step, parts
from refusals import refused

D, H = 64, 3
FACTORS = "test_own_parts.Factors(scale=1.0)"


class Factors(eqx.Module):
    """h ~ N(0, I), x ~ Bernoulli(sigmoid(W h + b)), and a Gaussian proposal linear in x."""

    weight: jax.Array
    bias: jax.Array
    encoder: jax.Array
    scale: float = eqx.field(static=True, default=1.0)

    def _moments(self, x):
        mu, log_sigma = jnp.split(self.encoder @ x, 2)
        return mu, log_sigma

    def propose(self, x, k, key):
        mu, log_sigma = self._moments(x)
        return mu + jnp.exp(log_sigma) * jax.random.normal(key, (k, H))

    def log_proposal(self, x, h):
        mu, log_sigma = self._moments(x)
        return dist.Normal(mu, jnp.exp(log_sigma)).log_prob(h).sum(-1)

    def log_joint(self, x, h):
        logits = h @ self.weight.T + self.bias
        prior = dist.Normal(0.0, self.scale).log_prob(h).sum(-1)
        return prior + dist.Bernoulli(logits=logits).log_prob(x).sum(-1)


def factors(d: int = D) -> Factors:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)
    return Factors(draw(d, H), jnp.zeros(d), draw(2 * H, d))


def half(log_w):
    """Between the ELBO and L_K."""
    return 0.5 * bounds.elbo(log_w) + 0.5 * bounds.iwae(log_w)


def other(log_w):
    return bounds.iwae(log_w)


class Binary(AbstractLikelihood):
    """Bernoulli, written anew."""

    @property
    def n_parameters(self):
        return 1

    def distribution(self, parameters):
        return dist.Bernoulli(logits=parameters[0])

    def log_prob(self, parameters, x):
        return self.distribution(parameters).log_prob(x).sum()

    def initial_bias(self, mean, spread):
        return jnp.zeros((1, len(mean)))


class Laplace(AbstractLikelihood):
    """x_j ~ Laplace(z_j, scale), of a scale that is not learned."""

    scale: float = 0.2

    @property
    def n_parameters(self):
        return 1

    def distribution(self, parameters):
        return dist.Laplace(parameters[0], self.scale)

    def log_prob(self, parameters, x):
        return self.distribution(parameters).log_prob(x).sum()

    def initial_bias(self, mean, spread):
        return mean[None]


def same(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# A model


@pytest.fixture(scope="module")
def own_run(tiny: RunConfig, tmp_path_factory):
    """A model of one's own, trained into a run directory with an interruption, and its callbacks'
    epochs."""
    out = tmp_path_factory.mktemp("own") / "run"
    with pytest.raises(Interrupted):
        iwae.train(tiny, model=factors(), out=out, callbacks=[Interrupting(70)])
    return iwae.train(tiny, model=factors(), out=out, resume=True)


def test_an_own_model_is_trained_and_resumed_bit_for_bit(own_run, tiny) -> None:
    whole = iwae.train(tiny, model=factors())
    same(whole.model, own_run.model)
    assert isinstance(own_run.model, Factors)
    assert isinstance(whole.model, Factors)
    assert np.any(whole.model.weight != factors().weight)
    rows = run_directory.read_metrics(own_run.path)
    assert rows[-1]["train_bound"] > rows[0]["train_bound"]


def test_an_own_model_is_loaded_from_its_structure(own_run) -> None:
    shapes = eqx.filter_eval_shape(factors)
    for skeleton in (factors(), shapes):
        again = iwae.load(own_run.path, model=skeleton)
        same(again.model, own_run.model)
        assert again.own == {"model": "test_own_parts.Factors(scale=1.0)"}
    with refused(
        f"{own_run.path} was trained with a model of your own, {FACTORS}, which its files cannot "
        f"store; give it again as iwae.load(…, model=…)."
    ):
        iwae.load(own_run.path)
    with pytest.raises(InputError, match=r"belongs to another model: \.weight is float32\[64, 3\]"):
        iwae.load(own_run.path, model=factors(5))
    wide = replace(factors(), scale=2.0)
    with pytest.raises(InputError, match=r"not test_own_parts\.Factors\(scale=2\.0\)"):
        iwae.load(own_run.path, model=wide)


def test_an_own_model_is_evaluated_without_what_needs_layers(own_run) -> None:
    result = iwae.evaluate(own_run, k=64, limit=20)
    assert result.nll <= -result.elbo
    assert np.isnan(result.reconstruction)
    assert (result.kl, result.active_units, result.activity) == ([], None, None)
    (kept,) = run_directory.read_evaluations(own_run.path).values()
    assert kept.nll == result.nll
    assert np.isnan(kept.reconstruction)
    scores = own_run.score(own_run.data().test[:20], k=64)
    np.testing.assert_allclose(-scores.mean(), result.nll, rtol=1e-5)
    for asked in (
        lambda: own_run.sample(3),
        lambda: own_run.encode(own_run.data().test[:3]),
        lambda: own_run.reconstruct(own_run.data().test[:3]),
        lambda: own_run.evaluate(k=2, without_inactive=True),
    ):
        with pytest.raises(InputError, match="was trained with a model of your own, a Factors"):
            asked()


def test_a_report_tells_of_an_own_model(own_run, tmp_path: Path) -> None:
    iwae.evaluate(own_run, k=64, limit=20)
    page = report.render([own_run.path])
    assert "test_own_parts.Factors(scale=1.0)" in page
    assert "a user-defined model" in page
    loaded = report.render([iwae.load(own_run.path, model=factors())])
    assert "give it again as iwae.load(…, model=…)" in page
    assert "give the same" not in loaded
    with refused(
        "A run in memory was given for a report, which needs a run directory; train it with out=…."
    ):
        report.render([replace(own_run, path=None)])


def test_an_own_model_is_saved_as_a_run(own_run, tmp_path: Path) -> None:
    own_run.save(tmp_path / "copy")
    again = iwae.load(tmp_path / "copy", model=factors())
    same(again.model, own_run.model)
    assert again.run == own_run.run


def test_functions_make_a_model(tiny) -> None:
    start = factors()
    model = FromFunctions(
        (start.weight, start.bias, start.encoder),
        propose=lambda params, x, k, key: Factors(*params).propose(x, k, key),
        log_joint=lambda params, x, h: Factors(*params).log_joint(x, h),
        log_proposal=lambda params, x, h: Factors(*params).log_proposal(x, h),
    )
    trained = iwae.train(tiny, model=model, epochs=1)
    assert isinstance(trained.model, FromFunctions)
    same(trained.model.params, jax.tree.leaves(iwae.train(tiny, model=start, epochs=1).model))


@pytest.mark.parametrize("how", ["missing", "another", "none before"])
def test_a_run_is_resumed_by_its_own_model_alone(own_run, tiny_run, tiny, how: str) -> None:
    if how == "missing":
        with refused(
            f"{own_run.path} was trained with a model of your own, {FACTORS}, which its files "
            f"cannot store; give it again as model=…, or another out."
        ):
            iwae.train(out=own_run.path, resume=True)
    elif how == "another":
        more = Factors(jnp.zeros((D, H)), jnp.zeros((1, D)), jnp.zeros((2 * H, D)))
        with pytest.raises(InputError, match="belongs to another model"):
            iwae.train(tiny, model=more, out=own_run.path, resume=True)
    else:
        with refused(
            f"{tiny_run.path} was trained with the model that its settings name, not "
            f"test_own_parts.Factors(scale=1.0); leave model out, or give another out."
        ):
            iwae.train(out=tiny_run.path, resume=True, model=factors())


def test_what_is_no_model_is_refused(tiny) -> None:
    with pytest.raises(InputError, match=r"^A int was given as the model, which must have"):
        iwae.train(tiny, model=3)  # type: ignore[arg-type]
    with refused(
        "latents = (4,) was given with a model of your own, which it cannot change; leave latents "
        "out."
    ):
        iwae.train(tiny, model=factors(), latents=(4,))
    nothing: dict[str, Any] = dict.fromkeys(("propose", "log_joint", "log_proposal"), lambda *_: 0)
    bare = FromFunctions(None, **nothing)
    with pytest.raises(InputError, match="has no arrays of floating point numbers to train"):
        iwae.train(tiny, model=bare)


# A bound and an estimator


def test_an_own_bound_is_that_of_the_same_formula(tiny, tmp_path: Path) -> None:
    """`ciwae` with β = 1/2, whose settings the run would have named."""
    named = iwae.train(tiny, objective="ciwae", beta=0.5, epochs=1)
    own = iwae.train(tiny, bound=half, epochs=1, out=tmp_path / "run")
    for a, b in zip(jax.tree.leaves(named.model), jax.tree.leaves(own.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    by_name = parts.of({"k": 5}, bound="vae", estimator="stl", likelihood="gaussian")[1]
    assert by_name == {"k": 5, "objective": "vae", "estimator": "stl", "likelihood": "gaussian"}


@pytest.mark.slow
def test_a_run_says_by_which_bound_and_estimator_it_was_trained(tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    of = partial(bounds.vr_iwae, alpha=0.5)
    pulled = Estimator(path=lambda w: w.c, own_phi=True)
    trained = iwae.train(tiny, bound=of, estimator=pulled, epochs=1, out=out)
    own = run_directory.read_own(out)
    assert own["bound"] == "iwae.bounds.vr_iwae(alpha=0.5)"
    assert own["estimator"].startswith(
        "iwae.estimators.Estimator(own_phi=True, path=test_own_parts."
    )
    again = iwae.load(out)  # a model of its own is another matter: L_K needs no bound
    assert again.own == own == trained.own
    assert parts.label(again.config, own).startswith("iwae.bounds.vr_iwae(alpha=0.5) by iwae.")
    assert "iwae.bounds.vr_iwae(alpha=0.5)" in report.render([out])
    assert run_directory.read_config(out).objective.objective == "iwae"
    with refused(
        f"{out} was trained with the bound iwae.bounds.vr_iwae(alpha=0.5), not "
        f"iwae.bounds.vr_iwae(alpha=0.6); give the same, or another out."
    ):
        iwae.train(out=out, resume=True, bound=partial(bounds.vr_iwae, alpha=0.6), estimator=pulled)
    with pytest.raises(InputError, match="with an estimator of your own"):
        iwae.train(out=out, resume=True, bound=of)
    longer = iwae.train(out=out, resume=True, bound=of, estimator=pulled, epochs=2)
    assert longer.passes == 2


def test_an_edited_note_of_own_parts_is_seen(tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    iwae.train(tiny, bound=half, epochs=1, out=out)
    file = out / run_directory.CONFIG
    file.write_text(file.read_text().replace("test_own_parts.half", "test_own_parts.other"))
    with pytest.raises(InputError, match="is damaged or was edited"):
        iwae.load(out)


def test_an_estimator_that_has_a_name_is_the_named_one() -> None:
    own, settings = parts.of({}, estimator=ESTIMATORS["dreg"])
    assert settings == {"estimator": "dreg"}
    assert own.names == {}


def test_what_is_no_bound_or_estimator_is_refused(tiny) -> None:
    with pytest.raises(InputError, match=r"returns \(2,\) for K = 2 log-weights, but it must"):
        iwae.train(tiny, bound=lambda log_w: log_w)
    with refused(
        "objective = vae was given with a bound of your own, which replaces the objective; leave "
        "one of the two out."
    ):
        iwae.train(tiny, bound=half, objective="vae")
    with pytest.raises(InputError, match="another name of the same setting"):
        iwae.train(tiny, bound="vae", objective="vae")
    with pytest.raises(InputError, match=r"^A float was given as the bound"):
        iwae.train(tiny, bound=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^A float was given as the estimator"):
        iwae.train(tiny, estimator=0.5)  # type: ignore[arg-type]


def test_replicas_share_own_parts(tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = iwae.train_replicas(tiny, seeds=2, bound=half, epochs=1, out=out)
    alone = iwae.train(tiny, seed=1, bound=half, epochs=1)
    for a, b in zip(*map(jax.tree.leaves, (both[1].model, alone.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(InputError, match=r"with a bound of your own, test_own_parts\.half"):
        iwae.train_replicas(seeds=2, out=out, resume=True)
    with pytest.raises(InputError, match="all replicas would then start from the same parameters"):
        iwae.train_replicas(tiny, seeds=2, model=factors())


# An optimiser


def test_an_own_optimizer_is_that_of_the_same_formula(tiny, tmp_path: Path) -> None:
    """Adam given as optax's function takes the steps of Adam by name, in replicas, too; a schedule
    and what settings put around it are the run's."""
    shaped = override(tiny, schedule="cosine", warmup=1, clip=5.0, base_width=4, epochs=2)
    own = partial(optax.adam, b1=0.8, b2=0.99, eps=1e-4 / tiny.training.batch_size)
    named = iwae.train(shaped, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-4)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        iwae.train(shaped, optimizer=own, out=out, callbacks=[Interrupting(30)])
    with pytest.raises(InputError, match=r"with an optimizer of your own, optax\.\S*adam\(b1=0.8"):
        iwae.train(out=out, resume=True)
    trained = iwae.train(out=out, resume=True, optimizer=own)
    same(named.model, trained.model)
    assert iwae.load(out).own == trained.own
    assert "optimizer optax" in report.render([out])
    two = iwae.train_replicas(shaped, seeds=[tiny.seed, 7], optimizer=own)
    for a, b in zip(*map(jax.tree.leaves, (two[0].model, named.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert parts.of({}, optimizer="soap")[1] == {"optimizer": "soap"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        optax.contrib.muon,
        optax.contrib.ademamix,
        optax.contrib.momo_adam,  # whose step needs the loss
        lambda rate: optax.lion(rate, b1=0.8),
    ],
    ids=["muon", "ademamix", "momo", "lion"],
)
def test_optimisers_of_optax_train(own, tiny) -> None:
    first, last = (
        iwae.train(tiny, optimizer=own, epochs=n, learning_rate=3e-3).evaluate(k=10).nll
        for n in (1, 4)
    )
    assert last < first


class Following(eqx.Module):
    """Descent whose steps are the rate times the loss times the gradient; not hashable."""

    scale: jax.Array

    def __call__(self, rate):
        def update(gradient, state, params=None, *, value, **_):
            steps = jax.tree.map(lambda g: -self.scale * rate(state) * value * g, gradient)
            return steps, state + 1

        init = lambda params: jnp.zeros((), jnp.int32)
        return optax.GradientTransformationExtraArgs(init, update)


def test_an_own_optimizer_is_given_the_loss_and_the_schedule() -> None:
    config = replace(RunConfig().training, learning_rate=0.5, warmup=2)
    own = Following(jnp.float32(3.0))
    transform = gradient_step.optimizer(config, 4, gradient_step.rates(config), own=own, offset=1)
    params, state = {"w": jnp.ones(2)}, jnp.int32(2)
    steps, after = transform.update({"w": jnp.array([1.0, -2.0])}, state, params, value=10.0)
    at_step_3 = 0.5 * 4 / 8  # of 8 steps over which the rate rises
    np.testing.assert_allclose(steps["w"], -3.0 * at_step_3 * 10.0 * np.array([1.0, -2.0]))
    assert int(after) == 3


def test_an_own_optimizer_replaces_that_of_the_recipe_in_every_stage(tiny) -> None:
    """Also where spikes are left out around it; Adam so given trains as Adam by name."""
    soap = override(tiny, optimizer="soap", skip_spikes=10.0, stages="1 objective=vae / 1 k=3")
    seen = iwae.train(soap, optimizer=Following(jnp.float32(1e-4)), epochs=2)
    assert seen.config.training.optimizer == "adam"
    named = iwae.train(soap, optimizer=partial(optax.adam, eps=1e-4 / 20), epochs=2)
    same(named.model, iwae.train(soap, optimizer="adam", epochs=2).model)


def test_what_is_no_optimizer_is_refused(tiny, tmp_path: Path) -> None:
    given = lambda what, **more: iwae.train(tiny, optimizer=what, **more)
    with pytest.raises(InputError, match=r"^A \w+ was given as the optimizer, .* as optax\.lion"):
        given(optax.adam(1e-3))
    with pytest.raises(InputError, match=r"^A float was given as the optimizer"):
        given(0.5)
    with pytest.raises(InputError, match=r"adam_beta1 = 0\.8 was given with an optimizer of your"):
        given(optax.lion, adam_beta1=0.8)
    with pytest.raises(InputError, match=r"^The optimizer optax\.\S*lbfgs cannot take a step"):
        given(optax.lbfgs)
    with pytest.raises(InputError, match=r"takes 0 positional arguments .* give a function from"):
        given(lambda: optax.adam(1e-3), out=tmp_path / "run")
    with pytest.raises(InputError, match="cannot take a step"):
        given(lambda rate: optax.sgd(float(rate(0))))
    growing = lambda rate: optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda g, state, params=None: (g, jnp.zeros(2))
    )
    with pytest.raises(InputError, match="has other arrays after a step than before"):
        given(growing)
    keyed = lambda rate: optax.GradientTransformation(
        lambda params: jax.random.key(0), lambda g, state, params=None: (g, state)
    )
    with pytest.raises(InputError, match="has a key of random numbers"):
        given(keyed)
    trained = given(optax.lion, out=tmp_path / "run", epochs=1)
    assert trained.own["optimizer"] == "optax.lion"
    with pytest.raises(InputError, match=r"with the optimizer optax\.lion, not optax\.sgd"):
        given(optax.sgd, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"optimizer = 'sgd' was given, .* adam, soap"):
        given("sgd")


# A likelihood


@pytest.mark.slow
def test_an_own_likelihood_of_bits_sees_bits(tiny, tmp_path: Path) -> None:
    trained = iwae.train(tiny, likelihood=Binary(), epochs=1, out=tmp_path / "run")
    assert trained.seen.binarization == "dynamic"
    assert trained.config.model.likelihood == "test_own_parts.Binary()"
    again = iwae.load(tmp_path / "run", likelihood=Binary())
    same(again.model, trained.model)
    assert again.sample(2).shape == (2, 8, 8)


@pytest.mark.slow
def test_an_own_likelihood_of_values_sees_values(tiny, tmp_path: Path) -> None:
    out, wide = tmp_path / "run", Laplace(0.5)
    with pytest.raises(Interrupted):
        iwae.train(tiny, likelihood=wide, out=out, callbacks=[Interrupting(70)])
    trained = iwae.train(out=out, resume=True, likelihood=wide)
    assert trained.seen.binarization == "none"
    same(trained.model, iwae.train(tiny, likelihood=wide).model)
    for narrow, error in ((None, "with a likelihood of your own"), (Laplace(0.2), "not test_own")):
        given: dict[str, Any] = {} if narrow is None else {"likelihood": narrow}
        with pytest.raises(InputError, match=error):
            iwae.load(out, **given)
        with pytest.raises(InputError, match=error):
            iwae.train(out=out, resume=True, **given)
    with pytest.raises(InputError, match=r"^A int was given as the likelihood"):
        iwae.train(tiny, likelihood=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which defines its own likelihood"):
        iwae.train(tiny, model=factors(), likelihood=wide)


def test_parts_are_described_on_one_line() -> None:
    assert parts.described(half) == "test_own_parts.half"
    assert parts.described(bounds.Pair(half, other)) == "test_own_parts.half / test_own_parts.other"
    assert parts.described(bounds.Pair(half, half)) == "test_own_parts.half"
    assert parts.described(partial(bounds.miwae, m=2)) == "iwae.bounds.miwae(m=2)"
    assert parts.described(Laplace(0.5)) == "test_own_parts.Laplace(scale=0.5)"
    assert parts.described(Laplace()) == parts.described(Laplace(0.2))
    assert parts.described(Estimator(path=half, least_k=2)) == (
        "iwae.estimators.Estimator(least_k=2, path=test_own_parts.half)"
    )
    assert parts.described(factors()) == "test_own_parts.Factors(scale=1.0)"


class Summed(Factors):
    """A density of all samples together, which would broadcast into each log-weight."""

    def log_joint(self, x, h):
        return super().log_joint(x, h).sum()


def test_densities_that_would_broadcast_are_refused() -> None:
    own = Summed(**vars(factors()))
    with pytest.raises(InputError, match=r"log_joint of .* returns the shape \(\) for K = 2"):
        iwae.train(data=np.eye(D, dtype=np.float32)[:30], model=own, k=2, epochs=1, batch_size=4)


def test_lambdas_of_one_scope_are_told_apart() -> None:
    one, other = lambda log_w: log_w.mean(0), lambda log_w: -log_w.mean(0)
    assert parts.described(one) != parts.described(other)
    assert parts.described(one) == parts.described(lambda log_w: log_w.mean(0))


def test_functions_that_a_function_makes_are_told_apart_by_what_they_are_made_with() -> None:
    def scaled(by: float, through=jnp.mean):
        def bound(log_w, power=1):
            return by * through(log_w**power)

        return bound

    described = {parts.described(scaled(*of)) for of in ((1.0,), (2.0,), (2.0, jnp.sum))}
    assert len(described) == 3
    assert parts.described(scaled(2.0)) in described
