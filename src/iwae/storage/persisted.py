"""JSON files: read with type validation, and sealed with digests.

A sealed entry carries a digest of its content and of what it belongs to, so that an entry that was
damaged, or copied from elsewhere, is rejected.
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
from typing import Annotated, Any, TypeGuard, TypeVar, cast, overload

from iwae.errors import InputError

T = TypeVar("T")

Unbounded = Annotated[float, "may be infinite or nan"]
"""A number that may be infinite or nan."""

Nullable = Annotated[float, "null where it is not finite"]
"""A number that is null in files if it is not finite, and is then read as nan."""

OF, SEAL = "of", "digest"
"""Fields of a sealed entry: the run or job it belongs to, and its digest."""

LARGEST = 2**53
"""Whole numbers up to here are exact as floats."""


class MistypedError(ValueError):
    """A value from a file has the wrong type; the message names the field."""


def damaged(path: Path, remedy: str, why: str = "") -> InputError:
    """The error for a file whose content is not what was written."""
    return InputError(f"{path} is damaged{f' ({why})' if why else ''}; {remedy}.")


def check_regular(path: Path) -> None:
    """`InputError` if `path` exists but is not a regular file, e.g. a directory or a pipe."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file; remove it, and restore the file.")


def content_of(path: Path) -> bytes:
    """All bytes of a file; `InputError` if it is not a file, or cannot be read."""
    check_regular(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def parsed(text: str | bytes) -> object:
    """Parse JSON; `MistypedError` if it is invalid or too deeply nested."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MistypedError("it is not JSON") from error


@overload
def typed(value: object, kind: type[T], name: str = "") -> T: ...
@overload
def typed(value: object, kind: object, name: str = "") -> Any: ...
def typed(value: object, kind: object, name: str = "") -> object:
    """Validate a value parsed from JSON, and convert it to `kind`.

    Kinds are type annotations: numbers, str, bool, None, lists, dicts with str keys, tuples (from
    lists), unions, `TypedDict` (unknown entries are kept) and dataclasses (unknown entries are
    rejected). A float must be finite unless it is `Unbounded`; an int is a count, from 0 to
    `LARGEST`. `object` accepts anything, and a `Nullable` reads null as nan. `MistypedError` names
    a field that does not fit.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of(value, inner, name)
    if origin is None or kind in (Unbounded, Nullable):
        return _single(value, kind, name)
    if origin is typing.Literal:
        _expect(value in inner, value, f"one of {', '.join(map(str, inner))}", name)
        return value
    if origin is list:
        return [typed(v, inner[0], f"{name}[{i}]") for i, v in enumerate(_list(value, name))]
    if origin is tuple:
        return _tuple(value, inner, name)
    if origin in (dict, Mapping):
        items = _table(value, name).items()
        return {key: typed(v, inner[1], _within(name, key)) for key, v in items}
    raise TypeError(f"{kind} is not supported in files")


def _single(value: object, kind: object, name: str) -> object:
    """`typed` for a plain type, or a class with fields."""
    if typing.is_typeddict(kind):
        return _typed_dict(value, kind, name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, name)
    if kind == Nullable:
        return math.nan if value is None else float(typed(value, Unbounded, name))
    if kind in (None, types.NoneType):
        _expect(value is None, value, "null", name)
    elif kind == Unbounded:
        _expect(_is_number(value), value, "a number", name)
    elif kind is float:
        finite = _is_number(value) and math.isfinite(value)
        _expect(finite, value, "a finite number", name)
    elif kind is int:
        fits = type(value) is int and 0 <= value <= LARGEST
        _expect(fits, value, "a count", name)
    elif kind in (str, bool):
        expected = "a string" if kind is str else "true or false"
        _expect(type(value) is kind, value, expected, name)
    else:
        raise TypeError(f"{kind} is not supported in files")
    return value


def known(value: object, kind: type, name: str = "") -> object:
    """A table without the entries that are not fields of a dataclass, which later versions may
    write."""
    fields = {field.name for field in dataclasses.fields(kind)}
    return {key: v for key, v in _table(value, name).items() if key in fields}


@functools.cache
def _hints(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind, include_extras=True)


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def _within(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _expect(fits: bool, value: object, expected: str, name: str) -> None:
    if not fits:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
        raise MistypedError(f"{name or 'it'} is {shown}, not {expected}")


def _list(value: object, name: str) -> list[object]:
    _expect(isinstance(value, list), value, "a list", name)
    return cast("list[object]", value)


def _table(value: object, name: str) -> dict[str, object]:
    _expect(isinstance(value, dict), value, "a table", name)
    return cast("dict[str, object]", value)


def _tuple(value: object, kinds: tuple[object, ...], name: str) -> tuple[object, ...]:
    values = _list(value, name)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    _expect(len(values) == len(kinds), value, f"a list of {len(kinds)}", name)
    pairs = enumerate(zip(values, kinds, strict=True))
    return tuple(typed(v, kind, f"{name}[{i}]") for i, (v, kind) in pairs)


def _one_of(value: object, kinds: tuple[object, ...], name: str) -> object:
    """`typed` as the first kind that fits, or the error of the first that is not None."""
    errors: list[MistypedError] = []
    for kind in sorted(kinds, key=lambda kind: kind is types.NoneType):
        try:
            return typed(value, kind, name)
        except MistypedError as error:
            errors.append(error)
    raise errors[0]


def _typed_dict(value: object, kind: Any, name: str) -> dict[str, object]:
    table, hints = _table(value, name), _hints(kind)
    for field in sorted(kind.__required_keys__ - table.keys()):
        raise MistypedError(f"it lacks {_within(name, field)}")
    fits = lambda key, v: typed(v, _plain(hints[key]), _within(name, key)) if key in hints else v
    return {key: fits(key, v) for key, v in table.items()}


def _plain(hint: object) -> object:
    """The kind inside `NotRequired`, or the hint itself."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.NotRequired else hint


def _dataclass(value: object, kind: type, name: str) -> object:
    table, hints = _table(value, name), _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise MistypedError(f"{_within(name, key)} is an unknown entry")
    for field in fields.values():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if not optional and field.name not in table:
            raise MistypedError(f"it lacks {_within(name, field.name)}")
    whole = {key: typed(v, hints[key], _within(name, key)) for key, v in table.items()}
    return kind(**{key: float(v) if hints[key] is float else v for key, v in whole.items()})


@overload
def finite(value: Mapping[str, object]) -> dict[str, Any]: ...
@overload
def finite(value: object) -> object: ...
def finite(value: object) -> object:
    """The value with None in place of numbers that are infinite or nan, for JSON."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(content: object, *of: str) -> str:
    """SHA-256 of a JSON value and of what it belongs to."""
    text = json.dumps([*of, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(entry: Mapping[str, object], of: str, *more: str) -> dict[str, object]:
    """The entry with the run or job it belongs to, and a digest of both and of `more`."""
    whole = {**entry, OF: of}
    return {**whole, SEAL: digest(whole, *more)}


def unsealed(entry: Mapping[str, object], *more: str) -> tuple[dict[str, object], str | None]:
    """The entry without its seal, and the run or job it belongs to.

    None for an entry of an early version, which has no seal. `MistypedError` if the digest does not
    match.
    """
    plain = {name: value for name, value in entry.items() if name not in (OF, SEAL)}
    if OF not in entry and SEAL not in entry:
        return plain, None
    whole = {name: value for name, value in entry.items() if name != SEAL}
    of = entry.get(OF)
    if entry.get(SEAL) != digest(whole, *more) or not isinstance(of, str):
        raise MistypedError("its digest does not match its content")
    return plain, of
