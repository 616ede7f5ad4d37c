"""Which samples are kept and which are brought back: policies and draws against lists, sample by sample."""

from collections import Counter, defaultdict

import pytest
import torch
from conftest import live
from helpers import module_of, slow_but
from test_every_strategy import distance
from test_memory_and_replay import SMALL, Loop
from torch.utils._pytree import tree_map

from clrun.data.batches import StepContext
from clrun.strategy import Memory, RankedMemory, uniform
from clrun.strategy.herding import herding_keys
from clrun.strategy.walk import new_walk
from clrun.system.errors import UsageError

SEEDS = (0, 1, 2)


# ---------------------------------------------------------------- random numbers


def test_random_numbers_of_a_step():
    """2000 steps of 500 numbers: mean, variance and correlations within 5 standard errors; a prefix does not depend on
    how many are wanted, nor on the runs beside it."""
    noise = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0))
    numbers = torch.vmap(lambda v: uniform(v, 500))(noise)
    assert torch.equal(numbers[3, :40], uniform(noise[3], 40))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    n, centred = numbers.numel(), numbers.double() - 0.5
    assert abs(centred.mean()) < 5 * (1 / 12 / n) ** 0.5
    assert abs(centred.square().mean() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs((a * b).mean()) < 5 / 12 / a.numel() ** 0.5
    assert len(uniform(noise[0], 5000).unique()) > 4990


# ---------------------------------------------------------------- what is kept


def chosen(offered, size, per_group=None):
    """The rows that a memory of this size should hold of all (row, group, key) that were offered: group by group in
    turn, from each the next by key."""
    groups = defaultdict(list)
    for row, group, key in offered:
        groups[group].append((key, row))
    ranked = sorted((rank, key, row) for one in groups.values() for rank, (key, row) in enumerate(sorted(one)))
    if per_group is not None:
        return {row for rank, _, row in ranked if rank < per_group}
    return {row for _, _, row in ranked[:size]}


@pytest.mark.parametrize("size", [1, 7, 40])
@pytest.mark.parametrize("share", [None, 4])
def test_a_ranked_memory_holds_what_would_be_chosen_from_all(size, share):
    """Groups of unequal size that come one after the other and mixed, in batches with samples missing."""
    draw = torch.Generator().manual_seed(size)
    nothing = torch.zeros((), dtype=torch.long)
    size = size if share is None else 4 * 6
    memory = RankedMemory(torch.zeros(size, dtype=torch.long), torch.zeros(size).double(), nothing, nothing)
    group_of, offered, row = {}, [], 0
    for step in range(60):
        B = int(torch.randint(1, 12, (), generator=draw))
        groups = torch.randint(0, 1 + step // 10, (B,), generator=draw)
        rows, keys = torch.arange(row, row + B), torch.rand(B, generator=draw).double()
        weight, row = (torch.rand(B, generator=draw) < 0.7).float(), row + B
        group_of |= dict(zip(rows.tolist(), groups.tolist(), strict=True))
        here = weight > 0
        offered += zip(rows[here].tolist(), groups[here].tolist(), keys[here].tolist(), strict=True)
        held_groups = torch.tensor([group_of.get(r, 0) for r in memory.rows.tolist()])
        before = set(memory.rows[: memory.held].tolist())
        updates = memory.slot_updates(held_groups, groups, keys, weight, share)
        memory = memory.updated(updates, rows, keys, weight)
        held = memory.rows[: memory.held].tolist()
        assert set(held) == chosen(offered, size, share)
        assert len(held) == len(set(held))
        assert memory.offered == len(offered)
        stay = [r for r in held if r in before]
        assert all(updates[held.index(r)] == -1 for r in stay), "what stays, stays in its slot"


def offered_while_trained(stack, tasks):
    """(row, class of the task, position in the stream, random number) of each sample as it is first trained on."""
    for stage in range(tasks):
        sampler = stack.schedule.sampler(0, stage, "train")
        steps = sampler.sample(0, sampler.steps)
        for rows, weight, epoch, noise in zip(steps.rows, steps.weight, steps.epoch, steps.noise, strict=True):
            here = (weight > 0) & (epoch == 0)
            yield from zip(rows[here].tolist(), noise[0, here].double().tolist(), strict=True)


def class_of(data, row):
    return row // len(data.images), data.labels[row % len(data.images)].item()


@pytest.mark.parametrize("strategy", ["er", "der", "derpp"])
@pytest.mark.parametrize("policy", ["balanced", "ring"])
def test_policies_while_training(stack_of, strategy, policy):
    """Two epochs; of the ring, the newest samples of each class."""
    stack = stack_of(f"strategy={strategy}", f"memory_policy={policy}", "memory_size=37", "epochs=2")
    data, run = stack.strategy.data, stack.initialize()
    for stage in range(3):
        run, report = stack.learn(run, stage)
        offered = [
            (row, class_of(data, row), u if policy == "balanced" else -i)
            for i, (row, u) in enumerate(offered_while_trained(stack, stage + 1))
        ]
        assert set(run.state.memory.rows[: run.state.memory.held].tolist()) == chosen(offered, 37)
        assert report.health[0]["memory_fill"] == 1
        assert report.health[0]["memory_balance"] >= 5 / 7


@pytest.mark.parametrize("strategy", ["er", "agem"])
@pytest.mark.parametrize("size", [37, 800])
def test_past_is_shared_evenly_among_past_tasks(stack_of, strategy, size):
    """And holds nothing of the present one while it is trained on. 800 slots: all of the first two tasks."""
    stack = stack_of(f"strategy={strategy}", "memory_policy=past", f"memory_size={size}", "split.order=fixed")
    N, run, offered = len(stack.strategy.data.images), stack.initialize(), []
    for stage in range(4):
        within, _ = stack.train(run, stack.new_stage(stage))
        assert torch.equal(within.state.memory.rows, run.state.memory.rows)
        run, _ = stack.learn(run, stage)
        pool = stack.pool(stage, "train", torch.float64)
        offered += [(row, row // N, u) for row, u in zip(pool.rows.tolist(), pool.noise[0].tolist(), strict=True)]
        rows = run.state.memory.rows[: run.state.memory.held].tolist()
        assert set(rows) == chosen(offered, size)
        counts = Counter(row // N for row in rows)
        assert set(counts) == set(range(stage + 1))
        if size == 37:
            assert max(counts.values()) - min(counts.values()) <= 1


def herded_by_hand(features, count):
    """The paper's algorithm 4, a sample at a time -> the indices of the first `count`."""
    phi = features / features.norm(dim=1, keepdim=True)
    mu, total, order = phi.mean(0), torch.zeros(phi.shape[1]).double(), []
    for k in range(1, count + 1):
        away = {i: (mu - (total + v) / k).norm().item() for i, v in enumerate(phi) if i not in order}
        order.append(min(away, key=away.__getitem__))
        total = total + phi[order[-1]]
    return order


def test_herding_is_the_algorithm_of_the_paper():
    """Three classes of 30, 5 and no samples, and samples that are not there."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=draw).double() + 1
    y = torch.cat([torch.zeros(30), torch.ones(20)]).long()[torch.randperm(50, generator=draw)]
    weight = torch.ones(50).double()
    weight[(y == 1).nonzero()[5:, 0]] = 0
    keys = herding_keys(features, y, weight, 3, 12)
    for label, n in ((0, 30), (1, 5)):
        mine = ((y == label) & (weight > 0)).nonzero()[:, 0]
        assert len(mine) == n
        order = mine[keys[mine].argsort()]
        first = min(12, n)
        assert order[:first].tolist() == mine[herded_by_hand(features[mine], first)].tolist()
        assert keys[order[:first]].tolist() == list(range(first))
        assert (keys[order[first:]] >= 12).all()


@pytest.mark.parametrize("strategy", ["er", "agem"])
@pytest.mark.parametrize("memory", ["memory_size=40", "memory_per_class=6"])
def test_herding_of_each_class(stack_of, strategy, memory):
    """With the features after the class's own task; later a class keeps those that were chosen first."""
    stack = stack_of(f"strategy={strategy}", "memory_policy=herding", memory, "scenario=class")
    data, run, order = stack.strategy.data, stack.initialize(), {}
    for stage in range(3):
        run, _ = stack.learn(run, stage)
        network = module_of(stack.strategy, run.theta)[:-1]
        for label in {class_of(data, row)[1] for row in stack.pool(stage, "train", torch.float64).rows.tolist()}:
            rows = stack.pool(stage, "train", torch.float64).rows
            rows = rows[data.labels[rows % len(data.images)] == label]
            with torch.no_grad():
                features = network(data.images[rows % len(data.images)].double() * data.scale + data.shift)
            order[stage, label] = rows[herded_by_hand(features, 20)].tolist()
        share = 6 if "class" in memory else 40 // len(order)
        rows = set(run.state.memory.rows[: run.state.memory.held].tolist())
        for ranked in order.values():
            assert set(ranked[:share]) <= rows
            assert not set(ranked[share + 1 :]) & rows


def test_what_a_policy_cannot_be_combined_with(stack_of):
    for policy in ("balanced", "ring", "past"):
        with pytest.raises(UsageError, match="leave the policy out"):
            stack_of("strategy=er", "memory_per_class=5", f"memory_policy={policy}")
    for strategy in ("der", "derpp"):
        with pytest.raises(UsageError, match="memory_policy"):
            stack_of(f"strategy={strategy}", "memory_policy=past")


# ---------------------------------------------------------------- what is brought back


def a_batch(stack, stage=1, given=None, number=0):
    """A step of a stage, with its context; the samples have the weights `given`, where these are given."""
    rows, weight, progress, epoch, noise = (v[number] for v in stack.schedule.sampler(0, stage, "train").sample(0, 9))
    weight = weight if given is None else given
    when = StepContext(torch.tensor(stage), torch.tensor(stage), progress, epoch, noise)
    return stack.strategy.data.batch(stack.tables, rows, weight.double(), when)


def filled(stack, held):
    rows = torch.randperm(1347, generator=torch.Generator().manual_seed(1))[: stack.strategy.slots]
    return Memory(rows, torch.tensor(held))


@pytest.mark.parametrize("m", [5, 12, 60])
def test_without_replacement(stack_of, m):
    """No slot twice; all of them where they are fewer than wanted; each as often as the others."""
    stack = stack_of("strategy=er", "memory_size=20", f"replay_batch={m}", "replay_draw=without", "batch_size=12")
    for held in (0, 3, 20):
        memory, seen = filled(stack, held), Counter()
        for number in range(4):
            batch = a_batch(stack, number=number)
            old, slots = stack.strategy.recall(memory, batch, batch.noise[1])
            there = old.weight > 0
            assert len(old.rows) == m
            assert there.sum() == min(m, held)
            assert len(set(slots[there].tolist())) == min(m, held)
            assert torch.equal(old.rows[there], memory.rows[slots[there]])
            assert old.mean_weight.sum() == pytest.approx(1 if held else 0)
            seen.update(slots[there].tolist())
        assert len(seen) == held or m < len(seen) < held


def test_every_slot_is_drawn_as_often(stack_of):
    """4000 draws of 5 of 20 slots without replacement: each within 5 standard errors of 1/4."""
    stack = stack_of("strategy=er", "memory_size=20", "replay_batch=5", "replay_draw=without", "batch_size=12")
    batch, memory = a_batch(stack), filled(stack, 20)
    noises = torch.rand(4000, 6, 12, generator=torch.Generator().manual_seed(3))
    count = Counter()
    for noise in noises:
        count.update(stack.strategy.drawn(memory, batch._replace(noise=noise), noise[1], ())[0].tolist())
    assert all(abs(count[slot] / 4000 - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5 for slot in range(20))


@pytest.mark.parametrize("m", [1, 6, 12, 31])
def test_a_walk_comes_by_every_sample_before_any_comes_again(m):
    """Steps of m through 12 of 15 slots, written one after the other: each stretch of 12 is a permutation, and no two
    are alike, also where each step ends with a stretch."""
    memory, walk, seen = Memory(torch.arange(15), torch.tensor(12)), new_walk(15, torch.zeros(())), []
    for noise in torch.rand(60, 15, generator=torch.Generator().manual_seed(0)):
        slots, walk = walk.next(memory, m, torch.tensor(m), noise)
        seen += slots.tolist()
    whole = [tuple(seen[i : i + 12]) for i in range(0, len(seen) - 12, 12)]
    if m <= 12:  # otherwise a step goes through one order several times
        assert all(set(one) == set(range(12)) for one in whole)
        assert len(set(whole)) == len(whole)
    assert set(seen) == set(range(12))
    assert len(set(whole)) > 1


def test_a_walk_counts_the_samples_that_are_there_and_what_was_stored_since():
    """A batch of 8 of which 5 are there moves on by 5; slots that are new come in the next walk; a task begins anew."""
    noise, m = torch.rand(9, 10, generator=torch.Generator().manual_seed(0)), 8
    small, large = Memory(torch.arange(10), torch.tensor(6)), Memory(torch.arange(10), torch.tensor(10))
    first, walk = new_walk(10, torch.zeros(())).next(small, m, torch.tensor(5), noise[0])
    second, walk = walk.next(large, 1, torch.tensor(1), noise[1])
    assert sorted(first[:5].tolist() + second.tolist()) == list(range(6))
    third, later = walk.next(large, 10, torch.tensor(10), noise[2])
    assert sorted(third.tolist()) == list(range(10))
    fourth, _ = later._replace(position=torch.tensor(3)).begun_anew().next(large, 10, torch.tensor(10), noise[3])
    assert sorted(fourth.tolist()) == list(range(10))


OPTIONS = {
    "er": [
        ("memory_policy=past", "replay_draw=epochs", "replay_batch=9", "weighting=samples"),
        ("memory_policy=balanced", "replay_draw=epochs"),
        ("memory_policy=herding", "replay_draw=without", "weighting=share"),
        ("memory_policy=ring", "replay_draw=with", "replay_batch=70"),
    ],
    "agem": [("memory_policy=past", "replay_draw=epochs"), ("memory_policy=herding", "replay_batch=9")],
    "der": [("memory_policy=balanced", "replay_draw=without"), ("replay_batch=70", "replay_draw=without")],
    "derpp": [("memory_policy=ring", "replay_batch=9"), ("replay_draw=without",)],
    "er_ace": [("memory_policy=herding", "replay_draw=epochs")],
    "mir": [("memory_policy=past",), ("memory_policy=balanced",)],
    "fdr": [("replay_draw=epochs", "replay_batch=9")],
}
CASES = [(strategy, options) for strategy, several in OPTIONS.items() for options in several]


@pytest.mark.parametrize(("strategy", "options"), CASES)
@pytest.mark.parametrize("scenario", slow_but(["task", "class"], {"class"}.__contains__))
def test_stacked_equals_alone(stack_of, strategy, options, scenario):
    """Three seeds whose tasks have unequal sizes, so that batches are filled up."""
    typed = (f"strategy={strategy}", *options, f"scenario={scenario}", "memory_size=60", "epochs=2", "batch_size=48")
    together, reports = live(stack_of(*typed, seeds=SEEDS))
    for r, seed in enumerate(SEEDS):
        alone, reports_alone = live(stack_of(*typed, seeds=[seed]))
        assert distance(tree_map(lambda v: v[r], together), alone) < 1e-9
        assert reports[-1].health[r] == pytest.approx(reports_alone[-1].health[0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_with_batch_norm_and_dropout_and_augmentation(stack_of, strategy, options):
    """A joined pass of batches of unequal size, alone and stacked."""
    network = ("model=module", "model.target=user_networks.ConvNormDrop")
    typed = (f"strategy={strategy}", *options, *network, "memory_size=60", "iterations=3", "augment=crop_flip")
    together, _ = live(stack_of(*typed, seeds=(0, 1)))
    alone, _ = live(stack_of(*typed, seeds=(1,)))
    assert distance(tree_map(lambda v: v[1], together), alone) < 1e-9
    assert alone.theta.isfinite().all()


@pytest.mark.parametrize("weighting", ["equal", "samples", "share"])
@pytest.mark.parametrize("m", [5, 40])
def test_er_with_a_replay_batch_is_its_equation(stack_of, weighting, m):
    """The samples that `recall` names, in a loss of one sample a pass; fewer are stored than are wanted at first."""
    options = (f"replay_batch={m}", "replay_draw=without", f"weighting={weighting}")
    stack = stack_of("strategy=er", "scenario=class", "memory_size=30", *options, *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    loop, batch = Loop(stack, run.theta), a_batch(stack)
    for held in (0, 8, 30):
        state = run.state._replace(memory=Memory(run.state.memory.rows, torch.tensor(held)))
        g, loss, aux = stack.strategy.gradient(run.theta, state, stack.hp, batch)
        old, _ = stack.strategy.recall(state.memory, batch, batch.noise[1])
        rows = old.rows[old.weight > 0].tolist()
        wanted = loop.ce(batch.rows.tolist(), 1)
        if held:
            n = min(m, held)
            w = {"equal": 1 / 2, "samples": 12 / (12 + n), "share": 1 / 2}[weighting]
            replay = loop.ce(rows, 1)
            wanted = w * wanted + (1 - w) * replay
            assert len(rows) == n
            assert aux["replay_loss"].item() == pytest.approx(replay.item(), abs=1e-12)
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
        assert (g - loop.gradient(wanted)).abs().max() < 1e-12


@pytest.mark.parametrize("strategy", ["er", "agem", "der", "derpp"])
def test_what_is_not_typed_changes_nothing(settings_of, strategy):
    """Finished runs keep their identity."""
    plain = settings_of(f"strategy={strategy}")
    assert {"memory_policy", "replay_batch", "replay_draw"} <= plain.later
    assert settings_of(f"strategy={strategy}", "replay_batch=9").identity("") != plain.identity("")
