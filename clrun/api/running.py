"""`clrun.run`: train what is typed as on the command line, and return what was measured."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clrun.api.results import Results, load
from clrun.api.typed import texts_of
from clrun.config import catalog
from clrun.system.environment import environment_of_clrun
from clrun.system.errors import RunsFailed, UsageError
from clrun.system.messages import announce
from clrun.system.output import in_encoding

LINES = 20  # of output, that the error of a process that crashed repeats

SHUTDOWN_SECONDS = 60.0  # for a process that was interrupted to write its checkpoints


def run(
    *typed: object,
    config_dir: str | Path | None = None,
    quiet: bool = False,
    **keys: object,
) -> Results:
    """Train runs, unless they are finished already, and return what they have measured.

    typed: texts as on the command line, such as "lambda=400" or "lr=0.1,0.01", and mappings from keys to values, such
    as {"model.widths": [100]}. keys: values by key, such as seed=range(3). Several values of keys are a sweep over all
    combinations. A list is one value of a key that takes a list, and else several values. config_dir: a folder with
    strategies and networks of your own. quiet: whether nothing is printed.

    The training happens in a process of its own: it is what `clrun -m` does, and finds the same runs done. Raise
    UsageError for a mistake, RunsFailed where runs crashed (the others are finished: `clrun.load` reads them), and
    KeyboardInterrupt; the same call again continues.
    """
    texts = texts_of(typed, keys, catalog.with_folder(config_dir))
    flags = ["--multirun", *([] if config_dir is None else [f"--config-dir={config_dir}"])]
    with tempfile.TemporaryDirectory(prefix="clrun-") as folder:
        train([folder, *flags, *texts], Path(folder), (lambda _: None) if quiet else Shown())
        directories = [Path(line) for line in (Path(folder) / "folders").read_text(encoding="utf-8").splitlines()]
    return results_of(directories)


def results_of(directories: Sequence[Path]) -> Results:
    """Return the results of runs, by their folders."""
    outputs = list(dict.fromkeys(directory.parents[2] for directory in directories))
    if len(outputs) > 1:
        raise UsageError("the runs are in several folders, and results are of one; clrun.load(FOLDER) reads each.")
    return load(outputs[0], trials=True).of([directory.name.rpartition("-")[2] for directory in directories])


def train(arguments: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
    """Train in a process of its own. folder: where it notes what is wrong; say: takes a line of what it prints. Raise
    UsageError, RunsFailed or KeyboardInterrupt."""
    hand_on(started(arguments), folder, say)


def hand_on(process: "subprocess.Popen[str]", folder: Path, say: Callable[[str], None]) -> None:
    """Hand on what a process prints until it ends. Raise what it has noted in the folder, or else RunsFailed, where its
    exit code is not 0."""
    last: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last, line][-LINES:]
            say(line)
        code = process.wait()
    except BaseException as error:
        end(process, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM, say)
        raise
    if code:
        raise what_is_wrong(folder, code, "".join(last))


def started(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """Start the process in a group of its own, so that Ctrl-C reaches this one alone, which hands it on once."""
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-m", "clrun.api.child", *arguments],
        env=environment_of_clrun(PYTHONIOENCODING="utf-8"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        process_group=0,
    )


def end(process: "subprocess.Popen[str]", sent: signal.Signals, say: Callable[[str], None]) -> None:
    """End the process by a signal, so that it writes checkpoints, and hand on what it says; kill it after a while."""
    process.send_signal(sent)
    try:
        said, _ = process.communicate(timeout=SHUTDOWN_SECONDS)
        say(said)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Shown:
    """What prints pieces of the output at once. Where that is impossible, it says so, and the training goes on."""

    lost: bool = False  # whether printing has failed

    def __call__(self, text: str) -> None:
        """Print a piece, with what stands for characters that standard output lacks."""
        if self.lost:
            return
        try:
            print(in_encoding(text, getattr(sys.stdout, "encoding", None)), end="", flush=True)
        except (OSError, ValueError) as error:  # no room, or nobody reads; or the stream was closed
            self.lost = True
            announce(f"standard output could not be written: {error}. The training goes on.")


def what_is_wrong(folder: Path, code: int, last: str) -> BaseException:
    """Return the exception for a process that has ended with a code other than 0. last: what it printed last."""
    noted = folder / "mistake.json"
    if noted.is_file():
        found = json.loads(noted.read_text(encoding="utf-8"))
        return RunsFailed(found["text"]) if found["failed"] else UsageError(found["text"])
    if code == 128 + signal.SIGINT:
        return KeyboardInterrupt()
    return RunsFailed(f"the process of clrun ended with exit code {code}; the last that it printed:\n{last}")
