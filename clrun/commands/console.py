"""What the console scripts share: how a command ends, its exit code, and how a mistake is reported."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from clrun.system.errors import RunsFailed, UsageError
from clrun.system.garbage_collection import relax_gc
from clrun.system.signals import graceful_termination


def end_with(action: Callable[[bool], Any]) -> NoReturn:
    """Do what a console script does, told whether the user wants tracebacks, and exit with its code."""
    relax_gc()
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would otherwise print and exit 1 on
    try:
        with graceful_termination():
            sys.exit(answer(lambda: action(before == "1"), before == "1"))
    except SystemExit as end:
        if end.code in (128 + signal.SIGTERM, 128 + signal.SIGHUP):
            complain("terminated; the same command again continues.")
        raise
    finally:
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)


def answer(action: Callable[[], Any], wants_trace: bool) -> int:
    """Do it, say what went wrong, and return the exit code."""
    try:
        action()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is to end
        complain("interrupted; the same command again continues.")
        return 130
    except (
        BrokenPipeError
    ):  # `clrun --help | head`: the reader has left, and Python must not flush into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RunsFailed as error:
        complain(str(error))
        return 1
    except Exception as error:
        paragraph = mistake(error)
        if wants_trace or paragraph is None:
            print_traceback()
        complain(paragraph or "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
        return 1 if paragraph is None else 2
    return 0


def exit_unless_done(code: int) -> None:
    """From within Hydra, which would print an exception of the job before it raises it."""
    if code:
        sys.exit(code)


def complain(paragraph: str) -> None:
    """To standard error, as it is."""
    print(f"clrun: {paragraph}", file=sys.stderr)


def print_traceback() -> None:
    """Of the exception being handled, without Hydra's frames."""
    import hydra
    from rich.console import Console

    Console(stderr=True).print_exception(suppress=[hydra])


def mistake(error: Exception) -> str | None:
    """The paragraph for a mistake of the user's; None for a crash."""
    if isinstance(error, UsageError):
        return str(error)
    if "hydra" not in sys.modules:
        return None
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, MissingConfigException) and error.options:
        from clrun.config.overrides import missing

        return missing(*os.path.split(error.missing_cfg_file or ""), error.options)
    if isinstance(error, YAMLError):
        return f"a yaml file is not valid: {' '.join(str(error).split())}."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(line.strip() for line in str(error).strip().splitlines()) + " (clrun --help lists the keys)"
    return None


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; type {self.prog} --help.")


class KeyParser(Parser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(
            f"{message}; a key is typed without dashes, as in lambda=400 (clrun --help lists flags and keys)."
        )
