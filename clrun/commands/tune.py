"""The command `clrun-tune key=value ... 'key=interval(1,9)' trials=30`, which searches for the best values of keys.

The search itself is in clrun/tune/search.py, what may be searched in clrun/tune/space.py.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from clrun import __version__
from clrun.commands import console, run
from clrun.config import catalog
from clrun.system.errors import UsageError
from clrun.tune.question import SEARCH_KEYS, VALIDATION, read

EXAMPLES = {
    "clrun-tune strategy=ewc 'lambda=log(1,1e6)' trials=30": "one knob, drawn evenly in its logarithm",
    "clrun-tune strategy=si 'c=log(1e-3,10)' 'lr=log(1e-4,1e-2)' seeds=3 tune_tasks=3": "two, on the first three tasks",
    "clrun-tune 'strategy=ewc,mas' 'lambda=1,10,100' scenario=domain": "a list is tried from end to end",
}

GRAMMAR = {
    "KEY=VALUE": "as clrun takes it; part of every trial",
    "'KEY=A,B,C'": "one of these; also 'KEY=choice(A,B,C)' and 'KEY=range(2,10,2)'",
    "'KEY=interval(LOW,HIGH)'": "a number between these; a whole one where the key is",
    "'KEY=log(LOW,HIGH)'": "the same, drawn evenly in its logarithm; Hydra's own 'KEY=tag(log, interval(LOW,HIGH))'",
}


def main() -> NoReturn:
    """Run the console script `clrun-tune`."""
    console.end_with(lambda _: command(sys.argv[1:]))


def command(argv: Sequence[str]) -> None:
    """Do what the arguments ask for."""
    arguments = parser().parse_intermixed_args(argv)
    if arguments.help:
        show_help()
        return
    if find_spec("optuna") is None:
        raise UsageError(
            "clrun-tune searches with optuna, which is not installed here; type pip install 'clrun[tune]'."
        )
    question = read(arguments, catalog.with_folder(arguments.config_dir))
    from clrun.tune.search import searching  # once nothing of the question can be refused any more

    with run.temporary_folder("a search"), searching(question) as search:
        search.run()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = console.KeyParser(prog="clrun-tune", add_help=False, allow_abbrev=False)
    flags.add_argument("-h", "--help", action="store_true")
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("-cd", "--config-dir")
    flags.add_argument("overrides", nargs="*")
    return flags


def show_help() -> None:
    """Print the help of clrun-tune."""
    from clrun.config import help

    console = help.make_console()
    typed = "clrun-tune key=value ... 'key=interval(low,high)'"
    help.say(console, f"A search by validation accuracy: [bold]{typed}[/bold]\n")
    help.section(console, "Examples", EXAMPLES)
    help.section(console, "What is typed", GRAMMAR)
    help.section(console, "Keys of a search", dict(help.key_line(*item) for item in SEARCH_KEYS.items()))
    help.say(
        console,
        f"All other keys are clrun's (clrun --help). validation is {VALIDATION} unless typed. The same command again "
        "goes on, also with more trials. At the end stands the clrun command of the winner.",
    )


if __name__ == "__main__":
    main()
