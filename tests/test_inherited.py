"""Subclasses with a part of their own state it: nothing of the base class passes for it."""

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
from iwae.evaluation.units import activity
from iwae.models import AbstractAutoencoder, Autoencoder, Model, draw_log_weights, prune
from iwae.models.bayesian import UncertainAutoencoder
from iwae.models.build import build
from iwae.models.hierarchical import HierarchicalAutoencoder
from iwae.models.networks import Linear
from iwae.models.normal import log_standard_normal
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


class Flow(Autoencoder):
    """The base Gaussian's draws through a map; their density is that of the draw before it."""

    own_proposal = True

    def propose(self, x, k, key):
        (h,), _ = self.reparametrize(x, self.noise(k, key))
        return (flowed(h)[0],)

    def log_proposal(self, x, h):
        before = jnp.zeros_like(h[0])
        for _ in range(40):
            before -= (before + 0.5 * before**3 - h[0]) / (1 + 1.5 * before**2)
        return self.recognition.log_prob(x, (before,)) - flowed(before)[1]


class DeepFlow(Autoencoder):
    own_proposal = True

    def propose_and_log_prob(self, x, k, key):
        (first, top), log_q = self.reparametrize(x, self.noise(k, key))
        top, more = flowed(top)
        return (first, top), log_q - more

    def propose(self, x, k, key):
        return self.propose_and_log_prob(x, k, key)[0]

    def log_proposal(self, x, h):
        return self.propose_and_log_prob(x, len(h[0]), KEY)[1]  # of these very draws


def moved(kind, layers=1):
    """Away from 0, so that the mean of a map is far from the map of the mean."""
    model = built(kind, layers)
    top = lambda m: m.encoder[-1].mu.bias
    return eqx.tree_at(top, model, jnp.full(3 if layers == 1 else 2, 0.7))


@pytest.mark.parametrize(("kind", "layers"), [(Flow, 1), (DeepFlow, 2)])
@pytest.mark.slow
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
@pytest.mark.slow
def test_terms_add_up_to_the_elbo_of_the_same_draws(kind):
    model = moved(kind, 2 if kind is DeepFlow else 1)
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
        "Flow declares own_proposal = True, for which Autoencoder.pruned is not valid; define "
        "pruned in it."
    ):
        prune(moved(Flow), (jnp.array([True, True, False]),), (jnp.zeros(3),))


def stated(part, *methods, base=Autoencoder, **more):
    """A subclass that writes these methods, and states a part (or none) to be its own."""
    body = dict.fromkeys(methods, lambda self, *given: None) | ({part: True} if part else {})
    return type("Own", (base,), body | more)


@pytest.mark.parametrize(
    ("part", "methods", "sentence"),
    [
        (
            None,
            ("propose", "log_proposal"),
            "Own defines propose, but does not declare that this part is its own; declare "
            "own_proposal = True in it, and define propose and log_proposal.",
        ),
        (
            "own_proposal",
            ("propose",),
            "Own declares own_proposal = True, but does not define log_proposal; define propose "
            "and log_proposal, or keep the inherited one by `log_proposal = "
            "Autoencoder.log_proposal`.",
        ),
        (
            "own_proposal",
            ("propose", "log_proposal", "log_prior_terms"),
            "Own defines log_prior_terms, but does not declare that this part is its own; declare "
            "own_prior = True in it, and define log_prior_terms.",
        ),
        (
            "own_observation",
            ("draw",),
            "Own declares own_observation = True, but does not define log_observation; define "
            "log_observation, or keep the inherited one by `log_observation = "
            "Autoencoder.log_observation`.",
        ),
        (
            None,
            ("reparametrize",),
            "Own defines reparametrize, but must not; define propose and log_proposal instead.",
        ),
        (
            None,
            ("noise",),
            "Own defines noise, but must not; define propose and log_proposal instead.",
        ),
        (
            "own_prior",
            ("log_prior_terms", "log_joint"),
            "Own defines log_joint, but must not; define log_prior_terms or log_observation "
            "instead.",
        ),
        (None, ("dream",), "Own defines dream, but must not; define sample_joint instead."),
    ],
)
def test_a_part_that_is_replaced_in_silence_is_refused_as_the_class_is_made(
    part, methods, sentence
):
    """Its numbers would be those of the part of the base class, of draws that are not from it."""
    with refused(sentence):
        stated(part, *methods)


def test_a_part_that_comes_from_another_class_is_seen():
    class Shift:
        def propose(self, x, k, key):
            return (flowed(super().propose(x, k, key)[0])[0],)

    with pytest.raises(InputError, match="Own defines propose, but does not declare"):
        type("Own", (Shift, Autoencoder), {})
    with refused(
        "Own is a subclass of Flow, but subclasses of Autoencoder are final; make it "
        "a direct subclass of Autoencoder."
    ):
        stated(None, "propose", base=Flow)


@pytest.mark.parametrize("base", [UncertainAutoencoder, HierarchicalAutoencoder])
def test_compositions_are_final(base):
    with refused(
        f"Own is a subclass of {base.__name__}, which is final; write a subclass of "
        f"iwae.models.Model that holds one in a field."
    ):
        stated(None, base=base)


def test_a_subclass_without_a_part_of_its_own_is_the_autoencoder():
    class Named(Autoencoder):
        name: str = eqx.field(static=True, default="")

        def title(self):
            return f"model {self.name}"

    model, base = built(Named, name="a"), built()
    assert model.title() == "model a"
    assert model.made_from_noise
    log_w = draw_log_weights(model, BITS, 3, KEY)
    assert log_w.tolist() == draw_log_weights(base, BITS, 3, KEY).tolist()
    assert prune(model, (jnp.array([True, True, False]),), (jnp.zeros(3),)).latents == (2,)


def test_an_inherited_method_is_stated_to_hold():
    class Antithetic(Autoencoder):
        """Pairs that mirror each other: the density of each is what it was."""

        own_proposal = True
        independent_draws = False
        log_proposal = Autoencoder.log_proposal

        def propose(self, x, k, key):
            mu, log_sigma = self.encoder[0](x)
            (e,) = self.noise(k // 2, key)
            return (mu + jnp.exp(log_sigma) * jnp.concatenate([e, -e]),)

        def posterior_mean(self, x, layer, k, key):
            return self.recognition.mean(x, layer, k, key)

    model, base = built(Antithetic), built()
    np.testing.assert_array_equal(
        model.posterior_mean(BITS, 1, 4, KEY)[0], base.posterior_mean(BITS, 1, 4, KEY)[0]
    )
    h = model.propose(BITS, 4, KEY)
    np.testing.assert_array_equal(model.log_proposal(BITS, h), base.log_proposal(BITS, h))
    log_w = draw_log_weights(model, BITS, 4, KEY)
    np.testing.assert_allclose(log_w, model.log_joint(BITS, h) - base.log_proposal(BITS, h))
    with pytest.raises(InputError, match="Estimator dreg needs independent draws"):
        surrogate_loss(model, BITS, KEY, bound=iwae, k=4, estimator="dreg")


class OtherPrior(Autoencoder):
    own_prior = True

    def log_prior_terms(self, h):
        return [log_standard_normal(h[0] - 5.0)]


class OtherObservation(Autoencoder):
    own_observation = True

    def log_observation(self, x, h):
        return -jnp.sum((x - 0.3) ** 2) * jnp.ones(len(h[0]))


@pytest.mark.parametrize(
    ("kind", "part", "method", "use"),
    [
        (OtherPrior, "own_prior", "prior", lambda m: m.prior(2, KEY)),
        (OtherPrior, "own_prior", "prior", lambda m: m.sample(2, KEY)),
        (OtherPrior, "own_prior", "prior", lambda m: m.sample_joint(2, KEY)),
        (
            OtherPrior,
            "own_prior",
            "prior",
            lambda m: surrogate_loss(m, BITS, KEY, bound=iwae, k=2, estimator="rws-sleep"),
        ),
        (OtherPrior, "own_prior", "pruned", lambda m: prune(m, (jnp.ones(3, bool),), (BITS,))),
        (OtherObservation, "own_observation", "expected", lambda m: m.reconstruct(BITS, KEY)),
        (OtherObservation, "own_observation", "expected", lambda m: m.sample(2, KEY)),
        (OtherObservation, "own_observation", "draw", lambda m: m.sample(2, KEY, mean=False)),
    ],
)
def test_what_a_model_does_not_say_is_refused(kind, part, method, use):
    with refused(
        f"{kind.__name__} declares {part} = True, for which Autoencoder.{method} is not valid; "
        f"define {method} in it."
    ):
        use(built(kind))
    assert np.isfinite(surrogate_loss(built(kind), BITS, KEY, bound=iwae, k=3)[0])


def test_another_prior_is_in_every_density():
    model, base = built(OtherPrior), built()
    h = base.propose(BITS, 3, KEY)
    more = log_standard_normal(h[0] - 5.0) - log_standard_normal(h[0])
    np.testing.assert_allclose(model.log_joint(BITS, h), base.log_joint(BITS, h) + more, rtol=1e-6)
    got, plain = (terms(m, BITS, KEY, k=3) for m in (model, base))
    shift = jnp.mean(more)
    np.testing.assert_allclose(got[1], plain[1] - shift, rtol=1e-5)


class Doubled(Model):
    """A model of one's own around another: of the double of its latents."""

    inner: AbstractAutoencoder

    def propose(self, x, k, key):
        return tuple(2 * h for h in self.inner.propose(x, k, key))

    def log_joint(self, x, h):
        return self.inner.log_joint(x, tuple(v / 2 for v in h)) - 3 * jnp.log(2.0)

    def log_proposal(self, x, h):
        return self.inner.log_proposal(x, tuple(v / 2 for v in h)) - 3 * jnp.log(2.0)


def test_a_model_of_ones_own_holds_another():
    model = Doubled(built())
    expected = draw_log_weights(model.inner, BITS, 4, KEY)
    np.testing.assert_allclose(draw_log_weights(model, BITS, 4, KEY), expected, rtol=1e-5)
    with pytest.raises(InputError, match="does not declare that it makes them"):
        surrogate_loss(model, BITS, KEY, bound=iwae, k=2, estimator="rws-sleep")
    with refused("Doubled does not define how to draw noise; give it a method noise."):
        model.noise(2, KEY)
    with pytest.raises(TypeError, match="abstract"):
        Model()


def test_draws_of_another_form_have_no_layers():
    class Flat(Autoencoder):
        own_proposal = True
        log_proposal = Autoencoder.log_proposal

        def propose(self, x, k, key):
            return self.reparametrize(x, self.noise(k, key))[0][0]

    with refused(
        "The draws of Flat are not (h_1, …, h_L) of (3,) units, so its layers are unknown; "
        "let propose return such a tuple, or an object with such a tuple as attribute latents."
    ):
        built(Flat).posterior_mean(BITS, 1, 5, KEY)


def test_recognition_parameters_beyond_the_encoder_are_asked_for():
    with refused(
        "Flow has its own proposal, so φ may be more than its encoder; give phi=, a "
        "function from the model to its recognition parameters."
    ):
        diagnostics.moments(built(Flow), BITS[None], KEY, bound=iwae, k=2, repeats=20)


def test_the_models_of_the_package_say_all_that_they_are_asked():
    config = ModelConfig(1, ((4,),), (3,), "bernoulli", proposal="hierarchical")
    given = {"kind": "binary", "mean": np.full(5, 0.4), "spread": np.ones(5), "key": KEY}
    uncertain = UncertainAutoencoder.around(built(), which="both", sigma=0.1)
    for model in (built(layers=2), uncertain, build(config, **given, k=2)):
        assert model.samples_joint
        shape = lambda use, model=model: eqx.filter_eval_shape(use, model).shape
        assert shape(lambda m: m.sample(2, KEY)) == (2, 5)
        assert shape(lambda m: m.sample(2, KEY, mean=False)) == (2, 5)
        assert shape(lambda m: m.sample_joint(2, KEY)[0]) == (2, 5)
        assert shape(lambda m: m.reconstruct(BITS, KEY)) == (5,)
        assert shape(lambda m: m.posterior_mean(BITS, 1, 4, KEY)[0]) == (3,)
        assert shape(lambda m: terms(m, BITS, KEY, k=2)) == (len(model.latents) + 1,)
    with refused(
        "HierarchicalAutoencoder does not define how to remove units; give it a method pruned."
    ):
        prune(build(config, **given, k=2), (jnp.ones(3, bool),), (jnp.zeros(3),))
    with refused(
        "UncertainAutoencoder does not define how to draw from its prior; give it a method prior."
    ):
        uncertain.prior(2, KEY)
