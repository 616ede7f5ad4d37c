"""Where in a user's own code an error happened, among the frames of clrun and of the libraries."""

import sysconfig
import traceback
from pathlib import Path

from clrun.system.paths import PACKAGE

# Folders of code that is not the user's, wherever they stand in a path: of installed libraries.
LIBRARIES = ("site-packages", "dist-packages")


def users_frame(error: BaseException) -> str | None:
    """Return the innermost frame of an error that is in a user's file, such as 'decay.py, line 12, in loss: ...'; None
    where there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    if not frames:
        return None
    last = frames[-1]
    code = f": {last.line}" if last.line else ""
    return f"{last.filename}, line {last.lineno}, in {last.name}{code}"


def described(error: BaseException) -> str:
    """Return an error as its type and what it says, behind the frame in a user's file where it happened in one."""
    where = users_frame(error)
    return f"{'' if where is None else f'{where}: '}{type(error).__name__}: {error}"


def is_users(filename: str) -> bool:
    """Return whether a file is neither clrun's nor a library's, and no file at all such as <string>."""
    path = Path(filename)
    if filename.startswith("<") or any(part in LIBRARIES for part in path.parts):
        return False
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_path("scripts"))
    return not any(path.is_relative_to(folder) for folder in (PACKAGE, *standard))
