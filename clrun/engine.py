"""The engine: R runs that differ only in values, trained at once by one loop.

    g = gradient(theta)      delta = optimiser(g)      theta <- theta + restrict(delta)

A run is (theta, opt, stats, own), tensors in, tensors out. R > 1 is `torch.vmap` of the step of one run; R = 1 is the
same step, with the optimiser's part written in place. The engine knows no strategy, no scenario and no task number:
those are tables and hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.deck import Budget, Deck
from clrun.models import Statistics
from clrun.optimizers import Optimizer
from clrun.strategy import BARRED, Strategy, Tree, gradient_by_leaf
from clrun.stream import DRAWS, Batch, Deal, Hand, Moment, Pool, generator, pad_rows

QUADRATIC = "quadratic"  # the signal that is the value of a strategy's quadratic
LOOK = 16  # after as many steps of a task, a quadratic's value is looked at in every sixteenth alone
BLOCK = 512  # steps whose samples lie ready on the device, at most
PATIENCE = 2.0  # seconds that a block may take: what an interrupted run loses at most
FIRST = 8  # steps of a stack's first block, before it is known how long one takes
EVALUATE = 1024  # test samples a pass


class Run(NamedTuple):
    """One run; in a stack every leaf has a leading R."""

    theta: Tensor  # (P,)
    opt: Tree
    stats: Statistics
    own: Tree


@dataclass
class Report:
    """What one stage was like, for every run: [r], or (R, ...)."""

    stage: int
    correct: Tensor  # (R, T) int64
    validation: Tensor  # (R, T) int64
    health: list[dict[str, float]]
    trouble: list["Trouble | None"]
    over_training: list[tuple[int, Tensor]]  # (step of the run, correct (R, T))
    step: int = 0  # of the run, at the end of the stage
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "consolidate": 0.0, "eval": 0.0})


@dataclass
class Half:
    """What a stage has gathered before it is over, so that it can be continued from there."""

    report: Report
    phase: int = 0  # the pass over the task that is under way
    start: int = 0  # its steps that are done
    signals: list[dict[str, Tensor]] = field(default_factory=list)  # of each pass {name: (R, S)}, the last so far


class Trouble(NamedTuple):
    """The first step of a task at which something was not finite."""

    step: int  # from 1
    diverged: bool  # loss or theta; otherwise the optimiser's state alone, which freezes the run


# ---------------------------------------------------------------- one step


def make_step(strategy: Strategy, optimizer: Optimizer) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
    """The step of one run: (run, lr, hp, deal, rows, weight, moment) -> (run, signals {name: ()})."""

    def step(run, lr, hp, deal, rows, weight, moment):
        batch = strategy.data.batch(deal, rows, weight, moment)
        g, loss, aux = strategy.gradient(run.theta, run.own, hp, batch)
        quadratic = strategy.quadratic(run.own, hp)
        if quadratic is not None:
            away = run.theta - quadratic.mean
            g, aux = g + quadratic.gradient(away), aux | {QUADRATIC: quadratic.value(away)}
        delta, opt = optimizer.update(g, run.opt, lr, run.theta)
        theta = run.theta + strategy.restrict(delta, g, run.theta, run.own, hp, batch)
        own = strategy.after_step(run.own, hp, batch, run.theta, theta, aux)
        stats = strategy.net.refreshed(run.theta, run.stats, batch.x)
        return Run(theta, opt, stats, own), signals_of(loss, [g], aux)

    return step


class Steps:
    """A pure step, one after the other."""

    def __init__(self, step: Callable[..., tuple[Run, dict[str, Tensor]]], run: Run, *values: Any):
        self.step, self.run, self.values = step, run, values

    def __call__(self, rows: Tensor, weight: Tensor, moment: Moment, look: bool) -> dict[str, Tensor]:
        """-> signals {name: ()}."""
        self.run, signals = self.step(self.run, *self.values, rows, weight, moment)
        return signals


class InPlace:
    """The same step for one run alone, written over `run`: its theta and its optimiser's state stay where they lie.

    Where a strategy leaves the gradient to autograd and the optimiser's step as it is, each parameter is a leaf of its
    own that shares theta's storage, and its gradient is used where autograd has put it. A small network's step is bound
    by the memory that it touches, so nothing of size P is copied, and the value of a quadratic is found when asked.
    """

    def __init__(self, strategy: Strategy, optimizer: Optimizer, run: Run, lr: Tensor, hp: Any, deal: Deal):
        self.run, self.lr, self.hp, self.deal = run, lr, hp, deal
        self.restricts, self.remembers = overrides(strategy, "restrict"), overrides(strategy, "after_step")
        self.by_leaf = not (self.restricts or overrides(strategy, "gradient"))
        layout = strategy.net.layout
        self.cut = (lambda v: list(layout.view(v).values())) if self.by_leaf else (lambda v: [v])
        self.theta = run.theta.detach().requires_grad_() if self.by_leaf else run.theta
        self.leaves = [v.detach().requires_grad_() for v in self.cut(run.theta)] if self.by_leaf else []
        leaves = dict(zip(layout.shapes, self.leaves, strict=True)) if self.by_leaf else {}
        self.strategy = strategy.reading(self.theta, leaves) if self.by_leaf else strategy
        self.move = optimizer.in_place(run.theta, run.opt, self.cut)
        self.away, self.unseen = torch.empty_like(run.theta), run.theta.new_tensor(torch.nan)
        self.hold()

    def hold(self) -> None:
        """Look at the state's quadratic."""
        self.quadratic = self.strategy.quadratic(self.run.own, self.hp)
        if self.quadratic is not None:
            self.strength = float(self.quadratic.strength)
            self.pulls = list(zip(self.cut(self.quadratic.precision), self.cut(self.away), strict=True))

    def __call__(self, rows: Tensor, weight: Tensor, moment: Moment, look: bool) -> dict[str, Tensor]:
        """-> signals {name: ()}; look: whether a quadratic's value is one of them (else it is nan)."""
        strategy, theta, own = self.strategy, self.run.theta, self.run.own
        batch = strategy.data.batch(self.deal, rows, weight, moment)
        g, loss, aux = self.gradient(batch)
        if self.quadratic is not None:
            g, aux = self.pulled(g), aux | {QUADRATIC: self.quadratic.value(self.away) if look else self.unseen}
        stats = strategy.net.refreshed(theta, self.run.stats, batch.x)
        before = theta.clone() if self.restricts or self.remembers else theta
        self.move(g, self.lr)
        if self.restricts:
            theta.copy_(before + strategy.restrict(theta - before, g[0], before, own, self.hp, batch))
        if self.remembers:
            own = apart(strategy.after_step(own, self.hp, batch, before, theta, aux), theta)
        self.run = self.run._replace(stats=stats, own=own)
        if self.remembers:
            self.hold()
        return signals_of(loss, g, aux)

    def gradient(self, batch: Batch) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """g, cut as theta is, loss (), aux."""
        rest = self.run.own, self.hp, batch
        if self.by_leaf:
            return gradient_by_leaf(self.strategy.loss, self.theta, self.leaves, self.cut, *rest)
        g, loss, aux = self.strategy.gradient(self.theta, *rest)
        return [g], loss, aux

    def pulled(self, g: list[Tensor]) -> list[Tensor]:
        """g with the quadratic's gradient; in place where no hook of the strategy has seen g."""
        torch.sub(self.run.theta, self.quadratic.mean, out=self.away)
        for i, (precision, away) in enumerate(self.pulls):
            onto = g[i] if self.by_leaf else g[i].clone()
            g[i] = onto.addcmul_(precision, away, value=self.strength)
        return g


def apart(own: Tree, theta: Tensor) -> Tree:
    """A state that shares no memory with theta, which is about to be written over."""
    place = theta.untyped_storage().data_ptr()
    return tree_map(lambda v: v.clone() if v.untyped_storage().data_ptr() == place else v, own)


def overrides(strategy: Strategy, hook: str) -> bool:
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def signals_of(loss: Tensor, g: Sequence[Tensor], aux: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a step says of itself: {name: ()}. g: the gradient in one piece or several."""
    squares = [v.flatten() @ v.flatten() for v in g]
    norm = (torch.stack(squares).sum() if len(g) > 1 else squares[0]).sqrt()
    return {"loss": loss, "gradient_norm": norm} | {name: v for name, v in aux.items() if v.dim() == 0}


def masked(step: Callable[..., tuple[Run, dict[str, Tensor]]]) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
    """The step, but a run whose batch is empty stays as it is: its task is over before its neighbours'."""

    def step_or_rest(run, lr, hp, deal, rows, weight, moment):
        new, signals = step(run, lr, hp, deal, rows, weight, moment)
        alive = weight.any()
        signals = {name: torch.where(alive, v, 0) for name, v in signals.items()}
        return tree_map(lambda fresh, old: torch.where(alive, fresh, old), new, run), signals

    return step_or_rest


def extended(half: Half, signals: dict[str, Tensor], steps: int) -> Half:
    """One more block of signals {name: (R, steps)}; half itself stays as it is."""
    *before, last = half.signals if half.start else [*half.signals, {}]
    longer = {name: torch.cat([last[name], v], 1) if last else v for name, v in signals.items()}
    return replace(half, start=half.start + steps, signals=[*before, longer])


def lost(half: Half) -> bool:
    """Whether all runs have diverged. Asked at multiples of BLOCK alone, so that no interruption changes the answer."""
    return half.start > 0 and half.start % BLOCK == 0 and not half.signals[-1]["loss"][:, -1].isfinite().any()


def looked_at(step: int) -> bool:
    """Whether the value of a quadratic is found at this step of a pass, from 1."""
    return step <= LOOK or step % LOOK == 0


def mean_of_looks(values: Tensor) -> float:
    """(S,) -> the mean over all steps, from those that were looked at: beyond the first few each stands for LOOK."""
    steps = [step for step in range(1, len(values) + 1) if looked_at(step)]
    weight = torch.tensor([1.0 if step <= LOOK else LOOK for step in steps], dtype=torch.float64)
    return ((values[[step - 1 for step in steps]].double() @ weight) / weight.sum()).item()


def whole_steps(signals: dict[str, Tensor]) -> Tensor:
    """(S,) bool: the steps whose loss and gradient were finite. What makes theta or the optimiser's state overflow (the
    square of a gradient, in Adam) makes the norm of the gradient overflow at the same step, or the loss at the next."""
    return signals["loss"].isfinite() & signals["gradient_norm"].isfinite()


def first_trouble(signals: dict[str, Tensor], whole: bool, sound: bool) -> Trouble | None:
    """signals {name: (S,)}; whether theta and the optimiser's state are finite at the end."""
    bad = ~whole_steps(signals)
    diverged = not whole or not bool(signals["loss"].isfinite().all())
    if not diverged and sound:
        return None
    return Trouble(int(bad.nonzero()[0]) + 1 if bad.any() else len(bad), diverged)


# ---------------------------------------------------------------- many runs


@dataclass
class Stack:
    """R runs of one strategy, network and optimiser on the same images.

    seeds [r]; hands [r]; hp: Hyper with leaves (R,); lr (R,); births [r](stage) -> theta, statistics of a new network.
    """

    strategy: Strategy
    optimizer: Optimizer
    budget: Budget
    even: bool
    reset: bool
    seeds: Sequence[int]
    hands: Sequence[Hand]
    hp: Any
    lr: Tensor
    births: Sequence[Callable[[int], tuple[Tensor, Statistics]]]
    evaluate_every: int = 0
    validate: bool = False
    advance: Callable[[int], None] = lambda steps: None
    begin: Callable[[int, int], None] = lambda stage, steps: None
    rest: Callable[["Run", Half], None] = lambda run, half: None  # between blocks; what it is given is never changed

    def __post_init__(self):
        self.device = self.lr.device
        self.deal: Deal = self.gathered([hand.deal for hand in self.hands])
        if self.alone:
            self.hp, self.lr = tree_map(lambda v: v[0], (self.hp, self.lr))
        self.step = 0  # steps taken by the longest run
        self.pace = PATIENCE / FIRST  # seconds a step

    # ------------------------------------------------------------ lifting

    @property
    def alone(self) -> bool:
        return len(self.seeds) == 1

    def lift(self, f: Callable, in_dims: Any = 0) -> Callable:
        """f of one run -> f of all; alone it is f itself."""
        return f if self.alone else torch.vmap(f, in_dims)

    def gathered(self, trees: Sequence[Tree]) -> Tree:
        """[r] trees of one shape -> one tree on the device, with a leading R unless there is one run alone."""
        if self.alone:
            return tree_map(lambda v: v.to(self.device), trees[0])
        return tree_map(lambda *v: torch.stack(v).to(self.device), *trees)

    def each(self, values: Tensor) -> Tensor:
        """What the runs say, (R, ...), on the host."""
        return (values[None] if self.alone else values).cpu()

    # ------------------------------------------------------------ birth

    def born(self, stage: int = 0) -> Run:
        """Fresh parameters for every run."""
        theta, stats = self.gathered([birth(stage) for birth in self.births])
        own = self.lift(self.strategy.init)(theta)
        return Run(theta, self.lift(self.optimizer.init)(theta), stats, tree_map(torch.clone, own))

    # ------------------------------------------------------------ a life

    def untrained(self, run: Run) -> Report:
        """Row 0: before any training."""
        report = self.blank(-1)
        self.measure(run, None, report)
        return report

    def blank(self, stage: int) -> Report:
        nothing = torch.full((len(self.seeds), self.strategy.data.tasks), -1)
        return Report(stage, nothing, nothing, [{} for _ in self.seeds], [None] * len(self.seeds), [])

    def learn(self, run: Run, stage: int, half: Half | None = None) -> tuple[Run, Report]:
        """One stage: its passes of training, what follows each, and the accuracy on every task.

        half: what has been gathered of this stage already, `run` being as it was then.
        """
        if half is None:
            run, half = self.entered(run, stage), Half(self.blank(stage))
        if self.strategy.visible(stage):
            for number, phase in list(enumerate(self.strategy.phases))[half.phase :]:
                half = half if number == half.phase else Half(half.report, number, 0, half.signals)
                run, half = self.train(run, stage, phase, half.report, half)
                run = self.consolidate(run, stage, phase, half.report)
        report = half.report
        self.diagnose(run, half.signals, report)
        self.measure(run, self.horizon(stage), report)
        report.step = self.step
        return run, report

    def entered(self, run: Run, stage: int) -> Run:
        """What a stage begins with: a fresh optimiser, or everything fresh, where that is asked for."""
        if stage == 0 or not (self.reset or self.strategy.restart):
            return run
        fresh = self.born(stage) if self.strategy.restart else run
        return run._replace(theta=fresh.theta, stats=fresh.stats, opt=self.lift(self.optimizer.init)(fresh.theta))

    def horizon(self, stage: int) -> int:
        """The newest task seen by the end of this stage."""
        return max(task for s in range(stage + 1) for task in self.strategy.visible(s))

    # ------------------------------------------------------------ training

    def train(self, run: Run, stage: int, phase: str, report: Report, half: Half | None = None) -> tuple[Run, Half]:
        """One pass over a task's budget, or what is left of it -> run, half with this pass's signals as the last:
        {name: (R, S)} and "present" (R, S)."""
        half = half or Half(report, self.strategy.phases.index(phase))
        decks = [self.deck(r, stage, phase) for r in range(len(self.seeds))]
        total = max(deck.steps for deck in decks)
        self.begin(stage, total)
        self.advance(half.start)
        step = self.lifted_step(decks)
        while half.start < total and not lost(half):
            size = min(self.block_size(half.start), total - half.start)
            run, signals = self.block(run, step, decks, half.start, size, stage, report)
            half = extended(half, signals, size)
            self.step += size
            self.glance(run, stage, report)
            self.rest(run, half)
        return run, half

    def lifted_step(self, decks: Sequence[Deck]) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
        """The step of all runs."""
        ragged = not self.alone and len({(deck.steps, deck.epoch_steps) for deck in decks}) > 1
        step = make_step(self.strategy, self.optimizer)
        return self.lift(masked(step) if ragged else step, (0, 0, 0, 0, 0, 0, Moment(None, None, 0, 0)))

    def block_size(self, start: int) -> int:
        """Steps to the next multiple of BLOCK or the next evaluation, but no more than PATIENCE allows."""
        affordable = max(1, int(PATIENCE / max(self.pace, PATIENCE / BLOCK)))
        return min(BLOCK - start % BLOCK, self.until_evaluation(), affordable)

    def deck(self, r: int, stage: int, phase: str) -> Deck:
        visible = self.strategy.visible(stage)
        pools = [self.rows(self.hands[r].train[task], task) for task in visible]
        return Deck(pools, self.budget, self.even and len(visible) > 1, self.seeds[r], f"stage {stage} {phase}")

    def rows(self, images: Tensor, task: int) -> Tensor:
        return images + len(self.strategy.data.images) * task

    def until_evaluation(self) -> int:
        """Steps to the next evaluation within a task."""
        return self.evaluate_every - self.step % self.evaluate_every if self.evaluate_every else BLOCK

    def block(self, run, step, decks, start, size, stage, report) -> tuple[Run, dict[str, Tensor]]:
        """Some steps, without a word to the host. Alone on a CPU a short batch is short; elsewhere it has weight 0."""
        began = perf_counter()
        taken = [deck.take(start, size) for deck in decks]
        sizes = torch.stack([weight.sum(1) for _, weight, _, _ in taken]).long()
        report.samples += int(sizes.sum())
        rows, weight, progress, noise = self.gathered(taken)
        at = [torch.tensor(v, device=self.device) for v in (stage, self.horizon(stage))]
        moments = [Moment(*at, *chance) for chance in zip(progress.unbind(-1), noise.unbind(-3), strict=True)]
        steps = zip(rows.unbind(-2), weight.to(run.theta.dtype).unbind(-2), moments, strict=True)
        log: list[dict[str, Tensor]] = []
        walk = self.walk(run, step)
        for i, (row, w, moment) in enumerate(steps):
            B = int(sizes[0, i]) if self.alone and self.device.type == "cpu" else w.shape[-1]
            if w.shape[-1] > B:
                row, w, moment = row[..., :B], w[..., :B], moment._replace(noise=moment.noise[..., :B])
            log.append(walk(row, w, moment, looked_at(start + i + 1)))
            if i % 64 == 63:
                self.advance(64)
        self.advance(size % 64)
        signals = {name: self.each(torch.stack([entry[name] for entry in log], -1)) for name in log[0]}  # (R, size)
        self.charge(report, "train", began)
        self.pace = (perf_counter() - began) / size
        return walk.run, signals | {"present": sizes > 0}

    def walk(self, run: Run, step: Callable) -> "InPlace | Steps":
        """What takes one step after the other; the run that it starts from stays as it is."""
        values = self.lr, self.hp, self.deal
        if self.alone:
            return InPlace(self.strategy, self.optimizer, tree_map(torch.clone, run), *values)
        return Steps(step, run, *values)

    def charge(self, report: Report, what: str, began: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        report.seconds[what] += perf_counter() - began

    def glance(self, run: Run, stage: int, report: Report) -> None:
        """Accuracy within a task, where it is asked for."""
        if self.evaluate_every and self.step % self.evaluate_every == 0:
            began = perf_counter()
            report.over_training.append((self.step, self.correct(run, self.horizon(stage), "test")))
            self.charge(report, "eval", began)

    # ------------------------------------------------------------ after a pass

    def consolidate(self, run: Run, stage: int, phase: str, report: Report) -> Run:
        began = perf_counter()
        pool = self.pool(stage, phase, run.theta.dtype)

        def after(run, hp, rows, weight, noise, deal, stage, horizon):
            pool = Pool(rows, weight, noise, stage, horizon, deal)
            return self.strategy.at_rest(run.stats).after_phase(phase, run.theta, run.own, hp, pool)

        args = (run, self.hp, pool.rows, pool.weight, pool.noise, self.deal, pool.stage, pool.horizon)
        theta, own = self.lift(after, (0, 0, 0, 0, 0, 0, None, None))(*args)
        self.charge(report, "consolidate", began)
        return run._replace(theta=theta, own=tree_map(torch.clone, own))

    def pool(self, stage: int, phase: str, dtype: torch.dtype) -> Pool:
        """All samples that this stage saw, in random order."""
        drawn, noise = [], []
        for r, seed in enumerate(self.seeds):
            draw = generator(seed, f"stage {stage} after {phase}")
            rows = torch.cat([self.rows(self.hands[r].train[task], task) for task in self.strategy.visible(stage)])
            drawn.append(rows[torch.randperm(len(rows), generator=draw)])
            noise.append(torch.rand(len(rows), DRAWS, generator=draw).mT)
        rows, weight = pad_rows(drawn)
        n = rows.shape[1]
        noise = [torch.nn.functional.pad(v, (0, n - v.shape[1])) for v in noise]
        rows, weight, noise = self.gathered(list(zip(rows, weight.to(dtype), noise, strict=True)))
        at = [torch.tensor(v, device=self.device) for v in (stage, self.horizon(stage))]
        return Pool(rows, weight, noise, *at, self.deal)

    # ------------------------------------------------------------ what happened

    def diagnose(self, run: Run, signals: list[dict[str, Tensor]], report: Report) -> None:
        """Health and trouble of every run in this stage."""
        state = self.lift(lambda run, hp: self.strategy.health(run.own, hp))(run, self.hp)
        state = {name: self.each(v) for name, v in state.items()}
        whole, sound = (self.sound(tree) for tree in (run.theta, run.opt))
        names = signals[0] if signals else {}
        for r in range(len(self.seeds)):
            mine = {name: torch.cat([s[name][r][s["present"][r]] for s in signals]) for name in names}
            report.health[r] = self.healthy(mine) | {name: v[r].item() for name, v in state.items()}
            report.trouble[r] = first_trouble(mine, bool(whole[r]), bool(sound[r])) if mine else None

    def sound(self, tree: Tree) -> Tensor:
        """(R,) bool: whether all tensors of a run are finite."""
        finite = [self.each(v).isfinite().reshape(len(self.seeds), -1).all(1) for v in tree_leaves(tree)]
        return torch.stack([torch.ones(len(self.seeds), dtype=torch.bool), *finite]).all(0)

    def healthy(self, signals: dict[str, Tensor]) -> dict[str, float]:
        """Means over the steps of a task."""
        if not signals:
            return {"steps": 0}
        finite = whole_steps(signals)
        means = {n: v.double().mean().item() for n, v in signals.items() if n not in ("present", QUADRATIC)}
        if QUADRATIC in signals:
            penalty = mean_of_looks(signals[QUADRATIC])
            means |= {"loss": means["loss"] + penalty, "penalty": penalty}
        whole = means["loss"] or 1.0  # a task of one class has nothing to tell apart: its loss is zero
        shares = {f"{n}_over_loss": means[n] / whole for n in self.strategy.shares}
        return {"steps": len(finite), "steps_not_finite": int((~finite).sum())} | means | shares

    # ------------------------------------------------------------ accuracy

    def measure(self, run: Run, horizon: int | None, report: Report) -> None:
        began = perf_counter()
        report.correct = self.correct(run, horizon, "test")
        if self.validate:
            report.validation = self.correct(run, horizon, "validation")
        self.charge(report, "eval", began)

    def correct(self, run: Run, horizon: int | None, part: str) -> Tensor:
        """(R, T) int64: right answers on every task. horizon: the newest task seen; None before any training."""
        right = [(p == y) & here for p, y, here in self.answers(run, horizon, part)]
        return torch.stack([r.sum(-1) for r in right], -1)

    def answers(self, run: Run, horizon: int | None, part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For every task: predictions (R, n), labels (R, n), whether there is a sample (R, n); on the host."""
        predict = self.lift(self.predict, (0, 0, 0, 0, None))
        last = self.strategy.data.tasks - 1
        seen = torch.tensor(last if horizon is None else horizon, device=self.device)
        deal = self.deal if horizon is not None else self.before_training()
        for task in range(last + 1):
            rows, here = pad_rows([self.rows(getattr(hand, part)[task], task) for hand in self.hands])
            rows = self.gathered(list(rows))
            chunks = [predict(run, self.hp, deal, chunk, seen) for chunk in rows.split(EVALUATE, -1)]
            guessed, labels = (self.each(torch.cat(v, -1)) for v in zip(*chunks, strict=True))
            yield guessed, labels, here.bool()

    def before_training(self) -> Deal:
        """The deal in which each task is answered by the first task's outputs and its own."""
        return self.deal._replace(active=self.deal.unlearnt.unsqueeze(-3).expand(self.deal.active.shape))

    def predict(self, run: Run, hp: Any, deal: Deal, rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """rows (n,) -> answers (n,), labels (n,)."""
        logits, labels = self.scores(run, hp, deal, rows, seen)
        return logits.argmax(-1), labels

    def scores(self, run: Run, hp: Any, deal: Deal, rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """rows (n,) -> logits (n, C), BARRED where an output may not answer, labels (n,): of the deployed network at
        rest."""
        strategy = self.strategy.at_rest(run.stats)
        noise = torch.zeros(DRAWS, 0, device=rows.device)
        moment = Moment(seen, seen, torch.zeros((), device=rows.device), noise)
        batch = strategy.data.batch(deal, rows, torch.ones_like(rows), moment, augment=False)
        theta = strategy.deploy(run.theta, run.own, hp)
        logits = strategy.logits(theta, run.own, hp, batch.x, batch.t)
        return logits.masked_fill(~batch.active, BARRED), batch.y

    def confusion(self, run: Run, horizon: int) -> Tensor:
        """(R, C, C) int64: [true, predicted] over the test pictures of all tasks."""
        C = self.strategy.data.outputs
        counts = torch.zeros(len(self.seeds), C * C, dtype=torch.long)
        for guessed, labels, here in self.answers(run, horizon, "test"):
            counts.scatter_add_(1, labels * C + guessed, here.long())
        return counts.view(-1, C, C)

    def state_bytes(self, run: Run) -> int:
        """What one run keeps for its strategy: its state, and the leaves that it added to theta."""
        own = sum(v.numel() * v.element_size() for v in tree_leaves(run.own)) // len(self.seeds)
        theta = run.theta if self.alone else run.theta[0]
        network = sum(p.numel() for p in self.strategy.net.network.parameters().values())
        return own + (theta.numel() - network) * theta.element_size()
