"""The sentences that refuse a key or a value and advise what to type instead."""

import difflib
import math
import re
from typing import Any

from clrun.config.catalog import GROUPS, LARGEST, Catalog, KeySpec
from clrun.system.text import format_value

# Keys that name a column, and what is typed for a share in their place.
SHARES = {"dataset.test": "dataset.test_fraction"}

# The types of keys of which a whole number is a value.
WHOLE = ("int", "int_by_task")


# Shares that papers state in percent.
PERCENTAGES = ("split.blurry", "split.disjoint", "split.recurrence")


def refusal(key: str, value: Any, spec: KeySpec) -> str:
    """Return what is wrong with a value, and what to type instead."""
    # repr, so that 1e9 is not printed as the whole number that it is not
    typed = repr(value) if spec.type in WHOLE and isinstance(value, float) else format_value(value)
    return "; ".join(filter(None, [f"{key}={typed}: must be {spec.expects()}", advice(key, value, spec)]))


def advice(key: str, value: Any, spec: KeySpec) -> str:
    """Return what to type in place of a value; "" if there is nothing to advise."""
    if spec.type in ("choice", "names", "device"):
        wrong = [name for name in value if name not in (spec.choices or [])] if isinstance(value, list) else [value]
        near = difflib.get_close_matches(str(wrong[0]), spec.choices or [], 1) if wrong else []
        return f"did you mean {near[0]}?" if near else ""
    if spec.type == "classes":
        return quoted_classes(key, value)
    swept = spec.type in (*WHOLE, "float") and spec.identity
    if swept and isinstance(value, str) and (ends := re.fullmatch(r"(\d+)(?:\.\.+|-|:)(\d+)", value)):
        return f"several values are a sweep, typed with -m as '{key}=range({ends[1]},{int(ends[2]) + 1})'"
    if spec.max is None and too_large(value, spec.type):
        return f"numbers end at {LARGEST[spec.type]:.0e} here"
    if spec.type in WHOLE and isinstance(value, float) and value.is_integer():
        return f"type {key}={value:.0f}"
    if key in PERCENTAGES and isinstance(value, int | float) and 1 < value < 100:
        return f"if {format_value(value)} percent is meant, type {key}={format_value(value / 100)}"
    if key in SHARES and isinstance(value, float):
        return f"for a share type {SHARES[key]}={format_value(value)}"
    if spec.type in ("path", "str") and not isinstance(value, str):
        typed = format_value(value)
        return f"type {key}=./{typed}" if spec.type == "path" else f"type {key}='\"{typed}\"'"
    return f"e.g. {key}={format_value(spec.default)}" if spec.default is not None else ""


def quoted_classes(key: str, value: Any) -> str:
    """Return what to write in a yaml in place of names that YAML reads as other values; "" where there are none."""
    tasks = [task for task in value if isinstance(task, list)] if isinstance(value, list) else []
    others = [name for task in tasks for name in task if name is None or isinstance(name, bool | float)]
    if not others:
        return ""
    return f'in a yaml, a name that reads as another value stands in quotes: {key}: [["{format_value(others[0])}"]]'


def too_large(value: Any, kind: str) -> bool:
    """Return whether a number, or one of a list, is finite and beyond what clrun takes."""
    numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
    return any(LARGEST.get(kind, math.inf) < abs(v) < math.inf for v in numbers)


def unsupported(key: str, catalog: Catalog, names: tuple[str, ...]) -> str:
    """Return the refusal of a key that the options with these names (one for each of GROUPS) do not take."""
    takers = catalog.takers(key)
    if not takers:
        return unknown_key(key, catalog)
    group = takers[0][0]
    name = names[GROUPS.index(group)]
    others = ", ".join(taker for _, taker in takers)
    return f"{group}={name} takes no {key} ({others} {'does' if len(takers) == 1 else 'do'})."


# What other programs call clrun's keys.
SYNONYMS = {
    "learning_rate": ["lr"], "hidden": ["model.widths"], "hidden_sizes": ["model.widths"], "layers": ["model.widths"],
    "num_epochs": ["epochs"], "n_epochs": ["epochs"], "n_tasks": ["tasks"], "num_tasks": ["tasks"],
    "method": ["strategy"], "algorithm": ["strategy"], "buffer_size": ["memory_size"], "ewc_lambda": ["lambda"],
    "dataset.name": ["dataset.set"], "name": ["model.arch"], "architecture": ["model.arch"], "backbone": ["model.arch"],
}  # fmt: skip


def unknown_key(key: str, catalog: Catalog) -> str:
    """Return the refusal of a key that no option takes."""
    keys = catalog.all_keys()
    group, _, last = key.rpartition(".")
    same = [other for other in keys if other.rpartition(".")[2] == last]
    named = SYNONYMS.get(last, [])
    in_group = [f"{group}.{other.rpartition('.')[2]}" for other in named]
    near = (
        SYNONYMS.get(key)
        or same
        or [other for other in in_group if other in keys]
        or named
        or difflib.get_close_matches(key, keys, 1)
        or difflib.get_close_matches(last, keys, 1)
    )
    return f"{key}: no such key{f'; did you mean {near[0]}?' if near else ''} (clrun --help keys lists the keys)"


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text, which leaves out Hydra's and OmegaConf's details."""
    return str(error).strip().split("\n")[0].rstrip(".")
