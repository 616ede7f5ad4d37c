"""The file `checkpoint.safetensors` in a run's directory, from which the same command continues the run.

It holds tensors by name: the leaves of the engine's `TrainState`, and within a task the signals of the steps so far.
All else (what has been measured, counted and warned of) is JSON, kept as bytes in the tensor `notes`. The state of
random generators is not saved: the samples of an epoch follow from the seed and the epoch's number. Nothing in the
file is code, so reading a checkpoint executes none.

The shapes of the tensors are those of one run; every run of a stack has a checkpoint in its own directory.
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

from clrun.system.atomic_files import UNGUARDED, Guard, replacing

# Version of the file's contents. Raise it when they change their meaning: older checkpoints are then set aside.
FORMAT = 2

NAME = "checkpoint.safetensors"


class Position(NamedTuple):
    """How far a run has been trained. Runs at the same position can continue as one stack."""

    stage: int = 0  # tasks that are over
    # steps of each pass over the next task, the last pass being incomplete; () at its start
    passes: tuple[int, ...] = ()
    step: int = 0  # optimizer steps of the run so far

    def __str__(self) -> str:
        within = f" and {sum(self.passes)} steps of task {self.stage + 1}" if self.passes else ""
        return f"task {self.stage}{within} ({self.step} steps so far)"


class InvalidCheckpoint(Exception):
    """An error whose text says why a run cannot continue from a checkpoint."""


@dataclass
class Checkpoint:
    """The contents of one run's checkpoint."""

    position: Position
    tensors: dict[str, Tensor]  # "run.theta", "run.own.mean", ..., "signals.0.loss", ...
    notes: dict[str, Any]  # JSON


def write(directory: Path, identity: str, saved: Checkpoint, guard: Guard = UNGUARDED) -> None:
    """Write the checkpoint of the run with this identity, all or nothing, and flush it to the disk. Raise OSError.
    guard: as of `clrun.system.atomic_files.replacing`."""
    notes = torch.from_numpy(np.frombuffer(json.dumps(saved.notes).encode(), dtype=np.uint8).copy())
    tensors = {name: v.contiguous() for name, v in saved.tensors.items()} | {"notes": notes}
    header = {"format": FORMAT, "identity": identity, "place": saved.position, "checksum": checksum(tensors)}
    with replacing(directory / NAME, guard) as temporary:
        save_tensors(tensors, {"clrun": json.dumps(header)}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write tensors to a new file, without copying them first. Raise OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, dict(metadata))
    except safetensors.SafetensorError as error:  # the library wraps errors of the disk, too
        raise OSError(str(error)) from error
    path.chmod(mode)  # the library would let only the owner read it


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file of tensors as `safetensors.safe_open` does. Raise InvalidCheckpoint if it is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise InvalidCheckpoint(f"it is cut short or damaged ({error})") from None
    except OSError as error:
        raise InvalidCheckpoint(f"it cannot be opened ({error.strerror or error})") from None


def read_position(directory: Path, identity: str) -> Position | None:
    """Return the position of the run with this identity, from the first bytes of its checkpoint; None without any.

    Raise InvalidCheckpoint.
    """
    if not (directory / NAME).is_file():
        return None
    with open_tensors(directory / NAME) as file:
        stage, passes, step = header_of(file.metadata(), identity)["place"]
    return Position(stage, tuple(passes), step)


def read(directory: Path, identity: str) -> Checkpoint | None:
    """Return the checkpoint of the run with this identity; None without any. Raise InvalidCheckpoint."""
    position = read_position(directory, identity)
    if position is None:
        return None
    with open_tensors(directory / NAME) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if checksum(tensors) != header_of(file.metadata(), identity)["checksum"]:
            raise InvalidCheckpoint("it is damaged: its checksum is wrong")
    notes = json.loads(tensors.pop("notes").numpy().tobytes())
    return Checkpoint(position, tensors, notes)


def header_of(metadata: Mapping[str, str] | None, identity: str) -> dict[str, Any]:
    """Return clrun's header of a file. Raise InvalidCheckpoint if it has none of this format and this run."""
    try:
        header = json.loads((metadata or {}).get("clrun", "{}"))
    except ValueError:
        header = None
    if not isinstance(header, dict) or not {"format", "identity", "place", "checksum"} <= header.keys():
        raise InvalidCheckpoint(
            "it does not begin as one of clrun's: another program, or another version of clrun, wrote it"
        )
    if header["format"] != FORMAT:
        raise InvalidCheckpoint(f"it is of format {header['format']}, not {FORMAT}: another version of clrun wrote it")
    if header["identity"] != identity:
        raise InvalidCheckpoint(f"it belongs to another configuration ({header['identity']}, not {identity})")
    return header


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the names, shapes, types and bytes of tensors."""
    total = 0
    for name, v in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tuple(v.shape)} {v.dtype}".encode(), total)
        if v.numel():
            total = zlib.crc32(v.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def set_aside_if_invalid(
    directory: Path, identity: str, report: Callable[[str], None], guard: Guard = UNGUARDED
) -> None:
    """Rename the checkpoint of a run if the run cannot continue from it, and `report` why."""
    try:
        read(directory, identity)
    except InvalidCheckpoint as error:
        set_aside(directory, str(error), report, guard)


def set_aside(directory: Path, reason: str, report: Callable[[str], None], guard: Guard = UNGUARDED) -> None:
    """Rename a checkpoint to *.bad, so that it is neither used nor lost, and `report` the reason."""
    bad = directory / f"{NAME}.bad"
    with guard.held():
        os.replace(directory / NAME, bad)
    report(
        f"{directory.name}: the checkpoint cannot be continued from: {reason}. It is now {bad}; the run starts again."
    )


def remove(directory: Path, guard: Guard = UNGUARDED) -> None:
    """Delete the checkpoint of a run, if there is one."""
    with guard.held():
        (directory / NAME).unlink(missing_ok=True)


def indices_by_position(positions: Sequence[Position]) -> list[list[int]]:
    """Return the indices of the runs that can continue as one stack, the least advanced first."""
    return [[r for r, position in enumerate(positions) if position == common] for common in sorted(set(positions))]
