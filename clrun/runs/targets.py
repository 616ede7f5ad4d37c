"""The classes that the yaml files of a run name: a strategy, a network and an optimizer, clrun's or the user's own."""

import hashlib
import importlib
import keyword
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from clrun.config.settings import Settings
from clrun.models import Network
from clrun.optimizers import Optimizer
from clrun.results.columns import SUMMARY_HEAD, SUMMARY_TAIL
from clrun.strategy import Strategy
from clrun.system.errors import UsageError

BASES = {"strategy": Strategy, "model": Network, "optimizer": Optimizer}
Base = TypeVar("Base")


def named_class(settings: Settings, group: str, base: type[Base]) -> type[Base]:
    """Return the class that the yaml of a strategy, model or optimizer names.

    Raise UsageError if there is none, or if it is no subclass of `base`.
    """
    named, where = named_object(settings, group), stated_where(settings, group)
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
    function = named_object(settings, "dataset")
    if not callable(function):
        raise UsageError(
            f"{stated_where(settings, 'dataset')}, which is no function; name one that returns clrun.data.Parts."
        )
    return function


def stated_where(settings: Settings, group: str) -> str:
    """Return the beginning of a message about what the yaml of an option names."""
    chosen = settings.values.get(group, settings.values.get(f"{group}.name"))
    return f"{group}={chosen}: its yaml says _target_: {settings.targets[group]}"


def named_object(settings: Settings, group: str) -> Any:
    """Return what the yaml of an option names; None if its module has nothing of the name. Raise UsageError if there is
    no such module, or if it cannot be imported."""
    module, _, name = settings.targets[group].rpartition(".")
    where = stated_where(settings, group)
    if not module.startswith("clrun."):
        search_current_folder()
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where}, but there is no module {error.name}; is it spelt right and on PYTHONPATH?"
        ) from None
    except Exception as error:  # any: it is the user's code that runs here
        raise UsageError(f"{where}, whose module cannot be imported: {type(error).__name__}: {error}.") from error


def search_current_folder() -> None:
    """Let Python import modules of the user's from the current folder. It changes sys.path for the whole process.

    It stands last, so that a file of the user's such as random.py takes the place of no other module, and it is
    searched for a class of the user's alone.
    """
    if "" not in sys.path:
        sys.path.append("")


def with_sources(settings: Settings) -> Settings:
    """Return the settings with a digest of each file that holds a class which is not clrun's own, under the keys
    `SOURCES`: a run of an edited class is another run.

    Raise UsageError where such a file was edited since another process has computed its digest.
    """
    # a data set of the user's is known by its fingerprint, whatever function made it
    users = [g for g, target in settings.targets.items() if g in BASES and not target.startswith("clrun.")]
    digests = {source_key(group): digest(named_class(settings, group, BASES[group])) for group in users}
    sources = {key: value for key, value in digests.items() if value}
    edited = [key for key, value in sources.items() if settings.values.get(key, value) != value]
    if edited:
        raise UsageError(f"{edited[0]}: the file was edited after the command had begun; type the command again.")
    return replace(settings, values={**settings.values, **sources}) if sources else settings


def source_key(group: str) -> str:
    """Return the key of `SOURCES` for a class of a group."""
    return "source" if group == "strategy" else f"{group}.source"


def digest(cls: type) -> str | None:
    """Return eight hexadecimal digits for the file that defines a class; None where no file does."""
    module = sys.modules[cls.__module__]
    path = Path(getattr(module, "__file__", None) or "")
    return hashlib.sha1(path.read_bytes()).hexdigest()[:8] if path.is_file() else None


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
    reserved = [knob for knob in settings.knobs if knob in (*SUMMARY_HEAD, *SUMMARY_TAIL, "stream", "source")]
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
