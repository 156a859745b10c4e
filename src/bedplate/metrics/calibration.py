"""Whether a classifier is as sure as it is right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bedplate.metrics.intervals import Array, Floats, resampled_sums

BINS = 15


def expected_calibration_error(
    confidence: Array, right: Array, *, bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """ECE (Guo et al. 2017, arXiv 1706.04599): the mean distance of accuracy and confidence over bins of confidence.

    `confidence` (N,) is the probability of the predicted class and `right` (N,) whether it was that of the row; the
    bins are of equal width, each counting by its rows. Returns {"value", "low", "high", "n"}.

    Chance alone makes bins differ, so the ECE of a sample exceeds that of the model, and a resample's exceeds the
    sample's by about as much again. The 95 % interval is therefore the basic bootstrap's, value - (resampled - value)
    (Davison and Hinkley 1997, section 5.2), within 0 and 1 and widened to hold the value.
    """
    sure, hits, places = _binned(confidence, right, bins)
    n = len(sure)
    gaps = np.zeros((n, bins))
    gaps[np.arange(n), places] = hits - sure
    value = float(np.abs(gaps.sum(0)).sum() / n)
    resampled = np.abs(resampled_sums(gaps, resamples, np.random.default_rng(seed))).sum(1) / n
    low, high = 2 * value - np.quantile(resampled, [0.975, 0.025])
    return {"value": value, "low": min(max(float(low), 0.0), value), "high": max(float(high), value), "n": n}


def reliability(confidence: Array, right: Array, *, bins: int = BINS) -> list[dict[str, float]]:
    """The bins of the diagram that hold a row, lowest first: {"low", "high", "n", "confidence", "accuracy"}.

    "low" (exclusive, but for the first) and "high" bound the confidence, "confidence" is its mean over the n rows.
    """
    sure, hits, places = _binned(confidence, right, bins)
    counts = np.bincount(places, minlength=bins)
    means = [np.bincount(places, values, minlength=bins) / np.maximum(counts, 1) for values in (sure, hits)]
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "n": int(counts[b]),
            "confidence": float(means[0][b]),
            "accuracy": float(means[1][b]),
        }
        for b in np.flatnonzero(counts).tolist()
    ]


def _binned(confidence: Array, right: Array, bins: int) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Confidence, right as 0 or 1, and the bin of each row, all (N,)."""
    sure, hits = np.asarray(confidence, np.float64), np.asarray(right, bool).astype(np.float64)
    if sure.ndim != 1 or sure.shape != hits.shape:
        raise ValueError(f"confidence and right must be of one length, not of shapes {sure.shape} and {hits.shape}")
    if len(sure) == 0:
        raise ValueError("nothing was scored: no rows")
    if not ((sure >= 0) & (sure <= 1 + 1e-6)).all():
        raise ValueError("confidence must lie between 0 and 1")
    return sure, hits, np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
