"""Fine-tuning: plain training on one task after another, L(theta) = L_t(theta). It is the usual lower bound."""

from clrun.strategy import Strategy


class Finetune(Strategy):
    """Fine-tuning, which is what `Strategy` does by default. It has no state."""
