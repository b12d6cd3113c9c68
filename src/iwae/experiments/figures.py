"""Published figures: train small models, draw them, and measure them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from iwae import data, runs
from iwae._utils import threefry
from iwae._utils.files import write_atomic
from iwae._utils.formatting import with_error
from iwae.config.io import flatten, override
from iwae.config.schema import RunConfig
from iwae.evaluation.examples import mean_and_error
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.comparisons import CellCallbacks, finished, known, versions
from iwae.experiments.tables import Widths
from iwae.experiments.toy_densities import slides_ring, slides_ring_log_prob
from iwae.models.bayesian import UncertainAutoencoder
from iwae.plotting import figures
from iwae.plotting.figures import Panel

POINTS = (20_000, 1000, 5000)
"""Points of the ring for training, validation and test."""

SHOWN = 4000
"""Points per panel."""


@dataclass(frozen=True)
class Drawn:
    """The figures that were written, and lines to print about the measurements."""

    pictures: tuple[Path, ...]
    lines: tuple[str, ...]
    record: dict[str, object]


class Draw(Protocol):
    """A function that trains, draws and measures models."""

    def __call__(
        self,
        config: RunConfig,
        out: Path,
        *,
        k: int,
        callbacks: CellCallbacks,
        limit: int | None = None,
        data_dir: str | Path | None = None,
    ) -> Drawn: ...


def ring(
    config: RunConfig,
    out: Path,
    *,
    k: int,
    callbacks: CellCallbacks,
    limit: int | None = None,
    data_dir: str | Path | None = None,
) -> Drawn:
    """The ring learned by a factorised Gaussian decoder, beside its exact entropy."""
    drawn = np.asarray(slides_ring(sum(POINTS), threefry.key(config.seed)))
    train, valid, test = np.split(drawn, np.cumsum(POINTS)[:-1])
    points = data.load({"train": train, "valid": valid, "test": test}, values="real")
    callback = callbacks.cell("ring", config.training.epochs)
    trained = finished(out / "ring" / "run", config, callback, data_dir, points)
    e = runs.evaluate(trained, k=k, limit=limit)
    exact = np.asarray(slides_ring_log_prob(jnp.asarray(points.test[:limit])), np.float64)
    entropy, gap = mean_and_error(-exact), mean_and_error(exact - e.log_likelihoods)
    picture = out / "ring" / "ring.png"
    of_model = trained.sampled(SHOWN, seed=config.seed, mean=False)
    panels = Panel("data", points.test[:SHOWN]), Panel("draws from the model", of_model)
    write_atomic(picture, figures.scatter_picture([panels]))
    measured = {"nll": (e.nll, e.nll_se), "exact": entropy, "gap": gap}
    record: dict[str, object] = {"k": k, "n": e.n}
    record |= {name: known(figure) for name, figure in measured.items()}
    lines = (
        f"NLL (L_{k}) of {e.n:,} test points: {with_error(e.nll, e.nll_se, 3)} nats",
        f"under the exact density: {entropy[0]:.3f}; the difference: {with_error(*gap, 3)}",
    )
    return Drawn((picture,), lines, record)


MODELS: dict[str, dict[str, Widths]] = {
    "2": {"latents": (2,)},
    "5": {"latents": (5,)},
    "10": {"latents": (10,)},
    "3-of-100": {"latents": (3,), "hidden": ((100,),)},
}
"""Models of the manifold experiment: numbers of latents, and 3 latents with 100 hidden units."""

SIDE = 20
"""Images per side of the manifold."""


def manifold(
    config: RunConfig,
    out: Path,
    *,
    k: int,
    callbacks: CellCallbacks,
    limit: int | None = None,
    data_dir: str | Path | None = None,
) -> Drawn:
    """The manifold of 2 latents, and samples of models with 2, 5 and 10 latents, and 3 latents with
    100 hidden units."""
    directory = out / "manifold"
    pictures: list[Path] = []
    lines: list[str] = []
    record: dict[str, object] = {}
    for name, settings in MODELS.items():
        own = override(config, **settings)
        callback = callbacks.cell(f"{name} latents", own.training.epochs)
        trained = finished(directory / name, own, callback, data_dir)
        e = runs.evaluate(trained, k=k, limit=limit)
        lines.append(f"{name} latents: NLL (L_{k}) {with_error(e.nll, e.nll_se)} nats")
        record[name] = {"k": k, **{n: e.to_json()[n] for n in ("n", "nll", "nll_se")}}
        pictures.append(directory / f"samples-{name}.png")
        write_atomic(pictures[-1], figures.sample_picture(trained, seed=config.seed))
        if own.model.widths[1] == (2,):
            pictures.append(directory / "manifold.png")
            write_atomic(pictures[-1], figures.png(figures.grid(plane(trained), SIDE)))
    return Drawn(tuple(pictures), tuple(lines), record)


def plane(trained: TrainedModel, side: int = SIDE) -> np.ndarray:
    """E[x|h] for h = Φ⁻¹(u) with u on a regular grid in the unit square, [side², *shape]."""
    centre = (jnp.arange(side) + 0.5) / side
    across, up = jnp.meshgrid(norm.ppf(centre), norm.ppf(centre[::-1]))
    h = jnp.stack([across.ravel(), up.ravel()], axis=1)
    model = trained.model
    if isinstance(model, UncertainAutoencoder):
        model = model.at_the_mean()
    images = jax.jit(jax.vmap(model.expected))(h)
    return np.asarray(images).reshape(-1, *trained.seen.shape)


FIGURES: dict[str, tuple[Draw, int]] = {"ring": (ring, 1), "manifold": (manifold, 4)}
"""Experiments by name: the function, and how many models it trains."""


def record(name: str, config: RunConfig, drawn: Drawn) -> dict[str, object]:
    """The measurements with everything needed to reproduce them."""
    settings = {n: v for n, v in flatten(config).items() if v is not None}
    return {**versions(), "experiment": name, "settings": settings, "measured": drawn.record}
