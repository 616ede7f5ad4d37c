"""From a trained run to its deployed network, and from a deployed network to answers, without the run's data set."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

from clrun.config.settings import Settings
from clrun.data.batches import Data
from clrun.data.tasks import TaskTables
from clrun.engine import hooks
from clrun.engine.stack import Stack
from clrun.engine.state import TrainState
from clrun.models import Layout, Net
from clrun.models.frozen import FrozenNetwork
from clrun.results.columns import SOURCES
from clrun.runs import network_file
from clrun.runs.build import AUTOCAST, choices, drawn_numbers, hyper, initialize
from clrun.runs.checkpoint import InvalidCheckpoint
from clrun.runs.features import frozen_network
from clrun.runs.network_file import DeployedNetwork
from clrun.runs.prepared import Prepared
from clrun.runs.targets import folders_of_users, strategy_class, with_sources
from clrun.strategy import Strategy, Tree
from clrun.strategy.base import memories
from clrun.system.errors import UsageError
from clrun.system.imports import search_folders
from clrun.system.messages import announce

# The groups of options that an answer depends on.
ANSWERING = ("strategy", "model", "features")


# ---------------------------------------------------------------- from a trained run


def deployed(stack: Stack, current: TrainState, r: int, prepared: Prepared) -> DeployedNetwork:
    """Return the network that run r of a stack deploys. Its tensors may be views of the state's."""
    alone = stack.alone
    run, hp = (tree if alone else tree_map(lambda v: v[r], tree) for tree in (current, stack.hp))
    strategy, data, tables = stack.strategy.eval_mode(run.stats), stack.strategy.data, prepared.stream.tables
    shape = tuple(data.images.shape[1:])
    with torch.no_grad():
        theta = hooks.deployed(strategy, run, hp)
        read = tensors_read(strategy, theta, run.state, hp, data.images.new_zeros(1, *shape).to(theta.dtype))
    leaves = tree_flatten_with_path(run.state)[0]
    return DeployedNetwork(
        identity=prepared.id,
        settings=prepared.settings,
        names=prepared.stream.names,
        shape=shape,
        floats=data.images.is_floating_point(),
        class_count=data.class_count,
        fingerprint=prepared.images.fingerprint,
        stream=prepared.stream_digest,
        white=white_of(prepared),
        folders=folders_of_users(prepared.settings),
        weights=strategy.net.layout.view(theta),
        statistics=run.stats,
        state={keystr(path): v for path, v in leaves if id(v) in read},
        fixed=strategy.net.network.fixed_tensors(),
        input={
            "scale": data.scale,
            "shift": data.shift,
            "active": tables.active[-1],
            "permutation": tables.permutation,
            "angle": tables.angle,
        },
        columns=prepared.images.columns,
        features=prepared.images.features,
        labels=[{prepared.images.classes[k]: o for k, o in task.items()} for task in prepared.stream.labels],
        classes=prepared.images.classes,
        memory=remembered(run.state, data) if prepared.settings["keep_checkpoint"] is True else {},
        frozen=tensors_of_frozen(prepared) if prepared.settings["keep_checkpoint"] is True else {},
    )


def tensors_of_frozen(prepared: Prepared) -> dict[str, Tensor]:
    """Return the tensors of the frozen network whose features a run has learnt from; nothing where there is none."""
    if prepared.images.features is None:
        return {}
    return dict(frozen_network(prepared.settings, prepared.images.features.shape).module.state_dict())


def remembered(state: Tree, data: Data) -> dict[str, Tensor]:
    """Return the samples in the replay memories of one run: their row numbers (m,), in order, numbers (m, ...), classes
    (m,) and tasks (m,); nothing where there is no memory."""
    held = [memory.rows[: int(memory.held)] for memory in memories(state)]
    if not held:
        return {}
    rows = torch.cat(held).unique()
    image, task = rows % len(data.images), rows // len(data.images)
    x, y = data.images.index_select(0, image), data.labels.index_select(0, image)
    return {"rows": rows, "x": x, "y": y, "task": task}


def white_of(prepared: Prepared) -> tuple[float, float] | None:
    """Return what became white in the user's own pictures of more than 8 bits; None where there are none."""
    folder = prepared.images.folder
    return None if folder is None or folder.whites is None else (folder.whites.whole, folder.whites.floating)


class ReadTensors(TorchDispatchMode):
    """A mode in which the ids of all tensors that an operation reads are collected in `ids`."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ids |= {id(v) for v in tree_leaves((args, kwargs or {})) if isinstance(v, Tensor)}
        return func(*args, **(kwargs or {}))


def tensors_read(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, x: Tensor) -> set[int]:
    """Return the ids of the tensors that an answer to x (1, ...) reads: of theta, of the state, of hp.

    Most strategies answer by the network alone, which reads nothing else; for those the mode is not entered, since
    PyTorch imports its compiler for that, which takes seconds.
    """
    cls = type(strategy)
    if cls.logits is Strategy.logits and cls.scores is Strategy.scores:
        return set()
    with ReadTensors() as mode:
        strategy.scores(theta, state, hp, x, torch.zeros(1, dtype=torch.long, device=x.device))
    return mode.ids


def keep_network(stack: Stack, current: TrainState, r: int, prepared: Prepared, works: bool) -> None:
    """Write the network of run r of a stack as the key `keep_checkpoint` says; remove an earlier one otherwise.

    works: whether the run has not diverged. A disk that is full is reported and does not end the run. Raise LockLost.
    """
    kept, directory = prepared.settings["keep_checkpoint"], prepared.directory
    network = deployed(stack, current, r, prepared) if works and kept is not False else None
    if network is None or (kept == "auto" and network.bytes > network_file.LIMIT):
        network_file.remove(directory, prepared.guard)
        return
    try:
        network_file.write(directory, network, prepared.guard)
    except OSError as error:
        announce(f"{directory.name}: the network could not be kept ({error}); all else of the run is written.")


# ---------------------------------------------------------------- to answers


class Answering(nn.Module):
    """A deployed network as a module: samples -> logits of the outputs that may answer in one task.

    A picture is (channels, height, width) before it is padded, of whole numbers from 0 to 255 or of floats as in the
    data set; any other sample is floats as in the data set. Permuting, rotating, normalising and padding are part of
    the module. Raise InvalidCheckpoint if the code does not fit the network, as after the class of the network or the
    strategy was changed.

    task: its number, from 0. autocast: the type of matrix products; None for that of the weights.
    """

    def __init__(self, network: DeployedNetwork, task: int, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        settings = answering_settings(network)
        self.task, self.pad = task, settings.get("dataset.pad", 0)
        self.answers = network.input["active"][task].nonzero()[:, 0].tolist()
        layout = Layout({name: tuple(v.shape) for name, v in network.weights.items()})
        theta = layout.flat(network.weights)
        self.strategy = rebuilt(network, settings, layout, autocast)
        self.hp = hyper(type(self.strategy), settings, theta.dtype)
        drawn = drawn_numbers(self.strategy, settings["seed"], theta.dtype)
        self.initial, self.structure = initial_state(self.strategy, theta, drawn, network.state)
        self.statistics = [*network.statistics]
        tensors = {"theta": theta, "active": torch.tensor(self.answers)}
        tensors |= {name: network.input[name] for name in ("scale", "shift")}
        tensors |= {name: network.input[name][task : task + 1] for name in ("permutation", "angle")}
        tensors |= {f"state_{i}": network.state[name] for i, name in enumerate(self.initial) if name in network.state}
        tensors |= {f"statistics_{i}": v for i, v in enumerate(network.statistics.values())}
        for name, v in tensors.items():
            self.register_buffer(name, v.clone())  # a view, such as a row of an empty table, cannot be exported

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of the K outputs that may answer, for samples x (N, ...)."""
        values = dict(self.named_buffers(remove_duplicate=False))
        x = F.pad(x, (self.pad,) * 4) if self.pad else x
        first = torch.zeros_like(x.flatten(1)[:, 0], dtype=torch.long)  # each sample's row in the tables of one task
        nothing = torch.empty(0, device=x.device)
        tables = TaskTables(nothing, nothing, nothing, values["permutation"], values["angle"], nothing)
        data = replace(self.strategy.data, scale=values["scale"], shift=values["shift"])
        inputs = data.as_inputs(x.clone(), tables, first)
        leaves = [values.get(f"state_{i}", v) for i, v in enumerate(self.initial.values())]
        state = tree_unflatten(leaves, self.structure)
        statistics = {name: values[f"statistics_{i}"] for i, name in enumerate(self.statistics)}
        scores = self.strategy.eval_mode(statistics).scores(values["theta"], state, self.hp, inputs, first + self.task)
        return scores.index_select(-1, values["active"])


def answering_settings(network: DeployedNetwork) -> Settings:
    """Return the settings of a network without what only training reads."""
    search_folders(network.folders)
    targets = {group: target for group, target in network.settings.targets.items() if group in ANSWERING}
    before = network.settings.values
    values = {
        key: None if key in ("model.weights", "init_from") else v for key, v in before.items() if key not in SOURCES
    }
    if network.features is not None and network.features.file is not None:
        values["features.weights"] = network.features.file
    if network.frozen:
        values["features.weights"] = None  # the file of the run holds them
    return replace(network.settings, targets=targets, values=values)


def report_edits(network: DeployedNetwork) -> None:
    """Say which class of the user's was edited since the training."""
    before, now = network.settings.values, with_sources(answering_settings(network))
    edited = [key for key in ("source", "model.source", "features.source") if now.get(key, None) != before.get(key)]
    if edited:
        announce(f"{edited[0]}: the code is not that of the run's training any more; its answers may have changed.")


def rebuilt(network: DeployedNetwork, settings: Settings, layout: Layout, autocast: torch.dtype | None) -> Strategy:
    """Return the strategy of a deployed network, with data that hold no sample. Raise InvalidCheckpoint."""
    cls = strategy_class(settings)
    made = initialize(settings, torch.Size(network.shape), len(network.names))
    wanted = {name: tuple(v.shape) for name, v in made.parameters().items()}
    if any(layout.shapes.get(name) != shape for name, shape in wanted.items()):
        raise InvalidCheckpoint("its weights are not as the code wants them: has the network been changed?")
    try:
        made.set_fixed_tensors(network.fixed)
    except ValueError as error:
        raise InvalidCheckpoint(str(error)) from None
    made.place(torch.device("cpu"), network.input["scale"].dtype)
    x = torch.empty(0, *network.shape)
    data = Data(
        x if network.floats else x.to(torch.uint8), torch.empty(0, dtype=torch.long), network.input["scale"],
        network.input["shift"], network.tasks, len(network.names), network.class_count,
    )  # fmt: skip
    return cls(Net(made, layout, autocast=autocast), data, **choices(cls, settings))


def initial_state(
    strategy: Strategy, theta: Tensor, drawn: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Any]:
    """Return the leaves of a strategy's initial state by their path, and their structure. Answers read the saved ones
    in place of some, and none of the others. Raise InvalidCheckpoint where a saved one does not fit."""
    leaves, structure = tree_flatten_with_path(hooks.initial_state(strategy, theta, drawn))
    initial = {keystr(path): v for path, v in leaves}
    if any(name not in initial or initial[name].shape != v.shape for name, v in saved.items()):
        raise InvalidCheckpoint("its state is not as the code wants it: has the strategy been changed?")
    return initial, structure


class AnsweringPictures(nn.Module):
    """A deployed network that learnt from features, behind the frozen network that makes them: pictures -> logits.

    Raise InvalidCheckpoint and UsageError, the latter where the frozen network is not there any more.
    """

    def __init__(self, network: DeployedNetwork, task: int, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.answer = Answering(network, task, autocast)
        self.answers = self.answer.answers
        frozen = frozen_again(network)
        self.preparation, self.frozen = frozen.preparation, frozen.module

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of the K outputs that may answer, for pictures x (N, C, H, W)."""
        return self.answer(self.frozen(self.preparation(x)).float())


def frozen_again(network: DeployedNetwork) -> FrozenNetwork:
    """Return the frozen network of a run, on the CPU. Raise UsageError where it cannot be made, or has other weights
    than those that the run learnt from."""
    assert network.features is not None
    settings = answering_settings(network)
    settings = replace(settings, values={**settings.values, "device": "cpu"})
    frozen = frozen_network(settings, network.features.shape)
    if network.frozen:
        frozen.load(network.frozen)
    if frozen.digest != network.features.weights:
        raise UsageError(
            f"{frozen.where}: its weights are not those whose features run {network.identity} has learnt from; put "
            "back the file, or the version of the package, that the run was trained with."
        )
    return frozen


def answering_in(network: DeployedNetwork, task: int, autocast: torch.dtype | None) -> Answering | AnsweringPictures:
    """Return a module that answers to new samples, with matrix products of the type `autocast` (None: of the weights).

    Raise InvalidCheckpoint and UsageError.
    """
    kind = Answering if network.features is None else AnsweringPictures
    return kind(network, task, autocast).eval()


def answering(network: DeployedNetwork, task: int) -> Answering | AnsweringPictures:
    """Return a module that answers as the run did when it was measured, in its precision. Raise InvalidCheckpoint and
    UsageError."""
    return answering_in(network, task, AUTOCAST[network.settings["precision"]])


def network_in(path: Path) -> DeployedNetwork | None:
    """Return the network of a run's folder, or in a file; None if the folder has none. Raise InvalidCheckpoint."""
    file = path / network_file.NAME if path.is_dir() else path
    return network_file.read(file) if file.is_file() else None
