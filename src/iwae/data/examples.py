"""Examples for a trained model, read from any source into the model's representation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from iwae.data import arrays, columns, registry
from iwae.data.cells import Table
from iwae.data.dataset import KINDS, rescale
from iwae.data.frames import PARQUET, as_table, is_frame, read_parquet
from iwae.data.rows import Rows, Summary, of_array, summary
from iwae.data.schema import Schema
from iwae.data.tables import read_table
from iwae.errors import InputError, nearest


def read_examples(
    source: object,
    *,
    kind: str,
    scale: float,
    shape: tuple[int, ...],
    data_dir: str | os.PathLike[str] | None = None,
    names: Sequence[str] = (),
    header: str = "auto",
    schema: Schema | None = None,
    missing: bool = False,
) -> np.ndarray:
    """Examples [n, d] in the representation of a model trained on (kind, scale, shape).

    `source`: an array or the path of one (.npy, .npz with one array, .csv, .csv.gz, .parquet), as
    [n, d] or [n, *shape] or one example without the first axis; or "NAME:split" of a registered
    data set, where "NAME" means its test split. Columns that have names are matched to `names`,
    those of the training data; `header` says whether the first line of a .csv holds names.

    For a model of intensities on a scale above 1, values that are all in [0, 1] are intensities,
    including zeros and ones of any dtype, such as uint8; other integers up to the scale are on the
    model's scale. The result is uint8, or float32 (still on the model's scale) if the intensities
    are not multiples of 1/scale, or if some values are missing (NaN), which a model takes only with
    `missing`.

    For a model of a table, the source may be anything that `Schema.encode` takes, such as a data
    frame or a mapping of columns; values are those of the user, never codes, and may be missing. A
    number outside the support of its column stays, with a warning.

    Raises InputError for examples that do not fit the model.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r} is not a kind of values: {nearest(kind, list(KINDS))}.")
    if kind == "table":
        if schema is None:
            raise InputError("A model of a table was given without its schema: pass the schema.")
        return _rows_of_table(source, schema, names, data_dir, header)
    if isinstance(source, str) and source.partition(":")[0] in registry.NAMES:
        x = _named(source, kind, data_dir)
        x = x.reshape(_count(x.shape, shape, source), -1)
        return _represent(x, summary(of_array(x)), kind, scale, source)
    rows, where = _own(source, names, int(np.prod(shape)), header, missing=missing)
    at = columns.order(rows.names, names, int(np.prod(shape)), where)
    n = _count(rows.shape, shape, where)  # before reading what does not fit
    x = rows.whole().reshape(n, -1)
    found = rows.known or summary(of_array(x))
    arrays.check_finite(found, where, missing=missing)
    return _represent(x if at is None else x[:, at], found, kind, scale, where)


def _named(source: str, kind: str, data_dir: str | os.PathLike[str] | None) -> np.ndarray:
    """A split of a registered data set, as float32 intensities if the model takes intensities."""
    name, _, split = source.partition(":")
    dataset = registry.load_named(name, None if data_dir is None else Path(data_dir))
    x = dataset.split(split or "test")
    return x / np.float32(dataset.scale) if kind == "intensity" else x


def _rows_of_table(
    source: object,
    schema: Schema,
    names: Sequence[str],
    data_dir: str | os.PathLike[str] | None,
    header: str,
) -> np.ndarray:
    """Rows of a table, float32 [n, d]; by position if the table of training had no `names`."""
    where = "The mapping" if isinstance(source, Mapping) else "The array"
    where = "The table" if is_frame(source) else where
    table: Table
    if isinstance(source, str) and source.partition(":")[0] in registry.NAMES:
        return schema.encode(_named(source, "table", data_dir), source, tolerant=True)
    if isinstance(source, str | os.PathLike):
        path = arrays.data_path(source, registry.NAMES)
        where = str(path)
        if arrays.suffix(path) == PARQUET:
            table = read_parquet(path)
        elif arrays.suffix(path) in (".csv", ".csv.gz"):
            expected = (*schema.names, *schema.ignored)
            table = read_table(path, header=header, names=expected)
        else:
            rows = _own(path, names, len(schema.columns), header)[0].whole()
            return schema.encode(rows, where, tolerant=True)
    elif isinstance(source, np.ndarray) and source.dtype.names is None:
        return schema.encode(source, where, tolerant=True)
    else:
        table = as_table(source, where)
    of = table if names else replace(table, named=False)
    return schema.encode(of, where, tolerant=True)


def _own(
    source: object, names: Sequence[str], width: int, header: str, *, missing: bool = True
) -> tuple[Rows, str]:
    if arrays.is_array(source):
        return arrays.as_rows(source, "The array"), "The array"
    if not isinstance(source, str | os.PathLike):
        given = type(source).__name__
        raise InputError(f"Examples must be an array, a path or a data set's name, not a {given}.")
    path = arrays.data_path(source, registry.NAMES)
    found = arrays.read_file(path, header=header, names=names, width=width, missing=missing)
    if isinstance(found, dict):
        what = f"{path} holds the arrays {', '.join(found) or 'none'}, but one is expected"
        raise InputError(f"{what}: save the examples alone with np.save.")
    return arrays.as_rows(found, str(path)), str(path)


def _count(given: tuple[int, ...], shape: tuple[int, ...], where: str) -> int:
    """Number of examples in an array of shape `given`; InputError if they do not fit the model.

    A channel axis of length 1 is optional; a model of vectors takes images of d pixels.
    """
    d = int(np.prod(shape))
    known = (_one_channel(shape), (d,))
    if _one_channel(given[1:]) in known or (len(shape) == 1 and np.prod(given[1:]) == d):
        return given[0]
    if _one_channel(given) in known:
        return 1
    forms = f"[n, {d}]" if len(shape) == 1 else f"[n, {d}] or [n, {', '.join(map(str, shape))}]"
    raise InputError(f"{where} has the shape {given}: give examples as {forms} for this model.")


def _one_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if len(shape) == 3 and shape[-1] == 1 else shape


def _represent(x: np.ndarray, found: Summary, kind: str, scale: float, where: str) -> np.ndarray:
    if kind == "real":
        arrays.check_range(found, where)
        return x.astype(np.float32, copy=False)
    low, high = found.lowest, found.highest
    if found.gaps and np.isnan(low):  # every value is missing
        return x.astype(np.float32, copy=False)
    if kind == "binary" and found.whole and low >= 0 and high <= 1:
        return x.astype(np.float32 if found.gaps else np.uint8, copy=False)
    if kind == "intensity" and low >= 0 and high <= 1:
        return rescale(x, scale) if scale > 1 else x.astype(np.float32, copy=False)
    if kind == "intensity" and found.whole and low >= 0 and high <= scale:
        return x.astype(np.float32 if found.gaps else np.uint8, copy=False)
    needs = "only 0 and 1" if kind == "binary" else "intensities in [0, 1]"
    needs += f" or integers in 0..{scale:g}" if kind == "intensity" and scale > 1 else ""
    what = f"{where} holds {found}, but this model was trained on {kind} values"
    raise InputError(f"{what}: give {needs}.")
