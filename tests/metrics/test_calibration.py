import numpy as np
import pytest

from bedplate.metrics.calibration import expected_calibration_error, reliability


def test_ece_by_hand() -> None:
    # Of two rows at 0.9 one is right, of two at 0.6 both: |0.5 - 0.9| and |1 - 0.6|, each half of the rows.
    measured = expected_calibration_error([0.9, 0.9, 0.6, 0.6], [True, False, True, True])
    assert measured["value"] == pytest.approx(0.4) and measured["n"] == 4
    bins = reliability([0.9, 0.9, 0.6, 0.6], [True, False, True, True])
    assert [row["n"] for row in bins] == [2, 2]
    assert [row["accuracy"] for row in bins] == [1, 0.5] and bins[1]["confidence"] == pytest.approx(0.9)
    assert all(row["low"] < row["confidence"] <= row["high"] for row in bins)


def test_bins_include_their_upper_bound_and_all_of_0_to_1() -> None:
    rows = reliability(np.array([0.0, 1 / 3, 0.334, 1.0]), [0, 1, 1, 1], bins=3)
    assert [(row["n"], row["low"]) for row in rows] == [(2, 0), (1, 1 / 3), (1, 2 / 3)]


def test_bins_of_opposite_error_do_not_cancel() -> None:
    sure = np.repeat([0.25, 0.75], 100)
    right = np.r_[np.arange(100) < 50, np.arange(100) < 50]
    assert expected_calibration_error(sure, right)["value"] == pytest.approx(0.25)


def test_the_interval_of_a_calibrated_model_is_near_zero_and_that_of_another_is_not() -> None:
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.3, 1, 5000)
    calibrated = expected_calibration_error(sure, generator.random(5000) < sure)
    boastful = expected_calibration_error(sure, generator.random(5000) < sure - 0.2)
    assert calibrated["low"] < 0.005 and calibrated["value"] < 0.03
    assert boastful["low"] < 0.2 < boastful["high"]
    for measured in (calibrated, boastful):
        assert 0 <= measured["low"] <= measured["value"] <= measured["high"] <= 1


def test_intervals_cover_the_true_error_nearly_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        sure = generator.choice([0.55, 0.75, 0.95], 400)
        measured = expected_calibration_error(sure, generator.random(400) < sure - 0.1, resamples=300)
        covered += measured["low"] <= 0.1 <= measured["high"]
    assert covered >= 88


@pytest.mark.parametrize(
    ("sure", "right", "match"),
    [
        ([], [], "no rows"),
        ([0.5], [True, False], "of one length"),
        ([1.5], [True], "between"),
        ([np.nan], [1], "between"),
    ],
)
def test_what_is_no_confidence_is_refused(sure, right, match) -> None:
    for measure in (expected_calibration_error, reliability):
        with pytest.raises(ValueError, match=match):
            measure(sure, right)
