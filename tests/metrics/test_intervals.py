"""Intervals: they hold the truth as often as they say."""

import numpy as np
import pytest

from bedplate.metrics import intervals
from bedplate.metrics.intervals import grid_difference, grid_interval, ratio_interval


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


def test_a_grid_of_one_seed_is_a_mean_over_rows() -> None:
    row = np.random.default_rng(0).random(50)
    assert grid_interval([row]) == pytest.approx(ratio_interval(row, np.ones(50)))


def test_a_grid_of_one_row_is_a_mean_over_seeds() -> None:
    values = np.random.default_rng(0).random(20)
    by_seed, plain = grid_interval(values[:, None], resamples=5000), ratio_interval(values, np.ones(20), resamples=5000)
    assert by_seed["n"] == 1 and by_seed["value"] == pytest.approx(plain["value"])
    assert [by_seed["low"], by_seed["high"]] == pytest.approx([plain["low"], plain["high"]], abs=0.01)


@pytest.mark.parametrize(("of_seeds", "of_rows"), [(1.0, 1.0), (0.0, 4.0), (0.5, 0.0)])
def test_about_95_of_100_grid_intervals_hold_the_true_mean(of_seeds: float, of_rows: float) -> None:
    draw, held, seeds, rows = np.random.default_rng(0), 0, 20, 60
    for _ in range(200):
        effects = of_seeds * draw.standard_normal((seeds, 1)) + of_rows * draw.standard_normal((1, rows))
        result = grid_interval(effects + 0.5 * draw.standard_normal((seeds, rows)), resamples=200)
        held += result["low"] <= 0 <= result["high"]
    assert 0.89 <= held / 200 <= 0.99


def test_cells_of_one_grid_are_not_taken_for_independent_rows() -> None:
    """Ten seeds that agree on every row say no more than one."""
    row = np.random.default_rng(0).random(100)
    once, tenfold = grid_interval([row]), grid_interval(np.tile(row, (10, 1)))
    assert tenfold["high"] - tenfold["low"] == pytest.approx(once["high"] - once["low"], rel=0.1)


def test_a_paired_difference_is_free_of_what_both_share() -> None:
    draw = np.random.default_rng(0)
    hard = 10 * draw.standard_normal((5, 1)) + 10 * draw.standard_normal((1, 80))
    result = grid_difference(hard + 1.0, hard)
    assert [result[key] for key in ("low", "value", "high", "n")] == pytest.approx([1, 1, 1, 80])
    a, b = hard + draw.standard_normal((5, 80)), hard
    there, back = grid_difference(a, b), grid_difference(b, a)
    assert there["value"] == pytest.approx(-back["value"]) == pytest.approx(a.mean() - b.mean())
    assert there["low"] == pytest.approx(-back["high"])


def test_a_grid_interval_does_not_depend_on_how_much_is_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.random.default_rng(0).random((3, 40))
    whole = grid_interval(grid)
    monkeypatch.setattr(intervals, "BLOCK", 100)
    assert grid_interval(grid) == pytest.approx(whole)


@pytest.mark.parametrize("values", [[], [[]], [1.0, 2.0], 3.0])
def test_what_is_no_grid_is_an_error(values: object) -> None:
    with pytest.raises(ValueError, match="grid of seeds by test rows"):
        grid_interval(values)


def test_grids_that_do_not_pair_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"one shape, not \(1, 4\) and \(3, 4\)"):
        grid_difference(np.ones((1, 4)), np.ones((3, 4)))
