"""Composition of the jobs of a sweep, once for all jobs that choose the same options; the knobs are set on copies."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from clrun.config import catalog
from clrun.config.catalog import CLUSTER, GROUPS, Catalog
from clrun.config.check import check
from clrun.config.settings import Settings
from clrun.system.paths import CONF

Compose = Callable[[DictConfig, Sequence[str]], DictConfig]


def remembering(compose: Compose) -> Compose:
    """Hydra's sweeper composes every job to see whether it can be, then the launcher does to run it: once is enough."""
    seen: dict[tuple[str, ...], DictConfig] = {}
    bases: dict[tuple[str, ...], DictConfig] = {}

    def composed(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        key = tuple(sweep_overrides)
        if key not in seen:
            knobs = {text: override for text in key if (override := knob(text)) is not None}
            rest = tuple(text for text in key if text not in knobs)
            if rest not in bases:
                bases[rest] = compose(master_config, list(rest))
            seen[key] = with_knobs(bases[rest], list(knobs.values())) if knobs else bases[rest]
        return seen[key]

    return composed


@cache
def knob(text: str) -> Override | None:
    """The override, if all that it does is to give one of our keys a value; None if it chooses what is composed."""
    override = OverridesParser.create().parse_override(text)
    key = override.key_or_group
    groups = (*GROUPS, CLUSTER, "experiment", "hydra")
    composes = key in groups or key.startswith("hydra.") or "/" in key or override.package
    plain = not (composes or override.is_add() or override.is_delete() or override.is_force_add())
    return override if plain and "${" not in text else None


def with_knobs(base: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy of a composed configuration, without Hydra's own part, in which these keys have these values."""
    tree = {key: node for key, node in container(base).items() if key != "hydra"}
    for override in overrides:
        tree = with_value(tree, override.key_or_group.split("."), deepcopy(override.value()))
    return OmegaConf.create(tree)


def container(cfg: DictConfig) -> dict[str, Any]:
    """As plain dicts and lists, interpolations as they stand."""
    return OmegaConf.to_container(cfg, resolve=False)


def with_value(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """tree with another value at a path; what lies beside the path is shared, not copied."""
    inner = value if len(path) == 1 else with_value(tree[path[0]], path[1:], value)
    return {**tree, path[0]: inner}


def compose(*overrides: str) -> Settings:
    """Settings from Python: compose("strategy=ewc", "lambda=400"), checked as on the command line. UsageError."""
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="knobs", node=catalog.read().nulls())
    typed = [text.lstrip("+").partition("=")[0] for text in overrides]
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return check(hydra.compose("config", overrides=list(overrides)), typed=typed)


def composed_from(hydra: DictConfig | None = None) -> tuple[Catalog, list[str]]:
    """The catalogue of the folders that Hydra composed from, and the keys that were typed."""
    hydra = HydraConfig.get() if hydra is None else hydra
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    folders = [CONF, *(folder for folder in folders if folder != CONF)]
    parser = OverridesParser.create()
    return catalog.read(tuple(folders)), [parser.parse_override(text).key_or_group for text in hydra.overrides.task]
