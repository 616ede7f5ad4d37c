"""What is printed of a finished run: into a pipe, on a terminal, with references, after a divergence."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from outcomes import CORRECT, VALUES, placed
from rich.console import Console

from clrun.results import collection
from clrun.results.outcome import RunStatus
from clrun.results.reading import UnreadableFile
from clrun.terminal import run_tables
from clrun.terminal.console import make_console, print_line


def shown(directory: Path, outputs: Path, chance: float | None = 0.5, **options) -> str:
    """What `show` prints: into a pipe, or onto a terminal of that width."""
    console = Console(file=io.StringIO(), highlight=False, markup=False, **({"width": 240} | options))
    run_tables.show(console, directory, outputs, chance, ["lambda"])
    return console.file.getvalue()


def test_show_in_a_pipe(tmp_path):
    said = ["the Fisher is zero [bold]everywhere[/bold]"]
    made = placed(tmp_path, warnings=said, task_classes=[["cat", "dog"], ["deer"], ["a" * 40]])
    text = shown(made.directory, tmp_path)
    assert "\x1b" not in text and "…" not in text
    assert text.startswith("ewc lambda=0 · digits, classes, 3 tasks, scenario task · mlp · seed 0 · cpu")
    assert f"WARNING: {said[0]}" in text
    assert "cat, dog" in text and "3 (" + "a" * 40 + ")" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["untrained", "10.0", "20.0", "30.0", "20.0"] in rows
    assert ["task", "3", "60.0", "90.0", "70.0", "73.3"] in rows
    assert ["average", "20.0", "80.0", "80.0", "73.3", "10.0", "-10.0", "5.0"] in rows
    assert "average accuracy 73.3 %   forgetting 10.0 points   chance 50.0 %" in text
    assert "training 1.25 s   consolidation 0.50 s   strategy state 0.12 MB" in text
    assert str(made.directory) in text
    assert "finetune" not in text and "joint" not in text


@pytest.mark.parametrize(
    ("strength", "text"),
    [(400.0, "400"), (1234567.0, "1234567"), (123456.7, "123456.7"), (1e-05, "1e-05"), (0.1, "0.1")],
)
def test_the_heading_shows_values_as_they_are_typed(tmp_path, strength, text):
    made = placed(tmp_path, values=VALUES | {"tasks": 3, "strategy": "ewc", "seed": 0, "lambda": strength})
    assert shown(made.directory, tmp_path).startswith(f"ewc lambda={text} · digits")


def test_make_console_in_a_pipe_is_wide(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    console = make_console()
    print_line(console, "[red]" + "x" * 300)
    assert console.width == 240
    assert sys.stdout.getvalue() == "[red]" + "x" * 300 + "\n"


def test_show_on_a_terminal(tmp_path):
    """Colours, and nothing cut: a matrix wider than the terminal is continued below."""
    correct = np.arange(21 * 20).reshape(21, 20)
    made = placed(tmp_path, correct=correct, counts=np.full(20, 420), warnings=["look here"], task_classes=[["x" * 90]])
    text = shown(made.directory, tmp_path, width=80, force_terminal=True, color_system="standard")
    assert "\x1b[1m" in text and "\x1b[2m" in text and "╭─" in text and "WARNING" in text
    assert text.count("accuracy in percent") == 4
    assert "…" not in text
    plain = shown(made.directory, tmp_path, width=80)
    assert all(percent in plain for percent in (f"{100 * value / 420:.1f}" for value in correct.ravel()))
    assert max(len(line) for line in plain.splitlines() if line.startswith(" ")) <= 80
    assert shown(made.directory, tmp_path).count("accuracy in percent") == 1


def test_reference_lines(tmp_path):
    """Joint and finetune of the same setup and seed, and only those that are done."""
    made = placed(tmp_path)
    half = np.array(CORRECT[3])
    half[3] = 5
    placed(tmp_path, "finetune", correct=half, setup="another")
    placed(tmp_path, "finetune", seed=1, correct=half)
    collection.collect(tmp_path)
    assert "finetune" not in shown(made.directory, tmp_path)
    placed(tmp_path, "finetune", correct=half)
    placed(tmp_path, "joint", correct=np.full((4, 3), 10), forgetting_defined=False, status="diverged")
    collection.collect(tmp_path)
    text = shown(made.directory, tmp_path)
    assert "finetune 50.0 %, forgetting 35.0 points" in text
    assert "joint" not in text and "gap" not in text
    joint = placed(tmp_path, "joint", correct=np.full((4, 3), 10), forgetting_defined=False)
    collection.collect(tmp_path)
    text = shown(made.directory, tmp_path)
    assert "joint 100.0 %\n" in text
    assert "47 % of the gap between finetune and joint closed" in text
    assert "finetune 50.0 %" in shown(joint.directory, tmp_path)
    assert "gap" not in shown(joint.directory, tmp_path)


def test_show_a_torn_results_file(tmp_path):
    made = placed(tmp_path)
    (tmp_path / "results.csv").write_text("run,strat")
    with pytest.raises(UnreadableFile, match=r"results\.csv"):
        shown(made.directory, tmp_path)


def test_show_diverged(tmp_path):
    correct = np.array(CORRECT[3])
    correct[2:] = -1
    made = placed(tmp_path, correct=correct, status=RunStatus.DIVERGED, diverged_at="task 2, step 17")
    text = shown(made.directory, tmp_path, chance=None)
    assert "WARNING: this run diverged at task 2, step 17" in text
    placed(tmp_path, correct=correct, status="diverged", warnings=["diverged at task 2"])
    assert shown(made.directory, tmp_path).count("WARNING") == 1
    assert "nan" not in text and "chance" not in text
    assert ["task", "1", "90.0", "20.0", "20.0", "90.0"] in [line.split() for line in text.splitlines()]
