"""Networks as functions of a flat theta: the public names are those below."""

from clrun.models.cnn import CNN
from clrun.models.layout import Layout
from clrun.models.mlp import MLP
from clrun.models.network import Net, Network, SplitTheta, Statistics, Tap, Weights, initialize_network, no_tap
from clrun.models.resnet import ResNet18

__all__ = [
    "CNN",
    "MLP",
    "Layout",
    "Net",
    "Network",
    "ResNet18",
    "SplitTheta",
    "Statistics",
    "Tap",
    "Weights",
    "initialize_network",
    "no_tap",
]
