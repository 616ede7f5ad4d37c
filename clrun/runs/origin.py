"""What a run goes on from (`init_from`): the network of a finished run, and the state of its strategy if it was kept.

The tasks of that run are the first tasks of the new one, which begins after them. They are evaluated where the data
have samples of their classes. Inputs are normalised as they were there.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

from torch import Tensor

from clrun.config.settings import Settings
from clrun.data.feature_record import FeatureRecord
from clrun.data.samples import Samples, shape_text
from clrun.data.tasks import EarlierTasks, TaskStream
from clrun.models import Network
from clrun.models.fixed import digest_of
from clrun.runs import checkpoint, network_file
from clrun.runs.checkpoint import InvalidCheckpoint
from clrun.runs.network_file import DeployedNetwork
from clrun.strategy import Strategy
from clrun.system.errors import UsageError
from clrun.system.text import format_value

# The keys that change the features of a frozen network with the same weights.
MADE_BY = ("features.size", "features.normalize", "features.head")


@dataclass(frozen=True)
class Origin:
    """What a run goes on from."""

    where: str  # "init_from=...", for messages
    network: DeployedNetwork
    tensors: Mapping[str, Tensor] | None  # of its checkpoint, by name; None: the run goes on from the weights alone
    reason: str = ""  # why it goes on from the weights alone

    @property
    def earlier(self) -> EarlierTasks:
        """The tasks that were learnt. Raise UsageError where the network does not say which."""
        network = self.network
        if network.labels is None:
            raise UsageError(
                f"{self.where}: an earlier version of clrun wrote that network, which does not say what its tasks "
                "were; type the command of that run again with rerun=true."
            )
        labels = [dict(task) for task in network.labels]
        return EarlierTasks(labels, list(network.names), network.input["permutation"], network.input["angle"])

    @property
    def carries_samples(self) -> bool:
        """Whether samples of a memory come with the state."""
        return self.tensors is not None and "rows" in self.network.memory and len(self.network.memory["rows"]) > 0

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of all that the run goes on from, wherever its files lie."""
        network = self.network
        stated = [list(network.names), network.labels, digest_of(network.tensors), digest_of(self.tensors or {})]
        return blake2b(json.dumps(stated).encode(), digest_size=8).hexdigest()

    def group(self, seed: int) -> str:
        """Return a digest of the run that is equal for each run of a group, if they go on from runs of one group.

        seed: of the run that goes on. Where it is not that of the run from which it goes on, the latter is part of the
        digest: runs of one seed that go on from different ones are two rows of a report.
        """
        before = self.network.settings
        same = before.group(self.network.fingerprint)
        return same if before["seed"] == seed else f"{same}-{before['seed']}"

    @property
    def stream(self) -> str:
        """10 hexadecimal digits that are equal for runs on the same tasks, however they were learnt."""
        network = self.network
        # a file of an earlier version does not say what its run went on from, but how that was learnt
        return network.stream or network.settings.stream(network.fingerprint, network.settings.get("init_stream", None))

    @property
    def setup(self) -> str:
        """10 hexadecimal digits that are equal for runs that learnt the same tasks in the same way, by any strategy."""
        return self.network.settings.setup(self.network.fingerprint)

    @property
    def sentence(self) -> str:
        """What is taken over, for the user."""
        classes, tasks = self.earlier.classes, self.network.tasks
        names = ", ".join(classes if len(classes) < 10 else [*classes[:8], "..."])
        learnt = f"{tasks} task{'s' if tasks > 1 else ''} learnt there ({names})"
        what = f"with the state of {self.network.settings['strategy']}"
        what = f"with the weights alone: {self.reason}" if self.reason else what
        return f"Goes on from run {self.network.identity}, {learnt}, {what}."


def origin_of(settings: Settings) -> Origin | None:
    """Return what a run goes on from; None for a run that begins untrained. Raise UsageError."""
    path = settings.get("init_from", None)
    if path is None:
        return None
    file = Path(path) / network_file.NAME if os.path.isdir(path) else Path(path)
    try:
        stamps = [stamp(one) for one in (file, file.with_name(checkpoint.NAME))]
    except OSError as error:
        raise UsageError(f"init_from={path} cannot be read: {error.strerror}.") from None
    return read(f"init_from={path}", file, settings["strategy"], settings.target, tuple(stamps))


def stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of change of a file; None if there is none. Raise OSError."""
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def read(where: str, file: Path, strategy: str, target: str, stamps: tuple[tuple[int, int] | None, ...]) -> Origin:
    """Return what lies in a file and beside it, for a run of this strategy. Raise UsageError.

    stamps: of these files, so that one that was written again is read again.
    """
    try:
        network = network_file.read(file)
    except InvalidCheckpoint as error:
        raise UsageError(f"{where} cannot be used: {error}.") from None
    theirs = network.settings["strategy"]
    if (theirs, network.settings.target) != (strategy, target):
        return Origin(where, network, None, f"that run has strategy={theirs}")
    if stamps[1] is None:
        return Origin(where, network, None, "it kept no checkpoint (keep_checkpoint=true keeps one)")
    return Origin(where, network, *state_beside(where, file.parent, network))


def state_beside(where: str, folder: Path, network: DeployedNetwork) -> tuple[Mapping[str, Tensor] | None, str]:
    """Return the tensors of the final checkpoint in the folder of a network, and "", or None and why there are none.

    Raise UsageError for a damaged one.
    """
    try:
        position = checkpoint.read_position(folder, network.identity)
        saved = checkpoint.read(folder, network.identity)
    except InvalidCheckpoint as error:
        name = folder / checkpoint.NAME
        raise UsageError(
            f"{where}: {name} cannot be used: {error}; to go on from the weights alone, copy {network_file.NAME} into "
            "another folder, and name that file."
        ) from None
    if saved is None or position is None or position.stage != network.tasks:
        return None, "its checkpoint is not that of its end"
    return saved.tensors, ""


# ---------------------------------------------------------------- what does not fit


def refuse_other_data(origin: Origin, images: Samples, settings: Settings) -> None:
    """Raise UsageError where the data, the scenario or the split are not such as the network has learnt."""
    theirs, network = origin.network.settings, origin.network
    if settings["split"] == "domains":
        raise UsageError(
            "init_from: a run cannot go on with split=domains; make an image folder or arrays of the new domain alone, "
            "and type split=classes scenario=domain."
        )
    if theirs.get("split.circle", None) is not None:
        raise UsageError(f"{origin.where}: the pictures of that run turned as they came; no run can go on from it.")
    for key in ("scenario", "split"):
        if settings[key] != theirs[key]:
            raise UsageError(
                f"{origin.where}: that run has {key}={theirs[key]}, and this one {key}={settings[key]}; type "
                f"{key}={theirs[key]}."
            )
    if tuple(network.shape) != images.shape or network.floats != images.x.is_floating_point():
        mine, other = shape_text(images.shape), shape_text(network.shape)
        pictures = len(images.shape) == len(network.shape) == 3
        advice = (
            "type the keys of the data set as they were there (dataset.size, dataset.pad)"
            if pictures
            else "name data whose samples are as there"
        )
        raise UsageError(
            f"{origin.where}: that network takes samples of {other}, and those of this data set have {mine}; {advice}."
        )
    if images.columns != network.columns:
        raise UsageError(
            f"{origin.where}: the numbers of a table are standardised by its own training rows, so they would mean "
            "something else to that network; go on with the same table."
        )
    if weights_of(images.features) != weights_of(network.features):
        raise UsageError(
            f"{origin.where}: the features there are those of another frozen network, or there are none; type the keys "
            "of the group features as they were there."
        )
    for key in MADE_BY if images.features is not None else ():
        before = theirs.get(key, None)
        if settings.get(key, None) != before:
            made = format_value(before)
            raise UsageError(f"{origin.where}: the features there were made with {key}={made}; type {key}={made}.")
    if settings["split"] != "classes" and {*images.classes} != {*origin.earlier.classes}:
        raise UsageError(
            f"{origin.where}: with split={settings['split']} every task has all classes, and these data have others "
            "than that run's; type split=classes in both runs."
        )


def weights_of(features: FeatureRecord | None) -> str | None:
    """Return the digest of the network that made features; None where there are none."""
    return None if features is None else features.weights


def refuse_other_strategy(origin: Origin, strategy: type[Strategy], settings: Settings) -> None:
    """Raise UsageError where the strategy cannot go on from the run."""
    name, network = settings["strategy"], origin.network
    if strategy.restart:
        raise UsageError(
            f"strategy={name} begins every task with new weights, so init_from has no meaning; leave it out."
        )
    if origin.tensors is not None and not strategy.goes_on:
        raise UsageError(
            f"strategy={name} cannot go on from its state, which is divided among the tasks of one run; type another "
            "strategy, or copy network.safetensors into another folder, and name that file to go on from the weights."
        )
    if origin.tensors is not None:
        return
    plain = not network.state
    if not plain or not answers_by_network(strategy):
        theirs = network.settings["strategy"]
        raise UsageError(
            f"{origin.where}: {origin.reason}, and strategy={theirs if not plain else name} answers by more than "
            f"weights; type strategy={theirs}, and train that run with keep_checkpoint=true."
        )


def answers_by_network(strategy: type[Strategy]) -> bool:
    """Return whether a strategy answers by the network alone, and not by masks, gates or a state of its own."""
    return strategy.logits is Strategy.logits and strategy.scores is Strategy.scores


def refuse_other_network(origin: Origin, network: Network, settings: Settings) -> None:
    """Raise UsageError where the weights of the run do not fit the network: all but its outputs must be the same."""
    theirs, mine = origin.network.weights, network.parameters()
    wrong = [name for name, v in mine.items() if name not in theirs or not fits(name, theirs[name], v)]
    added = {*origin.network.weights} - {*mine} if origin.tensors is None else set()
    stats = network.statistics()
    wrong += [f"{n} (batch norm)" for n in {*stats} ^ {*origin.network.statistics}]
    if wrong or added or digest_of(origin.network.fixed) != network.fixed():
        model = {k: v for k, v in origin.network.settings.values.items() if k == "model" or k.startswith("model.")}
        typed = " ".join(
            f"{key}={format_value(v)}" for key, v in model.items() if v is not None and not key.endswith("source")
        )
        what = (
            f"{wrong[0]} does not fit" if wrong else f"it has {min(added)} besides" if added else "frozen parts differ"
        )
        raise UsageError(f"{origin.where}: that network is another one ({what}); type {typed}.")


def fits(name: str, theirs: Tensor, mine: Tensor) -> bool:
    """Return whether a parameter can take the values of a run: the head may have more outputs."""
    if name.startswith("head."):
        return theirs.shape[1:] == mine.shape[1:] and len(theirs) <= len(mine)
    return theirs.shape == mine.shape


def refuse_missing_tasks(origin: Origin, strategy: Strategy, stream: TaskStream, images: Samples) -> None:
    """Raise UsageError where the strategy trains on nothing, or on tasks of which the data have no sample."""
    trained = [task for stage in range(stream.learnt, len(stream.train)) for task in strategy.visible(stage)]
    if not trained:
        raise UsageError(
            f"{origin.where}: this strategy trains on all tasks in its first stage, which is over; type "
            "strategy=cumulative."
        )
    empty = [task for task in trained if not len(stream.train[task])]
    if empty:
        names = ", ".join(classes_of(stream, images, empty[0]))
        raise UsageError(
            f"{origin.where}: the strategy trains on all tasks so far, and the data have no sample of task "
            f"{empty[0] + 1} ({names}); add them, or type another strategy."
        )


def classes_of(stream: TaskStream, images: Samples, task: int) -> Sequence[str]:
    """Return the names of a task's classes."""
    return [images.classes[k] for k in stream.groups[task]]
