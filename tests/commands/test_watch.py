"""clrun-watch: what it shows of runs under way, interrupted, crashed and ended; from their files alone."""

import io
import json
import os
import re
import runpy
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import hold
from interrupting import InterruptingProgress
from rich.console import Console

from clrun.commands import watch
from clrun.config import composition
from clrun.runs import prepare, train
from clrun.system import locks
from clrun.system.errors import RunsFailed, UsageError
from clrun.terminal import watching
from clrun.terminal.watching import State, Watcher, seen

TINY = ("strategy=ewc", "iterations=2", "model.widths=[4]", "tasks=5", "device=cpu", "plots=false")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A folder of results, in it a run that has ended, and one that was interrupted in its third task."""
    outputs = tmp_path_factory.mktemp("outputs")
    done, half = (
        prepare.prepare(composition.compose(*TINY, f"seed={seed}", f"outputs={outputs}")) for seed in range(2)
    )
    train.train_run(done, quiet=True)
    with pytest.raises(KeyboardInterrupt):  # a report where a task begins, one a block, and one where it ends
        train.train_runs([half], progress=InterruptingProgress(8))
    return outputs, done.directory, half.directory


@pytest.fixture
def half(trained):
    """The folder of the interrupted run; what a test adds is removed."""
    before = {path.name for path in trained[2].iterdir()}
    yield trained[2]
    for path in trained[2].iterdir():
        if path.name not in before:
            path.unlink()


def shown(folder: Path, *arguments: str, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    watch.command([str(folder), *arguments], console)
    return console.file.getvalue()


def test_python_runs_it_as_a_module(monkeypatch, capsys):
    """As the other commands: python -m clrun.commands.watch, where no console script is installed."""
    monkeypatch.setattr(sys, "argv", ["clrun-watch", "--version"])
    monkeypatch.delitem(sys.modules, "clrun.commands.watch")
    with pytest.raises(SystemExit):
        runpy.run_module("clrun.commands.watch", run_name="__main__")
    assert capsys.readouterr().out.startswith("clrun ")


def test_a_terminal_that_cannot_draw_over_gets_the_table_once(trained):
    """With TERM=dumb a live table is shown never: the command would wait in silence until Ctrl-C."""
    console = Console(file=io.StringIO(), width=200, height=50, force_terminal=True, _environ={"TERM": "dumb"})
    watch.command([str(trained[0])], console, sleep=lambda _: pytest.fail("it looks again"))
    assert "interrupted" in console.file.getvalue() and "\x1b" not in console.file.getvalue()


def owner(**changes: object) -> str:
    mine = locks.this_process()
    return json.dumps({"host": mine.host, "space": mine.space, "pid": mine.pid, "started": mine.started} | changes)


# ---------------------------------------------------------------- states


def test_a_run_is_under_way_while_its_process_lives(half):
    now = time.time()
    assert seen(half, now, {}).state == State.INTERRUPTED
    (half / locks.NAME).write_text(owner())
    found = seen(half, now, {})
    assert (found.state, found.host) == (State.RUNNING, locks.this_process().host)
    (half / locks.NAME).write_text(owner(started="1"))  # a later process has its number
    assert seen(half, now, {}).state == State.INTERRUPTED


def test_a_run_of_another_host_is_under_way_while_its_lock_is_renewed(half):
    (half / locks.NAME).write_text(owner(host="node7", space="elsewhere"))
    heartbeat = (half / locks.NAME).stat().st_mtime
    assert seen(half, heartbeat + 100, {}).host == "node7"
    assert seen(half, heartbeat + watching.STALE_SECONDS + 1, {}).state == State.INTERRUPTED
    assert not list(half.glob(".lock*")), "nothing is written"


def test_how_far_it_is(half):
    """Tables are written every few seconds, and the checkpoint after every task."""
    found = seen(half, time.time(), {})
    assert (found.tasks_learnt, found.tasks, found.steps) == (2, 5, 4)
    matrix = pd.DataFrame({"after_task": range(3), "task_1": [0.1, 0.9, 0.7], "task_2": [0.2, 0.3, 0.9]})
    assert watching.last_average(matrix.assign(average=[0.15, 0.9, float("nan")])) == 0.9
    assert watching.checkpoint_place(half / "nowhere") is None


def test_the_time_left_is_that_of_the_tasks_before(half):
    (half / locks.NAME).write_text(owner())
    os.utime(half / "config.yaml", (1000, 1000))
    os.utime(half / "checkpoint.safetensors", (1020, 1020))
    assert seen(half, 1020, {}).seconds_left == pytest.approx(30)  # two tasks took 20 s, and three are left
    assert seen(half, 1027, {}).seconds_left == pytest.approx(23)
    assert seen(half, 9999, {}).seconds_left == 0


def test_a_run_that_has_just_begun_has_no_tables(tmp_path):
    directory = tmp_path / "runs" / "ewc" / "digits"
    directory.mkdir(parents=True)
    (directory / locks.NAME).write_text(owner())
    assert seen(directory, time.time(), {}).cells() == [
        "ewc/digits",
        "running",
        locks.this_process().host,
        "",
        "",
        "",
        "",
    ]
    (directory / "config.yaml").write_text("tasks: 7\nfirst_tasks: null\n")
    (directory / "costs.csv").write_text("half a li")
    (directory / "checkpoint.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0half")
    assert seen(directory, time.time(), {}).cells()[3] == "0/7"


# ---------------------------------------------------------------- the command


def test_once_prints_a_table(trained):
    outputs, done, half = trained
    text = shown(outputs, "--once")
    lines = {name: line for line in text.splitlines() for name in (done.name, half.name) if name in line}
    assert "interrupted" in lines[half.name] and " 2/5 " in lines[half.name]
    assert " done " in lines[done.name] and " 5/5 " in lines[done.name] and " 10 " in lines[done.name]
    assert "1 interrupted, 1 ended" in text


def test_where_there_is_no_terminal_it_is_once(trained, capsys):
    watch.command([str(trained[0])])
    assert trained[1].name in capsys.readouterr().out


def test_it_looks_again_until_ctrl_c(trained):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None, legacy_windows=False)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    watch.command([str(trained[0]), "--every", "0.5"], console, sleep)
    assert waited == [0.5] * 3 and console.file.getvalue().count(trained[2].name) >= 3


def page_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0])


def test_the_page_follows_the_runs(trained, half, tmp_path):
    """At every look it has the runs under way and says when it is loaded anew; the last time it stays as it is."""
    pytest.importorskip("plotly")
    (half / locks.NAME).write_text(owner())
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None, legacy_windows=False)
    seen_pages: list[dict] = []

    def sleep(seconds: float) -> None:
        seen_pages.append(page_of(tmp_path / "p.html") | {"waited": seconds})
        raise KeyboardInterrupt

    watch.command([str(trained[0]), "--html", str(tmp_path / "p.html")], console, sleep)
    for page, every in ((seen_pages[0], 10), (page_of(tmp_path / "p.html"), None)):
        (cells,) = [row for row in page["progress"]["rows"] if half.name in row[0]]
        assert cells[1:4] == ["running", locks.this_process().host, "2/5"] and page["progress"]["every"] == every
        assert [len(stream["runs"]) for stream in page["streams"]] == [1]


def test_the_page_of_runs_that_have_just_begun(half, tmp_path):
    pytest.importorskip("plotly")
    shutil.copytree(half, tmp_path / "runs" / "ewc" / half.name)
    watch.command([str(tmp_path), "--html", "--once"], Console(file=io.StringIO()))
    page = page_of(tmp_path / "report.html")
    assert page["streams"] == [] and page["progress"]["rows"][0][1] == "interrupted"


def test_crashed_runs_are_exit_code_1(half, trained):
    (half / "failed.txt").write_text("why\n")
    with pytest.raises(RunsFailed, match=r"1 run has crashed; why, is in .*failed\.txt"):
        shown(trained[0], "--once")
    (half / locks.NAME).write_text(owner())  # it is being tried again
    assert "running" in shown(trained[0], "--once")


def test_only_the_latest_of_many_are_shown(tmp_path, trained):
    for number in range(watching.SHOWN + 2):
        directory = tmp_path / "runs" / "ewc" / f"digits-{number:02}"
        directory.mkdir(parents=True)
        (directory / "summary.csv").write_bytes((trained[1] / "summary.csv").read_bytes())
        os.utime(directory / "summary.csv", (1000 + number, 1000 + number))
    text = shown(tmp_path, "--once")
    assert "12 ended, the latest 10 of which are shown" in text and "digits-11" in text and "digits-01" not in text
    assert "digits-00" in shown(tmp_path, "--once", "--all")


def test_a_run_that_is_trained_again_is_under_way(trained, neighbour):
    """Beside the summary.csv of its earlier training."""
    done, watcher = trained[1], Watcher(trained[0])
    assert done in watcher.look(0)[1]
    hold(done, neighbour)
    under_way, ended = watcher.look(0)
    assert (done, "running") in [(one.directory, str(one.state)) for one in under_way] and done not in ended
    (done / "lock.json").unlink()
    assert done in watcher.look(0)[1]


def test_a_run_that_is_removed_is_forgotten(tmp_path):
    directory = tmp_path / "runs" / "ewc" / "digits"
    directory.mkdir(parents=True)
    (directory / "summary.csv").write_text("damaged")
    watcher = Watcher(tmp_path)
    assert watcher.look(0) == ([], [directory]) and watching.ended(directory, {}).cells()[1] == "damaged"
    (directory / "summary.csv").unlink()
    directory.rmdir()
    assert watcher.look(0) == ([], [])


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--every", "0"], [".", "--every", "soon"]])
def test_mistakes_are_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        watch.command(arguments)


def test_a_narrow_terminal_shows_every_cell(trained):
    text = re.sub(r"\x1b\[[\d;]*m", "", shown(trained[0], "--once", width=60))
    assert (
        "2/5" in text
        and "5/5" in text
        and all(len(line) <= 60 for line in text.splitlines() if not line.startswith(str(trained[0])))
    )
