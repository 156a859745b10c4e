"""The assignment of places to objects."""

import torch
from torch import Tensor

from bedplate.models.align import Assignment, assign
from bedplate.models.boxes import iou


def grid(rows: int, columns: int, stride: int = 8) -> Tensor:
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([x, y], -1).flatten(0, 1) + 0.5) * stride


PLACES = grid(8, 8)


def around(places: Tensor, sides: float) -> Tensor:
    return torch.cat([places - sides / 2, places + sides / 2], -1)


SCORES = torch.rand(1, len(PLACES), 3, generator=torch.Generator().manual_seed(0))


def plain(scores: Tensor, predicted: Tensor, boxes: Tensor, classes: Tensor, most: int) -> dict[int, tuple[int, float]]:
    """{place: (object, quality)} of one image, place by place and object by object."""
    wants: dict[int, dict[int, float]] = {}
    overlap = {}
    for m, (box, label) in enumerate(zip(boxes, classes, strict=True)):
        if label < 0:
            continue
        metric = {}
        for p, (x, y) in enumerate(PLACES.tolist()):
            overlap[m, p] = float(iou(predicted[p], box))
            half = [max(4.0, float(box[2 + i] - box[i]) / 2) for i in (0, 1)]
            middle = [float(box[2 + i] + box[i]) / 2 for i in (0, 1)]
            if abs(x - middle[0]) <= half[0] and abs(y - middle[1]) <= half[1]:
                metric[p] = float(scores[p, label]) * overlap[m, p] ** 6
        for p in sorted(metric, key=lambda p: -metric[p])[:most]:
            wants.setdefault(p, {})[m] = metric[p]
    own: dict[int, dict[int, float]] = {}
    for p, by in wants.items():
        m = max(by, key=lambda m: by[m])
        own.setdefault(m, {})[p] = by[m]
    return {
        p: (m, value / max(by.values()) * max(overlap[m, q] for q in by))
        for m, by in own.items()
        for p, value in by.items()
    }


def random_case(seed: int, objects: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, objects, 2, generator=g) * 40, torch.rand(2, objects, 2, generator=g) * 30 + 3
    boxes = torch.cat([corner, corner + sides], -1)
    classes = torch.randint(0, 3, (2, objects), generator=g)
    classes[1, objects // 2 :] = -1
    predicted = around(PLACES, 20.0) + torch.randn(2, 64, 4, generator=g) * 2
    return torch.rand(2, 64, 3, generator=g), predicted, boxes, classes


def test_it_is_the_plain_rule() -> None:
    for seed in range(5):
        scores, predicted, boxes, classes = random_case(seed, objects=6)
        found = assign(scores, predicted, PLACES, boxes, classes, reach=4.0, most=5)
        for n in range(2):
            expected = plain(scores[n], predicted[n], boxes[n], classes[n], most=5)
            for p in range(64):
                owner, quality = expected.get(p, (0, 0.0))
                torch.testing.assert_close(float(found.quality[n, p]), quality, atol=1e-4, rtol=1e-3)
                if quality:
                    assert found.object[n, p] == owner


def test_padding_changes_nothing() -> None:
    scores, predicted, boxes, classes = random_case(0, objects=6)
    padded = torch.cat([boxes, torch.tensor([0.0, 0, 64, 64]).expand(2, 3, 4)], 1)
    with_padding = assign(scores, predicted, PLACES, padded, torch.cat([classes, -torch.ones(2, 3).long()], 1), reach=4)
    without = assign(scores, predicted, PLACES, boxes, classes, reach=4)
    assert torch.equal(with_padding.quality, without.quality)


def _one(box: list[float], predicted: Tensor | None = None) -> Assignment:
    predicted = around(PLACES, 8.0) if predicted is None else predicted
    boxes = torch.tensor([[box]])
    return assign(SCORES, predicted[None], PLACES, boxes, torch.tensor([[0]]), reach=4.0)


def test_a_tiny_object_between_the_places_has_one() -> None:
    """No place lies within these 3 x 3 pixels."""
    found = _one([14.0, 14.0, 17.0, 17.0])
    assert (found.quality > 0).any()


def test_every_position_of_a_tiny_object_has_a_place() -> None:
    for x in range(1, 60):
        assert (_one([float(x), 20.0, x + 2.0, 23.0]).quality > 0).any(), x


def test_no_place_outside_of_the_object_is_positive() -> None:
    inside = (torch.tensor([10.0, 10.0]) <= PLACES) & (torch.tensor([40.0, 30.0]) >= PLACES)
    assert not (_one([10.0, 10.0, 40.0, 30.0]).quality[0] > 0)[~inside.all(1)].any()


def test_crowded_objects_keep_places_of_their_own() -> None:
    """Two people before each other: boxes that overlap by 60 %, each predicted well somewhere."""
    boxes = torch.tensor([[[8.0, 8, 48, 48], [18.0, 8, 58, 48]]])
    predicted = torch.where(PLACES[:, :1] < 33, boxes[0, 0], boxes[0, 1])[None]
    found = assign(torch.full((1, 64, 1), 0.5), predicted, PLACES, boxes, torch.zeros(1, 2).long(), reach=4)
    assert set(found.object[0][found.quality[0] > 0.9].tolist()) == {0, 1}


def test_an_object_that_is_found_badly_is_asked_for_little() -> None:
    """Its best place gets the IoU that it has, not more."""
    found = _one([0.0, 0.0, 64.0, 64.0], around(PLACES, 16.0))
    assert 0 < float(found.quality.max()) < 0.08


def test_no_objects_at_all() -> None:
    empty = assign(SCORES, around(PLACES, 8.0)[None], PLACES, torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), reach=4)
    assert empty.quality.sum() == 0
    only_padding = assign(
        SCORES, around(PLACES, 8.0)[None], PLACES, torch.ones(1, 2, 4), -torch.ones(1, 2).long(), reach=4
    )
    assert only_padding.quality.sum() == 0
