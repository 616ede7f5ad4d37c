"""One picture file becomes one block of pixels: what is read, what is mended, and what 8 bits mean.

The kind of a file is decided by its content, among `FORMATS` alone: Pillow would hand PostScript to Ghostscript.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clrun.system.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

# Changed with what `decode` does to a picture: part of a folder's identity and of the names of cache files.
RULE = 2

# Pillow's names of the kinds of files that are read; TGA, which has no mark of its own, where the name says so.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jfif", ".jpe", ".avif", ".jp2", ".tga", ".dib",
)  # fmt: skip

# Chunks of a PNG file without which its pixels cannot be read as they are meant, and how it is to be turned.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")

PNG_START, JPEG_START, JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd9"

# Bytes that a JPEG file may be continued with; where pixels depend on them, rows are missing.
CONTINUATIONS = (b"", b"\x55" * 4096, b"\xa9" * 4096)

# Exceptions of Pillow at damaged metadata that say how a picture is to be turned.
METADATA_ERRORS = (SyntaxError, struct.error, ValueError, KeyError, TypeError, IndexError, OSError, AttributeError)


class Deep(NamedTuple):
    """The range of a picture of more than 8 bits, which can be decoded when it is known which value is white."""

    brightest: float
    floating: bool  # whether the values are floating-point numbers


class Whites(NamedTuple):
    """The values that become 255 in pictures of more than 8 bits: of whole numbers, and of floating-point numbers."""

    whole: float
    floating: float

    def of(self, floating: bool) -> float:
        """Return the value that becomes 255."""
        return self.floating if floating else self.whole


class BrokenPicture(Exception):
    """A picture that cannot be used; the text is the reason."""


def decode(path: str, size: int, whites: Whites | None = None) -> np.ndarray:
    """Return one picture as (3, size, size) uint8. Raise UsageError, which names the file.

    whites: what becomes white in a picture of more than 8 bits; None: the largest value of its own bits.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        pixels = decode_bytes(data, path, size, whites)
        if isinstance(pixels, Deep):
            white = white_of([pixels.brightest], pixels.floating)
            pixels = decode_bytes(data, path, size, Whites(white, white))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except (OSError, BrokenPicture) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} is a broken picture ({reason}): mend it, or name another one.") from error
    assert isinstance(pixels, np.ndarray)  # with whites, no picture is put off
    return pixels


def decode_bytes(data: bytes, path: str, size: int, whites: Whites | None) -> np.ndarray | Deep:
    """Return the picture in a file as (3, size, size) uint8, or its range where it has more than 8 bits and `whites`
    is None. Raise BrokenPicture.

    It is turned upright, put on white where it is transparent, resized by its shorter side, and cropped. A file whose
    pixels are all there is read though its metadata or its end are damaged.
    """
    from PIL import Image

    try:
        try:
            return _pixels(data, path, size, whites)
        except (OSError, SyntaxError, ValueError):
            mended = _mended(data)
            if mended is None:
                raise
            return _pixels(mended, path, size, whites)
    except Image.DecompressionBombError as error:
        raise BrokenPicture(f"it is too huge a picture: {error}") from error
    except Exception as error:  # damaged files make decoders raise nearly anything
        text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the file", str(error))
        raise BrokenPicture(f"{type(error).__name__}: {text}") from error


def white_of(brightest: list[float], floating: bool) -> float:
    """Return the value that becomes 255: the largest value of as many bits as the brightest picture needs, such as
    4095. For floating-point numbers that do not exceed 1 it is 1."""
    highest = max(brightest, default=1.0)
    if floating and highest <= 1:
        return 1.0
    return float(2 ** max(1, int(np.ceil(highest)).bit_length()) - 1)


def _pixels(data: bytes, path: str, size: int, whites: Whites | None) -> np.ndarray | Deep:
    """Return the picture in a file, or its range, as `decode_bytes` does; raise whatever Pillow raises."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=_formats(path)) as image:
        image.draft(None, (2 * size, 2 * size))  # a JPEG can be decoded at an eighth of its size, much faster
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(_upright(image))
            deep = _range(values)
            if whites is None:
                return deep
            upright = Image.fromarray(_eight_bits(values, whites.of(deep.floating))).convert("RGB")
        else:
            upright = rgb(_upright(image))
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _formats(path: str) -> tuple[str, ...]:
    return (*FORMATS, "TGA") if path.lower().endswith(".tga") else FORMATS


def _upright(image: Image) -> Image:
    """Return an image turned as its metadata say; as it is where these are damaged."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except METADATA_ERRORS:
        return image


def _range(values: np.ndarray) -> Deep:
    """Return the range of a picture of more than 8 bits. Raise ValueError for values that have no brightness."""
    if not np.isfinite(values).all():
        raise ValueError("some of its values are not finite")
    if values.min() < 0:
        raise ValueError("some of its values are negative; save it with values from 0")
    return Deep(float(values.max()), values.dtype.kind == "f")


def _eight_bits(values: np.ndarray, white: float) -> np.ndarray:
    """Return values from 0 to `white` as values from 0 to 255; larger ones become 255."""
    return np.rint(np.minimum(values * (255 / white), 255)).astype(np.uint8)


def rgb(image: Image) -> Image:
    """Return an image of 8 bits as RGB, transparency on white."""
    from PIL import Image

    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


# ---------------------------------------------------------------- files whose pixels are whole


def _mended(data: bytes) -> bytes | None:
    """Return a PNG or JPEG file without damaged metadata and with its end; None where its pixels are not all there."""
    if data.startswith(PNG_START):
        return _mended_png(data)
    if data.startswith(JPEG_START) and not data.rstrip(b"\0").endswith(JPEG_END):
        return _mended_jpeg(data)
    return None


def _mended_png(data: bytes) -> bytes | None:
    """Return a PNG file of the chunks that hold its pixels, checksums unchanged; None where none can be found."""
    kept, at = [], len(PNG_START)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at : at + 12 + length]
        whole = len(chunk) == 12 + length and struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]
        if kind in PNG_CHUNKS and whole and kind != b"IEND":
            kept.append(chunk)
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            return None
        at += 12 + length
    end = b"IEND"
    return PNG_START + b"".join(kept) + struct.pack(">I4sI", 0, end, zlib.crc32(end)) if kept else None


def _mended_jpeg(data: bytes) -> bytes | None:
    """Return a JPEG file with the mark of its end; None where its pixels depend on what follows.

    libjpeg makes up what is missing, without an error. So the file is continued in several ways: where all give the
    same pixels, nothing was missing.
    """
    from PIL import Image

    body = data.removesuffix(b"\xff")
    pixels = set()
    for more in CONTINUATIONS:
        with Image.open(io.BytesIO(body + more + JPEG_END), formats=["JPEG"]) as image:
            pixels.add(image.tobytes())
    return body + JPEG_END if len(pixels) == 1 else None
