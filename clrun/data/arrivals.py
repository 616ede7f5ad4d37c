"""Which training samples come while which task is learnt, where these are not just the samples of the task itself.

A sample belongs to one task, its own, which says what its label is, how it is permuted or turned, and with which task
it is tested. Here is decided in which stage it comes. Every sample comes once: what leaves one stage enters another.

Shapes: T tasks, N images; a row number is image + N * own task.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clrun.data.seeding import generator


def rows_of(pools: Sequence[Tensor], images: int) -> list[Tensor]:
    """Return the row numbers [task] (n,) of image numbers [task] (n,), where there are so many images."""
    return [pool + images * task for task, pool in enumerate(pools)]


def blurred(
    pools: Sequence[Tensor], labels: Tensor, groups: Sequence[Sequence[int]], share: float, disjoint: float, seed: int
) -> list[Tensor]:
    """Return the rows [stage] (n,) where a share of the samples of each class come while other tasks are learnt, and
    these are dealt evenly to all other tasks (Bang et al. 2021, "Blurry").

    pools: image numbers [task] (n,). labels (N,): class numbers. groups: the classes [task] of each task. disjoint: the
    share of the classes of which all samples stay with their task (Koh et al. 2022, "i-Blurry"). With tasks of equal
    size, `share` is also the share of the samples of a stage that belong to other tasks, if disjoint is 0.
    """
    random = generator(seed, "blurred")
    kept = disjoint_classes(groups, disjoint, random)
    stages: list[list[Tensor]] = [[] for _ in pools]
    dealt = 0
    for task, group in enumerate(groups):
        others = [other for other in range(len(pools)) if other != task]
        for k in group:
            rows = pools[task][labels[pools[task]] == k] + len(labels) * task
            rows = rows[torch.randperm(len(rows), generator=random)]
            leaving = 0 if k in kept else round(share * len(rows))
            stages[task].append(rows[leaving:])
            for i, part in enumerate(deal(rows[:leaving], len(others), dealt)):
                stages[others[i]].append(part)
            dealt += leaving
    return [torch.cat(parts).sort().values for parts in stages]


def deal(rows: Tensor, hands: int, first: int) -> list[Tensor]:
    """Return rows (n,) dealt one by one to so many hands, the first of them to hand number `first`."""
    at = (torch.arange(len(rows)) + first) % hands
    return [rows[at == hand] for hand in range(hands)]


def disjoint_classes(groups: Sequence[Sequence[int]], share: float, random: torch.Generator) -> set[int]:
    """Return the classes of which all samples stay with their task: this share of each task's, as nearly as whole
    classes allow, and of all classes together."""
    chosen: list[int] = []
    seen = 0
    for group in groups:
        seen += len(group)
        order = torch.randperm(len(group), generator=random).tolist()
        chosen += [group[i] for i in order[: max(0, round(share * seen) - len(chosen))]]
    return set(chosen)


class Blurred(NamedTuple):
    """The classes of a task by what becomes of their samples."""

    disjoint: list[int]  # all of whose samples stay with the task
    blurry: list[int]

    @property
    def classes(self) -> list[int]:
        """All classes of the task."""
        return self.disjoint + self.blurry


def stochastic_classes(order: Sequence[int], tasks: int, disjoint: float, seed: int) -> list[Blurred]:
    """Return the classes [task] of a stream in which their number is drawn for each task ("Si-Blurry", Moon et al.
    2023): the first classes in `order`, a share of them, are disjoint, and these and all others are cut at random.

    A task may have no class of its own; the last task has one at least. As in the authors' code, cuts are uniform.
    """
    random = generator(seed, "stochastic classes")
    kept = round(disjoint * len(order))
    parts = [cut_at_random(list(part), tasks, random) for part in (order[:kept], order[kept:])]
    return [Blurred(*of_task) for of_task in zip(*parts, strict=True)]


def cut_at_random(items: list[int], parts: int, random: torch.Generator) -> list[list[int]]:
    """Return items in so many parts, cut at uniform places; the last part is not empty unless there are none."""
    cuts = torch.randint(max(1, len(items)), (parts - 1,), generator=random).sort().values.tolist()
    return [items[start:end] for start, end in zip([0, *cuts], [*cuts, len(items)], strict=True)]


def stochastic(
    pools: Sequence[Tensor], labels: Tensor, tasks: Sequence[Blurred], share: float, seed: int
) -> list[Tensor]:
    """Return the rows [stage] (n,) of Si-Blurry: `share` of the samples of all blurry classes are drawn, put together,
    and dealt to the tasks in parts that are cut at random. (In the authors' code, a task gives as many as it is dealt,
    as far as it has them, so that with few classes the last tasks may be dealt none.)

    pools: image numbers [task] (n,). labels (N,): class numbers.
    """
    random = generator(seed, "stochastic")
    blurry = torch.tensor([k for of_task in tasks for k in of_task.blurry], dtype=labels.dtype)
    rows = torch.cat(rows_of(pools, len(labels)))
    home = torch.cat([torch.full((len(pool),), task) for task, pool in enumerate(pools)])
    candidates = torch.isin(labels[rows % len(labels)], blurry).nonzero()[:, 0]
    moving = candidates[torch.randperm(len(candidates), generator=random)[: round(share * len(candidates))]]
    dealt = cut_at_random(moving.tolist(), len(pools), random)
    stage = home.clone()
    for task, part in enumerate(dealt):
        stage[part] = task
    return [rows[stage == task].sort().values for task in range(len(pools))]


def sampled_experiences(
    classes: int, tasks: int, occurrence: float | None, recurrence: float, seed: int
) -> list[list[int]]:
    """Return the classes [experience] of a stream in which classes come back by chance (the sampling-based generator of
    Hemati et al. 2023).

    The first experience of a class is drawn from a geometric distribution with parameter `occurrence`, truncated to the
    stream, or is uniform (None). It is in each later one with probability `recurrence`. The stream begins with the
    first class that comes, and an experience that would have none has one of those before it, where the authors leave
    it out.
    """
    random = generator(seed, "sampled experiences")
    weights = (1 - (occurrence or 0.0)) ** torch.arange(tasks, dtype=torch.float64)
    first = torch.multinomial(weights, classes, replacement=True, generator=random)
    first -= first.min().clone()
    again = torch.rand(tasks, classes, generator=random) < recurrence
    substitute = torch.rand(tasks, generator=random).tolist()
    present: list[list[int]] = []
    for t in range(tasks):
        chosen = ((first == t) | ((first < t) & again[t])).nonzero()[:, 0].tolist()
        known = (first < t).nonzero()[:, 0].tolist()
        present.append(chosen or [known[int(substitute[t] * len(known))]])
    return present


def experiences(classes: int, tasks: int, slots: int, seed: int) -> list[list[int]]:
    """Return the classes [experience] of a stream in which classes come back: `slots` different ones in each, and each
    class as often as any other, give or take one (the slot-based generator of Hemati et al. 2023).

    A valid table is drawn first. Then pairs of classes change places, at random and as often as makes it forget how it
    began, which keeps both sums.
    """
    random = generator(seed, "experiences")
    order = torch.randperm(classes, generator=random).tolist()
    table = [{order[(slots * t + i) % classes] for i in range(slots)} for t in range(tasks)]
    draws = torch.rand(10 * tasks * slots, 4, generator=random).tolist()
    for a, b, c, d in draws:
        one, other = table[int(a * tasks)], table[int(b * tasks)]
        mine, theirs = sorted(one - other), sorted(other - one)
        if mine and theirs:
            given, taken = mine[int(c * len(mine))], theirs[int(d * len(theirs))]
            one ^= {given, taken}
            other ^= {given, taken}
    return [sorted(present) for present in table]


def first_seen(present: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the classes [experience] that come for the first time, which may be none."""
    seen: set[int] = set()
    new = []
    for classes in present:
        new.append([k for k in classes if k not in seen])
        seen |= {*classes}
    return new


def repeated(pools: Sequence[Tensor], labels: Tensor, present: Sequence[Sequence[int]], seed: int) -> list[Tensor]:
    """Return the rows [stage] (n,) where the samples of a class are dealt evenly to the experiences that have it.

    pools: image numbers [task] (n,) of the classes that are new in each.
    """
    random = generator(seed, "repeated")
    stages: list[list[Tensor]] = [[] for _ in pools]
    for task, new in enumerate(first_seen(present)):
        for k in new:
            rows = pools[task][labels[pools[task]] == k] + len(labels) * task
            rows = rows[torch.randperm(len(rows), generator=random)]
            having = [t for t, classes in enumerate(present) if k in classes]
            for t, part in zip(having, rows.tensor_split(len(having)), strict=True):
                stages[t].append(part)
    return [torch.cat(parts).sort().values if parts else torch.zeros(0, dtype=torch.long) for parts in stages]


def circled(order: Sequence[int], tasks: int) -> list[list[int]]:
    """Return the classes [stage] of a stream in which two neighbours in `order` come at a time, the last beside the
    first, round after round."""
    return [[order[t % len(order)], order[(t + 1) % len(order)]] for t in range(tasks)]


def in_circles(pools: Sequence[Tensor], labels: Tensor, present: Sequence[Sequence[int]], seed: int) -> list[Tensor]:
    """Return the rows [stage] (n,) of `repeated`, in the order in which they come: a stage's classes mixed at
    random."""
    random = generator(seed, "in circles")
    dealt = repeated(pools, labels, present, seed)
    return [rows[torch.randperm(len(rows), generator=random)] for rows in dealt]


def turned_as_they_come(rows: Sequence[Tensor], labels: Tensor, order: Sequence[int], seed: int) -> Tensor:
    """Return the angle (N,) in radians of each image of a stream in which pictures turn (MNIST-360).

    The n training samples of a class turn once around, by a full turn / n from each to the next that comes; the classes
    begin a sixth of a turn apart in `order`, the first of them at minus a sixth. The angles of all other images, which
    are for validation and test, are uniform and follow from the seed alone. rows: as of `in_circles`.
    """
    angle = torch.rand(len(labels), dtype=torch.float64, generator=generator(seed, "angles of tests")) * 2 * torch.pi
    come = torch.cat(list(rows)) % len(labels)
    for place, k in enumerate(order):
        of_class = come[labels[come] == k]
        since = torch.arange(len(of_class), dtype=torch.float64) / max(1, len(of_class))
        angle[of_class] = ((place - 1) / 6 + since) * 2 * torch.pi
    return angle.remainder(2 * torch.pi).float()


def gradual(pools: Sequence[Tensor], images: int, overlap: float, seed: int) -> list[Tensor]:
    """Return the rows [stage] (n,), in the order in which they come, of a stream without boundaries.

    A sample of task t (from 0) comes at the time t + u + overlap (v - 1/2), with u and v uniform in [0, 1): task t + 1
    gains on task t evenly from t + 1 - overlap/2 to t + 1 + overlap/2. A time before 0 or after T is reflected there.
    Stage s has what comes in [s, s + 1).
    """
    random = generator(seed, "gradual")
    rows = torch.cat(rows_of(pools, images))
    task = torch.cat([torch.full((len(pool),), t) for t, pool in enumerate(pools)])
    u, v = torch.rand(2, len(rows), dtype=torch.float64, generator=random)
    time = (task + u + overlap * (v - 0.5)).abs()
    time = torch.where(time >= len(pools), 2 * len(pools) - time, time)
    order = time.argsort(stable=True)
    stage = time[order].long().clamp(max=len(pools) - 1)
    return [rows[order[stage == s]] for s in range(len(pools))]
