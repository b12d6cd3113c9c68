"""Uncertain weights against weights that are drawn, exact models, and their limit of none."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.special import log_expit
from scipy.stats import norm

import iwae
from callbacks import Interrupting
from iwae import runs
from iwae._utils import threefry
from iwae.bounds import iwae as l_k
from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import ModelConfig, RunConfig
from iwae.estimators.surrogate import ESTIMATORS, surrogate_loss
from iwae.evaluation.likelihood import log_likelihood
from iwae.models.autoencoder import Autoencoder, draw_log_weights, log_weights
from iwae.models.bayesian import Draws, UncertainAutoencoder, UncertainLinear
from iwae.models.build import build
from iwae.models.likelihoods import Bernoulli
from iwae.models.networks import Linear, Readout
from iwae.runs import load
from linear_gaussian import orthogonal_chain, random_model
from refusals import refused
from thinned import thinned

CERTAIN = -40.0
"""log σ of weights that are as good as fixed."""


def linear_map(seed: int = 0) -> UncertainLinear:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return UncertainLinear(Linear(draw(3, 7), draw(3)), Linear(draw(3, 7) / 4 - 1, draw(3) / 4 - 1))


V = jnp.asarray([0.5, -1.0, 2.0, 0.0, 0.3, 1.2, -0.7])


def weights_drawn(linear: UncertainLinear, v: jax.Array, key: jax.Array) -> jax.Array:
    """W v + b of one draw of W and b, element by element."""
    key_w, key_b = jax.random.split(key)
    mean, log_sigma = linear.mean, linear.log_sigma
    w = mean.weight + jnp.exp(log_sigma.weight) * jax.random.normal(key_w, mean.weight.shape)
    b = mean.bias + jnp.exp(log_sigma.bias) * jax.random.normal(key_b, mean.bias.shape)
    return w @ v + b


def small(layers: int, sigma: float = 0.3, which: Any = "both") -> UncertainAutoencoder:
    config = ModelConfig(layers, ((4,), (4,))[:layers], (3, 2)[:layers], "bernoulli")
    plain = random_model(config, 5, seed=2)
    return UncertainAutoencoder.around(plain, which=which, sigma=sigma)


X = jnp.array([1.0, 0, 0, 1, 1])


# --- one map ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_drawn_is_distributed_as_by_drawn_weights() -> None:
    linear, n = linear_map(), 40_000
    keys = jax.random.split(jax.random.key(0), n)
    variance = np.exp(2 * linear.log_sigma.weight) @ V**2 + np.exp(2 * linear.log_sigma.bias)
    for draw in (linear.draw, partial(weights_drawn, linear)):
        z = np.asarray(jax.vmap(lambda key: draw(V, key))(keys), np.float64)  # noqa: B023
        np.testing.assert_allclose(z.mean(0), linear(V), atol=5 * np.sqrt(variance.max() / n))
        covariance = np.cov(z.T)
        np.testing.assert_allclose(np.diag(covariance), variance, rtol=5 * np.sqrt(2 / n))
        apart = covariance - np.diag(np.diag(covariance))
        assert np.abs(apart).max() < 5 * variance.max() / np.sqrt(n)


@pytest.mark.slow
def test_the_gradient_varies_less_than_through_drawn_weights() -> None:
    """Of a linear loss Σ z, in log σ_ij: by σ² v² against σ⁴ v⁴ / Σ σ² v²."""
    linear, n = linear_map(), 20_000
    keys = jax.random.split(jax.random.key(1), n)

    def variances(draw) -> np.ndarray:
        loss = lambda log_sigma, key: jnp.sum(draw(UncertainLinear(linear.mean, log_sigma), V, key))
        gradient = jax.vmap(jax.grad(loss), (None, 0))(linear.log_sigma, keys)
        return np.var(np.asarray(gradient.weight, np.float64), axis=0)

    local = variances(lambda linear, v, key: linear.draw(v, key))
    drawn = variances(weights_drawn)
    parts = np.exp(2 * linear.log_sigma.weight) * V**2
    whole = parts.sum(1, keepdims=True) + np.exp(2 * linear.log_sigma.bias)[:, None]
    np.testing.assert_allclose(drawn, parts, rtol=0.1)
    np.testing.assert_allclose(local, parts**2 / whole, rtol=0.1, atol=1e-12)
    assert local.sum() < 0.5 * drawn.sum()


def test_a_draw_is_its_keys_own_and_the_mean_is_that_of_the_mean_weights() -> None:
    linear = linear_map()
    a, b, c = (linear.draw(V, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.all(a != c)
    np.testing.assert_array_equal(linear(V), linear.mean(V))


def test_the_divergence_from_the_prior_is_that_of_the_distributions() -> None:
    linear = linear_map()
    arrays = [
        (linear.mean.weight, linear.log_sigma.weight),
        (linear.mean.bias, linear.log_sigma.bias),
    ]
    expected = sum(
        dist.kl_divergence(dist.Normal(mu, jnp.exp(s)), dist.Normal(0, 0.7)).sum()
        for mu, s in arrays
    )
    np.testing.assert_allclose(eqx.filter_jit(UncertainLinear.kl)(linear, 0.7), expected, rtol=1e-5)
    weight_kl = eqx.filter_jit(UncertainAutoencoder.weight_kl)
    whole, *parts = (weight_kl(small(1, which=w), 0.7) for w in ("both", "encoder", "decoder"))
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


# --- a model ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bound_less_the_divergence_bounds_the_training_set_for_one_draw_only() -> None:
    """Ten zeros and ten ones of one pixel, whose logit is its bias; q = prior = N(0, 10²)."""
    nothing = Linear(jnp.zeros((1, 0)), jnp.zeros(1))
    model = UncertainAutoencoder(
        encoder=(lambda x: (jnp.zeros(0), jnp.zeros(0)),),
        decoder=(),
        observation=UncertainLinear.around(nothing, 10.0),
        likelihood=Bernoulli(),
        latents=(0,),
    )
    assert model.weight_kl(10.0) == pytest.approx(0, abs=1e-6)
    density = lambda b: norm.pdf(b, 0, 10) * np.exp(10 * (log_expit(b) + log_expit(-b)))
    evidence = np.log(quad(density, -60, 60, points=[0])[0])
    assert evidence == pytest.approx(-16.96, abs=0.01)

    def whole(k: int, n: int) -> tuple[float, float]:
        log_w = lambda x, key: draw_log_weights(model, x, k, key)
        keys = jax.random.split(jax.random.key(k), (2, n))
        of = jax.jit(lambda x, keys: l_k(jax.vmap(partial(log_w, jnp.full(1, x)))(keys).T))
        values = 10 * np.asarray(of(0.0, keys[0]) + of(1.0, keys[1]), np.float64)
        return values.mean(), values.std() / np.sqrt(n)

    (one, error), (many, small_error) = whole(1, 40_000), whole(25, 4000)
    assert one + 4 * error < evidence
    assert many - 4 * small_error > evidence + 1
    assert many == pytest.approx(-14.24, abs=4 * small_error + 0.01)


@pytest.mark.parametrize(
    ("layers", "which"), thinned([(1, "encoder"), (1, "decoder"), (2, "both")], (1, "encoder"))
)
@pytest.mark.slow
def test_certain_weights_are_plain_weights(layers: int, which: str) -> None:
    """The same log-weights and gradients from the same ε as those of the plain model."""
    model = small(layers, which=which)
    certain = jax.tree.map(lambda a: a, model)
    certain = eqx.tree_at(
        lambda m: [u.log_sigma for u in uncertain(m)],
        certain,
        [jax.tree.map(lambda a: jnp.full_like(a, CERTAIN), u.log_sigma) for u in uncertain(model)],
    )
    plain = model.at_the_mean()
    assert type(plain) is Autoencoder
    key = jax.random.key(3)

    @eqx.filter_jit
    def value_and_gradient(model):
        loss = lambda model: surrogate_loss(model, X, key, bound=l_k, k=6)[0]
        return eqx.filter_value_and_grad(loss)(model)

    value, gradient = value_and_gradient(plain)
    same, uncertain_gradient = value_and_gradient(certain)
    np.testing.assert_allclose(same, value, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, uncertain_gradient.at_the_mean(), gradient)


def uncertain(model: UncertainAutoencoder) -> list[UncertainLinear]:
    is_uncertain = lambda part: isinstance(part, UncertainLinear)
    return [p for p in jax.tree.leaves(model, is_leaf=is_uncertain) if is_uncertain(p)]


def test_which_networks_are_uncertain() -> None:
    counts = {which: len(uncertain(small(2, which=which))) for which in ("encoder", "decoder")}
    assert counts == {"encoder": 6, "decoder": 5}
    assert len(uncertain(small(2))) == 11
    sigmas = {float(s) for u in uncertain(small(2, 0.05)) for s in jnp.exp(u.log_sigma.bias)}
    np.testing.assert_allclose(list(sigmas), 0.05, rtol=1e-5)


def weights_off(model: UncertainAutoencoder, x: jax.Array, k: int, key: jax.Array) -> jax.Array:
    """Log-weights whose q has other weights than the draws had: the mistake."""
    h = model.propose(x, k, key)
    others = jax.random.split(jax.random.fold_in(key, 5), k)
    return model.log_joint(x, h) - model.log_proposal(x, Draws(h.latents, others))


@pytest.mark.slow
def test_the_same_draw_of_the_weights_serves_h_and_its_density() -> None:
    """E[w] = p(x) of a linear-Gaussian model, however uncertain its encoder."""
    chain = orthogonal_chain(2, inflate=2.0)
    model = UncertainAutoencoder.around(chain.model, which="encoder", sigma=0.05)
    (x,) = chain.draw(1, seed=4)
    exact, n = chain.log_evidence(x), 40_000
    ratios = [
        np.exp(np.asarray(eqx.filter_jit(make)(model, x, n, jax.random.key(6)), np.float64) - exact)
        for make in (draw_log_weights, weights_off)
    ]
    (right, right_se), (wrong, wrong_se) = ((r.mean(), r.std(ddof=1) / np.sqrt(n)) for r in ratios)
    assert right_se < 0.02
    assert abs(right - 1) < 4 * right_se
    assert abs(wrong - 1) > 8 * wrong_se


@pytest.mark.slow
def test_the_likelihood_is_that_of_the_mixture_over_the_decoders_weights() -> None:
    """One latent: p(x|h) = Π N(x_j; μ h + m, σ_W² h² + σ_b² + s²) integrated over h on a grid."""
    config = ModelConfig(1, ((),), (1,), "gaussian")
    compiled = eqx.filter_jit(build)
    plain = compiled(
        config, kind="real", mean=np.zeros(3), spread=np.ones(3), key=jax.random.key(0)
    )
    assert isinstance(plain, Autoencoder)
    linear = cast(Readout, plain.observation).linear
    weight = jnp.concatenate([jnp.asarray([[0.8], [-0.5], [0.3]]), jnp.zeros((3, 1))])
    plain = eqx.tree_at(lambda m: m.observation.linear.weight, plain, weight)
    model = UncertainAutoencoder.around(plain, which="decoder", sigma=0.4)
    certain = cast(Any, model.observation).linear.log_sigma
    scale_fixed = lambda a: a.at[3:].set(CERTAIN)
    model = eqx.tree_at(
        lambda m: m.observation.linear.log_sigma,
        model,
        Linear(scale_fixed(certain.weight), scale_fixed(certain.bias)),
    )
    assert linear.weight.shape == (6, 1)
    x = jnp.array([0.7, 0.1, -0.4])
    h = np.linspace(-8, 8, 4001)
    scale = np.exp(np.asarray(plain.observation(jnp.zeros(1)))[3:])
    mean = h[:, None] * np.asarray(weight[:3, 0]) + np.asarray(linear.bias)[:3]
    deviation = np.sqrt(0.4**2 * (h[:, None] ** 2 + 1) + scale**2)
    density = np.prod(
        np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (np.sqrt(2 * np.pi) * deviation), axis=1
    )
    exact = np.log(np.sum(density * np.exp(-0.5 * h**2) / np.sqrt(2 * np.pi)) * (h[1] - h[0]))
    log_w = eqx.filter_jit(draw_log_weights)(model, x, 200_000, jax.random.key(1))
    w = np.exp(np.asarray(log_w, np.float64) - exact)
    assert w.std() / np.sqrt(len(w)) < 0.01
    assert abs(w.mean() - 1) < 4 * w.std() / np.sqrt(len(w))


@pytest.mark.slow
def test_what_is_asked_of_a_draw_is_answered_at_its_weights() -> None:
    model, key = small(2), jax.random.key(7)

    @eqx.filter_jit
    def asked(model):
        h, log_q = model.propose_and_log_prob(X, 4, key)
        first = tuple(a[:1] for a in h.latents)
        return {
            "proposal": (log_q, model.log_proposal(X, h), sum(model.log_proposal_terms(X, h))),
            "joint": (
                model.log_joint(X, h),
                model.log_observation(X, h) + sum(model.log_prior_terms(h)),
            ),
            "at": (model.log_joint(X, h)[:1], model.at(h.weights[0]).log_joint(X, first)),
        }

    for first, *others in asked(model).values():
        for other in others:
            np.testing.assert_allclose(first, other, rtol=1e-5)


@pytest.mark.slow
def test_joint_draws_and_samples_come_from_weights_of_their_own() -> None:
    model, key = small(1), jax.random.key(7)

    @eqx.filter_jit
    def made(model):
        x, h = model.sample_joint(6, key)
        log_w = log_weights(model, x[0], jax.tree.map(lambda a: a[:1], h))
        return x, log_w, model.sample(6, key)

    x, log_w, images = made(model)
    assert x.shape == (6, 5)
    assert np.all(np.isfinite(log_w))
    assert len(np.unique(images[:, 0])) == 6


@pytest.mark.slow
def test_the_stream_over_k_is_the_bound() -> None:
    model, key = small(1), jax.random.key(9)
    streamed = eqx.filter_jit(log_likelihood)(model, X, key, k=6, chunk=6)
    whole = l_k(eqx.filter_jit(draw_log_weights)(model, X, 6, jax.random.fold_in(key, 0)))
    np.testing.assert_allclose(streamed, whole, rtol=1e-5)


@eqx.filter_jit
def mean_gradient(model, name: str, n: int):
    """(mean, standard error) of n gradients of L_3, all parameters in one array."""

    def gradient(key):
        loss = lambda m: surrogate_loss(m, X, key, bound=l_k, k=3, estimator=name)[0]
        leaves = jax.tree.leaves(eqx.filter_grad(loss)(model))
        return jnp.concatenate([leaf.ravel() for leaf in leaves])

    each = jax.lax.map(gradient, jax.random.split(jax.random.key(11), n), batch_size=500)
    return each.mean(0), each.std(0) / jnp.sqrt(n)


@pytest.mark.slow
def test_dreg_has_the_mean_of_reparam() -> None:
    model = small(1)
    (a, a_se), (b, b_se) = (mean_gradient(model, name, 6000) for name in ("reparam", "dreg"))
    assert np.max(np.abs(a - b) / np.sqrt(a_se**2 + b_se**2 + 1e-12)) < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_uncertain_weights(name: str) -> None:
    mean, _ = mean_gradient(small(1), name, 10)
    assert np.all(np.isfinite(mean))


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tiny: RunConfig) -> RunConfig:
    return override(tiny, uncertain_weights="both", epochs=2)


@pytest.mark.parametrize("uncertain", thinned(["none", "both"], "both"))
@pytest.mark.slow
def test_as_many_are_drawn_as_are_asked_for(tiny, uncertain: str) -> None:
    """Programs are of few sizes only where draw i is the same among any number."""
    start = runs.untrained(override(tiny, uncertain_weights=uncertain))
    images = eqx.filter_jit(lambda model: model.sample(5, threefry.key(3)))(start.model)
    np.testing.assert_allclose(start.sample(5, seed=3).reshape(5, -1), images, rtol=1e-5)


@pytest.mark.slow
def test_an_uncertain_run_is_resumed_bit_for_bit_and_loaded(both, tmp_path: Path) -> None:
    whole = iwae.train(both)
    assert isinstance(whole.model, UncertainAutoencoder)
    out = tmp_path / "run"
    with pytest.raises(iwae.errors.Interrupted):
        iwae.train(both, out=out, callbacks=[Interrupting(5)])
    resumed = iwae.train(both, out=out, resume=True)
    for other in (resumed, load(out)):
        jax.tree.map(
            np.testing.assert_array_equal,
            eqx.filter(other.model, eqx.is_array),
            eqx.filter(whole.model, eqx.is_array),
        )


@pytest.mark.slow
def test_the_divergence_pulls_the_weights_to_their_prior(both) -> None:
    held = override(both, weight_kl=5.0, weight_kl_passes=1, epochs=1)
    models = (iwae.train(c).model for c in (override(both, epochs=1), held))
    free, pulled = (cast(UncertainAutoencoder, model) for model in models)
    assert pulled.weight_kl(1.0) < free.weight_kl(1.0)


@pytest.fixture(scope="module")
def from_command_line(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uncertain") / "run"
    flags = ["--recipe", "smoke", "--epochs", "1", "--hidden", "8", "--latents", "3", "--k", "2"]
    main(["train", *flags, "--uncertain-weights", "encoder", "--out", str(out)])
    return out


@pytest.mark.slow
def test_uncertain_weights_are_evaluated_as_drawn_or_at_their_means(
    from_command_line: Path, tiny_run
) -> None:
    out = from_command_line
    for extra in ([], ["--mean-weights"]):
        main(["evaluate", str(out), "--k", "5", "--limit", "30", *extra])
    drawn, mean = iwae.storage.run_directory.read_evaluations(out).values()
    assert (drawn.mean_weights, mean.mean_weights) == (False, True)
    assert drawn.nll != mean.nll
    with refused("mean_weights was requested, but no weights are uncertain; leave it out."):
        tiny_run.evaluate(k=2, limit=3, mean_weights=True)


@pytest.mark.slow
def test_everything_is_drawn_of_a_run_with_uncertain_weights(
    from_command_line: Path, tmp_path: Path
) -> None:
    out = str(from_command_line)
    main(["sample", out, "--n", "4", "--out", str(tmp_path / "s.png")])
    main(["reconstruct", out, "--n", "2", "--out", str(tmp_path / "r.png")])
    main(["encode", out, "digits:test", "--out", str(tmp_path / "c.npy")])
    main(["report", out, "--out", str(tmp_path / "r.html")])
    assert "uncertain encoder" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"weight_sigma": 0.0},
            "weight_sigma = 0.0 was given, but it must be a positive number.",
        ),
        (
            {"weight_kl": 1.0},
            "weight_kl = 1.0 was given, but the model's weights are fixed; leave it out, or give "
            "--uncertain-weights both.",
        ),
        (
            {"weight_kl": -1.0, "uncertain_weights": "both"},
            "weight_kl = -1.0 was given, but it cannot be negative or infinite.",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, sentence: str) -> None:
    with refused(sentence):
        override(RunConfig(), **settings)
