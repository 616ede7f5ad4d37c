"""What is typed as key=value: read, and refused before anything is composed, each mistake in one paragraph."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clrun.system.errors import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from clrun.config.catalog import Catalog


BRACKETS = ("()", "[]", "{}")


def refuse(texts: Sequence[str], multirun: bool, known: "Catalog") -> None:
    """UsageError for whatever can be seen in the arguments alone."""
    overrides = [parsed(text) for text in texts]
    sweeps = multirun or any(override.key_or_group == "hydra.mode" for override in overrides)
    basic = not any(override.key_or_group == "hydra/sweeper" for override in overrides)
    for override in overrides:
        if basic and override.key_or_group.startswith("hydra.sweeper.params"):
            raise UsageError(f"{override.input_line}: what is swept is typed by itself, with -m, as 'seed=0,1'.")
        refuse_key(override, known)
        if override.is_sweep_override():
            refuse_idle_sweep(override, known)
            refuse_sweep(override, sweeps, basic)


def parsed(text: str) -> "Override":
    """One override; UsageError if it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UsageError(malformed(text, str(error))) from None


def malformed(text: str, reason: str) -> str:
    """What to say about an argument that Hydra's grammar does not take."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: a setting is key=value, without spaces; type {setting(text)}."
    if key != key.strip():
        return f"{text}: a setting is key=value, without spaces; type {key.strip()}={value.strip()}."
    if ",," in value or value.endswith(","):
        return f"{text}: a value is missing in the list; values are typed with one comma between them, as {key}=1,10."
    if any(value.count(opened) > value.count(closed) for opened, closed in BRACKETS):
        return f"{text}: a bracket is not closed; a value with brackets is typed in quotes, as 'seed=range(5)'."
    quoted = value.strip("'\"").replace('"', '\\"')
    reason = reason.splitlines()[0].partition(" expecting {")[0]
    return (
        f"{text}: {reason}. A text with = or other signs is quoted twice, so that the shell leaves "
        f"one pair of quotes: '{key}=\"{quoted}\"'."
    )


def setting(word: str) -> str:
    """What to type instead of a word that is no setting."""
    from clrun.config import catalog

    if word in ("help", "version"):
        return f"clrun --{word}"
    if not word.isidentifier():
        return "e.g. lambda=400, or several values with nothing but commas between them, as lambda=1,10"
    group = next((group for group, options in catalog.read().options.items() if word in options), None)
    return f"{word}=VALUE" if group is None else f"{group}={word}"


def refuse_key(override: "Override", known: "Catalog") -> None:
    """An override of a key that nothing states, or of an option that is not there."""
    from hydra.core.override_parser.types import Glob

    from clrun.config.messages import unknown_key

    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if key == "experiment":
        refuse_option(override, list(known.experiments), "+experiment")
    elif key in known.options:
        refuse_option(override, list(known.options[key]), key)
    elif key not in known.typeable():
        raise UsageError(unknown_key(key, known))
    elif isinstance(override.value(), Glob):
        raise UsageError(f"{override.input_line}: glob finds the options of a group, as of strategy; list the values.")


def refuse_option(override: "Override", options: Sequence[str], typed: str) -> None:
    """An option that is not there."""
    from hydra.core.override_parser.types import Glob

    from clrun.system.text import format_value

    if typed.startswith("+") and not override.is_add():
        raise UsageError(f"{override.input_line}: an experiment is added with a plus: +{override.input_line}.")
    if isinstance(override.value(), Glob):
        if not override.value().filter([*options]):
            raise UsageError(f"{override.input_line}: it fits none of {', '.join(options)}.")
        return
    swept = override.is_sweep_override() and override.is_discrete_sweep()
    for name in map(format_value, override.sweep_string_iterator() if swept else [override.value()]):
        if name not in options:
            raise UsageError(missing(typed, name, options))


def refuse_sweep(override: "Override", sweeps: bool, basic: bool) -> None:
    """Several values without -m, or an interval, which only an optimising sweeper understands."""
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


def refuse_idle_sweep(override: "Override", known: "Catalog") -> None:
    """Several values of what makes no other run."""
    said = known.root.get(override.key_or_group)
    if said is not None and not said.identity and override.key_or_group != "data_dir":
        raise UsageError(
            f"{override.input_line}: runs that differ in {override.key_or_group} alone are one run, which is trained "
            f"once; type one value."
        )


def missing(group: str, name: str, options: Sequence[str]) -> str:
    """What to say about an option that is not there."""
    near = difflib.get_close_matches(name.lower(), options, 1)
    meant = f"; did you mean {near[0]}? " if near else ". "
    return f"{group}={name}: there is no such {group.strip('+')}{meant}There are {', '.join(options) or 'none'}."
