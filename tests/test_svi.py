"""NumPyro models under our bounds: RenyiELBO's values, and less noise with DReG."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform
from numpyro.infer import SVI, RenyiELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

from iwae.bounds import Pair, elbo, iwae, jvi, vr_iwae
from iwae.svi import ImportanceELBO
from refusals import refused

DATA = jnp.array([0.3, 1.5, 2.2, -0.4, 0.9])
PARAMS = {"mean": 0.4, "gain": jnp.array([0.3, 0.7]), "log_scale": jnp.array([-0.2, 0.1])}


def model(data, subsample=None):
    mean = numpyro.param("mean", 0.0)
    with numpyro.plate("n", len(data), subsample_size=subsample):
        x = numpyro.subsample(data, event_dim=0)
        z = numpyro.sample("z", dist.Normal(mean, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


def guide(data, subsample=None):
    gain, log_scale = numpyro.param("gain", jnp.zeros(2)), numpyro.param("log_scale", jnp.zeros(2))
    with numpyro.plate("n", len(data), subsample_size=subsample):
        x = numpyro.subsample(data, event_dim=0)
        loc = gain * x[:, None]
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def value_and_gradient(objective, *args, key=3, model=model, guide=guide):
    loss = lambda params: objective.loss(jax.random.key(key), params, model, guide, *args)
    return jax.jit(jax.value_and_grad(loss))(PARAMS)


def same(ours, theirs, *args, **functions):
    a, b = (value_and_gradient(o, *args, **functions) for o in (ours, theirs))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    for got, expected in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("subsample", [None, 3])
def test_plain_gradients_are_those_of_renyi_elbo(subsample):
    same(ImportanceELBO(iwae, num_particles=7), RenyiELBO(0, num_particles=7), DATA, subsample)
    ours = ImportanceELBO(partial(vr_iwae, alpha=0.5), num_particles=7)
    same(ours, RenyiELBO(0.5, num_particles=7), DATA, subsample)


def test_without_a_common_plate_the_whole_is_one_example():
    def one(data):
        z = numpyro.sample("z", dist.Normal(numpyro.param("mean", 0.0), 1))
        with numpyro.plate("n", len(data)):
            numpyro.sample("x", dist.Normal(z, 1), obs=data)

    def its_guide(data):
        gain = numpyro.param("gain", jnp.zeros(2))
        numpyro.sample("z", dist.Normal(gain[0] * data.mean(), 0.7))

    same(
        ImportanceELBO(iwae, num_particles=4),
        RenyiELBO(0, num_particles=4),
        DATA,
        model=one,
        guide=its_guide,
    )


@pytest.mark.parametrize("bound", [iwae, elbo, partial(vr_iwae, alpha=0.5), partial(jvi, order=1)])
def test_dreg_has_the_same_mean_and_less_variance(bound):
    def gradients(estimator):
        loss = ImportanceELBO(bound, estimator, num_particles=6).loss
        one = jax.grad(lambda params, key: loss(key, params, model, guide, DATA))
        return jax.jit(jax.vmap(partial(one, PARAMS)))(jax.random.split(jax.random.key(1), 6000))

    plain, dreg = gradients("reparam"), gradients("dreg")
    for name in ("gain", "log_scale"):
        a, b = np.asarray(plain[name], np.float64), np.asarray(dreg[name], np.float64)
        error = np.sqrt((a.var(0) + b.var(0)) / len(a))
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * error)
        assert b.var(0).sum() < 0.9 * a.var(0).sum()
    np.testing.assert_allclose(plain["mean"], dreg["mean"], rtol=1e-3, atol=1e-3)


def test_a_pair_and_wake_phi_leave_theta_alone():
    _, plain = value_and_gradient(ImportanceELBO(iwae, num_particles=6), DATA)
    _, pair = value_and_gradient(ImportanceELBO(Pair(iwae, elbo), num_particles=6), DATA)
    _, wake = value_and_gradient(ImportanceELBO(iwae, "rws", num_particles=6), DATA)
    _, vae = value_and_gradient(ImportanceELBO(elbo, num_particles=6), DATA)
    np.testing.assert_allclose(pair["mean"], plain["mean"], rtol=1e-5)
    np.testing.assert_allclose(pair["gain"], vae["gain"], rtol=1e-4)
    np.testing.assert_allclose(wake["mean"], plain["mean"], rtol=1e-5)
    assert not np.any(np.isclose(wake["gain"], plain["gain"], rtol=1e-2))


def test_guides_that_are_not_reparametrised_are_refused():
    def discrete(data):
        with numpyro.plate("n", len(data)):
            numpyro.sample("z", dist.Poisson(1.0))

    with refused(
        "The guide's site 'z' draws from Poisson, which is not reparametrised, so no gradient "
        "passes through it; use a reparametrised distribution there, or "
        "numpyro.infer.TraceGraph_ELBO."
    ):
        ImportanceELBO(iwae, "dreg").loss(jax.random.key(0), {}, model, discrete, DATA)


def whole(data):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    s = numpyro.sample("s", dist.LogNormal(0, 1))
    with numpyro.plate("n", len(data)):
        numpyro.sample("x", dist.Normal(z.sum(), s), obs=data)


@pytest.mark.parametrize(
    "automatic", [AutoNormal, pytest.param(AutoDiagonalNormal, marks=pytest.mark.slow)]
)
def test_automatic_guides(automatic):
    """Plain gradients are RenyiELBO's; DReG's have the same mean and are finite."""
    its = automatic(whole)
    svi = SVI(whole, its, optax.sgd(1.0), RenyiELBO(0, num_particles=4))
    params = svi.get_params(svi.init(jax.random.key(0), DATA))
    keys = jax.random.split(jax.random.key(1), 4000)

    def gradients(objective):
        one = jax.grad(lambda params, key: objective.loss(key, params, whole, its, DATA))
        draws = jax.jit(jax.vmap(partial(one, params)))(keys)
        return np.concatenate([np.reshape(g, (len(keys), -1)) for g in draws.values()], axis=1)

    theirs = gradients(RenyiELBO(0, num_particles=4))
    plain = gradients(ImportanceELBO(iwae, num_particles=4))
    np.testing.assert_allclose(plain, theirs, rtol=2e-3, atol=1e-4)
    dreg = gradients(ImportanceELBO(iwae, "dreg", num_particles=4))
    assert np.all(np.isfinite(dreg))
    error = np.sqrt((plain.var(0) + dreg.var(0)) / len(keys))
    assert np.all(np.abs(plain.mean(0) - dreg.mean(0)) < 4.5 * error)


def test_a_point_mass_beside_draws_is_refused_if_it_has_parameters():
    """Only the log-weights themselves pass a gradient to it."""

    def mixed(data):
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1).to_event(1))
        numpyro.sample("s", dist.Delta(jnp.exp(numpyro.param("log_s", 0.0))))

    loss = lambda o, params: o.loss(jax.random.key(2), params, whole, mixed, DATA)
    theirs = jax.grad(partial(loss, RenyiELBO(0)))({"log_s": 0.5})
    ours = jax.grad(partial(loss, ImportanceELBO(iwae)))({"log_s": 0.5})
    np.testing.assert_allclose(ours["log_s"], theirs["log_s"], rtol=1e-5)
    with refused(
        "The guide's site 's' is a point mass with parameters, which only plain gradients reach; "
        "use the estimator reparam, or give the site a density."
    ):
        jax.grad(partial(loss, ImportanceELBO(iwae, "dreg")))({"log_s": 0.5})
    assert jnp.isfinite(loss(ImportanceELBO(iwae, "dreg"), {}))  # a constant has no gradient


@pytest.mark.slow
def test_guides_that_cannot_be_evaluated_again_are_refused_but_for_reparam():
    def dropping(data):
        key = numpyro.prng_key()
        shift = jax.random.bernoulli(key).astype(float)
        numpyro.sample("z", dist.Normal(shift, jnp.ones(2)).to_event(1))
        numpyro.sample("s", dist.LogNormal(0, 1))

    def point(data):
        numpyro.sample("z", dist.Delta(numpyro.param("m", jnp.zeros(2)), event_dim=1))
        numpyro.sample("s", dist.Delta(1.0))

    def flow(data):
        doubled = BlockNeuralAutoregressiveTransform(lambda z: (2 * z, jnp.full(2, jnp.log(2.0))))
        numpyro.sample(
            "z", dist.TransformedDistribution(dist.Normal(jnp.zeros(2)).to_event(1), doubled)
        )
        numpyro.sample("s", dist.LogNormal(0, 1))

    loss = lambda o, its: o.loss(jax.random.key(2), {}, whole, its, DATA)
    for its in (dropping, point, flow):
        same = loss(RenyiELBO(0, num_particles=3), its)
        np.testing.assert_allclose(
            loss(ImportanceELBO(iwae, num_particles=3), its), same, rtol=1e-6
        )
    with refused(
        "The guide draws a random key for itself, which would be another one when its density is "
        "evaluated; use the estimator reparam."
    ):
        loss(ImportanceELBO(iwae, "dreg"), dropping)
    with refused(
        "The guide is a point mass, of which there is no density to differentiate; use the "
        "estimator reparam."
    ):
        loss(ImportanceELBO(iwae, "dreg"), point)
    with refused(
        "The guide's site 'z' draws through a transform without an inverse, so its "
        "density cannot be evaluated at draws made before; use the estimator reparam."
    ):
        loss(ImportanceELBO(iwae, "dreg"), flow)
    with refused(
        "The sleep phase needs draws (x, h) from the model, which NumPyro's models do not give by "
        "themselves; use rws for the wake phase, or dreg."
    ):
        ImportanceELBO(iwae, "rws-sleep")
