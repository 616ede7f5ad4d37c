"""The sentences that refuse a key or a value, and advise what to type instead."""

import difflib
import math
import re
from typing import Any

from clrun.config.catalog import GROUPS, LARGEST, Catalog, KeySpec
from clrun.system.text import format_value


def refusal(key: str, value: Any, said: KeySpec) -> str:
    """What is wrong with a value, and what to type instead."""
    # repr, since 1e9 is no whole number
    typed = repr(value) if said.type == "int" and isinstance(value, float) else format_value(value)
    return "; ".join(filter(None, [f"{key}={typed}: must be {said.expects()}", advice(key, value, said)]))


def advice(key: str, value: Any, said: KeySpec) -> str:
    """What to type in place of a value."""
    if said.type == "choice":
        near = difflib.get_close_matches(str(value), said.choices, 1)
        return f"did you mean {near[0]}?" if near else ""
    swept = said.type in ("int", "float") and said.identity
    if swept and isinstance(value, str) and (ends := re.fullmatch(r"(\d+)(?:\.\.+|-|:)(\d+)", value)):
        return f"several values are a sweep, typed with -m as '{key}=range({ends[1]},{int(ends[2]) + 1})'"
    if said.max is None and too_large(value, said.type):
        return f"numbers end at {LARGEST[said.type]:.0e} here"
    if said.type == "int" and isinstance(value, float) and value.is_integer():
        return f"type {key}={value:.0f}"
    if said.type in ("path", "str") and not isinstance(value, str):
        typed = format_value(value)
        return f"type {key}=./{typed}" if said.type == "path" else f"type {key}='\"{typed}\"'"
    return f"e.g. {key}={format_value(said.default)}" if said.default is not None else ""


def too_large(value: Any, kind: str) -> bool:
    """Whether a number, or one of a list, is finite and beyond what clrun takes."""
    numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
    return any(LARGEST.get(kind, math.inf) < abs(v) < math.inf for v in numbers)


def unsupported(key: str, known: Catalog, names: tuple[str, ...]) -> str:
    """What to say about a key that these options do not take."""
    takers = known.takers(key)
    if not takers:
        return unknown_key(key, known)
    group = takers[0][0]
    name = names[GROUPS.index(group)]
    others = ", ".join(taker for _, taker in takers)
    return f"{group}={name} takes no {key} ({others} {'does' if len(takers) == 1 else 'do'})."


SYNONYMS = {  # what other programs call our keys
    "learning_rate": ["lr"], "hidden": ["model.widths"], "hidden_sizes": ["model.widths"], "layers": ["model.widths"],
    "num_epochs": ["epochs"], "n_epochs": ["epochs"], "n_tasks": ["tasks"], "num_tasks": ["tasks"],
    "method": ["strategy"], "algorithm": ["strategy"], "buffer_size": ["memory_size"], "ewc_lambda": ["lambda"],
}  # fmt: skip


def unknown_key(key: str, known: Catalog) -> str:
    """What to say about a key that nothing takes."""
    keys = known.typeable()
    last = key.rpartition(".")[2]
    same = [other for other in keys if other.rpartition(".")[2] == last]
    near = (
        same
        or SYNONYMS.get(last)
        or difflib.get_close_matches(key, keys, 1)
        or difflib.get_close_matches(last, keys, 1)
    )
    return f"{key}: no such key{f'; did you mean {near[0]}?' if near else ''} (clrun --help lists the keys)"


def first_line(error: Exception) -> str:
    """What an exception says, without Hydra's and OmegaConf's details."""
    return str(error).strip().split("\n")[0].rstrip(".")
