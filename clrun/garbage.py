"""Python's search for garbage: imports and tables make many objects and no garbage, so it looks seldom.

With Python's own threshold an eighth of a short run is spent on looking.
"""

import atexit
import gc

OBJECTS = 100_000  # between two searches


def look_seldom() -> None:
    """From here on, and not on the way out."""
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)
