"""How examples are divided into blocks, calls of a compiled program, and processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

GROUP = 250
"""Target number of examples per call of the compiled program; Ctrl-C and the progress bar wait for
a call to end."""


@dataclass(frozen=True)
class BlockPlan:
    """n examples in groups, one for each call of the compiled program, which divides it in blocks.

    The processes take the groups in turn: at turn t process p evaluates group t · processes + p.
    A group that reaches beyond the end is padded with the last example, and a process that has no
    group left repeats the last one.
    """

    n: int
    block: int
    """Examples evaluated at once."""
    group: int
    """Examples per call."""
    processes: int = 1

    @classmethod
    def of(
        cls, n: int, d: int, *, draws: int, memory: int, workers: int = 1, processes: int = 1
    ) -> "BlockPlan":
        """The plan for n examples of d values with `draws` latent draws each in memory at once.

        The `workers` share `memory` bytes.
        """
        block, group = padded(n, workers, block_size(n, d, draws, memory // workers))
        return cls(n, block, group, processes)

    @property
    def calls(self) -> int:
        """Number of groups, over all processes."""
        return math.ceil(self.n / self.group)

    @property
    def turns(self) -> int:
        """Calls that each process makes."""
        return math.ceil(self.calls / self.processes)

    def examples(self, turn: int, process: int = 0) -> np.ndarray:
        """The indices of the examples in a call, [group]."""
        start = min(turn * self.processes + process, self.calls - 1) * self.group
        return np.minimum(np.arange(start, start + self.group), self.n - 1)

    def done(self, turn: int) -> int:
        """Number of examples evaluated by the end of a turn."""
        return min((turn + 1) * self.processes * self.group, self.n)

    def in_order(self, parts: PyTree) -> PyTree:
        """Arrays [processes, turns, group, …] as [n, …], an entry for each example."""
        return jax.tree.map(
            lambda a: np.swapaxes(a, 0, 1).reshape(-1, *a.shape[3:])[: self.n], parts
        )


def stacked(parts: Sequence[PyTree]) -> PyTree:
    """Stack trees of the same structure along a new first axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *parts)


def padded(n: int, workers: int, most: int) -> tuple[int, int]:
    """(block, group): examples evaluated at once, at most `most`, and examples per call.

    Each worker has about n / workers examples. `block` is a power of two or `most`; a group is a
    power of two of blocks, or enough of them for `GROUP` examples. A group is at most a quarter of
    a worker's share, so that padding the last one costs little.
    """
    share = math.ceil(n / workers)
    block = min(most, 1 << (share - 1).bit_length())
    blocks, enough = math.ceil(share / block), math.ceil(GROUP / block)
    return block, block * min(enough, 1 << max(0, blocks.bit_length() - 3))


def block_size(n: int, d: int, draws: int, memory: int) -> int:
    """Examples evaluated at once: two float32 arrays of [block, draws, d] fit the memory."""
    return max(1, min(n, memory // (8 * d * draws)))
