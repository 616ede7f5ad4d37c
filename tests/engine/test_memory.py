"""What a stack keeps in the memory of its device: how much, and for how long."""

import gc
import sys
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch

from clrun.engine.cuda_graph import GraphStepper
from clrun.engine.in_place import InPlaceStepper
from clrun.engine.stack import Stack
from clrun.runs.build import build
from clrun.runs.checkpointer import Checkpointer
from clrun.runs.contract import difference
from clrun.runs.train import train_stack
from clrun.sweep import workers
from clrun.sweep.messages import StackTooLarge

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


# ---------------------------------------------------------------- what stays


class Watching(workers.Relay):
    """A progress that notes the objects by which a stack keeps its tensors, and can run out of memory at a step."""

    KINDS = (Stack, Checkpointer, GraphStepper, InPlaceStepper)

    def __init__(self, error: type[Exception] | None = None):
        super().__init__(lambda message: None)
        self.error, self.seen = error, []

    def advance(self, steps):
        if not steps:  # the stepper is not there yet
            return
        self.seen = [weakref.ref(one) for one in gc.get_objects() if type(one) in self.KINDS]
        if self.error is not None:
            circle = [sys._getframe()]  # refers to itself, as frames do in which a library has caught an error
            raise self.error("CUDA out of memory", circle)

    def alive(self):
        return [type(one()).__name__ for one in self.seen if one() is not None]


def graphed(runs, **options):
    """A stack whose steps are taken by the stepper of CUDA."""
    return replace(build(runs, **options), use_graph=True)


@pytest.fixture
def no_collection():
    """Garbage is collected where the code asks for it, and nowhere else. (The first use of vmap imports modules, in
    which errors are caught that keep the frames of whoever was the first.)"""
    torch.vmap(torch.func.grad(lambda x: x.sum()))(torch.ones(2, 3))
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
def test_nothing_of_a_finished_stack_stays(prepared_of, no_collection, stacked):
    runs = [
        prepared_of("iterations=4", "tasks=2", "plots=false", "device=cpu", f"seed={s}") for s in range(1 + stacked)
    ]
    watch = Watching()
    train_stack(runs, watch, build=graphed if stacked else build)
    assert len(watch.seen) == 3 and watch.alive() == []


def test_nothing_of_a_stack_that_ran_out_of_memory_stays(prepared_of, no_collection):
    """The halves need its room."""
    runs = [prepared_of("iterations=4", "tasks=2", "device=cpu", f"seed={seed}") for seed in range(2)]
    watch = Watching(torch.OutOfMemoryError)
    trainer = partial(train_stack, build=graphed)
    assert workers.train_unfinished(runs, watch, trainer) == StackTooLarge()
    assert len(watch.seen) == 3 and watch.alive() == []
