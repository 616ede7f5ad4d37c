"""report.tex: the rows of each stream as a table of a paper, for \\input, with the packages booktabs and LaTeX alone.

A measure takes two columns, mean and ± standard deviation, both aligned to the right, so that decimals are below each
other. The best value of a measure is bold where its 95 % interval overlaps that of no other row. joint and finetune are
references, and cumulative and scratch keep all data: they are no contenders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clrun.report.budget import sign_of
from clrun.report.rows import Row, heading
from clrun.report.runs import MEASURES, REFERENCES, RETRAINING
from clrun.report.tables import COSTS, PERCENT, Section, accuracies, costs, in_latex, labels_of, statistic_text
from clrun.system.errors import UsageError

SIGN = " ± "  # between mean and standard deviation, as tables.statistic_text writes them


@dataclass(frozen=True)
class Wanted:
    """What --columns and --names ask for."""

    columns: Sequence[str] = ()  # measures, n and keys, in this order; () for those of the other tables
    names: Mapping[str, str] = field(default_factory=dict)  # column or strategy -> what it is called in the table


def wanted(columns: str | None, names: Sequence[str]) -> Wanted:
    """Return what was typed as --columns a,b and, once or several times, as --names 'a=A,b=B'. Raise UsageError."""
    chosen = [] if columns is None else [name.strip() for name in columns.split(",")]
    pairs = [pair.partition("=") for text in names for pair in text.split(",")]
    for name, equals, called in pairs:
        if not (name.strip() and equals and called.strip()):
            raise UsageError(f"--names '{name}{equals}{called}': type what is called how: 'average_accuracy=Acc.'.")
    return Wanted(chosen, {name.strip(): called.strip() for name, _, called in pairs})


def refuse_unknown(names: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Raise UsageError for a name of --names that is no column of a table and no strategy of these rows."""
    keys = dict.fromkeys(key for row in rows for key in row.stream_keys)
    there = dict.fromkeys(["n", "diverged", *keys, *(row.strategy for row in rows), *MEASURES])
    for name in names:
        if name not in there:
            raise UsageError(f"--names {name}=...: nothing here is called {name}; there are {', '.join(there)}.")


def refuse_unknown_columns(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Raise UsageError for a name of --columns that is no measure and no key in which some of these rows differ."""
    there = dict.fromkeys(["n", *(key for row in rows for key in row.stream_keys), *MEASURES])
    for name in columns:
        if name not in there:
            raise UsageError(f"--columns {','.join(columns)}: there is no column {name}; there are {', '.join(there)}.")


def document(parts: Sequence[Sequence[Row]], sections: Sequence[Section], measure: str, asked: Wanted) -> str:
    """Return report.tex: the tables of every stream, and as comments what the other reports say below theirs.

    parts: the rows of each stream; sections: what is said of each; measure: that of --measure. Raise UsageError.
    """
    refuse_unknown(asked.names, [row for rows in parts for row in rows])
    refuse_unknown_columns(asked.columns, [row for rows in parts for row in rows])
    texts = ["% For a document with \\usepackage{booktabs}."]
    for rows, section in zip(parts, sections, strict=True):
        comments = [f"% {line}".replace("±", "$\\pm$") for line in (*section.notes, *section.remarks)]
        texts.append("\n".join([f"% {section.title}", *tables(rows, measure, asked), *comments]))
    return "\n\n".join(texts) + "\n"


def tables(rows: Sequence[Row], measure: str, asked: Wanted) -> list[str]:
    """Return one table of the columns that are asked for; by default one of accuracies and one of costs."""
    if asked.columns:
        return [table(rows, asked.columns, asked.names, "")]
    shown = [name for name in accuracies(rows, measure) if name in MEASURES]
    expensive = [name for name in costs(rows) if name in COSTS]
    made = [table(rows, ["n", *shown], asked.names, "accuracies")]
    return [*made, table(rows, expensive, asked.names, "costs")] if expensive else made


def table(rows: Sequence[Row], columns: Sequence[str], names: Mapping[str, str], kind: str) -> str:
    """Return a table of measures and n, with a caption. kind: a word that tells it from others of the stream."""
    labels = label_columns(rows, columns)
    columns = [name for name in columns if name == "n" or name in MEASURES]
    measures = [name for name in columns if name != "n"]
    bold = {name: best(rows, name) for name in measures}
    label = "-".join(filter(None, ["tab:clrun", rows[0].stream, kind]))
    head, lines = texts_of(rows, labels, columns, names, bold)
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{caption(rows, measures, bold)}}}", rf"\label{{{label}}}"]
    tabular = rf"\begin{{tabular}}{{{alignments(rows, labels, columns)}}}"
    ended = [" & ".join(line) + r" \\" for line in (head, *lines)]
    body = [tabular, r"\toprule", ended[0], r"\midrule", *ended[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*begin, *body, r"\end{table}"])


def texts_of(
    rows: Sequence[Row],
    labels: Sequence[str],
    columns: Sequence[str],
    names: Mapping[str, str],
    bold: Mapping[str, Row | None],
) -> tuple[list[str], list[list[str]]]:
    """Return the cells of the head and of each row, as LaTeX. bold: measure -> the row whose value is bold."""
    head = [in_latex(names.get(key, key)) for key in labels]
    for name in columns:
        called = in_latex(names.get(name, name))
        head.append(called if name == "n" else rf"\multicolumn{{2}}{{c}}{{{called}}}")
    lines = []
    for row in rows:
        cells = labels_of(row)
        line = [in_latex(names.get(cells[key], cells[key]) if key == "strategy" else cells[key]) for key in labels]
        for name in columns:
            line += [str(row.n)] if name == "n" else value_cells(row, name, bold[name] is row)
        lines.append(line)
    return head, lines


def value_cells(row: Row, measure: str, is_bold: bool) -> list[str]:
    """Return the mean of a measure, in bold or not, and ± its standard deviation; '' for what is not known."""
    mean, sign, deviation = statistic_text(measure, row[measure]).partition(SIGN)
    mean = in_latex(mean.replace("-", "\N{MINUS SIGN}", 1) if mean.startswith("-") else mean)
    return [rf"\textbf{{{mean}}}" if is_bold else mean, rf"$\pm$ {in_latex(deviation)}" if sign else ""]


def label_columns(rows: Sequence[Row], asked: Sequence[str] = ()) -> list[str]:
    """Return the keys that identify a row: those that are asked for, or else all that are not empty in all of them.

    Raise UsageError where rows look alike by the keys that are asked for.
    """
    every = [key for key in rows[0].stream_keys if any(row.text(key) for row in rows)]
    chosen = [name for name in asked if name in rows[0].stream_keys and name not in MEASURES]
    if chosen and len({tuple(row.text(key) for key in chosen) for row in rows}) < len(rows):
        raise UsageError(
            f"--columns {','.join(asked)}: several rows look alike by {', '.join(chosen)}; add a key in which they "
            f"differ ({', '.join(every)}), or leave all keys out."
        )
    return chosen or every


def alignments(rows: Sequence[Row], labels: Sequence[str], columns: Sequence[str]) -> str:
    """Return how the columns are aligned: keys that are numbers, n and values to the right, texts to the left."""
    keys = ["r" if all(is_number(row.text(key)) for row in rows) else "l" for key in labels]
    return "".join([*keys, *("r" if name == "n" else r"r@{\,}r" for name in columns)])


def is_number(text: str) -> bool:
    """Return whether a text is a number, or empty."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def best(rows: Sequence[Row], measure: str) -> Row | None:
    """Return the row with the best mean of a measure, if its 95 % interval overlaps that of no other row.

    None if it does, if any of the rows that have a value has no interval (one run), or if there is one row alone;
    references and those that keep all data do not count.
    """
    known = [row for row in rows if row.strategy not in (*REFERENCES, *RETRAINING) and row[measure].n > 0]
    if len(known) < 2 or any(row[measure].n < 2 for row in known):
        return None
    first, *others = sorted(known, key=lambda row: -sign_of(measure) * row[measure].mean)
    ours = first[measure]
    apart = [ours.low > other[measure].high or ours.high < other[measure].low for other in others]
    return first if all(apart) else None


def caption(rows: Sequence[Row], measures: Sequence[str], bold: Mapping[str, Row | None]) -> str:
    """Return what the table shows: the stream, n, what stands after ±, and what bold means, in LaTeX."""
    counts = sorted({row.n for row in rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    spread = "mean ± standard deviation" if counts[-1] > 1 else "mean"
    parts = [f"{heading(rows)}: {spread} over the seeds ({n})."]
    percent = [name for name in measures if name in PERCENT]
    if percent:
        parts.append("Accuracies and their differences in percent." if len(percent) < len(measures) else "In percent.")
    diverged = sum(row.diverged for row in rows)
    if diverged:
        parts.append(f"Runs that diverged ({diverged}) are in no mean.")
    if any(row is not None for row in bold.values()):
        parts.append(
            "Bold: the best value of a column where its 95 % interval (Student's t) overlaps that of no other row, "
            "joint, cumulative, scratch and finetune aside."
        )
    else:
        parts.append("No value is bold: no best value has a 95 % interval (Student's t) apart from all others.")
    return in_latex(" ".join(parts))
