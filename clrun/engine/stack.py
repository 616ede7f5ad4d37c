"""The engine: R runs that differ only in values, trained at once by one loop.

    g = gradient(theta)      delta = optimiser(g)      theta <- theta + restrict(delta)

A run is (theta, opt, stats, own), tensors in, tensors out. R > 1 is `torch.vmap` of the step of one run; R = 1 is the
same step, with the optimiser's part written in place. The engine knows no strategy, no scenario and no task number:
those are tables and hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.sampler import Budget, EpochSampler
from clrun.data.seeding import DRAWS, generator
from clrun.data.stream import Pool, StepContext, pad_rows
from clrun.data.tasks import TaskStream, TaskTables
from clrun.engine.cuda_graph import GraphStepper
from clrun.engine.evaluation import EVALUATE
from clrun.engine.health import first_divergence, monitored_mean, monitoring_weights, nonfinite_steps
from clrun.engine.in_place import InPlaceStepper
from clrun.engine.state import BLOCK, MONITORED, NORM, QUADRATIC, PartialStage, Run, StageReport, all_diverged, extended
from clrun.engine.step import make_step, masked
from clrun.engine.steppers import EagerStepper, Stepper
from clrun.models import Statistics
from clrun.optimizers import Optimizer
from clrun.strategy import BARRED, Strategy, Tree

PATIENCE = 2.0  # seconds that a block may take: what an interrupted run loses at most


FIRST = 8  # steps of a stack's first block, before it is known how long one takes


# ---------------------------------------------------------------- what is gathered on the way


# ---------------------------------------------------------------- many runs


@dataclass
class Stack:
    """R runs of one strategy, network and optimiser on the same images.

    seeds [r]; hands [r]; hp: Hyper with leaves (R,); lr (R,); births [r](stage) -> theta, statistics of a new network.
    replay: steps on static tensors, on CUDA as a graph. compile: the step is compiled first.
    """

    strategy: Strategy
    optimizer: Optimizer
    budget: Budget
    even: bool
    reset: bool
    seeds: Sequence[int]
    streams: Sequence[TaskStream]
    hp: Any
    lr: Tensor
    initializers: Sequence[Callable[[int], tuple[Tensor, Statistics]]]
    evaluate_every: int = 0
    validate: bool = False
    replay: bool = False
    compile: bool = False
    advance: Callable[[int], None] = lambda steps: None
    begin: Callable[[int, int], None] = lambda stage, steps: None
    # between blocks; what it is given is never changed
    rest: Callable[["Run", PartialStage], None] = lambda run, half: None

    def __post_init__(self):
        self.device = self.lr.device
        self.tables: TaskTables = self.gathered([stream.tables for stream in self.streams])
        if self.alone:
            self.hp, self.lr = tree_map(lambda v: v[0], (self.hp, self.lr))
        self.steps = {ragged: self.lifted_step(ragged) for ragged in (False, True)}
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

    def initialize(self, stage: int = 0) -> Run:
        """Fresh parameters for every run."""
        theta, stats = self.gathered([initializer(stage) for initializer in self.initializers])
        state = self.lift(self.strategy.init)(theta)
        return Run(theta, self.lift(self.optimizer.init)(theta), stats, tree_map(torch.clone, state))

    # ------------------------------------------------------------ a life

    def untrained(self, run: Run) -> StageReport:
        """Row 0: before any training."""
        report = self.blank(-1)
        self.measure(run, None, report)
        return report

    def blank(self, stage: int) -> StageReport:
        nothing = torch.full((len(self.seeds), self.strategy.data.tasks), -1)
        return StageReport(stage, nothing, nothing, [{} for _ in self.seeds], [None] * len(self.seeds), [])

    def learn(self, run: Run, stage: int, half: PartialStage | None = None) -> tuple[Run, StageReport]:
        """One stage: its passes of training, what follows each, and the accuracy on every task.

        half: what has been gathered of this stage already, `run` being as it was then.
        """
        if half is None:
            run, half = self.entered(run, stage), PartialStage(self.blank(stage))
        if self.strategy.visible(stage):
            for number, phase in list(enumerate(self.strategy.phases))[half.phase :]:
                half = half if number == half.phase else PartialStage(half.report, number, 0, half.signals)
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
        fresh = self.initialize(stage) if self.strategy.restart else run
        return run._replace(theta=fresh.theta, stats=fresh.stats, opt=self.lift(self.optimizer.init)(fresh.theta))

    def lifted_step(self, ragged: bool) -> Callable[..., tuple[Run, dict[str, Tensor]]]:
        """The pure step of all runs. ragged: some may be done before others."""
        step = make_step(self.strategy, self.optimizer)
        step = self.lift(masked(step) if ragged else step, (0, 0, 0, 0, 0, StepContext(None, None, 0, 0)))
        return torch.compile(step, dynamic=False) if self.compile else step

    def horizon(self, stage: int) -> int:
        """The newest task seen by the end of this stage."""
        return max(task for s in range(stage + 1) for task in self.strategy.visible(s))

    # ------------------------------------------------------------ training

    def train(
        self, run: Run, stage: int, phase: str, report: StageReport, half: PartialStage | None = None
    ) -> tuple[Run, PartialStage]:
        """One pass over a task's budget, or what is left of it -> run, half with this pass's signals as the last:
        {name: (R, S)} and "present" (R, S)."""
        half = half or PartialStage(report, self.strategy.phases.index(phase))
        samplers = [self.sampler(r, stage, phase) for r in range(len(self.seeds))]
        total = max(sampler.steps for sampler in samplers)
        self.begin(stage, total)
        self.advance(half.start)
        walk = self.walker(run, samplers)
        while half.start < total and not all_diverged(half):
            size = min(self.block_size(half.start), total - half.start)
            signals = self.block(walk, samplers, half.start, size, stage, report)
            run = walk.snapshot() if half.start + size < total else walk.run
            half = extended(half, signals, size)
            self.step += size
            self.evaluate_if_due(run, stage, report)
            self.rest(run, half)
        return run, half

    def walker(self, run: Run, samplers: Sequence[EpochSampler]) -> Stepper:
        """What takes the steps of a pass, one after the other; `run` itself stays as it is."""
        values = self.lr, self.hp, self.tables
        ragged = not self.alone and len({(sampler.steps, sampler.epoch_steps) for sampler in samplers}) > 1
        step = self.steps[ragged]
        if self.replay:
            return GraphStepper(step, run, values, self.alone)
        if self.alone and not self.compile:
            return InPlaceStepper(self.strategy, self.optimizer, run, *values)
        return EagerStepper(step, run, *values)

    def block_size(self, start: int) -> int:
        """Steps to the next multiple of BLOCK or the next evaluation, but no more than PATIENCE allows."""
        affordable = max(1, int(PATIENCE / max(self.pace, PATIENCE / BLOCK)))
        return min(BLOCK - start % BLOCK, self.until_evaluation(), affordable)

    def sampler(self, r: int, stage: int, phase: str) -> EpochSampler:
        visible = self.strategy.visible(stage)
        pools = [self.rows(self.streams[r].train[task], task) for task in visible]
        return EpochSampler(pools, self.budget, self.even and len(visible) > 1, self.seeds[r], f"stage {stage} {phase}")

    def rows(self, images: Tensor, task: int) -> Tensor:
        return images + len(self.strategy.data.images) * task

    def until_evaluation(self) -> int:
        """Steps to the next evaluation within a task."""
        return self.evaluate_every - self.step % self.evaluate_every if self.evaluate_every else BLOCK

    def block(
        self, walk: Stepper, samplers: Sequence[EpochSampler], start: int, size: int, stage: int, report: StageReport
    ) -> dict[str, Tensor]:
        """Some steps, without a word to the host -> signals {name: (R, size)} and "present"."""
        began = perf_counter()
        taken = [sampler.sample(start, size) for sampler in samplers]
        sizes = torch.stack([weight.sum(1) for _, weight, _, _ in taken]).long()
        report.samples += int(sizes.sum())
        rows, weight, progress, noise = self.gathered(taken)
        draws = self.lift(self.strategy.data.index)(self.tables, rows, weight.to(self.lr.dtype))
        at = [torch.tensor(v, device=self.device) for v in (stage, self.horizon(stage))]
        # a new shape is a new compilation; but batch norm must not see what fills a batch up
        short = sizes[0].tolist() if self.alone and not self.replay and (walk.run.stats or not self.compile) else None
        signals = walk.run_steps(draws, StepContext(*at, progress, noise), start, short, self.advance)
        signals = {name: self.each(v) for name, v in signals.items()}
        self.charge(report, "train", began)
        self.pace = (perf_counter() - began) / size
        return signals | {"present": sizes > 0}

    def charge(self, report: StageReport, what: str, began: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        report.seconds[what] += perf_counter() - began

    def evaluate_if_due(self, run: Run, stage: int, report: StageReport) -> None:
        """Accuracy within a task, where it is asked for."""
        if self.evaluate_every and self.step % self.evaluate_every == 0:
            began = perf_counter()
            report.over_training.append((self.step, self.correct(run, self.horizon(stage), "test")))
            self.charge(report, "eval", began)

    # ------------------------------------------------------------ after a pass

    def consolidate(self, run: Run, stage: int, phase: str, report: StageReport) -> Run:
        began = perf_counter()
        pool = self.pool(stage, phase, run.theta.dtype)

        def after(run, hp, rows, weight, noise, tables, stage, horizon):
            pool = Pool(rows, weight, noise, stage, horizon, tables)
            return self.strategy.eval_mode(run.stats).after_phase(phase, run.theta, run.state, hp, pool)

        args = (run, self.hp, pool.rows, pool.weight, pool.noise, self.tables, pool.stage, pool.horizon)
        theta, state = self.lift(after, (0, 0, 0, 0, 0, 0, None, None))(*args)
        self.charge(report, "consolidate", began)
        return run._replace(theta=theta, state=tree_map(torch.clone, state))

    def pool(self, stage: int, phase: str, dtype: torch.dtype) -> Pool:
        """All samples that this stage saw, in random order."""
        drawn, noise = [], []
        for r, seed in enumerate(self.seeds):
            draw = generator(seed, f"stage {stage} after {phase}")
            rows = torch.cat([self.rows(self.streams[r].train[task], task) for task in self.strategy.visible(stage)])
            drawn.append(rows[torch.randperm(len(rows), generator=draw)])
            noise.append(torch.rand(len(rows), DRAWS, generator=draw).mT)
        rows, weight = pad_rows(drawn)
        n = rows.shape[1]
        noise = [torch.nn.functional.pad(v, (0, n - v.shape[1])) for v in noise]
        rows, weight, noise = self.gathered(list(zip(rows, weight.to(dtype), noise, strict=True)))
        at = [torch.tensor(v, device=self.device) for v in (stage, self.horizon(stage))]
        return Pool(rows, weight, noise, *at, self.tables)

    # ------------------------------------------------------------ what happened

    def diagnose(self, run: Run, signals: list[dict[str, Tensor]], report: StageReport) -> None:
        """Health and trouble of every run in this stage."""
        state = self.lift(lambda run, hp: self.strategy.health(run.state, hp))(run, self.hp)
        state = {name: self.each(v) for name, v in state.items()}
        whole, sound = (self.sound(tree) for tree in (run.theta, run.opt))
        names = signals[0] if signals else {}
        for r in range(len(self.seeds)):
            mine = {name: torch.cat([s[name][r][s["present"][r]] for s in signals]) for name in names}
            steps = [s["present"][r] for s in signals]
            weights = torch.cat([monitoring_weights(len(here))[here] for here in steps]) if mine else torch.zeros(0)
            report.health[r] = self.healthy(mine, weights) | {name: v[r].item() for name, v in state.items()}
            report.divergence[r] = first_divergence(mine, weights, bool(whole[r]), bool(sound[r])) if mine else None

    def sound(self, tree: Tree) -> Tensor:
        """(R,) bool: whether all tensors of a run are finite."""
        finite = [self.each(v).isfinite().reshape(len(self.seeds), -1).all(1) for v in tree_leaves(tree)]
        return torch.stack([torch.ones(len(self.seeds), dtype=torch.bool), *finite]).all(0)

    def healthy(self, signals: dict[str, Tensor], weights: Tensor) -> dict[str, float]:
        """Means over the steps of a task; weights (S,) as in `monitoring_weights`."""
        if not signals:
            return {"steps": 0}
        seldom = {n: monitored_mean(v, weights) for n, v in signals.items() if n in MONITORED}
        means = {n: v.double().mean().item() for n, v in signals.items() if n not in ("present", *MONITORED)}
        means |= {NORM: seldom[NORM]}
        if QUADRATIC in seldom:
            means |= {"loss": means["loss"] + seldom[QUADRATIC], "penalty": seldom[QUADRATIC]}
        whole = means["loss"] or 1.0  # a task of one class has nothing to tell apart: its loss is zero
        shares = {f"{n}_over_loss": means[n] / whole for n in self.strategy.shares}
        counts = {"steps": len(signals["loss"]), "steps_not_finite": len(nonfinite_steps(signals, weights))}
        return counts | means | shares

    # ------------------------------------------------------------ accuracy

    def measure(self, run: Run, horizon: int | None, report: StageReport) -> None:
        began = perf_counter()
        report.correct, report.confusion = self.examined(run, horizon, "test")
        if self.validate:
            report.validation = self.correct(run, horizon, "validation")
        self.charge(report, "eval", began)

    def correct(self, run: Run, horizon: int | None, part: str) -> Tensor:
        """(R, T) int64: right answers on every task. horizon: the newest task seen; None before any training."""
        return self.examined(run, horizon, part)[0]

    def examined(self, run: Run, horizon: int | None, part: str) -> tuple[Tensor, Tensor]:
        """As `correct`, and (R, C, C) int64: [true, predicted] over the pictures of all tasks."""
        C, right = self.strategy.data.outputs, []
        counts = torch.zeros(len(self.seeds), C * C, dtype=torch.long)
        for guessed, labels, here in self.answers(run, horizon, part):
            right.append(((guessed == labels) & here).sum(-1))
            counts.scatter_add_(1, labels * C + guessed, here.long())
        return torch.stack(right, -1), counts.view(-1, C, C)

    def answers(self, run: Run, horizon: int | None, part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For every task: predictions (R, n), labels (R, n), whether there is a sample (R, n); on the host."""
        predict = self.lift(self.predict, (0, 0, 0, 0, None))
        last = self.strategy.data.tasks - 1
        seen = torch.tensor(last if horizon is None else horizon, device=self.device)
        tables = self.tables if horizon is not None else self.before_training()
        for task in range(last + 1):
            rows, here = pad_rows([self.rows(getattr(stream, part)[task], task) for stream in self.streams])
            rows = self.gathered(list(rows))
            chunks = [predict(run, self.hp, tables, chunk, seen) for chunk in rows.split(EVALUATE, -1)]
            guessed, labels = (self.each(torch.cat(v, -1)) for v in zip(*chunks, strict=True))
            yield guessed, labels, here.bool()

    def before_training(self) -> TaskTables:
        """The deal in which each task is answered by the first task's outputs and its own."""
        return self.tables._replace(active=self.tables.unlearnt.unsqueeze(-3).expand(self.tables.active.shape))

    def predict(self, run: Run, hp: Any, tables: TaskTables, rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """rows (n,) -> answers (n,), labels (n,)."""
        logits, labels = self.scores(run, hp, tables, rows, seen)
        return logits.argmax(-1), labels

    def scores(self, run: Run, hp: Any, tables: TaskTables, rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """rows (n,) -> logits (n, C), BARRED where an output may not answer, labels (n,): of the deployed network at
        rest."""
        strategy = self.strategy.eval_mode(run.stats)
        noise = torch.zeros(DRAWS, 0, device=rows.device)
        moment = StepContext(seen, seen, torch.zeros((), device=rows.device), noise)
        batch = strategy.data.batch(tables, rows, torch.ones_like(rows), moment, augment=False)
        theta = strategy.deploy(run.theta, run.state, hp)
        logits = strategy.logits(theta, run.state, hp, batch.x, batch.t)
        return logits.masked_fill(~batch.active, BARRED), batch.y

    def confusion(self, run: Run, horizon: int) -> Tensor:
        """(R, C, C) int64: [true, predicted] over the test pictures of all tasks."""
        return self.examined(run, horizon, "test")[1]

    def state_bytes(self, run: Run) -> int:
        """What one run keeps for its strategy: its state, and the leaves that it added to theta."""
        state = sum(v.numel() * v.element_size() for v in tree_leaves(run.state)) // len(self.seeds)
        theta = run.theta if self.alone else run.theta[0]
        network = sum(p.numel() for p in self.strategy.net.network.parameters().values())
        return state + (theta.numel() - network) * theta.element_size()
