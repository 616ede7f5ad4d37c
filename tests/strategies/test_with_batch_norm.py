"""Networks with batch norm against torch.nn.BatchNorm2d in train(), for every strategy; stacked, recorded, compiled."""

from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import STRATEGIES
from torch import nn
from torch.utils._pytree import tree_map

from clrun.data.batches import StepContext, split_steps
from clrun.engine.step import make_step
from clrun.models import Net
from clrun.runs import contract
from clrun.system.errors import UsageError

CLASSES = "split.classes=[[0,1],[2,3,4],[5,6]]"
SMALL = ("model=resnet18", "model.width=2", "model.norm=batch", "optimizer=sgd", "lr=0.02", "batch_size=24", CLASSES)
REPLAY = ("er", "agem", "der", "derpp")
NAMES = {"running_mean": "mean", "running_var": "var"}


class Plain(nn.Module):
    """The network, whose batch norms are torch.nn.BatchNorm2d with statistics of their own, written in place."""

    def __init__(self, network, dtype):
        super().__init__()
        sizes = {name[:-5]: len(v) for name, v in network.statistics().items() if name.endswith(".mean")}
        norms = {name.replace(".", "_"): nn.BatchNorm2d(size, dtype=dtype) for name, size in sizes.items()}
        self.norms = nn.ModuleDict(norms)

    def statistics(self):
        state = {name: dict(m.named_buffers()) for name, m in self.norms.items()}
        return {f"{n}.{NAMES[key]}": v for n, buffers in state.items() for key, v in buffers.items() if key in NAMES}


class PlainWeights:
    """What `Network.forward` asks for, computed by PyTorch's modules."""

    def __init__(self, pieces, plain):
        self.pieces, self.plain = pieces, plain

    def linear(self, name, x):
        return nn.functional.linear(x, self.pieces[f"{name}.weight"], self.pieces[f"{name}.bias"])

    def conv(self, name, x, stride=1):
        weight = self.pieces[f"{name}.weight"]
        return nn.functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def batch_norm(self, name, x):
        own = {"weight": self.pieces[f"{name}.weight"], "bias": self.pieces[f"{name}.bias"]}
        return torch.func.functional_call(self.plain.norms[name.replace(".", "_")], own, (x,))


@dataclass(frozen=True)
class PlainNet(Net):
    """A network that is trained by nn.BatchNorm2d; samples that are not there are not passed through it at all."""

    plain: Plain | None = None

    def unrecorded(self):
        """The network with statistics that nobody reads afterwards."""
        return replace(self, plain=deepcopy(self.plain))

    def __call__(self, theta, x, tap=lambda i, h: h, before=lambda i, z: z):
        if self.statistics is not None:
            return Net(self.network, self.layout, mode=self.mode)(theta, x, tap, before)
        weight = self.mode.of_batch(len(x)).sample_weight
        there = torch.ones(len(x), dtype=torch.bool) if weight is None else weight > 0
        z = torch.zeros(len(x), 7, dtype=x.dtype)
        if not there.any():
            return z + 0 * theta.sum()
        z[there] = self.network.forward(
            PlainWeights(self.layout.view(theta), self.plain.train()), x[there], tap, before
        )
        return z


def stack_or_skip(stack_of, *overrides):
    try:
        return stack_of(*overrides)
    except UsageError as refusal:
        assert "type model" in str(refusal) or "task_id" in str(refusal)
        pytest.skip(f"refused: {refusal}")


def assert_agrees(plain, theta, run):
    assert (theta - run.theta).abs().max() < 1e-9
    for name, v in plain.statistics().items():
        layer, _, kind = name.rpartition(".")
        ours = {key.replace(".", "_"): w for key, w in run.stats.items()}[f"{layer}_{kind}"]
        assert (v - ours).abs().max() < 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_as_with_batch_norms_of_pytorch(stack_of, strategy):
    """Two tasks: SGD on the strategy's own gradient through nn.BatchNorm2d in train(), short batches among them."""
    stack = stack_or_skip(stack_of, f"strategy={strategy}", *SMALL, "epochs=1", "batch_size=100", "scenario=task")
    run = stack.initialize()
    for stage in range(2):
        run, partial = stack.begin_stage(run, stage), stack.new_stage(stage)
        for phase in stack.strategy.phases if stack.strategy.visible(stage) else ():
            plain, theta = by_pytorch(stack, run, stage, phase)
            run, partial = stack.train(run, partial)
            assert_agrees(plain, theta, run)
            run, partial = stack.consolidate(run, partial), partial.next_phase()


def by_pytorch(stack, run, stage, phase):
    """The batch norms and theta after a pass."""
    plain = plain_of(stack, run)
    net = PlainNet(stack.strategy.net.network, stack.strategy.net.layout, plain=plain)
    other = replace(stack.strategy, net=net)
    theta, state = run.theta, run.state
    for batch in batches(stack, stage, phase, state):
        g, _, aux = other.gradient(theta, state, stack.hp, batch)
        quadratic = other.quadratic(state, stack.hp)
        g = g if quadratic is None else g + quadratic.gradient(theta - quadratic.mean)
        moved = theta + other.restrict(-0.02 * g, g, theta, state, stack.hp, batch)
        state = other.after_move(other.after_step(state, stack.hp, batch, aux), theta, moved, aux)
        theta = moved
    return plain, theta


def plain_of(stack, run):
    plain = Plain(stack.strategy.net.network, run.theta.dtype)
    with torch.no_grad():
        for name, v in run.stats.items():
            layer, _, kind = name.rpartition(".")
            getattr(plain.norms[layer.replace(".", "_")], f"running_{kind}").copy_(v)
    return plain


def batches(stack, stage, phase="train", state=None):
    """The batches of a pass that begins with this state, each cut to its samples."""
    (sampler,) = stack.schedule.samplers(stage, phase, [stack.initialize().state if state is None else state])
    if not sampler.steps:  # of a pass that only reads the samples of the task
        return
    rows, weight, progress, epoch, noise = sampler.sample(0, sampler.steps)
    index = stack.strategy.data.index(stack.tables, rows, weight.double())
    context = StepContext(*stack.stage_and_horizon(stage), progress, epoch, noise)
    for samples, when in split_steps(index, context):
        n = int(samples.weight.sum())
        yield stack.strategy.data.gather(stack.tables, samples, when).first(n)


@pytest.mark.parametrize("strategy", [*REPLAY, "mir"])
def test_replayed_samples_count(stack_of, strategy):
    """er passes both batches as one, the others each by itself; none counts that comes from an empty memory, nor any
    that mir considers and does not choose."""
    stack = stack_of(f"strategy={strategy}", *SMALL, "iterations=3")
    run, _ = stack.learn(stack.initialize(), 0)
    own, records = [], []
    (batch, *_) = batches(stack, 1)
    for state, seen in ((stack.initialize().state, own), (run.state, records)):
        training = stack.strategy.train_mode(None, seen, batch.noise)
        training.gradient(run.theta, state, stack.hp, batch)
    counts = [int(r.moments.n) // 64 for r in records if r.name == "stem.norm"]
    empty = [int(r.moments.n) // 64 for r in own if r.name == "stem.norm"]
    assert counts == {"er": [48], "agem": [24, 24], "der": [24, 24], "derpp": [24, 24, 24], "mir": [24, 24]}[strategy]
    assert [n for n in empty if n] == [24]


@pytest.mark.parametrize("strategy", ["finetune", "er", "derpp", "agem"])
def test_three_stacked_equal_the_three_alone(stack_of, strategy):
    """Class orders of their own, so tasks of unequal size and ragged batches."""
    typed = (f"strategy={strategy}", *SMALL[:-1], "epochs=1", "batch_size=100", "tasks=5", "split.order=seed")
    together, alone = stack_of(*typed, seeds=(0, 1, 2)), [stack_of(*typed, seeds=(seed,)) for seed in (0, 1, 2)]
    run, _ = together.learn(together.initialize(), 0)
    run, _ = together.learn(run, 1)
    for r, one in enumerate(alone):
        other, _ = one.learn(one.initialize(), 0)
        other, _ = one.learn(other, 1)
        assert (run.theta[r] - other.theta).abs().max() < 1e-9
        assert all((v[r] - other.stats[name]).abs().max() < 1e-9 for name, v in run.stats.items())


@pytest.mark.parametrize("strategy", ["finetune", "er", "lwf"])
def test_recorded_as_a_graph(stack_of, strategy):
    typed = (f"strategy={strategy}", *SMALL, "epochs=1", "batch_size=100")
    plain, recorded = stack_of(*typed), replace(stack_of(*typed), use_graph=True)
    one, _ = plain.learn(plain.initialize(), 0)
    other, _ = recorded.learn(recorded.initialize(), 0)
    assert (one.theta - other.theta).abs().max() < 1e-9
    assert all((v - other.stats[name]).abs().max() < 1e-9 for name, v in one.stats.items())


@pytest.mark.parametrize("strategy", ["er", "ewc"])
def test_a_fully_connected_network_is_the_same_alone(stack_of, strategy):
    """Where another run of the stack has longer epochs, what fills up a short batch does not count."""
    typed = (f"strategy={strategy}", "model.widths=[6,5]", "model.norm=batch", *SMALL[3:], "epochs=1")
    seeds = (0, 3)
    assert contract.stacked(stack_of(*typed, seeds=seeds), lambda r: stack_of(*typed, seeds=[seeds[r]]), seeds) is None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["finetune", "er", "agem"])
def test_a_step_with_batch_norm_is_pure_and_compiles_whole(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", *SMALL, "iterations=1")
    run = stack.initialize()
    sampler = stack.schedule.sampler(0, 0, "train")
    rows, weight, progress, epoch, noise = sampler.sample(0, 1)
    index = stack.strategy.data.index(stack.tables, rows, weight.double())
    when = StepContext(*stack.stage_and_horizon(0), progress, epoch, noise)
    ((samples, context),) = split_steps(index, when)
    step, args = make_step(stack.strategy, stack.optimizer), (stack.lr, stack.hp, stack.tables, samples, context)
    before = tree_map(torch.clone, run)
    expected, _ = step(run, *args)
    torch._dynamo.reset()
    compiled, _ = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=False)(run, *args)
    for name, v in expected.stats.items():
        assert torch.equal(run.stats[name], before.stats[name]) and not torch.equal(v, run.stats[name])
        assert (compiled.stats[name] - v).abs().max() < 1e-9
    assert (compiled.theta - expected.theta).abs().max() < 1e-9
