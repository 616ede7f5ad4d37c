"""`python -m clrun.tune` is `clrun-tune`; it goes away in the next release."""

import sys

# Python has put the current folder first: a file there, such as random.py, would take the place of a module. It comes
# last, and only if this package was found there.
if not sys.flags.safe_path:
    folder = sys.path.pop(0)
    if __file__.rsplit("/", 3)[0] == folder:
        sys.path.append(folder)

from clrun.commands.tune import main

main()
