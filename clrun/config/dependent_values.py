"""Values that follow from other values: what stands in place of null, and one spelling for one run."""

import glob
import os
from collections.abc import Mapping
from typing import Any

from clrun.config.catalog import Option
from clrun.data import split
from clrun.system.errors import UsageError
from clrun.system.text import format_value

# Samples a step of stream=online, where batch_size is not typed.
ONLINE_BATCH = 10

# Keys of which each task may have a value of its own.
BY_TASK = ("epochs", "iterations", "batch_size")

# Of boundaries=false, where it is not typed: tasks that a change takes.
OVERLAP = 0.5

# Of schedule=multistep, where they are not typed.
MILESTONES = (0.5, 0.75)
DECAY = 0.1

# Of split.circle, where tasks is not typed: as often as each pair of classes comes.
ROUNDS = 3

# The setting of each augmentation that has one, and its value where it is not typed.
STRENGTHS = {"colour": ("colour_strength", 0.4), "hue": ("hue_strength", 0.1), "rotate": ("rotate_degrees", 15.0)}


def resolved(values: dict[str, Any], given: Mapping[str, Any], chosen: Mapping[str, Option]) -> dict[str, Any]:
    """Return the values with what follows from other values in place of null."""
    values = dict(values)
    of_folder = values["dataset"] == "image_folder" and "dataset.size" not in given
    if of_folder and values.get("features.size") is not None:
        values["dataset.size"] = values["features.size"]  # pictures are read from their files as the network sees them
    if values["lr"] is None:
        values["lr"] = stated_default("lr", chosen["optimizer"])
    values |= with_circle(values, given)
    values |= with_stream(values, given) | with_boundaries(values, given)
    if values["epochs"] is None and values["iterations"] is None:
        values["epochs"] = stated_default("epochs", chosen["dataset"])
    values |= with_schedule(values, given) | with_augmentation(values, given)
    for key in ("label_smoothing", "predictions", "probe", *({"split.stochastic"} & {*values})):
        values[key] = values[key] or None  # none at all is one run, however it is typed
    if values["data_dir"] is None:
        values["data_dir"] = os.environ.get("CLRUN_DATA_DIR") or None
    if values["split"] == "domains" and "tasks" not in given:
        values["tasks"] = None  # as many as the data have domains: `clrun.runs.prepare` fills it in
    lists = values.get("split.classes")
    if lists is not None:
        refuse_against_lists(given, len(lists))
        values |= {"tasks": len(lists), "split.order": "fixed"}
    names = None if values["init_from"] is not None else getattr(chosen["dataset"], "class_names", None)
    values = with_sizes(values, "tasks" in given, None if names is None else len(names))
    values["init_from"] = the_one_path(values["init_from"])
    cut = lists is not None or values.get("split.sizes") is not None or values.get("split.step") is not None
    if values["init_from"] is not None and not cut and values["split"] != "domains" and "tasks" not in given:
        values["tasks"] = 1
    if values["first_tasks"] == values["tasks"] and values["split"] != "domains":  # whose number the data say
        values["first_tasks"] = None
    return with_one_number(values)


def with_one_number(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with one number in place of a list that has the same one for each task, so that one run has one
    identity, as soon as the number of tasks is known. Raise UsageError for a list of another length."""
    made, tasks = dict(values), values["tasks"]
    for key in BY_TASK if tasks is not None else ():
        numbers = values[key]
        if not isinstance(numbers, list):
            continue
        if len(numbers) != tasks:
            raise UsageError(
                f"{key}={format_value(numbers)}: {len(numbers)} numbers for {tasks} tasks; type one for each task, or "
                "one number for all."
            )
        made[key] = numbers[0] if len(set(numbers)) == 1 else numbers
    return made


def with_sizes(values: dict[str, Any], tasks_typed: bool, classes: int | None) -> dict[str, Any]:
    """Return the values with the number of tasks that follows from the sizes in split.sizes, or from split.first and
    split.step.

    classes: how many there are; None where that is not known yet, so that the number of tasks that follows from
    split.step is not either: it is None then. Steps are written as the sizes that they give, and equal sizes as
    `tasks` alone, so that one stream has one identity. Raise UsageError for keys that contradict each other.
    """
    step, sizes = values.get("split.step"), values.get("split.sizes")
    split.refuse_contradicting_sizes(values)
    if step is not None:
        if classes is None:
            return values | {"tasks": values["tasks"] if tasks_typed else None}
        sizes = split.stepped_sizes(classes, values["split.first"], step)
    if sizes is None:
        return values
    if tasks_typed and values["tasks"] != len(sizes):
        key = "split.sizes" if step is None else "split.step"
        raise UsageError(f"tasks={values['tasks']}: {key} gives {len(sizes)} tasks; leave tasks out.")
    even = len(set(sizes)) == 1 and sum(sizes) == classes
    return values | {
        "tasks": len(sizes),
        "split.sizes": None if even else sizes,
        "split.first": None,
        "split.step": None,
    }


def with_stream(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that follow from stream=online: one round, and small batches unless their size is given. Raise
    UsageError for a key that contradicts it, or has no effect without it."""
    if values["stream"] != "online":
        if "passes" in given:
            raise UsageError("passes belongs to stream=online; type that too, or leave passes out.")
        return {"stream": None}
    for key in ("epochs", "iterations"):
        if key in given:
            raise UsageError(
                f"{key}={given[key]}: with stream=online each sample is seen once, which is all of the training; leave "
                f"{key} out (type {key}=null where an experiment states it), and type passes=N for N steps on each "
                "batch."
            )
    return {
        "epochs": 1,
        "passes": values["passes"] or 1,
        "batch_size": given.get("batch_size", ONLINE_BATCH),
    }


def with_circle(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that follow from split.circle where they are not typed: three rounds of a stream without
    boundaries that is seen once."""
    if values.get("split.circle") is None:
        return {}
    follow = {"tasks": ROUNDS * values["split.circle"], "stream": "online", "boundaries": False}
    return {key: value for key, value in follow.items() if key not in given or values[key] is None}


def with_boundaries(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a stream without boundaries between tasks; those with boundaries are null. Raise UsageError
    for a key that has no effect."""
    if values["boundaries"] is not False:
        if "overlap" in given:
            raise UsageError("overlap belongs to boundaries=false; type that too, or leave overlap out.")
        return {"boundaries": None}
    if values.get("split.circle") is not None:
        if values["overlap"] is not None:
            raise UsageError("overlap: with split.circle the pair of classes changes at once; leave overlap out.")
        return {}
    return {"overlap": OVERLAP if values["overlap"] is None else values["overlap"]}


def with_schedule(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the learning rate's schedule with what follows from each other; what is the same as without a
    key is null, so that one run has one identity. Raise UsageError for a key that has no effect."""
    kind = None if values["schedule"] == "constant" else values["schedule"]
    for key in ("schedule_milestones", "schedule_decay"):
        if key in given and kind != "multistep":
            raise UsageError(f"{key} belongs to schedule=multistep; type that too, or leave {key} out.")
    if "schedule_over" in given and kind is None and values["warmup"] is None:
        raise UsageError("schedule_over has no effect without a schedule; type e.g. schedule=cosine, or leave it out.")
    made: dict[str, Any] = {
        "schedule": kind,
        "schedule_over": "stream" if values["schedule_over"] == "stream" else None,
    }
    if kind == "multistep":
        milestones, decay = values["schedule_milestones"], values["schedule_decay"]
        if milestones == []:
            raise UsageError("schedule_milestones=[]: type one or more, such as [0.5,0.75], or leave the schedule out.")
        made["schedule_milestones"] = sorted(set(MILESTONES if milestones is None else milestones))
        made["schedule_decay"] = DECAY if decay is None else decay
    return made


def with_augmentation(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what pictures are augmented by in one spelling, so that one run has one identity: a crop that is followed
    by a flip is crop_flip, and one name is no list. Raise UsageError for names that contradict each other."""
    typed = values["augment"]
    names = [typed] if isinstance(typed, str) else typed
    single = [part for name in names for part in (("crop", "flip") if name == "crop_flip" else (name,))]
    twice = [name for name in single if single.count(name) > 1]
    if twice:
        raise UsageError(f"augment={format_value(typed)} has {twice[0]} twice; name each once.")
    if "none" in single and len(single) > 1:
        raise UsageError(f"augment={format_value(typed)}: none is nothing at all; leave it out of the list.")
    for name, (setting, _) in STRENGTHS.items():
        if name not in single and setting in given:
            raise UsageError(f"{setting} belongs to augment={name}; name that too, or leave {setting} out.")
    made: list[str] = []
    for name in single:
        if name == "flip" and made[-1:] == ["crop"]:
            made[-1] = "crop_flip"
        else:
            made.append(name)
    strengths: dict[str, Any] = {"augment": made[0] if len(made) == 1 else made}
    for name, (setting, default) in STRENGTHS.items():
        own = values[setting]
        strengths[setting] = None if name not in single else default if own is None else own
    return strengths


def stated_default(key: str, option: Option) -> Any:
    """Return what an option states for a key of every run, such as an optimizer's lr. Raise UsageError for nothing."""
    value = getattr(option, key)
    if value is None:
        name = option.name
        raise UsageError(f"{name} states no {key} of its own: type {key}=... or state {key}: in {name}.yaml.")
    return value


def refuse_against_lists(given: Mapping[str, Any], lists: int) -> None:
    """Raise UsageError where tasks or split.order contradict the lists in split.classes."""
    if given.get("tasks", lists) != lists:
        raise UsageError(
            f"tasks={given['tasks']}: split.classes lists {lists} tasks; leave tasks out, or list as many."
        )
    order = given.get("split.order", "fixed")
    if order != "fixed":
        raise UsageError(
            f"split.order={order}: the lists in split.classes are the order; leave split.order out (type "
            "split.order=fixed where an experiment states another one)."
        )


def the_one_path(pattern: str | None) -> str | None:
    """Return the path that fits a pattern with *, such as of the run of one seed; another path as it is. Raise
    UsageError where none or several do."""
    if pattern is None or "*" not in pattern or os.path.exists(pattern):
        return pattern
    found = sorted(glob.glob(pattern))
    if len(found) != 1:
        several = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
        raise UsageError(
            f"init_from={pattern} fits {'no path' if not found else f'{len(found)} paths ({several})'}; a run goes on "
            "from one; with a seed for each, type '*-seed=${seed}-*'."
        )
    return found[0]
