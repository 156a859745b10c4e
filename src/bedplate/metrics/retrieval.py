"""How often what belongs together is found first, among pictures by a text and among texts by a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bedplate.metrics.intervals import Array
from bedplate.metrics.proportion import proportion

KS = (1, 5, 10)
BLOCK = 2**22  # scores in memory at one time


def retrieval(
    images: Array,
    texts: Array,
    image_groups: Array,
    text_groups: Array,
    ks: Sequence[int] = KS,
    marks: tuple[Array, Array] | None = None,
) -> dict[str, dict[str, float]]:
    """Recall at each k both ways, with 95 % score intervals: `image_to_text_r1`, ..., `text_to_image_r10`.

    A query counts as right at k where one of its k nearest, by the inner product, is of its own group. Queries of whose
    group nothing is there to be found are left out.

    Args:
        images, texts: vectors (N, P) and (M, P), of length 1 for cosines.
        image_groups, text_groups: (N,) and (M,); what is of one group belongs together.
        marks: what tells texts apart: of those of each picture (N,) or (N, K), negative for none, and of each text
            (M,). A text that a picture has is right for it, of whatever group it is.

    Returns:
        {name: {"value", "low", "high", "n"}}, n the number of queries.
    """
    found = {
        "image_to_text": ranks(images, texts, image_groups, text_groups, marks),
        "text_to_image": ranks(texts, images, text_groups, image_groups, marks and marks[::-1]),
    }
    return {f"{way}_r{k}": proportion(rank[rank >= 0] < k) for way, rank in found.items() for k in ks}


def ranks(
    queries: Array,
    gallery: Array,
    query_groups: Array,
    gallery_groups: Array,
    marks: tuple[Array, Array] | None = None,
) -> npt.NDArray[np.int64]:
    """How many of the gallery (M, P) stand before the first right one of each query (N, P): (N,), 0 is best.

    What is wrong and as near as the nearest right one stands before it, so that vectors which are all equal find
    nothing. -1 where nothing in the gallery is right. What shares one of its `marks`, (N,) or (N, K) and (M,) or
    (M, L), is right as well as what is of the group.
    """
    wanted, there = np.asarray(query_groups), np.asarray(gallery_groups)
    mine, theirs = (np.atleast_2d(np.asarray(each).T) for each in marks) if marks else ((), ())
    left, right = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    found = np.empty(len(left), np.int64)
    rows = max(1, BLOCK // max(1, len(right)))
    for start in range(0, len(left), rows):
        part = slice(start, start + rows)
        scores, belongs = left[part] @ right.T, wanted[part, None] == there
        for one in mine:
            for other in theirs:
                belongs |= (one[part, None] == other) & (other >= 0)
        best = np.where(belongs, scores, -np.inf).max(1, initial=-np.inf)
        before = ((scores >= best[:, None]) & ~belongs).sum(1)
        found[part] = np.where(belongs.any(1), before, -1)
    return found
