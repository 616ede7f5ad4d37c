"""From settings to an engine: load the data, refuse what cannot be, build the stack. Nothing is written."""

import hashlib
import importlib
import keyword
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from clrun import models, results
from clrun.catalog import SOURCES, shown
from clrun.chance import generator
from clrun.config import Settings
from clrun.datasets import Images, load
from clrun.dealing import Hand, draw_hand
from clrun.deck import Budget, Deck
from clrun.engine import Stack
from clrun.errors import UsageError
from clrun.models import Net, Network, Statistics
from clrun.optimizers import Optimizer
from clrun.room import refuse_without_room
from clrun.strategy import Strategy
from clrun.stream import DRAWS, Data, place
from clrun.theta import Layout

AUTOCAST = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prepared:
    """A run that could start: everything that can be refused has been looked at, nothing has been written."""

    settings: Settings
    images: Images
    hand: Hand
    strategy: type[Strategy]

    @property
    def id(self) -> str:
        return self.settings.identity(self.images.fingerprint)

    @property
    def directory(self) -> Path:
        return self.settings.directory(self.images.fingerprint)

    @property
    def finished(self) -> bool:
        return results.finished(self.directory)

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the outputs that may answer at the end, mean over tasks."""
        return (1 / self.hand.deal.active[-1].sum(-1)).mean().item()


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


def named_class(settings: Settings, group: str, kind: type) -> type:
    """The class that the yaml of a strategy, model or optimiser names. UsageError if there is none of that kind."""
    module, _, name = settings.targets[group].rpartition(".")
    chosen = settings.values.get(group, settings.values.get(f"{group}.name"))
    where = f"{group}={chosen}: its yaml says _target_: {settings.targets[group]}"
    if "" not in sys.path:  # it may lie beside the user's own files
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where}, but there is no module {error.name}; is it spelt right and on PYTHONPATH?"
        ) from None
    except Exception as error:  # any: it is the user's code that runs here
        raise UsageError(f"{where}, whose module cannot be imported: {type(error).__name__}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UsageError(f"{where}, which is not a subclass of {kind.__module__}.{kind.__name__}; name one that is.")
    return found


def with_sources(settings: Settings) -> Settings:
    """The settings with a digest of each file that holds a class which is not clrun's own, as `SOURCES`, so that an
    edited class makes another run. UsageError where it was edited since another process found its digest."""
    kinds = {"strategy": Strategy, "model": Network, "optimizer": Optimizer}
    own = [group for group, target in settings.targets.items() if not target.startswith("clrun.")]
    found = {group: digest(named_class(settings, group, kinds[group])) for group in own}
    written = {"source" if group == "strategy" else f"{group}.source": v for group, v in found.items() if v}
    edited = [key for key, v in written.items() if settings.values.get(key, v) != v]
    if edited:
        raise UsageError(f"{edited[0]}: the file was edited after the command had begun; type the command again.")
    return replace(settings, values={**settings.values, **written}) if written else settings


def digest(own: type) -> str | None:
    """Eight hex digits of the file that holds a class; None where it is in no file."""
    module = sys.modules[own.__module__]
    path = Path(getattr(module, "__file__", None) or "")
    return hashlib.sha1(path.read_bytes()).hexdigest()[:8] if path.is_file() else None


def strategy_class(settings: Settings) -> type[Strategy]:
    """The strategy's class. UsageError if there is none, or if it does not read its yaml's knobs."""
    found = named_class(settings, "strategy", Strategy)
    refuse_unclaimed(found, settings)
    return found


def spelling(knob: str) -> str:
    """A knob's name in Python: `lambda` is `lambda_`."""
    return f"{knob}_" if keyword.iskeyword(knob) else knob


def refuse_unclaimed(strategy: type[Strategy], settings: Settings) -> None:
    """A knob that neither Hyper nor a field reads would be silently without effect."""
    read = {*strategy.Hyper._fields, *(f.name for f in fields(strategy))}
    reserved = [knob for knob in settings.knobs if knob in (*results.HEAD, *results.TAIL, "stream", "source")]
    if reserved:
        raise UsageError(
            f"strategy={settings['strategy']}: its yaml has a knob named {reserved[0]}, "
            "which is a column of summary.csv; give it another name."
        )
    idle = [knob for knob in settings.knobs if spelling(knob) not in read]
    unset = [name for name in strategy.Hyper._fields if name not in map(spelling, settings.knobs)]
    if idle or unset:
        raise UsageError(
            f"strategy={settings['strategy']}: the knobs of its yaml and the class {settings.target} do not match: "
            f"{', '.join(idle + unset)} must stand both in the yaml's knobs and in the class or its Hyper."
        )


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


def resolve_device(asked: str) -> torch.device:
    return torch.device("cuda" if asked == "auto" and torch.cuda.is_available() else asked.replace("auto", "cpu"))


def born(settings: Settings, shape: Sequence[int], outputs: int, stage: int = 0) -> Network:
    """The run's network; a strategy that starts afresh gets another at every stage."""
    own = model_settings(settings)
    scheme = own.pop("init", "torch")
    seed = settings["seed"] if stage == 0 else generator(settings["seed"], f"birth {stage}").initial_seed()
    kind = named_class(settings, "model", Network)
    return models.born(seed, kind, scheme, inputs=shape, outputs=outputs, **own)


def unborn(settings: Settings, shape: Sequence[int], outputs: int) -> Network:
    """The run's network without its initial values."""
    own = {k: v for k, v in model_settings(settings).items() if k != "init"}
    return named_class(settings, "model", Network)(inputs=shape, outputs=outputs, **own)


def model_settings(settings: Settings) -> dict[str, Any]:
    return knobs_of("model", settings)


def birth(
    prepared: Prepared, layout: Layout, data: Data, dtype: torch.dtype
) -> Callable[[int], tuple[Tensor, Statistics]]:
    """stage -> theta (P,), statistics."""

    def fresh(stage: int) -> tuple[Tensor, Statistics]:
        network = born(prepared.settings, prepared.images.x.shape[1:], data.outputs, stage)
        pieces = network.parameters() | added(prepared, network, data.tasks)
        statistics = {name: v.to(dtype) for name, v in network.statistics().items()}
        return layout.flat(pieces).to(dtype), statistics

    return fresh


def added(prepared: Prepared, network: Network, tasks: int) -> dict[str, Tensor]:
    """What the strategy adds to theta, drawn from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(prepared.settings["seed"], "added").initial_seed())
        return prepared.strategy.trainables(network, tasks, prepared.settings.knobs)


def hyper(strategy: type[Strategy], settings: Sequence[Settings], device: torch.device, dtype: torch.dtype) -> Any:
    """Hyper with leaves (R,)."""
    knobs = [{spelling(k): v for k, v in s.knobs.items()} for s in settings]
    return strategy.Hyper(
        *(torch.tensor([float(k[f]) for k in knobs], dtype=dtype, device=device) for f in strategy.Hyper._fields)
    )


def choices(strategy: type[Strategy], settings: Settings) -> dict[str, Any]:
    """The strategy's fixed choices: its knobs that are fields of the class."""
    return {spelling(k): v for k, v in settings.knobs.items() if spelling(k) not in strategy.Hyper._fields}


def budget(settings: Settings) -> Budget:
    return Budget(settings["epochs"], settings["iterations"], settings["batch_size"], settings["drop_last"])


def may_be_filled_up(settings: Settings, network: Network) -> bool:
    """Whether a short batch may be filled up with samples of weight 0, as stacks and graphs do: batch norm would take
    their mean too."""
    return settings["drop_last"] or not network.statistics()


def build(stack: Sequence[Prepared], dtype: torch.dtype = torch.float32) -> Stack:
    """R prepared runs that differ in values only -> the engine's stack."""
    head, settings = stack[0], stack[0].settings
    device = resolve_device(settings["device"])
    tasks, outputs = head.hand.deal.active.shape[1:]
    data = place(head.images, settings, tasks, outputs, device, dtype)
    network = born(settings, head.images.x.shape[1:], outputs)
    pieces = network.parameters() | added(head, network, tasks)
    layout = Layout({name: tuple(v.shape) for name, v in pieces.items()})
    net = Net(network, layout, autocast=AUTOCAST[settings["precision"]])
    return Stack(
        strategy=head.strategy(net, data, **choices(head.strategy, settings)),
        optimizer=named_class(settings, "optimizer", Optimizer)(**optimizer_settings(settings)),
        budget=budget(settings),
        even=settings["scenario"] == "task",
        reset=settings["optimizer.reset"],
        seeds=[p.settings["seed"] for p in stack],
        hands=[p.hand for p in stack],
        hp=hyper(head.strategy, [p.settings for p in stack], device, dtype),
        lr=torch.tensor([p.settings["lr"] for p in stack], dtype=dtype, device=device),
        births=[birth(p, layout, data, dtype) for p in stack],
        evaluate_every=settings["evaluate_every"],
        validate=settings["validation"] > 0,
        replay=device.type == "cuda" and settings["cuda_graph"] == "auto" and may_be_filled_up(settings, network),
        compile=settings["compile"] and device.type == "cuda",
    )


def optimizer_settings(settings: Settings) -> dict[str, Any]:
    """What its equation reads."""
    return {name: v for name, v in knobs_of("optimizer", settings).items() if name not in ("name", "reset")}


def knobs_of(group: str, settings: Settings) -> dict[str, Any]:
    """What a group's class is told, by the knob's own name."""
    own = {key: v for key, v in settings.values.items() if key.startswith(f"{group}.") and key not in SOURCES}
    return {key.removeprefix(f"{group}."): v for key, v in own.items()}
