"""Figures that compare the models of a table: training curves and reconstructions.

For cells named dataset/layers/objective-k, as in Table 1 of Burda et al. and the figures of the
DD2434 replication (Bradicic, Sitarz, Skoglund & Swartling 2024).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from iwae import runs
from iwae._utils.files import write_atomic
from iwae.evaluation.trained import TrainedModel
from iwae.experiments.jobs import Job, place, state
from iwae.plotting import figures
from iwae.storage.run_directory import MODEL, read_metrics

BOTH = ("vae", "iwae")

SHOWN = 10
"""Number of reconstructed test images."""


def draw(
    jobs: Mapping[str, Job], out: Path, directory: Path, data_dir: str | Path | None = None
) -> list[Path]:
    """Write the figures of all finished cells whose models exist here, and return their paths.

    For each data set and number of layers: the bounds of VAE and IWAE at the largest K they share;
    the bounds of each objective at every K; and test images above the reconstructions of the two.
    """
    found: dict[tuple[str, str], dict[str, Job]] = {}
    for name, job in jobs.items():
        dataset, layers, bound = name.rsplit("/", 2)
        if state(job, out) == "done" and (place(job, out) / MODEL).exists():
            found.setdefault((dataset, layers), {})[bound] = job
    pictures: dict[str, bytes] = {}
    for (dataset, layers), of in found.items():
        own = f"{dataset}-{layers}"
        for objective in BOTH:
            several = {b: t for b, t in of.items() if b.startswith(f"{objective}-")}
            if several:
                pictures[f"{own}-{objective}.svg"] = _curves(several, out)
        shared = [k for k in map(_draws, of) if {f"vae-{k}", f"iwae-{k}"} <= of.keys()]
        if shared:
            pair = {f"{bound}-{max(shared)}": of[f"{bound}-{max(shared)}"] for bound in BOTH}
            pictures[f"{own}-vae-iwae.svg"] = _curves(pair, out)
            models = [runs.load(place(t, out), data_dir=data_dir) for t in pair.values()]
            pictures[f"{own}-reconstructions.png"] = reconstructions(models)
    for name, content in pictures.items():
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, content)
    return [directory / name for name in pictures]


def _draws(bound: str) -> int:
    return int(bound.rpartition("-")[2])


def _curves(jobs: Mapping[str, Job], out: Path) -> bytes:
    rows = [(name.upper(), read_metrics(place(job, out))) for name, job in jobs.items()]
    return figures.training_curves(rows)


def reconstructions(models: list[TrainedModel]) -> bytes:
    """Test images as the models saw them, then a row of reconstructions per model, as a PNG."""
    images = models[0].data().test[:SHOWN]
    seen, _ = models[0].reconstructed(images)
    again = [model.reconstructed(images)[1] for model in models]
    return figures.sheet(models[0], np.concatenate([seen, *again]), columns=len(images))
