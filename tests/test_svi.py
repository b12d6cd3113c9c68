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
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import SVI, RenyiELBO, autoguide
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList, AutoNormal
from scipy.stats import multivariate_normal, norm

from iwae.bounds import Pair, elbo, iwae, jvi, vr_iwae
from iwae.errors import InputError
from iwae.numpyro import ImportanceELBO
from refusals import refused
from thinned import thinned

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


@pytest.mark.parametrize("subsample", thinned([None, 3], None))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "bound", thinned([iwae, elbo, partial(vr_iwae, alpha=0.5), partial(jvi, order=1)], iwae)
)
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


@pytest.mark.slow
def test_a_pair_and_wake_phi_leave_theta_alone():
    _, plain = value_and_gradient(ImportanceELBO(iwae, num_particles=6), DATA)
    _, pair = value_and_gradient(ImportanceELBO(Pair(iwae, elbo), num_particles=6), DATA)
    _, wake = value_and_gradient(ImportanceELBO(iwae, "rws", num_particles=6), DATA)
    _, vae = value_and_gradient(ImportanceELBO(elbo, num_particles=6), DATA)
    np.testing.assert_allclose(pair["mean"], plain["mean"], rtol=1e-5)
    np.testing.assert_allclose(pair["gain"], vae["gain"], rtol=1e-4)
    np.testing.assert_allclose(wake["mean"], plain["mean"], rtol=1e-5)
    assert not np.any(np.isclose(wake["gain"], plain["gain"], rtol=1e-2))


UNMOVED = {
    "Bernoulli": lambda: dist.Bernoulli(numpyro.param("p", 0.4)),
    "Poisson": lambda: dist.Poisson(1.0),
    "VonMises": lambda: dist.VonMises(0.0, numpyro.param("p", 0.4)),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=numpyro.param("p", jnp.zeros(2))), dist.Normal(jnp.ones(2), 1)
    ),
    "SineSkewed": lambda: dist.SineSkewed(
        dist.Uniform(-jnp.pi, jnp.pi).expand([1]).to_event(1), numpyro.param("p", jnp.zeros(1))
    ),
}
"""Draws through which NumPyro passes no gradient, or not that of every parameter."""


@pytest.mark.parametrize("name", thinned(UNMOVED, "Bernoulli", "MixtureSameFamily"))
@pytest.mark.slow
def test_guides_that_are_not_reparametrised_are_refused(name):
    """By every estimator that passes a gradient through draws; `rws` does not."""

    def own(data):
        return numpyro.sample("z", UNMOVED[name]())

    for estimator in ("reparam", "stl", "dreg", "rws-dreg", "aisle-kl", "aisle-chi2"):
        with pytest.raises(InputError) as raised:
            ImportanceELBO(iwae, estimator).loss(jax.random.key(0), {}, own, own, DATA)
        sentence = str(raised.value).splitlines()[0]
        assert sentence.startswith(f"The guide's site 'z' draws from {name}")
        assert sentence.endswith(
            "which is not reparametrised, so no gradient passes through it; use the estimator rws, "
            "a reparametrised distribution there, or numpyro.infer.TraceGraph_ELBO."
        )
    assert ImportanceELBO(iwae, "rws").loss(jax.random.key(0), {}, own, own, DATA) == 0


def test_wake_phi_of_a_discrete_guide_is_that_of_enumeration():
    """z ~ Bern(½), x = 0.8 ~ N(2z − 1 + θ, 1), q = Bern(σ(φ)), K = 2: the mean over all pairs.

    The value tells which pair was drawn, up to its order.
    """

    def chance(x):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(2.0 * z - 1 + numpyro.param("theta", 0.0), 1), obs=x)

    def its_guide(x):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))

    x, phi, theta = 0.8, float(np.log(0.4 / 0.6)), 0.3
    q = np.array([0.6, 0.4])
    far = x - (2 * np.arange(2) - 1 + theta)
    w = 0.5 * norm.pdf(far) / q
    loss = ImportanceELBO(iwae, "rws", num_particles=2).loss
    one = jax.jit(jax.value_and_grad(lambda p, key: loss(key, p, chance, its_guide, x)))
    drawn = [one({"phi": phi, "theta": theta}, jax.random.key(i)) for i in range(30)]
    mean, expected = np.zeros(2), np.zeros(2)
    for i, j in np.ndindex(2, 2):
        pair = [i, j]
        share = w[pair] / w[pair].sum()
        score = np.array(pair) - 0.4  # ∇φ log q(z)
        expected -= q[i] * q[j] * np.array([share @ score, share @ far[pair]])
        of_pair = (g for value, g in drawn if abs(value + np.log(w[pair].mean())) < 1e-5)
        gradient = next(of_pair)
        mean += q[i] * q[j] * np.array([gradient["phi"], gradient["theta"]])
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


# --- the exact posterior as guide: log p(x) for every K ---------------------------------------

FOUR = jnp.array([0.3, 1.5, 2.2, -0.4])


def normals(data=FOUR):
    """p(z|x) = N(x/2, ½), independently; log p(x) = Σ log N(x; 0, 2)."""
    with numpyro.plate("n", len(data)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(z, 1), obs=data)


def listed(model):
    guides = AutoGuideList(model)
    guides.append(autoguide.AutoMultivariateNormal(model))
    return guides


MADE = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoBatchedMultivariateNormal": autoguide.AutoBatchedMultivariateNormal,
    "AutoLowRankMultivariateNormal": partial(autoguide.AutoLowRankMultivariateNormal, rank=4),
    "AutoBatchedLowRankMultivariateNormal": autoguide.AutoBatchedLowRankMultivariateNormal,
    "AutoDAIS": partial(autoguide.AutoDAIS, K=2),
    "AutoSurrogateLikelihoodDAIS": partial(
        autoguide.AutoSurrogateLikelihoodDAIS, surrogate_model=normals, K=2
    ),
    "AutoSemiDAIS": partial(autoguide.AutoSemiDAIS, local_model=normals, global_guide=None, K=2),
    "AutoGuideList": listed,
}
"""Guides that can be the exact posterior."""

MAPS = {"AutoIAFNormal": {}, "AutoBNAFNormal": {"num_flows": 1}}
"""Guides that cannot, but whose density can be had from the guide itself."""

OTHERS = {"AutoContinuous", "AutoGuide", "AutoDelta", "AutoLaplaceApproximation"}
"""Abstract, and point masses."""


def made(guide, data, replace=lambda name, value: value):
    """The guide's parameters, by `replace(name, value)`."""
    sites = trace(seed(guide, 0)).get_trace(data).items()
    return {name: replace(name, s["value"]) for name, s in sites if s["type"] == "param"}


def exact(name, value):
    """Of `normals`; the steps of annealed samplers are 0 long, so that they stay where they are."""
    if "eta0" in name:
        return jnp.zeros_like(value)
    if "cov_factor" in name:  # s² (I + I) = ½ I
        return jnp.broadcast_to(jnp.eye(*value.shape[-2:]), value.shape)
    if "tril" in name:
        return jnp.broadcast_to(jnp.sqrt(0.5) * jnp.eye(value.shape[-1]), value.shape)
    if "loc" in name:
        return jnp.reshape(FOUR / 2, value.shape)
    if "scale" in name:
        return jnp.full_like(value, jnp.sqrt(0.5))
    return value


def test_every_automatic_guide_is_tried():
    assert set(autoguide.__all__) == MADE.keys() | MAPS.keys() | OTHERS


@pytest.mark.parametrize(
    "name",
    thinned(
        MADE,
        "AutoMultivariateNormal",
    ),
)
@pytest.mark.slow
def test_the_exact_posterior_gives_the_evidence(name):
    guide = MADE[name](normals)
    params = made(guide, FOUR, exact)
    if "LowRank" in name:
        params["auto_scale"] = jnp.full_like(params["auto_scale"], 0.5)
    evidence = norm.logpdf(FOUR, 0, np.sqrt(2)).sum()
    assert evidence == pytest.approx(-6.897, abs=1e-3)
    for k in (1, 2, 10) if name == "AutoMultivariateNormal" else (3,):
        loss = partial(ImportanceELBO(iwae, num_particles=k).loss, jax.random.key(1))
        value = -jax.jit(loss, static_argnums=(1, 2))(params, normals, guide, FOUR)
        assert value == pytest.approx(evidence, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["AutoIAFNormal", pytest.param("AutoBNAFNormal", marks=pytest.mark.slow)]
)
def test_guides_that_map_a_normal_have_the_weight_of_their_own_density(name):
    guide = getattr(autoguide, name)(normals, **MAPS[name])
    params = made(guide, FOUR)
    log_w = -ImportanceELBO(iwae, num_particles=1).loss(
        jax.random.key(1), params, normals, guide, FOUR
    )
    model_and_guide = jax.random.split(jax.random.split(jax.random.key(1))[1], 1)[0]
    guide_key = jax.random.split(model_and_guide)[1]
    sites = trace(seed(substitute(guide, data=params), guide_key)).get_trace(FOUR)
    latent = sites["_auto_latent"]
    log_q = latent["fn"].log_prob(latent["value"], latent["intermediates"])
    z = np.asarray(sites["z"]["value"])
    log_p = norm.logpdf(z).sum() + norm.logpdf(FOUR, z).sum()
    assert log_w == pytest.approx(log_p - float(log_q), abs=1e-4)


def test_a_joint_posterior_of_global_and_local_latents_gives_the_evidence():
    """m ~ N(0, 1), z_i ~ N(m, 1), x_i ~ N(z_i, 1): p(x) = N(0, 2I + 1 1ᵀ)."""

    def tree(data):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("n", len(data)):
            z = numpyro.sample("z", dist.Normal(m, 1))
            numpyro.sample("x", dist.Normal(z, 1), obs=data)

    n = len(FOUR)
    prior = np.block([[np.ones((1, n + 1))], [np.ones((n, 1)), np.eye(n) + 1]])
    gain = prior[:, 1:] @ np.linalg.inv(prior[1:, 1:] + np.eye(n))
    covariance = prior - gain @ prior[1:]
    guide = autoguide.AutoMultivariateNormal(tree)
    params = {
        "auto_loc": jnp.asarray(gain @ np.asarray(FOUR), jnp.float32),
        "auto_scale_tril": jnp.asarray(np.linalg.cholesky(covariance), jnp.float32),
    }
    evidence = multivariate_normal.logpdf(FOUR, np.zeros(n), np.eye(n) * 2 + 1)
    loss = partial(ImportanceELBO(iwae, num_particles=7).loss, jax.random.key(2))
    value = -jax.jit(loss, static_argnums=(1, 2))(params, tree, guide, FOUR)
    assert value == pytest.approx(evidence, abs=1e-4)


def test_weights_that_would_lack_a_density_are_refused():
    def chained(data):
        u = numpyro.sample("u", dist.Normal(0, 1))
        numpyro.sample("z", dist.Normal(u, 1))

    def one(data):
        numpyro.sample("z", dist.Normal(0, 1))

    loss = lambda *of: ImportanceELBO(iwae).loss(jax.random.key(0), {}, *of, FOUR)
    with refused(
        "The model's site 'u' is neither observed nor drawn by the guide, so the weights would "
        "lack its density; give the guide a site 'u'."
    ):
        loss(chained, one)
    with refused(
        "The guide's site 'u' is not in the model, so the weights would divide by a density "
        "without a counterpart; remove it, or if the guide accounts for it, mark it by "
        "infer={'is_auxiliary': True}."
    ):
        loss(one, chained)


def test_subsampled_plates_that_do_not_enclose_the_guide_are_refused():
    def its_guide(data, subsample):
        numpyro.sample("z", dist.Normal(jnp.zeros((3, 2)), 1).to_event(1))

    with refused(
        "The plate 'n' is subsampled, but does not enclose every site of the model and of the "
        "guide, so the weights do not factorise over it; leave out subsample_size, or use a guide "
        "whose sites are all in it, such as AutoNormal."
    ):
        ImportanceELBO(iwae).loss(jax.random.key(0), {}, model, its_guide, DATA, 3)


def whole(data):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    s = numpyro.sample("s", dist.LogNormal(0, 1))
    with numpyro.plate("n", len(data)):
        numpyro.sample("x", dist.Normal(z.sum(), s), obs=data)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_point_mass_beside_draws_is_refused_if_it_has_parameters():
    """Only the log-weights themselves pass a gradient to it."""

    def mixed(data):
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1).to_event(1))
        numpyro.sample("s", dist.Delta(jnp.exp(numpyro.param("log_s", 0.0))))

    loss = lambda o, params: o.loss(jax.random.key(2), params, whole, mixed, DATA)
    theirs = jax.jit(jax.grad(partial(loss, RenyiELBO(0))))({"log_s": 0.5})
    ours = jax.jit(jax.grad(partial(loss, ImportanceELBO(iwae))))({"log_s": 0.5})
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
        "The guide draws a random key itself, which would differ when its density is evaluated; "
        "use the estimator reparam."
    ):
        loss(ImportanceELBO(iwae, "dreg"), dropping)
    with refused(
        "The guide is a point mass, which has no density to differentiate; use the "
        "estimator reparam."
    ):
        loss(ImportanceELBO(iwae, "dreg"), point)
    with refused(
        "The guide's site 'z' draws through a transform without an inverse, so its "
        "density cannot be evaluated at earlier draws; use the estimator reparam."
    ):
        loss(ImportanceELBO(iwae, "dreg"), flow)
    with refused(
        "The sleep phase needs draws (x, h) from the model, which NumPyro's models do not provide; "
        "use rws for the wake phase, or dreg."
    ):
        ImportanceELBO(iwae, "rws-sleep")
