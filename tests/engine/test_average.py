"""average=ema: what is evaluated is an exponential moving average of the weights. Training does not notice, unless the
strategy fits something to the weights when a task ends: then they become their average first."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import STRATEGIES, live
from helpers import module_of
from scipy.optimize import minimize
from torch.utils._pytree import tree_map

from clrun.data.batches import StepContext
from clrun.strategies.bic import RIDGE
from clrun.strategy import Strategy
from clrun.system.errors import UsageError


class Recorder(Strategy):
    """Plain training that keeps the weights after every step of a stage."""

    def init(self, theta):
        return {"path": theta.new_zeros(8, len(theta)), "step": torch.zeros((), dtype=torch.long)}

    def after_move(self, state, before, after, aux):
        here = torch.arange(8) == state["step"]
        return {"path": torch.where(here[:, None], after, state["path"]), "step": state["step"] + 1}


def test_the_average_is_that_of_all_steps(stack_of):
    stack = stack_of("average=ema", "average_decay=0.3", "strategy=finetune", "iterations=8", strategy=Recorder)
    start = stack.initialize()
    run, report = stack.learn(start, 0)
    average = start.theta.numpy()
    for n, theta in enumerate(run.state["path"].numpy()):
        d = min(0.3, (1 + n) / (10 + n))
        average = d * average + (1 - d) * theta
    assert np.abs(run.average.theta.numpy() - average).max() < 1e-12
    distance = np.linalg.norm(average - run.theta.numpy()) / run.theta.norm().item()
    assert report.health[0]["average_distance"] == pytest.approx(distance)


@pytest.mark.parametrize("strategy", ["ewc", "packnet", "er", "upgd", "hat", "cbp"])
def test_training_is_the_same_and_the_average_is_evaluated(stack_of, strategy):
    typed = (f"strategy={strategy}", "iterations=12")
    with_it, reports = live(stack_of("average=ema", *typed))
    without, plain = live(stack_of(*typed))
    assert torch.equal(with_it.theta, without.theta)
    assert not torch.equal(with_it.average.theta, without.theta)
    evaluator = stack_of(*typed).evaluator
    for report, part in ((reports[-1], with_it.average.theta), (plain[-1], without.theta)):
        expected = evaluator.evaluate(without._replace(theta=part), 4, "test").correct
        assert torch.equal(report.correct, expected)


@pytest.mark.parametrize("typed", ["finetune", "ewc", "er", "packnet", "hat", "icarl", "bic", "ncm trunk=first_task"])
def test_a_decay_of_0_is_no_average(stack_of, typed):
    """What is evaluated after each task are the weights, bit for bit, and they answer as without it."""
    common = (*f"strategy={typed}".split(), "iterations=10")
    (with_it, reports), (without, plain) = (
        live(stack_of("average=ema", "average_decay=0", *common)),
        live(stack_of(*common)),
    )
    assert torch.equal(with_it.evaluated, without.theta)
    for report, other in zip(reports, plain, strict=True):
        assert torch.equal(report.correct, other.correct)
        assert report.health[0]["average_distance"] == 0


WITHOUT_STEPS = ("ncm", "slda", "fecam", "ranpac")


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in WITHOUT_STEPS])
def test_alone_stacked_and_on_tensors_that_stay(stack_of, strategy):
    typed = ("average=ema", f"strategy={strategy}", "iterations=10")
    alone, _ = live(stack_of(*typed))
    played, _ = live(replace(stack_of(*typed), use_graph=True))
    together, _ = live(stack_of(*typed, seeds=[0, 1]))
    for other in (played, tree_map(lambda v: v[0], together)):
        assert (alone.average.theta - other.average.theta).abs().max() < 1e-9
        assert (alone.theta - other.theta).abs().max() < 1e-9
        assert alone.average.steps == other.average.steps
    if strategy in ("finetune", "packnet", "shrink_perturb", "cbp", "icarl", "wa", "bic", "imm"):
        assert alone.average.steps == 10 * 5 * (2 if strategy == "packnet" else 1)


def test_what_is_pruned_or_begins_anew_is_so_in_the_average(stack_of):
    stack = stack_of("average=ema", "strategy=packnet")
    run, _ = stack.learn(stack.initialize(), 0)
    pruned = run.theta == 0
    assert pruned.any() and not run.average.theta[pruned].any()
    stack = stack_of("average=ema", "strategy=scratch")
    run, _ = stack.learn(stack.initialize(), 0)
    begun = stack.begin_stage(run, 1)
    assert torch.equal(begun.average.theta, begun.theta)
    assert begun.average.steps == 0  # the average of a new network is not held back where that began


def test_runs_without_it_are_as_before(stack_of, settings_of):
    run = stack_of("strategy=finetune").initialize()
    assert run.average == () and run.evaluated is run.theta
    assert "average" not in settings_of("strategy=ewc").not_default
    assert settings_of("average=ema").identity("x") != settings_of("strategy=ewc").identity("x")


def test_a_finished_run_keeps_the_average(prepared_of):
    from clrun.runs.answering import network_in
    from clrun.runs.train import train_run

    kept = {}
    for typed in ([], ["average=ema"]):
        prepared = prepared_of("strategy=finetune", "iterations=5", "plots=false", "device=cpu", *typed)
        train_run(prepared, quiet=True)
        kept[len(typed)] = network_in(prepared.directory).weights["head.weight"]
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["average_decay=0.5"], "type average=ema as well"),
        (["average=ema", "model=resnet18", "model.norm=batch"], "type model.norm=group"),
        (["average=ema", "strategy=icarl", "model=resnet18", "model.norm=batch"], "type model.norm=group"),
        (["average=ema", "strategy=ncm"], "there is nothing to average"),
        (["average=ema", "strategy=slda", "trunk=initial"], "there is nothing to average"),
    ],
)
def test_what_cannot_be_averaged(prepared_of, typed, text):
    with pytest.raises(UsageError, match=text):
        prepared_of(*typed)


# ---------------------------------------------------------------- what is fitted to the weights


def learnt(stack, run, stage):
    """Learn a task of which no pass but the last takes steps -> the run before its end, after it, and the report."""
    partial, phases = stack.new_stage(stage), stack.strategy.phases
    begun = stack.begin_stage(run, stage)
    for _ in phases[:-1]:
        begun, partial = stack.consolidate(begun, partial), partial.next_phase()
    trained = stack.train(begun, partial)[0] if stack.strategy.takes_steps(stage) else begun
    return (trained, *stack.learn(run, stage))


def context_of(stage):
    """What a batch of one sample needs besides it."""
    when, one = torch.tensor(stage), torch.zeros(())
    return StepContext(when, when, one, when, torch.zeros(6, 1).double())


def distance(trained):
    return ((trained.average.theta - trained.theta).norm() / trained.theta.norm()).item()


FITTED = ("icarl", "wa", "bic", "imm", "separate", "ncm trunk=first_task", "ranpac trunk=first_task")


@pytest.mark.parametrize("typed", FITTED)
def test_the_weights_become_their_average_when_a_task_ends(stack_of, typed):
    """The distance that is reported is that before they did."""
    stack = stack_of("average=ema", *f"strategy={typed}".split(), "iterations=10")
    run = stack.initialize()
    for stage in range(3):
        trained, run, report = learnt(stack, run, stage)
        assert torch.equal(run.theta, run.average.theta)
        if typed != "wa" or stage == 0:  # which then aligns some of them
            assert torch.equal(run.theta, trained.average.theta)
        assert report.health[0]["average_distance"] == pytest.approx(distance(trained))
        assert (report.health[0]["average_distance"] > 0) == stack.strategy.takes_steps(stage)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_means_of_icarl_are_those_of_the_weights_that_answer(stack_of, scenario):
    """An exemplar at a time. The means by the weights that were trained would be others."""
    stack = stack_of("average=ema", "strategy=icarl", f"scenario={scenario}", "memory_per_class=5")
    data, run = stack.strategy.data, stack.initialize()
    for stage in range(3):
        trained, run, _ = learnt(stack, run, stage)
        memory, found = run.state.past.memory, []
        for theta in (run.evaluated, trained.theta):
            features = module_of(stack.strategy, theta)[:-1]
            sums = torch.zeros_like(run.state.means)
            for row in memory.rows[: memory.held].tolist():
                image = row % len(data.images)
                x = data.images[image : image + 1].double() * data.scale + data.shift
                output = data.batch(stack.tables, torch.tensor([row]), torch.ones(1).double(), context_of(stage)).y
                sums[output] += F.normalize(features(x).detach(), dim=1)
            found.append(F.normalize(sums, dim=1))
        deployed, of_trained = found
        assert (run.state.means - deployed).abs().max() < 1e-12
        assert (run.state.means - of_trained).abs().max() > 1e-6
        assert torch.equal(run.state.past.teacher, run.evaluated)


def test_wa_aligns_the_weights_that_answer(stack_of):
    stack = stack_of("average=ema", "strategy=wa", "scenario=class", "split.classes=[[0],[1,2,3],[4,5]]")
    view, run = stack.strategy.net.layout.view, stack.initialize()
    for stage, old, new in ((0, 0, 1), (1, 1, 3), (2, 4, 2)):
        trained, run, _ = learnt(stack, run, stage)
        average, head = view(trained.average.theta)["head.weight"], view(run.evaluated)["head.weight"]
        gamma = average[:old].norm(dim=1).mean() / average[old : old + new].norm(dim=1).mean() if stage else 1.0
        assert run.state.gamma.item() == pytest.approx(float(gamma))
        if stage:
            assert head[:old].norm(dim=1).mean().item() == pytest.approx(
                head[old : old + new].norm(dim=1).mean().item(), abs=1e-12
            )
        assert torch.equal(head[:old], average[:old])
        assert torch.equal(run.state.past.teacher, run.evaluated)


def test_bic_corrects_the_weights_that_answer(stack_of):
    """Alpha and beta are SciPy's minimum over what is held out, with the logits of the deployed weights."""
    typed = ("memory_size=60", "validation_share=0.3", "epochs=3", "lr=0.01", "split.order=fixed")
    stack = stack_of("average=ema", "strategy=bic", "scenario=class", *typed)
    data, run = stack.strategy.data, stack.initialize()
    for stage in range(2):
        trained, run, _ = learnt(stack, run, stage)
    held_out = run.state.validation
    images = held_out.rows[: held_out.held] % len(data.images)
    x, y = data.images[images].double() * data.scale + data.shift, data.labels[images].numpy()

    def minimum(theta):
        z = module_of(stack.strategy, theta)(x).detach().numpy()

        def loss(ab):
            v = np.where(np.arange(10) >= 2, ab[0] * z + ab[1], z)[:, :4]
            ce = np.log(np.exp(v).sum(1)) - v[np.arange(len(y)), y]
            return ce.mean() + RIDGE / 2 * ((ab[0] - 1) ** 2 + ab[1] ** 2)

        return minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-10}).x

    found = [run.state.alpha[1].item(), run.state.beta[1].item()]
    assert found == pytest.approx(minimum(run.evaluated).tolist(), abs=1e-5)
    assert found != pytest.approx(minimum(trained.theta).tolist(), abs=1e-3)
    assert torch.equal(run.state.past.teacher, run.evaluated)


def test_imm_merges_the_averages(stack_of):
    """Of all that is not the head, whose outputs are merged over the tasks in which they could answer."""
    stack = stack_of("average=ema", "strategy=imm", "merge=mean")
    run, ends = stack.initialize(), []
    for stage in range(3):
        trained, run, _ = learnt(stack, run, stage)
        ends.append(trained.average.theta)
    merged = stack.strategy.deploy(run.evaluated, run.state, stack.hp)
    hidden = stack.strategy.net.layout.where(lambda name: not name.startswith("head."), torch.ones(len(merged)).bool())
    assert (merged - torch.stack(ends).mean(0))[hidden].abs().max() < 1e-12


def test_separate_keeps_the_averages(stack_of):
    stack = stack_of("average=ema", "strategy=separate", "iterations=10")
    run, ends, reports = stack.initialize(), [], []
    for stage in range(3):
        trained, run, report = learnt(stack, run, stage)
        ends.append(trained.average.theta)
        reports.append(report.correct[0, : stage + 1])
    assert torch.equal(run.state.thetas[:3], torch.stack(ends))
    assert torch.equal(reports[2][:2], reports[1])


class LastPassWithoutSteps(Strategy):
    """A method whose last pass takes no steps, as one that only measures something."""

    phases = ("train", "measure")
    fits_weights = True

    def trained_rows(self, phase, state, own):
        return own if phase == "train" else [own[0][:0]]


def test_a_pass_without_steps_leaves_the_distance_of_the_one_before(stack_of):
    typed = ("average=ema", "strategy=finetune", "iterations=8")
    run, report = (stack := stack_of(*typed, strategy=LastPassWithoutSteps)).learn(stack.initialize(), 0)
    _, plain = (stack := stack_of(*typed)).learn(stack.initialize(), 0)
    assert torch.equal(run.theta, run.average.theta)
    assert report.health[0]["average_distance"] == plain.health[0]["average_distance"] > 0


def test_without_boundaries_nothing_is_fitted_and_training_is_the_same(stack_of):
    """`after_phase` is never called then: the average follows the weights as that of any other method."""

    class Told(Strategy):
        fits_weights = True

    typed = ("average=ema", "strategy=finetune", "scenario=class", "stream=online", "boundaries=false", "epochs=null")
    mine, plain = (live(stack_of(*typed, **more))[0] for more in ({"strategy": Told}, {}))
    assert torch.equal(mine.theta, plain.theta) and torch.equal(mine.average.theta, plain.average.theta)
    assert not torch.equal(mine.theta, mine.average.theta)
