"""Commands that use a trained model: samples, reconstructions, codes and scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from iwae.flags import DataDir, Overwrite, Seed
from iwae.outputs import check_output, write_array, write_scores


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained model: a picture of E[x|h], or an array."""

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png|.npy")]
    n: int = 100
    """Number of images."""
    values: Literal["mean", "draw"] = "mean"
    """mean: E[x|h]; draw: x itself."""
    seed: Seed = 0
    overwrite: Overwrite = False

    def run(self) -> None:
        from iwae import figures, runs
        from iwae.files import write_atomic

        check_output(self.out, (".png", ".npy"), overwrite=self.overwrite)
        trained = runs.load(self.run_folder)
        images = trained.sample(self.n, seed=self.seed, mean=self.values == "mean")
        if self.out.suffix == ".npy":
            write_array(self.out, images)
        else:
            write_atomic(self.out, figures.sheet(trained, images))
        print(f"Wrote {self.n} samples to {self.out}.")


@dataclass(frozen=True)
class Reconstruct:
    """Draw test images above their reconstructions through one draw of the latents."""

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png")]
    n: int = 10
    """Number of images."""
    split: str = "test"
    """train, valid or test."""
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import figures, runs
        from iwae.files import write_atomic

        check_output(self.out, (".png",), overwrite=self.overwrite)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        picture = figures.reconstruction_picture(
            trained, n=self.n, seed=self.seed, split=self.split
        )
        write_atomic(self.out, picture)
        shown = min(self.n, len(trained.data().split(self.split)))
        print(f"Wrote {shown} images, as the model saw them and reconstructed, to {self.out}.")


@dataclass(frozen=True)
class Encode:
    """Posterior means E_q[h_l|x] of your own examples, [n, units of layer l].

    Where training binarises intensities dynamically, x is one binarisation of each, by --seed.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .npy, .npz or .csv file, or NAME or NAME:SPLIT of a registered data set."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    layer: int = 1
    """Stochastic layer, counted from the image."""
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs

        check_output(self.out, (".npy",), overwrite=self.overwrite)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        codes = trained.encode(self.data, layer=self.layer, seed=self.seed)
        write_array(self.out, codes)
        print(f"Wrote {len(codes)} codes of {codes.shape[1]} units to {self.out}.")


@dataclass(frozen=True)
class Score:
    """log p(x) of your own examples, estimated by L_K, in nats; low is unusual.

    Where training binarises intensities dynamically, x is one binarisation of each, by --seed: the
    mean over several seeds varies less.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .npy, .npz or .csv file, or NAME or NAME:SPLIT of a registered data set."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.csv|.npy")]
    k: int = 5000
    """Draws per example."""
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs
        from iwae.progress import counting

        check_output(self.out, (".csv", ".npy"), overwrite=self.overwrite)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        with counting("scoring") as progress:
            scores = trained.score(self.data, k=self.k, seed=self.seed, progress=progress)
        write_scores(self.out, scores)
        print(f"Wrote {len(scores)} log-likelihoods (L_{self.k}, nats) to {self.out}.")
