"""The command `clrun-verify ROW ...`: train a row of conf/verify/rows.yaml and compare it with published numbers.

Seeds are 2, 3, ... as in van de Ven et al. 2022, from the first on, never chosen. A case is inside when

    |ours - theirs| <= allowed = max(tolerance, 2.5 * se_theirs)

two-sided. What is allowed does not grow with the noise of our own numbers. Where 2.5 * sqrt(se_ours^2 + se_theirs^2)
exceeds it, or is unknown since there is one seed, the verdict is "cannot tell", unless the distance exceeds both
together. Below 20 seeds a case outside "needs more seeds"; from 20 on it is out. The exit code is 1 unless all cases
are inside: "cannot tell" is no agreement.
"""

import argparse
import math
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import pandas as pd
from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from clrun import __version__
from clrun.commands import console, run
from clrun.config import catalog, check_keys
from clrun.results.columns import ONLINE_MEANINGS, OVERALL_METRICS, SUMMARY_METRICS, TASK_AWARE_MEANINGS
from clrun.system.errors import UsageError
from clrun.system.paths import CONF

if TYPE_CHECKING:
    from clrun.terminal.fitting import Cells

TABLE = CONF / "verify" / "rows.yaml"

FIRST_SEED = 2

# Seeds from which a case that is outside is out.
VERDICT = 20

# Standard errors that a number may be off by chance.
ERRORS = 2.5

# A metric: the accuracy on task 1 after the last task.
FIRST_TASK = "first_task"

# A metric: the online accuracy of one task, with its number. A pattern.
ONLINE_OF_TASK = r"online_accuracy_([1-9]\d*)"

# Metrics that are columns of summary.csv and shares.
SHARES = (*SUMMARY_METRICS, *OVERALL_METRICS, *TASK_AWARE_MEANINGS, *ONLINE_MEANINGS)


def known(metric: str) -> str:
    """Return a metric. Raise ValueError if `measured` cannot read it."""
    if metric in (FIRST_TASK, *SHARES) or re.fullmatch(ONLINE_OF_TASK, metric):
        return metric
    raise ValueError(
        f"there is no metric {metric}; type {FIRST_TASK}, online_accuracy_K of task K, or one of {', '.join(SHARES)}"
    )


Metric = Annotated[str, AfterValidator(known)]


class Case(BaseModel):
    """One published number, in percent."""

    model_config = ConfigDict(extra="forbid")
    overrides: list[str]
    target: float
    tolerance: float
    se: float = 0.0  # standard error of the published number
    metric: Metric | None = None  # that of the row, if it is None


class Row(BaseModel):
    """One row of the table: a published experiment."""

    model_config = ConfigDict(extra="forbid")
    title: str
    source: str
    tolerances: str  # the reason of each
    base: list[str]
    cases: dict[str, Case]
    metric: Metric = "average_accuracy"


@dataclass(frozen=True)
class Finding:
    """The result of a case, in percent."""

    row: str
    name: str
    case: Case
    command: str
    mean: float
    standard_error: float  # nan for one seed
    n: int
    minutes: float  # that a run took, by the clock; the mean over the seeds
    commit: str  # of clrun when the runs were trained; several, with commas between them, where they differ

    @property
    def allowed(self) -> float:
        """The distance from the published number that counts as inside; our own noise does not widen it."""
        return max(self.case.tolerance, ERRORS * self.case.se)

    @property
    def noise(self) -> float:
        """2.5 standard errors of the difference of the two numbers; infinite for one seed, of which it is unknown."""
        return math.inf if math.isnan(self.standard_error) else ERRORS * math.hypot(self.standard_error, self.case.se)

    @property
    def verdict(self) -> str:
        """Whether the case is inside or out, or whether its seeds are too few or too noisy to tell."""
        distance = abs(self.mean - self.case.target)
        if self.noise > self.allowed and distance <= self.allowed + self.noise:
            return "cannot tell"
        if distance <= self.allowed:
            return "inside"
        return "out" if self.n >= VERDICT else "outside: needs more seeds"


def rows() -> dict[str, Row]:
    """Return the table, by the number of the row."""
    content: Any = OmegaConf.to_container(OmegaConf.load(TABLE))
    return {str(number): checked(str(number), row) for number, row in content.items()}


def checked(number: str, content: Any) -> Row:
    """Return what the table has of a row. Raise UsageError for a wrong or missing field."""
    try:
        return Row.model_validate(content)
    except ValidationError as error:
        complaints = "; ".join(map(catalog.complaint, error.errors()))
        raise UsageError(f"row {number} of {TABLE}: {complaints}.") from None


def overrides_of(row: Row, case: Case, common: Sequence[str]) -> list[str]:
    """Return the overrides of a case's runs: of a key in several lists, the last. `common` ones are outside of a run's
    identity."""
    return check_keys.last_of_each([*row.base, *case.overrides, *common])


def directories(overrides: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Return the folders of a case's runs."""
    from clrun.config.composition import compose
    from clrun.runs import prepare

    return [prepare.prepare(compose(*overrides, f"seed={seed}")).directory for seed in seeds]


def measured(directory: Path, metric: str) -> float:
    """Return a run's number in percent. Raise UsageError if the run diverged or did not measure it, UnreadableFile if a
    file is damaged."""
    from clrun.results.outcome import RunStatus
    from clrun.results.run_files import summary_of

    summary = summary_of(directory)
    if summary["status"] != RunStatus.DONE:
        raise UsageError(f"{directory} is {summary['status']}: {summary['diverged_at']}; it has no number to compare.")
    if metric == FIRST_TASK:
        share = on_first_task(directory)
    elif of_task := re.fullmatch(ONLINE_OF_TASK, metric):
        share = online_accuracy(directory, of_task[1])
    else:
        share = summary.get(metric, math.nan)
    if math.isnan(share):  # such as online_accuracy without stream=online
        raise UsageError(f"{directory} did not measure {metric}, so it has no number to compare.")
    return 100 * share


def on_first_task(directory: Path) -> float:
    """Return a run's accuracy on task 1 after the last task."""
    from clrun.results.reading import read_table

    return read_table(directory / "accuracy_matrix.csv")["task_1"].iloc[-1]


def online_accuracy(directory: Path, task: str) -> float:
    """Return a run's online accuracy on a task; nan for a run without online accuracies. Raise UsageError where there
    is no such task."""
    from clrun.results.reading import read_table

    path = directory / "online_accuracy.csv"
    if not path.is_file():
        return math.nan
    accuracies = read_table(path).set_index("task")["online_accuracy"]
    if task not in accuracies.index:
        raise UsageError(f"{directory} has no task {task}, so it has no online_accuracy_{task} to compare.")
    return accuracies[task]


def verify(number: str, row: Row, seeds: Sequence[int], common: Sequence[str]) -> Iterator[Finding]:
    """Train what is missing of a row, and yield how each case compares."""
    trained: list[str] = []  # cases of the same runs differ in what is read from them
    for name, case in row.cases.items():
        overrides = overrides_of(row, case, common)
        sweep = ["-m", *overrides, f"seed=range({seeds[0]},{seeds[-1] + 1})"]
        command = f"clrun {shlex.join(sweep)}"
        if command not in trained:
            print(f"\nrow {number}, {name}: {command}", flush=True)
            run.command(sweep)
            trained.append(command)
        folders = directories(overrides, seeds)
        values = pd.Series([measured(directory, case.metric or row.metric) for directory in folders])
        standard_error: Any = values.sem()  # a float, of which pandas' stubs are not sure
        found = float(values.mean()), standard_error, len(values)
        yield Finding(number, name, case, command, *found, *spent(folders))


def spent(directories: Sequence[Path]) -> tuple[float, str]:
    """Return the mean minutes that runs took, and the commits of clrun by which they were trained."""
    from clrun.results.run_files import summary_of

    summaries = [summary_of(directory) for directory in directories]
    minutes = sum(summary["wall_seconds"] for summary in summaries) / len(summaries) / 60
    return minutes, ", ".join(dict.fromkeys(summary["commit"] for summary in summaries if summary["commit"]))


def table(findings: Sequence[Finding]) -> "Cells":
    """Return a row for each case, as they are in docs/results/reproduction.md."""
    from clrun.terminal.fitting import Cells, Column

    names = {"row": True, "case": True, "ours": False, "se": False, "n": False, "published": False, "allowed": False}
    ends = [Column("verdict", text=True), Column("minutes a run"), Column("commit", text=True)]
    columns = [*(Column(name, text) for name, text in names.items()), *ends]
    return Cells("", columns, [cells_of(finding) for finding in findings], labels=2)


def cells_of(f: Finding) -> list[str]:
    """Return the row of a case."""
    error = "" if math.isnan(f.standard_error) else f"{f.standard_error:.2f}"
    figures = [f"{f.mean:.2f}", error, str(f.n), f"{f.case.target:.2f}", f"± {f.allowed:.2f}"]
    return [f.row, f.name, *figures, f.verdict, f"{f.minutes:.1f}", f.commit]


def show(cells: "Cells") -> None:
    """Print a table."""
    from clrun.terminal.console import make_console
    from clrun.terminal.fitting import print_table

    print_table(make_console(), cells)


def listing(by_number: Mapping[str, Row], width: int) -> str:
    """Return the rows in lines of at most `width` letters: what each case published, where, and why which tolerance."""
    return "\n".join(entry(number, row, width) for number, row in by_number.items())


def entry(number: str, row: Row, width: int) -> str:
    """Return what `listing` says of a row."""
    cases = "; ".join(f"{name} {case.target:g} ± {case.tolerance:g}" for name, case in row.cases.items())
    parts = [f"Published ± tolerance, in %: {cases}", f"Source: {row.source}", f"Tolerances: {row.tolerances}"]
    below = [filled(part, width, "     ", "       ") for part in parts]
    return "\n".join([filled(row.title, width, f"{number:>3}  ", "     "), *below])


def filled(text: str, width: int, first: str, others: str) -> str:
    """Return a paragraph in lines of at most `width` letters, with what the first line and the others begin with."""
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = console.Parser("clrun-verify", description="Compare with published numbers, two-sided.", allow_abbrev=False)
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("rows", nargs="*", metavar="ROW", help="rows of the table (see --list)")
    flags.add_argument(
        "--list", action="store_true", help="list the rows, what was published, tolerances and their reasons"
    )
    flags.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="seeds 2 ... N + 1 (5 is quick, 20 the verdict)"
    )
    flags.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings outside a run's identity: data_dir, outputs, device ...",
    )
    return flags


def refuse(arguments: argparse.Namespace, by_number: Mapping[str, Row]) -> None:
    """Raise UsageError for rows, seeds or settings that cannot be verified."""
    unknown = [row for row in arguments.rows if row not in by_number]
    if unknown or not arguments.rows:
        raise UsageError(
            (f"there is no row {unknown[0]}; " if unknown else "")
            + f"type rows out of {', '.join(by_number)} (clrun-verify --list)."
        )
    if arguments.seeds < 1:
        raise UsageError(f"--seeds {arguments.seeds}: at least one; 5 is quick, 20 the verdict.")
    check_keys.refuse_twice([check_keys.parsed(text) for text in arguments.set], "clrun -m")
    # What lies in the folder of init_from is part of a run's identity, though the key is not.
    outside_identity = {key for key, spec in catalog.read().root.items() if not spec.identity} - {"init_from"}
    changing = [text for text in arguments.set if text.partition("=")[0] not in outside_identity]
    if changing:
        raise UsageError(
            f"--set {changing[0]} would change what is verified; it takes {', '.join(sorted(outside_identity))} alone."
        )


def main() -> NoReturn:
    """Run the console script `clrun-verify`."""
    console.end_with(lambda _: command(sys.argv[1:], rows()))


def command(argv: Sequence[str], by_number: Mapping[str, Row]) -> None:
    """Run rows of a table, print how they compare, and exit with 1 if a case is not inside."""
    arguments = parser().parse_args(list(argv))
    if arguments.list:
        print(listing(by_number, shutil.get_terminal_size().columns))
        return
    refuse(arguments, by_number)
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    findings = [
        finding for number in arguments.rows for finding in verify(number, by_number[number], seeds, arguments.set)
    ]
    show(table(findings))
    if any(finding.verdict != "inside" for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
