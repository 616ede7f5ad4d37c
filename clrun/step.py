"""One step of training, and three ways to take many: as it is, in place, and replayed on tensors that stay in place.

    g = gradient(theta)      delta = optimiser(g)      theta <- theta + restrict(delta)

`make_step` is that equation as a function of one run. `Steps` calls it again and again, lifted over a stack, compiled
or not; `InPlace` is what is fast for one run on a CPU; `Replayed` is what a CUDA graph can record.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.dealing import Deal
from clrun.models import Statistics
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy, Tree, gradient_by_leaf
from clrun.stream import Batch, Draw, Moment, dealt_out

NORM, QUADRATIC = LOOKED_AT = ("gradient_norm", "quadratic")  # signals that cost a pass over theta
FIRST, LOOK = 4, 16  # they are found at the first steps of a pass, then at every sixteenth
TOLD = 64  # steps between two words on how far it is
WARM_UP = 3  # steps before a graph is recorded, in which libraries set themselves up


class Run(NamedTuple):
    """One run; in a stack every leaf has a leading R."""

    theta: Tensor  # (P,)
    opt: Tree
    stats: Statistics
    own: Tree


def make_step(strategy: Strategy, optimizer: Optimizer) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
    """The step of one run, pure: (run, lr, hp, deal, draw, moment) -> (run, signals {name: ()})."""

    def step(run, lr, hp, deal, draw, moment):
        batch = strategy.data.gathered(deal, draw, moment)
        g, loss, aux = whole_gradient(strategy, run.theta, run.own, hp, batch)
        delta, opt = optimizer.update(g, run.opt, lr, run.theta)
        theta = run.theta + strategy.restrict(delta, g, run.theta, run.own, hp, batch)
        own = strategy.after_move(strategy.after_step(run.own, hp, batch, aux), run.theta, theta, aux)
        stats = strategy.net.refreshed(run.theta, run.stats, batch.x)
        return Run(theta, opt, stats, own), signals_of(loss, (g @ g).sqrt(), aux)

    return step


def whole_gradient(
    strategy: Strategy, theta: Tensor, own: Tree, hp: Any, batch: Batch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """g (P,) of the loss and the quadratic, the loss (), aux with the quadratic's value ()."""
    g, loss, aux = strategy.gradient(theta, own, hp, batch)
    quadratic = strategy.quadratic(own, hp)
    if quadratic is None:
        return g, loss, aux
    away = theta - quadratic.mean
    return g + quadratic.gradient(away), loss, aux | {QUADRATIC: quadratic.value(away)}


def masked(step: Callable[..., tuple[Run, dict[str, Tensor]]]) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
    """The step, but a run whose batch is empty stays as it is: its task is over before its neighbours'."""

    def step_or_rest(run, lr, hp, deal, draw, moment):
        new, signals = step(run, lr, hp, deal, draw, moment)
        alive = draw.weight.any()
        signals = {name: torch.where(alive, v, 0) for name, v in signals.items()}
        return tree_map(lambda fresh, old: torch.where(alive, fresh, old), new, run), signals

    return step_or_rest


def signals_of(loss: Tensor, norm: Tensor, aux: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a step says of itself: {name: ()}."""
    return {"loss": loss, NORM: norm} | {name: v for name, v in aux.items() if v.dim() == 0}


def norm_of(g: Sequence[Tensor]) -> Tensor:
    """(): of a gradient in pieces. It overflows where the square of an entry does, as does Adam's second moment."""
    return torch.stack([torch.dot(v.view(-1), v.view(-1)) for v in g]).sum().sqrt()


def looked_at(step: int) -> bool:
    """Whether the signals that cost a pass over theta are found at this step of a pass, from 1."""
    return step <= FIRST or step % LOOK == 0


def looks(steps: int) -> Tensor:
    """(S,) float64: how many steps of a pass each one stands for, those that are not looked at for none."""
    weights = [(1.0 if step <= FIRST else LOOK) * looked_at(step) for step in range(1, steps + 1)]
    return torch.tensor(weights, dtype=torch.float64)


def mean_of_looks(values: Tensor, weights: Tensor) -> float:
    """values, weights (S,) -> the mean over all steps, from those that were looked at."""
    seen = weights > 0
    return (values[seen].double() @ weights[seen] / weights.sum()).item()


# ---------------------------------------------------------------- many steps


class Walk(Protocol):
    """A run, or a stack of them, that is walked along a pass. run: where it is, written over by the next steps."""

    run: Run

    def along(
        self, draws: Draw, moments: Moment, start: int, short: Sequence[int] | None, tell: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """A block of K steps -> signals {name: (R, K)}, without the R for one run alone.

        draws, moments: leaves with an axis K behind R. start: the pass's steps before this block. short [K]: samples a
        batch, where those of weight 0 can be left out. tell: is told how many steps were taken.
        """

    def snapshot(self) -> Run:
        """The run as it is; what is given is never changed."""


class Steps:
    """A pure step, one after the other."""

    def __init__(self, step: Callable[..., tuple[Run, dict[str, Tensor]]], run: Run, *values: Any):
        self.step, self.run, self.values = step, run, values

    def along(self, draws, moments, start, short, tell):
        dealt = dealt_out(draws, moments)
        if short is not None:
            dealt = (shortened(*one, n) for one, n in zip(dealt, short, strict=True))
        log = [self.one(*one) for one in told(dealt, tell)]
        return {name: torch.stack([entry[name] for entry in log], -1) for name in log[0]}

    def one(self, draw: Draw, moment: Moment) -> dict[str, Tensor]:
        self.run, signals = self.step(self.run, *self.values, draw, moment)
        return signals

    def snapshot(self):
        return self.run


def shortened(draw: Draw, moment: Moment, n: int) -> tuple[Draw, Moment]:
    """What a step is dealt, without the samples beyond its first n."""
    return Draw(*(v[:n] for v in draw)), moment._replace(noise=moment.noise[:, :n])


def told(steps: Iterable[Any], tell: Callable[[int], None]) -> Iterator[Any]:
    """The steps, one by one; every now and then, and at the end, how many there were is told."""
    i = 0
    for i, step in enumerate(steps, 1):
        yield step
        if i % TOLD == 0:
            tell(TOLD)
    tell(i % TOLD)


# ---------------------------------------------------------------- in place


class InPlace:
    """The same step for one run alone, written over a copy of it: theta and the optimiser's state stay where they lie.

    Where a strategy leaves the gradient to autograd and the optimiser's step as it is, each parameter is a leaf of its
    own that shares theta's storage, and its gradient is used where autograd has put it. A small network's step is bound
    by the memory that it touches: nothing of size P is copied, and what only a reader wants is found now and then.
    """

    def __init__(self, strategy: Strategy, optimizer: Optimizer, run: Run, lr: Tensor, hp: Any, deal: Deal):
        self.run, self.lr, self.hp, self.deal = copied(run), lr, hp, deal
        self.restricts, self.watches = overrides(strategy, "restrict"), overrides(strategy, "after_move")
        self.by_leaf = not (self.restricts or overrides(strategy, "gradient"))
        layout, theta = strategy.net.layout, self.run.theta
        self.cut = (lambda v: list(layout.view(v).values())) if self.by_leaf else (lambda v: [v])
        self.theta = theta.detach().requires_grad_() if self.by_leaf else theta
        self.leaves = [v.detach().requires_grad_() for v in self.cut(theta)] if self.by_leaf else []
        leaves = dict(zip(layout.shapes, self.leaves, strict=True)) if self.by_leaf else {}
        self.strategy = strategy.reading(self.theta, leaves) if self.by_leaf else strategy
        self.move = optimizer.in_place(theta, self.run.opt, self.cut)
        self.away, self.precision = torch.empty_like(theta), None
        self.nothing, self.unseen = theta.new_zeros(()), theta.new_tensor(torch.nan)
        self.hold()

    def hold(self) -> None:
        """Look at the state's quadratic; one whose precision is zero, as in the first task, pulls at nothing."""
        self.quadratic = self.strategy.quadratic(self.run.own, self.hp)
        if self.quadratic is None:
            return
        if self.quadratic.precision is not self.precision:
            self.precision = self.quadratic.precision
            self.strength = float(self.quadratic.strength) if self.precision.any() else 0.0
            self.pulls = list(zip(self.cut(self.precision), self.cut(self.away), strict=True))

    def along(self, draws, moments, start, short, tell):
        size, full = draws.rows.shape
        dealt, log = self.strategy.data.steps(self.deal, draws, moments), []
        for step, n in enumerate(short or [full] * size, 1):
            log.append(self.one(next(dealt) if n == full else next(dealt).first(n), looked_at(start + step)))
            if step % TOLD == 0 or step == size:
                tell((step - 1) % TOLD + 1)
        return {name: torch.stack([entry[name] for entry in log]) for name in log[0]}

    def snapshot(self):
        return copied(self.run)

    def one(self, batch: Batch, look: bool) -> dict[str, Tensor]:
        """-> signals {name: ()}; look: whether those of `LOOKED_AT` are found, which are nan otherwise."""
        strategy, theta, own = self.strategy, self.run.theta, self.run.own
        g, loss, aux = self.gradient(batch)
        if self.quadratic is not None:
            g, aux = self.pulled(g, look, aux)
        stats = strategy.net.refreshed(theta, self.run.stats, batch.x)
        before = theta.clone() if self.restricts or self.watches else theta
        self.move(g, self.lr)
        if self.restricts:
            theta.copy_(before + strategy.restrict(theta - before, g[0], before, own, self.hp, batch))
        new = strategy.after_step(own, self.hp, batch, aux)
        new = apart(strategy.after_move(new, before, theta, aux), theta) if self.watches else new
        self.run = self.run._replace(stats=stats, own=new)
        if new is not own:
            self.hold()
        return signals_of(loss, norm_of(g) if look else self.unseen, aux)

    def gradient(self, batch: Batch) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """g, cut as theta is, loss (), aux."""
        rest = self.run.own, self.hp, batch
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


def apart(own: Tree, theta: Tensor) -> Tree:
    """A state that shares no memory with theta, which is about to be written over."""
    place = theta.untyped_storage().data_ptr()
    return tree_map(lambda v: v.clone() if v.untyped_storage().data_ptr() == place else v, own)


# ---------------------------------------------------------------- replayed


class Replayed:
    """The pure step on tensors that stay where they are: what a step needs is picked by a counter on the device, and
    what it gives is copied over what was. On CUDA it is recorded once, as a graph, and played for every step: one
    launch a step in place of some hundred. Elsewhere the same body simply runs, which is how it is tested without one.
    """

    def __init__(self, step: Callable[..., tuple[Run, dict[str, Tensor]]], run: Run, values: tuple, alone: bool):
        self.step, self.run, self.values = step, tree_map(torch.clone, run), values
        self.axis = 0 if alone else 1  # of a block's steps
        self.clock = torch.zeros(1, dtype=torch.long, device=run.theta.device)
        self.draws: Draw | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def along(self, draws, moments, start, short, tell):
        if self.draws is None or self.draws.rows.shape[self.axis] < draws.rows.shape[self.axis]:
            self.settle(draws, moments)
        size = draws.rows.shape[self.axis]
        for there, new in zip(tree_leaves((self.draws, self.moments)), tree_leaves((draws, moments)), strict=True):
            (there.narrow(self.axis, 0, size) if new.dim() else there).copy_(new)
        self.clock.zero_()
        for _ in told(range(size), tell):
            self.graph.replay() if self.graph is not None else self.body()
        return {name: v[..., :size].clone() for name, v in self.log.items()}

    def snapshot(self):
        return tree_map(torch.clone, self.run)

    def settle(self, draws: Draw, moments: Moment) -> None:
        """Places for the largest block so far, and on CUDA a graph that reads them."""
        self.draws, self.moments = tree_map(torch.clone, (draws, moments))
        before, self.log = self.snapshot(), {}
        _, signals = self.step(self.run, *self.values, *self.now())
        size = draws.rows.shape[self.axis]
        self.log = {name: v.new_zeros(*v.shape, size) for name, v in signals.items()}
        if self.clock.is_cuda:
            self.record()
            self.put(before)

    def record(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.body()
                self.clock.zero_()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.body()

    def body(self) -> None:
        new, signals = self.step(self.run, *self.values, *self.now())
        self.put(new)
        for name, v in signals.items():
            self.log[name].index_copy_(-1, self.clock, v.detach().unsqueeze(-1))
        self.clock.add_(1)

    def put(self, new: Run) -> None:
        for old, fresh in zip(tree_leaves(self.run), tree_leaves(new), strict=True):
            old.copy_(fresh)

    def now(self) -> tuple[Draw, Moment]:
        """What the step that the clock names is dealt."""

        def pick(v: Tensor) -> Tensor:
            return v.index_select(self.axis, self.clock).squeeze(self.axis) if v.dim() else v

        return tree_map(pick, (self.draws, self.moments))
