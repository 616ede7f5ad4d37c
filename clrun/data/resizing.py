"""Blocks of pictures at another size, or with another number of channels."""

import numpy as np

# Weights of red, green and blue in a grey pixel (ITU-R BT.601, as in Pillow), in 2**16-ths.
GREY_WEIGHTS = (19595, 38470, 7471)


def resized(x: np.ndarray, size: int) -> np.ndarray:
    """Return pictures (N, C, H, W) uint8 of 1 or 3 channels as (N, C, size, size): resized by the shorter side, and
    cropped, as pictures of a folder are."""
    from PIL import Image, ImageOps

    if x.shape[2:] == (size, size):
        return x
    channels = x.shape[1]
    made = np.empty((len(x), channels, size, size), np.uint8)
    for row, pixels in enumerate(x):
        image = Image.fromarray(pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        fitted = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
        made[row] = fitted[None] if channels == 1 else fitted.transpose(2, 0, 1)
    return made


def with_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """Return pictures (N, 1 or 3, H, W) uint8 as (N, channels, H, W): grey ones get three equal channels, and coloured
    ones become grey by brightness."""
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return np.repeat(x, 3, axis=1)
    red, green, blue = (x[:, k].astype(np.uint32) * weight for k, weight in enumerate(GREY_WEIGHTS))
    return ((red + green + blue + 2**15) >> 16).astype(np.uint8)[:, None]
