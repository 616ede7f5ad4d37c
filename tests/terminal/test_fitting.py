"""At any width, a table loses no cell, and every part of it says which row is which."""

import io
import re

import pandas as pd
import pytest
from outcomes import placed
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from clrun.commands import verify
from clrun.config import help
from clrun.report.tables import terminal_table
from clrun.results import reading
from clrun.results.reading import read_table
from clrun.terminal import run_tables, sweep_tables
from clrun.terminal.fitting import Cells, Column, fitted, fold, lines_of, print_table, turned
from clrun.terminal.progress import Line, TerminalProgress, View

WIDTHS = [40, 41, 47, 60, 80, 100, 240, 300]
CLASSES = [["猫猫猫猫猫猫猫", "犬犬犬犬犬"], ["$x$", "a_b$"], ["鹿" * 30], ["Müller"]]


def console_of(width: int, **options) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, **options)


def text_of(console: Console) -> str:
    return console.file.getvalue()


def run_summary(tmp_path) -> list[Cells]:
    """The tables of a finished run."""
    made = placed(tmp_path, task_classes=CLASSES[:3])
    names = reading.task_names(made.directory)
    tables = {name: read_table(made.directory / name) for name in ("accuracy_matrix.csv", "forgetting.csv")}
    return [
        run_tables.matrix_table(tables["accuracy_matrix.csv"], names),
        run_tables.forgetting_table(tables["forgetting.csv"], names),
    ]


def report(_) -> list[Cells]:
    """A report in which rows differ in many keys, among them one of the length of a path."""
    keys = {f"key_{n}": ["1e-05", "0.30000000000000004"] for n in range(6)}
    rows = pd.DataFrame(
        {"strategy": ["ewc", "er"]} | keys | {"dataset.root": ["/data/" + "x" * 70, "/猫/$y$"]}
        | {"n": ["5", "5"], "average_accuracy": ["98.1", "97.0"], "95 % interval": ["[97.3, 99.1]", "[96.0, 97.9]"]}
        | {f"measure_{n}": ["98.1 ± 0.4", "1550 ± 2051"] for n in range(5)}
    )  # fmt: skip
    return [terminal_table(rows, 8)]


def few_keys(_) -> list[Cells]:
    rows = pd.DataFrame({"strategy": ["ewc", "si"], "lambda": ["400", ""], "n": ["5", "5"], "sd": ["0.1", "0.2"]})
    return [terminal_table(rows, 2)]


def verification(_) -> list[Cells]:
    case = verify.Case(overrides=[], target=94.53, tolerance=3.0)
    names = ["task", "amn, lambda 1e5, eps 1, given the task at test"]
    return [verify.table([verify.Finding("10", name, case, "", 99.2, 0.07, 5, 1.5, "5a3a55017263") for name in names])]


def sweep(_) -> list[Cells]:
    """What `runs_table` and `sweep_table` print."""
    keys = ["strategy", "lambda", "split.classes", "seed"]
    runs = pd.DataFrame(
        [{"strategy": "ewc", "lambda": "1234567", "split.classes": "[[猫,犬],[$x$,鹿]]", "seed": str(seed),
          "average_accuracy": 0.9, "forgetting": 0.1, "learning_accuracy": 0.95, "diverged_at": "task 2 step 31",
          "status": "diverged" if seed else "done"} for seed in (0, 1)]
    )  # fmt: skip
    return [sweep_tables.runs_cells(runs, keys), sweep_tables.sweep_cells(runs, keys)]


TABLES = [run_summary, report, few_keys, verification, sweep]


def without_breaks(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", TABLES)
def test_no_table_loses_a_cell(make, width, tmp_path):
    """No line is too long, nothing is cut, and every cell is there as often as its part is."""
    for cells in make(tmp_path):
        parts = list(fitted(width, cells))
        console = console_of(width)
        print_table(console, cells)
        assert max(map(cell_len, text_of(console).splitlines())) <= width
        assert "…" not in text_of(console)
        for number, name in enumerate(cells.columns):
            seen = printed_cells(parts, name.name)
            wanted = [str(row[number]) for row in cells.rows]
            if seen is None:  # turned
                assert len(parts) == 1
                assert all(without_breaks(cell) in without_breaks(printed_alone(parts[0])) for cell in wanted)
                continue
            repeated = number < cells.labels or number >= len(cells.columns) - cells.ends
            assert seen == [wanted] * (len(parts) if repeated else 1), name


def printed_cells(parts, name) -> list[list[str]] | None:
    """The cells below a header in each part that has it; None where a table was turned."""
    if not parts[0].header:
        return None
    places = [(part, n) for part in parts for n, column in enumerate(part.columns) if column.name == name]
    return [[str(row[n]) for row in part.rows] for part, n in places]


def printed_alone(part) -> str:
    """The second column of a turned table, line below line."""
    return "\n".join(line_from(str(line), 1 + part.widths[0]) for line in lines_of(part))


def line_from(line: str, start: int) -> str:
    """The characters of a line from a column of the terminal on."""
    place = 0
    for index, character in enumerate(line):
        if place >= start:
            return line[index:]
        place += cell_len(character)
    return ""


@pytest.mark.parametrize("width", [9, 12, 20, 40])
@pytest.mark.parametrize(
    "text", ["two words", "猫猫猫猫猫猫猫猫猫猫猫猫", "a" * 50, "x y " * 9, "猫 dog " * 8, "a\nb", ""]
)
def test_a_folded_cell_is_whole(width, text):
    lines = [str(line) for line in fold(text, width)]
    assert without_breaks("".join(lines)) == without_breaks(text)
    assert max(map(cell_len, lines)) <= width
    assert [str(line) for line in fold(Text("bold", "bold"), 4)] == ["bold"]


@pytest.mark.parametrize("width", [40, 60])
def test_a_folded_name_is_printed_whole(width, tmp_path):
    """The issue's case: the column of the tasks was gone at 60 and 40 columns."""
    console = console_of(width)
    made = placed(tmp_path, task_classes=CLASSES[:3])
    run_tables.show(console, made.directory, tmp_path, 0.5)
    for block in text_of(console).split("forgetting in percent")[1:]:
        labels = without_breaks("".join(line[: width // 2] for line in block.split("average accuracy")[0].splitlines()))
        assert "task" in labels and "average" in labels
        assert "($x$,a_b$)" in labels and "犬犬犬犬犬)" in re.sub(r"[\d.-]", "", labels)


def test_a_table_as_wide_as_the_terminal_is_one_part():
    cells = Cells("", [Column("name", text=True), Column("a"), Column("b")], [["x" * 20, "1", "2"]], labels=1)
    exact = 20 + 1 + 1 + 3 * 2
    assert len(list(fitted(exact, cells))) == 1
    assert len(list(fitted(exact - 1, cells))) == 1  # the name is folded
    console = console_of(exact)
    print_table(console, cells)
    assert "x" * 20 in text_of(console) and max(map(len, text_of(console).splitlines())) == exact - 1


def test_a_turned_table_keeps_its_rows_apart():
    columns = [Column(f"key_{n}", text=True) for n in range(9)] + [Column("accuracy")]
    cells = Cells("", columns, [[f"v{n}" * 4 for n in range(9)] + ["98.1"], [""] * 9 + ["97.0"]], labels=9)
    console = console_of(40)
    print_table(console, cells)
    lines = [line.split() for line in text_of(console).splitlines()]
    assert ["key_0", "v0v0v0v0"] in lines and lines.index(["accuracy", "98.1"]) < lines.index(["accuracy", "97.0"])
    assert [] in lines[lines.index(["accuracy", "98.1"]) : lines.index(["accuracy", "97.0"])]
    assert not turned(cells, 40).header


@pytest.mark.parametrize("width", [30, 40, 60, 80, 240])
def test_the_help_says_what_a_key_means_at_any_width(width):
    """The second column was gone where a default was long."""
    lines = [("dataset.scripts=[latin,greek,cyrillic,armenian,georgian]", "the scripts"), ("lr=0.001", "step size")]
    console = console_of(width)
    console.print(help.rows(lines, width))
    text = without_breaks(text_of(console))
    assert all(without_breaks(left + right) in text for left, right in lines)
    assert max(map(len, text_of(console).splitlines())) <= width and "…" not in text


@pytest.mark.parametrize("width", [40, 50, 60, 80, 120])
def test_the_live_view_cuts_no_figure(width):
    """On a narrow terminal it has fewer columns, and the number of the task in each."""
    console = console_of(width, force_terminal=True, color_system=None)
    with View(console, runs=3) as view:
        view.begin("1", Line("ewc lambda=400 gamma=1 fisher=empirical seed=123456", 5, 32, now=lambda: 0.0))
        view.begin_task("1", 4, 77000)
        view.advance("1", 60000)
        view.live.refresh()
    line = next(line for line in text_of(console).splitlines() if "1 ewc" in line and "4/5" in line)
    assert line.count("…") == (width < 100)  # the name's
    assert ("60000/77000" in line) == (width >= 60)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["ewc seed=0", "ewc lambda=400 gamma=1 fisher=empirical fisher_samples=1000 seed=3"])
def test_the_bar_of_a_run_cuts_no_figure(width, name):
    console = console_of(width, force_terminal=True, color_system=None)
    with TerminalProgress(console, 5, name) as progress:
        progress.begin_task(4, 77000)
        progress.advance(60000)
        progress.bar.refresh()
    assert "task 4/5" in text_of(console) and "60000/77000 steps" in text_of(console)
    assert ("ewc seed=0: task 4/5" in text_of(console)) == (name == "ewc seed=0" and width > 40)
    assert "ewc" in text_of(console)
