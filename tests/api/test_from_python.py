"""clrun from Python: what is imported, what is typed, what runs and what comes back; and the example notebooks."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import python_path, summaries
from matplotlib.figure import Figure

import clrun
from clrun.api import running, typed
from clrun.config import catalog, composition
from clrun.report.runs import read
from clrun.runs import prepare, train
from clrun.system.csv_numbers import ALL_DIGITS
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.paths import PACKAGE

TINY = ("iterations=2", "model.widths=[4]", "device=cpu", "plots=false")
NOTEBOOKS = sorted((PACKAGE.parent / "examples").glob("*.ipynb"))


def python(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = dict(os.environ) | {"PYTHONPATH": python_path()}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


# ---------------------------------------------------------------- what is imported


def test_the_import_alone_is_light(tmp_path):
    heavy = "{'torch', 'pandas', 'numpy', 'hydra', 'yaml', 'pydantic', 'matplotlib'}"
    code = f"import clrun, sys; print(clrun.__version__, {heavy} & set(sys.modules))"
    found = python("-c", code, folder=tmp_path)
    assert found.stdout.split() == [clrun.__version__, "set()"], found.stderr


def test_reading_imports_no_torch(swept):
    code = f"import clrun, sys; print(len(clrun.load({str(swept)!r}).accuracy), 'torch' in sys.modules)"
    assert python("-c", code, folder=swept).stdout.split()[1:] == ["False"]


def test_the_names_are_those_that_are_listed():
    for name in clrun.__all__:
        assert getattr(clrun, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        clrun.nothing  # noqa: B018


# ---------------------------------------------------------------- what is typed


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("seed", range(3), "seed=0,1,2"),
        ("seed", np.arange(2), "seed=0,1"),
        ("seed", 7, "seed=7"),
        ("lr", [0.1, 1e-5], "lr=0.1,1e-05"),
        ("lr", (np.float64(0.5),), "lr=0.5"),
        ("strategy", ["ewc", "si"], "strategy=ewc,si"),
        ("strategy", "ewc,si", "strategy=ewc,si"),
        ("model.widths", [100, 50], "model.widths=[100,50]"),
        ("model.widths", [[100], [50, 50]], "model.widths=[100],[50,50]"),
        ("split.classes", [["cat", "dog"], ["a b"]], 'split.classes=[[cat,dog],["a b"]]'),
        ("split.classes", [[[0, 1], [2]], [[0], [1]]], "split.classes=[[0,1],[2]],[[0],[1]]"),
        ("plots", False, "plots=false"),
        ("epochs", None, "epochs=null"),
        ("epochs", [[20, 10]], "epochs=[20,10]"),
        ("augment", ["none", "crop"], "augment=none,crop"),
        ("augment", ["none", ["crop", "colour"]], "augment=none,[crop,colour]"),
        ("outputs", Path("a b/c"), 'outputs="a b/c"'),
        ("dataset.args", {"depth": 2, "noise": 0.5}, "dataset.args={depth:2,noise:0.5}"),
    ],
)
def test_values_are_typed_as_on_the_command_line(key, value, text):
    assert typed.texts_of([], {key: value}, catalog.read()) == [text]
    assert typed.texts_of([{key: value}], {}, catalog.read()) == [text]


@pytest.mark.parametrize("one", [["strategy"], ["-m"], ["--check"], [3]])
def test_what_is_no_key_is_refused(one):
    with pytest.raises(UsageError, match=r"clrun\.run takes texts such as"):
        typed.texts_of(one, {}, catalog.read())


@pytest.mark.parametrize(("value", "said"), [(range(0), "has no values"), ({1, 2}, "has no order")])
def test_values_that_cannot_be_gone_through_are_refused(value, said):
    with pytest.raises(UsageError, match=said):
        typed.texts_of([], {"seed": value}, catalog.read())


# ---------------------------------------------------------------- running

SCRIPT = """
import clrun
found = clrun.run("iterations=2", "device=cpu", "lambda=1,2", {"model.widths": [4]}, plots=False, workers=2)
print("found", len(found), sorted(found.runs["lambda"]), found.runs["seed"].dtype)
again = clrun.run("iterations=2", "device=cpu", "lambda=2", {"model.widths": [4]}, plots=False, quiet=True)
print("again", again.runs["run"].tolist() == found.runs.query("`lambda` == 2")["run"].tolist())
"""


@pytest.mark.slow  # a process with two workers
def test_runs_are_those_of_the_command_line(tmp_path):
    """A sweep in workers, from a script whose main module nothing protects."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python("script.py", folder=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "2 runs: 2 to train, 0 done already." in lines and "found 2 [1.0, 2.0] Int64" in lines
    assert lines[-1] == "again True" and lines[-2].startswith("found"), "the second is quiet"
    settings = composition.compose(*TINY, "lambda=1", f"outputs={tmp_path / 'outputs'}")
    assert prepare.prepare(settings).finished


def test_a_mistake_is_one_paragraph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="lamda: no such key; did you mean lambda") as caught:
        clrun.run(strategy="ewc", lamda=3, quiet=True)
    (shown,) = caught.value._render_traceback_()
    assert shown == f"UsageError: {caught.value}" and "\n" not in shown
    assert not any(tmp_path.iterdir())


def test_notes_of_the_process_are_exceptions(tmp_path):
    assert isinstance(running.what_is_wrong(tmp_path, 130, ""), KeyboardInterrupt)
    for failed, kind in ((True, RunsFailed), (False, UsageError)):
        (tmp_path / "mistake.json").write_text(json.dumps({"failed": failed, "text": "why"}))
        found = running.what_is_wrong(tmp_path, 1, "")
        assert type(found) is kind and str(found) == "why"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys; print('so'); sys.exit(3)", "exit code 3; the last that it printed:\nso"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
    ],
)
def test_a_process_that_crashes_says_what_it_said_last(tmp_path, script, expected):
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with pytest.raises(RunsFailed, match=expected):
        running.hand_on(child, tmp_path, lambda _: None)


PRINTED = """
import subprocess, sys
from pathlib import Path
from clrun.api import running
code = "import time; [print('Müller ± 猫', flush=True) or time.sleep(0.02) for _ in range(20)]; open('end', 'w')"
options = dict(stdout=subprocess.PIPE, text=True, encoding="utf-8", process_group=0)
running.hand_on(subprocess.Popen([sys.executable, "-X", "utf8", "-c", code], **options), Path("."), running.Shown())
"""


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        (">/dev/full", "standard output could not be written: [Errno 28]"),
        (">&-", ""),
        ("| true", "Broken pipe"),
        (">/dev/full 2>/dev/full", ""),
    ],
)
def test_training_goes_on_where_nothing_can_be_printed(tmp_path, sink, said):
    (tmp_path / "script.py").write_text(PRINTED)
    environment = dict(os.environ) | {"PYTHONPATH": python_path()}
    line = f"{sys.executable} script.py {sink}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / "end").exists() and said in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("clrun: ") == bool(said)


def test_characters_that_an_output_lacks_are_shown(monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sys.stdout.buffer, encoding="ascii", errors="strict"))
    running.Shown()("Müller ± 猫\n")
    assert capsysbinary.readouterr().out == b"M\\xfcller +- \\u732b\n"


def test_an_interrupt_is_handed_on_once(tmp_path):
    """Ctrl-C in a notebook: the process of the runs is interrupted once, writes checkpoints, and ends."""
    script = (
        "import signal, time, sys\n"
        "def noted(*_): print('interrupted', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, noted)\nprint('began', flush=True)\ntime.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, process_group=0)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("began"):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        running.hand_on(child, tmp_path, say)
    assert "".join(said).split() == ["began", "interrupted"] and child.returncode == 130
    assert time.monotonic() - began < 30


# ---------------------------------------------------------------- what comes back


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    runs = [("strategy=ewc", "lambda=1", f"seed={seed}") for seed in range(2)] + [("strategy=ewc", "lambda=9")]
    for keys in [*runs, ("strategy=finetune",), ("strategy=er", "scenario=class", "evaluate_every=1")]:
        train.train_run(prepare.prepare(composition.compose(*TINY, *keys, f"outputs={outputs}")), quiet=True)
    return outputs


@pytest.fixture
def results(swept) -> clrun.Results:
    return clrun.load(swept)


def test_tables_say_what_the_files_say(results):
    assert len(results) == len(results.runs) == 5
    for run, directory in results.directories.items():
        matrix = pd.read_csv(directory / "accuracy_matrix.csv", **ALL_DIGITS).set_index("after_task")
        for line in results.accuracy[results.accuracy["run"] == run].itertuples():
            assert line.accuracy == matrix.loc[line.after_task, f"task_{line.eval_task}"] == line.correct / line.n
        forgetting = pd.read_csv(directory / "forgetting.csv", **ALL_DIGITS).iloc[:-1]
        found = results.forgetting[results.forgetting["run"] == run]
        assert found["final_accuracy"].tolist() == forgetting["final_accuracy"].tolist()
        assert len(results.health[results.health["run"] == run]) == 5
        assert len(results.costs[results.costs["run"] == run]) == 6
    assert set(results.training["strategy"]) == {"er"}
    assert set(results.accuracy["label"]) == {"ewc lambda=1", "ewc lambda=9", "finetune", "er"}


def test_columns_have_types(results):
    kinds = {"seed": "Int64", "tasks": "Int64", "epochs": "Int64", "online": "boolean", "lambda": "float64"}
    assert {name: str(results.runs[name].dtype) for name in kinds} == kinds
    whole = {"task", "after_task", "eval_task", "correct", "n"}
    for table in (results.accuracy, results.forgetting):
        assert all(str(table[name].dtype) == "int64" for name in whole & set(table))
    assert str(results.report["mean"].dtype) == "float64"


def test_statistics_and_comparisons_are_those_of_the_report(results, swept):
    row = results.report.query("metric == 'average_accuracy' and `lambda` == 1").iloc[0]
    runs = results.runs.query("`lambda` == 1").sort_values("seed")["average_accuracy"]
    assert (row["n"], row["mean"]) == (2, pytest.approx(runs.mean()))
    (line,) = results.compare("ewc lambda=1", "finetune").itertuples()
    finetune = read(swept).set_index("strategy").loc["finetune", "average_accuracy"]
    assert line.n == 1 and line.mean == pytest.approx(runs.iloc[0] - finetune)
    with pytest.raises(UsageError, match="no such row"):
        results.compare("ewc", "lwf")
    with pytest.raises(UsageError, match="measure=speed"):
        results.compare("ewc", "finetune", "speed")


def test_figures_are_matplotlibs(results):
    with pytest.raises(UsageError, match="figures are of one stream"):
        results.figures()
    part = results.of(results.runs.query("scenario == 'task'")["run"])
    figures = part.figures()
    assert {"first_task", "average_accuracy", "matrices"} <= set(figures)
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert {*results.run_figures(results.runs["run"].iloc[0])} >= {"accuracy_matrix", "accuracy_over_tasks"}
    assert len(results.streams) == 2 and all(results.figures(stream) for stream in results.streams)
    with pytest.raises(UsageError, match="there is no run 'x'"):
        results.run_figures("x")


def test_a_notebook_shows_a_table_of_each_stream(results):
    shown = results._repr_html_()
    assert shown.count("<table") == 2 and "scenario class" in shown and "ewc" in shown


def test_a_damaged_file_is_left_out_and_said(swept, tmp_path, capsys):
    shutil.copytree(swept / "runs", tmp_path / "runs")
    path = next(tmp_path.glob("runs/er/*/accuracy.csv"))
    path.write_text("half a li")
    found = clrun.load(tmp_path)
    assert "er" not in set(found.accuracy["strategy"]) and len(found.accuracy["run"].unique()) == 4
    assert str(path) in capsys.readouterr().err


def test_no_results_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there are no finished runs"):
        clrun.load(tmp_path)


# ---------------------------------------------------------------- notebooks


def code_of(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell; with less to train."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [cell.replace("epochs=5", "iterations=2") for cell in code]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_example_notebooks_run(notebook, tmp_path):
    """Every cell, one after the other, in a process without a file as its main module, as a kernel has none."""
    cells = code_of(notebook)
    assert len(cells) >= 4 and any("iterations=2" in cell for cell in cells)
    code = f"space = {{}}\nfor cell in {cells!r}:\n    exec(compile(cell, 'cell', 'exec'), space)\nprint('end')"
    done = python("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "end" and summaries(outputs=tmp_path / "outputs")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_example_notebooks_are_kept_without_output(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
