"""The plan by which examples are shared among blocks, calls and processes."""

import numpy as np
import pytest

from iwae.evaluation.blocks import GROUP, BlockPlan, stacked


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 250, 1003])
def test_every_example_has_its_place(n: int, processes: int) -> None:
    plan = BlockPlan.of(n, 5, draws=10, memory=4 * 8 * 5 * 10, workers=2, processes=processes)
    assert plan.group % plan.block == 0
    assert plan.group <= max(plan.block, GROUP)
    found = [
        stacked([{"i": plan.examples(turn, process)} for turn in range(plan.turns)])
        for process in range(processes)
    ]
    np.testing.assert_array_equal(plan.in_order(stacked(found))["i"], np.arange(n))
    done = [plan.done(turn) for turn in range(plan.turns)]
    assert done == sorted(set(done))
    assert done[-1] == n


def test_a_block_fits_its_memory() -> None:
    plan = BlockPlan.of(10_000, 784, draws=250, memory=2**23)
    assert plan.block * 8 * 784 * 250 <= 2**23 < (plan.block + 1) * 8 * 784 * 250
    assert BlockPlan.of(10_000, 784, draws=250, memory=1).block == 1
