"""Escape codes on the terminal, and where there are none."""

import pytest

from clrun.config import help
from clrun.terminal import console


@pytest.mark.parametrize("make", [console.make_console, help.make_console])
def test_no_color_leaves_no_escape_code_in_what_is_printed(make, monkeypatch, capsys):
    """Also bold and dim, which rich leaves; FORCE_COLOR stands for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    make().print("x", style="bold red")
    monkeypatch.setenv("NO_COLOR", "1")
    make().print("x", style="bold red")
    coloured, plain = capsys.readouterr().out.splitlines()
    assert "\x1b[" in coloured and plain == "x"


def test_a_dumb_terminal_is_as_wide_as_it_is(monkeypatch, capsys):
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "50"}.items():
        monkeypatch.setenv(name, value)
    console.make_console().print("word " * 20)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50
