"""The methods of a strategy as the engine calls them: what they return is checked here, in one place for all steppers.

`loss` alone is called, and checked, in `clrun.strategy.gradients`, which a strategy may call too.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clrun.data.batches import Batch, Pool
from clrun.data.tasks import TaskTables
from clrun.engine.state import TrainState
from clrun.strategy import Aux, Quadratic, Strategy, Tree
from clrun.strategy.quadratic import check_quadratic
from clrun.strategy.returned import (
    check_answer,
    check_columns,
    check_gradient,
    check_initial_state,
    check_renewed,
    check_scores,
    check_state,
    check_theta,
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


def quadratic(strategy: Strategy, state: Tree, hp: Any) -> Quadratic | None:
    """Return what `quadratic` returns. Raise UsageError where that is neither None nor a Quadratic of ()s and (P,)s."""
    penalty = strategy.quadratic(state, hp)
    check_quadratic(strategy.quadratic, penalty, strategy.net.layout.size)
    return penalty


def restricted(
    strategy: Strategy, delta: Tensor, g: Tensor, theta: Tensor, state: Tree, hp: Any, batch: Batch
) -> Tensor:
    """Return what `restrict` returns. Raise UsageError where that is not a change (P,) of theta."""
    allowed = strategy.restrict(delta, g, theta, state, hp, batch)
    check_theta(strategy.restrict, allowed, theta)
    return allowed


def renewal_due(strategy: Strategy, state: Tree, hp: Any) -> bool:
    """Return what `renewal_due` returns. Raise UsageError where that is neither True nor False."""
    due = strategy.renewal_due(state, hp)
    check_answer(strategy.renewal_due, due)
    return bool(due)


def renewed(strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Return what `renew` returns. Raise UsageError where that is neither None nor a mask (P,) and values (P,)."""
    anew = strategy.renew(theta, state, hp, batch)
    check_renewed(strategy.renew, anew, theta)
    return anew


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


def deployed(strategy: Strategy, current: TrainState, hp: Any) -> Tensor:
    """Return what `deploy` returns for one run. Raise UsageError where that is not parameters (P,)."""
    theta = strategy.deploy(current.evaluated, current.state, hp)
    check_theta(strategy.deploy, theta, current.theta)
    return theta


def scores(strategy: Strategy, current: TrainState, hp: Any, batch: Batch) -> Tensor:
    """Return the scores (B, outputs) of one run, by the parameters that it deploys. Raise UsageError where `scores`, or
    `logits` in its place, returns anything else.

    Each run answers before it is trained, so that `logits` is checked here before a loss reads it.
    """
    answers = strategy.scores(deployed(strategy, current, hp), current.state, hp, batch.x, batch.t)
    own = type(strategy).scores is not Strategy.scores
    check_scores(strategy.scores if own else strategy.logits, answers, len(batch.x), strategy.data.outputs)
    return answers


def adopted(
    strategy: Strategy, current: TrainState, hp: Any, added: Tensor, learnt: Tensor, tables: TaskTables
) -> Tree:
    """Return what `adopt` returns. Raise UsageError where that is built otherwise than the state was."""
    state = strategy.adopt(current.theta, current.state, hp, added, learnt, tables)
    check_state(strategy.adopt, state, current.state)
    return state
