"""Data sets of tables: which sources are tables, their schema from training, and their splits."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from iwae.data import columns, mapped
from iwae.data.arrays import DARK, called_splits, from_arrays, is_splits, parts_of
from iwae.data.cells import Table, of_column
from iwae.data.dataset import SPLITS, Dataset
from iwae.data.detect import Decisions, Detected, detect
from iwae.data.frames import as_table, is_columns, is_tabular
from iwae.data.schema import Schema
from iwae.errors import InputError

PIXELS = 64
"""Named columns of 8-bit intensities are taken for an image if they are at least this many."""


def has_tables(source: object) -> bool:
    """Whether it is a data frame, records, or a mapping of columns, or of splits that are such."""
    if is_splits(source):
        assert isinstance(source, Mapping)
        return any(is_tabular(part) or columns.names_of(part) for part in source.values())
    return is_tabular(source) or bool(columns.names_of(source))


def tables_of(source: object, where: str) -> tuple[dict[str, Table], dict[str, str]]:
    """The tables of the splits that are given, and how messages call them."""
    if isinstance(source, Table):
        return {"train": source}, {"train": where}
    if not isinstance(source, Mapping) or (is_columns(source) and not is_splits(source)):
        return {"train": as_table(source, where)}, {"train": where}
    called = called_splits(source, where)
    return {key: as_table(source[key], called[key]) for key in source}, called


def is_plain(tables: Mapping[str, Table]) -> bool:
    """Whether "auto" takes tables for arrays of one kind of values.

    These are numbers without names or gaps, zeros and ones alone, and 8-bit intensities of at least
    `PIXELS` columns.
    """
    if any(table.has_words or table.has_gaps for table in tables.values()):
        return False
    if not any(table.named for table in tables.values()):
        return True
    x = [cells.values for table in tables.values() for cells in table.columns]
    low, high = min(float(v.min()) for v in x), max(float(v.max()) for v in x)
    whole = all(bool((v == np.rint(v)).all()) for v in x if v.dtype.kind == "f")
    if not whole or low < 0:
        return False
    pixels = len(tables["train"].names) >= PIXELS and DARK <= high <= 255
    return high <= 1 or pixels


def from_source(
    source: object, *, values: str, name: str, where: str, schema: Decisions | None
) -> Dataset:
    """The Dataset of a source with columns, as `iwae.data.load` describes it."""
    if values not in ("auto", "table"):
        return from_arrays(source, values=values, name=name, where=where)
    tables, called = tables_of(source, where)
    if values == "auto" and not schema and is_plain(tables):
        return from_arrays(source, values=values, name=name, where=where)
    tables = _aligned(tables, called)
    places = _places({key: len(table) for key, table in tables.items()}, where)
    found = schema_of(tables, places, schema, where).schema
    named = found.names if any(table.named for table in tables.values()) else ()
    stored = {key: _encoded(found, table, called[key]) for key, table in tables.items()}
    del tables, source  # which may be much larger
    train, valid, test = (stored[key](rows) for key, rows in (places[s] for s in SPLITS))
    lost = np.logical_and.reduce([np.isnan(b).all(axis=0) for b in mapped.blocks_of(train)])
    if lost.any() and not isinstance(schema, Schema):
        what = f"{of_column(found.names[int(np.argmax(lost))], where)} has no value in training"
        raise InputError(f"{what}: leave it out.")
    shape = (len(found.columns),)
    return Dataset(name, train, valid, test, "table", 1.0, shape, names=named, schema=found)


def _encoded(schema: Schema, table: Table, where: str) -> Callable[[np.ndarray], np.ndarray]:
    """Some rows of a table as a model sees them, float32 [m, d]; of a large one in a file."""
    shape, kind = (len(table), len(schema.columns)), np.dtype(np.float32)
    if not mapped.is_large(shape, kind):
        rows = schema.encode(table, where)
        return lambda at: rows[at]
    chosen = list(zip(schema.columns, schema.select(table, where).columns, strict=True))
    by_column = mapped.kept(
        shape[::-1], kind, lambda js: np.stack([c.encode(cells, where) for c, cells in chosen[js]])
    )
    of = lambda at: np.stack([mapped.gathered(column, at) for column in by_column], axis=1)
    return lambda at: mapped.kept((len(at), shape[1]), kind, lambda part: of(at[part]))


def schema_of(
    tables: Mapping[str, Table],
    places: Mapping[str, tuple[str, np.ndarray]],
    schema: Decisions | None,
    where: str,
    *,
    tolerant: bool = False,
) -> Detected:
    """The schema from the training rows, whose numbers fit its types in all rows."""
    key, rows = places["train"]
    others = [table for other, table in tables.items() if other != key]
    return detect(tables[key], schema, rows=rows, others=others, where=where, tolerant=tolerant)


def described(source: object, schema: Decisions | None, where: str) -> tuple[Detected, Table]:
    """The schema of a source, with reasons, and the table that training reads it from.

    Columns that no model can take are ignored.
    """
    tables, called = tables_of(source, where)
    tables = _aligned(tables, called)
    places = _places({key: len(table) for key, table in tables.items()}, where)
    found = schema_of(tables, places, schema, where, tolerant=True)
    return found, tables["train"]


def _aligned(tables: Mapping[str, Table], called: Mapping[str, str]) -> dict[str, Table]:
    """The tables with the columns of the training table, in its order."""
    names = tables["train"].names
    columns.check_named(
        {called[key]: t.names if t.named else () for key, t in tables.items()}, len(names)
    )
    found = {}
    for key, table in tables.items():
        given = table.names if table.named else ()
        if len(table.names) != len(names) and not given:
            what = f"{called[key]} has {len(table.names)} columns without names"
            raise InputError(f"{what}: give {len(names)}, as in training.")
        at = columns.order(given, names, len(names), called[key])
        picked = table.columns if at is None else tuple(table.columns[i] for i in at)
        found[key] = replace(table, names=names, columns=picked)
    return found


def _places(sizes: Mapping[str, int], where: str) -> dict[str, tuple[str, np.ndarray]]:
    """For each split, the table it is taken from and its rows in there.

    Training rows that lend a test split are permuted first, as in `arrays`.
    """
    found = {}
    for split, (key, part) in parts_of(sizes, where).items():
        rows = np.arange(sizes[key])
        if key == "train" and "test" not in sizes:
            rows = np.random.default_rng(0).permutation(sizes[key])
        found[split] = (key, rows[part])
    return found
