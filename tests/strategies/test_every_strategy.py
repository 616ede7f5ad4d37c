"""What every strategy promises, over every conf/strategy/*.yaml: adding one adds no line here."""

import pytest
import torch
from conftest import SCENARIOS, STRATEGIES, live
from elsewhere import DEVICE
from fake_device import FakeDevice
from helpers import second_task
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from clrun.config.catalog import read
from clrun.engine.health import all_finite
from clrun.engine.step import make_step
from clrun.runs import contract, prepare
from clrun.runs.build import build
from clrun.system.errors import UsageError

SEEDS = (0, 1, 2)
COMBINATIONS = [(strategy, scenario) for strategy in STRATEGIES for scenario in SCENARIOS]


def stack_or_skip(stack_of, *overrides, because="scenario", **more):
    """A strategy may refuse a scenario or a network, in one sentence that says what to type instead, and before
    training; then there is nothing more to check."""
    try:
        return stack_of(*overrides, **more)
    except UsageError as refusal:
        assert because in str(refusal)
        pytest.skip(f"refused: {refusal}")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def distance(a, b):
    return max(
        ((x.double() - y.double()).abs().max().item() for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True)),
        default=0.0,
    )


@pytest.mark.parametrize(("strategy", "scenario"), COMBINATIONS)
def test_stacked_equals_alone(stack_of, strategy, scenario):
    """Three seeds with class orders of their own, so with tasks of unequal size: stacked as alone."""
    overrides = (f"strategy={strategy}", f"scenario={scenario}", "epochs=1", "batch_size=48")
    together = stack_or_skip(stack_of, *overrides, seeds=SEEDS)
    assert contract.stacked(together, lambda r: stack_of(*overrides, seeds=[SEEDS[r]]), SEEDS) is None


@pytest.mark.parametrize(("strategy", "scenario"), COMBINATIONS)
def test_step_is_pure(stack_of, strategy, scenario):
    """Inputs are left as they were, equal inputs give equal outputs, the state keeps its shapes, and samples of weight
    0 change nothing."""
    stack = stack_or_skip(stack_of, f"strategy={strategy}", f"scenario={scenario}")
    second = contract.SecondTask.of(stack)
    assert contract.pure(second) is None
    assert contract.padding(second) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_state_never_aliases_theta(stack_of, strategy):
    """An anchor that is theta itself would follow it, and its penalty be zero for ever."""
    stack = stack_of(f"strategy={strategy}")
    for run in (stack.initialize(), stack.learn(stack.initialize(), 0)[0]):
        assert run.theta.data_ptr() not in {v.data_ptr() for v in tree_leaves(run.state)}


@pytest.mark.slow  # tests/runs/test_resume.py kills every strategy more often; this is how clrun-check does it
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_and_resumed_is_not_killed(settings_of, tmp_path, strategy):
    typed = (f"strategy={strategy}", "iterations=20", "tasks=2", "model.widths=[12,8]", "checkpoint_every=1e-9")
    places = [f"outputs={tmp_path / name}" for name in ("whole", "interrupted")]
    whole, interrupted = (prepare.prepare(settings_of(*typed, place)) for place in places)
    assert contract.resumed(whole, interrupted) is None
    assert whole.directory != interrupted.directory


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_learning_leaves_the_run_that_it_is_given(stack_of, strategy):
    """A checkpoint may still be written from it, though steps are taken in place; nor does the state follow theta. The
    columns of health.csv are numbers meanwhile."""
    stack = stack_of(f"strategy={strategy}")
    first, report = stack.learn(stack.initialize(), 0)
    before = tree_map(torch.clone, first)
    _, second = stack.learn(first, 1)
    assert same(first, before)
    assert contract.health([report, second]) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_values_stack(stack_of, strategy):
    """Runs that differ in their strengths, stacked, equal the same runs one by one."""
    knobs = read().options["strategy"][strategy].knobs
    cls = stack_of(f"strategy={strategy}").strategy
    free = [k for k in knobs if k in {name.rstrip("_") for name in cls.Hyper._fields}]
    variants = [tuple(f"{k}={knobs[k].default * factor}" for k in free) for factor in (0.25, 0.5, 1.0)]
    unlocked = ("online=true",) if "online" in knobs else ()
    together = stack_of(f"strategy={strategy}", *unlocked, variants=variants)
    alone = lambda r: stack_of(f"strategy={strategy}", *unlocked, variants=[variants[r]])  # noqa: E731
    assert contract.stacked(together, alone, variants) is None


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "joint"])  # no second stage
def test_a_stack_computes_at_the_end_of_a_task_what_its_runs_compute(stack_of, strategy):
    """Its runs have other classes, so that no output of a task is that of all runs; each counts its own."""

    def operations(seeds):
        stack = stack_of(f"strategy={strategy}", "tasks=5", "iterations=1", seeds=seeds)
        current, _ = stack.learn(stack.initialize(), 0)
        with FlopCounterMode(display=False) as counted:
            stack.consolidate(current, stack.new_stage(1))
        return counted.get_total_flops()

    assert operations(SEEDS) <= 1.05 * sum(operations([seed]) for seed in SEEDS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whether_runs_are_finite_is_one_value_a_run(prepared_of, strategy):
    """Theta and the optimizer's state of a stack are large, and stay on their device."""
    runs = [prepared_of(f"strategy={strategy}", "tasks=2", "model.widths=[6]", f"seed={seed}") for seed in SEEDS]
    with FakeDevice() as there:
        stack = build(runs, device=DEVICE)
        current, before = stack.initialize(), there.copied
        for tree in (current.theta, current.opt):
            all_finite(tree, stack.vectorizer)
    assert there.copied == before + 2 * len(SEEDS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_is_nan_harms_none(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", seeds=SEEDS, dtype=torch.float32)
    run = stack.initialize()
    run.theta[1] = torch.nan
    ill, reports = live_from(stack, run)
    healthy, _ = live(stack_of(f"strategy={strategy}", seeds=SEEDS, dtype=torch.float32))
    for r in (0, 2):
        assert torch.equal(ill.theta[r], healthy.theta[r])
    assert reports[0].divergence[1].diverged
    assert reports[0].divergence[0] is None


def live_from(stack, run):
    reports = []
    for stage in range(stack.strategy.data.tasks):
        run, report = stack.learn(run, stage)
        reports.append(report)
    return run, reports


@pytest.mark.slow  # three seconds a strategy, for a key that has an effect on CUDA alone
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_step_compiles_whole(stack_of, strategy):
    """No graph break, no synchronisation with the host: what a CUDA graph needs."""
    stack = stack_of(f"strategy={strategy}")
    run, args = second_task(stack)
    step = make_step(stack.strategy, stack.optimizer)
    _ = stack.strategy.net.network.has_batch_norm  # cached: the compiler can read it, and cannot compute it
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert distance(compiled(run, *args), step(run, *args)) < 1e-9


NEUTRAL = [s for s in STRATEGIES if read().options["strategy"][s].neutral is not None]


@pytest.mark.parametrize("strategy", NEUTRAL)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_neutral_is_finetuning(stack_of, strategy, scenario):
    """At the strength that its yaml calls neutral, a method is plain training, bit for bit."""
    neutral = [f"{k}={v}" for k, v in read().options["strategy"][strategy].neutral.items()]
    mine = stack_or_skip(stack_of, f"strategy={strategy}", f"scenario={scenario}", *neutral)
    assert contract.neutral(mine, stack_of("strategy=finetune", f"scenario={scenario}")) is None


# The quick suite has the networks with norms with one method of each kind.
WITH_NORMS = ("finetune", "ewc", "er", "gem", "icarl", "hat", "cbp", "ranpac")
MODELS = [
    pytest.param(model, normed, strategy, marks=pytest.mark.slow if normed and strategy not in WITH_NORMS else ())
    for model, normed in (("mlp", False), ("mlp", True), ("cnn", False), ("resnet18", True))
    for strategy in STRATEGIES
]


@pytest.mark.parametrize(("model", "normed", "strategy"), MODELS)
def test_every_model(stack_of, model, normed, strategy):
    """Two small tasks of pictures through every network, with batch norm where there is one."""
    width = {"mlp": "model.widths=[6]", "cnn": "model.width=2", "resnet18": "model.width=3"}[model]
    norm = ("model.norm=batch",) if normed else ()
    small = ("fisher_samples=16",) if "fisher_samples" in read().options["strategy"][strategy].knobs else ()
    overrides = (f"strategy={strategy}", f"model={model}", width, *norm, *small, "iterations=2", "batch_size=16")
    stack = stack_or_skip(stack_of, *overrides, "split.classes=[[0,1],[2,3]]", because="type model")
    run, reports = live(stack)
    assert run.theta.isfinite().all()
    assert (reports[-1].correct >= 0).all()
    if strategy == "generative_classifier" or not any(stack.strategy.takes_steps(stage) for stage in range(2)):
        return  # batch norm sees no batch: autoencoders answer in place of the network, or nothing is trained
    moved = [not torch.equal(v, torch.zeros_like(v)) for name, v in run.stats.items() if name.endswith("mean")]
    assert all(moved)
