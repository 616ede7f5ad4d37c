"""Tables that fit into the width of a terminal without losing a cell.

A table that is too wide is printed in blocks of columns, one below the other, each with the columns that identify a
row. Where these take more than half of the width, they are folded. Where they do not fit even then, the table is
turned: each row is a list of its cells, and begins with those that identify it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from clrun.terminal.console import print_line

WRAPPING = Console()  # which rich asks for its settings when it breaks a text into lines

FOLDED = 8  # characters that a column of text keeps when it is folded

GAP = 2  # characters between two columns, and those of both edges together


@dataclass(frozen=True)
class Column:
    """A column: its header, in which lines may be separated, and whether it holds text, which may be folded, or
    numbers, which are never."""

    name: str
    text: bool = False


@dataclass(frozen=True)
class Cells:
    """A table that is to be printed."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Text]]
    labels: int  # number of the first columns, which identify a row
    ends: int = 0  # number of the last columns that every block repeats
    styles: Sequence[str] = ()  # of the rows

    def widths(self) -> list[int]:
        """Return how many characters of the terminal each column takes if nothing is folded."""
        lines = [[column.name for column in self.columns], *self.rows]
        return [max(map(width_of, cells)) for cells in zip(*lines, strict=True)]

    def floors(self, widths: Sequence[int]) -> list[int]:
        """Return the least width of each column."""
        pairs = zip(self.columns, widths, strict=True)
        return [min(width, FOLDED) if column.text else width for column, width in pairs]


def print_table(console: Console, cells: Cells) -> None:
    """Print a table, in as many parts as the width requires."""
    for part in fitted(console.width, cells):
        if cells.title:
            print_line(console, cells.title, "bold")
        for line in lines_of(part):
            console.print(line, soft_wrap=True)


def fitted(width: int, cells: Cells) -> Iterator["Part"]:
    """Yield a table in parts that fit into this many characters."""
    widths = cells.widths()
    floors = cells.floors(widths)
    if total(widths) <= width:
        yield part_of(cells, dict(enumerate(widths)))
        return
    last = len(widths) - cells.ends
    repeated, rest = [*range(cells.labels), *range(last, len(widths))], list(range(cells.labels, last))
    widest = max((floors[number] for number in rest), default=0)
    if total([floors[number] for number in repeated] + [widest]) > width:
        yield turned(cells, width)
        return
    room = width - total([widest])
    wanted = max(width // 2, width - total([widths[number] for number in rest]))
    labels = shrunk([widths[n] for n in repeated], [floors[n] for n in repeated], min(room, wanted))
    fixed = dict(zip(repeated, labels, strict=True))
    for block in blocks([widths[n] for n in rest], [floors[n] for n in rest], width - total(labels)):
        given = fixed | {rest[place]: size for place, size in block.items()}
        yield part_of(cells, dict(sorted(given.items())))


def total(widths: Sequence[int]) -> int:
    """Return the width of a table with columns of these widths."""
    return sum(widths) + GAP * len(widths)


def width_of(cell: str | Text) -> int:
    """Return how many characters of a terminal the longest line of a cell takes; a Chinese one takes two."""
    return max((cell_len(line) for line in str(cell).split("\n")), default=0)


def shrunk(widths: Sequence[int], floors: Sequence[int], room: int) -> list[int]:
    """Return the widths, of which the widest are made narrower until they take no more than `room` with the gaps, or
    until all are at their floors."""
    found = list(widths)
    while total(found) > room and found != list(floors):
        widest = max((n for n in range(len(found)) if found[n] > floors[n]), key=lambda n: found[n])
        found[widest] -= 1
    return found


def blocks(widths: Sequence[int], floors: Sequence[int], room: int) -> Iterator[dict[int, int]]:
    """Yield the columns of each block, each with its width. A column of text that is wider than a block is folded."""
    block: dict[int, int] = {}
    for number, (width, floor) in enumerate(zip(widths, floors, strict=True)):
        if block and total([*block.values(), width]) > room:
            yield block
            block = {}
        block[number] = width if total([width]) <= room else max(floor, room - GAP)
    yield block


# ---------------------------------------------------------------- a part


@dataclass(frozen=True)
class Part:
    """A part of a table, as wide as the terminal at most."""

    columns: Sequence[Column]
    widths: Sequence[int]  # characters of each column
    rows: Sequence[Sequence[str | Text]]
    styles: Sequence[str]  # of the rows
    header: bool = True


def part_of(cells: Cells, widths: dict[int, int]) -> Part:
    """Return some columns of a table, by their numbers, in these widths."""
    rows = [[row[number] for number in widths] for row in cells.rows]
    styles = cells.styles or [""] * len(rows)
    return Part([cells.columns[number] for number in widths], list(widths.values()), rows, styles)


def turned(cells: Cells, width: int) -> Part:
    """Return a table in which each row is a list: the name and the cell of every column that is not empty there."""
    names = [column.name.replace("\n", " ") for column in cells.columns]
    left = min(max(map(cell_len, names)), max(FOLDED, width // 2 - GAP))
    right = max(FOLDED, width - total([left]) - GAP)
    lines: list[Sequence[str | Text]] = []
    styles: list[str] = []
    for row, style in zip(cells.rows, cells.styles or [""] * len(cells.rows), strict=True):
        found = [[name, cell] for name, cell in zip(names, row, strict=True) if str(cell)]
        lines += [*found, ["", ""]]
        styles += [style] * (len(found) + 1)
    return Part([Column("", text=True)] * 2, [left, right], lines, styles, header=False)


def lines_of(part: Part) -> Iterator[Text]:
    """Yield the lines of a part: its header below an empty line, a rule, its rows, and an empty line."""
    yield Text()
    if part.header:
        names = [column.name for column in part.columns]
        tallest = max(name.count("\n") for name in names)
        lowered = ["\n" * (tallest - name.count("\n")) + name for name in names]
        yield from lines_of_row(part, lowered, "bold")
        yield Text(" " + "─" * (total(part.widths) - GAP))
    for row, style in zip(part.rows, part.styles, strict=True):
        yield from lines_of_row(part, row, style)
    yield Text()


def lines_of_row(part: Part, row: Sequence[str | Text], style: str) -> Iterator[Text]:
    """Yield the lines of a row, of which there are several where a cell is folded."""
    folded = [fold(cell, width) for cell, width in zip(row, part.widths, strict=True)]
    for cells in zip_longest(*folded, fillvalue=""):
        pieces: list[str | tuple[str, str | Style]] = []
        for cell, width, column in zip(cells, part.widths, part.columns, strict=True):
            text = str(cell)
            space = " " * (width - cell_len(text))
            padded = text + space if column.text else space + text
            pieces.append((padded, cell.style) if isinstance(cell, Text) else padded)
        line = Text.assemble(" ", *[piece for pair in pieces for piece in (pair, "  ")], style=style)
        line.rstrip()
        yield line


def fold(cell: str | Text, width: int) -> Sequence[str | Text]:
    """Return the lines of a cell, none wider than `width`: broken between words, and within one that is too long."""
    if "\n" not in str(cell) and width_of(cell) <= width:
        return [cell]
    lines = Text(str(cell)).wrap(WRAPPING, width, overflow="fold")
    return [line.plain.rstrip() for line in lines]
