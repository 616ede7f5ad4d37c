"""The process that `clrun.run` starts: the command `clrun -m`, whose mistakes go into a file in place of the terminal.

It is a process of its own so that a notebook or a script keeps its signals, its threads and its settings of torch, can
be interrupted, and need not protect its main module from being imported by workers.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from clrun.commands.console import end_with, mistake
from clrun.commands.run import command
from clrun.system.errors import RunsFailed


def cli() -> NoReturn:
    """Run `python -m clrun.api.child FOLDER ARGUMENT ...`: do what clrun does with the arguments, and write into FOLDER
    the folders of the runs (`folders`) and, where something is wrong, what (`mistake.json`)."""
    folder, *arguments = sys.argv[1:]
    end_with(lambda _: noting(Path(folder), arguments))


def noting(folder: Path, arguments: Sequence[str]) -> None:
    """Do what clrun does with the arguments. Exit with clrun's code where something is wrong that has a paragraph."""
    try:
        command([*arguments, f'hydra.launcher.folders="{folder / "folders"}"'])
    except Exception as error:  # any: one without a paragraph is raised again
        failed = isinstance(error, RunsFailed)
        paragraph = str(error) if failed else mistake(error)
        if paragraph is None:
            raise
        (folder / "mistake.json").write_text(json.dumps({"failed": failed, "text": paragraph}), encoding="utf-8")
        sys.exit(1 if failed else 2)


if __name__ == "__main__":
    cli()
