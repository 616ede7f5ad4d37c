"""`python -m clrun` is `clrun`."""

from clrun.cli import cli

cli()
