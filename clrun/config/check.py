"""What a run may be told, checked and resolved, and the identity that follows from it. No torch."""

import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from clrun.config import catalog
from clrun.config.catalog import CLUSTER, GROUPS, Catalog, KeySpec, Option
from clrun.config.messages import first_line, refusal, unsupported
from clrun.config.settings import Settings
from clrun.data import split
from clrun.system.errors import UsageError


def check(
    cfg: DictConfig, drop: Collection[str] = (), known: Catalog | None = None, typed: Collection[str] = ()
) -> Settings:
    """The settings that a composed configuration stands for.

    drop: keys to leave out where the chosen options do not take them. known: the catalogue (by default ours).
    typed: the keys on the command line, which of epochs and iterations to follow if an experiment gives the other.
    UsageError: an unknown key, a value out of range, values that contradict each other.
    """
    known = known or catalog.read()
    tree = plain(cfg)
    refuse_changed("knobs", tree.pop("knobs", None), known.stated["knobs"], "config.yaml")
    tree.pop(CLUSTER, None)
    chosen = {group: option(tree, group, known) for group in GROUPS}
    names = tuple(one.name for one in chosen.values())
    stated = taken(known, names)
    given = flat(tree, chosen)
    given = {key: value for key, value in given.items() if key in stated or key not in drop}
    given = one_budget(given, typed)
    values = resolved(validated(given, known, names), given, chosen)
    usual = resolved(validated({}, known, names), {}, chosen)
    refuse_contradictions(values, given, chosen["strategy"])
    lists = dealt(values, chosen["dataset"])
    values |= {"split.classes": lists} if lists else {}
    return Settings(
        values=values,
        knobs={key: values[key] for key in known.knobs("strategy", chosen["strategy"].name)},
        targets={group: one.target for group, one in chosen.items() if one.target is not None},
        about=chosen["strategy"].about,
        warns=chosen["strategy"].warns,
        needs_task_id=chosen["strategy"].needs_task_id,
        unusual={key: v for key, v in values.items() if v is not None and v != usual[key]},
        private=frozenset(key for key, said in stated.items() if not said.identity),
        later=frozenset(key for key, said in stated.items() if said.later),
    )


# ---------------------------------------------------------------- what was composed


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a dict, interpolations resolved, without Hydra's own part."""
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]) if "hydra" in cfg else cfg
    try:
        return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"{first_line(error)}; type a value in its place.") from None


def option(tree: Mapping[str, Any], group: str, known: Catalog) -> Option:
    """The chosen option of a group; refused if it is not as its yaml states it."""
    node = tree.get(group)
    name = node.get("name") if isinstance(node, dict) else None
    if name not in known.options[group]:
        raise UsageError(f"no {group} is chosen: type {group}=..., one of {', '.join(known.options[group])}.")
    stated = known.stated[f"{group}/{name}"]
    own = {field: value for field, value in node.items() if field in stated}
    refuse_changed(group, own, stated, f"{group}/{name}.yaml")
    return known.options[group][name]


def refuse_changed(at: str, found: Any, stated: Any, file: str) -> None:
    if found != stated:
        raise UsageError(
            f"{at}: what {file} states about names, knobs and their defaults is not a setting; type the knob itself, "
            f"such as lambda=400, choose one option of a group, or write a yaml of your own into a --config-dir."
        )


def flat(tree: Mapping[str, Any], chosen: Mapping[str, Option]) -> dict[str, Any]:
    """What was typed: key -> value, without what the options state and without nulls."""
    given = {key: value for key, value in tree.items() if key not in GROUPS}
    for group, one in chosen.items():
        stated = {field.alias or name for name, field in type(one).model_fields.items()}
        given |= {f"{group}.{key}": value for key, value in tree[group].items() if key not in stated}
    return {key: value for key, value in given.items() if value is not None}


def one_budget(given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """One of epochs and iterations: what is typed replaces what an experiment gives."""
    both = [key for key in ("epochs", "iterations") if key in given]
    if len(both) < 2:
        return given
    here = [key for key in both if key in typed]
    if len(here) != 1:
        raise UsageError("epochs and iterations are two ways to say one thing, a task's training: type one of them.")
    return {key: value for key, value in given.items() if key not in both or key in here}


# ---------------------------------------------------------------- one value


@cache
def taken(known: Catalog, names: tuple[str, ...]) -> dict[str, KeySpec]:
    """The keys that the options with these names (one a group) take, and what is stated about each."""
    own = (known.knobs(group, name) for group, name in zip(GROUPS, names, strict=True))
    return {key: said for knobs in own for key, said in knobs.items()} | dict(known.root)


@cache
def form(known: Catalog, names: tuple[str, ...]) -> type[BaseModel]:
    """The pydantic model of the keys of `taken`."""
    stated = taken(known, names)
    # a key such as lambda or model.widths cannot be a field's name, so it is its alias
    fields = {
        f"knob_{i}": (said.annotation(), Field(said.default, alias=key)) for i, (key, said) in enumerate(stated.items())
    }
    strict = ConfigDict(strict=True, extra="forbid", validate_default=True)
    return create_model("Values", __config__=strict, **fields)


def validated(given: Mapping[str, Any], known: Catalog, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of all keys that are taken, as the right types: typed, else the default."""
    try:
        values = form(known, names).model_validate(given).model_dump(by_alias=True)
    except ValidationError as error:
        wrong = dict.fromkeys(str(found["loc"][0]) for found in error.errors())
        stated = taken(known, names)
        complaints = [refusal(key, given[key], stated[key]) for key in wrong if key in stated]
        complaints += [unsupported(key, known, names) for key in wrong if key not in stated]
        raise UsageError("\n".join(complaints)) from None
    return ordered(values, known, names)


def ordered(values: Mapping[str, Any], known: Catalog, names: tuple[str, ...]) -> dict[str, Any]:
    """Each group's option before its knobs, then the keys of every run."""
    tree: dict[str, Any] = {}
    for group, name in zip(GROUPS, names, strict=True):
        tree["optimizer.name" if group == "optimizer" else group] = name  # the contract's column
        tree |= {key: values[key] for key in known.knobs(group, name)}
    return tree | values


def checked(given: Mapping[str, Any], stated: Mapping[str, KeySpec]) -> dict[str, Any]:
    """The values of keys that are no part of a run: as given, else the default. UsageError."""
    values = {key: said.default if given.get(key) is None else given[key] for key, said in stated.items()}
    for key, said in stated.items():
        try:
            values[key] = TypeAdapter(said.annotation()).validate_python(values[key], strict=True)
        except ValidationError:
            raise UsageError(refusal(key, values[key], said)) from None
    return values


def chosen_cluster(node: Mapping[str, Any] | None, known: Catalog) -> tuple[Option, dict[str, Any]] | None:
    """The cluster of a composed configuration and its knobs; None if none is chosen. UsageError."""
    own = {key: value for key, value in (node or {}).items() if value is not None}
    stated = {key.partition(".")[2] for key in known.typeable() if key.startswith(f"{CLUSTER}.")}
    given = {f"{CLUSTER}.{key}": value for key, value in own.items() if key in stated}
    if "name" not in own:
        if given:
            raise UsageError(f"{next(iter(given))}: type which cluster, too: cluster=slurm or cluster=local.")
        return None
    one = option({CLUSTER: own}, CLUSTER, known)
    knobs = known.knobs(CLUSTER, one.name)
    unsupported = [key for key in given if key not in knobs]
    if unsupported:
        takers = ", ".join(name for _, name in known.takers(unsupported[0]))
        raise UsageError(f"cluster={one.name} takes no {unsupported[0]} ({takers} does).")
    return one, {key.partition(".")[2]: value for key, value in checked(given, knobs).items()}


# ---------------------------------------------------------------- values that depend on each other


def resolved(values: dict[str, Any], given: Mapping[str, Any], chosen: Mapping[str, Option]) -> dict[str, Any]:
    """The values with what follows from others in place of null."""
    values = dict(values)
    if values["lr"] is None:
        values["lr"] = stated_default("lr", chosen["optimizer"])
    if values["epochs"] is None and values["iterations"] is None:
        values["epochs"] = stated_default("epochs", chosen["dataset"])
    if values["data_dir"] is None:
        values["data_dir"] = os.environ.get("CLRUN_DATA_DIR") or None
    lists = values.get("split.classes")
    if lists is not None:
        refuse_against_lists(given, len(lists))
        values |= {"tasks": len(lists), "split.order": "fixed"}
    if values["first_tasks"] == values["tasks"]:
        values["first_tasks"] = None
    return values


def stated_default(key: str, one: Option) -> Any:
    value = getattr(one, key)
    if value is None:
        raise UsageError(f"{one.name} states no {key} of its own: type {key}=... or state {key}: in {one.name}.yaml.")
    return value


def refuse_against_lists(given: Mapping[str, Any], lists: int) -> None:
    if given.get("tasks", lists) != lists:
        raise UsageError(
            f"tasks={given['tasks']}: split.classes lists {lists} tasks; leave tasks out, or list as many."
        )
    if given.get("split.order") == "seed":
        raise UsageError("split.order=seed: the lists in split.classes are the order; leave split.order out.")


def refuse_contradictions(values: Mapping[str, Any], given: Mapping[str, Any], strategy: Option) -> None:
    if values.get("optimizer.nesterov") and not values["optimizer.momentum"]:
        raise UsageError("optimizer.nesterov=true needs a momentum; e.g. optimizer.momentum=0.9.")
    if strategy.needs_task_id and values["scenario"] != "task" and not values["task_id_at_test"]:
        raise UsageError(
            f"strategy={strategy.name} must be told the task at test, which scenario={values['scenario']} does not; "
            f"type scenario=task, or task_id_at_test=true to tell it all the same (such runs are marked)."
        )
    if (values["first_tasks"] or 0) > values["tasks"]:
        raise UsageError(
            f"first_tasks={values['first_tasks']}: the stream has {values['tasks']} tasks; type at most as many."
        )
    if os.path.exists(values["outputs"]) and not os.path.isdir(values["outputs"]):  # a name too long is none
        raise UsageError(f"outputs={values['outputs']} is a file; name a folder, e.g. outputs=outputs.")
    longest = max(Path(values["outputs"]).parts, key=len, default="")
    if len(os.fsencode(longest)) > 255:
        raise UsageError(f"outputs: {longest[:20]}... is longer than the 255 bytes that a folder's name may have.")
    refuse_device(values)


def refuse_device(values: Mapping[str, Any]) -> None:
    if values["device"] == "cpu" and values["precision"] == "tf32":
        raise UsageError("precision=tf32 needs a CUDA device; type precision=float32, or leave device=cpu out.")
    if values["device"] == "cuda":
        import torch  # seconds: only where it must be asked

        if not torch.cuda.is_available():
            raise UsageError("device=cuda: there is no CUDA device here; type device=cpu, or leave device out.")


def dealt(values: Mapping[str, Any], dataset: Option) -> list[list[str]] | None:
    """The classes of each task by name, in the order listed; None if they are not listed.

    UsageError: the split does not fit the classes, or the data folder is none.
    """
    from clrun.data import datasets  # numpy, which Tab completion need not wait for

    if values["data_dir"] is not None:
        datasets.data_folder(values["data_dir"])
    names = dataset.class_names
    if names is None:
        from clrun.data.image_folder import find

        names = list(find(values["dataset.root"], values["dataset.test_fraction"]).classes)
    tasks = split.assign_classes(names, values)
    return [[names[k] for k in task] for task in tasks] if values.get("split.classes") else None
