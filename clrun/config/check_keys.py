"""The parsing of what is typed as key=value, and the refusal of what is wrong before anything is composed."""

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clrun.config.typed_texts import CLASSES, ORIGIN, as_typed
from clrun.system.errors import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from clrun.config.catalog import Catalog

# The other commands, which may be typed with a blank in place of the dash.
COMMANDS = ("report", "predict", "export", "tune", "verify", "watch")

# Pairs of brackets that a value may open and must close.
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))

# Keys of Hydra's that say where it writes, which have no effect here or would leave files behind.
FOLDERS_OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")


def refuse(texts: Sequence[str], multirun: bool, catalog: "Catalog") -> None:
    """Raise UsageError for what is wrong in the arguments alone. multirun: whether -m was typed."""
    overrides = [parsed(text) for text in texts]
    refuse_twice(overrides, "clrun -m")
    sweeps = multirun or any(override.key_or_group == "hydra.mode" for override in overrides)
    basic = not any(override.key_or_group == "hydra/sweeper" for override in overrides)
    for override in overrides:
        if basic and override.key_or_group.startswith("hydra.sweeper.params"):
            raise UsageError(f"{override.input_line}: what is swept is typed by itself, with -m, as 'seed=0,1'.")
        refuse_key(override, catalog)
        if override.is_sweep_override():
            refuse_idle_sweep(override, catalog)
            refuse_sweep(override, sweeps, basic)


def parsed(text: str) -> "Override":
    """Return a text as one of Hydra's overrides. Raise UsageError if it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(as_typed(text))
    except HydraException as error:
        raise UsageError(malformed(text, str(error))) from None


def malformed(text: str, reason: str) -> str:
    """Return the refusal of an argument that Hydra's grammar does not take; `reason` is Hydra's."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: a setting is key=value, without spaces; {suggestion(text)}"
    if key != key.strip():
        return f"{text}: a setting is key=value, without spaces; type {key.strip()}={value.strip()}."
    if ",," in value or value.endswith(","):
        return f"{text}: a value is missing in the list; values are typed with one comma between them, as {key}=1,10."
    if any(value.count(opened) > value.count(closed) for opened, closed in BRACKETS):
        return f"{text}: a bracket is not closed; a value with brackets is typed in quotes, as 'seed=range(5)'."
    if key.lstrip("+") == CLASSES:
        return (
            f"{text}: the classes of each task are listed in brackets of their own, with commas between them, as "
            f"'{CLASSES}=[[cat,dog],[deer]]'; a name with brackets or commas stands in quotes within the quotes of the "
            f"shell, as '{CLASSES}=[[\"cats, big\",dog],[deer]]'."
        )
    quoted = value.strip("'\"").replace('"', '\\"')
    reason = reason.splitlines()[0].partition(" expecting {")[0]
    return (
        f"{text}: {reason}. A text with = or other signs is quoted twice, so that the shell leaves "
        f"one pair of quotes: '{key}=\"{quoted}\"'."
    )


def suggestion(word: str) -> str:
    """Return what to type instead of a word that is no setting."""
    from clrun.config.catalog import read  # only for a mistake

    if word in (*COMMANDS, "help", "version"):
        return meant(word)
    if not word.isidentifier():
        return "type e.g. lambda=400, or several values with nothing but commas between them, as lambda=1,10."
    group = next((group for group, options in read().options.items() if word in options), None)
    return f"type {word}=VALUE." if group is None else f"type {group}={word}."


def meant(word: str) -> str:
    """Return the question whether a command or a flag of clrun's was meant by this word."""
    return f"did you mean clrun-{word}?" if word in COMMANDS else f"did you mean clrun --{word}?"


def refuse_command(argv: Sequence[str]) -> None:
    """Raise UsageError where the first word is another command's, whose flags are not known here."""
    if argv and argv[0] in COMMANDS:
        raise UsageError(f"clrun {argv[0]}: {meant(argv[0])}")


def refuse_key(override: "Override", catalog: "Catalog") -> None:
    """Raise UsageError for a key that no option takes, and for an option that does not exist."""
    from hydra.core.override_parser.types import Glob

    from clrun.config.messages import unknown_key

    key = override.key_or_group
    if key in FOLDERS_OF_HYDRA:
        raise UsageError(f"{override.input_line}: Hydra writes no files here; outputs=FOLDER is where results go.")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if key == "experiment":
        refuse_option(override, list(catalog.experiments), "+experiment")
    elif key in catalog.options:
        refuse_option(override, list(catalog.options[key]), key)
    elif key not in catalog.all_keys():
        raise UsageError(unknown_key(key, catalog))
    elif isinstance(override.value(), Glob):
        raise UsageError(f"{override.input_line}: glob finds the options of a group, as of strategy; list the values.")


def refuse_twice(overrides: Sequence["Override"], sweep: str) -> None:
    """Raise UsageError for a key that is typed twice, of which the first would have no effect. sweep: the command that
    takes several values of a key."""
    first: dict[str, Override] = {}
    for override in overrides:
        key = override.key_or_group
        if key in first:
            typed = [first[key].input_line, override.input_line]
            values = ",".join(str(text).partition("=")[2] for text in typed)
            raise UsageError(
                f"{' '.join(map(str, typed))}: {key} is typed twice; type one of them, or several values as {sweep} "
                f"'{key}={values}'."
            )
        first[key] = override


def last_of_each(texts: Sequence[str]) -> list[str]:
    """Return overrides that were joined from several lists, without those that a later one of the same key replaces."""
    keys = [parsed(text).key_or_group for text in texts]
    return [text for i, text in enumerate(texts) if keys[i] not in keys[i + 1 :]]


def refuse_option(override: "Override", options: Sequence[str], typed: str) -> None:
    """Raise UsageError for an option that does not exist."""
    from hydra.core.override_parser.types import Glob

    from clrun.system.text import format_value

    if typed.startswith("+") and not override.is_add():
        raise UsageError(f"{override.input_line}: an experiment is added with a plus: +{override.input_line}.")
    pattern = override.value()
    if isinstance(pattern, Glob):
        if not pattern.filter([*options]):
            raise UsageError(f"{override.input_line}: it fits none of {', '.join(options)}.")
        return
    swept = override.is_sweep_override() and override.is_discrete_sweep()
    for name in map(format_value, override.sweep_string_iterator() if swept else [override.value()]):
        if "${" in name:
            raise UsageError(chosen_by_variable(str(override.input_line), typed, name))
        if name not in options:
            raise UsageError(missing(typed, name, options))


def chosen_by_variable(text: str, typed: str, name: str) -> str:
    """Return the refusal of an option that a variable names, such as strategy=${oc.env:METHOD}."""
    found = re.search(r"\$\{oc\.env:(\w+)", name)
    variable = "NAME" if found is None else found[1]
    return (
        f"{text}: the keys of {typed} depend on which one it is, so it is chosen before variables are read; let the "
        f'shell fill it in, as {typed}="${variable}".'
    )


def refuse_sweep(override: "Override", sweeps: bool, basic: bool) -> None:
    """Raise UsageError for several values without -m, and for an interval, which only an optimizing sweeper takes."""
    if basic and not override.is_discrete_sweep():
        key = override.key_or_group
        raise UsageError(
            f"{override.input_line}: a sweep goes over listed values, not over an interval; "
            f"type '{key}=0,0.5,1', or '{key}=range(0,1,0.25)', with -m."
        )
    if not sweeps:
        raise UsageError(
            f"{override.input_line}: several values are a sweep, which wants -m: clrun -m '{override.input_line}'; "
            f"or type one value."
        )


def refuse_idle_sweep(override: "Override", catalog: "Catalog") -> None:
    """Raise UsageError for several values of a key that is no part of a run's identity."""
    spec = catalog.root.get(override.key_or_group)
    named = ("data_dir", ORIGIN)  # what lies there is part of the identity
    if spec is not None and not spec.identity and override.key_or_group not in named:
        raise UsageError(
            f"{override.input_line}: runs that differ in {override.key_or_group} alone are one run, which is trained "
            f"once; type one value."
        )


def missing(group: str, name: str, options: Sequence[str]) -> str:
    """Return the refusal of an option that does not exist."""
    near = difflib.get_close_matches(name.lower(), options, 1)
    meant = f"; did you mean {near[0]}? " if near else ". "
    return f"{group}={name}: there is no such {group.strip('+')}{meant}There are {', '.join(options) or 'none'}."
