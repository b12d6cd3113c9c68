"""Data sets: a registry of published ones, the user's own arrays, splits, binarisation."""

import os
from collections.abc import Mapping
from pathlib import Path

from iwae.data import arrays, frames, in_use, registry, tables, tabular
from iwae.data.cells import Table
from iwae.data.dataset import Dataset, binarize
from iwae.data.detect import Decisions, Wishes, wishes_of
from iwae.data.examples import read_examples
from iwae.data.files import FileStatus
from iwae.data.registry import NAMES, status
from iwae.data.schema import Column, Schema
from iwae.errors import InputError, nearest

__all__ = [
    "NAMES",
    "Column",
    "Dataset",
    "FileStatus",
    "Schema",
    "binarize",
    "load",
    "read_examples",
    "status",
]


def load(
    source: object,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    values: str = "auto",
    header: str = "auto",
    schema: Decisions | None = None,
) -> Dataset:
    """A registered data set by name, or the user's own arrays or tables, as a Dataset.

    A single array or table is split 80/10/10 by a permutation that depends only on n, never on a
    run's seed; a missing valid is the last tenth of train, a missing test a tenth of the permuted
    train. Missing values are NaN, masked, or null; in a .csv, empty cells and such as NA or ?.

    Args:
        source: a name in `NAMES`; a path ending in .npy, .npz, .csv, .csv.gz or .parquet; an array
            [n, d], [n, h, w], [n, h, w, c] or (with 1 or 3 channels, plotted as such) [n, c, h, w],
            of NumPy or another library, or a sparse matrix, whose entries that are not stored are
            zeros; a data frame of pandas, polars or pyarrow; records; a mapping from the names of
            columns to their values; or a mapping of any of these with the keys train, valid and
            test. Column names are kept, and other splits are matched to them.
        data_dir: searched first for a registered data set's files, then IWAE_DATA_DIR, then the
            user's cache (IWAE_CACHE_DIR moves it); files that are in none of them are downloaded
            to the cache.
        values: the kind of the user's values: "binary" (0 and 1), "intensity" (integers in 0..255,
            or numbers in [0, 1]), "real", "table" (each column of its own type, in float32), or
            "auto". That is a table for data frames, mappings of columns, records, .csv and
            .parquet files which have column names, words, or gaps, unless all values are 0 and 1
            without gaps, or whole in 0..255, reach 128 and have 64 columns or more. For other
            sources it is the first of binary, intensity and real that fits all splits ("auto" and
            "intensity" read 0..255 as 8-bit: scale 255). "auto" rejects ambiguous values: integers
            with a maximum from 2 to 127, which could be counts or intensities on another scale,
            and numbers in [0, 1] that are all below 1/255.
        header: whether the first line of a .csv holds the names of its columns: "yes", "no" or
            "auto", which rejects a first line that could be either names or an example.
        schema: the types of a table's columns, as far as they are not to be detected: types or
            fields of `iwae.data.schema.Column` by column, the path of a .toml file with them, or a
            whole `Schema`.

    Returns:
        The data set, whose `schema` describes the columns of a table.

    Raises:
        InputError: for any input that cannot be used.

    Example:
        >>> mine = load({"weight": [61.5, None, 80.25, 74.0] * 9, "sex": ["f", "f", "m", "m"] * 9})
        >>> mine.kind, [column.type for column in mine.schema.columns]
        ('table', ['real', 'binary'])
    """
    if values not in arrays.VALUES:
        raise InputError(f"values={values!r} is unknown: {nearest(values, list(arrays.VALUES))}.")
    if isinstance(source, str) and source in NAMES:
        return _registered(source, data_dir, values, schema)
    if frames.is_sparse(source):
        source = frames.densified(source, "The array")
    wishes = wishes_of(schema)
    if schema is not None and values not in ("auto", "table"):
        what = f"A schema was given with values={values!r}"
        raise InputError(f"{what}: pass values='table', or leave the schema out.")
    if isinstance(source, str | os.PathLike):
        return _of_file(arrays.data_path(source, NAMES), values, header, wishes or None)
    name, where = (
        ("arrays", "The mapping") if isinstance(source, Mapping) else ("array", "The array")
    )
    if values == "table" or schema is not None or tabular.has_tables(source):
        if isinstance(source, Mapping) and not arrays.is_splits(source):
            name, where = "table", "The table"
        return tabular.from_source(source, values=values, name=name, where=where, schema=wishes)
    if arrays.is_array(source) or isinstance(source, Mapping):
        return arrays.from_arrays(source, values=values, name=name, where=where)
    what = f"Data cannot be a {type(source).__name__}"
    raise InputError(f"{what}: give a name, a path, an array, a data frame or a mapping of arrays.")


def _of_file(path: Path, values: str, header: str, wishes: Schema | Wishes | None) -> Dataset:
    """The data set in a file, cached under the kind that "auto" finds as well as under "auto"."""
    asked = wishes if isinstance(wishes, Schema | None) else repr(wishes)
    known = lambda d: (d.kind, header, d.schema if asked is None else asked)
    return in_use.shared(
        [path], lambda: _read_file(path, values, header, wishes), (values, header, asked), known
    )


def _read_file(path: Path, values: str, header: str, wishes: Schema | Wishes | None) -> Dataset:
    name, where = path.name[: -len(arrays.suffix(path))], str(path)
    found: object = None
    if values in ("auto", "table"):
        found = table_in(path, header, any_table=values == "table" or wishes is not None)
    if found is None:
        found = arrays.read_file(path, header=header)
        if values == "auto" and wishes is None:
            return arrays.from_arrays(found, values=values, name=name, where=where)
    return tabular.from_source(found, values=values, name=name, where=where, schema=wishes)


def table_in(path: Path, header: str = "auto", *, any_table: bool = True) -> Table | None:
    """The table in a .csv or .parquet file; None for other files.

    None also for a .csv of numbers without names, words and gaps, unless `any_table` is wanted.
    """
    arrays.check_readable(path)
    if arrays.suffix(path) == frames.PARQUET:
        return frames.read_parquet(path)
    if arrays.suffix(path) not in (".csv", ".csv.gz"):
        return None
    if not any_table and not tables.has_names(path, header):
        try:
            tables.read_csv(path, header=header)
        except tables.CellError:
            return tables.read_table(path, header=header)
        return None
    return tables.read_table(path, header=header)


def _registered(
    name: str, data_dir: str | os.PathLike[str] | None, values: str, schema: Decisions | None
) -> Dataset:
    dataset = registry.load_named(name, None if data_dir is None else Path(data_dir))
    if values not in ("auto", dataset.kind) or schema is not None:
        given = f"values={values!r}" if schema is None else "a schema"
        what = f"{name!r} holds {dataset.kind} values, so {given} does not fit"
        left = "values" if schema is None else "it"
        raise InputError(f"{what}: leave {left} out for a registered data set.")
    return dataset
