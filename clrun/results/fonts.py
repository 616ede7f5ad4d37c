"""Fonts for the texts of a figure: Matplotlib's own lacks Chinese, Japanese, Korean and many other characters."""

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

# Parts of the names of fonts whose glyphs are boxes or sizes of mathematical signs, and no letters.
NO_LETTERS = ("Last Resort", "NonUni", "SizeOne", "SizeTwo", "SizeThree", "SizeFour", "SizeFive")


def choose(figure: Figure) -> str:
    """Give every text of a figure fonts, of those installed, that have its characters. Return the characters that none
    has."""
    missing: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)  # by the filter of findobj
        lacking = without_glyph(font_manager.findfont(text.get_fontproperties()), text.get_text())
        if lacking:
            families, left = covering(lacking)
            text.set_fontfamily([*text.get_fontfamily(), *families])
            missing |= set(left)
    return "".join(sorted(missing))


def without_glyph(path: str, text: str) -> str:
    """Return the characters of a text, each once, that the font of a file does not have."""
    return "".join(sorted({letter for letter in text if letter.isprintable() and ord(letter) not in letters(path)}))


@cache
def letters(path: str) -> frozenset[int]:
    """Return the code points that the font of a file has."""
    return frozenset(font_manager.get_font(path).get_charmap())


def covering(characters: str) -> tuple[tuple[str, ...], str]:
    """Return the names of installed fonts that have these characters between them, as few as a greedy search finds, and
    the characters that none has."""
    families: list[str] = []
    left = set(map(ord, characters))
    fonts = {path: name for name, path in installed()}
    while left:
        best = max(fonts, key=lambda path: len(left & letters(path)), default=None)
        if best is None or not left & letters(best):
            break
        families.append(fonts[best])
        left -= letters(best)
    return tuple(families), "".join(map(chr, sorted(left)))


def installed() -> Sequence[tuple[str, str]]:
    """Return the names and files of the upright fonts of this machine, those without serifs first."""
    fonts = {
        (font.name, font.fname)
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and not any(part in font.name for part in NO_LETTERS)
    }
    return sorted(fonts, key=lambda font: ("Sans" not in font[0], *font))
