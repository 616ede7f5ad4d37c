"""A run from settings to files: what is written, said and measured, and what is refused."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from clrun.config.settings import Settings
from clrun.results import reading, run_files
from clrun.runs import prepare, train
from clrun.system.csv_numbers import ALL_DIGITS
from clrun.system.errors import UsageError

SHORT = ("iterations=6", "model.widths=[12,8]", "device=cpu")
TABLES = ("accuracy_matrix", "forgetting", "accuracy", "confusion", "health", "tasks", "summary")
FILES = {
    "config.yaml",
    "costs.csv",
    "network.safetensors",
    "accuracy_matrix.png",
    "accuracy_over_tasks.png",
    "confusion.png",
    "misjudged.png",
    "confusion_over_tasks.csv",
    "class_accuracy.csv",
    *(f"{name}.csv" for name in TABLES),
}


@pytest.fixture
def trained(prepared_of):
    """trained(*overrides) -> (Prepared, its summary row)."""

    def train_it(*overrides):
        prepared = prepared_of(*SHORT, *overrides)
        train.train_run(prepared, quiet=True)
        return prepared, run_files.read_summary(prepared.directory / "summary.csv").iloc[0]

    return train_it


def bytes_of(directory: Path, *names: str) -> list[bytes]:
    return [(directory / name).read_bytes() for name in names]


def test_files(trained):
    prepared, summary = trained("strategy=ewc")
    assert {path.name for path in prepared.directory.iterdir()} == FILES
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert matrix.columns.tolist() == ["after_task", *(f"task_{t}" for t in range(1, 6)), "average", "overall"]
    assert matrix["after_task"].tolist() == list(range(6))
    assert summary["average_accuracy"] == pytest.approx(matrix.iloc[-1, 1:6].mean())
    assert summary["run"] == prepared.id
    assert summary["status"] == "done"
    assert summary["train_seconds"] > 0
    assert summary["state_mb"] == pytest.approx(2 * 4 * sum([64 * 12 + 12, 12 * 8 + 8, 8 * 10 + 10]) / 1e6)


def test_long_form_agrees_with_the_matrix(trained):
    prepared, _ = trained("strategy=finetune", "scenario=class")
    long = pd.read_csv(prepared.directory / "accuracy.csv")
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv", **ALL_DIGITS).set_index("after_task")
    for row in long.itertuples():
        assert row.correct / row.n == matrix.loc[row.after_task, f"task_{row.eval_task}"]
    confusion = pd.read_csv(prepared.directory / "confusion.csv")
    assert confusion["count"].sum() == long[long.after_task == 5].n.sum()
    right = confusion[confusion.true_class == confusion.predicted_class]["count"].sum()
    assert right == long[long.after_task == 5].correct.sum()


@pytest.mark.parametrize(
    "options",
    [("scenario=class",), ("scenario=domain",), ("scenario=task",), ("scenario=class", "split=permuted", "tasks=2")],
    ids=" ".join,
)
def test_confusions_after_every_task_agree_with_the_accuracies(trained, options):
    """In every cell of the accuracy matrix; the class of the sample that stands for a pair is the pair's."""
    prepared, _ = trained("strategy=finetune", *options)
    pairs = pd.read_csv(prepared.directory / "confusion_over_tasks.csv", dtype={"true_class": str})
    pairs["right"] = pairs["count"].where(pairs.true_output == pairs.predicted_output, 0)
    cells = pairs.groupby(["after_task", "eval_task"])[["right", "count"]].sum()
    long = pd.read_csv(prepared.directory / "accuracy.csv").query("after_task > 0")
    assert (
        cells.to_numpy().tolist() == long.set_index(["after_task", "eval_task"])[["correct", "n"]].to_numpy().tolist()
    )
    classes = [prepared.images.classes[int(prepared.images.y[sample])] for sample in pairs["sample"]]
    assert all(name in true.split("/") for name, true in zip(classes, pairs.true_class, strict=True))
    last = pd.read_csv(prepared.directory / "confusion.csv")["count"].to_numpy()
    outputs = round(len(last) ** 0.5)
    final = (
        pairs[pairs.after_task == pairs.after_task.max()].groupby(["true_output", "predicted_output"])["count"].sum()
    )
    for (true, predicted), count in final.items():
        assert last[(true - 1) * outputs + predicted - 1] == count
    assert final.sum() == last.sum()


def test_same_command_same_bytes(trained):
    names = ("accuracy_matrix.csv", "forgetting.csv", "accuracy.csv", "confusion.csv", "health.csv")
    prepared, _ = trained("strategy=ewc", "augment=crop_flip", "evaluate_every=4", "validation=0.1", "rerun=true")
    first = bytes_of(prepared.directory, *names, "accuracy_over_training.csv", "validation_matrix.csv")
    torch.manual_seed(123)  # the global generator is of no consequence
    torch.rand(5)
    train.train_run(prepared, quiet=True)
    assert bytes_of(prepared.directory, *names, "accuracy_over_training.csv", "validation_matrix.csv") == first


TIMED = ("summary.csv", "costs.csv")


def test_neither_hash_seeds_nor_threads_nor_time_change_a_byte(tmp_path):
    """Two processes that differ in all that a run is not told: the order of sets, OpenMP's threads, the time zone."""
    environments = [
        {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "TZ": "UTC"},
        {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
    ]
    options = ("strategy=derpp", "scenario=class", "iterations=20", "evaluate_every=7", "device=cpu")
    found = []
    for number, environment in enumerate(environments):
        line = [sys.executable, "-m", "clrun.commands.run", *options, f"outputs={tmp_path / str(number)}"]
        subprocess.run(line, env=os.environ | environment, capture_output=True, check=True, timeout=300)
        paths = sorted((tmp_path / str(number)).glob("runs/*/*/*.csv"))
        found.append({path.name: path.read_bytes() for path in paths if path.name not in TIMED})
    assert len(found[0]) == 9 and found[0] == found[1]


def test_deterministic_asks_torch(trained):
    try:
        assert trained("deterministic=true")[1]["status"] == "done"
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        trained("deterministic=false")
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_accuracy_within_tasks(trained):
    prepared, summary = trained("strategy=finetune", "evaluate_every=2")
    within = pd.read_csv(prepared.directory / "accuracy_over_training.csv")
    assert within.columns.tolist() == ["run", "seed", "step", "stage", "eval_task", "accuracy"]
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv").set_index("after_task")
    for stage in range(1, 6):
        last = within[(within.stage == stage) & (within.step == 6 * stage)]
        assert last.accuracy.tolist() == matrix.loc[stage, [f"task_{t}" for t in range(1, 6)]].tolist()
        assert sorted(set(within[within.stage == stage].step)) == [6 * stage - 4, 6 * stage - 2, 6 * stage]
    assert summary[["min_accuracy", "worst_case_accuracy", "stability_gap"]].notna().all()


def test_training_on_validation_data_or_not(trained):
    """What is held out is not trained on, and is measured apart."""
    prepared, summary = trained("validation=0.25")
    counts = pd.read_csv(prepared.directory / "accuracy.csv").groupby("eval_task").n.first()
    assert counts.tolist() == [len(pool) for pool in prepared.stream.test]
    held = sum(len(pool) for pool in prepared.stream.validation)
    kept = sum(len(pool) for pool in prepared.stream.train)
    assert held / (held + kept) == pytest.approx(0.25, abs=0.01)
    assert 0 <= summary["validation_accuracy"] <= 1


def test_joint_has_no_forgetting(trained):
    prepared, summary = trained("strategy=joint")
    forgetting = pd.read_csv(prepared.directory / "forgetting.csv")
    assert forgetting["forgetting"].isna().all()
    assert pd.isna(summary["forgetting"])
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv").iloc[1:, 1:]
    assert (matrix == matrix.iloc[0]).all().all()


# ---------------------------------------------------------------- what is refused


def retargeted(settings: Settings, group: str, target: str) -> Settings:
    return replace(settings, targets={**settings.targets, group: target})


@pytest.mark.parametrize(
    ("group", "target", "said"),
    [
        ("strategy", "os.system", "not a subclass of clrun.strategy.Strategy"),
        ("strategy", "clrun.strategies.ewc.Nothing", "not a subclass"),
        ("strategy", "no_such_module.Mine", "no module no_such_module"),
        ("strategy", "clrun.strategies.finetune.Finetune", "lambda"),  # it reads none of EWC's knobs
        ("model", "clrun.strategies.ewc.EWC", "not a subclass of clrun.models.Network"),
    ],
)
def test_a_target_must_be_what_it_claims(settings_of, group, target, said):
    with pytest.raises(UsageError, match=said):
        prepare.prepare(retargeted(settings_of("strategy=ewc"), group, target))


def test_a_batch_of_one_under_batch_norm(settings_of):
    with pytest.raises(UsageError, match="drop_last=true"):
        prepare.prepare(settings_of("model=resnet18", "model.norm=batch", "tasks=1", "batch_size=673"))


def test_knobs_without_effect_are_refused(settings_of):
    with pytest.raises(UsageError, match="online=true"):
        prepare.prepare(settings_of("strategy=ewc", "gamma=0.5"))
    with pytest.raises(UsageError, match="fisher=batched"):
        prepare.prepare(settings_of("strategy=ewc", "fisher_batch=4"))


# ---------------------------------------------------------------- speed of the start


def test_a_plain_run_does_not_import_the_compiler(tmp_path):
    """torch.func.grad and torch.optim import it: more than a second of every start."""
    code = (
        "import sys; from clrun import cli; sys.argv = ['clrun', 'iterations=2', 'device=cpu']\n"
        "try: cli.cli()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch._dynamo' not in sys.modules and 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the numbers


@pytest.mark.slow
def test_digits_finetuning_forgets_and_ewc_does_not(prepared_of):
    """The first table of docs/results/strategies-compared.md: five seeds, the default run."""
    forgetting = {}
    for strategy in ("finetune", "ewc"):
        runs = [prepared_of(f"strategy={strategy}", f"seed={seed}") for seed in range(5)]
        for prepared in runs:
            train.train_run(prepared, quiet=True)
        rows = [run_files.read_summary(prepared.directory / "summary.csv").iloc[0] for prepared in runs]
        forgetting[strategy] = sum(row["forgetting"] for row in rows) / 5
    assert forgetting["finetune"] > 0.08
    assert forgetting["ewc"] < 0.02


def test_real_mnist_trains(prepared_of, mnist):
    """Two tasks of the real thing, some steps each: far above chance on what was just learnt."""
    tasks = ("split.classes=[[0,1],[2,3]]", "iterations=60", "batch_size=64")
    prepared = prepared_of("dataset=mnist", f"data_dir={mnist}", *tasks)
    assert train.train_run(prepared, quiet=True) == "done"
    matrix = pd.read_csv(prepared.directory / "accuracy_matrix.csv")
    assert matrix.loc[1, "task_1"] > 0.98
    assert matrix.loc[2, "task_2"] > 0.9


# ---------------------------------------------------------------- stacks


def test_a_stack_writes_what_its_runs_write_alone(prepared_of, tmp_path):
    """Four seeds as one stack and one by one: the same accuracies, and each its share of the costs."""
    names = ("accuracy_matrix.csv", "forgetting.csv", "accuracy.csv", "confusion.csv")
    stack = [prepared_of(*SHORT, f"seed={seed}", "rerun=true") for seed in range(4)]
    assert train.train_runs(stack, quiet=True) == ["done"] * 4
    together = [bytes_of(prepared.directory, *names) for prepared in stack]
    sizes = [run_files.read_summary(prepared.directory / "summary.csv").iloc[0]["stack_size"] for prepared in stack]
    assert sizes == [4] * 4
    for prepared, before in zip(stack, together, strict=True):
        train.train_run(prepared, quiet=True)
        for mine, other in zip(before, bytes_of(prepared.directory, *names), strict=True):
            assert mine.replace(prepared.id.encode(), b"") == other.replace(prepared.id.encode(), b"")


def test_a_diverged_run_ends_apart_from_its_stack(prepared_of):
    sgd = ("strategy=ewc", "optimizer=sgd", "lr=0.05", *SHORT[1:], "iterations=30")
    stack = [prepared_of(*sgd, f"lambda={strength}") for strength in (1, 1e30)]
    assert train.train_runs(stack, quiet=True) == ["done", "diverged"]
    matrices = [pd.read_csv(prepared.directory / "accuracy_matrix.csv") for prepared in stack]
    assert matrices[0].notna().all().all()
    assert matrices[1].notna().all(axis=1).tolist() == [True, True, False, False, False, False]
    health = [len(pd.read_csv(prepared.directory / "health.csv")) for prepared in stack]
    assert health == [5, 2]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("strategy", ["finetune", "ewc", "er", "lwf", "scratch", "imm"])
def test_the_first_tasks_are_the_beginning_of_the_whole_stream(trained, scenario, strategy):
    """The same networks, samples and accuracies: the run is cut off, not another one."""
    common = (f"strategy={strategy}", f"scenario={scenario}", "validation=0.1", "iterations=3")
    (whole, _), (part, summary) = trained(*common), trained(*common, "first_tasks=3")
    assert summary["status"] == "done" and (summary["tasks"], summary["first_tasks"]) == (5, 3)
    for name in ("accuracy_matrix.csv", "validation_matrix.csv"):
        long, short = (pd.read_csv(one.directory / name) for one in (whole, part))
        assert short.columns.tolist() == ["after_task", "task_1", "task_2", "task_3", "average", "overall"]
        assert short.iloc[1:].equals(long[short.columns].iloc[1:4])
        assert short.iloc[0, :4].equals(long.iloc[0, :4])


def test_a_rotated_stream_tells_its_angles(trained):
    prepared, _ = trained("split=rotated", "split.max_angle=180", "split.order=fixed", "tasks=4", "scenario=domain")
    assert (prepared.directory / "tasks.csv").read_text() == "task,angle\n1,0.0\n2,45.0\n3,90.0\n4,135.0\n"
    assert reading.task_names(prepared.directory) == {1: "0°", 2: "45°", 3: "90°", 4: "135°"}


def test_joint_training_on_the_first_tasks_sees_no_other(trained):
    prepared, _ = trained("strategy=joint", "first_tasks=2")
    assert len(pd.read_csv(prepared.directory / "confusion.csv").query("count > 0").true_class.unique()) == 4
    assert pd.read_csv(prepared.directory / "tasks.csv").task.tolist() == [1, 1, 2, 2]
