"""From checked settings to a run that can start: load the data, refuse what cannot be trained. Nothing is written."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch.utils._pytree import tree_leaves

from clrun.config.check_values import listed_by_name
from clrun.config.dependent_values import BY_TASK, with_one_number, with_sizes
from clrun.config.settings import Settings
from clrun.data.batches import Data
from clrun.data.datasets import load
from clrun.data.domains import number_of_domains
from clrun.data.features import ExtractorOf
from clrun.data.samples import Samples
from clrun.data.seeding import DRAWS
from clrun.data.tasks import NO_TASKS, TaskStream, make_tasks
from clrun.engine import hooks, host_hooks
from clrun.engine.state import TrainState
from clrun.loggers.logs import names_of
from clrun.loggers.sink import refuse_missing
from clrun.models import Layout, Net, Network
from clrun.runs.batch_of_one import refuse_batch_of_one
from clrun.runs.build import choices, initialize, largest_batch, uninitialized_network
from clrun.runs.features import extractor_maker
from clrun.runs.going_on import grown, with_carried
from clrun.runs.origin import (
    Origin,
    origin_of,
    refuse_missing_tasks,
    refuse_other_data,
    refuse_other_network,
    refuse_other_strategy,
)
from clrun.runs.prepared import Prepared
from clrun.runs.targets import own_dataset, strategy_class, with_sources
from clrun.strategy import Strategy
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large
from clrun.system.text import format_value

# Keys that say how steps are taken, and why they have no effect where none is.
OF_STEPS = {
    "average": "there is nothing to average",
    "label_smoothing": "there is no loss whose labels could be smoothed",
    "probe": "its features stay",
    "clip_norm": "there is no gradient whose norm could be too large",
    "schedule": "there are no steps over which the rate could change",
    "warmup": "there are no first steps in which the rate could rise",
    "passes": "a batch is read once",
}


def prepare(settings: Settings, shared: "SharedImages | None" = None) -> Prepared:
    """Load the data of a run and check everything that depends on them. Raise UsageError; write nothing of the run.

    shared: the data sets in memory; by default those of the process.
    """
    strategy = strategy_class(settings)
    refuse_missing(names_of(settings.values))
    refuse_one_pass(strategy, settings)
    settings = with_sources(settings)
    images = (SHARED if shared is None else shared).load(
        image_settings(settings), own_dataset(settings), extractor_maker(settings)
    )
    origin = origin_of(settings)
    earlier = NO_TASKS if origin is None else origin.earlier
    new = [name for name in images.classes if name not in earlier.classes]
    listed = with_listed_names(settings, images.classes, earlier.classes)
    settings = with_domains(with_steps(listed, new), images)
    settings = with_numbers_of_tasks(settings)
    if origin is not None:
        if settings["schedule_over"] is not None:
            raise UsageError(
                "schedule_over=stream: a run that goes on from another one has no beginning of the stream, where the "
                "schedule would start; type schedule_over=task, or leave init_from out."
            )
        refuse_other_data(origin, images, settings)
        refuse_other_strategy(origin, strategy, settings)
        images = (SHARED if shared is None else shared).carrying(images, origin)
    stream = make_tasks(images, settings.values, earlier)
    refuse_large(strategy, images, stream, settings)
    unbuilt = without_network(strategy, stream, images, settings)
    refuse_by_method(unbuilt, len(stream.train), settings)
    network = initialize(settings, images.x.shape[1:], len(stream.names))
    refuse_batch_of_one(unbuilt, stream, network, images, settings)
    incompatibility = host_hooks.incompatibility(strategy, network, settings["optimizer.name"], settings.knobs)
    if incompatibility is not None:
        raise UsageError(f"strategy={settings['strategy']}: {incompatibility}")
    refuse_average(network, settings)
    refuse_probe(network, settings)
    if origin is not None:
        refuse_unfit(origin, strategy, network, stream, images, settings)
    return Prepared(settings, images, stream, strategy, origin, network.fixed())


def image_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings on which the images, or the features in their place, depend."""
    groups = ("dataset.", "features.")
    named = ("dataset", "data_dir", "features")
    return {k: v for k, v in settings.values.items() if k in named or k.startswith(groups)}


class SharedImages:
    """The data sets of a process: each once, for as long as a run refers to it. The one that was asked for last stays,
    since a search prepares one run after the other."""

    def __init__(self, load: Callable[..., Samples] = load) -> None:
        self.read = load
        self.last: Samples | None = None
        self.by_settings: WeakValueDictionary[tuple[Any, ...], Samples] = WeakValueDictionary()
        self.by_origin: WeakValueDictionary[tuple[Any, ...], Samples] = WeakValueDictionary()

    def load(
        self, settings: dict[str, Any], own: Callable[..., object] | None = None, features: ExtractorOf | None = None
    ) -> Samples:
        """Return the images that these settings name. own: the function of a data set of the user's. features: what
        makes the frozen network whose features take the place of pictures."""
        # a list, such as [1,2], has no hash
        key = (repr(settings), own, stamp(settings, "dataset.file"), stamp(settings, "features.weights"))
        images = self.by_settings.get(key)
        if images is None:
            self.last = None  # before another is read, unless a run refers to it
            images = self.equal_to(self.read(settings, own_function(settings, own), features))
            self.by_settings[key] = images
        self.last = images
        return images

    def carrying(self, images: Samples, origin: Origin) -> Samples:
        """Return the images with what comes from the run that is gone on from."""
        key = images.fingerprint, tuple(images.x.shape), origin.digest
        carrying = self.by_origin.get(key)
        if carrying is None:
            self.by_origin[key] = carrying = with_carried(images, origin)
        return carrying

    def equal_to(self, images: Samples) -> Samples:
        """Return what is held already of these images, such as a copy in another folder; else the images."""
        held = [one for one in self.by_settings.values() if one.fingerprint == images.fingerprint]
        # the padding is in the shape alone, and how columns became numbers is no part of a fingerprint
        same = (one for one in held if one.x.shape == images.x.shape and one.columns == images.columns)
        return next(same, images)


SHARED = SharedImages()


def own_function(settings: dict[str, Any], own: Callable[..., object] | None) -> partial[object] | None:
    """Return the function of a data set of the user's with the keys of its yaml as arguments, but for `normalize` and
    `pad`, which mean the same for every data set; None for a data set of clrun's."""
    if own is None:
        return None
    names = {key: key.removeprefix("dataset.") for key in settings if key.startswith("dataset.")}
    return partial(own, **{name: settings[key] for key, name in names.items() if name not in ("normalize", "pad")})


def stamp(settings: dict[str, Any], key: str) -> tuple[int, int] | None:
    """Return size and time of change of the file that a key names; None where there is no such key or no such file. A
    file that was written again is read again."""
    file = settings.get(key)
    if file is None or not os.path.isfile(file):
        return None
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def with_listed_names(settings: Settings, classes: Sequence[str], learnt: Sequence[str] = ()) -> Settings:
    """Return the settings with the classes of `split.classes` by name, where they are listed by number: both are one
    run. The names of some data sets are not known before they are read."""
    lists = listed_by_name(classes, settings.values, learnt)
    if lists is None:
        return settings
    changed = {"split.classes": lists}
    return replace(settings, values={**settings.values, **changed}, not_default={**settings.not_default, **changed})


def with_steps(settings: Settings, classes: Sequence[str]) -> Settings:
    """Return the settings with as many tasks as split.step gives, and without sizes that are all equal, where the
    classes were not known before."""
    if settings.get("split.step", None) is None and settings.get("split.sizes", None) is None:
        return settings
    values = with_sizes(dict(settings.values), settings["tasks"] is not None, len(classes))
    first, tasks = values["first_tasks"], values["tasks"]
    if (first or 0) > tasks:
        raise UsageError(f"first_tasks={first}: the stream has {tasks} tasks; type at most as many.")
    values["first_tasks"] = None if first == tasks else first
    changed = {"tasks", "first_tasks", "split.sizes", "split.first", "split.step"}
    stated = {key: value for key, value in settings.not_default.items() if key not in changed}
    stated |= {key: values[key] for key in ("tasks", "first_tasks", "split.sizes") if values[key] is not None}
    in_order = {key: stated[key] for key in values if key in stated}  # so that one run has one folder
    return replace(settings, values=values, not_default=in_order)


def with_domains(settings: Settings, images: Samples) -> Settings:
    """Return the settings with as many tasks as the data set has domains, where the split is by domains."""
    if settings["split"] != "domains":
        return settings
    typed, first = settings["tasks"], settings["first_tasks"]
    count = number_of_domains(images, settings["dataset"], settings["scenario"], typed, first)
    changed = {"tasks": count, "first_tasks": None if first == count else first}
    stated = {key: value for key, value in settings.not_default.items() if key not in changed}
    stated |= {key: value for key, value in changed.items() if value is not None}
    return replace(settings, values={**settings.values, **changed}, not_default=stated)


def with_numbers_of_tasks(settings: Settings) -> Settings:
    """Return the settings with one number in place of a list of equal ones for each task, whose number is known now.
    Raise UsageError for a list of another length."""
    values = with_one_number(settings.values)
    stated = {key: values[key] if key in BY_TASK else value for key, value in settings.not_default.items()}
    return replace(settings, values=values, not_default=stated)


def refuse_without_data(settings: Settings) -> None:
    """Raise UsageError for what the method cannot do, as far as that is known before any data are loaded."""
    strategy, tasks = strategy_class(settings), settings["tasks"]
    refuse_one_pass(strategy, settings)
    if tasks is None or settings["init_from"] is not None:  # the data, or an earlier run, say how many tasks there are
        return
    data = data_without_images(tasks, outputs=tasks, shape=(1, 1, 1))
    refuse_by_method(strategy(cast(Net, None), data, **choices(strategy, settings)), tasks, settings)


def refuse_one_pass(strategy: type[Strategy], settings: Settings) -> None:
    """Raise UsageError where samples are seen once and the method cannot learn from them so."""
    if settings["passes"] is not None and not strategy.one_pass:
        key, typed = typed_for(settings, "stream", "online")
        raise UsageError(
            f"{typed}: strategy={settings['strategy']} trains on its memory alone, in rounds that epochs counts, "
            f"and reads the stream once in any case; leave {key} out."
        )


def typed_for(settings: Settings, key: str, value: str) -> tuple[str, str]:
    """Return the key that was typed for key=value, and the whole of it: stream=online and boundaries=false follow from
    split.circle."""
    circle = settings.get("split.circle", None)
    return (key, f"{key}={value}") if circle is None else ("split.circle", f"split.circle={circle}")


def refuse_by_method(method: Strategy, tasks: int, settings: Settings) -> None:
    """Raise UsageError for what the method cannot do with so many tasks, or what has no effect on it. It has no network
    and no images: what it says follows from its fixed choices and the number of tasks."""
    host_hooks.refuse_wrong_plan(method, tasks)
    refuse_lists_of_one_stage(method, tasks, settings)
    refuse_untold(method, settings)
    if not any(method.takes_steps(stage) for stage in range(tasks)):
        refuse_without_steps(settings)
    if settings["label_smoothing"] is not None and not method.smooths_labels:
        raise UsageError(
            f"label_smoothing={settings['label_smoothing']}: the loss of strategy={settings['strategy']} has no target "
            "for each output that could be smoothed; leave label_smoothing out."
        )


def refuse_lists_of_one_stage(method: Strategy, tasks: int, settings: Settings) -> None:
    """Raise UsageError where each task has a number of its own and one stage trains on later tasks, too."""
    lists = [key for key in BY_TASK if isinstance(settings[key], list)]
    if lists and any(task > stage for stage in range(tasks) for task in method.visible(stage)):
        raise UsageError(
            f"{lists[0]}={format_value(settings[lists[0]])}: strategy={settings['strategy']} trains on all tasks at "
            f"once, so that none has a number of its own; type one number, as in {lists[0]}={settings[lists[0]][0]}."
        )


def refuse_untold(method: Strategy, settings: Settings) -> None:
    """Raise UsageError where tasks have no boundaries and the method must be told of them."""
    if settings["boundaries"] is not False or not method.uses_boundaries:
        return
    chosen = {key: value for key, value in settings.not_default.items() if key in settings.knobs}
    named = "".join(f" with {key}={format_value(value)}" for key, value in chosen.items())
    key, typed = typed_for(settings, "boundaries", "false")
    raise UsageError(
        f"{typed}: strategy={settings['strategy']}{named} must be told where a task begins or ends; type a "
        f"strategy that is not, such as strategy=er, or leave {key} out."
    )


def refuse_without_steps(settings: Settings) -> None:
    """Raise UsageError for a key that says how steps are taken, where the method takes none."""
    for key, why in OF_STEPS.items():
        if settings[key] is not None and (key, settings[key]) != ("passes", 1):
            raise UsageError(
                f"{key}={format_value(settings[key])}: strategy={settings['strategy']} trains no weights by steps, so "
                f"{why}; leave {key} out."
            )


def refuse_average(network: Network, settings: Settings) -> None:
    """Raise UsageError where an average of the weights is asked for and the network has statistics of its own."""
    if settings["average"] is not None and network.statistics():
        raise UsageError(
            "average=ema: batch norm's running statistics are those of the weights, not of their average; "
            f"{network.no_statistics}, or leave average out."
        )


def refuse_probe(network: Network, settings: Settings) -> None:
    """Raise UsageError where features are to be probed and the network has none."""
    if settings["probe"] is not None and [*network.layers] == ["head"]:
        raise UsageError(
            f"probe=true probes the features of the last hidden layer, and model={settings['model']} has none; type "
            "model=mlp, or leave probe out."
        )


def refuse_unfit(
    origin: Origin,
    strategy: type[Strategy],
    network: Network,
    stream: TaskStream,
    images: Samples,
    settings: Settings,
) -> None:
    """Raise UsageError where the network or the strategy cannot go on from the run that `origin` is."""
    refuse_other_network(origin, network, settings)
    tasks = len(stream.train)
    with torch.random.fork_rng(devices=[]):
        leaves = network.parameters() | host_hooks.trainables(strategy, network, tasks, settings.knobs)
        layout = Layout({name: tuple(v.shape) for name, v in leaves.items()})
        data = data_without_images(tasks, len(stream.names), images.x.shape[1:])
        if settings["scenario"] != "domain":
            data = replace(data, class_count=stream.class_count)
        unbuilt = strategy(Net(network, layout), data, **choices(strategy, settings))
        drawn = host_hooks.draws(unbuilt)
    refuse_missing_tasks(origin, unbuilt, stream, images)
    theta = layout.flat(leaves)
    fresh = TrainState(theta, (), network.statistics(), hooks.initial_state(unbuilt, theta, drawn))
    grown(fresh, unbuilt, drawn, images, origin)


def refuse_large(strategy: type[Strategy], images: Samples, stream: TaskStream, settings: Settings) -> None:
    """Raise UsageError where a batch, the network or the strategy's state does not fit into this machine's memory."""
    floats = largest_batch(settings) * (2 * (DRAWS + 2) + images.x[0].numel())
    refuse_if_too_large(4 * floats, f"batch_size={format_value(settings['batch_size'])}", "a smaller one")
    sizes = {key: v for key, v in settings.not_default.items() if key.startswith("model.") or key in settings.knobs}
    named = ", ".join(f"{key}={format_value(v)}" for key, v in sizes.items()) or f"model={settings['model']}"
    needed = parameter_bytes(strategy, images, stream, settings)
    refuse_if_too_large(needed, f"strategy={settings['strategy']} with {named}", "smaller ones")


def parameter_bytes(strategy: type[Strategy], images: Samples, stream: TaskStream, settings: Settings) -> int:
    """Return the bytes of theta, its gradient, its step, its copy and the strategy's state, from their shapes alone;
    0 where a user's class reads values when it is made, so that its size is unknown."""
    tasks, outputs = len(stream.train), len(stream.names)
    try:
        with torch.device("meta"):
            network = uninitialized_network(settings, images.x.shape[1:], outputs)
            leaves = network.parameters() | host_hooks.trainables(strategy, network, tasks, settings.knobs)
            data = data_without_images(tasks, outputs, images.x.shape[1:])
            layout = Layout({name: tuple(v.shape) for name, v in leaves.items()})
            unbuilt = strategy(Net(network, layout), data, **choices(strategy, settings))
            state = hooks.initial_state(unbuilt, torch.empty(layout.size), host_hooks.draws(unbuilt))
    except (NotImplementedError, RuntimeError):
        return 0
    return 4 * 4 * layout.size + 4 * sum(v.numel() * v.element_size() for v in tree_leaves(state))


def without_network(strategy: type[Strategy], stream: TaskStream, images: Samples, settings: Settings) -> Strategy:
    """Return the strategy without a network and images, to ask for what its fixed choices and the number of tasks
    decide, such as `visible`, `takes_steps` and `recalls_one`."""
    data = data_without_images(len(stream.train), len(stream.names), images.x.shape[1:])
    return strategy(cast(Net, None), data, **choices(strategy, settings))


def data_without_images(tasks: int, outputs: int, shape: Sequence[int]) -> Data:
    """Return data of which only the numbers of tasks and outputs and the shape of an image are known; for a strategy
    that is never trained."""
    nothing = torch.empty(0)
    return Data(torch.empty(0, *shape), nothing, nothing, nothing, tasks, outputs, outputs * tasks)
