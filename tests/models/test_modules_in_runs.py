"""Modules of users and libraries in whole runs: killed and resumed, stacked, and what batch norm costs."""

import shutil
import statistics
import time
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import live
from helpers import as_class
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.batches import StepContext
from clrun.engine.step import make_step
from clrun.runs import checkpoint, train
from clrun.strategies.finetune import Finetune
from clrun.system.errors import UsageError

MODULE = ("model=module", "model.target=user_networks.ConvNormDrop")
SHORT = ("device=cpu", "iterations=20", "tasks=2", "pictures=false", "keep_checkpoint=true", "scenario=class")
TABLES = ("accuracy_matrix.csv", "forgetting.csv", "confusion.csv", "health.csv")


@pytest.mark.parametrize("strategy", ["ewc", "er", "lwf"])
@pytest.mark.parametrize("end", [Killed, KeyboardInterrupt])
def test_killed_and_resumed_it_ends_with_the_same_bytes(prepared_of, strategy, end):
    """Convolution, batch norm and dropout, in the middle of the second task."""
    prepared = prepared_of(*MODULE, *SHORT, f"strategy={strategy}", "checkpoint_every=0.000001")
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    whole = {name: (prepared.directory / name).read_bytes() for name in TABLES}
    expected = checkpoint.read(prepared.directory, prepared.id)
    shutil.rmtree(prepared.directory)
    with pytest.raises(end):
        train.train_runs([prepared], progress=InterruptingProgress(11, end), trainer=SHORT_BLOCKS)
    passes = checkpoint.read_position(prepared.directory, prepared.id)
    assert passes.stage == 1 and 0 < sum(passes.passes) < 20
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    assert whole == {name: (prepared.directory / name).read_bytes() for name in TABLES}
    found = checkpoint.read(prepared.directory, prepared.id)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], v) for name, v in expected.tensors.items())


VIT = (
    "model=module", "model.target=torchvision.models.VisionTransformer", "dataset.pad=4",
    "model.args={image_size:16,patch_size:4,num_layers:2,num_heads:2,hidden_dim:16,mlp_dim:32}",
)  # fmt: skip
GREY = ("model=module", "model.target=user_networks.grey_transformer", "dataset.pad=4")
EFFICIENT = ("model=torchvision", "model.arch=efficientnet_b0", "dataset.pad=12")
MOBILE = ("model=torchvision", "model.arch=mobilenet_v3_small", "dataset.pad=12")


@pytest.mark.slow
@pytest.mark.parametrize("network", [GREY, EFFICIENT, MOBILE], ids=["vit", "efficientnet", "mobilenet"])
@pytest.mark.parametrize("strategy", ["ewc", "er"])
def test_stacked_networks_of_libraries_equal_them_alone(stack_of, network, strategy):
    """In float64, where all that differs is the order of sums; tasks of unequal size, the last batch ragged.

    Two steps a task: EfficientNet on such small pictures makes a difference 40 times as large with each step.
    """
    few = ("fisher_samples=4",) if strategy == "ewc" else ()
    typed = (
        f"strategy={strategy}", *network, "scenario=class", "split.classes=[[0,1],[2]]", "first_tasks=1",
        "batch_size=150", "optimizer=sgd", "lr=0.01", "epochs=1", *few,
    )  # fmt: skip
    together, _ = live(stack_of(*typed, seeds=(0, 1)))
    for r, seed in enumerate((0, 1)):
        alone, _ = live(stack_of(*typed, seeds=(seed,)))
        of_stack = tree_map(lambda v, r=r: v[r], together)
        for a, b in zip(tree_leaves(of_stack), tree_leaves(alone), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_vision_transformer_takes_the_pictures_that_it_was_made_for(stack_of):
    """torchvision's class, made small by model.args; digits have one channel, and it takes three."""
    with pytest.raises(UsageError, match="channels"):
        stack_of(*VIT, "tasks=2")


@dataclass(frozen=True)
class Unrecorded(Finetune):
    """Plain fine-tuning whose batch norms record nothing."""

    def train_mode(self, sample_weight, records, noise):
        return replace(self, net=self.net.train_mode(sample_weight, None, noise))


@pytest.mark.slow
def test_running_statistics_cost_little(stack_of):
    """A step of ResNet-18 with batch norm, against the same step without running statistics, in turn, 15 times."""
    typed = ("model=resnet18", "model.width=8", "model.norm=batch", "dataset.pad=4", "strategy=finetune")
    stack = stack_of(*typed, "optimizer=sgd", dtype=torch.float32)
    sampled = stack.schedule.sampler(0, 0, "train").sample(0, 1)
    index = stack.strategy.data.index(stack.tables, sampled.rows[0], sampled.weight[0])
    context = StepContext(*stack.stage_and_horizon(0), sampled.progress[0], sampled.epoch[0], sampled.noise[0])
    recorded = make_step(stack.strategy, stack.optimizer), stack.initialize()
    bare = make_step(as_class(stack.strategy, Unrecorded), stack.optimizer), recorded[1]._replace(stats={})

    def seconds(step, current):
        began = time.process_time()
        for _ in range(4):
            new, _ = step(current, stack.lr, stack.hp, stack.tables, index, context)
        assert new.stats.keys() == current.stats.keys()
        return time.process_time() - began

    ratios = [seconds(*recorded) / seconds(*bare) for _ in range(16)][1:]  # the first warms up
    print(f"median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)}")
    assert statistics.median(ratios) <= 1.15
