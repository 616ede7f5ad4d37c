"""The checked and resolved settings of one run, and the identity that follows from them."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clrun.config.catalog import GROUPS, defines_stream, set_key
from clrun.system.text import format_short, format_value

# Part of every identity. Raise it when equal settings come to mean another run: finished runs are then trained again.
FORMAT = 1

# Data sets whose pictures are as high as wide.
SQUARE = ("alphabets", "cifar10", "cifar100", "digits", "fashion_mnist", "kmnist", "mnist")

# FORMAT for some runs alone: what has changed since FORMAT 1, and whether it changed a run with these values. The names
# of the changes are part of the identity of those runs; all others keep theirs. Each is also a line in CHANGELOG.md.
# For the digest of a setup the values are without those of the strategy, so that a change of a strategy, which asks
# for one of its keys first, leaves its runs in the setup of all others.
CHANGES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "a reservoir is offered a sample once": lambda values: (
        # of er, der, derpp and of a user's own class; agem has offered a sample once ever since
        "memory_size" in values
        and values["strategy"] != "agem"
        and values.get("memory_per_class") is None
        and values["epochs"] != 1
    ),
    # Batch norm's running statistics include replayed samples, and its mean and variance no samples that only fill up.
    "batch norm sees what is trained on": lambda values: values.get("model.norm") == "batch",
    # A task's gates do not depend on how many tasks come after it, so that a run may go on as one run does.
    "gates are drawn task by task": lambda values: values.get("strategy") == "xdg",
    # A schedule over the stream is that of the whole stream, with the tasks that first_tasks leaves out.
    "schedules of a part are those of the whole": lambda values: (
        values.get("first_tasks") is not None and values.get("schedule_over") == "stream"
    ),
    # Classes of tasks that first_tasks leaves out have no share in what is kept of the others.
    "shares are of the classes that come": lambda values: (
        values.get("first_tasks") is not None
        and (values.get("memory_policy") == "herding" or values.get("memory_per_class") is not None)
    ),
    # Samples that a memory brings back are cropped and flipped by numbers of their own, each by its own.
    "what is replayed is augmented by itself": lambda values: (
        # of er and its kin, gem, and any class of the user's; the others train on their memory as on a task
        ("memory_size" in values or "source" in values)
        and values["augment"] == "crop_flip"
        and values["strategy"] not in ("bic", "gdumb", "icarl", "wa")
    ),
    # At threshold 0 norms are trained in every task. Once, a direction entered the memory where rounding made the norm
    # that is held negative.
    "GPM is finetuning at threshold 0": lambda values: values.get("strategy") == "gpm" and values.get("threshold") == 0,
    # Of a class, no larger share is held out than of the memory, so that some samples are left to train on.
    "bic holds out a share of what is there": lambda values: values.get("strategy") == "bic",
    # The strength of a penalty is read in every step. A run alone kept that with which its precision came.
    "strengths are those of the step": lambda values: "source" in values,
    # Rotated pictures that are not square keep their shapes; before, they were sheared.
    "rotations of oblong pictures": lambda values: (
        (values["split"] == "rotated" or values.get("split.circle") is not None) and values["dataset"] not in SQUARE
    ),
    # Within a task, accuracy_auc counts no later one whose classes come early: not before the end of the task.
    "classes that come early count at a task's end": lambda values: (
        bool(values["evaluate_every"])
        and (values.get("split.blurry") is not None or values["boundaries"] is False)
        and values.get("split.circle") is None  # whose tasks are tested with what comes first in them
    ),
    # What imm merges and separate keeps are averages of weights; a network that begins anew has an average of its own.
    "averages are merged, kept and begun anew": lambda values: (
        values.get("average") is not None
        and (values.get("strategy") in ("gdumb", "imm", "scratch", "separate") or "source" in values)  # may restart
    ),
}

# Bytes of the readable values in the name of a run's folder; file systems allow 255 for the whole name.
LONGEST = 110


def shortened(parts: Sequence[str]) -> str:
    """Return the parts of a folder's name in one, without those that no longer fit, of which none is cut."""
    name = ""
    for part in parts:
        longer = f"{name}-{part}" if name else part
        name = longer if len(longer.encode()) <= LONGEST else name
    return name


@dataclass(frozen=True)
class Settings:
    """The checked and resolved settings of a run: `settings["lambda"]` is the value of a key."""

    values: Mapping[str, Any]  # "dataset": "digits", "dataset.pad": 0, ..., "lambda": 400.0, ..., "seed": 0, ...
    knobs: Mapping[str, Any]  # the values of the strategy's keys
    targets: Mapping[str, str]  # group -> module.Class, of the options that state one
    about: str  # what the strategy is
    warns: Mapping[str, str]  # scenario -> why the strategy fails or has nothing to do in it
    needs_task_id: bool  # whether the strategy must know the task at test
    not_default: Mapping[str, Any]  # the values that are not the defaults of the chosen options
    outside_identity: frozenset[str]  # the keys that are no part of the identity
    later: frozenset[str]  # the keys that are part of the identity only where they are not null

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any, /) -> Any:
        """Return the value of a key, or `default` where the chosen options do not take it."""
        return self.values.get(key, default)

    @property
    def target(self) -> str:
        """The strategy's class, as module.Class."""
        return self.targets["strategy"]

    @property
    def warning(self) -> str | None:
        """Why the strategy is known to fail or has nothing to do in the run's scenario; None if it does not."""
        return self.warns.get(self["scenario"])

    def identity(self, fingerprint: str) -> str:
        """Return 10 hex digits that are equal for equal runs on the data with this fingerprint.

        Where a run is trained and written is no part of it.
        """
        return self._digest(fingerprint, [], self.targets)

    def group(self, fingerprint: str) -> str:
        """Return 10 hex digits that are equal for runs that differ in nothing but `seed`. Where they go on from others,
        these differ in nothing else, either."""
        return self._digest(fingerprint, ["seed", "init_source"], self.targets)

    def stream(self, fingerprint: str, before: str | None = None) -> str:
        """Return 10 hex digits that are equal for runs whose accuracies can be compared: on the same data, divided into
        the same tasks, and asked the same question.

        They may differ in everything else: `seed`, the strategy, the network, and how it is trained. before: the stream
        of the run that they go on from.
        """
        told = {key: v for key, v in self.values.items() if defines_stream(key) and key not in self.outside_identity}
        told = {key: v for key, v in told.items() if v is not None or key not in self.later}
        text = json.dumps([FORMAT, fingerprint, before, told], sort_keys=True, allow_nan=False)
        return hashlib.sha1(text.encode()).hexdigest()[:10]

    def setup(self, fingerprint: str) -> str:
        """Return 10 hex digits that are equal for runs that learn the same tasks in the same way, but for the strategy.

        They may differ in `seed`, the strategy and its keys, `evaluate_every`, `evaluate_samples` and `probe`.
        """
        targets = {group: target for group, target in self.targets.items() if group != "strategy"}
        plain = replace(self, values={**self.values, "evaluate_every": 0, "evaluate_samples": None, "probe": None})
        return plain._digest(
            fingerprint, ["seed", "strategy", "source", "init_source", "init_group", *self.knobs], targets
        )

    def _digest(self, fingerprint: str, without: Collection[str], targets: Mapping[str, str]) -> str:
        """Return 10 hex digits of the fingerprint, the targets and the values, those of some keys left out."""
        left_out = {*self.outside_identity, *without, *(key for key in self.later if self.values[key] is None)}
        kept = {key: v for key, v in self.values.items() if key not in left_out}
        compared = {key: v for key, v in self.values.items() if key not in without}
        changed = [name for name, applies in CHANGES.items() if applies(compared)]
        computation = [FORMAT, *changed] if changed else FORMAT
        text = json.dumps([computation, fingerprint, targets, kept], sort_keys=True, allow_nan=False)
        return hashlib.sha1(text.encode()).hexdigest()[:10]

    def directory(self, fingerprint: str) -> Path:
        """Return the run's folder: outputs/runs/<strategy>/<readable values>-<identity>."""
        return self._folder(shortened(self._readable(format_value)), fingerprint)

    def former_directory(self, fingerprint: str) -> Path | None:
        """Return the folder that earlier versions gave the run; None if it is the same. They cut long names at any
        letter, and printed floats with 15 digits."""
        cut = "-".join(self._readable(format_short)).encode()[:LONGEST].decode(errors="ignore")
        return None if cut == shortened(self._readable(format_value)) else self._folder(cut, fingerprint)

    def _readable(self, text_of: Callable[[object], str]) -> list[str]:
        """Return the stream and the values that are not the defaults, as parts of a folder's name."""
        parts = [self["dataset"], self["split"], self["scenario"], f"{self['tasks']}tasks"]
        named = {"dataset", "split", "scenario", "tasks", "strategy", "seed"} | self.outside_identity
        parts += [f"{key}={text_of(value)}" for key, value in self.not_default.items() if key not in named]
        return [re.sub(r"[^\w.=+-]+", "_", part) for part in parts]

    def _folder(self, readable: str, fingerprint: str) -> Path:
        """Return the run's folder with these readable values in its name."""
        name = f"{readable}-seed={self['seed']}-{self.identity(fingerprint)}"
        return Path(self["outputs"]) / "runs" / self["strategy"] / name

    def nested(self) -> dict[str, Any]:
        """Return the values with dataset, split, model and optimizer as mappings, for config.yaml."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            names_option = key in GROUPS and key != "strategy"
            set_key(tree, f"{key}.name" if names_option else key, value)
        return tree
