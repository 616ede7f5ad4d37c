"""The axes of named tuples of tensors, over which functions of one run become functions of a stack."""

import pytest
import torch

from clrun.data.batches import Pool, StepContext
from clrun.engine.vectorize import BATCH_AXES, CONTEXT_AXES, PER_RUN, SHARED, Vectorizer, axes_of


def test_fields_that_are_named_are_shared_and_the_others_are_not() -> None:
    assert axes_of(StepContext, "stage", "horizon") == (SHARED, SHARED, PER_RUN, PER_RUN, PER_RUN, PER_RUN)
    with pytest.raises(TypeError, match="and not rate"):
        axes_of(Pool, "stage", "rate")


def test_a_batch_shares_what_its_context_shares() -> None:
    axes = CONTEXT_AXES._asdict()
    del axes["rate"]  # no batch has it
    assert {name: BATCH_AXES._asdict()[name] for name in axes} == axes


def test_shared_fields_reach_every_run_as_they_are() -> None:
    vectorizer = Vectorizer(runs=2, device=torch.device("cpu"))
    two = torch.tensor([0.25, 0.5])
    stage, horizon = torch.tensor(3), torch.tensor(4)
    context = StepContext(stage, horizon, two, two.long(), torch.zeros(2, 6, 1), two)
    add = vectorizer.vectorize(lambda one: one.stage + one.horizon + one.progress + one.rate, (CONTEXT_AXES,))
    assert add(context).tolist() == [7.5, 8.0]
