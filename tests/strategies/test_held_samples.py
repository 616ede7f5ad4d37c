"""What a memory holds: of all samples that it is offered, each at most once, and by which rule."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import live
from helpers import ListReservoir, as_class, empty_memory
from scipy.stats import hypergeom

from clrun.strategies.er import ER
from clrun.strategy import Memory
from clrun.strategy.replay import class_subset
from clrun.strategy.reservoir import named

METHODS = ("er", "agem", "der", "derpp")


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_a_batch_is_one_sample_after_the_other(size):
    """Batches of all sizes with samples missing: the same slots, two claims on one in a batch included."""
    draw = torch.Generator().manual_seed(size)
    memory, slots, twice = empty_memory(size), ListReservoir(size), 0
    for step in range(40):
        B = int(torch.randint(1, 17, (), generator=draw))
        rows = torch.arange(B) + 1000 * (step + 1)
        weight = (torch.rand(B, generator=draw) < 0.7).float()
        noise = torch.rand(B, generator=draw)
        claims = Counter()
        for row, w, u in zip(rows.tolist(), weight.tolist(), noise.tolist(), strict=True):
            if w:
                claims[int(u * (slots.offered + 1)) if slots.offered >= size else slots.offered] += 1
                slots.offer(row, u)
        twice += any(n > 1 for slot, n in claims.items() if slot < size)
        memory = memory.updated(memory.slot_updates(weight, noise), rows, weight)
        assert memory.held == len(slots.kept)
        assert memory.rows[: memory.held].tolist() == slots.kept
        assert memory.offered == slots.offered
    assert twice > 0 or size == 1


def test_each_sample_is_kept_with_probability_m_over_n():
    """20000 reservoirs of 8 among 50 offered in batches of 7. The count of each sample is binomial: 5 standard errors,
    exceeded by chance by one of 50 in 3 of 100000 such tests. Likewise where in the memory the last one stands."""
    M, N, runs = 8, 50, 20_000
    noise = torch.rand(runs, 56, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(56)
    weight = (rows < N).float()  # the last batch is short

    def fill(noise):
        memory = empty_memory(M)
        for part in torch.arange(56).split(7):
            memory = memory.updated(memory.slot_updates(weight[part], noise[part]), rows[part], weight[part])
        return memory.rows, memory.offered

    kept, offered = torch.vmap(fill)(noise)
    assert (offered == N).all()
    count = torch.bincount(kept.flatten(), minlength=56)
    assert count.sum() == runs * M
    assert (count[N:] == 0).all()
    p = M / N
    assert ((count[:N] / runs - p).abs() < 5 * (p * (1 - p) / runs) ** 0.5).all()
    where = (kept == N - 1).sum(0) / runs
    assert ((where - 1 / N).abs() < 5 * (1 / N * (1 - 1 / N) / runs) ** 0.5).all()


def test_positions_of_what_is_held():
    """Hand-worked: slots 7, 3, 9 in use and 0 not; a batch of 9, 5, 0, 3 without its third, and one of row 0 alone."""
    memory = Memory(torch.tensor([7, 3, 9, 0]), torch.tensor(3))
    assert memory.positions(torch.tensor([9, 5, 0, 3]), torch.tensor([1, 1, 0, 1])).tolist() == [-1, 3, 0, -1]
    assert memory.positions(torch.tensor([0]), torch.tensor([1])).tolist() == [-1] * 4
    assert memory.positions(torch.tensor([9, 5, 0, 3]), torch.zeros(4)).tolist() == [-1] * 4
    assert named(torch.tensor([-1, 3, 0, -1]), 4).tolist() == [True, False, False, True]


def test_draws_are_uniform_over_what_is_held():
    memory = Memory(torch.arange(10), torch.tensor(4))
    noise = torch.arange(4000) / 4096
    assert torch.bincount(memory.draw(noise)).tolist() == [1024, 1024, 1024, 928]
    assert memory.draw(torch.tensor([1 - 2**-24])).item() == 3  # the largest number that torch.rand gives
    assert empty_memory(5).draw(noise).unique().tolist() == [0]


@pytest.mark.parametrize("strategy", METHODS)
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_only_training_samples_are_kept(stack_of, strategy, scenario):
    """Three stacked seeds whose tasks have unequal sizes, so with samples of weight 0, and validation data held out."""
    stack = stack_of(
        f"strategy={strategy}", f"scenario={scenario}", "validation=0.3", "epochs=2", "batch_size=48", seeds=(0, 1, 2)
    )
    run, _ = live(stack)
    N = len(stack.strategy.data.images)
    assert run.state.memory.rows.dtype == torch.int64
    assert run.state.memory.rows.shape == (3, 200)
    for r, stream in enumerate(stack.streams):
        allowed = {image + N * task for task, pool in enumerate(stream.train) for image in pool.tolist()}
        assert set(run.state.memory.rows[r].tolist()) <= allowed
        assert run.state.memory.offered[r] == sum(len(pool) for pool in stream.train)  # once, in two epochs


@pytest.mark.parametrize("strategy", METHODS)
@pytest.mark.parametrize("size", [300, 1347, 5000])
@pytest.mark.parametrize("training", ["epochs=3", "iterations=25"])
def test_no_sample_is_held_twice(stack_of, strategy, size, training):
    """Two stacked seeds over several epochs of 1347 pictures: as many different samples as there are slots or samples,
    those of the first task not lost to the later ones."""
    stack = stack_of(f"strategy={strategy}", f"memory_size={size}", training, "batch_size=32", seeds=(0, 1))
    run, _ = live(stack)
    memory = run.state.memory
    assert memory.offered.tolist() == [1347, 1347]
    for r in range(2):
        kept = memory.rows[r, : min(size, 1347)]
        assert len(kept.unique()) == min(size, 1347)


def of_gem(state):
    return torch.cat([rows[:n] for rows, n in zip(state.rows, state.held.tolist(), strict=True)])


def filled(*memories):
    return torch.cat([memory.rows[: int(memory.held)] for memory in memories])


HOLDERS = {  # {what is typed: the rows that a run holds}
    **{f"er memory_policy={policy}": lambda s: filled(s.memory) for policy in ("balanced", "ring", "herding", "past")},
    "er memory_per_class=20": lambda s: filled(s.memory),
    "er_ace": lambda s: filled(s.memory),
    "mir": lambda s: filled(s.memory),
    "fdr": lambda s: filled(s.memory),
    "gdumb": lambda s: filled(s.memory),
    "gem": of_gem,
    "icarl": lambda s: filled(s.past.memory),
    "wa memory_policy=balanced": lambda s: filled(s.past.memory),
    "bic": lambda s: filled(s.past.memory, s.validation),
}


@pytest.mark.parametrize("stream", ["tasks=5", "split.slots=4", "split.blurry=0.3"])
@pytest.mark.parametrize("size", [150, 5000])
@pytest.mark.parametrize("typed", HOLDERS)
def test_no_memory_holds_a_sample_twice(stack_of, typed, size, stream):
    """Where classes come once, come back, or come a little with other tasks; and with more slots than samples."""
    name, *knobs = typed.split()
    sized = [] if "memory_per_class" in typed else [f"memory_size={size}"]
    stack = stack_of(f"strategy={name}", *knobs, *sized, stream, "scenario=class", "epochs=2", "batch_size=32")
    rows = HOLDERS[typed](live(stack)[0].state)
    trained = {row % len(stack.strategy.data.images) for pool in stack.streams[0].train for row in pool.tolist()}
    assert len(rows) > 100
    assert len({row % len(stack.strategy.data.images) for row in rows.tolist()}) == len(rows)
    assert {row % len(stack.strategy.data.images) for row in rows.tolist()} <= trained


def test_a_sample_that_is_offered_again_is_left_out(stack_of):
    """By a user's own strategy that sees all tasks so far, in every stage: a task's samples are offered many times."""
    stack = stack_of("strategy=er", "memory_size=400", "epochs=1", "batch_size=32")
    stack.strategy = as_class(stack.strategy, Hindsight)
    stack.schedule = replace(stack.schedule, strategy=stack.strategy)
    run, _ = live(stack)
    assert len(run.state.memory.rows.unique()) == 400


class Hindsight(ER):
    """ER that trains on all tasks so far."""

    def visible(self, stage):
        return range(stage + 1)


def test_every_sample_of_several_epochs_is_kept_with_probability_m_over_n(stack_of):
    """The number of samples of each task that is kept is hypergeometric. Mean of 40 memories against its expected value
    by SciPy: 5 standard errors, exceeded by chance by one of five in 3 of a million such tests."""
    counts = []
    for first in range(0, 40, 8):
        seeds = tuple(range(first, first + 8))
        stack = stack_of(
            "strategy=er", "memory_size=300", "epochs=4", "batch_size=128", "split.order=fixed", seeds=seeds
        )
        rows = live(stack)[0].state.memory.rows // len(stack.strategy.data.images)
        counts += [torch.bincount(row, minlength=5).tolist() for row in rows]
    sizes = [len(pool) for pool in stack.streams[0].train]
    for task, size in enumerate(sizes):
        expected = hypergeom(sum(sizes), size, 300)
        mean = sum(count[task] for count in counts) / 40
        assert abs(mean - expected.mean()) < 5 * expected.std() / 40**0.5


@pytest.mark.parametrize("strategy", ["er", "agem"])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_so_many_of_each_class(stack_of, strategy, scenario):
    """memory_per_class=7: seven different samples of each class of each task learnt, drawn anew for each seed."""
    kept = []
    for seed in (0, 1):
        stack = stack_of(f"strategy={strategy}", f"scenario={scenario}", "memory_per_class=7", seeds=(seed,))
        data, run = stack.strategy.data, stack.initialize()
        assert run.state.memory.rows.shape == (70,)
        for stage in range(5):
            run, report = stack.learn(run, stage)
            rows = run.state.memory.rows[: run.state.memory.held].tolist()
            counts = Counter((row // len(data.images), data.labels[row % len(data.images)].item()) for row in rows)
            assert set(counts.values()) == {7}
            assert len(set(rows)) == 14 * (stage + 1)
            assert {task for task, _ in counts} == set(range(stage + 1))
            assert report.health[0]["memory_fill"] == pytest.approx((stage + 1) / 5)
            assert report.health[0]["memory_classes"] == 2 * (stage + 1)
            assert report.health[0]["memory_balance"] == 1
        kept.append(set(rows))
    assert len(kept[0] & kept[1]) < 35


def test_a_class_that_has_fewer_is_kept_whole(stack_of):
    """Classes of 3 and of many, and a sample that is not there."""
    stack = stack_of("strategy=er", "split.classes=[[0,1],[2,3]]")
    data, pool = stack.strategy.data, stack.pool(0, "train", torch.float64)
    classes = data.labels[pool.rows]
    few = (classes == 1).nonzero()[:4, 0]
    some = torch.cat([few[:2], (classes == 0).nonzero()[:9, 0], few[2:]])
    pool = pool._replace(rows=pool.rows[some], weight=torch.ones(13).index_fill(0, torch.tensor([0]), 0))
    assert class_subset(data, pool, 5).tolist() == [0, 1, *[1] * 5, *[0] * 4, 1, 1]


@pytest.mark.parametrize("strategy", METHODS)
def test_health_counts_what_is_there(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", "memory_size=50", "epochs=1")
    data, run = stack.strategy.data, stack.initialize()
    for stage in range(3):
        run, report = stack.learn(run, stage)
        rows = run.state.memory.rows[: run.state.memory.held].tolist()
        counts = Counter((row // len(data.images), data.labels[row % len(data.images)].item()) for row in rows)
        assert report.health[0]["memory_fill"] == len(rows) / 50
        assert report.health[0]["memory_classes"] == len(counts)
        assert report.health[0]["memory_balance"] == pytest.approx(min(counts.values()) / max(counts.values()))
        assert (report.health[0]["replay_loss"] > 0) == (stage > 0 or strategy != "agem")
