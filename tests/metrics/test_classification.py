"""Classification metrics: scikit-learn's values, and intervals that are the bootstrap over rows."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from bedplate.metrics.classification import accuracy, confusion_matrix, macro_f1, per_class, per_class_intervals

CLASSES = 6
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=50)


def unbalanced(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels where class c is rarer the greater c, and predictions that are right for about 2 of 3."""
    draw = np.random.default_rng(seed)
    truth = np.minimum(draw.geometric(0.4, n) - 1, classes - 1)
    return truth, np.where(draw.random(n) < 0.6, truth, draw.integers(0, classes, n))


@settings(max_examples=50)
@given(pairs)
def test_values_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(rows).T
    matrix, labels = confusion_matrix(truth, predicted, CLASSES), list(range(CLASSES))
    assert matrix.dtype == np.int64
    assert (matrix == reference.confusion_matrix(truth, predicted, labels=labels)).all()
    assert accuracy(truth, predicted)["value"] == reference.accuracy_score(truth, predicted)
    expected = reference.f1_score(truth, predicted, average="macro", zero_division=0)
    assert macro_f1(truth, predicted, CLASSES, resamples=2)["value"] == pytest.approx(expected)
    table = reference.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    ours = [[row[key] for row in per_class(matrix)] for key in ("precision", "recall", "f1", "n")]
    np.testing.assert_allclose(ours, table)


def test_the_interval_of_macro_f1_is_that_of_resampled_rows() -> None:
    truth, predicted = unbalanced(150, 4, seed=3)
    draw = np.random.default_rng(5)
    drawn = []
    for _ in range(800):
        rows = draw.integers(0, len(truth), len(truth))
        drawn.append(macro_f1(truth[rows], predicted[rows], 4, resamples=1)["value"])
    ours = macro_f1(truth, predicted, 4, resamples=4000)
    assert [ours["low"], ours["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_the_interval_of_accuracy_is_as_wide_as_the_normal_approximation() -> None:
    truth = np.arange(2000) % 2
    predicted = np.where(np.arange(2000) % 5 == 0, 1 - truth, truth)
    result = accuracy(truth, predicted)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 2000)
    assert [result["low"], result["value"], result["high"]] == pytest.approx([0.8 - half, 0.8, 0.8 + half], abs=0.001)
    assert result["n"] == 2000


@pytest.mark.parametrize(("right", "low", "high"), [(6, 0.6097, 1), (0, 0, 0.3903)])
def test_the_interval_of_accuracy_has_a_width_where_all_rows_are_right_or_none(
    right: int, low: float, high: float
) -> None:
    truth = np.zeros(6, np.int64)
    found = accuracy(truth, truth if right else truth + 1)
    assert found == pytest.approx({"value": right / 6, "low": low, "high": high, "n": 6}, abs=1e-4)


def test_about_95_of_100_intervals_hold_the_true_values() -> None:
    everyone = unbalanced(400_000, 4, seed=0)
    true_accuracy, true_f1 = accuracy(*everyone)["value"], macro_f1(*everyone, 4)["value"]
    draw, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(200):
        rows = draw.integers(0, 400_000, 300)
        sample = everyone[0][rows], everyone[1][rows]
        right, f1 = accuracy(*sample), macro_f1(*sample, 4, resamples=400)
        held += [right["low"] <= true_accuracy <= right["high"], f1["low"] <= true_f1 <= f1["high"]]
    assert ((held / 200 >= 0.90) & (held / 200 <= 0.99)).all()


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    sample = unbalanced(300, 4, seed=2)
    assert macro_f1(*sample, 4) == macro_f1(*sample, 4) != macro_f1(*sample, 4, seed=1)


def test_a_class_that_never_occurs_changes_nothing_and_warns_of_nothing() -> None:
    sample = unbalanced(60, 3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert macro_f1(*sample, 3) == macro_f1(*sample, 50)
        assert per_class(confusion_matrix(*sample, 50))[49] == {"precision": 0, "recall": 0, "f1": 0, "n": 0}


def test_many_rows_and_classes_take_no_time_to_speak_of() -> None:
    sample = unbalanced(200_000, 100, seed=0)
    start = time.perf_counter()
    macro_f1(*sample, 100)
    accuracy(*sample)
    assert time.perf_counter() - start < 5  # row by row it takes some minutes


@pytest.mark.parametrize(
    ("truth", "predicted", "match"),
    [
        ([0, 1], [0], "one length"),
        ([[0]], [[0]], "one length"),
        ([0, 3], [0, 1], "truth holds classes 0 to 3, outside of 0 to 2"),
        ([0, 1], [-1, 1], "predicted holds classes -1 to 1, outside of 0 to 2"),
        ([], [], "nothing was scored"),
    ],
)
def test_what_cannot_be_scored_is_an_error(truth: list, predicted: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        macro_f1(truth, predicted, 3)


def test_accuracy_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was scored"):
        accuracy([], [])


def test_the_intervals_of_a_class_hold_its_shares_and_narrow_with_rows() -> None:
    matrix = np.array([[30, 10, 0], [5, 55, 0], [0, 0, 0]])
    few, many = per_class_intervals(matrix), per_class_intervals(100 * matrix)
    for plain, row, narrow in zip(per_class(matrix), few, many, strict=True):
        for key in ("precision", "recall"):
            assert row[key]["value"] == plain[key] == narrow[key]["value"]
            assert row[key]["low"] <= plain[key] <= row[key]["high"]
        assert row["f1"] == plain["f1"] and row["n"] == plain["n"]
    assert (few[0]["recall"]["n"], few[0]["precision"]["n"]) == (40, 35)
    assert few[0]["recall"]["high"] - few[0]["recall"]["low"] > 5 * (
        many[0]["recall"]["high"] - many[0]["recall"]["low"]
    )
    assert few[2]["recall"] == {"value": 0, "low": 0, "high": 1, "n": 0}
