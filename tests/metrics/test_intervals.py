"""Intervals: they hold the truth as often as they say."""

import numpy as np
import pytest

from bedplate.metrics import intervals
from bedplate.metrics.intervals import ratio_interval


def test_a_known_ratio_weighs_rows_by_their_denominators() -> None:
    result = ratio_interval([2, 9], [1, 3])
    assert result["value"] == 11 / 4 and result["n"] == 2
    assert result["low"] == 2 and result["high"] == 3  # one row drawn twice


def test_rows_of_one_ratio_leave_no_doubt() -> None:
    result = ratio_interval([1, 2, 3], [2, 4, 6])
    assert result["low"] == result["value"] == result["high"] == 0.5


def test_about_95_of_100_intervals_hold_the_true_ratio() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(200):
        bottom = draw.integers(5, 50, size=100)
        top = draw.poisson(3.0 * bottom)  # the true ratio is 3
        result = ratio_interval(top, bottom, resamples=400)
        held += result["low"] <= 3.0 <= result["high"]
        assert result["low"] <= result["value"] <= result["high"]
    assert 0.90 <= held / 200 <= 0.99


def test_rows_that_scored_nothing_do_not_move_the_value() -> None:
    assert ratio_interval([4, 0, 0], [2, 0, 0])["value"] == 2.0


def test_the_interval_does_not_depend_on_how_much_is_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    top, bottom = np.arange(1, 30), np.arange(2, 31)
    whole = ratio_interval(top, bottom)
    monkeypatch.setattr(intervals, "BLOCK", 100)
    assert ratio_interval(top, bottom) == pytest.approx(whole)


@pytest.mark.parametrize(("top", "bottom"), [([], []), ([1.0], [0.0])])
def test_nothing_scored_is_an_error(top: list[float], bottom: list[float]) -> None:
    with pytest.raises(ValueError, match="nothing was scored"):
        ratio_interval(top, bottom)
