"""The former path of `clrun.commands.verify`, also for `python -m clrun.verify`; it goes away in the next release."""

from clrun.commands.verify import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
