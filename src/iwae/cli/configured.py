"""Commands that take every setting of a run and start from a recipe or a run.

All flags are parsed once. Settings that were not given keep the value of the recipe or run to start
from, which other flags choose.
"""

import argparse
import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypedDict, TypeVar, get_type_hints

import tyro

from iwae.cli import flags
from iwae.config.io import override, recipe, text_of
from iwae.config.schema import RunConfig


@dataclass(frozen=True)
class Asked:
    """The flags that decide which settings a command starts from."""

    recipe: str | None = None
    out: Path | None = None
    resume: bool = False
    name: str | None = None


TRAINED_OTHERWISE = "--k is the K of the evaluation; --train-k is that of the models."
"""The note of commands whose --k was the K of training in the version before."""


class Configured(Protocol):
    """A command with settings."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    def __init__(
        self, *, config: RunConfig, given: frozenset[str] = frozenset(), **values: Any
    ) -> None:
        """`given` holds the names of the settings that flags gave."""

    def run(self) -> None: ...

    @classmethod
    def start(cls, asked: Asked) -> RunConfig:
        """The settings to start from, which flags replace."""


C = TypeVar("C", bound=Configured)

STAGES = Annotated[str, tyro.conf.arg(metavar="'SHARE NAME=VALUE … / …'")]
"""Stages of the training, which the command line takes as a text."""

TRAINED_K = "train_k"
"""The name of the K of training in commands whose `k` is that of the evaluation."""


def parse(command: type[C], arguments: list[str], *, prog: str) -> C:
    """Parse the arguments of a command; `InputError` if they are invalid.

    With --help, print the settings with the values that the command starts from, and exit.
    """
    asked, wants_help = _parse_start(arguments)
    if wants_help:
        start = command.start(asked)
        form = _form(command, documented=True)
        shown = {f.name: tyro.MISSING for f in dataclasses.fields(form) if _is_required(f)}
        shown["config"] = _nested(start, _names(command))
        flags.parse(form, ["--help"], prog=prog, default=form(**shown))
    form = flags.parse(_form(command), arguments, prog=prog)
    values = {f.name: getattr(form, f.name) for f in dataclasses.fields(form)}
    given = _leaves(values.pop("config"), {v: k for k, v in _names(command).items()})
    start = command.start(Asked(**{n: v for n, v in values.items() if n in _ASKED}))
    if values.get("draws") is not None:
        flags.note_former("--draws", "--k, and the K of training to --train-k")
        given |= {} if values["k"] is None else {"k": values["k"]}
        values |= {"k": values["draws"], "draws": None}
    return command(config=override(start, **given), given=frozenset(given), **values)


_ASKED = tuple(field.name for field in dataclasses.fields(Asked))


def start_of(name: str | None, otherwise: str | None = None) -> RunConfig:
    """The recipe of that name, else of `otherwise`, else the defaults."""
    name = name or otherwise
    return RunConfig() if name is None else recipe(name)


def _parse_start(arguments: list[str]) -> tuple[Asked, bool]:
    """The flags that help depends on, and whether help is asked for."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--recipe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("name", nargs="?")
    try:
        found, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # the full parse reports it better
        return Asked(), False
    return Asked(found.recipe, found.out, found.resume, found.name), found.help


def _names(command: type[Configured]) -> dict[str, str]:
    """Settings whose flag has another name in this command."""
    return {"k": TRAINED_K} if "k" in command.__dataclass_fields__ else {}


def _form(command: type[Configured], *, documented: bool = False) -> type:
    """The command's fields, with every setting optional."""
    hints = get_type_hints(command, include_extras=True)
    docs = _docs(command) if documented else {}
    hints["config"] = _settings(RunConfig, _names(command), documented=documented)
    return dataclasses.make_dataclass(
        command.__name__,
        [
            (f.name, _described(hints[f.name], docs.get(f.name)), _default(f))
            for f in dataclasses.fields(command)
            if f.name != "given"
        ],
        frozen=True,
        namespace={"__doc__": command.__doc__},
    )


def _default(field: dataclasses.Field) -> dataclasses.Field:
    return dataclasses.field(default=field.default)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING


def _settings(section: type, names: Mapping[str, str], *, documented: bool) -> type:
    """A section of the configuration as a `TypedDict`, whose fields may be left out."""
    hints = get_type_hints(section, include_extras=True)
    docs = _docs(section) if documented else {}
    entries: dict[str, object] = {}
    for f in dataclasses.fields(section):
        hint = hints[f.name]
        entries[names.get(f.name, f.name)] = (
            _settings(hint, names, documented=documented)
            if isinstance(hint, type) and dataclasses.is_dataclass(hint)
            else _described(STAGES if f.name == "stages" else hint, docs.get(f.name))
        )
    form: type = TypedDict(section.__name__, entries, total=documented)  # type: ignore[misc]
    form.__doc__ = section.__doc__
    return form


def _described(hint: object, doc: str | None) -> object:
    return hint if doc is None else Annotated[hint, tyro.conf.arg(help=doc)]


def _docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, by the field's name."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(ast.Constant(str(doc))):
                    docs[field.target.id] = inspect.cleandoc(doc)
    return docs


def _nested(config: object, names: Mapping[str, str]) -> dict[str, object]:
    """A configuration as nested dictionaries, under the names of the flags."""
    values = dict(vars(config))
    if "stages" in values:
        values["stages"] = text_of(values["stages"])
    return {
        names.get(n, n): _nested(v, names) if dataclasses.is_dataclass(v) else v
        for n, v in values.items()
    }


def _leaves(given: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The values of nested dictionaries, under the settings' own names."""
    leaves: dict[str, object] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, names)
        else:
            leaves[names.get(name, name)] = value
    return leaves
