"""From settings to an engine: load the data, refuse what cannot be, build the stack. Nothing is written."""

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from clrun.config.catalog import format_value
from clrun.config.settings import Settings
from clrun.data.datasets import Images, load
from clrun.data.sampler import EpochSampler
from clrun.data.seeding import DRAWS
from clrun.data.tasks import TaskStream, make_tasks
from clrun.models import Layout, Net
from clrun.runs.build import budget, choices, initialize, uninitialized_network
from clrun.runs.prepared import Prepared
from clrun.runs.targets import strategy_class, with_sources
from clrun.strategy import Strategy
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large


def prepare(settings: Settings) -> Prepared:
    """Load the data and look at everything that depends on it. Raises UsageError; writes nothing."""
    strategy = strategy_class(settings)
    settings = with_sources(settings)
    images = loaded(tuple(data_settings(settings).items()))
    stream = make_tasks(images, settings)
    refuse_single(strategy, stream, settings)
    refuse_large(strategy, images, stream, settings)
    network = initialize(settings, images.x.shape[1:], len(stream.names))
    incompatibility = strategy.incompatibility(network, settings["optimizer.name"], settings.knobs)
    if incompatibility is not None:
        raise UsageError(f"strategy={settings['strategy']}: {incompatibility}")
    return Prepared(settings, images, stream, strategy)


def data_settings(settings: Settings) -> dict[str, Any]:
    """What the images depend on."""
    return {k: v for k, v in settings.values.items() if k in ("dataset", "data_dir") or k.startswith("dataset.")}


@lru_cache(maxsize=1)
def loaded(settings: tuple[tuple[str, Any], ...]) -> Images:
    """A sweep loads its data once."""
    return load(dict(settings))


def refuse_single(strategy: type[Strategy], stream: TaskStream, settings: Settings) -> None:
    """Batch norm cannot normalise a batch of one, be it of one task or of all that a stage sees."""
    if settings.values.get("model.norm") != "batch":
        return
    unbuilt = strategy(None, SimpleNamespace(tasks=len(stream.train)), **choices(strategy, settings))
    for stage in range(len(stream.train)):
        pools = [stream.train[task] for task in unbuilt.visible(stage)]
        even = settings["scenario"] == "task" and len(pools) > 1
        if pools and EpochSampler(pools, budget(settings), even, settings["seed"], "").smallest_batch == 1:
            raise UsageError(
                f"model.norm=batch with batch_size={settings['batch_size']} leaves task {stage + 1} a batch of one "
                "picture, which batch norm cannot normalise; type another batch_size"
                + (", or drop_last=true." if settings["batch_size"] > 1 else ".")
            )


def refuse_large(strategy: type[Strategy], images: Images, stream: TaskStream, settings: Settings) -> None:
    """A network, a strategy's state or a batch that this machine has no room for."""
    floats = settings["batch_size"] * (2 * (DRAWS + 2) + images.x[0].numel())
    refuse_if_too_large(4 * floats, f"batch_size={settings['batch_size']}", "a smaller one")
    sizes = {key: v for key, v in settings.unusual.items() if key.startswith("model.") or key in settings.knobs}
    named = ", ".join(f"{key}={format_value(v)}" for key, v in sizes.items()) or f"model={settings['model']}"
    needed = bytes_of(strategy, images, stream, settings)
    refuse_if_too_large(needed, f"strategy={settings['strategy']} with {named}", "smaller ones")


def bytes_of(strategy: type[Strategy], images: Images, stream: TaskStream, settings: Settings) -> int:
    """What theta, its gradient, its step and the strategy's state take, from their shapes alone."""
    tasks, outputs = len(stream.train), len(stream.names)
    try:
        with torch.device("meta"):
            network = uninitialized_network(settings, images.x.shape[1:], outputs)
            pieces = network.parameters() | strategy.trainables(network, tasks, settings.knobs)
        layout = Layout({name: tuple(v.shape) for name, v in pieces.items()})
        data = SimpleNamespace(tasks=tasks, outputs=outputs, kinds=outputs * tasks)
        own = strategy(Net(network, layout), data, **choices(strategy, settings)).init(
            torch.empty(layout.size, device="meta")
        )
    except (NotImplementedError, RuntimeError):  # a user's class that reads values when it is made: its size is unknown
        return 0
    return 4 * 4 * layout.size + 4 * sum(v.numel() * v.element_size() for v in tree_leaves(own))


def bytes_of_run(prepared: Prepared) -> int:
    """What a run takes while it is trained: theta, its gradient, its step and the strategy's state, and what a batch
    leaves in every layer, forward and backward, as if all layers were as large as the picture is at their width."""
    settings, picture = prepared.settings, prepared.images.x.shape[1:]
    network = initialize(settings, picture, len(prepared.stream.names))
    spread = 1 if all(isinstance(layer, torch.nn.Linear) for layer in network.layers.values()) else picture[1:].numel()
    a_sample = 3 * picture.numel() + 6 * spread * sum(network.widths)
    kept = bytes_of(prepared.strategy, prepared.images, prepared.stream, settings)
    return max(1, kept + 4 * settings["batch_size"] * a_sample)


# ---------------------------------------------------------------- building
