"""The identity of runs: it never changes by accident, so that finished runs stay finished."""

import pytest

from clrun.config.settings import CHANGES
from clrun.data import datasets


@pytest.mark.parametrize("outputs", ["outputs", "elsewhere"])  # where a run is written is no part of its identity
def test_the_identity_of_a_run_stays(settings_of, outputs):
    settings = settings_of("strategy=ewc", "lambda=400", f"outputs={outputs}")
    fingerprint = datasets.load(settings.values).fingerprint
    assert settings.identity(fingerprint) == "3e1dca28ed"
    assert settings.directory(fingerprint).name == "digits-classes-task-5tasks-seed=0-3e1dca28ed"


def test_another_value_is_another_run(settings_of):
    settings = settings_of("strategy=ewc", "lambda=401")
    assert settings.identity(datasets.load(settings.values).fingerprint) != "3e1dca28ed"


RESERVOIRS = [
    ("strategy=er",), ("strategy=der", "epochs=2"), ("strategy=derpp", "iterations=9"),
]  # fmt: skip
OTHERS = [
    ("strategy=er", "epochs=1"), ("strategy=er", "memory_per_class=5"), ("strategy=agem",), ("strategy=ewc",),
]  # fmt: skip


@pytest.mark.parametrize("typed", [*RESERVOIRS, *OTHERS])
def test_only_runs_that_offered_samples_again_are_trained_again(settings_of, typed):
    changes = [name for name, applies in CHANGES.items() if applies(settings_of(*typed).values)]
    assert ("a reservoir is offered a sample once" in changes) == (typed in RESERVOIRS)


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        (("strategy=xdg", "scenario=task"), {"gates are drawn task by task"}),
        (("strategy=icarl", "scenario=class", "first_tasks=2"), {"shares are of the classes that come"}),
        (("strategy=icarl", "scenario=class"), set()),
        (("strategy=er", "memory_per_class=5", "first_tasks=2"), {"shares are of the classes that come"}),
        (("strategy=ewc", "first_tasks=2"), set()),
        (("strategy=gpm", "threshold=0"), {"GPM is finetuning at threshold 0"}),
        (("strategy=gpm",), set()),
    ],
)
def test_only_runs_with_other_gates_shares_or_memories_are_trained_again(settings_of, typed, changed):
    found = {name for name, applies in CHANGES.items() if applies(settings_of(*typed).values)}
    of_methods = {
        "gates are drawn task by task",
        "shares are of the classes that come",
        "GPM is finetuning at threshold 0",
    }
    assert found & of_methods == changed


@pytest.mark.parametrize("strategy", ["imm", "separate", "scratch", "gdumb", "icarl", "ewc", "packnet"])
@pytest.mark.parametrize("average", ["ema", "null"])
def test_only_averages_that_are_kept_or_begun_anew_are_trained_again(settings_of, strategy, average):
    values = settings_of(f"strategy={strategy}", "scenario=task", f"average={average}").values
    changes = [name for name, applies in CHANGES.items() if applies(values)]
    asked = average == "ema" and strategy in ("imm", "separate", "scratch", "gdumb")
    assert ("averages are merged, kept and begun anew" in changes) == asked


REPLAYING = ("agem", "der", "derpp", "er", "er_ace", "fdr", "gem", "mir")


@pytest.mark.parametrize("strategy", [*REPLAYING, "bic", "ewc", "finetune", "gdumb", "icarl", "wa"])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_only_augmented_runs_that_replay_are_trained_again(settings_of, strategy, augment):
    values = settings_of(f"strategy={strategy}", "scenario=class", f"augment={augment}").values
    changes = [name for name, applies in CHANGES.items() if applies(values)]
    asked = augment == "crop_flip" and strategy in REPLAYING
    assert ("what is replayed is augmented by itself" in changes) == asked


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        (("split.blurry=0.1", "evaluate_every=2"), True),
        (("stream=online", "boundaries=false", "evaluate_every=2"), True),
        (("split.blurry=0.1",), False),
        (("split.slots=3", "evaluate_every=2"), False),
        (("split.circle=9", "evaluate_every=2"), False),
        (("evaluate_every=2",), False),
    ],
)
def test_only_runs_with_another_area_under_the_accuracy_are_trained_again(settings_of, typed, asked):
    values = settings_of("strategy=finetune", "scenario=class", *typed).values
    changes = [name for name, applies in CHANGES.items() if applies(values)]
    assert ("classes that come early count at a task's end" in changes) == asked
