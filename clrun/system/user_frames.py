"""Where in a user's own code an error happened, among the frames of clrun and of the libraries."""

import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clrun.system.errors import Paragraph
from clrun.system.paths import PACKAGE

# Folders of code that is not the user's, wherever they stand in a path: of installed libraries.
LIBRARIES = ("site-packages", "dist-packages")

# A frame of a printed traceback: file, line, function, and the code below it where it could be read.
PRINTED_FRAME = re.compile(r'^ *File "(.+)", line (\d+), in (.+)\n(?:    +(?!\^|~)(\S.*)\n)?', re.MULTILINE)


def users_frame(error: BaseException) -> str | None:
    """Return the innermost frame of an error that is in a user's file, such as 'decay.py, line 12, in loss: ...'; of a
    file that is no Python the line that is none; None where there is no such frame."""
    if isinstance(error, SyntaxError) and error.filename is not None and is_users(error.filename):
        return f"{error.filename}, line {error.lineno}{f': {error.text.strip()}' if error.text else ''}"
    frames = traceback.extract_tb(error.__traceback__)
    return innermost([(frame.filename, str(frame.lineno), frame.name, frame.line) for frame in frames])


def users_frame_printed(trace: str) -> str | None:
    """Return the same of a traceback that another process has printed."""
    return innermost(PRINTED_FRAME.findall(trace))


def innermost(frames: Sequence[tuple[str, str, str, str | None]]) -> str | None:
    """Return the last of the frames (file, line, function, code) that is in a user's file; None where none is."""
    users = [frame for frame in frames if is_users(frame[0])]
    if not users:
        return None
    filename, line, function, code = users[-1]
    return f"{filename}, line {line}, in {function}{f': {code}' if code else ''}"


def described(error: BaseException) -> str:
    """Return an error as its type and what it says, behind the frame in a user's file where it happened in one; of a
    paragraph, which says all, no type."""
    where, said = users_frame(error), str(error)
    if isinstance(error, SyntaxError):
        said = error.msg  # without file and line, which are known
    kind = "" if isinstance(error, Paragraph) else f"{type(error).__name__}: "
    return f"{'' if where is None else f'{where}: '}{kind}{said}"


def place_of(function: Callable[..., Any]) -> str | None:
    """Return where a function or method stands, such as 'decay.py, line 10, in loss'; None where it is written in no
    file of Python."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return f"{inspect.getsourcefile(function)}, line {code.co_firstlineno}, in {code.co_name}"


def is_users(filename: str) -> bool:
    """Return whether a file is neither clrun's nor a library's, and no file at all such as <string>."""
    path = Path(filename)
    if filename.startswith("<") or any(part in LIBRARIES for part in path.parts):
        return False
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_path("scripts"))
    return not any(path.is_relative_to(folder) for folder in (PACKAGE, *standard))
