"""Read configurations from recipes and TOML files; replace and compare settings by name."""

import contextlib
import dataclasses
import functools
import sys
import tomllib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from iwae._utils.checks import require
from iwae.config.schema import RunConfig, Stage
from iwae.errors import InputError, nearest

STAGES = "stages"
"""The field of a configuration that is a list of tables."""


def flatten(config: Any) -> dict[str, Any]:
    """All leaf fields of a configuration by their own name, and its stages as a text.

    Names are unique across sections.
    """
    leaves: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value)
        else:
            leaves[f.name] = text_of(value) if f.name == STAGES else value
    return leaves


def differences(config: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """(name, value in `config`, value in `other`) of every field in which the two differ."""
    mine, theirs = flatten(config), flatten(other)
    return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


def override(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration with leaf fields replaced by name, e.g. `override(c, k=5, epochs=10)`."""
    known = list(flatten(config))
    for name in changes:
        require(
            name != "recipe",
            "recipe is not a setting; give iwae.config.io.recipe(name) as the configuration.",
        )
        require(name in known, f"There is no setting {name!r}; {nearest(name, known)}.")
    return _override(config, changes)


def _override(config: Any, changes: dict[str, Any]) -> Any:
    replaced: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            replaced[f.name] = _override(value, changes)
        elif f.name in changes:
            replaced[f.name] = _coerce(changes[f.name], _type_of(type(config), f.name), f.name)
    return dataclasses.replace(config, **replaced)


def recipe(name: str | Path) -> RunConfig:
    """The configuration of a built-in recipe, by name, or of a TOML file.

    Raises `InputError` for an unknown name, and for a file that `parse` rejects.
    """
    if str(name).endswith(".toml"):
        return read(Path(name))
    names = recipe_names()
    require(
        str(name) in names,
        f"There is no recipe {str(name)!r}; {nearest(str(name), names)}, or give a .toml file.",
    )
    text = resources.files("iwae.config").joinpath("presets", f"{name}.toml").read_text("utf-8")
    return parse(text, f"recipe {name}")


def recipe_names() -> list[str]:
    folder = resources.files("iwae.config").joinpath("presets")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith("toml"))


def read(path: Path) -> RunConfig:
    """The configuration in a TOML file; `InputError` if it is missing or cannot be read."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a TOML file; `InputError` if it is missing, not a file, or not UTF-8."""
    require(
        path.is_file() or not path.exists(),
        f"The configuration {path} cannot be read: it is not a file.",
    )
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"The configuration {path} cannot be read: {reason}.") from error


def parse(text: str, where: str) -> RunConfig:
    """Parse TOML into a `RunConfig`; `InputError` names `where` and the invalid field."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not valid TOML: {error}.") from error
    return _build(RunConfig, table, where)


def stages_of(text: str) -> tuple[Stage, ...]:
    """Stages from a text such as "3 k=1 objective=vae / 1": each its share, then settings.

    `InputError` for a text of another form.
    """
    parts = text.split("/") if text.strip() else []
    return tuple(_stage(part, number) for number, part in enumerate(parts, 1))


def _stage(text: str, number: int) -> Stage:
    share, *settings = text.split() or [""]
    where = f"Stage {number} of --stages"
    require(
        all("=" in setting for setting in settings) and "=" not in share,
        f"{where} is {text.strip()!r}, but it must be its share and settings such as k=1, with "
        f"spaces between: 3 k=1 objective=vae / 1.",
    )
    table: dict[str, str] = {"share": share}
    for name, value in (setting.split("=", 1) for setting in settings):
        require(name not in table, f"{where} is {text.strip()!r}, which gives {name} twice.")
        table[name] = value
    return _build(Stage, {name: _number(value) for name, value in table.items()}, where)


def _number(text: str) -> int | float | str:
    """A word as the number that it is, if it is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def text_of(stages: tuple[Stage, ...]) -> str:
    """The text from which `stages_of` reads these stages."""
    return " / ".join(stage.text for stage in stages)


def _build(cls: type, table: dict[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    for name in table:
        require(
            name in known,
            f"{where} has an unknown entry {name!r}; {nearest(name, sorted(known))}.",
        )
    values: dict[str, Any] = {}
    for name, value in table.items():
        kind = _type_of(cls, name)
        if dataclasses.is_dataclass(kind):
            require(
                isinstance(value, dict),
                f"{where} gives {name} = {value!r}, but [{name}] must be a table.",
            )
            values[name] = _build(typing.cast(type, kind), value, f"{where}, [{name}]")
        else:
            values[name] = _coerce(value, kind, f"{where}: {name}")
    return cls(**values)


def _type_of(cls: type, name: str) -> Any:
    return _types(cls)[name]


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind`, or `InputError`.

    Converts lists to tuples, whole numbers to floats where these are expected, and NumPy scalars
    to Python's.
    """
    numpy = sys.modules.get("numpy")  # which a number of numpy has imported
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in typing.get_args(kind) if a is not types.NoneType)
        return None if value is None else _coerce(value, inner, name)
    if origin is Literal:
        choices = list(typing.get_args(kind))
        require(
            value in choices,
            f"{name} = {value!r} was given, which is not a choice; {nearest(str(value), choices)}.",
        )
        return value
    if kind == tuple[Stage, ...]:
        return _as_stages(value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(v, typing.get_args(kind)[0], name) for v in value)
    if kind is float and type(value) is int:
        return float(value)
    require(
        origin is not tuple and type(value) is kind,
        f"{name} = {value!r} was given, but it must be {_described(kind)}.",
    )
    return value


def _as_stages(value: Any, name: str) -> tuple[Stage, ...]:
    """Stages from a text, or from a list of tables or of stages."""
    if isinstance(value, str):
        return stages_of(value)
    require(
        isinstance(value, list | tuple) and all(isinstance(v, dict | Stage) for v in value),
        f"{name} = {value!r} was given, but it must be [[stages]] tables, or a text such as "
        f"'3 k=1 objective=vae / 1'.",
    )
    each = enumerate(value, 1)
    return tuple(_build(Stage, v, f"{name}, {i}") if isinstance(v, dict) else v for i, v in each)


def _described(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a string"}
    return words.get(kind, "a list of whole numbers (one list for each stochastic layer)")
