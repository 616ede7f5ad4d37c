"""What was learnt from the training rows about a column of a table. It is kept with a run, for new rows."""

from typing import NamedTuple


class ColumnRule(NamedTuple):
    """How a column becomes numbers."""

    name: str
    kind: str  # "number", "bool" or "category"
    mean: float = 0.0  # of the training rows; not of categories
    deviation: float = 1.0  # of the training rows; 0 where they have one value, and 1 for booleans, which stay
    categories: tuple[str | None, ...] = ()  # of the training rows; None: where the value is missing

    @property
    def inputs(self) -> int:
        """The number of inputs of the network that the column becomes."""
        return len(self.categories) if self.kind == "category" else 1
