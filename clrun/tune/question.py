"""The question of a search: which keys are searched, which are fixed, and the refusal of what cannot be searched."""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from clrun.config.catalog import CLUSTER, GROUPS, Catalog, KeySpec
from clrun.config.check_keys import parsed, refuse_twice
from clrun.system.errors import UsageError
from clrun.tune import space
from clrun.tune.space import Axis

if TYPE_CHECKING:
    from clrun.config.composition import Composed
    from clrun.config.settings import Settings
    from clrun.sweep.cluster import Cluster

# The share of the training data that is held out, where validation is not typed.
VALIDATION = "0.1"

# Keys of what is learnt and how it is measured: accuracies for different values of them cannot be compared.
FIXED = {
    CLUSTER,
    "dataset",
    "split",
    "tasks",
    "scenario",
    "active",
    "task_id_at_test",
    "seed",
    "validation",
    "evaluate_every",
    "evaluate_samples",
}


# Keys of clrun that a search does not take, and what to type instead.
REFUSED = {
    "first_tasks": "type tune_tasks=K: the search sees the first K tasks, its winner is trained on all",
    "rerun": "a search trains nothing twice; to search anew, type another sampler_seed, or outputs=FOLDER",
}

# The keys of the search itself.
SEARCH_KEYS = {
    "trials": KeySpec(
        default=30, type="int", min=1, about="settings to try in all, those of earlier commands included"
    ),
    "seeds": KeySpec(
        default=1, type="int", min=1, about="runs a trial, with seeds seed, seed + 1, ...; the mean counts"
    ),
    "tune_tasks": KeySpec(
        default=None, type="int", min=1, about="how many tasks are trained, from the first of the stream (null: all)"
    ),
    "sampler": KeySpec(
        default="tpe",
        type="choice",
        choices=["tpe", "random"],
        about="how settings are drawn: by a tree of Parzen estimators, from the tenth on, or evenly",
    ),
    "sampler_seed": KeySpec(default=0, type="int", min=0, max=2**31, about="of what is drawn"),
    "at_once": KeySpec(
        default=None,
        type="int",
        min=1,
        about="trials that are trained together (null: one a worker on a CPU, a stack's worth on CUDA)",
    ),
}


@dataclass(frozen=True)
class Question:
    """What a search is to find out: the best values of the axes, all else being fixed."""

    fixed: list[str]  # overrides of every trial
    axes: Mapping[str, Axis]  # key -> the values that it may get
    search: Mapping[str, Any]  # the values of SEARCH_KEYS
    catalog: Catalog
    config_dir: str | None

    @cached_property
    def keys(self) -> list[str]:
        """The keys that were typed."""
        return [*(parsed(text).key_or_group for text in self.fixed), *self.axes]

    @cached_property
    def droppable(self) -> set[str]:
        """The keys of the options that may be drawn: each is left out where its option is not drawn."""
        from clrun.config.composition import value_at  # Hydra

        composed = self.compose([*self.fixed, *(f"{key}={axis.ends[0]}" for key, axis in self.axes.items())])
        names = {
            group: self.axes[group].ends if group in self.axes else [value_at(composed, f"{group}.name")]
            for group in GROUPS
        }
        return {key for group in GROUPS for name in names[group] for key in self.catalog.knobs(group, name)}

    @cached_property
    def compose(self) -> "Callable[[Sequence[str]], Composed]":
        """A function from overrides to what they compose to."""
        from clrun.config.composition import composer  # Hydra

        return composer(self.catalog, self.config_dir)

    def settings(self, point: Mapping[str, str], *more: str) -> "Settings":
        """Return the settings of a run with these values of the axes. Raise UsageError if there cannot be one."""
        from clrun.config.check_values import check  # OmegaConf

        overrides = [*self.fixed, *(f"{key}={text}" for key, text in point.items()), *more]
        return check(self.compose(overrides), self.droppable, self.catalog, self.keys)

    @cached_property
    def cluster(self) -> "Cluster | None":
        """The cluster that trains the trials; None if they are trained here."""
        from clrun.sweep import cluster

        return cluster.cluster_of([self.compose(self.fixed)], self.catalog)

    def first(self) -> dict[str, str]:
        """Return a point: the first value of every axis."""
        return {key: axis.ends[0] for key, axis in self.axes.items()}

    def corners(self) -> list[dict[str, str]]:
        """Return points that have every end of every axis among their values."""
        return [self.first() | {key: text} for key, axis in self.axes.items() for text in axis.ends]

    def runs(self, point: Mapping[str, str]) -> list["Settings"]:
        """Return the settings of a trial's runs: one for each seed, on the tasks that the search may see."""
        first = self.settings(point)["seed"]
        tasks = [] if self.search["tune_tasks"] is None else [f"first_tasks={self.search['tune_tasks']}"]
        return [self.settings(point, *tasks, f"seed={first + i}") for i in range(self.search["seeds"])]

    def winner(self, point: Mapping[str, str]) -> str:
        """Return the command that trains a point on the whole stream and on all training data."""
        settings = self.settings(point)
        kept = {*GROUPS, CLUSTER, "experiment", *settings.values} - {"seed", "validation"}
        kept |= {f"{CLUSTER}.{knob}" for knob in (self.cluster.knobs if self.cluster else ())}
        typed = [text for text in self.fixed if parsed(text).key_or_group in kept]
        typed += [f"{key}={text}" for key, text in point.items() if key in kept]
        first, n = settings["seed"], self.search["seeds"]
        flags = ["-m"] if n > 1 else []
        flags += [] if self.config_dir is None else ["--config-dir", self.config_dir]
        sweep = [f"seed=range({first},{first + n})"] if n > 1 else [f"seed={first}"] if first else []
        return shlex.join(["clrun", *flags, *typed, *sweep])


def read(arguments: argparse.Namespace, catalog: Catalog) -> Question:
    """Return what the arguments ask for. Raise UsageError for all that can be refused before data are loaded."""
    from clrun.config.check_values import checked_values  # OmegaConf

    typed = {text: parsed(space.spelt(text)) for text in arguments.overrides}
    refuse_twice([parsed(space.spelt(text)) for text in arguments.overrides], "clrun-tune")
    for override in typed.values():
        refuse(override.key_or_group, override.is_sweep_override(), catalog)
    given = {override.key_or_group: override for override in typed.values() if override.key_or_group in SEARCH_KEYS}
    others = [text for text, override in typed.items() if override.key_or_group not in SEARCH_KEYS]
    fixed, axes = space.read(others, catalog)
    if not axes:
        raise UsageError("there is nothing to search: type a list or an interval, such as 'lambda=log(1,1e6)'.")
    search = checked_values({key: override.value() for key, override in given.items()}, SEARCH_KEYS)
    question = Question(fixed, axes, search, catalog, arguments.config_dir)
    if question.settings(question.first())["validation"] == 0:
        if "validation" in question.keys:
            raise UsageError("validation=0: a search chooses by validation accuracy; leave it out, or type 0.1.")
        question = Question([*fixed, f"validation={VALIDATION}"], axes, question.search, catalog, arguments.config_dir)
    refuse_many_tasks(question, question.settings(question.first()))
    for point in question.corners():
        question.runs(point)
    refuse_cluster(question)
    return question


def refuse_many_tasks(question: Question, settings: "Settings") -> None:
    """Raise UsageError where the search is to see more tasks than the stream has. Their number is not known before the
    data are read where each task is a domain; `clrun.tune.search` asks again then."""
    first, most = question.search["tune_tasks"], settings["tasks"]
    if first is not None and most is not None and first > most:
        raise UsageError(f"tune_tasks={first}: the stream has {most} tasks; type at most as many.")


def refuse(key: str, several: bool, catalog: Catalog) -> None:
    """Raise UsageError for a key that a search does not take, or not with several values."""
    if key in REFUSED:
        raise UsageError(f"{key}: {REFUSED[key]}.")
    if key.startswith("hydra"):
        raise UsageError(f"{key}: clrun-tune trains through clrun's own launcher; leave it out.")
    outside_identity = key in catalog.root and not catalog.root[key].identity
    if several and (key in SEARCH_KEYS or outside_identity or key.split(".")[0] in FIXED):
        reason = "type seeds=3 for the mean over three" if key == "seed" else "it is not searched; type one value"
        raise UsageError(f"{key} with several values: {reason}.")


def refuse_cluster(question: Question) -> None:
    """Raise UsageError for a cluster that cannot be used, or whose jobs are not waited for."""
    if question.cluster is not None and not question.cluster.waits:
        raise UsageError("cluster.wait=false: a search waits for its trials, from which it learns; leave it out.")
    if question.cluster is not None:
        from clrun.sweep import cluster

        cluster.refuse_without_slurm(question.cluster)
