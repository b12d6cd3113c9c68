"""Libraries that the core does without: imported where used, or asked for by their extra."""

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
}
"""The extra that brings each library, where no other is named."""

NAMES = {
    "distributed": "Dask's distributed",
    "jinja2": "Jinja2",
    "markupsafe": "MarkupSafe",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
}
"""What a library is called, where that is not what is imported."""

COMMAND_LINE = ("rich", "tyro")
"""What the console script needs; the library does without."""


def require(module: str, *, purpose: str, extra: str | None = None) -> ModuleType:
    """The module, imported; `purpose` begins the sentence where its library is not installed.

    Args:
        module: the dotted name of what is imported.
        purpose: what it is needed for, such as "a picture".
        extra: the extra that brings the library; left out: that of `EXTRAS`.

    Raises:
        InputError: "A picture needs matplotlib, which is not installed; pip install
            'iwae[report]'." Where a library is installed, but lacks another, that error stays.
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
