"""What a stack keeps in the memory of its device: how much, and for how long."""

import gc
import os
import sys
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import STRATEGIES
from elsewhere import DEVICE, Elsewhere
from helpers import MadeUpCards

from clrun.engine.cuda_graph import GraphStepper
from clrun.engine.in_place import InPlaceStepper
from clrun.engine.stack import Stack
from clrun.results.outcome import RunStatus
from clrun.runs import train
from clrun.runs.build import build, initialize, ready_device
from clrun.runs.checkpointer import Checkpointer
from clrun.runs.contract import difference
from clrun.runs.memory import layer_sizes, memory_need
from clrun.runs.train import train_runs, train_stack
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


def test_an_evaluation_has_large_batches_however_many_runs_share_a_chunk(stack_of):
    stack = stack_of("strategy=finetune")
    shared = replace(stack.strategy, data=replace(stack.strategy.data, sharing=64))
    assert shared.data.share(1024) == 16
    assert replace(stack, strategy=shared).evaluator.chunk_size == 256


# ---------------------------------------------------------------- what stays


class Watching(workers.Relay):
    """A progress that notes the objects by which a stack keeps its tensors, and can run out of memory at a step."""

    KINDS = (Stack, Checkpointer, GraphStepper, InPlaceStepper)

    def __init__(self, error: type[Exception] | None = None):
        super().__init__(lambda message: None)
        self.error, self.seen = error, []
        self.earlier = self.there()  # of other tests: the compiler keeps what it has compiled

    def there(self):
        return [weakref.ref(one) for one in gc.get_objects() if type(one) in self.KINDS]

    def advance(self, steps):
        if not steps:  # the stepper is not there yet
            return
        earlier = {id(one()) for one in self.earlier}
        self.seen = [one for one in self.there() if id(one()) not in earlier]
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


def test_nothing_of_a_stack_stays_whose_checkpoints_a_thread_has_written(prepared_of, no_collection, monkeypatch):
    """As on a card; the thread is given a function of the checkpointer, which refers to the stack."""
    monkeypatch.setattr(train, "Checkpointer", lambda *arguments: Checkpointer(*arguments[:5], True))
    runs = [prepared_of("iterations=4", "tasks=2", "plots=false", "device=cpu", f"seed={s}") for s in range(2)]
    watch = Watching()
    train_stack(runs, watch, build=graphed)
    assert len(watch.seen) == 3 and watch.alive() == []


def test_nothing_of_a_stack_that_ran_out_of_memory_stays(prepared_of, no_collection):
    """The halves need its room."""
    runs = [prepared_of("iterations=4", "tasks=2", "device=cpu", f"seed={seed}") for seed in range(2)]
    watch = Watching(torch.OutOfMemoryError)
    trainer = partial(train_stack, build=graphed)
    assert workers.train_unfinished(runs, watch, trainer) == StackTooLarge()
    assert len(watch.seen) == 3 and watch.alive() == []


def test_on_a_card_the_memory_of_a_stack_is_given_back_before_the_next(prepared_of):
    runs = [prepared_of("device=cpu", f"seed={seed}") for seed in range(2)]
    on_card = [
        replace(run, settings=replace(run.settings, values=run.settings.values | {"device": "cuda"})) for run in runs
    ]
    cards = MadeUpCards(0)
    train_runs(on_card, quiet=True, trainer=lambda stack, progress: [RunStatus.DONE] * len(stack), cards=cards)
    assert cards.told == [("release",)]
    train_runs(runs, quiet=True, trainer=lambda stack, progress: [RunStatus.DONE] * len(stack), cards=cards)
    assert cards.told == [("release",)]


def test_cuda_is_told_of_card_and_workspace_before_anything_runs(monkeypatch):
    """Also where the first run of a process is not deterministic, and a later one is."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cards = MadeUpCards(0, 0)
    assert ready_device("cpu", cards).type == "cpu" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert ready_device("cuda", cards) == torch.device("cuda") and cards.told == []
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert ready_device("cuda:1", cards) == torch.device("cuda:1") and cards.told == [("choose", 1)]


# ---------------------------------------------------------------- how much


def peaks(stack, there):
    """The largest numbers of bytes on the device while a stack trains, consolidates and evaluates, in two tasks."""
    current, found = stack.initialize(), [0, 0, 0]

    def note(place):
        found[place] = max(found[place], there.peak)
        there.forget_peak()

    for stage in range(2):
        current, partial = stack.begin_stage(current, stage), stack.new_stage(stage)
        there.forget_peak()
        if stack.strategy.visible(stage):  # otherwise it was trained before, as by joint
            current, partial = stack.train(current, partial)
            note(0)
            current = stack.consolidate(current, partial)
            note(1)
        stack.evaluate(current, stage, partial.report)
        note(2)
    return found


CASES = [
    "strategy=ewc split=permuted scenario=domain",
    "strategy=mas",
    "strategy=derpp",
    "strategy=ewc model.norm=batch drop_last=true",
]


SLOW_CASES = ["strategy=ewc model=cnn", *(f"strategy={name}" for name in STRATEGIES if f"strategy={name}" not in CASES)]


@pytest.mark.parametrize("typed", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_CASES)])
@pytest.mark.parametrize("R", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stack_needs_no_more_than_was_reckoned(prepared_of, typed, R):
    runs = [prepared_of(*typed.split(), "iterations=3", "tasks=2", f"seed={seed}") for seed in range(R)]
    need = memory_need(runs[0])
    with Elsewhere() as there:
        training, consolidation, evaluation = peaks(replace(build(runs, device=DEVICE), use_graph=True), there)
    assert need.images // 2 < training <= need.images + R * need.training < 6 * training
    assert consolidation <= need.images + R * need.consolidation + need.chunk
    assert evaluation <= need.images + R * need.evaluation + need.evaluated
    assert need.runs_within(need.of(R)) == R


def test_layers_are_counted_as_a_pass_applies_them(prepared_of):
    """digits: 8 x 8 pixels; a 3 x 3 window of each of them for the first convolution, of a quarter for the second."""
    run = prepared_of("model=cnn", "model.width=4")
    sizes = layer_sizes(initialize(run.settings, (1, 8, 8), 10), (1, 8, 8))
    assert sizes.outputs == 64 * 4 + 16 * 8 + 32 + 10 and sizes.largest == 64 * 4
    assert sizes.inputs == 64 * 9 + 16 * 4 * 9 + 4 * 8 + 32
