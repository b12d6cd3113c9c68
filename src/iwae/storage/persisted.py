"""What is kept in files of JSON: read as the type it has, or refused by the file's name.

A sealed entry carries a digest of its content and of what it belongs to, so that one which is
damaged, or was copied from elsewhere, is not taken for what it says.
"""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NewType

from iwae.errors import InputError

Unbounded = NewType("Unbounded", float)
"""A number that may be infinite or nan."""

OF, SEAL = "of", "digest"
"""Fields of a sealed entry: the run or cell that it is of, and its digest."""

LARGEST = 2**53
"""Whole numbers up to here are numbers of a float as well."""


class MistypedError(ValueError):
    """A value from a file is not of its type; the message names the field."""


def damaged(path: Path, remedy: str, why: str = "") -> InputError:
    """The sentence for a file that does not hold what was written to it."""
    return InputError(f"{path} is damaged{f' ({why})' if why else ''}; {remedy}.")


def check_regular(path: Path) -> None:
    """`InputError` if there is something at `path` which is no file, as a pipe, that waits for a
    writer, or a folder."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; take it away, and put the file back.")


def content_of(path: Path) -> bytes:
    """All bytes of a file; `InputError` if it is none, or cannot be read."""
    check_regular(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def parsed(text: str | bytes) -> Any:
    """The content of JSON; `MistypedError` if it is none, at any depth."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MistypedError("it is not JSON") from error


def read(path: Path, kind: Any, remedy: str) -> Any:
    """What a file of JSON holds, as `kind` (see `typed`); `InputError` if it is damaged."""
    try:
        return typed(parsed(content_of(path)), kind)
    except MistypedError as error:
        raise damaged(path, remedy) from error


def typed(value: Any, kind: Any, name: str = "") -> Any:
    """`value`, as JSON gives it, as `kind`; `MistypedError` names the field that does not fit.

    Kinds are those of annotations: numbers, texts, None, lists, dicts by text, tuples (of lists),
    unions, `TypedDict` (a dict, in which further entries stay) and dataclasses (made of a dict,
    which has no further entries). A float is finite unless it is `Unbounded`; an int counts
    something, so it is not negative, and not larger than `LARGEST`.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of(value, inner, name)
    if kind in (None, types.NoneType):
        return _expect(value is None, value, "null", name)
    if kind is Unbounded:
        return _expect(_is_number(value), value, "a number", name)
    if kind is float:
        finite = _is_number(value) and math.isfinite(value)
        return _expect(finite, value, "a finite number", name)
    if kind is int:
        fits = type(value) is int and 0 <= value <= LARGEST
        return _expect(fits, value, "a whole number that counts", name)
    if kind in (str, bool):
        words = {str: "a text", bool: "true or false"}
        return _expect(type(value) is kind, value, words[kind], name)
    if origin is typing.Literal:
        return _expect(value in inner, value, f"one of {', '.join(map(str, inner))}", name)
    if origin is list:
        return [typed(v, inner[0], f"{name}[{i}]") for i, v in enumerate(_list(value, name))]
    if origin is tuple:
        return _tuple(value, inner, name)
    if origin in (dict, Mapping):
        items = _table(value, name).items()
        return {key: typed(v, inner[1], _within(name, key)) for key, v in items}
    if typing.is_typeddict(kind):
        return _typed_dict(value, kind, name)
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, name)
    raise TypeError(f"{kind} is no type of what is kept in files")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def _within(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _expect(fits: bool, value: Any, expected: str, name: str) -> Any:
    if fits:
        return value
    shown = json.dumps(value)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
    raise MistypedError(f"{name or 'it'} is {shown}, not {expected}")


def _list(value: Any, name: str) -> list[Any]:
    return _expect(isinstance(value, list), value, "a list", name)


def _table(value: Any, name: str) -> dict[str, Any]:
    return _expect(isinstance(value, dict), value, "a table", name)


def _tuple(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    values = _list(value, name)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    _expect(len(values) == len(kinds), value, f"a list of {len(kinds)}", name)
    pairs = enumerate(zip(values, kinds, strict=True))
    return tuple(typed(v, kind, f"{name}[{i}]") for i, (v, kind) in pairs)


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    """As the first of the kinds that it fits; what is said is of the first that takes values."""
    errors: list[MistypedError] = []
    for kind in sorted(kinds, key=lambda kind: kind is types.NoneType):
        try:
            return typed(value, kind, name)
        except MistypedError as error:
            errors.append(error)
    raise errors[0]


def _typed_dict(value: Any, kind: Any, name: str) -> dict[str, Any]:
    table, hints = _table(value, name), _hints(kind)
    for field in sorted(kind.__required_keys__ - table.keys()):
        raise MistypedError(f"it lacks {_within(name, field)}")
    fits = lambda key, v: typed(v, hints[key], _within(name, key)) if key in hints else v
    return {key: fits(key, v) for key, v in table.items()}


def _dataclass(value: Any, kind: Any, name: str) -> Any:
    table, hints = _table(value, name), _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise MistypedError(f"{_within(name, key)} is an entry that is not known")
    for field in fields.values():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if not optional and field.name not in table:
            raise MistypedError(f"it lacks {_within(name, field.name)}")
    whole = {key: typed(v, hints[key], _within(name, key)) for key, v in table.items()}
    return kind(**{key: float(v) if hints[key] is float else v for key, v in whole.items()})


def finite(value: Any) -> Any:
    """What JSON can hold: the same with None for numbers that are infinite or nan."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(content: Any, *of: str) -> str:
    """SHA-256 of what JSON can hold, and of what it belongs to."""
    text = json.dumps([*of, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(entry: Mapping[str, Any], of: str, *more: str) -> dict[str, Any]:
    """The entry with what it is of, and a digest of both, and of what `more` it belongs to."""
    whole = {**entry, OF: of}
    return {**whole, SEAL: digest(whole, *more)}


def unsealed(entry: Mapping[str, Any], *more: str) -> tuple[dict[str, Any], str | None]:
    """The entry without its seal, and what it says that it is of: None in those of early versions,
    which have none.

    `MistypedError` if the digest is another.
    """
    plain = {name: value for name, value in entry.items() if name not in (OF, SEAL)}
    if OF not in entry and SEAL not in entry:
        return plain, None
    whole = {name: value for name, value in entry.items() if name != SEAL}
    if entry.get(SEAL) != digest(whole, *more) or not isinstance(entry.get(OF), str):
        raise MistypedError("its digest is not that of its content")
    return plain, entry[OF]
