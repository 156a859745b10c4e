"""Batches of pictures with a text each; order and texts are pure functions of (seed, step): resuming needs no more."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.order import keys
from bedplate.data.pairs import Pairs, drawn_text
from bedplate.data.picture_order import Batch, InOrder, Mates, Shuffled
from bedplate.data.pixel_store import PixelStore
from bedplate.data.tokenizer import end_of_text_id, literal
from bedplate.errors import InputError

KEPT = 2**17
"""Texts whose tokens are remembered."""
PLAIN = ("{}",)


class TextEncoder:
    """Texts as rows of token ids, each behind what the tokenizer puts before a text and with the end token after it.

    Args:
        tokenizer: Has an end-of-text token.
        context: Most tokens of a row, the end token included; longer texts lose their end.

    Attributes:
        end: The end token, which also fills up rows.
        cut: Different texts that were cut so far.

    Raises:
        InputError: The tokenizer has no end token.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, end: int | None = None) -> None:
        assert context >= 2
        self.tokenizer, self.context, self.cut = literal(tokenizer), context, 0
        self.end = end_of_text_id(tokenizer) if end is None else end
        self._row = lru_cache(maxsize=KEPT)(self._encode)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids `(B, L)` int64, as long as the longest text; the others are filled up with the end token."""
        rows = [self._row(text) for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=1)), self.end, np.int64)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(ids)

    def shortened(self, texts: Iterable[str], setting: str) -> list[str]:
        """What to say of the texts that lose their end, if any does; of very many, the first `KEPT` are asked."""
        asked, before = dict.fromkeys(islice(texts, KEPT)), self.cut
        for text in asked:
            self._row(text)
        cut = self.cut - before
        said = f"{cut:,} of {len(asked):,} texts are longer than {setting}={self.context} tokens and lose their end."
        return [said] if cut else []

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text).ids
        # An end token before the text, as encoders have it, would end it; one behind it is written below.
        first = next((place for place, token in enumerate(ids) if token != self.end), len(ids))
        ids = ids[first:]
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        self.cut += len(ids) >= self.context
        return [*ids[: self.context - 1], self.end]


class PairLoader(Shuffled):
    """Batches for training: every picture that is not broken once an epoch, each time with a text drawn anew.

    All batches are full: one may hold the end of an epoch and the beginning of the next.

    Args:
        pairs: The pictures and texts.
        encoder: Of the texts.
        batch_size: Pictures of the global batch (all ranks together).
        seed: Chooses the order and the texts.
        store: The pixels of `pairs`.
        rank, world_size: This process among all (W); it gets rows [rank B / W, (rank + 1) B / W) of the global batch.
        templates: What texts are put into, see `pairs.drawn_text`.
        mates: Every second row of a batch is a mate of the row before it: another picture of its group, or where it is
            the only one itself. An epoch counts the first ones alone.

    Raises:
        InputError: A batch that ranks cannot share, or a template without its place for a text.
    """

    def __init__(
        self,
        pairs: Pairs,
        encoder: TextEncoder,
        batch_size: int,
        seed: int,
        store: PixelStore,
        rank: int = 0,
        world_size: int = 1,
        *,
        templates: Sequence[str] = PLAIN,
        mates: bool = False,
    ) -> None:
        assert len(pairs) == len(store)
        self._pairs, self._encoder, self._templates = pairs, encoder, check_templates(templates)
        super().__init__(store.usable, partial(_pictures, store, pairs.targets), batch_size, seed, rank, world_size)
        self._mates = Mates(store.usable, pairs.targets) if mates else None
        if mates:
            assert batch_size % 2 == 0
            self._drawn_a_step = batch_size // 2

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `pixels` uint8 (B, 3, H, W); `ids` int64 (B, L), each text with the end token, filled up with the end token;
            `group` int64 (B,), equal where pictures mean the same, and `text` int64 (B,), equal where ids are;
            `index` int64 (B,) of the pictures, `row` int64 (B,) of the global batch.
        """
        return super().batch(step) | _read(self._encoder, self.texts(step)) | {"row": torch.from_numpy(self._rows)}

    def index(self, step: int) -> NDArray[np.int64]:
        """(B,) numbers of the pictures of this rank's rows of the batch of one step."""
        if self._mates is None:
            return super().index(step)
        first = self._at(step * self._drawn_a_step + self._rows // 2)
        return np.where(self._rows % 2, self._mates(first, keys(self._seed, 1, step, self._rows)), first)

    def texts(self, step: int) -> list[str]:
        """The texts of this rank's rows of the batch of one step."""
        pairs = self._pairs
        return [
            drawn_text(pairs.texts[i], self._templates, self._seed, step, row, pairs.whole[i] if pairs.whole else None)
            for i, row in zip(self.index(step).tolist(), self._rows.tolist(), strict=True)
        ]


class PairEvalLoader(InOrder):
    """All pictures that are not broken once, in their order, each with its first text in the first template.

    Args:
        pairs, encoder, store, templates: As of `PairLoader`.
        batch_size: Pictures of a batch; the last has fewer where they run out.
        max_batches: Stop after so many batches; None for all.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out the last
            one again, so that every rank has as many.
    """

    def __init__(
        self,
        pairs: Pairs,
        encoder: TextEncoder,
        batch_size: int,
        store: PixelStore,
        max_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        templates: Sequence[str] = PLAIN,
    ) -> None:
        assert len(pairs) == len(store)
        template, targets = check_templates(templates)[0], pairs.targets

        def collate(index: NDArray[np.int64]) -> Batch:
            texts = [template.replace("{}", pairs.texts[i][0]) for i in index.tolist()]
            return _pictures(store, targets, index) | _read(encoder, texts)

        super().__init__(store.usable, collate, batch_size, max_batches, rank, world_size)


def check_templates(templates: Sequence[str]) -> list[str]:
    """The templates, where each has exactly one place for a text.

    Raises:
        InputError: One that has not, or none at all.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"template {template!r} must have one {{}}, where the text belongs: a picture of {{}}")
    if not templates:
        raise InputError('no template is given; "{}" shows a text as it is')
    return list(templates)


def _read(encoder: TextEncoder, texts: Sequence[str]) -> Batch:
    """`ids` of the texts and `text` int64 (B,), equal where a model cannot tell them apart: in capitals, cut short."""
    ids = encoder(texts)
    whole = (row[row != encoder.end].tobytes() for row in ids.numpy())
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in whole)
    return {"ids": ids, "text": torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))}


def _pictures(store: PixelStore, targets: NDArray[np.int64], index: NDArray[np.int64]) -> Batch:
    return {
        "pixels": torch.from_numpy(store.pixels(index)),
        "group": torch.from_numpy(targets[index]),
        "index": torch.from_numpy(index),
    }
