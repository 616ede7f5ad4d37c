"""`python -m clrun.tune` is `clrun-tune`; it goes away in the next release."""

from clrun.commands.tune import main

main()
