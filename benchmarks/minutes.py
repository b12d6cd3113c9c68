"""`python -m benchmarks.minutes`: NLL against minutes of training, ours beside others.

Every contestant trains the paper's model with one stochastic layer on MNIST, one after the other
within one run, and its models are evaluated on the way by iwae: −L_5000 of the first 1,000 images
of the validation split, with the same draws. The clock counts training alone, with the compilation
of a first run. The others are a plain loop in PyTorch and pythae's IWAE in the same loop, with Adam
as in the paper, for as long as the longest of our recipes, or --minutes. The record is named by the
objective, `results/benchmarks/minutes-iwae-50.json`, and `python -m benchmarks.page` makes a table
and a picture of it in docs/performance.md.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import numpy as np
import torch

from benchmarks import __main__ as command
from benchmarks import iwae_steps, page, torch_iwae
from iwae import runs
from iwae.cli.progress import TrainingBars, print_curves
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.against_time import Curve, Measure, Snapshot, Snapshots, compared
from iwae.experiments.against_time import record as record_of
from iwae.models.autoencoder import Autoencoder
from iwae.training.trainer import NonFiniteError

PLAIN: Mapping[str, Any] = {"dataset": "mnist", "binarization": "dynamic", "k": 50}

CHUNK = 50
"""Steps of the others between two looks at the clock."""


@dataclass(frozen=True)
class Other:
    """A rival: how its loop is made, and the size of its batches."""

    loop: Callable[..., torch_iwae.TrainingLoop]
    batch: int


def others() -> dict[str, Other]:
    from benchmarks.rivals import Pythae

    return {
        "PyTorch, Adam, batches of 20": Other(torch_iwae.TrainingLoop, 20),
        "PyTorch, Adam, batches of 100": Other(torch_iwae.TrainingLoop, 100),
        "pythae, Adam, batches of 100": Other(Pythae, 100),
    }


def main() -> None:
    arguments = parsed()
    measure = Measure("valid", arguments.k, arguments.limit)
    given = {**PLAIN, "objective": arguments.objective, "k": arguments.train_k}
    given |= {} if arguments.minutes is None else {"minutes": arguments.minutes}
    seeds = range(arguments.seeds)
    with tempfile.TemporaryDirectory() as made:
        out = arguments.out or Path(made)
        with TrainingBars(len(arguments.recipes) * len(seeds)) as bars:
            curves = compared(
                arguments.recipes,
                given,
                out,
                seeds=seeds,
                measure=measure,
                callbacks=bars,
                data_dir=arguments.data_dir,
            )
    longest = arguments.minutes or max(curve.minutes or 0.0 for curve in curves)
    if longest == 0:
        raise SystemExit("No recipe was trained to its end; give --minutes for the others.")
    config = override(RunConfig(), **given)
    for name, other in others().items():
        taken: dict[int, Sequence[Snapshot]] = {}
        failures: dict[int, str] = {}
        for seed in seeds:
            start = runs.untrained(override(config, seed=seed), data_dir=arguments.data_dir)
            with tempfile.TemporaryDirectory() as made:
                snapshots = Snapshots(Path(made) / "other", start, measure)
                try:
                    train(other, start, snapshots, longest, seed)
                except NonFiniteError as error:
                    failures[seed] = str(error)
            taken[seed] = tuple(snapshots.taken)
        curves.append(Curve(name, override(config, batch_size=other.batch), taken, failures))
    name = f"{arguments.objective}-{arguments.train_k}"
    print_curves(curves, measure, page.MINUTES[name][1] if name in page.MINUTES else ())
    write(curves, measure, arguments.record or page.SOURCE.with_name(f"minutes-{name}.json"))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minutes", description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["fast"], help="names and .toml files")
    parser.add_argument("--objective", default="iwae")
    parser.add_argument("--train-k", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contestant")
    parser.add_argument("--minutes", type=float, help="end every training after so many")
    parser.add_argument("--k", type=int, default=5000, help="K of the evaluations")
    parser.add_argument("--limit", type=int, default=1000, help="images that are evaluated")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, help="keep our runs here, to go on with")
    parser.add_argument("--record", type=Path, help="write the record to this file")
    return parser.parse_args()


def train(
    other: Other, start: TrainedModel, snapshots: Snapshots, minutes: float, seed: int
) -> None:
    """Train a rival for so many minutes, and take its snapshots.

    `NonFiniteError` if the NLL of its final model is not finite.
    """
    torch.manual_seed(seed)
    images = np.array(start.data().train)
    net = torch_iwae.Autoencoder(start.config.model.layers, images.shape[1])
    net.fill(iwae_steps.parameters(cast(Autoencoder, start.model)))
    loop = other.loop(net, images, k=start.config.objective.k, batch=other.batch)
    seconds, steps = 0.0, 0
    while seconds < 60 * minutes:
        began = time.perf_counter()
        loop(CHUNK)
        seconds += time.perf_counter() - began
        steps += CHUNK
        epoch = steps * other.batch // len(images)
        over = seconds >= 60 * minutes
        if snapshots.is_due(seconds / 60) or over:
            snapshots.take(of_parameters(start, net, epoch), seconds / 60, final=over)


def of_parameters(start: TrainedModel, net: torch_iwae.Autoencoder, epochs: int) -> TrainedModel:
    """Our model with the rival's weights."""
    arrays, static = eqx.partition(start.model, eqx.is_inexact_array)
    leaves = [p.detach().numpy().copy() for p in net.parameters()]
    filled = jax.tree.unflatten(jax.tree.structure(arrays), leaves)
    return replace(start, model=eqx.combine(filled, static), epochs=epochs)


def write(curves: Sequence[Curve], measure: Measure, record: Path) -> None:
    """The record of all contestants."""
    content = {
        "machine": command.machine(),
        "measure": asdict(measure),
        "contestants": record_of(curves, measure)["recipes"],
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
