"""Packed rows: every example whole and once an epoch, in an order that follows from (seed, step)."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data.chat import Example
from bedplate.data.loader import IGNORE, Batch, prefetch
from bedplate.data.pack import PackedEvalLoader, PackedLoader, best_fit
from bedplate.errors import InputError

LENGTHS = st.lists(st.integers(2, 17), min_size=1, max_size=40)


def make(lengths: Sequence[int]) -> list[Example]:
    """Examples whose tokens tell them apart: example i holds 100 i, 100 i + 1, ...; every other token is a target."""
    examples = []
    for i, length in enumerate(lengths):
        ids = np.arange(100 * i, 100 * i + length, dtype=np.int32)
        examples.append((ids, np.where(ids % 2, ids + 1, IGNORE).astype(np.int32)))
    return examples


def read(batches: Sequence[Batch]) -> list[tuple[list[int], list[int]]]:
    """The documents of the rows, after checking their numbers, places and padding."""
    found = []
    for batch in batches:
        assert all(value.dtype == torch.int64 for value in batch.values())
        for ids, targets, doc, pos in zip(*(batch[name] for name in ("ids", "targets", "doc", "pos")), strict=True):
            assert doc[0] == 1 and set(doc.diff().tolist()) <= {0, 1}
            documents = []
            for number in range(1, int(doc[-1]) + 1):
                here = doc == number
                assert pos[here].tolist() == list(range(int(here.sum())))
                documents.append((ids[here].tolist(), targets[here].tolist()))
            if ids[-1] == 0:  # padding: only the very first token of all examples is 0, and never a row's last
                assert set(documents[-1][1]) == {IGNORE} and set(documents.pop()[0]) == {0}
            found += documents
    return found


def expected(examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    return sorted((ids.tolist(), targets.tolist()) for ids, targets in examples)


@settings(max_examples=40)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_every_example_comes_whole_and_once_an_epoch(lengths: list[int], seed: int) -> None:
    examples = make(lengths)
    loader = PackedLoader(examples, 17, 1, seed)
    for epoch in range(2):
        steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
        assert sorted(read([loader.batch(step) for step in steps])) == expected(examples)
    assert loader.fill == sum(map(len, (ids for ids, _ in examples))) / (17 * loader.rows)
    assert loader.epoch(loader.rows) == 1.0


@settings(max_examples=40)
@given(lengths=LENGTHS, batch_size=st.integers(1, 5))
def test_evaluation_reads_all_in_order(lengths: list[int], batch_size: int) -> None:
    examples = make(lengths)
    loader = PackedEvalLoader(examples, 17, batch_size)
    batches = list(loader)
    assert len(batches) == len(loader) and all(len(batch["ids"]) == batch_size for batch in batches[:-1])
    found = read(batches)
    assert found == [(ids.tolist(), targets.tolist()) for ids, targets in examples]


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 50), max_size=60), capacity=st.integers(50, 70))
def test_best_fit_fills_rows(lengths: list[int], capacity: int) -> None:
    rows = best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= capacity for total in sums)
    assert sum(total <= capacity / 2 for total in sums) <= 1  # two such rows would have been one


def test_a_batch_follows_from_the_step() -> None:
    examples = make(np.random.default_rng(0).integers(2, 30, 200).tolist())
    loader, again = PackedLoader(examples, 32, 4, 3), PackedLoader(examples, 32, 4, 3)
    orders = [loader.batch(step)["ids"] for step in range(2 * loader.steps_per_epoch)]
    for step in (7, 0, len(orders) - 1):
        assert torch.equal(again.batch(step)["ids"], orders[step])
    for step, batch in enumerate(prefetch(loader, 5, 9), 5):
        assert torch.equal(batch["ids"], orders[step])
    half = loader.rows // 4
    assert not torch.equal(torch.cat(orders[:half]), torch.cat(orders[half : 2 * half]))  # epochs differ
    assert not torch.equal(PackedLoader(examples, 32, 4, 4).batch(0)["ids"], orders[0])


def test_ranks_share_the_batch() -> None:
    examples = make([5, 9, 3, 12, 8, 2, 7])
    whole = PackedLoader(examples, 12, 4, 0).batch(3)["ids"]
    parts = [PackedLoader(examples, 12, 4, 0, rank, 2).batch(3)["ids"] for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(InputError, match=r"train\.batch_size 3 is not a multiple of 2 processes"):
        PackedLoader(examples, 12, 3, 0, 0, 2)


def test_conversations_of_usual_lengths_leave_hardly_any_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 4000).astype(int).clip(4, 1024)
    assert PackedLoader(make(lengths.tolist()), 1024, 8, 0).fill > 0.99


def test_bad_examples_are_told() -> None:
    with pytest.raises(InputError, match="no example"):
        PackedLoader([], 8, 1, 0)
    with pytest.raises(InputError, match=r"example 1 has 9 tokens, a row has 8"):
        PackedEvalLoader(make([8, 9]), 8, 1)
