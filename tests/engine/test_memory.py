"""What a stack keeps in the memory of its device: how much, and for how long."""

from dataclasses import replace

import pytest

from clrun.runs.contract import difference

# ---------------------------------------------------------------- chunks


class Counting:
    """Data that note how many samples are computed at once."""

    def __init__(self, data, sizes):
        self.data, self.sizes = data, sizes

    def __getattr__(self, name):
        return getattr(self.data, name)

    def chunks(self, pool, size):
        self.sizes.append(size)
        return self.data.chunks(pool, size)


@pytest.mark.parametrize(
    "typed",
    ["strategy=ewc", "strategy=fdr", "strategy=gpm", "strategy=slda", "strategy=er memory_policy=herding"],
    ids=lambda typed: typed.split()[0].partition("=")[2],
)
def test_runs_of_a_stack_share_a_chunk(stack_of, typed):
    """What a device computes at once is that of all runs together, and no result depends on it."""
    states, largest = [], []
    for sharing in (1, 4):
        stack, sizes = stack_of(*typed.split()), []
        data = Counting(replace(stack.strategy.data, sharing=sharing), sizes)
        stack = replace(stack, strategy=replace(stack.strategy, data=data))
        states.append(stack.consolidate(stack.initialize(), stack.new_stage(0)))
        largest.append(max(sizes))
    assert largest[1] == largest[0] // 4 and difference(*states) < 1e-9
