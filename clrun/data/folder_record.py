"""What is known of a folder of pictures that was read."""

from typing import NamedTuple

from clrun.data.decoding import Whites


class ClassRecord(NamedTuple):
    """The pictures of a class in one part."""

    part: str  # train or test
    name: str  # of the class; "<domain>/<class>" where there are domains
    pictures: int  # number of pictures
    digest: str  # of their bytes: 16 hexadecimal digits


class FolderRecord(NamedTuple):
    """What is known of a folder of images that was read."""

    classes: tuple[ClassRecord, ...]
    pillow_version: str  # which decoded the pictures
    whites: Whites | None  # what became white in pictures of more than 8 bits; None where there are none
