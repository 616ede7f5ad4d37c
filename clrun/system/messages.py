"""Lines for the user from where nothing else is printed."""

import sys


def announce(line: str) -> None:
    """Write a line to standard error, even where all else is quiet."""
    sys.stderr.write(f"clrun: {line}\n")  # in one piece, since workers share standard error
    sys.stderr.flush()
