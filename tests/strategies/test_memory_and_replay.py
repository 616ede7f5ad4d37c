"""er, agem, der and derpp against loops over a memory that meets one sample after the other."""

from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import live
from helpers import ListReservoir, as_class, module_of, rows_of
from torch import nn

from clrun.data.batches import StepContext
from clrun.strategies.agem import AGEM
from clrun.strategies.er import ER
from clrun.system.errors import UsageError

SMALL = ("optimizer=sgd", "lr=0.05", "batch_size=12", "iterations=6", "tasks=5")


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


def assert_agrees(loop, run):
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
        assert_agrees(loop, run)


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
        assert_agrees(loop, run)
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
        assert_agrees(loop, run)
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
    return rows_of(live(stack)[1])


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
