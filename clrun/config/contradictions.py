"""The refusal of values that are legal each, but not together, or not on this machine."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clrun.config.catalog import StrategyOption
from clrun.data import split
from clrun.system.cards import CARDS, Cards
from clrun.system.errors import UsageError
from clrun.system.text import format_value

# Data sets of clrun's that never have pictures, and networks that take nothing else.
WITHOUT_PICTURES = ("table",)
OF_PICTURES = ("cnn", "resnet18", "torchvision", "timm")


class Need(NamedTuple):
    """A key that says more about another one, and so needs it."""

    key: str
    other: str
    absent: object  # the value of the other one that says that it is not there
    text: str  # what is said then


NEEDS = (
    Need(
        "optimizer.nesterov",
        "optimizer.momentum",
        0,
        "optimizer.nesterov=true needs a momentum; e.g. optimizer.momentum=0.9.",
    ),
    Need(
        "average_decay",
        "average",
        None,
        "average_decay is read by average=ema alone; type average=ema as well, or no average_decay.",
    ),
    Need(
        "evaluate_samples",
        "evaluate_every",
        0,
        "evaluate_samples says how many samples evaluate_every asks; type evaluate_every=N as well, in steps, or leave "
        "evaluate_samples out.",
    ),
    Need(
        "split.disjoint",
        "split.blurry",
        None,
        "split.disjoint says which classes are not blurred; type split.blurry too, as in split.blurry=0.1.",
    ),
    Need(
        "split.stochastic",
        "split.blurry",
        None,
        "split.stochastic draws what is blurred; type split.blurry too, as in split.blurry=0.1.",
    ),
    Need(
        "split.occurrence",
        "split.recurrence",
        None,
        "split.occurrence says when classes come first that come back; type split.recurrence too, as in "
        "split.recurrence=0.2.",
    ),
    Need(
        "model.norm",
        "model.widths",
        [],
        "model.norm stands after a hidden layer, and model.widths=[] has none; type model.widths=[100] for one of 100 "
        "units, or leave model.norm out.",
    ),
)

# Keys by which the classes of a task are drawn, in the order in which a message names one of them; for each the others
# that say which classes come in a task.
LISTED = ("split.classes", "split.sizes", "split.step")
DRAWN = {
    "split.circle": (*LISTED, "split.recurrence", "split.slots", "split.blurry"),
    "split.stochastic": (*LISTED, "split.recurrence", "split.slots"),
    "split.slots": (*LISTED, "split.recurrence", "split.blurry"),
    "split.recurrence": (*LISTED, "split.blurry"),
}


def refuse_contradictions(values: Mapping[str, Any], strategy: StrategyOption) -> None:
    """Raise UsageError for values that are legal each, but not together or not on this machine."""
    refuse_unmet_needs(values)
    if strategy.needs_task_id and values["scenario"] != "task" and not values["task_id_at_test"]:
        raise UsageError(
            f"strategy={strategy.name} needs the task at test, which scenario={values['scenario']} does not; "
            f"type scenario=task, or task_id_at_test=true to give it the task all the same (such runs are marked)."
        )
    if values["scenario"] in strategy.refuses:
        reason = strategy.refuses[values["scenario"]]
        raise UsageError(f"strategy={strategy.name} cannot work with scenario={values['scenario']}: {reason}.")
    if values["split"] != "domains" and values["tasks"] is not None and (values["first_tasks"] or 0) > values["tasks"]:
        raise UsageError(
            f"first_tasks={values['first_tasks']}: the stream has {values['tasks']} tasks; type at most as many."
        )
    refuse_task_aware(values)
    refuse_origin(values["init_from"])
    refuse_streams(values)
    refuse_without_boundaries(values)
    if os.path.exists(values["outputs"]) and not os.path.isdir(values["outputs"]):  # False for a name that is too long
        raise UsageError(f"outputs={values['outputs']} is a file; name a folder, e.g. outputs=outputs.")
    longest = max(Path(values["outputs"]).parts, key=len, default="")
    if len(os.fsencode(longest)) > 255:
        raise UsageError(f"outputs: {longest[:20]}... is longer than the 255 bytes that a folder's name may have.")
    refuse_against_features(values)
    refuse_device(values)


def refuse_unmet_needs(values: Mapping[str, Any]) -> None:
    """Raise UsageError for a key that says more about another one, where that one is not there."""
    for need in NEEDS:
        # 0.0 is a value, although it equals False
        is_set = values.get(need.key) is not None and values[need.key] is not False
        if is_set and values.get(need.other) == need.absent:
            raise UsageError(need.text)


def refuse_task_aware(values: Mapping[str, Any]) -> None:
    """Raise UsageError for measure=task_aware where it is the accuracy itself, or where tasks share their classes."""
    if values["measure"] != "task_aware":
        return
    why = {"task": "a task's own outputs alone answer anyway", "domain": "all tasks share their outputs"}
    if values["scenario"] in why:
        raise UsageError(
            f"measure=task_aware: with scenario={values['scenario']} {why[values['scenario']]}; leave measure out, or "
            "type scenario=class."
        )
    if split.returning(values):
        raise UsageError(
            "measure=task_aware: classes come back in several tasks of this stream, so that no task has outputs of its "
            "own; leave measure out."
        )


def refuse_streams(values: Mapping[str, Any]) -> None:
    """Raise UsageError for keys on when samples come that do not go together."""
    blurry = values.get("split.blurry")
    if blurry is not None and values["tasks"] == 1:
        raise UsageError(f"split.blurry={blurry}: one task has no other whose samples could come early; type tasks=2.")
    arrival = first_set(values, ("split.circle", "split.slots", "split.recurrence", "split.blurry"))
    if arrival is not None and values["init_from"] is not None:
        typed = f"{arrival}={format_value(values[arrival])}"
        raise UsageError(f"{typed}: a run that goes on from another one has tasks of its own; leave init_from out.")
    if values["split"] == "relabelled" and (values["scenario"] != "domain" or values["init_from"] is not None):
        raise UsageError(
            "split=relabelled exchanges the labels that tasks share; type scenario=domain, and leave init_from out."
        )
    drawn = first_set(values, DRAWN)
    if drawn is not None:
        refuse_beside_drawn(values, drawn)
    refuse_order_of_drawn(values)
    if values.get("split.circle") is not None:
        refuse_around_circle(values)


def refuse_around_circle(values: Mapping[str, Any]) -> None:
    """Raise UsageError for what does not go with pairs of classes that come in rounds, without boundaries."""
    count, tasks = values["split.circle"], values["tasks"]
    typed = f"split.circle={count}"
    if values["boundaries"] is not False:
        raise UsageError(f"{typed} is a stream without boundaries that is seen once; leave stream and boundaries out.")
    if tasks < count - 1:
        raise UsageError(
            f"tasks={tasks}: with {typed} not every class has come before task {count - 1}; "
            f"type tasks={count * 3} for three rounds, or leave tasks out."
        )


def refuse_beside_drawn(values: Mapping[str, Any], drawn: str) -> None:
    """Raise UsageError for what cannot stand beside a key by which the classes of a task are drawn."""
    typed = f"{drawn}={format_value(values[drawn])}"
    other = first_set(values, DRAWN[drawn])
    if other is not None:
        raise UsageError(f"{other} and {typed} both say which classes come in a task; leave one of them out.")
    if values["scenario"] != "class":
        raise UsageError(f"{typed}: tasks have any number of classes, and a class has one output; type scenario=class.")


def refuse_order_of_drawn(values: Mapping[str, Any]) -> None:
    """Raise UsageError for an order of the classes where each task's are drawn from all of them."""
    drawn = first_set(values, ("split.slots", "split.recurrence"))
    if drawn is not None and values["split.order"] != "seed":
        raise UsageError(
            f"split.order={values['split.order']}: with {drawn}={format_value(values[drawn])} the classes of each task "
            "are drawn from the seed, in no order; leave split.order out (type split.order=seed where an experiment "
            "states another one). For the same tasks in runs of every seed, type split.seed=0."
        )


def first_set(values: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the first of these keys that has a value, and None where none has."""
    return next((key for key in keys if values.get(key) is not None), None)


def refuse_without_boundaries(values: Mapping[str, Any]) -> None:
    """Raise UsageError for what tells a strategy where tasks begin and end, or fixes when samples come."""
    if values["boundaries"] is not False:
        return
    if values["stream"] != "online":
        raise UsageError("boundaries=false is a stream that is seen once; type stream=online too.")
    if values["scenario"] == "task":
        raise UsageError(
            "boundaries=false: scenario=task gives the network the task of every sample; type scenario=class or "
            "scenario=domain."
        )
    typed = first_set(values, ("split.circle",))
    typed = "boundaries=false" if typed is None else f"{typed}={values[typed]}"  # from which boundaries=false follows
    for key in ("split.blurry", "split.slots", "split.recurrence", "init_from"):
        if values.get(key) is not None:
            raise UsageError(f"{typed} says when samples come, and so does {key}; leave one of them out.")
    if values["optimizer.reset"]:
        raise UsageError(f"{typed}: optimizer.reset=true begins anew with each task; leave it out.")
    scheduled = values["schedule"] is not None or values["warmup"] is not None
    if scheduled and values["schedule_over"] != "stream":
        raise UsageError(f"{typed}: a schedule over a task tells where it begins; type schedule_over=stream.")


def refuse_against_features(values: Mapping[str, Any]) -> None:
    """Raise UsageError for what needs pictures, where the network learns from features of them."""
    if "features" not in values:
        return
    typed = f"features={values['features']}"
    if values["dataset"] in WITHOUT_PICTURES:
        raise UsageError(
            f"{typed} needs pictures, and dataset={values['dataset']} has none; leave features out, or type a data set "
            "of pictures, such as dataset=image_folder."
        )
    if values["augment"] != "none":
        raise UsageError(
            f"augment={format_value(values['augment'])} needs pictures, and with {typed} the network learns from "
            "features that are computed once; leave augment out."
        )
    if values["split"] == "rotated":
        raise UsageError(
            f"split=rotated turns pictures, and with {typed} the network learns from features that are computed once; "
            "type split=classes or split=permuted."
        )
    if values.get("split.circle") is not None:
        raise UsageError(
            f"split.circle={values['split.circle']} turns pictures, and with {typed} the network learns from features "
            "that are computed once; leave one of them out."
        )
    if values.get("dataset.pad"):
        raise UsageError(
            f"dataset.pad={values['dataset.pad']} adds a border to pictures as the network sees them, and with {typed} "
            "it sees features; leave dataset.pad out, and type features.size=PIXELS for larger pictures."
        )
    if values["model"] in OF_PICTURES:
        raise UsageError(
            f"model={values['model']} needs pictures, and with {typed} it would be given features; type model=linear "
            "or model=mlp, or leave features out."
        )


def refuse_origin(path: str | None) -> None:
    """Raise UsageError where `init_from` names nothing to go on from."""
    if path is None:
        return
    if not os.path.exists(path):
        raise UsageError(f"init_from={path}: there is no such folder or file; name that of a finished run.")
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "network.safetensors")):
        raise UsageError(
            f"init_from={path} has no network.safetensors: it is no folder of a run, the run is not finished, or its "
            "network was not kept; type the command of that run again with rerun=true keep_checkpoint=true."
        )


def refuse_device(values: Mapping[str, Any], cards: Cards = CARDS) -> None:
    """Raise UsageError where the device cannot be used, or not with this precision."""
    if values["device"] == "cpu" and values["precision"] == "tf32":
        raise UsageError("precision=tf32 needs a CUDA device; type precision=float32, or leave device=cpu out.")
    if values["device"] == "mps":
        raise UsageError(
            "device=mps: clrun trains on a CPU or on NVIDIA cards, and not on the GPU of an Apple computer; type "
            "device=cpu, or leave device out."
        )
    if values["device"].startswith("cuda"):
        refuse_card(values["device"], cards)


def refuse_card(device: str, cards: Cards) -> None:
    """Raise UsageError where there is no such card. device: "cuda" or "cuda:NUMBER"."""
    count, (_, _, number) = cards.count(), device.partition(":")
    if not count:
        raise UsageError(f"device={device}: there is no CUDA device here; type device=cpu, or leave device out.")
    if number and int(number) >= count:
        there = ", ".join(f"cuda:{index} ({cards.name(index)})" for index in range(count))
        every = "device=cuda" if count == 1 else "device=cuda, by which a sweep uses all of them"
        raise UsageError(
            f"device={device}: there is no such card here, or $CUDA_VISIBLE_DEVICES hides it. There is {there}; type "
            f"one of them, or {every}."
        )
