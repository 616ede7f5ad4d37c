"""The plots of a run, drawn from its CSV files alone. Equal CSV files give equal PNG files, byte for byte."""

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from clrun.results import fonts
from clrun.results.confusion_plot import confusion_figure
from clrun.results.reading import TASKS, read_table
from clrun.results.thinning import remark, shown_tasks
from clrun.system.atomic_files import UNGUARDED, Guard, replacing

# Okabe and Ito's palette, whose colours are distinguishable with every common kind of colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

INK = "#333333"  # the colour of axes and of reference lines
DOTS_PER_INCH = 150
FAST_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}  # options of Pillow

# The formats of a figure, and the options of their writers. Fonts are embedded in a PDF as TrueType (42), which
# publishers ask for in place of Type 3; in an SVG letters are paths, so that it looks the same without the fonts.
FILE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}, "pil_kwargs": FAST_PNG},
    "pdf": {"metadata": {"Creator": None, "Producer": None, "CreationDate": None}},
    "svg": {"metadata": {"Creator": None, "Date": None}},
}
FILE_SETTINGS: Any = {
    "text.hinting": "none",  # hints are for coarser pixels
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "clrun",  # names of parts of an SVG are the same each time
}

NUMBERS_UP_TO = 12  # tasks; a heat map of more tasks has no room for numbers
TICKS = 20  # labels on an axis of tasks
LEGEND_ENTRIES = 14  # tasks in a legend

# Inches beside the axes of a run's plots; for the legend, and for the colour bar with its numbers.
LEFT, BOTTOM, TOP = 0.72, 0.55, 0.15
LEGEND, COLOUR_BAR = 1.15, 0.85


def draw(directory: Path, guard: Guard = UNGUARDED) -> None:
    """Draw accuracy_matrix.png, confusion.png, online_accuracy.png and accuracy_over_tasks.png from the CSV files of a
    run, each all or nothing. confusion.png has no file in a run of an earlier version, or of one that diverged in its
    first task, or of very many tasks.

    guard: as of `clrun.system.atomic_files.replacing`. Raise UnreadableFile.
    """
    for name, figure in figures(directory).items():
        save(figure, directory / f"{name}.png", guard)


def figures(directory: Path) -> dict[str, Figure]:
    """Return the plots of a run by name, in the order in which they are drawn, from its CSV files. Raise
    UnreadableFile."""
    matrix = read_table(directory / "accuracy_matrix.csv")
    path = directory / "accuracy_over_training.csv"
    curves = training_figure(read_table(path)) if path.exists() else tasks_figure(matrix)
    drawn = {"accuracy_matrix": matrix_figure(matrix)}
    confusions = directory / "confusion_over_tasks.csv"
    if confusions.exists():
        drawn["confusion"] = confusion_figure(read_table(confusions))
    online = directory / "online_accuracy.csv"
    if online.exists():
        drawn["online_accuracy"] = online_figure(read_table(online))
    return drawn | {"accuracy_over_tasks": curves}


def plain_text(figure: Figure) -> None:
    """Let every text of a figure stand as it is: `$` in the name of a class or of a data set begins no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)


def save(figure: Figure, path: Path, guard: Guard = UNGUARDED) -> str:
    """Write a figure in the format that the name of the file says: png, pdf or svg, without the name of the software
    and the date, so that equal figures are equal files. Return the characters that no installed font has, in whose
    places there are boxes."""
    plain_text(figure)
    missing = fonts.choose(figure)
    form = path.suffix.removeprefix(".")
    with (
        replacing(path, guard) as temporary,
        mpl.rc_context(FILE_SETTINGS),
        without_warnings_of_glyphs() if missing else nullcontext(),
    ):
        figure.savefig(temporary, format=form, dpi=DOTS_PER_INCH, **FILE_OPTIONS[form])
    return missing


@contextmanager
def without_warnings_of_glyphs() -> Iterator[None]:
    """Keep Matplotlib from warning of each character that no font has: it is said once, in a sentence."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ ")
        yield


def canvas(width: float, height: float, right: float | None = None) -> tuple[Figure, Axes]:
    """Return an empty figure of a width and a height in inches, and its axes.

    right: inches that are kept free on that side; without it Matplotlib fits the margins, which draws the figure twice.
    Pyplot is not used: it keeps every figure and is not safe in threads.
    """
    figure = Figure(figsize=(width, height), layout="constrained" if right is None else None)
    FigureCanvasAgg(figure)
    if right is not None:
        figure.subplots_adjust(LEFT / width, BOTTOM / height, 1 - right / width, 1 - TOP / height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


# ---------------------------------------------------------------- the accuracy matrix


def matrix_figure(matrix: pd.DataFrame) -> Figure:
    """Return a heat map of accuracy_matrix.csv in percent: a row after each task, a column per task; cells that were
    not measured stay white. Where there are too many tasks for numbers, it has a colour bar."""
    values = 100 * tasks_of(matrix).to_numpy(float)
    tasks = values.shape[1]
    side = float(np.clip(0.55 * tasks, 1.6, 6.6))
    right = TOP if tasks <= NUMBERS_UP_TO else COLOUR_BAR
    width, height = side + LEFT + right, side + BOTTOM + TOP
    figure, axes = canvas(width, height, right)
    image = heat_map(axes, values)
    axes.set_xlabel("accuracy (%) on task")
    axes.set_ylabel("after learning task")
    if tasks <= NUMBERS_UP_TO:
        write_numbers(axes, values)
    else:
        beside = figure.add_axes(((width - COLOUR_BAR + 0.1) / width, BOTTOM / height, 0.14 / width, side / height))
        figure.colorbar(image, cax=beside, label="accuracy (%)").outline.set_visible(False)
    return figure


def tasks_of(matrix: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of accuracy_matrix.csv that are accuracies on tasks."""
    return matrix.filter(regex=TASKS)


def heat_map(axes: Axes, values: np.ndarray) -> AxesImage:
    """Draw an accuracy matrix (T+1, T) in percent, with the numbers of the tasks on both axes."""
    image = axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.spines[:].set_visible(False)
    label_tasks(axes, values.shape[1])
    return image


def label_tasks(axes: Axes, tasks: int) -> None:
    """Write task numbers on both axes, thinned where there are many; row 0 is the untrained network."""
    step = max(1, int(np.ceil(tasks / TICKS)))
    labelled = np.arange(step, tasks + 1, step)
    axes.set_xticks(labelled - 1, [str(task) for task in labelled])
    axes.set_yticks([0, *labelled], ["none", *(str(task) for task in labelled)])
    axes.tick_params(length=0)


def write_numbers(axes: Axes, values: np.ndarray, decimals: int = 1, fontsize: int = 8, emphasize: bool = True) -> None:
    """Write every accuracy of a heat map into its cell, light on dark colours and dark on light ones.

    emphasize: print the task that was just learnt in bold. A value that would be rounded to 100.0 is printed as 100.
    """
    for (after, task), value in np.ndenumerate(values):
        if np.isfinite(value):
            weight = "bold" if emphasize and after == task + 1 else "normal"
            colour = "white" if value < 55 else "black"
            text = f"{value:.0f}" if value >= 99.95 else f"{value:.{decimals}f}"
            axes.text(task, after, text, ha="center", va="center", color=colour, fontsize=fontsize, fontweight=weight)


# ---------------------------------------------------------------- the curves


def tasks_figure(matrix: pd.DataFrame) -> Figure:
    """Return curves of the accuracy on every task, from the point where it was learnt, over the tasks learnt, and of
    the average so far; from accuracy_matrix.csv."""
    tasks = tasks_of(matrix).shape[1]
    figure, axes = canvas(6.4, 3.8, LEGEND)
    marker = "" if remark(tasks) else "o"
    for task, style in styles(tasks):
        rows = matrix[matrix["after_task"] >= task]
        axes.plot(rows["after_task"], 100 * rows[f"task_{task}"], marker=marker, **style)
    average = matrix[matrix["after_task"] >= 1]
    front = 5 if remark(tasks) else 2  # where curves are dense, they would cover it
    (line,) = axes.plot(
        average["after_task"], 100 * average["average"], "--", color=INK, linewidth=1.3, label="average"
    )
    line.set_zorder(front)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    margin = 0.2 if tasks > 1 else 0.5
    axes.set_xlim(1 - margin, tasks + margin)
    axes.set_xlabel("tasks learnt")
    return finish(figure, axes, tasks)


def online_figure(rows: pd.DataFrame) -> Figure:
    """Return a curve of the accuracy on training samples just before they were learnt, task by task; from
    online_accuracy.csv. A dashed line is that over all tasks."""
    *of_tasks, total = (100 * rows["online_accuracy"]).tolist()
    figure, axes = canvas(6.4, 3.8, LEGEND)
    marker = "" if remark(len(of_tasks)) else "o"
    numbers = range(1, len(of_tasks) + 1)
    axes.plot(numbers, of_tasks, color=PALETTE[0], linewidth=1.3, marker=marker, markersize=4, label="each task")
    axes.axhline(total, color=INK, linewidth=1.0, linestyle="--", label="all tasks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("task")
    finish(figure, axes, 0)
    axes.set_ylabel("accuracy before learning")
    return figure


def training_figure(rows: pd.DataFrame) -> Figure:
    """Return curves of the accuracy on every task, from its own training on, over optimizer steps, with a dotted line
    where a new task begins; from accuracy_over_training.csv."""
    tasks = int(rows["eval_task"].max())
    figure, axes = canvas(8.0, 3.8, LEGEND)
    switches = rows[rows["stage"] >= 1].groupby("stage")["step"].max().iloc[:-1]
    for switch in [] if remark(tasks) else switches:
        axes.axvline(switch, color="#999999", linewidth=0.8, linestyle=":")
    for task, style in styles(tasks):
        begin = task if task > 1 else 0  # stage 0: the untrained network
        curve = rows[(rows["eval_task"] == task) & (rows["stage"] >= begin)]
        axes.plot(curve["step"], 100 * curve["accuracy"], **style)
    axes.set_xlim(0, rows["step"].max())
    axes.set_xlabel("training steps" if remark(tasks) else "training steps (dotted: a new task begins)")
    return finish(figure, axes, tasks)


def styles(tasks: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each task that is shown and the colour, width and label of its curve; that of the first task
    is in front and, where all are shown, bold."""
    shown = shown_tasks(tasks)
    others = 1.3 if tasks <= len(PALETTE) else 0.8
    for task, colour in zip(shown, colours(len(shown)), strict=True):
        width = 2.8 if task == 1 and not remark(tasks) else others
        style = {"color": colour, "linewidth": width, "markersize": width + 2, "zorder": 4 if task == 1 else 3}
        yield task, style | {"label": f"task {task}"}


def colours(tasks: int) -> Sequence[Any]:
    """Return a colour per task: distinct ones where tasks are few, from dark to light where they are many."""
    if tasks <= len(PALETTE):
        return PALETTE[:tasks]
    return [*mpl.colormaps["viridis"](np.linspace(0, 0.92, tasks))]


def finish(figure: Figure, axes: Axes, tasks: int) -> Figure:
    """Add the axis of accuracies, a faint grid, and a legend beside the curves, thinned where tasks are many."""
    axes.set_ylim(-2, 102)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylabel("test accuracy")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    shown = len(shown_tasks(tasks))
    step = max(1, int(np.ceil(shown / LEGEND_ENTRIES)))
    kept = [*range(0, shown, step), *range(shown, len(labels))]
    axes.legend(
        [handles[k] for k in kept],
        [labels[k] for k in kept],
        title=remark(tasks) or None,
        title_fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=9,
    )
    return figure
