"""Schedules, as properties over all of them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.recipe.schema import ScheduleRecipe
from bedplate.train.schedule import learning_rate_factor

schedules = st.builds(
    ScheduleRecipe,
    name=st.sampled_from(["wsd", "cosine"]),
    warmup=st.floats(0, 1, exclude_max=True),
    decay=st.floats(0, 1),
    final=st.sampled_from([0.0, 0.1, 1.0]),
)


def factors(schedule: ScheduleRecipe, steps: int) -> list[float]:
    return [learning_rate_factor(schedule, step, steps) for step in range(steps)]


@given(schedules, st.integers(1, 300))
def test_rises_then_never_rises_again_and_is_never_zero(schedule: ScheduleRecipe, steps: int) -> None:
    values = factors(schedule, steps)
    assert all(0 < value <= 1 for value in values)
    top = round(schedule.warmup * steps)
    assert all(a < b for a, b in pairwise(values[:top]))
    assert all(a >= b for a, b in pairwise(values[top:]))
    if top < steps:
        assert values[top] == pytest.approx(1)


@given(schedules, st.integers(100, 300))
def test_ends_near_the_final_share(schedule: ScheduleRecipe, steps: int) -> None:
    schedule = schedule.model_copy(update={"warmup": 0.1, "decay": 0.5})
    last = factors(schedule, steps)[-1]
    assert schedule.final <= last <= schedule.final + 0.05


def test_wsd_stays_at_its_peak_until_the_decay() -> None:
    values = factors(ScheduleRecipe(name="wsd", warmup=0.1, decay=0.3, final=0.0), 100)
    assert values[10:70] == [1.0] * 60 and values[71] < 1 and values[9] < 1


@pytest.mark.parametrize("name", ["wsd", "cosine"])
def test_a_run_of_one_step_learns(name: str) -> None:
    assert factors(ScheduleRecipe.model_validate({"name": name}), 1) == [1.0]
