"""log=...: what is logged is read back, goes on after an interruption, and harms no run where it fails."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from helpers import python_path
from interrupting import InterruptingProgress
from outcomes import outcome

from clrun.config import composition
from clrun.loggers import logs, points, sink
from clrun.loggers.logs import Logs
from clrun.runs import prepare, train
from clrun.system.errors import UsageError
from clrun.system.locks import LockLost

TINY = ("strategy=ewc", "iterations=2", "model.widths=[4]", "tasks=2", "device=cpu", "plots=false")
COSTS = [{"task": task, "train_seconds": 0.5} for task in range(4)]


@dataclass
class Noting:
    """A sink that notes what it is told; it fails at the point of a curve named `bad`."""

    identity: sink.Identity
    key: str
    told: list[tuple[object, ...]] = field(default_factory=list)

    def points(self, found):
        self.told += [(point.name, point.x, point.value) for point in found]

    def picture(self, name, figure, task):
        self.told.append((name, task, tuple(figure.get_size_inches())))

    def end(self, status, summary):
        self.told.append(("end", status, summary["average_accuracy"]))

    def pause(self):
        self.told.append(("pause",))


@dataclass
class Openers:
    """Opens sinks that note, and remembers them."""

    sinks: list[Noting] = field(default_factory=list)
    fail: str = ""  # the name of the logger that cannot be opened

    def __call__(self, name: str) -> sink.Opener:
        def opened(identity: sink.Identity, key: str | None) -> sink.Sink:
            if name == self.fail:
                raise OSError("no such server\nat all")
            self.sinks.append(Noting(identity, key or f"new-{name}"))
            return self.sinks[-1]

        return opened


def logged(tmp_path: Path, names: object, **changes):
    """An outcome of three tasks whose runs are logged, after its second task."""
    made = outcome(tmp_path / "runs" / "ewc" / "digits-0", task_costs=COSTS[:3], **changes)
    made.directory.mkdir(parents=True, exist_ok=True)
    made.values = {**made.values, "log": names}
    return made


# ---------------------------------------------------------------- what is logged, and when


def test_curves_go_on_after_an_interruption(tmp_path):
    """A later process logs what is new alone, in the log that it finds noted."""
    made, openers, said = logged(tmp_path, ["tensorboard", "mlflow"]), Openers(), []
    first = Logs([made], said.append, openers)
    with pytest.raises(KeyboardInterrupt), first.closing():
        first.begin(resumed=False)
        raise KeyboardInterrupt
    board = openers.sinks[0]
    assert ("accuracy/task_1", 0, 0.1) in board.told and ("accuracy/task_3", 2, 0.4) in board.told
    assert [one[1] for one in board.told if one[0] == "accuracy_matrix"] == [1, 2] and board.told[-1] == ("pause",)
    made.task_costs = COSTS
    second = Logs([made], said.append, openers)
    second.begin(resumed=True)
    second.end(made)
    later = openers.sinks[2]
    assert later.key == board.key == "new-tensorboard" and later.told[-1][:2] == ("end", "done")
    rows = {x for name, x, *_ in later.told if str(name).startswith(("accuracy/", "costs/"))}
    assert rows == {3} and not (made.directory / logs.NAME).exists() and not said


def test_a_run_that_begins_anew_has_a_new_log(tmp_path):
    made, openers = logged(tmp_path, "tensorboard"), Openers()
    (made.directory / logs.NAME).write_text('{"tensorboard": ["old", 2]}')
    Logs([made], print, openers).begin(resumed=False)
    assert openers.sinks[0].key == "new-tensorboard"


@pytest.mark.parametrize("content", ["", "[]", '{"tensorboard": 3}', '{"tensorboard": ["x"]}', "null"])
def test_notes_that_are_damaged_are_none(tmp_path, content):
    (tmp_path / logs.NAME).write_text(content)
    assert logs.read_notes(tmp_path) == {}


def test_within_a_task_the_axis_is_the_step(tmp_path):
    rows = [{"step": 7, "stage": 1, "eval_task": 2, "accuracy": 0.25}]
    made = logged(tmp_path, "wandb", over_training=rows)
    assert points.Point("step", "accuracy_within_tasks/task_2", 7, 0.25) in points.points_of(made, 1)
    assert not [point for point in points.points_of(made, 2) if point.axis == "step"]
    assert points.Point("task", "costs/train_seconds", 2, 0.5) in points.points_of(made, 2)
    assert points.Point("task", "health/fisher_max", 1, 0.1 + 0.2) in points.points_of(made, 1)


def test_runs_without_log_have_none(tmp_path):
    made, openers = logged(tmp_path, None), Openers()
    found = Logs([made], print, openers)
    found.begin(resumed=False)
    found.end(made)
    assert not openers.sinks and not list(made.directory.iterdir())


# ---------------------------------------------------------------- what fails


def test_a_logger_that_fails_is_said_once_and_the_other_goes_on(tmp_path):
    made, openers, said = logged(tmp_path, ["mlflow", "wandb"]), Openers(fail="mlflow"), []
    runs = [made, logged(tmp_path / "other", ["mlflow", "wandb"])]
    found = Logs(runs, said.append, openers)
    found.begin(resumed=False)
    for one in runs:
        found.end(one)
    assert said == ["log=mlflow failed, and the run goes on without it (OSError: no such server at all)."]
    assert [one.told[-1][0] for one in openers.sinks] == ["end", "end"]


def test_a_logger_that_fails_later_is_left_out(tmp_path):
    made, openers, said = logged(tmp_path, "wandb"), Openers(), []
    found = Logs([made], said.append, openers)
    found.begin(resumed=False)
    openers.sinks[0].points = None
    made.task_costs = COSTS
    found.update()
    found.end(made)
    assert len(said) == 1 and "log=wandb failed" in said[0] and openers.sinks[0].told[-1][0] != "end"


def test_a_library_that_is_missing_is_named_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sink.LIBRARIES, "wandb", "no_such_library")
    with pytest.raises(UsageError, match=r"type pip install 'clrun\[wandb\]'"):
        sink.refuse_missing(["wandb"])


@pytest.mark.parametrize("typed", ["log=tensorbord", "log=[]", "log=[wandb,mlflo]", "log=3"])
def test_other_loggers_are_refused(typed):
    with pytest.raises(UsageError, match=r"log.* must be one of tensorboard, wandb, mlflow, or a list of them"):
        composition.compose(typed)


def test_log_is_no_part_of_a_run(settings_of):
    plain, both = settings_of(), settings_of("log=[tensorboard,mlflow]")
    assert plain.identity("data") == both.identity("data") and plain.directory("data") == both.directory("data")


class Lost:
    """The guard of a run that another process has taken over."""

    def check(self):
        raise LockLost(Path("elsewhere"), None)

    held = check


def test_a_run_that_was_taken_over_is_no_failure_of_a_logger(tmp_path):
    made, said = logged(tmp_path, "tensorboard", guard=Lost()), []
    with pytest.raises(LockLost):
        Logs([made], said.append, Openers()).begin(resumed=False)
    assert said == []


def test_notes_that_cannot_be_removed_are_no_failure_of_the_run(tmp_path):
    made, said = logged(tmp_path, "tensorboard"), []
    kept = Logs([made], said.append, Openers())
    kept.begin(resumed=False)
    (made.directory / logs.NAME).unlink()
    (made.directory / logs.NAME).mkdir()  # which unlink() refuses
    kept.end(made)
    assert [line.split(",")[0] for line in said] == ["log=notes failed"]


# ---------------------------------------------------------------- read back


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in the event files of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), {accumulator.SCALARS: 0, accumulator.IMAGES: 0})
    found.Reload()
    curves = {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return curves | {f"image {tag}": [(one.step, 0) for one in found.Images(tag)] for tag in found.Tags()["images"]}


def test_tensorboard_has_the_curves_of_a_run_that_was_interrupted(tmp_path):
    """Two runs of a stack; the curves are those of the files, each point once."""
    pytest.importorskip("tensorboard")
    typed = (*TINY, "evaluate_every=1", "log=tensorboard", f"outputs={tmp_path}")
    runs = [prepare.prepare(composition.compose(*typed, f"seed={seed}")) for seed in range(2)]
    with pytest.raises(KeyboardInterrupt):
        train.train_runs(runs, progress=InterruptingProgress(4))
    assert (runs[0].directory / logs.NAME).is_file()
    train.train_runs(runs, quiet=True)
    for run in runs:
        assert not (run.directory / logs.NAME).exists()
        found = scalars(tmp_path / "tensorboard" / "ewc" / run.directory.name)
        matrix = pd.read_csv(run.directory / "accuracy_matrix.csv").set_index("after_task")
        for task in (1, 2):
            expected = [(k, pytest.approx(matrix.loc[k, f"task_{task}"])) for k in range(3)]
            assert found[f"accuracy/task_{task}"] == expected
        within = pd.read_csv(run.directory / "accuracy_over_training.csv").query("eval_task == 1")
        assert found["accuracy_within_tasks/task_1"] == [
            (step, pytest.approx(value)) for step, value in zip(within["step"], within["accuracy"], strict=True)
        ]
        summary = pd.read_csv(run.directory / "summary.csv").iloc[0]
        assert found["summary/average_accuracy"][-1][1] == pytest.approx(summary["average_accuracy"])
        assert [step for step, _ in found["image accuracy_matrix"]] == [1, 2]


# mlflow and wandb take seconds to import: a process of their own reads back what another has logged
MLFLOW = """
from mlflow import MlflowClient
client = MlflowClient(tracking_uri="sqlite:///outputs/mlflow.db")
experiment = client.get_experiment_by_name("clrun")
for run in client.search_runs([experiment.experiment_id]):
    curve = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "accuracy/task_1")]
    pictures = [one.path for one in client.list_artifacts(run.info.run_id, "accuracy_matrix")]
    print(run.data.params["strategy"], run.info.status, curve, len(pictures), run.data.metrics["summary/forgetting"])
"""


def in_process(*arguments: str, folder: Path, **variables: str) -> list[str]:
    environment = dict(os.environ) | {"PYTHONPATH": python_path()} | variables
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_mlflow_has_the_curves_of_a_sweep(tmp_path):
    """Two workers that write into one database."""
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'clrun[mlflow]'")
    typed = ("-m", *TINY, "seed=0,1", "workers=2", "log=mlflow")
    in_process("-m", "clrun", *typed, folder=tmp_path)
    lines = in_process("-c", MLFLOW, folder=tmp_path)
    matrices = [pd.read_csv(path) for path in tmp_path.glob("outputs/runs/ewc/*/accuracy_matrix.csv")]
    curves = [[(k, value) for k, value in enumerate(matrix["task_1"])] for matrix in matrices]
    assert len(lines) == 2 and all(any(str(curve) in line for line in lines) for curve in curves)
    assert all(line.startswith("ewc FINISHED") and " 2 " in line for line in lines)


@pytest.mark.slow
def test_wandb_offline_has_the_run(tmp_path):
    pytest.importorskip("wandb", reason="W&B is not installed: pip install 'clrun[wandb]'")
    in_process("-m", "clrun", *TINY, "log=wandb", folder=tmp_path, WANDB_MODE="offline")
    (file,) = tmp_path.glob("outputs/wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"accuracy/task_1" in content and b"average_accuracy" in content and b"model.widths" in content
    assert list(tmp_path.glob("outputs/wandb/offline-run-*/files/media/images/pictures/*.png"))
