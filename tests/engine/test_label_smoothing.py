"""Labels that are smoothed over the outputs that may answer."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import STRATEGIES
from helpers import slow_but

from clrun.config import compose
from clrun.runs.contract import difference, trained
from clrun.strategy import losses
from clrun.strategy.loss import smoothed
from clrun.system.errors import UsageError

STEPPING = [name for name in STRATEGIES if name not in ("ncm", "slda", "fecam", "ranpac", "generative_classifier")]

# The strategies that state a loss of their own; the others have that of finetune.
OWN_LOSS = [
    "finetune",
    "er",
    "er_ace",
    "mir",
    "derpp",
    "fdr",
    "icarl",
    "wa",
    "bic",
    "lwf",
    "hat",
    "imm",
    "separate",
    "cbp",
    "dgr",
    "gem",
]


def test_by_hand():
    """Of outputs 0, 1 and 2, of which 2 may not answer: p = (1/4, 3/4). With a fifth spread over the two, the target of
    label 1 is (0.1, 0.9), and the loss 0.1 log 4 + 0.9 log 4/3."""
    logits = torch.tensor([[0.0, 3.0, 50.0]], dtype=torch.float64).clamp(min=1).log() + torch.tensor([[0.0, 0, 9]])
    active = torch.tensor([[True, True, False]])
    expected = 0.1 * torch.tensor(4.0).log() + 0.9 * torch.tensor(4 / 3).log()
    assert losses(logits, torch.tensor([1]), active, 0.2).item() == pytest.approx(expected.item(), rel=1e-6)
    hard = torch.tensor([[0.0, 1, 0]])
    assert torch.allclose(smoothed(hard, active, 0.2), torch.tensor([[0.1, 0.9, 0]]))
    assert smoothed(hard, active, 0.0) is hard


def test_with_all_outputs_it_is_pytorchs():
    logits, y = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 4
    ours = losses(logits, y, torch.ones(5, 4, dtype=torch.bool), 0.3)
    assert torch.allclose(ours, F.cross_entropy(logits, y, label_smoothing=0.3, reduction="none"))


@pytest.mark.parametrize("strategy", slow_but(STEPPING, {*OWN_LOSS}.__contains__))
def test_every_strategy_smooths_its_labels(stack_of, strategy):
    """And what it estimates from samples at the end of a task is of the labels as they are."""
    stack = stack_of(f"strategy={strategy}", "label_smoothing=0.5", "model.widths=[32,32]")
    of_labels = replace(stack.strategy, data=replace(stack.strategy.data, smoothing=0.0))
    smooth, hard = (trained(replace(stack, strategy=one), 1)[0].theta for one in (stack.strategy, of_labels))
    assert (smooth - hard).abs().max() > 1e-6
    (chunk,) = stack.strategy.data.chunks(stack.pool(0, "train", smooth.dtype).first(4), 4)
    assert chunk.smoothing == 0


def test_in_place_in_a_stack_and_as_a_graph(stack_of):
    settings = ("strategy=derpp", "label_smoothing=0.1", "tasks=2", "scenario=class")
    alone, stacked = (trained(stack_of(*settings, seeds=seeds))[0] for seeds in ((1,), (0, 1)))
    played = trained(replace(stack_of(*settings, seeds=(1,)), use_graph=True))[0]
    assert difference(alone.theta, stacked.theta[1]) < 1e-9 and difference(alone, played) < 1e-9


def test_none_at_all_is_as_before():
    plain = compose("strategy=ewc", "lambda=400").identity("d")
    assert compose("strategy=ewc", "lambda=400", "label_smoothing=0").identity("d") == plain
    assert compose("strategy=ewc", "lambda=400", "label_smoothing=0.1").identity("d") != plain


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {*STEPPING}))
def test_where_no_loss_reads_labels_it_is_refused(prepared_of, strategy):
    with pytest.raises(UsageError, match="leave label_smoothing out"):
        prepared_of(f"strategy={strategy}", "scenario=class", "label_smoothing=0.1")
