"""The engine: R runs that differ only in values are trained at once, by one loop.

The state of a run is a tuple of tensors (`state.TrainState`), and everything that is done to it is a function of
tensors. A `Stack` holds R runs of one strategy, network and optimizer, and trains them stage by stage. R = 1 is the
ordinary case. The engine knows no strategy, no scenario and no task number: these are hooks of the strategy and tables
of the data.

Where to find what:

    step.py         the equation of a training step; pure_steps.py: its pure functions of all runs, each made once
    static_step.py  the step on tensors that stay where they are
    steppers.py     what takes many steps; in_place.py: one run on a CPU; cuda_graph.py: on CUDA; capture.py: its graphs
    blocks.py       how many steps are taken at once
    schedule.py     which samples a run sees, and when
    vectorize.py    functions and values of one run as those of R runs
    evaluation.py   accuracy and confusion
    measures.py     what is measured at the end of a stage
    prequential.py  answers to samples before they are learnt
    rates.py        the learning rate from step to step
    plasticity.py   how able the network still is to learn
    probe.py        how much of a task can still be read off the features
    hooks.py        what the strategy's methods return, checked
    health.py       means over a stage's steps, divergence
    state.py        the run, and what a stage reports
    listener.py     who is informed on the way

`Stack.learn` is one stage. For each pass of the strategy over the task, `train` takes its steps in blocks, each of them
by a stepper, and `consolidate` calls the strategy's `after_phase`; then the runs are diagnosed and evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from clrun.data.batches import Pool, StepContext
from clrun.data.sampler import Budget, EpochSampler, OnlineSampler
from clrun.data.tasks import TaskStream, TaskTables
from clrun.engine import hooks
from clrun.engine.blocks import BLOCK_SECONDS, BLOCK_STEPS, BlockSizes
from clrun.engine.capture import Capture, CudaCapture
from clrun.engine.cuda_graph import GraphStepper
from clrun.engine.evaluation import CHUNK_SAMPLES, LEAST, Evaluator
from clrun.engine.health import diagnose
from clrun.engine.in_place import InPlaceStepper, overrides
from clrun.engine.listener import TrainingListener
from clrun.engine.measures import NOTHING_MORE, Measures, enter_plasticity
from clrun.engine.prequential import counted
from clrun.engine.pure_steps import PureSteps
from clrun.engine.rates import RateSchedule
from clrun.engine.schedule import SampleSchedule
from clrun.engine.state import Average, PartialStage, Signals, StageReport, TrainState
from clrun.engine.static_step import StaticStep
from clrun.engine.steppers import Block, EagerStepper, Stepper
from clrun.engine.vectorize import CONSOLIDATION_AXES, Vectorizer
from clrun.models import RunningStatistics
from clrun.optimizers import Optimizer
from clrun.strategy import Strategy

SILENT = TrainingListener()  # a listener that ignores everything

DISTANCE = "average_distance"  # the column of health.csv that `Stack.report_average` fills


@dataclass
class Stack:
    """R runs of one strategy, network and optimizer on the same images, and the loop that trains them.

    What may differ between the runs, and all of a `TrainState`, has a leading axis R; one run alone has none.
    """

    strategy: Strategy
    optimizer: Optimizer
    seeds: Sequence[int]  # [r]
    streams: Sequence[TaskStream]  # [r]
    # [r] stage -> theta, statistics of a new network
    initializers: Sequence[Callable[[int], tuple[Tensor, RunningStatistics]]]
    drawn: Sequence[Mapping[str, Tensor]]  # [r] what `Strategy.draws` returned
    hp: Any  # the strategy's Hyper, leaves (R,)
    lr: Tensor  # (R,)
    budgets: Sequence[Budget]  # [stage]
    balanced: bool  # where several tasks are visible, every batch holds equally many samples of each
    reset: bool  # whether every task begins with a fresh state of the optimizer
    rate_schedule: RateSchedule  # of the learning rate
    clip_norm: float | None = None  # the largest norm of a gradient; None: any
    boundaries: bool = True  # whether the strategy is told where tasks begin and end
    evaluate_every: int = 0  # steps between evaluations within a task; 0: none
    evaluate_samples: int | None = None  # test samples of a task that these evaluations use, at most; None: all
    measures: Measures = NOTHING_MORE  # what is measured at the end of a stage
    decay: float | None = None  # of the average of theta that is evaluated; None: theta itself is
    use_graph: bool = False  # whether steps are taken by the GraphStepper
    capture: Capture | None = None  # how the GraphStepper captures a step; None: on CUDA as graphs, elsewhere not
    compile: bool = False  # whether the step is compiled first
    block_steps: int = BLOCK_STEPS  # steps taken at once, at most
    block_seconds: float = BLOCK_SECONDS  # the time that they may take

    def __post_init__(self) -> None:
        self.vectorizer = Vectorizer(len(self.seeds), self.lr.device)
        self.tables: TaskTables = self.vectorizer.stack_trees([stream.tables for stream in self.streams])
        samples = self.strategy, self.seeds, self.streams, self.budgets, self.balanced, self.boundaries
        self.schedule = SampleSchedule(*samples)
        chunk = max(LEAST, self.strategy.data.share(CHUNK_SAMPLES))
        asked = self.seeds, self.evaluate_samples, chunk, self.measures.every_answer
        self.evaluator = Evaluator(self.strategy, self.vectorizer, self.streams, self.tables, self.hp, *asked)
        self.blocks = BlockSizes(self.evaluate_every, self.block_steps, self.block_seconds)
        self.step = 0  # steps of the longest run so far, in all stages
        self.seconds_per_step: float | None = None  # wall-clock time in the last block
        options = self.decay, self.clip_norm, self.prequential, self.compile
        self.pure_steps = PureSteps(self.strategy, self.optimizer, self.vectorizer, *options)
        self.graph_stepper: GraphStepper | None = None  # the one that is kept from pass to pass, once there is one

    @property
    def prequential(self) -> bool:
        """Whether each sample is seen once, and tested before it is learnt."""
        return self.budgets[0].passes is not None

    @property
    def alone(self) -> bool:
        """Whether there is one run, whose tensors have no axis R."""
        return self.vectorizer.alone

    @property
    def device(self) -> torch.device:
        """Where the runs are trained."""
        return self.vectorizer.device

    # ------------------------------------------------------------ the state of the runs

    def initialize(self, stage: int = 0) -> TrainState:
        """Return the runs as they are before any training; for a strategy that restarts, before any of a stage."""
        theta, stats = self.fresh_parameters(stage)
        initial_state = self.vectorizer.vectorize(lambda *run: hooks.initial_state(self.strategy, *run))
        state = initial_state(theta, self.vectorizer.stack_trees(self.drawn))
        # The state gets tensors of its own: a strategy may have put theta itself into it.
        average = () if self.decay is None else Average.begin(theta)
        return TrainState(theta, self.fresh_optimizer(theta), stats, tree_map(torch.clone, state), average)

    def fresh_optimizer(self, theta: Tensor) -> Any:
        """Return the optimizer's state before its first step."""
        return self.vectorizer.vectorize(self.optimizer.init)(theta)

    def begin_stage(self, current: TrainState, stage: int) -> TrainState:
        """Return the runs with what a stage starts afresh: nothing, the optimizer, what the strategy renews, or the
        whole network."""
        if stage == 0 or not self.boundaries:
            return current
        if overrides(self.strategy, "begin_stage"):
            begin = self.vectorizer.vectorize(lambda *run: hooks.begun_stage(self.strategy, *run))
            theta, state = begin(current.theta, current.state, self.hp, self.fresh_parameters(stage)[0])
            current = with_theta(current, theta)._replace(state=tree_map(torch.clone, state))
        if not (self.reset or self.strategy.restart):
            return current
        fresh = self.initialize(stage) if self.strategy.restart else current
        begun = current._replace(theta=fresh.theta, average=fresh.average)  # a new network has an average of its own
        return begun._replace(stats=fresh.stats, opt=self.fresh_optimizer(fresh.theta))

    def states(self, current: TrainState) -> list[Any]:
        """Return the strategy's state [r] of each run."""
        if self.alone:
            return [current.state]
        return [tree_map(lambda v, r=r: v[r], current.state) for r in range(len(self.seeds))]

    def fresh_parameters(self, stage: int) -> tuple[Tensor, RunningStatistics]:
        """Return theta (R, P) and running statistics of new networks, others at every stage."""
        theta, stats = self.vectorizer.stack_trees([initializer(stage) for initializer in self.initializers])
        return theta, stats

    def resume_at(self, step: int) -> None:
        """Continue to count from a run's step `step`, which an earlier process has reached."""
        self.step = step

    def state_bytes(self, current: TrainState) -> int:
        """Return the bytes that one run keeps for its strategy: its state, and what the strategy added to theta."""
        state = sum(v.numel() * v.element_size() for v in tree_leaves(current.state)) // len(self.seeds)
        theta = current.theta if self.alone else current.theta[0]
        network = sum(p.numel() for p in self.strategy.net.network.parameters().values())
        return state + (theta.numel() - network) * theta.element_size()

    # ------------------------------------------------------------ a stage

    def blank_report(self, stage: int) -> StageReport:
        """Return the report of a stage in which nothing is measured yet."""
        R = len(self.seeds)
        unmeasured = torch.full((R, self.strategy.data.tasks), -1)
        return StageReport(stage, unmeasured, unmeasured, [{} for _ in range(R)], [None] * R, [])

    def new_stage(self, stage: int) -> PartialStage:
        """Return a stage of which nothing is done yet."""
        return PartialStage(self.blank_report(stage))

    @property
    def learnt(self) -> int:
        """The number of tasks that an earlier run has learnt, from which these go on."""
        return self.streams[0].learnt

    def evaluate_untrained(self, current: TrainState) -> StageReport:
        """Return the report of stage -1: accuracies before any training by these runs."""
        report = self.blank_report(-1)
        self.evaluate(current, self.learnt - 1 if self.learnt else None, report)
        return report

    def learn(
        self, current: TrainState, stage: int, partial: PartialStage | None = None, listener: TrainingListener = SILENT
    ) -> tuple[TrainState, StageReport]:
        """Train the runs on one stage, evaluate them on all tasks, and return them and the report of the stage.

        partial: what is done of this stage already, `current` being as it was then; None for a new stage.
        """
        if partial is None:
            current, partial = self.begin_stage(current, stage), self.new_stage(stage)
        if self.strategy.visible(stage):
            current, partial = self.run_phases(current, partial, listener)
        report = partial.report
        report.online = partial.online_counts()
        signals = [of_pass for of_pass in partial.signals if of_pass]
        diagnoses = diagnose(self.strategy, self.vectorizer, current, self.hp, signals)
        measured = zip(diagnoses, report.health, strict=True)  # where theta became its average, their distance is known
        report.health = [diagnosis.health | of_passes for diagnosis, of_passes in measured]
        if isinstance(current.average, Average) and DISTANCE not in report.health[0]:
            self.report_average(current.average, current.theta, report)
        if self.measures.plasticity and self.strategy.visible(stage):
            with self.timed(report, "eval"):
                pool = self.pool(stage, self.strategy.phases[-1], current.theta.dtype)
                enter_plasticity(self.evaluator, current, pool, report)
        report.divergence = [diagnosis.divergence for diagnosis in diagnoses]
        self.evaluate(current, self.schedule.horizon(stage), report)
        report.step = self.step
        return current, report

    def run_phases(
        self, current: TrainState, partial: PartialStage, listener: TrainingListener
    ) -> tuple[TrainState, PartialStage]:
        """Train and consolidate in each pass that the strategy makes over a task, from `partial` on."""
        while True:
            if self.strategy.takes_steps(partial.report.stage):
                current, partial = self.train(current, partial, listener)
            current = self.consolidate(current, partial)
            if partial.phase + 1 == len(self.strategy.phases):
                return current, partial
            partial = partial.next_phase()

    def evaluate(self, current: TrainState, horizon: int | None, report: StageReport) -> None:
        """Enter the accuracies at the end of a stage into its report. horizon: as `Evaluator.evaluate` takes it."""
        with self.timed(report, "eval"):
            self.measures.enter(self.evaluator, current, horizon, report)

    def report_average(self, average: Average, theta: Tensor, report: StageReport) -> None:
        """Add how far the average of theta is from it to the health of a stage."""
        distance = (average.theta - theta).norm(dim=-1) / theta.norm(dim=-1)
        for health, value in zip(report.health, self.vectorizer.unstack_to_host(distance).tolist(), strict=True):
            health[DISTANCE] = value

    @contextmanager
    def timed(self, report: StageReport, activity: str) -> Iterator[None]:
        """Add the wall-clock seconds that the block takes, work of the GPU included, to those of the report."""
        began = perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        report.seconds[activity] += perf_counter() - began

    # ------------------------------------------------------------ the steps of a pass

    def train(
        self, current: TrainState, partial: PartialStage, listener: TrainingListener = SILENT
    ) -> tuple[TrainState, PartialStage]:
        """Take what is left of the steps of a pass, unless all runs have diverged. `current` itself stays as it is."""
        stage = partial.report.stage
        samplers = self.schedule.samplers(stage, self.strategy.phases[partial.phase], self.states(current))
        total = max(sampler.steps for sampler in samplers)
        listener.pass_started(stage, total)
        listener.steps_taken(partial.start)
        stepper = self.make_stepper(current, samplers)
        while partial.start < total and not self.has_diverged(partial):
            size = min(self.blocks.size(partial.start, self.step, self.seconds_per_step), total - partial.start)
            signals = self.train_block(stepper, samplers, partial, size, listener)
            partial = partial.extended(signals, size)
            current = stepper.snapshot() if partial.start < total else stepper.result()
            self.step += size
            self.evaluate_if_due(current, partial.report)
            listener.block_ended(current, partial)
        return current, partial

    def has_diverged(self, partial: PartialStage) -> bool:
        """Return whether all runs have diverged. That is asked at certain steps only, so that a run stops at the same
        step however fast it is and wherever it was interrupted."""
        return self.blocks.is_boundary(partial.start) and partial.all_diverged()

    def train_block(
        self,
        stepper: Stepper,
        samplers: Sequence[EpochSampler],
        partial: PartialStage,
        size: int,
        listener: TrainingListener = SILENT,
    ) -> Signals:
        """Take the next `size` steps and return their signals {name: (R, size)}.

        The signal "present" is False for the steps that a run does not take because its pass is over.
        """
        began = perf_counter()
        with self.timed(partial.report, "train"):
            taken = [sampler.sample(partial.start, size) for sampler in samplers]
            batch_sizes = torch.stack([steps.weight.sum(1) for steps in taken]).long()  # (R, size)
            partial.report.samples += int(batch_sizes.sum())
            rows, weight, progress, epoch, noise = self.vectorizer.stack_trees(taken)
            index = self.vectorizer.vectorize(self.strategy.data.index)
            rate = self.vectorizer.stack_trees(self.rates(samplers, partial, size))
            block = Block(
                index(self.tables, rows, weight.to(self.lr.dtype)),
                StepContext(*self.stage_and_horizon(partial.report.stage), progress, epoch, noise, rate),
                partial.start,
                batch_sizes[0].tolist() if self.cuts_batches else None,
                None if self.alone else (batch_sizes > 0).all(0).tolist(),
            )
            before = perf_counter()
            stepper.prepare(block)
            began += perf_counter() - before  # what is done once says nothing about the time of a step
            signals = stepper.run_steps(block, listener.steps_taken)
            signals = {name: self.vectorizer.unstack_to_host(v) for name, v in signals.items()}
            if self.prequential:
                online = [sampler for sampler in samplers if isinstance(sampler, OnlineSampler)]
                new = torch.stack([sampler.new(partial.start, size) for sampler in online])
                signals = counted(signals, new)
        self.seconds_per_step = (perf_counter() - began) / size
        return signals | {"present": batch_sizes > 0}

    def rates(self, samplers: Sequence[EpochSampler], partial: PartialStage, size: int) -> list[Tensor]:
        """Return [r] the parts (size,) of its learning rate that each run uses in the next steps of a pass."""
        done, of = self.schedule.stages_before(partial.report.stage)
        if of == self.strategy.data.tasks:  # otherwise one stage trains them all, as joint does
            of += self.rate_schedule.left_out
        of_runs = [self.rate_schedule.factors(partial.start, size, each.steps, done, of) for each in samplers]
        return [factors.to(self.lr.dtype) for factors in of_runs]

    @property
    def cuts_batches(self) -> bool:
        """Whether a batch that is not full is cut to its size rather than filled up with samples of weight 0.

        Runs of a stack, and graphs, need batches of one size, and a compiled step would be compiled anew for another.
        """
        return self.alone and not (self.use_graph or self.compile)

    def stage_and_horizon(self, stage: int) -> tuple[Tensor, Tensor]:
        """Return the stage () and its horizon (), int64, on the device; stage 0 where the strategy is not told."""
        horizon = self.schedule.horizon(stage)
        return torch.tensor(stage if self.boundaries else 0, device=self.device), torch.tensor(
            horizon, device=self.device
        )

    def make_stepper(self, current: TrainState, samplers: Sequence[EpochSampler]) -> Stepper:
        """Return what takes the steps of a pass, starting from `current`, which itself stays as it is."""
        values = self.lr, self.hp, self.tables
        if self.alone and not (self.use_graph or self.compile):
            options = self.decay, self.clip_norm, self.prequential
            return InPlaceStepper(self.strategy, self.optimizer, current, *values, *options)
        if not self.use_graph:
            return EagerStepper(self.pure_steps.of, current, values)
        if self.graph_stepper is None or shapes_of(self.graph_stepper.current) != shapes_of(current):
            self.graph_stepper = None  # its memory is free before another one takes as much
            self.graph_stepper = self.new_graph_stepper(current)
        steps, batch_size = max(sampler.steps for sampler in samplers), samplers[0].batch_size
        self.graph_stepper.begin(current, steps, batch_size, self.equal_rates(samplers))
        return self.graph_stepper

    def new_graph_stepper(self, current: TrainState) -> GraphStepper:
        """Return a stepper for runs of these shapes, which keeps a copy of them: so there is one at a time."""
        values, options = (self.lr, self.hp, self.tables), (self.decay, self.clip_norm, self.prequential)
        step = StaticStep(self.strategy, self.optimizer, self.vectorizer, current, values, *options)
        capture = CudaCapture(self.device) if self.capture is None and self.device.type == "cuda" else self.capture
        return GraphStepper(step, self.pure_steps.unless_in_place, self.block_steps, capture)

    def equal_rates(self, samplers: Sequence[EpochSampler]) -> tuple[tuple[int, ...], ...]:
        """Return the numbers of the runs in groups whose learning rates are the same at every step of a pass.

        A schedule follows the number of a run's steps, so with one the groups may be others in another pass.
        """
        groups: dict[tuple[float, int], list[int]] = {}
        for r, (lr, sampler) in enumerate(zip(self.lr.reshape(-1).tolist(), samplers, strict=True)):
            groups.setdefault((lr, 0 if self.rate_schedule.is_constant else sampler.steps), []).append(r)
        return tuple(map(tuple, groups.values()))

    def evaluate_if_due(self, current: TrainState, report: StageReport) -> None:
        """Evaluate the runs within a task, at every multiple of `evaluate_every` steps."""
        if self.evaluate_every and self.step % self.evaluate_every == 0:
            with self.timed(report, "eval"):
                correct = self.evaluator.correct_within_task(current, self.schedule.horizon(report.stage))
                report.over_training.append((self.step, correct))

    # ------------------------------------------------------------ the end of a pass

    def consolidate(self, current: TrainState, partial: PartialStage) -> TrainState:
        """Return the runs after the strategy's `after_phase`, which may use all samples of the pass once more.

        Where it fits something to the weights and their average is evaluated, theta becomes the average first.
        """
        if not self.boundaries:
            return current
        phase = self.strategy.phases[partial.phase]
        if self.strategy.fits_weights:
            current = self.averaged(current, partial)

        def after_phase(current: TrainState, hp: Any, pool: Pool) -> tuple[Tensor, Any]:
            evaluated = self.strategy.eval_mode(current.stats)
            return hooks.after_phase(evaluated, phase, current.theta, current.state, hp, pool)

        with self.timed(partial.report, "consolidate"):
            pool = self.pool(partial.report.stage, phase, current.theta.dtype)
            theta, state = self.vectorizer.vectorize(after_phase, CONSOLIDATION_AXES)(current, self.hp, pool)
        return with_theta(current, theta)._replace(state=tree_map(torch.clone, state))

    def averaged(self, current: TrainState, partial: PartialStage) -> TrainState:
        """Return the runs after a pass with the average of theta, where there is one, in place of theta (R, P).

        What is then fitted to theta fits what is evaluated, and training goes on from there. How far the two were from
        each other enters the report of the stage, as afterwards it is 0.
        """
        average = current.average
        if not isinstance(average, Average):
            return current
        if partial.start:  # a pass without steps, after which they are equal, leaves the distance of one before it
            self.report_average(average, current.theta, partial.report)
        return current._replace(theta=average.theta)

    def pool(self, stage: int, phase: str, dtype: torch.dtype) -> Pool:
        """Return all samples that the runs saw in a pass, in random order. dtype: of their weights."""
        rows, weight, noise = self.schedule.shuffled_samples(stage, phase)
        per_run = list(zip(rows, weight.to(dtype), noise, strict=True))
        rows, weight, noise = self.vectorizer.stack_trees(per_run)
        outputs = [v.to(self.device) for v in (self.schedule.answering(stage), self.schedule.labels(stage))]
        return Pool(rows, weight, noise, *self.stage_and_horizon(stage), self.tables, *outputs)


def shapes_of(current: TrainState) -> list[tuple[torch.Size, torch.dtype]]:
    """Return the shapes and types of all tensors of the runs."""
    return [(v.shape, v.dtype) for v in tree_leaves(current)]


def with_theta(current: TrainState, theta: Tensor) -> TrainState:
    """Return runs whose theta was changed by something else than a step, and with it their average."""
    average = current.average
    changed = average.after_change(current.theta, theta) if isinstance(average, Average) else average
    return current._replace(theta=theta, average=changed)
