"""Published tables as data: what each cell is trained with, and what was published of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iwae.config import PARAMETERS

Figure = tuple[float, float]
"""A value with its standard error; nan where none is known."""

UNKNOWN = float("nan")


@dataclass(frozen=True)
class Cell:
    """One entry of a table: the settings that are its own, and what was published of it."""

    name: str
    """Parts from the coarsest to the finest, e.g. mnist/1/iwae-50."""
    settings: Mapping[str, Any]
    """Fields of the configuration by name."""
    published: Figure | None = None
    """NLL in nats."""
    units: str = ""
    """Active units that were published, layer by layer."""
    against: str | None = None
    """The cell that the table holds it against."""


@dataclass(frozen=True)
class Experiment:
    """A table of a paper."""

    about: str
    source: str
    recipe: str
    """What all cells start from, unless another is given."""
    cells: tuple[Cell, ...] = field(repr=False)
    seeds: int = 1
    """How many, unless they are given."""


BOUNDS = (("vae", 1), ("vae", 5), ("vae", 50), ("iwae", 1), ("iwae", 5), ("iwae", 50))
"""Columns of the tables of Burda et al.: objective and K. With K = 1 both are one bound."""


def _burda(rows: Mapping[tuple[str, int], str]) -> tuple[Cell, ...]:
    """Cells of rows by data set and stochastic layers, each 'NLL (units)' column by column."""
    cells: list[Cell] = []
    for (dataset, layers), row in rows.items():
        entries = [entry.split(" (") for entry in row.split(", ")]
        for (objective, k), (nll, units) in zip(BOUNDS, entries, strict=True):
            settings: dict[str, Any] = {"dataset": dataset, "layers": layers, "k": k}
            settings |= {"hidden": None, "latents": None}
            settings |= {"objective": "iwae" if k == 1 else objective}
            if dataset == "mnist-fixed":
                settings["binarization"] = "none"
            cells.append(
                Cell(
                    name=f"{dataset}/{layers}/{objective}-{k}",
                    settings=settings,
                    published=(float(nll), UNKNOWN),
                    units=units.rstrip(")"),
                    against=None if objective == "vae" else f"{dataset}/{layers}/vae-{k}",
                )
            )
    return tuple(cells)


UNCERTAIN = {"IWAE": "none", "IWAEU_rec": "encoder", "IWAEU": "both"}
"""Which networks have uncertain weights."""


def _uncertain(rows: Mapping[str, tuple[Figure, Figure, Figure]]) -> tuple[Cell, ...]:
    """Cells of rows by data set, NLL of each model."""
    return tuple(
        Cell(
            name=f"{dataset}/{model}",
            settings={"dataset": dataset, "uncertain_weights": which},
            published=figure,
            against=None if model == "IWAE" else f"{dataset}/IWAE",
        )
        for dataset, row in rows.items()
        for (model, which), figure in zip(UNCERTAIN.items(), row, strict=True)
    )


ONE_LAYER: dict[str, Any] = {"dataset": "mnist", "layers": 1, "hidden": None, "latents": None}
"""One stochastic layer of Burda et al. on MNIST."""


def _doubly(rows: Mapping[str, tuple[float, float, float]]) -> tuple[Cell, ...]:
    """Cells of rows by estimator, NLL with 1, 5 and 50 draws; one layer on MNIST."""
    return tuple(
        Cell(
            name=f"mnist/{'iwae' if estimator == 'reparam' else estimator}-{k}",
            settings={**ONE_LAYER, "objective": "iwae", "estimator": estimator, "k": k},
            published=(nll, UNKNOWN),
            against=None if estimator == "reparam" else f"mnist/iwae-{k}",
        )
        for estimator, row in rows.items()
        for k, nll in zip((1, 5, 50), row, strict=True)
    )


TIGHTER: dict[str, dict[str, Any]] = {
    "iwae": {"objective": "iwae"},
    "piwae-8": {"objective": "piwae", "m": 8},
    "miwae-8": {"objective": "miwae", "m": 8},
    "ciwae-0.5": {"objective": "ciwae", "beta": 0.5},
    "vae": {"objective": "vae"},
}
"""Objectives of Rainforth et al. with 64 draws; of MIWAE and PIWAE 8 groups of 8."""


def _tighter(nll: Mapping[str, float]) -> tuple[Cell, ...]:
    """Cells of NLL by objective."""
    unshaped = dict.fromkeys(PARAMETERS.values())
    return tuple(
        Cell(
            name=f"mnist/{name}",
            settings={**ONE_LAYER, "k": 64, **unshaped, **TIGHTER[name]},
            published=(value, UNKNOWN),
            against=None if name == "iwae" else "mnist/iwae",
        )
        for name, value in nll.items()
    )


EXPERIMENTS = {
    "table1": Experiment(
        about="VAE and IWAE with 1, 5 and 50 draws and one or two stochastic layers",
        source="Burda, Grosse & Salakhutdinov 2016, Table 1",
        recipe="paper",
        cells=_burda(
            {
                ("mnist", 1): "86.76 (19), 86.47 (20), 86.35 (20), 86.76 (19), 85.54 (22), "
                "84.78 (25)",
                ("mnist", 2): "85.33 (16+5), 85.01 (17+5), 84.78 (17+5), 85.33 (16+5), "
                "83.89 (21+5), 82.90 (26+7)",
                ("omniglot", 1): "108.11 (28), 107.62 (28), 107.80 (28), 108.11 (28), "
                "106.12 (34), 104.67 (41)",
                ("omniglot", 2): "107.58 (28+4), 106.31 (30+5), 106.30 (30+5), 107.56 (30+5), "
                "104.79 (38+6), 103.38 (44+7)",
            }
        ),
    ),
    "fixed-mnist": Experiment(
        about="table1 on the fixed binarisation of Larochelle & Murray",
        source="Burda, Grosse & Salakhutdinov 2016, supplement",
        recipe="paper",
        cells=_burda(
            {
                ("mnist-fixed", 1): "88.71 (19), 88.83 (19), 89.05 (20), 88.71 (19), 87.63 (22), "
                "87.10 (24)",
                ("mnist-fixed", 2): "88.08 (16+5), 87.63 (17+5), 87.86 (17+6), 88.08 (16+5), "
                "86.17 (21+5), 85.32 (24+7)",
            }
        ),
    ),
    "dreg": Experiment(
        about="doubly reparametrised gradients, one stochastic layer",
        source="nbip/IWAE, a TensorFlow implementation",
        recipe="paper",
        cells=_doubly({"reparam": (86.35, 85.18, 84.59), "dreg": (86.08, 84.90, 84.32)}),
    ),
    "rainforth": Experiment(
        about="tighter bounds are not necessarily better: IWAE, PIWAE, MIWAE, CIWAE with 64 draws",
        source="Rainforth et al. 2018, log p̂",
        recipe="paper",
        cells=_tighter(
            {
                "iwae": 84.52,
                "piwae-8": 84.46,
                "miwae-8": 84.97,
                "ciwae-0.5": 85.24,
                "vae": 86.21,
            }
        ),
    ),
    "iwaeu": Experiment(
        about="networks with uncertain weights",
        seeds=3,
        source="Hernández-Lobato et al., slides of 2016",
        recipe="iwaeu",
        cells=_uncertain(
            {
                "mnist": ((95.182, 0.022), (94.709, 0.025), (94.346, 0.025)),
                "omniglot": ((118.771, 0.035), (118.647, 0.031), (118.540, 0.049)),
            }
        ),
    ),
}
