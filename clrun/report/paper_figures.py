"""What a paper asks of figures: another format, the width of a column, a style of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from clrun.results import plots
from clrun.system.errors import UsageError

NARROWEST, WIDEST = 2.0, 40.0  # inches
LETTERS = 18  # per inch of a legend
HANDLE_LETTERS = 7  # letters that fit beside the text of an entry of a legend, where its line is
LINE = 0.14  # inches that a line of a legend is high

# Points of the texts of a figure with a width, which is not scaled any more in a paper.
SIZES = {"axes.labelsize": 8.0, "axes.titlesize": 7.0, "xtick.labelsize": 7.0, "legend.fontsize": 7.0, "font.size": 5.5}


@dataclass(frozen=True)
class Look:
    """How figures are written."""

    form: str = "png"  # one of plots.FILE_OPTIONS
    width: float | None = None  # in inches; None: as wide as the figure needs, and with a title
    style: Any = field(default_factory=dict)  # RcParams, whose keys are known  # what a style file of Matplotlib states

    @property
    def palette(self) -> Sequence[str]:
        """The colours of the curves: those of axes.prop_cycle in the style, or plots.PALETTE."""
        cycle = self.style.get("axes.prop_cycle")
        return plots.PALETTE if cycle is None or "color" not in cycle.keys else cycle.by_key()["color"]


def look(form: str, width: float | None, style: Path | None) -> Look:
    """Return how figures are written, as --format, --width and --style say. Raise UsageError."""
    if width is not None and not NARROWEST <= width <= WIDEST:
        raise UsageError(f"--width {width:g}: inches from {NARROWEST:g} to {WIDEST:g}, such as 3.3 for one column.")
    return Look(form, width, {} if style is None else stated(style))


def stated(path: Path) -> Any:
    """Return what a style file of Matplotlib states. Raise UsageError for one that cannot be read or is wrong."""
    try:
        return mpl.rc_params_from_file(path, fail_on_error=True, use_default_template=False)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UsageError(
            f"--style {path}: {reason}; a style file of Matplotlib has lines such as 'font.family: serif'."
        ) from None


def fit(figure: Figure, wanted: Look) -> None:
    """Make a figure as wide as asked for, with texts of readable sizes and the legend below; without a title, which a
    paper has in the caption. Without a width, only the sizes that the style states change."""
    if wanted.width is not None:
        ratio = figure.get_figheight() / figure.get_figwidth()
        if figure.legends:
            labels = [text.get_text() for text in figure.legends[0].get_texts()]
            lines = math.ceil(len(labels) / columns_of(labels, wanted.width))
            ratio = 0.68 + LINE * (lines + 1) / wanted.width
        figure.set_size_inches(wanted.width, wanted.width * ratio)
    usual = {} if wanted.width is None else SIZES
    set_sizes(figure, usual | {key: wanted.style[key] for key in SIZES if key in wanted.style})


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    """Draw a legend below the axes of a figure of this width in inches, in as many columns as fit."""
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns_of(labels, width),
        frameon=False,
        fontsize=SIZES["legend.fontsize"],
        handlelength=2.0,
        handletextpad=0.5,
        columnspacing=1.0,
    )


def columns_of(labels: Sequence[str], width: float) -> int:
    """Return how many columns of a legend with these labels fit into a width in inches."""
    longest = max(map(len, labels), default=0) + HANDLE_LETTERS
    return max(1, min(len(labels), int(width * LETTERS / longest)))


def set_sizes(figure: Figure, sizes: Mapping[str, Any]) -> None:
    """Give the texts of a figure these sizes, in points, by the names of Matplotlib's settings."""
    axes_texts: list[tuple[str, Text]] = [("axes.labelsize", text) for text in figure.texts]
    for axes in figure.axes:
        axes_texts += [("axes.labelsize", axes.xaxis.label), ("axes.labelsize", axes.yaxis.label)]
        axes_texts += [("axes.titlesize", axes.title), *(("font.size", text) for text in axes.texts)]
        if "xtick.labelsize" in sizes:
            axes.tick_params(labelsize=sizes["xtick.labelsize"])
    axes_texts += [("legend.fontsize", text) for legend in figure.legends for text in legend.get_texts()]
    for key, text in axes_texts:
        if key in sizes:
            text.set_fontsize(sizes[key])
