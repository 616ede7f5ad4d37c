"""What a CUDA graph needs of every strategy's step, seen without a GPU: on device "meta" whatever waits for a value
raises, and whatever is made on the host is found by the operations that meet it."""

from dataclasses import replace

import pytest
import torch
from conftest import STRATEGIES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.batches import StepContext
from clrun.engine.cuda_graph import GraphStepper
from clrun.engine.stack import STEP_DIMS
from clrun.engine.step import make_step
from clrun.sweep import plan

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}


class OnTheHost(TorchDispatchMode):
    """Names of operations that wait for the device, or that read or make a host tensor of more than one number."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, torch.Tensor)]
        if name in WAITING or any(v.device.type == "cpu" and v.dim() for v in tensors):
            self.seen.add(name)
        return out


def elsewhere(tree):
    return tree_map(lambda v: v.to("meta") if isinstance(v, torch.Tensor) else v, tree)


def on_meta(stack, batch_size=8):
    """The stack's strategy, a run and what its step takes, without a value in any tensor."""
    strategy = stack.strategy
    images = {name: elsewhere(getattr(strategy.data, name)) for name in ("images", "labels", "scale", "shift")}
    strategy = replace(strategy, data=replace(strategy.data, **images))
    R = () if stack.alone else (len(stack.seeds),)
    rows = torch.zeros(*R, batch_size, dtype=torch.long)
    draws = stack.vectorizer.vectorize(stack.strategy.data.index)(
        stack.tables, rows, torch.ones_like(rows, dtype=torch.float64)
    )
    one, noise = torch.tensor(1), torch.zeros(*R, 6, batch_size)
    when = StepContext(one, one, torch.zeros(R), torch.zeros(R).long(), noise, torch.ones(R))
    return (
        strategy,
        elsewhere(stack.initialize()),
        elsewhere((stack.lr, stack.hp, stack.tables)),
        elsewhere((draws, when)),
    )


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["alone", "stacked"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_has_nothing_to_do_with_the_host(stack_of, strategy, seeds):
    stack = stack_of(f"strategy={strategy}", seeds=seeds)
    moved, run, values, dealt = on_meta(stack)
    step = stack.vectorizer.vectorize(make_step(moved, stack.optimizer), STEP_DIMS)
    with OnTheHost() as found:
        step(run, *values, *dealt)
    assert not found.seen


def test_what_waits_or_lies_on_the_host_is_found():
    with OnTheHost() as found:
        torch.zeros(3, device="meta") + torch.tensor(1.0)  # one number of the host is a constant to a graph
        assert not found.seen
        torch.arange(3)
        assert found.seen == {"arange"}


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


def test_a_stack_fills_the_card_and_no_more(prepared_of, monkeypatch):
    runs = [prepared_of("strategy=ewc", f"seed={seed}") for seed in range(6)]
    from clrun.runs.prepare import bytes_of_run

    room = int(4.5 * bytes_of_run(runs[0]) / plan.FILLED) + runs[0].images.x.numel()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (room, 2 * room))
    assert [len(part) for part in plan.stacks(runs, lambda run: "cuda")] == [3, 3]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 2 * room))
    assert [len(part) for part in plan.stacks(runs, lambda run: "cuda")] == [1] * 6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 * room, 200 * room))
    assert [len(part) for part in plan.stacks(runs, lambda run: "cuda")] == [6]


@pytest.mark.parametrize("strategy", ["finetune", "ewc", "hat"])
def test_a_compiled_step_is_the_step(stack_of, monkeypatch, strategy):
    monkeypatch.setattr(torch, "compile", lambda step, **_: compile_eagerly(step))
    plain = stack_of(f"strategy={strategy}")
    compiled = replace(stack_of(f"strategy={strategy}"), compile=True)
    one, _ = plain.learn(plain.initialize(), 0)
    other, _ = compiled.learn(compiled.initialize(), 0)
    torch.testing.assert_close(one.theta, other.theta, rtol=0, atol=1e-9)


COMPILE = torch.compile


def compile_eagerly(step):
    torch._dynamo.reset()
    return COMPILE(step, fullgraph=True, backend="aot_eager", dynamic=False)
