"""Files that are written under a temporary name and then renamed, so that nobody reads half a file."""

import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol


class Guard(Protocol):
    """What decides whether a file may be written: a lock of clrun/system/locks.py. Both raise where it may not."""

    def check(self) -> None:
        """Look at once, before anything is written."""

    def held(self) -> AbstractContextManager[None]:
        """Keep others from writing while the file gets its name."""


class Unguarded:
    """The guard of a file that nobody else writes."""

    def check(self) -> None:
        """Allow it."""

    def held(self) -> AbstractContextManager[None]:
        """Allow it."""
        return nullcontext()


UNGUARDED = Unguarded()


@contextmanager
def replacing(path: Path, guard: Guard = UNGUARDED) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It is renamed onto `path` when the block ends without an exception, and
    removed otherwise. guard: what must allow it, before anything is written and again when the file gets its name. An
    OSError names `path`, which is what the user knows."""
    guard.check()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with guard.held():
            os.replace(temporary, path)
    except OSError as error:
        unnamed = error.filename is None and error.errno is not None
        if unnamed or str(error.filename) == str(temporary):  # an error of write() names no file
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, guard: Guard = UNGUARDED) -> None:
    """Write a text in UTF-8, all or nothing. guard: as of `replacing`."""
    with replacing(path, guard) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
