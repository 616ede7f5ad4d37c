"""The text of `clrun --help`, from the yaml files in conf/ alone."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clrun.config.catalog import CLUSTER, GROUPS, Catalog, KeySpec, Option, StrategyOption, parse
from clrun.system.errors import UsageError
from clrun.system.text import format_value

EXAMPLES = {
    "clrun": "the default: digits, 5 tasks of 2 classes, strategy=ewc",
    "clrun strategy=ewc lambda=400": "one run, with a knob",
    "clrun -m strategy=finetune,ewc,joint 'seed=range(3)'": "nine runs and a table; finished ones are kept",
    "clrun -m strategy=ewc 'lambda=1,10,100'": "a sweep over a knob",
    "clrun dataset=mnist split=permuted tasks=10 scenario=domain": "permuted MNIST",
    "clrun --config-dir my strategy=mine": "a strategy of your own, in my/strategy/mine.yaml",
}


MEANING = 30  # characters that the second of two columns needs

FLAGS = {
    "--help WORD": "only what a group or an option is, as --help features or --help ewc",
    "-m, --multirun": "sweep: every combination of the values that are listed with commas or as range(...)",
    "--config-dir DIR": "a folder with strategies, datasets or experiments of your own",
    "--check": "check the settings of the run, or with -m of all runs; load no data, train nothing",
    "--cfg job": "print what is composed, run nothing",
    "--hydra-help": "the flags of Hydra, which composes the keys",
    "--version": "print the version",
    "-sc install=bash": 'eval "$(clrun -sc install=bash)" completes keys and values with Tab',
}


def show(catalog: Catalog, words: Sequence[str] = ()) -> None:
    """Print the help of clrun, or of the groups and options that are named, such as features, ewc or strategy=ewc.

    Raise UsageError for a word that names neither.
    """
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=160)  # a pipe has no width
    if words:
        for group, names in [named for word in words for named in meant(word, catalog)]:
            print_group(console, catalog, group, names)
        return
    console.print("Continual-learning experiments: [bold]clrun key=value ...[/bold]\n")
    section(console, "Examples", EXAMPLES)
    for group in (*GROUPS, CLUSTER):
        print_group(console, catalog, group, list(catalog.options[group]))
    section(console, "Experiments", {f"+experiment={name}": remark(path) for name, path in catalog.experiments.items()})
    console.print("[bold]Keys of every run[/bold], with their defaults")
    console.print(rows((key_line(*item) for item in catalog.root.items()), console.width))
    section(console, "Flags", FLAGS)
    console.print(
        "Results are written to outputs/. A value with commas, brackets or spaces wants quotes: 'lambda=1,2'."
    )


def meant(word: str, catalog: Catalog) -> list[tuple[str, list[str]]]:
    """Return the group that a word names, with all its options, or each group with an option of that name. Raise
    UsageError if there is none."""
    group, _, name = word.rpartition("=")
    if word in catalog.options:
        return [(word, list(catalog.options[word]))]
    found = [(one, [name]) for one, names in catalog.options.items() if name in names and group in ("", one)]
    if not found:
        words = [*catalog.options, *(name for names in catalog.options.values() for name in names)]
        near = difflib.get_close_matches(name, words, 1)
        raise UsageError(
            f"--help {word}: there is no such group and no such option{f'; did you mean {near[0]}?' if near else '.'} "
            f"The groups are {', '.join(catalog.options)}."
        )
    return found


def print_group(console: Console, catalog: Catalog, group: str, names: Sequence[str]) -> None:
    """Print some options of a group and their keys."""
    default = (
        f"(by default {catalog.defaults[group]})" if group != CLUSTER else "trains on other machines (by default here)"
    )
    console.print(f"[bold]{group}[/bold]=... {default}")
    console.print(rows(options(catalog, group, names), console.width))


def section(console: Console, title: str, lines: Mapping[str, str]) -> None:
    """Print a title and two columns; nothing if there are no lines."""
    if lines:
        console.print(f"[bold]{title}[/bold]")
        console.print(rows(lines.items(), console.width))


def rows(lines: Iterable[tuple[str, str]], width: int) -> Table:
    """Return a table of two columns for a terminal of this width: what is typed, and what it means. Where that leaves
    less than MEANING to the second, it stands below the first."""
    pairs = list(lines)
    left_width = max((cell_len(left) for left, _ in pairs), default=0)
    beside = left_width + MEANING <= width
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=beside, overflow="fold")
    if beside:
        table.add_column(overflow="fold")
    for left, right in pairs:
        typed, meaning = Text(left, "" if left.startswith(" ") else "cyan"), Text(right)
        if beside:
            table.add_row(typed, meaning)
        else:
            table.add_row(typed)
            table.add_row(Padding(meaning, (0, 0, 0, 4)))
    table.add_row()
    return table


def options(catalog: Catalog, group: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of some options of a group and their keys; a key that several options share is explained once."""
    explained: dict[str, KeySpec] = {}
    for name in names:
        option = catalog.options[group][name]
        yield name, headline(option)
        knobs = catalog.knobs(group, name)
        new = ((key, spec) for key, spec in knobs.items() if explained.get(key) != spec)
        yield from ((f"  {left}", right) for left, right in itertools.starmap(key_line, new))
        shared = [key for key, spec in knobs.items() if explained.get(key) == spec]
        if shared:
            yield "", f"and {', '.join(shared)} (as above)"
        explained |= knobs


def remark(path: Path) -> str:
    """Return what an experiment's yaml states as `about`, or the first sentence of its comments, without its full stop;
    instructions to Hydra do not count."""
    about = parse(path).get("about")
    if isinstance(about, str):
        return about
    comments = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(comment for comment in comments if not comment.startswith(("@", "clrun ")))
    return re.split(r"(?<!al)[.:](?= |$)", text)[0]


def headline(option: Option) -> str:
    """Return what an option is, and whether it must know the task at test."""
    needs_task_id = isinstance(option, StrategyOption) and option.needs_task_id
    return option.about + (" (needs the task at test)" if needs_task_id else "")


def key_line(key: str, spec: KeySpec) -> tuple[str, str]:
    """Return a key with its default and its meaning: ("lambda=400", "strength of the penalty (at least 0)")."""
    words = [*(["true", "false"] if spec.type == "bool" and spec.choices else []), *(spec.choices or [])]
    legal = ", or ".join(filter(None, ["|".join(words), spec.range()]))
    return f"{key}={format_value(spec.default)}", f"{spec.about} ({legal})" if legal else spec.about
