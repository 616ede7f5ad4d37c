"""The command `clrun key=value ...`: Hydra composes the settings, clrun checks them, and the run is trained.

Exit codes: 0 done, 1 a run crashed, 2 the user's mistake, 129 hung up, 130 interrupted, 143 terminated.
Hydra, torch and pandas are imported where they are needed, since help, mistakes and Tab completion need no torch.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from clrun.commands.console import KeyParser, answer, end_with, exit_unless_done
from clrun.system.errors import RunsFailed, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from clrun.config.catalog import Catalog
    from clrun.runs.prepared import Prepared
    from clrun.sweep.cluster import Cluster


def cli() -> NoReturn:
    """Run the console script `clrun`."""
    end_with(lambda wants_trace: command(sys.argv[1:], wants_trace))


# ---------------------------------------------------------------- the command line


def parser() -> KeyParser:
    """Return the parser of clrun's flags: those of Hydra's (hydra.cc, "Hydra's command line flags") that apply here."""
    flags = KeyParser(prog="clrun", add_help=False, allow_abbrev=False)
    for short, long in {"-h": "--help", "-r": "--run", "-m": "--multirun", "-sc": "--shell-completion"}.items():
        flags.add_argument(short, long, action="store_true")
    for long in ("--version", "--hydra-help", "--resolve"):
        flags.add_argument(long, action="store_true")
    flags.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    flags.add_argument("-p", "--package")
    flags.add_argument("-cd", "--config-dir")
    parts = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    flags.add_argument("-i", "--info", nargs="?", const="all", choices=parts)
    flags.add_argument("overrides", nargs="*")
    return flags


def command(arguments: Sequence[str], wants_trace: bool = False) -> None:
    """Do what the arguments ask for. wants_trace: whether a mistake of the user's is shown with its traceback."""
    asked = parser().parse_intermixed_args(arguments)
    if asked.version:
        from clrun import __version__

        print(f"clrun {__version__}")
        return
    catalog = catalog_of(asked)
    if asked.help:
        from clrun.config import help

        help.show(catalog)
        return
    refuse_together(asked)
    if not (asked.shell_completion or asked.hydra_help):
        from clrun.config import check_keys

        check_keys.refuse(asked.overrides, asked.multirun, catalog)
    from clrun.config.composition import run_with_hydra

    if may_sweep(asked):
        from clrun.sweep import launcher

        launcher.register()
    with hydra_arguments(asked) as arguments:
        run_with_hydra(catalog, arguments, lambda cfg: exit_unless_done(answer(lambda: single(cfg), wants_trace)))


def refuse_together(asked: argparse.Namespace) -> None:
    """Raise UsageError for flags that exclude each other."""
    shows = [f"--{flag}" for flag in ("cfg", "info") if getattr(asked, flag) is not None]
    if asked.multirun and (shows or asked.resolve):
        flag = (shows or ["--resolve"])[0]
        raise UsageError(f"{flag} shows one run, and -m asks for many; leave -m out, and type one value for each key.")
    if len(shows) == 2:
        raise UsageError("--cfg and --info are two answers; type one of them.")
    if asked.resolve and asked.cfg is None:
        raise UsageError("--resolve belongs to --cfg; type --cfg job --resolve.")


def catalog_of(asked: argparse.Namespace) -> "Catalog":
    """Return the catalogue of clrun's folder and --config-dir, which completion reads from the line to complete."""
    from clrun.config import catalog

    if asked.shell_completion and asked.config_dir is None:
        asked.config_dir = config_dir_of(os.environ.get("COMP_LINE", ""))
    if asked.config_dir is not None:
        asked.config_dir = os.path.expanduser(asked.config_dir)  # Hydra does not expand ~
    return catalog.with_folder(asked.config_dir)


def config_dir_of(line: str) -> str | None:
    """Return the --config-dir of a command line that may be unfinished; None if there is none."""
    try:
        return parser().parse_known_intermixed_args(shlex.split(line)[1:])[0].config_dir
    except (ValueError, UsageError):  # a quote or a flag is still open
        return None


def sweeps(asked: argparse.Namespace) -> bool:
    """Return whether the command line asks for a sweep."""
    return asked.multirun or any(text.startswith("hydra.mode=") for text in asked.overrides)


def may_sweep(asked: argparse.Namespace) -> bool:
    """Return whether Hydra may need clrun's launcher: for a sweep, even one that a user's yaml asks for, or to list it.

    A single run does not import the launcher.
    """
    hydra_keys = any(text.lstrip("+~").startswith("hydra") for text in asked.overrides)
    return bool(asked.multirun or hydra_keys or asked.config_dir or asked.info or asked.hydra_help)


@contextmanager
def hydra_arguments(asked: argparse.Namespace) -> Iterator[list[str]]:
    """Yield Hydra's command line: flags and overrides, and for a sweep a temporary folder for its multirun.yaml."""
    switches = ("hydra_help", "run", "multirun", "resolve", "shell_completion")
    flags = [f"--{name.replace('_', '-')}" for name in switches if getattr(asked, name)]
    for name in ("cfg", "package", "info", "config_dir"):
        flags += [f"--{name.replace('_', '-')}={getattr(asked, name)}"] if getattr(asked, name) is not None else []
    with tempfile.TemporaryDirectory(prefix="clrun-") as folder:
        yield [*flags, *asked.overrides, *([f'hydra.sweep.dir="{folder}"'] if sweeps(asked) else [])]


# ---------------------------------------------------------------- one run


def single(cfg: "DictConfig") -> None:
    """Check a composed configuration, train its run if it is not finished, and print its tables."""
    from clrun.config.check_values import check
    from clrun.config.composition import composed_from

    catalog, typed = composed_from()
    settings = check(cfg, catalog=catalog, typed=typed)

    # What can be refused without torch has been refused; it is imported from here on.
    from clrun.results import run_files
    from clrun.runs import prepare, show
    from clrun.sweep import cluster

    where = cluster.of([cfg], catalog)
    prepared = prepare.prepare(settings)
    if prepared.finished and not settings["rerun"]:
        device = run_files.summary_of(prepared.directory)["device"]
        print(f"Done already, on {device}: {prepared.directory} (rerun=true trains it again)")
    else:
        show.warn([prepared])
        train_here_or_on_cluster(prepared, where)
    if prepared.finished:
        show.show(prepared)


def train_here_or_on_cluster(prepared: "Prepared", where: "Cluster | None") -> None:
    """Train one run, here or as a job of a cluster; the error of a crash names the file that describes it."""
    from clrun.runs import train
    from clrun.sweep import cluster

    if where is not None:
        for reason in cluster.submit([prepared], where).values():
            raise RunsFailed(f"{reason} ({prepared.directory / 'failed.txt'})")
        return
    try:
        train.train_run(prepared, quiet=False)
    except Exception as error:
        error.add_note(f"The run crashed; this is written to {prepared.directory / 'failed.txt'}.")
        raise


if __name__ == "__main__":
    cli()
