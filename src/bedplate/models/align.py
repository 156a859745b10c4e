"""Which places of a dense detector answer for which object: task-aligned assignment (TOOD, arXiv 2108.07755)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.models.boxes import iou


@dataclass(frozen=True, slots=True)
class Assignment:
    """For each place `P` of each image `B`: its object and how well it does.

    Attributes:
        object: index `(B, P)` of the object it answers for, 0 where it answers for none.
        quality: target score `(B, P)` in 0 .. 1 of that object's class; 0: background.
    """

    object: Tensor
    quality: Tensor


@torch.no_grad()
def assign(
    scores: Tensor,
    predicted: Tensor,
    places: Tensor,
    boxes: Tensor,
    classes: Tensor,
    *,
    reach: float,
    most: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assignment:
    """Each object gets the `most` places inside it that predict it best, by score^alpha * IoU^beta.

    A place that several objects want goes to the one that it predicts best. An object's best place gets as target the
    best IoU of its places, the others in proportion. There is no loop over images, and no value is read back from the
    device.

    Args:
        scores: probabilities `(B, P, C)`.
        predicted: boxes `(B, P, 4)`, x1 y1 x2 y2 in pixels.
        places: the centres `(P, 2)`, x y in pixels.
        boxes: objects `(B, M, 4)`.
        classes: of the objects `(B, M)`, -1 for padding.
        reach: half the finest stride: a place this near to the centre of an object, along both axes, counts as inside,
            so that an object between the places of all levels has one, too.
    """
    count, (n, m) = len(places), classes.shape
    if m == 0:
        nothing = torch.zeros(n, count, device=scores.device)
        return Assignment(nothing.long(), nothing)
    real = classes >= 0
    score = scores.transpose(1, 2).gather(1, classes.clamp(min=0)[..., None].expand(-1, -1, count))  # (B, M, P)
    overlap = iou(boxes[:, :, None], predicted[:, None])
    allowed = _inside(places, boxes, reach) & real[..., None]
    metric = torch.where(allowed, score**alpha * overlap**beta, -1.0)
    best, where = metric.topk(min(most, count), dim=-1)
    chosen = torch.zeros_like(allowed).scatter_(-1, where, best >= 0)

    metric = torch.where(chosen, metric, -1.0)
    owner = metric.argmax(1)  # (B, P)
    mine = torch.zeros_like(chosen).scatter_(1, owner[:, None], True) & chosen
    metric, overlap = metric * mine, overlap * mine  # what is not its own is 0
    top = metric.amax(-1, keepdim=True)
    # Where every product has underflowed, all its places are as good.
    share = torch.where(top > 0, metric / torch.where(top > 0, top, 1.0), mine.to(metric.dtype))
    quality = share * overlap.amax(-1, keepdim=True)
    return Assignment(owner, quality.gather(1, owner[:, None])[:, 0])


def _inside(places: Tensor, boxes: Tensor, reach: float) -> Tensor:
    """Which places `(P, 2)` lie in which boxes `(B, M, 4)`, each grown to at least `reach` from its centre."""
    inside = None
    for axis in (0, 1):
        low, high = boxes[..., axis], boxes[..., axis + 2]
        half = ((high - low) / 2).clamp(min=reach)
        near = (places[:, axis] - (low + high)[..., None] / 2).abs() <= half[..., None]
        inside = near if inside is None else inside & near
    assert inside is not None
    return inside
