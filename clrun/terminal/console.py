"""What a run says on the terminal. Tables are read from the CSVs of the run, so that a finished run can be shown again.

On a terminal: colours and a progress bar. In a pipe: plain lines without escape codes, 240 characters wide.
"""

import pandas as pd
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 240


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal, or PIPE_WIDTH characters where there is none; a quiet one says nothing."""
    console = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


# Numbers


def percent(fraction: float, unit: str = "") -> str:
    """0.9812 -> '98.1'; nan -> ''."""
    return "" if pd.isna(fraction) else f"{round(100 * fraction, 1) + 0.0:.1f}{unit}"


def mean_and_deviation(values: pd.Series) -> str:
    """'98.1 ± 0.4' in percent: mean and standard deviation (n-1) of the values that are there."""
    spread = percent(values.std())
    return f"{percent(values.mean())} ± {spread}" if spread else percent(values.mean())


# One run


def say(console: Console, line: str, style: str = "") -> None:
    """One line, never broken (a path stays one), nothing in it taken for markup."""
    console.print(Text(line, style), soft_wrap=True)


def warn(console: Console, text: str, style: str = "bold yellow") -> None:
    """A warning that cannot be overlooked: a panel on a terminal, a line that begins with WARNING in a pipe."""
    if console.is_terminal:
        console.print(Panel(Text(text), title="WARNING", title_align="left", border_style=style, style=style))
    else:
        say(console, f"WARNING: {text}")


def titled(title: str) -> Table:
    """An empty table, as narrow as it can be: eight columns of numbers must fit into 80 characters."""
    layout = {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False}
    return Table(title=title, title_justify="left", title_style="bold", **layout)


# Many runs


# Progress
