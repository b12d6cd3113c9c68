"""Settings that suit tables of any size, where the user gives none.

They were chosen by held-out rows of iris, wine, diabetes, breast cancer and digits, in splits other
than those on which results are reported; those of 1,000 to 5,000 rows also by HI-VAE's letter, wine
and adult, and those of large tables by values missing at random from its wine and letter, other
than those of its masks. The learning rate of wide tables matters little: on digits 1.5e-2 is as
good as 6e-3, within 0.05 nats.
"""

import math
from dataclasses import dataclass

STEPS, MEDIUM = 800, 2000
"""Steps of the optimiser for small tables; for those of over `MEDIUM` rows they grow as √rows."""

LEAST_EPOCHS = 2

SMALL = 250
"""Rows below which the model learns at a smaller rate, and its weights decay."""

WIDE = 40
"""Columns above which the layers are wider, and learn at the smaller rate."""

MIDDLING = 1000
"""Rows from which there are twice as many steps, and three layers may be better than one."""

DEEP = 5000
"""Rows from which there are three layers, without a comparison."""

LARGE = 20_000
"""Rows from which batches are larger."""

RECIPE: dict[str, object] = {
    "objective": "iwae",
    "estimator": "dreg",
    "k": 8,
    "networks": "tanh+linear",
    "schedule": "cosine",
    "warmup": 1,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "average": 0.98,
    "clip": 5.0,
    "prior_components": 4,
}
"""Settings that do not depend on the table."""


@dataclass(frozen=True)
class Size:
    """The size of the networks, and the learning rate that suits it."""

    n_latents: int
    hidden: tuple[int, ...]
    learning_rate: float


def sizes(rows: int, columns: int) -> tuple[Size, ...]:
    """Sizes for so many rows and columns: first the one to take if they are not compared."""
    wide = columns > WIDE
    shallow = Size(
        n_latents=16 if wide else 8,
        hidden=(128 if wide else 64,),
        learning_rate=6e-3 if wide or rows < SMALL else 1.5e-2,
    )
    deep = Size(n_latents=16, hidden=(128, 128, 128), learning_rate=6e-3)
    if rows >= DEEP:
        return (deep,)
    return (shallow, deep) if rows >= MIDDLING else (shallow,)


def noises(rows: int, continuous: int) -> tuple[str, ...]:
    """Noises given h for so many rows, `continuous` columns of which are real, positive or bounded:
    first the one to take if they are not compared."""
    if continuous <= 1:
        return ("independent",)
    return ("full",) if rows >= SMALL else ("independent", "full")


@dataclass(frozen=True)
class TableSettings:
    """Settings that depend on the size of a table and the types of its columns."""

    n_latents: int
    hidden: tuple[int, ...]
    noise: str
    prior: str
    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    @staticmethod
    def of(rows: int, columns: int, continuous: int) -> "TableSettings":
        """Those for so many training rows and columns, `continuous` of them real, positive or
        bounded."""
        batch = min(64, rows) if rows < LARGE else 256
        steps = max(STEPS * (2 if rows >= MIDDLING else 1), STEPS * math.sqrt(rows / MEDIUM))
        size = sizes(rows, columns)[0]
        return TableSettings(
            n_latents=size.n_latents,
            hidden=size.hidden,
            noise=noises(rows, continuous)[0],
            prior="mixture",
            max_epochs=max(LEAST_EPOCHS, math.ceil(steps * batch / rows)),
            batch_size=batch,
            learning_rate=size.learning_rate,
            weight_decay=1.0 if rows < SMALL else 0.1,
        )

    def by_name(self) -> dict[str, object]:
        """All settings of a run, with `RECIPE`."""
        return RECIPE | {
            "latents": (self.n_latents,),
            "hidden": (self.hidden,),
            "noise": self.noise,
            "prior": self.prior,
            "epochs": self.max_epochs,
            "patience": self.max_epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
        }
