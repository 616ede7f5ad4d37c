"""A run that can start."""

from dataclasses import dataclass
from pathlib import Path

from clrun.config.settings import Settings
from clrun.data.samples import Samples
from clrun.data.tasks import TaskStream
from clrun.results import run_files
from clrun.runs.origin import Origin
from clrun.strategy import Strategy
from clrun.system.atomic_files import UNGUARDED, Guard


@dataclass(frozen=True)
class Prepared:
    """A run that can start: everything that can be refused has been checked, and nothing has been written."""

    settings: Settings
    images: Samples
    stream: TaskStream
    strategy: type[Strategy]
    origin: Origin | None = None  # what it goes on from
    fixed: str = ""  # a digest of what the network reads besides theta: see `Network.fixed`
    guard: Guard = UNGUARDED  # the lock of the run, once this process has claimed it

    @property
    def id(self) -> str:
        """The identity of the run: ten hexadecimal digits."""
        return self.settings.identity(self.images.fingerprint)

    @property
    def stream_digest(self) -> str:
        """10 hexadecimal digits that are equal for runs whose accuracies can be compared."""
        before = None if self.origin is None else self.origin.stream
        return self.settings.stream(self.images.fingerprint, before)

    @property
    def directory(self) -> Path:
        """The folder of the run's files: under the name that an earlier version gave it, if it is there alone."""
        directory = self.settings.directory(self.images.fingerprint)
        former = self.settings.former_directory(self.images.fingerprint)
        return former if former is not None and former.is_dir() and not directory.is_dir() else directory

    @property
    def finished(self) -> bool:
        """Whether the run has ended, in whichever process."""
        return run_files.finished(self.directory)

    @property
    def needs_training(self) -> bool:
        """Whether the run has not ended, or is to be trained again."""
        return bool(self.settings["rerun"]) or not self.finished

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the outputs that may answer at the end, mean over the tasks that are measured."""
        measured = [task for task, pool in enumerate(self.stream.test) if len(pool)]
        return (1 / self.stream.tables.active[-1, measured].sum(-1)).mean().item()
