"""Networks as functions of one flat vector of parameters, theta; the public names are those below."""

from clrun.models.batch_norm import (
    BatchNormMode,
    BatchNormRecord,
    RunningStatistics,
    batch_norm,
    updated_statistics,
)
from clrun.models.cnn import CNN
from clrun.models.layout import Layout
from clrun.models.linear import Linear
from clrun.models.mlp import MLP
from clrun.models.network import (
    Net,
    Network,
    SplitTheta,
    Tap,
    Weights,
    Window,
    identity_tap,
    initialize_network,
    normalises_one_sample,
)
from clrun.models.resnet import ResNet18

Statistics = RunningStatistics  # the former name, which goes away in the next release

__all__ = [
    "CNN",
    "MLP",
    "BatchNormMode",
    "BatchNormRecord",
    "Layout",
    "Linear",
    "Net",
    "Network",
    "ResNet18",
    "RunningStatistics",
    "SplitTheta",
    "Statistics",
    "Tap",
    "Weights",
    "Window",
    "batch_norm",
    "identity_tap",
    "initialize_network",
    "normalises_one_sample",
    "updated_statistics",
]
