"""Configurations: one description of a run, whichever door it comes through."""

import re

import numpy as np
import pytest

from iwae.config.io import flatten, override, parse, recipe, recipe_names
from iwae.config.schema import PARAMETERS, RunConfig
from iwae.errors import InputError


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_survive_toml(name: str) -> None:
    config = recipe(name)
    assert parse(config.to_toml(), "copy") == config


@pytest.mark.parametrize(
    "objectives",
    [
        {"objective": "miwae", "m": 5, "encoder_objective": "ciwae", "beta": 0.25},
        {"objective": "vr-iwae", "alpha": -0.5, "encoder_objective": "jvi", "order": 2},
        {"objective": "ciwae", "beta": 0.5, "backward_draws": 4},
        {
            "uncertain_weights": "both",
            "weight_kl": 1.0,
            "weight_alpha": 0.5,
            "weight_draws": 10,
        },
    ],
)
def test_every_field_survives_toml(objectives: dict) -> None:
    config = override(
        RunConfig(),
        **objectives,
        layers=3,
        hidden=((5, 4), (3,), ()),
        latents=(4, 3, 2),
        minutes=1.5,
        clip=2,
        skip_spikes=3.0,
        average=0.9,
        patience=3,
        base_width=150,
        checkpoint_every=2,
        start_from="elsewhere",
        schema="mine.toml",
    )
    given = {name for name, value in flatten(config).items() if value is not None}
    optional = {*PARAMETERS.values(), "encoder_objective", "backward_draws"}
    optional |= {"weight_alpha", "weight_draws"}
    assert set(flatten(config)) - given <= optional
    assert parse(config.to_toml(), "copy") == config


def test_paper_recipe_is_the_paper() -> None:
    training = recipe("paper").training
    assert (training.epochs, training.batch_size, training.schedule) == (3280, 20, "stages")
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-4)
    assert recipe("paper").model.widths == (((200, 200),), (50,))
    two = override(recipe("paper"), layers=2)
    assert two.model.widths == (((200, 200), (100, 100)), (100, 50))


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "IWAE"),
        ({"estimator": "dreg"}, "IWAE by dreg"),
        ({"objective": "vr-iwae", "alpha": 0.5}, "VR-IWAE-0.5"),
        (
            {"objective": "jvi", "order": 1, "encoder_objective": "vae", "estimator": "stl"},
            "JVI-1 / VAE by stl",
        ),
    ],
)
def test_labels_tell_objectives_apart(settings: dict, label: str) -> None:
    assert override(RunConfig(), **settings).objective.label == label


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"k": np.int64(5), "learning_rate": np.float32(0.5), "hidden": ((np.int32(7),),)}
    config = override(RunConfig(), **given)
    assert config == override(RunConfig(), k=5, learning_rate=0.5, hidden=((7,),))
    assert parse(config.to_toml(), "copy") == config


def test_names_of_settings_are_unique() -> None:
    sections = ("data", "model", "objective", "training")
    leaves = sum(len(flatten(getattr(RunConfig(), section))) for section in sections)
    assert len(flatten(RunConfig())) == leaves + len(("seed", "stages"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"k": 0},
            "k = 0 was given, but a bound needs at least 1 importance sample; give --k 1 or more.",
        ),
        (
            {"backward_draws": 0},
            "backward_draws = 0 was given, but a gradient passes through at least 1 draw; give 1 "
            "or more.",
        ),
        (
            {"backward_draws": 2, "objective": "piwae", "m": 5},
            "backward_draws = 2 was given with an objective for the encoder, but draws are "
            "resampled by the weights of one objective; leave it out.",
        ),
        (
            {"backward_draws": 2, "proposal": "hierarchical"},
            "backward_draws = 2 was given with proposal = hierarchical, whose importance "
            "samples are weighted jointly; leave it out.",
        ),
        (
            {"epochs": 0},
            "epochs = 0 was given, but --epochs must be at least 1.",
        ),
        (
            {"learning_rate": -1.0},
            "learning_rate = -1.0 was given, but it must be a positive number.",
        ),
        ({"average": 1.0}, "average = 1.0 was given, but a decay lies in [0, 1)."),
        (
            {"layers": 3},
            "There is no preset with 3 stochastic layers; give both --hidden and --latents, or "
            "choose --layers 1 or 2.",
        ),
        (
            {"latents": (3, 4)},
            "latents describes 2 stochastic layers, but layers = 1; give one entry for each "
            "layer, from the image up, or --layers 2.",
        ),
        (
            {"latents": (0,)},
            "A layer of width 0 was given, but every width must be at least 1; correct hidden or "
            "latents.",
        ),
        ({"objective": "miwae"}, "objective = miwae needs m; give --m."),
        (
            {"objective": "miwae", "m": 7},
            "m = 7 was given with k = 50, but the draws form m groups of equal size; give an m "
            "that divides 50.",
        ),
        (
            {"alpha": 0.5},
            "alpha = 0.5 was given, but iwae takes no alpha; leave it out, or choose another "
            "objective.",
        ),
        (
            {"objective": "vr-iwae", "alpha": float("nan")},
            "alpha = nan was given, but α must be finite; give 1 for the ELBO.",
        ),
        (
            {"objective": "ciwae", "beta": 2.0},
            "beta = 2.0 was given, but β is a weight; give one from 0 to 1.",
        ),
        (
            {"objective": "jvi", "order": 5, "k": 5},
            "order = 5 was given with k = 5, but a jackknife leaves out fewer draws than there "
            "are; give an order from 0 to 4.",
        ),
        (
            {"objective": "piwae", "m": 5, "encoder_objective": "vae"},
            "encoder_objective = vae was given with objective = piwae, whose encoder uses "
            "miwae; leave it out, or give --objective iwae.",
        ),
        (
            {"encoder_objective": "piwae", "m": 5},
            "encoder_objective = piwae was given, but piwae is a pair itself; give "
            "--encoder-objective miwae.",
        ),
        (
            {"estimator": "rws", "encoder_objective": "vae"},
            "estimator = rws was given with an objective for the encoder, but it updates the "
            "encoder by its own divergence; give --estimator reparam, stl or dreg, or one "
            "objective for both.",
        ),
        (
            {"estimator": "rws-dreg", "k": 1},
            "estimator = rws-dreg was given with k = 1, where the encoder's gradient has mean "
            "zero; give --k 2 or more, or --estimator dreg.",
        ),
        ({"seed": -1}, "seed = -1 was given, but a seed is a whole number from 0 to 2^32 - 1."),
        ({"k": 2.5}, "k = 2.5 was given, but it must be a whole number."),
        (
            {"schedule": "cosin"},
            "schedule = 'cosin' was given, which is not a choice; did you mean 'cosine'? Known are "
            "constant, cosine, stages.",
        ),
    ],
)
def test_refusals(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        override(RunConfig(), **changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[data]\ndatset = 'mnist'",
            "r.toml, [data] has an unknown entry 'datset'; did you mean 'dataset'? Known are "
            "binarization, dataset, header, schema, values.",
        ),
        (
            "[model]\nhidden = 3",
            "r.toml, [model]: hidden = 3 was given, but it must be a list of whole numbers (one "
            "list for each stochastic layer).",
        ),
        ("data = 3", "r.toml gives data = 3, but [data] must be a table."),
        (
            "[objective]\nk = '5'",
            "r.toml, [objective]: k = '5' was given, but it must be a whole number.",
        ),
    ],
)
def test_toml_refusals(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        parse(text, "r.toml")


def test_broken_toml_and_unknown_recipe_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"^r.toml is not valid TOML: Expected ']' at "):
        parse("[data", "r.toml")
    with pytest.raises(InputError, match=r"^There is no recipe 'papr'; did you mean 'paper'\?"):
        recipe("papr")
    missing = tmp_path / "none.toml"
    sentence = f"The configuration {missing} cannot be read: No such file or directory."
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        recipe(missing)
