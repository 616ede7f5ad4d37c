"""The data set `alphabets`: characters of many scripts, drawn from the DejaVu fonts that matplotlib brings along.

A class is a character and a domain is a script, as in Omniglot (Lake et al. 2015). A picture is the character in one of
several faces (upright, bold, slanted, with serifs, ...), turned, sheared, scaled and moved a little. Everything is
drawn from fixed seeds, one for each character and part: the pictures of a character are the same whichever others
are there, and those of `samples=20` are the first ones of `samples=40`.
"""

import difflib
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clrun.data.samples import Arrays
from clrun.system.errors import UsageError
from clrun.system.machine import refuse_if_too_large

# Code points, first and last. Unassigned ones, marks and what a face lacks are left out.
SCRIPTS = {
    "latin": [(0x41, 0x5A), (0x61, 0x7A)],
    "greek": [(0x391, 0x3A9), (0x3B1, 0x3C9)],
    "cyrillic": [(0x410, 0x44F)],
    "armenian": [(0x531, 0x556), (0x561, 0x586)],
    "georgian": [(0x10D0, 0x10F6)],
    "hebrew": [(0x5D0, 0x5EA)],
    "arabic": [(0x621, 0x64A)],  # the isolated forms
    "lao": [(0xE81, 0xEAE)],
    "tifinagh": [(0x2D30, 0x2D67)],
    "nko": [(0x7CA, 0x7EA)],
    "canadian": [(0x1401, 0x166C)],  # syllabics
}

# Faces, the plain one first. A script is drawn in those that have all the characters that the plain one has of it.
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
)  # fmt: skip

SIZE = 28  # pixels of a picture's side
FINER = 2  # a picture is drawn this many times finer, and then reduced
HEIGHT = 20  # pixels of the font
WIDEST = 24  # pixels of a character's longer side; a larger one is drawn smaller

# The largest change, drawn uniformly on both sides of none.
TURN = 10 * math.pi / 180  # radians
SHEAR = 0.15  # of the height
SCALE = 0.12  # of the size
MOVE = 2.0  # pixels


class Script(NamedTuple):
    """What is drawn of a script."""

    name: str
    characters: str
    faces: tuple[str, ...]


def read(scripts: Sequence[str], characters: int, samples: int, test_samples: int) -> Arrays:
    """Return the pictures (N, 1, 28, 28) uint8, script after script and character after character.

    Raise UsageError for an unknown or repeated script, and for one with fewer characters.
    """
    refuse_scripts(scripts)
    count = len(scripts) * characters * (samples + test_samples)
    keys = f"dataset.samples={samples} and dataset.test_samples={test_samples}"
    refuse_if_too_large(count * SIZE * SIZE, f"{keys} ({count} pictures)", "smaller ones")
    chosen = chosen_characters(scripts, characters)
    classes = [(number, script, character) for number, script in enumerate(chosen) for character in script.characters]
    blocks, labels, domains = [], [], []
    for part, number_of_pictures in enumerate((samples, test_samples)):
        for label, (domain, script, character) in enumerate(classes):
            blocks.append(pictures(character, script.faces, number_of_pictures, part))
            labels += [label] * number_of_pictures
            domains += [domain] * number_of_pictures
    names = [class_name(script.name, character) for _, script, character in classes]
    x, y, domain_numbers = np.concatenate(blocks)[:, None], np.array(labels), np.array(domains)
    return Arrays(x, y.astype(np.int64), len(classes) * samples, names, domain_numbers.astype(np.int64), list(scripts))


# ---------------------------------------------------------------- which characters


def refuse_scripts(scripts: Sequence[str]) -> None:
    """Raise UsageError for no script, an unknown one, and one that is named twice."""
    known = ", ".join(SCRIPTS)
    if not scripts:
        raise UsageError(f"dataset.scripts=[] names no script; name some of {known}.")
    for k, name in enumerate(scripts):
        if name not in SCRIPTS:
            near = difflib.get_close_matches(name.lower(), SCRIPTS, 1)
            meant = f"; did you mean {near[0]}? " if near else ". "
            raise UsageError(f"dataset.scripts: there is no script {name}{meant}The scripts are {known}.")
        if name in scripts[:k]:
            raise UsageError(f"dataset.scripts names {name} twice; name it once.")


def chosen_characters(scripts: Sequence[str], characters: int) -> list[Script]:
    """Return the first characters of each script, without those that look as one before, as of an earlier script.

    Two characters look the same where their pictures in the plain face are equal, as those of Latin A, Greek Alpha and
    Cyrillic A. Raise UsageError where a script has fewer than `characters`.
    """
    seen: set[bytes] = set()
    chosen = []
    for name in scripts:
        script = whole_script(name)
        own = []
        for character in script.characters:
            look = plain(character, FACES[0]).tobytes()
            own += [character] if look not in seen else []
            seen.add(look)
        if len(own) < characters:
            left_out = len(script.characters) - len(own)
            besides = f", beside {left_out} that look as one before them" if left_out else ""
            raise UsageError(
                f"dataset.characters={characters}: {name} has {len(own)} characters{besides}; type "
                f"dataset.characters={len(own)} or less, or leave {name} out of dataset.scripts."
            )
        chosen.append(script._replace(characters="".join(own[:characters])))
    return chosen


@cache
def whole_script(name: str) -> Script:
    """Return all letters of a script that the plain face has, and the faces that have all of them."""
    has = {face: code_points(face) for face in FACES}
    codes = [code for first, last in SCRIPTS[name] for code in range(first, last + 1)]
    letters = [code for code in codes if code in has[FACES[0]] and unicodedata.category(chr(code)).startswith("L")]
    faces = tuple(face for face in FACES if has[face].issuperset(letters))
    return Script(name, "".join(map(chr, letters)), faces)


def class_name(script: str, character: str) -> str:
    """Return the name of a character in Unicode as a word that can be typed: "greek_capital_alpha", "lao_ko"."""
    words = re.findall(r"[a-z0-9]+", unicodedata.name(character).lower())
    return "_".join([script, *(word for word in words if word not in (script, "letter", "syllabics"))])


# ---------------------------------------------------------------- drawing


def font_file(face: str) -> Path:
    """Return the file of a face. Raise UsageError where matplotlib was installed without it."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise UsageError(
            f"dataset=alphabets draws with {path}, which is not there; install matplotlib with its fonts: "
            "pip install --force-reinstall matplotlib."
        )
    return path


@cache
def code_points(face: str) -> frozenset[int]:
    """Return the code points of which a face has a glyph."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_file(face))).get_charmap())


@cache
def font(face: str, pixels: float) -> ImageFont.FreeTypeFont:
    """Return a face at a size; the layout does not depend on the libraries that Pillow was built with."""
    return ImageFont.truetype(str(font_file(face)), pixels, layout_engine=ImageFont.Layout.BASIC)


def plain(character: str, face: str) -> Image.Image:
    """Return a character without changes, white on black, its box in the middle of 56 x 56 grey pixels."""
    side, height = SIZE * FINER, float(HEIGHT * FINER)
    left, top, right, bottom = font(face, height).getbbox(character)
    longest = max(right - left, bottom - top)
    if longest > WIDEST * FINER:
        height = math.floor(height * WIDEST * FINER / longest)
        left, top, right, bottom = font(face, height).getbbox(character)
    image = Image.new("L", (side, side))
    corner = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font(face, height))
    return image


def pictures(character: str, faces: Sequence[str], count: int, part: int) -> np.ndarray:
    """Return (count, 28, 28) uint8 of a character, its faces taking turns. part: 0 for training, 1 for testing."""
    random = np.random.RandomState(2 * ord(character) + part)  # not default_rng, whose stream may change
    drawn = random.uniform(-1, 1, (count, 5))
    originals = [plain(character, face) for face in faces]
    changed = [originals[k % len(faces)] for k in range(count)]
    return np.stack([np.asarray(shaken(image, row)) for image, row in zip(changed, drawn, strict=True)])


def shaken(image: Image.Image, drawn: np.ndarray) -> Image.Image:
    """Return a picture of 28 x 28 pixels, turned, scaled, sheared and moved by numbers (5,) between -1 and 1."""
    turn, scale, shear = drawn[0] * TURN, 1 + drawn[1] * SCALE, drawn[2] * SHEAR
    right, down = drawn[3:] * MOVE * FINER
    # From a place in the result to one in the original: the inverse of what is done to the picture.
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    matrix = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, shear], [0, 1]])
    middle = np.full(2, SIZE * FINER / 2)
    a, b = matrix
    offset = middle - matrix @ (middle + np.array([right, down]))
    affine = (a[0], a[1], offset[0], b[0], b[1], offset[1])
    moved = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return moved.reduce(FINER)
