"""misjudged.png of a run: test pictures that were taken for another class, a small one for each pair of classes.

`confusion_over_tasks.csv` names a test sample for each pair. The file shows those of the pairs that occur most, side by
side, SIDE_BY_SIDE in a row. Their sample numbers are in the text `samples` of the PNG, in the order of reading, and the
height and the width of one picture in the text `tile`. A report copies pictures from there, since it loads no data set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clrun.system.arithmetic import ceil_div
from clrun.system.atomic_files import UNGUARDED, Guard, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "misjudged.png"

MOST = 100  # pictures in the file of a run
SIDE = 48  # pixels of the longer side of a picture, at most
SIDE_BY_SIDE = 10  # pictures


def chosen(confusions: np.ndarray, most: int = MOST) -> list[int]:
    """Return the numbers of at most so many samples that were misjudged: those of the pairs that occur most, after the
    last task before those after earlier ones. confusions: (K, 6), as of `Outcome.confusions`."""
    wrong = confusions[confusions[:, 2] != confusions[:, 3]]
    last = confusions[:, 0].max(initial=0)
    order = np.lexsort([-wrong[:, 4], wrong[:, 0] != last])
    return list(dict.fromkeys(wrong[order, 5].tolist()))[:most]


def are_pictures(samples: np.ndarray) -> bool:
    """Return whether samples (N, ...) are pictures that can be shown: (N, C, H, W) uint8, grey or of three colours."""
    return samples.dtype == np.uint8 and samples.ndim == 4 and samples.shape[1] in (1, 3)


def write(path: Path, samples: Sequence[int], pictures: np.ndarray, guard: Guard = UNGUARDED) -> None:
    """Write the file of these samples, whose pictures are (K, C, H, W) uint8, all or nothing. guard: as of
    `clrun.system.atomic_files.replacing`. Raise OSError."""
    from PIL import PngImagePlugin

    tiles = small(pictures)
    text = PngImagePlugin.PngInfo()
    text.add_text("samples", " ".join(map(str, samples)))
    text.add_text("tile", " ".join(map(str, tiles.shape[1:3])))
    with replacing(path, guard) as temporary:
        sheet(tiles, SIDE_BY_SIDE).save(temporary, format="png", pnginfo=text)


def read(path: Path) -> Mapping[int, np.ndarray]:
    """Return the pictures (H, W, C) uint8 of the file of a run by their samples. Raise OSError or ValueError where it
    is not such a file."""
    from PIL import Image

    with Image.open(path) as file:
        if "samples" not in file.info or "tile" not in file.info:
            raise ValueError(f"{path} does not say which samples it shows")
        height, width = map(int, file.info["tile"].split())
        samples = [int(sample) for sample in file.info["samples"].split()]
        pixels = np.asarray(file)
    whole = pixels.reshape(*pixels.shape[:2], -1)
    places = [(height * row, width * column) for row, column in (divmod(k, SIDE_BY_SIDE) for k in range(len(samples)))]
    return {s: whole[y : y + height, x : x + width] for s, (y, x) in zip(samples, places, strict=True)}


def small(pictures: np.ndarray) -> np.ndarray:
    """Return pictures (K, C, H, W) as (K, H', W', C), whose longer side has at most SIDE pixels."""
    from PIL import Image

    last = pictures.transpose(0, 2, 3, 1)
    height, width = last.shape[1:3]
    if max(height, width) <= SIDE:
        return last
    ratio = SIDE / max(height, width)
    size = max(1, round(ratio * width)), max(1, round(ratio * height))
    images = [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in last]
    return np.stack([np.asarray(one.resize(size, Image.Resampling.BOX)).reshape(*size[::-1], -1) for one in images])


def sheet(tiles: np.ndarray, columns: int) -> "Image":
    """Return pictures (K, H, W, C) as one, so many side by side; places that are left over are black."""
    from PIL.Image import fromarray

    count, height, width, channels = tiles.shape
    rows = ceil_div(count, columns)
    whole = np.zeros((rows * columns, height, width, channels), np.uint8)
    whole[:count] = tiles
    whole = whole.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = whole.reshape(rows * height, columns * width, channels)
    return fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
