"""The mask rule against a table written straight from its words, and what kind of attention a span takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bedplate.nn.mask import Keys, visible
from bedplate.nn.span import Span


def table(
    step: list[list[int]],
    pos: list[list[int]],
    valid: list[list[bool]] | None,
    doc: list[list[int]] | None,
    window: int | None,
) -> Tensor:
    """The rule, one pair of tokens at a time."""
    rows, n = len(step), len(step[0])
    seen = torch.zeros(rows, n, n, dtype=torch.bool)
    for b in range(rows):
        order = [sum(step[b][: i + 1]) for i in range(n)]
        for i in range(n):
            for j in range(n):
                seen[b, i, j] = (
                    order[j] <= order[i]
                    and (valid is None or valid[b][j] or i == j)
                    and (doc is None or doc[b][j] in (doc[b][i], 0))
                    and (window is None or abs(pos[b][i] - pos[b][j]) <= window)
                )
    return seen


@st.composite
def spans(draw: st.DrawFn) -> tuple[Span, list[list[int]], list[list[int]], int | None]:
    """(a span of any kind, its steps, its positions, a window or None)."""
    batch, n = draw(st.integers(1, 3)), draw(st.integers(1, 9))

    def rows(values: st.SearchStrategy) -> list[list]:
        return draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=batch, max_size=batch))

    valid = rows(st.booleans()) if draw(st.booleans()) else None
    doc = rows(st.integers(0, 3)) if draw(st.booleans()) else None
    pos = rows(st.integers(0, 12)) if draw(st.booleans()) else [list(range(n))] * batch
    runs = None
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, n), max_size=3)))
        runs = tuple((b - a, draw(st.integers(0, 2))) for a, b in zip([0, *cuts], [*cuts, n], strict=True))
        step = [[step for length, step in runs for _ in range(length)]] * batch
    else:
        step = rows(st.integers(0, 2))
    span = Span(
        torch.zeros(batch, n, 1),
        torch.tensor(pos[0] if pos[0] == list(range(n)) and pos == [pos[0]] * batch else pos),
        runs=runs,
        step=None if runs else torch.tensor(step),
        valid=None if valid is None else torch.tensor(valid),
        doc=None if doc is None else torch.tensor(doc),
    )
    return span, step, pos, draw(st.none() | st.integers(0, 6))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(spans())
def test_visible_equals_the_table(case: tuple[Span, list[list[int]], list[list[int]], int | None]) -> None:
    span, step, pos, window = case
    valid = None if span.valid is None else span.valid.tolist()
    doc = None if span.doc is None else span.doc.tolist()
    keys = Keys.of(span)
    expected = table(step, pos, valid, doc, window)
    seen = visible(keys, keys, window)[:, 0].expand(expected.shape)
    assert torch.equal(seen, expected)
    assert expected.any(-1).all(), "a token that sees nothing is a NaN"


@settings(deadline=None, derandomize=True, max_examples=100)
@given(spans(), st.data())
def test_queries_are_the_last_of_the_keys(
    case: tuple[Span, list[list[int]], list[list[int]], int | None], data: st.DataObject
) -> None:
    span, _, _, window = case
    keys = Keys.of(span)
    first = data.draw(st.integers(0, span.x.shape[1] - 1))
    valid, doc = (None if field is None else field[:, first:] for field in (keys.valid, keys.doc))
    tail = Keys(keys.order[:, first:], keys.pos[:, first:], valid, doc)
    assert torch.equal(visible(tail, keys, window), visible(keys, keys, window)[:, :, first:])


@pytest.mark.parametrize(
    ("runs", "given", "kind"),
    [
        (((5, 1),), {}, "causal"),
        (((2, 1), (0, 0), (3, 1)), {}, "causal"),
        (((5, 0),), {}, "full"),
        (((2, 0), (3, 1)), {}, "mixed"),
        (((5, 2),), {}, "mixed"),
        (((5, 1),), {"valid"}, "mixed"),
        (((5, 1),), {"valid", "right_padded"}, "causal"),
        (((5, 0),), {"valid"}, "mixed"),
        (((5, 0),), {"valid", "right_padded"}, "mixed"),
        (((5, 1),), {"doc"}, "mixed"),
        (((5, 1),), {"doc", "valid", "right_padded"}, "mixed"),
        (((5, 0),), {"doc"}, "mixed"),
        (None, {"step"}, "mixed"),
    ],
)
def test_kind(runs: tuple[tuple[int, int], ...] | None, given: set[str], kind: str) -> None:
    tensors = {"valid": torch.ones(1, 5, dtype=torch.bool), "doc": torch.ones(1, 5), "step": torch.ones(1, 5)}
    fields = {name: tensors[name] for name in given if name in tensors}
    span = Span(torch.zeros(1, 5, 1), torch.arange(5), runs=runs, right_padded="right_padded" in given, **fields)
    assert span.kind == kind


@pytest.mark.parametrize("fields", [{}, {"runs": ((5, 1),), "step": torch.ones(1, 5)}, {"runs": ((4, 1),)}])
def test_a_span_needs_steps_once_and_for_all_tokens(fields: dict) -> None:
    with pytest.raises(AssertionError):
        Span(torch.zeros(1, 5, 1), torch.arange(5), **fields)
