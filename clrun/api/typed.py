"""From values of Python to what is typed on the command line: seed=range(3) is `seed=0,1,2`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from clrun.config.catalog import Catalog
from clrun.data.split import quoted_name
from clrun.system.errors import UsageError
from clrun.system.text import format_value

# How many lists within each other are one value of a key, by the key's type; a list more is several values.
DEPTHS = {"ints": 1, "floats": 1, "texts": 1, "classes": 2}

PLAIN = r"[\w./+-]+"  # a text that Hydra takes as it is


def texts_of(typed: Iterable[object], keys: Mapping[str, object], catalog: Catalog) -> list[str]:
    """Return overrides as the command line takes them. typed: such texts, and mappings from keys to values; keys:
    values by key. Raise UsageError."""
    texts: list[str] = []
    for one in typed:
        if isinstance(one, Mapping):
            texts += [text_of(str(key), value, catalog) for key, value in one.items()]
        elif isinstance(one, str) and not one.startswith("-") and "=" in one:
            texts.append(one)
        else:
            raise UsageError(
                f"clrun.run takes texts such as 'lambda=400', or keys as in seed=range(3), and not {one!r}; "
                "config_dir=FOLDER names a folder of your own."
            )
    return [*texts, *(text_of(key, value, catalog) for key, value in keys.items())]


def text_of(key: str, value: object, catalog: Catalog) -> str:
    """Return the override that gives a key a value, or each of several. A text is taken as it would be typed. Raise
    UsageError where there is no value."""
    if isinstance(value, str):
        return f"{key}={value}"
    plain = listed(value)
    if isinstance(plain, list) and depth(plain) > DEPTHS.get(catalog.type_of(key), 0):
        if not plain:
            raise UsageError(f"{key}={value!r} has no values, so there is nothing to run.")
        return f"{key}={','.join(map(spelt, plain))}"
    return f"{key}={spelt(plain)}"


def listed(value: object) -> object:
    """Return a value in which everything that can be gone through in an order is a list."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        return value
    if isinstance(value, set | frozenset):
        raise UsageError(f"{value!r} has no order; write a list.")
    return [listed(one) for one in value]


def depth(value: object) -> int:
    """Return how many lists there are within each other."""
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def spelt(value: object) -> str:
    """Return a value as Hydra reads it: a text in quotes where it needs them."""
    if isinstance(value, list):
        return f"[{','.join(map(spelt, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{spelt(one)}' for key, one in value.items())}}}"
    if isinstance(value, str | Path):
        text = str(value)
        return text if re.fullmatch(PLAIN, text) else quoted_name(text)
    return format_value(value)
