"""Data sets: a registry of published ones, the user's own arrays, splits, binarisation."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from iwae.data import arrays, in_use, registry
from iwae.data.dataset import Dataset, binarize
from iwae.data.examples import read_examples
from iwae.data.files import FileStatus
from iwae.data.registry import NAMES, status
from iwae.errors import InputError, nearest

__all__ = ["NAMES", "Dataset", "FileStatus", "binarize", "load", "read_examples", "status"]


def load(
    source: str | os.PathLike[str] | np.ndarray | Mapping[str, np.ndarray],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    values: str = "auto",
    header: str = "auto",
) -> Dataset:
    """A registered data set by name, or the user's own arrays, as a Dataset.

    `source`: a name in `NAMES`; a path ending in .npy, .npz, .csv or .csv.gz; an array [n, d],
    [n, h, w], [n, h, w, c] or (with 1 or 3 channels, plotted as such) [n, c, h, w], of NumPy or
    another library; a data frame; or a mapping with the keys train, valid and test. Column names,
    of a data frame or in the first line of a .csv, are kept, and other splits are matched to them.
    A single array is split 80/10/10 by a permutation that depends only on n, never on a run's seed;
    a missing valid is the last tenth of train, a missing test a tenth of the permuted train.

    `data_dir` is searched first for a registered data set's files, then IWAE_DATA_DIR, then the
    user's cache (IWAE_CACHE_DIR moves it); files that are in none of them are downloaded to the
    cache.

    `values` is the kind of the user's values: "binary" (0 and 1), "intensity" (integers in 0..255,
    or numbers in [0, 1]), "real", or "auto", the first of the three that fits all splits ("auto"
    and "intensity" read 0..255 as 8-bit: scale 255). "auto" rejects ambiguous values: integers with
    a maximum from 2 to 127, which could be counts or intensities on another scale, and numbers in
    [0, 1] that are all below 1/255.

    `header` says whether the first line of a .csv holds the names of its columns: "yes", "no" or
    "auto", which rejects a first line that could be either names or an example.

    Raises InputError for any input that cannot be used.
    """
    if values not in arrays.VALUES:
        raise InputError(f"values={values!r} is unknown: {nearest(values, list(arrays.VALUES))}.")
    if arrays.is_array(source):
        return arrays.from_arrays(source, values=values, name="array", where="The array")
    if isinstance(source, Mapping):
        return arrays.from_arrays(source, values=values, name="arrays", where="The mapping")
    if isinstance(source, str) and source in NAMES:
        return _registered(source, data_dir, values)
    if isinstance(source, str | os.PathLike):
        return _of_file(arrays.data_path(source, NAMES), values, header)
    what = f"Data cannot be a {type(source).__name__}"
    raise InputError(f"{what}: give a name, a path, a NumPy array or a mapping of arrays.")


def _of_file(path: Path, values: str, header: str) -> Dataset:
    """The data set in a file, cached under the kind that "auto" finds as well as under "auto"."""

    def read() -> Dataset:
        found = arrays.read_file(path, header=header)
        name = path.name[: -len(arrays.suffix(path))]
        return arrays.from_arrays(found, values=values, name=name, where=str(path))

    return in_use.shared([path], read, (values, header), lambda d: (d.kind, header))


def _registered(name: str, data_dir: str | os.PathLike[str] | None, values: str) -> Dataset:
    dataset = registry.load_named(name, None if data_dir is None else Path(data_dir))
    if values not in ("auto", dataset.kind):
        what = f"{name!r} holds {dataset.kind} values, so values={values!r} does not fit"
        raise InputError(f"{what}: leave values out for a registered data set.")
    return dataset
