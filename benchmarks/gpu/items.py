"""The work list: what is measured on a GPU, the most valuable first, each within a time limit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A part of the work that runs in a process of its own."""

    name: str
    about: str
    limit: float
    """Seconds after which it is stopped."""
    function: str
    """`module:function` within this package, called with a `Task`."""
    platform: str = ""
    """JAX's platform in its process; empty for the best there is."""
    rest: bool = False
    """Whether it takes what time is left."""


ITEMS = (
    Item("device", "device, driver, versions, precision in force", 40, "checks:device"),
    Item("checks", "closed forms, and each registry against the CPU", 90, "checks:checks"),
    Item("steps", "time of a training step", 130, "steps:steps"),
    Item("torch steps", "the same in PyTorch, plain and as a CUDA graph", 70, "rival:steps", "cpu"),
    Item("command buffers", "which flag, which minimum graph size", 60, "steps:command_buffers"),
    Item("chunks", "steps in one call, replicas and cells in one program", 100, "steps:chunks"),
    Item("anatomy", "what a step waits for", 70, "steps:anatomy"),
    Item("evaluation", "L_5000 of 10,000 images", 45, "evaluation:ours"),
    Item("torch evaluation", "the same in PyTorch", 45, "rival:evaluation", "cpu"),
    Item("papers", "Table 1 by the paper's protocol", 0, "papers:papers", rest=True),
)
"""In the order in which they are done."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    images: int = 60_000
    ks: tuple[int, ...] = (1, 5, 50)
    tuned: tuple[int, ...] = (1, 50)
    """The K of the steps whose compiler is given other options."""
    turns: int = 5
    seconds: float = 0.25
    """What a turn takes, roughly."""
    evaluated: int = 10_000
    """Images whose L_K is estimated."""
    k_evaluation: int = 5000
    replicas: tuple[int, ...] = (1, 5, 20)
    chunks: tuple[int, ...] = (1, 10, 100, 1000)
    """Steps in one call of the compiled program."""
    traced: int = 200
    """Steps that are traced."""
    fast: bool = True
    """Whether the step of the recipe `fast` is measured."""
    recipe: str = "paper"
    datasets: tuple[str, ...] = ("mnist",)
    epochs: int | None = None
    """Of the paper's cells, where not those of the recipe."""
    draws: int = 5000
    """K of the cells' evaluation."""
    layers: tuple[int, ...] = (1, 2)
    """Of the cells."""


FULL = Sizes()
REHEARSAL = Sizes(
    images=400,
    ks=(1, 2),
    tuned=(2,),
    turns=1,
    seconds=0.02,
    evaluated=20,
    k_evaluation=50,
    replicas=(1, 2),
    chunks=(1, 5),
    traced=5,
    fast=False,
    recipe="smoke",
    datasets=("mnist=digits",),
    epochs=3,
    draws=10,
    layers=(1,),
)
"""Everything runs, in a minute or two of two cores, and no figure means anything."""
