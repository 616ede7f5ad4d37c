"""The lines by which a sweep says what its workers are at."""

import io

import pytest
from rich.console import Console

from clrun.sweep import workers
from clrun.sweep.messages import Advanced, TaskBegan
from clrun.terminal.progress import Line, View, clock


def test_a_line_says_what_a_worker_is_at():
    now = [100.0]
    line = Line("ewc", tasks=5, samples=32, now=lambda: now[0])
    assert line.cells() == ["ewc", "starting", "", "", ""]
    line.begin_task(1, 50)
    line.advance(50)
    now[0] += 10
    line.begin_task(2, 50)
    line.advance(20)
    line.advance(5)
    now[0] += 2
    # 12 s for 1.5 of 5 tasks leave 28 s; 25 steps of 32 samples in 2 s
    assert line.cells() == ["ewc", "2/5", "25/50", "400", "0:28"]


def test_on_a_terminal_finished_runs_stand_above_a_line_for_each_worker():
    console = Console(force_terminal=True, width=100, file=io.StringIO(), color_system=None)
    with View(console, runs=3) as view:
        view.begin("1", Line("ewc seed=0", 5, 32))
        view.begin("2", Line("ewc seed=1", 5, 32))
        view.begin_task("1", 4, 77)
        view.ended("2", ["ewc seed=1: done"])
        view.live.refresh()
    text = console.file.getvalue()
    assert text.index("[1/3] ewc seed=1: done") < text.rindex("4/5") < text.rindex("1 of 3 runs done")
    assert "0/77" in text


def test_a_long_name_gives_way_to_the_figures():
    now = [0.0]
    console = Console(force_terminal=True, width=80, file=io.StringIO(), color_system=None)
    with View(console, runs=3) as view:
        name = "ewc lambda=400 gamma=1 fisher=empirical fisher_samples=1000 seed=123456"
        view.begin("1", Line(name, 5, 32, now=lambda: now[0]))
        view.begin_task("1", 4, 77000)
        now[0] = 100.0
        view.advance("1", 60000)
        view.live.refresh()
    shown = [line.split() for line in console.file.getvalue().splitlines() if "60000/77000" in line][-1]
    assert shown[:2] == ["1", "ewc"] and "…" in " ".join(shown)
    assert shown[-4:] == ["4/5", "60000/77000", "19,200", "0:32"]


def test_in_a_pipe_there_are_plain_lines_alone():
    console = Console(width=60, file=io.StringIO())
    with View(console, runs=1) as view:
        view.begin("1", Line("ewc seed=0", 5, 32))
        view.advance("1", 4)
        view.ended("1", ["a name as long as this one is, which is not broken into two lines: done"])
    assert console.file.getvalue() == "[1/1] a name as long as this one is, which is not broken into two lines: done\n"


def test_a_relay_speaks_now_and_then():
    sent = []
    relay = workers.Relay(sent.append)
    with relay:
        relay.begin_task(1, 1000)
        for _ in range(1000):
            relay.advance(1)
        relay.end_task(1, [0.5])
    assert sent[0] == TaskBegan(1, 1000) and len(sent) < 100
    assert sum(message.steps for message in sent if isinstance(message, Advanced)) == 1000


@pytest.mark.parametrize("seconds, said", [(None, ""), (0.4, "0:00"), (75, "1:15"), (3725, "1:02:05")])
def test_clock(seconds, said):
    assert clock(seconds) == said
