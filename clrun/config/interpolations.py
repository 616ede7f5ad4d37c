"""Values that come from elsewhere, as in 'seed=${oc.env:SLURM_ARRAY_TASK_ID}': they arrive as texts."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from clrun.config.catalog import KeySpec, Loader

# Types of keys of which every text may be a value.
TEXTS = ("str", "path", "choice")

# The type of what is in a list of this type.
PARTS = {"ints": "int", "int_by_task": "int", "floats": "float"}

TRUTHS = {"true": True, "false": False}


def typed(given: Mapping[str, Any], cfg: DictConfig | dict[str, Any], specs: Mapping[str, KeySpec]) -> dict[str, Any]:
    """Return the values of keys, in which a text that an interpolation gave has the type of its key.

    A text that was typed stays a text, and so does one that cannot be of the type, which is refused later. null leaves
    the key out. cfg: the configuration, in which interpolations are not resolved; a dictionary has none.
    """
    values = dict(given)
    if not isinstance(cfg, DictConfig):
        return values
    for key, spec in specs.items():
        if key in given and spec.type not in TEXTS and has_text(given[key], spec.type):
            values[key] = converted(given[key], unresolved(cfg, key), spec.type)
    return {key: value for key, value in values.items() if value is not None}


def has_text(value: Any, kind: str) -> bool:
    """Return whether a value is a text, or a list with one in it that is to be a list of numbers."""
    return isinstance(value, str) or (kind in PARTS and isinstance(value, list) and any(has_text(v, "") for v in value))


def unresolved(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key with its interpolations as they are written."""
    group, _, name = key.rpartition(".")
    node = cfg[group] if group else cfg
    content: Any = OmegaConf.to_container(OmegaConf.masked_copy(node, [name]), resolve=False)
    return content[name]


def converted(value: Any, written: Any, kind: str) -> Any:
    """Return a value as one of a type, where it is written with an interpolation."""
    if isinstance(value, list) and isinstance(written, list):
        return [converted(v, w, PARTS.get(kind, "")) for v, w in zip(value, written, strict=True)]
    if not isinstance(value, str) or "${" not in str(written):
        return value
    return None if value.strip() == "null" else parsed(value.strip(), kind)


def parsed(text: str, kind: str) -> Any:
    """Return a text as a value of a type; the text where it cannot be one."""
    if kind in ("int", "int_by_task", "count") and re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.I):
        return float(text)
    if kind == "bool":
        return TRUTHS.get(text.lower(), text)
    if kind in ("ints", "int_by_task", "floats", "classes"):
        try:
            content = yaml.load(text, Loader)
        except yaml.YAMLError:
            return text
        return content if isinstance(content, list) else text
    return text
