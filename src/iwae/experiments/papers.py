"""Published tables as data: what each cell is trained with, and what was published of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from iwae._utils.formatting import UNKNOWN, Figure
from iwae.config.schema import PARAMETERS
from iwae.experiments.tables import Cell, Experiment

BY: dict[str, dict[str, Any]] = {
    "vae": {"objective": "vae", "backward_draws": None},
    "iwae": {"objective": "iwae"},
}
"""Settings by bound. Draws of the ELBO weigh the same, so that its gradient through 5 of 50 draws
would be that of a VAE with 5."""

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
            settings |= {"objective": "iwae"} if k == 1 else BY[objective]
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
    shape: dict[str, Any] = {"layers": 1, "hidden": ((400,),), "latents": (40,)}
    shape |= {"objective": "iwae", "k": 25}
    return tuple(
        Cell(
            name=f"{dataset}/{model}",
            settings={**shape, "dataset": dataset, "uncertain_weights": which},
            published=figure,
            against=None if model == "IWAE" else f"{dataset}/IWAE",
        )
        for dataset, row in rows.items()
        for (model, which), figure in zip(UNCERTAIN.items(), row, strict=True)
    )


ONE_LAYER: dict[str, Any] = {"dataset": "mnist", "layers": 1, "hidden": None, "latents": None}
"""One stochastic layer of Burda et al. on MNIST."""


ESTIMATORS = {"iwae": "reparam", "dreg": "dreg"}
"""By what models are called that are trained with them."""


def _rerun(rows: Mapping[tuple[str, int], Mapping[int, float]]) -> tuple[Cell, ...]:
    """Cells of rows by gradient and stochastic layers, NLL by K; IWAE on MNIST."""
    return tuple(
        Cell(
            name=f"mnist/{layers}/{gradient}-{k}",
            settings={**ONE_LAYER, **BY["iwae"], "layers": layers, "k": k}
            | {"estimator": ESTIMATORS[gradient]},
            published=(nll, UNKNOWN),
            against=None if gradient == "iwae" else f"mnist/{layers}/iwae-{k}",
        )
        for (gradient, layers), row in rows.items()
        for k, nll in row.items()
    )


TIGHTER: dict[str, dict[str, Any]] = {
    "iwae": BY["iwae"],
    "piwae-8": {"objective": "piwae", "m": 8, "backward_draws": None},
    "miwae-8": {"objective": "miwae", "m": 8},
    "ciwae-0.5": {"objective": "ciwae", "beta": 0.5},
    "vae": BY["vae"],
}
"""Objectives of Rainforth et al. with 64 draws; of MIWAE and PIWAE 8 groups of 8."""


def _tighter(nll: Mapping[str, tuple[float, float]]) -> tuple[Cell, ...]:
    """Cells of NLL and −L_64 by objective."""
    unshaped = dict.fromkeys(PARAMETERS.values())
    return tuple(
        Cell(
            name=f"mnist/{name}",
            settings={**ONE_LAYER, "k": 64, **unshaped, **TIGHTER[name]},
            published=(value, UNKNOWN),
            against=None if name == "iwae" else "mnist/iwae",
            measures=("bound",),
            further={"−L_64": bound},
        )
        for name, (value, bound) in nll.items()
    )


SWAPPED: dict[str, dict[str, Any]] = {
    "vae-1": {"objective": "iwae", "k": 1},
    "iwae-50": {"objective": "iwae", "k": 50},
}
"""Objectives between which Burda et al. swap."""


def _swapped(
    converged: Mapping[str, tuple[float, str]], swapped: Mapping[str, tuple[float, str]]
) -> tuple[Cell, ...]:
    """Cells of NLL and active units by objective: first converged, then trained on as the other."""
    begun = {
        name: Cell(
            name=f"mnist/{name}",
            settings={**ONE_LAYER, **SWAPPED[name]},
            published=(nll, UNKNOWN),
            units=units,
        )
        for name, (nll, units) in converged.items()
    }
    others = dict(zip(begun, reversed(begun), strict=True))
    going_on = [
        replace(
            begun[others[name]],
            name=f"mnist/{name}-then-{others[name]}",
            published=(nll, UNKNOWN),
            units=units,
            against=f"mnist/{name}",
            after=f"mnist/{name}",
        )
        for name, (nll, units) in swapped.items()
    ]
    return (*begun.values(), *going_on)


NOWOZIN: dict[str, dict[str, Any]] = {
    "elbo": BY["vae"],
    "iwae": BY["iwae"],
    "jvi-1": {"objective": "jvi", "order": 1},
}
"""Training objectives of Nowozin, with 32 draws."""


def _jackknifed(rows: Mapping[str, tuple[float, ...]]) -> tuple[Cell, ...]:
    """Cells of rows by objective: NLL estimated by ELBO, IWAE, JVI-1 and JVI-2."""
    shape: dict[str, Any] = {
        "dataset": "mnist",
        "layers": 1,
        "hidden": ((300, 300),),
        "latents": (40,),
        "k": 32,
    }
    return tuple(
        Cell(
            name=f"mnist/{name}",
            settings={**shape, "order": None, **NOWOZIN[name]},
            against=None if name == "elbo" else "mnist/elbo",
            measures=("jackknife",),
            further={
                f"NLL by {estimator}": value
                for estimator, value in zip(("ELBO", "IWAE", "JVI-1", "JVI-2"), row, strict=True)
            },
        )
        for name, row in rows.items()
    )


BATCHES = {"mnist": 48, "omniglot-raw": 45}
"""Images per step of the DD2434 replication."""


def _replicated(rows: Mapping[tuple[int, int], str]) -> tuple[Cell, ...]:
    """Cells of rows by layers and K: NLL of VAE and IWAE on MNIST, then on Omniglot."""
    columns = [(dataset, objective) for dataset in BATCHES for objective in ("vae", "iwae")]
    cells: list[Cell] = []
    for (layers, k), row in rows.items():
        for (dataset, objective), nll in zip(columns, row.split(), strict=True):
            settings: dict[str, Any] = {"dataset": dataset, "layers": layers, "k": k}
            settings |= {"hidden": None, "latents": None}
            settings |= {"objective": "iwae"} if k == 1 else BY[objective]
            settings |= {"initialization": "fan-in", "batch_size": BATCHES[dataset]}
            cells.append(
                Cell(
                    name=f"{dataset}/{layers}/{objective}-{k}",
                    settings=settings,
                    published=(float(nll), UNKNOWN),
                    against=None if objective == "vae" else f"{dataset}/{layers}/vae-{k}",
                )
            )
    return tuple(cells)


Said = Mapping[str, Mapping[str, str]]
"""By data set, what was said of a measured figure."""


def _also(
    cells: tuple[Cell, ...], measures: tuple[str, ...], said: Said | None = None, *, draws: int = 1
) -> tuple[Cell, ...]:
    """The cells with at least so many draws, with something else measured of them."""
    return tuple(
        replace(cell, measures=measures, further=(said or {}).get(cell.settings["dataset"], {}))
        for cell in cells
        if cell.settings["k"] >= draws
    )


TABLE1 = _burda(
    {
        ("mnist", 1): "86.76 (19), 86.47 (20), 86.35 (20), 86.76 (19), 85.54 (22), 84.78 (25)",
        ("mnist", 2): "85.33 (16+5), 85.01 (17+5), 84.78 (17+5), 85.33 (16+5), 83.89 (21+5), "
        "82.90 (26+7)",
        ("omniglot", 1): "108.11 (28), 107.62 (28), 107.80 (28), 108.11 (28), 106.12 (34), "
        "104.67 (41)",
        ("omniglot", 2): "107.58 (28+4), 106.31 (30+5), 106.30 (30+5), 107.56 (30+5), "
        "104.79 (38+6), 103.38 (44+7)",
    }
)


PRUNED: Said = {name: {"change": "less than 0.06"} for name in ("mnist", "omniglot")}
"""Without inactive units."""

GAPS: Said = {
    "mnist": {"test − train": "0.62 to 0.79"},
    "omniglot": {"test − train": "2.39 to 2.65"},
}
"""Between test and training images."""


EXPERIMENTS = {
    "table1": Experiment(
        about="VAE and IWAE with 1, 5 and 50 draws and one or two stochastic layers",
        source="Burda, Grosse & Salakhutdinov 2016, Table 1",
        recipe="paper",
        cells=TABLE1,
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
        about="IWAE with one or two stochastic layers, and doubly reparametrised gradients",
        source="nbip/IWAE, a TensorFlow implementation",
        recipe="paper",
        cells=_rerun(
            {
                ("iwae", 1): {1: 86.35, 5: 85.18, 50: 84.59},
                ("dreg", 1): {1: 86.08, 5: 84.90, 50: 84.32},
                ("iwae", 2): {1: 84.83, 5: 83.48, 50: 82.82},
            }
        ),
    ),
    "li-turner": Experiment(
        about="IWAE as it was run again beside the variational Rényi bound",
        source="Li & Turner 2016",
        recipe="paper",
        cells=_rerun(
            {("iwae", 1): {5: 85.41, 50: 84.80}, ("iwae", 2): {5: 83.92, 50: 83.05}},
        ),
    ),
    "rainforth": Experiment(
        about="tighter bounds are not necessarily better: IWAE, PIWAE, MIWAE, CIWAE with 64 draws",
        source="Rainforth et al. 2018, log p̂",
        recipe="paper",
        cells=_tighter(
            {
                "iwae": (84.52, 86.11),
                "piwae-8": (84.46, 85.74),
                "miwae-8": (84.97, 85.69),
                "ciwae-0.5": (85.24, 86.08),
                "vae": (86.21, 86.69),
            }
        ),
    ),
    "swap": Experiment(
        about="one stochastic layer trained on with the other objective",
        source="Burda, Grosse & Salakhutdinov 2016, Table 2",
        recipe="paper",
        cells=_swapped(
            {"vae-1": (86.76, "19"), "iwae-50": (84.78, "25")},
            {"vae-1": (84.88, "22"), "iwae-50": (86.02, "23")},
        ),
    ),
    "dead-units": Experiment(
        about="table1 after inactive units are removed",
        source="Burda, Grosse & Salakhutdinov 2016, section 5",
        recipe="paper",
        cells=_also(TABLE1, ("pruned", "used"), PRUNED),
    ),
    "gap": Experiment(
        about="table1 on as many training images",
        source="Burda, Grosse & Salakhutdinov 2016, supplement",
        recipe="paper",
        cells=_also(TABLE1, ("gap",), GAPS),
    ),
    "mad": Experiment(
        about="mean absolute deviation of log p̂ of 200 images against its limit 2 + 2δ",
        source="Burda, Grosse & Salakhutdinov 2016, supplement",
        recipe="paper",
        cells=_also(TABLE1, ("deviation",), draws=5),
    ),
    "jvi": Experiment(
        about="log p(x) estimated by ELBO, IWAE and jackknives, of models trained on each",
        source="Nowozin 2018",
        recipe="paper",
        cells=_jackknifed(
            {
                "elbo": (93.38, 89.22, 88.66, 88.40),
                "iwae": (95.30, 86.05, 85.28, 85.01),
                "jvi-1": (99.19, 86.56, 85.43, 85.14),
            }
        ),
    ),
    "dd2434": Experiment(
        about="a replication of table1 with other initial weights and batches",
        source="Bradicic, Sitarz, Skoglund & Swartling 2024",
        recipe="paper",
        seeds=(42,),
        pictured=True,
        cells=_replicated(
            {
                (1, 1): "87.68 87.68 111.85 111.88",
                (1, 5): "87.84 85.76 110.98 102.55",
                (1, 50): "87.40 84.88 109.91 99.94",
                (2, 1): "86.87 86.88 114.66 114.67",
                (2, 5): "90.94 84.78 110.10 104.71",
                (2, 50): "87.60 83.85 108.49 102.52",
            }
        ),
    ),
    "iwaeu": Experiment(
        about="networks with uncertain weights",
        seeds=(0, 1, 2),
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
