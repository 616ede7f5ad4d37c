"""The command `clrun-watch [FOLDER]`: how far the runs in a folder of results are, from their files alone.

It shows tasks learnt, optimizer steps, the accuracy on the tasks learnt so far in percent, and the time that is likely
left, of runs of any process and host, also of the jobs of a cluster. Tables of a run are written when a task ends, at
most every five seconds. Ctrl-C ends it; the runs go on. With --html it also writes the page of a report again and
again, with the runs under way; a browser that shows the page follows.

Exit codes: 0 no run has crashed, 1 some have, 2 the user's mistake.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from clrun import __version__
from clrun.commands.console import Parser, end_with
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.messages import announce
from clrun.system.signals import graceful_termination
from clrun.terminal import watching
from clrun.terminal.console import make_console
from clrun.terminal.fitting import Cells, fitted, lines_of, print_table
from clrun.terminal.watching import State, Watcher

if TYPE_CHECKING:
    from clrun.report.watched_page import WatchedPage

EVERY, EVERY_PAGE = 2.0, 10.0  # seconds between two looks, of a table and with a page

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
    flags.add_argument(
        "--every",
        type=seconds,
        metavar="SECONDS",
        help=f"between two looks (default: {EVERY:g}; with --html {EVERY_PAGE:g})",
    )
    flags.add_argument(
        "--html", nargs="?", const="", metavar="FILE",
        help="also write the page of clrun-report --html, with the runs under way, at every look (default: report.html "
        "in the folder); needs plotly",
    )  # fmt: skip
    return flags


def seconds(typed: str) -> float:
    """Return a typed number of seconds. Raise ValueError unless it is positive and finite."""
    value = float(typed)
    if not 0 < value < float("inf"):
        raise ValueError(typed)
    return value


def command(argv: Sequence[str], console: Console | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the table, again and again on a terminal that can draw over it (TERM=dumb cannot). Raise RunsFailed at the
    end where runs have crashed.

    console: by default that of standard output. sleep: waits for so many seconds.
    """
    arguments = parser().parse_args(list(argv))
    if next(arguments.folder.glob("runs/*/*"), None) is None:
        raise UsageError(f"{arguments.folder}: there are no runs there; name the folder that clrun's outputs= named.")
    shown, watcher = console or make_console(), Watcher(arguments.folder)
    every = arguments.every or (EVERY if arguments.html is None else EVERY_PAGE)
    page = None if arguments.html is None else page_of(arguments.folder, arguments.html, every)

    def look(last: bool = False) -> Cells:
        cells = watching.cells_of(arguments.folder, watcher, time.time(), arguments.all)
        if page is not None:
            page.write(cells, watcher.ended, last)
        return cells

    if arguments.once or (page is None and not shown.is_interactive):
        print_table(shown, look(last=True))
    else:
        follow(shown, look, lambda: sleep(every))
    if page is not None:
        announce(f"Written: {page.path}; a double click opens it.")
    report_unreadable(watcher)
    report_crashed(watcher)


def follow(console: Console, look: Callable[[bool], Cells], wait: Callable[[], None]) -> None:
    """Look until Ctrl-C, and wait after each look; on a terminal, show what there is. Look a last time also where the
    process is told to end, so that a page is left as it stays.

    look: returns the table; whether it is the last time.
    """
    try:
        with graceful_termination(), suppress(KeyboardInterrupt):
            if console.is_interactive:
                watch(console, look, wait)
            while True:
                look(False)
                wait()
    finally:
        look(True)


def watch(console: Console, look: Callable[[bool], Cells], wait: Callable[[], None]) -> NoReturn:
    """Show what `look` returns, again and again."""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(drawn(look(False), console.width), refresh=True)
            wait()


def page_of(folder: Path, typed: str, every: float) -> "WatchedPage":
    """Return the page that --html asks for. typed: what follows it. Raise UsageError where that is no place for a page,
    or plotly is missing."""
    from clrun.report.page import page_path  # pandas and Matplotlib
    from clrun.report.watched_page import WatchedPage

    return WatchedPage(page_path(folder, typed), folder, every)


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


if __name__ == "__main__":
    main()
