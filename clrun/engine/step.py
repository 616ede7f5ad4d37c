"""The training step of one run, as a pure function of tensors.

    g = clip(gradient(theta))      delta = optimizer(g, lr * rate)      theta <- theta + restrict(delta)

`make_step` is that equation. It is what stacked runs on a CPU and compiled steps execute. A run that is trained alone
on a CPU executes `in_place.InPlaceStepper` instead, and a GPU executes `static_step.StaticStep`: the same equation,
written over the memory of theta.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from clrun.data.batches import Batch, SampleIndex, StepContext
from clrun.data.tasks import TaskTables
from clrun.engine import hooks
from clrun.engine.prequential import answered_first
from clrun.engine.state import ANSWERS, NORM, QUADRATIC, Average, Signals, TrainState
from clrun.models import BatchNormRecord, updated_statistics
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy, Tree, dot

StepValues = tuple[Tensor, Any, TaskTables]  # lr (R,), the strategy's Hyper, the tables: the same at every step

# (run, lr (), the strategy's Hyper, tables, samples, context) -> the run after the step, signals {name: ()}
Step = Callable[[TrainState, Tensor, Any, TaskTables, SampleIndex, StepContext], tuple[TrainState, Signals]]


class StepKind(NamedTuple):
    """What is done in a step beyond what is done in every step."""

    monitored: bool  # the signals `MONITORED` are computed
    masked: bool  # some run of the stack has no samples, and stays as it is


def make_step(
    strategy: Strategy,
    optimizer: Optimizer,
    decay: float | None = None,
    clip_norm: float | None = None,
    prequential: bool = False,
    monitored: bool = True,
) -> Step:
    """Return the step of one run. It changes none of its arguments.

    decay: of the average of theta; None: there is none. clip_norm: the largest norm of the gradient that is handed to
    the optimizer; None: any. prequential: whether each batch is tested before it is learnt. monitored: whether the
    signals `MONITORED`, which cost a pass over theta, are computed; otherwise they are nan.
    """

    def step(
        current: TrainState, lr: Tensor, hp: Any, tables: TaskTables, samples: SampleIndex, context: StepContext
    ) -> tuple[TrainState, Signals]:
        batch = strategy.data.gather(tables, samples, context)
        tested = {ANSWERS: answered_first(strategy, current, hp, batch)} if prequential else {}
        passes: list[BatchNormRecord] = []  # what batch norm sees in this step
        training = strategy.train_mode(batch.weight, passes, batch.noise)
        g, loss, aux = whole_gradient(training, current.theta, current.state, hp, batch, monitored)
        norm = dot(g, g).sqrt() if monitored or clip_norm is not None else loss.new_full((), torch.nan)
        g = g if clip_norm is None else clip_scale(norm, clip_norm) * g
        delta, opt = optimizer.update(g, current.opt, lr * context.rate, current.theta)
        theta = current.theta + hooks.restricted(training, delta, g, current.theta, current.state, hp, batch)
        renewed = hooks.renewed(training, current.theta, current.state, hp, batch)
        if renewed is not None:
            mask, values = renewed
            initial = optimizer.init(current.theta)
            theta, opt = torch.where(mask, values, theta), renewed_state(opt, initial, mask)
        state = hooks.state_after_step(training, current.state, hp, batch, aux)
        state = hooks.state_after_move(training, state, current.theta, theta, aux)
        stats = updated_statistics(current.stats, passes)
        average = current.average
        if isinstance(average, Average) and decay is not None:
            average = average.after(theta, decay)
        return TrainState(theta, opt, stats, state, average), signals_of(loss, norm, aux) | tested

    return step


def clip_scale(norm: Tensor, largest: float) -> Tensor:
    """Return the factor () of a gradient of this norm () that makes it no longer than `largest`, as in
    `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013, algorithm 1)."""
    return (largest / (norm + 1e-6)).clamp(max=1)


def renewed_state(opt: Tree, initial: Tree, mask: Tensor) -> Tree:
    """Return the optimizer's state with initial values where mask (P,) is set.

    What has another shape, such as a counter, stays as it is.
    """
    return tree_map(lambda v, new: torch.where(mask, new, v) if v.shape == mask.shape else v, opt, initial)


def whole_gradient(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch, monitored: bool = True
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the gradient g (P,) of loss and quadratic penalty together, the loss () without the penalty, and aux with
    the value () of the penalty, nan unless `monitored`."""
    g, loss, aux = hooks.gradient(strategy, theta, state, hp, batch)
    quadratic = hooks.quadratic(strategy, state, hp)
    if quadratic is None:
        return g, loss, aux
    away = theta - quadratic.mean
    value = quadratic.value(away) if monitored else loss.new_full((), torch.nan)
    return g + quadratic.gradient(away), loss, aux | {QUADRATIC: value}


def skipping_empty_batches(step: Step) -> Step:
    """Return the step with one exception: a run whose batch is empty stays as it is, with signals of 0. In a stack the
    task of one run may be over before its neighbours'."""

    def step_or_stay(
        current: TrainState, lr: Tensor, hp: Any, tables: TaskTables, samples: SampleIndex, context: StepContext
    ) -> tuple[TrainState, Signals]:
        new, signals = step(current, lr, hp, tables, samples, context)
        active = samples.weight.any()
        signals = {name: torch.where(active, v, 0) for name, v in signals.items()}
        return tree_map(lambda fresh, old: torch.where(active, fresh, old), new, current), signals

    return step_or_stay


def signals_of(loss: Tensor, norm: Tensor, aux: dict[str, Tensor]) -> Signals:
    """Return what a step reports about itself, {name: ()}: its loss, the gradient's norm, and the numbers in `aux`."""
    return {"loss": loss, NORM: norm} | {name: v for name, v in aux.items() if v.dim() == 0}
