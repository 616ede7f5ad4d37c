"""The progress of one run, in a pipe and on a terminal."""

import io
import re

from rich.console import Console

from clrun.terminal.progress import TerminalProgress


def test_progress_says_whose_it_is():
    console = Console(file=io.StringIO(), width=240)
    with TerminalProgress(console, tasks=2, name="ewc lambda=3 seed=0") as progress:
        progress.begin_task(1, steps=10)
        progress.end_task(1, [0.981])
    told = re.sub(r"in \d+\.\d s", "in S s", console.file.getvalue())
    assert told == "ewc lambda=3 seed=0: task 1/2 learnt in S s: 98.1 %\n"


def test_progress_in_a_pipe():
    console = Console(file=io.StringIO(), width=240)
    with TerminalProgress(console, tasks=2) as progress:
        for stage, accuracies in [(1, [0.981]), (2, [0.9, float("nan")])]:
            progress.begin_task(stage, steps=100)
            progress.advance(50)
            progress.advance(50)
            progress.end_task(stage, accuracies)
    told = re.sub(r"in \d+\.\d s", "in S s", console.file.getvalue())
    assert told == "task 1/2 learnt in S s: 98.1 %\ntask 2/2 learnt in S s: 90.0 - %\n"


def test_progress_of_tasks_learnt_together():
    console = Console(file=io.StringIO(), width=240)
    with TerminalProgress(console, tasks=3) as progress:
        progress.end_task(1, [0.981, 0.9, 1.0])
    assert re.fullmatch(r"3 tasks together learnt in [\d.]+ s: 98.1 90.0 100.0 %\n", console.file.getvalue())


def test_progress_on_a_terminal():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with TerminalProgress(console, tasks=1) as progress:
        progress.begin_task(1, steps=80)
        progress.advance(30)
        progress.bar.refresh()
        progress.end_task(1, [0.5] * 20)
    text = console.file.getvalue()
    assert "30/80" in text and "mean 50.0 %" in text
