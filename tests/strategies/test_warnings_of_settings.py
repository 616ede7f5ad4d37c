"""Runs of methods that work and of which the settings, or the stream, leave a part with nothing to do: they say so."""

import pytest
from helpers import warnings_in

from clrun.strategies.bic import BiC
from clrun.strategies.icarl import ICaRL
from clrun.strategies.wa import WA

NO_TEACHER = "never passed 1e-12 of the loss, so"


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ([], False),  # a single task has no teacher
        ([(0.0, 0.5), (1e-14, 0.5)], True),
        ([(0.0, 0.5), (1e-3, 0.5)], False),
        ([(1e-15, 1e-9), (1e-9, 1e-9)], False),  # tasks that are learnt perfectly
        ([(0.0, 0.0), (0.0, 0.0)], False),  # tasks of a single class have no loss
        ([(0.0, 0.0), (1e-2, 0.1)], False),
    ],
)
@pytest.mark.parametrize("cls", [WA, BiC, ICaRL])
def test_a_teacher_that_teaches_nothing_is_told_by_its_part_of_the_loss(cls, later, said):
    """(distillation, loss) of each task after the first; all else is as it should be."""
    works = {"gamma": 0.5, "alpha": 0.5, "beta": 0.1, "means": 2, "memory_fill": 1.0, "exemplar_share": 0.4}
    rows = [works | {"distillation": d, "loss": loss} for d, loss in [(0.0, 0.5), *later]]
    health = [
        row | {"task": k, "memory_classes": 2 * k, "held_out_classes": 2 * k, "new_outputs": 2}
        for k, row in enumerate(rows, start=1)
    ]
    assert [NO_TEACHER in text for text in cls.warnings(health, {"memory_size": 200})] == [True] * said
    nothing_new = [row | {"new_outputs": 0} for row in health]  # in which a student is its teacher
    assert not any(NO_TEACHER in text for text in cls.warnings(nothing_new, {"memory_size": 200}))


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (("tasks=2", "split.blurry=0.3"), "no class of task 2 was new, and "),
        (("tasks=5", "split.blurry=0.3"), "no class of the tasks 2, 3, 4, 5 was new, and "),
        (("tasks=2", "split.blurry=0.3", "split.disjoint=0.5"), None),  # half of the classes stay with their task
        (("tasks=2",), None),
    ],
)
@pytest.mark.parametrize("strategy", ["icarl", "wa", "bic"])
def test_tasks_without_a_new_class_are_named(prepared_of, strategy, stream, told):
    """From them these methods learn nothing, and everything else that they report looks as ever."""
    said = warnings_in(prepared_of(f"strategy={strategy}", "scenario=class", "iterations=6", "plots=false", *stream))
    assert ("was new" in said) == (told is not None) and (told or "") in said


CHOSE_NOTHING = "MIR chose nothing: this is er; type more candidates"
TOO_FEW = "memory_size=1 is less than a sample a task, but each task keeps one"
NO_MORE = "has no more than 10 different"
WITHOUT = ("memory_size=10", "replay_draw=without")
NO_PATH = "the path of the loss (S) stayed 0"
NOT_HELD = "memory_size=1: after all tasks the memory held no sample of 9 of the 10 classes"
NOT_HELD_PER_TASK = "held no sample of 19 of the 20 classes, a class counting once per task"
SAME_WEIGHTS = "the average of the weights was the weights themselves after every task"
SPARES_NOTHING = "this is er whose two losses are added"
TOO_FEW_HELD_OUT = "alpha and beta of task 2 were found without a sample of 7 of 10 classes"
CORRECTS_NOTHING = "the largest of them stays the largest"
# what is typed, part of the warning, and whether it is given
TYPED = [
    (("strategy=mir", "candidates=10", "batch_size=16"), CHOSE_NOTHING, True),
    (("strategy=mir", "candidates=10", "batch_size=9"), CHOSE_NOTHING, False),
    (("strategy=gem", "memory_size=1"), TOO_FEW, True),
    (("strategy=gem", "memory_size=2"), TOO_FEW, False),
    (("strategy=er", "replay_batch=11", *WITHOUT), NO_MORE, True),
    (("strategy=derpp", "replay_batch=11", *WITHOUT), NO_MORE, True),
    (("strategy=er", "replay_batch=10", *WITHOUT), NO_MORE, False),
    (("strategy=er", "memory_size=10", "replay_batch=11"), NO_MORE, False),
    (("strategy=rwalk", "interval=7"), NO_PATH, True),
    (("strategy=rwalk", "interval=6"), NO_PATH, False),
    (("strategy=rwalk", "interval=7", "lambda=0"), NO_PATH, False),
    (("strategy=rwalk", "interval=7", "first_tasks=1"), NO_PATH, False),
    *(((f"strategy={name}", "memory_size=1"), NOT_HELD, True) for name in ("er", "er_ace", "der", "gdumb")),
    *(((f"strategy={name}", "memory_size=1", "epochs=1"), NOT_HELD, True) for name in ("icarl", "wa")),
    (("strategy=er", "memory_size=1", "split=permuted"), NOT_HELD_PER_TASK, True),
    (("strategy=er", "memory_size=1", "replay_batch=11", *WITHOUT[1:]), NOT_HELD, True),  # beside what else is said
    (("strategy=er", "memory_size=1", "first_tasks=1"), "held no sample", False),
    (("strategy=gdumb", "memory_size=10"), "held no sample", False),
    (("strategy=er", "memory_per_class=1"), "held no sample", False),
    (("strategy=finetune", "average=ema", "average_decay=0"), SAME_WEIGHTS, True),
    (("strategy=finetune", "average=ema"), SAME_WEIGHTS, False),
    (("strategy=finetune",), SAME_WEIGHTS, False),
    (("strategy=er_ace",), SPARES_NOTHING, True),
    (("strategy=er_ace", "scenario=domain"), SPARES_NOTHING, True),
    (("strategy=er_ace", "scenario=domain", "stream=online", "boundaries=false"), SPARES_NOTHING, True),
    (("strategy=er_ace", "scenario=class"), SPARES_NOTHING, False),
    (("strategy=er_ace", "scenario=class", "first_tasks=1"), SPARES_NOTHING, False),
    (("strategy=bic",), CORRECTS_NOTHING, True),
    (("strategy=bic", "scenario=class"), CORRECTS_NOTHING, False),
    (("strategy=bic", "scenario=class", "memory_size=30"), TOO_FEW_HELD_OUT, True),  # 3 of 30 are held out
    (("strategy=bic", "scenario=class", "memory_size=100"), "without a sample", False),
    (("strategy=bic", "scenario=class", "memory_size=30", "first_tasks=1"), "without a sample", False),
    (("strategy=bic", "scenario=class", "memory_size=30", "validation_share=0.4"), "without a sample", False),
]


@pytest.mark.parametrize(("typed", "text", "given"), TYPED, ids=[f"{' '.join(case[0])}-{case[2]}" for case in TYPED])
def test_what_takes_a_part_of_a_method_away_is_said_once(prepared_of, typed, text, given):
    """Of runs in float32 as they are, whose sums round."""
    length = () if {"stream=online", "epochs=1"} & {*typed} else ("iterations=6",)
    scenario = () if any(part.startswith("scenario=") for part in typed) else ("scenario=task",)
    prepared = prepared_of("tasks=2", "plots=false", *length, *scenario, *typed)
    said = warnings_in(prepared)
    assert said.count(text) == given, said
