"""Names beside the points of a figure, where there is room."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from clrun.results.plots import cut

LETTERS = 24  # of a name
SIZE = 7.0  # points
LETTER, HEIGHT = 0.56, 1.15  # width of a letter and height of a line, in sizes of the font
POINT = 4.0  # points from the middle of a marker to its edge
GAP = 2.0  # points between a marker and its name

Place = tuple[float, float, str, str]  # where a name begins, in points from its point, and how it is aligned there

PLACES: Sequence[Place] = (
    (POINT + GAP, 0.0, "left", "center"),
    (-POINT - GAP, 0.0, "right", "center"),
    (0.0, POINT + GAP, "center", "bottom"),
    (0.0, -POINT - GAP, "center", "top"),
    (POINT, POINT, "left", "bottom"),
    (POINT, -POINT, "left", "top"),
    (-POINT, POINT, "right", "bottom"),
    (-POINT, -POINT, "right", "top"),
)


def name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write the names of points (x, y, name) beside them, so that none covers a point, another name or an axis; a name
    without room is left to the legend. The figure has been laid out."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    scale = figure.dpi / 72  # pixels of a point
    pixels = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_extents(x, y, x, y).padded(POINT * scale) for x, y in pixels]
    inside = axes.get_window_extent()
    for (x, y, name), (left, bottom) in zip(points, pixels, strict=True):
        text = cut(name, LETTERS)
        for place, box in boxes(text, left, bottom, scale):
            if inside.count_contains(box.corners()) == 4 and not box.count_overlaps(taken):
                write(axes, text, (x, y), place)
                taken.append(box)
                break


def boxes(text: str, x: float, y: float, scale: float) -> Iterator[tuple[Place, Bbox]]:
    """Yield the places of a name beside the pixel (x, y), and the pixels that it would cover there."""
    width, height = scale * SIZE * LETTER * len(text), scale * SIZE * HEIGHT
    for place in PLACES:
        right, up, across, along = place
        left = x + scale * right - width * {"left": 0, "center": 0.5, "right": 1}[across]
        bottom = y + scale * up - height * {"bottom": 0, "center": 0.5, "top": 1}[along]
        yield place, Bbox.from_bounds(left, bottom, width, height)


def write(axes: Axes, text: str, point: tuple[float, float], place: Place) -> None:
    """Write a name at a place beside a point."""
    right, up, across, along = place
    note = axes.annotate(
        text, point, (right, up), textcoords="offset points", ha=across, va=along, fontsize=SIZE, color="#333333"
    )
    note.set_in_layout(False)
    note.set_path_effects([withStroke(linewidth=2.5, foreground=axes.get_facecolor())])  # over the lines of references
