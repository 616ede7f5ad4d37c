"""The classes that the yaml files of a run name."""

import hashlib
import importlib
import keyword
import sys
from dataclasses import fields, replace
from pathlib import Path

from clrun.config.settings import Settings
from clrun.models import Network
from clrun.optimizers import Optimizer
from clrun.results.outcome import HEAD, TAIL
from clrun.strategy import Strategy
from clrun.system.errors import UsageError


def named_class(settings: Settings, group: str, kind: type) -> type:
    """The class that the yaml of a strategy, model or optimiser names. UsageError if there is none of that kind."""
    module, _, name = settings.targets[group].rpartition(".")
    chosen = settings.values.get(group, settings.values.get(f"{group}.name"))
    where = f"{group}={chosen}: its yaml says _target_: {settings.targets[group]}"
    if "" not in sys.path:  # it may lie beside the user's own files
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where}, but there is no module {error.name}; is it spelt right and on PYTHONPATH?"
        ) from None
    except Exception as error:  # any: it is the user's code that runs here
        raise UsageError(f"{where}, whose module cannot be imported: {type(error).__name__}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        public = ".".join(kind.__module__.split(".")[:2])  # the face of the package that defines it
        raise UsageError(f"{where}, which is not a subclass of {public}.{kind.__name__}; name one that is.")
    return found


def with_sources(settings: Settings) -> Settings:
    """The settings with a digest of each file that holds a class which is not clrun's own, as `SOURCES`, so that an
    edited class makes another run. UsageError where it was edited since another process found its digest."""
    kinds = {"strategy": Strategy, "model": Network, "optimizer": Optimizer}
    own = [group for group, target in settings.targets.items() if not target.startswith("clrun.")]
    found = {group: digest(named_class(settings, group, kinds[group])) for group in own}
    written = {"source" if group == "strategy" else f"{group}.source": v for group, v in found.items() if v}
    edited = [key for key, v in written.items() if settings.values.get(key, v) != v]
    if edited:
        raise UsageError(f"{edited[0]}: the file was edited after the command had begun; type the command again.")
    return replace(settings, values={**settings.values, **written}) if written else settings


def digest(own: type) -> str | None:
    """Eight hex digits of the file that holds a class; None where it is in no file."""
    module = sys.modules[own.__module__]
    path = Path(getattr(module, "__file__", None) or "")
    return hashlib.sha1(path.read_bytes()).hexdigest()[:8] if path.is_file() else None


def strategy_class(settings: Settings) -> type[Strategy]:
    """The strategy's class. UsageError if there is none, or if it does not read its yaml's knobs."""
    found = named_class(settings, "strategy", Strategy)
    refuse_unclaimed(found, settings)
    return found


def spelling(knob: str) -> str:
    """A knob's name in Python: `lambda` is `lambda_`."""
    return f"{knob}_" if keyword.iskeyword(knob) else knob


def refuse_unclaimed(strategy: type[Strategy], settings: Settings) -> None:
    """A knob that neither Hyper nor a field reads would be silently without effect."""
    read = {*strategy.Hyper._fields, *(f.name for f in fields(strategy))}
    reserved = [knob for knob in settings.knobs if knob in (*HEAD, *TAIL, "stream", "source")]
    if reserved:
        raise UsageError(
            f"strategy={settings['strategy']}: its yaml has a knob named {reserved[0]}, "
            "which is a column of summary.csv; give it another name."
        )
    idle = [knob for knob in settings.knobs if spelling(knob) not in read]
    unset = [name for name in strategy.Hyper._fields if name not in map(spelling, settings.knobs)]
    if idle or unset:
        raise UsageError(
            f"strategy={settings['strategy']}: the knobs of its yaml and the class {settings.target} do not match: "
            f"{', '.join(idle + unset)} must stand both in the yaml's knobs and in the class or its Hyper."
        )
