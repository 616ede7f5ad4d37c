"""What holds for any data: every class in one task, no test picture in training, every sample kept with chance M/N.

(Metrics against brute force, over any matrix: test_metrics.py.)
"""

import torch
from helpers import ListReservoir, empty_memory
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from clrun.data.datasets import Images
from clrun.data.sampler import Budget, EpochSampler
from clrun.data.tasks import TaskStream, make_tasks
from clrun.system.errors import UsageError

# ---------------------------------------------------------------- splits


@st.composite
def data_sets(draw) -> Images:
    """2 to 8 classes of 1 to 6 training and 1 to 4 test pictures each, in any order."""
    classes = draw(st.integers(2, 8))

    def labels(most: int) -> list[int]:
        counts = draw(st.lists(st.integers(1, most), min_size=classes, max_size=classes))
        return draw(st.permutations([k for k, n in enumerate(counts) for _ in range(n)]))

    train, test = labels(6), labels(4)
    y = torch.tensor(train + test)
    return Images(torch.zeros(len(y), 1, 2, 2, dtype=torch.uint8), y, len(train), tuple("abcdefgh"[:classes]), "")


@st.composite
def streams(draw) -> tuple[Images, dict, TaskStream]:
    """A data set dealt to tasks: evenly, by lists that may leave classes out, permuted or rotated."""
    images = draw(data_sets())
    K = len(images.classes)
    values = {
        "split": draw(st.sampled_from(["classes", "classes", "classes", "permuted", "rotated"])),
        "scenario": draw(st.sampled_from(["task", "domain", "class"])),
        "active": draw(st.sampled_from(["seen", "all"])),
        "split.order": draw(st.sampled_from(["seed", "fixed"])),
        "split.seed": draw(st.sampled_from([None, 3])),
        "split.max_angle": 90.0,
        "split.classes": None,
        "first_tasks": None,
        "augment": "none",
        "seed": draw(st.integers(0, 2**32 - 1)),
        "validation": draw(st.sampled_from([0.0, 0.2, 0.5])),
        "drop_last": False,
        "batch_size": draw(st.integers(1, 9)),
        "tasks": draw(st.sampled_from([t for t in range(1, K + 1) if K % t == 0])),
    }
    if values["split"] == "classes" and draw(st.booleans()):
        order = draw(st.permutations(range(K)))
        cuts = sorted(draw(st.sets(st.integers(1, K - 1), max_size=3)))
        lists = [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, K], strict=True)]
        values |= {"split.classes": lists, "split.order": "fixed", "tasks": len(lists)}
    try:
        return images, values, make_tasks(images, values)
    except UsageError:  # too small or unequal for its scenario, or no picture to validate with: said, not dealt
        assume(False)
        raise


@settings(deadline=None, max_examples=80)
@given(streams())
def test_every_class_is_in_one_task_and_every_picture_used_once(stream):
    images, values, stream = stream
    for part, numbers in (("train", range(images.train)), ("test", range(images.train, len(images.y)))):
        pools = [pool.tolist() for pool in getattr(stream, part)]
        if part == "train":
            pools = [pool + held.tolist() for pool, held in zip(pools, stream.validation, strict=True)]
        if values["split"] != "classes":
            assert all(sorted(pool) == list(numbers) for pool in pools)
            continue
        classes = [{int(images.y[i]) for i in pool} for pool in pools]
        assert sorted(k for task in classes for k in task) == list(range(len(images.classes)))
        assert sorted(i for pool in pools for i in pool) == list(numbers)


@settings(deadline=None, max_examples=80)
@given(streams())
def test_every_class_of_every_task_has_an_output_of_its_own(stream):
    """(In domain-incremental streams tasks share outputs.) The right answer is always among those that may be given."""
    images, values, stream = stream
    meant: dict[int, set] = {}
    for task, pool in enumerate(stream.test):
        for k in sorted(set(images.y[pool].tolist())):
            output = int(stream.tables.label[task, k])
            assert stream.tables.active[task:, task, output].all() and stream.tables.unlearnt[task, output]
            owner = (task if values["scenario"] == "domain" else None, output)
            meant.setdefault(owner, set()).add((task, k))
    assert all(len(classes) == 1 for classes in meant.values())


@settings(deadline=None, max_examples=60)
@given(streams(), st.booleans(), st.integers(1, 3))
def test_nothing_but_training_pictures_is_ever_trained_on(stream, union, epochs):
    """All batches of a task, or of all tasks: no test picture, no validation picture; in an uneven pass each once."""
    images, values, stream = stream
    N, held = len(images.y), {i for pool in stream.validation for i in pool.tolist()}
    groups = [range(values["tasks"])] if union else [[task] for task in range(values["tasks"])]
    for group in groups:
        pools = [stream.train[task] + N * task for task in group]
        balanced = values["scenario"] == "task" and len(pools) > 1
        sampler = EpochSampler(pools, Budget(epochs, None, values["batch_size"], False), balanced, values["seed"], "")
        rows, weight, *_ = sampler.sample(0, sampler.steps)
        drawn = rows[weight > 0].tolist()
        allowed = {row for pool in pools for row in pool.tolist()}
        assert set(drawn) <= allowed
        assert all(row % N < images.train and row % N not in held for row in drawn)
        if not balanced:
            assert sorted(drawn) == sorted([*allowed] * epochs)


# ---------------------------------------------------------------- the reservoir

offers = st.lists(st.integers(1, 9), min_size=1, max_size=12)  # sizes of batches


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 20), offers, st.integers(0, 2**32 - 1))
def test_batches_are_one_sample_after_the_other(size, sizes, seed):
    """Vitter's algorithm R on lists: the same slots, whatever the batches and whatever is missing in them."""
    draw = torch.Generator().manual_seed(seed)
    memory, slots, first = empty_memory(size), ListReservoir(size), 0
    for B in sizes:
        rows, first = torch.arange(first, first + B), first + B
        weight, noise = (torch.rand(B, generator=draw) < 0.7).float(), torch.rand(B, generator=draw)
        for row, w, u in zip(rows.tolist(), weight.tolist(), noise.tolist(), strict=True):
            if w:
                slots.offer(row, u)
        memory = memory.updated(memory.slot_updates(weight, noise), rows, weight)
    assert memory.rows[: memory.held].tolist() == slots.kept and memory.offered == slots.offered


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(1, 20), offers, st.data())
def test_each_sample_is_kept_with_probability_m_over_n(size, sizes, data):
    """4000 reservoirs; how often a sample is kept is binomial. Outside the exact interval of 1 - 1e-9 by chance: in one
    of ten million such tests (100 counts each). The draws are the same each time the test is run."""
    runs, n = 4000, sum(sizes)
    here = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))).float()
    assume(here.sum() > 0)
    noise = torch.rand(runs, n, generator=torch.Generator().manual_seed(n))

    def fill(noise):
        memory = empty_memory(size)
        for rows in torch.arange(n).split(sizes):
            memory = memory.updated(memory.slot_updates(here[rows], noise[rows]), rows, here[rows])
        return torch.where(memory.used, memory.rows, n)

    counts = torch.bincount(torch.vmap(fill)(noise).flatten(), minlength=n + 1)[:n]
    offered = int(here.sum())
    low, high = binom.interval(1 - 1e-9, runs, min(1.0, size / offered))
    for count, w in zip(counts.tolist(), here.tolist(), strict=True):
        assert (low <= count <= high) if w else count == 0
