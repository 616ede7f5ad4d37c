"""The logs of the runs of a stack: opened where a run begins or goes on, fed after every stage, closed at its end.

A logger that fails is left out from then on, and that is said once; the run goes on. What has been logged is noted in
`logs.json` in the folder of the run, so that a run that was interrupted goes on in the same log; the file is removed at
the end.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clrun.loggers.points import last_row, points_of, summary_of
from clrun.loggers.sink import Identity, Opener, Sink, opener
from clrun.results import tables
from clrun.results.outcome import Outcome
from clrun.system.atomic_files import write_text
from clrun.system.locks import LockLost
from clrun.system.text import format_value

NAME = "logs.json"

MOST_PICTURES = 20  # of a run: with more tasks there is one, at the end


@dataclass
class Log:
    """The log of one run at one logger."""

    name: str
    sink: Sink
    rows: int  # the last row that is logged: see `points_of`; -1: none


@dataclass
class Logs:
    """The logs of the runs of a stack. opener: returns what opens the sinks of a logger, by its name."""

    outcomes: Sequence[Outcome]
    say: Callable[[str], None]
    opener: Callable[[str], Opener] = opener
    open: list[tuple[Outcome, Log]] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)  # the loggers that have failed

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close what is open where the block does not end by itself."""
        try:
            yield
        except BaseException:
            for outcome, log in list(self.open):
                self.attempt(outcome, log, log.sink.pause)
            raise

    def begin(self, resumed: bool) -> None:
        """Open the logs of all runs, and log what was measured so far. resumed: whether the runs go on from
        checkpoints, so that their logs do, too."""
        for outcome in self.outcomes:
            noted = read_notes(outcome.directory) if resumed else {}
            for name in names_of(outcome.values):
                key, rows = noted.get(name, (None, -1))
                with self.harmless(name):
                    sink = self.opener(name)(identity_of(outcome), key)
                    self.open.append((outcome, Log(name, sink, rows)))
        self.update()

    def update(self) -> None:
        """Log the stages that have ended since the last time."""
        for outcome, log in list(self.open):
            self.attempt(outcome, log, partial(bring_up_to_date, outcome, log))
        for outcome in self.outcomes:
            self.note(outcome)

    def note(self, outcome: Outcome) -> None:
        """Write which rows of a run are logged, where it is logged at all. A disk that is full is said elsewhere."""
        noted = {log.name: [log.sink.key, log.rows] for one, log in self.open if one is outcome}
        if noted:
            with self.harmless("notes"):
                write_text(outcome.directory / NAME, json.dumps(noted), outcome.guard)

    def end(self, outcome: Outcome) -> None:
        """Log how a run has ended, and close its logs."""
        for one, log in list(self.open):
            if one is outcome:
                self.attempt(outcome, log, partial(finish, outcome, log))
        self.open = [(one, log) for one, log in self.open if one is not outcome]
        if names_of(outcome.values):
            with self.harmless("notes"):
                (outcome.directory / NAME).unlink(missing_ok=True)

    def attempt(self, outcome: Outcome, log: Log, action: Callable[[], None]) -> None:
        """Do something with a log, which is left out from then on if that fails."""
        with self.harmless(log.name):
            action()
            return
        self.open = [(one, other) for one, other in self.open if other is not log]

    @contextmanager
    def harmless(self, name: str) -> Iterator[None]:
        """Say once what went wrong in the block, for each logger, and go on."""
        try:
            yield
        except LockLost:  # no failure of the logger
            raise
        except Exception as error:  # any: a logger must not end a training
            if name not in self.failed:
                reason = " ".join(str(error).split()) or "no reason given"
                self.say(f"log={name} failed, and the run goes on without it ({type(error).__name__}: {reason[:300]}).")
            self.failed.add(name)


def bring_up_to_date(outcome: Outcome, log: Log) -> None:
    """Log the rows that are new, and the accuracy matrix after each."""
    for row in range(log.rows + 1, last_row(outcome) + 1):
        log.sink.points(points_of(outcome, row))
        if row > 0 and len(outcome.counts) <= MOST_PICTURES:
            draw(outcome, log, row)
        log.rows = row


def finish(outcome: Outcome, log: Log) -> None:
    """Log what is left of a run that has ended, and its summary."""
    bring_up_to_date(outcome, log)
    if len(outcome.counts) > MOST_PICTURES:
        draw(outcome, log, log.rows)
    log.sink.end(str(outcome.status), summary_of(outcome))


def draw(outcome: Outcome, log: Log, row: int) -> None:
    """Log a picture of the accuracy matrix."""
    from clrun.results import plots

    log.sink.picture("accuracy_matrix", plots.matrix_figure(tables.accuracy_matrix_table(outcome)), row)


def names_of(values: Mapping[str, Any]) -> list[str]:
    """Return the loggers of a run with these values of its keys."""
    typed = values.get("log")
    return [] if typed is None else list(dict.fromkeys([typed] if isinstance(typed, str) else typed))


def identity_of(outcome: Outcome) -> Identity:
    """Return what a sink is told of a run."""
    directory = outcome.directory
    settings = {key: format_value(value) for key, value in outcome.values.items() if value is not None}
    name = f"{outcome.values['strategy']} {directory.name}"
    return Identity(
        outcome.run, outcome.group, name, directory.parents[2], f"{directory.parent.name}/{directory.name}", settings
    )


def read_notes(directory: Path) -> Mapping[str, Any]:
    """Return what is logged of a run by an earlier process: logger -> key and rows; nothing where that is not known."""
    try:
        found = json.loads((directory / NAME).read_text(encoding="utf-8"))
        return {str(name): (str(key), int(rows)) for name, (key, rows) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
