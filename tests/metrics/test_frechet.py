"""The Frechet distance against its closed forms, and nearest vectors against all distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from bedplate.metrics.frechet import frechet_distance, nearest

SEEDS = st.integers(0, 2**32 - 1)


def _set(seed: int, rows: int, size: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, size)) @ draw.normal(size=(size, size)) + draw.normal(size=size)


@given(SEEDS, st.integers(1, 6), st.integers(12, 30), st.integers(12, 30))
def test_it_is_the_distance_of_its_definition(seed: int, size: int, rows: int, others: int) -> None:
    a, b = _set(seed, rows, size), _set(seed + 1, others, size)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    scale = 1 + np.trace(cov_a) + np.trace(cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-5 * scale)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-6 * scale)


@given(SEEDS, st.floats(0.1, 10))
def test_along_one_axis_it_is_that_of_two_normal_distributions(seed: int, factor: float) -> None:
    a = np.random.default_rng(seed).normal(size=(50, 1))
    shifted = factor * a + 3
    expected = (shifted.mean() - a.mean()) ** 2 + (factor - 1) ** 2 * a.var(ddof=1)
    assert frechet_distance(a, shifted) == pytest.approx(expected, rel=1e-6)


@given(SEEDS)
def test_a_set_is_at_no_distance_from_itself_and_a_shift_is_its_square(seed: int) -> None:
    a, shift = _set(seed, 40, 4), np.array([1.0, -2.0, 0.0, 2.0])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(a, a + shift) == pytest.approx(9, abs=1e-4)


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="one space"):
        frechet_distance(np.zeros((4, 3)), np.zeros((5, 2)))


@given(SEEDS, st.integers(1, 8), st.integers(1, 8))
def test_the_nearest_is_the_nearest_of_all(seed: int, rows: int, among: int) -> None:
    x, y = _set(seed, rows, 3), _set(seed + 1, among, 3)
    gaps = np.linalg.norm(x[:, None] - y, axis=2)
    distances, numbers = nearest(x, y)
    np.testing.assert_allclose(distances, gaps.min(1), atol=1e-9)
    assert numbers.tolist() == gaps.argmin(1).tolist()
