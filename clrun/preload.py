"""What a worker needs, for the process that workers are forked from: to be imported there, and nowhere else.

Nothing of this is garbage, so Python looks for none meanwhile.
"""

from clrun.garbage import look_seldom

look_seldom()

from clrun import plots, run  # noqa: E402

__all__ = ["plots", "run"]
