"""The catalogue of what may be typed, read from the yaml files in conf/ without torch and without Hydra.

A group (dataset, split, model, optimizer, strategy) has options, one yaml each, and an option has keys. Each key is
specified once, in the `knobs` block of the yaml it belongs to (the fields are those of `KeySpec`). Checks,
`clrun --help`, completion and a run's identity are generated from these specifications.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from clrun.system.errors import UsageError
from clrun.system.paths import CONF
from clrun.system.yaml_numbers import Loader

# The largest absolute value of a key without a range of its own, by type; float32 ends at about 3.4e38.
LARGEST = {
    "int": 10**9,
    "ints": 10**9,
    "int_by_task": 10**9,
    "count": 10**9,
    "float": 1e38,
    "floats": 1e38,
}


# The groups of which every run chooses one option.
GROUPS = ("dataset", "split", "features", "model", "optimizer", "strategy")

# The groups that say what is learnt. The others say how.
STREAM_GROUPS = ("dataset", "split", "features")

# The option of `features` that stands for none: a run without features has no such key, as before there was one.
NO_FEATURES = "none"

# A group of which nothing is chosen by default, and which is no part of a run.
CLUSTER = "cluster"

# The kinds of strategies, with the headings below which help lists them, in this order.
HEADINGS = {
    "references": "references",
    "penalties": "penalties on weights or outputs, merging of weights, projection of steps",
    "replay": "replay of stored or generated samples",
    "parts": "parts of the network per task",
    "heads": "heads in closed form without gradients; a generative model for each class",
    "plasticity": "against the loss of plasticity",
}


class Strict(BaseModel):
    """A model that takes neither other fields than its own nor other types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


# Devices that are no choice of their own: one card of several. (Apple's "mps" is known, and refused with a reason.)
DEVICES = r"^(cuda:\d{1,3}|mps)$"


class KeySpec(Strict):
    """The specification of a key: its default, type, range and meaning."""

    default: Any  # if it is null, null may be typed
    type: Literal[
        "float",
        "int",
        "bool",
        "str",
        "path",
        "choice",
        "count",
        "ints",
        "int_by_task",
        "floats",
        "classes",
        "mapping",
        "texts",
        "names",
        "device",
    ]
    about: str = Field(min_length=1)
    min: float | None = None  # inclusive
    max: float | None = None
    above: float | None = None  # exclusive
    below: float | None = None
    choices: list[str] | None = None
    identity: bool = True  # whether runs that differ in it are different runs
    # whether the key was added when runs existed already: where it is null, it is no part of a run's identity
    later: bool = False
    stream: bool = False  # of a key of every run: whether accuracies for different values of it cannot be compared

    @model_validator(mode="after")
    def is_consistent(self) -> "KeySpec":
        """Raise ValueError where fields contradict each other."""
        if self.type in ("choice", "count", "names", "device") and not self.choices:
            raise ValueError("types choice, count, names and device take a list of choices")
        if self.choices and self.type not in ("choice", "count", "names", "bool", "device"):
            raise ValueError("types choice, count, names, bool and device, and only they, take a list of choices")
        if self.later and self.default is not None:
            raise ValueError("a key that came later is null by default")
        if self.bounds() and self.type not in ("float", "int", "int_by_task", "count", "ints", "floats"):
            raise ValueError(f"a {self.type} has no range (min, max, above, below)")
        try:
            adapter(self.annotation()).validate_python(self.default, strict=True)
        except ValidationError:
            raise ValueError(f"the default {self.default!r} must be {self.expects()}") from None
        return self

    def bounds(self) -> dict[str, float]:
        """Return the stated range in pydantic's words."""
        named = {"ge": self.min, "le": self.max, "gt": self.above, "lt": self.below}
        return {name: bound for name, bound in named.items() if bound is not None}

    def checked_bounds(self) -> dict[str, float]:
        """Return the stated range within the numbers that clrun takes at all."""
        largest = LARGEST.get(self.type)
        if largest is None:
            return {}
        everything: dict[str, float] = {"ge": -largest, "le": largest}
        return everything | self.bounds()

    def annotation(self) -> Any:
        """Return the type that pydantic checks a value against."""
        bounds = tuple(sorted(self.checked_bounds().items()))
        return annotation(self.type, bounds, tuple(self.choices or ()), self.default is None)

    def range(self) -> str:
        """Return the range as a phrase, such as "at least 0 and below 1"; "" if there is none."""
        named = {"at least": self.min, "above": self.above, "at most": self.max, "below": self.below}
        return " and ".join(f"{word} {bound:.15g}" for word, bound in named.items() if bound is not None)

    def expects(self) -> str:
        """Return what a value must be, as a phrase that follows "must be"."""
        each = f", each {self.range()}" if self.range() else ""
        texts = {
            "float": ", ".join(filter(None, ["a finite number", self.range()])),
            "int": ", ".join(filter(None, ["a whole number", self.range()])),
            "bool": " or ".join(["true or false", *(self.choices or [])]),
            "str": "a text",
            "path": "a path",
            "choice": f"one of {', '.join(self.choices or [])}",
            "device": f"one of {', '.join(self.choices or [])}, or one card, such as cuda:1",
            "names": f"one of {', '.join(self.choices or [])}, or a list of them, such as "
            f"[{','.join((self.choices or [])[:2])}]",
            "count": f"{' or '.join(self.choices or [])}, or a whole number, {self.range()}",
            "ints": f"a list of whole numbers{each}, such as [100,100]",
            "int_by_task": ", ".join(filter(None, ["a whole number", self.range()]))
            + ", or one for each task: [20,10]",
            "floats": f"a list of finite numbers{each}, such as [0.1,0.2]",
            "texts": "a list of texts, such as [a,b]",
            "classes": "a list of lists of class names or numbers, such as [[cat,dog],[deer]] or [[0,1],[2,3]]",
            "mapping": "names with values, such as {width:8,depth:2}",
        }
        return texts[self.type]


@cache  # most keys share a type with others, and pydantic takes a millisecond for each
def annotation(kind: str, bounds: tuple[tuple[str, float], ...], choices: tuple[str, ...], nullable: bool) -> Any:
    """Return the type that pydantic checks the values of a key of this kind and range against."""
    plain = type_of(kind, dict(bounds), choices)
    return plain | None if nullable else plain


def type_of(kind: str, bounds: dict[str, Any], choices: tuple[str, ...]) -> Any:
    """Return the type of values that are not null."""
    whole: Any = Annotated[int, Field(**bounds)]
    one_of: Any = Literal[choices]
    decimal: Any = number(bounds)
    text = Annotated[str, Field(min_length=1)]
    match kind:
        case "int":
            return whole
        case "ints":
            return list[whole]
        case "int_by_task":
            return whole | Annotated[list[whole], Field(min_length=1)]
        case "count":
            return one_of | whole
        case "float":
            return decimal
        case "floats":
            return list[decimal]
        case "bool":
            return one_of | bool if choices else bool
        case "choice":
            return one_of
        case "names":
            return one_of | Annotated[list[one_of], Field(min_length=1)]
        case "device":
            return one_of | Annotated[str, Field(pattern=DEVICES)]
        case "str":
            return text
        case "path":
            return Annotated[text, AfterValidator(os.path.expanduser)]
        case "texts":
            return Annotated[list[int | text], AfterValidator(lambda texts: [str(one) for one in texts])]
        case "classes":
            return Annotated[list[Annotated[list[int | text], Field(min_length=1)]], Field(min_length=1)]
        case "mapping":
            return Annotated[dict[str, Any], AfterValidator(with_finite_numbers)]
    raise ValueError(f"there is no type {kind}")


def with_finite_numbers(value: Any) -> Any:
    """Return the value. Raise ValueError where it is, or holds, a number that is infinite or none."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inside:
        with_finite_numbers(one)
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("a number that is not finite")
    return value


def number(bounds: dict[str, Any]) -> Any:
    """Return the type of finite numbers. Adding 0 makes -0.0 and 0.0 one value, and so one run."""
    return Annotated[float, Field(allow_inf_nan=False, **bounds), AfterValidator(lambda x: x + 0.0)]


@cache
def adapter(checked: Any) -> TypeAdapter[Any]:
    """Return what checks values against a type of `annotation`."""
    return TypeAdapter(checked)


class Option(Strict):
    """An option of a group: what one yaml states about a dataset, split, model, optimizer, strategy or cluster."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")  # is typed after a =, and names a folder of outputs
    about: str = Field(min_length=1)
    target: str | None = Field(None, alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")  # module.Class
    knobs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], KeySpec] = {}

    @model_validator(mode="after")
    def is_a_word(self) -> "Option":
        """Raise ValueError for a name that Hydra would read as another type."""
        if re.fullmatch(r"[-+0-9_.]+(e[-+]?\d+)?|null|true|false|[-+]?inf|nan", self.name, re.I):
            raise ValueError(f"the name {self.name} is read as a number or as a value of its own; give it another one")
        return self


class DatasetOption(Option):
    """A data set, as its yaml states it."""

    class_names: list[str] | None = None  # in the order of their numbers; None if they follow from the files
    epochs: int | None = Field(None, ge=1)  # per task, where neither epochs nor iterations is typed


class ModelOption(Option):
    """A network, as its yaml states it."""

    target: str = Field(alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


class OptimizerOption(Option):
    """An optimizer, as its yaml states it."""

    target: str = Field(alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    lr: float | None = Field(None, gt=0)  # where lr is not typed


def known_kind(kind: str) -> str:
    """Return the kind of a strategy. Raise ValueError for one that is not in HEADINGS."""
    if kind not in HEADINGS:
        raise ValueError(f"there is no kind {kind}; write one of {', '.join(HEADINGS)}, or leave it out")
    return kind


class StrategyOption(Option):
    """A continual-learning strategy, as its yaml states it."""

    target: str = Field(alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    short: str | None = Field(None, min_length=1)  # what it does, for a list with a line each; None: as `about` begins
    kind: Annotated[str, AfterValidator(known_kind)] | None = None  # its place in that list; None: a user's own
    warns: dict[Literal["task", "domain", "class"], str] = {}  # scenario -> why it fails or has nothing to do there
    refuses: dict[Literal["task", "domain", "class"], str] = {}  # scenario -> why it cannot work, and what to type
    needs_task_id: bool = False  # whether it must know the task at test
    neutral: dict[str, float] | None = None  # values at which it is equal to finetuning; None if there are none
    papers: list[str] = []  # keys of entries of references.bib, in clrun's conf folder or the user's


class ClusterOption(Option):
    """A cluster that trains runs as jobs, as its yaml states it."""

    executor: Literal["slurm", "local"]  # of submitit


# The class of a group's options; Option where it has no fields of its own.
KINDS: Mapping[str, type[Option]] = {
    "dataset": DatasetOption,
    "model": ModelOption,
    "optimizer": OptimizerOption,
    "strategy": StrategyOption,
    CLUSTER: ClusterOption,
}


def full_key(group: str, knob: str) -> str:
    """Return how an option's key is typed: a strategy's as it is (lambda), another group's within it (model.widths)."""
    return knob if group == "strategy" else f"{group}.{knob}"


def defines_stream(key: str) -> bool:
    """Return whether runs with different values of this key are evaluated on different tasks, so that their accuracies
    cannot be compared: the keys of STREAM_GROUPS, and those of every run of which conf/config.yaml says so."""
    spec = read().root.get(key)
    return key.partition(".")[0] in STREAM_GROUPS or (spec is not None and spec.stream)


def fixed_datasets() -> set[str]:
    """Return the names of clrun's data sets whose samples follow from the name: it states their classes, too."""
    options = read().options["dataset"]
    return {name for name, option in options.items() if isinstance(option, DatasetOption) and option.class_names}


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a key in nested dictionaries: that of model.widths is tree["model"]["widths"]."""
    group, _, knob = key.rpartition(".")
    if group:
        tree.setdefault(group, {})[knob] = value
    else:
        tree[knob] = value


@dataclass(frozen=True, eq=False)
class Catalog:
    """All groups, options and keys of some conf folders."""

    root: Mapping[str, KeySpec]  # the keys that every run takes
    options: Mapping[str, Mapping[str, Option]]  # group -> name -> option
    stated: Mapping[str, Any]  # "knobs" or "strategy/ewc" -> what its yaml states, to notice whether it was overridden
    experiments: Mapping[str, Path]  # name -> yaml
    defaults: Mapping[str, str]  # group -> name of the option where none is typed

    def knobs(self, group: str, name: str) -> dict[str, KeySpec]:
        """Return the keys of an option, as they are typed."""
        return {full_key(group, knob): spec for knob, spec in self.options[group][name].knobs.items()}

    def takers(self, key: str) -> list[tuple[str, str]]:
        """Return (group, name) of the options that take a key."""
        return [(g, name) for g, options in self.options.items() for name in options if key in self.knobs(g, name)]

    def type_of(self, key: str) -> str:
        """Return the type of a key; "" for one that there is not."""
        if key in self.root:
            return self.root[key].type
        for group, name in self.takers(key):
            return self.knobs(group, name)[key].type
        return ""

    def all_keys(self) -> list[str]:
        """Return all that can be typed before an equals sign: groups and keys."""
        knobs = (key for g, options in self.options.items() for name in options for key in self.knobs(g, name))
        return list(dict.fromkeys([*self.options, *self.root, *knobs]))

    def nulls(self) -> dict[str, Any]:
        """Return every key as null: with these at the bottom of a composition, any of them can be typed or swept."""
        tree: dict[str, Any] = {}
        for key in self.all_keys():
            if key not in self.options:
                set_key(tree, key, None)
        return tree


@cache
def read(folders: tuple[Path, ...] = (CONF,)) -> Catalog:
    """Return the catalogue of conf folders, clrun's own first.

    Raise UsageError for a yaml that cannot be read, lacks a field, has a wrong one, or repeats a name.
    """
    config = parse(CONF / "config.yaml")
    root = validated(Option, {"name": "config", "about": "root", "knobs": config["knobs"]}, CONF / "config.yaml").knobs
    options: dict[str, dict[str, Option]] = {group: {} for group in (*GROUPS, CLUSTER)}
    stated: dict[str, Any] = {"knobs": config["knobs"]}
    for path, group in option_files(folders):
        content = parse(path)
        option = checked_option(content, path, group, root)
        if option.name in options[group]:
            raise UsageError(f"{path}: there is a {group} {option.name} already; rename the file and its name.")
        options[group][option.name], stated[f"{group}/{option.name}"] = option, content
    experiments = {path.stem: path for folder in folders for path in sorted((folder / "experiment").glob("*.yaml"))}
    chosen = {k: v for item in config["defaults"] if isinstance(item, dict) for k, v in item.items() if k in GROUPS}
    return Catalog(root, options, stated, experiments, chosen)


def with_folder(config_dir: str | Path | None) -> Catalog:
    """Return the catalogue of clrun's own folder and the user's --config-dir. Raise UsageError if that is no folder."""
    if config_dir is None:
        return read()
    folder = Path(config_dir).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--config-dir {config_dir}: there is no such folder.")
    return read((CONF, folder.resolve()))


def option_files(folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield (path, group) of the yaml files that state options."""
    for folder in folders:
        for group in (*GROUPS, CLUSTER):
            yield from ((path, group) for path in sorted((folder / group).glob("*.yaml")))


def checked_option(content: Mapping[str, Any], path: Path, group: str, root: Mapping[str, KeySpec]) -> Option:
    """Return the option that the content of a yaml states. Raise UsageError if it cannot be one."""
    users = CONF not in path.parents
    if group == "split" and users:
        raise UsageError(
            f"{path}: a split cannot be added by a yaml; for tasks of your own there is "
            "'split.classes=[[cat,dog],[deer]]'."
        )
    option = validated(KINDS.get(group, Option), content, path)
    if option.name != path.stem:
        raise UsageError(f"{path}: its name must be that of the file: write name: {path.stem}.")
    if group == "dataset" and users and option.target is None:
        raise UsageError(
            f"{path}: the field _target_ is missing: write _target_: module.function, of a function that returns "
            "clrun.data.Parts; for pictures of your own there is dataset=image_folder, for arrays dataset=arrays."
        )
    if group == "strategy":  # whose keys are typed as they are, like those of every run
        reserved = {*root, *GROUPS, CLUSTER, "hydra", "knobs", "experiment"}
    else:
        reserved = {field.alias or name for name, field in type(option).model_fields.items()}
    for knob in option.knobs:
        if knob in reserved:
            raise UsageError(f"{path}: the knob {knob} has the name of a key that all runs have; give it another name.")
    return option


def parse(path: Path) -> dict[str, Any]:
    """Return the mapping in a yaml file. Raise UsageError if there is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, ValueError) as error:  # also bytes that are no text, and a date that there is not
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold fields such as name: and about:, one a line; see conf/strategy/ewc.yaml.")
    return content


def validated(kind: type[Option], content: Mapping[str, Any], path: Path) -> Option:
    """Return the content of a yaml as an option. Raise UsageError for a wrong or missing field."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {'; '.join(map(complaint, error.errors()))}.") from None


def complaint(error: Mapping[str, Any]) -> str:
    """Return what pydantic found in a yaml, in one clause."""
    where = ".".join(str(place) for place in error["loc"])
    clauses = {"missing": f"the field {where} is missing", "extra_forbidden": f"there is no field {where}"}
    return clauses.get(error["type"], f"{where}: {error['msg'].removeprefix('Value error, ')}")
