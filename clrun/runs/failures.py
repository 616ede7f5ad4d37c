"""What remains of a run that failed: failed.txt, and the error of a disk as one paragraph."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clrun.results import run_files
from clrun.runs.prepared import Prepared
from clrun.system.errors import RunsFailed, UsageError


def leave_reason(directory: Path, error: Exception, told: str) -> None:
    """failed.txt; where even that cannot be written, a note to the error."""
    try:
        run_files.write_failed(directory, f"{type(error).__name__}: {error}", told)
    except OSError as second:
        error.add_note(f"{directory / 'failed.txt'} could not be written: {second}")


@contextmanager
def disk_trouble(prepared: Prepared) -> Iterator[None]:
    """An error of the disk as one paragraph: RunsFailed where it is full, UsageError where it lets nobody write."""
    try:
        yield
    except OSError as error:
        where = f"outputs={prepared.settings['outputs']}: {error.filename or prepared.directory}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE):
            text = f"{where} could not be written: {error.strerror}. What was there is as it was; make room and type "
            raise RunsFailed(f"{text}the same command again, which continues from the last checkpoint.") from error
        barred = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
        if error.errno in barred or (error.errno == errno.ENOENT and not Path(prepared.settings["outputs"]).exists()):
            text = f"{where} cannot be written: {error.strerror}."
            raise UsageError(f"{text} Type outputs=FOLDER, of a folder that you may write to.") from error
        raise


def write_reason(one: "Prepared", reason: str) -> None:
    """failed.txt of a run whose process could not write it itself."""
    try:
        run_files.write_failed(one.directory, reason, "(no traceback: the process ended before it could leave one)")
    except OSError as error:  # the reason is said at the sweep's end all the same
        print(f"clrun: {one.directory / 'failed.txt'} could not be written: {error.strerror}", file=sys.stderr)
