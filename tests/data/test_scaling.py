"""Bytes that become floats while they are scaled, as on a GPU, are those that become floats first, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clrun.data.batches import StepContext, make_data
from clrun.data.samples import Arrays, to_samples
from clrun.data.tasks import make_tasks

N = 48


def samples_of(channels):
    """Pictures of 16 x 16 with all 256 values, and others as many."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.permuted(np.arange(256)).reshape(1, 16, 16) for _ in range(N * channels)])
    return to_samples(Arrays(x.reshape(N, channels, 16, 16).astype(np.uint8), np.arange(N) % 4, N - 8, list("abcd")), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalize", ["true", "false"])
@pytest.mark.parametrize(
    "typed",
    ["", "augment=[crop,flip,colour,erase]", "split=permuted scenario=domain", "split=rotated scenario=domain"],
    ids=["plain", "augmented", "permuted", "rotated"],
)
def test_both_ways_give_the_same_bits(settings_of, dtype, channels, normalize, typed):
    if "colour" in typed and channels == 1:
        typed = "augment=[crop,flip,erase]"
    settings = settings_of("tasks=2", f"dataset.normalize={normalize}", *typed.split())
    samples = samples_of(channels)
    stream = make_tasks(samples, settings)
    data = make_data(samples, settings, *stream.tables.active.shape[1:], torch.device("cpu"), dtype)
    noise = torch.rand(6, N, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    moment = StepContext(torch.tensor(1), torch.tensor(1), torch.tensor(0.0), torch.tensor(0), noise)
    rows = data.rows(torch.arange(N) % samples.train, 1)
    kept = data.images.clone()
    both = data, replace(data, fused=True)
    plain, fused = (one.batch(stream.tables, rows, torch.ones(N), moment).x for one in both)
    assert fused.dtype == plain.dtype == dtype and torch.equal(fused, plain)
    assert torch.equal(data.images, kept) and plain.std() > 0
