"""From prepared runs to the engine's stack: the network, the data on the device, the strategy and its strengths."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clrun.config.settings import Settings
from clrun.data.batches import Data, make_data
from clrun.data.sampler import Budget
from clrun.data.seeding import generator
from clrun.engine import host_hooks
from clrun.engine.blocks import BLOCK_STEPS
from clrun.engine.measures import Measures
from clrun.engine.rates import RateSchedule
from clrun.engine.stack import Stack
from clrun.engine.vectorize import Vectorizer
from clrun.models import Layout, Net, Network, RunningStatistics, initialize_network
from clrun.optimizers import Optimizer
from clrun.results.columns import SOURCES
from clrun.runs.prepared import Prepared
from clrun.runs.targets import named_class, python_name
from clrun.strategy import Strategy
from clrun.system.cards import CARDS, Cards

# The decay of an average of theta, where average_decay is not typed; the key's `about` states it.
DECAY = 0.99

# The type of matrix products by the key `precision`; None: that of the parameters.
AUTOCAST = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16}


def build(
    runs: Sequence[Prepared],
    dtype: torch.dtype = torch.float32,
    block_steps: int = BLOCK_STEPS,
    device: torch.device | None = None,
) -> Stack:
    """Return the engine's stack of R prepared runs that differ in values only.

    block_steps: as `Stack` takes it. device: by default the one that the key `device` names.
    """
    first, settings = runs[0], runs[0].settings
    device = resolve_device(settings["device"]) if device is None else device
    tasks, outputs = first.stream.tables.active.shape[1:]
    data = make_data(first.images, settings.values, tasks, outputs, device, dtype)
    if device.type != "cpu":
        data = replace(data, sharing=len(runs), fused=True)
    if settings["scenario"] != "domain":
        data = replace(data, class_count=first.stream.class_count)  # fewer than the outputs with first_tasks
    if first.origin is not None:  # the network knows its inputs as they were normalised there
        scale, shift = (first.origin.network.input[name].to(device, dtype) for name in ("scale", "shift"))
        data = replace(data, scale=scale, shift=shift)
    network = initialize(settings, first.images.x.shape[1:], outputs)
    network.place(device, dtype)
    leaves = network.parameters() | strategy_leaves(first, network, tasks)
    layout = Layout({name: tuple(v.shape) for name, v in leaves.items()})
    net = Net(network, layout, autocast=AUTOCAST[settings["precision"]])
    vectorizer = Vectorizer(len(runs), device)
    strategy = first.strategy(net, data, **choices(first.strategy, settings))
    return Stack(
        strategy=strategy,
        optimizer=named_class(settings, "optimizer", Optimizer)(**optimizer_settings(settings)),
        budgets=budgets(settings, tasks, first.stream.learnt),
        balanced=settings["scenario"] == "task",
        reset=settings["optimizer.reset"],
        rate_schedule=rate_schedule(settings),
        clip_norm=settings["clip_norm"],
        seeds=[run.settings["seed"] for run in runs],
        streams=[run.stream for run in runs],
        hp=vectorizer.stack_trees([hyper(run.strategy, run.settings, dtype) for run in runs]),
        lr=vectorizer.stack_trees([torch.tensor(run.settings["lr"], dtype=dtype) for run in runs]),
        drawn=[drawn_numbers(strategy, run.settings["seed"], dtype) for run in runs],
        initializers=[initializer(run, layout, data, dtype) for run in runs],
        boundaries=settings["boundaries"] is not False,
        evaluate_every=settings["evaluate_every"],
        evaluate_samples=settings["evaluate_samples"],
        measures=measures(settings),
        decay=decay_of_average(settings),
        use_graph=device.type == "cuda" and settings["cuda_graph"] == "auto",
        compile=settings["compile"] and device.type == "cuda",
        block_steps=block_steps,
    )


def resolve_device(device: str, cards: Cards = CARDS) -> torch.device:
    """Return the device that the key `device` names; "auto" is CUDA where there is a card, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if cards.count() else "cpu")
    return torch.device(device)


def ready_device(device: str, cards: Cards = CARDS) -> torch.device:
    """Return the device that the key `device` names, after CUDA was told what holds for the whole process: which card
    "cuda" means, as streams and graphs are made on that one; and the size of workspace with which cuBLAS can be
    deterministic, which it reads when it starts, and so maybe for an earlier run of this process."""
    found = resolve_device(device, cards)
    if found.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if found.index is not None:
            cards.choose(found.index)
    return found


# ---------------------------------------------------------------- parameters


def initialize(settings: Settings, shape: Sequence[int], outputs: int, stage: int = 0) -> Network:
    """Return the run's network with initial values; a strategy that restarts gets others at every stage.

    shape: of an image (C, H, W).
    """
    arguments = settings_of_group("model", settings)
    scheme = arguments.pop("init", "torch")
    seed = settings["seed"] if stage == 0 else generator(settings["seed"], f"birth {stage}").initial_seed()
    network = named_class(settings, "model", Network)
    return initialize_network(seed, network, scheme, inputs=shape, outputs=outputs, **arguments)


def uninitialized_network(settings: Settings, shape: Sequence[int], outputs: int) -> Network:
    """Return the run's network without its initial values."""
    arguments = {k: v for k, v in settings_of_group("model", settings).items() if k != "init"}
    network: Callable[..., Network] = named_class(settings, "model", Network)
    return network(inputs=shape, outputs=outputs, **arguments)


def initializer(
    prepared: Prepared, layout: Layout, data: Data, dtype: torch.dtype
) -> Callable[[int], tuple[Tensor, RunningStatistics]]:
    """Return a function from a stage to new parameters theta (P,) and the statistics of batch norm."""

    def new_parameters(stage: int) -> tuple[Tensor, RunningStatistics]:
        network = initialize(prepared.settings, prepared.images.x.shape[1:], data.outputs, stage)
        leaves = network.parameters() | strategy_leaves(prepared, network, data.tasks)
        statistics = {name: v.to(dtype) for name, v in network.statistics().items()}
        return layout.flat(leaves).to(dtype), statistics

    return new_parameters


def strategy_leaves(prepared: Prepared, network: Network, tasks: int) -> dict[str, Tensor]:
    """Return the leaves that the strategy adds to theta, drawn from a random generator for them alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(prepared.settings["seed"], "added").initial_seed())
        return host_hooks.trainables(prepared.strategy, network, tasks, prepared.settings.knobs)


def drawn_numbers(strategy: Strategy, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what the strategy draws once for the run of a seed, from a random generator for it alone; floats as
    `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "drawn").initial_seed())
        drawn = host_hooks.draws(strategy)
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in drawn.items()}


# ---------------------------------------------------------------- settings as arguments


def hyper(strategy: type[Strategy], settings: Settings, dtype: torch.dtype) -> Any:
    """Return one run's Hyper, with leaves ()."""
    knobs = {python_name(key): value for key, value in settings.knobs.items()}
    names: tuple[str, ...] = strategy.Hyper._fields
    return strategy.Hyper(*(torch.tensor(float(knobs[name]), dtype=dtype) for name in names))


def choices(strategy: type[Strategy], settings: Settings) -> dict[str, Any]:
    """Return the strategy's fixed choices: its knobs that are fields of the class, not of its Hyper."""
    named = {python_name(key): value for key, value in settings.knobs.items()}
    return {name: value for name, value in named.items() if name not in strategy.Hyper._fields}


def measures(settings: Settings) -> Measures:
    """Return what the run is asked to measure at the end of a stage."""
    return Measures(
        validation=settings["validation"] > 0,
        plasticity=settings["measure"] == "plasticity",
        probe=settings["probe"] is True,
        calibration=settings["measure"] == "calibration",
        task_aware=settings["measure"] == "task_aware",
        every_answer=settings["predictions"] is True,
    )


def budgets(settings: Settings, tasks: int, learnt: int = 0) -> list[Budget]:
    """Return how long each of so many tasks is trained, [stage]; the first ones, `learnt`, are trained no more."""
    return [budget(settings, max(0, stage - learnt)) for stage in range(tasks)]


def budget(settings: Settings, task: int) -> Budget:
    """Return how long a task is trained: the one of this number, from 0, of those that the run adds."""

    def own(key: str) -> int | None:
        value: int | list[int] | None = settings[key]
        return value[task] if isinstance(value, list) else value

    batch_size = own("batch_size")
    assert batch_size is not None  # it has a default
    return Budget(own("epochs"), own("iterations"), batch_size, settings["drop_last"], settings["passes"])


def largest_batch(settings: Settings) -> int:
    """Return the largest batch size of a task."""
    size = largest(settings, "batch_size")
    assert size is not None  # it has a default
    return size


def largest(settings: Settings, key: str) -> int | None:
    """Return the largest value of a key of which each task may have a value of its own; None where it is null."""
    value: int | list[int] | None = settings[key]
    return max(value) if isinstance(value, list) else value


def decay_of_average(settings: Settings) -> float | None:
    """Return the decay of the average of theta that is evaluated; None where theta itself is."""
    if settings["average"] is None:
        return None
    return DECAY if settings["average_decay"] is None else settings["average_decay"]


def rate_schedule(settings: Settings) -> RateSchedule:
    """Return how the learning rate changes from step to step."""
    return RateSchedule(
        kind=settings["schedule"] or "constant",
        over_stream=settings["schedule_over"] == "stream",
        left_out=settings["tasks"] - (settings["first_tasks"] or settings["tasks"]),
        milestones=settings["schedule_milestones"] or (),
        decay=settings["schedule_decay"] or 1.0,
        warmup=settings["warmup"] or 0.0,
    )


def optimizer_settings(settings: Settings) -> dict[str, Any]:
    """Return the arguments of the optimizer's class."""
    arguments = settings_of_group("optimizer", settings)
    return {name: value for name, value in arguments.items() if name not in ("name", "reset")}


def settings_of_group(group: str, settings: Settings) -> dict[str, Any]:
    """Return the values under a group's keys by the part of the key after the dot."""
    values = {key: v for key, v in settings.values.items() if key.startswith(f"{group}.") and key not in SOURCES}
    return {key.removeprefix(f"{group}."): v for key, v in values.items()}
