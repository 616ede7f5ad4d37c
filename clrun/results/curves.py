"""Curves that are told apart: by markers and dashes, and by a shift where they lie on each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

# Of curves, so that they are told apart on grey paper, too.
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")
SHAPES = len(MARKERS) * len(DASHES)  # of curves that differ without their colours

# Points of 1/72 inch: what lies nearer is one line to the eye, and so far such lines are shifted.
ON_EACH_OTHER, SHIFT = 1.5, 2.2


def shape(number: int) -> dict[str, Any]:
    """Return the marker and the dashes of a curve, which no other one of SHAPES has."""
    marker, cycle = number % len(MARKERS), number // len(MARKERS)
    return {"marker": MARKERS[marker], "linestyle": DASHES[(marker + cycle) % len(DASHES)]}


def side_by_side(lines: Sequence[Line2D]) -> None:
    """Shift lines that lie on each other up or down by a few points, so that each can be seen; others stay. Their axes
    have their limits."""
    if not 2 <= len(lines) <= SHAPES:  # of more, a plot shows the course of all and not each one
        return
    axes = lines[0].axes
    assert isinstance(axes, Axes) and isinstance(axes.figure, Figure)
    low, high = axes.get_ylim()
    height = 72 * axes.get_position().height * axes.figure.get_figheight()
    near = ON_EACH_OTHER * (high - low) / height
    places: list[int] = []
    for number, line in enumerate(lines):
        taken = {places[other] for other in range(number) if on_each_other(line, lines[other], near)}
        places.append(next(place for place in range(number + 1) if place not in taken))
        shift = SHIFT * ((places[-1] + 1) // 2) * (-1) ** places[-1]  # 0, -1, 1, -2, 2 ... steps
        if shift:
            line.set_transform(axes.transData + ScaledTranslation(0, shift / 72, axes.figure.dpi_scale_trans))
            line.set_clip_on(False)
    if any(places):
        axes.set_xlabel(f"{axes.get_xlabel()} · equal lines: side by side")


def on_each_other(one: Line2D, other: Line2D, near: float) -> bool:
    """Return whether two lines are nearer in y from one point to the next, or in the only one they share."""
    x, mine, theirs = np.intersect1d(one.get_xdata(), other.get_xdata(), return_indices=True)
    close = np.abs(np.asarray(one.get_ydata())[mine] - np.asarray(other.get_ydata())[theirs]) < near
    return bool((close[1:] & close[:-1]).any() or (len(x) == 1 and close.all()))
