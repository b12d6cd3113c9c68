"""Commands that use a trained model: samples, reconstructions, codes, scores, holes, odd rows."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from iwae.cli.flags import DataDir, Header, Overwrite, Seed, note
from iwae.cli.outputs import (
    INDEX,
    ROW,
    Numbering,
    check_output,
    write_anomalies,
    write_columns,
    write_filled,
    write_scores,
    write_table,
)
from iwae.cli.terminal import say
from iwae.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from iwae.evaluation.trained import TrainedModel

Run = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Sample:
    """Draw examples from a trained model: a picture of E[x|h], an array, or a table.

    A .csv has one row per example, with the column names of the training data or x0, x1, …, and of
    a table its own values, words included. A .npy has the model's numbers: codes for categories.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.png|.npy|.csv")]
    n: int = 100
    """Number of examples."""
    values: Literal["auto", "mean", "draw"] = "auto"
    """mean: E[x|h]; draw: x itself; auto: draws of a table, else means."""
    seed: Seed = 0
    overwrite: Overwrite = False

    def run(self) -> None:
        from iwae import runs
        from iwae._utils.files import write_atomic

        check_output(self.out, (".png", ".npy", ".csv"), overwrite=self.overwrite)
        trained = runs.load(self.run_folder)
        schema = trained.seen.schema
        means = self.values == "mean" or (self.values == "auto" and schema is None)
        images = trained.sampled(self.n, seed=self.seed, mean=means)
        if self.out.suffix == ".png":
            write_atomic(self.out, _sheet(trained, images))
        elif schema is not None and self.out.suffix == ".csv":
            write_columns(self.out, schema.decode(images))
        else:
            d = images[0].size
            write_table(self.out, images, trained.seen.names or [f"x{i}" for i in range(d)])
        say(f"Wrote {self.n} samples to {self.out}.")


def _sheet(trained: "TrainedModel", images: "np.ndarray") -> bytes:
    """Samples as a picture: the marginals of a table, beside those of training if it is found."""
    from iwae.plotting import figures

    if trained.seen.schema is None:
        return figures.sheet(trained, images)
    return figures.marginal_picture(trained, images)


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
        what = "images" if trained.seen.schema is None else "rows"
        say(f"Wrote {shown} {what}, as the model saw them and reconstructed, to {self.out}.")


@dataclass(frozen=True)
class Encode:
    """Posterior means E_q[h_l|x] of your own examples, [n, units of layer l].

    A .csv has one line per example, with the columns index (from 0; for a table row, from 1), h0,
    h1, …
    If training binarises intensities dynamically, each example is binarised once, by --seed.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .npy, .npz, .csv, .csv.gz or .parquet file, or NAME or NAME:SPLIT of a registered data
    set."""
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
        names = [f"h{i}" for i in range(codes.shape[1])]
        write_table(self.out, codes, names, _numbering(trained))
        say(f"Wrote {len(codes)} codes of {codes.shape[1]} units to {self.out}.")


@dataclass(frozen=True)
class Score:
    """log p(x) of your own examples, estimated by L_K, in nats; low values are unusual.

    A .csv has one line per example, with the columns index (from 0; for a table row, from 1) and
    log_likelihood, which is -inf for a row with a number that the type of its column excludes.
    If training binarises intensities dynamically, each example is binarised once, by --seed; the
    mean over several seeds varies less.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .npy, .npz, .csv, .csv.gz or .parquet file, or NAME or NAME:SPLIT of a registered data
    set."""
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
        with counting("scoring") as progress, notes():
            scores = trained.score(
                self.data, k=self.k, seed=self.seed, header=self.header, progress=progress
            )
        write_scores(self.out, scores, _numbering(trained))
        say(f"Wrote {len(scores)} log-likelihoods (L_{self.k}, nats) to {self.out}.")


@dataclass(frozen=True)
class Impute:
    """Fill the holes of your own table with what the model expects there, or draws.

    In a .csv all other characters stay as they are. Without --multiple, numbers are E[x|observed],
    rounded for counts, and categories the most probable. With --multiple M, the file has M filled
    copies below each other in mice's long format, with two columns in front: .imp is 0 for the rows
    as they are, then 1 to M, and .id numbers the rows. In R: mice::as.mids(read.csv(FILE)).
    """

    run_folder: Run
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .csv, .csv.gz, .parquet, .npy or .npz file with missing values."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.csv|.parquet|.npy")]
    """A file of the same kind as DATA; .npy for arrays, with --multiple as [M, n, d]."""
    multiple: Annotated[int | None, tyro.conf.arg(metavar="M")] = None
    """Number of multiple imputations: draws instead of expected values."""
    k: int = 1000
    """Importance samples per example."""
    header: Header = "auto"
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs
        from iwae.cli.progress import counting

        suffixes = (".csv", ".parquet", ".npy")
        check_output(self.out, suffixes, overwrite=self.overwrite, reads=self.data)
        kind = next((s for s in (".csv", ".csv.gz", ".parquet") if self.data.endswith(s)), ".npy")
        if self.out.suffix != kind.removesuffix(".gz"):
            raise InputError(
                f"{self.out} was given for the filled values of {self.data}, but it has to be of "
                f"the same kind; give a file that ends in {kind.removesuffix('.gz')}."
            )
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        with counting("imputing") as progress, notes():
            examples = trained.seen.read(self.data, self.data_dir, self.header, missing=True)
            rows = trained.imputed(
                examples, k=self.k, n_draws=self.multiple, seed=self.seed, progress=progress
            )
        write_filled(self.out, self.data, rows, trained.seen, header=self.header)
        holes = int((examples != examples).sum())
        of = f"{holes:,} missing of {examples.size:,} values"
        times = "" if self.multiple is None else f", {self.multiple} times"
        say(f"Filled {of}{times}, and wrote {self.out}.")


@dataclass(frozen=True)
class Anomalies:
    """The oddest of your own rows, and the columns that make them odd.

    Each row has its log-likelihood in nats with its standard error, and its most surprising values:
    log p(value|all other values of the row), beside the median of that column in training. Rows
    are counted from 1; row 1 of a .csv is the first below the names.
    """

    run_folder: Run
    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """A .csv, .csv.gz, .parquet, .npy or .npz file, or NAME or NAME:SPLIT of a registered data
    set."""
    top: int = 20
    """Number of rows."""
    by: Literal["likelihood", "ratio", "typical"] = "likelihood"
    """What to rank rows by: log p(x); ratio: log p(x) less the log-densities of its values one by
    one; typical: log p(x) in standard deviations from that of the model's own draws with the same
    holes, which is fair to rows with different ones."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """Also write them to a .csv file: rank, row, score, log_likelihood, standard_error, and for
    each column log p(value|all others) under its name."""
    k: int = 5000
    """Importance samples per example."""
    header: Header = "auto"
    seed: Seed = 0
    overwrite: Overwrite = False
    data_dir: DataDir = None

    def run(self) -> None:
        from iwae import runs
        from iwae.cli.progress import counting

        check_output(self.out, (".csv",), overwrite=self.overwrite, reads=self.data)
        trained = runs.load(self.run_folder, data_dir=self.data_dir)
        with counting("scoring") as progress, notes():
            found = trained.anomalies(
                self.data,
                top=self.top,
                by=self.by,
                k=self.k,
                seed=self.seed,
                header=self.header,
                progress=progress,
            )
        for anomaly in found:
            say(str(anomaly))
        if self.out is not None:
            schema = trained.seen.schema
            names = trained.seen.names if schema is None else schema.names
            write_anomalies(self.out, found, names)
            say(f"Wrote {len(found)} rows to {self.out}.")


def _numbering(trained: "TrainedModel") -> Numbering:
    """How a .csv file numbers the examples."""
    return INDEX if trained.seen.schema is None else ROW


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Prints warnings as notes, once all is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        note(str(warning.message))
