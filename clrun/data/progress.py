"""What a reader prints while it reads: a bar on a terminal, and how long it took where nobody watches."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clrun.system.environment import color_system

# Seconds from which on it is said how long reading took.
WORTH_SAYING = 1.0


@contextmanager
def progress_bar(what: str, count: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal, which the function that is yielded moves on by a number of samples."""
    if not sys.stderr.isatty():
        yield lambda samples: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, color_system=color_system()), transient=True) as bar:
        task = bar.add_task(what, total=count)
        yield lambda samples: bar.advance(task, samples)


def print_seconds(dataset: str, what: str, start: float, least: float = 0.0) -> None:
    """Print how long it took since `start` (of time.monotonic), where no bar has shown it and it is at least `least`
    seconds. Called when nothing is refused: a refusal stands alone."""
    seconds = time.monotonic() - start
    if not sys.stderr.isatty() and seconds >= least:
        print(f"{dataset}: {what} took {seconds:.1f} s", file=sys.stderr)
