"""What a function of the user's returns as a data set, in place of a file: `Parts`, in twelve lines.

    from clrun.data import Parts

    def load(file):
        ...
        return Parts(x_train, y_train, x_test, y_test, names=["walk", "run"])

NumPy is not imported here: Tab completion, which imports this package, need not wait for it.
"""

from typing import Any, NamedTuple


class Parts(NamedTuple):
    """The training part and the test part of a data set, as NumPy arrays, lists or tensors on the CPU.

    The same names are those of the arrays in a file of `dataset=arrays`.
    """

    x_train: Any  # (n, C, H, W) or (n, H, W) uint8 pictures; or numbers (n, ...): features, series, maps
    y_train: Any  # (n,) whole numbers: the class of each sample, from 0
    x_test: Any  # like x_train, of other samples
    y_test: Any
    names: Any = None  # the names of the classes, in the order of their numbers (None: the numbers)
    task_train: Any = None  # (n,) numbers or names: the task or domain of each sample, where there are such
    task_test: Any = None
