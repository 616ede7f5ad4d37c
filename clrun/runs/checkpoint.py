"""What a run has reached, in its directory, so that the same command continues it: `checkpoint.safetensors`.

Tensors by name: the leaves of the engine's `Run`, and within a task the signals of the steps so far. All else (what has
been measured, counted and warned of) is JSON, itself kept as bytes in the tensor `notes`. No generator is saved: the
samples of an epoch follow from the seed and its number. Nothing in the file is code, so reading one runs none.

Torch's forms are those of one run; a stack writes each of its runs into the run's own directory.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from clrun.system.atomic_files import replacing

FORMAT = 2  # to be raised when a checkpoint comes to mean something else: older ones are then set aside


NAME = "checkpoint.safetensors"


class Position(NamedTuple):
    """How far a run is. Runs at one place can go on as one stack."""

    stage: int = 0  # tasks that are over
    passes: tuple[int, ...] = ()  # steps of each pass over the next task, the last one under way; () at its start
    step: int = 0  # steps of the run

    def __str__(self) -> str:
        within = f" and {sum(self.passes)} steps of task {self.stage + 1}" if self.passes else ""
        return f"task {self.stage}{within} ({self.step} steps so far)"


class InvalidCheckpoint(Exception):
    """Why a checkpoint cannot be continued from."""


@dataclass
class Checkpoint:
    """One run's checkpoint."""

    place: Position
    tensors: dict[str, Tensor]  # "run.theta", "run.own.mean", ..., "signals.0.loss", ...
    notes: dict[str, Any]


# ---------------------------------------------------------------- the file


def write(directory: Path, identity: str, saved: Checkpoint) -> None:
    """All or nothing, and on the disk when this returns. Raises OSError."""
    notes = torch.from_numpy(np.frombuffer(json.dumps(saved.notes).encode(), dtype=np.uint8).copy())
    tensors = {name: v.contiguous() for name, v in saved.tensors.items()} | {"notes": notes}
    head = {"format": FORMAT, "identity": identity, "place": saved.place, "checksum": checksum(tensors)}
    with replacing(directory / NAME) as temporary:
        save(tensors, {"clrun": json.dumps(head)}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """From where the tensors lie into a new file, with no copy in between. Raises OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, dict(metadata))
    except safetensors.SafetensorError as error:  # of the disk too
        raise OSError(str(error)) from error
    path.chmod(mode)  # the library lets nobody but the owner read it


@contextmanager
def opened(path: Path) -> Iterator[safetensors.safe_open]:
    """A file of tensors. Raises InvalidCheckpoint if it is none, or not whole."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise InvalidCheckpoint(f"it is cut short or damaged ({error})") from None


def place(directory: Path, identity: str) -> Position | None:
    """How far the run with this identity is, from its checkpoint's first bytes; None without any.

    Raises InvalidCheckpoint."""
    if not (directory / NAME).is_file():
        return None
    with opened(directory / NAME) as file:
        stage, passes, step = checked(file.metadata(), identity)["place"]
    return Position(stage, tuple(passes), step)


def read(directory: Path, identity: str) -> Checkpoint | None:
    """The checkpoint of the run with this identity, None without any. Raises InvalidCheckpoint."""
    reached = place(directory, identity)
    if reached is None:
        return None
    with opened(directory / NAME) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if checksum(tensors) != checked(file.metadata(), identity)["checksum"]:
            raise InvalidCheckpoint("it is damaged: its checksum is wrong")
    return Checkpoint(reached, tensors, json.loads(tensors.pop("notes").numpy().tobytes()))


def checked(metadata: Mapping[str, str] | None, identity: str) -> dict[str, Any]:
    """The head of a file. Raises InvalidCheckpoint if it is not one of ours, of this format and this run."""
    try:
        head = json.loads((metadata or {}).get("clrun", "{}"))
    except ValueError:
        head = None
    if not isinstance(head, dict) or not {"format", "identity", "place", "checksum"} <= head.keys():
        raise InvalidCheckpoint(
            "it does not begin as one of clrun's: another program, or another version of clrun, wrote it"
        )
    if head["format"] != FORMAT:
        raise InvalidCheckpoint(f"it is of format {head['format']}, not {FORMAT}: another version of clrun wrote it")
    if head["identity"] != identity:
        raise InvalidCheckpoint(f"it belongs to another configuration ({head['identity']}, not {identity})")
    return head


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over names, shapes, types and bytes."""
    total = 0
    for name, v in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tuple(v.shape)} {v.dtype}".encode(), total)
        total = zlib.crc32(v.reshape(-1).view(torch.uint8).numpy(), total) if v.numel() else total
    return total


def find(directory: Path, identity: str, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to continue from; one that cannot be used is renamed to *.bad, and `say` is told why."""
    try:
        return read(directory, identity)
    except InvalidCheckpoint as error:
        set_aside(directory, str(error), say)
        return None


def set_aside(directory: Path, reason: str, say: Callable[[str], None]) -> None:
    """Out of the way, but not lost."""
    bad = directory / f"{NAME}.bad"
    os.replace(directory / NAME, bad)
    say(f"{directory.name}: the checkpoint cannot be continued from: {reason}. It is now {bad}; the run starts again.")


def remove(directory: Path) -> None:
    (directory / NAME).unlink(missing_ok=True)


def grouped(places: Sequence[Position]) -> list[list[int]]:
    """The indices of the runs that can go on as one stack, the least advanced first."""
    return [[r for r, place in enumerate(places) if place == one] for one in sorted(set(places))]


# ---------------------------------------------------------------- a run as named tensors, and back


# ---------------------------------------------------------------- what has been measured


# ---------------------------------------------------------------- when it is written
