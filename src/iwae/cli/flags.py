"""From flags to a command's dataclass, and from what does not fit to one sentence."""

import contextlib
import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from iwae.errors import InputError, nearest

DataDir = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Header = Annotated[
    Literal["auto", "yes", "no"],
    tyro.conf.arg(help="Whether the first line of a .csv file holds names; auto asks if unsure."),
]
Seed = Annotated[int, tyro.conf.arg(help="Seed of the draws.")]
Overwrite = Annotated[bool, tyro.conf.arg(help="Replace an existing file.")]


@dataclass(frozen=True)
class Hosts:
    """Machines that run one command together."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT|auto")] = None
    """Where the first of several machines that run this command listens; auto on a cluster that
    says so itself (SLURM, Kubernetes, Open MPI)."""
    hosts: int = 1
    """How many machines there are."""
    host: int = 0
    """Which of them this one is, from 0."""

    def join(self) -> bool:
        """Come together, if there are several; whether this one is the first, which prints."""
        if self.coordinator is None:
            if (self.hosts, self.host) != (1, 0):
                raise InputError(
                    f"hosts = {self.hosts} and host = {self.host} were given, but not where the "
                    f"first of them listens; give --coordinator HOST:PORT."
                )
            return True
        from iwae._utils import distributed

        distributed.join(self.coordinator, self.hosts, self.host)
        return distributed.is_first()


ALONE = Hosts()
"""This machine alone."""

SHORT = {
    "--lr": "--learning-rate",
    "--batch": "--batch-size",
    "--loss": "--objective",
    "--samples": "--k",
    "--data": "--dataset",
    "--output": "--out",
}
"""What is often typed for a flag that difflib would not come upon."""


def parse(command: type, arguments: list[str], *, prog: str, default: Any = None) -> Any:
    """An instance of the dataclass `command`; `InputError` if the arguments do not make one.

    `default` is an instance whose fields the flags replace.
    """
    with _widths(), _refusing(_options(command)):
        return tyro.cli(
            command,
            args=arguments,
            prog=prog,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            default=tyro.MISSING_NONPROP if default is None else default,
        )


def _widths() -> tyro.constructors.ConstructorRegistry:
    """Widths as text: 200,200/100,100 for hidden layers and 100,50 for latents."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def widths(info: Any) -> Any:
        if info.type not in (tuple[int, ...], tuple[tuple[int, ...], ...]):
            return None
        nested = get_args(info.type)[0] is not int
        row: Callable[[str], tuple[int, ...]] = lambda t: tuple(int(n) for n in t.split(",") if n)
        text: Callable[[Any], str] = lambda t: ",".join(map(str, t))
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="N,N/N,N" if nested else "N,N",
            instance_from_str=lambda args: (
                tuple(row(part) for part in args[0].split("/")) if nested else row(args[0])
            ),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda v: ["/".join(map(text, v)) if nested else text(v)],
        )

    return registry


def _options(kind: Any) -> list[str]:
    """The flags of a dataclass, those of the dataclasses in it too."""
    hints = get_type_hints(kind)
    options: list[str] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        own = [f"--{field.name.replace('_', '-')}"]
        options += _options(hint) if dataclasses.is_dataclass(hint) else own
    return options


def _refusing(options: list[str]) -> contextlib.AbstractContextManager[None]:
    """Within it, what tyro cannot parse is an `InputError` and not a box on the terminal.

    tyro calls the hook for it unstable: where a later version lacks it, the box stays.
    """
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return contextlib.nullcontext()

    def refuse(event: Any) -> None:
        raise InputError(_sentence(event, options))

    return on_parse_error(refuse)


def _sentence(event: Any, options: list[str]) -> str:
    """What is wrong, in one sentence."""
    explained = f"`{event.prog} --help` lists what it takes"
    match type(event).__name__:
        case "UnrecognizedArgs":
            return _unknown(event.tokens[0], event.prog, options)
        case "MissingArgs" if event.unrecognized_tokens:
            return _unknown(event.unrecognized_tokens[0], event.prog, options)
        case "MissingArgs":
            missing = [context.arg.get_invocation_text()[1] for context in event.missing_arguments]
            return f"{event.prog} needs {' and '.join(map(str, missing))}; {explained}."
        case "InvalidChoice":
            flag, choices = event.argument.display_name(), list(event.choices)
            given = f"{flag} {event.value} was given, which is not a choice"
            return f"{given}; {nearest(event.value, choices)}."
        case "BadValue":
            return f"{event.argument.display_name()} was given without a value; {explained}."
        case "InstantiationFailure" if event.argument is None:
            return str(event.message)
        case "InstantiationFailure":
            flag = event.argument.display_name()
            expected = str(event.argument.lowered.metavar).removeprefix("{None}|")
            given = event.message.rsplit(": ", 1)[-1]
            return f"{flag} takes {expected}, not {given}; {explained}."
    return f"{event.prog} cannot read its arguments; {explained}."


def _unknown(token: str, prog: str, options: list[str]) -> str:
    near = [o for o in options if o == SHORT.get(token)]
    near = near or difflib.get_close_matches(token, options, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{prog} does not take {token}; {meant}`{prog} --help` lists what it takes."
