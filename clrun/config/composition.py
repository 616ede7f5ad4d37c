"""Composition of settings by Hydra: all that clrun's commands set up in Hydra before they use it.

The command line composes through `run_with_hydra`, Python through `compose`, a search through `composer`. A sweep
composes once for all jobs that choose the same options, and sets their other keys on copies (`Composer`).
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from clrun.config.catalog import CLUSTER, GROUPS, Catalog, read
from clrun.config.check_values import check
from clrun.config.settings import Settings
from clrun.config.typed_texts import as_typed
from clrun.system.paths import CONF

Compose = Callable[[Sequence[str]], DictConfig]

# A configuration in which nothing refers to anything else may be a dictionary of plain values.
Composed = DictConfig | dict[str, Any]


# ---------------------------------------------------------------- setting Hydra up


def register_keys(catalog: Catalog) -> None:
    """Let Hydra know every key: as null in the config `knobs`, which conf/config.yaml starts from."""
    ConfigStore.instance().store(name="knobs", node=catalog.nulls())


def run_with_hydra(catalog: Catalog, arguments: Sequence[str], run: Callable[[DictConfig], None]) -> None:
    """Give a command line to Hydra, which calls `run` with the composed configuration, or a launcher for a sweep."""
    register_keys(catalog)
    # Hydra 1.3 asks for its newest behaviour by name; 1.4 warns of any version_base
    options = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    with replaced_arguments([*map(as_typed, arguments)]):
        hydra.main(config_path=str(CONF), config_name="config", **options)(run)()


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Return what overrides compose to; `register_keys` comes first."""
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return hydra.compose("config", overrides=[*map(as_typed, overrides)])


def compose(*overrides: str) -> Settings:
    """Return settings, checked as on the command line: compose("strategy=ewc", "lambda=400"). Raise UsageError."""
    typed = [text.lstrip("+").partition("=")[0] for text in overrides]
    return check(own_composer()(overrides), typed=typed)


@cache
def own_composer() -> Callable[[Sequence[str]], Composed]:
    """Return the function that composes from clrun's own configuration alone."""
    return composer(read(), None)


def composer(catalog: Catalog, config_dir: str | None) -> Callable[[Sequence[str]], Composed]:
    """Return a function from overrides to what they compose to with the user's --config-dir."""
    folder = None if config_dir is None else Path(config_dir).expanduser().resolve()
    search_path = [] if folder is None else [f'hydra.searchpath=["file://{folder}"]']

    def by_hydra(overrides: Sequence[str]) -> DictConfig:
        register_keys(catalog)  # again: another catalogue may have been registered meanwhile
        return compose_config([*overrides, *search_path])

    composed = Composer(by_hydra)
    return lambda overrides: composed([*map(as_typed, overrides)])


def chosen_experiments() -> dict[str, Path]:
    """Return the experiments that the command line of the job that is running has taken, and the file of each."""
    known = composed_from()[0].experiments
    chosen = HydraConfig.get().runtime.choices.get("experiment", [])
    return {name: known[name] for name in ([chosen] if isinstance(chosen, str) else chosen) if name in known}


def composed_from(hydra_config: Any = None) -> tuple[Catalog, list[str]]:
    """Return the catalogue of the folders that Hydra composed from, and the keys that were typed.

    `hydra_config` is Hydra's own part of a configuration, by default that of the job that is running.
    """
    config = HydraConfig.get() if hydra_config is None else hydra_config
    folders = [Path(source.path) for source in config.runtime.config_sources if source.schema == "file"]
    folders = [CONF, *(folder for folder in folders if folder != CONF)]
    parser = OverridesParser.create()
    return read(tuple(folders)), [parser.parse_override(text).key_or_group for text in config.overrides.task]


# ---------------------------------------------------------------- patches of global state
# (Others that Hydra needs: HYDRA_FULL_ERROR in clrun/commands/console.py, its plugins in clrun/sweep/launcher.py.)


@contextmanager
def replaced_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Replace sys.argv meanwhile: hydra.main reads its command line from there alone."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


# ---------------------------------------------------------------- composing many jobs

# Choices of options whose configurations are remembered, the latest ones.
REMEMBERED = 256


class Options(NamedTuple):
    """What a choice of options composes to."""

    config: DictConfig
    tree: dict[str, Any]  # the same without Hydra's own part
    is_plain: bool  # whether no value refers to another, and none is missing


class Composer:
    """Composes jobs as `by_hydra` does, but each choice of options once: a job's other keys are set on copies.

    Nothing is kept of a job, so that a sweep of thousands needs no more memory than one of a few.
    """

    def __init__(self, by_hydra: Compose) -> None:
        self.by_hydra = by_hydra
        self.remembered = lru_cache(maxsize=REMEMBERED)(self.composed)

    def composed(self, choices: tuple[str, ...]) -> Options:
        """Return what choices of options compose to."""
        config = self.by_hydra(list(choices))
        tree = {key: node for key, node in unresolved_dict(config).items() if key != "hydra"}
        return Options(config, tree, not refers(tree))

    def options(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job before its other keys have the values that were typed. It is not to be
        changed: other jobs have the same."""
        return self.remembered(choices_of(overrides)).config

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """Return the configuration of a job, of which it owns the values that were typed and no others: as a dictionary
        where no value refers to another, since making a DictConfig takes five times as long as all else."""
        values = [value for text in overrides if (value := plain_value(text)) is not None]
        config, tree, is_plain = self.remembered(choices_of(overrides))
        if not all(is_in(tree, value.key_or_group.split(".")) for value in values):
            return self.by_hydra(overrides)  # which says what is wrong with a key that is not there
        if not (is_plain or values):
            return config
        for value in values:
            tree = with_value(tree, value.key_or_group.split("."), deepcopy(value.value()))
        is_plain = is_plain and not any(refers(value.value()) for value in values)
        return tree if is_plain else OmegaConf.create(tree)


def value_at(config: Composed, key: str) -> Any:
    """Return the value of a key in a configuration; None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def choices_of(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides that choose what is composed, such as strategy=ewc."""
    return tuple(text for text in overrides if plain_value(text) is None)


@cache
def plain_value(text: str) -> Override | None:
    """Return an override that only gives a key of clrun's a value; None if it chooses what is composed."""
    override = OverridesParser.create().parse_override(text)
    key = override.key_or_group
    groups = (*GROUPS, CLUSTER, "experiment", "hydra")
    composes = key in groups or key.startswith("hydra.") or "/" in key or override.package
    plain = not (composes or override.is_add() or override.is_delete() or override.is_force_add())
    if not plain or "${" in text or override.is_sweep_override():
        return None
    return None if isinstance(override.value(), dict) else override  # Hydra merges a dictionary into the one there


def is_in(tree: Any, path: Sequence[str]) -> bool:
    """Return whether a tree of dictionaries has something at a path."""
    return not path or (isinstance(tree, Mapping) and path[0] in tree and is_in(tree[path[0]], path[1:]))


def refers(node: Any) -> bool:
    """Return whether a value refers to another, as ${seed} does, or is missing (???), anywhere in a tree."""
    if isinstance(node, Mapping):
        return any(map(refers, node.values()))
    if isinstance(node, list):
        return any(map(refers, node))
    return isinstance(node, str) and ("${" in node or "???" in node)


def unresolved_dict(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as dictionaries and lists, interpolations unresolved."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    return content


def with_value(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a tree with another value at a path; what lies beside the path is shared, not copied."""
    inner = value if len(path) == 1 else with_value(tree[path[0]], path[1:], value)
    return {**tree, path[0]: inner}
