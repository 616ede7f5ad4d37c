"""Lines for the user from where nothing else is printed."""

import sys
from contextlib import suppress


def announce(line: str) -> None:
    """Write a line to standard error, even where all else is quiet."""
    with suppress(OSError):  # there is no other place to say it, and a remark ends no work
        print(f"clrun: {line}\n", end="", file=sys.stderr, flush=True)  # in one piece: workers share standard error
