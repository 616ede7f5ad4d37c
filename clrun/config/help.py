"""The text of `clrun --help`, from the yaml files in conf/ alone."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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


MARGINS = 6  # characters before, between and behind two columns
MEANING = 30  # characters that the second of two columns needs

FLAGS = {
    "--help WORD": "all of a group, an option or a key, as --help features, --help ewc or --help lambda",
    "-m, --multirun": "sweep: every combination of the values that are listed with commas or as range(...)",
    "--config-dir DIR": "a folder with strategies, datasets or experiments of your own",
    "--check": "check the settings of the run, or with -m of all runs; load no data, train nothing",
    "--cfg job": "print what is composed, run nothing",
    "--cite strategy=si": "print BibTeX of clrun and of the papers of a strategy",
    "--hydra-help": "the flags of Hydra, which composes the keys",
    "--version": "print the version",
    "-sc install=bash": 'eval "$(clrun -sc install=bash)" completes keys and values with Tab',
}


def show(catalog: Catalog, words: Sequence[str] = ()) -> None:
    """Print the help of clrun: a line for each option and each key of every run. Given words, print all there is on the
    groups, options and keys that they name, such as features, ewc, strategy=ewc or lambda.

    Raise UsageError for a word that names none of them.
    """
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=160)  # a pipe has no width
    if words:
        for named in [meant(word, catalog) for word in words]:
            print_meant(console, catalog, named)
        return
    console.print("Continual-learning experiments: [bold]clrun key=value ...[/bold]\n")
    section(console, "Examples", EXAMPLES)
    for group in (*GROUPS, CLUSTER):
        console.print(group_title(catalog, group))
        lines = ((name, headline(option)) for name, option in catalog.options[group].items())
        console.print(rows(lines, console.width, cut=True))
    section(console, "Experiments", {f"+experiment={name}": remark(path) for name, path in catalog.experiments.items()})
    console.print("[bold]Keys of every run[/bold], with their defaults")
    console.print(rows((key_line(*item) for item in catalog.root.items()), console.width, cut=True))
    console.print(
        "An option has keys of its own: [bold]clrun --help ewc[/bold] shows those of strategy=ewc, and "
        "[bold]clrun --help lambda[/bold] all that there is on a key.\n"
    )
    section(console, "Flags", FLAGS)
    console.print(
        "Results are written to outputs/. A value with commas, brackets or spaces wants quotes: 'lambda=1,2'."
    )


class Meant(NamedTuple):
    """What a word of `clrun --help WORD` names."""

    options: list[tuple[str, list[str]]]  # groups, each with names of its options
    keys: list[str]  # keys as they are typed


def meant(word: str, catalog: Catalog) -> Meant:
    """Return what a word names: a group with all its options, each option of that name, or a key. Raise UsageError if
    there is nothing of that name."""
    group, _, name = word.rpartition("=")
    if word in catalog.options:
        return Meant([(word, list(catalog.options[word]))], [])
    found = [(one, [name]) for one, names in catalog.options.items() if name in names and group in ("", one)]
    keys = [key for key in catalog.all_keys() if key == word and key not in catalog.options]
    if not (found or keys):
        words = [*catalog.all_keys(), *(name for names in catalog.options.values() for name in names)]
        near = difflib.get_close_matches(name, words, 1)
        raise UsageError(
            f"--help {word}: there is no such group, option or key{f'; did you mean {near[0]}?' if near else '.'} "
            f"The groups are {', '.join(catalog.options)}; clrun --help lists the rest."
        )
    return Meant(found, keys)


def print_meant(console: Console, catalog: Catalog, named: Meant) -> None:
    """Print all that there is on what a word names."""
    for group, names in named.options:
        console.print(group_title(catalog, group))
        console.print(rows(options(catalog, group, names), console.width))
    for key in named.keys:
        console.print(f"[bold]{key}[/bold]")
        console.print(rows(key_entries(catalog, key), console.width))


def key_entries(catalog: Catalog, key: str) -> Iterator[tuple[str, str]]:
    """Yield a line for each meaning of a key, with those who take it: every run, or some options of a group."""
    if key in catalog.root:
        left, right = key_line(key, catalog.root[key])
        yield left, f"{right} - a key of every run"
    meanings: dict[tuple[str, str], list[str]] = {}
    for group, name in catalog.takers(key):
        meanings.setdefault(key_line(key, catalog.knobs(group, name)[key]), []).append(f"{group}={name}")
    yield from ((left, f"{right} - {', '.join(takers)}") for (left, right), takers in meanings.items())


def group_title(catalog: Catalog, group: str) -> str:
    """Return the heading of a group."""
    if group == CLUSTER:
        return f"[bold]{group}[/bold]=... trains on other machines (by default here)"
    return f"[bold]{group}[/bold]=... (by default {catalog.defaults[group]})"


def section(console: Console, title: str, lines: Mapping[str, str]) -> None:
    """Print a title and two columns; nothing if there are no lines."""
    if lines:
        console.print(f"[bold]{title}[/bold]")
        console.print(rows(lines.items(), console.width, cut=True))


def rows(lines: Iterable[tuple[str, str]], width: int, cut: bool = False) -> Table:
    """Return a table of two columns for a terminal of this width: what is typed, and what it means. Where that leaves
    less than MEANING to the second, it stands below the first.

    cut: whether a meaning is cut to one line, with three dots for the rest.
    """
    pairs = list(lines)
    left_width = max((cell_len(left) for left, _ in pairs), default=0)
    beside = left_width + MEANING <= width
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=beside, overflow="fold")
    if beside:
        table.add_column(overflow="fold")
    for left, right in pairs:
        typed, meaning = Text(left, "" if left.startswith(" ") else "cyan"), Text(right)
        if beside and cut:
            meaning.truncate(width - left_width - MARGINS, overflow="ellipsis")
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
