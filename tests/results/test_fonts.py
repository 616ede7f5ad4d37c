"""Texts of figures in any writing: a font that has the characters is taken, or one sentence says that there is none."""

import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from clrun.results import fonts, plots

LETTER, NOWHERE = "猫", "\U0001e7f5"  # a code point that is assigned to no character


@pytest.fixture
def font_with_the_letter(tmp_path):
    """A font of one letter, a square, that Matplotlib knows of during the test."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for move, point in [("moveTo", (0, 0)), ("lineTo", (0, 900)), ("lineTo", (900, 900)), ("lineTo", (900, 0))]:
        getattr(pen, move)(point)
    pen.closePath()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "letter"])
    made.setupCharacterMap({ord(LETTER): "letter"})
    made.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "letter": pen.glyph()})
    made.setupHorizontalMetrics({".notdef": (1000, 0), "letter": (1000, 0)})
    made.setupHorizontalHeader(ascent=900, descent=-100)
    made.setupNameTable({"familyName": "Of the test", "styleName": "Regular"})
    made.setupOS2(), made.setupPost()
    made.save(tmp_path / "letter.ttf")
    font_manager.fontManager.addfont(tmp_path / "letter.ttf")
    yield "Of the test"
    font_manager.fontManager.ttflist = [f for f in font_manager.fontManager.ttflist if f.name != "Of the test"]


def titled(text: str):
    figure, axes = plots.canvas(2, 1)
    axes.plot([0, 1], [0, 1], label=text)
    axes.set_title(text)
    axes.legend()
    return figure


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_font_that_has_the_letter_is_taken(tmp_path, font_with_the_letter, no_warning):
    figure = titled(f"a {LETTER}")
    assert plots.save(figure, tmp_path / "a.png") == ""
    assert font_with_the_letter in figure.axes[0].title.get_fontfamily()
    assert plots.save(titled("a " + NOWHERE), tmp_path / "b.png") == NOWHERE  # that letter alone
    taken, box = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert (taken != box).any()


def test_a_letter_that_no_font_has_is_no_warning(tmp_path, no_warning):
    assert plots.save(titled(NOWHERE), tmp_path / "a.png") == NOWHERE
    assert plots.save(titled("plain, Müller, ± µ"), tmp_path / "b.png") == ""


def test_boxes_are_no_letters():
    """Matplotlib comes with a font of last resort, which has a box for every character."""
    assert not any("Last Resort" in name for name, _ in fonts.installed())
