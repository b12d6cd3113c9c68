"""What commands write: arrays, scores and pictures, by the ending of the file's name."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from iwae.errors import InputError
from iwae.files import refuse_existing, write_atomic

if TYPE_CHECKING:
    import numpy as np


def check_output(path: Path | None, suffixes: tuple[str, ...], *, overwrite: bool) -> None:
    """Before any work: the format is known, and nothing would be overwritten."""
    if path is None:
        return
    if path.suffix not in suffixes:
        known = " or ".join(suffixes)
        raise InputError(f"{path} ends in no known format; give a file ending in {known}.")
    refuse_existing(path, overwrite=overwrite)


def write_array(path: Path, array: "np.ndarray") -> None:
    """A .npy file, whole or not at all."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def write_scores(path: Path, scores: "np.ndarray") -> None:
    """A .npy file, or .csv with a line for each example."""
    if path.suffix == ".npy":
        return write_array(path, scores)
    rows = [f"{i},{value:.6f}\n" for i, value in enumerate(scores)]
    return write_atomic(path, "".join(["index,log_likelihood\n", *rows]))
