"""Pictures of a run, drawn from its CSVs alone. The same CSVs give the same bytes."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from clrun.system.atomic_files import replacing

# Okabe and Ito's palette: told apart with every common kind of colour blindness
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


NUMBERS_UP_TO = 12  # tasks; a heat map of more has no room for numbers


DOTS_PER_INCH = 150


QUICKLY = {"compress_level": 1, "compress_type": zlib.Z_RLE}


INK = "#333333"


LEFT, BOTTOM, TOP = 0.72, 0.55, 0.15  # inches beside the axes of a run's pictures


LEGEND, BAR = 1.15, 0.85  # inches for the legend, and for the bar of colours with its numbers


def draw(directory: Path) -> None:
    """Draw accuracy_matrix.png and accuracy_over_tasks.png from the CSVs of the run, each all or nothing."""
    matrix = pd.read_csv(directory / "accuracy_matrix.csv")
    save(matrix_picture(matrix), directory / "accuracy_matrix.png")
    path = directory / "accuracy_over_training.csv"
    curves = training_picture(pd.read_csv(path)) if path.is_file() else tasks_picture(matrix)
    save(curves, directory / "accuracy_over_tasks.png")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the software's name and date, so that equal pictures are equal files."""
    with replacing(path) as temporary, mpl.rc_context({"text.hinting": "none"}):  # hints are for coarser pixels
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None}, pil_kwargs=QUICKLY)


def canvas(width: float, height: float, right: float | None = None) -> tuple[Figure, Axes]:
    """An empty figure, in inches, and its axes; without pyplot, which keeps figures and is not safe in threads.

    right: the inches that are kept free on that side; without it matplotlib fits the margins, by drawing twice.
    """
    figure = Figure(figsize=(width, height), layout="constrained" if right is None else None)
    FigureCanvasAgg(figure)
    if right is not None:
        figure.subplots_adjust(LEFT / width, BOTTOM / height, 1 - right / width, 1 - TOP / height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


# The matrix


def matrix_picture(matrix: pd.DataFrame) -> Figure:
    """Heat map of accuracy_matrix.csv in percent: rows after each task, columns the tasks; empty cells stay white.

    Where tasks are too many for numbers, a bar of colours stands beside it.
    """
    values = 100 * matrix.drop(columns=["after_task", "average"]).to_numpy(float)
    tasks = values.shape[1]
    side = float(np.clip(0.55 * tasks, 1.6, 6.6))
    right = TOP if tasks <= NUMBERS_UP_TO else BAR
    width, height = side + LEFT + right, side + BOTTOM + TOP
    figure, axes = canvas(width, height, right)
    image = axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set_xlabel("accuracy (%) on task")
    axes.set_ylabel("after learning task")
    label_tasks(axes, tasks)
    if tasks <= NUMBERS_UP_TO:
        write_numbers(axes, values)
    else:
        beside = figure.add_axes(((width - BAR + 0.1) / width, BOTTOM / height, 0.14 / width, side / height))
        figure.colorbar(image, cax=beside, label="accuracy (%)").outline.set_visible(False)
    return figure


def label_tasks(axes: Axes, tasks: int) -> None:
    """Task numbers on both axes, thinned where there are many; row 0 is the untrained network."""
    step = max(1, int(np.ceil(tasks / 20)))
    format_value = np.arange(step, tasks + 1, step)
    axes.set_xticks(format_value - 1, format_value)
    axes.set_yticks([0, *format_value], ["none", *format_value])
    axes.tick_params(length=0)


def write_numbers(axes: Axes, values: np.ndarray) -> None:
    """Every accuracy in its cell, dark on light and light on dark; bold for the task just learnt."""
    for (after, task), value in np.ndenumerate(values):
        if np.isfinite(value):
            weight = "bold" if after == task + 1 else "normal"
            colour = "white" if value < 55 else "black"
            text = f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"
            axes.text(task, after, text, ha="center", va="center", color=colour, fontsize=8, fontweight=weight)


# The curves


def tasks_picture(matrix: pd.DataFrame) -> Figure:
    """Accuracy of every task from when it was learnt on, over the tasks learnt; and the average so far."""
    tasks = matrix.shape[1] - 2
    figure, axes = canvas(6.4, 3.8, LEGEND)
    for task, style in enumerate(styles(tasks), start=1):
        rows = matrix[matrix["after_task"] >= task]
        axes.plot(rows["after_task"], 100 * rows[f"task_{task}"], marker="o", **style)
    average = matrix[matrix["after_task"] >= 1]
    axes.plot(average["after_task"], 100 * average["average"], "--", color=INK, linewidth=1.3, label="average")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    margin = 0.2 if tasks > 1 else 0.5
    axes.set_xlim(1 - margin, tasks + margin)
    axes.set_xlabel("tasks learnt")
    return finish(figure, axes, tasks)


def training_picture(rows: pd.DataFrame) -> Figure:
    """Accuracy of every task from its own training on, over optimiser steps, with a line at each switch of tasks."""
    tasks = int(rows["eval_task"].max())
    figure, axes = canvas(8.0, 3.8, LEGEND)
    for switch in rows[rows["stage"] >= 1].groupby("stage")["step"].max().iloc[:-1]:
        axes.axvline(switch, color="#999999", linewidth=0.8, linestyle=":")
    for task, style in enumerate(styles(tasks), start=1):
        begin = task if task > 1 else 0  # stage 0: the untrained network
        curve = rows[(rows["eval_task"] == task) & (rows["stage"] >= begin)]
        axes.plot(curve["step"], 100 * curve["accuracy"], **style)
    axes.set_xlim(0, rows["step"].max())
    axes.set_xlabel("training steps (dotted: a new task begins)")
    return finish(figure, axes, tasks)


def styles(tasks: int) -> Iterator[dict]:
    """Colour, width and label of each task's curve; the first task is bold and in front."""
    others = 1.3 if tasks <= len(PALETTE) else 0.8
    for task, colour in enumerate(colours(tasks), start=1):
        width = 2.8 if task == 1 else others
        look = {"color": colour, "linewidth": width, "markersize": width + 2, "zorder": 4 if task == 1 else 3}
        yield look | {"label": f"task {task}"}


def colours(tasks: int) -> Sequence:
    """One colour a task: told apart one by one where they are few, dark to light in their order where they are many."""
    if tasks <= len(PALETTE):
        return PALETTE[:tasks]
    return [*mpl.colormaps["viridis"](np.linspace(0, 0.92, tasks))]


def finish(figure: Figure, axes: Axes, tasks: int) -> Figure:
    """Percent axis, faint grid, legend beside the curves (the ends and the middle of it where there are many)."""
    axes.set_ylim(-2, 102)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_ylabel("test accuracy")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    step = max(1, int(np.ceil(tasks / 14)))
    kept = [*range(0, tasks, step), *range(tasks, len(labels))]
    axes.legend(
        [handles[k] for k in kept],
        [labels[k] for k in kept],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=9,
    )
    return figure
