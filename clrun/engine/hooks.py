"""The methods of a strategy as the engine calls them: what they return is checked here, in one place for all steppers.

`loss` alone is called, and checked, in `clrun.strategy.gradients`, which a strategy may call too.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clrun.data.batches import Batch, Pool
from clrun.strategy import Aux, Strategy, Tree
from clrun.strategy.returned import (
    check_columns,
    check_gradient,
    check_initial_state,
    check_state,
    check_theta_and_state,
)


def initial_state(strategy: Strategy, theta: Tensor, drawn: Mapping[str, Tensor]) -> Tree:
    """Return the strategy's state before any training. Raise UsageError where it holds anything but tensors."""
    state = strategy.init_drawn(theta, drawn)
    own = type(strategy).init_drawn is not Strategy.init_drawn
    check_initial_state(strategy.init_drawn if own else strategy.init, state)
    return state


def begun_stage(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, fresh: Tensor) -> tuple[Tensor, Tree]:
    """Return what `begin_stage` returns. Raise UsageError where that is not theta (P,) and a state."""
    begun = strategy.begin_stage(theta, state, hp, fresh)
    check_theta_and_state(strategy.begin_stage, begun, theta, state)
    return begun


def gradient(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
    """Return what `gradient` returns. Raise UsageError where that is not a gradient (P,), a loss () and aux."""
    computed = strategy.gradient(theta, state, hp, batch)
    check_gradient(strategy.gradient, computed, theta)
    return computed


def state_after_step(strategy: Strategy, state: Tree, hp: Any, batch: Batch, aux: Aux) -> Tree:
    """Return what `after_step` returns. Raise UsageError where that is built otherwise than the state was."""
    new = strategy.after_step(state, hp, batch, aux)
    check_state(strategy.after_step, new, state)
    return new


def state_after_move(strategy: Strategy, state: Tree, before: Tensor, after: Tensor, aux: Aux) -> Tree:
    """Return what `after_move` returns. Raise UsageError where that is built otherwise than the state was."""
    new = strategy.after_move(state, before, after, aux)
    check_state(strategy.after_move, new, state)
    return new


def after_phase(strategy: Strategy, phase: str, theta: Tensor, state: Tree, hp: Any, pool: Pool) -> tuple[Tensor, Tree]:
    """Return what `after_phase` returns. Raise UsageError where that is not theta (P,) and a state."""
    ended = strategy.after_phase(phase, theta, state, hp, pool)
    check_theta_and_state(strategy.after_phase, ended, theta, state)
    return ended


def health(strategy: Strategy, state: Tree, hp: Any) -> dict[str, Tensor]:
    """Return what `health` returns. Raise UsageError where that is not a number () for each column."""
    columns = strategy.health(state, hp)
    check_columns(strategy.health, columns)
    return columns
