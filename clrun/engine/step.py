"""One step of training, and three ways to take many: as it is, in place, and replayed on tensors that stay in place.

    g = gradient(theta)      delta = optimiser(g)      theta <- theta + restrict(delta)

`make_step` is that equation as a function of one run. `EagerStepper` calls it again and again, lifted over a stack,
compiled or not; `InPlaceStepper` is what is fast for one run on a CPU; `GraphStepper` is what a CUDA graph can record.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from clrun.data.stream import Batch
from clrun.engine.state import NORM, QUADRATIC, Run
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy, Tree


def make_step(strategy: Strategy, optimizer: Optimizer) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
    """The step of one run, pure: (run, lr, hp, deal, draw, moment) -> (run, signals {name: ()})."""

    def step(run, lr, hp, tables, draw, moment):
        batch = strategy.data.gather(tables, draw, moment)
        g, loss, aux = whole_gradient(strategy, run.theta, run.state, hp, batch)
        delta, opt = optimizer.update(g, run.opt, lr, run.theta)
        theta = run.theta + strategy.restrict(delta, g, run.theta, run.state, hp, batch)
        state = strategy.after_move(strategy.after_step(run.state, hp, batch, aux), run.theta, theta, aux)
        stats = strategy.net.refreshed(run.theta, run.stats, batch.x)
        return Run(theta, opt, stats, state), signals_of(loss, (g @ g).sqrt(), aux)

    return step


def whole_gradient(
    strategy: Strategy, theta: Tensor, state: Tree, hp: Any, batch: Batch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """g (P,) of the loss and the quadratic, the loss (), aux with the quadratic's value ()."""
    g, loss, aux = strategy.gradient(theta, state, hp, batch)
    quadratic = strategy.quadratic(state, hp)
    if quadratic is None:
        return g, loss, aux
    away = theta - quadratic.mean
    return g + quadratic.gradient(away), loss, aux | {QUADRATIC: quadratic.value(away)}


def masked(step: Callable[..., tuple[Run, dict[str, Tensor]]]) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
    """The step, but a run whose batch is empty stays as it is: its task is over before its neighbours'."""

    def step_or_rest(run, lr, hp, tables, draw, moment):
        new, signals = step(run, lr, hp, tables, draw, moment)
        alive = draw.weight.any()
        signals = {name: torch.where(alive, v, 0) for name, v in signals.items()}
        return tree_map(lambda fresh, old: torch.where(alive, fresh, old), new, run), signals

    return step_or_rest


def signals_of(loss: Tensor, norm: Tensor, aux: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a step says of itself: {name: ()}."""
    return {"loss": loss, NORM: norm} | {name: v for name, v in aux.items() if v.dim() == 0}


# ---------------------------------------------------------------- many steps


# ---------------------------------------------------------------- in place


# ---------------------------------------------------------------- replayed
