"""The classes that the yaml files of a run name: a strategy, a network and an optimizer, clrun's or the user's own."""

import hashlib
import keyword
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, TypeVar

from clrun.config.settings import Settings
from clrun.models import Network
from clrun.models.frozen import FrozenNetwork
from clrun.models.libraries import source_of_library, source_of_weights
from clrun.optimizers import Optimizer
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL
from clrun.runs.origin import origin_of
from clrun.strategy import Strategy
from clrun.system.errors import UsageError
from clrun.system.imports import folder_of, named_object

BASES = {"strategy": Strategy, "model": Network, "optimizer": Optimizer, "features": FrozenNetwork}

# The groups whose keys may name a module and its weights.
WITH_MODULES = ("model", "features")
Base = TypeVar("Base")


def named_class(settings: Settings, group: str, base: type[Base]) -> type[Base]:
    """Return the class that the yaml of a strategy, model or optimizer names.

    Raise UsageError if there is none, or if it is no subclass of `base`.
    """
    named, where = stated_object(settings, group), stated_where(settings, group)
    if not (isinstance(named, type) and issubclass(named, base)):
        public = ".".join(base.__module__.split(".")[:2])  # the package that exports it
        raise UsageError(f"{where}, which is not a subclass of {public}.{base.__name__}; name one that is.")
    return named


def own_dataset(settings: Settings) -> Callable[..., object] | None:
    """Return the function (or class) that the yaml of a data set of the user's names; None for one of clrun's.

    Raise UsageError if there is none.
    """
    if "dataset" not in settings.targets:
        return None
    function = stated_object(settings, "dataset")
    if not callable(function):
        raise UsageError(
            f"{stated_where(settings, 'dataset')}, which is no function; name one that returns clrun.data.Parts."
        )
    return function


def stated_where(settings: Settings, group: str) -> str:
    """Return the beginning of a message about what the yaml of an option names."""
    chosen = settings.values.get(group, settings.values.get(f"{group}.name"))
    return f"{group}={chosen}: its yaml says _target_: {settings.targets[group]}"


def stated_object(settings: Settings, group: str) -> Any:
    """Return what the yaml of an option names; None if its module has nothing of the name. Raise UsageError if there is
    no such module, or if it cannot be imported."""
    return named_object(settings.targets[group], stated_where(settings, group))


def folders_of_users(settings: Settings) -> list[str]:
    """Return the folders in which the user's own strategy and networks were found, which are imported already."""
    targets = [settings.targets.get(group) for group in ("strategy", *WITH_MODULES)]
    targets += [settings.values.get(f"{group}.target") for group in WITH_MODULES]
    modules = [target.rpartition(".")[0] for target in targets if target is not None]
    found = [folder_of(module) for module in modules if module.partition(".")[0] != "clrun"]
    return list(dict.fromkeys(folder for folder in found if folder is not None))


def with_sources(settings: Settings) -> Settings:
    """Return the settings with a digest of each file that holds a class which is not clrun's own, and of the initial
    weights, and of the run from which it goes on, under the keys `SOURCES`: a run of an edited class, or with other
    weights, is another run.

    Raise UsageError where such a file was edited since another process has computed its digest.
    """
    # a data set of the user's is known by its fingerprint, whatever function made it
    users = [g for g, target in settings.targets.items() if g in BASES and not target.startswith("clrun.")]
    digests = {source_key(group): digest(named_class(settings, group, BASES[group])) for group in users}
    for group in WITH_MODULES:
        digests |= sources_of_module(settings, group)
    origin = origin_of(settings)
    if origin is not None:
        digests |= {"init_source": origin.digest, "init_group": origin.group(settings["seed"])}
        digests |= {"init_stream": origin.setup}
    sources = {key: value for key, value in digests.items() if value}
    edited = [key for key, value in sources.items() if settings.values.get(key, value) != value]
    if edited:
        raise UsageError(f"{edited[0]}: the file was edited after the command had begun; type the command again.")
    return replace(settings, values={**settings.values, **sources}) if sources else settings


def source_key(group: str) -> str:
    """Return the key of `SOURCES` for a class of a group."""
    return "source" if group == "strategy" else f"{group}.source"


def sources_of_module(settings: Settings, group: str) -> dict[str, str | None]:
    """Return what identifies the module and the weights that the keys of a group name, under keys of `SOURCES`."""
    values, sources = settings.values, dict[str, str | None]()
    target, weights = values.get(f"{group}.target"), values.get(f"{group}.weights")
    if target is not None:
        named = named_object(target, f"{group}.target={target}") if "." in target else None
        sources[f"{group}.source"] = None if named is None else digest_or_version(named)
    elif (library := source_of_library(values.get(group))) is not None:
        sources[f"{group}.source"] = library
    if weights is not None:
        sources[f"{group}.weights_source"] = source_of_weights(
            values[group], values.get(f"{group}.arch"), weights, group
        )
    return sources


def digest(named: Any) -> str | None:
    """Return eight hexadecimal digits for the file that defines a class or a function; None where no file does."""
    path = file_of(named)
    return hashlib.sha1(path.read_bytes()).hexdigest()[:8] if path.is_file() else None


def digest_or_version(named: Any) -> str | None:
    """Return the digest of the user's file that defines a class, or package and version of one that is installed."""
    if {"site-packages", "dist-packages"} & {*file_of(named).parts}:
        return package_version(named.__module__.partition(".")[0])
    return digest(named)


def file_of(named: Any) -> Path:
    """Return the file that defines a class or a function; the current folder where no file does."""
    module = sys.modules.get(getattr(named, "__module__", ""))
    return Path(getattr(module, "__file__", None) or "")


def package_version(package: str) -> str:
    """Return the distribution that installed a package, with its version; the package alone if there is none."""
    distributions = packages_distributions().get(package, [])
    return f"{distributions[0]} {version(distributions[0])}" if distributions else package


def strategy_class(settings: Settings) -> type[Strategy]:
    """Return the class of the strategy. Raise UsageError if there is none, or if it does not read its yaml's knobs."""
    strategy = named_class(settings, "strategy", Strategy)
    refuse_unread_knobs(strategy, settings)
    return strategy


def python_name(knob: str) -> str:
    """Return a knob's name in Python: `lambda_` for `lambda`, which is a keyword there."""
    return f"{knob}_" if keyword.iskeyword(knob) else knob


def refuse_unread_knobs(strategy: type[Strategy], settings: Settings) -> None:
    """Raise UsageError where a knob is no field of the strategy and of its Hyper, and so would have no effect."""
    reserved = [knob for knob in settings.knobs if knob in (*SUMMARY_HEAD, *SUMMARY_TAIL, "stream", "setup", "source")]
    if reserved:
        raise UsageError(
            f"strategy={settings['strategy']}: its yaml has a knob named {reserved[0]}, "
            "which is a column of summary.csv; give it another name."
        )
    hyper: tuple[str, ...] = strategy.Hyper._fields
    read = {*hyper, *(field.name for field in fields(strategy))}
    stated = [python_name(knob) for knob in settings.knobs]
    unread = [knob for knob in settings.knobs if python_name(knob) not in read]
    not_stated = [name for name in hyper if name not in stated]
    if unread or not_stated:
        raise UsageError(
            f"strategy={settings['strategy']}: the knobs of its yaml and the class {settings.target} do not match: "
            f"{', '.join(unread + not_stated)} must stand both in the yaml's knobs and in the class or its Hyper."
        )
