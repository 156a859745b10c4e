"""Boxes: overlaps and suppression against a slow, plain reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bedplate.models.boxes import best_detections, centred, cornered, giou, iou, kept_by_nms

from .pictures import plain_iou

PLACE, SIDE = st.integers(0, 20), st.integers(0, 12)


def _box(x: int, y: int, w: int, h: int) -> list[float]:
    return [x, y, x + w, y + h]


BOX = st.builds(_box, PLACE, PLACE, SIDE, SIDE)
SOLID = st.builds(_box, PLACE, PLACE, st.integers(1, 12), st.integers(1, 12))


@given(a=st.lists(BOX, min_size=1, max_size=5), b=st.lists(BOX, min_size=1, max_size=5))
def test_iou_of_all_pairs(a: list[list[float]], b: list[list[float]]) -> None:
    ours = iou(torch.tensor(a).float()[:, None], torch.tensor(b).float()[None])
    torch.testing.assert_close(ours, torch.tensor([[plain_iou(x, y) for y in b] for x in a]), atol=1e-5, rtol=0)


@given(a=SOLID, b=SOLID)
def test_giou_counts_the_empty_part_of_the_hull(a: list[float], b: list[float]) -> None:
    """By counting unit squares."""

    def squares(box: list[float]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))}

    union = squares(a) | squares(b)
    hull = squares([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    expected = len(squares(a) & squares(b)) / len(union) - len(hull - union) / len(hull)
    assert float(giou(torch.tensor(a).float(), torch.tensor(b).float())) == pytest.approx(expected, abs=1e-5)


def test_giou_pulls_boxes_together_that_do_not_meet() -> None:
    box = torch.tensor([0.0, 0.0, 2.0, 2.0], requires_grad=True)
    giou(box, torch.tensor([10.0, 0.0, 12.0, 2.0])).backward()
    assert box.grad is not None
    assert box.grad[2] > 0


@given(box=BOX)
def test_corners_and_centres_are_inverses(box: list[float]) -> None:
    torch.testing.assert_close(cornered(centred(torch.tensor(box).float())), torch.tensor(box).float())


def test_boxes_without_area_give_no_nan() -> None:
    box = torch.tensor([3.0, 3.0, 3.0, 3.0], requires_grad=True)
    (iou(box, box) + giou(box, box)).backward()
    assert box.grad is not None
    assert box.grad.isfinite().all()


def greedy(boxes: list[list[float]], classes: list[int], threshold: float) -> list[bool]:
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if all(classes[j] != classes[i] or plain_iou(boxes[j], box) <= threshold for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(boxes))]


@settings(max_examples=200)
@given(
    images=st.integers(1, 8).flatmap(
        lambda k: st.lists(
            st.lists(st.tuples(SOLID, st.integers(0, 2)), min_size=k, max_size=k), min_size=1, max_size=3
        )
    ),
    threshold=st.sampled_from([0.1, 0.31, 0.57, 0.93]),
)
def test_suppression_is_the_greedy_one(images: list[list[tuple[list[float], int]]], threshold: float) -> None:
    boxes = torch.tensor([[box for box, _ in image] for image in images]).float()
    classes = torch.tensor([[label for _, label in image] for image in images])
    expected = [greedy(b.tolist(), c.tolist(), threshold) for b, c in zip(boxes, classes, strict=True)]
    assert kept_by_nms(boxes, classes, threshold).tolist() == expected


def test_a_chain_of_overlaps_is_followed_to_its_end() -> None:
    """Each box overlaps the next one only: every second one stays, however long the chain."""
    starts = torch.arange(40.0)
    boxes = torch.stack([starts, torch.zeros(40), starts + 2.0, torch.ones(40)], 1)[None]
    kept = kept_by_nms(boxes, torch.zeros(1, 40, dtype=torch.long), 0.3)
    assert kept[0].tolist() == [i % 2 == 0 for i in range(40)]


def _detections(**options: float | None) -> dict[str, Tensor]:
    boxes = torch.tensor([[-5.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 60, 60]])
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.0], [0.2, 0.6]])
    arguments = {"threshold": 0.1, "most": 10, "iou": 0.5, **options}
    return best_detections(scores[None], boxes[None], (40, 50), **arguments)[0]  # type: ignore[arg-type]


def test_detections_come_best_first_and_are_cut_at_the_borders() -> None:
    found = _detections()
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6, 0.3, 0.2])
    assert found["classes"].tolist() == [0, 1, 1, 0]  # a box of two classes is two detections
    assert found["boxes"].tolist()[:2] == [[0, 0, 10, 10], [20, 20, 50, 40]]


def test_detections_without_suppression_keep_what_overlaps() -> None:
    assert len(_detections(iou=None)["scores"]) == 5


def test_detections_are_limited_by_score_and_number() -> None:
    assert _detections(threshold=0.5)["scores"].tolist() == pytest.approx([0.9, 0.6])
    assert _detections(most=1)["scores"].tolist() == pytest.approx([0.9])
    empty = _detections(threshold=math.inf)
    assert empty["boxes"].shape == (0, 4)
