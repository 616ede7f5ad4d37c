"""The former path of `clrun.commands.run`, also for `python -m clrun.cli`; it goes away in the next release."""

from clrun.commands.run import cli

__all__ = ["cli"]

if __name__ == "__main__":
    cli()
