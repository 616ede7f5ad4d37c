"""What a search is asked, and what is wrong with that."""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clrun.config import catalog
from clrun.config.catalog import GROUPS, Catalog, KeySpec
from clrun.config.overrides import parsed
from clrun.system.errors import UsageError
from clrun.system.paths import CONF
from clrun.tune import space
from clrun.tune.space import Axis

if TYPE_CHECKING:
    from clrun.config.settings import Settings
    from clrun.sweep.cluster import Cluster


HELD_OUT = "0.1"  # of the training data, where validation is not typed


# what is to be learnt and how it is measured; a search over these would compare what does not compare
FIXED = {
    catalog.CLUSTER,
    "dataset",
    "split",
    "tasks",
    "scenario",
    "active",
    "task_id_at_test",
    "seed",
    "validation",
    "evaluate_every",
}


NOT_HERE = {
    "first_tasks": "type tune_tasks=K: the search sees the first K tasks, its winner is trained on all",
    "rerun": "a search trains nothing twice; to search anew, type another sampler_seed, or outputs=FOLDER",
}


OWN = {
    "trials": KeySpec(
        default=30, type="int", min=1, about="settings to try in all, those of earlier commands included"
    ),
    "seeds": KeySpec(
        default=1, type="int", min=1, about="runs a trial, with seeds seed, seed + 1, ...; the mean counts"
    ),
    "tune_tasks": KeySpec(
        default=None, type="int", min=1, about="search on the first so many tasks of the stream alone (null: on all)"
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
    """What is searched."""

    fixed: list[str]  # overrides of every trial
    axes: Mapping[str, Axis]  # key -> what it may become
    own: Mapping[str, Any]  # the keys of OWN
    known: Catalog
    config_dir: str | None

    @cached_property
    def keys(self) -> list[str]:
        """Those that were typed."""
        return [*(parsed(text).key_or_group for text in self.fixed), *self.axes]

    @cached_property
    def loose(self) -> set[str]:
        """Knobs that one of the options takes, and that are left out where another one is drawn."""
        composed = self.compose([*self.fixed, *(f"{key}={axis.ends[0]}" for key, axis in self.axes.items())])
        names = {group: self.axes[group].ends if group in self.axes else [composed[group].name] for group in GROUPS}
        return {key for group in GROUPS for name in names[group] for key in self.known.knobs(group, name)}

    @cached_property
    def compose(self) -> Callable[[Sequence[str]], Any]:
        """Overrides -> what they compose to."""
        import hydra
        from hydra.core.config_store import ConfigStore

        from clrun.config.composition import remembering

        ConfigStore.instance().store(name="knobs", node=self.known.nulls())
        folder = None if self.config_dir is None else Path(self.config_dir).expanduser().resolve()
        also = [] if folder is None else [f'hydra.searchpath=["file://{folder}"]']

        def by_hydra(_: Any, overrides: Sequence[str]) -> Any:
            with hydra.initialize_config_dir(str(CONF), version_base=None):
                return hydra.compose("config", overrides=[*overrides, *also])

        composed = remembering(by_hydra)
        return lambda overrides: composed(None, overrides)

    def settings(self, point: Mapping[str, str], *more: str) -> "Settings":
        """Those of a run with these values of the axes. UsageError: there cannot be one."""
        from clrun.config.check import check

        overrides = [*self.fixed, *(f"{key}={text}" for key, text in point.items()), *more]
        return check(self.compose(overrides), self.loose, self.known, self.keys)

    @cached_property
    def cluster(self) -> "Cluster | None":
        """Where trials are trained; None: here. UsageError."""
        from clrun.sweep import cluster

        return cluster.of([self.compose(self.fixed)], self.known)

    def first(self) -> dict[str, str]:
        """A point of the space."""
        return {key: axis.ends[0] for key, axis in self.axes.items()}

    def corners(self) -> list[dict[str, str]]:
        """Points that show whether every end of every axis can be."""
        return [self.first() | {key: text} for key, axis in self.axes.items() for text in axis.ends]

    def runs(self, point: Mapping[str, str]) -> list["Settings"]:
        """A trial: one run a seed, on the tasks that the search may see."""
        first = self.settings(point)["seed"]
        tasks = [] if self.own["tune_tasks"] is None else [f"first_tasks={self.own['tune_tasks']}"]
        return [self.settings(point, *tasks, f"seed={first + i}") for i in range(self.own["seeds"])]

    def winner(self, point: Mapping[str, str]) -> str:
        """The command that trains a point on the whole stream and on all training data."""
        settings = self.settings(point)
        kept = {*GROUPS, catalog.CLUSTER, "experiment", *settings.values} - {"seed", "validation"}
        kept |= {f"{catalog.CLUSTER}.{knob}" for knob in (self.cluster.knobs if self.cluster else ())}
        typed = [text for text in self.fixed if parsed(text).key_or_group in kept]
        typed += [f"{key}={text}" for key, text in point.items() if key in kept]
        first, n = settings["seed"], self.own["seeds"]
        own = [] if self.config_dir is None else ["--config-dir", self.config_dir]
        sweep = [f"seed=range({first},{first + n})"] if n > 1 else [f"seed={first}"] if first else []
        return shlex.join(["clrun", *(["-m"] if n > 1 else []), *own, *typed, *sweep])


def read(asked: argparse.Namespace, known: Catalog) -> Question:
    """What the arguments ask for; all that can be refused before data are loaded is. UsageError."""
    from clrun.config import check

    typed = {text: parsed(space.spelt(text)) for text in asked.overrides}
    for override in typed.values():
        refuse(override.key_or_group, override.is_sweep_override(), known)
    own = {one.key_or_group: one.value() for one in typed.values() if one.key_or_group in OWN}
    fixed, axes = space.read([text for text, one in typed.items() if one.key_or_group not in OWN], known)
    if not axes:
        raise UsageError("there is nothing to search: type a list or an interval, such as 'lambda=log(1,1e6)'.")
    question = Question(fixed, axes, check.checked(own, OWN), known, asked.config_dir)
    if question.settings(question.first())["validation"] == 0:
        if "validation" in question.keys:
            raise UsageError("validation=0: a search chooses by validation accuracy; leave it out, or type 0.1.")
        question = Question([*fixed, f"validation={HELD_OUT}"], axes, question.own, known, asked.config_dir)
    first, most = question.own["tune_tasks"], question.settings(question.first())["tasks"]
    if first is not None and first > most:
        raise UsageError(f"tune_tasks={first}: the stream has {most} tasks; type at most as many.")
    for point in question.corners():
        question.runs(point)
    refuse_cluster(question)
    return question


def refuse(key: str, several: bool, known: Catalog) -> None:
    """A key that a search does not take, or not with several values. UsageError."""
    if key in NOT_HERE:
        raise UsageError(f"{key}: {NOT_HERE[key]}.")
    if key.startswith("hydra"):
        raise UsageError(f"{key}: clrun-tune trains through clrun's own launcher; leave it out.")
    private = key in known.root and not known.root[key].identity
    if several and (key in OWN or private or key.split(".")[0] in FIXED):
        reason = "type seeds=3 for the mean over three" if key == "seed" else "it is not searched; type one value"
        raise UsageError(f"{key} with several values: {reason}.")


def refuse_cluster(question: Question) -> None:
    """A cluster that cannot be, or that nobody waits for. UsageError."""
    if question.cluster is not None and not question.cluster.waits:
        raise UsageError("cluster.wait=false: a search waits for its trials, from which it learns; leave it out.")
