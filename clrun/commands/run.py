"""`clrun key=value ...`: Hydra composes, the configuration is checked, and a mistake is one paragraph and exit code 2.

Exit codes: 0 done, 1 a run crashed, 2 the user's mistake, 129 hung up, 130 interrupted, 143 terminated.
Hydra, torch and pandas are imported only where they are needed: help, mistakes and Tab completion answer without torch.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
    """The console script."""
    end_with(lambda wants_trace: command(sys.argv[1:], wants_trace))


# ---------------------------------------------------------------- the command line


def parser() -> KeyParser:
    """Those of Hydra's flags (hydra.cc, "Hydra's command line flags") that make sense here."""
    flags = KeyParser(prog="clrun", add_help=False, allow_abbrev=False)
    for short, long in {"-h": "--help", "-r": "--run", "-m": "--multirun", "-sc": "--shell-completion"}.items():
        flags.add_argument(short, long, action="store_true")
    for long in ("--version", "--hydra-help", "--resolve"):
        flags.add_argument(long, action="store_true")
    flags.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    flags.add_argument("-p", "--package")
    flags.add_argument("-cd", "--config-dir")
    told = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    flags.add_argument("-i", "--info", nargs="?", const="all", choices=told)
    flags.add_argument("overrides", nargs="*")
    return flags


def command(arguments: Sequence[str], wants_trace: bool = False) -> None:
    """Do what the arguments say."""
    asked = parser().parse_intermixed_args(arguments)
    if asked.version:
        from clrun import __version__

        print(f"clrun {__version__}")
        return
    known = catalogue(asked)
    if asked.help:
        from clrun.config import help

        help.show(known)
        return
    refuse_together(asked)
    if not (asked.shell_completion or asked.hydra_help):
        from clrun.config import overrides

        overrides.refuse(asked.overrides, asked.multirun, known)
    with hydra_arguments(asked) as flags, replaced_arguments(flags):
        compose(known, lambda cfg: exit_unless_done(answer(lambda: single(cfg), wants_trace)))


def refuse_together(asked: argparse.Namespace) -> None:
    """Flags of which one excludes another."""
    shows = [f"--{flag}" for flag in ("cfg", "info") if getattr(asked, flag) is not None]
    if asked.multirun and (shows or asked.resolve):
        flag = (shows or ["--resolve"])[0]
        raise UsageError(f"{flag} shows one run, and -m asks for many; leave -m out, and type one value for each key.")
    if len(shows) == 2:
        raise UsageError("--cfg and --info are two answers; type one of them.")
    if asked.resolve and asked.cfg is None:
        raise UsageError("--resolve belongs to --cfg; type --cfg job --resolve.")


def catalogue(asked: argparse.Namespace) -> "Catalog":
    """Ours and that of the user's --config-dir, which completion finds in the line being completed."""
    from clrun.config import catalog

    if asked.shell_completion and asked.config_dir is None:
        asked.config_dir = config_dir_in(os.environ.get("COMP_LINE", ""))
    if asked.config_dir is not None:
        asked.config_dir = os.path.expanduser(asked.config_dir)  # Hydra knows no ~
    return catalog.with_folder(asked.config_dir)


def config_dir_in(line: str) -> str | None:
    """The --config-dir of a command line that may be unfinished."""
    try:
        return parser().parse_known_intermixed_args(shlex.split(line)[1:])[0].config_dir
    except (ValueError, UsageError):  # a quote or a flag is still open
        return None


@contextmanager
def hydra_arguments(asked: argparse.Namespace) -> Iterator[list[str]]:
    """What Hydra is told: the flags, then the overrides, and for a sweep a folder to drop its multirun.yaml into."""
    switches = ("hydra_help", "run", "multirun", "resolve", "shell_completion")
    flags = [f"--{name.replace('_', '-')}" for name in switches if getattr(asked, name)]
    for name in ("cfg", "package", "info", "config_dir"):
        flags += [f"--{name.replace('_', '-')}={getattr(asked, name)}"] if getattr(asked, name) is not None else []
    with tempfile.TemporaryDirectory(prefix="clrun-") as folder:
        sweeps = asked.multirun or any(text.startswith("hydra.mode=") for text in asked.overrides)
        yield [*flags, *asked.overrides, *([f'hydra.sweep.dir="{folder}"'] if sweeps else [])]


@contextmanager
def replaced_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """hydra.main reads sys.argv."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def compose(known: "Catalog", run: Callable[["DictConfig"], None]) -> None:
    """Give everything to Hydra, which calls `run` for a single run and our launcher for a sweep."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from clrun.sweep import launcher
    from clrun.system.paths import CONF

    launcher.register()
    ConfigStore.instance().store(name="knobs", node=known.nulls())
    # 1.3 wants to be told that its newest behaviour is meant; 1.4 warns of being told anything
    options = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    hydra.main(config_path=str(CONF), config_name="config", **options)(run)()


# ---------------------------------------------------------------- one run


def single(cfg: "DictConfig") -> None:
    """Check, train if it is not finished, and show."""
    from clrun.config.check import check
    from clrun.config.composition import composed_from

    known, typed = composed_from()
    settings = check(cfg, known=known, typed=typed)

    # What can be refused without torch has been refused.
    from clrun.results import run_files
    from clrun.runs import prepare, show
    from clrun.sweep import cluster

    where = cluster.of([cfg], known)
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
    """Train one run, here or as a job; a crash says where it is written."""
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
