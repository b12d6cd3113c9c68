"""Settings that suit tables of any size, where the user gives none.

They were chosen by held-out rows of iris, wine, diabetes, breast cancer and digits, in splits other
than those on which results are reported, and those of large tables by values missing at random from
HI-VAE's wine and letter, other than those of its masks. The learning rate of wide tables matters
little: on digits 1.5e-2 is as good as 6e-3, within 0.05 nats.
"""

import math
from dataclasses import dataclass

STEPS, MEDIUM = 800, 2000
"""Steps of the optimiser for tables of up to `MEDIUM` rows; for larger ones they grow as √rows."""

LEAST_EPOCHS = 2

SMALL = 250
"""Rows below which the model learns at a smaller rate, and its weights decay."""

WIDE = 40
"""Columns above which the layers are wider, and learn at the smaller rate."""

DEEP = 5000
"""Rows from which there are three such layers, and more latent units."""

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
        steps = STEPS * max(1.0, math.sqrt(rows / MEDIUM))
        large = columns > WIDE or rows >= DEEP
        layers = 3 if rows >= DEEP else 1
        return TableSettings(
            n_latents=16 if large else 8,
            hidden=(128 if large else 64,) * layers,
            noise="full" if continuous > 1 and rows >= SMALL else "independent",
            prior="mixture",
            max_epochs=max(LEAST_EPOCHS, math.ceil(steps * batch / rows)),
            batch_size=batch,
            learning_rate=6e-3 if rows < SMALL or large else 1.5e-2,
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
