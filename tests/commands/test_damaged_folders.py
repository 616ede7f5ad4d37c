"""A folder of results that something has damaged: each file that clrun reads, in each way, under each command.

A command names the file of the run and what to type, goes on with the other runs, and ends with 0 or 1, never with a
traceback. One group of runs is trained once; each test damages a copy.
"""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clrun.commands import console, predict, report, run, tune, verify, watch
from clrun.commands.verify import Case, Row
from clrun.results import reading
from clrun.runs import checkpoint, network_file

# What the searched folder and the page are made with.
pytest.importorskip("optuna")
pytest.importorskip("plotly")

TINY = ("model.widths=[4]", "tasks=2", "iterations=1", "device=cpu", "workers=1", "plots=false", "validation=0.1")
KEPT = (*TINY, "keep_checkpoint=true", "predictions=true", "evaluate_every=1", "lr=0.01", "strategy=finetune")
RUN = (*KEPT, "seed=0")
SWEEP = ("-m", *KEPT, "seed=0,1")
SEARCH = (*TINY, "strategy=finetune", "lr=0.01,0.02", "trials=2", "sampler=random", "outputs=searched")
ROW = Row(
    title="t", source="s", tolerances="r", base=list(KEPT), cases={"c": Case(overrides=[], target=50, tolerance=100)}
)


# Files that a run with stream=online, split.blurry and probe=true has besides, as they would be.
OF_OTHER_RUNS = {
    "probe.csv": "after_task,eval_task,probe_accuracy\n1,1,0.75\n",
    "online_accuracy.csv": "task,samples,correct,online_accuracy\n1,4,3,0.75\nall,4,3,0.75\n",
    "class_counts.csv": "task,class,of_task,samples\n1,0,1,3\n1,2,2,1\n",
}


def ended(action: Callable[[], object]) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        console.end_with(lambda _: action())
    return int(caught.value.code or 0)


def typed(*arguments: str) -> int:
    """The exit code of `clrun`, with these arguments."""
    before = sys.argv
    sys.argv = ["clrun", *arguments]
    try:
        return ended(lambda: run.command(arguments))
    finally:
        sys.argv = before


COMMANDS: dict[str, Callable[[], int]] = {
    "single": lambda: typed(*RUN),
    "sweep": lambda: typed(*SWEEP),
    "other run": lambda: typed(*KEPT, "seed=1"),
    "report": lambda: ended(lambda: report.command(["outputs"])),
    "compare": lambda: ended(lambda: report.command(["outputs", "--compare", "finetune", "joint"])),
    "predict": lambda: ended(lambda: predict.command([str(damaged_run()), "picture.png", "--task", "1"])),
    "tune": lambda: ended(lambda: tune.command(SEARCH)),
    "verify": lambda: ended(lambda: verify.verify("1", ROW, range(2), []).__next__()),
    "html": lambda: ended(lambda: report.command(["outputs", "--html", "--no-plots"])),
    "watch": lambda: ended(lambda: watch.command(["outputs", "--once"])),
}


def damaged_run() -> Path:
    """The folder of the run that the tests damage."""
    return next(Path("outputs/runs/finetune").glob("*lr=0.01*seed=0-*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with an `outputs` of two seeds of finetune and joint, and a search in `searched`."""
    from PIL import Image

    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    try:
        assert typed(*SWEEP) == 0
        for name, content in OF_OTHER_RUNS.items():
            (damaged_run() / name).write_text(content)
        assert typed("-m", *KEPT[:-1], "strategy=joint", "seed=0,1") == 0
        assert ended(lambda: tune.command(SEARCH)) == 0
        Image.new("L", (8, 8)).save("picture.png")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copied(trained, empty_folder, monkeypatch, tmp_path) -> Path:
    """The current folder: a copy of `trained`."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def missing(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A damage that changes a file's bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": missing,
    "folder": folder,
    "link to itself": link_to_itself,
    "pipe": pipe,
    "empty": rewritten(lambda _: b""),
    "binary": rewritten(lambda _: b"\x00\xff\xfe\n\x80"),
    "cut": rewritten(lambda content: content[: len(content) * 2 // 3]),
    "header": rewritten(lambda content: lines(content)[0]),
    "UTF-16": rewritten(lambda content: content.decode("latin-1").encode("utf-16")),
    "word": rewritten(lambda content: content.rstrip().rpartition(b",")[0] + b",rather good\n"),
    "row twice": rewritten(lambda content: content + lines(content)[-1]),
    "no columns": rewritten(lambda content: b"a,b\n1,2\n"),
    "open quotation": rewritten(lambda content: content + b'"'),
    "comma in numbers": rewritten(lambda content: content.replace(b",", b";").replace(b".", b",")),
}

HARMLESS: dict[str, Callable[[Path], None]] = {
    "byte-order mark": rewritten(lambda content: b"\xef\xbb\xbf" + content),
    "semicolons": rewritten(lambda content: content.replace(b",", b";") if b'"' not in content else content),
    "ends of lines": rewritten(lambda content: content.replace(b"\n", b"\r\n")),
    "empty lines": rewritten(lambda content: content + b"\n\n"),
}

# The files of a run that each command reads.
READ = {
    "single": ("summary.csv", "accuracy_matrix.csv", "forgetting.csv", "tasks.csv"),
    "sweep": ("summary.csv", "accuracy_matrix.csv"),
    "other run": ("summary.csv",),
    "report": ("summary.csv", "accuracy_matrix.csv", "costs.csv"),
    "compare": ("summary.csv",),
    "tune": ("validation_matrix.csv",),
    "verify": ("summary.csv", "accuracy_matrix.csv"),
    "html": ("confusion_over_tasks.csv",),
    "watch": ("summary.csv", "health.csv"),
}
# Damages that leave a file which is still right, or which is no file that is missed.
SOUND = {
    ("tasks.csv", "missing"),  # no task has a name
    ("tasks.csv", "word"),
    ("tasks.csv", "row twice"),
    ("summary.csv", "word"),  # its last cell is the commit
    ("costs.csv", "missing"),
    ("accuracy_matrix.csv", "missing", "report"),
    ("health.csv", "missing", "watch"),
    ("confusion_over_tasks.csv", "missing", "html"),  # of a run of an earlier version
    ("summary.csv", "missing"),  # that run has not ended
    ("tasks.csv", "comma in numbers"),  # and it has none
    ("confusion.csv", "comma in numbers"),
    ("confusion_over_tasks.csv", "comma in numbers"),
    ("class_counts.csv", "comma in numbers"),
    ("predictions.csv", "comma in numbers"),
}

# Every damage of every file is tried on the reader, which all commands share; these with each command that reads it.
TYPICAL = ("missing", "folder", "cut", "word")
CASES = [(command, file, damage) for command, files in READ.items() for file in files for damage in TYPICAL]
CASES = [case for case in CASES if case[1:] not in SOUND and (*case[1:], case[0]) not in SOUND]


def targets(command: str, file: str) -> list[Path]:
    """The files that a test damages."""
    if command == "tune":
        shutil.rmtree("searched/tune", ignore_errors=True)  # so that the scores of finished runs are read again
        return sorted(Path("searched/runs/finetune").glob("*lr=0.02*/validation_matrix.csv"))
    return [damaged_run() / file]


@pytest.mark.parametrize(("command", "file", "damage"), CASES)
def test_a_damaged_file_is_named(copied, capfd, command, file, damage):
    for path in targets(command, file):
        DAMAGES[damage](path)
    code = COMMANDS[command]()
    out, err = capfd.readouterr()
    bystander = command in ("other run", "report", "compare", "html", "watch")
    assert code == (0 if bystander else 1), err
    assert "Traceback" not in out + err
    assert path.parent.name in err and file in err, err
    assert "rerun=true" in err or "elete the folder" in err, err


def read(path: Path) -> object:
    return reading.read_summary(path) if path.name == "summary.csv" else reading.read_table(path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*reading.LAYOUTS, "summary.csv"])
def test_a_damaged_file_is_refused(copied, file, damage):
    path = damaged_run() / file
    if (file, damage) in SOUND - {(file, "missing")}:
        pytest.skip("such a file is right")
    DAMAGES[damage](path)
    with pytest.raises(reading.UnreadableFile, match=file) as raised:
        read(path)
    assert str(path) in str(raised.value) and "rerun=true" in str(raised.value)


def with_cell(path: Path, column: str, value: str) -> None:
    """Write a value into the last row of a file."""
    header, *rows = csv.reader(io.StringIO(path.read_text()))
    rows[-1][header.index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


@pytest.mark.parametrize(
    ("file", "column", "value"),
    [
        *(("summary.csv", "tasks", value) for value in ("", "inf", "2.5", "-1")),
        ("summary.csv", "first_tasks", "word"),
        ("summary.csv", "seed", "1" * 30),
        ("summary.csv", "state_mb", "inf"),
        ("summary.csv", "state_mb", "-1"),
        ("summary.csv", "train_seconds", "1e300"),
        ("summary.csv", "average_accuracy", "9472"),  # 0.9472, where a point separates thousands
        ("accuracy_matrix.csv", "task_1", "9472"),
        ("accuracy.csv", "accuracy", "-1"),
        ("accuracy_over_training.csv", "accuracy", "1.5"),
    ],
)
def test_a_number_that_cannot_be_is_refused(copied, file, column, value):
    path = damaged_run() / file
    with_cell(path, column, value)
    with pytest.raises(reading.UnreadableFile, match=f"{column}={value}"):
        read(path)


@pytest.mark.parametrize("damage", HARMLESS)
@pytest.mark.parametrize("file", [*reading.LAYOUTS, "summary.csv"])
def test_what_a_spreadsheet_changes_without_doubt_is_read(copied, file, damage):
    path = damaged_run() / file
    before = read(path)
    HARMLESS[damage](path)
    assert read(path).equals(before)


def test_a_column_that_an_older_version_did_not_write_is_empty(copied, capfd):
    path = damaged_run() / "summary.csv"
    table = reading.read_summary(path)
    table.drop(columns=["carbon_g", "stability_gap"]).to_csv(path, index=False)
    for command in READ:
        assert COMMANDS[command]() == 0, command
    assert "cannot be read" not in capfd.readouterr().err


def emptied(rows: slice) -> Callable[[Path], None]:
    """A damage that empties cells of an accuracy matrix, as a process that wrote over a finished run does."""

    def change(path: Path) -> None:
        table = reading.read_table(path)
        table.iloc[rows, 1:] = None
        table.to_csv(path, index=False)

    return change


@pytest.mark.parametrize("command", ["single", "sweep"])
def test_a_summary_that_other_files_contradict_is_not_done(copied, capfd, command):
    emptied(slice(1, 3))(damaged_run() / "accuracy_matrix.csv")
    assert COMMANDS[command]() == 1
    out, err = capfd.readouterr()
    assert "Done already" not in out and "no accuracy after the last task" in err


@pytest.mark.parametrize("damage", ["missing", "link to itself", "binary"])
def test_rerun_mends_what_is_damaged(copied, capfd, damage):
    for file in ("summary.csv", "accuracy_matrix.csv", "tasks.csv"):
        DAMAGES[damage](damaged_run() / file)
    assert typed(*RUN, "rerun=true") == 0
    assert typed(*RUN) == 0 and "Done already" in capfd.readouterr().out


@pytest.mark.parametrize("file", ["summary.csv", "accuracy.csv", "config.yaml", "failed.txt"])
def test_a_folder_at_the_place_of_a_file_is_refused_before_training(copied, capfd, file):
    path = damaged_run() / file
    path.unlink(missing_ok=True)
    path.mkdir()
    assert typed(*RUN, "rerun=true") == 2
    err = capfd.readouterr().err
    assert f"{file} is a folder" in err and "Traceback" not in err and "learnt in" not in err


# ---------------------------------------------------------------- what is no table


@pytest.mark.parametrize("damage", ["folder", "link to itself", "empty", "binary", "UTF-16"])
def test_a_damaged_config_is_named(copied, capfd, damage):
    without_network()
    DAMAGES[damage](damaged_run() / "config.yaml")
    code = COMMANDS["predict"]()
    err = capfd.readouterr().err
    assert code == 2 and "config.yaml" in err and "Traceback" not in err


@pytest.mark.parametrize("text", ["strategy: [1]", "dataset: {name: [digits]}", "seed: 2021-99-99", "data_dir: {a: 1}"])
def test_a_config_with_other_values_is_named(copied, capfd, text):
    without_network()
    path = damaged_run() / "config.yaml"
    key = text.partition(":")[0]
    kept = [line for line in path.read_text().splitlines() if not line.startswith(key + ":")]
    path.write_text("\n".join([*kept, text]) + "\n")
    code = COMMANDS["predict"]()
    err = capfd.readouterr().err
    assert code == 2 and "config.yaml" in err and "Traceback" not in err


def without_network() -> None:
    """Make the damaged run one of an earlier version of clrun, which kept its checkpoint alone."""
    (damaged_run() / network_file.NAME).unlink()


@pytest.mark.parametrize("damage", ["empty", "binary", "cut"])
def test_a_damaged_network(copied, capfd, damage):
    DAMAGES[damage](damaged_run() / network_file.NAME)
    assert COMMANDS["predict"]() == 2
    assert f"{network_file.NAME} cannot be used" in (err := capfd.readouterr().err) and "Traceback" not in err


@pytest.mark.parametrize("damage", ["folder", "link to itself", "empty", "binary", "cut"])
def test_a_damaged_checkpoint(copied, capfd, damage):
    without_network()
    DAMAGES[damage](damaged_run() / checkpoint.NAME)
    assert COMMANDS["predict"]() == 2
    assert checkpoint.NAME in (err := capfd.readouterr().err) or "has no network" in err
    assert "Traceback" not in err
    (damaged_run() / "summary.csv").unlink()
    assert COMMANDS["single"]() in (0, 1)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["empty", "binary", "no columns"])
@pytest.mark.parametrize("command", ["single"])
def test_a_damaged_lock(copied, capfd, command, damage):
    (damaged_run() / "lock.json").write_text(json.dumps({"host": "a", "space": "b", "pid": 1, "started": "c"}) + "\n")
    DAMAGES[damage](damaged_run() / "lock.json")
    (damaged_run() / "summary.csv").unlink()
    assert COMMANDS[command]() == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["folder", "binary", "UTF-16", "no columns"])
def test_a_damaged_journal(copied, capfd, damage):
    (journal,) = Path("searched/tune").glob("*/journal.log")
    DAMAGES[damage](journal)
    code = COMMANDS["tune"]()
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert code == 1 and str(journal) in err and "elete the folder" in err


@pytest.mark.parametrize("damage", ["missing", "binary", "cut"])
@pytest.mark.parametrize("command", ["single", "report"])
def test_results_csv_is_written_anew(copied, capfd, command, damage):
    DAMAGES[damage](Path("outputs/results.csv"))
    code = COMMANDS[command]()
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert code == 0
