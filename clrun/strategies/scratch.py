"""A fresh network for all tasks so far: L(theta) = sum_{k<=t} L_k(theta), from new initial weights. Keeps all data."""

from typing import ClassVar

from clrun.strategies.cumulative import Cumulative


class Scratch(Cumulative):
    """The t-th stage costs t times the first, and throws away what was learnt before."""

    restart: ClassVar[bool] = True
