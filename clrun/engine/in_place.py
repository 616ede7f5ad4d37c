"""The training step of one run on a CPU, written over its own memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from clrun.data.stream import Batch
from clrun.data.tasks import TaskTables
from clrun.engine.health import is_monitored
from clrun.engine.state import QUADRATIC, Run
from clrun.engine.step import signals_of
from clrun.engine.steppers import TOLD
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy, Tree, gradient_by_leaf


def norm_of(g: Sequence[Tensor]) -> Tensor:
    """(): of a gradient in pieces. It overflows where the square of an entry does, as does Adam's second moment."""
    return torch.stack([torch.dot(v.view(-1), v.view(-1)) for v in g]).sum().sqrt()


class InPlaceStepper:
    """The same step for one run alone, written over a copy of it: theta and the optimiser's state stay where they lie.

    Where a strategy leaves the gradient to autograd and the optimiser's step as it is, each parameter is a leaf of its
    own that shares theta's storage, and its gradient is used where autograd has put it. A small network's step is bound
    by the memory that it touches: nothing of size P is copied, and what only a reader wants is found now and then.
    """

    def __init__(self, strategy: Strategy, optimizer: Optimizer, run: Run, lr: Tensor, hp: Any, tables: TaskTables):
        self.run, self.lr, self.hp, self.tables = copied(run), lr, hp, tables
        self.restricts, self.watches = overrides(strategy, "restrict"), overrides(strategy, "after_move")
        self.by_leaf = not (self.restricts or overrides(strategy, "gradient"))
        layout, theta = strategy.net.layout, self.run.theta
        self.cut = (lambda v: list(layout.view(v).values())) if self.by_leaf else (lambda v: [v])
        self.theta = theta.detach().requires_grad_() if self.by_leaf else theta
        self.leaves = [v.detach().requires_grad_() for v in self.cut(theta)] if self.by_leaf else []
        leaves = dict(zip(layout.shapes, self.leaves, strict=True)) if self.by_leaf else {}
        self.strategy = strategy.with_leaves(self.theta, leaves) if self.by_leaf else strategy
        self.move = optimizer.in_place(theta, self.run.opt, self.cut)
        self.away, self.precision = torch.empty_like(theta), None
        self.nothing, self.unseen = theta.new_zeros(()), theta.new_tensor(torch.nan)
        self.hold()

    def hold(self) -> None:
        """Look at the state's quadratic; one whose precision is zero, as in the first task, pulls at nothing."""
        self.quadratic = self.strategy.quadratic(self.run.state, self.hp)
        if self.quadratic is None:
            return
        if self.quadratic.precision is not self.precision:
            self.precision = self.quadratic.precision
            self.strength = float(self.quadratic.strength) if self.precision.any() else 0.0
            self.pulls = list(zip(self.cut(self.precision), self.cut(self.away), strict=True))

    def run_steps(self, draws, moments, start, short, tell):
        size, full = draws.rows.shape
        dealt, log = self.strategy.data.batches(self.tables, draws, moments), []
        for step, n in enumerate(short or [full] * size, 1):
            log.append(self.one(next(dealt) if n == full else next(dealt).first(n), is_monitored(start + step)))
            if step % TOLD == 0 or step == size:
                tell((step - 1) % TOLD + 1)
        return {name: torch.stack([entry[name] for entry in log]) for name in log[0]}

    def snapshot(self):
        return copied(self.run)

    def one(self, batch: Batch, look: bool) -> dict[str, Tensor]:
        """-> signals {name: ()}; look: whether those of `MONITORED` are found, which are nan otherwise."""
        strategy, theta, state = self.strategy, self.run.theta, self.run.state
        g, loss, aux = self.gradient(batch)
        if self.quadratic is not None:
            g, aux = self.pulled(g, look, aux)
        stats = strategy.net.refreshed(theta, self.run.stats, batch.x)
        before = theta.clone() if self.restricts or self.watches else theta
        self.move(g, self.lr)
        if self.restricts:
            theta.copy_(before + strategy.restrict(theta - before, g[0], before, state, self.hp, batch))
        new = strategy.after_step(state, self.hp, batch, aux)
        new = apart(strategy.after_move(new, before, theta, aux), theta) if self.watches else new
        self.run = self.run._replace(stats=stats, state=new)
        if new is not state:
            self.hold()
        return signals_of(loss, norm_of(g) if look else self.unseen, aux)

    def gradient(self, batch: Batch) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """g, cut as theta is, loss (), aux."""
        rest = self.run.state, self.hp, batch
        if self.by_leaf:
            return gradient_by_leaf(self.strategy.loss, self.theta, self.leaves, self.cut, *rest)
        g, loss, aux = self.strategy.gradient(self.theta, *rest)
        return [g], loss, aux

    def pulled(self, g: list[Tensor], look: bool, aux: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """g with the quadratic's gradient, in place where no hook of the strategy has seen g; aux with its value."""
        if self.strength == 0:
            return g, aux | {QUADRATIC: self.nothing}
        torch.sub(self.run.theta, self.quadratic.mean, out=self.away)
        for i, (precision, away) in enumerate(self.pulls):
            onto = g[i] if self.by_leaf else g[i].clone()
            g[i] = onto.addcmul_(precision, away, value=self.strength)
        return g, aux | {QUADRATIC: self.quadratic.value(self.away) if look else self.unseen}


def copied(run: Run) -> Run:
    """With a copy of what is written over: the strategy's state and the statistics are exchanged, never changed."""
    return run._replace(theta=run.theta.clone(), opt=tree_map(torch.clone, run.opt))


def overrides(strategy: Strategy, hook: str) -> bool:
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def apart(state: Tree, theta: Tensor) -> Tree:
    """A state that shares no memory with theta, which is about to be written over."""
    place = theta.untyped_storage().data_ptr()
    return tree_map(lambda v: v.clone() if v.untyped_storage().data_ptr() == place else v, state)
