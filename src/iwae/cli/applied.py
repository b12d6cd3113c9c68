"""Commands that use a trained model: samples, reconstructions, codes and scores."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from iwae.cli.flags import DataDir, Header, Overwrite, Seed, note
from iwae.cli.outputs import check_output, write_scores, write_table
from iwae.cli.terminal import say


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained model: a picture of E[x|h], an array, or a table.

    A .csv has one row per image, with the column names of the training data or x0, x1, …
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png|.npy|.csv")]
    n: int = 100
    """Number of images."""
    values: Literal["mean", "draw"] = "mean"
    """mean: E[x|h]; draw: x itself."""
    seed: Seed = 0
    overwrite: Overwrite = False

    def run(self) -> None:
        from iwae import runs
        from iwae._utils.files import write_atomic
        from iwae.plotting import figures

        check_output(self.out, (".png", ".npy", ".csv"), overwrite=self.overwrite)
        trained = runs.load(self.run_folder)
        images = trained.sample(self.n, seed=self.seed, mean=self.values == "mean")
        if self.out.suffix == ".png":
            write_atomic(self.out, figures.sheet(trained, images))
        else:
            d = images[0].size
            write_table(self.out, images, trained.seen.names or [f"x{i}" for i in range(d)])
        say(f"Wrote {self.n} samples to {self.out}.")


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
        from iwae import runs
        from iwae._utils.files import write_atomic
        from iwae.plotting import figures

        check_output(self.out, (".png",), overwrite=self.overwrite)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        picture = figures.reconstruction_picture(
            trained, n=self.n, seed=self.seed, split=self.split
        )
        write_atomic(self.out, picture)
        shown = min(self.n, len(trained.data().split(self.split)))
        say(f"Wrote {shown} images, as the model saw them and reconstructed, to {self.out}.")


@dataclass(frozen=True)
class Encode:
    """Posterior means E_q[h_l|x] of your own examples, [n, units of layer l].

    A .csv has one row per example, with the columns index, h0, h1, …
    If training binarises intensities dynamically, each example is binarised once, by --seed.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .npy, .npz, .csv or .csv.gz file, or NAME or NAME:SPLIT of a registered data set."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy|.csv")]
    layer: int = 1
    """Stochastic layer, counted from the image."""
    header: Header = "auto"
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs

        check_output(self.out, (".npy", ".csv"), overwrite=self.overwrite, reads=self.data)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        codes = trained.encode(self.data, layer=self.layer, seed=self.seed, header=self.header)
        write_table(self.out, codes, [f"h{i}" for i in range(codes.shape[1])], index=True)
        say(f"Wrote {len(codes)} codes of {codes.shape[1]} units to {self.out}.")


@dataclass(frozen=True)
class Score:
    """log p(x) of your own examples, estimated by L_K, in nats; low values are unusual.

    If training binarises intensities dynamically, each example is binarised once, by --seed; the
    mean over several seeds varies less.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .npy, .npz, .csv or .csv.gz file, or NAME or NAME:SPLIT of a registered data set."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.csv|.npy")]
    k: int = 5000
    """Importance samples per example."""
    header: Header = "auto"
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs
        from iwae.cli.progress import counting

        check_output(self.out, (".csv", ".npy"), overwrite=self.overwrite, reads=self.data)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        with counting("scoring") as progress, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            scores = trained.score(
                self.data, k=self.k, seed=self.seed, header=self.header, progress=progress
            )
        write_scores(self.out, scores)
        say(f"Wrote {len(scores)} log-likelihoods (L_{self.k}, nats) to {self.out}.")
        for warning in caught:
            note(str(warning.message))
