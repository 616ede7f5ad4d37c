"""Samples that a memory brings back are augmented by draws of their own, which follow from the run's seed."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from conftest import live
from helpers import as_class
from test_every_strategy import distance
from test_replay_options import a_batch
from torch.utils._pytree import tree_map

from clrun.data.batches import Data
from clrun.strategies.er import ER

METHODS = ("er", "er_ace", "der", "derpp", "agem", "fdr", "gem", "mir")
OPTIONS = {
    "er, without replacement": ("er", "replay_draw=without"),
    "er, in epochs": ("er", "replay_draw=epochs", "memory_policy=past"),
    "derpp, nine": ("derpp", "replay_batch=9"),
}
CASES = {name: (name,) for name in METHODS} | OPTIONS
AUGMENTED = ("scenario=class", "augment=crop_flip", "memory_size=60")


@dataclass(frozen=True)
class RecordingData(Data):
    """A data set that keeps the numbers by which samples were augmented."""

    seen: list = field(default_factory=list)

    def gather(self, tables, index, context, augment=True):
        self.seen.append(context.noise[3:].mT)
        return super().gather(tables, index, context, augment)


@pytest.mark.parametrize("strategy", METHODS)
def test_no_two_samples_of_a_step_share_their_draws(stack_of, strategy):
    """Neither a sample of the stream and one that is replayed, nor two that are: in the third task, from a memory of
    the first two."""
    stack = stack_of(f"strategy={strategy}", *AUGMENTED, "batch_size=24", "iterations=5")
    run, _ = stack.learn(stack.initialize(), 0)
    run, _ = stack.learn(run, 1)
    data = RecordingData(**{name: getattr(stack.strategy.data, name) for name in Data.__dataclass_fields__})
    batch = a_batch(stack, stage=2)
    replace(stack.strategy, data=data).gradient(run.theta, run.state, stack.hp, batch)
    assert data.seen, "something is replayed"
    # MIR gathers what it has chosen once more, and it may be augmented as it was among the candidates
    parts = [batch.noise[3:].mT, *(data.seen[-1:] if strategy == "mir" else data.seen)]
    draws = torch.cat(parts)
    assert len(draws.unique(dim=0)) == len(draws) > 24


def test_a_sample_that_is_replayed_beside_itself_is_another_picture(stack_of):
    """Recalled directly, as a user's own strategy does. Half of the draws at least give another crop or flip; the same
    question has the same answer, and another row at the same place another draw."""
    stack = stack_of("strategy=finetune", *AUGMENTED[:2], "batch_size=64")
    data, batch = stack.strategy.data, a_batch(stack)
    replayed = data.recall(batch.rows, batch)
    assert (replayed.x != batch.x).flatten(1).any(1).float().mean() > 0.5
    assert torch.equal(replayed.x, data.recall(batch.rows, batch).x)
    assert torch.equal(replayed.noise[:3], batch.noise[:3])
    other = data.recall(batch.rows.flip(0), batch)
    assert (other.noise[3:] != replayed.noise[3:]).any(0).all()
    assert torch.equal(data.recall(batch.rows, batch, noise=batch.noise).x, batch.x)


def test_draws_of_companions_are_uniform(stack_of):
    """Of 20000 samples: mean and variance within 5 standard errors, and no correlation with those beside them."""
    stack = stack_of("strategy=finetune", *AUGMENTED[:2], "batch_size=12")
    data, batch, n = stack.strategy.data, a_batch(stack), 20_000
    noise = torch.rand(6, n, generator=torch.Generator().manual_seed(0))
    many = batch._replace(rows=batch.rows[:1].expand(n), weight=torch.ones(n), mean_weight=torch.ones(n), noise=noise)
    drawn = data.recall(many.rows, many).noise[3:].double() - 0.5
    assert (drawn.mean(1).abs() < 5 * (1 / 12 / n) ** 0.5).all()
    assert ((drawn.square().mean(1) - 1 / 12).abs() < 5 * (1 / 180 / n) ** 0.5).all()
    beside = torch.cat([noise[3:].double() - 0.5, drawn])
    correlation = torch.corrcoef(beside) - torch.eye(6)
    assert (correlation.abs() < 5 / n**0.5).all()


def test_without_augmentation_nothing_is_drawn(stack_of):
    """What is recalled has the numbers of the batch, so that its strategy's numbers are those that they were."""
    stack = stack_of("strategy=er", "memory_size=30", "batch_size=12")
    run, _ = stack.learn(stack.initialize(), 0)
    batch = a_batch(stack)
    old, _ = stack.strategy.recall(run.state.memory, batch, batch.noise[1])
    assert old.noise is batch.noise


@pytest.mark.parametrize("case", CASES)
def test_stacked_equals_alone(stack_of, case):
    """Over two epochs, whose last batch is short and is cut where a run is alone on a CPU."""
    strategy, *options = CASES[case]
    typed = (f"strategy={strategy}", *options, *AUGMENTED, "epochs=2", "batch_size=48")
    together, _ = live(stack_of(*typed, seeds=(0, 1, 2)))
    for r in (0, 2):
        alone, _ = live(stack_of(*typed, seeds=(r,)))
        assert distance(tree_map(lambda v, r=r: v[r], together), alone) < 1e-9


class CopiesTheStream(ER):
    """ER whose replayed samples are cropped and flipped as the stream's samples beside them are."""

    def augmentation(self, batch, noise, m):
        return batch.noise


def test_it_is_another_run_than_with_the_draws_of_the_stream(stack_of):
    typed = ("strategy=er", *AUGMENTED, "iterations=5")
    own, _ = live(stack_of(*typed))
    copying = stack_of(*typed)
    copying.strategy = as_class(copying.strategy, CopiesTheStream)
    assert distance(live(copying)[0].theta, own.theta) > 1e-6
