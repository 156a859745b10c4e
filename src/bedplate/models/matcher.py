"""Which query answers for which object: the cheapest one-to-one assignment (DETR, arXiv 2005.12872, section 3.1)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.models.boxes import cornered, giou

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0  # Deformable DETR's (arXiv 2010.04159, appendix A.4)
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss that the cost of a class is taken from


@torch.no_grad()
def matching_cost(logits: Tensor, boxes: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """What each of Q queries would cost as the answer for each of M objects, `(R, Q, M)`.

    Args:
        logits: `(R, Q, C)`.
        boxes: `(R, Q, 4)` as centre x, centre y, width, height, in parts of the image.
        targets: the objects' boxes `(R, M, 4)` in the same form.
        classes: `(R, M)`; the costs of an object of class -1 mean nothing.
    """
    p = logits.sigmoid()
    found = -ALPHA * (1 - p) ** GAMMA * (p + 1e-8).log()
    missed = -(1 - ALPHA) * p**GAMMA * (1 - p + 1e-8).log()
    by_class = (found - missed).gather(2, classes.clamp(min=0)[:, None].expand(-1, p.shape[1], -1))
    apart = (boxes[:, :, None] - targets[:, None]).abs().sum(-1)
    overlap = giou(cornered(boxes)[:, :, None], cornered(targets)[:, None])
    return CLASS_COST * by_class + L1_COST * apart - GIOU_COST * overlap


def match(cost: Tensor, real: Tensor) -> Tensor:
    """The query `(R, M)` of each object at the least total cost `(R, Q, M)` of its row.

    -1 where the object is padding, that is not `real (R, M)`, or where there are more objects than queries. The costs
    go to the CPU once, for all rows together.

    Raises:
        InputError: SciPy is not installed.
    """
    solve = _solver()
    rows = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()  # a spoilt loss is the loop's to report
    objects = real.cpu().numpy()
    queries = torch.full(real.shape, -1)
    for row, (costs, own) in enumerate(zip(rows, objects, strict=True)):
        where = own.nonzero()[0]
        query, column = solve(costs[:, where])
        queries[row, where[column]] = torch.as_tensor(query)
    return queries.to(cost.device)


@cache
def _solver() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise InputError(
            "a detector of queries is trained by matching, which needs the package scipy; install it: "
            "pip install 'bedplate[eval]'"
        ) from error
    return linear_sum_assignment
