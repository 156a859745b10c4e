import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data import shards
from bedplate.data.loader import IGNORE, MIXTURE_BLOCK, Batch, EvalLoader, TextLoader, mixture_quotas, prefetch
from bedplate.data.shards import SplitWriter, TokenStream
from bedplate.errors import InputError


def make_stream(directory: Path, tokens: list[int], lengths: list[int] | None = None) -> TokenStream:
    """A stream of these tokens, in shards of seven, cut into documents of these lengths (one by default)."""
    directory.mkdir(parents=True, exist_ok=True)
    with SplitWriter(directory, "train", "<u4", 7) as writer:
        ends = np.cumsum(lengths or [len(tokens)])
        writer.append(np.array(tokens, np.uint32), ends, 0)
    meta = {"dtype": "<u4", "shard_tokens": 7, "train": writer.counts()}
    shards.write_meta(directory, meta)
    return TokenStream(directory, "train", meta)


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return make_stream(tmp_path / "stream", list(range(103)))


def starts(batch: Batch) -> list[int]:
    """First tokens of the rows, after checking that every row is a run of consecutive tokens with shifted targets."""
    ids, targets = batch["ids"], batch["targets"]
    assert ids.dtype == targets.dtype == torch.int64
    assert torch.equal(ids - ids[:, :1], torch.arange(ids.shape[1]).expand_as(ids))
    assert torch.equal(targets, ids + 1)
    return ids[:, 0].tolist()


@pytest.mark.parametrize("length", [1, 3, 10, 51, 52, 102])
def test_every_window_is_seen_once_an_epoch(stream: TokenStream, length: int) -> None:
    windows = max(1, (103 - length) // length)
    loader = TextLoader([stream], None, length, 1, seed=3, isolate_documents=False)
    assert loader.epoch(windows) == 1.0
    offsets = set()
    for epoch in range(20):
        seen = sorted(starts(loader.batch(epoch * windows + i))[0] for i in range(windows))
        assert np.diff(seen).tolist() == [length] * (windows - 1)
        assert 0 <= seen[0] < length
        offsets.add(seen[0])
    assert len(offsets) > 1 or length in (1, 102)  # 102 tokens and their targets fit in one place only


def test_epochs_have_different_orders(stream: TokenStream) -> None:
    loader = TextLoader([stream], None, 2, 50, seed=0, isolate_documents=False)
    orders = [tuple((np.array(starts(loader.batch(step))) // 2).tolist()) for step in range(3)]
    assert len(set(orders)) == 3
    other = TextLoader([stream], None, 2, 50, seed=1, isolate_documents=False)
    assert starts(other.batch(0)) != starts(loader.batch(0))


def test_joined_streams_are_one_epoch(tmp_path: Path) -> None:
    streams = [make_stream(tmp_path / "a", list(range(50))), make_stream(tmp_path / "b", list(range(1000, 1030)))]
    loader = TextLoader(streams, None, 5, 2, seed=0, isolate_documents=False)
    for epoch in range(3):
        seen = [start for step in range(7) for start in starts(loader.batch(epoch * 7 + step))]  # 9 + 5 windows
        assert len(set(seen)) == 14
        assert sum(start >= 1000 for start in seen) == 5


@pytest.mark.parametrize("weights", [None, [2.0, 1.0]])
def test_ranks_share_the_global_batch_and_resume_exactly(tmp_path: Path, weights: list[float] | None) -> None:
    streams = [
        make_stream(tmp_path / name, list(range(100)), [30, 1, 40, 29] if name == "a" else None) for name in "ab"
    ]

    def loader(rank: int = 0, world_size: int = 1) -> TextLoader:
        return TextLoader(streams, weights, 4, 8, 5, True, rank, world_size)

    for step in (0, 1, 17, 1000):
        whole = loader().batch(step)
        for world_size in (2, 4, 8):
            parts = [loader(rank, world_size).batch(step) for rank in range(world_size)]
            for name in whole:
                assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_quotas_are_exact(weights: list[float]) -> None:
    quotas = mixture_quotas([weight + 1 for weight in weights], len(weights))
    exact = MIXTURE_BLOCK * (np.array(weights) + 1) / (np.array(weights) + 1).sum()
    assert quotas.sum() == MIXTURE_BLOCK
    assert (np.abs(quotas - exact) < 1).all()


def test_mixtures_keep_their_shares_in_every_block(tmp_path: Path) -> None:
    sizes = {"a": 2001, "b": 33, "c": 500}
    streams = [
        make_stream(tmp_path / name, list(range(i * 10_000, i * 10_000 + size)))
        for i, (name, size) in enumerate(sizes.items())
    ]
    loader = TextLoader(streams, [6, 3, 1], 8, 10, seed=0, isolate_documents=False)
    seen = [start for step in range(200) for start in starts(loader.batch(step))]
    for block in (seen[:1000], seen[1000:]):
        assert Counter(start // 10_000 for start in block) == {0: 600, 1: 300, 2: 100}


def test_each_stream_of_a_mixture_has_epochs_of_its_own(tmp_path: Path) -> None:
    # rows of one token leave no room for offsets, so that whole epochs are told apart: 500 samples a block each
    streams = [make_stream(tmp_path / "a", list(range(126))), make_stream(tmp_path / "b", list(range(1000, 1251)))]
    loader = TextLoader(streams, [1, 1], 1, 1000, seed=0, isolate_documents=False)
    assert Counter(starts(loader.batch(3))) == dict.fromkeys(range(125), 4) | dict.fromkeys(range(1000, 1250), 2)


def test_a_stream_of_a_mixture_goes_on_from_block_to_block(tmp_path: Path) -> None:
    streams = [make_stream(tmp_path / "a", list(range(1001))), make_stream(tmp_path / "b", list(range(5000, 5600)))]
    loader = TextLoader(streams, [1, 1], 1, 500, seed=0, isolate_documents=False)
    seen = [start for step in range(4) for start in starts(loader.batch(step)) if start < 5000]
    assert sorted(seen) == list(range(1000))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(1, 8), st.integers(0, 99))
def test_documents_and_positions_agree_with_brute_force(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, seed: int
) -> None:
    total = sum(lengths)
    if total <= length:
        return
    stream = make_stream(tmp_path_factory.mktemp("s"), list(range(total)), lengths)
    owner = [i for i, count in enumerate(lengths) for _ in range(count)]
    batch = TextLoader([stream], None, length, 4, seed, True).batch(2)
    for row in range(4):
        first = int(batch["ids"][row, 0])
        doc, pos, targets = [1], [0], []
        for i in range(first, first + length):
            same = owner[i] == owner[i + 1]
            targets.append(i + 1 if same else IGNORE)
            doc.append(doc[-1] if same else doc[-1] + 1)
            pos.append(pos[-1] + 1 if same else 0)
        assert batch["doc"][row].tolist() == doc[:-1]
        assert batch["pos"][row].tolist() == pos[:-1]
        assert batch["targets"][row].tolist() == targets


@pytest.mark.parametrize("total", [2, 10, 11, 12, 103])
@pytest.mark.parametrize("length", [1, 5, 200])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_scores_every_token_once(tmp_path: Path, total: int, length: int, batch_size: int) -> None:
    stream = make_stream(tmp_path / "s", list(range(total)))
    loader = EvalLoader(stream, length, batch_size)
    batches = list(loader)
    assert len(batches) == len(loader)
    targets = torch.cat([batch["targets"].flatten() for batch in batches])
    assert targets[targets != IGNORE].tolist() == list(range(1, total))
    for batch in batches:
        scored = batch["targets"] != IGNORE
        assert torch.equal(batch["targets"][scored], batch["ids"][scored] + 1)
        assert batch["ids"].shape[1] == length
        assert "doc" not in batch


def test_evaluation_of_isolated_documents(tmp_path: Path) -> None:
    stream = make_stream(tmp_path / "s", list(range(8)), [3, 5])
    (batch,) = EvalLoader(stream, 5, 2, isolate_documents=True)
    assert batch["ids"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]]
    assert batch["targets"].tolist() == [[1, 2, IGNORE, 4, 5], [6, 7, IGNORE, IGNORE, IGNORE]]
    assert batch["doc"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 2, 2, 2]]
    assert batch["pos"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]


def test_a_few_batches_are_of_all_parts_of_the_text(stream: TokenStream) -> None:
    every, few = (EvalLoader(stream, 10, 1, max_batches=most) for most in (None, 3))
    first = [batch["ids"][0, 0].item() for batch in every]
    assert [batch["ids"][0, 0].item() for batch in few] == [first[0], first[len(first) // 2], first[-1]]


def test_evaluation_can_stop_early(stream: TokenStream) -> None:
    assert [len(batch["ids"]) for batch in EvalLoader(stream, 10, 4, max_batches=2)] == [4, 4]
    assert [len(batch["ids"]) for batch in EvalLoader(stream, 10, 4, max_batches=9)] == [4, 4, 3]


def test_errors_name_what_is_there_and_what_is_needed(tmp_path: Path, stream: TokenStream) -> None:
    with pytest.raises(InputError, match=r"has 103 tokens.*needs 104.*train\.sequence_length"):
        TextLoader([stream], None, 103, 1, 0, False)
    with pytest.raises(InputError, match="batch_size 6 is not a multiple of 4"):
        TextLoader([stream], None, 10, 6, 0, False, 0, 4)
    for weights in ([1.0, 2.0], [0.0], [float("nan")], [-1.0]):
        with pytest.raises(InputError, match=r"data\.weights .*one positive number for each of the 1 sources"):
            TextLoader([stream], weights, 10, 1, 0, False)
    with pytest.raises(InputError, match="would never be read"):
        TextLoader([stream, stream], [1, 1e-6], 10, 1, 0, False)
    with pytest.raises(InputError, match="has 1 tokens"):
        EvalLoader(make_stream(tmp_path / "one", [0]), 4, 1)


class CountingLoader:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        if step == 7:
            raise InputError("step 7 is bad")
        return {"ids": torch.tensor([[step]])}


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_is_the_batches_in_order_and_two_ahead() -> None:
    loader = CountingLoader()
    batches = prefetch(loader, 2, 6)
    assert int(next(batches)["ids"]) == 2
    for _ in range(1000):
        if len(loader.asked) == 3:
            break
        threading.Event().wait(0.01)
    assert loader.asked == [2, 3, 4]
    assert [int(batch["ids"]) for batch in batches] == [3, 4, 5]
    assert loader.asked == [2, 3, 4, 5]
    assert not prefetch_threads()


def test_prefetch_passes_exceptions_on_where_they_belong() -> None:
    batches = prefetch(CountingLoader(), 5, 100)
    assert [int(next(batches)["ids"]) for _ in range(2)] == [5, 6]
    with pytest.raises(InputError, match="step 7"):
        next(batches)
    assert not prefetch_threads()


def test_closing_prefetch_ends_its_thread() -> None:
    loader = CountingLoader()
    batches = prefetch(loader, 10, 10**9)
    next(batches)
    assert prefetch_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not prefetch_threads()
    assert all(second == first + 1 for first, second in pairwise(loader.asked))
