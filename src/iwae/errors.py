"""Exceptions that end a command early, and helpers for their messages."""


class InputError(ValueError):
    """Raised at the public edges for input that cannot be used.

    The message says what was given, what was expected and what to do next. The command line prints
    it and exits with code 2.
    """


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C or SIGTERM, after the run was saved; the message says how to resume."""


class TableWarning(UserWarning):
    """A value of a table that a model cannot take as it is."""


class UnknownCategoryWarning(TableWarning):
    """A category of a table that training lacked is taken for a missing value."""


class OutsideSupportWarning(TableWarning):
    """A number of a table lies where its column's type has a density of 0."""


TOO_LARGE = (
    "This needs more memory than there is; give a smaller --k, --n, --batch-size or --memory."
)


def unusable(error: OSError) -> str:
    """The message for a file that the operating system cannot open, read or write."""
    return f"{error.filename or 'A file'} could not be used: {error.strerror or error}."


def within(where: str) -> str:
    """What a message calls the user's data, such as "The table", within a sentence."""
    return "the" + where[3:] if where.startswith("The ") else where


def nearest(name: str, known: list[str]) -> str:
    """The part of a message that suggests the closest of `known`; a short list is given in full."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = ", ".join(sorted(known))
    if match and len(known) > 15:
        return f"the nearest is {match[0]!r}"
    return f"did you mean {match[0]!r}? Known are {listed}" if match else f"known are {listed}"
