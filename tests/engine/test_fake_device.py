"""Every strategy lives on a device that is not there: no tensor of the host meets one of the device, and nothing within
a step copies from the host, waits for the device or draws random numbers, which a CUDA graph refuses."""

from dataclasses import replace

import pytest
import torch
from conftest import SMALL, STRATEGIES
from fake_device import FakeDevice, live_a_life

from clrun.config.catalog import read
from clrun.strategies.finetune import Finetune
from clrun.system.errors import UsageError

# As small as a life of two tasks can be: every operation costs a tenth of a millisecond, whatever its size.
SHORT = ("tasks=2", "iterations=1", "batch_size=48", "model.widths=[6]", "memory_size=10")


def lived(prepared_of, *typed, strategy="finetune", seeds=(0,), cls=None, **changes) -> FakeDevice:
    """The device after a short life of runs that differ in seed. cls: a class in place of the strategy's."""
    named = {text.partition("=")[0].partition(".")[0] for text in typed}
    unknown = set() if "memory_size" in read().options["strategy"][strategy].knobs else {"memory_size"}
    replaced = named | unknown | ({"iterations"} if named & {"epochs", "stream"} else set())
    short = [text for text in SHORT if text.partition("=")[0].partition(".")[0] not in replaced]
    small = SMALL.get(f"strategy={strategy}", ())
    overrides = (f"strategy={strategy}", *typed, *short, *small)
    runs = [prepared_of(*overrides, f"seed={seed}") for seed in seeds]
    runs = runs if cls is None else [replace(run, strategy=cls) for run in runs]
    there = FakeDevice()
    live_a_life(there, runs, **changes)
    return there


ALONE, STACKED = (0,), (0, 1, 2)
SLOW = pytest.mark.slow


HEAVY = ("bic", "dgr", "gem")  # thousands of operations a life: the quick suite has them alone


@pytest.mark.parametrize("strategy", [pytest.param(s, marks=SLOW if s in HEAVY else ()) for s in STRATEGIES])
def test_a_stack_lives_without_the_host(prepared_of, strategy):
    there = lived(prepared_of, strategy=strategy, seeds=STACKED)
    assert not there.met("step")
    assert not there.waited("consolidation")


@pytest.mark.parametrize(
    "strategy", [pytest.param(s, marks=() if s in (*HEAVY, "er", "fecam") else SLOW) for s in STRATEGIES]
)
def test_a_run_lives_without_the_host(prepared_of, strategy):
    there = lived(prepared_of, strategy=strategy, seeds=ALONE)
    assert not there.met("step")
    assert not there.waited("consolidation")


# What else a life can meet: networks, optimizers, learning rates, splits and kinds of stream.
QUICK = ("model=cnn model.width=2 model.head=cosine", "average=ema clip_norm=1 schedule=cosine warmup=0.5")
KINDS = (
    *QUICK,
    "model=linear",
    "model=cnn model.width=2",
    "model=resnet18 model.width=20 model.norm=group",
    "model=resnet18 model.width=2 model.norm=batch",
    "model=module model.target=user_networks.ConvNormDrop",
    "optimizer=sgd",
    "optimizer=sgd optimizer.momentum=0.9 optimizer.nesterov=true optimizer.weight_decay=0.01",
    "optimizer=adamw optimizer.reset=true",
    "schedule=multistep schedule_over=stream",
    "schedule=linear epochs=1",
    "augment=crop_flip",
    "average=ema",
    "clip_norm=0.5",
    "stream=online",
    "stream=online passes=2",
    "stream=online boundaries=false scenario=class",
    "stream=online split.circle=3 tasks=3 scenario=class",
    "split=permuted scenario=domain",
    "split=rotated scenario=domain",
    "scenario=class",
    "scenario=class active=all",
    "scenario=domain",
    "precision=tf32",
    "measure=plasticity",
    "measure=calibration",
    "scenario=class measure=task_aware",
    "validation=0.2 evaluate_every=1",
    "drop_last=true epochs=1",
)
COMBINATIONS = [
    pytest.param(kind, strategy, seeds, marks=[] if kind in QUICK and seeds != ALONE and strategy == "er" else SLOW)
    for kind in KINDS
    for strategy in ("ewc", "er")
    for seeds in (ALONE, STACKED)
]


@pytest.mark.parametrize(("kind", "strategy", "seeds"), COMBINATIONS)
def test_a_life_of_another_kind_without_the_host(prepared_of, kind, strategy, seeds):
    """Where a method refuses a setting, it does so in a sentence, and there is nothing more to check."""
    try:
        there = lived(prepared_of, *kind.split(), strategy=strategy, seeds=seeds)
    except UsageError as refusal:
        pytest.skip(f"refused: {refusal}")
    assert not there.met("step")
    assert not there.waited("consolidation")


class Asking(Finetune):
    """It reads a value of the device in the loss."""

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        return loss * (1 + 0 * loss.detach().item()), aux


class Counting(Finetune):
    """The shape of a tensor in its loss depends on values."""

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        return loss + 0 * batch.weight.nonzero().sum(), aux


class Copying(Finetune):
    """It makes a tensor on the host and copies it in each step."""

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        return loss + 0 * torch.tensor([1.0, 2.0]).to(loss.device).sum(), aux


class Drawing(Finetune):
    """It draws a random number in each step."""

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        return loss + 0 * torch.rand_like(loss), aux


class Mixing(Finetune):
    """A tensor of the host meets one of the device."""

    def loss(self, theta, state, hp, batch):
        loss, aux = super().loss(theta, state, hp, batch)
        return loss + 0 * (batch.weight * torch.ones(len(batch.y))).sum(), aux


@pytest.mark.parametrize(
    ("cls", "found"),
    [(Asking, "_local_scalar_dense"), (Counting, "nonzero"), (Copying, "_to_copy"), (Drawing, "rand_like")],
)
def test_a_step_that_meets_the_host_is_found(prepared_of, cls, found):
    assert found in lived(prepared_of, cls=cls).met("step")


def test_tensors_of_two_devices_are_found(prepared_of):
    with pytest.raises(Exception, match=r"two .*lazy:0.*cpu"):
        lived(prepared_of, cls=Mixing)
