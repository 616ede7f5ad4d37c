"""What a CUDA graph needs besides steps that leave the host alone (test_fake_device.py): buffers, memory, compiling."""

import gc
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from conftest import STRATEGIES

from clrun.engine import capture
from clrun.engine.cuda_graph import GraphStepper
from clrun.engine.state import TrainState
from clrun.engine.static_step import ROW_BYTES
from clrun.engine.step import StepKind
from clrun.runs.build import build
from clrun.runs.train import train_stack
from clrun.strategies.finetune import Finetune
from clrun.sweep import workers
from clrun.sweep.messages import StackTooLarge


def test_the_buffers_of_a_graph_grow_with_the_blocks(stack_of):
    """Blocks grow once it is known how long a step takes."""
    stack = replace(stack_of("strategy=er", "iterations=30"), use_graph=True)
    samplers = stack.schedule.samplers(0, "train", [stack.initialize().state])
    stepper, partial = stack.make_stepper(stack.initialize(), samplers), stack.new_stage(0)
    assert isinstance(stepper, GraphStepper)
    for size in (5, 20, 5):
        partial = partial.extended(stack.train_block(stepper, samplers, partial, size), size)
    other = stack_of("strategy=er", "iterations=30")
    run, expected = other.train(other.initialize(), other.new_stage(0))
    torch.testing.assert_close(partial.signals[0]["loss"], expected.signals[0]["loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(stepper.current.theta, run.theta, rtol=0, atol=1e-9)


def test_a_step_may_return_the_tensors_that_it_was_given():
    """As a compiled one does whose strategy keeps the parameters before each step: they are read before theta is
    written over."""

    def step(current, samples, context):
        return TrainState(current.theta + 1, (), (), current.theta), {}

    before = TrainState(torch.zeros(3), (), (), torch.full((3,), 9.0))
    stepper = GraphStepper(SimpleNamespace(current=before, values=()), lambda kind: step, 4)
    stepper.table = SimpleNamespace(at=lambda position: ((), ()))
    stepper.take_step(StepKind(True, False))
    assert stepper.current.theta.tolist() == [1, 1, 1] and stepper.current.state.tolist() == [0, 0, 0]


def test_the_runs_of_a_stack_begin_at_aligned_addresses(stack_of):
    """A GPU multiplies weights faster whose addresses are multiples of 16 bytes."""
    stack = replace(stack_of("strategy=ewc", "iterations=4", seeds=(0, 1, 2)), use_graph=True)
    stack.learn(stack.initialize(), 0)
    stepper = stack.graph_stepper
    theta = stepper.static.current.theta
    assert theta.shape[1] * theta.element_size() % ROW_BYTES  # rows one after another would not be aligned
    assert {(row.data_ptr() - theta.data_ptr()) % ROW_BYTES for row in theta} == {0}
    assert stepper.result().theta.is_contiguous()


class MadeUpGraph:
    def replay(self):
        """It is only counted whether anybody still holds it."""

    def pool(self):
        return self.memory


class MadeUpStream:
    """A stream of a card that is not there. made: all of them."""

    made: ClassVar = []

    def __init__(self, device):
        self.made.append(self)

    def wait_stream(self, other):
        """There is nothing to wait for."""


@pytest.fixture
def made_up_cuda(monkeypatch):
    """made_up_cuda(recording): captures by a CUDA that is not there. recording: what stands for `torch.cuda.graph`.
    Returns the streams on which something was called or recorded."""

    def patch(recording):
        used = []

        def on_stream(stream):
            used.append(stream)
            return nullcontext()

        def graph(made, pool=None, stream=None):
            used.append(stream)
            return recording(made, pool)

        monkeypatch.setattr(MadeUpStream, "made", [])
        monkeypatch.setattr(torch.cuda, "Stream", MadeUpStream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(torch.cuda, "stream", on_stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", MadeUpGraph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        return used

    capture.side_stream.cache_clear()
    yield patch
    capture.side_stream.cache_clear()


def test_graphs_share_memory_with_those_that_are_still_there(made_up_cuda):
    """PyTorch may not be asked for memory whose last graph was dropped. Neither is garbage collected while something is
    recorded, nor is there a new stream for each recording."""
    asked, collecting = [], []

    @contextmanager
    def recording(graph, pool):
        asked.append(pool)
        graph.memory = object() if pool is None else pool
        yield

    used = made_up_cuda(recording)
    made = capture.CudaCapture(torch.device("cuda"))
    record = lambda: made.capture(lambda: collecting.append(gc.isenabled()), lambda: None)  # noqa: E731
    replays = [record() for _ in range(2)]
    assert asked[0] is None and asked[1] is replays[0].__self__.pool()
    del replays[0]
    replays.append(record())
    assert asked[2] is asked[1]
    replays.clear()
    record()
    assert asked[3] is None
    assert collecting == [False] * 4 * (capture.WARM_UP_CALLS + 1) and gc.isenabled()
    (stream,) = MadeUpStream.made
    assert used == [stream] * 8  # four graphs, each warmed up and recorded


class RunsOut(Finetune):
    """Its step fails while it is recorded. recorded: whether it is. error: by what it fails."""

    recorded: ClassVar = [False]
    error: ClassVar = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")]

    def loss(self, theta, state, hp, batch):
        if self.recorded[0]:
            raise self.error[0]
        return super().loss(theta, state, hp, batch)


class FailingRecording:
    """A recording whose end fails with an error of its own where something in it has failed, as PyTorch's does."""

    def __init__(self, graph, pool):
        graph.memory = object()

    def __enter__(self):
        RunsOut.recorded[0] = True

    def __exit__(self, kind, error, trace):
        RunsOut.recorded[0] = False
        if error is not None:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")


def recording_runs(prepared_of, number):
    """How runs end whose stack is trained by CUDA graphs."""
    typed = "strategy=finetune", "iterations=2", "tasks=2", "plots=false", "device=cpu"
    runs = [prepared_of(*typed, f"seed={seed}") for seed in range(number)]

    def graphed(given, **options):
        stack = build([replace(run, strategy=RunsOut) for run in given], **options)
        return replace(stack, use_graph=True, capture=capture.CudaCapture(torch.device("cuda")))

    relay = workers.Relay(lambda message: None)
    return workers.train_unfinished(runs, relay, partial(train_stack, build=graphed))


def test_a_stack_that_runs_out_of_memory_while_it_is_recorded_is_too_large(prepared_of, made_up_cuda, monkeypatch):
    """PyTorch ends the recording with an error that does not speak of memory. A run that is alone is told what to do,
    and what failed for another reason is not tried again as halves."""
    made_up_cuda(FailingRecording)
    assert recording_runs(prepared_of, 2) == StackTooLarge()
    (alone,) = recording_runs(prepared_of, 1).results
    assert alone.status == "crashed" and "memory does not suffice for this run" in alone.reason
    monkeypatch.setattr(RunsOut, "error", [ValueError("unlucky")])
    ended = recording_runs(prepared_of, 2)
    assert [one.status for one in ended.results] == ["crashed"] * 2 and "memory" not in ended.results[0].reason


@pytest.mark.parametrize("strategy", ["finetune", "ewc", "hat"])
def test_a_compiled_step_is_the_step(stack_of, monkeypatch, strategy):
    monkeypatch.setattr(torch, "compile", lambda step, **_: compile_eagerly(step))
    plain = stack_of(f"strategy={strategy}")
    compiled = replace(stack_of(f"strategy={strategy}"), compile=True)
    one, _ = plain.learn(plain.initialize(), 0)
    other, _ = compiled.learn(compiled.initialize(), 0)
    torch.testing.assert_close(one.theta, other.theta, rtol=0, atol=1e-9)


SEVERAL = ("ewc", "er", "agem", "hat")  # whose runs have as many steps as their tasks have batches
BUDGETS = [*((strategy, "epochs=1") for strategy in STRATEGIES), *((strategy, "iterations=4") for strategy in SEVERAL)]
# Ten seconds a strategy, for a key that has an effect on CUDA alone: the quick suite has one.
QUICK_OR_SLOW = [pytest.param(*b, marks=() if b == ("ewc", "epochs=1") else pytest.mark.slow) for b in BUDGETS]


@pytest.mark.parametrize(("strategy", "budget"), QUICK_OR_SLOW)
def test_compiled_steps_of_a_stack_are_its_steps(stack_of, monkeypatch, strategy, budget):
    """In an epoch, the runs of this stack have different numbers of steps, so that some are over before others; where
    a method trains on its memory alone, they have equal numbers."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: compile_eagerly(step))
    typed = f"strategy={strategy}", budget, "batch_size=5"
    plain, compiled = stack_of(*typed, seeds=(0, 1, 2)), replace(stack_of(*typed, seeds=(0, 1, 2)), compile=True)
    if not plain.strategy.takes_steps(0):
        pytest.skip(f"{strategy} takes no step")
    one, _ = plain.learn(plain.initialize(), 0)
    other, _ = compiled.learn(compiled.initialize(), 0)
    torch.testing.assert_close(one.theta, other.theta, rtol=0, atol=1e-9)
    masked = {kind.masked for kind in compiled.pure_steps.made}
    assert masked == {kind.masked for kind in plain.pure_steps.made}
    if strategy in SEVERAL:
        assert masked == ({False, True} if budget == "epochs=1" else {False})


def test_a_step_is_compiled_once_for_blocks_of_every_size(stack_of, monkeypatch):
    """How many steps a block has follows from the time that they take."""
    made = []

    def counted(module, inputs):
        made.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda step, **_: compile_eagerly(step, counted))
    stack = replace(stack_of("strategy=ewc", "iterations=48", "batch_size=5", seeds=(0, 1, 2)), compile=True)
    samplers = stack.schedule.samplers(0, "train", stack.states(stack.initialize()))
    stepper, partial = stack.make_stepper(stack.initialize(), samplers), stack.new_stage(0)
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 3):
        partial = partial.extended(stack.train_block(stepper, samplers, partial, size), size)
    assert len(made) == len(stack.pure_steps.made)


COMPILE = torch.compile


def compile_eagerly(step, backend="aot_eager"):
    torch._dynamo.reset()
    return COMPILE(step, fullgraph=True, backend=backend, dynamic=False)
