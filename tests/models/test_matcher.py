"""Matching: the cheapest assignment, whatever the order of objects."""

import builtins
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bedplate.errors import InputError
from bedplate.models import matcher
from bedplate.models.matcher import match, matching_cost


def case(seed: int, rows: int = 3, queries: int = 6, objects: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logits, boxes, targets, classes); rows have 4, 3, 2, ... objects, the rest is padding."""
    g = torch.Generator().manual_seed(seed)
    boxes = torch.rand(rows, queries, 4, generator=g) * 0.5 + 0.1
    targets = torch.rand(rows, objects, 4, generator=g) * 0.5 + 0.1
    classes = torch.randint(0, 3, (rows, objects), generator=g)
    for row in range(rows):
        classes[row, objects - row :] = -1
    return torch.randn(rows, queries, 3, generator=g), boxes, targets, classes


@given(seed=st.integers(0, 10_000))
def test_no_other_assignment_is_cheaper(seed: int) -> None:
    cost = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed))
    found = match(cost, torch.ones(1, 3, dtype=torch.bool))[0].tolist()
    total = sum(float(cost[0, query, object]) for object, query in enumerate(found))
    least = min(
        sum(float(cost[0, query, object]) for object, query in enumerate(queries))
        for queries in itertools.permutations(range(4), 3)
    )
    assert len(set(found)) == 3
    assert total == pytest.approx(least, abs=1e-5)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_permuted_objects_are_matched_to_the_same_queries(seed: int, order: list[int]) -> None:
    logits, boxes, targets, classes = case(seed)
    queries = match(matching_cost(logits, boxes, targets, classes), classes >= 0)
    permuted = match(matching_cost(logits, boxes, targets[:, order], classes[:, order]), classes[:, order] >= 0)
    assert torch.equal(permuted, queries[:, order])


@given(seed=st.integers(0, 10_000))
def test_padding_is_matched_to_nothing_and_takes_nothing_away(seed: int) -> None:
    logits, boxes, targets, classes = case(seed)
    queries = match(matching_cost(logits, boxes, targets, classes), classes >= 0)
    for row in range(3):
        own = slice(0, 4 - row)
        one = slice(row, row + 1)
        alone = match(
            matching_cost(logits[one], boxes[one], targets[one, own], classes[one, own]),
            torch.ones(1, 4 - row, dtype=torch.bool),
        )
        assert torch.equal(queries[row, own], alone[0])
        assert (queries[row, 4 - row :] == -1).all()


def test_an_image_without_objects() -> None:
    assert match(torch.zeros(2, 5, 0), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    assert (match(torch.zeros(1, 5, 2), torch.zeros(1, 2, dtype=torch.bool)) == -1).all()


def test_more_objects_than_queries_leave_the_dearest_out() -> None:
    cost = torch.tensor([[[1.0, 5.0, 2.0], [5.0, 5.0, 1.0]]])
    assert match(cost, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0, -1, 1]]


def test_each_part_of_the_cost_decides_where_the_others_are_equal() -> None:
    """The surer query, the nearer one, the one that overlaps."""
    target, label = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), torch.tensor([[1]])
    same = torch.tensor([0.4, 0.4, 0.2, 0.2])
    sure = torch.tensor([[[0.0, -1.0], [0.0, 2.0]]])
    equal = torch.zeros(1, 2, 2)
    assert match(matching_cost(sure, same.expand(1, 2, 4), target, label), label >= 0).tolist() == [[1]]
    boxes = torch.tensor([[[0.9, 0.9, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2]]])  # neither meets the object
    assert match(matching_cost(equal, boxes, target, label), label >= 0).tolist() == [[1]]
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.2], [0.4, 0.4, 0.2, 0.2]]])  # both are 0.2 away
    assert match(matching_cost(equal, boxes, target, label), label >= 0).tolist() == [[0]]


def test_spoilt_costs_are_matched_somehow() -> None:
    cost = torch.full((1, 3, 2), float("nan"))
    assert sorted(match(cost, torch.ones(1, 2, dtype=torch.bool))[0].tolist()) != [-1, -1]


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    matcher._solver.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'bedplate\[eval\]'"):
        match(torch.zeros(1, 2, 1), torch.ones(1, 1, dtype=torch.bool))
