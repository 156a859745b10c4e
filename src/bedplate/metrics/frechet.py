"""How far sets of pictures are apart, and whether pictures are copies, by their vectors in some encoder's space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BLOCK = 1024  # vectors whose distances to all others are in memory at one time


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The squared Frechet (2-Wasserstein) distance of the normal distributions of two sets of vectors (N, D), (M, D).

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) with the covariances A and B: the FID of Heusel et al. 2017
    (arXiv 1706.08500, equation 6) in whatever space the vectors are from. It grows as sets get small: compare sets of
    one size.

    Raises:
        ValueError: sets of different spaces, or one of fewer than two vectors.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (_moments(each) for each in (a, b))
    if len(mean_a) != len(mean_b):
        raise ValueError(f"vectors of {len(mean_a)} and of {len(mean_b)} numbers are not of one space")
    # (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    gap = mean_a - mean_b
    return float(max(0.0, gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def nearest(vectors: npt.ArrayLike, among: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(distance (N,) to the nearest of `among` (M, D), its number (N,)) of `vectors` (N, D)."""
    x, y = np.asarray(vectors, np.float64), np.asarray(among, np.float64)
    squares = (y * y).sum(1)
    distances, numbers = np.empty(len(x)), np.empty(len(x), np.int64)
    for first in range(0, len(x), BLOCK):
        part = x[first : first + BLOCK]
        gaps = (part * part).sum(1)[:, None] + squares - 2 * part @ y.T
        number = gaps.argmin(1)
        numbers[first : first + len(part)] = number
        distances[first : first + len(part)] = np.linalg.norm(part - y[number], axis=1)
    return distances, numbers


def _moments(vectors: npt.ArrayLike) -> tuple[Floats, Floats]:
    x = np.asarray(vectors, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"a set of two vectors (N, D) or more is needed, not an array of shape {x.shape}")
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))
