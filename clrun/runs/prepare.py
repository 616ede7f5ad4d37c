"""From settings to an engine: load the data, refuse what cannot be, build the stack. Nothing is written."""

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from clrun.config.catalog import shown
from clrun.config.settings import Settings
from clrun.data.datasets import Images, load
from clrun.data.sampler import Deck
from clrun.data.seeding import DRAWS
from clrun.data.tasks import Hand, draw_hand
from clrun.models import Layout, Net
from clrun.runs.build import born, budget, choices, unborn
from clrun.runs.prepared import Prepared
from clrun.runs.targets import strategy_class, with_sources
from clrun.strategy import Strategy
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_without_room


def prepare(settings: Settings) -> Prepared:
    """Load the data and look at everything that depends on it. Raises UsageError; writes nothing."""
    strategy = strategy_class(settings)
    settings = with_sources(settings)
    images = loaded(tuple(data_settings(settings).items()))
    hand = draw_hand(images, settings)
    refuse_single(strategy, hand, settings)
    refuse_large(strategy, images, hand, settings)
    network = born(settings, images.x.shape[1:], len(hand.names))
    objection = strategy.objection(network, settings["optimizer.name"], settings.knobs)
    if objection is not None:
        raise UsageError(f"strategy={settings['strategy']}: {objection}")
    return Prepared(settings, images, hand, strategy)


def data_settings(settings: Settings) -> dict[str, Any]:
    """What the images depend on."""
    return {k: v for k, v in settings.values.items() if k in ("dataset", "data_dir") or k.startswith("dataset.")}


@lru_cache(maxsize=1)
def loaded(settings: tuple[tuple[str, Any], ...]) -> Images:
    """A sweep loads its data once."""
    return load(dict(settings))


def refuse_single(strategy: type[Strategy], hand: Hand, settings: Settings) -> None:
    """Batch norm cannot normalise a batch of one, be it of one task or of all that a stage sees."""
    if settings.values.get("model.norm") != "batch":
        return
    unbuilt = strategy(None, SimpleNamespace(tasks=len(hand.train)), **choices(strategy, settings))
    for stage in range(len(hand.train)):
        pools = [hand.train[task] for task in unbuilt.visible(stage)]
        even = settings["scenario"] == "task" and len(pools) > 1
        if pools and Deck(pools, budget(settings), even, settings["seed"], "").smallest == 1:
            raise UsageError(
                f"model.norm=batch with batch_size={settings['batch_size']} leaves task {stage + 1} a batch of one "
                "picture, which batch norm cannot normalise; type another batch_size"
                + (", or drop_last=true." if settings["batch_size"] > 1 else ".")
            )


def refuse_large(strategy: type[Strategy], images: Images, hand: Hand, settings: Settings) -> None:
    """A network, a strategy's state or a batch that this machine has no room for."""
    floats = settings["batch_size"] * (2 * (DRAWS + 2) + images.x[0].numel())
    refuse_without_room(4 * floats, f"batch_size={settings['batch_size']}", "a smaller one")
    sizes = {key: v for key, v in settings.unusual.items() if key.startswith("model.") or key in settings.knobs}
    named = ", ".join(f"{key}={shown(v)}" for key, v in sizes.items()) or f"model={settings['model']}"
    needed = bytes_of(strategy, images, hand, settings)
    refuse_without_room(needed, f"strategy={settings['strategy']} with {named}", "smaller ones")


def bytes_of(strategy: type[Strategy], images: Images, hand: Hand, settings: Settings) -> int:
    """What theta, its gradient, its step and the strategy's state take, from their shapes alone."""
    tasks, outputs = len(hand.train), len(hand.names)
    try:
        with torch.device("meta"):
            network = unborn(settings, images.x.shape[1:], outputs)
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
    network = born(settings, picture, len(prepared.hand.names))
    spread = 1 if all(isinstance(layer, torch.nn.Linear) for layer in network.layers.values()) else picture[1:].numel()
    a_sample = 3 * picture.numel() + 6 * spread * sum(network.widths)
    kept = bytes_of(prepared.strategy, prepared.images, prepared.hand, settings)
    return max(1, kept + 4 * settings["batch_size"] * a_sample)


# ---------------------------------------------------------------- building
