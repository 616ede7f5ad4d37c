"""clrun-report --format, --width and --style: files of the format, fonts in them, texts within the width."""

import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from results_by_hand import by_hand

from clrun.report import figures, paper_figures
from clrun.report.intervals import Statistic
from clrun.report.paper_figures import Look, columns_of, look
from clrun.report.rows import rows_of, streams
from clrun.report.runs import completed, with_derived
from clrun.results import plots
from clrun.system.errors import UsageError


def rows():
    return rows_of(with_derived(completed(by_hand())))


def drawn(tmp_path, wanted):
    part = streams(rows())[0]
    return figures.figures(figures.figure_data(tmp_path, part, wanted))


def test_the_plots_are_of_the_format_and_others_go(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "average_accuracy.png").touch()
    figures.draw(tmp_path, rows(), Look("pdf", 3.3))
    written = [path.name for path in tmp_path.rglob("*.*") if path.is_file()]
    assert written and {name.rpartition(".")[2] for name in written} == {"pdf"}


def test_fonts_are_in_a_pdf_and_letters_are_paths_in_an_svg_and_both_are_the_same_each_time(tmp_path):
    for form, has, lacks in (("pdf", rb"/FontFile2", rb"/Type3|CreationDate"), ("svg", rb"<path", rb"<text|dc:date")):
        texts = []
        for name in "ab":
            (figure,) = drawn(tmp_path, Look(form, 3.3)).values()
            plots.save(figure, tmp_path / f"{name}.{form}")
            texts.append((tmp_path / f"{name}.{form}").read_bytes())
        assert texts[0] == texts[1] and re.search(has, texts[0]) and not re.search(lacks, texts[0])


def test_all_texts_are_within_a_column_and_readable(tmp_path):
    (figure,) = drawn(tmp_path, Look("pdf", 3.3)).values()
    assert figure.get_figwidth() == 3.3 and figure.get_suptitle() == ""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert box.y1 < min(axes.get_window_extent().y0 for axes in figure.axes)
    texts = [*legend.get_texts(), *(label for axes in figure.axes for label in axes.get_xticklabels())]
    assert {text.get_fontsize() for text in texts} == {7.0}
    usual = drawn(tmp_path, figures.PLAIN)["accuracy_against_cost"]
    assert usual.get_figwidth() > 6 and usual.get_suptitle()


def test_a_legend_has_as_many_columns_as_fit():
    assert columns_of(["ewc lambda=10000 (n=3)"] * 9, 3.3) == 2
    assert columns_of(["si", "ewc"], 3.3) == 2 and columns_of(["x" * 90], 3.3) == 1


def test_a_style_overrides_colours_and_sizes(tmp_path):
    path = tmp_path / "my.mplstyle"
    path.write_text("axes.prop_cycle: cycler('color', ['112233', '445566'])\nlegend.fontsize: 5\n")
    wanted = look("pdf", 3.3, path)
    assert wanted.palette == ["#112233", "#445566"] and look("pdf", 3.3, None).palette == plots.PALETTE
    (figure,) = drawn(tmp_path, wanted).values()
    assert {text.get_fontsize() for text in figure.legends[0].get_texts()} == {5.0}


@pytest.mark.parametrize(
    "content, reason",
    [(None, "No such file"), ("font.size: large\n", "font.size"), ("\xff", "codec|decode")],
)
def test_a_wrong_style_is_refused(tmp_path, content, reason):
    path = tmp_path / "my.mplstyle"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=reason):
        look("png", None, path)


@pytest.mark.parametrize("width", [0, 1.9, 41])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(UsageError, match=r"such as 3\.3 for one column"):
        paper_figures.look("png", width, None)


def test_an_axis_of_powers_has_numbers_and_no_formulas(tmp_path):
    figure, axes = plots.canvas(4, 3)
    figures.stretch(axes, figures.np.array([1.0, 1e4]))
    axes.plot([1, 1e4], [0, 1])
    plots.save(figure, tmp_path / "a.png")
    labels = [label.get_text() for label in axes.get_xticklabels(which="both")]
    assert "100" in labels and not [label for label in labels if "$" in label]


def test_hundreds_of_tasks_have_numbers_apart_and_few_markers():
    """Numbers below a small heat map of 800 tasks do not touch; a curve of 800 points has 40 markers."""
    figure = Figure(figsize=(3.4, 3), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    figures.small_heat_map(axes, np.zeros((801, 800)))
    canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(100 * i) for i in range(1, 9)]
    assert all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))
    points = [Statistic(2, 0.5, 0.0, 0.4, 0.6)] * 800
    figures.draw_band(axes, range(1, 801), points, "ewc", figures.curve_style(0), scale=100)
    assert axes.lines[0].get_markevery() == 20
