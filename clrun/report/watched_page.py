"""The page of a report while runs are trained: `clrun-watch --html` writes it again and again, with the runs under way.

A browser that shows it loads it anew by itself, and keeps what was chosen on it. The last time that it is written, it
becomes a page as `clrun-report --html` writes it, which stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clrun.report.page import write_data
from clrun.report.page_data import page_data
from clrun.report.rows import Row, default_order, ordered, rows_of
from clrun.report.runs import read
from clrun.system.errors import UsageError
from clrun.system.messages import announce
from clrun.terminal.fitting import Cells

MEASURE = "average_accuracy"


@dataclass
class WatchedPage:
    """A page that is written again and again."""

    path: Path
    folder: Path  # of the results
    every: float  # seconds after which a browser loads the page anew
    ended: dict[Path, float] | None = None  # the runs in `data`, as of `Watcher.ended`; None before the first
    data: Mapping[str, Any] = field(default_factory=dict)  # of the finished runs
    said: set[str] = field(default_factory=set)

    def write(self, cells: Cells, ended: Mapping[Path, float], last: bool = False) -> None:
        """Write the page, all or nothing. Finished runs are read again only if there are new ones. Raise OSError.

        cells: the table of `clrun-watch`; ended: folders of runs that have ended, and when; last: whether the page is
        not written again.
        """
        if self.ended != ended:
            self.ended = dict(ended)
            self.data = page_data(self.folder, self.rows(), MEASURE, self.path.resolve().parent)
        progress = {
            "title": cells.title,
            "columns": [column.name for column in cells.columns],
            "rows": [list(map(str, row)) for row in cells.rows],
            "every": None if last else self.every,
        }
        write_data(self.path, self.folder, {**self.data, "progress": progress})

    def rows(self) -> list[Row]:
        """Return the rows of the runs that have finished; none where there are none yet, or where what is there cannot
        be reported, which is said once."""
        if not self.ended:
            return []
        try:
            rows = rows_of(read(self.folder, say=self.say))
        except UsageError as error:
            self.say(str(error))
            return []
        return ordered(rows, default_order(rows), False)

    def say(self, sentence: str) -> None:
        """Print a sentence once."""
        if sentence not in self.said:
            self.said.add(sentence)
            announce(sentence)
