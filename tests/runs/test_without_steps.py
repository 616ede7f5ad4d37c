"""Keys that say how steps are taken are refused where a method takes none, before any data are loaded."""

import pytest
from conftest import STEPLESS

from clrun.runs import prepare
from clrun.system.errors import UsageError


def refusal(settings):
    """What a run of these settings is refused with before any data are loaded; None where it is not."""
    try:
        prepare.refuse_without_data(settings)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("strategy", STEPLESS)
@pytest.mark.parametrize(
    "typed",
    [
        ("clip_norm=1",),
        ("schedule=cosine",),
        ("warmup=0.1",),
        ("stream=online", "passes=2"),
        ("average=ema",),
        ("probe=true",),
    ],
    ids=" ".join,
)
def test_a_key_that_has_no_effect_without_steps_is_refused(settings_of, strategy, typed):
    said = refusal(settings_of(f"strategy={strategy}", "scenario=class", *typed))
    assert said is not None and f"leave {typed[-1].partition('=')[0]} out" in said


@pytest.mark.parametrize(
    "typed", [("clip_norm=1", "trunk=first_task"), ("schedule=constant",), ("stream=online",)], ids=" ".join
)
def test_it_is_not_where_steps_are_taken_or_nothing_is_typed(settings_of, typed):
    assert refusal(settings_of("strategy=ncm", "scenario=class", *typed)) is None


@pytest.mark.parametrize("strategy", ["ewc", "gdumb"])
def test_a_method_that_cannot_learn_in_circles_is_answered_with_what_was_typed(settings_of, strategy):
    with pytest.raises(UsageError, match=r"^split\.circle=9: .* leave split.circle out\.$"):
        prepare.refuse_without_data(settings_of(f"strategy={strategy}", "scenario=class", "split.circle=9"))
