"""Standard output and standard error that never end the work.

It may be impossible to print: the disk of a log is full, the reader of a pipe has left, the terminal is gone, or it has
no character but those of ASCII. Training and files must not depend on that. `lasting_output` therefore puts streams in
the place of sys.stdout and sys.stderr from which nothing is raised: print(), rich and the csv module need no care. If
a stream fails, it leads to nowhere from then on, and the error is kept for the exit code (clrun/commands/console.py).
"""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

ERRORS = "clrun-readable"  # the name of `readable` among Python's handlers of characters that an encoding lacks

# What stands for characters of clrun's own tables where the encoding lacks them.
PLAIN = {"±": "+-", "×": "x", "→": "->", "…": "~", "–": "-", "−": "-", "│": "|", "┃": "|", "•": "*"}
HORIZONTAL = "─━╌╍┄┅┈┉╴╶╸╺╼╾═"  # of tables and bars
BOX = range(0x2500, 0x2580)  # Unicode's "Box Drawing"


def readable(error: UnicodeError) -> tuple[str, int]:
    """Return what is printed in place of characters that an encoding lacks, and where to go on: signs of tables in
    ASCII, any other as Python writes it in a string, such as \\xfc or \\u732b, so that no two names become one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def in_ascii(character: str) -> str:
    """Return a character in ASCII."""
    if character in PLAIN:
        return PLAIN[character]
    if ord(character) in BOX:
        return "-" if character in HORIZONTAL else "+"
    return character.encode("ascii", "backslashreplace").decode("ascii")


def in_encoding(text: str, encoding: str | None) -> str:
    """Return a text with what `readable` puts in the place of characters that an encoding lacks; None: of UTF-8."""
    codecs.register_error(ERRORS, readable)
    return text.encode(encoding or "utf-8", ERRORS).decode(encoding or "utf-8")


class LastingBytes(io.RawIOBase):
    """Bytes that are written to another stream until that fails, and to nowhere from then on.

    error: why it failed; None as long as all was written.
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the number of the file. Raise OSError where the stream is none."""
        return self.target.fileno()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self.target.isatty()

    def write(self, data: Any) -> int | None:
        """Write bytes. Return how many were, which may be fewer, or None where it would have to wait."""
        try:
            return self.target.write(data)
        except OSError as error:
            self.error = error
            self.lead_nowhere()
            return len(data)

    def lead_nowhere(self) -> None:
        """Let the file's number stand for /dev/null, for all that writes to it: Python when it ends, libraries, and
        processes that are started later."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.target.fileno())
        os.close(nowhere)


@dataclass
class Output:
    """Standard output and standard error, as they last."""

    out: LastingBytes
    err: LastingBytes

    @property
    def lost(self) -> OSError | None:
        """Why something was not written to standard output; None if all was. Progress and remarks, on standard error,
        are no result of a command."""
        return self.out.error


@contextmanager
def lasting_output() -> Iterator[Output]:
    """Put streams that never fail in the place of sys.stdout and sys.stderr while the block runs.

    One that is closed (`>&-`) is not wanted, so what is written to it goes nowhere.
    """
    codecs.register_error(ERRORS, readable)
    before = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w", encoding="utf-8") for stream in before)  # noqa: SIM115
    output = Output(bytes_of(out), bytes_of(err))
    sys.stdout, sys.stderr = text_on(output.out, out), text_on(output.err, err)
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def bytes_of(stream: Any) -> LastingBytes:
    """Return the bytes of a text stream, which last."""
    stream.flush()
    return LastingBytes(getattr(stream.buffer, "raw", stream.buffer))


def text_on(lasting: LastingBytes, like: Any) -> TextIO:
    """Return a text stream on bytes, with the encoding and the buffering of another one.

    One that writes at once (`python -u`) has no buffer, so that both streams stay in their order in one file.
    """
    bytes_stream: Any = lasting if like.write_through else io.BufferedWriter(lasting)
    return io.TextIOWrapper(
        bytes_stream,
        encoding=like.encoding,
        errors=ERRORS,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
