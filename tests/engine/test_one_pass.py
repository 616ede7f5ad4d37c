"""One pass over the stream: each sample once, in an order that no method changes, and tested before it is learnt."""

import math

import pandas as pd
import pytest
import torch
from conftest import STEPLESS, STRATEGIES, live
from helpers import summaries
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import SHORT_BLOCKS, InterruptingProgress, Killed

from clrun.data.batches import StepContext
from clrun.data.sampler import Budget, OnlineSampler
from clrun.engine.step import make_step
from clrun.results import metrics
from clrun.runs import train
from clrun.system.csv_numbers import ALL_DIGITS
from clrun.system.errors import UsageError

ONLINE = ("stream=online", "scenario=class")


# ---------------------------------------------------------------- the order of samples


def sampler(own, extra, batch_size, passes, seed, drop_last=False):
    rows = torch.arange(own) + 7
    pools = [torch.cat([rows, torch.arange(extra) + 1000])]
    return OnlineSampler(
        pools, Budget(1, None, batch_size, drop_last, passes), False, seed, "stage 0 train", own=[rows]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_each_sample_is_seen_once_however_many_steps_it_takes(own, extra, batch_size, passes, seed):
    one = sampler(own, extra, batch_size, passes, seed)
    rows, weight, progress, epoch, noise = one.sample(0, one.steps)
    assert one.steps == passes * math.ceil((own + extra) / batch_size)
    for number in range(passes):
        seen = rows[epoch == number][weight[epoch == number] > 0]
        assert sorted(seen.tolist()) == [*range(7, 7 + own), *range(1000, 1000 + extra)]
    assert torch.equal(rows[::passes].repeat_interleave(passes, 0), rows)  # all steps on a batch before the next one
    assert len(noise.flatten(1).unique(dim=0)) == len(noise)  # each with its own random numbers
    assert progress.tolist() == pytest.approx([k / one.steps for k in range(one.steps)])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_what_a_memory_adds_does_not_change_the_order(own, extra, batch_size, seed):
    plain, mixed = (sampler(own, n, batch_size, 1, seed).order() for n in (0, extra))
    assert torch.equal(mixed[mixed < 1000], plain)
    if own >= 12:  # of fewer samples, two seeds may well draw the same order
        assert not torch.equal(plain, sampler(own, 0, batch_size, 1, seed + 1).order())


def test_blocks_of_one_pass_continue_each_other():
    whole, again = sampler(23, 4, 5, 2, 0).sample(0, 14), sampler(23, 4, 5, 2, 0)
    parts = [again.sample(start, 3) for start in range(0, 15, 3)]
    for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces)[: len(one)], one)


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_method_is_asked_about_each_sample_once(stack_of, strategy):
    """Each sample of a task is new once, whatever a memory brings back; the order is that of finetuning."""
    passes = [] if strategy in STEPLESS else ["passes=2"]  # which is refused where no step is taken
    try:
        stack = stack_of(f"strategy={strategy}", *ONLINE, "batch_size=200", *passes, "epochs=null", "tasks=2")
    except UsageError as refusal:
        assert "scenario" in str(refusal) or "stream=online" in str(refusal)
        pytest.skip(str(refusal))
    first, report = stack.learn(stack.initialize(), 0)
    for stage, made in enumerate([report, stack.learn(first, 1)[1]]):
        new = [stack.strategy.data.rows(stack.streams[0].train[t], t) for t in stack.strategy.visible(stage)]
        new = [rows for t, rows in zip(stack.strategy.visible(stage), new, strict=True) if t >= stage]
        if not (new and stack.strategy.takes_steps(stage)):
            assert made.online is None
            continue
        correct, samples = made.online[0].tolist()
        held_out = strategy == "bic"  # which trains on all but those
        assert 0.8 * len(torch.cat(new)) < samples < len(torch.cat(new)) if held_out else samples == len(torch.cat(new))
        assert 0 <= correct <= samples
    if list(stack.strategy.visible(1)) == [1]:
        phase = stack.strategy.phases[1 if stack.strategy.phases[0] == "meet" else 0]
        (sampled,) = stack.schedule.samplers(1, phase, stack.states(first))
        plain = stack_of("strategy=finetune", *ONLINE, "batch_size=200", "epochs=null", "tasks=2")
        order, expected = sampled.order(), plain.schedule.sampler(0, 1, "train").order()
        of_stream = order[torch.isin(order, expected)]
        assert torch.equal(of_stream, expected[torch.isin(expected, of_stream)])


@pytest.mark.parametrize("strategy", ["finetune", "er", "icarl"])
def test_a_stack_of_uneven_tasks_equals_the_runs_alone(stack_of, strategy):
    options = (
        f"strategy={strategy}",
        *ONLINE,
        "passes=2",
        "batch_size=130",
        "epochs=null",
        "tasks=2",
        "augment=crop_flip",
    )
    _, together = live(stack_of(*options, seeds=(0, 1)))
    for r, seed in enumerate((0, 1)):
        _, alone = live(stack_of(*options, seeds=[seed]))
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one.online[r], other.online[0])
            assert torch.equal(one.correct[r], other.correct[0])


def test_answers_come_before_the_step(stack_of):
    """Against a loop that asks the network itself, before each step."""
    stack = stack_of("strategy=finetune", *ONLINE, "batch_size=16", "epochs=null", "passes=2")
    state, right, asked = stack.initialize(), [], 0
    step = make_step(stack.strategy, stack.optimizer)
    sampled = stack.schedule.sampler(0, 0, "train")
    for k in range(sampled.steps):
        rows, weight, progress, epoch, noise = (v[0] for v in sampled.sample(k, 1))
        index = stack.strategy.data.index(stack.tables, rows, weight.double())
        if epoch == 0:
            images = stack.strategy.data.inputs(stack.tables, index.image, index.t)
            logits = stack.strategy.net(state.theta, images)
            allowed = stack.tables.active[0, 0]
            guess = logits.masked_fill(~allowed, -torch.inf).argmax(1)
            right += [(guess == index.y)[weight > 0]]
        context = stack_context(stack, progress, epoch, noise)
        state, _ = step(state, stack.lr, stack.hp, stack.tables, index, context)
        asked += int(weight.sum()) * int(epoch == 0)
    _, report = stack.learn(stack.initialize(), 0)
    assert report.online.tolist() == [[int(torch.cat(right).sum()), asked]]


def stack_context(stack, progress, epoch, noise):
    return StepContext(*stack.stage_and_horizon(0), progress, epoch, noise)


# ---------------------------------------------------------------- files


SMALL = (*ONLINE, "model.widths=[8]", "device=cpu", "tasks=2", "plots=false", "evaluate_every=9", "batch_size=50")


def test_killed_is_not_killed(prepared_of):
    prepared = prepared_of("strategy=er", *SMALL, "checkpoint_every=1e-9", "passes=2")
    names = ("online_accuracy.csv", "health.csv", "accuracy_over_training.csv", "accuracy.csv")
    for lives in (5, 4):
        with pytest.raises(Killed):
            train.train_runs([prepared], progress=InterruptingProgress(lives, Killed), trainer=SHORT_BLOCKS)
    train.train_run(prepared, quiet=True, trainer=SHORT_BLOCKS)
    resumed = {name: (prepared.directory / name).read_bytes() for name in names}
    whole = prepared_of("strategy=er", *SMALL, "checkpoint_every=1e-9", "passes=2", "rerun=true")
    train.train_run(whole, quiet=True, trainer=SHORT_BLOCKS)
    assert {name: (whole.directory / name).read_bytes() for name in names} == resumed


def test_the_table_and_the_summary_say_how_many_were_right(empty_folder, clrun):
    assert clrun("strategy=finetune", *SMALL, "outputs=here")[0] == 0
    (folder,) = (path.parent for path in summaries(outputs="here"))
    table = pd.read_csv(folder / "online_accuracy.csv")
    assert table["task"].tolist() == ["1", "2", "all"]
    assert table["samples"].iloc[-1] == table["samples"].iloc[:-1].sum()
    summary = pd.read_csv(folder / "summary.csv", **ALL_DIGITS).iloc[0]
    assert summary["online_accuracy"] == table["correct"].iloc[-1] / table["samples"].iloc[-1]
    assert 0 < summary["accuracy_auc"] < 1
    assert (summary["passes"], summary["batch_size"], len(str(summary["stream"]))) == (1, 50, 10)


# ---------------------------------------------------------------- what is typed


def test_small_batches_unless_typed(settings_of):
    assert settings_of("stream=online")["batch_size"] == 10
    assert settings_of("stream=online", "batch_size=32")["batch_size"] == 32
    assert settings_of("stream=online")["passes"] == 1
    assert settings_of("stream=epochs").values == settings_of().values


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("stream=online", "epochs=3"), "epochs=3: with stream=online each sample is seen once"),
        (("stream=online", "iterations=3"), "iterations=3: with stream=online each sample is seen once"),
        (("stream=online", "+experiment=split_mnist"), "type iterations=null where an experiment states it"),
        (("passes=3",), "passes belongs to stream=online"),
    ],
)
def test_contradictions_are_refused(settings_of, typed, said):
    with pytest.raises(UsageError, match=said):
        settings_of(*typed)


def test_a_method_that_learns_from_its_memory_alone_is_refused(prepared_of):
    with pytest.raises(UsageError, match="trains on its memory alone"):
        prepared_of("strategy=gdumb", *ONLINE)


# ---------------------------------------------------------------- the area under the accuracy


def test_the_area_under_the_accuracy_by_hand():
    """Two tasks of 10 and 30 test samples, evaluated at steps 4, 8 (a task's end) and 16, where 1 - 2 are asked."""
    rows = [(4, 1, 1, 0.5), (4, 1, 2, 0.9), (8, 1, 1, 1.0), (8, 1, 2, 0.0), (16, 2, 1, 0.4), (16, 2, 2, 0.8)]
    over = [dict(zip(("step", "stage", "eval_task", "accuracy"), row, strict=True)) for row in [(0, 0, 1, 0.3), *rows]]
    expected = (4 * 0.5 + 4 * 1.0 + 8 * (0.4 * 10 + 0.8 * 30) / 40) / 16
    assert metrics.accuracy_auc(over, [10, 30]) == pytest.approx(expected)
    assert math.isnan(metrics.accuracy_auc([], [10, 30]))


def test_a_task_whose_classes_come_early_counts_from_the_end_of_the_stage_in_which_they_came():
    """Two tasks of 10 and 30 test samples; all classes of the second have come while the first was learnt."""
    rows = [(4, 1, 1, 0.5), (4, 1, 2, 0.0), (8, 1, 1, 1.0), (8, 1, 2, 0.2), (16, 2, 1, 0.4), (16, 2, 2, 0.8)]
    over = [dict(zip(("step", "stage", "eval_task", "accuracy"), row, strict=True)) for row in rows]
    expected = (4 * 0.5 + 4 * (1.0 * 10 + 0.2 * 30) / 40 + 8 * (0.4 * 10 + 0.8 * 30) / 40) / 16
    assert metrics.accuracy_auc(over, [10, 30], [1, 1]) == pytest.approx(expected)
