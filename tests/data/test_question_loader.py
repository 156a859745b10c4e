"""Questions as documents of a row: what is learnt, what is drawn, and exact resume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data.image_refs import ImageRef
from bedplate.data.loader import IGNORE, prefetch
from bedplate.data.picture_order import Batch
from bedplate.data.pixel_store import PixelStore
from bedplate.data.question_loader import QuestionEvalLoader, QuestionLoader, answer_ids, prompt_ids, within
from bedplate.data.questions import Asked, Question
from bedplate.data.tokenizer import end_of_text_id
from bedplate.errors import InputError

from .pictures import save

COUNT = 9
WORDS = ("what is it?", "the quick brown fox", "how many dogs are there? <|endoftext|>", "jumps", "lazy", "")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    root = tmp_path_factory.mktemp("pictures")
    paths = [str(save(root / f"{i}.png", i)) for i in range(COUNT)]
    questions = [
        tuple(Question(WORDS[(i + n) % 6], (f"{WORDS[n % 5]} {i}", "not learnt")) for n in range(i % 5 + 1))
        for i in range(COUNT)
    ]
    return Asked([ImageRef(path, path) for path in paths], questions, {})


@pytest.fixture(scope="module")
def store(asked: Asked, tmp_path_factory: pytest.TempPathFactory) -> PixelStore:
    return PixelStore(asked, (6, 8), "stretch", tmp_path_factory.mktemp("cache"), 1)


def equal(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def documents(batch: Batch) -> list[list[tuple[list[int], list[int]]]]:
    """(ids, targets) of each document of each row, and checks of what holds of all rows."""
    found: list[list[tuple[list[int], list[int]]]] = []
    for row in range(len(batch["index"])):
        ids, targets, doc, pos, valid = (batch[name][row].numpy() for name in ("ids", "targets", "doc", "pos", "valid"))
        used = int(valid.sum())
        assert valid[:used].all() and (doc > 0).all() and (targets[used:] == IGNORE).all()
        count = doc[:used].max()
        assert not np.isin(doc[used:], doc[:used]).any() and (np.diff(doc[:used]) >= 0).all()
        found.append([])
        for number in range(1, count + 1):
            place = np.flatnonzero(doc == number)
            assert pos[place].tolist() == list(range(len(place)))
            found[-1].append((ids[place].tolist(), targets[place].tolist()))
    assert batch["valid"].any(0).all()  # no wider than the longest row
    return found


def expected(tokenizer: Tokenizer, question: Question) -> tuple[list[int], list[int]]:
    prompt, answer = prompt_ids(tokenizer, question.text), answer_ids(tokenizer, question.answers[0])
    return prompt + answer[:-1], [IGNORE] * (len(prompt) - 1) + answer


def test_a_prompt_ends_with_the_one_special_token(tokenizer: Tokenizer) -> None:
    end = end_of_text_id(tokenizer)
    assert prompt_ids(tokenizer, "") == [end]
    for text in WORDS:
        for ids in (prompt_ids(tokenizer, f" {text} "), answer_ids(tokenizer, text)):
            assert ids[-1] == end and ids.count(end) == 1
            tokenizer.encode_special_tokens = False
            assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == text
    tokenizer.encode_special_tokens = False


def test_rows_hold_all_questions_and_only_answers_are_learnt(
    tokenizer: Tokenizer, asked: Asked, store: PixelStore
) -> None:
    batch = QuestionLoader(asked, tokenizer, 6, 3, store).batch(2)
    assert batch["pixels"].shape == (6, 3, 6, 8) and batch["pixels"].dtype == torch.uint8
    assert all(batch[name].dtype == torch.int64 for name in ("ids", "targets", "doc", "pos", "index"))
    assert batch["valid"].dtype == torch.bool
    assert np.array_equal(batch["pixels"].numpy(), store.pixels(batch["index"].numpy()))
    for picture, row in zip(batch["index"].tolist(), documents(batch), strict=True):
        assert row == [expected(tokenizer, question) for question in asked.questions[picture]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 6))
def test_of_many_questions_some_are_drawn(
    tokenizer: Tokenizer, asked: Asked, store: PixelStore, seed: int, step: int, most: int
) -> None:
    batch = QuestionLoader(asked, tokenizer, 4, seed, store, most=most).batch(step)
    for picture, row in zip(batch["index"].tolist(), documents(batch), strict=True):
        there = [expected(tokenizer, question) for question in asked.questions[picture]]
        assert len(row) == min(most, len(there)) and all(each in there for each in row)
        assert len({str(each) for each in row}) == len(row)


def test_every_question_is_drawn_in_time(tokenizer: Tokenizer, asked: Asked, store: PixelStore) -> None:
    loader = QuestionLoader(asked, tokenizer, COUNT, 1, store, most=2)
    seen = {str(each) for step in range(30) for row in documents(loader.batch(step)) for each in row}
    assert seen == {str(expected(tokenizer, each)) for several in asked.questions for each in several}


@pytest.mark.parametrize("most", [None, 2])
def test_resuming_is_exact(tokenizer: Tokenizer, asked: Asked, store: PixelStore, most: int | None) -> None:
    whole = [QuestionLoader(asked, tokenizer, 4, 1, store, most=most).batch(step) for step in range(9)]
    batches = list(prefetch(QuestionLoader(asked, tokenizer, 4, 1, store, most=most), 4, 9))
    assert len(batches) == 5 and all(equal(*pair) for pair in zip(batches, whole[4:], strict=True))
    other = QuestionLoader(asked, tokenizer, 4, 2, store, most=most)
    assert not all(equal(other.batch(step), whole[step]) for step in range(9))


def test_ranks_share_a_batch(tokenizer: Tokenizer, asked: Asked, store: PixelStore) -> None:
    whole = QuestionLoader(asked, tokenizer, 6, 1, store, most=2).batch(2)
    parts = [QuestionLoader(asked, tokenizer, 6, 1, store, rank, 3, most=2).batch(2) for rank in range(3)]
    assert torch.equal(torch.cat([part["pixels"] for part in parts]), whole["pixels"])
    assert [row for part in parts for row in documents(part)] == documents(whole)
    with pytest.raises(InputError, match=r"train\.batch_size 6 is not a multiple of 4 processes"):
        QuestionLoader(asked, tokenizer, 6, 1, store, 0, 4)


def test_evaluation_asks_all_once_in_order(tokenizer: Tokenizer, asked: Asked, store: PixelStore) -> None:
    batches = list(QuestionEvalLoader(asked, tokenizer, 4, store))
    assert [len(batch["index"]) for batch in batches] == [4, 4, 1]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(COUNT))
    rows = [row for batch in batches for row in documents(batch)]
    assert rows == [[expected(tokenizer, each) for each in several] for several in asked.questions]


def test_questions_longer_than_the_context_are_counted(tokenizer: Tokenizer, asked: Asked, store: PixelStore) -> None:
    lengths = [len(expected(tokenizer, each)[0]) for several in asked.questions for each in several]
    assert within(asked, tokenizer, max(lengths)) is asked
    limit = sorted(lengths)[len(lengths) // 4]
    kept = within(asked, tokenizer, limit)
    left = [len(expected(tokenizer, each)[0]) for several in kept.questions for each in several]
    assert sorted(left) == sorted(length for length in lengths if length <= limit)
    assert kept.dropped == {"questions longer than the context": len(lengths) - len(left)}
    assert all(kept.questions) and len(kept) == len(kept.questions)
    with pytest.raises(InputError, match="no question with its answer is within the context of 1 tokens"):
        within(asked, tokenizer, 1)
