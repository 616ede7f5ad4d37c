"""The command `clrun`: single runs, sweeps, and what needs no training."""

import re
from pathlib import Path

import pandas as pd
import pytest
from helpers import summaries

from clrun.results.run_files import read_summary

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1")  # a sweep trains in this process


pytestmark = pytest.mark.usefixtures("empty_folder")


# ---------------------------------------------------------------- single runs


def test_a_run_is_not_trained_twice(clrun):
    assert clrun("strategy=ewc", "lambda=100", *SHORT)[0] == 0
    assert set(map(str, Path().iterdir())) == {"outputs"}  # no .hydra, no multirun.yaml, no log
    before = summaries()[0].stat().st_mtime_ns
    code, out, _ = clrun("strategy=ewc", "lambda=1e2", *SHORT)
    assert code == 0 and "Done already, on cpu" in out and "forgetting" in out
    assert [path.stat().st_mtime_ns for path in summaries()] == [before]
    assert clrun("strategy=ewc", "lambda=100.0", "rerun=true", *SHORT)[0] == 0
    assert summaries()[0].stat().st_mtime_ns > before and len(summaries()) == 1


def test_tasks_that_are_learnt_together_are_one_line(clrun):
    _, _, err = clrun("strategy=joint", *SHORT)
    lines = [line for line in err.splitlines() if "learnt in" in line]
    assert len(lines) == 1 and lines[0].startswith("joint seed=0: 5 tasks together learnt in ")
    assert lines[0].split(": ")[-1].count(".") == 5, "the accuracy of every task"


CRASH = "raise ZeroDivisionError('on purpose')"


def test_a_crash_is_a_traceback_and_code_1(clrun, faulty):
    code, _, err = clrun(*faulty(CRASH), *SHORT)
    assert code == 1 and "Traceback" in err and "ZeroDivisionError: on purpose" in err
    (failed,) = Path().rglob("failed.txt")
    assert failed.parent.name in err.replace("\n", "") and "on purpose" in failed.read_text()


def test_ctrl_c_is_130(clrun, faulty):
    mine = faulty("raise KeyboardInterrupt")
    assert clrun(*mine, *SHORT)[0] == 130
    assert clrun(*mine, "-m", "seed=0,1", *SHORT)[0] == 130


def test_sigterm_is_143_and_leaves_no_temporary_folder(clrun, monkeypatch, tmp_path, faulty):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    mine = faulty("os.kill(os.getpid(), signal.SIGTERM)")
    for line in (("-m", "seed=0,1"), ()):
        code, _, err = clrun(*mine, *line, f"outputs=outputs{len(line)}", *SHORT)
        saved, *others = err.splitlines()
        assert saved.startswith("clrun: saved after task 0 and 2 steps of task 1 ")
        assert code == 143 and others == ["clrun: terminated; the same command again continues."]
    assert list((tmp_path / "temporary").iterdir()) == []


# ---------------------------------------------------------------- sweeps


def test_a_sweep_runs_equal_jobs_once_and_ends_in_a_table(clrun):
    code, out, _ = clrun("-m", "strategy=finetune,ewc", "lambda=1,1.0,10", *SHORT)
    assert code == 0 and len(summaries("finetune")) == 1 and len(summaries("ewc")) == 2
    assert "Left out where it is not taken: lambda (strategy=finetune)." in out
    assert "3 runs, of 6 jobs: 3 to train" in out
    table = out[out.index("accuracy and forgetting in percent") :]
    for path in summaries():
        assert f" {100 * read_summary(path)['average_accuracy'].item():.1f} " in table
    assert set(map(str, Path().iterdir())) == {"outputs"}
    assert len(pd.read_csv("outputs/results.csv")) == 3


def test_a_sweep_over_seeds_ends_in_means(clrun):
    """A row a run, then a row for each of what differs beside the seed, in percent; every line names its strategy."""
    code, out, _ = clrun("-m", "strategy=finetune,ewc", "lambda=1", "seed=range(2)", *SHORT)
    assert code == 0 and re.findall(r"^\[\d/4\] (\w+)/\S+: done$", out, re.M) == ["finetune"] * 2 + ["ewc"] * 2
    means = out[out.index("mean ± standard deviation in percent") :]
    for strategy in ("finetune", "ewc"):
        found = pd.concat([read_summary(path) for path in summaries(strategy)])["average_accuracy"]
        assert f"{100 * found.mean():.1f} ± {100 * found.std():.1f}" in means


def test_a_wider_sweep_trains_only_what_is_new(clrun):
    clrun("strategy=ewc", "lambda=1", *SHORT)
    code, out, _ = clrun("-m", "strategy=ewc", "lambda=1,10", "seed=range(2)", *SHORT)
    assert code == 0 and "4 runs: 3 to train, 1 done already" in out and len(summaries()) == 4
    assert "0 to train, 4 done" in clrun("-m", "strategy=ewc", "lambda=10,1", "seed=0,1", *SHORT)[1]


def test_a_crashed_run_leaves_the_others_alone(clrun, faulty):
    typed = (*faulty(CRASH), "-m", "fault=0,1,2", *SHORT)
    code, out, err = clrun(*typed)
    assert code == 1 and len(summaries()) == 2
    assert "1 of 3 runs crashed" in err and "ZeroDivisionError: on purpose" in err and "failed.txt" in err
    assert "accuracy and forgetting in percent" in out
    Path("repaired").touch()
    code, out, _ = clrun(*typed)
    assert code == 0 and "1 to train, 2 done already" in out and not list(Path().rglob("failed.txt"))


def test_hydras_own_launcher_works_too(clrun):
    assert clrun("-m", "seed=0,1", "hydra/launcher=basic", *SHORT)[0] == 0
    assert len(summaries()) == 2


def test_flags_may_stand_anywhere(clrun):
    assert clrun("seed=0,1", "-m", *SHORT)[0] == 0
    assert len(summaries()) == 2


# ---------------------------------------------------------------- without training


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_pictures_are_left_out_and_drawn_later_without_training(clrun, sweep):
    assert clrun(*sweep, "plots=false", *SHORT)[0] == 0
    (summary,) = Path("outputs").rglob("summary.csv")
    written = summary.stat().st_mtime_ns
    assert not list(Path("outputs").rglob("*.png"))
    assert clrun(*sweep, *SHORT)[0] == 0
    drawn = sorted(path.name for path in summary.parent.glob("*.png"))
    assert drawn == ["accuracy_matrix.png", "accuracy_over_tasks.png", "confusion.png"]
    assert summary.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("dataset=cifar10",), "1 run has"),
        (("-m", "dataset=cifar10,mnist", "seed=1,1,2"), "4 runs, of 6 jobs, have"),
    ],
)
def test_check_loads_no_data_and_writes_nothing(clrun, tmp_path, typed, said):
    code, out, _ = clrun("--check", f"data_dir={tmp_path}", *typed)
    assert code == 0 and f"Checked: {said} legal settings." in out
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "typed",
    [
        ("lambda=-1",),
        ("-m", "lambda=1,-1"),
        ("--cfg", "job"),
        ("strategy=joint", "epochs=[1,2,3,4,5]"),
        ("-m", "stream=online", "scenario=class", "strategy=finetune,gdumb"),
    ],
)
def test_check_refuses(clrun, typed):
    code, _, err = clrun("--check", *typed)
    assert code == 2 and err.startswith("clrun: ")
