"""The files of a run: names, columns, empty cells, all or nothing; the terminal tables and the pictures from them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from outcomes import CORRECT, SUMMARY, lines, outcome, placed, write_final

from clrun.results import collection, columns, provenance, run_files
from clrun.results.outcome import RunStatus
from clrun.results.reading import UnreadableFile
from clrun.system import machine

# Files


def test_files_and_columns(tmp_path):
    write_final(outcome(tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "accuracy_matrix.csv",
        "forgetting.csv",
        "accuracy.csv",
        "health.csv",
        "costs.csv",
        "confusion.csv",
        "confusion_over_tasks.csv",
        "class_accuracy.csv",
        "confusion.png",
        "summary.csv",
        "accuracy_matrix.png",
        "accuracy_over_tasks.png",
    }
    first = {path.name: lines(path)[0] for path in (tmp_path / "run").glob("*.csv")}
    assert first["accuracy_matrix.csv"] == "after_task,task_1,task_2,task_3,average,overall"
    assert first["forgetting.csv"] == (
        "task,accuracy_untrained,accuracy_when_learned,best_accuracy,final_accuracy,forgetting,backward_transfer,"
        "forward_transfer"
    )
    assert first["accuracy.csv"] == "run,strategy,seed,after_task,eval_task,correct,n,accuracy"
    assert first["confusion.csv"] == "true_class,predicted_class,count"
    assert first["health.csv"] == "task,fisher_max,steps_not_finite,penalty_over_loss"
    assert first["costs.csv"] == "task,train_seconds,consolidate_seconds,eval_seconds,samples,energy_wh"
    assert first["summary.csv"] == SUMMARY


def test_cells(tmp_path):
    """Full precision, integers as integers, undefined cells empty, text that looks like a number kept."""
    write_final(outcome(tmp_path), plots=False)
    assert lines(tmp_path / "accuracy_matrix.csv")[1:] == [
        "0,0.1,0.2,0.3,0.20000000000000004,0.2",
        "1,0.9,0.2,0.2,0.9,0.9",
        "2,0.8,0.8,0.4,0.8,0.8",
        "3,0.6,0.9,0.7,0.7333333333333334,0.7333333333333333",
        "",
    ]
    forgetting = [line.split(",") for line in lines(tmp_path / "forgetting.csv")[1:-1]]
    empty = [(row, column) for row, cells in enumerate(forgetting) for column, cell in enumerate(cells) if not cell]
    assert empty == [(0, 7), (2, 5), (2, 6)]
    assert [cells[0] for cells in forgetting] == ["1", "2", "3", "average"]
    assert lines(tmp_path / "accuracy.csv")[2] == "0000000000,ewc,0,0,2,2,10,0.2"
    assert len(lines(tmp_path / "accuracy.csv")) == 1 + 4 * 3 + 1
    assert lines(tmp_path / "confusion.csv")[6] == "dog,deer,5"
    assert lines(tmp_path / "confusion_over_tasks.csv")[1:] == [
        "1,1,cat,dog,4,1,2,7",
        "3,1,cat,cat,6,1,1,5",
        "3,1,dog,deer,4,2,3,9",
        "",
    ]
    assert lines(tmp_path / "health.csv")[3] == "3,0.30000000000000004,0,"


def test_accuracy_of_each_class(tmp_path):
    """After the first task, 3 of 4 cats and 1 of 2 dogs are right; after the second no cat is, and all deer are."""
    pairs = [[1, 0, 0, 0, 3, 7], [1, 0, 0, 1, 1, 8], [1, 0, 1, 1, 1, 9], [1, 0, 1, 0, 1, 10]]
    pairs += [[2, 0, 0, 2, 4, 7], [2, 0, 1, 1, 2, 9], [2, 1, 2, 2, 5, 11]]
    write_final(outcome(tmp_path, confusions=np.array(pairs)), plots=False)
    assert lines(tmp_path / "class_accuracy.csv") == [
        "after_task,eval_task,class,output,correct,n,accuracy",
        "1,1,cat,1,3,4,0.75",
        "1,1,dog,2,1,2,0.5",
        "2,1,cat,1,0,4,0.0",
        "2,1,dog,2,2,2,1.0",
        "2,2,deer,3,5,5,1.0",
        "",
    ]


def test_summary_row(tmp_path):
    write_final(outcome(tmp_path, warnings=["one, two", "three"]), plots=False)
    row = pd.read_csv(tmp_path / "summary.csv", dtype=str, keep_default_na=False).iloc[0]
    assert row["model.widths"] == "[100, 100]"
    assert row["split.classes"] == '[["cat", "dog"], ["deer"]]'
    assert (row["lr"], row["lambda"], row["seed"], row["iterations"]) == ("1e-05", "0.0", "0", "")
    assert row["average_accuracy"] == "0.7333333333333334"
    assert float(row["forgetting"]) == pytest.approx((0.3 - 0.1) / 2)
    assert (row["validation_accuracy"], row["min_accuracy"], row["energy_wh"]) == ("", "", "")
    assert (row["train_seconds"], row["stack_size"], row["threads"]) == ("1.25", "8", "1")
    assert row["warnings"] == "one, two | three"
    assert row["device"].startswith("cpu") and row["torch_version"] and row["clrun_version"]


def test_optional_files(tmp_path):
    rows = [{"step": 5, "stage": 2, "eval_task": 1, "accuracy": 0.25}]
    validation = {"validation_correct": np.array(CORRECT[3]) - 1, "validation_counts": np.full(3, 10)}
    write_final(
        outcome(tmp_path, over_training=rows, task_classes=[["cat"], ["dog"], ["deer"]], **validation), plots=False
    )
    assert lines(tmp_path / "accuracy_over_training.csv") == [
        "run,seed,step,stage,eval_task,accuracy",
        "0000000000,0,5,2,1,0.25",
        "",
    ]
    assert lines(tmp_path / "tasks.csv") == ["task,class", "1,cat", "2,dog", "3,deer", ""]
    assert lines(tmp_path / "validation_matrix.csv")[0] == "after_task,task_1,task_2,task_3,average,overall"
    row = run_files.read_summary(tmp_path / "summary.csv").iloc[0]
    assert row["validation_accuracy"] == pytest.approx((5 + 8 + 6) / 30)
    assert row["min_accuracy"] == pytest.approx((0.25 + 0.9) / 2)
    assert row["worst_case_accuracy"] == pytest.approx(0.7 / 3 + 2 / 3 * row["min_accuracy"])
    assert row["stability_gap"] == pytest.approx((0.65 + (0.2 - 0.1) / 2) / 2)


UNEQUAL = {
    "correct": np.array([[1, 1, 1], [54, 0, 0], [30, 8, 0], [6, 3, 2]]),
    "counts": np.array([60, 10, 10]),
}


@pytest.mark.parametrize("joint", [False, True])
def test_unequal_tasks_by_both_definitions(tmp_path, joint):
    """The example of docs/concepts/metrics.md: 10, 30 and 20 % of 60, 10 and 10 samples are 20 %, and 11 of 80."""
    made = outcome(tmp_path, strategy="joint" if joint else "ewc", forgetting_defined=not joint, **UNEQUAL)
    write_final(made, plots=False)
    row = run_files.read_summary(tmp_path / "summary.csv").iloc[0]
    assert row["average_accuracy"] == pytest.approx(0.2) and row["overall_accuracy"] == 11 / 80
    so_far = [54 / 60, 38 / 70, 11 / 80]
    assert row["overall_incremental_accuracy"] == pytest.approx(np.nan if joint else sum(so_far) / 3, nan_ok=True)
    column = run_files.reading.read_table(tmp_path / "accuracy_matrix.csv")["overall"]
    assert column.tolist() == pytest.approx([3 / 80, *([54 / 80, 38 / 80, 11 / 80] if joint else so_far)])


@pytest.mark.parametrize("damage", [None, "missing", "words", "far"])
def test_a_run_of_an_earlier_version_is_scored_from_its_counts(tmp_path, damage):
    """Without the columns, and with its accuracy.csv or without: in summary.csv, in the index and in results.csv."""
    folder = placed(tmp_path, **UNEQUAL).directory
    new = run_files.read_summary(folder / "summary.csv").iloc[0]
    without = pd.read_csv(folder / "summary.csv", dtype=str).drop(columns=list(columns.OVERALL_METRICS))
    run_files.write_table(folder / "summary.csv", without)
    counts = (folder / "accuracy.csv").read_text()
    changed = {"missing": "", "words": counts.replace(",60,", ",x,"), "far": counts.replace(",3,3,", ",3,999999999,")}
    (folder / "accuracy.csv").write_text(counts if damage is None else changed[damage])
    old = run_files.read_summary(folder / "summary.csv").iloc[0]
    collected = collection.collect(tmp_path).iloc[0]
    for name in columns.OVERALL_METRICS:
        expected = new[name] if damage is None else np.nan
        assert [old[name], collected[name]] == pytest.approx([expected] * 2, nan_ok=True)
    assert old["average_accuracy"] == new["average_accuracy"]


def test_one_task(tmp_path):
    write_final(outcome(tmp_path, tasks=1))
    assert lines(tmp_path / "forgetting.csv")[1:] == ["1,0.5,0.8,0.8,0.8,,,", "average,0.5,0.8,0.8,0.8,,,", ""]
    row = run_files.read_summary(tmp_path / "summary.csv").iloc[0]
    assert row[["forgetting", "backward_transfer", "forward_transfer"]].isna().all()
    assert row["average_accuracy"] == 0.8


def test_diverged_keeps_what_it_measured(tmp_path):
    correct = np.array(CORRECT[3])
    correct[2:] = -1
    write_final(outcome(tmp_path, correct=correct, status=RunStatus.DIVERGED, diverged_at="task 2, step 17"))
    assert lines(tmp_path / "accuracy_matrix.csv")[2:] == ["1,0.9,0.2,0.2,0.9,0.9", "2,,,,,", "3,,,,,", ""]
    assert len(lines(tmp_path / "accuracy.csv")) == 1 + 2 * 3 + 1
    row = run_files.read_summary(tmp_path / "summary.csv").iloc[0]
    assert (row["status"], row["diverged_at"]) == ("diverged", "task 2, step 17")
    assert row[list(columns.SUMMARY_METRICS)].isna().all()


def test_a_run_just_begun(tmp_path):
    correct = np.full((4, 3), -1)
    correct[0] = 1
    run_files.write_progress(outcome(tmp_path, correct=correct, health=[], over_training=[]))
    assert lines(tmp_path / "health.csv") == ["task", ""]
    assert lines(tmp_path / "accuracy_over_training.csv") == ["run,seed,step,stage,eval_task,accuracy", ""]
    assert lines(tmp_path / "forgetting.csv")[1] == "1,0.1,,,,,,"
    assert not run_files.finished(tmp_path)


def test_same_bytes_twice(tmp_path):
    rows = [{"step": s, "stage": 1, "eval_task": 1, "accuracy": s / 7} for s in range(7)]
    for name in "ab":
        write_final(outcome(tmp_path / name, over_training=rows))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir()) and len(files) == 13
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_summary_is_written_last(tmp_path):
    """An error while the plots are drawn leaves a run that is not finished."""
    (tmp_path / "accuracy_over_tasks.png" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"accuracy_over_tasks\.png"):
        write_final(outcome(tmp_path))
    assert (tmp_path / "accuracy_matrix.png").is_file() and not run_files.finished(tmp_path)
    write_final(outcome(tmp_path), plots=False)
    assert run_files.finished(tmp_path)


def test_a_torn_write_is_never_seen(tmp_path, monkeypatch):
    write_final(outcome(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    improved = outcome(tmp_path, correct=np.full((4, 3), 10))

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    for write in (run_files.write_progress, write_final):
        with pytest.raises(OSError, match="disk full"):
            write(improved)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_half_a_table_is_not_renamed(tmp_path, monkeypatch):
    def half(self, path, **options):
        Path(path).write_text("task_1,aver")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(OSError, match="disk full"):
        run_files.write_progress(outcome(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_progress_is_written_at_once_and_then_no_more_often_than_it_can_be_read(tmp_path):
    made, path = outcome(tmp_path), tmp_path / "forgetting.csv"
    for now, written in ((0.0, True), (4.9, False), (5.0, True), (9.9, False), (20.0, True)):
        run_files.write_progress_if_due([made], clock=lambda: now)
        assert path.exists() == written, now
        path.unlink(missing_ok=True)


def test_the_tables_of_many_runs_share_the_time_that_writing_may_take(tmp_path):
    """Ten runs whose tables take a second each are written again after 500 seconds, a fiftieth of which is 10."""
    made = [outcome(tmp_path / str(r), seed=r) for r in range(10)]
    seconds = iter(range(100))
    run_files.write_progress_if_due(made, clock=lambda: float(next(seconds)))
    assert [one.writing_seconds for one in made] == [1.0] * 10
    for one in made:
        one.directory.joinpath("forgetting.csv").unlink()
    for now, written in ((509.0, False), (510.0, True)):
        run_files.write_progress_if_due(made, clock=lambda: now)
        assert all((one.directory / "forgetting.csv").exists() == written for one in made)


def test_config(tmp_path):
    nested = {"dataset": {"name": "digits", "normalize": True}, "lr": 1e-05, "lambda": 0, "name": "größe", "x": None}
    run_files.write_config(tmp_path, nested | {"widths": (1, 2), "outputs": Path("a b=c")})
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == nested | {"widths": [1, 2], "outputs": "a b=c"}
    assert text.startswith("dataset:") and "größe" in text


def test_failed(tmp_path):
    run_files.write_failed(tmp_path / "run", "out of memory", "Traceback ...\n  line\n")
    assert (tmp_path / "run" / "failed.txt").read_text() == "out of memory\n\nTraceback ...\n  line\n"
    run_files.clear_failed(tmp_path / "run")
    run_files.clear_failed(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


# Many runs


@pytest.mark.parametrize("damage", ["empty", "header", "half a row", "no newline", "open quotation", "binary", "other"])
def test_a_torn_summary_is_named(tmp_path, capsys, damage):
    path = placed(tmp_path).directory / "summary.csv"
    whole = path.read_bytes()
    header, row = whole.splitlines(keepends=True)
    path.write_bytes(
        {
            "empty": b"",
            "header": header,
            "half a row": header + row[: len(row) // 2] + b"\n",
            "no newline": whole[:-1],
            "open quotation": header + b'"' + row,
            "binary": b"\x00\xff\xfe\n\x80",
            "other": b"a,b\n1,2\n",
        }[damage]
    )
    with pytest.raises(UnreadableFile, match=r"summary\.csv cannot be read") as raised:
        run_files.read_summary(path)
    assert str(path) in str(raised.value)
    assert collection.collect(tmp_path).empty and str(path) in capsys.readouterr().err
    assert not (tmp_path / "results.csv").exists()


# Where it was made


def test_commit_only_of_a_checkout_of_clrun(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    (tmp_path / "clrun").mkdir()
    source = tmp_path / "clrun" / "__init__.py"
    source.write_text("a = 1\n")
    commit = provenance.commit.__wrapped__  # without its cache
    assert commit(tmp_path / "clrun") == ""
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = commit(tmp_path / "clrun")
    assert len(clean) >= 12 and int(clean, 16)
    index = (tmp_path / ".git" / "index").read_bytes()
    os.utime(source, (1, 1))  # for which git would write its index again
    assert commit(tmp_path / "clrun") == clean and (tmp_path / ".git" / "index").read_bytes() == index
    source.write_text("a = 2\n")
    assert commit(tmp_path / "clrun") == clean + "+"
    (tmp_path / "venv" / "clrun").mkdir(parents=True)
    assert commit(tmp_path / "venv" / "clrun") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path / "clrun") == ""


def test_processor_name(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU\nprocessor\t: 1\nmodel name\t: Slow\n")
    assert machine.processor_name(tmp_path / "cpuinfo") == "Fast CPU"
    assert machine.processor_name(tmp_path / "none") == ""


def test_results_does_not_import_torch_or_matplotlib():
    code = "import sys, clrun.results, clrun.terminal; print({'torch', 'matplotlib'} & set(sys.modules))"
    root = Path(run_files.__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert answer.stdout.strip() == "set()"
