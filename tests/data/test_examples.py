"""Rows and batches of labelled texts: nothing is lost, nothing comes twice, hardly anything is padding."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data.examples import Rows, SortedEvalLoader, SortedLoader, encode_rows
from bedplate.data.tokenizer import frame_texts, train_tokenizer
from bedplate.errors import InputError

SENTENCES = ["the cat sees a dog", "a small bird hears her sister", "für immer near the sea", "again and again"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES * 5, 300)


def rows_of(lengths: list[int], labels: list[int] | None = None) -> Rows:
    """Row i holds the token i + 1, as often as its length says."""
    known = np.array(labels or [0] * len(lengths))
    return Rows([[i + 1] * n for i, n in enumerate(lengths)], np.arange(len(lengths)), known, 0, 0)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=90)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_row_comes_once_an_epoch_with_its_label(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    labels = [n % 3 for n in range(len(lengths))]
    loader = SortedLoader(rows_of(lengths, labels), batch_size, seed)
    assert loader.steps_per_epoch == -(-len(lengths) // batch_size)
    seen = []
    for step in range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch):
        batch = loader.batch(step)
        assert 1 <= len(batch["ids"]) <= batch_size
        for ids, length, label in zip(batch["ids"].tolist(), batch["lengths"].tolist(), batch["labels"], strict=True):
            row = ids[0] - 1
            assert ids == [row + 1] * length + [0] * (len(ids) - length) and length == lengths[row]
            assert label == labels[row]
            seen.append(row)
        assert batch["ids"].shape[1] == batch["lengths"].max()
    assert sorted(seen) == list(range(len(lengths)))


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), seed=st.integers(0, 5), steps=st.permutations(range(8)))
def test_a_batch_is_a_function_of_seed_and_step(
    lengths: list[int], batch_size: int, seed: int, steps: list[int]
) -> None:
    rows = rows_of(lengths)
    used, fresh = SortedLoader(rows, batch_size, seed), SortedLoader(rows, batch_size, seed)
    found = {step: used.batch(step) for step in steps}
    for step in range(8):
        expected = fresh.batch(step)
        assert all(torch.equal(expected[key], found[step][key]) for key in expected)


def test_epochs_and_seeds_have_their_own_order() -> None:
    rows = rows_of([n % 17 + 1 for n in range(200)])

    def epoch(seed: int, number: int) -> list[int]:
        loader = SortedLoader(rows, 8, seed)
        steps = range(number * loader.steps_per_epoch, (number + 1) * loader.steps_per_epoch)
        return [i for step in steps for i in loader.batch(step)["ids"][:, 0].tolist()]

    assert epoch(0, 0) != epoch(0, 1) and epoch(0, 0) != epoch(1, 0)
    together = {frozenset(epoch(0, n)[i : i + 8]) for n in (0, 1) for i in range(0, 200, 8)}
    assert len(together) > 40, "batches hold other rows in another epoch"


def padding(batches: Any) -> float:
    shown = [(batch["lengths"].sum().item(), batch["ids"].numel()) for batch in batches]
    return 1 - sum(tokens for tokens, _ in shown) / sum(places for _, places in shown)


def test_little_is_padding() -> None:
    """Log-normal lengths, as those of sentences are; 16 of them in random order are half padding."""
    lengths = np.clip(np.random.default_rng(0).lognormal(3.1, 0.6, 4000).astype(int), 1, 256).tolist()
    rows = rows_of(lengths)
    loader = SortedLoader(rows, 16, 0)
    unsorted = np.array(lengths).reshape(-1, 16)
    assert 1 - unsorted.mean() / unsorted.max(1).mean() > 0.4
    assert padding(loader.batch(step) for step in range(loader.steps_per_epoch)) < 0.1
    assert padding(SortedEvalLoader(rows)) < 0.1


@given(lengths=LENGTHS, tokens=st.integers(1, 200))
def test_evaluating_reads_every_row_once_in_batches_that_fit(lengths: list[int], tokens: int) -> None:
    loader = SortedEvalLoader(rows_of(lengths), tokens)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert sorted(torch.cat([batch["text"] for batch in batches]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert batch["ids"].numel() <= tokens or len(batch["ids"]) == 1  # a row that is longer comes alone
        assert torch.equal(batch["ids"][:, 0], batch["text"] + 1)


def test_there_is_something_to_iterate_twice() -> None:
    loader = SortedEvalLoader(rows_of([3, 1, 2]))
    assert [len(batch["ids"]) for batch in loader] == [len(batch["ids"]) for batch in loader] == [3]


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=6)


@given(texts=TEXTS, length=st.integers(1, 12), most=st.none() | st.integers(1, 30))
def test_windows_hold_all_of_a_text(tokenizer: Tokenizer, texts: list[str], length: int, most: int | None) -> None:
    rows = encode_rows(tokenizer, texts, range(len(texts)), length, most)
    whole = [tokenizer.encode(text).ids for text in texts]
    assert rows.text.tolist() == sorted(rows.text) and set(rows.text) == set(range(len(texts)))
    assert rows.truncated == sum(most is not None and len(ids) > most for ids in whole)
    windowed = 0
    for number, ids in enumerate(whole):
        tokens = ids[:most]
        windows = [row for row, text in zip(rows.ids, rows.text, strict=True) if text == number]
        assert all(0 < len(window) <= length for window in windows)
        if len(tokens) <= length:
            assert windows == [tokens or [0]]
            continue
        windowed += 1
        assert all(len(window) == length for window in windows) and len(windows) == -(-len(tokens) // length)
        *full, last = windows
        covered = [token for window in full for token in window]
        assert covered == tokens[: len(covered)] and last == tokens[-length:]
        assert len(covered) + length >= len(tokens)
    assert rows.windowed == windowed


def test_what_a_text_spells_is_text(tokenizer: Tokenizer) -> None:
    special = {tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    assert None not in special and special & set(tokenizer.encode("<|im_end|>").ids)
    texts = ["<|endoftext|>", "a <|im_end|> b <|im_start|>"]
    rows = encode_rows(tokenizer, texts, None, 64)
    assert not special & {token for ids in rows.ids for token in ids}
    assert [tokenizer.decode(ids) for ids in rows.ids] == texts
    assert rows.labels.tolist() == [-1, -1]
    assert special & set(tokenizer.encode("<|im_end|>").ids), "the tokenizer is as it was"


def test_a_text_that_is_cut_to_a_row_is_one_row(tokenizer: Tokenizer) -> None:
    """Also where each row stands between an encoder's tokens."""
    texts = [" ".join(SENTENCES * 3), "again"]
    for one, framed in ((tokenizer, False), (frame_texts(tokenizer), True)):
        rows = encode_rows(one, texts, None, 16, max_tokens=16, framed=framed)
        assert [len(ids) for ids in rows.ids] == [16, len(one.encode("again").ids)]
        assert (rows.truncated, rows.windowed) == (1, 0)
    with pytest.raises(InputError, match="max_tokens=2 has no room"):
        encode_rows(frame_texts(tokenizer), texts, None, 16, max_tokens=2, framed=True)
