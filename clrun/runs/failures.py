"""What remains of a run that failed: failed.txt, and an error of the disk as one paragraph."""

import errno
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clrun.results import run_files
from clrun.results.columns import FILES
from clrun.system import locks
from clrun.system.atomic_files import UNGUARDED, Guard
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.locks import LockLost
from clrun.system.user_frames import described

if TYPE_CHECKING:
    from clrun.runs.prepared import Prepared

NO_TRACEBACK = "(no traceback: the process ended before it could leave one)"

# Errors of a disk that has no room or fails, and of one that this user may not write to.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def write_reason(directory: Path, reason: str, trace: str, guard: Guard = UNGUARDED) -> OSError | None:
    """Write failed.txt: why a run has failed, and the traceback. Return the error that kept it from being written.
    Nothing is written where another process has taken the run over."""
    try:
        run_files.write_failed(directory, reason, trace, guard)
    except LockLost:
        return None
    except OSError as error:
        return error
    return None


def write_reason_for(prepared: "Prepared", reason: str, trace: str = NO_TRACEBACK) -> None:
    """Write failed.txt of a run whose process could not, and remove its lock; where that is impossible, say so on
    standard error. Where another process has finished the run, remove what the dead one has left; where one is training
    it, do nothing."""
    directory = prepared.directory
    error: OSError | UsageError | None = None
    try:
        with locks.claimed([directory]) as claim:
            if claim.mine and prepared.needs_training:
                error = write_reason(directory, reason, trace, claim.mine[directory])
            elif claim.mine:
                tidy(directory)
    except (OSError, UsageError) as trouble:
        error = trouble
    if error is not None:  # the command prints the reason when it ends, all the same
        why = error.strerror if isinstance(error, OSError) else str(error)
        print(f"clrun: {directory / 'failed.txt'} could not be written: {why}", file=sys.stderr)


def tidy_finished(runs: Sequence["Prepared"]) -> None:
    """Remove what a process that was killed after it had written summary.csv has left in the folders of these runs: its
    lock, and its checkpoint, unless its command was to keep that."""
    for prepared in runs:
        if prepared.finished and (prepared.directory / locks.NAME).is_file():
            with suppress(OSError, UsageError), locks.claimed([prepared.directory]) as claim:
                if claim.mine:  # nobody is training it again
                    tidy(prepared.directory)


def tidy(directory: Path) -> None:
    """Do what `remove_leftovers` does, as far as that is possible; what stays is in nobody's way."""
    with suppress(OSError):
        remove_leftovers(directory)


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files from the folder of a finished run, and its checkpoint, unless that was to be kept or is of
    a later training, which rerun=true asked for."""
    from clrun.runs import checkpoint  # torch

    run_files.clear_temporary_files(directory)
    saved, summary = directory / checkpoint.NAME, directory / "summary.csv"
    older = saved.is_file() and saved.stat().st_mtime <= summary.stat().st_mtime
    if older and not run_files.keeps_checkpoint(directory):
        checkpoint.remove(directory)


def where_written(directory: Path) -> str:
    """Return ' (path of failed.txt)' for the end of a reason; '' where the file could not be written."""
    path = directory / "failed.txt"
    return f" ({path})" if path.is_file() else ""


@contextmanager
def reason_written(runs: Sequence["Prepared"]) -> Iterator[None]:
    """Remove what an earlier attempt has left of a failure; if the block raises an exception, write failed.txt of all
    runs that have not ended and raise it again, with a note where failed.txt could not be written.

    Raise UsageError where a folder has the name of one of their files.
    """
    for prepared in runs:
        refuse_folders_in_place(prepared.directory)
        with prepared.guard.held():
            run_files.clear_failed(prepared.directory)
            run_files.clear_temporary_files(prepared.directory)
    try:
        yield
    except LockLost:  # no failure of the run
        raise
    except Exception as error:
        trace = traceback.format_exc()
        for prepared in (run for run in runs if run.needs_training):
            second = write_reason(prepared.directory, described(error), trace, prepared.guard)
            if second is not None:
                error.add_note(f"{prepared.directory / 'failed.txt'} could not be written: {second}")
        raise


def folder_in_place(path: Path) -> str:
    """Return the refusal of a folder at the place of a file."""
    return f"{path} is a folder, and clrun writes a file of this name; delete the folder, or rename it."


def refuse_folders_in_place(directory: Path) -> None:
    """Raise UsageError where a file of a run could not be written at the end, since a folder has its name."""
    names = (
        *FILES,
        "failed.txt",
        "config.yaml",
        "accuracy_matrix.png",
        "confusion.png",
        "misjudged.png",
        "online_accuracy.png",
        "accuracy_over_tasks.png",
    )
    for path in (directory / name for name in names):
        if path.is_dir():
            raise UsageError(folder_in_place(path))


# What errors without a class of their own say where CUDA, or a library of it, is given no memory.
SAID_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device's memory does not suffice, or was raised because of one that does.

    Where memory runs out while a graph is recorded, the end of the recording fails as well, with an error of another
    class that takes the place of the first one.
    """
    import torch  # late: a sweep that is only shown needs none of it

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or any(words in str(seen) for words in SAID_OF_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def memory_trouble(runs: Sequence["Prepared"]) -> Iterator[None]:
    """Raise RunsFailed, one paragraph, where the device's memory does not suffice for a run that is trained alone. Of
    several runs the error itself is raised: they can be trained in smaller stacks."""
    try:
        yield
    except RuntimeError as error:
        if len(runs) > 1 or not out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise RunsFailed(
            f"{runs[0].directory}: the device's memory does not suffice for this run ({reason}). End other programs "
            "that use the device and type the same command again, which goes on from the last checkpoint; or type "
            f"device=cpu, a batch_size below {runs[0].settings['batch_size']}, or a smaller network."
        ) from error


@contextmanager
def disk_trouble(outputs: str, place: Path) -> Iterator[None]:
    """Raise an error of the disk as one paragraph: RunsFailed where it is full, UsageError where it is not writable.

    place: what is written to, where the error does not say it.
    """
    try:
        yield
    except OSError as error:
        where = f"outputs={outputs}: {error.filename or place}"
        if error.errno in DISK_FULL:
            text = f"{where} could not be written: {error.strerror}. What was there is as it was; make room and type "
            raise RunsFailed(f"{text}the same command again, which continues from the last checkpoint.") from error
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
            raise UsageError(folder_in_place(Path(error.filename2 or error.filename or place))) from error
        no_folder = error.errno == errno.ENOENT and not Path(outputs).exists()
        if error.errno in NOT_WRITABLE or no_folder:
            text = f"{where} cannot be written: {error.strerror}."
            raise UsageError(f"{text} Type outputs=FOLDER, of a folder that you may write to.") from error
        raise
