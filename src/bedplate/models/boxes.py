"""Boxes as networks reckon with them: tensors `(..., 4)` of x1 y1 x2 y2, in any one unit."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7  # keeps a box without area from dividing by zero


def centred(boxes: Tensor) -> Tensor:
    """x1 y1 x2 y2 as centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def cornered(boxes: Tensor) -> Tensor:
    """The inverse of `centred`."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def area(boxes: Tensor) -> Tensor:
    """`(..., 4) -> (...)`; 0 for a box that ends before it begins."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union `(...)` of boxes `(..., 4)` that broadcast; for all pairs give `a[:, None], b[None]`."""
    common = _common(a, b)
    return common / (area(a) + area(b) - common + EPS)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU, -1 .. 1, of boxes that broadcast (arXiv 1902.09630): boxes that do not meet have a gradient."""
    common = _common(a, b)
    union = area(a) + area(b) - common
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (torch.maximum(ay2, by2) - torch.minimum(ay1, by1))
    return common / (union + EPS) - (hull - union) / (hull + EPS)


def _common(a: Tensor, b: Tensor) -> Tensor:
    """The area of the intersection; by coordinate, as slices of all pairs' boxes would be copied at each step."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    return width * height


def kept_by_nms(boxes: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Which boxes stay `(B, K)`: those that overlap no better one of their class by more than `threshold` of IoU.

    The greedy rule, for all images at once: `boxes (B, K, 4)` and `classes (B, K)` stand in the order of falling
    scores. A box goes exactly if a better one that stays overlaps it. Asked again and again from "all stay", the answer
    is the greedy one when it no longer changes, after at most as many rounds as the longest chain of overlaps
    (Cluster-NMS, arXiv 2005.03572, proposition 1).
    """
    image, better, worse = (iou(boxes[:, :, None], boxes[:, None]) > threshold).nonzero().unbind(1)
    rival = (better < worse) & (classes[image, better] == classes[image, worse])
    better, worse = (image[rival] * boxes.shape[1] + index[rival] for index in (better, worse))
    kept = torch.ones(classes.numel(), dtype=torch.bool, device=boxes.device)
    while True:
        fewer = torch.ones_like(kept)
        fewer[worse[kept[better]]] = False
        if torch.equal(fewer, kept):
            return kept.view_as(classes)
        kept = fewer


def best_detections(
    scores: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    threshold: float,
    most: int,
    iou: float | None = None,
    candidates: int = 1000,
) -> list[dict[str, Tensor]]:
    """What an image is said to hold, best first: {"boxes" (K, 4), "scores" (K,), "classes" (K,)} of each.

    Args:
        scores: probabilities `(B, P, C)`; a box may be said to be of several classes.
        boxes: `(B, P, 4)` in pixels; they are cut at the borders of an image of `size` (height, width).
        threshold: scores up to it are dropped.
        most: detections an image.
        iou: of two boxes of one class that overlap by more, the better one stays (non-maximum suppression).
        candidates: an image's best scores that are looked at.
    """
    classes = scores.shape[-1]
    top, index = scores.flatten(1).topk(min(candidates, scores[0].numel()))
    count = int((top > threshold).sum(1).max())
    top, index = top[:, :count], index[:, :count]
    height, width = size
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    taken = boxes.gather(1, (index // classes)[..., None].expand(-1, -1, 4)).clamp(min=0).minimum(limits)
    kept = top > threshold
    if iou is not None:
        kept &= kept_by_nms(taken, index % classes, iou)
    found = []
    for number, keep in enumerate(kept):
        own = keep.nonzero()[:most, 0]
        found.append({"boxes": taken[number, own], "scores": top[number, own], "classes": index[number, own] % classes})
    return found
