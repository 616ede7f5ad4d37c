"""The plots of a run, drawn from its CSV files alone. Equal CSV files give equal PNG files, byte for byte."""

import textwrap
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from clrun.results import fonts
from clrun.results.confusion_plot import confusion_figure
from clrun.results.curves import shape, side_by_side
from clrun.results.reading import TASKS, read_config, read_table, task_names
from clrun.results.thinning import remark, shown_tasks
from clrun.system.arithmetic import ceil_div
from clrun.system.atomic_files import UNGUARDED, Guard, replacing
from clrun.system.text import format_value

# Okabe and Ito's palette, whose colours are distinguishable with every common kind of colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

NO_NAMES: Mapping[int, str] = {}  # of tasks that have none

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
LETTER, LINE = 0.075, 0.16  # a letter and a line of a legend's or a title's text
LETTERS = 18  # of a task's name in a legend
NAME_LETTERS, NAME_LINES = 8, 3  # of a task's name below a heat map

MARKED = 10  # points of a curve with markers, where it has many


def draw(directory: Path, guard: Guard = UNGUARDED) -> None:
    """Draw accuracy_matrix.png, confusion.png, online_accuracy.png and accuracy_over_tasks.png from the CSV files of a
    run, each all or nothing. confusion.png has no file in a run of an earlier version, or of one that diverged in its
    first task, or of very many tasks.

    guard: as of `clrun.system.atomic_files.replacing`. Raise UnreadableFile.
    """
    for name, figure in figures(directory).items():
        save(figure, directory / f"{name}.png", guard)


def figures(directory: Path) -> dict[str, Figure]:
    """Return the plots of a run by name, in the order in which they are drawn, from its CSV files and its config.yaml.
    Raise UnreadableFile."""
    matrix = read_table(directory / "accuracy_matrix.csv")
    names = task_names(directory)
    path = directory / "accuracy_over_training.csv"
    curves = training_figure(read_table(path), names) if path.exists() else tasks_figure(matrix, names)
    drawn = {"accuracy_matrix": matrix_figure(matrix, names)}
    confusions = directory / "confusion_over_tasks.csv"
    if confusions.exists():
        drawn["confusion"] = confusion_figure(read_table(confusions))
    online = directory / "online_accuracy.csv"
    if online.exists():
        drawn["online_accuracy"] = online_figure(read_table(online))
    drawn["accuracy_over_tasks"] = curves
    title = title_of(directory)
    for figure in drawn.values():
        add_title(figure, title)
    return drawn


def title_of(directory: Path) -> list[str]:
    """Return two lines that say what a run is, from its config.yaml: 'ewc lambda=400', and 'digits, classes, 5 tasks,
    scenario task · mlp · seed 0'. Return none where the file cannot be read: it is the title, and not the plot."""
    try:
        config = read_config(directory)
        names = list(config)
        own = names[names.index("strategy") + 1 : names.index("tasks")]  # the keys of the strategy
        dataset, split, model = (config[group]["name"] for group in ("dataset", "split", "model"))
        tasks = (
            config["tasks"] if config.get("first_tasks") is None else f"{config['first_tasks']} of {config['tasks']}"
        )
        stream = f"{dataset}, {split}, {tasks} tasks, scenario {config['scenario']}"
        line = f"{stream} · {model} · seed {config['seed']}"
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return []
    amounts = [key for key in own if isinstance(config[key], int | float) and not isinstance(config[key], bool)]
    return [" ".join([str(config["strategy"]), *(f"{key}={format_value(config[key])}" for key in amounts)]), line]


def add_title(figure: Figure, lines: Sequence[str]) -> None:
    """Make a figure higher, and write lines at its top, wrapped."""
    width, height = figure.get_size_inches()
    wrapped = [part for line in lines for part in textwrap.wrap(line, max(20, int(width / LETTER)))]
    if not wrapped:
        return
    whole = height + LINE * len(wrapped) + 0.08
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0 * height / whole, box.width, box.height * height / whole))
    figure.set_size_inches(width, whole)
    figure.text(0.08 / width, 1 - 0.06 / whole, "\n".join(wrapped), va="top", fontsize=8, color="#666666")


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


def canvas(width: float, height: float, right: float | None = None, bottom: float = BOTTOM) -> tuple[Figure, Axes]:
    """Return an empty figure of a width and a height in inches, and its axes.

    right, bottom: inches that are kept free; without the first Matplotlib fits the margins, which draws the figure
    twice.
    Pyplot is not used: it keeps every figure and is not safe in threads.
    """
    figure = Figure(figsize=(width, height), layout="constrained" if right is None else None)
    FigureCanvasAgg(figure)
    if right is not None:
        figure.subplots_adjust(LEFT / width, bottom / height, 1 - right / width, 1 - TOP / height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


# ---------------------------------------------------------------- the accuracy matrix


def matrix_figure(matrix: pd.DataFrame, names: Mapping[int, str] = NO_NAMES) -> Figure:
    """Return a heat map of accuracy_matrix.csv in percent: a row after each task, a column per task; cells that were
    not measured stay white. Where there are too many tasks for numbers, it has a colour bar.

    names: of the tasks, such as their classes, which stand below the columns where tasks are few.
    """
    values = 100 * tasks_of(matrix).to_numpy(float)
    tasks = values.shape[1]
    side = float(np.clip(0.55 * tasks, 1.6, 6.6))
    right = TOP if tasks <= NUMBERS_UP_TO else COLOUR_BAR
    below = [name_below(names.get(task, "")) for task in range(1, tasks + 1)] if tasks <= NUMBERS_UP_TO else []
    bottom = BOTTOM + LINE * max((len(lines) for lines in below), default=0)
    width, height = side + LEFT + right, side + bottom + TOP
    figure, axes = canvas(width, height, right, bottom)
    image = heat_map(axes, values)
    if any(below):
        axes.set_xticks(range(tasks), ["\n".join([str(task), *lines]) for task, lines in enumerate(below, 1)])
    axes.set_xlabel("accuracy (%) on task")
    axes.set_ylabel("after learning task")
    if tasks <= NUMBERS_UP_TO:
        write_numbers(axes, values)
    else:
        beside = figure.add_axes(((width - COLOUR_BAR + 0.1) / width, bottom / height, 0.14 / width, side / height))
        figure.colorbar(image, cax=beside, label="accuracy (%)").outline.set_visible(False)
    return figure


def name_below(name: str) -> list[str]:
    """Return the name of a task, such as 'cat, dog', as lines that fit below a column of a heat map."""
    lines = [cut(line, NAME_LETTERS) for line in textwrap.wrap(name, NAME_LETTERS, break_long_words=False)]
    return lines if len(lines) <= NAME_LINES else [*lines[: NAME_LINES - 1], "…"]


def cut(text: str, letters: int) -> str:
    """Return a text that has at most so many letters."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def tasks_of(matrix: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of accuracy_matrix.csv that are accuracies on tasks."""
    return matrix.filter(regex=TASKS)


def heat_map(axes: Axes, values: np.ndarray, across: int = TICKS) -> AxesImage:
    """Draw an accuracy matrix (T+1, T) in percent, with the numbers of the tasks on both axes, at most `across` of them
    below."""
    image = axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.spines[:].set_visible(False)
    label_tasks(axes, values.shape[1], across)
    return image


def label_tasks(axes: Axes, tasks: int, across: int = TICKS) -> None:
    """Write task numbers on both axes, thinned where there are many: at most `across` on the x axis, and TICKS on the y
    axis, whose row 0 is the untrained network."""
    below, beside = (np.arange(step, tasks + 1, step) for step in (ceil_div(tasks, n) for n in (across, TICKS)))
    axes.set_xticks(below - 1, [str(task) for task in below])
    axes.set_yticks([0, *beside], ["none", *(str(task) for task in beside)])
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


def tasks_figure(matrix: pd.DataFrame, names: Mapping[int, str] = NO_NAMES) -> Figure:
    """Return curves of the accuracy on every task, from the point where it was learnt, over the tasks learnt, and of
    the average so far; from accuracy_matrix.csv. names: of the tasks, for the legend."""
    tasks = tasks_of(matrix).shape[1]
    figure, axes = canvas(5.25 + legend_width(tasks, names), 3.8, legend_width(tasks, names))
    for task, style in styles(tasks, names):
        rows = matrix[matrix["after_task"] >= task]
        axes.plot(rows["after_task"], 100 * rows[f"task_{task}"], **style)
    curves = list(axes.lines)
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
    finish(figure, axes, tasks)
    side_by_side(curves)
    return figure


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


def training_figure(rows: pd.DataFrame, names: Mapping[int, str] = NO_NAMES) -> Figure:
    """Return curves of the accuracy on every task, from its own training on, over optimizer steps, with a dotted line
    where a new task begins; from accuracy_over_training.csv. names: of the tasks, for the legend."""
    tasks = int(rows["eval_task"].max())
    figure, axes = canvas(6.85 + legend_width(tasks, names), 3.8, legend_width(tasks, names))
    switches = rows[rows["stage"] >= 1].groupby("stage")["step"].max().iloc[:-1]
    for switch in [] if remark(tasks) else switches:
        axes.axvline(switch, color="#999999", linewidth=0.8, linestyle=":")
    curves = []
    for task, style in styles(tasks, names):
        begin = task if task > 1 else 0  # stage 0: the untrained network
        curve = rows[(rows["eval_task"] == task) & (rows["stage"] >= begin)]
        every = max(1, len(curve) // MARKED)
        curves += axes.plot(curve["step"], 100 * curve["accuracy"], **style, markevery=(task % every, every))
    axes.set_xlim(0, rows["step"].max())
    axes.set_xlabel("training steps" if remark(tasks) else "training steps (dotted: a new task begins)")
    finish(figure, axes, tasks)
    side_by_side(curves)
    return figure


def legend_width(tasks: int, names: Mapping[int, str]) -> float:
    """Return the inches that a legend of the tasks needs."""
    longest = max((len(task_label(task, names)) for task in shown_tasks(tasks)), default=0)
    return LEGEND + LETTER * max(0, longest - len("task 10"))


def task_label(task: int, names: Mapping[int, str]) -> str:
    """Return how a legend calls a task: 'task 1: cat, dog'."""
    return f"task {task}" + (f": {cut(names[task], LETTERS)}" if names.get(task) else "")


def styles(tasks: int, names: Mapping[int, str] = NO_NAMES) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each task that is shown and the colour, marker, dashes, width and label of its curve; that of
    the first task is in front and, where all are shown, bold. Where tasks are many, curves have no markers."""
    shown = shown_tasks(tasks)
    others = 1.3 if tasks <= len(PALETTE) else 0.8
    for number, (task, colour) in enumerate(zip(shown, colours(len(shown)), strict=True)):
        width = 2.8 if task == 1 and not remark(tasks) else others
        style = {"color": colour, "linewidth": width, "markersize": width + 2, "zorder": 4 if task == 1 else 3}
        style |= {"marker": "", "linestyle": "-"} if remark(tasks) else shape(number)
        yield task, style | {"label": task_label(task, names)}


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
