"""Batches of pictures with questions as tokens, in an order that is a pure function of (seed, step).

A question with its answer is one document, and the documents of a picture share a row:

    question <|endoftext|> answer <|endoftext|>     learnt: the answer and the token that ends it
    <|endoftext|> caption <|endoftext|>             the empty question

The end-of-text token stands between the two, as it does between the documents of pre-training: any vocabulary of ours
or of others has it, an answer begins where a document did, and no model reads the token that ends an answer, so what
it reads as end of text always says "answer now". A text that spells the token is plain text, so that it forges none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bedplate.data import order
from bedplate.data.loader import IGNORE
from bedplate.data.picture_order import Batch, InOrder, Shuffled
from bedplate.data.pixel_store import PixelStore
from bedplate.data.questions import Asked
from bedplate.data.tokenizer import end_of_text_id, literal
from bedplate.errors import InputError

TOO_LONG = "questions longer than the context"
Tokens = list[int]


def prompt_ids(tokenizer: Tokenizer, question: str) -> Tokens:
    """What a model reads before it answers, in training and at work; "" asks for a caption. Never empty."""
    return [*_texts(tokenizer, [question])[0], end_of_text_id(tokenizer)]


def answer_ids(tokenizer: Tokenizer, answer: str) -> Tokens:
    """What it has to write behind `prompt_ids`: the answer and the token that ends it."""
    return [*_texts(tokenizer, [answer])[0], end_of_text_id(tokenizer)]


def _texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Tokens of texts without special ones; those that a text spells are plain text."""
    stripped = [text.strip() for text in texts]
    return [encoding.ids for encoding in literal(tokenizer).encode_batch_fast(stripped, add_special_tokens=False)]


def within(asked: Asked, tokenizer: Tokenizer, context_length: int) -> Asked:
    """The data without questions that have more tokens, answer included, than a context holds; `dropped` counts them.

    Raises:
        InputError: None is left.
    """
    kept, long = [], 0
    for questions, documents in zip(asked.questions, _documents(asked, tokenizer), strict=True):
        lengths = [len(ids) for ids, _ in documents]
        kept.append(tuple(q for q, n in zip(questions, lengths, strict=True) if n <= context_length))
        long += sum(n > context_length for n in lengths)
    if not long:
        return asked
    if not any(kept):
        raise InputError(
            f"{asked.sources[0]} and the others: no question with its answer is within the context of {context_length} "
            "tokens; choose a longer context, or give shorter texts"
        )
    dropped = asked.dropped | {TOO_LONG: asked.dropped.get(TOO_LONG, 0) + long}
    return replace(asked, questions=kept, dropped=dropped).select([i for i, each in enumerate(kept) if each])


class QuestionLoader(Shuffled):
    """Batches for training: every picture that is not broken once an epoch, with its questions as documents of a row.

    All batches are full: one may hold the end of an epoch and the beginning of the next.

    Args:
        asked: The pictures and questions, see `within`.
        tokenizer: Of the model; needs an end-of-text token.
        batch_size: Pictures of the global batch (all ranks together).
        seed: Chooses the order, and which questions are asked.
        store: The pixels of `asked`.
        most: Questions of a picture in one step; of more, as many are drawn by (seed, step). None for all.
        rank, world_size: This process among all (W); it gets rows [rank B / W, (rank + 1) B / W) of the global batch.

    Raises:
        InputError: A batch that ranks cannot share, or a tokenizer without an end-of-text token.
    """

    def __init__(
        self,
        asked: Asked,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        store: PixelStore,
        rank: int = 0,
        world_size: int = 1,
        *,
        most: int | None = None,
    ) -> None:
        assert most is None or most > 0
        self._asked, self._most = _Rows(asked, tokenizer, store), most
        super().__init__(store.usable, self._asked, batch_size, seed, rank, world_size)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size, L tokens of the longest row).

        Returns:
            `pixels` uint8 (B, 3, H, W). Of the tokens (B, L): `ids` int64; `targets` int64, the token after each, -100
            where that is not part of an answer; `doc` int64, 1, 2, ... by question, never 0; `pos` int64, from 0 in
            each question; `valid` bool, False where a row is filled up. `index` int64 (B,) of the pictures.
        """
        index = self.index(step)
        return self._asked(index, [self._drawn(step, picture) for picture in index.tolist()])

    def _drawn(self, step: int, picture: int) -> list[int]:
        """The numbers of the questions that are asked of a picture."""
        there = self._asked.count(picture)
        if self._most is None or there <= self._most:
            return list(range(there))
        return order.permute(np.arange(self._most), there, order.keys(self._seed, 1, step, picture)).tolist()


class QuestionEvalLoader(InOrder):
    """All pictures that are not broken once, in their order, with all their questions, as `QuestionLoader.batch` gives.

    Document d of a row is `asked.questions[index][d - 1]`.

    Args:
        asked: The pictures and questions.
        tokenizer: Of the model.
        batch_size: Pictures of a batch; the last has fewer where they run out.
        store: The pixels of `asked`.
        max_batches: Stop after so many batches; None for all.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out the last
            one again, so that every rank has as many.
    """

    def __init__(
        self,
        asked: Asked,
        tokenizer: Tokenizer,
        batch_size: int,
        store: PixelStore,
        max_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(store.usable, _Rows(asked, tokenizer, store), batch_size, max_batches, rank, world_size)


class _Rows:
    """Makes a batch of pictures by their numbers, with all their questions or some."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer, store: PixelStore) -> None:
        assert len(asked) == len(store)
        self._store, self._documents = store, _documents(asked, tokenizer)

    def count(self, picture: int) -> int:
        return len(self._documents[picture])

    def __call__(self, index: NDArray[np.int64], chosen: Sequence[Sequence[int]] | None = None) -> Batch:
        numbers = chosen or [range(self.count(picture)) for picture in index.tolist()]
        rows = [[self._documents[i][n] for n in each] for i, each in zip(index.tolist(), numbers, strict=True)]
        length = max(sum(len(ids) for ids, _ in row) for row in rows)
        batch = {name: np.zeros((len(rows), length), np.int64) for name in ("ids", "targets", "doc", "pos")}
        batch["targets"].fill(IGNORE)
        valid = np.zeros((len(rows), length), bool)
        for row, documents in enumerate(rows):
            at = 0
            for number, (ids, targets) in enumerate(documents, 1):
                place = slice(at, at + len(ids))
                batch["ids"][row, place], batch["targets"][row, place] = ids, targets
                batch["doc"][row, place], batch["pos"][row, place] = number, np.arange(len(ids))
                at += len(ids)
            valid[row, :at], batch["doc"][row, at:] = True, len(documents) + 1
        return {
            "pixels": torch.from_numpy(self._store.pixels(index)),
            **{name: torch.from_numpy(values) for name, values in batch.items()},
            "valid": torch.from_numpy(valid),
            "index": torch.from_numpy(index),
        }


Document = tuple[NDArray[np.int32], NDArray[np.int32]]
"""ids and targets (N,) of one question and its answer."""


def _documents(asked: Asked, tokenizer: Tokenizer) -> list[list[Document]]:
    """The documents of each picture; equal ones are one object."""
    pairs = [[(each.text, each.answers[0]) for each in several] for several in asked.questions]
    distinct = list(dict.fromkeys(pair for several in pairs for pair in several))
    texts = list(dict.fromkeys(text for pair in distinct for text in pair))
    end = end_of_text_id(tokenizer)
    tokens = {text: [*ids, end] for text, ids in zip(texts, _texts(tokenizer, texts), strict=True)}
    document = {}
    for question, answer in distinct:
        prompt = tokens[question]
        whole = np.array(prompt + tokens[answer], np.int32)
        targets = np.where(np.arange(1, len(whole)) < len(prompt), np.int32(IGNORE), whole[1:])
        document[question, answer] = whole[:-1], targets
    return [[document[pair] for pair in several] for several in pairs]
