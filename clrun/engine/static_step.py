"""The training step written over tensors that stay where they are, for one run or a stack: what a CUDA graph captures.

The equation is that of `step.make_step`. What is left of it on a GPU is the time to read and write vectors of the size
of theta, so

* the optimizer's fused kernel writes over theta and its own state;
* of the strategy's state only what a step changes is written;
* the product lambda F of a quadratic penalty is made once a pass, where no step changes it;
* the signals that cost a pass over theta are computed where they are looked at (see `health`);
* where one run's strategy overrides neither `gradient` nor `restrict`, nothing of size P is concatenated.

The parts that are the strategy's are pure functions of one run, which `Vectorizer` makes functions of all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from clrun.data.batches import Batch, SampleIndex, StepContext
from clrun.engine import hooks
from clrun.engine.in_place import overrides, shares_memory
from clrun.engine.prequential import answered_first
from clrun.engine.state import ANSWERS, NORM, QUADRATIC, Average, Signals, TrainState
from clrun.engine.step import StepValues, clip_scale
from clrun.engine.vectorize import BATCH_AXES, CONTEXT_AXES, PER_RUN, SHARED, Vectorizer
from clrun.models import BatchNormRecord, SplitTheta, updated_statistics
from clrun.optimizers import Cut, Optimizer
from clrun.strategy import Quadratic, Strategy, Tree, gradient_by_leaf
from clrun.system.arithmetic import ceil_div

Pieces = list[Tensor]  # a vector (P,), split into its named parts; or one tensor, (R, P) in a stack

Groups = tuple[tuple[int, ...], ...]  # the numbers of the runs, each in one group

# The axes of the arguments of the functions of one run at the end of `StaticStep`, in their order.
GRADIENT_AXES = (PER_RUN, PER_RUN, PER_RUN, PER_RUN, CONTEXT_AXES)
RENEW_AXES = (PER_RUN, PER_RUN, PER_RUN, BATCH_AXES)
RESTRICT_AXES = (PER_RUN, PER_RUN, PER_RUN, PER_RUN, PER_RUN, BATCH_AXES)
UPDATE_AXES = (PER_RUN, PER_RUN, PER_RUN, PER_RUN, PER_RUN, BATCH_AXES, PER_RUN)

# The fields of a batch that a function of one run does not return: what all runs share, and the tables.
LEFT_OUT = ("tables", *(name for name, axis in BATCH_AXES._asdict().items() if axis is SHARED))


# Each run's theta begins at a multiple of so many bytes: kernels for products of matrices read 16 bytes at once, where
# they may, and a GPU fetches 128.
ROW_BYTES = 128


class StaticStep:
    """The step of R runs, or of one without an axis R. It works on a copy of the runs that it is given.

    equal_rates: the numbers of the runs in groups whose learning rates are the same at every step of a pass. A kernel
    of the optimizer takes the step of a group. Where nothing else is said, each run is a group.
    """

    def __init__(
        self, strategy: Strategy, optimizer: Optimizer, vectorizer: Vectorizer, current: TrainState,
        values: StepValues, decay: float | None = None, clip_norm: float | None = None, prequential: bool = False,
    ):  # fmt: skip
        self.strategy, self.optimizer, self.vectorizer = strategy, optimizer, vectorizer
        self.values = values
        self.decay, self.clip_norm, self.prequential = decay, clip_norm, prequential
        held = tree_map(torch.clone, current)
        self.current = held if vectorizer.alone else held._replace(theta=with_aligned_rows(held.theta))
        self.restricts, self.renews = overrides(strategy, "restrict"), overrides(strategy, "renew")
        self.watches_moves = overrides(strategy, "after_move")
        self.updates = overrides(strategy, "after_step") or self.watches_moves
        self.owns_gradient = not overrides(strategy, "gradient")  # nothing else holds it, so it may be written over
        layout, theta = strategy.net.layout, self.current.theta
        # PyTorch makes no SplitTheta of a tensor that is of another class already, such as a FakeTensor.
        self.by_leaf = vectorizer.alone and self.owns_gradient and not self.restricts and type(theta) is Tensor
        self.cut: Cut = (lambda v: list(layout.view(v).values())) if self.by_leaf else (lambda v: [v])
        self.group(tuple((r,) for r in range(vectorizer.runs)))
        self.pull = Pull(strategy, vectorizer, self.current, values[1], self.cut) if self.has_penalty else None

    @property
    def axis(self) -> int:
        """The axis of a block's steps."""
        return 0 if self.vectorizer.alone else 1

    @property
    def has_penalty(self) -> bool:
        """Whether there is a quadratic penalty."""
        if not overrides(self.strategy, "quadratic"):
            return False
        alone, state, hp = self.vectorizer.alone, self.current.state, self.values[1]
        first = (state, hp) if alone else tree_map(lambda v: v[0], (state, hp))
        return hooks.quadratic(self.strategy, *first) is not None

    def group(self, equal_rates: Groups) -> None:
        """Move the runs of a group by one kernel from now on."""
        self.equal_rates = equal_rates
        theta, opt = self.current.theta, self.current.opt
        if self.vectorizer.alone:
            self.move = self.optimizer.in_place(theta, opt, self.cut)
        else:
            self.move = self.optimizer.in_place_stack(theta, opt, equal_rates)

    def begin(self) -> None:
        """Begin a pass, with the runs that were written over `current`."""
        if self.pull is not None:
            self.pull.begin()

    def settle(self) -> None:
        """Make once a pass what no step changes. A step must have been taken, so that this is known."""
        if self.pull is not None:
            self.pull.settle()

    # ------------------------------------------------------------ the step

    def take_step(self, samples: SampleIndex, context: StepContext, monitored: bool) -> Signals:
        """Take one step and return its signals {name: (R,)}; those in `MONITORED` are left out unless `monitored`."""
        lr, hp, tables = self.values
        theta, state = self.current.theta, self.current.state
        for_all = self.vectorizer.vectorize  # (kept functions of all runs would hold this object, and so itself)
        gradient = for_all(self.gradient_of_one, GRADIENT_AXES)
        g, signals, aux, stats, batch = gradient(self.current, hp, tables, samples, context)
        smoothing = self.strategy.data.smoothing
        batch = batch._replace(stage=context.stage, horizon=context.horizon, smoothing=smoothing, tables=tables)
        if self.pull is not None:
            g = self.pull.add_gradient(g, in_place=self.owns_gradient)
            signals = signals | ({QUADRATIC: self.pull.value()} if monitored else {})
        if monitored or self.clip_norm is not None:
            norm = self.norm(g)
            signals = signals | ({NORM: norm} if monitored else {})
            g = g if self.clip_norm is None else [v * self.spread(clip_scale(norm, self.clip_norm)) for v in g]
        before = theta.clone() if self.restricts or self.watches_moves else theta
        renew = for_all(self.renew_one, RENEW_AXES)
        renewed = renew(before, state, hp, batch) if self.renews else None
        self.move(g, lr * context.rate)
        if self.restricts:
            restrict = for_all(self.restrict_one, RESTRICT_AXES)
            theta.copy_(restrict(theta, g[0], before, state, hp, batch))
        if renewed is not None:
            self.write_renewed(*renewed)
        if self.decay is not None:
            self.average(self.decay)
        if self.updates:
            update = for_all(self.update_one, UPDATE_AXES)
            state, stats = update(state, before, theta, aux, hp, batch, stats)
        self.write((self.current.state, self.current.stats), (state, stats))
        return signals

    def norm(self, g: Pieces) -> Tensor:
        """Return the norm () of a gradient, (R,) in a stack. It overflows where the square of an entry does: see
        `in_place.norm_of`."""
        if self.vectorizer.alone:
            return torch.stack([v.square().sum() for v in g]).sum().sqrt()
        return g[0].square().sum(-1).sqrt()

    def spread(self, values: Tensor) -> Tensor:
        """Return one number a run in a shape that a vector a run can be multiplied with."""
        return values if self.vectorizer.alone else values[:, None]

    def average(self, decay: float) -> None:
        """Write the average after a step over the one before."""
        average = self.current.average
        assert isinstance(average, Average)
        average.theta.lerp_(self.current.theta, self.spread(average.weight(decay)))
        average.steps.add_(1)

    def write_renewed(self, mask: Tensor, values: Tensor, initial: Tree) -> None:
        """Write new values over theta where mask (P,) is set, and the optimizer's initial state over its own."""
        theta = self.current.theta
        theta.copy_(torch.where(mask, values, theta))
        for old, new in zip(tree_leaves(self.current.opt), tree_leaves(initial), strict=True):
            if old.shape == mask.shape:
                old.copy_(torch.where(mask, new, old))

    def write(self, held: Tree, new: Tree) -> None:
        """Write what is new over tensors of the run, and note for the penalty which of them that were."""
        written = write_over(held, new)
        if self.pull is not None:
            self.pull.written = written

    # ------------------------------------------------------------ its parts, for one run

    def gradient_of_one(
        self, current: TrainState, hp: Any, tables: Any, samples: SampleIndex, context: StepContext
    ) -> tuple[Pieces, Signals, dict[str, Tensor], Any, Batch]:
        """Return the gradient of the loss, the signals but for those in `MONITORED`, aux, batch norm's running
        statistics, and the batch without what is the same for all runs."""
        batch = self.strategy.data.gather(tables, samples, context)
        tested = {ANSWERS: answered_first(self.strategy, current, hp, batch)} if self.prequential else {}
        passes: list[BatchNormRecord] = []  # what batch norm sees in this step
        training = self.strategy.train_mode(batch.weight, passes, batch.noise)
        rest = current.state, hp, batch
        if self.by_leaf:
            split = SplitTheta.of(self.strategy.net.layout, current.theta)
            g, loss, aux = gradient_by_leaf(training.loss, split, split.leaves, self.cut, *rest)
        else:
            whole, loss, aux = hooks.gradient(training, current.theta, *rest)
            g = [whole]
        signals = {"loss": loss} | {name: v for name, v in aux.items() if v.dim() == 0} | tested
        left_out: Any = dict.fromkeys(LEFT_OUT, ())
        return g, signals, aux, updated_statistics(current.stats, passes), batch._replace(**left_out)

    def restrict_one(self, moved: Tensor, g: Tensor, before: Tensor, state: Tree, hp: Any, batch: Batch) -> Tensor:
        """Return theta (P,) after the optimizer has moved it from `before` to `moved`, and the strategy restricted that
        step."""
        training = self.strategy.train_mode(batch.weight, [], batch.noise)
        return before + hooks.restricted(training, moved - before, g, before, state, hp, batch)

    def renew_one(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor, Tree]:
        """Return which parameters (P,) begin anew, their values (P,), and the optimizer's state before training."""
        renewed = hooks.renewed(self.strategy.train_mode(batch.weight, [], batch.noise), theta, state, hp, batch)
        mask, values = (torch.zeros_like(theta, dtype=torch.bool), theta) if renewed is None else renewed
        return mask, values, self.optimizer.init(theta)

    def update_one(
        self, state: Tree, before: Tensor, after: Tensor, aux: dict[str, Tensor], hp: Any, batch: Batch, stats: Any
    ) -> tuple[Tree, Any]:
        """Return the strategy's state and batch norm's running statistics after a step from `before` to `after`."""
        passes: list[BatchNormRecord] = []
        training = self.strategy.train_mode(batch.weight, passes, batch.noise)
        state = hooks.state_after_step(training, state, hp, batch, aux)
        state = hooks.state_after_move(training, state, before, after, aux)
        return state, updated_statistics(stats, passes)


class Pull:
    """A quadratic penalty's gradient, strength * precision * (theta - mean), added to another one.

    `scaled` is strength * precision. It is made at every step, until `settle` finds that no step changes it: from then
    on it is made when a pass begins.
    """

    def __init__(self, strategy: Strategy, vectorizer: Vectorizer, current: TrainState, hp: Any, cut: Cut):
        self.quadratic = vectorizer.vectorize(strategy.quadratic)
        self.alone, self.current, self.hp, self.cut = vectorizer.alone, current, hp, cut
        self.away = torch.empty_like(current.theta)  # theta - mean
        self.scaled, self.mean = torch.zeros_like(current.theta), torch.zeros_like(current.theta)
        self.written: Sequence[Tensor] = ()  # tensors of the state that the last step has written over
        self.lasting = False  # whether no step changes the penalty

    def now(self) -> tuple[Tensor, Tensor]:
        """Return strength * precision and the mean by the present state."""
        quadratic: Quadratic = self.quadratic(self.current.state, self.hp)
        strength = quadratic.strength if self.alone else quadratic.strength[:, None]
        return strength * quadratic.precision, quadratic.mean

    def settle(self) -> None:
        """Find out whether steps change the penalty: they do if it depends on what they write over."""
        self.lasting = not self.depends_on(self.written)
        if self.lasting:
            quadratic: Quadratic = self.quadratic(self.current.state, self.hp)
            kept = [v for v in tree_leaves(self.current.state) if not any(v is one for one in self.written)]
            # A mean that is a tensor of the state is read there.
            self.mean = next((v for v in kept if same_memory(v, quadratic.mean)), self.mean)
            self.begin()

    def depends_on(self, written: Sequence[Tensor]) -> bool:
        """Return whether strength, mean or precision is computed from some of these tensors of the state.

        `torch.vmap` follows that: where these tensors alone have a batch axis, so has what is computed from them.
        """
        leaves, structure = tree_flatten(self.current.state)
        places = [i for i, v in enumerate(leaves) if any(v is one for one in written)]
        dependent: list[bool] = []

        def follow(*changed: Tensor) -> Tensor:
            now = [changed[places.index(i)] if i in places else v for i, v in enumerate(leaves)]
            quadratic: Quadratic = self.quadratic(tree_unflatten(now, structure), self.hp)
            dependent.extend(torch._C._functorch.is_batchedtensor(v) for v in quadratic)
            return changed[0]

        if places:
            torch.vmap(follow)(*(leaves[i][None] for i in places))
        return any(dependent)

    def begin(self) -> None:
        """Make what lasts for a pass."""
        if self.lasting:
            scaled, mean = self.now()
            self.scaled.copy_(scaled)
            if not same_memory(self.mean, mean):
                self.mean.copy_(mean)

    def add_gradient(self, g: Pieces, in_place: bool) -> Pieces:
        """Return g with the gradient of the penalty added. in_place: whether the pieces of g may be written over."""
        if not self.lasting:
            scaled, mean = self.now()
            self.scaled.copy_(scaled)
            torch.sub(self.current.theta, mean, out=self.away)
        else:
            torch.sub(self.current.theta, self.mean, out=self.away)
        parts = zip(g, self.cut(self.scaled), self.cut(self.away), strict=True)
        if in_place:
            return [v.addcmul_(scaled, away) for v, scaled, away in parts]
        return [torch.addcmul(v, scaled, away) for v, scaled, away in parts]

    def value(self) -> Tensor:
        """Return the penalty (), (R,) in a stack, at the theta of the last `add_gradient`."""
        return (self.scaled * self.away * self.away).sum(-1) / 2


def with_aligned_rows(theta: Tensor) -> Tensor:
    """Return a copy of theta (R, P) whose rows begin at multiples of ROW_BYTES: a view of a tensor with longer rows.

    With rows one after another and, say, 478410 parameters, the weights of every other run would begin at an address
    for which a GPU has slower products only.
    """
    at_once = ROW_BYTES // theta.element_size()
    rows = theta.new_zeros(len(theta), ceil_div(theta.shape[1], at_once) * at_once)
    return rows[:, : theta.shape[1]].copy_(theta)


def write_over(held: Tree, new: Tree) -> list[Tensor]:
    """Write what is new over tensors that stay where they are, and return those that are written over: what a step has
    left alone is not copied."""
    pairs = list(zip(tree_leaves(held), tree_leaves(new), strict=True))
    changed = [(old, fresh) for old, fresh in pairs if not same_memory(old, fresh)]
    # What is a view of a tensor that is written over, too, is copied first.
    views = [any(shares_memory(fresh, old) for old, _ in changed) for _, fresh in changed]
    values = [fresh.clone() if view else fresh for (_, fresh), view in zip(changed, views, strict=True)]
    for (old, _), fresh in zip(changed, values, strict=True):
        old.copy_(fresh)
    return [old for old, _ in changed]


def same_memory(v: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same numbers in the same memory."""
    place = lambda one: (one.shape, one.stride(), one.storage_offset(), one.dtype)  # noqa: E731
    return shares_memory(v, other) and place(v) == place(other)
