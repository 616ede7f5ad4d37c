from clrun.report.command import cli

cli()
