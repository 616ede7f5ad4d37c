"""Consoles, and the pieces of which everything on the terminal consists: lines, warnings, tables, percentages.

On a terminal there are colours and a progress bar. In a pipe there are plain lines without escape codes, up to
240 characters wide. With NO_COLOR nothing is coloured or bold, and the bar stays; on a terminal with TERM=dumb there is
no escape code at all, and so no bar. Tables are read from the CSV files of a run, so that a finished run can be shown
again.
"""

import shutil

import pandas as pd
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from clrun.system.environment import color_system

PIPE_WIDTH = 240  # characters of a line where there is no terminal


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console as wide as the terminal, or PIPE_WIDTH characters where there is none; a quiet one prints
    nothing."""
    console = Console(
        stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False, color_system=color_system()
    )
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    elif console.is_dumb_terminal:
        console.width = shutil.get_terminal_size().columns  # rich takes it to be 80, whatever it is
        console.height = shutil.get_terminal_size().lines
    return console


# ---------------------------------------------------------------- numbers as text


def percent(fraction: float, unit: str = "") -> str:
    """Return a fraction in percent, 0.9812 as '98.1'; nan as ''."""
    return "" if pd.isna(fraction) else f"{round(100 * fraction, 1) + 0.0:.1f}{unit}"


def with_deviation(mean: str, deviation: str) -> str:
    """Return '98.1 ± 0.4' from the texts of a mean and of a standard deviation; the mean alone if that is empty."""
    return f"{mean} ± {deviation}" if deviation else mean


def mean_and_deviation(fractions: pd.Series) -> str:
    """Return mean ± standard deviation (with n - 1) in percent, such as '98.1 ± 0.4'; nan is left out of both."""
    return with_deviation(percent(fractions.mean()), percent(fractions.std()))


# ---------------------------------------------------------------- lines


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print one line that is never wrapped, so that a path stays one word, and whose brackets are no markup."""
    console.print(Text(line, style), soft_wrap=True)


def warn(console: Console, text: str, style: str = "bold yellow") -> None:
    """Print a warning: as a panel on a terminal, as a line that begins with WARNING in a pipe."""
    if console.is_terminal:
        console.print(Panel(Text(text), title="WARNING", title_align="left", border_style=style, style=style))
    else:
        print_line(console, f"WARNING: {text}")
