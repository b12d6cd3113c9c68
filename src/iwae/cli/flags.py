"""Parse flags into a command's dataclass, and turn parsing errors into one message."""

import contextlib
import dataclasses
import difflib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar, get_type_hints, is_typeddict

import tyro

from iwae.cli.outputs import StandardError
from iwae.cli.terminal import visible
from iwae.errors import InputError, nearest

DataDir = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Header = Annotated[
    Literal["auto", "yes", "no"],
    tyro.conf.arg(
        help="Whether the first line of a .csv file holds names; auto rejects unclear cases."
    ),
]
Seed = Annotated[int, tyro.conf.arg(help="Seed of the draws.")]
Overwrite = Annotated[bool, tyro.conf.arg(help="Replace an existing file.")]


@dataclass(frozen=True)
class Processes:
    """Processes that run one command together, usually one on each machine."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT|auto")] = None
    """Address at which the first of several processes listens; auto on clusters that provide it
    (SLURM, Kubernetes, Open MPI)."""
    processes: int = 1
    """Number of processes."""
    process: int = 0
    """Index of this process, from 0."""
    hosts: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Former name of --processes."""
    host: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Former name of --process."""

    def join(self) -> bool:
        """Connect the processes, if there are several; return whether this is the first, which
        prints."""
        if self.hosts is not None:
            note_former("--hosts", "--processes")
        if self.host is not None:
            note_former("--host", "--process")
        processes = self.processes if self.hosts is None else self.hosts
        process = self.process if self.host is None else self.host
        if self.coordinator is None:
            if (processes, process) != (1, 0):
                raise InputError(
                    f"processes = {processes} and process = {process} were given, but not the "
                    f"address at which the first process listens; give --coordinator HOST:PORT."
                )
            return True
        from iwae._utils import distributed

        distributed.join(self.coordinator, processes, process)
        return distributed.is_first()


ALONE = Processes()
"""A single process."""


def note(message: str) -> None:
    """Print a note on standard error."""
    print(visible(f"Note: {message}"), file=StandardError())


@contextlib.contextmanager
def noting(noted: type[Warning]) -> Iterator[None]:
    """Context in which warnings of this category are printed as notes, each of them."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, noted):
            note(str(message))
        else:
            shown(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", noted)
        warnings.showwarning = show
        yield


def note_former(flag: str, present: str) -> None:
    """Print a note that a flag was renamed."""
    note(f"{flag} was renamed to {present}; the former name will be removed in the next version.")


SHORT = {
    "--lr": "--learning-rate",
    "--batch": "--batch-size",
    "--loss": "--objective",
    "--samples": "--k",
    "--data": "--dataset",
    "--output": "--out",
}
"""Common other names of flags, which difflib would not match."""


T = TypeVar("T")


def parse(command: type[T], arguments: list[str], *, prog: str, default: T | None = None) -> T:
    """Parse arguments into the dataclass `command`; `InputError` if they are invalid.

    `default` is an instance whose fields the flags replace.
    """
    with _widths(), _one_message(_options(command)):
        return tyro.cli(
            command,
            args=arguments,
            prog=prog,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            default=tyro.MISSING_NONPROP if default is None else default,
        )


def _widths() -> tyro.constructors.ConstructorRegistry:
    """Read numbers from text: 200,200/100,100 for hidden layers and 100,50 for latents."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def widths(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec | None:
        kinds = (tuple[int, ...], tuple[float, ...], tuple[tuple[int, ...], ...])
        if info.type not in kinds:
            return None
        nested, number = info.type == kinds[-1], float if info.type == kinds[1] else int
        row: Callable[[str], tuple[float, ...]] = lambda t: tuple(
            map(number, filter(None, t.split(",")))
        )
        text: Callable[[tuple[float, ...]], str] = lambda t: ",".join(map(str, t))
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


def _options(kind: type) -> list[str]:
    """The flags of a dataclass or `TypedDict`, including those of nested ones."""
    options: list[str] = []
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) or is_typeddict(hint):
            options += _options(hint)
        else:
            options.append(f"--{name.replace('_', '-')}")
    return options


def _one_message(options: list[str]) -> contextlib.AbstractContextManager[None]:
    """A context in which tyro's parsing errors raise `InputError` instead of printing a box.

    tyro's hook for this is not public; if a later version lacks it, the box is printed.
    """
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return contextlib.nullcontext()

    def fail(event: Any) -> None:
        raise InputError(_message(event, options))

    return on_parse_error(fail)


def _message(event: Any, options: list[str]) -> str:
    """One message for a parsing error: what was given and what is accepted."""
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
