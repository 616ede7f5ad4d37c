"""What the methods of a strategy must return, and the refusal of anything else.

A value of another kind would fail later, in lines of clrun, or train on something that is not meant. Only types and
shapes are looked at, never the numbers of a tensor. So the checks cost no kernel, and hold inside `torch.vmap` and
while a step is compiled or recorded.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from clrun.system.errors import UsageError
from clrun.system.user_frames import place_of

Method = Callable[..., Any]  # a method of a strategy, bound to it; or a function that takes the place of one

LOSS = "(loss, aux): loss a tensor of shape (), and aux a dictionary of tensors by name, {} for none"
STATE = "a state that holds tensors and nothing else, such as a NamedTuple of them, or () for none"
COLUMNS = "a dictionary of tensors of shape () by column, {} for none"
TENSORS = "a dictionary of tensors by name, {} for none"

# The columns of health.csv, and the signals of steps, that clrun itself fills; a method that named its own so would
# write over them.
RESERVED = frozenset(
    {
        *("task", "steps", "steps_not_finite", "loss", "gradient_norm", "average_distance"),
        *("quadratic", "present", "online_correct", "online_samples", "online_answers"),
    }
)


# ---------------------------------------------------------------- a rule for each kind of method


def check_loss(method: Method, returned: Any) -> None:
    """Raise UsageError unless a loss () and aux were returned."""
    if not (is_tuple_of(returned, 2) and is_scalar(returned[0]) and holds_tensors(returned[1])):
        raise wrong(method, returned, LOSS)
    check_names(method, returned[1])


def check_gradient(method: Method, returned: Any, theta: Tensor) -> None:
    """Raise UsageError unless a gradient with the shape (P,) of theta, a loss () and aux were returned."""
    right = is_tuple_of(returned, 3) and is_like(returned[0], theta) and is_scalar(returned[1])
    if not (right and holds_tensors(returned[2])):
        g = f"g a tensor of the shape {tuple(theta.shape)} of theta"
        raise wrong(method, returned, LOSS.replace("(loss, aux): ", f"(g, loss, aux): {g}, "))
    check_names(method, returned[2])


def check_initial_state(method: Method, returned: Any) -> None:
    """Raise UsageError unless a tree of tensors was returned."""
    if not all(isinstance(leaf, Tensor) for leaf in tree_leaves(returned)):
        raise wrong(method, returned, STATE)


def check_state(method: Method, returned: Any, state: Any) -> None:
    """Raise UsageError unless a state was returned that is built as the one before it, with tensors of its shapes."""
    if not is_like(returned, state):
        raise wrong(method, returned, f"the state as init has made it, {shown(state)}")


def check_theta_and_state(method: Method, returned: Any, theta: Tensor, state: Any) -> None:
    """Raise UsageError unless parameters with the shape (P,) of theta and a state like the one before were returned."""
    if not (is_tuple_of(returned, 2) and is_like(returned[0], theta) and is_like(returned[1], state)):
        must = f"(theta, state): theta a tensor of shape {tuple(theta.shape)}, and the state as init has made it"
        raise wrong(method, returned, f"{must}, {shown(state)}")


def check_theta(method: Method, returned: Any, theta: Tensor) -> None:
    """Raise UsageError unless a tensor with the shape (P,) of theta was returned."""
    if not (is_like(returned, theta) and returned.is_floating_point()):
        raise wrong(method, returned, f"a tensor of numbers of the shape {tuple(theta.shape)} of theta")


def check_renewed(method: Method, returned: Any, theta: Tensor) -> None:
    """Raise UsageError unless None, or a mask and values with the shape (P,) of theta, were returned."""
    if returned is None:
        return
    right = is_tuple_of(returned, 2) and all(is_like(value, theta) for value in returned)
    if not (right and returned[0].dtype == torch.bool and returned[1].is_floating_point()):
        must = f"(mask, values), a tensor of True and False and one of numbers, both of the shape {tuple(theta.shape)}"
        raise wrong(method, returned, f"{must} of theta; or None")


def check_scores(method: Method, returned: Any, samples: int, outputs: int) -> None:
    """Raise UsageError unless a number for each sample and each output was returned."""
    if not (isinstance(returned, Tensor) and returned.shape == (samples, outputs)):
        must = f"a tensor of shape ({samples}, {outputs}), a row for each sample and a column for each output"
        raise wrong(method, returned, must)


def check_columns(method: Method, returned: Any) -> None:
    """Raise UsageError unless numbers () by the name of a column were returned."""
    if not (holds_tensors(returned) and all(is_scalar(v) for v in returned.values())):
        raise wrong(method, returned, COLUMNS)
    check_names(method, returned)


def check_names(method: Method, columns: Mapping[str, Any]) -> None:
    """Raise UsageError for a column that clrun fills itself."""
    if not RESERVED.isdisjoint(columns):
        taken = next(name for name in columns if name in RESERVED)
        raise wrong(method, columns, f"another name for {taken}, which is clrun's own")


# ---------------------------------------------------------------- a rule for each kind of method on the host


def check_tensors(method: Method, returned: Any) -> None:
    """Raise UsageError unless tensors by name were returned."""
    if not holds_tensors(returned):
        raise wrong(method, returned, TENSORS)


def check_tasks(method: Method, returned: Any) -> None:
    """Raise UsageError unless the numbers of tasks were returned, Python's or NumPy's."""
    several = isinstance(returned, Sequence | Set) and not isinstance(returned, str)
    if not (several and all(isinstance(task, Integral) for task in returned)):
        raise wrong(method, returned, "the numbers of tasks, from 0, such as (stage,), () for none")


def check_rows(method: Method, returned: Any) -> None:
    """Raise UsageError unless rows (n,) of samples were returned."""
    is_rows = lambda v: isinstance(v, Tensor) and v.dim() == 1 and v.dtype == torch.int64  # noqa: E731
    if not (isinstance(returned, Sequence) and all(map(is_rows, returned))):
        raise wrong(method, returned, "a list of tensors (n,) of row numbers, as `own` is")


def check_answer(method: Method, returned: Any) -> None:
    """Raise UsageError unless True or False was returned, or 1 or 0: Python's, NumPy's or in a tensor ()."""
    if not (isinstance(returned, Integral | np.bool_) or (is_scalar(returned) and not returned.is_floating_point())):
        raise wrong(method, returned, "True or False")


def check_count(method: Method, returned: Any) -> None:
    """Raise UsageError unless a whole number was returned, Python's or NumPy's."""
    if not isinstance(returned, Integral):
        raise wrong(method, returned, "a whole number, such as int(memory.held)")


def check_sentence(method: Method, returned: Any) -> None:
    """Raise UsageError unless a sentence was returned, or None."""
    if not (returned is None or isinstance(returned, str)):
        raise wrong(method, returned, "a sentence, or None for no objection")


def check_sentences(method: Method, returned: Any) -> None:
    """Raise UsageError unless a list of sentences was returned."""
    if not (isinstance(returned, list | tuple) and all(isinstance(text, str) for text in returned)):
        raise wrong(method, returned, "a list of sentences, [] for none")


# ---------------------------------------------------------------- what a value is


def is_tuple_of(value: Any, length: int) -> bool:
    """Return whether a value is a tuple of so many entries."""
    return isinstance(value, tuple) and len(value) == length


def is_scalar(value: Any) -> bool:
    """Return whether a value is a tensor ()."""
    return isinstance(value, Tensor) and value.dim() == 0


def holds_tensors(value: Any) -> bool:
    """Return whether a value is a dictionary of tensors by name."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def is_like(new: Any, old: Any) -> bool:
    """Return whether two trees of tensors are built of the same classes, with tensors of the same shapes.

    The types of their numbers are not compared: `clrun-check` does that.
    """
    if not torch.compiler.is_compiling() and new is old:  # the compiler does not read whether two tuples are one
        return True
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and new.shape == old.shape
    if type(new) is not type(old):
        return False
    if isinstance(old, dict):
        return new.keys() == old.keys() and all(is_like(new[key], old[key]) for key in old)
    if isinstance(old, tuple | list):
        return len(new) == len(old) and all(is_like(a, b) for a, b in zip(new, old, strict=True))
    return True


# ---------------------------------------------------------------- the message


def wrong(method: Method, returned: Any, must: str) -> UsageError:
    """Return the error of a method that has returned something else than it must."""
    place, name = place_of(method), name_of(method)
    return UsageError(
        f"{'' if place is None else f'{place}: '}{name} returned {shown(returned)}; let it return {must}."
    )


def name_of(method: Method) -> str:
    """Return a method with the class of its object, such as 'Decay.loss'; of a function its name."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", type(method).__name__)
    if owner is None:
        return name
    cls = owner if isinstance(owner, type) else type(owner)  # that of a class method is the class itself
    return f"{cls.__name__}.{name}"


def shown(value: Any) -> str:
    """Return a value as a user sees it in a message: classes and shapes, such as 'State(anchor: tensor (7,))'."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, tuple) and (names := getattr(value, "_fields", ())):
        return f"{type(value).__name__}({entries(dict(zip(names, value, strict=True)))})"
    if isinstance(value, Mapping):
        return f"{{{entries(value)}}}"
    if isinstance(value, tuple | list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        return f"{left}{', '.join(map(shown, value))}{right}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, bool | int | float | str) else what_it_is(value)


def entries(values: Mapping[Any, Any]) -> str:
    """Return names with what they stand for, as in `shown`."""
    return ", ".join(f"{name}: {shown(value)}" for name, value in values.items())


def what_it_is(value: Any) -> str:
    """Return None as such, and the class of any other value."""
    return "None" if value is None else f"an object of the class {type(value).__name__}"
