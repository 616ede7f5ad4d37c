"""`python -m clrun` is `clrun`."""

from clrun.commands.run import cli

cli()
