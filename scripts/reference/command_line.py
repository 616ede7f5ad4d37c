"""The parts of docs/reference/command-line.md, from the parsers of the console scripts."""

import argparse
from collections.abc import Mapping

from clrun.commands import check, export, predict, report, run, tune, verify, watch
from clrun.config import help
from reference.markdown import code, plain, table

# Hydra's flags that clrun hands on, which argparse knows without an explanation.
HYDRA_FLAGS = {
    "--help": "print what there is to choose; followed by a group, an option, an experiment or a key, all on these",
    "--run": "a single run, which is the default",
    "--multirun": "a sweep: every combination of the values that are listed with commas or as range(...)",
    "--shell-completion": "with install=bash, print what makes the Tab key complete keys and values",
    "--version": "print the version",
    "--hydra-help": "print the help of Hydra, which composes the keys",
    "--resolve": "with --cfg, replace references between keys by their values",
    "--check": "check the settings of the run, or with --multirun of all runs; load no data and train nothing",
    "--cite": "print BibTeX of clrun and of the papers of the strategies that are named, as --cite strategy=si,ewc",
    "--cfg": "print the composed settings and run nothing",
    "--package": "with --cfg, print this part of the settings alone",
    "--config-dir": "a folder with strategies, networks, optimizers or experiments of your own",
    "--info": "print how Hydra composed the settings",
    "overrides": "keys and groups, such as strategy=ewc lambda=400",
}

STANDARD_HELP = "show this help message and exit"  # argparse's own text; every command has such a flag

ARGUMENTS = {"run": "the folder of a run", "pictures": "files of pictures"}


def flags(parser: argparse.ArgumentParser) -> str:
    """Return the table of the arguments that a parser knows."""
    actions = parser._actions  # argparse has no public list of what was added
    rows = [(spelling(action), meaning(action)) for action in actions if action.help != STANDARD_HELP]
    return table(("argument", "meaning"), rows)


def spelling(action: argparse.Action) -> str:
    """Return how an argument is typed, with what it stands for."""
    value = value_name(action)
    if not action.option_strings:
        return code(f"[{value} ...]" if action.nargs == "*" else f"{value} ..." if action.nargs == "+" else value)
    *short, long = action.option_strings
    return ", ".join(map(code, [*short, f"{long} {value}".strip()]))


def value_name(action: argparse.Action) -> str:
    """Return what stands for the value of an argument; nothing for a flag that takes none."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.metavar or {"overrides": "KEY=VALUE"}.get(action.dest, action.dest.upper())


def meaning(action: argparse.Action) -> str:
    """Return what an argument is for, and its default."""
    name = action.option_strings[-1] if action.option_strings else action.dest
    text = action.help or HYDRA_FLAGS.get(name) or ARGUMENTS[name]
    typed = action.default if not isinstance(action.default, bool | list) else None
    return plain(f"{text} (default: {typed})" if typed is not None and typed is not argparse.SUPPRESS else text)


def examples(lines: Mapping[str, str]) -> str:
    """Return a block of commands, each with a comment."""
    width = max(map(len, lines)) + 2
    return "```bash\n" + "\n".join(f"{line:<{width}}# {comment}" for line, comment in lines.items()) + "\n```"


def clrun() -> str:
    """Return the part on `clrun`."""
    return f"{examples(help.EXAMPLES)}\n\n{flags(run.parser())}"


def clrun_report() -> str:
    """Return the part on `clrun-report`."""
    return flags(report.parser())


def clrun_tune() -> str:
    """Return the part on `clrun-tune`."""
    grammar = table(("argument", "meaning"), [(code(key), plain(text)) for key, text in tune.GRAMMAR.items()])
    return f"{examples(tune.EXAMPLES)}\n\n{grammar}\n\n{flags(tune.parser())}"


def clrun_predict() -> str:
    """Return the part on `clrun-predict`."""
    return flags(predict.parser())


def clrun_export() -> str:
    """Return the part on `clrun-export`."""
    return flags(export.parser())


def clrun_watch() -> str:
    """Return the part on `clrun-watch`."""
    return flags(watch.parser())


def clrun_check() -> str:
    """Return the part on `clrun-check`."""
    return flags(check.parser())


def clrun_verify() -> str:
    """Return the part on `clrun-verify`."""
    return flags(verify.parser())


def rows_of_verify() -> str:
    """Return the table of the published numbers that `clrun-verify` compares with."""
    rows = verify.rows().items()
    targets = {number: ", ".join(f"{name} {case.target:g}" for name, case in row.cases.items()) for number, row in rows}
    cells = [(code(number), plain(row.title), plain(targets[number]), plain(row.source)) for number, row in rows]
    return table(("row", "experiment", "published, in %", "source"), cells)
