"""cumulative, scratch and separate: what each stage trains, and from where, against loops in plain PyTorch."""

import copy

import pytest
import torch
from conftest import live
from helpers import module_of

from clrun.system.errors import UsageError

SMALL = ("optimizer=sgd", "lr=0.1", "iterations=3", "batch_size=12", "split.classes=[[0,1],[2,3],[4,5]]")


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained_by_hand(stack, module, stage):
    """SGD over the stage's own order of samples; task-incremental, two classes a task."""
    data, sampler = stack.strategy.data, stack.schedule.sampler(0, stage, "train")
    module, N = copy.deepcopy(module), len(data.images)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for rows, weight, *_ in zip(*sampler.sample(0, sampler.steps), strict=True):
        losses = []
        for row in rows[weight > 0].tolist():
            task, image = row // N, row % N
            x = data.images[image].double() * data.scale + data.shift
            z = module(x[None])[0, 2 * task : 2 * task + 2]
            losses.append(torch.logsumexp(z, 0) - z[data.labels[image] - 2 * task])
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        optimizer.step()
    return module


def reborn(stack, stage):
    return module_of(stack.strategy, stack.initializers[0](stage)[0])


def tasks_of(stack, stage):
    sampler = stack.schedule.sampler(0, stage, "train")
    rows, weight, *_ = sampler.sample(0, sampler.steps)
    return set((rows[weight > 0] // len(stack.strategy.data.images)).tolist())


def test_cumulative_goes_on_with_all_tasks_so_far(stack_of):
    stack = stack_of("strategy=cumulative", *SMALL)
    run, module = stack.initialize(), reborn(stack, 0)
    for stage in range(3):
        assert tasks_of(stack, stage) == set(range(stage + 1))
        assert stack.schedule.sampler(0, stage, "train").steps == 3 * (stage + 1)
        run, _ = stack.learn(run, stage)
        module = trained_by_hand(stack, module, stage)
        assert (run.theta - flat(module)).abs().max() < 1e-12


def test_scratch_begins_anew_with_all_tasks_so_far(stack_of):
    stack = stack_of("strategy=scratch", *SMALL)
    run, starts = stack.initialize(), []
    for stage in range(3):
        assert tasks_of(stack, stage) == set(range(stage + 1))
        run, _ = stack.learn(run, stage)
        starts.append(reborn(stack, stage))
        assert (run.theta - flat(trained_by_hand(stack, starts[-1], stage))).abs().max() < 1e-12
    assert not torch.equal(flat(starts[0]), flat(starts[1]))
    assert not torch.equal(flat(starts[1]), flat(starts[2]))


def test_scratch_forgets_the_statistics_too(stack_of):
    """A fresh network has fresh running statistics: what batch norm saw before does not matter."""
    small = ("model=resnet18", "model.width=2", "model.norm=batch", "iterations=1", "split.classes=[[0,1],[2,3]]")
    stack = stack_of("strategy=scratch", *small)
    run, _ = stack.learn(stack.initialize(), 0)
    spoilt = run._replace(stats={name: v + 1 for name, v in run.stats.items()})
    once, again = (stack.learn(start, 1)[0] for start in (run, spoilt))
    assert once.stats
    for name, v in once.stats.items():
        assert torch.equal(v, again.stats[name])


def test_separate_is_a_network_for_every_task(stack_of):
    """Each is trained alone from its own start, and answers for its task as that network alone does."""
    stack = stack_of("strategy=separate", *SMALL)
    run, _ = live(stack)
    data, N = stack.strategy.data, len(stack.strategy.data.images)
    rest = stack.strategy.eval_mode(run.stats)
    mixed = torch.cat([stack.streams[0].test[task][:7] + N * task for task in range(3)])
    mixed = mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))]
    t = mixed // N
    x = data.inputs(stack.tables, mixed % N, t)
    answers = rest.logits(run.theta, run.state, stack.hp, x, t)
    for task in range(3):
        module = trained_by_hand(stack, reborn(stack, task), task)
        assert (run.state.thetas[task] - flat(module)).abs().max() < 1e-12
        assert (answers[t == task] - module(x[t == task])).abs().max() < 1e-12


@pytest.mark.parametrize("model", ["mlp", "resnet18"])
def test_separate_forgets_and_transfers_exactly_nothing(stack_of, model):
    """An old task keeps its accuracy and a later one its untrained accuracy, with batch norm too."""
    shape = ("model.widths=[16]",) if model == "mlp" else ("model.width=2", "model.norm=batch")
    stack = stack_of("strategy=separate", f"model={model}", *shape, "iterations=4", "split.classes=[[0,1],[2,3],[4,5]]")
    run = stack.initialize()
    rows = [stack.evaluate_untrained(run).correct[0]]
    for stage in range(3):
        run, report = stack.learn(run, stage)
        rows.append(report.correct[0])
        assert report.health[0]["networks"] == stage + 1
    for task in range(3):
        assert len({rows[stage][task].item() for stage in range(task + 1)}) == 1
        assert len({rows[stage][task].item() for stage in range(task + 1, 4)}) == 1
    assert not torch.equal(rows[0], rows[-1])


def test_separate_answers_with_the_network_in_training(stack_of):
    """Measured in the middle of a task, the task is answered by theta as it is then."""
    ends = stack_of("strategy=separate", *SMALL)
    often = stack_of("strategy=separate", *SMALL, "evaluate_every=1")
    _, reports = live(often)
    assert [step for report in reports for step, _ in report.over_training] == list(range(1, 10))
    for report, end in zip(reports, live(ends)[1], strict=True):
        assert torch.equal(report.over_training[-1][1], end.correct)


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_separate_must_be_told_the_task(stack_of, scenario):
    with pytest.raises(UsageError, match="task_id_at_test=true"):
        stack_of("strategy=separate", f"scenario={scenario}")
    stack_of("strategy=separate", f"scenario={scenario}", "task_id_at_test=true")
