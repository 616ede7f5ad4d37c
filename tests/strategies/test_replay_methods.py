"""er_ace, gdumb, fdr, mir and gem against their equations, a sample or a parameter at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import live
from scipy.optimize import minimize, nnls
from test_every_strategy import distance
from test_memory_and_replay import SMALL, Loop
from test_replay_options import a_batch, chosen, class_of
from torch.utils._pytree import tree_map

from clrun.data.sampler import EpochSampler
from clrun.strategies.er import ER
from clrun.strategy import bounded_minimum, cross_entropy
from clrun.system.errors import UsageError

# ---------------------------------------------------------------- er_ace


@pytest.mark.parametrize("active", ["seen", "all"])
def test_er_ace_is_its_equation(stack_of, active):
    """The softmax of each sample of a batch is over the classes in the batch and those that never came; replay's over
    all. In the first task it is over all, too."""
    stack = stack_of("strategy=er_ace", "scenario=class", f"active={active}", "memory_size=30", *SMALL)
    run = stack.initialize()
    for stage in (0, 1, 2):
        loop, batch = Loop(stack, run.theta), a_batch(stack, stage)
        g, loss, aux = stack.strategy.gradient(run.theta, run.state, stack.hp, batch)
        seen = {int(stack.tables.label[t, c]) for t in range(stage) for c in labels_of(stack, t)}
        own = {int(y) for y in batch.y}
        may = set(stack.tables.active[stage, stage].nonzero()[:, 0].tolist())
        softmax = sorted(may if stage == 0 else (own | set(range(10)) - seen) & may)
        wanted = sum(loop.z(row)[softmax].exp().sum().log() - loop.z(row)[y] for row, y in rows_of(batch)) / 12
        if stage:
            old, _ = stack.strategy.recall(run.state.memory, batch, batch.noise[1])
            replay = loop.ce(old.rows.tolist(), stage)
            assert aux["replay_loss"].item() == pytest.approx(replay.item(), abs=1e-12)
            assert aux["barred_share"].item() == pytest.approx(1)
            wanted = wanted + replay
        else:
            assert aux["barred_share"] == 0
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
        assert (g - loop.gradient(wanted)).abs().max() < 1e-12
        run, _ = stack.learn(run, stage)


def labels_of(stack, task):
    return stack.strategy.data.labels[stack.streams[0].train[task]].unique().tolist()


def rows_of(batch):
    return list(zip(batch.rows.tolist(), batch.y.tolist(), strict=True))


def test_old_outputs_move_by_replay_alone(stack_of):
    """Without the replayed part, the gradient of the old outputs' weights is exactly 0."""
    stack = stack_of("strategy=er_ace", "scenario=class", *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    empty = run.state._replace(memory=run.state.memory._replace(offered=torch.tensor(0)))
    g, _, aux = stack.strategy.gradient(run.theta, empty, stack.hp, a_batch(stack, 1))
    head = stack.strategy.net.layout.view(g)["head.bias"]
    old = stack.tables.active[0, 0]
    assert (head[old] == 0).all()
    assert (head[~old][:2] != 0).any()
    assert aux["replay_loss"] == 0


def test_a_batch_of_one_class_within_the_first_task_bars_none(stack_of):
    """All classes of the task have come by then, and nothing is old yet, so all its outputs answer."""
    stack = stack_of("strategy=er_ace", "scenario=class", "memory_size=30", *SMALL)
    strategy, (run, _) = stack.strategy, stack.learn(stack.initialize(), 0)
    batch = a_batch(stack, 0)
    of_class = batch.y == batch.y[0]
    alone = a_batch(stack, 0, of_class.double())
    assert 0 < of_class.sum() < 12 and run.state.seen.sum() == 2
    answering = strategy.answering(run.state, alone) & alone.active
    assert answering.sum(1).tolist() == [2] * 12
    loop = Loop(stack, run.theta)
    old, _ = strategy.recall(run.state.memory, alone, alone.noise[1])
    held = old.rows[old.weight > 0].tolist()
    _, loss, aux = strategy.gradient(run.theta, run.state, stack.hp, alone)
    assert aux["barred_share"] == 0
    wanted = loop.ce(batch.rows[of_class].tolist(), 0) + loop.ce(held, 0)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)


class Added(ER):
    """Experience replay with the sum of its two losses, and no mean."""

    def loss(self, theta, state, hp, batch):
        old, _ = self.recall(state.memory, batch, batch.noise[1], state.walk)
        fit, replay = (cross_entropy(self.logits(theta, state, hp, b.x, b.t), b) for b in (batch, old))
        return fit + (state.memory.offered > 0) * replay, {}


@pytest.mark.parametrize(("scenario", "same"), [("task", True), ("domain", True), ("class", False)])
def test_where_no_output_is_old_er_ace_is_er_whose_losses_are_added(stack_of, scenario, same):
    """As its warning in the first two says; every batch has a sample of both classes."""
    typed = (f"scenario={scenario}", "memory_size=30", "iterations=20", "batch_size=32", "tasks=5")
    mine, reports = live(stack_of("strategy=er_ace", *typed))
    plain, _ = live(stack_of("strategy=er", *typed, strategy=Added))
    assert all((report.health[0]["barred_share"] == 0) == same for report in reports[1:])
    assert ((mine.theta - plain.theta).abs().max() < 1e-9) == same


# ---------------------------------------------------------------- gdumb


@pytest.mark.parametrize("size", [20, 33])
def test_gdumb_is_training_on_its_memory_alone(stack_of, size):
    """From new initial weights, in rounds over a balanced memory: a loop over the same samples."""
    stack = stack_of(
        "strategy=gdumb",
        "scenario=class",
        f"memory_size={size}",
        "optimizer=sgd",
        "lr=0.05",
        "batch_size=8",
        "epochs=2",
    )
    data, run, offered = stack.strategy.data, stack.initialize(), []
    for stage in range(3):
        run, report = stack.learn(run, stage)
        pool = stack.pool(stage, "collect", torch.float64)
        offered += [(r, class_of(data, r), u) for r, u in zip(pool.rows.tolist(), pool.noise[0].tolist(), strict=True)]
        rows = run.state.memory.rows[: run.state.memory.held]
        assert set(rows.tolist()) == chosen(offered, size)
        assert report.health[0]["memory_fill"] == 1
        assert report.health[0]["memory_classes"] == 2 * (stage + 1)
        assert report.health[0]["steps"] == 2 * -(-size // 8)
        loop = Loop(stack, stack.initialize(stage).theta)
        sampler = EpochSampler([rows], stack.budgets[stage], False, 0, f"stage {stage} train")
        for batch, weight in zip(*sampler.sample(0, sampler.steps)[:2], strict=True):
            loop.move(loop.gradient(loop.ce(batch[weight > 0].tolist(), stage)))
        assert (loop.theta - run.theta).abs().max() < 1e-12


def test_gdumb_in_iterations_and_with_runs_of_unequal_memories(stack_of):
    """As many steps as are typed; and a memory larger than the first task, in which seeds have unequal numbers."""
    _, reports = live(stack_of("strategy=gdumb", "iterations=7"))
    assert [report.health[0]["steps"] for report in reports] == [7] * 5
    typed = ("strategy=gdumb", "memory_size=500", "epochs=1", "batch_size=4")
    together, reports = live(stack_of(*typed, seeds=(0, 1, 2)))
    steps = {reports[0].health[r]["steps"] for r in range(3)}
    assert len(steps) > 1
    for r in range(3):
        alone, _ = live(stack_of(*typed, seeds=(r,)))
        assert distance(tree_map(lambda v, r=r: v[r], together), alone) < 1e-9


# ---------------------------------------------------------------- fdr


def test_fdr_is_its_equation(stack_of):
    """Probabilities over the outputs that could answer when the task ended, a sample at a time; and where nothing has
    moved, a gradient of 0 that is a number."""
    stack = stack_of("strategy=fdr", "scenario=class", "alpha=0.7", "memory_size=21", "replay_batch=9", *SMALL)
    run, kept = stack.initialize(), {}
    for stage in range(3):
        batch, loop = a_batch(stack, stage), Loop(stack, run.theta)
        g, loss, _ = stack.strategy.gradient(run.theta, run.state, stack.hp, batch)
        wanted = loop.ce(batch.rows.tolist(), stage)
        if stage:
            old, _ = stack.strategy.recall(run.state.memory, batch, batch.noise[1])
            gaps = [(probabilities(stack, loop, row, stage) - kept[row]).square().sum() for row in old.rows.tolist()]
            wanted = wanted + 0.7 * sum((gap + 1e-300).sqrt() for gap in gaps) / 9
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
        assert g.isfinite().all()
        assert (g - loop.gradient(wanted)).abs().max() < 1e-12
        run, _ = stack.learn(run, stage)
        memory = run.state.memory
        loop = Loop(stack, run.theta)
        for row, p in zip(memory.rows[: memory.held].tolist(), run.state.p, strict=True):
            kept.setdefault(row, probabilities(stack, loop, row, stage).detach())
            assert (p - kept[row]).abs().max() < 1e-12
        counts = torch.bincount(memory.rows // len(stack.strategy.data.images))
        assert counts.max() - counts.min() <= 1


def probabilities(stack, loop, row, stage):
    active = stack.tables.active[stage, row // len(loop.data.images)]
    z = loop.z(row).exp() * active
    return z / z.sum()


def test_fdr_at_rest_has_no_gradient(stack_of):
    stack = stack_of("strategy=fdr", "scenario=domain", *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    batch = a_batch(stack, 1)
    g, _, aux = stack.strategy.gradient(run.theta, run.state, stack.hp, batch)
    plain, _, _ = stack.strategy.gradient(run.theta, run.state, stack.hp._replace(alpha=0 * stack.hp.alpha), batch)
    assert aux["replay_loss"] == 0
    assert torch.equal(g, plain)


# ---------------------------------------------------------------- mir


@pytest.mark.parametrize("m", [None, 5])
def test_mir_chooses_what_the_virtual_step_hurts_most(stack_of, m):
    """Among 20 candidates of 30; each loss by a pass of one sample, before and after a step on the batch."""
    replay = () if m is None else (f"replay_batch={m}",)
    options = ("candidates=20", "virtual_lr=0.3", "memory_size=30", *replay)
    stack = stack_of("strategy=mir", "scenario=class", *options, *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    run, _ = stack.learn(run, 1)
    batch, before = a_batch(stack, 2), Loop(stack, run.theta)
    g, loss, aux = stack.strategy.gradient(run.theta, run.state, stack.hp, batch)
    fit = before.ce(batch.rows.tolist(), 2)
    after = Loop(stack, run.theta - 0.3 * before.gradient(fit))
    drawing = replace(stack.strategy, replay_batch=20, replay_draw="without")
    rows = drawing.recall(run.state.memory, batch, batch.noise[1])[0].rows.tolist()
    hurt = {row: (after.ce([row], 2) - before.ce([row], 2)).item() for row in rows}
    worst = sorted(rows, key=hurt.__getitem__, reverse=True)[: m or 12]
    wanted = (before.ce(batch.rows.tolist(), 2) + before.ce(worst, 2)) / 2
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    assert (g - before.gradient(wanted)).abs().max() < 1e-12
    mean = sum(hurt[row] for row in worst) / len(worst) - sum(hurt.values()) / 20
    assert aux["chosen_interference"].item() == pytest.approx(mean, abs=1e-12)
    assert mean > 0


def test_mir_without_a_choice_is_er(stack_of):
    typed = ("scenario=class", "replay_batch=12", *SMALL)
    mir, _ = live(stack_of("strategy=mir", "candidates=12", *typed))
    er, _ = live(stack_of("strategy=er", "replay_draw=without", *typed))
    assert (mir.theta - er.theta).abs().max() < 1e-9
    other, _ = live(stack_of("strategy=mir", "candidates=30", *typed))
    assert (mir.theta - other.theta).abs().max() > 1e-6
    with pytest.raises(UsageError, match="a larger number of candidates"):
        stack_of("strategy=mir", "candidates=9", *typed)


# ---------------------------------------------------------------- gem


@pytest.mark.parametrize("n", [1, 2, 5, 10, 20])
def test_the_quadratic_program_against_scipy(n):
    """200 programs: well and badly conditioned, some unknowns not there. u = v - floor >= 0 with A = L^T L is the
    non-negative least squares problem min |L u + L^-T c|."""
    draw = np.random.default_rng(n)
    for trial in range(200):
        G = draw.normal(size=(n, n + 3)) * (10 ** draw.uniform(-2, 1, (n, 1)))
        if trial % 2:
            G = G + draw.normal(size=(1, n + 3)) * 3  # gradients that agree with each other
        A, b, floor = G @ G.T + 1e-3 * np.eye(n), G @ draw.normal(size=n + 3), draw.choice([0.0, 0.5])
        there = draw.random(n) < 0.8 if trial % 3 else np.ones(n, dtype=bool)
        v = bounded_minimum(torch.tensor(A), torch.tensor(b), torch.tensor(floor), torch.tensor(there)).numpy()
        assert (v[~there] == 0).all()
        assert (v[there] >= floor).all()
        if not there.any():
            continue
        A, b = A[np.ix_(there, there)], b[there]
        L = np.linalg.cholesky(A).T
        c = b + A @ np.full(len(b), floor)
        u, _ = nnls(L, -np.linalg.solve(L.T, c), maxiter=1000)
        value = lambda v: v @ A @ v / 2 + b @ v  # noqa: E731
        assert value(v[there]) <= value(u + floor) + 1e-9 * (1 + abs(value(u + floor)))


def test_the_quadratic_program_in_a_stack():
    draw = torch.Generator().manual_seed(0)
    G = torch.randn(6, 5, 8, generator=draw).double()
    A, b = G @ G.mT + 1e-3 * torch.eye(5), torch.randn(6, 5, generator=draw).double()
    there = torch.rand(6, 5, generator=draw) < 0.7
    together = torch.vmap(bounded_minimum)(A, b, torch.zeros(6).double(), there)
    for i in range(6):
        assert (together[i] - bounded_minimum(A[i], b[i], torch.tensor(0.0), there[i])).abs().max() < 1e-12


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_against_scipy(stack_of, margin):
    """At every step of four tasks: the gradient of each past task, a sample a pass; then the closest gradient that
    opposes none of them, from SciPy's SLSQP on the dual. Without a margin, no past task is opposed."""
    stack = stack_of("strategy=gem", "scenario=domain", f"margin={margin}", "memory_size=20", *SMALL)
    run, kept, projections = stack.initialize(), [], 0
    loop = Loop(stack, run.theta)

    def step(rows, noise, stage):
        nonlocal projections
        g = loop.gradient(loop.ce(rows, stage))
        if kept:
            G = torch.stack([loop.gradient(loop.ce(old, stage)) for old in kept])
            if (G @ g < 0).any():
                projections += 1
                A, b = (G @ G.T + 1e-3 * torch.eye(len(G))).numpy(), (G @ g).numpy()
                found = minimize(
                    lambda v: v @ A @ v / 2 + b @ v, np.full(len(b), margin + 0.1), jac=lambda v: A @ v + b,
                    bounds=[(margin, None)] * len(b), method="SLSQP", options={"ftol": 1e-16, "maxiter": 500},
                )  # fmt: skip
                g = g + torch.tensor(found.x) @ G
                assert (G @ g > -1e-3 * torch.tensor(found.x) - 1e-6).all()
        loop.move(g)

    for stage in range(4):
        run, report = stack.learn(run, stage)
        loop.task(stage, step)
        kept.append(stack.pool(stage, "train", torch.float64).rows[:4].tolist())
        assert run.state.rows[: stage + 1].tolist() == kept
        assert (loop.theta - run.theta).abs().max() < 1e-6
        assert report.health[0]["projections"] == projections
        assert report.health[0]["memory_fill"] == pytest.approx((stage + 1) / 5)
        assert report.health[0]["memory_classes"] == len({class_of(loop.data, r) for rows in kept for r in rows})
    assert projections > 3


def test_gem_of_tasks_that_are_smaller_than_their_share(stack_of):
    stack = stack_of("strategy=gem", "memory_size=100000", "iterations=2", "tasks=2")
    run, reports = live(stack)
    sizes = [len(pool) for pool in stack.streams[0].train]
    assert run.state.held.tolist() == sizes
    assert stack.strategy.stored_samples(run.state) == sum(sizes)
    assert stack.strategy.unused_bytes(run.state) == 8 * (100000 - sum(sizes))
    assert reports[-1].health[0]["memory_fill"] == pytest.approx(sum(sizes) / 100000)


def test_the_empty_slots_of_a_past_task_have_no_gradient(stack_of):
    """A task of one class that has 30 slots more than samples: its gradient is that of its samples, one a pass."""
    typed = ("strategy=gem", "scenario=class", "split.classes=[[3],[4,5]]", *SMALL[:-1])
    size = len(stack_of(*typed).streams[0].train[0])
    stack = stack_of(*typed, f"memory_size={2 * (size + 30)}")
    run, _ = stack.learn(stack.initialize(), 0)
    assert run.state.held.tolist() == [size, 0]
    held = stack.strategy.data.rows(stack.streams[0].train[0], 0).tolist()
    assert sorted(run.state.rows[0, :size].tolist()) == sorted(held) and run.state.rows.shape[1] == size + 30
    theta = run.theta + torch.randn_like(run.theta) / 4
    loop = Loop(stack, theta)
    wanted = loop.ce(held, 1)
    r, loss = stack.strategy.past_gradient(theta, run.state, stack.hp, a_batch(stack, 1), 0)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    assert (r - loop.gradient(wanted)).abs().max() < 1e-12
