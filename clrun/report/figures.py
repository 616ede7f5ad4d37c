"""Pictures of a report, one folder a stream, drawn from the CSVs of its runs."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clrun.report.rows import STREAM, Row, heading, references, streams, text
from clrun.report.runs import REFERENCES, directory
from clrun.report.statistics import Statistic, statistic
from clrun.results import plots

DASHES, MARKERS = ("-", "--", "-."), "osD"


CURVES = len(plots.PALETTE) * len(DASHES)  # in one picture; more cannot be told apart


NUMBERS_UP_TO = 6  # tasks; a small heat map of more has no room for numbers


SHADED = "bands and bars: 95 % intervals of the mean over the seeds (Student's t)"


FAR_BELOW = 1.5  # times the height of what is drawn


FAR = 50  # times as much: values that want a logarithmic axis


WIDTH = 26  # characters of a small heat map's title


REFERENCE_STYLE = {"joint": (0, (6, 2)), "finetune": ":", "chance": (0, (1, 4))}


LEVEL = {"joint": "joint's level", "finetune": "finetune's level", "chance": "chance"}  # in a legend


GREY = "#777777"


DEAR = ("cumulative", "scratch")  # the strategies that buy their accuracy with time


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a stream: at most CURVES rows, each with its look in every picture."""

    rows: Sequence[Row]
    looks: Mapping[str, dict]  # group -> colour, dashes, marker
    matrices: Mapping[str, Sequence[pd.DataFrame]]  # group -> accuracy_matrix.csv of its runs, where they are there
    costs: Mapping[str, Sequence[pd.DataFrame]]  # group -> costs.csv
    lines: Mapping[str, float]  # joint, finetune, chance
    title: str


def draw(folder: Path, rows: Sequence[Row]) -> None:
    """report/*.png, or with several streams report/<stream>/*.png. What there are no data for is not drawn; pictures of
    what was there before are removed."""
    parts = streams(rows)
    for old in [*(folder / "report").glob("*.png"), *(folder / "report").glob("*tasks-*/*.png")]:
        old.unlink()
    for part in parts:
        place = folder / "report" / (folder_name(part[0]) if len(parts) > 1 else "")
        for name, figure in pictures(gathered(folder, part)).items():
            plots.save(figure, place / f"{name}.png")


def folder_name(row: Row) -> str:
    """'digits-classes-task-5tasks-STREAM'."""
    dataset, split, scenario, tasks = (text(row.runs.iloc[0][key]) for key in STREAM)
    return re.sub(r"[^\w.=+-]+", "_", f"{dataset}-{split}-{scenario}-{tasks}tasks-{row.stream}")


def gathered(folder: Path, rows: Sequence[Row]) -> Drawn:
    """What there is to draw of the rows of a stream."""
    ended = [row for row in rows if len(row.done)]
    format_value = ended[:CURVES]
    more = f"\nthe first {CURVES} of {len(ended)} rows; --sort says which come first" if len(ended) > CURVES else ""
    looks = {row.group: look(i) for i, row in enumerate(format_value)}
    more += f"\n{SHADED}" if any(len(row.done) > 1 for row in format_value) else ""
    found = [tables_of(folder, format_value, f"{name}.csv") for name in ("accuracy_matrix", "costs")]
    return Drawn(format_value, looks, *found, references(folder, rows), heading(rows) + more)


def look(i: int) -> dict:
    """Colour, dashes and marker of the i-th curve."""
    colour, cycle = i % len(plots.PALETTE), i // len(plots.PALETTE) % len(DASHES)
    return {"color": plots.PALETTE[colour], "linestyle": DASHES[cycle], "marker": MARKERS[cycle], "markersize": 4}


def tables_of(folder: Path, rows: Sequence[Row], name: str) -> dict[str, list[pd.DataFrame]]:
    """group -> this table of each of its runs; without the groups of which none has it."""
    places = {row.group: [directory(folder, run) for run in row.done["run"]] for row in rows}
    found = {group: [place / name for place in of if place is not None] for group, of in places.items()}
    tables = {group: [pd.read_csv(path) for path in paths if path.is_file()] for group, paths in found.items()}
    return {group: of for group, of in tables.items() if of}


def pictures(drawn: Drawn) -> dict[str, Figure]:
    """name -> picture."""
    found = {}
    if drawn.matrices:
        found["first_task"] = curves_picture(drawn, "task_1", "accuracy of task 1", {})
        found["average_accuracy"] = curves_picture(drawn, "average", "average accuracy so far", drawn.lines)
        found["matrices"] = grid_picture(drawn)
    for knob in swept(drawn.rows):
        found[f"accuracy_against_{knob}"] = knob_picture(drawn, knob)
    if any(row["total_seconds"].n for row in drawn.rows):
        found["accuracy_against_cost"] = cost_picture(drawn)
    if drawn.costs:
        found["cost_over_tasks"] = cost_over_tasks_picture(drawn)
    for figure in found.values():
        title = "\n".join(textwrap.fill(line, int(13 * figure.get_figwidth())) for line in drawn.title.splitlines())
        figure.suptitle(title, fontsize=8, color=GREY, x=0.01, horizontalalignment="left")
    return found


# ---------------------------------------------------------------- what pictures share


def draw_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    """Joint, finetune and chance, in percent, beside what is drawn already. Where guessing is so far below that it
    would press all else together, it is below the picture, and the legend says how far."""
    low, high = axes.get_ylim()
    for name, value in lines.items():
        y, label = 100 * value, LEVEL[name]
        if name == "chance" and low - y > FAR_BELOW * (high - low):
            label += f" ({y:.1f}, below)"
        else:
            low, high = min(low, y - 1), max(high, y + 1)
        axes.axhline(y, color=plots.INK, linewidth=1, linestyle=REFERENCE_STYLE[name], zorder=1, label=label)
    axes.set_ylim(low, high)


def is_line(label: str) -> bool:
    return label.startswith(tuple(LEVEL.values()))


def band(axes: Axes, x: Iterable[float], found: Sequence[Statistic], label: str, scale: float = 1, **style) -> None:
    """Means as a curve, their intervals as a band, the paler the more there are."""
    mean, low, high = (scale * np.array([getattr(one, name) for one in found]) for name in ("mean", "low", "high"))
    axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, low, high, color=style["color"], linewidth=0)
    for one in axes.collections:
        one.set_alpha(min(0.15, 0.6 / len(axes.collections)))


def whole_tasks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learnt")


def percent(axes: Axes, title: str) -> None:
    """The accuracy's axis."""
    axes.set_ylabel(f"{title} (%)")
    axes.set_ylim(max(axes.get_ylim()[0], -2), min(axes.get_ylim()[1], 101))  # an interval of few runs may reach beyond


def finished(figure: Figure, axes: Axes) -> Figure:
    """A faint grid, and the legend beside the curves, the references last."""
    for one in figure.axes:
        one.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        one.set_axisbelow(True)
    known = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: is_line(pair[1]))  # stable
    labels = [textwrap.fill(label, 40, subsequent_indent="   ") for _, label in known]
    figure.legend(
        [handle for handle, _ in known], labels, loc="outside right center", frameon=False, fontsize=8, handlelength=2.6
    )
    return figure


def stretch(axes: Axes, values: np.ndarray) -> bool:
    """A logarithmic x axis where the values are far apart, linear below the smallest where 0 is among them; whether it
    is one now."""
    spread = values[values > 0]
    far = len(spread) > 0 and spread.max() / spread.min() >= FAR
    if far and (values > 0).all():
        axes.set_xscale("log")
    elif far:
        axes.set_xscale("symlog", linthresh=10.0 ** np.floor(np.log10(spread.min())), linscale=0.5)
    return far


def from_zero(axes: Axes, values: np.ndarray) -> None:
    """Limits of an x axis for amounts: from 0 on, or from below the smallest on if `stretch` says so."""
    positive = values[values > 0]
    if not stretch(axes, values):
        axes.set_xlim(-0.02 * values.max(), 1.05 * values.max())
    elif (values > 0).all():
        axes.set_xlim(positive.min() / 2, 2 * positive.max())
    else:
        axes.set_xlim(-0.03 * positive.min(), 2 * positive.max())


# ---------------------------------------------------------------- accuracy


def curves_picture(drawn: Drawn, column: str, title: str, lines: Mapping[str, float]) -> Figure:
    """A column of the accuracy matrices over the tasks learnt: mean, and the 95 % interval as a band."""
    figure, axes = plots.canvas(7.6, 4.2)
    for row in drawn.rows:
        if row.group in drawn.matrices:
            columns = [m.set_index("after_task")[column] for m in drawn.matrices[row.group]]
            runs = pd.concat(columns, axis=1).loc[1:]
            found = [statistic(values) for _, values in runs.iterrows()]
            band(axes, runs.index, found, f"{row.label} (n={runs.shape[1]})", 100, **drawn.looks[row.group])
    draw_lines(axes, lines)
    whole_tasks(axes)
    percent(axes, title)
    return finished(figure, axes)


def grid_picture(drawn: Drawn) -> Figure:
    """Mean accuracy matrices side by side."""
    rows = [row for row in drawn.rows if row.group in drawn.matrices]
    titles = [textwrap.fill(row.label, WIDTH) for row in rows]
    width = min(4, len(rows))
    height = -(-len(rows) // width)
    figure = Figure(figsize=(2.3 * width + 1.1, 2.4 * height + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(height, width, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row, title in zip(grid.flat, rows, titles, strict=False):
        found = [m.set_index("after_task").drop(columns="average").to_numpy(float) for m in drawn.matrices[row.group]]
        image = heat_map(axes, 100 * np.mean(found, 0))
        axes.set_title(title, fontsize=8)
    figure.supxlabel("accuracy on task", fontsize=9)
    figure.supylabel("after learning task", fontsize=9)
    figure.colorbar(image, ax=grid, label="accuracy (%)", shrink=min(1, 2 / height), aspect=30)
    return figure


def heat_map(axes: Axes, values: np.ndarray):
    """One matrix, in percent."""
    image = axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.spines[:].set_visible(False)
    plots.label_tasks(axes, values.shape[1])
    axes.tick_params(labelsize=7)
    if values.shape[1] <= NUMBERS_UP_TO:
        for (after, task), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < 55 else "black"
                axes.text(task, after, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    return image


# ---------------------------------------------------------------- accuracy against a knob


def swept(rows: Sequence[Row]) -> list[str]:
    """The keys that take three values or more within one strategy, numbers all of them."""
    if not rows:
        return []
    keys = [key for key in rows[0].told if key != "strategy" and all(is_number(row.keys[key]) for row in rows)]
    frame = pd.DataFrame([row.keys for row in rows])
    return [key for key in keys if (frame.groupby("strategy")[key].nunique() >= 3).any()]


def is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def knob_picture(drawn: Drawn, knob: str) -> Figure:
    """Average accuracy against a knob, a curve for each combination of the other keys; crosses where runs diverged."""
    figure, axes = plots.canvas(7.6, 4.2)
    series: dict[str, list[Row]] = {}
    for row in drawn.rows:
        if not pd.isna(row.keys[knob]) and row.strategy not in REFERENCES:
            others = [f"{key}={text(row.keys[key])}" for key in row.own if key != knob]
            series.setdefault(" ".join([row.strategy, *others]), []).append(row)
    for i, (label, own) in enumerate(series.items()):
        draw_series(axes, sorted(own, key=lambda row: row.keys[knob]), knob, label, look(i))
    draw_lines(axes, drawn.lines)
    stretch(axes, np.array([row.keys[knob] for own in series.values() for row in own], float))
    axes.set_xlabel(knob)
    percent(axes, "average accuracy")
    return finished(figure, axes)


def draw_series(axes: Axes, rows: Sequence[Row], knob: str, label: str, style: dict) -> None:
    """One curve of `knob_picture`."""
    x = [float(row.keys[knob]) for row in rows]
    band(axes, x, [row["average_accuracy"] for row in rows], label, 100, **style)
    gone = [row.keys[knob] for row in rows if row.diverged]
    axes.plot(gone, [0.02] * len(gone), "x", color=style["color"], transform=axes.get_xaxis_transform())


# ---------------------------------------------------------------- cost


def cost_picture(drawn: Drawn) -> Figure:
    """Average accuracy against the seconds of training and consolidation, and against what a strategy keeps."""
    titles = {"total_seconds": "seconds of training and consolidation", "state_mb": "strategy state (MB)"}
    known = [name for name in titles if any(row[name].mean > 0 for row in drawn.rows)]
    figure = Figure(figsize=(3.0 + 3.4 * len(known), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, known, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for row in drawn.rows:
            draw_point(axes, row, cost, drawn.looks[row.group])
        draw_lines(axes, drawn.lines)
        means = np.array([row[cost].mean for row in drawn.rows])
        from_zero(axes, means[np.isfinite(means)])
        axes.set_xlabel(titles[cost])
    percent(panels[0], "average accuracy")
    return finished(figure, panels[0])


def draw_point(axes: Axes, row: Row, cost: str, style: dict) -> None:
    """A row with the 95 % intervals of its means, where it has them."""
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
        label=row.label,
    )


def cost_over_tasks_picture(drawn: Drawn) -> Figure:
    """Seconds of training and consolidation up to each task, means and 95 % intervals, the dearest on top of the
    legend; `cumulative` and `scratch`, which train on all tasks again and again, are bold."""
    figure, axes = plots.canvas(7.6, 4.2)
    found = {row.group: so_far(drawn.costs[row.group]) for row in drawn.rows if row.group in drawn.costs}
    rows = sorted((row for row in drawn.rows if row.group in found), key=lambda row: -found[row.group].iloc[-1].mean())
    for row in rows:
        runs = found[row.group]
        bold = {"linewidth": 3.0, "zorder": 4} if row.strategy in DEAR else {"linewidth": 1.3}
        style = drawn.looks[row.group] | bold
        band(axes, runs.index, [statistic(values) for _, values in runs.iterrows()], row.label, **style)
    whole_tasks(axes)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds of training and consolidation so far")
    return finished(figure, axes)


def so_far(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """costs.csv of runs -> a column a run: seconds of training and consolidation, added up over the tasks (0 ... T)."""
    seconds = [(table["train_seconds"] + table["consolidate_seconds"]).set_axis(table["task"]) for table in tables]
    return pd.concat(seconds, axis=1).cumsum()
