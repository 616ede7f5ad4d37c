"""The memory against one that meets one sample after the other, and er, agem, der and derpp against loops over it."""

from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import live
from helpers import ListReservoir, as_class, empty_memory, module_of
from scipy.stats import hypergeom
from torch import nn

from clrun.data.batches import StepContext
from clrun.strategies.agem import AGEM
from clrun.strategies.er import ER
from clrun.strategy import Memory
from clrun.strategy.replay import class_subset
from clrun.strategy.reservoir import named
from clrun.system.errors import UsageError

METHODS = ("er", "agem", "der", "derpp")
SMALL = ("optimizer=sgd", "lr=0.05", "batch_size=12", "iterations=6", "tasks=5")


# ---------------------------------------------------------------- the memory


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


# ---------------------------------------------------------------- the methods


class Loop:
    """A method's own definition: one network of torch.nn, one sample a pass, lists for a memory."""

    def __init__(self, stack, theta):
        self.stack, self.data = stack, stack.strategy.data
        self.module = module_of(stack.strategy, theta)
        self.parameters = list(self.module.parameters())
        self.slots, self.projections, self.losses = ListReservoir(getattr(stack.strategy, "slots", 0)), 0, []

    @property
    def theta(self):
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def z(self, row):
        image = self.data.images[row % len(self.data.images)].double()
        return self.module((image * self.data.scale + self.data.shift)[None])[0]

    def ce(self, rows, stage):
        losses = []
        for row in rows:
            task, image = divmod(row, len(self.data.images))
            z, label = self.z(row), self.stack.tables.label[task, self.data.labels[image]]
            losses.append(z[self.stack.tables.active[stage, task]].exp().sum().log() - z[label])
        return sum(losses) / len(losses)

    def gradient(self, loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

    def move(self, g):
        with torch.no_grad():
            for p, part in zip(self.parameters, g.split([p.numel() for p in self.parameters]), strict=True):
                p -= 0.05 * part.view_as(p)

    def task(self, stage, step):
        sampler = self.stack.schedule.sampler(0, stage, "train")
        for rows, weight, _, epoch, noise in zip(*sampler.sample(0, sampler.steps), strict=True):
            here, self.epoch = weight > 0, int(epoch)
            step(rows[here].tolist(), noise[:, here].double().tolist(), stage)

    def end(self, stage, per_class=None):
        """Offer the task's samples once, or the first `per_class` of each class."""
        pool, met = self.stack.pool(stage, "train", torch.float64), Counter()
        for row, u in zip(pool.rows.tolist(), pool.noise[0].double().tolist(), strict=True):
            label = self.data.labels[row % len(self.data.images)].item()
            if per_class is None or met[label] < per_class:
                self.slots.offer((row,), u)
            met[label] += 1


def agrees(loop, run):
    assert (loop.theta - run.theta).abs().max() < 1e-12
    assert run.state.memory.rows[: run.state.memory.held].tolist() == [row for row, *_ in loop.slots.kept]


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("memory", ["memory_size=40", "memory_per_class=4"])
@pytest.mark.parametrize("weighting", ["equal", "share"])
def test_er_is_its_equation(stack_of, scenario, memory, weighting):
    stack = stack_of("strategy=er", f"scenario={scenario}", memory, f"weighting={weighting}", *SMALL)
    run = stack.initialize()
    loop, per_class = Loop(stack, run.theta), 4 if "class" in memory else None

    def step(rows, noise, stage):
        loss = loop.ce(rows, stage)
        if loop.slots.kept:
            w = 1 / 2 if weighting == "equal" else 1 / (stage + 1)
            old = loop.ce([row for (row,) in loop.slots.draw(noise[1])], stage)
            loss = w * loss + (1 - w) * old
        loop.move(loop.gradient(loss))
        if per_class is None and loop.epoch == 0:
            for row, u in zip(rows, noise[0], strict=True):
                loop.slots.offer((row,), u)

    for stage in range(3):
        run, _ = stack.learn(run, stage)
        loop.task(stage, step)
        if per_class is not None:
            loop.end(stage, per_class)
        agrees(loop, run)


@pytest.mark.parametrize("strategy", ["der", "derpp"])
@pytest.mark.parametrize("training", [SMALL, ("optimizer=sgd", "lr=0.05", "batch_size=64", "epochs=3")])
def test_der_is_its_equation(stack_of, strategy, training):
    """The logits are those before the step in which a sample was stored, or in the e-th epoch with probability 1/e."""
    strengths = ("alpha=0.7",) if strategy == "der" else ("alpha=0.7", "beta=0.4")
    stack = stack_of(f"strategy={strategy}", "scenario=class", "memory_size=40", *strengths, *training)
    run = stack.initialize()
    loop = Loop(stack, run.theta)

    def step(rows, noise, stage):
        loss, stored = loop.ce(rows, stage), [loop.z(row).detach() for row in rows]
        if loop.slots.kept:
            gaps = [(loop.z(row) - z).square().sum() / 10 for row, z in loop.slots.draw(noise[1])]
            loss = loss + 0.7 * sum(gaps) / len(gaps)
        if loop.slots.kept and strategy == "derpp":
            loss = loss + 0.4 * loop.ce([row for row, _ in loop.slots.draw(noise[2])], stage)
        loop.move(loop.gradient(loss))
        for row, z, u in zip(rows, stored, noise[0], strict=True):
            held = [i for i, (other, _) in enumerate(loop.slots.kept) if other == row]
            if loop.epoch == 0:
                loop.slots.offer((row, z), u)
            elif held and u * (loop.epoch + 1) < 1:
                loop.slots.kept[held[0]] = (row, z)

    for stage in range(3):
        run, _ = stack.learn(run, stage)
        loop.task(stage, step)
        agrees(loop, run)
        assert (run.state.z - torch.stack([z for _, z in loop.slots.kept])).abs().max() < 1e-12


@pytest.mark.parametrize("memory", ["memory_size=40", "memory_per_class=4"])
def test_agem_is_its_equation(stack_of, memory):
    """And the gradient taken never points against that of the memory."""
    stack = stack_of("strategy=agem", "scenario=domain", memory, *SMALL)
    run = stack.initialize()
    loop, per_class = Loop(stack, run.theta), 4 if "class" in memory else None

    def step(rows, noise, stage):
        g = loop.gradient(loop.ce(rows, stage))
        if loop.slots.kept:
            r = loop.gradient(loop.ce([row for (row,) in loop.slots.draw(noise[1])], stage))
            if g @ r < 0:
                loop.projections += 1
                g = g - (g @ r) / (r @ r) * r
            assert g @ r > -1e-12
        loop.move(g)

    for stage in range(4):
        run, report = stack.learn(run, stage)
        loop.task(stage, step)
        loop.end(stage, per_class)
        agrees(loop, run)
        assert report.health[0]["projections"] == loop.projections
    assert 0 < loop.projections < 18


PAIRS = "split.classes=[[0,1],[2,3],[4,5],[6,7],[8,9]]"  # so a class's output has its number


def mean_gradient(data, theta, rows, scenario):
    """[P] the mean over samples of the gradient of -log p(y|x), a backward pass a sample through 64-12-8-10, over the
    outputs of the sample's own task or of the first two."""
    net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)).double()
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    total = [0.0] * len(theta)
    for row in rows:
        task, image = divmod(row, len(data.images))
        first, last = (2 * task, 2 * task + 2) if scenario == "task" else (0, 4)
        z = net((data.images[image].double() * data.scale + data.shift).flatten())
        loss = z[first:last].exp().sum().log() - z[data.labels[image]]
        gradient = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(net.parameters()))])
        total = [a + b / len(rows) for a, b in zip(total, gradient.tolist(), strict=True)]
    return total


def test_agem_projects_a_parameter_at_a_time(stack_of):
    """A step of the second task on Python's own numbers, with nothing of the engine's but which samples were drawn:
    where the two gradients oppose each other g - (g.r / r.r) r, entry by entry; elsewhere g."""
    seen = set()
    for scenario in ("task", "class"):
        stack = stack_of("strategy=agem", f"scenario={scenario}", "memory_per_class=3", PAIRS, *SMALL)
        data, (run, _) = stack.strategy.data, stack.learn(stack.initialize(), 0)
        rows, weight, _, _, noise = (v[0] for v in stack.schedule.sampler(0, 1, "train").sample(0, 1))
        when = StepContext(torch.tensor(1), torch.tensor(1), torch.tensor(0.0), torch.tensor(0), noise)
        batch = data.batch(stack.tables, rows, weight.double(), when)
        old = [run.state.memory.rows[int(u * 6)].item() for u in noise[1].tolist()]
        for theta in (run.theta, run.theta + 0.3):
            g, r = (mean_gradient(data, theta, some, scenario) for some in (rows.tolist(), old))
            gr, rr = (sum(a * b for a, b in zip(v, r, strict=True)) for v in (g, r))
            wanted = [a - gr / rr * b if gr < 0 else a for a, b in zip(g, r, strict=True)]
            ours, _, aux = stack.strategy.gradient(theta, run.state, stack.hp, batch)
            assert max(abs(a - b) for a, b in zip(ours.tolist(), wanted, strict=True)) < 1e-12
            assert aux["projected_share"] == (gr < 0)
            seen.add(gr < 0)
    assert seen == {True, False}


# ---------------------------------------------------------------- what is refused, and what is told


@pytest.mark.parametrize("strategy", ["er", "agem"])
def test_one_way_to_say_how_much_is_kept(stack_of, strategy):
    with pytest.raises(UsageError, match="type one of them"):
        stack_of(f"strategy={strategy}", "memory_size=50", "memory_per_class=5")


class Oblivious(ER):
    """ER that never stores anything."""

    def after_step(self, state, hp, batch, aux):
        return state


class Blind(AGEM):
    """A-GEM that compares the batch with itself."""

    def recall(self, memory, batch, noise, walk=()):
        return batch, memory.draw(noise)


def health_of(stack, broken=None):
    if broken is not None:
        stack.strategy = as_class(stack.strategy, broken)
    return [report.health[0] for report in live(stack)[1]]


def test_a_memory_that_does_nothing_is_noticed(stack_of):
    knobs = {"memory_size": 200, "alpha": 0.5, "beta": 0.5}
    for strategy, cls in (("er", ER), ("agem", AGEM)):
        stack = stack_of(f"strategy={strategy}", "scenario=domain", "epochs=2")
        assert cls.warnings(health_of(stack), knobs) == []
        assert cls.warnings(health_of(stack)[:1], knobs) == []
    assert "stayed empty" in ER.warnings(health_of(stack_of("strategy=er"), Oblivious), knobs)[0]
    assert "A-GEM did nothing" in AGEM.warnings(health_of(stack_of("strategy=agem"), Blind), knobs)[0]


def test_dark_replay_without_strength_is_no_surprise(stack_of):
    stack = stack_of("strategy=derpp", "alpha=0", "beta=0")
    health, cls = health_of(stack), type(stack.strategy)
    assert cls.warnings(health, {"alpha": 0.0, "beta": 0.0}) == []
    assert "never had a loss" in cls.warnings(health, {"alpha": 0.5, "beta": 0.0})[0]
    assert replace(stack.strategy, memory_size=7).slots == 7


@pytest.mark.parametrize(("strategy", "of_a_sample"), [("er", 8), ("agem", 8), ("der", 8 + 40), ("derpp", 8 + 40)])
def test_a_memory_is_charged_for_what_it_holds(clrun, tmp_path, strategy, of_a_sample):
    """100000 slots, of which the 1347 training pictures of digits (64 bytes each) fill 1347, alone and in a stack."""
    typed = (f"strategy={strategy}", "memory_size=100000", "epochs=1", "batch_size=256", f"outputs={tmp_path}")
    clrun(*typed, "seed=0")
    clrun("-m", *typed, "seed=1,2", "workers=1")
    results = pd.read_csv(tmp_path / "results.csv")
    counter = 8 + (8 if strategy == "agem" else 0)
    assert len(results) == 3
    assert results["state_mb"].tolist() == pytest.approx([(1347 * (64 + of_a_sample) + counter) / 1e6] * 3)


@pytest.mark.parametrize(
    ("strategy", "typed", "of_a_slot", "beside"),
    [
        ("er", (), 8, 8),  # a row number; how many were offered
        ("er", ("memory_policy=balanced",), 16, 16),  # and a key; and how many are held
        ("agem", (), 8, 16),  # and the number of projections
        ("fdr", (), 16 + 40, 16),  # a key, as its policy is "past"; ten probabilities
        ("er_ace", (), 8, 18),  # and a byte for each output, of which there are ten
    ],
)
@pytest.mark.parametrize("slots", [100, 100000])
def test_a_walk_is_charged_for_the_slots_in_use(clrun, tmp_path, strategy, typed, of_a_slot, beside, slots):
    """An entry of 8 bytes for each of them, and 16 bytes for its length and its position."""
    typed = (*typed, f"strategy={strategy}", "replay_draw=epochs", f"memory_size={slots}", "scenario=class")
    short = ("epochs=1", "batch_size=256", "tasks=2", "plots=false", f"outputs={tmp_path}")
    clrun(*typed, *short, "seed=0")
    held = min(slots, 1347)
    (state_mb,) = pd.read_csv(tmp_path / "results.csv")["state_mb"]
    assert state_mb == pytest.approx((held * (64 + of_a_slot + 8) + beside + 16) / 1e6, abs=1e-9)
