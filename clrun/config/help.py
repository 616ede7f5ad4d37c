"""The text of `clrun --help`, and the pieces of all help; from the yaml files in conf/ alone."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from clrun.config.catalog import CLUSTER, GROUPS, HEADINGS, Catalog, KeySpec, Option, StrategyOption, parse
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


INDENT = 2  # characters before what is typed
GAP = 2  # characters between what is typed and what it means
MEANING = 30  # characters that the second of two columns needs
BELOW = 6  # characters before a meaning that stands below what is typed
SHORT = 54  # characters of what a strategy does, so that its line fits into 80

# The keys of every run that are typed most.
MOST_TYPED = ("tasks", "scenario", "epochs", "lr", "seed", "evaluate_every", "outputs")

WORDS = {
    "--help strategy": "what each strategy is; so also dataset, model, experiment",
    "--help ewc": "what an option or an experiment is, and its keys",
    "--help lambda": "what a key means, and who takes it",
    "--help keys": "all keys of every run, with their defaults",
}

FLAGS = {
    "-m, --multirun": "a sweep: every combination of the listed values",
    "--config-dir DIR": "a folder with strategies or data sets of your own",
    "--check": "check the settings of all runs for refusals; train nothing",
    "--cfg job": "print what is composed, run nothing",
    "--cite strategy=si": "print BibTeX of clrun and of the papers of a strategy",
    "--version": "print the version (--hydra-help: flags of Hydra's)",
    "-sc install=bash": 'eval "$(clrun -sc install=bash)" completes with Tab',
}

COMMANDS = ("report", "watch", "tune", "predict", "export", "verify", "check")  # of the names clrun-...

OWN = "your own"  # the heading of strategies whose yaml states no kind

PIPE_WIDTH = 160  # characters of a line where there is no terminal, and COLUMNS does not say how many

WRAPPING = Console()  # which rich asks for its settings when it breaks a text into lines


def make_console() -> Console:
    """Return the console on which help is printed: as wide as the terminal, or in a pipe as COLUMNS or PIPE_WIDTH."""
    console = Console(highlight=False, color_system=color_system())
    if console.is_dumb_terminal:
        console.size = shutil.get_terminal_size()  # rich takes it to be 80 characters wide, whatever it is
    elif not console.is_terminal:
        console.width = pipe_width(os.environ)
    return console


def pipe_width(variables: Mapping[str, str]) -> int:
    """Return the characters of a line in a pipe: what the variable COLUMNS says, or PIPE_WIDTH."""
    columns = variables.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else PIPE_WIDTH


def show(catalog: Catalog, console: Console) -> None:
    """Print the help of clrun: what is typed, all strategies, what else there is to choose, and where the rest is."""
    say(console, "Continual-learning experiments: [bold]clrun key=value ...[/bold]\n")
    section(console, "Examples", EXAMPLES)
    show_strategies(catalog, console)
    section(console, "What there is to choose, and what is chosen unless typed", dict(choices(catalog)))
    used = {key: catalog.root[key] for key in MOST_TYPED}
    heading = f"The {len(used)} most used of the {len(catalog.root)} keys of every run, with their defaults"
    section(console, heading, dict(key_line(*item) for item in used.items()))
    section(console, "The rest", WORDS)
    section(console, "Flags", FLAGS)
    say(console, f"Other commands, each with --help: {', '.join(f'clrun-{name}' for name in COMMANDS)}.")
    say(console, "Results are in outputs/. Brackets want quotes: 'seed=range(3)'.")


def show_strategies(catalog: Catalog, console: Console) -> None:
    """Print a line for each strategy, below the heading of its kind; what they do begins in one column."""
    options = catalog.options["strategy"]
    longest, default = max(map(len, options)), catalog.defaults["strategy"]
    say(console, f"[bold]The {len(options)} strategies[/bold]: strategy=NAME, {default} by default\n")
    for heading, below in by_kind(options.values()):
        section(console, heading, {option.name.ljust(longest): short(option) for option in below})


def by_kind(options: Iterable[Option]) -> Iterator[tuple[str, list[Option]]]:
    """Yield the strategies below each heading, and last those without a kind; no heading that nothing is below."""
    kinds: dict[str | None, list[Option]] = {kind: [] for kind in (*HEADINGS, None)}
    for option in options:
        kinds[option.kind if isinstance(option, StrategyOption) else None].append(option)
    yield from ((HEADINGS[kind] if kind else OWN, below) for kind, below in kinds.items() if below)


def short(option: Option) -> str:
    """Return what an option does in a few words: those that its yaml states, or as many of `about` as there is room
    for, without its paper."""
    if isinstance(option, StrategyOption) and option.short:
        return option.short
    about = re.sub(r" \([^()]*\)$", "", " ".join(option.about.split()))
    return folded(about, SHORT)[0].rstrip(" -,;:(")


def choices(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Yield a line for each group, with the number of its options and their names, and one for the experiments. The
    names of the strategies stand elsewhere."""
    for group in (*GROUPS, CLUSTER):
        names = list(catalog.options[group])
        named = "those above" if group == "strategy" else ", ".join(names)
        yield f"{group}={catalog.defaults.get(group) or '...'}", f"{len(names)}: {named}"
    if catalog.experiments:
        yield "+experiment=...", f"{len(catalog.experiments)}: {', '.join(catalog.experiments)}"


# ---------------------------------------------------------------- lines


def say(console: Console, markup: str) -> None:
    """Print a sentence in lines of which none ends in blanks, as rich's own may."""
    console.print(joined(Text.from_markup(markup).wrap(WRAPPING, console.width, overflow="fold")))


def section(console: Console, heading: str, lines: Mapping[str, str]) -> None:
    """Print a heading, two columns and an empty line; nothing if there are no lines."""
    if lines:
        say(console, f"[bold]{heading}[/bold]")
        console.print(rows(lines.items(), console.width))


def rows(lines: Iterable[tuple[str, str]], width: int) -> Text:
    """Return two columns and an empty line for a terminal of this width: what is typed, and what it means, which goes
    on below itself. Where there is no room for that, or for MEANING of it, it stands below what is typed.

    This is no table of rich's: it would fill every line up with blanks, which a narrower terminal then breaks.
    """
    pairs = list(lines)
    start = INDENT + GAP + max((cell_len(left) for left, _ in pairs), default=0)
    if start + min(MEANING, max((cell_len(right) for _, right in pairs), default=0)) > width:
        return entries(pairs, width)
    found = [line for left, right in pairs for line in beside(left, folded(right, width - start), start)]
    return joined([*found, Text()])


def entries(lines: Iterable[tuple[str, str]], width: int) -> Text:
    """Return what is typed, each with what it means below it and further to the right, and an empty line."""
    found: list[Text] = []
    for left, right in lines:
        found += [Text(" " * INDENT).append(line, typed_style(left)) for line in folded(left, width - INDENT)]
        found += [Text(" " * BELOW + line) for line in folded(right, width - BELOW)]
    return joined([*found, Text()])


def beside(left: str, meaning: list[str], start: int) -> Iterator[Text]:
    """Yield the lines of what is typed and of its meaning, which begins `start` characters from the edge."""
    first, *others = meaning
    space = " " * (start - INDENT - cell_len(left))
    yield Text.assemble(" " * INDENT, (left, typed_style(left)), space, first)
    yield from (Text(" " * start + line) for line in others)


def typed_style(left: str) -> str:
    """Return the style of what is typed; an option's keys, which are set off by blanks, have none."""
    return "" if left.startswith(" ") else "cyan"


def joined(lines: Iterable[Text]) -> Text:
    """Return lines as one text. None of them ends in blanks."""
    found = list(lines)
    for line in found:
        line.rstrip()
    return Text("\n").join(found)


def folded(text: str, width: int) -> list[str]:
    """Return a text in lines of at most this width: broken between words, and within one that is too long."""
    lines = Text(text).wrap(WRAPPING, max(width, 1), overflow="fold")
    return [line.plain.rstrip() for line in lines] or [""]


# ---------------------------------------------------------------- what a line says


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
