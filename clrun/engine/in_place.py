"""The training step of one run on a CPU, written over the memory of theta.

The equation is that of `step.make_step`. A small network's step is bound by the memory that it touches, so

* theta and the optimizer's state stay where they are, and the optimizer's fused kernel writes over them;
* where a strategy overrides neither `gradient` nor `restrict`, autograd differentiates by the parameters one by one and
  their gradients are used where autograd has put them: nothing of size P is concatenated;
* the gradient of a quadratic penalty is added to them in place;
* the signals that cost a pass over theta are computed at some steps only (see `health`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.batches import Batch
from clrun.data.tasks import TaskTables
from clrun.engine import hooks
from clrun.engine.health import is_monitored
from clrun.engine.prequential import answered_first
from clrun.engine.state import ANSWERS, QUADRATIC, Average, Signals, TrainState
from clrun.engine.step import clip_scale, renewed_state, signals_of
from clrun.engine.steppers import Block, counting
from clrun.models import BatchNormRecord, SplitTheta, updated_statistics
from clrun.optimizers import Cut, Optimizer
from clrun.strategy import Quadratic, Strategy, Tree, gradient_by_leaf

Pieces = list[Tensor]  # a vector (P,), split into its named parts: views of it, or tensors of their shapes


class InPlaceStepper:
    """A stepper for one run alone. It works on a copy of the run that it is given."""

    def __init__(
        self, strategy: Strategy, optimizer: Optimizer, current: TrainState, lr: Tensor, hp: Any, tables: TaskTables,
        decay: float | None = None, clip_norm: float | None = None, prequential: bool = False,
    ):  # fmt: skip
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.prequential = prequential  # whether each batch is tested before it is learnt
        self.decay = decay  # of the average of theta; None: there is none
        self.strategy, self.current, self.lr, self.hp, self.tables = strategy, copied(current), lr, hp, tables
        self.restricts, self.watches_moves = overrides(strategy, "restrict"), overrides(strategy, "after_move")
        self.renews = overrides(strategy, "renew")
        self.by_leaf = not (self.restricts or overrides(strategy, "gradient"))
        layout, theta = strategy.net.layout, self.current.theta
        self.split: Cut = (lambda v: list(layout.view(v).values())) if self.by_leaf else (lambda v: [v])
        self.split_theta = SplitTheta.of(layout, theta)
        self.move = optimizer.in_place(theta, self.current.opt, self.split)
        self.penalty = InPlacePenalty(theta, self.split)
        self.penalty.update(hooks.quadratic(strategy, self.current.state, hp))
        self.not_monitored = theta.new_tensor(torch.nan)
        self.full = 0  # samples of a batch that is not cut

    def prepare(self, block: Block) -> None:
        """Do nothing."""

    def run_steps(self, block: Block, on_steps: Callable[[int], None]) -> Signals:
        size, full = block.samples.rows.shape
        self.full = full
        sizes = block.sizes or [full] * size
        batches, log = self.strategy.data.batches(self.tables, block.samples, block.context), []
        rates = (self.lr * block.context.rate).expand(size).unbind()
        for k in counting(range(size), on_steps):
            monitored = is_monitored(block.start + k + 1)
            # The batch is let go of after the step: its memory must be free before the next ones are gathered.
            batch = next(batches) if sizes[k] == full else next(batches).first(sizes[k])
            log.append(self.take_step(batch, rates[k], monitored))
            del batch
        return {name: torch.stack([signals[name] for signals in log], -1) for name in log[0]}

    def snapshot(self) -> TrainState:
        return copied(self.current)

    def result(self) -> TrainState:
        return self.current

    def take_step(self, batch: Batch, lr: Tensor, monitored: bool) -> Signals:
        """Take one step and return its signals {name: ()}; those in `MONITORED` are nan unless `monitored`."""
        tested = {ANSWERS: self.answers(batch)} if self.prequential else {}
        passes: list[BatchNormRecord] = []  # what batch norm sees in this step
        # Batches are cut to their size, so that all their samples are there.
        strategy, theta, state = (
            self.strategy.train_mode(None, passes, batch.noise),
            self.current.theta,
            self.current.state,
        )
        g, loss, aux = self.gradient(strategy, batch)
        if self.penalty.quadratic is not None:
            g = self.penalty.add_gradient(g, in_place=self.by_leaf)
            aux = aux | {QUADRATIC: self.penalty.value() if monitored else self.not_monitored}
        before = theta.clone() if self.restricts or self.watches_moves else theta
        renewal_due = self.renews and hooks.renewal_due(strategy, state, self.hp)
        renewed = hooks.renewed(strategy, theta, state, self.hp, batch) if renewal_due else None
        norm = norm_of(g) if monitored or self.clip_norm is not None else self.not_monitored
        if self.clip_norm is not None:
            scale = clip_scale(norm, self.clip_norm)
            g = [v * scale for v in g]
        self.move(g, lr)
        if self.restricts:
            theta.copy_(before + hooks.restricted(strategy, theta - before, g[0], before, state, self.hp, batch))
        if renewed is not None:
            self.write_renewed(*renewed)
        if self.decay is not None:
            self.average(self.decay)
        new = hooks.state_after_step(strategy, state, self.hp, batch, aux)
        if self.watches_moves:
            new = unaliased(hooks.state_after_move(strategy, new, before, theta, aux), theta)
        self.current = self.current._replace(stats=updated_statistics(self.current.stats, passes), state=new)
        if not same_state(new, state):
            self.penalty.update(hooks.quadratic(strategy, new, self.hp))
        return signals_of(loss, norm if monitored else self.not_monitored, aux) | tested

    def answers(self, batch: Batch) -> Tensor:
        """Return whether each sample of a batch is answered correctly, as 1 or 0: (B,), also where it was cut."""
        right = answered_first(self.strategy, self.current, self.hp, batch)
        return pad(right, (0, self.full - len(right)))

    def average(self, decay: float) -> None:
        """Write the average after a step over the one before."""
        average = self.current.average
        assert isinstance(average, Average)
        average.theta.lerp_(self.current.theta, average.weight(decay))
        average.steps.add_(1)

    def write_renewed(self, mask: Tensor, values: Tensor) -> None:
        """Write new values over theta where mask (P,) is set, and the optimizer's initial state over its own."""
        theta = self.current.theta
        theta.copy_(torch.where(mask, values, theta))
        fresh = renewed_state(self.current.opt, self.optimizer.init(theta), mask)
        for old, new in zip(tree_leaves(self.current.opt), tree_leaves(fresh), strict=True):
            if new is not old:
                old.copy_(new)

    def gradient(self, strategy: Strategy, batch: Batch) -> tuple[Pieces, Tensor, dict[str, Tensor]]:
        """Return the gradient of the loss, split as theta is, the loss () and aux."""
        arguments = self.current.state, self.hp, batch
        if self.by_leaf:
            leaves = self.split_theta.leaves
            return gradient_by_leaf(strategy.loss, self.split_theta, leaves, self.split, *arguments)
        g, loss, aux = hooks.gradient(strategy, self.current.theta, *arguments)
        return [g.contiguous()], loss, aux  # one that is a number expanded to P has no memory for the kernel to read


class InPlacePenalty:
    """A strategy's quadratic penalty at theta, whose gradient is added to another one without new memory of size P."""

    def __init__(self, theta: Tensor, split: Cut):
        self.theta, self.split = theta, split
        self.away = torch.empty_like(theta)  # theta - mean
        self.away_pieces = split(self.away)
        self.quadratic: Quadratic | None = None
        self.precision: Pieces = []
        self.has_precision = False  # whether any entry is not zero
        self.strength = 0.0  # 0 where the precision is zero, as in the first task
        self.zero = theta.new_zeros(())

    def update(self, quadratic: Quadratic | None) -> None:
        """Exchange the penalty, None for none.

        Some strategies' states change at every step, but their precision only at the end of a task: as looking through
        it is a pass over theta, that is done only for a tensor that is not the one before. The strength is read anew.
        """
        previous, self.quadratic = self.quadratic, quadratic
        if quadratic is None:
            return
        if previous is None or not same_tensor(quadratic.precision, previous.precision):
            self.has_precision = bool(quadratic.precision.any())
            self.precision = self.split(quadratic.precision)
        self.strength = float(quadratic.strength) if self.has_precision else 0.0

    def add_gradient(self, g: Pieces, in_place: bool) -> Pieces:
        """Return g with the gradient of the penalty added. in_place: whether the pieces of g may be written over."""
        if self.quadratic is None or self.strength == 0:
            return g
        torch.sub(self.theta, self.quadratic.mean, out=self.away)
        pieces = zip(g if in_place else [v.clone() for v in g], self.precision, self.away_pieces, strict=True)
        return [v.addcmul_(precision, away, value=self.strength) for v, precision, away in pieces]

    def value(self) -> Tensor:
        """Return the penalty () at the theta of the last `add_gradient`."""
        return self.zero if self.quadratic is None or self.strength == 0 else self.quadratic.value(self.away)


def norm_of(g: Pieces) -> Tensor:
    """Return the norm () of a gradient in pieces. It overflows where the square of an entry does, as does Adam's second
    moment: that is how a run is noticed whose optimizer no longer moves."""
    return torch.stack([torch.dot(v.view(-1), v.view(-1)) for v in g]).sum().sqrt()


def copied(current: TrainState) -> TrainState:
    """Return the run with a copy of what steps write over; its state and statistics are exchanged, never changed."""
    average = tree_map(torch.clone, current.average)
    return current._replace(theta=current.theta.clone(), opt=tree_map(torch.clone, current.opt), average=average)


def overrides(strategy: Strategy, hook: str) -> bool:
    """Return whether the strategy's class has its own version of a hook."""
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def unaliased(state: Tree, theta: Tensor) -> Tree:
    """Return the state with copies of what shares memory with theta, which later steps write over."""
    return tree_map(lambda v: v.clone() if shares_memory(v, theta) else v, state)


def shares_memory(v: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are views of the same memory."""
    return StorageWeakRef(v.untyped_storage()).cdata == StorageWeakRef(other.untyped_storage()).cdata


def same_tensor(v: Tensor, other: Tensor) -> bool:
    """Return whether two names stand for one tensor object."""
    # A state is exchanged, never changed, so one object has one value, and no pass over its elements is needed. Two
    # objects with equal values only cost an update that changes nothing.
    return v is other


def same_state(state: Tree, other: Tree) -> bool:
    """Return whether two names stand for one state object, as where `after_step` has returned its argument."""
    return state is other  # for the reason in `same_tensor`
