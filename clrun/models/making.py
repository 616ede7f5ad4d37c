"""A torch.nn.Module from the path of its class, or of a function that returns one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from clrun.models.probing import is_meta
from clrun.system.errors import UsageError
from clrun.system.imports import named_object


def made_by(target: str, offered: Mapping[str, Any], args: Mapping[str, Any], where: str) -> nn.Module:
    """Return the module that the class or function `target` makes of `args`, and of those of `offered` that it has a
    parameter for. Raise UsageError, which begins with `where`, if there is none, or if it cannot be made."""
    maker = named_object(target, where) if "." in target else None
    if not callable(maker):
        raise UsageError(f"{where}: there is no such class; type package.Class of a torch.nn.Module.")
    try:
        taken = set(inspect.signature(maker).parameters)
    except ValueError:  # a class written in C has no signature
        taken = set()
    arguments = {name: value for name, value in offered.items() if name in taken} | dict(args)
    return called(lambda: maker(**arguments), where)


def called(make: Callable[[], Any], where: str) -> nn.Module:
    """Return the module that `make` returns. Raise UsageError, which begins with `where`, if it fails or returns
    none."""
    try:
        module = make()
    except UsageError:
        raise
    except Exception as error:  # any: it is the user's code that runs here
        if is_meta():
            raise NotImplementedError(f"{where} cannot be made without values.") from error
        reason = " ".join(str(error).split())
        lacks = isinstance(error, TypeError) and "missing" in reason and "argument" in reason
        advice = f"; give it by {where.partition('.')[0]}.args={{name:value}}" if lacks else ""
        raise UsageError(f"{where} cannot be made: {type(error).__name__}: {reason}{advice}.") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{where} makes a {type(module).__name__}; name a class of a torch.nn.Module.")
    return module
