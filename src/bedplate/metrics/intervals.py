"""Confidence intervals by bootstrap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.ArrayLike

BLOCK = 2**22  # counts in memory at one time


def ratio_interval(numerators: Array, denominators: Array, *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """sum(numerators) / sum(denominators) with its 95 % percentile-bootstrap interval over rows.

    Returns {"value", "low", "high", "n"}; n is the number of rows. A mean is a ratio with denominators of 1.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    n = len(top)
    if n == 0 or bottom.sum() == 0:
        raise ValueError("nothing was scored: no rows, or denominators that sum to 0")
    generator, columns, block = np.random.default_rng(seed), np.stack([top, bottom], 1), max(1, BLOCK // n)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    sums = [generator.multinomial(n, np.full(n, 1 / n), size=size) @ columns for size in sizes]
    above, below = np.concatenate(sums).T
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"value": float(top.sum() / bottom.sum()), "low": float(low), "high": float(high), "n": n}
