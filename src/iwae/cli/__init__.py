"""The command line: `iwae COMMAND`, one module for each group of commands."""

from iwae.cli.app import main as main
