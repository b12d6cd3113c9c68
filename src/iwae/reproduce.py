"""Published experiments: what is trained for them, and the published figures beside ours."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iwae import runs
from iwae.config import RunConfig
from iwae.evaluation import mean_and_error
from iwae.experiments import Watchers, finished, versions
from iwae.settings import flatten, override

Figure = tuple[float, float]
"""A value with its standard error."""


@dataclass(frozen=True)
class Experiment:
    """Models to compare on some data sets; the differences are to the first."""

    recipe: str
    """What all start from."""
    datasets: tuple[str, ...]
    models: Mapping[str, dict[str, Any]]
    """Settings of each, by the name it is published under."""
    published: Mapping[tuple[str, str], Figure]
    """NLL in nats by data set and model."""
    source: str


EXPERIMENTS = {
    "iwaeu": Experiment(
        recipe="iwaeu",
        datasets=("mnist", "omniglot"),
        models={
            "IWAE": {"uncertain_weights": "none"},
            "IWAEU_rec": {"uncertain_weights": "encoder"},
            "IWAEU": {"uncertain_weights": "both"},
        },
        published={
            ("mnist", "IWAE"): (95.182, 0.022),
            ("mnist", "IWAEU"): (94.346, 0.025),
            ("mnist", "IWAEU_rec"): (94.709, 0.025),
            ("omniglot", "IWAE"): (118.771, 0.035),
            ("omniglot", "IWAEU"): (118.540, 0.049),
            ("omniglot", "IWAEU_rec"): (118.647, 0.031),
        },
        source="Hernández-Lobato et al., slides of 2016",
    ),
}


@dataclass(frozen=True)
class Outcome:
    """A model on a data set: the evaluations of its seeds, and those of the first model."""

    dataset: str
    model: str
    settings: dict[str, Any]
    published: Figure | None
    published_difference: float | None
    evaluations: list[dict[str, Any]]
    first: list[dict[str, Any]]
    seconds: list[float] = field(compare=False)
    """Training time of each seed."""

    @property
    def nll(self) -> Figure:
        """Mean over seeds."""
        return mean_and_error(np.array([e["nll"] for e in self.evaluations]))

    @property
    def difference(self) -> Figure | None:
        """NLL less that of the first model, seed by seed; None for the first itself."""
        if self.first is self.evaluations:
            return None
        pairs = zip(self.evaluations, self.first, strict=True)
        return mean_and_error(np.array([e["nll"] - first["nll"] for e, first in pairs]))


def run(
    name: str,
    config: RunConfig,
    out: Path,
    *,
    seeds: Sequence[int],
    k: int,
    watch: Watchers,
    datasets: Sequence[str] = (),
    limit: int | None = None,
    data_dir: str | Path | None = None,
) -> list[Outcome]:
    """Train and evaluate by L_k every model of an experiment with every seed, in `out`.

    `datasets` stand for the published ones. A finished run is reused and an interrupted one
    resumed. Equal seeds see the same images in the same order, so differences are paired.
    """
    about = EXPERIMENTS[name]
    outcomes: list[Outcome] = []
    for dataset in datasets or about.datasets:
        first: list[dict[str, Any]] = []
        for model, settings in about.models.items():
            own = override(config, dataset=dataset, **settings)
            evaluations, seconds = [], []
            for seed in seeds:
                watcher = watch.cell(f"{model}, {dataset}, seed {seed}", own.training.epochs)
                place = out / dataset / model / f"seed-{seed}"
                trained = finished(place, override(own, seed=seed), watcher, data_dir)
                evaluations.append(runs.evaluate(trained, k=k, limit=limit).to_json())
                seconds.append(runs.training_seconds(trained))
            first = first or evaluations
            published = about.published.get((dataset, model))
            reference = about.published.get((dataset, next(iter(about.models))))
            apart = published and reference and round(published[0] - reference[0], 3)
            outcomes.append(
                Outcome(
                    dataset=dataset,
                    model=model,
                    settings=settings,
                    published=published,
                    published_difference=None if first is evaluations else apart,
                    evaluations=evaluations,
                    first=first,
                    seconds=seconds,
                )
            )
    return outcomes


def count(name: str, datasets: Sequence[str], seeds: Sequence[int]) -> int:
    """How many runs `run` makes."""
    about = EXPERIMENTS[name]
    return len(list(itertools.product(datasets or about.datasets, about.models, seeds)))


def record(name: str, config: RunConfig, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The outcomes with all that is needed to have them again."""
    about = EXPERIMENTS[name]
    own = {n for settings in about.models.values() for n in settings} | {"dataset", "seed"}
    settings = {n: v for n, v in flatten(config).items() if v is not None and n not in own}
    kept = ("k", "n", "seed", "nll", "nll_se", "elbo", "active_units")
    return {
        **versions(),
        "experiment": name,
        "source": about.source,
        "settings": settings,
        "models": [
            {
                "dataset": o.dataset,
                "model": o.model,
                "settings": o.settings,
                "nll": o.nll,
                "difference": o.difference,
                "published": o.published,
                "published_difference": o.published_difference,
                "training_seconds": o.seconds,
                "note": o.evaluations[0]["note"],
                "runs": [{n: e[n] for n in kept} for e in o.evaluations],
            }
            for o in outcomes
        ],
    }
