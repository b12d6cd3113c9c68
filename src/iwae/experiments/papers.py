"""The experiments that can be reproduced: tables, each in its file, and others."""

from iwae.experiments import tables
from iwae.experiments.tables import Experiment

TABLES = (
    *("table1", "fixed-mnist", "dreg", "li-turner", "rainforth", "swap", "dead-units", "gap"),
    *("mad", "jvi", "dd2434", "iwaeu", "gain", "ladder"),
)
"""Files in `published`, in the order of `--list`."""

PICTURED = {
    "ring": "a ring in the plane, learned by a decoder that is a factorised Gaussian",
    "manifold": "the manifold of 2 latents, and samples of models with few",
}
"""Experiments whose results are figures."""

OTHERS = {"hiwae": "independent and dependent draws, on densities and in autoencoders", **PICTURED}
"""Experiments that are not tables; each has a recipe of the same name."""

EXPERIMENTS: dict[str, Experiment] = {name: tables.published(name) for name in TABLES}
"""The tables of this package by name."""
