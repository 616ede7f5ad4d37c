"""average=ema: what is evaluated is an exponential moving average of the weights, and training does not notice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import live
from torch.utils._pytree import tree_map

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


@pytest.mark.parametrize("strategy", ["ewc", "packnet", "er", "upgd", "separate", "cbp"])
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


@pytest.mark.parametrize("strategy", ["finetune", "packnet", "shrink_perturb", "cbp"])
def test_alone_stacked_and_on_tensors_that_stay(stack_of, strategy):
    typed = ("average=ema", f"strategy={strategy}", "iterations=10")
    alone, _ = live(stack_of(*typed))
    played, _ = live(replace(stack_of(*typed), use_graph=True))
    together, _ = live(stack_of(*typed, seeds=[0, 1]))
    for other in (played, tree_map(lambda v: v[0], together)):
        assert (alone.average.theta - other.average.theta).abs().max() < 1e-9
        assert alone.average.steps == other.average.steps == 10 * 5 * (2 if strategy == "packnet" else 1)


def test_what_is_pruned_or_begins_anew_is_so_in_the_average(stack_of):
    stack = stack_of("average=ema", "strategy=packnet")
    run, _ = stack.learn(stack.initialize(), 0)
    pruned = run.theta == 0
    assert pruned.any() and not run.average.theta[pruned].any()
    stack = stack_of("average=ema", "strategy=scratch")
    run, _ = stack.learn(stack.initialize(), 0)
    begun = stack.begin_stage(run, 1)
    assert torch.equal(begun.average.theta, begun.theta)


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
        (["average=ema", "strategy=ncm"], "fits its answers to the weights"),
        (["average=ema", "strategy=icarl", "scenario=class"], "fits its answers to the weights"),
        (["average=ema", "strategy=wa", "scenario=class"], "fits its answers to the weights"),
        (["average=ema", "strategy=bic", "scenario=class"], "fits its answers to the weights"),
        (["average=ema", "strategy=slda", "trunk=first_task"], "fits its answers to the weights"),
    ],
)
def test_what_cannot_be_averaged(prepared_of, typed, text):
    with pytest.raises(UsageError, match=text):
        prepared_of(*typed)
