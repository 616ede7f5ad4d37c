"""The check of a composed configuration: what is typed becomes the settings of a run, or is refused. No torch."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from clrun.config import interpolations
from clrun.config.catalog import (
    CLUSTER,
    GROUPS,
    NO_FEATURES,
    Catalog,
    DatasetOption,
    KeySpec,
    Option,
    StrategyOption,
    read,
)
from clrun.config.contradictions import refuse_contradictions
from clrun.config.dependent_values import resolved
from clrun.config.messages import first_line, refusal, unsupported
from clrun.config.settings import Settings
from clrun.config.typed_texts import with_current_keys
from clrun.data import split
from clrun.system.errors import UsageError

# Keys from whose values the defaults of others follow.
FOLLOWED = {"features.size"}


def check(
    cfg: DictConfig | dict[str, Any],
    drop: Collection[str] = (),
    catalog: Catalog | None = None,
    typed: Collection[str] = (),
) -> Settings:
    """Return the settings that a composed configuration stands for.

    cfg: as Hydra composes it, or as plain values, in which nothing refers to anything else; it is left as it is.
    drop: keys to leave out where the chosen options do not take them. catalog: the catalogue (by default clrun's own).
    typed: the keys on the command line; a typed one of epochs and iterations replaces the other of an experiment.
    Raise UsageError for an unknown key, a value out of range, and values that contradict each other.
    """
    catalog = catalog or read()
    tree = with_current_keys(resolved_dict(cfg) if isinstance(cfg, DictConfig) else cfg)
    refuse_changed("knobs", tree.pop("knobs", None), catalog.stated["knobs"], "config.yaml")
    tree.pop(CLUSTER, None)
    if isinstance(tree.get("about"), str):  # of an experiment, for clrun --help
        del tree["about"]
    chosen = {group: chosen_option(tree, group, catalog) for group in GROUPS}
    dataset, strategy = chosen["dataset"], chosen["strategy"]
    assert isinstance(dataset, DatasetOption) and isinstance(strategy, StrategyOption)  # by clrun.config.catalog.KINDS
    names = tuple(option.name for option in chosen.values())
    specs = accepted(catalog, names)
    given = {key: value for key, value in flat(tree, chosen).items() if key in specs or key not in drop}
    given = one_budget(interpolations.typed(given, cfg, specs), typed)
    values = resolved(validated(given, catalog, names), given, chosen)
    defaults = resolved(validated({}, catalog, names) | {key: values[key] for key in FOLLOWED & {*values}}, {}, chosen)
    refuse_contradictions(values, strategy)
    lists = assigned_classes(values, dataset)
    values |= {"split.classes": lists} if lists else {}
    return Settings(
        values=values,
        knobs={key: values[key] for key in catalog.knobs("strategy", strategy.name)},
        targets={group: option.target for group, option in chosen.items() if option.target is not None},
        about=strategy.about,
        warns={str(scenario): reason for scenario, reason in strategy.warns.items()},
        needs_task_id=strategy.needs_task_id,
        not_default={key: v for key, v in values.items() if v is not None and (key in FOLLOWED or v != defaults[key])},
        outside_identity=frozenset(key for key, spec in specs.items() if not spec.identity),
        later=frozenset(key for key, spec in specs.items() if spec.later),
    )


# ---------------------------------------------------------------- what was composed


def resolved_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as a dictionary, interpolations resolved, without Hydra's own part."""
    keys = [str(key) for key in cfg if key != "hydra"]
    ours = OmegaConf.masked_copy(cfg, keys) if "hydra" in cfg else cfg
    try:
        content: Any = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"{first_line(error)}; type a value in its place.") from None
    return content


def chosen_option(tree: Mapping[str, Any], group: str, catalog: Catalog) -> Option:
    """Return the chosen option of a group. Raise UsageError if there is none, or if it is not as its yaml states it."""
    node = tree.get(group)
    fields = node if isinstance(node, dict) else {}
    name: Any = fields.get("name")
    if name not in catalog.options[group]:
        raise UsageError(f"no {group} is chosen: type {group}=..., one of {', '.join(catalog.options[group])}.")
    stated = catalog.stated[f"{group}/{name}"]
    composed = {field: value for field, value in fields.items() if field in stated}
    refuse_changed(group, composed, stated, f"{group}/{name}.yaml")
    return catalog.options[group][name]


def refuse_changed(at: str, composed: Any, stated: Any, file: str) -> None:
    """Raise UsageError where what a yaml states was overridden."""
    if composed != stated:
        raise UsageError(
            f"{at}: what {file} states about names, knobs and their defaults is not a setting; type the knob itself, "
            f"such as lambda=400, choose one option of a group, or write a yaml of your own into a --config-dir."
        )


def flat(tree: Mapping[str, Any], chosen: Mapping[str, Option]) -> dict[str, Any]:
    """Return what was typed, key -> value, without what the options state and without nulls."""
    given = {key: value for key, value in tree.items() if key not in GROUPS}
    for group, option in chosen.items():
        stated = {field.alias or name for name, field in type(option).model_fields.items()}
        given |= {f"{group}.{key}": value for key, value in tree[group].items() if key not in stated}
    return {key: deepcopy(value) for key, value in given.items() if value is not None}


def one_budget(given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Return one of epochs and iterations: a typed one replaces that of an experiment. Raise UsageError for two."""
    both = [key for key in ("epochs", "iterations") if key in given]
    if len(both) < 2:
        return given
    kept = [key for key in both if key in typed]
    if len(kept) != 1:
        raise UsageError("epochs and iterations are two ways to say one thing, a task's training: type one of them.")
    return {key: value for key, value in given.items() if key not in both or key in kept}


# ---------------------------------------------------------------- one value


@cache
def accepted(catalog: Catalog, names: tuple[str, ...]) -> dict[str, KeySpec]:
    """Return the keys that the options with these names (one for each of GROUPS) take, and their specifications."""
    by_group = (catalog.knobs(group, name) for group, name in zip(GROUPS, names, strict=True))
    return {key: spec for keys in by_group for key, spec in keys.items()} | dict(catalog.root)


@cache
def values_model(catalog: Catalog, names: tuple[str, ...]) -> type[BaseModel]:
    """Return the pydantic model of the keys that these options accept."""
    # a key such as lambda or model.widths cannot be the name of a field, so it is its alias
    fields: dict[str, Any] = {
        f"key_{i}": (spec.annotation(), Field(spec.default, alias=key))
        for i, (key, spec) in enumerate(accepted(catalog, names).items())
    }
    strict = ConfigDict(strict=True, extra="forbid", validate_default=True)
    return create_model("Values", __config__=strict, **fields)


def validated(given: Mapping[str, Any], catalog: Catalog, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of all accepted keys, as the right types: what is given, else the default. Raise UsageError."""
    try:
        values = values_model(catalog, names).model_validate(given).model_dump(by_alias=True)
    except ValidationError as error:
        wrong = dict.fromkeys(str(details["loc"][0]) for details in error.errors())
        specs = accepted(catalog, names)
        complaints = [refusal(key, given[key], specs[key]) for key in wrong if key in specs]
        complaints += [unsupported(key, catalog, names) for key in wrong if key not in specs]
        raise UsageError("\n".join(complaints)) from None
    return ordered(values, catalog, names)


def ordered(values: Mapping[str, Any], catalog: Catalog, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the values in the order of the columns: each option before its keys, then the keys of every run."""
    tree: dict[str, Any] = {}
    for group, name in zip(GROUPS, names, strict=True):
        if (group, name) == ("features", NO_FEATURES):
            continue  # no key of it is part of a run, as before there were features
        tree["optimizer.name" if group == "optimizer" else group] = name  # the name of the column in results.csv
        tree |= {key: values[key] for key in catalog.knobs(group, name)}
    return tree | dict(values)


def checked_values(given: Mapping[str, Any], specs: Mapping[str, KeySpec]) -> dict[str, Any]:
    """Return the values of keys that are no part of a run: what is given, else the default. Raise UsageError."""
    values = {key: spec.default if given.get(key) is None else given[key] for key, spec in specs.items()}
    for key, spec in specs.items():
        try:
            values[key] = TypeAdapter(spec.annotation()).validate_python(values[key], strict=True)
        except ValidationError:
            raise UsageError(refusal(key, values[key], spec)) from None
    return values


def chosen_cluster(
    node: Mapping[str, Any] | None, catalog: Catalog, cfg: DictConfig | dict[str, Any]
) -> tuple[Option, dict[str, Any]] | None:
    """Return the cluster of a composed configuration and the values of its keys; None if none is chosen.

    node: what is in `cfg` below `cluster`, interpolations resolved. Raise UsageError for a key that the cluster does
    not take, and for keys without a cluster.
    """
    fields = {key: value for key, value in (node or {}).items() if value is not None}
    cluster_keys = {key.partition(".")[2] for key in catalog.all_keys() if key.startswith(f"{CLUSTER}.")}
    given = {f"{CLUSTER}.{key}": value for key, value in fields.items() if key in cluster_keys}
    if "name" not in fields:
        if given:
            raise UsageError(f"{next(iter(given))}: type which cluster, too: cluster=slurm or cluster=local.")
        return None
    option = chosen_option({CLUSTER: fields}, CLUSTER, catalog)
    specs = catalog.knobs(CLUSTER, option.name)
    refused = [key for key in given if key not in specs]
    if refused:
        takers = ", ".join(name for _, name in catalog.takers(refused[0]))
        raise UsageError(f"cluster={option.name} takes no {refused[0]} ({takers} does).")
    given = interpolations.typed(given, cfg, specs)
    return option, {key.partition(".")[2]: value for key, value in checked_values(given, specs).items()}


# ---------------------------------------------------------------- the classes of each task


def assigned_classes(values: Mapping[str, Any], dataset: DatasetOption) -> list[list[str]] | None:
    """Return the classes of each task by name, in the order listed; None if they are not listed.

    Raise UsageError where the split does not fit the classes, or where the data folder is none. (The tasks of a run
    are made in `clrun.data.tasks`, from the images; here a wrong split is refused without reading one.)
    """
    from clrun.data import datasets, folder_layouts  # NumPy, which Tab completion need not wait for

    if values["data_dir"] is not None:
        datasets.data_folder(values["data_dir"])
    names = dataset.class_names
    if values["init_from"] is not None:
        return None  # which classes that run has learnt is known when its network has been read
    if names is None and dataset.name != "image_folder":
        return None  # known when the data set has been read: `clrun.runs.prepare` looks then
    if names is None:
        layout = folder_layouts.find(values["dataset.root"], values["dataset.test_fraction"])
        folder_layouts.refuse_split(layout, values)
        names = list(layout.classes)
    return listed_by_name(names, values)


def listed_by_name(
    names: Sequence[str], values: Mapping[str, Any], learnt: Collection[str] = ()
) -> list[list[str]] | None:
    """Return the classes of each task by name, in the order listed; None if they are not listed. learnt: the classes
    of an earlier run, from which this one goes on.

    Raise UsageError where the split does not fit the classes.
    """
    tasks = split.assign_classes(names, values, learnt)
    if tasks is None or not values.get("split.classes"):
        return None
    return [[names[k] for k in task] for task in tasks]
