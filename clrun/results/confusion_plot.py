"""The plot confusion.png of a run: of the test samples of each class, how many were taken for which class."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clrun.system.arithmetic import ceil_div

NUMBERS_UP_TO = 12  # classes; a heat map of more has no room for numbers
LABELS = 30  # class names on an axis
LETTERS = 16  # of a class name

EARLIER = 8  # tasks, of those before the last, that have a small heat map
TILE_ROWS = 2  # of small heat maps above each other

# Inches: a class and all classes in the large heat map, a letter of a name, what is beside names and between maps.
CLASS, SMALLEST, LARGEST = 0.32, 2.2, 5.4
LETTER, BESIDE, GAP = 0.075, 0.45, 0.3

COLOURS = "cividis"


def confusion_figure(rows: pd.DataFrame) -> Figure:
    """Return heat maps of confusion_over_tasks.csv in percent of the test samples of a class: after the last task large
    and with the names of the classes, after earlier tasks small beside it. Classes that were not tested stay white."""
    names = output_names(rows)
    shares = {int(str(after)): shares_of(part, list(names)) for after, part in rows.groupby("after_task")}
    *earlier, last = shares
    all_earlier = len(earlier)
    earlier = [earlier[k] for k in np.linspace(0, len(earlier) - 1, min(EARLIER, len(earlier))).round().astype(int)]
    side = float(np.clip(CLASS * len(names), SMALLEST, LARGEST))
    margin = BESIDE + LETTER * max(map(len, names.values()))
    columns = ceil_div(len(earlier), TILE_ROWS)
    beside = columns * (GAP + (side - GAP) / TILE_ROWS)
    figure = Figure(figsize=(margin + side + beside + 0.1, margin + side + GAP))
    FigureCanvasAgg(figure)
    draw_last(
        placed(figure, margin, margin, side, side), shares[last], list(names.values()), f"after task {last}, in %"
    )
    if earlier:
        axes = placed(figure, margin + side + GAP, margin, beside - GAP, side)
        draw_earlier(axes, {after: shares[after] for after in earlier}, columns, GAP / side)
    if len(earlier) < all_earlier:
        text = f"{len(earlier)} of {all_earlier} earlier stages, for want of room; all are in confusion_over_tasks.csv"
        figure.text(0.99, 0.01, text, ha="right", va="bottom", fontsize=8, color="0.35")
    return figure


def output_names(rows: pd.DataFrame) -> dict[int, str]:
    """Return the names of the outputs that occur, by their numbers, in their order."""
    sides = [rows[[f"{side}_output", f"{side}_class"]].to_numpy() for side in ("true", "predicted")]
    names = {int(output): shortened(str(name)) for side in sides for output, name in side}
    return dict(sorted(names.items()))


def shortened(name: str) -> str:
    """Return a name without the letters for which there is no room."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def shares_of(rows: pd.DataFrame, outputs: Sequence[int]) -> np.ndarray:
    """Return (C, C) percent [true, predicted] of the samples of each class after one task, nan for a class without."""
    place = {output: number for number, output in enumerate(outputs)}
    counts = np.zeros((len(outputs), len(outputs)))
    np.add.at(counts, (rows["true_output"].map(place), rows["predicted_output"].map(place)), rows["count"])
    total = counts.sum(1, keepdims=True)
    return 100 * np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def placed(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes at this place of a figure and of this size, in inches."""
    of_width, of_height = figure.get_size_inches()
    return figure.add_axes((left / of_width, bottom / of_height, width / of_width, height / of_height))


def draw_last(axes: Axes, shares: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw the large heat map, with numbers where classes are few, and with names, thinned where they are many."""
    draw_map(axes, shares)
    axes.set_title(title, fontsize=9, pad=4)
    step = ceil_div(len(names), LABELS)
    places, labels = list(range(0, len(names), step)), list(names[::step])
    axes.set_xticks(places, labels, rotation=0 if max(map(len, names)) <= 2 else 90, fontsize=8)
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_xlabel("taken for", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    for (true, predicted), share in np.ndenumerate(shares if len(names) <= NUMBERS_UP_TO else shares[:0]):
        if share >= 0.5:
            colour = "white" if share < 55 else "black"
            axes.text(predicted, true, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)


def draw_earlier(axes: Axes, shares: Mapping[int, np.ndarray], columns: int, gap: float) -> None:
    """Draw small heat maps in TILE_ROWS rows, as one picture, since axes of their own would take most of the time.

    shares: (C, C) by the number of tasks learnt; gap: between two maps, as a fraction of the height of all.
    """
    size = len(next(iter(shares.values())))
    step = size + max(1, round(size * gap * TILE_ROWS / (1 - gap)))  # classes and gap
    picture = np.full((size + step * (TILE_ROWS - 1), size + step * (columns - 1)), np.nan)
    for number, (after, values) in enumerate(shares.items()):
        top, left = (step * k for k in divmod(number, columns))
        picture[top : top + size, left : left + size] = values
        axes.annotate(
            f"after task {after}",
            (left + (size - 1) / 2, top - 0.5),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    draw_map(axes, picture)
    axes.set_axis_off()


def draw_map(axes: Axes, shares: np.ndarray) -> None:
    """Draw percents as a heat map."""
    axes.imshow(shares, vmin=0, vmax=100, cmap=COLOURS, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
