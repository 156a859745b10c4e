import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.metrics import retrieval as module
from bedplate.metrics.proportion import proportion
from bedplate.metrics.retrieval import ranks, retrieval


@given(seed=st.integers(0, 999), n=st.integers(1, 12), m=st.integers(1, 12), groups=st.integers(1, 6))
def test_ranks_are_those_of_a_sorted_list(seed: int, n: int, m: int, groups: int) -> None:
    draw = np.random.default_rng(seed)
    left, right = draw.integers(-2, 3, (n, 3)), draw.integers(-2, 3, (m, 3))
    wanted, there = draw.integers(0, groups, n), draw.integers(0, groups, m)
    found = ranks(left, right, wanted, there)
    for i in range(n):
        order = sorted(range(m), key=lambda j: (-int(left[i] @ right[j]), there[j] == wanted[i]))  # ties: wrong first
        first = next((place for place, j in enumerate(order) if there[j] == wanted[i]), -1)
        assert found[i] == first


def test_recall_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)  # a query at a time
    texts = np.eye(3)
    images = np.array([[1, 0, 0], [0.6, 0.5, 0], [0, 0.9, 0.3], [0, 0, 0]])
    found = retrieval(images, texts, [0, 1, 1, 9], [0, 1, 2], (1, 2))
    assert found["image_to_text_r1"] == proportion([True, False, True]), "nothing can be found for the last"
    assert found["image_to_text_r2"]["value"] == 1
    assert found["text_to_image_r1"] == proportion([True, True]), "any picture of the group is right"
    assert list(found) == ["image_to_text_r1", "image_to_text_r2", "text_to_image_r1", "text_to_image_r2"]


def test_equal_texts_of_different_groups_are_right_for_each_other() -> None:
    images, texts = np.eye(3), np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    groups, marks = np.arange(3), np.array([0, 0, 1])
    apart = retrieval(images, texts, groups, groups, (1,))
    assert apart["image_to_text_r1"] == proportion([False, False, True])
    found = retrieval(images, texts, groups, groups, (1,), (marks, marks))
    assert found["image_to_text_r1"] == proportion([True, False, True])
    assert found["text_to_image_r1"] == proportion([True, True, True])
    several = np.array([[5, 0], [0, -1], [-1, 1]])  # of pictures that have up to two texts
    assert retrieval(images, texts, groups, groups, (1,), (several, marks)) == found
    none = np.full(3, -1)
    assert retrieval(images, texts, groups, groups, (1,), (none, none)) == apart


def test_vectors_that_are_all_equal_find_nothing() -> None:
    same = np.ones((20, 4))
    found = retrieval(same, same, np.arange(20), np.arange(20))
    assert all(each["value"] == 0 for each in found.values())
