import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pycocotools")

from bedplate.metrics.detection import detection_metrics, verdicts

STATS = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}


def truth_of(*boxes, classes=None, crowd=None):
    row = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "classes": np.array(classes or [0] * len(boxes), int)}
    return row | ({} if crowd is None else {"crowd": np.array(crowd)})


def said(*boxes, scores, classes=None):
    return truth_of(*boxes, classes=classes) | {"scores": np.array(scores)}


def scene(seed, pictures=25, classes=3):
    """Boxes of all sizes, predictions near some of them and elsewhere, crowds, pictures without objects."""
    generator = np.random.default_rng(seed)
    truth, predictions = [], []
    for _ in range(pictures):
        count = int(generator.integers(0, 8))
        corner, side = generator.uniform(0, 200, (count, 2)), generator.uniform(4, 150, (count, 2))
        kinds = generator.integers(0, classes, count)
        boxes = np.concatenate([corner, corner + side], 1)
        truth.append({"boxes": boxes, "classes": kinds, "crowd": generator.random(count) < 0.1})
        kept = generator.random(count) < 0.8
        moved = boxes[kept] + generator.normal(0, 6, (int(kept.sum()), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        extra = int(generator.integers(0, 5))
        at, size = generator.uniform(0, 200, (extra, 2)), generator.uniform(4, 150, (extra, 2))
        predictions.append(
            {
                "boxes": np.concatenate([moved, np.concatenate([at, at + size], 1)]),
                "classes": np.concatenate([kinds[kept], generator.integers(0, classes, extra)]),
                "scores": generator.random(len(moved) + extra),
            }
        )
    return truth, predictions


def from_files(folder: Path, truth, predictions, classes):
    """COCOeval as its documentation has it: two JSON files, loadRes, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def bbox(box):
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations, results = [], []
    for image, (row, found) in enumerate(zip(truth, predictions, strict=True)):
        for box, kind, crowd in zip(row["boxes"], row["classes"], row["crowd"], strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            each = {"id": len(annotations) + 1, "image_id": image + 10, "category_id": int(kind) + 1}
            annotations.append(each | {"bbox": bbox(box), "area": area, "iscrowd": int(crowd)})
        for box, kind, score in zip(found["boxes"], found["classes"], found["scores"], strict=True):
            results.append(
                {"image_id": image + 10, "category_id": int(kind) + 1, "bbox": bbox(box), "score": float(score)}
            )
    data = {
        "images": [{"id": image + 10} for image in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": kind + 1, "name": str(kind)} for kind in range(classes)],
    }
    (folder / "truth.json").write_text(json.dumps(data))
    (folder / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        judge = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_cocoeval_from_json_files(tmp_path: Path, seed: int) -> None:
    truth, predictions = scene(seed)
    judge = from_files(tmp_path, truth, predictions, 3)
    measured = detection_metrics(truth, predictions, ["a", "b", "c"], resamples=20)
    for name, place in STATS.items():
        assert measured[name]["value"] == pytest.approx(judge.stats[place], abs=1e-12), name
        assert measured[name]["low"] <= measured[name]["high"] and measured[name]["n"] == 25
    for kind, row in enumerate(measured["per_class"]):
        assert row["ap_50"]["value"] == pytest.approx(judge.eval["precision"][0, :, kind, 0, -1].mean(), abs=1e-12)


def test_verdicts_follow_falling_scores_classes_overlap_and_crowds() -> None:
    box, half, less, other = [0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [50, 50, 60, 60]
    region = [100, 100, 200, 200]
    truth = [
        truth_of(box, other, region, classes=[0, 1, 0], crowd=[False, False, True]),
        truth_of(),
        truth_of(box, region, classes=[1, 1], crowd=[False, True]),
    ]
    found = [
        # One of IoU 0.5 and less sure than the next, which takes its box; one of another class; two in the crowd.
        said(half, box, other, [110, 110, 120, 120], [130, 130, 140, 140], scores=[0.5, 0.9, 0.8, 0.7, 0.6]),
        said(box, scores=[0.9]),
        said(half, less, scores=[0.1, 0.9], classes=[1, 1]),
    ]
    first, second, third = verdicts(truth, found, 2)
    assert first.right.tolist() == [False, True, False, False, False]
    assert first.wrong.tolist() == [True, False, True, False, False]
    assert first.missed.tolist() == [False, True, False]
    assert (second.right.tolist(), second.wrong.tolist(), second.missed.tolist()) == ([False], [True], [])
    assert (third.right.tolist(), third.wrong.tolist()) == ([True, False], [False, True]) and not third.missed.any()
    (nothing,) = verdicts([truth_of()], [said(scores=[])], 1)
    assert not len(nothing.right) and not len(nothing.missed)
    with pytest.raises(ValueError, match="1 predictions for the truth of 2"):
        verdicts(truth[:2], found[:1], 2)


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_are_those_that_the_metrics_count(seed: int) -> None:
    from bedplate.metrics import detection

    truth, found = scene(seed)
    judge = detection._judge(detection._checked(truth, 3, "truth"), detection._checked(found, 3, "predictions"), 3)
    judged = verdicts(truth, found, 3)
    for kind in range(3):
        counted = detection._matches(judge, kind, 0, len(truth))
        for image, (true, rows, verdict) in enumerate(zip(truth, found, judged, strict=True)):
            mine, there = counted.image == image, (true["classes"] == kind) & ~true["crowd"]
            of_kind = rows["classes"] == kind
            assert counted.right[0, mine].sum() == verdict.right[of_kind].sum()
            assert counted.wrong[0, mine].sum() == verdict.wrong[of_kind].sum()
            assert verdict.missed[there].sum() == counted.there[image] - verdict.right[of_kind].sum()
            assert not verdict.missed[true["crowd"]].any()


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_resample_scores_what_cocoeval_gives_for_the_pictures_drawn(seed: int) -> None:
    from bedplate.metrics import detection

    truth, predictions = scene(seed, pictures=8)
    if not sum(int((~row["crowd"]).sum()) for row in truth):
        return
    weights = np.random.default_rng(seed).multinomial(8, np.full(8, 1 / 8), size=1)
    drawn = np.repeat(np.arange(8), weights[0])
    whole = detection._judge(
        detection._checked(truth, 3, "truth"), detection._checked(predictions, 3, "predictions"), 3
    )
    again = detection._judge(
        detection._checked([truth[i] for i in drawn], 3, "truth"),
        detection._checked([predictions[i] for i in drawn], 3, "predictions"),
        3,
    )
    for kind in range(3):
        for area in range(4):
            ap, recall = detection.average_precision(detection._matches(whole, kind, area, 8), weights)
            expected = again.eval["precision"][:, :, kind, area, -1].mean(1)
            np.testing.assert_allclose(np.nan_to_num(ap[0], nan=-1), expected, atol=1e-12)
            np.testing.assert_allclose(
                np.nan_to_num(recall[0], nan=-1), again.eval["recall"][:, kind, area, -1], atol=1e-12
            )


def test_perfect_predictions_score_one_and_none_score_zero() -> None:
    truth = [truth_of([10, 10, 60, 70], [0, 0, 20, 20], classes=[0, 1]), truth_of([5, 5, 300, 200], classes=[1])]
    perfect = [row | {"scores": np.full(len(row["boxes"]), 0.9)} for row in truth]
    measured = detection_metrics(truth, perfect, ["cat", "dog"])
    for name in STATS:
        assert measured[name]["value"] == measured[name]["low"] == measured[name]["high"] == pytest.approx(1), name
    assert [row["f1"] for row in measured["per_class"]] == [1, 1]
    nothing = [said(scores=[]), said(scores=[])]
    measured = detection_metrics(truth, nothing, ["cat", "dog"])
    assert measured["map"]["value"] == measured["map_50"]["high"] == measured["mar_100"]["value"] == 0
    assert measured["per_class"][0]["threshold"] is None


def test_a_case_by_hand() -> None:
    # Two boxes. Surest first: right, wrong, right. Precision at recall 0.5 is 1 and at recall 1 it is 2/3, so the 51
    # levels up to 0.5 have 1 and the 50 above have 2/3.
    truth = [truth_of([0, 0, 10, 10], [50, 50, 60, 60])]
    predictions = [said([0, 0, 10, 10], [80, 80, 90, 90], [50, 50, 60, 60], scores=[0.9, 0.8, 0.7])]
    measured = detection_metrics(truth, predictions, ["x"])
    assert measured["map_50"]["value"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    (row,) = measured["per_class"]
    assert (row["threshold"], row["precision"], row["recall"]) == (0.7, pytest.approx(2 / 3), 1)
    assert row["f1"] == pytest.approx(0.8)
    assert "map_large" not in measured and "map_small" in measured, "no box is large"
    curve = measured["curves"]["x"]
    assert len(curve) == 101 and curve[0] == (0, 1) and curve[-1] == (1, pytest.approx(2 / 3))


def test_an_overlap_of_seven_tenths_is_right_up_to_that_threshold() -> None:
    truth, predictions = [truth_of([0, 0, 100, 100])], [said([0, 0, 100, 71], scores=[0.5])]
    measured = detection_metrics(truth, predictions, ["x"])
    assert (measured["map_50"]["value"], measured["map_75"]["value"]) == (1, 0)
    assert measured["map"]["value"] == pytest.approx(5 / 10)  # 0.5, 0.55, 0.6, 0.65, 0.7


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    inside = [said([0, 0, 50, 50], [0, 40, 30, 90], [200, 200, 250, 250], scores=[0.9, 0.8, 0.7])]
    crowded = [truth_of([0, 0, 100, 100], [200, 200, 250, 250], crowd=[True, False])]
    assert detection_metrics(crowded, inside, ["x"])["map"]["value"] == pytest.approx(1)
    without = [truth_of([200, 200, 250, 250])]
    assert detection_metrics(without, inside, ["x"])["map"]["value"] == pytest.approx(1 / 3)


def test_predictions_in_pictures_without_objects_count_as_wrong() -> None:
    truth = [truth_of([0, 0, 50, 50]), truth_of()]
    right = said([0, 0, 50, 50], scores=[0.5])
    assert detection_metrics(truth, [right, said(scores=[])], ["x"])["map"]["value"] == pytest.approx(1)
    assert detection_metrics(truth, [right, said([0, 0, 9, 9], scores=[0.9])], ["x"])["map"]["value"] == pytest.approx(
        1 / 2
    )


def test_a_class_without_a_box_does_not_count() -> None:
    truth, found = [truth_of([0, 0, 50, 50], classes=[1])], [said([0, 0, 50, 50], scores=[0.5], classes=[1])]
    measured = detection_metrics(truth, found, ["ghost", "cat", "other"])
    assert measured["map"]["value"] == pytest.approx(1) and [row["name"] for row in measured["per_class"]] == ["cat"]


def test_equal_scores_are_kept_or_left_out_together() -> None:
    truth = [truth_of([0, 0, 50, 50])]
    found = [said([0, 0, 50, 50], [60, 0, 90, 50], [0, 60, 50, 90], scores=[0.5, 0.5, 0.5])]
    (row,) = detection_metrics(truth, found, ["x"])["per_class"]
    assert (row["threshold"], row["precision"], row["f1"]) == (0.5, pytest.approx(1 / 3), 0.5)


def test_intervals_cover_the_value_and_narrow_with_more_pictures() -> None:
    few = detection_metrics(*scene(5, pictures=20), ["a", "b", "c"], resamples=300)["map_50"]
    many = detection_metrics(*scene(5, pictures=200), ["a", "b", "c"], resamples=300)["map_50"]
    for metric in (few, many):
        assert metric["low"] < metric["value"] < metric["high"]
    assert many["high"] - many["low"] < 0.5 * (few["high"] - few["low"])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    detection_metrics([truth_of([0, 0, 9, 9])], [said([0, 0, 9, 9], scores=[1])], ["x"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("truth", "found", "match"),
    [
        ([truth_of()], [said(scores=[])], "no box"),
        ([], [], "no box"),
        ([truth_of([0, 0, 1, 1], crowd=[True])], [said(scores=[])], "no box"),
        ([truth_of([0, 0, 1, 1])], [], "0 predictions for the truth of 1"),
        ([truth_of([0, 0, 1, 1])], [said([0, 0, 1, 1], scores=[])], "picture 0"),
        ([truth_of([0, 0, 1, 1])], [said([0, 0, float("nan"), 1], scores=[1])], "finite"),
        ([truth_of([0, 0, 1, 1])], [said([0, 0, 1, 1], scores=[float("nan")])], "finite"),
        ([truth_of([0, 0, 1, 1], classes=[3])], [said(scores=[])], "outside of 0 to 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(truth, found, match) -> None:
    with pytest.raises(ValueError, match=match):
        detection_metrics(truth, found, ["x"])


def test_a_missing_pycocotools_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ImportError, match=r"pip install 'bedplate\[eval\]'"):
        detection_metrics([truth_of([0, 0, 1, 1])], [said(scores=[])], ["x"])
