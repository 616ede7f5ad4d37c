"""Pictures of a report, one folder a stream, drawn from the CSVs of its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clrun import plots
from clrun.report import REFERENCES, Row, statistic, streams, text

CURVES = 14  # in one picture; more cannot be told apart
DASHES = ("-", "--")
REFERENCE_STYLE = {"joint": "-.", "finetune": ":", "chance": (0, (1, 4))}


def draw(folder: Path, rows: Sequence[Row]) -> None:
    """report/*.png, or with several streams report/<stream>/*.png. What there are no data for is not drawn."""
    parts = streams(rows)
    for part in parts:
        place = folder / "report" / (part[0].stream if len(parts) > 1 else "")
        matrices = {row.group: matrices_of(folder, row) for row in part if len(row.done)}
        lines = references(folder, part)
        for name, figure in pictures(part, {k: v for k, v in matrices.items() if v}, lines).items():
            plots.save(figure, place / f"{name}.png")


def pictures(rows: Sequence[Row], matrices: Mapping[str, list[pd.DataFrame]], lines: Mapping[str, float]) -> dict:
    """name -> Figure."""
    drawn = [row for row in rows if row.group in matrices][:CURVES]
    found = {}
    if drawn:
        found["first_task"] = curves_picture(drawn, matrices, "task_1", "accuracy of task 1", {})
        found["average_accuracy"] = curves_picture(drawn, matrices, "average", "average accuracy so far", lines)
        found["matrices"] = grid_picture(drawn, matrices)
    for knob in swept(rows):
        found[f"accuracy_against_{knob}"] = knob_picture(rows, knob, lines)
    if any(row["train_seconds"].n for row in rows):
        found["accuracy_against_cost"] = cost_picture(rows, lines)
    return found


# ---------------------------------------------------------------- what is drawn


def directory(folder: Path, run: str) -> Path | None:
    """Where a run lies; None where only its summary is there."""
    return next(folder.glob(f"runs/*/*-{run}"), None)


def matrices_of(folder: Path, row: Row) -> list[pd.DataFrame]:
    """The accuracy matrices of a row's runs."""
    places = [directory(folder, run) for run in row.done["run"]]
    return [pd.read_csv(place / "accuracy_matrix.csv") for place in places if place is not None]


def references(folder: Path, rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy of joint, finetune and chance on a stream, where they are known."""
    found = {row.keys["strategy"]: row["average_accuracy"].mean for row in rows if len(row.done)}
    lines = {name: found[name] for name in REFERENCES if name in found}
    places = [directory(folder, run) for row in rows for run in row.done["run"][:1]]
    guess = next((chance(place) for place in places if place is not None), None)
    return lines | ({} if guess is None else {"chance": guess})


def chance(run: Path) -> float:
    """Accuracy of guessing among the outputs that may answer at the end, mean over tasks; from a run's files."""
    outputs = round(len(pd.read_csv(run / "confusion.csv")) ** 0.5)
    summary = pd.read_csv(run / "summary.csv").iloc[0]
    if summary["scenario"] != "task":
        return 1 / outputs
    if not (run / "tasks.csv").is_file():
        return summary["tasks"] / outputs
    return float((1 / pd.read_csv(run / "tasks.csv").groupby("task").size()).mean())


def swept(rows: Sequence[Row]) -> list[str]:
    """The keys that take three values or more within one strategy, numbers all of them."""
    keys = [key for key in rows[0].keys if key != "strategy" and all(is_number(row.keys[key]) for row in rows)]
    frame = pd.DataFrame([row.keys for row in rows])
    return [key for key in keys if (frame.groupby("strategy")[key].nunique() >= 3).any()]


def is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


# ---------------------------------------------------------------- pictures


def look(i: int) -> dict:
    """Colour and dashes of the i-th curve."""
    return {"color": plots.PALETTE[i % len(plots.PALETTE)], "linestyle": DASHES[i // len(plots.PALETTE) % 2]}


def curves_picture(
    rows: Sequence[Row], matrices: Mapping[str, list[pd.DataFrame]], column: str, title: str, lines: Mapping[str, float]
) -> Figure:
    """A column of the accuracy matrices over the tasks learnt: mean, and the 95 % interval as a band."""
    figure, axes = plots.canvas(7.4, 4.2)
    for i, row in enumerate(rows):
        runs = pd.concat([m.set_index("after_task")[column] for m in matrices[row.group]], axis=1).loc[1:]
        band = [statistic(values) for _, values in runs.iterrows()]
        mean, low, high = (100 * np.array([getattr(one, name) for one in band]) for name in ("mean", "low", "high"))
        axes.plot(runs.index, mean, marker="o", markersize=4, label=f"{row.label} (n={runs.shape[1]})", **look(i))
        axes.fill_between(runs.index, low, high, color=look(i)["color"], alpha=0.15, linewidth=0)
    draw_lines(axes, lines)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learnt")
    return finished(figure, axes, title)


def draw_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    for name, value in lines.items():
        axes.axhline(100 * value, color=plots.INK, linewidth=1, linestyle=REFERENCE_STYLE[name], label=name, zorder=1)


def finished(figure: Figure, axes: Axes, title: str) -> Figure:
    """Labels, and the legend beside the curves."""
    axes.set_ylabel(f"{title} (%)")
    axes.set_ylim(max(axes.get_ylim()[0], -2), min(axes.get_ylim()[1], 102))  # an interval of few runs may reach beyond
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def grid_picture(rows: Sequence[Row], matrices: Mapping[str, list[pd.DataFrame]]) -> Figure:
    """Mean accuracy matrices side by side."""
    width = min(4, len(rows))
    height = -(-len(rows) // width)
    figure = Figure(figsize=(2.3 * width + 0.9, 2.3 * height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(height, width, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        found = [m.set_index("after_task").drop(columns="average").to_numpy(float) for m in matrices[row.group]]
        image = axes.imshow(100 * np.mean(found, 0), vmin=0, vmax=100, cmap="cividis", aspect="auto")
        axes.set_title(row.label, fontsize=8)
        plots.label_tasks(axes, found[0].shape[1])
        axes.tick_params(labelsize=7)
    figure.supxlabel("accuracy on task", fontsize=9)
    figure.supylabel("after learning task", fontsize=9)
    figure.colorbar(image, ax=grid, label="accuracy (%)", shrink=0.8)
    return figure


def knob_picture(rows: Sequence[Row], knob: str, lines: Mapping[str, float]) -> Figure:
    """Average accuracy against a knob, a curve for each combination of the other keys; crosses where runs diverged."""
    figure, axes = plots.canvas(7.4, 4.2)
    series: dict[str, list[Row]] = {}
    for row in rows:
        if not pd.isna(row.keys[knob]) and row.keys["strategy"] not in REFERENCES:
            others = [f"{k}={text(v)}" for k, v in row.keys.items() if k not in (knob, "strategy") and not pd.isna(v)]
            series.setdefault(" ".join([row.keys["strategy"], *others]), []).append(row)
    for i, (label, own) in enumerate(series.items()):
        draw_series(axes, sorted(own, key=lambda row: row.keys[knob]), knob, label, i)
    draw_lines(axes, lines)
    values = np.array([row.keys[knob] for own in series.values() for row in own], float)
    spread = values[values > 0]
    if len(spread) and spread.max() / spread.min() >= 50:
        axes.set_xscale(
            "log" if (values > 0).all() else "symlog", **({} if (values > 0).all() else {"linthresh": spread.min()})
        )
    axes.set_xlabel(knob)
    return finished(figure, axes, "average accuracy")


def draw_series(axes: Axes, rows: Sequence[Row], knob: str, label: str, i: int) -> None:
    """One curve of `knob_picture`."""
    x = np.array([row.keys[knob] for row in rows], float)
    found = [row["average_accuracy"] for row in rows]
    mean, low, high = (100 * np.array([getattr(one, name) for one in found], float) for name in ("mean", "low", "high"))
    axes.plot(x, mean, marker="o", markersize=4, label=label, **look(i))
    axes.fill_between(x, low, high, color=look(i)["color"], alpha=0.15, linewidth=0)
    gone = [row.keys[knob] for row in rows if row.diverged]
    axes.plot(gone, [0.02] * len(gone), "x", color=look(i)["color"], transform=axes.get_xaxis_transform())


def cost_picture(rows: Sequence[Row], lines: Mapping[str, float]) -> Figure:
    """Average accuracy against the seconds that training and consolidating took, means and 95 % intervals."""
    figure, axes = plots.canvas(7.4, 4.2)
    for i, row in enumerate([row for row in rows if len(row.done)][:CURVES]):
        seconds = (row.done["train_seconds"] + row.done["consolidate_seconds"].fillna(0)).mean()
        found = row["average_accuracy"]
        bar = None if np.isnan(found.low) else [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]]
        mark = "o" if i < len(plots.PALETTE) else "s"
        axes.errorbar(seconds, 100 * found.mean, bar, fmt=mark, color=look(i)["color"], label=row.label, capsize=2)
    draw_lines(axes, lines)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training and consolidation")
    return finished(figure, axes, "average accuracy")
