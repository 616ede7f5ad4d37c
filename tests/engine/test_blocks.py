"""How many steps are taken at once."""

from clrun.engine.blocks import BLOCK_SECONDS, FIRST_BLOCK_STEPS, BlockSizes


def test_a_slow_step_makes_short_blocks():
    blocks = BlockSizes(evaluate_every=0, block_steps=7)
    assert blocks.size(0, 0, seconds_per_step=0.5) == int(BLOCK_SECONDS / 0.5)
    assert blocks.size(0, 0, seconds_per_step=100.0) == 1
    assert [blocks.size(start, start, seconds_per_step=1e-6) for start in (0, 3, 7)] == [7, 4, 7]
    assert BlockSizes(evaluate_every=0).size(0, 0, seconds_per_step=None) == FIRST_BLOCK_STEPS


def test_a_block_ends_at_every_evaluation():
    blocks = BlockSizes(evaluate_every=5, block_steps=7)
    assert [blocks.size(0, step, seconds_per_step=1e-6) for step in (0, 3, 5)] == [5, 2, 5]
