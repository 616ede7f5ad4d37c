"""Statistics over the seeds of many runs, as tables and plots.

A row is a group: runs that differ in nothing but the seed, on one stream. For n values x with mean m and standard
deviation s (n - 1), the 95 % interval of the mean is m ± t(0.975, n - 1) s / sqrt(n), Student's t, and ends
where the measure does (an accuracy at 0 and 100 %); for n = 1 there is none. A diverged run has no accuracy: it is
counted beside the mean, never in it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from clrun import __version__
from clrun.commands.console import Parser, end_with
from clrun.report import budget, class_accuracy, compare, latex, own_metric
from clrun.report.rows import Row, default_order, ordered, references, rows_of, streams, table
from clrun.report.runs import MEASURES, read
from clrun.report.tables import Section, section
from clrun.results import run_files
from clrun.system import atomic_files
from clrun.system.errors import UsageError
from clrun.terminal.console import make_console

if TYPE_CHECKING:
    from clrun.report.paper_figures import Look


def cli() -> NoReturn:
    """Run the console script `clrun-report`."""
    end_with(lambda _: command(sys.argv[1:]))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = Parser(prog="clrun-report", description=__doc__, allow_abbrev=False)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_argument("--version", action="version", version=f"clrun {__version__}")
    flags.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="what clrun's outputs= named")
    flags.add_argument(
        "--sort", metavar="NAME", help="a measure, a key, or settings (default: validation_accuracy, else settings)"
    )
    flags.add_argument("--reverse", action="store_true", help="the other way round")
    flags.add_argument("--measure", default="average_accuracy", metavar="NAME", help="which to show in full")
    questions = flags.add_mutually_exclusive_group()
    questions.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two rows, such as ewc 'si c=0.1', by seed")
    questions.add_argument(
        "--budget", metavar="LIMITS", help="which rows keep it, such as 'state_mb<1,total_seconds<30'"
    )
    questions.add_argument(
        "--html", nargs="?", const="", metavar="FILE",
        help="also write a page to look at in a browser (default: report.html in the folder); needs plotly",
    )  # fmt: skip
    flags.add_argument(
        "--metric", metavar="FILE:FUNCTION",
        help="own_metric: a function of yours of predictions.csv (predictions=true), as metrics.py:balanced",
    )  # fmt: skip
    flags.add_argument("--classes", action="store_true", help="also the accuracy on each class, and class_accuracy.csv")
    flags.add_argument("--trials", action="store_true", help="also the runs that clrun-tune has trained in searches")
    flags.add_argument("--grams-per-kwh", type=amount, metavar="X", help="CO2-equivalent of the electricity: carbon_g")
    flags.add_argument("--price-per-hour", type=amount, metavar="X", help="of what one run occupies: money")
    flags.add_argument(
        "--columns", metavar="NAMES", help="measures of report.tex in this order, such as average_accuracy,forgetting"
    )
    flags.add_argument(
        "--names", action="append", default=[], metavar="A=B,...",
        help="what columns and strategies are called in report.tex, such as 'average_accuracy=Acc.,ewc=EWC'",
    )  # fmt: skip
    flags.add_argument("--format", choices=["png", "pdf", "svg"], default="png", help="of the plots")
    flags.add_argument("--width", type=amount, metavar="INCHES", help="of the plots, such as 3.3 for one column")
    flags.add_argument("--style", type=Path, metavar="FILE", help="a style file of Matplotlib, for the plots")
    flags.add_argument("--no-plots", action="store_true", help="tables alone")
    flags.add_argument("--no-pictures", action="store_true", dest="no_plots", help=argparse.SUPPRESS)  # its former name
    return flags


def amount(typed: str) -> float:
    """Return a typed number. Raise ValueError unless it is finite and at least 0."""
    value = float(typed)
    if not 0 <= value < float("inf"):
        raise ValueError(typed)
    return value


def command(argv: Sequence[str]) -> None:
    """Print the tables, and then write report.csv, report.md, report.tex and figures into the folder; or answer what
    --compare and --budget ask."""
    arguments = parser().parse_args(list(argv))
    if arguments.measure not in MEASURES:
        raise UsageError(f"--measure {arguments.measure}: there are {', '.join(MEASURES)}.")
    look = None if arguments.no_plots else look_of(arguments)
    asked = latex.wanted(arguments.columns, arguments.names)
    page = None if arguments.html is None else html_path(arguments.folder, arguments.html)
    metric = None if arguments.metric is None else own_metric.metric_of(arguments.metric)
    runs = read(arguments.folder, arguments.grams_per_kwh, arguments.price_per_hour, trials=arguments.trials)
    if metric is not None:
        runs = own_metric.measured(arguments.folder, runs, metric)
    unsorted = rows_of(runs)
    order = default_order(unsorted) if arguments.sort is None else arguments.sort
    rows = ordered(unsorted, order, arguments.reverse)
    if arguments.compare:
        first, second = arguments.compare
        compared(arguments.folder, rows, first, second, arguments.measure)
        return
    if arguments.budget is not None:
        show([budget.section(part, arguments.measure, arguments.budget) for part in streams(rows)])
        return
    sections = sections_of(arguments.folder, rows, arguments.measure, order)
    if arguments.classes:
        sections = with_classes(arguments.folder, rows, sections)
    paper = latex.document(streams(rows), sections, arguments.measure, asked)
    show(sections)
    run_files.write_table(arguments.folder / "report.csv", table(rows))
    write_readable(arguments.folder, sections, paper)
    if look is not None:
        from clrun.report import figures  # Matplotlib

        figures.draw(arguments.folder, rows, look)
    if page is not None:
        write_page(page, arguments.folder, rows, arguments.measure)
    print(f"Written: {arguments.folder / 'report.csv'}, .md, .tex" + (", report/" if not arguments.no_plots else ""))


def look_of(arguments: argparse.Namespace) -> "Look":
    """Return how the plots are written. Raise UsageError."""
    from clrun.report.paper_figures import look  # Matplotlib

    return look(arguments.format, arguments.width, arguments.style)


def compared(folder: Path, rows: Sequence[Row], first: str, second: str, measure: str) -> None:
    """Print the comparison of two rows in each stream, and write comparison.csv."""
    comparisons = compare.compared(rows, first, second, measure)
    print("\n\n".join(one.paragraph for one in comparisons))
    run_files.write_table(folder / "comparison.csv", compare.table(comparisons))
    print(f"\nWritten: {folder / 'comparison.csv'}")


def html_path(folder: Path, typed: str) -> Path:
    """Return where the page is written. Raise UsageError where that is no place for one, or plotly is missing."""
    from clrun.report.page import page_path  # Matplotlib

    return page_path(folder, typed)


def write_page(path: Path, folder: Path, rows: Sequence[Row], measure: str) -> None:
    """Write the page, and say where and how large it is."""
    from clrun.report.page import write

    size = write(path, folder, rows, measure)
    print(f"Written: {path} ({size / 1e6:.1f} MB); a double click opens it.")


def sections_of(folder: Path, rows: Sequence[Row], measure: str, order: str) -> list[Section]:
    """Return a section for each stream. order: what they are sorted by."""
    return [section(part, measure, references(folder, part), order) for part in streams(rows)]


def with_classes(folder: Path, rows: Sequence[Row], sections: Sequence[Section]) -> list[Section]:
    """Return the sections with a table of the accuracy on each class; write class_accuracy.csv. Raise UsageError."""
    classes = class_accuracy.measured(folder, rows)
    run_files.write_table(folder / class_accuracy.NAME, class_accuracy.table(rows, classes))
    of_row = dict(zip((row.group for row in rows), classes, strict=True))
    found = []
    for part, one in zip(streams(rows), sections, strict=True):
        table = class_accuracy.for_readers(part, [of_row[row.group] for row in part])
        note = "The last table has the accuracy on each class after the last task, in percent."
        found.append(replace(one, tables=[*one.tables, table], notes=[*one.notes, note]))
    return found


def show(sections: Sequence[Section]) -> None:
    """Print sections."""
    console = make_console()
    for part in sections:
        part.print(console)
        console.print()


def write_readable(folder: Path, sections: Sequence[Section], paper: str) -> None:
    """Write report.md and report.tex. paper: the text of the latter."""
    atomic_files.write_text(folder / "report.md", "\n\n".join(part.markdown() for part in sections) + "\n")
    atomic_files.write_text(folder / "report.tex", paper)


if __name__ == "__main__":
    cli()
