"""The command line: `iwae COMMAND`, one module for each group of commands."""

import importlib
import sys

from iwae._utils.extras import COMMAND_LINE, missing

try:
    for library in COMMAND_LINE:
        importlib.import_module(library)
    from iwae.cli.app import main as main
except ModuleNotFoundError as error:
    if error.name not in COMMAND_LINE:
        raise
    MESSAGE = f"iwae: {missing(error.name, purpose='the command line')}"

    def main(argv: list[str] | None = None) -> None:
        """Print what is not installed, and exit 2."""
        print(MESSAGE, file=sys.stderr)
        raise SystemExit(2)
