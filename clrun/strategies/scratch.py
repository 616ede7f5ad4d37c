"""Training from scratch on all tasks so far: L(theta) = sum_{k<=t} L_k(theta), from new initial parameters.

It keeps all data.
"""

from typing import ClassVar

from clrun.strategies.cumulative import Cumulative


class Scratch(Cumulative):
    """Training from scratch. Stage t costs t times the first and discards what was learnt before. It has no state."""

    restart: ClassVar[bool] = True
