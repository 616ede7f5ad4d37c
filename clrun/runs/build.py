"""From prepared runs to the engine's stack."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clrun.config.settings import Settings
from clrun.data.sampler import Budget
from clrun.data.seeding import generator
from clrun.data.stream import Data, place
from clrun.engine.blocks import BLOCK_STEPS
from clrun.engine.stack import Stack
from clrun.engine.vectorize import Vectorizer
from clrun.models import Layout, Net, Network, Statistics, initialize_network
from clrun.optimizers import Optimizer
from clrun.results.outcome import SOURCES
from clrun.runs.prepared import Prepared
from clrun.runs.targets import named_class, spelling
from clrun.strategy import Strategy

AUTOCAST = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}


def resolve_device(asked: str) -> torch.device:
    return torch.device("cuda" if asked == "auto" and torch.cuda.is_available() else asked.replace("auto", "cpu"))


def initialize(settings: Settings, shape: Sequence[int], outputs: int, stage: int = 0) -> Network:
    """The run's network; a strategy that starts afresh gets another at every stage."""
    own = model_settings(settings)
    scheme = own.pop("init", "torch")
    seed = settings["seed"] if stage == 0 else generator(settings["seed"], f"birth {stage}").initial_seed()
    kind = named_class(settings, "model", Network)
    return initialize_network(seed, kind, scheme, inputs=shape, outputs=outputs, **own)


def uninitialized_network(settings: Settings, shape: Sequence[int], outputs: int) -> Network:
    """The run's network without its initial values."""
    own = {k: v for k, v in model_settings(settings).items() if k != "init"}
    return named_class(settings, "model", Network)(inputs=shape, outputs=outputs, **own)


def model_settings(settings: Settings) -> dict[str, Any]:
    return knobs_of("model", settings)


def initializer(
    prepared: Prepared, layout: Layout, data: Data, dtype: torch.dtype
) -> Callable[[int], tuple[Tensor, Statistics]]:
    """stage -> theta (P,), statistics."""

    def fresh(stage: int) -> tuple[Tensor, Statistics]:
        network = initialize(prepared.settings, prepared.images.x.shape[1:], data.outputs, stage)
        pieces = network.parameters() | added(prepared, network, data.tasks)
        statistics = {name: v.to(dtype) for name, v in network.statistics().items()}
        return layout.flat(pieces).to(dtype), statistics

    return fresh


def added(prepared: Prepared, network: Network, tasks: int) -> dict[str, Tensor]:
    """What the strategy adds to theta, drawn from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(prepared.settings["seed"], "added").initial_seed())
        return prepared.strategy.trainables(network, tasks, prepared.settings.knobs)


def hyper(strategy: type[Strategy], settings: Settings, dtype: torch.dtype) -> Any:
    """Return one run's Hyper, with leaves ()."""
    knobs = {spelling(k): v for k, v in settings.knobs.items()}
    return strategy.Hyper(*(torch.tensor(float(knobs[name]), dtype=dtype) for name in strategy.Hyper._fields))


def choices(strategy: type[Strategy], settings: Settings) -> dict[str, Any]:
    """The strategy's fixed choices: its knobs that are fields of the class."""
    return {spelling(k): v for k, v in settings.knobs.items() if spelling(k) not in strategy.Hyper._fields}


def budget(settings: Settings) -> Budget:
    return Budget(settings["epochs"], settings["iterations"], settings["batch_size"], settings["drop_last"])


def may_be_filled_up(settings: Settings, network: Network) -> bool:
    """Whether a short batch may be filled up with samples of weight 0, as stacks and graphs do: batch norm would take
    their mean too."""
    return settings["drop_last"] or not network.statistics()


def build(stack: Sequence[Prepared], dtype: torch.dtype = torch.float32, block_steps: int = BLOCK_STEPS) -> Stack:
    """R prepared runs that differ in values only -> the engine's stack."""
    head, settings = stack[0], stack[0].settings
    device = resolve_device(settings["device"])
    tasks, outputs = head.stream.tables.active.shape[1:]
    data = place(head.images, settings, tasks, outputs, device, dtype)
    network = initialize(settings, head.images.x.shape[1:], outputs)
    pieces = network.parameters() | added(head, network, tasks)
    layout = Layout({name: tuple(v.shape) for name, v in pieces.items()})
    net = Net(network, layout, autocast=AUTOCAST[settings["precision"]])
    vectorizer = Vectorizer(len(stack), device)
    return Stack(
        strategy=head.strategy(net, data, **choices(head.strategy, settings)),
        optimizer=named_class(settings, "optimizer", Optimizer)(**optimizer_settings(settings)),
        budget=budget(settings),
        even=settings["scenario"] == "task",
        reset=settings["optimizer.reset"],
        seeds=[p.settings["seed"] for p in stack],
        streams=[p.stream for p in stack],
        hp=vectorizer.stack_trees([hyper(p.strategy, p.settings, dtype) for p in stack]),
        lr=vectorizer.stack_trees([torch.tensor(p.settings["lr"], dtype=dtype) for p in stack]),
        initializers=[initializer(p, layout, data, dtype) for p in stack],
        evaluate_every=settings["evaluate_every"],
        validate=settings["validation"] > 0,
        use_graph=device.type == "cuda" and settings["cuda_graph"] == "auto" and may_be_filled_up(settings, network),
        compile=settings["compile"] and device.type == "cuda",
        block_steps=block_steps,
    )


def optimizer_settings(settings: Settings) -> dict[str, Any]:
    """What its equation reads."""
    return {name: v for name, v in knobs_of("optimizer", settings).items() if name not in ("name", "reset")}


def knobs_of(group: str, settings: Settings) -> dict[str, Any]:
    """What a group's class is told, by the knob's own name."""
    own = {key: v for key, v in settings.values.items() if key.startswith(f"{group}.") and key not in SOURCES}
    return {key.removeprefix(f"{group}."): v for key, v in own.items()}
