"""The former path of `clrun.commands.predict`, also for `python -m clrun.predict`; it goes away in the next release."""

from clrun.commands.predict import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
