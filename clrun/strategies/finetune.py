"""Plain training on one task after another: L(theta) = L_t(theta). The lower bound."""

from clrun.strategy import Strategy


class Finetune(Strategy):
    """Nothing is remembered."""
