"""Heads in closed form: after any split and in any order they are the head of all samples together, to 1e-10.

The joint heads are stated here a second time, in NumPy, from all training samples at once.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import live

from clrun.strategies.ncm import NCM
from clrun.strategy import lowered, solved
from clrun.system.errors import UsageError

SPLITS = [
    ("tasks=5", "split.order=seed"),
    ("tasks=2", "split.order=fixed"),
    ("split.classes=[[3],[9,0,1],[2,4,5,6,7,8]]",),
    ("tasks=1",),
]
COMMON = ("scenario=class", "dataset=digits")


def samples_of(stack):
    """All training samples of a run in float64 with their outputs, and all test samples."""
    data, stream = stack.strategy.data, stack.streams[0]

    def inputs(pools):
        images, tasks = torch.cat(pools), torch.cat([torch.full_like(p, t) for t, p in enumerate(pools)])
        y = stream.tables.label[tasks, data.labels[images]]
        return data.inputs(stack.tables, images, tasks).flatten(1).numpy(), y.numpy()

    return *inputs(stream.train), inputs(stream.test)[0]


def scores_of(stack, run, x):
    """The scores of all outputs as the trained run computes them."""
    x, t = torch.as_tensor(x), torch.zeros(len(x), dtype=torch.long)
    strategy = stack.strategy.eval_mode(run.stats)
    return strategy.scores(run.theta, run.state, stack.hp, x.view(len(x), *stack.strategy.data.images.shape[1:]), t)


def class_means(x, y):
    return np.stack([x[y == c].mean(0) for c in range(10)])


def ncm(x, y, test):
    means = class_means(x, y)
    return -((test[:, None] - means) ** 2).sum(-1) / 2


JOINT = {("ncm",): ncm}


def differences(scores):
    """Scores without what all outputs have in common, which no answer depends on."""
    return scores - scores[:, :1]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("strategy", JOINT, ids=" ".join)
def test_it_is_the_head_of_all_samples_together(stack_of, strategy, split):
    name, *knobs = strategy
    stack = stack_of(f"strategy={name}", *knobs, *split, *COMMON, seeds=[3])
    run, _ = live(stack)
    x, y, test = samples_of(stack)
    expected = differences(JOINT[strategy](x, y, test))
    found = differences(scores_of(stack, run, test).numpy())
    assert np.abs(found - expected).max() < 1e-10 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("strategy", [name for name, *_ in JOINT])
def test_the_network_stays_as_it_starts(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", *COMMON)
    first = stack.initialize()
    run, reports = live(stack)
    assert torch.equal(run.theta, first.theta)
    assert [report.health[0]["steps"] for report in reports] == [0] * 5


@pytest.mark.parametrize("strategy", [name for name, *_ in JOINT])
def test_the_trunk_is_trained_on_the_first_task_alone(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", "trunk=first_task", *COMMON)
    run, _ = stack.learn(stack.initialize(), 0)
    later, report = stack.learn(run, 1)
    assert not torch.equal(run.theta, stack.initialize().theta)
    assert torch.equal(later.theta, run.theta)
    assert report.health[0]["steps"] == 0


def test_a_head_on_the_trunk_reads_the_last_hidden_layer(stack_of):
    stack = stack_of("strategy=ncm", "trunk=initial", *COMMON)
    run, _ = live(stack)
    x, y, test = samples_of(stack)
    pieces = {name: v.numpy() for name, v in stack.strategy.net.layout.view(run.theta).items()}
    for layer in ("hidden.0", "hidden.1"):
        x, test = (np.maximum(v @ pieces[f"{layer}.weight"].T + pieces[f"{layer}.bias"], 0) for v in (x, test))
    found = differences(scores_of(stack, run, samples_of(stack)[2]).numpy())
    assert np.abs(found - differences(ncm(x, y, test))).max() < 1e-10


def test_the_network_answers_until_there_is_a_head(stack_of):
    stack = stack_of("strategy=ncm", "trunk=first_task", *COMMON)
    run = stack.initialize()
    x = samples_of(stack)[2][:5]
    logits = stack.strategy.eval_mode(run.stats).net(run.theta, torch.as_tensor(x).view(5, 1, 8, 8))
    assert torch.equal(scores_of(stack, run, x), logits)


def test_outputs_without_a_sample_come_last():
    scores = torch.tensor([[1.0, -5.0, 9.0]])
    assert lowered(scores, torch.tensor([True, True, False])).tolist() == [[1, -5, -6]]
    assert lowered(scores, torch.tensor([False] * 3)).tolist() == [[0, 0, 0]]


def test_a_matrix_that_cannot_be_solved_raises_nothing():
    good, bad = torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    both = solved(torch.stack([good, bad, good * torch.nan]), torch.ones(3, 2, 1))
    assert torch.equal(both[0], torch.ones(2, 1))
    assert both[1:].isnan().all()


def test_a_linear_network_has_no_trunk(prepared_of):
    with pytest.raises(UsageError, match="type trunk=none or model=mlp"):
        prepared_of("strategy=ncm", "model=linear", "trunk=initial")
    assert prepared_of("strategy=ncm", "model=linear")


def test_state_is_what_is_stated(stack_of):
    stack = stack_of("strategy=ncm", *COMMON)
    assert stack.state_bytes(stack.initialize()) == 8 * (2 * 10 * 64 + 2 * 10)


class Drawing(NCM):
    """NCM that keeps what it draws."""

    class State(NCM.State):
        pass

    @classmethod
    def draws(cls, network, tasks, knobs):
        return {"numbers": torch.randn(tasks), "order": torch.randperm(tasks)}

    def init_from(self, theta, drawn):
        return {"sums": self.init(theta).sums, "drawn": drawn}


def test_what_a_strategy_draws_follows_from_the_seed(stack_of):
    together = stack_of("strategy=ncm", seeds=[0, 1], strategy=Drawing).initialize().state["drawn"]
    alone = [stack_of("strategy=ncm", seeds=[seed], strategy=Drawing).initialize().state["drawn"] for seed in (0, 1)]
    for name in ("numbers", "order"):
        assert torch.equal(together[name], torch.stack([one[name] for one in alone]))
        assert not torch.equal(alone[0][name], alone[1][name])
    assert together["numbers"].dtype == torch.float64 and together["order"].dtype == torch.long


def test_a_stage_without_steps_whose_weights_are_no_numbers_has_diverged(stack_of):
    stack = stack_of("strategy=ncm")
    run = stack.initialize()
    _, report = stack.learn(run._replace(theta=run.theta * torch.nan), 0)
    assert report.divergence[0].diverged and report.divergence[0].step == 0
    assert stack.learn(run, 0)[1].divergence == [None]


def test_a_finished_run_answers_without_its_data(prepared_of):
    from clrun.runs.answering import answering, network_in
    from clrun.runs.train import train_run

    prepared = prepared_of("strategy=ncm", *COMMON, "pictures=false", "device=cpu")
    train_run(prepared, quiet=True)
    module = answering(network_in(prepared.directory), 0)
    images = prepared.images
    test = prepared.stream.test[0]
    predicted = torch.tensor(module.answers)[module(images.x[test]).argmax(-1)]
    y = prepared.stream.tables.label[0, images.y[test]]
    assert (predicted == y).double().mean() > 0.8


def test_stages_without_steps_need_no_batch_that_can_be_normalised(prepared_of):
    small = ("model=resnet18", "model.width=1", "model.norm=batch", "batch_size=1", "scenario=class")
    assert prepared_of("strategy=ncm", *small)
    with pytest.raises(UsageError, match="batch of one picture"):
        prepared_of("strategy=finetune", *small)


def test_replaced_classes_keep_their_fields(stack_of):
    strategy = stack_of("strategy=ncm").strategy
    assert replace(strategy, trunk="initial").feature_count == 8
    assert strategy.feature_count == 64
