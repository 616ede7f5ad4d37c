"""The text of `clrun --help`, one screen, and what it is made of; from the yaml files in conf/ alone."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clrun.config.catalog import CLUSTER, GROUPS, Catalog, KeySpec, Option, StrategyOption, parse
from clrun.system.environment import color_system
from clrun.system.text import format_value

EXAMPLES = {
    "clrun": "digits in 5 tasks, by ewc",
    "clrun strategy=ewc lambda=400": "one run, with a knob",
    "clrun -m strategy=finetune,ewc,joint seed=0,1,2": "finished runs are kept",
    "clrun -m strategy=ewc 'lambda=1,10,100'": "a sweep over a knob",
    "clrun +experiment=split_mnist scenario=class": "a published protocol",
    "clrun --config-dir my strategy=mine": "a strategy of your own",
    "clrun-report": "tables, plots of outputs/",
}


MARGINS = 6  # characters before, between and behind two columns
MEANING = 30  # characters that the second of two columns needs

# The keys of every run that are typed most.
MOST_TYPED = ("tasks", "scenario", "epochs", "lr", "seed", "evaluate_every", "outputs")

WORDS = {
    "--help strategy": "a line for each; so also dataset, model, experiment",
    "--help ewc": "what an option or an experiment is, and its keys",
    "--help lambda": "what a key means, and who takes it",
    "--help keys": "all keys of every run, with their defaults",
}

FLAGS = {
    "-m, --multirun": "a sweep: every combination of the listed values",
    "--config-dir DIR": "a folder with strategies or data sets of your own",
    "--check": "check the settings of all runs; train nothing",
    "--cfg job": "print what is composed, run nothing",
    "--cite strategy=si": "print BibTeX of clrun and of the papers of a strategy",
    "--version": "print the version (--hydra-help: flags of Hydra's)",
    "-sc install=bash": 'eval "$(clrun -sc install=bash)" completes with Tab',
}

PIPE_WIDTH = 160  # characters of a line where there is no terminal


def make_console() -> Console:
    """Return the console on which help is printed: as wide as the terminal, or 160 characters in a pipe."""
    console = Console(highlight=False, color_system=color_system())
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def show(catalog: Catalog, console: Console) -> None:
    """Print the help of clrun, one screen: what is typed, what there is to choose from, and where the rest is."""
    console.print("Continual-learning experiments: [bold]clrun key=value ...[/bold]")
    section(console, "Examples", EXAMPLES)
    section(console, "What there is to choose, and what is chosen unless typed", dict(choices(catalog)))
    used = {key: catalog.root[key] for key in MOST_TYPED}
    title = f"The {len(used)} most used of the {len(catalog.root)} keys of every run, with their defaults"
    section(console, title, dict(key_line(*item) for item in used.items()))
    section(console, "The rest", WORDS)
    section(console, "Flags", FLAGS)
    console.print("Results are in outputs/. Brackets want quotes: 'seed=range(3)'.")


def choices(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Yield a line for each group, with the number of its options and their names, and one for the experiments."""
    for group in (*GROUPS, CLUSTER):
        names = list(catalog.options[group])
        yield f"{group}={catalog.defaults.get(group) or '...'}", f"{len(names)}: {', '.join(names)}"
    if catalog.experiments:
        yield "+experiment=...", f"{len(catalog.experiments)}: {', '.join(catalog.experiments)}"


def section(console: Console, title: str, lines: Mapping[str, str]) -> None:
    """Print a title and two columns; nothing if there are no lines. What does not fit into a line is cut on a narrow
    terminal, and goes on in the next line on one as wide as a pipe."""
    if lines:
        console.print(f"[bold]{title}[/bold]")
        console.print(rows(lines.items(), console.width, cut=console.width < PIPE_WIDTH))


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
