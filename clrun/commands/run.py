"""The command `clrun key=value ...`: Hydra composes the settings, clrun checks them, and the run is trained.

Exit codes: 0 done, 1 a run crashed or something could not be written, 2 the user's mistake, 129 hung up,
130 interrupted, 143 terminated.
Hydra, torch and pandas are imported where they are needed, since help, mistakes and Tab completion need no torch.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
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
    for long in ("--version", "--hydra-help", "--resolve", "--check", "--cite"):
        flags.add_argument(long, action="store_true")
    flags.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    flags.add_argument("-p", "--package")
    flags.add_argument("-cd", "--config-dir")
    parts = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    flags.add_argument("-i", "--info", nargs="?", const="all", choices=parts)
    flags.add_argument("overrides", nargs="*")
    return flags


def command(argv: Sequence[str], wants_trace: bool = False) -> None:
    """Do what the arguments ask for. wants_trace: whether a mistake of the user's is shown with its traceback."""
    from clrun.config import check_keys

    check_keys.refuse_command(argv)
    arguments = parser().parse_intermixed_args(argv)
    if arguments.version:
        from clrun import __version__

        print(f"clrun {__version__}")
        return
    catalog = catalog_of(arguments)
    if arguments.help:
        print_help(catalog, arguments.overrides)
        return
    if arguments.cite:
        print(cited(arguments, catalog))
        return
    refuse_together(arguments)
    if not (arguments.shell_completion or arguments.hydra_help):
        check_keys.refuse(arguments.overrides, arguments.multirun, catalog)
    from clrun.config.composition import run_with_hydra

    if may_sweep(arguments):
        from clrun.sweep import launcher

        launcher.register()
    with hydra_arguments(arguments) as hydra_argv:
        task = task_of(arguments)
        run_with_hydra(catalog, hydra_argv, lambda cfg: exit_unless_done(answer(lambda: task(cfg), wants_trace)))


def print_help(catalog: "Catalog", words: Sequence[str]) -> None:
    """Print the help of clrun, or all there is on what words name. Raise UsageError for one that names nothing."""
    from clrun.config import help, help_words

    if words:
        help_words.show(catalog, words, help.make_console())
    else:
        help.show(catalog, help.make_console())


def cited(arguments: argparse.Namespace, catalog: "Catalog") -> str:
    """Return BibTeX of clrun and of the strategies that are named (`clrun --cite strategy=si`). Raise UsageError."""
    from pathlib import Path

    from clrun.config.citations import citations
    from clrun.system.paths import CONF

    users = [] if arguments.config_dir is None else [Path(arguments.config_dir)]
    return citations(arguments.overrides, catalog, [CONF, *users])


def task_of(arguments: argparse.Namespace) -> Callable[["DictConfig"], None]:
    """Return what is done with the configuration of a single run."""
    if arguments.cfg == "job":
        return partial(show_job, package=arguments.package, resolve=arguments.resolve)
    return check_single if arguments.check else single


def refuse_together(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags that exclude each other."""
    shows = [f"--{flag}" for flag in ("cfg", "info") if getattr(arguments, flag) is not None]
    if arguments.check and shows:
        raise UsageError(f"--check trains nothing and {shows[0]} shows one run; type one of them.")
    if arguments.multirun and (shows or arguments.resolve):
        flag = (shows or ["--resolve"])[0]
        raise UsageError(f"{flag} shows one run, and -m asks for many; leave -m out, and type one value for each key.")
    if len(shows) == 2:
        raise UsageError("--cfg and --info are two answers; type one of them.")
    if arguments.resolve and arguments.cfg is None:
        raise UsageError("--resolve belongs to --cfg; type --cfg job --resolve.")


def catalog_of(arguments: argparse.Namespace) -> "Catalog":
    """Return the catalogue of clrun's folder and --config-dir, which completion reads from the line to complete."""
    from clrun.config import catalog

    if arguments.shell_completion and arguments.config_dir is None:
        arguments.config_dir = config_dir_of(os.environ.get("COMP_LINE", ""))
    if arguments.config_dir is not None:
        arguments.config_dir = os.path.expanduser(arguments.config_dir)  # Hydra does not expand ~
    return catalog.with_folder(arguments.config_dir)


def config_dir_of(line: str) -> str | None:
    """Return the --config-dir of a command line that may be unfinished; None if there is none."""
    try:
        return parser().parse_known_intermixed_args(shlex.split(line)[1:])[0].config_dir
    except (ValueError, UsageError):  # a quote or a flag is still open
        return None


def sweeps(arguments: argparse.Namespace) -> bool:
    """Return whether the command line asks for a sweep."""
    return arguments.multirun or any(text.startswith("hydra.mode=") for text in arguments.overrides)


def may_sweep(arguments: argparse.Namespace) -> bool:
    """Return whether Hydra may need clrun's launcher: for a sweep, even one that a user's yaml asks for, or to list it.

    A single run does not import the launcher.
    """
    hydra_keys = any(text.lstrip("+~").startswith("hydra") for text in arguments.overrides)
    return bool(arguments.multirun or hydra_keys or arguments.config_dir or arguments.info or arguments.hydra_help)


@contextmanager
def hydra_arguments(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Yield Hydra's command line: flags and overrides, and for a sweep a temporary folder for its multirun.yaml."""
    switches, values = ["hydra_help", "run", "multirun", "shell_completion"], ["info", "config_dir"]
    if arguments.cfg != "job":  # which is answered here
        switches, values = [*switches, "resolve"], [*values, "cfg", "package"]
    flags = [f"--{name.replace('_', '-')}" for name in switches if getattr(arguments, name)]
    for name in values:
        value = getattr(arguments, name)
        if value is not None:
            flags.append(f"--{name.replace('_', '-')}={value}")
    with temporary_folder() if sweeps(arguments) else nullcontext() as folder:
        own = [] if folder is None else [f'hydra.sweep.dir="{folder}"']
        own += ["hydra.mode=RUN"] if arguments.cfg == "job" else []
        own += ["hydra.launcher.check=true"] if arguments.check else []
        yield [*flags, *arguments.overrides, *own]


@contextmanager
def temporary_folder(what: str = "a sweep") -> Iterator[str]:
    """Yield a temporary folder, which `what` needs. Raise UsageError where the system has none."""
    try:
        made = tempfile.TemporaryDirectory(prefix="clrun-")
    except OSError as error:
        text = f"{what} needs a folder for temporary files, and there is none ({error.strerror})"
        raise UsageError(f"{text}; name one that you may write to: export TMPDIR=FOLDER.") from None
    with made as folder:
        yield folder


# ---------------------------------------------------------------- one run


def check_single(cfg: "DictConfig") -> None:
    """Check a composed configuration, and say so; load no data and train nothing (`clrun --check`)."""
    from clrun.config.check_values import check
    from clrun.config.composition import composed_from

    catalog, typed = composed_from()
    settings = check(cfg, catalog=catalog, typed=typed)
    from clrun.runs import prepare  # torch, from here on

    prepare.refuse_without_data(settings)
    print("Checked: 1 run has legal settings. No data were loaded and nothing was trained.")


def show_job(cfg: "DictConfig", package: str | None, resolve: bool) -> None:
    """Print what is composed, or the part of it below `package`, as YAML, after what the file of an experiment says of
    it; run nothing (`clrun --cfg job`). resolve: whether interpolations are replaced by what they stand for. Raise
    UsageError."""
    import yaml

    from clrun.config.check_values import resolved_dict
    from clrun.config.composed_text import COMMENT, about_experiment, part_of, stated
    from clrun.config.composition import chosen_experiments, unresolved_dict

    tree = resolved_dict(cfg) if resolve else unresolved_dict(cfg)
    part = yaml.safe_dump(stated(part_of(tree, package)), sort_keys=False, allow_unicode=True)
    about = [about_experiment(name, path) for name, path in chosen_experiments().items()]
    print(*about, COMMENT, part, sep="\n", end="")


def single(cfg: "DictConfig") -> None:
    """Check a composed configuration, train its run if it is not finished, and print its tables."""
    from clrun.config.check_values import check
    from clrun.config.composition import composed_from

    catalog, typed = composed_from()
    settings = check(cfg, catalog=catalog, typed=typed)

    # What can be refused without torch has been refused; it is imported from here on.
    from clrun.results import reading, run_files
    from clrun.runs import failures, prepare, show
    from clrun.sweep.cluster import cluster_of

    cluster = cluster_of([cfg], catalog)
    prepared = prepare.prepare(settings)
    if not prepared.needs_training:
        failures.tidy_finished([prepared])
        reading.refuse_contradiction(prepared.directory)
        device = run_files.summary_of(prepared.directory)["device"]
        print(f"Done already, on {device}: {prepared.directory} (rerun=true trains it again)")
    else:
        show.warn([prepared])
        train_here_or_on_cluster(prepared, cluster)
    if prepared.finished:
        show.show(prepared)


def train_here_or_on_cluster(prepared: "Prepared", cluster: "Cluster | None") -> None:
    """Train one run, here or as a job of a cluster; the error of a crash names the file that describes it."""
    from clrun.results.outcome import RunStatus
    from clrun.runs import train
    from clrun.runs.failures import where_written
    from clrun.sweep.cluster import submit

    if cluster is not None:
        for reason in submit([prepared], cluster).values():
            raise RunsFailed(reason + where_written(prepared.directory))
        return
    try:
        if train.train_run(prepared, quiet=False) == RunStatus.DONE_ELSEWHERE:
            print(f"Done by another process meanwhile: {prepared.directory} (rerun=true trains it again)")
    except Exception as error:
        if (prepared.directory / "failed.txt").is_file():
            error.add_note(f"The run crashed; this is written to {prepared.directory / 'failed.txt'}.")
        raise


if __name__ == "__main__":
    cli()
