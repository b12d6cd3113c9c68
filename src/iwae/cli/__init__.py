"""The command line: `iwae COMMAND`, one module for each group of commands."""

import sys

from iwae._utils.extras import COMMAND_LINE, missing


def main(argv: list[str] | None = None) -> None:
    """The console script: runs a command, and exits 0, 2 (unusable input) or 130 (interrupted)."""
    try:
        from iwae.cli import app

        app.main(argv)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in COMMAND_LINE:
            raise
        print(f"iwae: {missing(library, purpose='the command line')}", file=sys.stderr)
        raise SystemExit(2) from None
