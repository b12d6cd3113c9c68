"""`python -m benchmarks.search`: docs/fast.md, the search of a faster recipe.

From the records in `results/search`, which `iwae compare recipes --record` and
`python -m benchmarks.optimizers` wrote.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import section
from benchmarks.page import curve_of
from iwae.config.io import differences
from iwae.config.schema import RunConfig
from iwae.training.parts import OF_OPTIMIZERS

FOLDER = Path("results/search")
PAGE = Path("docs/fast.md")

TITLES = {
    "vae-screen": "VAE, one layer: optimiser",
    "vae-minutes": "VAE, one layer: whole trainings",
    "moments": "VAE, one layer: how often L and R follow the gradient",
    "averages": "VAE, one layer: the schedule, and averages of the weights",
    "optimizers": "VAE, one layer: SOAP beside the optimisers of optax",
    "stages": "IWAE-50, one layer: what to spend the time on",
    "iwae-50": "IWAE-50, one layer: whole trainings",
    "width": "VAE by the width of its hidden layers, at a constant rate",
    "width-50": "IWAE-50 by `fast` in 12 epochs, by the width of its hidden layers",
}
"""What each record compares, by its name."""

HEAD = """\
# The search of a faster recipe

On the 400 images of MNIST's validation split, which no model was trained on; the test split had
no part in it. Candidates are compared by −L_K of the same images with the same draws, so that their
differences are known better than the standard errors, which are of single values, say. Minutes
are those of training on a CPU that is shared with others, and rough. The trainings on this page
took {hours:.1f} hours.

`iwae compare recipes --recipes A.toml,B.toml --record FILE.json` made the records, that of optax's
optimisers `python -m benchmarks.optimizers`, and `python -m benchmarks.search` this page of them. A
record holds all settings of its recipes.

The recipes `fast-vae` and `fast` were made by these tables: 130 epochs of the VAE, ten fewer than
here for the sake of time, and 150, 180 and 25 epochs of three stages, between the whole trainings
of IWAE-50 with 340 and 378 epochs. SOAP's moments follow every gradient, and spikes are left out,
because of trainings with two layers ([training.md](training.md)). What they reach on the test split
is in [results.md](results.md).

No average of the weights improved on the cosine schedule. Of optax's optimisers Muon came as far in
30 epochs as SOAP in 20, which took less time; the others remained behind. One seed each, at the
rates of the table.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(rendered(recorded()))


def recorded() -> dict[str, dict[str, Any]]:
    """The records that there are, by name."""
    files = {name: FOLDER / f"{name}.json" for name in TITLES}
    return {n: json.loads(file.read_text()) for n, file in files.items() if file.exists()}


def rendered(records: dict[str, dict[str, Any]]) -> str:
    """The page as Markdown, from records by name."""
    curves = [curve_of(each) for record in records.values() for each in record["recipes"]]
    hours = sum(run[-1].minutes for c in curves for run in c.runs.values() if run) / 60
    tables = [compared(TITLES[name], record) for name, record in records.items()]
    return "\n".join([HEAD.format(hours=hours), *tables])


def compared(title: str, record: dict[str, Any]) -> str:
    """A table of the recipes of a record, the best first, with the settings that differ, and those
    that all of them share. If the record has a `column` for names, these tell of the optimiser."""
    column = [record["column"]] if "column" in record else []
    hidden = {*OF_OPTIMIZERS, "validate_every"} if column else set()
    settings = [each["settings"] for each in record["recipes"]]
    names = dict.fromkeys(name for given in settings for name in given if name not in hidden)
    differing = [n for n in names if len({str(given.get(n)) for given in settings}) > 1]
    curves = sorted(
        ((curve_of(each), each["settings"]) for each in record["recipes"]),
        key=lambda pair: pair[0].nll,
    )
    measure = record["measure"]
    heads = [*column, *differing, "seeds", "minutes", f"NLL (L_{measure['k']})"]
    rows = [
        [
            *([curve.name] if column else []),
            *(_text(given.get(name)) for name in differing),
            ", ".join(map(str, curve.runs)),
            "" if curve.minutes is None else f"{curve.minutes:.1f}",
            curve.nll_in_words,
        ]
        for curve, given in curves
    ]
    shared = ", ".join(
        f"{name} {_text(value)}"
        for name, value, _ in differences(curves[0][0].config, RunConfig())
        if name not in {*differing, *hidden}
    )
    return section(title, heads, rows) + f"\nIn all: {shared}.\n"


def _text(setting: object) -> str:
    return "" if setting in (None, "") else f"`{setting}`"


if __name__ == "__main__":
    main()
