"""What is known of the frozen network whose features a data set has in place of pictures."""

from typing import NamedTuple


class FeatureRecord(NamedTuple):
    """From which pictures features were made, and by which weights."""

    shape: tuple[int, ...]  # (C, H, W) of a picture, before it is resized for the network
    weights: str  # digest of all weights of the network: hexadecimal digits
    file: str | None  # the file that the weights were read from, as an absolute path; None for other weights
