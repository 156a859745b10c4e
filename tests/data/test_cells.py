"""Drawn blood smears: a seed is a picture, and boxes stand where the cells are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data.cells import draw_cells


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(8, 120), width=st.integers(8, 160), count=st.integers(0, 9))
def test_boxes_are_inside_and_hold_what_is_darker(seed: int, height: int, width: int, count: int) -> None:
    picture, boxes = draw_cells(seed, (height, width), count)
    assert picture.size == (width, height) and boxes.shape == (len(boxes), 4) and len(boxes) <= count
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    green = np.asarray(picture)[:, :, 1]
    for x1, y1, x2, y2 in boxes:
        assert green[int((y1 + y2) / 2), int(x1 + 0.15 * (x2 - x1))] < 195  # between rim and middle


def test_a_seed_is_a_picture() -> None:
    first, second, other = (np.asarray(draw_cells(seed)[0]) for seed in (3, 3, 4))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert len(draw_cells(0)[1]) == 14
