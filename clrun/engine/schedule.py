"""Which samples each run of a stack sees in a stage, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from clrun.data.batches import pad_rows
from clrun.data.sampler import Budget, EpochSampler, OnlineSampler
from clrun.data.seeding import DRAWS, generator
from clrun.data.tasks import TaskStream
from clrun.engine import host_hooks
from clrun.models.network import normalises_one_sample
from clrun.strategy import Strategy, Tree
from clrun.system.errors import UnfitRun


@dataclass(frozen=True)
class SampleSchedule:
    """The samples that R runs of one strategy train on, stage by stage. All of it follows from the runs' seeds."""

    strategy: Strategy
    seeds: Sequence[int]  # [r]
    streams: Sequence[TaskStream]  # [r]
    budgets: Sequence[Budget]  # [stage]
    balanced: bool  # where several tasks are visible, every batch holds equally many samples of each
    boundaries: bool = True  # whether tasks follow each other; else samples come in an order of their own

    def horizon(self, stage: int) -> int:
        """Return the newest task seen by the end of a stage. It is the stage itself, except for strategies such as
        joint training that see later tasks early."""
        return max(task for s in range(stage + 1) for task in self.strategy.visible(s))

    def stages_before(self, stage: int) -> tuple[int, int]:
        """Return how many stages that train anything lie before this one, and how many there are."""
        trains = [bool(self.strategy.visible(s)) for s in range(self.strategy.data.tasks)]
        return sum(trains[:stage]), sum(trains)

    def rows(self, r: int, stage: int) -> list[Tensor]:
        """Return the rows (n,) that come with each task that feeds a stage of run r: those of its samples, where tasks
        are not blurred."""
        images = len(self.strategy.data.images)
        return [self.streams[r].rows(task, images) for task in self.strategy.visible(stage)]

    def answering(self, stage: int) -> Tensor:
        """Return the outputs (k,) that may answer for a sample of a stage of any run, on the host."""
        horizon = self.horizon(stage)
        found = torch.zeros(self.strategy.data.outputs, dtype=torch.bool)
        for r, stream in enumerate(self.streams):
            found |= stream.tables.active[horizon, self.tasks(r, stage)].any(0)
        return found.nonzero()[:, 0]

    def labels(self, stage: int) -> Tensor:
        """Return the outputs (k,) that stand for the class of a sample of a stage of any run, on the host."""
        of_runs = [
            stream.tables.label[task, stream.groups[task]]
            for r, stream in enumerate(self.streams)
            for task in self.tasks(r, stage)
        ]
        return torch.cat(of_runs).unique()

    def tasks(self, r: int, stage: int) -> list[int]:
        """Return the tasks of the samples that come in a stage of run r."""
        if self.streams[r].arrivals is None:
            return list(self.strategy.visible(stage))
        # other samples than the task's own come with it
        return torch.bincount(torch.cat(self.rows(r, stage)) // len(self.strategy.data.images)).nonzero()[:, 0].tolist()

    def fresh_rows(self, r: int, stage: int) -> Tensor:
        """Return the rows (n,) that no stage of run r before this one has had."""
        before = {task for s in range(stage) for task in self.strategy.visible(s)}
        parts = zip(self.strategy.visible(stage), self.rows(r, stage), strict=True)
        return torch.cat([torch.zeros(0, dtype=torch.long), *(rows for task, rows in parts if task not in before)])

    def sampler(self, r: int, stage: int, phase: str, rows: Sequence[Tensor] | None = None) -> EpochSampler:
        """Return the sampler of run r for one pass of a stage, over these rows [source] (n,) or those of its tasks."""
        own = self.rows(r, stage)
        rows = own if rows is None else [source.cpu() for source in rows]
        purpose, budget = f"stage {stage} {phase}", self.budgets[stage]
        if budget.passes is not None:
            fresh = self.fresh_rows(r, stage)
            in_order = not self.boundaries and len(own) == 1
            return OnlineSampler(
                list(rows), budget, False, self.seeds[r], purpose, own=own, in_order=in_order, fresh=fresh
            )
        balanced = self.balanced and len(rows) > 1
        return EpochSampler(list(rows), budget, balanced, self.seeds[r], purpose)

    def samplers(self, stage: int, phase: str, states: Sequence[Tree]) -> list[EpochSampler]:
        """Return the samplers [r] of all runs for one pass of a stage, which begins with these states [r]."""
        own = [self.rows(r, stage) for r in range(len(self.seeds))]
        rows = [
            host_hooks.trained_rows(self.strategy, phase, state, mine) for state, mine in zip(states, own, strict=True)
        ]
        samplers = [self.sampler(r, stage, phase, chosen) for r, chosen in enumerate(rows)]
        for r, sampler in enumerate(samplers):
            self.refuse_batch_of_one(r, stage, sampler)
        return samplers

    def refuse_batch_of_one(self, r: int, stage: int, sampler: EpochSampler) -> None:
        """Raise UnfitRun where the rows of a pass of run r leave a batch of one sample that the network's batch norms
        cannot normalise. Mostly that is known before training, but not where a method draws what it leaves out."""
        network = self.strategy.net.network
        if not network.has_batch_norm or not sampler.leaves_one:
            return
        if normalises_one_sample(network, self.strategy.data.images.shape[1:]):
            return
        samples, size = sum(map(len, sampler.pools)), sampler.batch_size
        raise UnfitRun(
            f"batch_size={size} leaves a batch of one of the {samples} samples that task {stage + 1} is trained on, "
            "those of a memory included, and batch norm cannot normalise one sample; type another batch_size"
            + (", or drop_last=true." if size > 1 and samples > 1 else "."),
            run=r,
        )

    def shuffled_samples(self, stage: int, phase: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return all samples of a stage in random order, for the end of a pass: rows (R, n), weight (R, n) and noise
        (R, 6, n). A run with fewer than n samples is padded with weight 0."""
        rows, noise = [], []
        for r, seed in enumerate(self.seeds):
            random = generator(seed, f"stage {stage} after {phase}")
            ordered = torch.cat(self.rows(r, stage))
            rows.append(ordered[torch.randperm(len(ordered), generator=random)])
            noise.append(torch.rand(len(ordered), DRAWS, generator=random).mT)
        padded, weight = pad_rows(rows)
        n = padded.shape[1]
        return padded, weight, torch.stack([pad(v, (0, n - v.shape[1])) for v in noise])
