"""The entry point: parses arguments, runs a command, and reports errors.

JAX is imported by the command that needs it, so that `iwae --help` answers at once.
"""

import os
import sys
from typing import NoReturn, Protocol

import iwae
from iwae.cli import configured, flags
from iwae.cli.applied import Anomalies, Encode, Impute, Reconstruct, Sample, Score
from iwae.cli.everyday import Data, Demo, Evaluate, Report, Train
from iwae.cli.flags import ALONE
from iwae.cli.outputs import StandardError
from iwae.cli.published import Reproduce
from iwae.cli.research import Compare, Gradients, Posterior
from iwae.cli.terminal import speak_plainly, visible
from iwae.config.io import recipe_names
from iwae.errors import (
    TOO_LARGE,
    InputError,
    Interrupted,
    TableWarning,
    nearest,
    unusable,
)


class Command(Protocol):
    """A dataclass of flags that can be run."""

    def run(self) -> None: ...


EVERYDAY = (
    Train,
    Evaluate,
    Sample,
    Reconstruct,
    Encode,
    Score,
    Impute,
    Anomalies,
    Report,
    Data,
    Demo,
)
COMMANDS: dict[str, type[Command]] = {
    c.__name__.lower(): c for c in (*EVERYDAY, Gradients, Posterior, Compare, Reproduce)
}
CONFIGURED = {"train": Train, "compare": Compare, "reproduce": Reproduce}
"""Commands that take every setting of a run."""


def main(argv: list[str] | None = None) -> None:
    """Run a command; exit with 0, 2 (unusable input) or 130 (interrupted)."""
    arguments = sys.argv[1:] if argv is None else argv
    speak_plainly()
    command: Command | None = None
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
        elif arguments[0] == "--version":
            print(f"iwae {iwae.__version__}")
        else:
            command = parse(arguments[0], arguments[1:])
            with flags.noting(TableWarning):
                command.run()
    except (InputError, MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        message = _message(error, command)
        if message is None:
            raise
        _exit(message, 2)
    except KeyboardInterrupt:
        _exit("Interrupted.", 130)
    except Interrupted as error:
        _exit(str(error), 130)


def parse(name: str, arguments: list[str]) -> Command:
    """Parse the arguments of the command `name`; print its help and exit if they ask for it.

    `InputError` if there is no such command or its arguments are invalid.
    """
    if name not in COMMANDS:
        raise InputError(f"There is no command {name!r}; {nearest(name, list(COMMANDS))}.")
    if name in CONFIGURED:
        return configured.parse(CONFIGURED[name], arguments, prog=f"iwae {name}")
    return flags.parse(COMMANDS[name], arguments, prog=f"iwae {name}")


def _message(error: Exception, command: Command | None) -> str | None:
    """The message for an error; None for a bug, which is raised as it is."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return TOO_LARGE
    if isinstance(error, OSError):
        return unusable(error)
    together = command.together if isinstance(command, Train | Evaluate) else ALONE
    if type(error).__name__ == "JaxRuntimeError" and together.coordinator is not None:
        return f"Another process has stopped, and training needs all of them ({error})."
    return None


def _overview() -> str:
    lines = [f"  {name:12s} {c.__doc__.splitlines()[0]}" for name, c in COMMANDS.items()]  # type: ignore[union-attr]
    return "\n".join(
        [
            "usage: iwae COMMAND [OPTIONS]",
            "",
            "Importance weighted autoencoders: train, evaluate, sample, encode, score, report.",
            "",
            *lines,
            "",
            f"Recipes: {', '.join(recipe_names())}. Options: iwae COMMAND --help.",
        ]
    )


def _exit(message: str, code: int) -> NoReturn:
    print(f"iwae: {visible(message)}", file=StandardError())
    raise SystemExit(code)
