"""evaluate_samples: within tasks, a fixed part of the test samples is asked."""

import pandas as pd
import pytest
import torch
from conftest import live

from clrun.runs import train

SMALL = ("strategy=finetune", "scenario=class", "tasks=2", "iterations=6", "evaluate_every=2", "batch_size=8")


def test_the_part_is_fixed_drawn_from_the_seed_and_part_of_the_tests(stack_of):
    evaluator, again = (stack_of(*SMALL, "evaluate_samples=7", seeds=(0, 1)).evaluator for _ in range(2))
    for whole, some, same in zip(evaluator.streams, evaluator.smaller_streams, again.smaller_streams, strict=True):
        for task, pool in enumerate(some.test):
            assert (
                len(pool.unique()) == 7 and torch.isin(pool, whole.test[task]).all() and pool.equal(pool.sort().values)
            )
            assert torch.equal(pool, same.test[task])
        assert some.train is whole.train
    first, second = evaluator.smaller_streams
    assert not torch.equal(first.test[0], second.test[0])


def test_what_is_counted_is_what_the_part_answers(stack_of):
    """By hand, sample by sample; a stack counts as its runs alone do, and all samples are asked where N is larger."""
    together, alone = (stack_of(*SMALL, "evaluate_samples=7", seeds=seeds) for seeds in ((0, 1), (1,)))
    (_, reports), (one, of_one) = live(together), live(alone)
    for (step, found), (same_step, other) in zip(reports[1].over_training, of_one[1].over_training, strict=True):
        assert step == same_step and torch.equal(found[1], other[0]) and (found <= 7).all()
    answers = alone.evaluator.predictions(one, 1, "test")
    pools, some = alone.streams[0].test, alone.evaluator.smaller_streams[0].test
    by_hand = []
    for (predicted, labels, _, _), pool, few in zip(answers, pools, some, strict=True):
        right = dict(zip(pool.tolist(), (predicted[0] == labels[0]).tolist(), strict=True))
        by_hand.append(sum(right[row] for row in few.tolist()))
    assert alone.evaluator.correct_within_task(one, 1)[0].tolist() == by_hand
    large = stack_of(*SMALL, "evaluate_samples=100000")
    whole = large.evaluator.correct(live(large)[0], 1, "test")
    assert torch.equal(large.evaluator.correct_within_task(live(large)[0], 1), whole)


def test_accuracies_within_tasks_are_of_the_part(prepared_of):
    """Multiples of 1/7 within tasks, and over all test samples at their ends."""
    prepared = prepared_of(*SMALL, "evaluate_samples=7", "plots=false", "device=cpu")
    train.train_run(prepared, quiet=True)
    rows = pd.read_csv(prepared.directory / "accuracy_over_training.csv").dropna()
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    ends = rows.groupby("stage")["step"].transform("max") == rows["step"]
    sevenths = (rows.loc[~ends, "accuracy"] * 7).to_numpy()
    assert len(sevenths) and sevenths.round() == pytest.approx(sevenths)
    last = rows[rows["step"] == rows["step"].max()].set_index("eval_task")["accuracy"]
    assert last.tolist() == matrix[["task_1", "task_2"]].iloc[-1].tolist()


def test_it_needs_evaluate_every(clrun):
    code, _, error = clrun("evaluate_samples=10", "--check")
    assert code == 2 and "evaluate_every=N" in error
