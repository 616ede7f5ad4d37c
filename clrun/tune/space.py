"""What a search may choose from: intervals and lists in Hydra's grammar, each an `Axis`. No torch, no optuna."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clrun.config.catalog import GROUPS, Catalog, KeySpec
from clrun.config.overrides import parsed, refuse_key
from clrun.system.errors import UsageError
from clrun.system.text import format_value

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution


NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


DIGITS = 4  # of a number that is drawn from an interval: what is chosen can be typed, and read


@dataclass(frozen=True)
class Interval:
    """All numbers between two, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def size(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    @property
    def ends(self) -> list[str]:
        return [self.typed(self.low), self.typed(self.high)]

    def distribution(self) -> "BaseDistribution":
        """In optuna's words."""
        from optuna.distributions import FloatDistribution, IntDistribution

        return (IntDistribution if self.whole else FloatDistribution)(self.low, self.high, log=self.log)

    def typed(self, value: float) -> str:
        """A value of the distribution, as it is typed."""
        if not (self.whole or value in (self.low, self.high)):
            value = min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)
        text = format_value(value)
        return text if self.low <= float(text) <= self.high else repr(value)  # an end of more digits than are shown

    def drawn(self) -> Iterable[float]:
        """Every value of the distribution, of whole numbers."""
        return range(int(self.low), int(self.high) + 1)


@dataclass(frozen=True)
class Listed:
    """Some values as they are typed; where they are numbers, in their order."""

    texts: tuple[str, ...]
    ordered: bool

    @property
    def size(self) -> float:
        return len(self.texts)

    @property
    def ends(self) -> list[str]:
        """All of them: any may be the one that cannot be."""
        return list(self.texts)

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return IntDistribution(0, len(self.texts) - 1) if self.ordered else CategoricalDistribution(self.texts)

    def typed(self, value: int | str) -> str:
        return self.texts[value] if self.ordered else value

    def drawn(self) -> Iterable[int | str]:
        return range(len(self.texts)) if self.ordered else self.texts


Axis = Interval | Listed


def spelt(text: str) -> str:
    """lambda=log(1,1e6) stands for Hydra's lambda=tag(log, interval(1,1e6))."""
    return re.sub(r"^([^=]+)=log\((.*)\)$", r"\1=tag(log,interval(\2))", text)


def axis(override: "Override", known: Catalog) -> Axis:
    """What an override with several values may become. UsageError where it cannot be searched."""
    from hydra.core.override_parser.types import Glob, IntervalSweep

    value, text = override.value(), override.input_line
    if getattr(value, "shuffle", False):
        raise UsageError(f"{text}: a search needs no shuffling; list the values.")
    if isinstance(value, IntervalSweep):
        return interval(override.key_or_group, value.start, value.end, value.tags, text, known)
    if isinstance(value, Glob):
        raise UsageError(f"{text}: a search takes names, not a pattern; list them, as in strategy=ewc,si.")
    if value.tags:
        raise UsageError(f"{text}: values that are listed take no tag; log is for an interval.")
    texts = dict.fromkeys(override.sweep_string_iterator())
    numbers = [float(text) for text in texts if re.fullmatch(NUMBER, text)]
    return Listed(tuple(texts), ordered=len(numbers) == len(texts) and numbers == sorted(numbers))


def interval(key: str, low: float, high: float, tags: set[str], text: str, known: Catalog) -> Interval:
    """An interval of a knob's, of whole numbers where the knob is one. UsageError."""
    said = statement(key, known)
    if said is None or said.type not in ("float", "int", "count"):
        raise UsageError(f"{text}: {key} is no number; list its values, as in {key}=A,B.")
    if tags - {"log"}:
        raise UsageError(f"{text}: an interval takes the tag log alone.")
    if not low < high:
        raise UsageError(f"{text}: an interval goes from the smaller number to the larger.")
    if "log" in tags and low <= 0:
        raise UsageError(
            f"{text}: a logarithm needs numbers above 0; type a small one, such as 1e-3, or leave log out."
        )
    if said.type == "float":
        return Interval(float(low), float(high), "log" in tags, whole=False)
    if low != int(low) or high != int(high):
        raise UsageError(f"{text}: {key} is a whole number, and so are the ends of its interval.")
    return Interval(int(low), int(high), "log" in tags, whole=True)


def statement(key: str, known: Catalog) -> KeySpec | None:
    """What is stated about a key; None for a group."""
    if key in known.root:
        return known.root[key]
    return next((known.knobs(group, name)[key] for group, name in known.takers(key)), None)


def read(texts: Iterable[str], known: Catalog) -> tuple[list[str], dict[str, Axis]]:
    """The settings that are typed, and what is to be searched by key. UsageError."""
    fixed: list[str] = []
    axes: dict[str, Axis] = {}
    for text in map(spelt, texts):
        override = parsed(text)
        key = override.key_or_group
        interval = override.is_sweep_override() and not override.is_discrete_sweep()
        if not (interval and key in GROUPS):  # of which axis() says what is wrong
            refuse_key(override, known)
        if override.is_sweep_override():
            axes[key] = axis(override, known)
        else:
            fixed.append(text)
    return fixed, axes


def size(axes: Mapping[str, Axis]) -> float:
    """How many points there are."""
    return math.prod(axis.size for axis in axes.values())
