"""epochs, iterations and batch_size as lists: one number for each task."""

import pytest
import torch
from conftest import live

from clrun.config import compose
from clrun.system.errors import UsageError


def test_each_task_has_its_own(stack_of):
    """Task 1 takes 3 steps of 8 samples, task 2 one of 16; the first is that of a run with these numbers for all."""
    stack = stack_of("strategy=er", "tasks=2", "iterations=[3,1]", "batch_size=[8,16]", seeds=(0, 1))
    _, reports = live(stack)
    assert [(report.step, report.samples) for report in reports] == [(3, 48), (4, 32)]
    _, same = live(stack_of("strategy=er", "tasks=2", "iterations=3", "batch_size=8", seeds=(0, 1)))
    assert torch.equal(reports[0].correct, same[0].correct)
    samplers = stack_of("strategy=finetune", "tasks=2", "epochs=[2,1]").schedule
    assert samplers.sampler(0, 0, "train").steps > 1.5 * samplers.sampler(0, 1, "train").steps


def test_equal_numbers_are_one_run():
    assert compose("epochs=[3,3]", "tasks=2").identity("d") == compose("epochs=3", "tasks=2").identity("d")
    assert compose("epochs=[3,2]", "tasks=2").identity("d") != compose("epochs=3", "tasks=2").identity("d")


def test_refusals(prepared_of):
    with pytest.raises(UsageError, match=r"batch_size=\[8,9\]: 2 numbers for 5 tasks; type one for each"):
        prepared_of("strategy=finetune", "batch_size=[8,9]")
    with pytest.raises(UsageError, match="at once, so that none has a number of its own; type one number, as in epo"):
        prepared_of("strategy=joint", "epochs=[2,1]", "tasks=2")
    with pytest.raises(UsageError, match="must be a whole number, at least 1, or one for each task"):
        compose("epochs=[2,0]", "tasks=2")
    with pytest.raises(UsageError, match="drop_last=true with batch_size=2000 leaves task 2"):
        prepared_of("strategy=finetune", "tasks=2", "batch_size=[8,2000]", "drop_last=true")


def test_cumulative_has_those_of_its_stage(stack_of):
    stack = stack_of("strategy=cumulative", "tasks=2", "scenario=class", "iterations=[1,2]", "batch_size=[10,20]")
    _, reports = live(stack)
    assert [(report.step, report.samples) for report in reports] == [(1, 10), (5, 80)]  # 2 steps for each of 2 tasks
