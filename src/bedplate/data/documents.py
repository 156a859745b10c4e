"""Words of whole documents beside rows of text: what the document objective learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bedplate.data.loader import Batch, Loader
from bedplate.data.shards import TokenStream

PADDING = -1
LONGEST = 512  # tokens of a document that are looked at: a book is many documents of this length
PASSAGES = 16, 32, 64  # tokens of a passage: about a sentence, two, and a paragraph
COUNTED = 10_000_000  # tokens from which frequencies are taken
COMMON = 1e-4  # frequency above which a token counts less, as word2vec subsamples (arXiv 1310.4546, section 2.3)


class _Drawing:
    """The batches of another loader, with drawn documents.

    Args:
        loader: Gives this rank's rows (B, T).
        streams: Where documents are drawn from.
        batch_size: Rows of the global batch (all ranks together).
        drawn: Documents, or longest passages, of the global batch, a multiple of its rows, so that micro-batches share
            them.
        seed: Chooses documents and parts.
        rank, world_size: This process among all; it gets the documents of its rows.
        weights: Share of each stream, in any unit (None: by size).
    """

    def __init__(
        self,
        loader: Loader,
        streams: Sequence[TokenStream],
        batch_size: int,
        drawn: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._loader, self._documents, self._rows, self._seed = loader, Documents(streams, weights), batch_size, seed
        self._each = drawn // batch_size
        rows = batch_size // world_size
        self._own = slice(rank * rows, (rank + 1) * rows)

    def _beside(self, step: int, **parts: np.ndarray) -> Batch:
        """The loader's batch and this rank's rows of parts `(documents, W)`, as `(B, K, W)`."""
        shared = {name: part.reshape(self._rows, -1, part.shape[1])[self._own] for name, part in parts.items()}
        return self._loader.batch(step) | {name: torch.from_numpy(part) for name, part in shared.items()}


class DocumentLoader(_Drawing):
    """The batches of another loader, with documents whose words are parted into some that are given and some asked for.

    A document is drawn in proportion to its length, cut to `LONGEST` tokens around the place that was drawn. Each of
    its distinct tokens is given with a probability that is drawn for the document between 0.1 and 0.9, else asked for.
    Batches are a pure function of (seed, step).
    """

    def batch(self, step: int) -> Batch:
        """The loader's batch with `given` and `asked (B, K, W)` int64: distinct tokens, padded with -1."""
        generator = np.random.default_rng((self._seed, step))
        count = self._rows * self._each
        given, asked = [], []
        for place, share in zip(
            self._documents.places(generator, count), generator.uniform(0.1, 0.9, count), strict=True
        ):
            words = np.unique(self._documents.around(int(place)))
            is_given = generator.random(len(words)) < share
            given.append(words[is_given])
            asked.append(words[~is_given])
        return self._beside(step, given=_padded(given), asked=_padded(asked))


class PassageLoader(_Drawing):
    """The batches of another loader, with passages of documents and the other words of these documents.

    Documents are drawn as `DocumentLoader` draws them. A passage begins anywhere where all of it fits into the
    document; of a document that is shorter it is the whole, to which no other words belong. All passages of a step
    have one length, one of `PASSAGES`, and there are more of shorter ones: a step has as many tokens whatever it is.
    Batches are a pure function of (seed, step).
    """

    def batch(self, step: int) -> Batch:
        """The loader's batch with `passages (B, K, N)` and `others (B, K, W)`, distinct; int64, padded with -1."""
        generator = np.random.default_rng((self._seed, step, len(PASSAGES)))
        length = int(generator.choice(PASSAGES))
        count = self._rows * self._each * max(PASSAGES) // length
        passages, others = [], []
        for place, share in zip(self._documents.places(generator, count), generator.random(count), strict=True):
            tokens = self._documents.around(int(place))
            start = int(share * max(1, len(tokens) - length + 1))
            passages.append(tokens[start : start + length])
            others.append(np.setdiff1d(tokens, passages[-1]))
        return self._beside(step, passages=_padded(passages, length), others=_padded(others))


class Documents:
    """The documents of streams, found by the place of one of their tokens among all."""

    def __init__(self, streams: Sequence[TokenStream], weights: Sequence[float] | None = None) -> None:
        self._streams, self._sizes = list(streams), np.array([len(stream) for stream in streams])
        self._ends = np.cumsum(self._sizes)
        self._shares = None if weights is None else np.array(weights) / np.sum(weights)

    def places(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Places of tokens `(count,)`, drawn evenly; with weights, a stream by its share and then a place in it."""
        if self._shares is None:
            return generator.integers(0, self._ends[-1], count)
        drawn = generator.choice(len(self._streams), count, p=self._shares)
        sizes = self._sizes[drawn]
        return self._ends[drawn] - sizes + generator.integers(0, sizes)

    def around(self, place: int) -> np.ndarray:
        """At most `LONGEST` tokens around a place, of the document that it is in."""
        index = int(np.searchsorted(self._ends, place, side="right"))
        stream = self._streams[index]
        place -= int(self._ends[index]) - len(stream)
        start, stop = stream.document_around(place)
        start = max(start, min(place - LONGEST // 2, stop - LONGEST))
        return stream.tokens(start, min(stop - start, LONGEST))


def token_statistics(
    streams: Sequence[TokenStream], vocab_size: int, special: Sequence[int], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """(weight of each token, log-probability of drawing it with these weights) `(2, V)` fp32.

    A frequent token says little of a document: its weight is sqrt(`COMMON` / frequency), at most 1. Special tokens, and
    those that the text does not hold, have none. `weights` are the shares of the streams (None: by size).
    """
    share = COUNTED / max(COUNTED, sum(map(len, streams)))
    counts = np.zeros(vocab_size)
    for stream, weight in zip(streams, weights or [len(stream) for stream in streams], strict=True):
        read = stream.tokens(0, max(1, int(len(stream) * share)))
        counts += np.bincount(read, minlength=vocab_size)[:vocab_size] * (weight / len(read))
    counts[list(special)] = 0
    frequency = counts / counts.sum()
    rarity = np.minimum(1, np.sqrt(COMMON / np.maximum(frequency, 1e-12))) * (counts > 0)
    drawn = rarity * frequency
    return torch.from_numpy(np.stack([rarity, np.log(drawn / drawn.sum() + 1e-12)])).float()


def _padded(rows: list[np.ndarray], width: int = 1) -> np.ndarray:
    """Rows `(N, W)` as wide as the longest, and at least as wide as asked for."""
    width = max(width, *map(len, rows))
    out = np.full((len(rows), width), PADDING, np.int64)
    for row, words in zip(out, rows, strict=True):
        row[: len(words)] = words
    return out
