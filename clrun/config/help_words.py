"""The text of `clrun --help WORD`: all that there is on a group, an option, an experiment or a key."""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from clrun.config.catalog import CLUSTER, Catalog, StrategyOption
from clrun.config.composed_text import about_experiment
from clrun.config.help import by_kind, entries, folded, headline, key_line, remark, rows, say
from clrun.system.errors import UsageError

KEYS = "keys"  # the word for all keys of every run
EXPERIMENT = "experiment"

NEAR = 3  # words that a refusal suggests


@dataclass(frozen=True)
class Meant:
    """What a word of `clrun --help WORD` names."""

    groups: Sequence[str] = ()  # with what each option is
    options: Sequence[tuple[str, str]] = ()  # (group, name), with their keys
    experiments: Sequence[str] = ()
    keys: Sequence[str] = ()  # as they are typed
    lists_keys: bool = False  # with what each key of every run means
    lists_experiments: bool = False


def show(catalog: Catalog, words: Sequence[str], console: Console) -> None:
    """Print all there is on what the words name, such as strategy, ewc, strategy=ewc, lambda, split_mnist or keys.

    Raise UsageError for a word that names nothing, before anything is printed.
    """
    for named in [meant(word, catalog) for word in words]:
        print_meant(console, catalog, named)


def meant(word: str, catalog: Catalog) -> Meant:
    """Return what a word names: a group, each option of that name, an experiment or a key, or else the keys of which it
    is a value. Raise UsageError if there is nothing of that name."""
    group, equals, name = word.lstrip("+").rpartition("=")
    if name in (KEYS, EXPERIMENT) and not equals:
        return Meant(lists_keys=name == KEYS, lists_experiments=name == EXPERIMENT)
    if name in catalog.options and not equals:
        return Meant(groups=[name])
    found = Meant(
        options=[(one, name) for one, names in catalog.options.items() if name in names and group in ("", one)],
        experiments=[one for one in catalog.experiments if one == name and group in ("", EXPERIMENT)],
        keys=[key for key in catalog.all_keys() if key == (group or name) and key not in catalog.options],
    )
    if not (found.options or found.experiments or found.keys or group):
        found = Meant(keys=keys_with_value(name, catalog))
    if not (found.options or found.experiments or found.keys):
        raise UsageError(unknown(word, group if group in catalog.options else "", name, catalog))
    return found


def keys_with_value(value: str, catalog: Catalog) -> list[str]:
    """Return the keys of which a word is one of the values, such as average for ema, each once."""
    specs = [*catalog.root.items()]
    for group, options in catalog.options.items():
        specs += [item for name in options for item in catalog.knobs(group, name).items()]
    return list(dict.fromkeys(key for key, spec in specs if value in (spec.choices or ())))


def unknown(word: str, group: str, name: str, catalog: Catalog) -> str:
    """Return the refusal of a word that names nothing, with those that are near it. group: of which it names an option;
    "" for any."""
    words = list(catalog.options[group]) if group else every_word(catalog)
    near = difflib.get_close_matches(name.lower(), words, NEAR)
    meant = f"; did you mean {' or '.join(near)}?" if near else "."
    groups = ", ".join([*catalog.options, EXPERIMENT, KEYS])
    return f"--help {word}: there is no such group, option, experiment or key{meant} These list all: {groups}."


def every_word(catalog: Catalog) -> list[str]:
    """Return all that may stand behind --help, each once."""
    options = itertools.chain.from_iterable(catalog.options.values())
    return list(
        dict.fromkeys([*catalog.options, *options, *catalog.all_keys(), *catalog.experiments, EXPERIMENT, KEYS])
    )


# ---------------------------------------------------------------- what is printed


def print_meant(console: Console, catalog: Catalog, named: Meant) -> None:
    """Print all that there is on what a word names."""
    for group in named.groups:
        print_group(console, catalog, group)
    if named.lists_experiments:
        say(console, "[bold]Experiments[/bold], with the settings of published protocols")
        lines = ((f"+experiment={name}", remark(path)) for name, path in catalog.experiments.items())
        console.print(entries(lines, console.width))
        say(console, "All of one: clrun --help split_mnist")
    if named.lists_keys:
        say(console, "[bold]Keys of every run[/bold], with their defaults")
        console.print(rows(itertools.starmap(key_line, catalog.root.items()), console.width))
        say(console, "All of one: clrun --help lr")
    for group, name in named.options:
        say(console, group_title(catalog, group))
        console.print(rows(option_lines(catalog, group, name), console.width))
    for name in named.experiments:
        print_experiment(console, catalog, name)
    for key in named.keys:
        say(console, f"[bold]{key}[/bold]")
        console.print(rows(key_entries(catalog, key), console.width))


def print_group(console: Console, catalog: Catalog, group: str) -> None:
    """Print what each option of a group is, below its name; the strategies by their kinds."""
    options = catalog.options[group]
    say(console, group_title(catalog, group) + ("\n" if group == "strategy" else ""))
    kinds = by_kind(options.values()) if group == "strategy" else [("", list(options.values()))]
    for heading, below in kinds:
        if heading:
            say(console, f"[bold]{heading}[/bold]")
        console.print(entries(((option.name, headline(option)) for option in below), console.width))
    with_keys = next((name for name in options if catalog.knobs(group, name)), None)
    if with_keys is not None:
        say(console, f"The keys of one: clrun --help {with_keys}")


def print_experiment(console: Console, catalog: Catalog, name: str) -> None:
    """Print what the yaml of an experiment says of it, and what it sets."""
    path = catalog.experiments[name]
    comments = [folded(line, console.width) for line in about_experiment(name, path).splitlines()]
    console.print(Text("\n".join(itertools.chain.from_iterable(comments)), "cyan"))
    lines = path.read_text(encoding="utf-8").splitlines()
    console.print(Text("\n".join(line for line in lines if not line.startswith("#"))), soft_wrap=True)


def group_title(catalog: Catalog, group: str) -> str:
    """Return the heading of a group."""
    if group == CLUSTER:
        return f"[bold]{group}[/bold]=... trains on other machines (by default here)"
    return f"[bold]{group}[/bold]=... (by default {catalog.defaults[group]})"


def option_lines(catalog: Catalog, group: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of an option: what it is, its keys, and of a strategy how its papers are printed."""
    option = catalog.options[group][name]
    yield name, headline(option)
    knobs = catalog.knobs(group, name)
    yield from ((f"  {left}", right) for left, right in itertools.starmap(key_line, knobs.items()))
    if isinstance(option, StrategyOption) and option.papers:
        yield "", f"its papers: clrun --cite strategy={name}"


def key_entries(catalog: Catalog, key: str) -> Iterator[tuple[str, str]]:
    """Yield a line for each meaning of a key, with those who take it: every run, or some options of a group."""
    if key in catalog.root:
        left, right = key_line(key, catalog.root[key])
        yield left, f"{right} - a key of every run"
    meanings: dict[tuple[str, str], list[str]] = {}
    for group, name in catalog.takers(key):
        meanings.setdefault(key_line(key, catalog.knobs(group, name)[key]), []).append(f"{group}={name}")
    yield from ((left, f"{right} - {', '.join(takers)}") for (left, right), takers in meanings.items())
