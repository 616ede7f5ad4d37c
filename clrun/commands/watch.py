"""The command `clrun-watch [FOLDER]`: how far the runs in a folder of results are, from their files alone.

It shows tasks learnt, optimizer steps, the accuracy on the tasks learnt so far in percent, and the time that is likely
left, of runs of any process and host, also of the jobs of a cluster. Tables of a run are written when a task ends, at
most every five seconds. Ctrl-C ends it; the runs go on.

Exit codes: 0 no run has crashed, 1 some have, 2 the user's mistake.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from clrun import __version__
from clrun.commands.console import Parser, end_with
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.messages import announce
from clrun.terminal import watching
from clrun.terminal.console import make_console
from clrun.terminal.fitting import Cells, fitted, lines_of, print_table
from clrun.terminal.watching import State, Watcher

NAMED = 5  # crashed runs, or damaged files, in a message


def main() -> NoReturn:
    """Run the console script `clrun-watch`."""
    end_with(lambda _: command(sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = Parser(prog="clrun-watch", description=__doc__, allow_abbrev=False)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="what clrun's outputs= named")
    flags.add_argument("--once", action="store_true", help="print the table and end")
    flags.add_argument("--all", action="store_true", help="also all runs that have ended, and not the latest ten alone")
    flags.add_argument("--every", type=seconds, default=2.0, metavar="SECONDS", help="between two looks (default: 2)")
    return flags


def seconds(typed: str) -> float:
    """Return a typed number of seconds. Raise ValueError unless it is positive and finite."""
    value = float(typed)
    if not 0 < value < float("inf"):
        raise ValueError(typed)
    return value


def command(argv: Sequence[str], console: Console | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the table, again and again on a terminal. Raise RunsFailed at the end where runs have crashed.

    console: by default that of standard output. sleep: waits for so many seconds.
    """
    arguments = parser().parse_args(list(argv))
    if next(arguments.folder.glob("runs/*/*"), None) is None:
        raise UsageError(f"{arguments.folder}: there are no runs there; name the folder that clrun's outputs= named.")
    shown, watcher = console or make_console(), Watcher(arguments.folder)

    def look() -> Cells:
        return watching.cells_of(arguments.folder, watcher, time.time(), arguments.all)

    if arguments.once or not shown.is_terminal:
        print_table(shown, look())
    else:
        watch(shown, look, lambda: sleep(arguments.every))
    report_unreadable(watcher)
    report_crashed(watcher)


def watch(console: Console, look: Callable[[], Cells], wait: Callable[[], None]) -> None:
    """Show what `look` returns until Ctrl-C, after each of which `wait` waits."""
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(drawn(look(), console.width), refresh=True)
                wait()
    except KeyboardInterrupt:
        return


def drawn(cells: Cells, width: int) -> Group:
    """Return a table that fits into a width."""
    lines = [line for part in fitted(width, cells) for line in lines_of(part)]
    return Group(Text(cells.title), *lines)


def report_unreadable(watcher: Watcher) -> None:
    """Say which files of the runs that were shown cannot be read, and what to type."""
    sentences = list(watcher.unreadable.values())
    for sentence in sentences[:NAMED]:
        announce(sentence)
    if len(sentences) > NAMED:
        announce(f"{len(sentences) - NAMED} more files cannot be read.")


def report_crashed(watcher: Watcher) -> None:
    """Raise RunsFailed where runs have crashed and nobody is training them again."""
    crashed = [one.directory for one in watcher.look(time.time())[0] if one.state == State.CRASHED]
    if crashed:
        named = "; ".join(str(directory / "failed.txt") for directory in crashed[:NAMED])
        more = f"; and {len(crashed) - NAMED} more" if len(crashed) > NAMED else ""
        which = "1 run has crashed" if len(crashed) == 1 else f"{len(crashed)} runs have crashed"
        raise RunsFailed(f"{which}; why, is in {named}{more}. The same command as before tries them again.")
