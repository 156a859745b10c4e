"""Intervals of shares and their averages."""

import numpy as np
import pytest

from bedplate.metrics.proportion import macro_average, proportion


def test_the_interval_of_a_textbook_case() -> None:
    """Newcombe 1998 (Statistics in Medicine 17(8), table I): 81 of 263, score method: 0.2553 to 0.3662."""
    result = proportion([True] * 81 + [False] * 182)
    assert result["value"] == 81 / 263 and result["n"] == 263
    assert result["low"] == pytest.approx(0.2553, abs=5e-5) and result["high"] == pytest.approx(0.3662, abs=5e-5)


def test_a_perfect_score_is_not_certain() -> None:
    result = proportion([True] * 20)
    assert result["value"] == result["high"] == 1.0 and 0.8 < result["low"] < 0.9
    assert proportion([False] * 20)["low"] == 0.0


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99])
def test_about_95_of_100_intervals_hold_the_truth(truth: float) -> None:
    draw = np.random.default_rng(0)
    held = [(r := proportion(draw.random(200) < truth))["low"] <= truth <= r["high"] for _ in range(400)]
    assert 0.92 <= np.mean(held) <= 0.985


def test_an_average_of_one_is_itself() -> None:
    one = proportion([True, True, False])
    assert macro_average([one]) == pytest.approx(one)


def test_about_95_of_100_average_intervals_hold_the_true_mean() -> None:
    draw, truths = np.random.default_rng(0), np.array([0.5, 0.7, 0.95, 1.0])
    held = []
    for _ in range(400):
        result = macro_average([proportion(draw.random(n) < p) for p, n in zip(truths, (50, 80, 100, 60), strict=True)])
        held.append(result["low"] <= truths.mean() <= result["high"])
        assert result["n"] == 290
    assert 0.92 <= np.mean(held) <= 0.99


def test_nothing_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        proportion([])
    with pytest.raises(ValueError, match="no scores"):
        macro_average([])
