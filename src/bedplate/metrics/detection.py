"""How well boxes were found: the metrics of COCO (Lin et al. 2014), judged by the library `pycocotools`.

A prediction is right where it overlaps a box of its class, which no surer prediction took, by an IoU (intersection over
union) of at least a threshold. AP is the mean precision at 101 levels of recall. mAP is the mean of AP over the classes
and the thresholds 0.5, 0.55, ..., 0.95. Of a picture and class the 100 surest predictions count.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bedplate.metrics.intervals import Floats, percentile_interval

RESAMPLES = 1000
BLOCK = 2**24  # weights of detections in memory at one time
AREAS = ("all", "small", "medium", "large")  # pycocotools' order; up to 32 x 32 pixels, up to 96 x 96, and above
MOST = 100  # predictions of a picture and class
HALF, THREE_QUARTERS = 0, 5  # places of the IoUs 0.5 and 0.75 among the thresholds

Row = Mapping[str, Any]


class Matches(NamedTuple):
    """What became of the D predictions of one class and one range of areas, the surest first."""

    image: npt.NDArray[np.int64]  # (D,)
    score: Floats  # (D,)
    right: npt.NDArray[np.bool_]  # (T, D), for each of the T thresholds
    wrong: npt.NDArray[np.bool_]  # (T, D); neither right nor wrong is what lies in a crowd or outside of the range
    there: npt.NDArray[np.int64]  # (N,): boxes to find in each picture


class Verdicts(NamedTuple):
    """What became of the P predictions and the M true boxes of a picture at IoU 0.5."""

    right: npt.NDArray[np.bool_]  # (P,)
    wrong: npt.NDArray[np.bool_]  # (P,); neither is what lies in a crowd, or is not among the `MOST` surest
    missed: npt.NDArray[np.bool_]  # (M,); never a crowd


def need_pycocotools() -> None:
    """Make sure that the library is there.

    Raises:
        ImportError: it is not; says how to install it.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "judging detections needs the package pycocotools; install it: pip install 'bedplate[eval]'"
        ) from error


def detection_metrics(
    truth: Sequence[Row],
    predictions: Sequence[Row],
    names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The COCO metrics of predictions for N pictures.

    Args:
        truth: {"boxes" (M, 4), "classes" (M,), optionally "crowd" (M,)} of each picture. Boxes are x1, y1, x2, y2 in
            pixels, classes places in `names`. A prediction inside of a crowd's box is neither right nor wrong.
        predictions: {"boxes" (P, 4), "scores" (P,), "classes" (P,)} of each picture.
        resamples: How often the pictures are drawn anew for the intervals.

    Returns:
        "map", "map_50", "map_75" (mAP at all thresholds, at IoU 0.5, at 0.75), "map_small", "map_medium", "map_large"
        (by the area of the box; COCO's own files give that of the outline) and "mar_100" (the mean recall), each
        {"value", "low", "high", "n"} with a 95 % percentile-bootstrap interval over pictures, n their number; a range
        of areas with no box is left out. "per_class" holds for each class with a box {"name", "n" (its boxes), "ap",
        "ap_50" (with intervals), "threshold", "precision", "recall", "f1"}: the score from which on keeping predictions
        gives the best F1 at IoU 0.5, and what it gives (threshold None where nothing right was predicted). "curves"
        holds {name: [(recall, precision)]} at IoU 0.5, 101 points each.

    Raises:
        ImportError: see `need_pycocotools`.
        ValueError: Lengths or shapes that do not fit, values that are not finite, classes outside of `names`, or no box
            to find.
    """
    need_pycocotools()
    if len(truth) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for the truth of {len(truth)} pictures")
    true_rows, found_rows = _checked(truth, len(names), "truth"), _checked(predictions, len(names), "predictions")
    if not any((row["crowd"] == 0).any() for row in true_rows):
        raise ValueError("nothing was scored: the truth has no box outside of crowds")
    n, judge = len(truth), _judge(true_rows, found_rows, len(names))
    matches = [[_matches(judge, k, a, n) for a in range(len(AREAS))] for k in range(len(names))]
    there = [int(of_class[0].there.sum()) for of_class in matches]
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    # (T, 101, K, A, 3) and (T, K, A, 3), -1 for none. It divides by a little more than the number of predictions, which
    # would let a perfect score stay below 1.
    precision, recall = judge.eval["precision"].round(12), judge.eval["recall"]
    ap = np.where(precision[..., -1] < 0, np.nan, precision[..., -1]).mean(1)  # (T, K, A)
    ar = np.where(recall[..., -1] < 0, np.nan, recall[..., -1])
    again = [[average_precision(each, draws) for each in of_class] for of_class in matches]
    drawn = np.stack([np.stack([ap for ap, _ in of_class], -1) for of_class in again], 2)  # (R, T, K, A)
    found = np.stack([of_class[0][1] for of_class in again], 2)  # (R, T, K)
    wanted = {
        "map": (ap[..., 0], drawn[..., 0]),
        "map_50": (ap[HALF, :, 0], drawn[:, HALF, :, 0]),
        "map_75": (ap[THREE_QUARTERS, :, 0], drawn[:, THREE_QUARTERS, :, 0]),
        **{f"map_{name}": (ap[..., a], drawn[..., a]) for a, name in enumerate(AREAS) if a},
        "mar_100": (ar[..., 0], found),
    }
    measured: dict[str, Any] = {
        name: _mean_interval(values, others, n)
        for name, (values, others) in wanted.items()
        if not np.isnan(values).all()
    }
    measured["per_class"] = [
        {
            "name": names[k],
            "n": there[k],
            "ap": _mean_interval(ap[:, k, 0], drawn[:, :, k, 0], n),
            "ap_50": _mean_interval(ap[HALF, k, 0], drawn[:, HALF, k, 0], n),
            **best_threshold(matches[k][0]),
        }
        for k in range(len(names))
        if there[k]
    ]
    levels = judge.params.recThrs.tolist()
    measured["curves"] = {
        names[k]: list(zip(levels, precision[HALF, :, k, 0, -1].tolist(), strict=True))
        for k in range(len(names))
        if there[k]
    }
    return measured


def verdicts(truth: Sequence[Row], predictions: Sequence[Row], classes: int) -> list[Verdicts]:
    """Which predictions of each of N pictures are right, and which boxes were missed, as the metrics count them.

    Args:
        truth, predictions: As for `detection_metrics`; classes are 0 to `classes` - 1.

    Raises:
        ImportError, ValueError: As for `detection_metrics`, but there may be nothing to find.
    """
    need_pycocotools()
    if len(truth) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for the truth of {len(truth)} pictures")
    true_rows, found_rows = _checked(truth, classes, "truth"), _checked(predictions, classes, "predictions")
    judge, n = _judge(true_rows, found_rows, classes), len(truth)
    judged = []
    first_true = first_found = 1  # ids of the annotations of a picture follow each other
    for image, (true, found) in enumerate(zip(true_rows, found_rows, strict=True)):
        right, wrong = np.zeros((2, len(found["boxes"])), bool)
        missed = np.zeros(len(true["boxes"]), bool)
        for each in judge.evalImgs[image :: len(AREAS) * n]:  # one a class, of boxes of any area
            if each is not None:
                mine, there = np.array(each["dtIds"], int) - first_found, np.array(each["gtIds"], int) - first_true
                matched, ignored = (np.asarray(each[key])[HALF] > 0 for key in ("dtMatches", "dtIgnore"))
                right[mine], wrong[mine] = matched & ~ignored, ~matched & ~ignored
                missed[there] = (np.asarray(each["gtMatches"])[HALF] == 0) & (np.asarray(each["gtIgnore"]) == 0)
        judged.append(Verdicts(right, wrong, missed))
        first_true, first_found = first_true + len(missed), first_found + len(right)
    return judged


def average_precision(matches: Matches, weights: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """AP and final recall (R, T) as COCO has them, where picture i occurs weights[r, i] times, weights (R, N).

    Both are NaN where no box is to be found. AP is the mean, over the levels 0, 0.01, ..., 1 of recall, of the best
    precision at that recall or a higher one. Only right predictions raise recall, so only they are looked at; copies of
    a picture are counted at once, which changes no level's precision.
    """
    levels = np.linspace(0, 1, 101)
    thresholds, detections = matches.right.shape
    ap, recall = np.zeros((2, len(weights), thresholds))
    block = max(1, BLOCK // max(detections, 1))
    for start in range(0, len(weights), block):
        part = slice(start, start + block)
        there = (weights[part] @ matches.there).astype(np.float64)
        there[there == 0] = np.nan
        each = weights[part].astype(np.int32)[:, matches.image]
        for t in range(thresholds):
            places = np.flatnonzero(matches.right[t])
            if len(places):
                right = each[:, places].cumsum(1)
                starts = np.concatenate([[0], places])  # of the stretches of wrong ones before, between and behind
                wrong = np.add.reduceat(each * matches.wrong[t], starts, axis=1)[:, :-1].cumsum(1)
                precision = right / np.maximum(right + wrong, 1)
                best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                reached = np.searchsorted(levels, right / there[:, None], side="right")
                passed = np.diff(reached, axis=1, prepend=0)
                ap[part, t] = (passed * best).sum(1) / len(levels)
                recall[part, t] = right[:, -1] / there
        ap[part][np.isnan(there)] = recall[part][np.isnan(there)] = np.nan
    return ap, recall


def best_threshold(matches: Matches) -> dict[str, float | None]:
    """The score from which on predictions are kept for the best F1 at IoU 0.5, and its precision, recall and F1."""
    right, wrong = matches.right[HALF].cumsum(), matches.wrong[HALF].cumsum()
    whole = np.append(matches.score[1:] < matches.score[:-1], True)[: len(right)]  # equal scores are kept together
    f1 = np.where(whole, 2 * right / np.maximum(right + wrong + matches.there.sum(), 1), 0)
    if not f1.any():
        return {"threshold": None, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    best = int(f1.argmax())
    return {
        "threshold": float(matches.score[best]),
        "precision": float(right[best] / (right[best] + wrong[best])),
        "recall": float(right[best] / matches.there.sum()),
        "f1": float(f1[best]),
    }


def _mean_interval(values: Any, resampled: Floats, n: int) -> dict[str, float]:
    """The mean of values that are there, with its interval from resamples (R, ...) of them; none there: left out."""
    rows = resampled.reshape(len(resampled), -1)
    rows = rows[~np.isnan(rows).all(1)]
    means = np.nanmean(rows, axis=1) if len(rows) else np.array([np.nanmean(values)])
    return percentile_interval(float(np.nanmean(values)), means, n)


def _checked(rows: Sequence[Row], classes: int, what: str) -> list[dict[str, npt.NDArray[Any]]]:
    """The rows as arrays of fitting shapes."""
    last = "scores" if what == "predictions" else "crowd"
    checked = []
    for number, row in enumerate(rows):
        boxes = np.asarray(row["boxes"], np.float64).reshape(-1, 4)
        kinds = np.asarray(row["classes"], np.int64).reshape(-1)
        values = np.asarray(row[last] if last == "scores" else row.get(last, np.zeros(len(boxes))), np.float64)
        if not len(boxes) == len(kinds) == values.size:
            raise ValueError(
                f"{what} of picture {number}: {len(boxes)} boxes, {len(kinds)} classes and {values.size} {last}"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(values).all()):
            raise ValueError(f"{what} of picture {number} hold what is no finite number")
        if len(kinds) and not 0 <= kinds.min() <= kinds.max() < classes:
            raise ValueError(f"{what} of picture {number} hold a class outside of 0 to {classes - 1}")
        checked.append({"boxes": boxes, "classes": kinds, last: values.reshape(-1)})
    return checked


def _judge(truth: list[dict[str, Any]], predictions: list[dict[str, Any]], classes: int) -> Any:
    """A COCOeval that has matched and accumulated."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports progress there, where --json allows nothing else
        judge = COCOeval(_dataset(truth, classes), _dataset(predictions, classes), "bbox")
        judge.evaluate()
        judge.accumulate()
    return judge


def _dataset(rows: list[dict[str, Any]], classes: int) -> Any:
    """Rows as pycocotools keeps them. Ids begin at 1: it takes a match with annotation 0 for none."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, row in enumerate(rows):
        x1, y1, x2, y2 = row["boxes"].T
        width, height = np.maximum(x2 - x1, 0), np.maximum(y2 - y1, 0)
        bboxes = np.stack([x1, y1, width, height], 1).tolist()
        scores, crowd = (row.get(key, np.zeros(len(x1))).tolist() for key in ("scores", "crowd"))
        for bbox, kind, score, ignore in zip(bboxes, row["classes"].tolist(), scores, crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": kind,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(ignore),
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(len(rows))],
        "categories": [{"id": kind, "name": str(kind)} for kind in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _matches(judge: Any, kind: int, area: int, images: int) -> Matches:
    """What `COCOeval.evaluate` found for a class and a range of areas, in the order in which `accumulate` counts it."""
    start = (kind * len(AREAS) + area) * images
    found = judge.evalImgs[start : start + images]
    there = np.array([0 if each is None else int((each["gtIgnore"] == 0).sum()) for each in found], np.int64)
    rows = [(i, each) for i, each in enumerate(found) if each is not None]
    thresholds = len(judge.params.iouThrs)
    if not rows:
        none = np.zeros((thresholds, 0), bool)
        return Matches(np.zeros(0, np.int64), np.zeros(0), none, none, there)
    scores = [np.asarray(each["dtScores"][:MOST], np.float64) for _, each in rows]
    image = np.concatenate([np.full(len(mine), i, np.int64) for (i, _), mine in zip(rows, scores, strict=True)])
    matched = np.concatenate([np.asarray(each["dtMatches"])[:, :MOST] for _, each in rows], axis=1) > 0
    ignored = np.concatenate([np.asarray(each["dtIgnore"])[:, :MOST] for _, each in rows], axis=1) > 0
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    right, wrong = matched & ~ignored, ~matched & ~ignored
    return Matches(
        image[order].astype(np.int64), np.concatenate(scores)[order], right[:, order], wrong[:, order], there
    )
