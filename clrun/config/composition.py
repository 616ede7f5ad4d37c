"""Composition of settings by Hydra: all that clrun's commands set up in Hydra before they use it.

The command line composes through `run_with_hydra`, Python through `compose`, a search through `composer`. A sweep
composes once for all jobs that choose the same options, and sets their other keys on copies (`remembering`).
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

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

Compose = Callable[[DictConfig, Sequence[str]], DictConfig]


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
    register_keys(read())
    typed = [text.lstrip("+").partition("=")[0] for text in overrides]
    return check(compose_config(overrides), typed=typed)


def composer(catalog: Catalog, config_dir: str | None) -> Callable[[Sequence[str]], DictConfig]:
    """Return a function from overrides to what they compose to with the user's --config-dir, which remembers both."""
    register_keys(catalog)
    folder = None if config_dir is None else Path(config_dir).expanduser().resolve()
    search_path = [] if folder is None else [f'hydra.searchpath=["file://{folder}"]']
    composed = remembering(lambda _, overrides: compose_config([*overrides, *search_path]))
    return lambda overrides: composed(OmegaConf.create(), [*map(as_typed, overrides)])


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


def remembering(compose: Compose) -> Compose:
    """Return a function that composes as `compose` does, but each job and each choice of options once.

    Hydra's sweeper composes every job to see whether it can be composed, and the launcher does so again to run it.
    """
    jobs: dict[tuple[str, ...], DictConfig] = {}
    bases: dict[tuple[str, ...], DictConfig] = {}

    def composed(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        job = tuple(sweep_overrides)
        if job not in jobs:
            values = {text: override for text in job if (override := plain_value(text)) is not None}
            rest = tuple(text for text in job if text not in values)
            if rest not in bases:
                bases[rest] = compose(master_config, list(rest))
            jobs[job] = with_values(bases[rest], list(values.values())) if values else bases[rest]
        return jobs[job]

    return composed


@cache
def plain_value(text: str) -> Override | None:
    """Return an override that only gives a key of clrun's a value; None if it chooses what is composed."""
    override = OverridesParser.create().parse_override(text)
    key = override.key_or_group
    groups = (*GROUPS, CLUSTER, "experiment", "hydra")
    composes = key in groups or key.startswith("hydra.") or "/" in key or override.package
    plain = not (composes or override.is_add() or override.is_delete() or override.is_force_add())
    return override if plain and "${" not in text else None


def with_values(base: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Return a copy of a composed configuration, without Hydra's own part, in which these keys have these values."""
    tree = {key: node for key, node in unresolved_dict(base).items() if key != "hydra"}
    for override in overrides:
        tree = with_value(tree, override.key_or_group.split("."), deepcopy(override.value()))
    return OmegaConf.create(tree)


def unresolved_dict(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as dictionaries and lists, interpolations unresolved."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    return content


def with_value(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a tree with another value at a path; what lies beside the path is shared, not copied."""
    inner = value if len(path) == 1 else with_value(tree[path[0]], path[1:], value)
    return {**tree, path[0]: inner}
