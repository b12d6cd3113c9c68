"""What can be reproduced: tables of papers, each in its file, and experiments that are none."""

from iwae.experiments import tables
from iwae.experiments.tables import Experiment

TABLES = (
    *("table1", "fixed-mnist", "dreg", "li-turner", "rainforth", "swap", "dead-units", "gap"),
    *("mad", "jvi", "dd2434", "iwaeu"),
)
"""Files of `published`, in the order in which they are listed."""

PICTURED = {
    "ring": "a ring in the plane, learned by a decoder that is a factorised Gaussian",
    "manifold": "the manifold of 2 latents, and samples of models with few",
}
"""Experiments that end in pictures."""

OTHERS = {"hiwae": "independent and dependent draws, on densities and in autoencoders", **PICTURED}
"""Experiments that are not a table of cells; each has a recipe of its name."""

EXPERIMENTS: dict[str, Experiment] = {name: tables.published(name) for name in TABLES}
"""Every table of this package by its name."""
