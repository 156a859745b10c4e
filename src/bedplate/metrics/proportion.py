"""Intervals of shares and of their averages, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Z = 1.959963984540054  # the normal law's 97.5 % quantile


def proportion(right: npt.ArrayLike) -> dict[str, float]:
    """The share of rows that are right (N,), with its 95 % score interval (Wilson 1927, JASA 22(158)).

    Unlike a bootstrap's, the interval has a width where all rows are right, or none. Returns {"value", "low", "high",
    "n"}.
    """
    hits = np.asarray(right, bool)
    return share(int(hits.sum()), hits.size)


def share(hits: int, n: int) -> dict[str, float]:
    """hits / n with its 95 % score interval: `proportion` where the rows are counted already."""
    if n == 0:
        raise ValueError("nothing was scored: no rows")
    p = hits / n
    middle, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    # Rounding must not put the value of a perfect score outside of its interval.
    return {"value": p, "low": max(0.0, min(low, p)), "high": min(1.0, max(high, p)), "n": n}


def macro_average(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of independent scores that have intervals, each counting the same, with its 95 % interval.

    The distances of the scores to the ends of their intervals are added as standard errors are (MOVER: Zou & Donner
    2008, Statistics in Medicine 27(10)), so one score keeps its own interval. What is averaged is taken as given: the
    interval says how the mean would move with other rows, not with other tasks. "n" is the sum of theirs.
    """
    if not scores:
        raise ValueError("nothing was scored: no scores to average")
    value, low, high = (np.array([score[key] for score in scores], np.float64) for key in ("value", "low", "high"))
    mean, k = float(value.mean()), len(scores)
    below, above = (float(np.sqrt((distance**2).sum())) / k for distance in (value - low, high - value))
    return {"value": mean, "low": mean - below, "high": mean + above, "n": int(sum(score["n"] for score in scores))}
