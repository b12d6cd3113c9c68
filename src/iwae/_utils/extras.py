"""Optional libraries: imported where they are used, with a message that names their extra."""

import importlib
from types import ModuleType

from iwae.errors import InputError

EXTRAS = {
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "report",
    "PIL": "report",
    "pooch": "data",
    "sklearn": "data",
    "distributed": "cluster",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "narwhals": "tables",
    "pyarrow": "tables",
}
"""The extra that installs each library, unless a caller names another."""

NAMES = {
    "distributed": "Dask's distributed",
    "jinja2": "Jinja2",
    "markupsafe": "MarkupSafe",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
}
"""The names of libraries that differ from their modules."""

COMMAND_LINE = ("rich", "tyro")
"""Libraries that only the command line needs."""


def require(module: str, *, purpose: str, extra: str | None = None) -> ModuleType:
    """Import an optional module.

    Args:
        module: its dotted name.
        purpose: what it is needed for, such as "a picture"; begins the message.
        extra: the extra that installs the library. Default: that in `EXTRAS`.

    Raises:
        InputError: "A picture needs matplotlib, which is not installed; pip install
            'iwae[report]'." If the library is installed but lacks another, the import error is
            raised unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != library:
            raise
        message = missing(library, purpose=purpose, extra=extra)
    raise InputError(message)


def missing(library: str, *, purpose: str, extra: str | None = None) -> str:
    """The message for a library that is not installed."""
    extra = extra or EXTRAS.get(library)
    package = f"'iwae[{extra}]'" if extra else "iwae"
    name = NAMES.get(library, library)
    return (
        f"{purpose[:1].upper()}{purpose[1:]} needs {name}, which is not installed; "
        f"pip install {package}."
    )
