"""Which likelihoods fit which data: how these are binarised, and what is refused."""

import numpy as np
import pytest

from iwae import data
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.models import likelihoods
from iwae.models.observation import observation, prepare
from refusals import refused

RNG = np.random.default_rng(0)
INTENSITY = data.load("digits")
REAL = data.load(RNG.normal(size=(60, 3)).astype(np.float32))
BINARY = data.load((RNG.random((60, 3)) < 0.3).astype(np.float32))
DATASETS = {"intensity": INTENSITY, "real": REAL, "binary": BINARY}
BERNOULLIS = ("bernoulli", "BernoulliLogits", "BernoulliProbs")


def seen(dataset, **settings):
    config = override(RunConfig(), **settings)
    return observation(dataset, config.data, config.model)


def test_kinds_are_what_they_are_called():
    assert {name: dataset.kind for name, dataset in DATASETS.items()} == {n: n for n in DATASETS}


@pytest.mark.parametrize("likelihood", ["auto", *BERNOULLIS])
def test_intensities_are_binarised_for_every_bernoulli(likelihood):
    assert seen(INTENSITY, likelihood=likelihood).binarization == "dynamic"
    assert seen(INTENSITY, likelihood=likelihood, binarization="fixed").model_kind == "binary"
    assert seen(BINARY, likelihood=likelihood).binarization == "none"


@pytest.mark.parametrize("likelihood", BERNOULLIS)
def test_intensities_as_they_are_are_refused_for_every_bernoulli(likelihood):
    with refused(
        f"binarization = none was given with likelihood = {likelihood}, which is a distribution "
        f"over 0 and 1 only; give --binarization dynamic or fixed, or --likelihood gaussian."
    ):
        seen(INTENSITY, likelihood=likelihood, binarization="none")


@pytest.mark.parametrize(
    ("likelihood", "kind", "value"),
    [
        ("Beta", "intensity", "0"),
        ("Gamma", "intensity", "0"),
        ("LogNormal", "intensity", "0"),
        ("Poisson", "real", f"{REAL.train[0, 0]:g}"),
        ("Poisson", "intensity", f"{1 / 16:g}"),
        ("BernoulliLogits", "real", f"{REAL.train[0, 0]:g}"),
        ("Exponential", "real", f"{REAL.train[REAL.train < 0][0]:g}"),
        ("Gamma", "binary", "0"),
    ],
)
def test_values_outside_a_support_are_refused_by_name(likelihood, kind, value):
    dataset = DATASETS[kind]
    whole = dataset.scale == 1
    what = f"the value {value}" if whole else f"x / {dataset.scale:g} = {value}"
    inside = "" if whole else ", by --values real if x itself lies there"
    with refused(
        f"likelihood = {likelihood} was given, but it has no finite density at {what} in "
        f"{dataset.name}; give another likelihood, or bring the data inside its support{inside}."
    ):
        seen(dataset, likelihood=likelihood)


def test_a_likelihood_of_the_whole_line_fits_all_data():
    whole = {"AsymmetricLaplace", "Cauchy", "Gumbel", "Laplace", "Logistic", "Normal", "StudentT"}
    assert whole < set(likelihoods.names())
    for likelihood in sorted(whole):
        for dataset in DATASETS.values():
            assert seen(dataset, likelihood=likelihood).binarization == "none"


def test_notes_on_a_density_say_of_what_it_is_and_where_it_has_no_bound():
    assert seen(INTENSITY, likelihood="gaussian", binarization="none").note == (
        "the density is that of x / 16; 3 of 64 values are constant in training, where a density "
        "may have no bound; 61 of 64 values look discrete in training, of which a density is no "
        "probability and may have no bound"
    )
    assert seen(INTENSITY).note == seen(REAL).note == ""


def test_densities_of_discrete_values_come_with_a_note():
    """Two values have an entropy below log 2 each, under which a density has no bound."""
    two = data.load(RNG.choice([-1.3, 2.4], size=(60, 3)).astype(np.float32))
    of = "3 of 3 values look discrete in training, of which a density is no probability and may"
    for likelihood in ("auto", "gaussian", "Laplace"):
        assert seen(two, likelihood=likelihood).note == f"{of} have no bound"
    counts = data.load(RNG.poisson(3.0, size=(60, 3)).astype(np.float32), values="real")
    assert seen(counts, likelihood="gaussian").note == f"{of} have no bound"
    assert seen(counts, likelihood="Poisson").note == ""
    assert "3 of 3" in seen(BINARY, likelihood="gaussian").note
    assert seen(BINARY).note == ""


@pytest.mark.parametrize("likelihood", ["HurdleGamma", "HurdleLogNormal"])
def test_a_mixture_of_probability_and_density_comes_with_a_note(likelihood):
    values = RNG.gamma(2.0, size=(60, 3)) * (RNG.random((60, 3)) < 0.7)
    assert seen(data.load(values.astype(np.float32)), likelihood=likelihood).note == (
        "zeros count by their probability and other values by their density, so that this is "
        "comparable with likelihoods of the same kind alone"
    )


@pytest.mark.parametrize("likelihood", ["Pareto", "LowerTruncatedPowerLaw", "Uniform"])
def test_supports_that_training_moves_past_the_data_are_refused(likelihood):
    with refused(
        f"likelihood = {likelihood} was given, but a parameter of it is an end of its "
        f"support, which training moves past the data; give Gamma, LogNormal or Weibull."
    ):
        seen(REAL, likelihood=likelihood)


def test_a_fixed_binarisation_is_that_of_the_split():
    how = seen(INTENSITY, binarization="fixed")
    for split in ("valid", "test"):
        theirs = prepare(INTENSITY, how).split(split)
        np.testing.assert_array_equal(how.read(f"digits:{split}", None), theirs)
    np.testing.assert_array_equal(how.read("digits", None), prepare(INTENSITY, how).test)


def test_counts_and_positive_values_have_theirs():
    counts = data.load(RNG.poisson(3.0, size=(60, 3)).astype(np.float32), values="real")
    assert seen(counts, likelihood="Poisson").binarization == "none"
    assert seen(counts, likelihood="ZeroInflatedPoisson").binarization == "none"
    positive = data.load(RNG.gamma(2.0, size=(60, 3)).astype(np.float32), values="real")
    for likelihood in ("Gamma", "LogNormal", "Weibull", "Exponential"):
        assert seen(positive, likelihood=likelihood).binarization == "none"
