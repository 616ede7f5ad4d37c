"""The figures of a report, one folder per stream, drawn from the CSV files of its runs."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from clrun.report.intervals import Statistic, statistic
from clrun.report.paper_figures import Look, fit, legend_below
from clrun.report.point_names import name_points
from clrun.report.rows import STREAM, Row, heading, references, streams, text
from clrun.report.runs import REFERENCES, RETRAINING, bounds_of
from clrun.results import collection, curves, fonts, plots
from clrun.results.reading import UnreadableFile, read_table
from clrun.results.tables import is_missing
from clrun.system.arithmetic import ceil_div
from clrun.system.messages import announce

CURVES = 3 * len(curves.MARKERS)  # in one figure; more could not be distinguished
SMALL_TICKS = 8  # numbers of tasks below a small heat map of many tasks
MARKED = 40  # points of a curve with markers, where it has many
NUMBERS_UP_TO = 6  # tasks; a small heat map of more tasks has no room for numbers
TITLE_WIDTH = 26  # characters per line of a small heat map's title
LOG_RATIO = 50  # largest value / smallest value from which an axis is logarithmic
FAR_BELOW = 1.5  # times the height of the curves: a reference that is lower is left below the figure
CHARACTERS = 12  # in a message
GREY = "#777777"
SHADED_NOTE = "bands and bars: 95 % intervals of the mean over the seeds (Student's t)"

# The references: the dashes of their lines, and their names in a legend.
REFERENCE_STYLE = {"joint": (0, (6, 2)), "finetune": ":", "chance": (0, (1, 4))}
REFERENCE_LABEL = {"joint": "joint's level", "finetune": "finetune's level", "chance": "chance"}

JOINT = "all at once"  # what a row of joint is, beside methods that learn one task after another

PLAIN = Look()  # without --format, --width and --style

COST_TITLES = {"total_seconds": "seconds of training and consolidation", "state_mb": "strategy state (MB)"}


@dataclass(frozen=True)
class FigureData:
    """The data of the figures of one stream: at most CURVES rows, each with one style in every figure."""

    rows: Sequence[Row]
    styles: Mapping[str, dict[str, Any]]  # group -> colour, dashes, marker
    matrices: Mapping[str, Sequence[pd.DataFrame]]  # group -> accuracy_matrix.csv of those of its runs that have it
    costs: Mapping[str, Sequence[pd.DataFrame]]  # group -> costs.csv
    references: Mapping[str, float]  # accuracies of joint, finetune, chance
    title: str
    look: Look = PLAIN


def draw(folder: Path, rows: Sequence[Row], look: Look = PLAIN) -> None:
    """Write report/*.png, or with several streams report/<stream>/*.png; the format is that of the look. A figure that
    lacks data is not drawn; figures of an earlier report are removed. Characters that no installed font has are named
    in one sentence."""
    parts, missing = streams(rows), set[str]()
    for form in plots.FILE_OPTIONS:
        for old in [*(folder / "report").glob(f"*.{form}"), *(folder / "report").glob(f"*tasks-*/*.{form}")]:
            old.unlink()
    with mpl.rc_context(look.style):
        for part in parts:
            directory_of_stream = folder / "report" / (folder_name(part[0]) if len(parts) > 1 else "")
            for name, figure in figures(figure_data(folder, part, look)).items():
                missing |= set(plots.save(figure, directory_of_stream / f"{name}.{look.form}"))
    if missing:
        letters = "".join(sorted(missing)[:CHARACTERS]) + (" ..." if len(missing) > CHARACTERS else "")
        announce(
            f"no font here has {letters}, so the plots of the report show boxes in their places; install one that "
            "does, such as Noto Sans CJK, and type the same command again."
        )


def folder_name(row: Row) -> str:
    """Return the name of the folder of a stream, such as 'digits-classes-task-5tasks-<stream>'."""
    dataset, split, scenario, tasks = (text(row.first[key]) for key in STREAM)
    return re.sub(r"[^\w.=+-]+", "_", f"{dataset}-{split}-{scenario}-{tasks}tasks-{row.stream}")


def figure_data(folder: Path, rows: Sequence[Row], look: Look = PLAIN) -> FigureData:
    """Return the data of the figures of the rows of one stream, which will look so."""
    ended = [row for row in rows if row.n]
    shown = ended[:CURVES]
    title = heading(rows)
    if len(ended) > CURVES:
        title += f"\nthe first {CURVES} of {len(ended)} rows; --sort says which come first"
    if any(row.n > 1 for row in shown):
        title += f"\n{SHADED_NOTE}"
    return FigureData(
        rows=shown,
        styles={row.group: curve_style(i, look.palette) for i, row in enumerate(shown)},
        matrices=tables_of(folder, shown, "accuracy_matrix.csv"),
        costs=tables_of(folder, shown, "costs.csv"),
        references=references(folder, rows, say=lambda _: None),  # it was said when the tables were written
        title=title,
        look=look,
    )


def curve_style(i: int, palette: Sequence[str] = plots.PALETTE) -> dict[str, Any]:
    """Return colour, dashes and marker of the i-th curve."""
    colour = i + 2 * (i // len(curves.MARKERS))  # a marker comes again in another colour, and so do dashes
    return {"color": palette[colour % len(palette)], "markersize": 4, **curves.shape(i % CURVES)}


def tables_of(folder: Path, rows: Sequence[Row], file: str) -> dict[str, list[pd.DataFrame]]:
    """Return this table of the runs of each group, where they have it; a group without any is left out, and so is a
    table that cannot be read, which is said."""
    tables: dict[str, list[pd.DataFrame]] = {}
    runs = {row.group: row.done["run"].astype(str).tolist() for row in rows}
    there = collection.folders(folder, [run for names in runs.values() for run in names])
    for row in rows:
        paths = [there[run] / file for run in runs[row.group] if run in there]
        found = [table for path in paths if (table := table_or_none(path)) is not None]
        if found:
            tables[row.group] = found
    return tables


def table_or_none(path: Path) -> pd.DataFrame | None:
    """Return a table of a run; None where it is not there, or cannot be read, which is said."""
    if not path.exists():
        return None
    try:
        return read_table(path)
    except UnreadableFile as error:
        announce(f"left out of the plots: {error}")
        return None


def figures(data: FigureData) -> dict[str, Figure]:
    """Return the figures of a stream by name."""
    drawn = {}
    if data.matrices:
        drawn["first_task"] = curves_figure(data, "task_1", "accuracy of task 1", {})
        drawn["average_accuracy"] = curves_figure(data, "average", "average accuracy so far", data.references)
        drawn["matrices"] = matrices_figure(data)
    for knob in swept(data.rows):
        drawn[f"accuracy_against_{knob}"] = knob_figure(data, knob)
    if any(row["total_seconds"].n for row in data.rows):
        drawn["accuracy_against_cost"] = cost_figure(data)
    if data.costs:
        drawn["cost_over_tasks"] = cost_over_tasks_figure(data)
    for figure in drawn.values():
        fit(figure, data.look)
        if data.look.width is None:
            title = "\n".join(textwrap.fill(line, int(13 * figure.get_figwidth())) for line in data.title.splitlines())
            figure.suptitle(title, fontsize=8, color=GREY, x=0.01, horizontalalignment="left")
    if "accuracy_against_cost" in drawn:
        name_costs(drawn["accuracy_against_cost"], data)
    return drawn


# ---------------------------------------------------------------- what figures share


def label_of(row: Row) -> str:
    """Return how a legend calls a row."""
    return f"{row.label}, {JOINT}" if row.strategy == "joint" else row.label


def draw_references(axes: Axes, accuracies: Mapping[str, float]) -> None:
    """Draw the levels of joint, finetune and chance, in percent, after all else. Where chance is so far below that it
    would compress the curves, it is left below the figure, and its label states the number."""
    low, high = axes.get_ylim()
    for name, value in accuracies.items():
        y, label = 100 * value, REFERENCE_LABEL[name]
        if name == "chance" and low - y > FAR_BELOW * (high - low):
            label += f" ({y:.1f}, below)"
        else:
            low, high = min(low, y - 1), max(high, y + 1)
        axes.axhline(y, color=plots.INK, linewidth=1, linestyle=REFERENCE_STYLE[name], zorder=1, label=label)
    axes.set_ylim(low, high)


def is_reference(label: str) -> bool:
    """Return whether a label of a legend is that of a reference."""
    return label.startswith(tuple(REFERENCE_LABEL.values()))


def draw_band(
    axes: Axes, x: Sequence[float], y: Sequence[Statistic], label: str, style: Mapping[str, Any], scale: float = 1
) -> None:
    """Draw means as a curve and their intervals as a band, which is the paler the more bands there are."""
    mean, low, high = (scale * np.array([getattr(point, name) for point in y]) for name in ("mean", "low", "high"))
    axes.plot(x, mean, label=label, markevery=max(1, len(x) // MARKED), **style)
    axes.fill_between(x, low, high, color=style["color"], linewidth=0)
    for band in axes.collections:
        band.set_alpha(min(0.15, 0.6 / len(axes.collections)))


def label_tasks_axis(axes: Axes) -> None:
    """Label the x axis, whose ticks are whole tasks."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learnt")


def label_accuracy_axis(axes: Axes, title: str) -> None:
    """Label the y axis, of accuracies in percent, and limit it to what is possible."""
    axes.set_ylabel(f"{title} (%)")
    axes.set_ylim(max(axes.get_ylim()[0], -2), min(axes.get_ylim()[1], 101))  # an interval of few runs may reach beyond


def finish(figure: Figure, axes: Axes, look: Look = PLAIN) -> Figure:
    """Add a faint grid, and a legend in which the references come last: beside the curves, or below them where the
    figure has a width."""
    for panel in figure.axes:
        panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        panel.set_axisbelow(True)
    entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
    entries.sort(key=lambda entry: is_reference(entry[1]))  # stable
    if look.width is not None:
        legend_below(figure, [handle for handle, _ in entries], [label for _, label in entries], look.width)
        return figure
    labels = [textwrap.fill(label, 40, subsequent_indent="   ") for _, label in entries]
    figure.legend(
        [handle for handle, _ in entries],
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=8,
        handlelength=2.6,
    )
    return figure


def stretch(axes: Axes, values: np.ndarray) -> bool:
    """Make the x axis logarithmic where the values are far apart, and linear below the smallest positive value where 0
    is among them. Return whether it is logarithmic now."""
    spread = values[values > 0]
    far = bool(len(spread) > 0 and spread.max() / spread.min() >= LOG_RATIO)
    if far and (values > 0).all():
        axes.set_xscale("log")
    elif far:
        axes.set_xscale("symlog", linthresh=10.0 ** np.floor(np.log10(spread.min())), linscale=0.5)
    if far:  # Matplotlib writes powers as formulas, and texts are no formulas here
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    return far


def from_zero(axes: Axes, values: np.ndarray) -> None:
    """Set the limits of an x axis of amounts: from 0, or from below the smallest amount if the axis is logarithmic."""
    positive = values[values > 0]
    if not stretch(axes, values):
        axes.set_xlim(-0.02 * values.max(), 1.05 * values.max())
    elif (values > 0).all():
        axes.set_xlim(positive.min() / 2, 2 * positive.max())
    else:
        axes.set_xlim(-0.03 * positive.min(), 2 * positive.max())


# ---------------------------------------------------------------- accuracy


def curves_figure(data: FigureData, column: str, title: str, accuracies: Mapping[str, float]) -> Figure:
    """Return curves of a column of the accuracy matrices over the tasks learnt: means with 95 % intervals as bands."""
    figure, axes = plots.canvas(7.6, 4.2)
    numbers = {len(tables) for tables in data.matrices.values()}
    short = data.look.width is not None and len(numbers) == 1  # one number for all is in the caption of a paper
    for row in data.rows:
        if row.group in data.matrices:
            columns = [m.set_index("after_task")[column] for m in data.matrices[row.group]]
            runs = pd.concat(columns, axis=1).loc[1:]
            means = [statistic(values, bounds_of("average_accuracy")) for _, values in runs.iterrows()]
            label = label_of(row) + ("" if short else f" (n={runs.shape[1]})")
            draw_band(axes, runs.index.tolist(), means, label, data.styles[row.group], scale=100)
    drawn = list(axes.lines)
    draw_references(axes, accuracies)
    label_tasks_axis(axes)
    label_accuracy_axis(axes, title)
    curves.side_by_side(drawn)
    return finish(figure, axes, data.look)


def matrices_figure(data: FigureData) -> Figure:
    """Return heat maps of the mean accuracy matrices side by side."""
    rows = [row for row in data.rows if row.group in data.matrices]
    titles = [textwrap.fill(row.label, TITLE_WIDTH) for row in rows]
    width = min(4, len(rows))
    if data.look.width is not None:
        width = min(width, max(1, int((data.look.width - 0.8) / 1.2)))  # inches that one needs for its numbers
    height = ceil_div(len(rows), width)
    figure = Figure(figsize=(2.3 * width + 1.1, 2.4 * height + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(height, width, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row, title in zip(grid.flat, rows, titles, strict=False):
        tables = [plots.tasks_of(matrix).to_numpy(float) for matrix in data.matrices[row.group]]
        image = small_heat_map(axes, 100 * np.mean(tables, 0))
        axes.set_title(title, fontsize=8)
    figure.supxlabel("accuracy on task", fontsize=9)
    figure.supylabel("after learning task", fontsize=9)
    figure.colorbar(image, ax=grid, label="accuracy (%)", shrink=min(1, 2 / height), aspect=30)
    return figure


def small_heat_map(axes: Axes, values: np.ndarray) -> AxesImage:
    """Draw an accuracy matrix (T+1, T) in percent, with its numbers where tasks are few."""
    image = plots.heat_map(axes, values, plots.TICKS if values.shape[1] <= plots.TICKS else SMALL_TICKS)
    axes.tick_params(labelsize=7)
    if values.shape[1] <= NUMBERS_UP_TO:
        plots.write_numbers(axes, values, decimals=0, fontsize=7, emphasize=False)
    return image


# ---------------------------------------------------------------- accuracy against a knob


def swept(rows: Sequence[Row]) -> list[str]:
    """Return the keys that take at least three values within a strategy, all of which are numbers."""
    if not rows:
        return []
    keys = [key for key in rows[0].stream_keys if key != "strategy" and all(is_number(row.keys[key]) for row in rows)]
    frame = pd.DataFrame([row.keys for row in rows])
    return [key for key in keys if (frame.groupby("strategy")[key].nunique() >= 3).any()]


def is_number(value: object) -> bool:
    """Return whether a value is a number and no truth value."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def knob_figure(data: FigureData, knob: str) -> Figure:
    """Return average accuracy against a knob, with a curve for each combination of the other keys, and crosses where
    runs diverged."""
    figure, axes = plots.canvas(7.6, 4.2)
    series: dict[str, list[Row]] = {}
    for row in data.rows:
        if not is_missing(row.keys[knob]) and row.strategy not in REFERENCES:
            others = [f"{key}={row.text(key)}" for key in row.label_keys if key != knob and row.text(key)]
            series.setdefault(" ".join([row.strategy, *others]), []).append(row)
    for i, (label, points) in enumerate(series.items()):
        style = curve_style(i, data.look.palette)
        draw_series(axes, sorted(points, key=lambda row: number(row, knob)), knob, label, style)
    draw_references(axes, data.references)
    stretch(axes, np.array([number(row, knob) for points in series.values() for row in points], float))
    axes.set_xlabel(knob)
    label_accuracy_axis(axes, "average accuracy")
    return finish(figure, axes, data.look)


def number(row: Row, knob: str) -> float:
    """Return the value of a knob that is a number."""
    return float(str(row.keys[knob]))


def draw_series(axes: Axes, rows: Sequence[Row], knob: str, label: str, style: Mapping[str, Any]) -> None:
    """Draw one curve of `knob_figure`."""
    x = [number(row, knob) for row in rows]
    draw_band(axes, x, [row["average_accuracy"] for row in rows], label, style, scale=100)
    diverged = [number(row, knob) for row in rows if row.diverged]
    axes.plot(diverged, [0.02] * len(diverged), "x", color=style["color"], transform=axes.get_xaxis_transform())


# ---------------------------------------------------------------- cost


def cost_figure(data: FigureData) -> Figure:
    """Return average accuracy against the seconds of training and consolidation, and against the strategy's state."""
    measured = measured_costs(data)
    figure = Figure(figsize=(3.0 + 3.4 * len(measured), 4.2), layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, measured, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for row in data.rows:
            draw_point(axes, row, cost, data.styles[row.group])
        draw_references(axes, data.references)
        means = np.array([row[cost].mean for row in data.rows])
        from_zero(axes, means[np.isfinite(means)])
        axes.set_xlabel(COST_TITLES[cost] if data.look.width is None else textwrap.fill(COST_TITLES[cost], 20))
    label_accuracy_axis(panels[0], "average accuracy")
    return finish(figure, panels[0], data.look)


def measured_costs(data: FigureData) -> list[str]:
    """Return the costs of `cost_figure`, a panel each."""
    return [name for name in COST_TITLES if any(row[name].mean > 0 for row in data.rows)]


def name_costs(figure: Figure, data: FigureData) -> None:
    """Write the names of the rows beside their points in `cost_figure`, whose size is final."""
    plots.plain_text(figure)
    fonts.choose(figure)
    with plots.without_warnings_of_glyphs():
        figure.draw_without_rendering()  # which lays it out
    for axes, cost in zip(figure.axes, measured_costs(data), strict=True):
        means = [(row[cost].mean, 100 * row["average_accuracy"].mean, row.label) for row in data.rows]
        name_points(axes, [(x, y, name) for x, y, name in means if np.isfinite([x, y]).all()])


def draw_point(axes: Axes, row: Row, cost: str, style: Mapping[str, Any]) -> None:
    """Draw the means of a row as a point, with their 95 % intervals as bars, where it has them."""
    x, y = row[cost], row["average_accuracy"]
    across = None if np.isnan(x.low) else [[x.mean - max(x.low, 0)], [x.high - x.mean]]
    along = None if np.isnan(y.low) else [[100 * (y.mean - y.low)], [100 * (y.high - y.mean)]]
    axes.errorbar(
        x.mean,
        100 * y.mean,
        along,
        across,
        fmt=style["marker"],
        markersize=7,
        elinewidth=0.8,
        color=style["color"],
        label=label_of(row),
    )


def cost_over_tasks_figure(data: FigureData) -> Figure:
    """Return curves of the seconds of training and consolidation up to each task, means with 95 % intervals, the
    largest first in the legend; the curves of RETRAINING are bold."""
    figure, axes = plots.canvas(7.6, 4.2)
    seconds = {row.group: cumulative_seconds(data.costs[row.group]) for row in data.rows if row.group in data.costs}
    rows = [row for row in data.rows if row.group in seconds]
    rows.sort(key=lambda row: -seconds[row.group].iloc[-1].mean())
    for row in rows:
        runs = seconds[row.group]
        bold = {"linewidth": 3.0, "zorder": 4} if row.strategy in RETRAINING else {"linewidth": 1.3}
        means = [statistic(values, bounds_of("total_seconds")) for _, values in runs.iterrows()]
        draw_band(axes, runs.index.tolist(), means, label_of(row), {**data.styles[row.group], **bold})
    label_tasks_axis(axes)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    title = f"{COST_TITLES['total_seconds']} so far"
    axes.set_ylabel(title if data.look.width is None else textwrap.fill(title, 24))
    return finish(figure, axes, data.look)


def cumulative_seconds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return, from costs.csv of each run, a column per run: the seconds of training and consolidation, added up over
    the tasks 0 ... T."""
    seconds = [(table["train_seconds"] + table["consolidate_seconds"]).set_axis(table["task"]) for table in tables]
    return pd.concat(seconds, axis=1).cumsum()
