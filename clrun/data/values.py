"""The type of what data is made from: the values of a run's keys."""

from typing import Any, Protocol


class Values(Protocol):
    """Something that returns the value of a key, such as `values["dataset.pad"]`: a run's Settings, or a dictionary."""

    def __getitem__(self, key: str, /) -> Any: ...

    def get(self, key: str, default: Any, /) -> Any: ...
