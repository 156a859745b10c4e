"""Words of whole documents beside rows of text: what the document objective learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bedplate.data.loader import Batch, Loader
from bedplate.data.shards import TokenStream

PADDING = -1
LONGEST = 512  # tokens of a document that are looked at: a book is many documents of this length
COUNTED = 10_000_000  # tokens from which frequencies are taken
COMMON = 1e-4  # frequency above which a token counts less, as word2vec subsamples (arXiv 1310.4546, section 2.3)


class DocumentLoader:
    """The batches of another loader, with documents whose words are parted into some that are given and some asked for.

    A document is drawn in proportion to its length, cut to `LONGEST` tokens around the place that was drawn. Each of
    its distinct tokens is given with a probability that is drawn for the document between 0.1 and 0.9, else asked for.
    Batches are a pure function of (seed, step).

    Args:
        loader: Gives this rank's rows (B, T).
        streams: Where documents are drawn from.
        batch_size: Rows of the global batch (all ranks together).
        documents: Documents of the global batch, a multiple of its rows, so that micro-batches share them.
        seed: Chooses documents and parts.
        rank, world_size: This process among all; it gets the documents of its rows.
    """

    def __init__(
        self,
        loader: Loader,
        streams: Sequence[TokenStream],
        batch_size: int,
        documents: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._loader, self._streams, self._rows, self._seed = loader, list(streams), batch_size, seed
        self._each = documents // batch_size
        rows = batch_size // world_size
        self._own = slice(rank * rows, (rank + 1) * rows)
        self._ends = np.cumsum([len(stream) for stream in streams])

    def batch(self, step: int) -> Batch:
        """The loader's batch with `given` and `asked (B, K, W)` int64: distinct tokens, padded with -1."""
        generator = np.random.default_rng((self._seed, step))
        count = self._rows * self._each
        given, asked = [], []
        for place, share in zip(
            generator.integers(0, self._ends[-1], count), generator.uniform(0.1, 0.9, count), strict=True
        ):
            words = np.unique(self._document(int(place)))
            is_given = generator.random(len(words)) < share
            given.append(words[is_given])
            asked.append(words[~is_given])
        shape = self._rows, self._each, -1
        parts = {"given": _padded(given).reshape(shape), "asked": _padded(asked).reshape(shape)}
        return self._loader.batch(step) | {name: torch.from_numpy(part[self._own]) for name, part in parts.items()}

    def _document(self, place: int) -> np.ndarray:
        """At most `LONGEST` tokens around a place, of the document that it is in."""
        index = int(np.searchsorted(self._ends, place, side="right"))
        stream = self._streams[index]
        place -= int(self._ends[index]) - len(stream)
        start, stop = stream.document_around(place)
        start = max(start, min(place - LONGEST // 2, stop - LONGEST))
        return stream.tokens(start, min(stop - start, LONGEST))


def token_statistics(streams: Sequence[TokenStream], vocab_size: int, special: Sequence[int]) -> torch.Tensor:
    """(weight of each token, log-probability of drawing it with these weights) `(2, V)` fp32.

    A frequent token says little of a document: its weight is sqrt(`COMMON` / frequency), at most 1. Special tokens, and
    those that the text does not hold, have none.
    """
    share = COUNTED / max(COUNTED, sum(map(len, streams)))
    counts = np.zeros(vocab_size)
    for stream in streams:
        counts += np.bincount(stream.tokens(0, max(1, int(len(stream) * share))), minlength=vocab_size)[:vocab_size]
    counts[list(special)] = 0
    frequency = counts / counts.sum()
    weight = np.minimum(1, np.sqrt(COMMON / np.maximum(frequency, 1e-12))) * (counts > 0)
    drawn = weight * frequency
    return torch.from_numpy(np.stack([weight, np.log(drawn / drawn.sum() + 1e-12)])).float()


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    width = max(1, *map(len, rows))
    out = np.full((len(rows), width), PADDING, np.int64)
    for row, words in zip(out, rows, strict=True):
        row[: len(words)] = words
    return out
