"""Confidence intervals by bootstrap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.ArrayLike
Floats = npt.NDArray[np.float64]

BLOCK = 2**22  # counts in memory at one time


def ratio_interval(numerators: Array, denominators: Array, *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """sum(numerators) / sum(denominators) with its 95 % percentile-bootstrap interval over rows.

    Returns {"value", "low", "high", "n"}; n is the number of rows. A mean is a ratio with denominators of 1.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    n = len(top)
    if n == 0 or bottom.sum() == 0:
        raise ValueError("nothing was scored: no rows, or denominators that sum to 0")
    above, below = resampled_sums(np.stack([top, bottom], 1), resamples, np.random.default_rng(seed)).T
    return percentile_interval(float(top.sum() / bottom.sum()), above[below > 0] / below[below > 0], n)


def grid_interval(values: Array, *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """The mean of values (S, N), S seeds by N test rows, with its 95 % percentile-bootstrap interval over both.

    Seeds and rows are resampled independently of each other (Owen 2007, "The pigeonhole bootstrap", Annals of Applied
    Statistics 1(2)), because all seeds share the same test rows: S * N independent values would look far more certain
    than they are. With one seed only rows are resampled; with two to four the spread between seeds is known so
    roughly that the interval is on the narrow side. Returns {"value", "low", "high", "n"}; n is N.
    """
    grid = np.asarray(values, np.float64)
    if grid.ndim != 2 or grid.size == 0:
        raise ValueError(f"values must be a grid of seeds by test rows, not of shape {grid.shape}")
    (seeds, n), generator = grid.shape, np.random.default_rng(seed)
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    means = (resampled_sums(grid.T, resamples, generator) * weights).sum(1) / grid.size
    return percentile_interval(float(grid.mean()), means, n)


def grid_difference(a: Array, b: Array, *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """mean(a) - mean(b) for grids (S, N) of the same seeds and test rows, with its interval as `grid_interval` has it.

    The difference is paired: a resample takes the same seeds and rows of both, so that what makes a row or a seed hard
    for both cancels out.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"a paired difference needs grids of one shape, not {left.shape} and {right.shape}")
    return grid_interval(left - right, resamples=resamples, seed=seed)


def percentile_interval(value: float, resampled: Floats, n: int) -> dict[str, float]:
    """{"value", "low", "high", "n"} with the middle 95 % of the resampled values."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def resampled_sums(columns: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """The sums (resamples, K) of columns (N, K) over N rows drawn with replacement."""
    n = len(columns)
    block = max(1, BLOCK // n)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([generator.multinomial(n, np.full(n, 1 / n), size=size) @ columns for size in sizes])
