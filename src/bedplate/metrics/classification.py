"""How well predicted classes agree with the true ones; classes are numbers from 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bedplate.metrics.intervals import Array, Floats, percentile_interval
from bedplate.metrics.proportion import proportion, share

Counts = npt.NDArray[np.int64]


def confusion_matrix(truth: Array, predicted: Array, classes: int) -> Counts:
    """Counts (C, C) of every pair of classes from truth (N,) and predicted (N,): rows are the truth."""
    rows, columns = _paired(truth, predicted)
    for name, values in (("truth", rows), ("predicted", columns)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name} holds classes {values.min()} to {values.max()}, outside of 0 to {classes - 1}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def accuracy(truth: Array, predicted: Array) -> dict[str, float]:
    """The share of independent rows whose class was predicted, with its 95 % score interval; see `proportion`.

    Returns {"value", "low", "high", "n"}.
    """
    rows, columns = _paired(truth, predicted)
    return proportion(rows == columns)


def macro_f1(truth: Array, predicted: Array, classes: int, *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """The mean of F1 over the classes that occur in truth or predicted, with its 95 % percentile-bootstrap interval.

    Returns {"value", "low", "high", "n"}. A row counts only through its cell of the confusion matrix, and the cells of
    n rows drawn with replacement follow a multinomial law: drawing the cells is the bootstrap over rows, exactly, at a
    cost that does not grow with n. Empty cells stay empty and are left out.
    """
    matrix = confusion_matrix(truth, predicted, classes)
    n = _scored(np.asarray(truth))
    rows, columns = np.nonzero(matrix)
    counts = np.random.default_rng(seed).multinomial(n, matrix[rows, columns] / n, size=resamples)

    def sums(key: Counts) -> Counts:
        return np.stack([counts[:, key == c].sum(1) for c in range(classes)], 1)

    right = sums(np.where(rows == columns, rows, -1))
    resampled = np.nanmean(_f1(right, sums(rows), sums(columns)), axis=1)
    value = np.nanmean(_f1(matrix.diagonal(), matrix.sum(1), matrix.sum(0)))
    return percentile_interval(float(value), resampled, n)


def per_class(matrix: Array) -> list[dict[str, Any]]:
    """{"precision", "recall", "f1", "n"} of each class of a confusion matrix (C, C); n is its rows in the truth.

    Where nothing can be divided by (a class that was never predicted, or never there) the value is 0.
    """
    counts = np.asarray(matrix)
    right, there, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    precision, recall = right / np.maximum(said, 1), right / np.maximum(there, 1)
    f1 = np.nan_to_num(_f1(right, there, said))
    return [
        {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for p, r, f, n in zip(precision, recall, f1, there, strict=True)
    ]


def per_class_intervals(matrix: Array) -> list[dict[str, Any]]:
    """`per_class`, where precision and recall are {"value", "low", "high", "n"} with their 95 % score intervals.

    Where nothing can be divided by they are 0, between 0 and 1.
    """
    counts = np.asarray(matrix)
    rows = per_class(counts)
    none = {"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    for row, hits, there, said in zip(
        rows, counts.diagonal().tolist(), counts.sum(1).tolist(), counts.sum(0).tolist(), strict=True
    ):
        row["precision"] = share(hits, said) if said else none
        row["recall"] = share(hits, there) if there else none
    return rows


def _f1(right: npt.NDArray[Any], there: npt.NDArray[Any], said: npt.NDArray[Any]) -> Floats:
    """F1 (..., C) = 2 right / (there + said); NaN for a class that is neither there nor predicted."""
    both = np.asarray(there + said, np.float64)
    return np.divide(2.0 * right, both, out=np.full(both.shape, np.nan), where=both > 0)


def _paired(truth: Array, predicted: Array) -> tuple[Counts, Counts]:
    rows, columns = np.asarray(truth), np.asarray(predicted)
    if rows.shape != columns.shape or rows.ndim != 1:
        raise ValueError(f"truth and predicted must be of one length, not of shapes {rows.shape} and {columns.shape}")
    return rows.astype(np.int64), columns.astype(np.int64)


def _scored(rows: npt.NDArray[Any]) -> int:
    if len(rows) == 0:
        raise ValueError("nothing was scored: no rows")
    return len(rows)
