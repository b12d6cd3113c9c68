"""`python -m benchmarks.optimizers`: SOAP beside the optimisers of optax, for docs/fast.md.

All train the VAE of the recipe `fast-vae` on MNIST, in batches of 500 with a cosine schedule, each
at several learning rates. Since a step of SOAP takes longer, the others have half as many epochs
again. The final models are evaluated by −L_K of the validation split, with the same draws. The
record is `results/search/optimizers.json`, of which `python -m benchmarks.search` makes a table;
trainings that it holds already are not made again.
Optimisers that evaluate other parameters than they train (schedule-free), or need a Hessian
(Sophia) or a line search, are not among them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import optax

from benchmarks.page import curve_of
from benchmarks.search import FOLDER
from iwae import runs
from iwae.config.io import override, recipe
from iwae.config.schema import RunConfig
from iwae.experiments.against_time import Curve, Measure, Snapshots
from iwae.experiments.against_time import record as record_of
from iwae.training.callbacks import Callback, EpochEnd
from iwae.training.gradient_step import OptimizerOf
from iwae.training.parts import OF_OPTIMIZERS, described
from iwae.training.trainer import NonFiniteError

EPS = 1e-8
ADAM = {"b1": 0.9, "b2": 0.95, "eps": EPS}
"""As in `fast-vae`, whose ε of a sum is 1e-8 of a mean over 500 images."""

OTHERS: Mapping[str, tuple[OptimizerOf, Sequence[float]]] = {
    "adam": (partial(optax.adam, **ADAM), (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
    "nadam": (partial(optax.nadam, **ADAM), (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
    "adopt": (partial(optax.contrib.adopt, b1=0.9, b2=0.95), (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
    "ademamix": (partial(optax.contrib.ademamix, b1=0.9, b2=0.95, eps=EPS), (1e-3, 2e-3, 4e-3)),
    "lion": (optax.lion, (1e-4, 3e-4, 1e-3, 3e-3)),
    "muon": (optax.contrib.muon, (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)),
    "prodigy": (optax.contrib.prodigy, (1.0,)),
}
"""The function and the learning rates of each."""

SOAP_RATES = (5e-3, 1e-2, 2e-2)


class _Minutes(Callback):
    """Keeps the minutes of training."""

    minutes = 0.0

    def on_epoch_end(self, event: EpochEnd) -> None:
        self.minutes = event.state.seconds / 60


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="of SOAP")
    known = ["soap", *OTHERS]
    parser.add_argument("--optimizers", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--k", type=int, default=1000, help="K of the evaluations")
    parser.add_argument("--limit", type=int, default=400, help="images that are evaluated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--record", type=Path, default=FOLDER / "optimizers.json")
    given = parser.parse_args(arguments)
    measure = Measure("valid", given.k, given.limit)
    made = read(given.record, measure)
    for name in given.optimizers:
        own, rates = OTHERS.get(name, (None, SOAP_RATES))
        epochs = given.epochs if own is None else 3 * given.epochs // 2
        for rate in rates:
            shape = {"epochs": epochs, "learning_rate": rate, "seed": given.seed}
            config = override(recipe("fast-vae"), **shape, validate_every=epochs)
            key = _key(_name(config, own), _stated(config, own))
            if key not in made:
                made[key] = trained(config, own, measure, given.data_dir)
                write([*made.values()], measure, given.record)
            print(f"{name}, {rate:g}: {made[key].nll_in_words}", flush=True)


def trained(
    config: RunConfig,
    own: OptimizerOf | None,
    measure: Measure,
    data_dir: Path | None,
) -> Curve:
    """The final model of one training, by SOAP if there is no `own` optimiser."""
    clock = _Minutes()
    start = runs.untrained(config, data_dir=data_dir)
    with tempfile.TemporaryDirectory() as made:
        snapshots = Snapshots(Path(made) / "run", start, measure)
        failures: dict[int, str] = {}
        try:
            model = runs.train(config, optimizer=own, callbacks=[clock], data_dir=data_dir)
            snapshots.take(model, clock.minutes, final=True)
        except NonFiniteError as error:
            failures[config.seed] = str(error)
    taken = {config.seed: tuple(snapshots.taken)}
    return Curve(_name(config, own), _stated(config, own), taken, failures)


def _name(config: RunConfig, own: OptimizerOf | None) -> str:
    return config.training.optimizer if own is None else described(own)


def _stated(config: RunConfig, own: OptimizerOf | None) -> RunConfig:
    """The configuration, without settings that are of Adam and SOAP by name for an `own` one."""
    return config if own is None else override(config, **OF_OPTIMIZERS)


def _key(name: str, config: RunConfig) -> tuple[str, str]:
    return name, config.to_toml()


def read(record: Path, measure: Measure) -> dict[tuple[str, str], Curve]:
    """The trainings of a record with this measure, none if there is no such record."""
    if not record.exists():
        return {}
    content = json.loads(record.read_text())
    if content["measure"] != asdict(measure):
        sys.exit(f"{record} was evaluated by another measure; give another --record.")
    curves = map(curve_of, content["recipes"])
    return {_key(curve.name, curve.config): curve for curve in curves}


def write(curves: Sequence[Curve], measure: Measure, record: Path) -> None:
    """The record so far; the optimisers are its names."""
    content: dict[str, Any] = {"column": "optimizer", **record_of(curves, measure)}
    record.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
