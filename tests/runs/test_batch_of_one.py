"""A batch of one sample, which batch norm cannot normalise: of a task, of a task and a memory, or of a memory alone."""

import pytest

from clrun.runs import train
from clrun.runs.build import build
from clrun.system.errors import UsageError

CLASSES = "split.classes=[[0,1],[2,3,4],[5,6]]"
# Its last channels have one value of a digit.
RESNET = ("model=resnet18", "model.width=2", "model.norm=batch")
SHORT = ("optimizer=sgd", "lr=0.02", "batch_size=24", CLASSES)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (("strategy=joint", "batch_size=673"), "task 1 a batch of one sample, .*drop_last=true"),  # of 1347 pictures
        (("strategy=cumulative", "batch_size=673"), "task 5 a batch of one"),
        (("strategy=scratch", "batch_size=673"), "task 5 a batch of one"),
        (("strategy=finetune", "batch_size=673"), None),  # no task alone has so many
        (("strategy=joint", "batch_size=2", "drop_last=true"), None),
        (("strategy=joint", "scenario=task", "batch_size=673"), None),  # as many of each task, whatever is left over
        (("strategy=finetune", "batch_size=1"), "task 1 a batch of one"),
        (("strategy=finetune", "batch_size=1", "drop_last=true"), "task 1 a batch of one"),
    ],
)
def test_batch_norm_is_never_given_one_picture(stack_of, overrides, refused):
    """Whatever tasks a stage sees at once."""
    scenario = () if any(o.startswith("scenario") for o in overrides) else ("scenario=class",)
    if refused is None:
        stack_of(*RESNET, *scenario, *overrides)
        return
    with pytest.raises(UsageError, match=refused):
        stack_of(*RESNET, *scenario, *overrides)


@pytest.mark.parametrize(
    ("typed", "refused"),
    [
        ("strategy=agem replay_batch=1", "type replay_batch=2 or more"),
        ("strategy=der replay_batch=1", "type replay_batch=2 or more"),
        ("strategy=derpp replay_batch=1", "type replay_batch=2 or more"),
        ("strategy=fdr replay_batch=1", "type replay_batch=2 or more"),
        ("strategy=mir replay_batch=1", "type replay_batch=2 or more"),
        ("strategy=mir candidates=1", "type candidates=2 or more"),
        ("strategy=gem memory_size=5", "type memory_size=6 or more"),
        ("strategy=agem memory_size=1", "type memory_size=2 or more"),
        ("strategy=fdr memory_size=1", "type memory_size=2 or more"),
        ("strategy=agem memory_per_class=1", None),
        ("strategy=er memory_size=1", None),
        ("strategy=agem replay_batch=2", None),
        ("strategy=mir candidates=2 replay_batch=2", None),
        ("strategy=gem memory_size=6", None),
        ("strategy=er replay_batch=1", None),
        ("strategy=er_ace replay_batch=1", None),
    ],
)
def test_past_samples_pass_one_at_a_time(stack_of, typed, refused):
    """Which is refused with batch norm, and which er and er_ace do not do. Without it, all of them are trained."""
    one_picture, without = [*typed.split(), *RESNET, *SHORT], [*typed.split(), CLASSES]
    if refused is None:
        learnt(stack_of(*one_picture), 2)
    else:
        with pytest.raises(UsageError, match=refused):
            stack_of(*one_picture)
    learnt(stack_of(*without), 2)


CHOSEN = [
    *(f"strategy={strategy} memory_size={M}" for strategy in ("gdumb", "wa", "icarl") for M in (1, 25, 300, 3000)),
    "strategy=icarl memory_per_class=5",
    "strategy=icarl memory_per_class=500",
    "strategy=wa memory_policy=balanced memory_size=30",
    "strategy=gdumb memory_size=700 split=permuted tasks=3",
]


@pytest.mark.parametrize("typed", CHOSEN)
def test_what_a_pass_trains_on_is_known_before(stack_of, typed):
    """Against the rows of the sampler, in every task, where classes and tasks differ in size."""
    classes = () if "split" in typed else (CLASSES,)
    stack = stack_of(*typed.split(), *classes, "scenario=class", "iterations=2")
    run, counts = stack.initialize(), []
    for stage in range(3):
        rows = stack.schedule.rows(0, stage)[0]
        counts.append(stack.strategy.data.class_ids(rows).unique(return_counts=True)[1].tolist())
        met = stack.consolidate(run, stack.new_stage(stage))
        (sampler,) = stack.schedule.samplers(stage, "train", stack.states(met))
        assert stack.strategy.trained_samples(stage, counts) == sum(map(len, sampler.pools)) > 0
        run, _ = stack.learn(run, stage)


ONE_LEFT = (
    ("strategy=gdumb", "memory_size=25", "batch_size=12"),
    ("strategy=wa", "memory_size=12", "batch_size=139"),  # 406 samples of the second task and 12 of the first
    ("strategy=icarl", "memory_size=12", "batch_size=139"),
)


@pytest.mark.parametrize("typed", ONE_LEFT)
def test_what_a_memory_adds_may_leave_one(stack_of, typed):
    """Which is refused before training; not where drop_last leaves the batch out, another size has none, or fewer steps
    are taken than an epoch has."""
    network = (*RESNET, CLASSES, "scenario=class")
    for length in ("iterations=9", "epochs=1"):
        with pytest.raises(UsageError, match=r"batch_size=\d+ leaves task \d a batch of one sample"):
            stack_of(*network, *typed, length)
    *method, size = typed
    for more in ([size, "epochs=1", "drop_last=true"], ["batch_size=18", "epochs=1"], [size, "iterations=1"]):
        learnt(stack_of(*network, *method, *more), 2)


def test_a_task_that_is_not_trained_on_as_it_is_may_leave_one(stack_of):
    """Its 269 samples do, in batches of 134, and those that are trained on do not, or not within one step."""
    network = (*RESNET, CLASSES, "scenario=class", "batch_size=134")
    with pytest.raises(UsageError, match="task 1 a batch of one sample"):
        stack_of(*network, "strategy=finetune", "epochs=1")
    for typed in (["strategy=gdumb", "epochs=1"], ["strategy=bic", "epochs=1"], ["strategy=finetune", "iterations=2"]):
        learnt(stack_of(*network, *typed), 1)


def test_one_run_of_a_stack_that_is_left_one(prepared_of):
    """What bic holds out is drawn, so it shows in training. The others of the stack go on to their ends."""
    typed = ("strategy=bic", "scenario=class", "model.norm=batch", "model.widths=[8]", "epochs=1", "plots=false")
    sizes = [batch_sizes_that_leave_one(prepared_of(*typed, f"seed={seed}")) for seed in range(3)]
    size = max(sizes[0] - sizes[1] - sizes[2])
    runs = [prepared_of(*typed, f"batch_size={size}", f"seed={seed}") for seed in range(3)]
    with pytest.raises(UsageError, match=f"batch_size={size} leaves a batch of one of the"):
        train.train_runs(runs, quiet=True)
    assert [run.finished for run in runs] == [False, True, True]
    assert [(run.directory / "failed.txt").is_file() for run in runs] == [True, False, False]


def batch_sizes_that_leave_one(prepared):
    """Of the second task, alone; where the first task leaves none."""
    stack = build([prepared])
    run, _ = stack.learn(stack.initialize(), 0)
    met = stack.consolidate(run, stack.new_stage(1))
    (sampler,) = stack.schedule.samplers(1, "train", stack.states(met))
    n = sum(map(len, sampler.pools))
    return {d for d in range(20, n - 1) if (n - 1) % d == 0}


def learnt(stack, stages):
    run = stack.initialize()
    for stage in range(stages):
        run, _ = stack.learn(run, stage)
    return run
