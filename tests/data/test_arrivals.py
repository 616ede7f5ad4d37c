"""When samples come: blurred boundaries, classes that come back, and no boundaries."""

from collections import Counter

import pandas as pd
import pytest
import torch
from conftest import STRATEGIES, live
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import ends_as_one_that_is_not

from clrun.data import arrivals
from clrun.runs import train
from clrun.strategy import Strategy
from clrun.system.errors import UsageError

SMALL = ("scenario=class", "model.widths=[8]", "device=cpu", "plots=false")


@st.composite
def task_sets(draw):
    """Return image numbers [task], labels (N,) and the classes [task] of tasks of one to three classes."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=5))
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    groups = [list(range(a, a + n)) for a, n in zip(starts, sizes, strict=True)]
    counts = draw(st.lists(st.integers(1, 30), min_size=sum(sizes), max_size=sum(sizes)))
    labels = torch.tensor(draw(st.permutations([k for k, n in enumerate(counts) for _ in range(n)])))
    pools = [torch.isin(labels, torch.tensor(group)).nonzero()[:, 0] for group in groups]
    return pools, labels, groups


def own_task(rows, labels):
    return (rows // len(labels)).tolist()


def every_sample_once(stages, pools, labels):
    expected = torch.cat(arrivals.rows_of(pools, len(labels))).sort().values
    return torch.equal(torch.cat(stages).sort().values, expected)


# ---------------------------------------------------------------- blurred


@settings(max_examples=60, deadline=None)
@given(task_sets(), st.floats(0.05, 0.95), st.sampled_from([0.0, 0.5]), st.integers(0, 99))
def test_a_share_of_each_class_comes_elsewhere(tasks, share, disjoint, seed):
    pools, labels, groups = tasks
    stages = arrivals.blurred(pools, labels, groups, share, disjoint, seed)
    assert every_sample_once(stages, pools, labels)
    whole = 0
    for task, group in enumerate(groups):
        for k in group:
            came = Counter(
                s for s, rows in enumerate(stages) for row in rows.tolist() if labels[row % len(labels)] == k
            )
            n = sum(came.values())
            elsewhere = [came[s] for s in range(len(pools)) if s != task]
            assert sum(elsewhere) in (0, round(share * n))
            assert max(elsewhere) - min(elsewhere) <= 1  # evenly
            whole += sum(elsewhere) == 0 and round(share * n) > 0
    if disjoint:
        assert whole <= round(disjoint * sum(map(len, groups)))
    assert arrivals.blurred(pools, labels, groups, share, disjoint, seed)[0].equal(stages[0])


def test_the_share_of_equal_tasks_is_that_of_their_samples():
    labels = torch.arange(10).repeat_interleave(400)
    groups = [[2 * t, 2 * t + 1] for t in range(5)]
    pools = [torch.isin(labels, torch.tensor(group)).nonzero()[:, 0] for group in groups]
    for stage, rows in enumerate(arrivals.blurred(pools, labels, groups, 0.1, 0.0, 0)):
        assert len(rows) == 800
        assert sum(t != stage for t in own_task(rows, labels)) == 80
    kept = arrivals.disjoint_classes(groups, 0.5, torch.Generator().manual_seed(0))
    assert [len(kept & {*group}) for group in groups] == [1] * 5  # as in Koh et al. 2022


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.floats(0, 0.9), st.floats(0.05, 0.9), st.integers(0, 99))
def test_si_blurry_hands_no_more_on_than_asked_for(classes, tasks, disjoint, share, seed):
    of_tasks = arrivals.stochastic_classes(list(range(classes)), tasks, disjoint, seed)
    groups = [of_task.classes for of_task in of_tasks]
    assert sorted(k for group in groups for k in group) == [*range(classes)]
    kept = {k for of_task in of_tasks for k in of_task.disjoint}
    assert kept == {*range(round(disjoint * classes))}
    labels = torch.arange(classes).repeat(13)
    pools = [torch.isin(labels, torch.tensor(group, dtype=torch.long)).nonzero()[:, 0] for group in groups]
    stages = arrivals.stochastic(pools, labels, of_tasks, share, seed)
    assert every_sample_once(stages, pools, labels)
    moved = [
        int(labels[row % len(labels)])
        for stage, rows in enumerate(stages)
        for row, task in zip(rows.tolist(), own_task(rows, labels), strict=True)
        if task != stage
    ]
    assert len(moved) <= round(share * 13 * (classes - len(kept))) and not kept & {*moved}
    assert all(
        a.equal(b) for a, b in zip(stages, arrivals.stochastic(pools, labels, of_tasks, share, seed), strict=True)
    )


def test_si_blurry_draws_the_numbers_of_classes():
    """Of 400 streams of 10 classes in 5 tasks, nearly all have tasks of different sizes."""
    sizes = [[len(t.classes) for t in arrivals.stochastic_classes(list(range(10)), 5, 0.5, s)] for s in range(400)]
    assert sum(len({*of_stream}) > 1 for of_stream in sizes) > 360
    assert all(sum(of_stream) == 10 and of_stream[-1] >= 2 for of_stream in sizes)


# ---------------------------------------------------------------- classes that come back


def test_classes_come_back_by_chance():
    """Of 300 streams of 12 classes in 6 tasks: the law of the first task, and of coming back. Of the first two tasks a
    geometric law with p = 1/2, truncated to six, has 3/4 / (1 - 1/64); all 12 stay away from a task in 1 of 70 cases.
    """
    streams = [arrivals.sampled_experiences(12, 6, 0.5, 0.3, seed) for seed in range(300)]
    assert streams[0] == arrivals.sampled_experiences(12, 6, 0.5, 0.3, 0)
    back = known = early = 0
    for present in streams:
        new = arrivals.first_seen(present)
        assert all(present) and new[0] and sorted(k for of_task in new for k in of_task) == [*range(12)]
        back, known = back + len(present[5]) - len(new[5]), known + 12 - len(new[5])
        early += len(new[0]) + len(new[1])
    assert back / known == pytest.approx(0.3, abs=0.03)
    assert early / 300 == pytest.approx(12 * 0.75 / (1 - 1 / 64), abs=0.3)
    assert arrivals.sampled_experiences(3, 5, None, 1.0, 0)[-1] == [0, 1, 2]
    lonely = arrivals.sampled_experiences(1, 4, None, 0.0, 0)
    assert lonely == [[0]] * 4  # a task that would have none brings back what was before


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_each_class_comes_as_often_as_any_other(classes, tasks, slots, seed):
    slots = max(min(slots, classes), -(-classes // tasks))
    if slots > classes:
        return
    present = arrivals.experiences(classes, tasks, slots, seed)
    assert all(len(set(of_task)) == slots for of_task in present)
    times = Counter(k for of_task in present for k in of_task)
    assert set(times) == {*range(classes)}
    assert max(times.values()) - min(times.values()) <= 1
    new = arrivals.first_seen(present)
    assert sorted(k for of_task in new for k in of_task) == [*range(classes)]
    labels = torch.arange(classes).repeat(7)
    pools = [torch.isin(labels, torch.tensor(of_task, dtype=torch.long)).nonzero()[:, 0] for of_task in new]
    stages = arrivals.repeated(pools, labels, present, seed)
    assert every_sample_once(stages, pools, labels)
    for rows, of_task in zip(stages, present, strict=True):
        assert {*labels[rows % len(labels)].tolist()} <= {*of_task}


def test_seeds_draw_different_experiences():
    drawn = [arrivals.experiences(10, 20, 3, seed) for seed in range(3)]
    assert drawn[0] == arrivals.experiences(10, 20, 3, 0)
    assert drawn[0] != drawn[1] != drawn[2]


# ---------------------------------------------------------------- no boundaries


@settings(max_examples=40, deadline=None)
@given(task_sets(), st.floats(0.05, 1.0), st.integers(0, 99))
def test_no_sample_comes_more_than_half_a_change_early_or_late(tasks, overlap, seed):
    pools, labels, _ = tasks
    stages = arrivals.gradual(pools, len(labels), overlap, seed)
    assert every_sample_once(stages, pools, labels)
    assert all(abs(t - stage) <= 1 for stage, rows in enumerate(stages) for t in own_task(rows, labels))


def test_the_next_task_gains_evenly():
    """Of two tasks of 20,000 samples with overlap 0.4: the change lies between times 0.8 and 1.2."""
    labels = torch.zeros(40_000, dtype=torch.long)
    pools = [torch.arange(20_000), torch.arange(20_000, 40_000)]
    order = torch.cat(arrivals.gradual(pools, 40_000, 0.4, 0))
    second = torch.tensor(own_task(order, labels)).float()
    assert second[:15_900].max() == 0
    assert second[24_100:].min() == 1
    for place, share in ((17_000, 0.125), (20_000, 0.5), (23_000, 0.875)):
        assert second[place - 400 : place + 400].mean() == pytest.approx(share, abs=0.06)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    "options",
    [
        ("split.blurry=0.2", "batch_size=200"),
        ("split.blurry=0.2", "split.disjoint=0.5", "batch_size=200"),
        ("split.stochastic=true", "split.blurry=0.2", "batch_size=200"),
        ("split.slots=3", "batch_size=200"),
        ("split.recurrence=0.3", "batch_size=200"),
        ("stream=online", "boundaries=false", "batch_size=150", "epochs=null"),
    ],
    ids=" ".join,
)
def test_a_stack_equals_the_runs_alone_and_methods_see_one_stream(stack_of, options):
    made = {}
    for strategy in ("er", "finetune"):
        typed = (f"strategy={strategy}", "scenario=class", "tasks=5", *options)
        together = stack_of(*typed, seeds=(0, 1))
        made[strategy] = [together.schedule.rows(1, stage)[0] for stage in range(5)]
        _, reports = live(together)
    assert all(torch.equal(a, b) for a, b in zip(made["er"], made["finetune"], strict=True))
    for r, seed in enumerate((0, 1)):
        alone = stack_of(*typed, seeds=[seed])
        for one, other in zip(reports, live(alone)[1], strict=True):
            assert torch.equal(one.correct[r], other.correct[0])
            if one.online is not None:
                assert torch.equal(one.online[r], other.online[0])
                assert int(one.online[r, 1]) == alone.streams[0].sizes[one.stage]  # each sample once


@pytest.mark.parametrize(
    "options",
    [
        ("split.blurry=0.1", "split.disjoint=0.5", "tasks=5"),
        ("split.blurry=0.1", "split.disjoint=0.5", "split.stochastic=true", "tasks=5"),
        ("split.slots=4", "tasks=4"),
        ("stream=online", "boundaries=false", "batch_size=20", "tasks=3", "split.sizes=[4,3,3]", "iterations=null"),
    ],
    ids=" ".join,
)
def test_no_test_sample_of_an_unseen_class_counts(prepared_of, options):
    """And every class is asked about once all of its task's classes have come, at the latest in its own task."""
    prepared = prepared_of(*SMALL, "strategy=finetune", "iterations=3", *options, "evaluate_every=2")
    train.train_run(prepared, quiet=True)
    counts = pd.read_csv(prepared.directory / "class_counts.csv")
    classes = pd.read_csv(prepared.directory / "tasks.csv")
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv").set_index("after_task")
    for task, names in classes.groupby("task")["class"]:
        for after in range(1, prepared.settings["tasks"] + 1):
            seen = {*counts[counts["task"] <= after]["class"].astype(str)}
            assert pd.notna(matrix.loc[after, f"task_{task}"]) == ({*names.astype(str)} <= seen)
    assert counts["samples"].sum() == sum(map(len, prepared.stream.train))
    summary = pd.read_csv(prepared.directory / "summary.csv").iloc[0]
    last = pd.read_csv(prepared.directory / "accuracy.csv").query(f"after_task == {prepared.settings['tasks']}")
    assert summary["overall_accuracy"] == pytest.approx(last["correct"].sum() / last["n"].sum())
    assert summary["average_accuracy"] == pytest.approx(last["accuracy"].mean())
    learnt = pd.read_csv(prepared.directory / "forgetting.csv").iloc[-1]["accuracy_when_learned"]
    assert learnt == pytest.approx(summary["learning_accuracy"])  # the terminal prints the one, the report the other
    assert summary["accuracy_auc"] == pytest.approx(area_by_step(prepared), abs=1e-6)


def area_by_step(prepared):
    """Return A_AUC from the files of a run, one evaluation at a time: of tasks that had come before the stage, the
    stage's own, and at its end all that have come by then."""
    over = pd.read_csv(prepared.directory / "accuracy_over_training.csv").query("stage > 0")
    counts = pd.read_csv(prepared.directory / "accuracy.csv").groupby("eval_task")["n"].first()
    come = {task: stage + 1 for task, stage in enumerate(prepared.stream.seen_from, start=1)}
    area = before = 0
    for step, at in over.groupby("step"):
        stage = at["stage"].iloc[0]
        ended = step == over[over["stage"] == stage]["step"].max()
        asked = [t for t in at["eval_task"] if t == stage or come.get(t, t) < stage + ended]
        cells = at.set_index("eval_task").loc[asked, "accuracy"]
        area += (step - before) * (cells * counts[asked]).sum() / counts[asked].sum()
        before = step
    return area / before


@pytest.mark.parametrize("options", [("split.blurry=0.3",), ("stream=online", "boundaries=false")], ids=" ".join)
def test_tasks_that_are_left_out_send_no_samples_ahead(prepared_of, options):
    """And their outputs may not answer."""
    prepared = prepared_of("strategy=finetune", "scenario=class", "first_tasks=2", *options)
    stream, images = prepared.stream, len(prepared.images.y)
    assert [int((rows // images).max()) for rows in stream.arrivals] == [1, 1]
    assert stream.tables.active[-1, 0].sum() == 4
    assert prepared.chance == 0.25


@pytest.mark.parametrize(
    "options",
    [
        ("split.blurry=0.2",),
        ("split.recurrence=0.3",),
        ("split.blurry=0.2", "split.disjoint=0.5"),
        ("split.blurry=0.2", "split.stochastic=true"),
        ("split.slots=3",),
    ],
    ids=" ".join,
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(prepared_of, tmp_path, options):
    """In the second task, of which samples have come before."""
    typed = (*SMALL, "strategy=er", "memory_size=20", "tasks=5", "iterations=4", "batch_size=8", *options)
    ends_as_one_that_is_not(prepared_of, tmp_path / "whole", typed, 6)


# ---------------------------------------------------------------- methods that must be told


def test_what_methods_do_that_are_not_told(stack_of):
    """er_ace bars the classes that a batch has none of from the start, and l2_init measures no distance at ends."""
    typed = ("scenario=class", "stream=online", "boundaries=false", "tasks=2", "epochs=null", "batch_size=2")
    stack = stack_of("strategy=er_ace", *typed)
    assert live(stack)[1][0].health[0]["barred_share"] > 0.5
    _, told = live(stack_of("strategy=er_ace", "scenario=class", "tasks=2", "batch_size=2"))
    assert told[0].health[0]["barred_share"] == 0
    assert "distance_from_start" not in live(stack_of("strategy=l2_init", *typed))[1][0].health[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_method_is_told_of_boundaries_or_says_that_it_must_be(stack_of, strategy):
    """Without boundaries no hook of theirs is called, and each sample comes once."""
    typed = (f"strategy={strategy}", "scenario=class", "stream=online", "boundaries=false", "tasks=2", "epochs=null")
    try:
        stack = stack_of(*typed, "batch_size=300")
    except UsageError as refusal:
        assert any(
            why in str(refusal) for why in ("must be told where a task", "needs the task", "trains on its memory")
        )
        return
    assert not stack.strategy.uses_boundaries
    cls = type(stack.strategy)
    hooks = dict.fromkeys([name for name in ("begin_stage", "after_phase") if name in cls.__dict__], not_called)
    stack = stack_of(*typed, "batch_size=300", strategy=type(cls.__name__, (cls,), hooks))
    _, reports = live(stack)
    assert sum(int(report.online[0, 1]) for report in reports if report.online is not None) == sum(
        stack.streams[0].sizes
    )


def not_called(*_):
    raise AssertionError("a strategy that is not told of boundaries was told")


def test_who_overrides_such_a_hook_must_be_told_unless_it_says_otherwise():
    class Told(Strategy):
        def after_phase(self, phase, theta, state, hp, pool):
            return theta, state

    class NotTold(Told):
        needs_boundaries = False

    class Restarting(Strategy):
        restart = True

    assert Told.needs_boundaries
    assert Restarting.needs_boundaries
    assert not NotTold.needs_boundaries
    assert not Strategy.needs_boundaries


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("boundaries=false",), "type stream=online too"),
        (("boundaries=false", "stream=online"), "gives the network the task of every sample"),
        (("overlap=0.5",), "overlap belongs to boundaries=false"),
        (("boundaries=false", "stream=online", "scenario=class", "optimizer.reset=true"), "begins anew with each task"),
        (("boundaries=false", "stream=online", "scenario=class", "schedule=cosine"), "type schedule_over=stream"),
        (("boundaries=false", "stream=online", "scenario=class", "split.blurry=0.1"), "and so does split.blurry"),
        (("split.disjoint=0.5",), "type split.blurry too"),
        (("split.blurry=0.1", "tasks=1"), "one task has no other"),
        (("split.slots=3",), "type scenario=class"),
        (("split.stochastic=true", "scenario=class"), "type split.blurry too"),
        (("split.stochastic=true", "split.blurry=0.1"), "type scenario=class"),
        (("split.occurrence=0.1", "scenario=class"), "type split.recurrence too"),
        (("split.recurrence=0.1", "split.slots=3", "scenario=class"), "split.recurrence and split.slots=3 both say"),
        (("split.slots=1", "scenario=class"), "type split.slots=2 or more"),
        (("split.slots=11", "scenario=class"), "there are 10 classes"),
        (("split.slots=3", "scenario=class", "split.sizes=[6,4]"), "both say which classes come"),
        (("split.slots=3", "scenario=class", "split.order=fixed"), "in no order; leave split.order out"),
        (("split.recurrence=0.3", "scenario=class", "split.order=seed1993"), "type split.seed=0"),
        (("split.classes=[[0,1],[2,3]]", "split.order=seed1993"), "the lists in split.classes are the order"),
        (("split.classes=[[0,1],[2,3]]", "split.order=seed"), "the lists in split.classes are the order"),
        (("split.circle=11", "scenario=class"), "there are 10 classes; type a smaller number"),
        (("split.circle=9", "scenario=class", "schedule=cosine"), "split.circle=9: a schedule over a task"),
        (("split.blurry=0.1", "split.disjoint=0.05"), "that is none; type split.disjoint=0.1 for one"),
        (("split.blurry=0.1", "split.disjoint=0.96"), "that is every one"),
    ],
)
def test_contradictions_are_refused(settings_of, typed, said):
    with pytest.raises(UsageError, match=said):
        settings_of("strategy=finetune", *typed)


@pytest.mark.parametrize("choice", [("memory_policy=herding",), ("weighting=share",), ("memory_per_class=3",)])
def test_a_choice_that_needs_boundaries_is_refused(prepared_of, choice):
    with pytest.raises(UsageError, match="must be told where a task begins"):
        prepared_of("strategy=er", "stream=online", "boundaries=false", "scenario=class", *choice)
