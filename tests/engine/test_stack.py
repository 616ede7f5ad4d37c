"""The engine: the order of samples, budgets, stacks of unequal tasks, what is measured and when."""

import pytest
import torch
from conftest import live
from torch.utils._pytree import tree_map

from clrun.data.sampler import Budget, EpochSampler
from clrun.engine.health import first_divergence, monitoring_weights
from clrun.strategies.finetune import Finetune


def sampler(pools=(10,), epochs=3, iterations=None, batch_size=4, drop_last=False, even=False, seed=0):
    starts = [sum(pools[:i]) for i in range(len(pools))]
    rows = [torch.arange(a, a + n) for a, n in zip(starts, pools, strict=True)]
    return EpochSampler(rows, Budget(epochs, iterations, batch_size, drop_last), even, seed, "test")


# ---------------------------------------------------------------- the order of samples


def test_an_epoch_sees_every_sample_once():
    one = sampler()
    assert (one.steps, one.epoch_steps, one.batch_size) == (9, 3, 4)
    rows, weight, progress, epoch, _ = one.sample(0, 9)
    assert epoch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for epoch in range(3):
        span = slice(3 * epoch, 3 * epoch + 3)
        assert sorted(rows[span][weight[span] > 0].tolist()) == list(range(10))
    assert weight.sum(1).tolist() == [4, 4, 2] * 3
    assert progress.tolist() == pytest.approx([0, 1 / 3, 2 / 3] * 3)
    assert not torch.equal(rows[:3], rows[3:6])


def test_drop_last_and_iterations():
    assert sampler(drop_last=True).sample(0, 6)[1].sum(1).tolist() == [4] * 6
    counted = sampler(epochs=None, iterations=7)
    assert counted.steps == 7
    assert counted.sample(0, 7)[1].sum(1).tolist() == [4, 4, 2, 4, 4, 2, 4]
    assert sampler(pools=(10, 10), epochs=None, iterations=7).steps == 14  # a budget for each task that is seen


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_blocks_do_not_matter(size):
    whole = sampler().sample(0, 9)
    again = sampler()
    parts = [again.sample(start, min(size, 9 - start)) for start in range(0, 9, size)]
    for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(pieces))


def test_past_the_end_is_nothing():
    rows, weight, *_, noise = sampler().sample(7, 6)
    assert weight.sum(1).tolist() == [4, 2, 0, 0, 0, 0]
    assert rows.shape == (6, 4)
    assert noise.shape == (6, 6, 4)


def test_even_batches_draw_the_same_from_each_task():
    three = sampler(pools=(10, 3, 5), batch_size=4, even=True, epochs=2)
    assert three.batch_size == 6  # ceil(4 / 3) from each
    rows, weight, *_ = three.sample(0, three.steps)
    assert weight.min() == 1
    for batch in rows:
        assert [int(((batch >= a) & (batch < b)).sum()) for a, b in ((0, 10), (10, 13), (13, 18))] == [2, 2, 2]


def test_seeds_and_purposes_differ():
    assert not torch.equal(sampler(seed=0).sample(0, 3)[0], sampler(seed=1).sample(0, 3)[0])


# ---------------------------------------------------------------- stacks


def test_eight_drawn_orders_of_unequal_tasks(stack_of):
    """Eight seeds with class orders of their own, so with tasks of different sizes; stacked as alone, in float32."""
    overrides = ("strategy=ewc", "lambda=50", "epochs=2", "batch_size=32")
    seeds = tuple(range(8))
    stack = stack_of(*overrides, seeds=seeds, dtype=torch.float32)
    assert len({tuple(len(pool) for pool in stream.train) for stream in stack.streams}) > 1
    together, reports = live(stack)
    for r, seed in enumerate(seeds):
        alone, reports_alone = live(stack_of(*overrides, seeds=[seed], dtype=torch.float32))
        assert (together.theta[r] - alone.theta).abs().max() < 2e-4
        exact, _ = live(stack_of(*overrides, seeds=[seed]))
        assert (exact.theta - alone.theta).abs().max() < 2e-4
        for one, other in zip(reports, reports_alone, strict=True):
            assert (one.correct[r] - other.correct[0]).abs().max() <= 1


def test_diverged_lambda_leaves_its_neighbours_bit_for_bit(stack_of):
    """SGD, lambda 0, 1 and 1e30 in one stack: the last is lost, the first two are what they are without it."""
    overrides = ("strategy=ewc", "optimizer=sgd", "lr=0.05", "tasks=2", "iterations=30")
    variants = [("lambda=0",), ("lambda=1",), ("lambda=1e30",)]
    stack = stack_of(*overrides, variants=variants, dtype=torch.float32)
    ill, reports = live(stack)
    well, _ = live(stack_of(*overrides, variants=[*variants[:2], ("lambda=2",)], dtype=torch.float32))
    assert not ill.theta[2].isfinite().all()
    assert [divergence is not None and divergence.diverged for divergence in reports[1].divergence] == [
        False,
        False,
        True,
    ]
    assert torch.equal(ill.theta[:2], well.theta[:2])


def test_a_run_that_is_done_rests(stack_of):
    """Its parameters, optimizer and state stay bit for bit while a longer neighbour goes on."""
    stack = stack_of("strategy=ewc", "epochs=1", "batch_size=2", seeds=(0, 1), dtype=torch.float32)
    samplers = [stack.schedule.sampler(r, 0, "train") for r in range(2)]
    short = min((0, 1), key=lambda r: samplers[r].steps)
    assert samplers[short].steps < samplers[1 - short].steps
    run, _ = stack.train(stack.initialize(), stack.new_stage(0))
    alone = stack_of("strategy=ewc", "epochs=1", "batch_size=2", seeds=[short])
    assert run.opt.n[short] == samplers[short].steps == alone.schedule.sampler(0, 0, "train").steps
    assert run.opt.n[1 - short] == samplers[1 - short].steps


def test_one_run_beside_its_copy(stack_of):
    """A stack of the same run twice: no run reads another's rows, labels or noise."""
    together, _ = live(stack_of("strategy=finetune", "augment=crop_flip", seeds=(3, 3)))
    assert torch.equal(together.theta[0], together.theta[1])


# ---------------------------------------------------------------- what is measured


def test_accuracy_is_counted_one_by_one(stack_of):
    stack = stack_of("strategy=finetune", "scenario=class", "active=seen", "iterations=20")
    run = stack.initialize()
    for stage in range(3):
        run, report = stack.learn(run, stage)
    data, stream = stack.strategy.data, stack.streams[0]
    for task in range(5):
        right = 0
        for image in stream.test[task]:
            x = data.images[image].double() * data.scale + data.shift
            logits = stack.strategy.net(run.theta, x[None])[0]
            guess = logits[: 2 * 3].argmax()  # outputs of the three tasks seen
            right += int(guess == stream.tables.label[task, data.labels[image]])
        assert report.correct[0, task] == right
    assert report.correct[0, 3:].tolist() == [0, 0]


def test_untrained_row_uses_the_tasks_own_outputs(stack_of):
    stack = stack_of("strategy=finetune", "scenario=class")
    run = stack.initialize()
    report = stack.evaluate_untrained(run)
    data, stream = stack.strategy.data, stack.streams[0]
    for task in range(5):
        x = data.images[stream.test[task]].double() * data.scale + data.shift
        allowed = sorted({0, 1, 2 * task, 2 * task + 1})
        guess = torch.tensor(allowed)[stack.strategy.net(run.theta, x)[:, allowed].argmax(1)]
        assert report.correct[0, task] == (guess == stream.tables.label[task, data.labels[stream.test[task]]]).sum()


def test_measuring_within_tasks_changes_no_bit(stack_of):
    plain, reports = live(stack_of("strategy=ewc", "iterations=11", "augment=crop_flip"))
    often, reports_often = live(stack_of("strategy=ewc", "iterations=11", "augment=crop_flip", "evaluate_every=4"))
    assert torch.equal(plain.theta, often.theta)
    steps = [step for report in reports_often for step, _ in report.over_training]
    assert steps == list(range(4, 56, 4))
    assert all(torch.equal(a.correct, b.correct) for a, b in zip(reports, reports_often, strict=True))
    assert [report.step for report in reports] == [11, 22, 33, 44, 55]


def test_confusion_adds_up(stack_of):
    stack = stack_of("strategy=finetune", "scenario=class", "iterations=10")
    run, reports = live(stack)
    confusion = stack.evaluator.evaluate(run, 4, "test").confusion(10)[0]
    assert confusion.sum() == sum(len(pool) for pool in stack.streams[0].test)
    assert confusion.diagonal().sum() == reports[-1].correct.sum()
    for task in range(5):
        assert confusion[2 * task : 2 * task + 2].sum() == len(stack.streams[0].test[task])


# ---------------------------------------------------------------- budgets and optimizers


def test_joint_sees_everything_first_and_trains_nothing_later(stack_of):
    for scenario, even in (("task", True), ("domain", False), ("class", False)):
        stack = stack_of("strategy=joint", f"scenario={scenario}", "active=seen", "epochs=8", "batch_size=40")
        sampler = stack.schedule.sampler(0, 0, "train")
        total = sum(len(pool) for pool in stack.streams[0].train)
        assert sampler.balanced == even
        assert sampler.steps == 8 * -(-total // 40)
        run, reports = live(stack)
        assert [report.samples > 0 for report in reports] == [True] + [False] * 4
        assert all(torch.equal(report.correct, reports[0].correct) for report in reports)
        assert (reports[0].correct > 0).all()
        assert run.opt.n == sampler.steps


def test_joint_in_iterations_has_the_budget_of_all(stack_of):
    stack = stack_of("strategy=joint", "iterations=3")
    assert stack.schedule.sampler(0, 0, "train").steps == 15


@pytest.mark.parametrize("reset", ["true", "false"])
def test_optimizer_reset(stack_of, reset):
    stack = stack_of("strategy=finetune", f"optimizer.reset={reset}", "iterations=6")
    run, _ = live(stack)
    assert run.opt.n == (6 if reset == "true" else 30)


def test_the_last_short_batch_counts_by_its_samples(stack_of):
    """One SGD epoch over 3 batches, the last of them short, by hand."""
    stack = stack_of("strategy=finetune", "optimizer=sgd", "lr=0.1", "epochs=1", "batch_size=100", "tasks=5")
    rows, weight, *_ = stack.schedule.sampler(0, 0, "train").sample(0, 3)
    assert 0 < weight[2].sum() < 100
    theta, data, label = stack.initialize().theta, stack.strategy.data, stack.streams[0].tables.label[0]
    for i in range(3):
        image = rows[i][weight[i] > 0]
        leaf = theta.clone().requires_grad_()
        logits = stack.strategy.net(leaf, data.images[image].double() * data.scale + data.shift)[:, :2]
        loss = torch.nn.functional.cross_entropy(logits, label[data.labels[image]])
        theta = theta - 0.1 * torch.autograd.grad(loss, leaf)[0]
    ours, _ = stack.train(stack.initialize(), stack.new_stage(0))
    assert (ours.theta - theta).abs().max() < 1e-12


def test_adam_under_a_huge_lambda_is_found_frozen(stack_of):
    """Adam's v overflows, every later step is zero, and neither loss nor theta ever shows it."""
    stack = stack_of("strategy=ewc", "lambda=1e30", "tasks=2", "iterations=20", dtype=torch.float32)
    run, reports = live(stack)
    assert run.theta.isfinite().all()
    divergence = reports[1].divergence[0]
    assert divergence is not None
    assert not divergence.diverged
    assert reports[1].health[0]["steps_not_finite"] > 0
    assert reports[0].divergence[0] is None


def test_where_trouble_began():
    signals = {"loss": torch.tensor([1.0, 2.0, 3.0]), "gradient_norm": torch.tensor([1.0, torch.inf, 1.0])}
    every = torch.ones(3)
    assert (
        first_divergence(signals, every, theta_finite=True, optimizer_finite=True) is None
    )  # the norm alone overflowed
    assert first_divergence(signals, every, theta_finite=True, optimizer_finite=False) == (
        2,
        False,
    )  # the optimizer's state with it
    assert first_divergence(signals, every, theta_finite=False, optimizer_finite=False) == (2, True)
    fine = signals | {"gradient_norm": torch.ones(3)}
    assert first_divergence(fine, every, theta_finite=False, optimizer_finite=True) == (3, True)  # the last step of all
    all_diverged = fine | {"loss": torch.tensor([1.0, 2.0, torch.nan])}  # by what the second step made of theta
    assert first_divergence(all_diverged, every, theta_finite=False, optimizer_finite=True) == (2, True)
    never = fine | {"loss": torch.tensor([torch.nan, torch.nan, torch.nan])}
    assert first_divergence(never, every, theta_finite=False, optimizer_finite=True) == (1, True)


def test_every_pass_over_a_task_is_looked_at_anew(stack_of):
    """A lone run finds the gradient's norm at some steps of each pass, and PackNet makes two of an odd length."""
    together = stack_of("strategy=packnet", "tasks=2", "iterations=21", seeds=(0, 1))
    reports = zip(live(stack_of("strategy=packnet", "tasks=2", "iterations=21"))[1], live(together)[1], strict=True)
    for alone, stacked in reports:
        assert alone.health[0]["steps"] == 42
        assert alone.health[0]["steps_not_finite"] == 0 and alone.divergence[0] is None
        assert alone.health[0]["gradient_norm"] == pytest.approx(stacked.health[0]["gradient_norm"], rel=1e-9)


def test_trouble_of_a_second_pass():
    weights = torch.cat([monitoring_weights(21), monitoring_weights(21)])
    norm = torch.where(weights > 0, 1.0, torch.nan)
    loss = torch.cat([torch.ones(40), torch.tensor([torch.nan, torch.nan])])
    assert first_divergence(
        {"loss": loss, "gradient_norm": norm}, weights, theta_finite=False, optimizer_finite=True
    ) == (40, True)


def test_health_is_a_mean_over_steps(stack_of):
    stack = stack_of("strategy=finetune", "optimizer=sgd", "lr=0.1", "iterations=40")
    run, losses = stack.initialize(), []
    rows, weight, *_ = stack.schedule.sampler(0, 0, "train").sample(0, 40)
    data, label, theta = stack.strategy.data, stack.streams[0].tables.label[0], run.theta
    for i in range(40):
        image = rows[i][weight[i] > 0]
        leaf = theta.clone().requires_grad_()
        logits = stack.strategy.net(leaf, data.images[image].double() * data.scale + data.shift)[:, :2]
        loss = torch.nn.functional.cross_entropy(logits, label[data.labels[image]])
        (g,) = torch.autograd.grad(loss, leaf)
        losses.append((loss.item(), g.norm().item()))
        theta = theta - 0.1 * g
    _, report = stack.learn(run, 0)
    assert report.health[0]["loss"] == pytest.approx(sum(loss for loss, _ in losses) / 40)
    norms = [norm for _, norm in losses]  # looked at in steps 1 to 4, 16 and 32, which stand for 4 and twice 16
    assert report.health[0]["gradient_norm"] == pytest.approx((sum(norms[:4]) + 16 * (norms[15] + norms[31])) / 36)
    assert report.health[0]["steps"] == 40


class TrainsOnSome(Finetune):
    """Plain training that skips the tasks whose first sample has an odd number: those of some seeds alone."""

    def trained_rows(self, phase, state, own):
        return [rows[: 0 if int(rows[0]) % 2 else len(rows)] for rows in own]


def test_a_run_without_samples_in_a_pass_waits_for_the_others(stack_of):
    seeds = (0, 1, 2, 3)
    run, reports = live(stack_of("strategy=finetune", "epochs=2", seeds=seeds, strategy=TrainsOnSome))
    taken = [[of_run["steps"] for of_run in report.health] for report in reports]
    assert any(0 in row and any(row) for row in taken), "no pass in which one run waits for another"
    for r, seed in enumerate(seeds):
        alone, _ = live(stack_of("strategy=finetune", "epochs=2", seeds=(seed,), strategy=TrainsOnSome))
        assert (run.theta[r] - alone.theta).abs().max() < 1e-9


def test_batch_norm_statistics_move_in_training_alone(stack_of):
    small = ("model=resnet18", "model.width=2", "model.norm=batch", "split.classes=[[0,1],[2,3]]", "iterations=2")
    stack = stack_of("strategy=ewc", "fisher_samples=8", *small)
    run = stack.initialize()
    trained, _ = stack.train(run, stack.new_stage(0))
    after = stack.consolidate(trained, stack.new_stage(0))
    stack.evaluator.evaluate(after, 0, "test")
    moved = tree_map(lambda a, b: not torch.equal(a, b), run.stats, trained.stats)
    assert all(moved.values())
    assert all(torch.equal(after.stats[name], v) for name, v in trained.stats.items())


class Descends(Finetune):
    """A loss whose gradient is one number for all weights, which autograd expands without memory of its own."""

    def loss(self, theta, state, hp, batch):
        return theta.sum() * batch.mean_weight.sum(), {}

    def restrict(self, delta, g, theta, state, hp, batch):
        return delta


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_gradient_that_is_one_number_is_read_as_that(stack_of, optimizer):
    stack = stack_of("strategy=finetune", f"optimizer={optimizer}", "lr=0.25", "iterations=3", strategy=Descends)
    start = stack.initialize()
    run, _ = stack.learn(start, 0)
    assert torch.allclose(run.theta, start.theta - 0.75, atol=1e-7)


def test_stacks_of_the_tests_are_on_the_cpu_where_there_is_a_card(stack_of, monkeypatch):
    """The tests compare them with tensors of their own."""
    monkeypatch.setattr("clrun.runs.build.resolve_device", lambda *_: torch.device("cuda"))
    stack = stack_of("strategy=ewc", seeds=(0, 1))
    assert all(v.device.type == "cpu" for v in (stack.initialize().theta, stack.lr, stack.strategy.data.images))
