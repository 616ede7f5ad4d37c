"""The space of a search: for each key an interval or a list of values, in Hydra's grammar. No torch, no optuna."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clrun.config.catalog import GROUPS, Catalog, KeySpec
from clrun.config.check_keys import parsed, refuse_key
from clrun.system.errors import UsageError
from clrun.system.text import format_value

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

# A number as it is typed.
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"

# Significant digits of a number that is drawn from an interval, so that it can be typed and read.
DIGITS = 4


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`, drawn evenly or, with `log`, evenly in their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def size(self) -> float:
        """The number of values."""
        return self.high - self.low + 1 if self.whole else math.inf

    @property
    def ends(self) -> list[str]:
        """The smallest and the largest value, as they are typed."""
        return [self.typed(self.low), self.typed(self.high)]

    def distribution(self) -> "BaseDistribution":
        """Return the interval as a distribution of optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def typed(self, value: float) -> str:
        """Return a value of the distribution as it is typed."""
        if not (self.whole or value in (self.low, self.high)):
            value = min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)
        text = format_value(value)
        return text if self.low <= float(text) <= self.high else repr(value)  # an end with more digits than are shown

    def values(self) -> Iterable[float]:
        """Return every value of the distribution, if they are whole numbers."""
        return range(int(self.low), int(self.high) + 1)


@dataclass(frozen=True)
class Listed:
    """Some values as they are typed."""

    texts: tuple[str, ...]
    ordered: bool  # whether they are numbers in ascending order, of which neighbours are alike

    @property
    def size(self) -> float:
        """The number of values."""
        return len(self.texts)

    @property
    def ends(self) -> list[str]:
        """All values, since any of them may be impossible."""
        return list(self.texts)

    def distribution(self) -> "BaseDistribution":
        """Return the list as a distribution of optuna: of its indices if it is ordered, else of its values."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return IntDistribution(0, len(self.texts) - 1) if self.ordered else CategoricalDistribution(self.texts)

    def typed(self, value: int | str) -> str:
        """Return a value of the distribution as it is typed."""
        return self.texts[value] if isinstance(value, int) else value

    def values(self) -> Iterable[int | str]:
        """Return every value of the distribution."""
        return range(len(self.texts)) if self.ordered else self.texts


Axis = Interval | Listed


def spelt(text: str) -> str:
    """Return an override in Hydra's grammar: tag(log, interval(1,1e6)) for log(1,1e6)."""
    return re.sub(r"^([^=]+)=log\((.*)\)$", r"\1=tag(log,interval(\2))", text)


def axis(override: "Override", catalog: Catalog) -> Axis:
    """Return the values that an override lists. Raise UsageError where they cannot be searched."""
    from hydra.core.override_parser.types import Glob, IntervalSweep

    value: Any = override.value()
    text = str(override.input_line)
    if getattr(value, "shuffle", False):
        raise UsageError(f"{text}: a search needs no shuffling; list the values.")
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None  # by Hydra's grammar
        return interval(override.key_or_group, value.start, value.end, value.tags, text, catalog)
    if isinstance(value, Glob):
        raise UsageError(f"{text}: a search takes names, not a pattern; list them, as in strategy=ewc,si.")
    if value.tags:
        raise UsageError(f"{text}: values that are listed take no tag; log is for an interval.")
    texts = dict.fromkeys(override.sweep_string_iterator())
    numbers = [float(text) for text in texts if re.fullmatch(NUMBER, text)]
    return Listed(tuple(texts), ordered=len(numbers) == len(texts) and numbers == sorted(numbers))


def interval(key: str, low: float, high: float, tags: set[str], text: str, catalog: Catalog) -> Interval:
    """Return the interval of a key, of whole numbers if the key is one. Raise UsageError if it cannot have one."""
    spec = key_spec(key, catalog)
    if spec is None or spec.type not in ("float", "int", "int_by_task", "count"):
        raise UsageError(f"{text}: {key} is no number; list its values, as in {key}=A,B.")
    if tags - {"log"}:
        raise UsageError(f"{text}: an interval takes the tag log alone.")
    if not low < high:
        raise UsageError(f"{text}: an interval goes from the smaller number to the larger.")
    if "log" in tags and low <= 0:
        raise UsageError(
            f"{text}: a logarithm needs numbers above 0; type a small one, such as 1e-3, or leave log out."
        )
    if spec.type == "float":
        return Interval(float(low), float(high), "log" in tags, whole=False)
    if low != int(low) or high != int(high):
        raise UsageError(f"{text}: {key} is a whole number, and so are the ends of its interval.")
    return Interval(int(low), int(high), "log" in tags, whole=True)


def key_spec(key: str, catalog: Catalog) -> KeySpec | None:
    """Return the specification of a key; None for a group."""
    if key in catalog.root:
        return catalog.root[key]
    return next((catalog.knobs(group, name)[key] for group, name in catalog.takers(key)), None)


def read(texts: Iterable[str], catalog: Catalog) -> tuple[list[str], dict[str, Axis]]:
    """Return the overrides of every trial, and the axes by key. Raise UsageError."""
    fixed: list[str] = []
    axes: dict[str, Axis] = {}
    for text in map(spelt, texts):
        override = parsed(text)
        key = override.key_or_group
        is_interval = override.is_sweep_override() and not override.is_discrete_sweep()
        if not (is_interval and key in GROUPS):  # axis() explains what is wrong with that
            refuse_key(override, catalog)
        if override.is_sweep_override():
            axes[key] = axis(override, catalog)
        else:
            fixed.append(text)
    return fixed, axes


def size(axes: Mapping[str, Axis]) -> float:
    """Return the number of points."""
    return math.prod(axis.size for axis in axes.values())
