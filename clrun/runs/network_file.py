"""The file `network.safetensors` in a run's directory: the network of a finished run, and all that an answer needs.

The data set of the run is not needed. The file holds, as tensors: the weights that the strategy deploys, by layer; the
running statistics of batch norm; the part of the strategy's state that its answers read, such as the masks of PackNet;
what is done to a sample before the network sees it; and with keep_checkpoint=true the samples of a replay memory, for
runs that go on from this one, and the frozen network whose features the run has learnt from. All else is JSON in the
tensor `notes`: the settings, the names of the outputs, the classes of the tasks and the shape of a sample. The
optimizer's state is not in it, and nothing is code.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clrun.config.settings import Settings
from clrun.data.column_rules import ColumnRule
from clrun.data.feature_record import FeatureRecord
from clrun.runs.checkpoint import InvalidCheckpoint, checksum, open_tensors, save_tensors
from clrun.system.atomic_files import UNGUARDED, Guard, replacing

NAME = "network.safetensors"

# Version of the file's contents. Raise it when they change their meaning: older files are then refused.
FORMAT = 1

# Bytes: a network up to this size is kept with keep_checkpoint=auto. The key's `about` and docs state it in MB.
LIMIT = 20_000_000

# Names of tensors begin with the part of the network that they belong to.
PARTS = ("weights", "statistics", "state", "fixed", "input", "memory", "frozen")

# Notes that are fields of a network as they are.
PLAIN = (
    "names", "shape", "floats", "class_count", "white", "folders", "columns", "features", "labels", "classes",
    "fingerprint", "stream",
)  # fmt: skip

# Notes that came later, and what stands for them where they are missing: nothing goes on from such a network.
LATER: Mapping[str, Any] = {"labels": None, "classes": [], "fingerprint": "", "stream": ""}


@dataclass(frozen=True)
class DeployedNetwork:
    """The network of a finished run: T tasks, C outputs."""

    identity: str  # of the run
    settings: Settings
    names: Sequence[str]  # of the C outputs
    shape: tuple[int, ...]  # of a sample as the network sees it, such as (channels, height, width)
    floats: bool  # whether a sample has floats; else it is a picture of whole numbers from 0 to 255
    class_count: int  # as `Data.class_count`
    white: tuple[float, float] | None  # of pictures of more than 8 bits: as `clrun.data.decoding.Whites`; None: unknown
    folders: Sequence[str]  # in which the user's own classes were found
    weights: Mapping[str, Tensor]  # "<layer>.<parameter>", in the order of theta
    statistics: Mapping[str, Tensor]  # of batch norm
    state: Mapping[str, Tensor]  # the leaves of the strategy's state that its answers read, by their path
    fixed: Mapping[str, Tensor]  # what the network reads besides theta: see `Network.fixed_tensors`
    input: Mapping[str, Tensor]  # "scale", "shift", "active" (T, C), "permutation" and "angle", as in `TaskTables`
    labels: Sequence[Mapping[str, int]] | None = None  # [task] class name -> output; None: not known
    classes: Sequence[str] = ()  # the names of the data set's classes
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # of samples that it kept: see `answering.remembered`
    columns: tuple[ColumnRule, ...] = ()  # of a table: how the columns of a row become a sample
    fingerprint: str = ""  # of the data set; empty in a file of an earlier version
    frozen: Mapping[str, Tensor] = field(default_factory=dict)  # of the network that makes the features, if it is kept
    stream: str = ""  # of its run; empty in a file of an earlier version
    features: FeatureRecord | None = None  # of pictures whose features are the samples: what made them

    @property
    def shape_of_new(self) -> tuple[int, ...]:
        """The shape of a new sample before it is padded or goes through a frozen network: of a picture or a row."""
        if self.features is not None:
            return self.features.shape
        pad = self.settings.get("dataset.pad", 0)
        return (*self.shape[:-2], *(side - 2 * pad for side in self.shape[-2:])) if pad else self.shape

    @property
    def takes_floats(self) -> bool:
        """Whether a new sample has floats; else it is a picture of whole numbers from 0 to 255."""
        return self.floats and self.features is None

    @property
    def tasks(self) -> int:
        """The number T of tasks."""
        return len(self.input["active"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by the names that they have in the file."""
        return {f"{part}.{name}": v for part in PARTS for name, v in getattr(self, part).items()}

    @property
    def bytes(self) -> int:
        """The size of the tensors."""
        return sum(v.numel() * v.element_size() for v in self.tensors.values())


def write(directory: Path, network: DeployedNetwork, guard: Guard = UNGUARDED) -> None:
    """Write the network of a run, all or nothing. Raise OSError. guard: as of `atomic_files.replacing`."""
    text = json.dumps(notes_of(network)).encode()
    notes = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in network.tensors.items()} | {"notes": notes}
    header = {"format": FORMAT, "identity": network.identity, "checksum": checksum(tensors)}
    with replacing(directory / NAME, guard) as temporary:
        save_tensors(tensors, {"clrun_network": json.dumps(header)}, temporary)


def notes_of(network: DeployedNetwork) -> dict[str, Any]:
    """Return all of a network that is no tensor, as JSON."""
    settings = {one.name: getattr(network.settings, one.name) for one in fields(Settings)}
    sets = {name: sorted(v) for name, v in settings.items() if isinstance(v, frozenset)}
    plain = {name: dict(v) if isinstance(v, Mapping) else v for name, v in settings.items()}
    return {name: getattr(network, name) for name in PLAIN} | {"settings": plain | sets, "order": [*network.weights]}


def read(path: Path) -> DeployedNetwork:
    """Return the network in a file. Raise InvalidCheckpoint."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        header = header_of(file.metadata())
    if checksum(tensors) != header["checksum"]:
        raise InvalidCheckpoint("it is damaged: its checksum is wrong")
    notes = {**LATER, **json.loads(tensors.pop("notes").numpy().tobytes())}
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, v in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = v
    parts["weights"] = {name: parts["weights"][name] for name in notes["order"]}
    return DeployedNetwork(
        identity=header["identity"],
        settings=settings_from(notes["settings"]),
        names=notes["names"],
        shape=tuple(notes["shape"]),
        floats=notes["floats"],
        class_count=notes["class_count"],
        white=None if notes["white"] is None else tuple(notes["white"]),
        folders=notes["folders"],
        columns=tuple(rule_of(rule) for rule in notes.get("columns", ())),  # files of earlier versions have none
        features=record_of(notes.get("features")),
        labels=notes["labels"],
        fingerprint=notes["fingerprint"],
        stream=notes["stream"],
        classes=notes["classes"],
        **parts,
    )


def record_of(values: Sequence[Any] | None) -> FeatureRecord | None:
    """Return what made the features from the list that JSON makes of it."""
    return None if values is None else FeatureRecord(tuple(values[0]), *values[1:])


def rule_of(values: Sequence[Any]) -> ColumnRule:
    """Return the rule of a column from the list that JSON makes of it."""
    rule = ColumnRule(*values)
    return rule._replace(categories=tuple(rule.categories))


def header_of(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return clrun's header of a file. Raise InvalidCheckpoint if it has none of this format."""
    try:
        header = json.loads((metadata or {}).get("clrun_network", "{}"))
    except ValueError:
        header = None
    if not isinstance(header, dict) or not {"format", "identity", "checksum"} <= header.keys():
        raise InvalidCheckpoint("it is not a network that clrun has written")
    if header["format"] != FORMAT:
        raise InvalidCheckpoint(f"it is of format {header['format']}, not {FORMAT}: another version of clrun wrote it")
    return header


def settings_from(notes: Mapping[str, Any]) -> Settings:
    """Return the settings of a run from what `notes_of` has made of them. Raise InvalidCheckpoint."""
    if {*notes} != {one.name for one in fields(Settings)}:
        raise InvalidCheckpoint("its settings are not as the code wants them: another version of clrun wrote it")
    sets = {name: frozenset(notes[name]) for name in ("outside_identity", "later")}
    return Settings(**{**notes, **sets})


def remove(directory: Path, guard: Guard = UNGUARDED) -> None:
    """Delete the network of a run, if there is one."""
    with guard.held():
        (directory / NAME).unlink(missing_ok=True)
