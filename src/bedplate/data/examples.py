"""Batches of labelled token rows, sorted by length so that hardly anything is padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.tokenizer import affixes, literal
from bedplate.errors import InputError

Batch = dict[str, Tensor]

READING = "classify"
"""Key of tokenizer_config.json under which a classifier keeps how it was taught to read texts."""

SORTED = 32
"""Batches that are cut from one stretch of shuffled rows sorted by length: enough for little padding, few enough for
batches to differ from epoch to epoch."""


@dataclass(frozen=True)
class Reading:
    """How a classifier reads texts.

    Attributes:
        sequence_length: Tokens of a row; a longer text is read in windows.
        max_tokens: Tokens after which a text is cut, those around it counted; None for no limit.
        framed: Whether a row stands between what the tokenizer puts around a text, such as BERT's [CLS] and [SEP] or
            Llama's <s>; False only of causal classifiers that were saved before this was told.
    """

    sequence_length: int
    max_tokens: int | None = None
    framed: bool = True

    @staticmethod
    def of(tokenizer_config: Mapping[str, Any], context: int, is_encoder: bool) -> Reading:
        """As a model directory says; where it does not, rows of its context, at most 512 tokens.

        Raises:
            InputError: it says something else than lengths that fit.
        """
        values = tokenizer_config.get(READING)
        if values is None:
            return Reading(min(context, 512))
        values = {"framed": is_encoder, **values} if isinstance(values, Mapping) else {}
        lengths = values.get("sequence_length"), values.get("max_tokens")
        if not (
            values.keys() == {"sequence_length", "max_tokens", "framed"}
            and isinstance(values["framed"], bool)
            and all(type(length) is int and length > 0 for length in lengths if length is not None)
            and 0 < (lengths[0] or 0) <= context
        ):
            told = tokenizer_config[READING]
            raise InputError(f"tokenizer_config.json: '{READING}' holds {told!r}, no lengths of texts; save it again")
        return Reading(**values)

    def rows(self, tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[int] | None = None) -> Rows:
        """The texts as rows; see `encode_rows`."""
        return encode_rows(tokenizer, texts, labels, self.sequence_length, self.max_tokens, self.framed)

    def to_config(self) -> dict[str, Any]:
        """{`READING`: values}, as `of` reads them."""
        return {READING: asdict(self)}


@dataclass(frozen=True)
class Rows:
    """Token rows, each a text or a window of one.

    Attributes:
        ids: Token ids of each row, none empty.
        text: Number of the text that a row is from (R,), ascending from 0 without gaps.
        labels: Label of each text (T,) int64; -1 where it is not known.
        windowed: Texts of more than one row.
        truncated: Texts whose end was left out.
        targets: What is learnt of each text, where that is not its label: probabilities of the labels (T, C) fp32.
    """

    ids: list[list[int]]
    text: np.ndarray
    labels: np.ndarray
    windowed: int
    truncated: int
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def encode_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[int] | None,
    sequence_length: int,
    max_tokens: int | None = None,
    framed: bool = False,
) -> Rows:
    """Tokenise texts into rows of at most `sequence_length` tokens.

    A longer text is read in windows of that length, the last of which ends with the text and overlaps the one before.
    Special tokens that a text spells out are encoded as plain text.

    Args:
        labels: Index of each text's label; None where there are none.
        max_tokens: Tokens after which a text is cut, those around it counted, so that as many as a row holds make one
            row; None for no limit.
        framed: Whether each row stands between what the tokenizer puts around a text, such as BERT's [CLS] and [SEP].

    Raises:
        InputError: nothing fits between these.
    """
    encoded = [each.ids for each in literal(tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)]
    before, behind = affixes(tokenizer) if framed else ([], [])
    room = sequence_length - len(before) - len(behind)
    if room < 1:
        raise InputError(f"sequence_length={sequence_length} has no room beside the tokens around a text; give more")
    most = None if max_tokens is None else max_tokens - len(before) - len(behind)
    if most is not None and most < 1:
        raise InputError(f"max_tokens={max_tokens} has no room beside the tokens around a text; give more")
    ids: list[list[int]] = []
    text: list[int] = []
    windowed = truncated = 0
    for number, tokens in enumerate(encoded):
        if most is not None and len(tokens) > most:
            tokens, truncated = tokens[:most], truncated + 1
        rows = [before + row + behind for row in _windows(tokens, room)]
        windowed += len(rows) > 1
        ids += rows
        text += [number] * len(rows)
    known = np.full(len(encoded), -1, np.int64) if labels is None else np.asarray(labels, np.int64)
    return Rows(ids, np.array(text, np.int64), known, windowed, truncated)


class SortedLoader:
    """Batches for training, of rows of like length; a pure function of (seed, step), so resuming needs the step alone.

    An epoch shuffles all rows, sorts each stretch of `SORTED` batches by length, cuts it into batches, and shuffles
    the batches. Every row comes once an epoch; an epoch's last batch may be smaller.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._lengths = np.array([len(ids) for ids in rows.ids])
        self._epoch_of = lru_cache(maxsize=2)(self._plan)  # two: prefetching crosses the border of an epoch

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def batch(self, step: int) -> Batch:
        """`ids (B, N)` int64 padded with 0, `lengths (B,)`, `labels (B,)`; `targets (B, C)` where rows have them."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return _collate(self._rows, self._epoch_of(epoch)[place])

    def _plan(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng((self._seed, epoch))
        shuffled = generator.permutation(len(self._rows))
        stretch, batches = SORTED * self._batch_size, []
        for start in range(0, len(shuffled), stretch):
            part = shuffled[start : start + stretch]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch_size] for i in range(0, len(part), self._batch_size)]
        return [batches[i] for i in generator.permutation(len(batches))]


class SortedEvalLoader:
    """All rows once, shortest first, in batches of at most `tokens` tokens with padding; batches have `text` too.

    `most` limits the rows of a batch, where it is given.
    """

    def __init__(self, rows: Rows, tokens: int = 8192, most: int | None = None) -> None:
        self._rows = rows
        lengths = np.array([len(ids) for ids in rows.ids])
        self._batches: list[np.ndarray] = []
        start, by_length = 0, np.argsort(lengths, kind="stable")
        for stop in range(1, len(by_length) + 1):
            full = stop - start == most
            if stop == len(by_length) or full or (stop + 1 - start) * lengths[by_length[stop]] > tokens:
                self._batches.append(by_length[start:stop])
                start = stop

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for index in self._batches:
            yield _collate(self._rows, index) | {"text": torch.from_numpy(self._rows.text[index])}


def _collate(rows: Rows, index: np.ndarray) -> Batch:
    picked = [rows.ids[i] for i in index]
    lengths = np.array([len(ids) for ids in picked])
    ids = np.zeros((len(picked), lengths.max()), np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(picked)
    text = rows.text[index]
    arrays = {"ids": ids, "lengths": lengths, "labels": rows.labels[text]}
    if rows.targets is not None:
        arrays["targets"] = rows.targets[text]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _windows(tokens: list[int], length: int) -> list[list[int]]:
    """Cut into windows; an empty text (of only unknown characters, say) becomes one row of the padding token."""
    if len(tokens) <= length:
        return [tokens or [0]]
    starts = [*range(0, len(tokens) - length, length), len(tokens) - length]
    return [tokens[start : start + length] for start in starts]
