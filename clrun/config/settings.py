"""The checked and resolved settings of one run, and the identity that follows from them."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clrun.config.catalog import GROUPS
from clrun.system.text import format_value

FORMAT = 1  # to be raised when equal settings come to mean another run: finished runs are then trained again


LONGEST = 110  # bytes of a run's readable values; file systems end names at 255


@dataclass(frozen=True)
class Settings:
    """A run's checked and resolved settings."""

    values: Mapping[str, Any]  # "dataset": "digits", "dataset.pad": 0, ..., "lambda": 400.0, ..., "seed": 0, ...
    knobs: Mapping[str, Any]  # the strategy's own
    targets: Mapping[str, str]  # group -> module.Class, of the options that state one
    about: str  # the strategy's, like the next two
    warns: Mapping[str, str]  # scenario -> why it is known to fail there
    needs_task_id: bool
    unusual: Mapping[str, Any]  # the values that are not the default of these options
    private: frozenset[str]  # the keys that are not part of the identity
    later: frozenset[str]  # the keys that are part of it only where they are not null

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def target(self) -> str:
        """module.Class of the strategy."""
        return self.targets["strategy"]

    @property
    def warning(self) -> str | None:
        """Why this strategy is known to fail in this scenario."""
        return self.warns.get(self["scenario"])

    def identity(self, fingerprint: str) -> str:
        """10 hex digits: equal for equal runs on the data with this fingerprint, wherever they run and are written."""
        return self._digest(fingerprint, [], self.targets)

    def group(self, fingerprint: str) -> str:
        """10 hex digits: equal for runs that differ in nothing but `seed`."""
        return self._digest(fingerprint, ["seed"], self.targets)

    def stream(self, fingerprint: str) -> str:
        """10 hex digits: equal for runs that differ in nothing but `seed`, the strategy and its knobs, and in how often
        they were looked at."""
        targets = {group: target for group, target in self.targets.items() if group != "strategy"}
        plain = replace(self, values={**self.values, "evaluate_every": 0})
        return plain._digest(fingerprint, ["seed", "strategy", "source", *self.knobs], targets)

    def _digest(self, fingerprint: str, without: Collection[str], targets: Mapping[str, str]) -> str:
        left = {*self.private, *without, *(key for key in self.later if self.values[key] is None)}
        kept = {key: v for key, v in self.values.items() if key not in left}
        text = json.dumps([FORMAT, fingerprint, targets, kept], sort_keys=True, allow_nan=False)
        return hashlib.sha1(text.encode()).hexdigest()[:10]

    def directory(self, fingerprint: str) -> Path:
        """outputs/runs/<strategy>/<readable values>-<identity>."""
        parts = [self["dataset"], self["split"], self["scenario"], f"{self['tasks']}tasks"]
        named = {"dataset", "split", "scenario", "tasks", "strategy", "seed"} | self.private
        parts += [f"{key}={format_value(value)}" for key, value in self.unusual.items() if key not in named]
        readable = re.sub(r"[^\w.=+-]+", "_", "-".join(parts)).encode()[:LONGEST].decode(errors="ignore")
        name = f"{readable}-seed={self['seed']}-{self.identity(fingerprint)}"
        return Path(self["outputs"]) / "runs" / self["strategy"] / name

    def nested(self) -> dict[str, Any]:
        """The values with dataset, split, model and optimizer as mappings, for config.yaml."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            group, _, knob = key.rpartition(".")
            if not group and key in GROUPS and key != "strategy":
                group, knob = key, "name"
            (tree.setdefault(group, {}) if group else tree)[knob] = value
        return tree
