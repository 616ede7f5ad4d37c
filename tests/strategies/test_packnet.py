"""PackNet against loops over weights and torch.optim, and what it promises: later tasks change nothing."""

from dataclasses import dataclass, field

import pytest
import torch
from conftest import live
from helpers import module_of
from torch import nn

from clrun.strategies.packnet import PackNet, largest
from clrun.system.errors import UsageError

OPTIMIZERS = [
    ("optimizer=adam",),
    ("optimizer=adamw", "optimizer.weight_decay=0.1"),
    ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.01"),
]
STREAMS = [("scenario=task",), ("scenario=domain", "task_id_at_test=true")]


def answers_of(stack, run, task):
    """The logits (n, C) of all test pictures of a task."""
    strategy = stack.strategy.eval_mode(run.stats)
    rows = stack.strategy.data.rows(stack.streams[0].test[task], task)
    image, t = rows % len(strategy.data.images), torch.full_like(rows, task)
    x = strategy.data.inputs(stack.tables, image, t)
    logits = strategy.logits(strategy.deploy(run.theta, run.state, stack.hp), run.state, stack.hp, x, t)
    return logits[:, stack.tables.active[task, task]]


def lives(stack):
    """-> [stage][task <= stage] logits, reports."""
    run, seen, reports = stack.initialize(), [], []
    for stage in range(stack.strategy.data.tasks):
        run, report = stack.learn(run, stage)
        seen.append([answers_of(stack, run, task) for task in range(stage + 1)])
        reports.append(report)
    return run, seen, reports


MODELS = [(), ("model=cnn", "model.width=3"), ("model=resnet18", "model.width=3")]
TASKS = "split.classes=[[0,1],[2,3],[4,5]]"


@pytest.mark.parametrize(("model", "stream", "optimizer"), [
    *((model, STREAMS[0], optimizer) for model in MODELS for optimizer in OPTIMIZERS),
    *((model, STREAMS[1], OPTIMIZERS[0]) for model in MODELS),
])  # fmt: skip
def test_later_tasks_change_no_logit(stack_of, model, stream, optimizer):
    """Forgetting is exactly zero: not a bit of an old task's logits moves, whatever the optimizer keeps in motion."""
    stack = stack_of("strategy=packnet", *model, *stream, *optimizer, TASKS, "iterations=6", dtype=torch.float32)
    _, seen, reports = lives(stack)
    for stage in range(1, 3):
        for task in range(stage):
            assert torch.equal(seen[stage][task], seen[task][task])
    if stream[0] == "scenario=task":
        correct = torch.stack([report.correct[0] for report in reports])
        assert all(torch.equal(correct[task:, task], correct[task, task].expand(3 - task)) for task in range(3))


HEAD = 5  # the place of the layer of outputs in the module


@dataclass
class LoopPackNet:
    """PackNet of an MLP under plain SGD, where masking the gradient is enough, in loops over single weights."""

    module: nn.Sequential
    outputs: dict  # task -> its outputs
    lr: float
    keep: float
    taken: dict = field(default_factory=dict)  # (layer, i, j) of a hidden weight -> its task

    @property
    def layers(self):
        """The linear layers by their places in the module."""
        return {number: self.module[number] for number in (1, 3, HEAD)}

    def step(self, x, y, stage, phase):
        """Take a step on images x (B, C, H, W) with labels y (B,)."""
        self.module.zero_grad()
        logits = self.module(x)[:, list(self.outputs[stage])]
        nn.functional.cross_entropy(logits, y - min(self.outputs[stage])).backward()
        with torch.no_grad():
            for number, layer in self.layers.items():
                for i in range(layer.out_features):
                    self.move_unit(number, i, stage, phase)

    def move_unit(self, number, i, stage, phase):
        """Move the bias and the weights of one unit of a layer."""
        layer, of_task = self.layers[number], number == HEAD and i in self.outputs[stage]
        if of_task or (number != HEAD and stage == 0):
            layer.bias[i] -= self.lr * layer.bias.grad[i]
        for j in range(layer.in_features):
            free = (number, i, j) not in self.taken and phase == "train"
            mine = self.taken.get((number, i, j)) == stage
            if of_task or (number != HEAD and (free or mine)):
                layer.weight[i, j] -= self.lr * layer.weight.grad[i, j]

    def prune(self, stage):
        """Let the task take the largest of each hidden layer's free weights, and set the others to zero."""
        for number in (1, 3):
            W = self.layers[number].weight.detach()
            free = [(i, j) for i in range(W.shape[0]) for j in range(W.shape[1]) if (number, i, j) not in self.taken]
            free.sort(key=lambda ij, W=W: -abs(W[ij].item()))
            kept = free[: round(self.keep * len(free))]
            self.taken |= {(number, *ij): stage for ij in kept}
            for ij in free[len(kept) :]:
                W[ij] = 0.0


def batches_of(stack, stage, phase, steps):
    """Yield images and labels of each step of a pass."""
    data = stack.strategy.data
    rows, weight, *_ = stack.schedule.sampler(0, stage, phase).sample(0, steps)
    for row, w in zip(rows, weight, strict=True):
        row = row[w > 0]
        image = row % len(data.images)
        yield data.inputs(stack.tables, image, row // len(data.images)), stack.tables.label[stage][data.labels[image]]


def test_equals_loops(stack_of):
    """Two tasks of digits under plain SGD, where masking the gradient is enough, with masks kept as lists of names."""
    overrides = ("optimizer=sgd", "lr=0.1", "keep=0.3", "split.classes=[[0,1,2],[3,4]]", "iterations=12")
    stack = stack_of("strategy=packnet", *overrides)
    module = module_of(stack.strategy.net, stack.initialize().theta)
    loops = LoopPackNet(module, {0: (0, 1, 2), 1: (3, 4)}, lr=0.1, keep=0.3)
    for stage in (0, 1):
        for phase in ("train", "retrain"):
            for x, y in batches_of(stack, stage, phase, steps=12):
                loops.step(x, y, stage, phase)
            if phase == "train":
                loops.prune(stage)
    run, _ = live(stack)
    ours, pieces = stack.strategy.net.layout.view(run.theta), dict(module.named_parameters())
    for number, name in zip((1, 3, HEAD), ("hidden.0", "hidden.1", "head"), strict=True):
        for kind in ("weight", "bias"):
            assert (ours[f"{name}.{kind}"] - pieces[f"{number}.{kind}"]).abs().max() < 1e-10
    owners = stack.strategy.net.layout.view(run.state.owner)
    for number, name in ((1, "hidden.0"), (3, "hidden.1")):
        for i, j in [(0, 3), (2, 5), (4, 7), (7, 1)]:
            assert owners[f"{name}.weight"][i, j].item() == loops.taken.get((number, i, j), 2)


def test_largest_of_equals_takes_exactly_the_share():
    score = torch.tensor([0.0, 0.0, 3.0, 0.0, 2.0, 0.0])
    among = torch.tensor([True, True, False, True, True, True])
    assert largest(score, among, torch.tensor(0.6)).tolist() == [True, True, False, False, True, False]


def test_says_what_it_left(stack_of):
    _, reports = live(stack_of("strategy=packnet", "keep=0.5"))
    rows = [{"task": i + 1} | report.health[0] for i, report in enumerate(reports)]
    assert [row["free_share"] for row in rows] == pytest.approx([0.5**n for n in range(1, 6)], abs=0.02)
    assert [row["taken_share"] for row in rows] == pytest.approx([0.5**n for n in range(1, 6)], abs=0.02)
    assert PackNet.warnings(rows, {"keep": 0.5}) == []


def test_complains_when_nothing_is_left(stack_of):
    _, reports = live(stack_of("strategy=packnet", "keep=1"))
    rows = [{"task": i + 1} | report.health[0] for i, report in enumerate(reports)]
    assert "no weight was free after task 1" in PackNet.warnings(rows, {"keep": 1.0})[0]


def test_refuses_batch_norm(stack_of):
    with pytest.raises(UsageError, match=r"type model\.norm=group"):
        stack_of("strategy=packnet", "model=resnet18", "model.norm=batch")


def test_freed_weights_wait_at_zero(stack_of):
    """Also under an optimizer that keeps moving what has no gradient."""
    stack = stack_of("strategy=packnet", "optimizer=adamw", "keep=0.3")
    run, _ = stack.learn(stack.initialize(), 0)
    weight, owner = (stack.strategy.net.layout.view(v)["hidden.0.weight"] for v in (run.theta, run.state.owner))
    assert (owner == 1).sum() == 64 * 12 - round(0.3 * 64 * 12)
    assert weight[owner == 1].abs().max() == 0
    assert (weight[owner == 0] != 0).all()
