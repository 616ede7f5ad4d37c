"""`python -m clrun.report` is `clrun-report`; it goes away in the next release."""

from clrun.commands.report import cli

cli()
