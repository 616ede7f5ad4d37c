"""What the console scripts share: their exit codes, and how a mistake or a crash is reported."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from clrun.system.environment import color_system, variable_set
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.garbage_collection import relax_gc
from clrun.system.output import Output, lasting_output
from clrun.system.signals import graceful_termination

# Errors of a disk that has no room, fails, is gone, or may not be written to; and of one that may not be read either.
CANNOT_BE_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
CANNOT_BE_USED = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)


def end_with(action: Callable[[bool], Any]) -> NoReturn:
    """Run a console script's action and exit with its code.

    The action gets whether the user wants tracebacks, which HYDRA_FULL_ERROR=1 asks for.
    """
    relax_gc()
    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with lasting_output() as output:
        try:
            with hydra_errors_raised(), graceful_termination():
                code: Any = answer(lambda: action(wants_trace), wants_trace)
        except KeyboardInterrupt:  # a Ctrl-C that was dropped in a callback takes effect at the end of the block
            code = interrupted()
        except SystemExit as end:
            if end.code in (128 + signal.SIGTERM, 128 + signal.SIGHUP):
                complain("terminated; the same command again continues.")
            code = end.code
        code = code_with(output, code or 0)
    sys.exit(code)


def code_with(output: Output, code: Any) -> Any:
    """Return the exit code of a command that ends with `code` otherwise: 1 in place of 0 where standard output could
    not be written. Say so, unless a reader has left, as in `clrun --help | head`."""
    sys.stdout.flush()
    if output.lost is None:
        return code
    if output.lost.errno != errno.EPIPE:
        complain(f"standard output could not be written: {output.lost.strerror}. All else was done; files are whole.")
    return code or 1


def hydra_errors_raised() -> AbstractContextManager[None]:
    """Set HYDRA_FULL_ERROR meanwhile, a patch of the environment: without it, Hydra prints its errors and exits."""
    return variable_set("HYDRA_FULL_ERROR", "1")


def answer(action: Callable[[], Any], wants_trace: bool) -> int:
    """Run an action, print what went wrong to standard error, and return the exit code."""
    try:
        action()
    except KeyboardInterrupt:
        return interrupted()
    except RunsFailed as error:
        complain(str(error))
        return 1
    except Exception as error:
        if not wants_trace and (sentence := disk_error(error)) is not None:
            complain(sentence)
            return 1
        paragraph = mistake(error)
        if paragraph is None:
            complain_of_users_line(error)
        if wants_trace or paragraph is None:
            print_traceback()
        complain(paragraph or "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
        return 1 if paragraph is None else 2
    return 0


def interrupted() -> int:
    """Say that Ctrl-C was typed, and return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the exit
    complain("interrupted; the same command again continues.")
    return 128 + signal.SIGINT


def exit_unless_done(code: int) -> None:
    """Exit with a code other than 0, from within Hydra, which would print an exception of the job."""
    if code:
        sys.exit(code)


def complain(paragraph: str) -> None:
    """Print a paragraph to standard error."""
    print(f"clrun: {paragraph}", file=sys.stderr)


def complain_of_users_line(error: Exception) -> None:
    """Print an error that happened in a user's own file, and where in it: before the traceback, in which the frames of
    clrun and of the libraries are many."""
    from clrun.system.user_frames import described, users_frame

    if users_frame(error) is not None:
        complain(f"an error in {described(error)}")


def print_traceback() -> None:
    """Print the traceback of the exception that is being handled, without Hydra's frames."""
    import hydra
    from rich.console import Console

    Console(stderr=True, color_system=color_system()).print_exception(suppress=[hydra])


def disk_error(error: Exception) -> str | None:
    """Return the paragraph on a file that could not be written, or not even be read, since there is no room or no
    permission, or since its disk is gone; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in CANNOT_BE_WRITTEN + CANNOT_BE_USED:
        return None
    what = "a file" if error.filename is None else str(error.filename)
    how = "written" if error.errno in CANNOT_BE_WRITTEN else "read or written"
    advice = "make room, or see to its permissions or its disk, and type the same command again"
    return f"{what} could not be {how}: {error.strerror}. What was there is as it was; {advice}."


def mistake(error: Exception) -> str | None:
    """Return the paragraph that explains a mistake of the user's; None for a crash."""
    if isinstance(error, UsageError):
        return str(error)
    if "hydra" not in sys.modules:
        return None
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, MissingConfigException) and error.options:
        from clrun.config.check_keys import missing

        return missing(*os.path.split(error.missing_cfg_file or ""), error.options)
    if isinstance(error, YAMLError):
        return f"a yaml file is not valid: {' '.join(str(error).split())}."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return (
            " ".join(line.strip() for line in str(error).strip().splitlines()) + " (clrun --help keys lists the keys)"
        )
    return None


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; type {self.prog} --help.")


class KeyParser(Parser):
    """A parser of keys and flags."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(
            f"{message}; a key is typed without dashes, as in lambda=400 "
            "(clrun --help lists flags, and clrun --help keys the keys)."
        )
