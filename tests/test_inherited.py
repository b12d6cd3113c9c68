"""Subclasses with another posterior or another density: nothing of the base class passes for it."""

from dataclasses import fields

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iwae.bounds import elbo, iwae
from iwae.config.schema import ModelConfig
from iwae.errors import InputError
from iwae.estimators import diagnostics
from iwae.estimators.surrogate import surrogate_loss
from iwae.evaluation.elbo import posterior_means, terms
from iwae.evaluation.units import ablated, activity
from iwae.models.autoencoder import (
    Autoencoder,
    draw_log_weights,
    holds,
    log_standard_normal,
    prune,
)
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.build import build
from iwae.models.networks import Linear
from iwae.models.observation import Observer
from refusals import refused

AS_IS = Observer(1.0, dynamic=False)
KEY = jax.random.key(0)
BITS = jnp.array([1.0, 0, 0, 1, 1])


def built(kind=Autoencoder, layers=1, uncertain="none", **more):
    config = ModelConfig(layers, ((4,), (4,))[:layers], (3, 2)[:layers], "bernoulli", uncertain)
    model = build(config, kind="binary", mean=np.full(5, 0.4), spread=np.ones(5), key=KEY)
    return kind(**{f.name: getattr(model, f.name) for f in fields(model)}, **more)


def flowed(h):
    """h ↦ h + ½ h³ of each unit, and log of its slope."""
    return h + 0.5 * h**3, jnp.sum(jnp.log1p(1.5 * h**2), axis=-1)


class Wide(Autoencoder):
    """Of noise that is no standard normal variable, whose density the base does not know."""

    def noise(self, k, key):
        return tuple(2 * epsilon for epsilon in super().noise(k, key))


class Flow(Autoencoder):
    """The base Gaussian's draws through a map; their density is that of the draw before it."""

    def propose(self, x, k, key):
        (h,), _ = self.reparametrize(x, self.noise(k, key))
        return (flowed(h)[0],)

    def log_proposal(self, x, h):
        before = jnp.zeros_like(h[0])
        for _ in range(40):
            before -= (before + 0.5 * before**3 - h[0]) / (1 + 1.5 * before**2)
        base = Autoencoder(**{f.name: getattr(self, f.name) for f in fields(self)})
        return base.log_proposal(x, (before,)) - flowed(before)[1]


class DeepFlow(Autoencoder):
    def propose_and_log_prob(self, x, k, key):
        (first, top), log_q = self.reparametrize(x, self.noise(k, key))
        top, more = flowed(top)
        return (first, top), log_q - more

    def log_proposal(self, x, h):
        raise AssertionError


class ByNoise(Autoencoder):
    """All of the draw is in `reparametrize`, as the base class asks for it."""

    def reparametrize(self, x, epsilon):
        (h,), log_q = super().reparametrize(x, epsilon)
        h, more = flowed(h)
        return (h,), log_q - more


def moved(kind, layers=1):
    """Away from 0, so that the mean of a map is far from the map of the mean."""
    model = built(kind, layers)
    top = lambda m: m.encoder[-1].mu.bias
    return eqx.tree_at(top, model, jnp.full(3 if layers == 1 else 2, 0.7))


@pytest.mark.parametrize(("kind", "layers"), [(Flow, 1), (ByNoise, 1), (DeepFlow, 2)])
def test_posterior_means_are_those_of_the_draws(kind, layers):
    model = moved(kind, layers)
    draws = np.asarray(model.propose(BITS, 200_000, jax.random.key(1))[-1], np.float64)
    mean, squared_error = model.posterior_mean(BITS, layers, 20_000, KEY)
    error = np.sqrt(squared_error + draws.var(0) / len(draws))
    assert np.all(np.abs(mean - draws.mean(0)) < 4.5 * error)
    base = Autoencoder(**{f.name: getattr(model, f.name) for f in fields(model)})
    far = np.abs(mean - base.posterior_mean(BITS, layers, 20_000, KEY)[0]) / error
    assert np.all(far > 8)
    for means, (of_layer, _) in zip(
        [*[None] * (layers - 1), mean], posterior_means(model, BITS, KEY, k=20_000), strict=True
    ):
        if means is not None:
            np.testing.assert_allclose(of_layer, means, atol=9 * error.max())


def test_codes_of_the_same_posterior_in_another_way_are_active_alike():
    """A unit counts as active by the variance of its means, without that of their noise."""
    images = np.random.default_rng(0).integers(0, 2, (300, 5)).astype(np.float32)
    model = moved(Flow)
    loud = eqx.tree_at(
        lambda m: (m.encoder[0].mu.weight, m.encoder[0].log_sigma),
        model,
        (jnp.zeros((3, 4)), Linear(jnp.zeros((3, 4)), jnp.full(3, -0.5))),
    )
    assert max(np.concatenate(activity(loud, images, AS_IS).variance)) < 0.01


@pytest.mark.parametrize("kind", [Flow, DeepFlow])
def test_terms_add_up_to_the_elbo_of_the_same_draws(kind):
    layers = 2 if kind is DeepFlow else 1

    class Evaluated(kind):
        def log_proposal(self, x, h):
            if kind is Flow:
                return super().log_proposal(x, h)
            return self.propose_and_log_prob(x, len(h[0]), KEY)[1]  # of these very draws

    model = moved(Evaluated, layers)
    got = terms(model, BITS, KEY, k=500)
    assert got.shape == (2,)
    expected = elbo(draw_log_weights(model, BITS, 500, KEY))
    np.testing.assert_allclose(got[0] - got[1:].sum(), expected, rtol=1e-4)


def test_reconstructions_start_from_the_draws():
    model = moved(Flow)
    expected = model.expected(model.propose(BITS, 1, KEY)[0][0])
    np.testing.assert_allclose(model.reconstruct(BITS, KEY), expected, rtol=1e-6)


def test_units_cannot_be_taken_out_of_another_posterior():
    with refused(
        "Flow inherits pruned from Autoencoder, but draws or weighs in a way of its own, of "
        "which it need not be true; write one, or state that it holds by `pruned = "
        "Autoencoder.pruned`."
    ):
        prune(moved(Flow), (jnp.array([True, True, False]),), (jnp.zeros(3),))


def test_the_density_of_other_draws_is_refused():
    """It would be the base Gaussian's, of draws that are not from it."""

    class OtherDraws(Autoencoder):
        def propose(self, x, k, key):
            return (flowed(super().propose(x, k, key)[0])[0],)

    sentence = (
        "inherits log_proposal from Autoencoder, but draws or weighs in a way of its own, of which "
        "it need not be true; write one, or state that it holds by `log_proposal = "
        "Autoencoder.log_proposal`."
    )
    with refused(f"OtherDraws {sentence}"):
        draw_log_weights(built(OtherDraws), BITS, 3, KEY)
    with refused(f"ByNoise {sentence}"):
        surrogate_loss(built(ByNoise), BITS, KEY, bound=iwae, k=3, estimator="dreg")
    assert np.isfinite(draw_log_weights(built(ByNoise), BITS, 3, KEY)).all()

    class Antithetic(Autoencoder):
        """Pairs that mirror each other: the density of each is what it was."""

        independent_draws = False
        log_proposal = Autoencoder.log_proposal
        log_proposal_terms = Autoencoder.log_proposal_terms
        posterior_mean = Autoencoder.posterior_mean

        def propose(self, x, k, key):
            mu, log_sigma = self.encoder[0](x)
            (e,) = self.noise(k // 2, key)
            return (mu + jnp.exp(log_sigma) * jnp.concatenate([e, -e]),)

    model, base = built(Antithetic), built()
    np.testing.assert_array_equal(
        model.posterior_mean(BITS, 1, 4, KEY)[0], base.posterior_mean(BITS, 1, 4, KEY)[0]
    )
    h = model.propose(BITS, 4, KEY)
    np.testing.assert_array_equal(model.log_proposal(BITS, h), base.log_proposal(BITS, h))


class OtherPrior(Autoencoder):
    def log_prior_terms(self, h):
        return [log_standard_normal(h[0] - 5.0)]


class OtherObservation(Autoencoder):
    def log_observation(self, x, h):
        return -jnp.sum((x - 0.3) ** 2) * jnp.ones(len(h[0]))


class OtherJoint(Autoencoder):
    def log_joint(self, x, h):
        return self.log_observation(x, h) + log_standard_normal(h[0] - 5.0)


@pytest.mark.parametrize(
    ("kind", "method", "use"),
    [
        (OtherPrior, "prior", lambda m: m.prior(2, KEY)),
        (OtherPrior, "prior", lambda m: m.sample(2, KEY)),
        (OtherPrior, "prior", lambda m: m.dream(2, KEY)),
        (
            OtherPrior,
            "prior",
            lambda m: surrogate_loss(m, BITS, KEY, bound=iwae, k=2, estimator="rws-sleep"),
        ),
        (OtherObservation, "expected", lambda m: m.reconstruct(BITS, KEY)),
        (OtherObservation, "expected", lambda m: m.sample(2, KEY)),
        (OtherObservation, "draw", lambda m: m.sample(2, KEY, mean=False)),
        (OtherJoint, "prior", lambda m: m.sample(2, KEY)),
        (OtherJoint, "log_observation", lambda m: terms(m, BITS, KEY, k=3)),
        (
            OtherJoint,
            "log_observation",
            lambda m: ablated(m, BITS, KEY, averages=(jnp.zeros(3),), k=3),
        ),
        (Flow, "log_proposal_terms", lambda m: m.log_proposal_terms(BITS, (jnp.zeros((2, 3)),))),
    ],
)
def test_what_a_model_does_not_say_is_refused(kind, method, use):
    with refused(
        f"{kind.__name__} inherits {method} from Autoencoder, but draws or weighs in a way of its "
        f"own, of which it need not be true; write one, or state that it holds by `{method} = "
        f"Autoencoder.{method}`."
    ):
        use(built(kind))
    assert np.isfinite(surrogate_loss(built(kind), BITS, KEY, bound=iwae, k=3)[0])


def test_the_density_of_other_noise_is_not_that_of_normal_variables():
    with pytest.raises(InputError, match="Wide inherits reparametrize from Autoencoder"):
        draw_log_weights(built(Wide), BITS, 3, KEY)


@pytest.mark.slow
def test_uncertain_subclasses_are_not_taken_for_their_base():
    """`at`, by which the base class draws, knows nothing of a subclass."""

    class Shifted(UncertainAutoencoder):
        def log_prior_terms(self, h):
            return [term - 1.0 for term in super().log_prior_terms(h)]

        def log_joint(self, x, h):
            return super().log_joint(x, h) - 1.0

        def reparametrize(self, x, epsilon):
            draws, log_q = super().reparametrize(x, epsilon)
            return replace_latents(draws, 2.0), log_q - 3 * jnp.log(2.0)

    def replace_latents(draws, by):
        return draws._replace(latents=tuple(by * h for h in draws.latents))

    model = built(Shifted, uncertain="both")
    for use in (
        lambda: model.sample(2, KEY),
        lambda: model.dream(2, KEY),
        lambda: model.reconstruct(BITS, KEY),
        lambda: model.at_the_mean(),
        lambda: model.pruned((jnp.ones(3, bool),), (jnp.zeros(3),)),
        lambda: model.prior(2, KEY),
    ):
        with pytest.raises(ValueError, match="in a way of its own, of which it need not be true"):
            use()
    mean, _ = model.posterior_mean(BITS, 1, 50_000, KEY)
    np.testing.assert_allclose(mean, model.propose(BITS, 50_000, KEY).latents[0].mean(0), atol=1e-3)


def test_draws_of_another_form_have_no_layers():
    class Flat(Flow):
        def propose(self, x, k, key):
            return super().propose(x, k, key)[0]

    with refused(
        "The draws of Flat are not (h_1, …, h_L) of (3,) units, so its layers cannot be told "
        "apart; have propose return such a tuple, or something with an attribute latents that is "
        "one."
    ):
        built(Flat).posterior_mean(BITS, 1, 5, KEY)


def test_recognition_parameters_beyond_the_encoder_are_asked_for():
    with refused(
        "Flow draws in a way of its own, so that φ may be more than its encoder; give phi=, a "
        "function from the model to its recognition parameters."
    ):
        diagnostics.moments(built(Flow), BITS[None], KEY, bound=iwae, k=2, repeats=20)


def test_the_models_of_the_package_say_all_that_they_are_asked():
    config = ModelConfig(1, ((4,),), (3,), "bernoulli", proposal="hierarchical")
    given = {"kind": "binary", "mean": np.full(5, 0.4), "spread": np.ones(5), "key": KEY}
    each = ("log_proposal", "log_proposal_terms", "posterior_mean", "reconstruct")
    each += ("log_observation", "log_prior_terms", "sample", "dream")
    own = ("prior", "draw", "expected")
    for model, methods in (
        (built(layers=2), (*each, *own, "pruned")),
        (built(UncertainAutoencoder, uncertain="both"), (*each, "pruned", "at_the_mean")),
        (build(config, **given, k=2), (*each[:6], *own)),
    ):
        for method in methods:
            assert holds(model, method), (type(model), method)
    model = build(config, **given, k=2)
    assert model.sample(2, KEY).shape == model.dream(2, KEY)[0].shape == (2, 5)
