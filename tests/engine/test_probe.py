"""probe=true: how much of a task can be read off the frozen features."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import live
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed
from sklearn.linear_model import Ridge

from clrun.config import compose
from clrun.engine.probe import RIDGE, Sums, fitted
from clrun.results.metrics import forgotten_since
from clrun.runs import train
from clrun.system.errors import UsageError

SMALL = ("strategy=finetune", "scenario=class", "tasks=2", "iterations=8", "batch_size=8", "probe=true")


def test_by_hand():
    """One feature, -1 for label 0 and 1 for label 1, no sample of output 2: S = 1, K = -1/2 and 1/2, r = 0.001."""
    phi, targets = torch.tensor([[-1.0, 1], [1, 1]]).double(), torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double()
    head = fitted(Sums(phi.mT @ phi, targets.mT @ phi))
    assert head.flatten().tolist() == pytest.approx([-0.5 / 1.001, 0.5, 0.5 / 1.001, 0.5, 0, -math.inf])


def test_what_was_forgotten_by_hand():
    probe = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.2], [0.7, 0.8, 0.2], [0.8, 0.9, 0.6]])
    found = forgotten_since(probe)
    assert found[2, 0] == pytest.approx(0.2) and found[3, 0] == pytest.approx(0.1)
    assert found[3, 1] == pytest.approx(-0.1) and np.isfinite(found).sum() == 3


def test_a_stack_equals_ridge_regression_of_scikit_learn(stack_of):
    together = stack_of(*SMALL, seeds=(0, 1))
    _, reports = live(together)
    for r in range(2):
        alone = stack_of(*SMALL, seeds=[r])
        run, of_one = live(alone)
        assert torch.equal(reports[1].probe[r], of_one[1].probe[0]) and of_one[0].probe[0, 1] == -1
        data, stream = alone.strategy.data, alone.streams[0]
        for task in range(2):
            x, labels = [], []
            for pool in (stream.train[task], stream.test[task]):
                inputs = data.inputs(alone.tables, pool, torch.full_like(pool, task))
                x.append(alone.strategy.net.features(run.theta, inputs).numpy())
                labels.append(alone.tables.label[task, data.labels[pool]].numpy())
            assert of_one[1].probe[0, task] == ridge_answers(x, labels)


def gated(strategy: str, stack, run, task: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the weights (P,) and the gates of the two hidden layers with which a strategy answers a task."""
    whole = [torch.ones(()), torch.ones(())]
    if strategy == "separate":
        return (run.theta if task == run.state.stage else run.state.thetas[task]), whole
    if strategy == "xdg":
        return run.theta, [gates[task].double() for gates in run.state.gates]
    if strategy == "hat":
        pieces = stack.strategy.net.layout.view(run.theta)
        return run.theta, [(pieces[f"gate.{i}"][task] * stack.hp.smax).sigmoid() for i in range(2)]
    return run.theta, whole


@pytest.mark.parametrize("strategy", ["hat", "separate", "xdg", "joint", "bic"])
def test_the_features_with_which_a_strategy_answers(stack_of, strategy):
    """The features written in plain PyTorch, and the probe by scikit-learn, after the last task."""
    stack = stack_of(f"strategy={strategy}", "tasks=2", "probe=true", "model.widths=[20,20]")
    run, reports = live(stack)
    data, stream = stack.strategy.data, stack.streams[0]
    for task in range(2):
        theta, gates = gated(strategy, stack, run, task)
        pieces = stack.strategy.net.layout.view(theta)
        x, labels = [], []
        for pool in (stream.train[task], stream.test[task]):
            h = data.inputs(stack.tables, pool, torch.full_like(pool, task)).flatten(1)
            for i, name in enumerate(list(stack.strategy.net.network.layers)[:2]):
                h = (
                    torch.relu(torch.nn.functional.linear(h, pieces[f"{name}.weight"], pieces[f"{name}.bias"]))
                    * gates[i]
                )
            x.append(h.numpy())
            labels.append(data.labels[pool].numpy())
        assert reports[-1].probe[0, task] == ridge_answers(x, labels)
    assert strategy == "joint" or reports[0].probe[0].tolist()[1] == -1


def ridge_answers(x: list[np.ndarray], labels: list[np.ndarray]) -> int:
    """Return how many samples scikit-learn answers correctly. x, labels: of training, and of test."""
    known = np.unique(labels[0])
    ridge = Ridge(alpha=RIDGE * x[0].var(0).mean() * len(x[0])).fit(x[0], labels[0][:, None] == known)
    return (known[ridge.predict(x[1]).argmax(1)] == labels[1]).sum()


def test_the_file_of_a_run(prepared_of, tmp_path):
    """A run that is killed writes the same file, and the training is that without a probe."""
    prepared = prepared_of(*SMALL, "plots=false", "device=cpu", "checkpoint_every=1e-9")
    with pytest.raises(Killed):
        train.train_runs([prepared], progress=InterruptingProgress(8, Killed), trainer=SHORT_BLOCKS)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    plain = prepared_of(*SMALL[:-1], "plots=false", "device=cpu")
    train.train_run(plain, quiet=True)
    whole = prepared_of(*SMALL, "plots=false", "device=cpu", f"outputs={tmp_path / 'whole'}")
    train.train_run(whole, quiet=True)
    assert (prepared.directory / "probe.csv").read_bytes() == (whole.directory / "probe.csv").read_bytes()
    assert (prepared.directory / "accuracy.csv").read_text().replace(prepared.id, "") == (
        (plain.directory / "accuracy.csv").read_text().replace(plain.id, "")
    )
    table = pd.read_csv(prepared.directory / "probe.csv")
    assert table[["after_task", "eval_task"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [2, 1], [2, 2]]
    assert table["forgotten_in_features"].notna().tolist() == [False, False, False, True, False]
    assert table["probe_accuracy"].iloc[3] > table["accuracy"].iloc[3]


def test_identity_and_refusals(prepared_of):
    assert compose("probe=false").identity("d") == compose().identity("d") != compose("probe=true").identity("d")
    assert compose("probe=true").setup("d") == compose().setup("d")
    for typed in (["strategy=ncm"], ["strategy=finetune", "model=linear"]):
        with pytest.raises(UsageError, match="leave probe out"):
            prepared_of(*typed, "probe=true")
