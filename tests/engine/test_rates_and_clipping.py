"""The schedule of the learning rate, its warm-up, and gradients that are cut to a length."""

import math

import pytest
import torch

from clrun.config import compose
from clrun.data.batches import StepContext
from clrun.engine.rates import RateSchedule
from clrun.engine.step import clip_scale
from clrun.system.errors import UsageError

SMALL = ("device=cpu", "model.widths=[6]", "tasks=2", "batch_size=64", "iterations=7", "threads=1")


def reference(scheduler, steps: int) -> list[float]:
    """Return the learning rates that a scheduler of PyTorch's gives an optimizer with lr = 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = scheduler(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("total", [1, 7, 40])
@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (RateSchedule("cosine"), lambda total: lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total)),
        (
            RateSchedule("linear"),
            lambda total: lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=total),
        ),
        (RateSchedule(), lambda total: lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_a_schedule_is_that_of_pytorch(schedule, scheduler, total):
    made = schedule.factors(0, total, total, 0, 1).tolist()
    assert made == pytest.approx(reference(scheduler(total), total), abs=1e-12)


def test_milestones_are_those_of_pytorch():
    schedule = RateSchedule("multistep", milestones=(0.5, 0.75), decay=0.1)
    expected = reference(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 30], gamma=0.1), 40)
    assert schedule.factors(0, 40, 40, 0, 1).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_warm_up_rises_to_the_whole_rate():
    made = RateSchedule(warmup=0.5).factors(0, 8, 8, 0, 1).tolist()
    assert made == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    made = RateSchedule("linear", warmup=0.25).factors(0, 8, 8, 0, 1).tolist()
    assert made == [0.5 * 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]


def test_blocks_of_a_pass_continue_each_other():
    schedule = RateSchedule("cosine", warmup=0.1)
    whole = schedule.factors(0, 50, 50, 0, 1)
    parts = [schedule.factors(start, 10, 50, 0, 1) for start in range(0, 50, 10)]
    assert torch.equal(torch.cat(parts), whole)


def test_over_the_stream_a_schedule_goes_on():
    schedule = RateSchedule("cosine", over_stream=True)
    stages = torch.cat([schedule.factors(0, 10, 10, stage, 4) for stage in range(4)])
    assert torch.allclose(stages, RateSchedule("cosine").factors(0, 40, 40, 0, 1), atol=1e-12)


def test_the_first_tasks_are_trained_as_in_the_whole_stream(stack_of):
    small = [text for text in SMALL if not text.startswith("tasks")]
    typed = (*small, "scenario=domain", "tasks=5", "schedule=linear", "schedule_over=stream", "strategy=finetune")
    whole = stack_of(*typed, dtype=torch.float64)
    state, _ = whole.learn(whole.initialize(), 0)
    state, _ = whole.learn(state, 1)
    assert torch.equal(trained(stack_of(*typed, "first_tasks=2", dtype=torch.float64)), state.theta)
    joint = ("strategy=joint", "first_tasks=2", "schedule=linear")
    alike = [
        trained(stack_of(*typed[:-3], *joint, *over, dtype=torch.float64)) for over in ((), ("schedule_over=stream",))
    ]
    assert torch.equal(*alike), "joint trains in one stage, which is its whole stream"


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0, 8.0])
def test_clipping_is_that_of_pytorch(norm):
    g = torch.full((4,), norm / 2, dtype=torch.float64)
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    weight.grad = g.clone()
    total = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    assert torch.allclose(g * clip_scale(total, 1.0), weight.grad)


def trained(stack) -> torch.Tensor:
    state = stack.initialize()
    for stage in range(stack.strategy.data.tasks):
        state, _ = stack.learn(state, stage)
    return state.theta


def by_pytorch(stack, optimizer, schedule, clip):
    """Return theta after the first stage by PyTorch's optimizer, scheduler and clipping on the same batches."""
    run = stack.initialize()
    theta = run.theta.clone().requires_grad_()
    made = optimizer([theta])
    scheduler = schedule(made)
    (sampler,) = stack.schedule.samplers(0, "train", stack.states(run))
    taken = sampler.sample(0, sampler.steps)
    strategy, zero = stack.strategy, torch.tensor(0)
    for k in range(sampler.steps):
        when = StepContext(zero, zero, taken.progress[k], taken.epoch[k], taken.noise[k])
        batch = strategy.data.batch(stack.tables, taken.rows[k], taken.weight[k].to(theta.dtype), when)
        made.zero_grad()
        strategy.loss(theta, run.state, stack.hp, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_([theta], clip)
        made.step()
        scheduler.step()
    return theta.detach()


def test_training_is_that_of_pytorch(stack_of):
    settings = (*SMALL, "strategy=finetune", "optimizer=sgd", "lr=0.5", "schedule=cosine", "clip_norm=0.3")
    stack = stack_of(*settings, dtype=torch.float64)
    expected = by_pytorch(
        stack,
        lambda theta: torch.optim.SGD(theta, lr=0.5),
        lambda made: torch.optim.lr_scheduler.CosineAnnealingLR(made, 7),
        0.3,
    )
    state, _ = stack.learn(stack.initialize(), 0)
    assert torch.allclose(state.theta, expected, atol=1e-9)
    plain = stack_of(*settings[:-2], dtype=torch.float64)
    unlike, _ = plain.learn(plain.initialize(), 0)
    assert not torch.allclose(unlike.theta, expected, atol=1e-3)


@pytest.mark.parametrize("strategy", ["ewc", "er", "agem"])
def test_a_stack_is_its_runs_alone(stack_of, strategy):
    typed = (
        *SMALL, f"strategy={strategy}", "schedule=multistep", "schedule_over=stream", "warmup=0.2", "clip_norm=0.5",
        "split.classes=[[0,1],[2,3,4]]", "scenario=class", "epochs=1",
    )  # fmt: skip
    typed = tuple(text for text in typed if not text.startswith(("iterations", "tasks")))
    alone = [trained(stack_of(*typed, seeds=(seed,), dtype=torch.float64)) for seed in (0, 1)]
    together = trained(stack_of(*typed, seeds=(0, 1), dtype=torch.float64))
    for r in (0, 1):
        assert torch.allclose(together[r], alone[r], atol=1e-9)


def test_nothing_typed_is_as_before():
    plain = compose("strategy=ewc", "lambda=400")
    for typed in (["schedule=constant"], ["clip_norm=null"]):
        assert compose("strategy=ewc", "lambda=400", *typed).identity("d") == plain.identity("d")
    kinds = (["schedule=cosine"], ["schedule=linear"], ["schedule=multistep"], ["warmup=0.1"], ["clip_norm=1"])
    made = {compose("strategy=ewc", "lambda=400", *typed).identity("d") for typed in kinds}
    assert len(made) == 5 and plain.identity("d") not in made
    same = ["schedule=multistep", "schedule_milestones=[0.75,0.5]", "schedule_decay=0.1", "schedule_over=task"]
    assert compose(*same).identity("d") == compose("schedule=multistep").identity("d")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["schedule_milestones=[0.5]"], "belongs to schedule=multistep"),
        (["schedule=cosine", "schedule_decay=0.5"], "belongs to schedule=multistep"),
        (["schedule_over=stream"], "has no effect without a schedule"),
        (["schedule=step"], "schedule"),
        (["schedule=multistep", "schedule_milestones=[]"], "type one or more"),
        (["warmup=0"], "warmup"),
        (["warmup=1.5"], "warmup"),
        (["clip_norm=0"], "clip_norm"),
        (["schedule=multistep", "schedule_milestones=[1.5]"], "schedule_milestones"),
    ],
)
def test_keys_without_effect_are_refused(typed, said):
    with pytest.raises(UsageError, match=said):
        compose(*typed)


def test_the_last_rate_of_a_cosine_is_small_and_above_zero():
    assert 0 < RateSchedule("cosine").factors(99, 1, 100, 0, 1).item() < math.pi**2 / 4e4 * 1.01
