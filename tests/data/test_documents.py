from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data import documents
from bedplate.data.documents import PADDING, DocumentLoader, PassageLoader, token_statistics
from bedplate.data.loader import TextLoader
from tests.data.test_loader import make_stream

DOCUMENTS = [[*range(10 * n, 10 * n + 3 + n), 0] for n in range(1, 6)]  # no token but 0 is in two of them


@pytest.fixture
def loader(tmp_path: Path) -> DocumentLoader:
    tokens, lengths = [token for document in DOCUMENTS for token in document], [len(document) for document in DOCUMENTS]
    streams = [make_stream(tmp_path / "a", tokens, lengths)]
    return DocumentLoader(TextLoader(streams, None, 4, 2, 0, False), streams, batch_size=2, drawn=64, seed=7)


def test_given_and_asked_words_part_one_document(loader: DocumentLoader) -> None:
    batch = loader.batch(3)
    assert batch["given"].shape[:2] == batch["asked"].shape[:2] == (2, 32)
    whole = {frozenset(document) for document in DOCUMENTS}
    seen = set()
    for shown, wanted in zip(batch["given"].flatten(0, 1).tolist(), batch["asked"].flatten(0, 1).tolist(), strict=True):
        shown, wanted = set(shown) - {PADDING}, set(wanted) - {PADDING}
        assert not shown & wanted
        assert shown | wanted in whole
        seen.add(frozenset(shown | wanted))
    assert seen == whole


def test_batches_are_a_pure_function_of_the_step(loader: DocumentLoader) -> None:
    first, later = loader.batch(5), loader.batch(6)
    again = loader.batch(5)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["given"].shape != later["given"].shape or not torch.equal(first["given"], later["given"])


def test_a_long_document_is_cut_around_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST", 8)
    stream = make_stream(tmp_path / "long", list(range(1, 41)), [20, 20])
    loader = DocumentLoader(TextLoader([stream], None, 4, 2, 0, False), [stream], 2, 64, 0)
    batch = loader.batch(0)
    places = set()
    for shown, wanted in zip(batch["given"].flatten(0, 1).tolist(), batch["asked"].flatten(0, 1).tolist(), strict=True):
        words = sorted((set(shown) | set(wanted)) - {PADDING})
        assert words == list(range(words[0], words[0] + 8))
        assert (words[0] - 1) // 20 == (words[-1] - 1) // 20  # never across the border
        places.add(words[0])
    assert len(places) > 5


@given(st.lists(st.integers(1, 9), min_size=2, max_size=200))
@settings(max_examples=30)
def test_statistics_weigh_rare_words_and_forget_special_ones(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int]
) -> None:
    stream = make_stream(tmp_path_factory.mktemp("s"), [*tokens, 0])
    weight, log_prior = token_statistics([stream], 12, special=[0]).double().numpy()
    counts = np.bincount(tokens, minlength=12)
    assert weight[0] == 0 and (weight[counts == 0] == 0).all() and (weight[counts > 0] > 0).all()
    assert np.exp(log_prior).sum() == pytest.approx(1, abs=1e-4)
    order = np.argsort(counts[counts > 0], kind="stable")
    assert (np.diff(weight[counts > 0][order]) <= 1e-7).all()  # the more frequent, the lighter


def test_weights_decide_how_often_a_stream_is_drawn_and_counted(tmp_path: Path) -> None:
    small = make_stream(tmp_path / "small", [1, 2, 0], [3])
    large = make_stream(tmp_path / "large", [*range(5, 104), 0] * 2, [100, 100])
    text = TextLoader([small, large], None, 2, 2, 0, False)
    in_small, in_large = 0.75 / 3, 0.25 / 200  # what one token of each stream weighs, of which 2 and 198 count
    for weights, share, frequency in (
        (None, 3 / 203, 1 / 200),
        ([3, 1], 0.75, in_small / (2 * in_small + 198 * in_large)),
    ):
        drawn = DocumentLoader(text, [small, large], 2, 2000, 0, weights=weights).batch(0)
        words = torch.cat([drawn["given"], drawn["asked"]], dim=2).flatten(0, 1)
        assert (words == 1).any(1).float().mean().item() == pytest.approx(share, abs=0.03)
        rarity, log_prior = token_statistics([small, large], 105, [0], weights).double()
        assert rarity[1].item() == pytest.approx((documents.COMMON / frequency) ** 0.5, rel=1e-6)
        assert (log_prior[1] > log_prior[5]) == (weights is not None)


def passages_of(directory: Path, monkeypatch: pytest.MonkeyPatch, documents_of_streams: list[list[list[int]]]) -> Any:
    """Makes loaders of passages of 2 or 4 tokens, and 16 of the long ones a step of two rows."""
    monkeypatch.setattr(documents, "PASSAGES", (2, 4))
    streams = [
        make_stream(directory / str(number), [token for each in texts for token in each], [len(each) for each in texts])
        for number, texts in enumerate(documents_of_streams)
    ]
    text = TextLoader(streams, None, 4, 2, 0, False)
    return lambda *ranks: PassageLoader(text, streams, 2, 16, 7, *ranks)


def test_a_passage_is_contiguous_and_the_others_are_the_rest_of_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [[*range(start, start + 12)] for start in (1, 21, 41)]
    loader = passages_of(tmp_path, monkeypatch, [texts[:2], texts[2:]])()
    lengths, begun = set(), set()
    for step in range(12):
        batch = loader.batch(step)
        length = batch["passages"].shape[2]
        assert batch["passages"].numel() == 16 * 4  # as many tokens a step whatever their length
        lengths.add(length)
        pairs = zip(batch["passages"].flatten(0, 1).tolist(), batch["others"].flatten(0, 1).tolist(), strict=True)
        for passage, others in pairs:
            assert passage == list(range(passage[0], passage[0] + length))
            whole = next(text for text in texts if passage[0] in text)
            assert sorted([*passage, *(set(others) - {PADDING})]) == whole
            begun.add((length, passage[0]))
    assert lengths == {2, 4}
    assert {start for length, start in begun if length == 4} == {t for text in texts for t in text[:9]}  # all that fit


def test_a_document_shorter_than_a_passage_is_padded_and_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = passages_of(tmp_path, monkeypatch, [[[5, 6, 9], [7, 8]]])()
    batch = next(batch for batch in map(loader.batch, range(20)) if batch["passages"].shape[2] == 4)
    whole = {(5, 6, 9, PADDING), (7, 8, PADDING, PADDING)}
    assert {tuple(passage) for passage in batch["passages"].flatten(0, 1).tolist()} == whole
    assert (batch["others"] == PADDING).all()


def test_passages_are_a_pure_function_of_the_step_and_ranks_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = passages_of(tmp_path, monkeypatch, [[[*range(1, 30)]]])
    whole, again, later = make().batch(5), make().batch(5), make().batch(6)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert whole["passages"].shape != later["passages"].shape or not torch.equal(whole["passages"], later["passages"])
    parts = [make(rank, 2).batch(5) for rank in range(2)]
    for key in ("passages", "others"):
        assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])
