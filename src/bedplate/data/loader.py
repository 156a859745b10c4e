"""Batches from token streams, in an order that is a pure function of (seed, step): resuming needs the step alone."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bedplate.data import order
from bedplate.data.shards import TokenStream
from bedplate.errors import InputError

IGNORE = -100
"""Target that no loss counts (PyTorch's `ignore_index`)."""
MIXTURE_BLOCK = 1000
"""Samples in which a mixture's weights are met exactly."""
AHEAD = 2
"""Batches that `prefetch` keeps ready."""

Batch = dict[str, Tensor]


class Loader(Protocol):
    """What `prefetch` and the training loop need of a loader."""

    def batch(self, step: int) -> Batch:
        """Return the batch of one step."""


class TextLoader:
    """Batches for training, of windows of `sequence_length` tokens with targets shifted by one.

    Window w of an epoch covers tokens [offset + w T, offset + (w + 1) T) of a stream of L tokens, where the offset in
    [0, T) is drawn anew for each epoch, so that documents are not always cut at the same places. An epoch has
    max(1, (L - T) // T) windows, the number that fits any offset, in a pseudo-random order. Without weights the streams
    are joined: one epoch is all windows of all streams. With weights every 1,000 samples hold each stream in its share,
    to the sample, and each stream has epochs of its own.

    Args:
        streams: Where the tokens come from.
        weights: Positive share of each stream, in any unit; None joins the streams in proportion to their sizes.
        sequence_length: Tokens in a row (T).
        batch_size: Rows of the global batch (all ranks together).
        seed: Chooses the order.
        isolate_documents: Add `doc` and `pos`, and mask targets that belong to the next document.
        rank: This process; it gets rows [rank B / W, (rank + 1) B / W) of the global batch.
        world_size: Number of processes (W).

    Raises:
        InputError: A stream shorter than one window, weights that do not fit, or a batch that ranks cannot share.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        weights: Sequence[float] | None,
        sequence_length: int,
        batch_size: int,
        seed: int,
        isolate_documents: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"train.batch_size {batch_size} is not a multiple of {world_size} processes; choose one that is"
            )
        self._streams = list(streams)
        self._length, self._batch_size, self._seed = sequence_length, batch_size, seed
        self._isolate = isolate_documents
        rows = batch_size // world_size
        self._rows = np.arange(rank * rows, (rank + 1) * rows)
        self._windows = np.array([_windows(stream, sequence_length) for stream in streams])
        self._quotas = None if weights is None else mixture_quotas(weights, len(self._streams))

    def batch(self, step: int) -> Batch:
        """Return this rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `ids` and `targets` (B, T) int64, ignored targets -100; with `isolate_documents` also `doc` (B, T) int64,
            documents counted from 1 in each row, and `pos` (B, T) int64, counted from 0 in each document of a row.
        """
        stream, start = self._locate(step * self._batch_size + self._rows)
        rows = [
            _row(self._streams[i], first, self._length, self._length, self._isolate)
            for i, first in zip(stream.tolist(), start.tolist(), strict=True)
        ]
        return _collate(rows)

    def epoch(self, step: int) -> float:
        """Return how often the data has been read before `step`: samples so far over windows of all streams."""
        return step * self._batch_size / int(self._windows.sum())

    def _locate(self, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stream, first token) of each global sample, (n,) both."""
        if self._quotas is None:
            total = int(self._windows.sum())
            epoch, index = np.divmod(sample, total)
            place = order.permute(index, total, order.keys(self._seed, 0, epoch))
            bounds = np.cumsum(self._windows)
            stream = np.searchsorted(bounds, place, side="right")
            window = place - (bounds - self._windows)[stream]
        else:
            block, index = np.divmod(sample, MIXTURE_BLOCK)
            place = order.permute(index, MIXTURE_BLOCK, order.keys(self._seed, 1, block))
            bounds = np.cumsum(self._quotas)
            stream = np.searchsorted(bounds, place, side="right")
            nth = block * self._quotas[stream] + place - (bounds - self._quotas)[stream]  # of this stream's own samples
            epoch, index = np.divmod(nth, self._windows[stream])
            window = np.empty_like(index)
            for i in range(len(self._streams)):
                mine = stream == i
                key = order.keys(self._seed, 2, i, epoch[mine])
                window[mine] = order.permute(index[mine], int(self._windows[i]), key)
        return stream, self._offset(stream, epoch) + window * self._length

    def _offset(self, stream: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Where the windows of a stream begin in an epoch: in [0, T), or less where no T tokens are to spare."""
        lengths = np.array([len(tokens) for tokens in self._streams])[stream]
        choices = np.minimum(self._length, lengths - self._windows[stream] * self._length)
        return (order.keys(self._seed, 3, stream, epoch) % choices.astype(np.uint64)).astype(np.int64)


class EvalLoader:
    """All of a stream once, in order: consecutive windows, the last one padded on the right.

    Iterating gives batches as `TextLoader.batch` does, the last with fewer rows where they run out. Every token but the
    very first is a target exactly once (but for the first of each document when documents are isolated); padding has
    targets -100 and, when documents are isolated, a document number of its own.

    Args:
        stream: Where the tokens come from.
        sequence_length: Tokens in a row (T).
        batch_size: Rows of a batch.
        max_batches: So many batches of rows at equal distances, so that all parts of a text count; None for all.
        isolate_documents: As for `TextLoader`.
        rank, world_size: This process among all (W). It gets batches rank, rank + W, ...; where they run out, one
            without targets, so that every rank has as many.

    Raises:
        InputError: A stream of fewer than two tokens.
    """

    def __init__(
        self,
        stream: TokenStream,
        sequence_length: int,
        batch_size: int,
        max_batches: int | None = None,
        isolate_documents: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(stream) < 2:
            raise InputError(f"the evaluation text has {len(stream)} tokens, but 2 are needed; give more text")
        self._stream, self._length, self._batch_size = stream, sequence_length, batch_size
        self._isolate = isolate_documents
        self._starts: Sequence[int] = range(0, len(stream) - 1, sequence_length)
        if max_batches is not None and (rows := max_batches * batch_size) < len(self._starts):
            # Chosen one by one, so that ranks with fewer rows in a batch have the same ones.
            self._starts = [self._starts[i] for i in np.linspace(0, len(self._starts) - 1, rows).round().astype(int)]
        self._batches = -(-len(self._starts) // batch_size)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Count the batches of this rank."""
        return -(-self._batches // self._world_size)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._rank, len(self) * self._world_size, self._world_size):
            if step < self._batches:
                yield self.batch(step)
            else:
                last = self.batch(self._batches - 1)
                yield last | {"targets": torch.full_like(last["targets"], IGNORE)}

    def batch(self, step: int) -> Batch:
        """Return the batch at a place in the order."""
        starts = self._starts[step * self._batch_size : (step + 1) * self._batch_size]
        rows = []
        for start in starts:
            count = min(self._length, len(self._stream) - 1 - start)
            rows.append(_row(self._stream, start, count, self._length, self._isolate))
        return _collate(rows)


def prefetch(loader: Loader, start_step: int, stop_step: int, pin: bool = False) -> Generator[Batch]:
    """Yield the batches of steps [start_step, stop_step), made by a background thread that keeps two ready.

    With `pin` they lie in page-locked memory, from which a GPU copies while it computes. What the loader raises comes
    out here; closing the iterator ends the thread.
    """

    def make(step: int) -> Batch:
        batch = loader.batch(step)
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ready: deque[Future[Batch]] = deque()
        try:
            for step in range(start_step, stop_step):
                while len(ready) <= AHEAD and step + len(ready) < stop_step:
                    ready.append(pool.submit(make, step + len(ready)))
                yield ready.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def mixture_quotas(weights: Sequence[float], streams: int) -> np.ndarray:
    """Share out the samples of a block by largest remainders.

    Returns:
        (streams,) int64, at least 1 each, summing to `MIXTURE_BLOCK`.

    Raises:
        InputError: Not one finite positive weight a stream, or one too small for a single sample in a block.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if len(shares) != streams or not np.isfinite(shares).all() or (shares <= 0).any():
        raise InputError(f"data.weights {list(weights)}: give one positive number for each of the {streams} sources")
    exact = shares / shares.sum() * MIXTURE_BLOCK
    quotas = np.floor(exact).astype(np.int64)
    left = MIXTURE_BLOCK - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    if (quotas == 0).any():
        raise InputError(
            f"data.weights {list(weights)}: a source with less than 1/{MIXTURE_BLOCK} of the sum would never be read; "
            f"raise its weight or leave it out"
        )
    return quotas


def _windows(stream: TokenStream, length: int) -> int:
    if len(stream) < length + 1:
        raise InputError(
            f"the training text has {len(stream):,} tokens, but one window needs {length + 1:,}; "
            f"choose a smaller train.sequence_length or give more data"
        )
    return max(1, (len(stream) - length) // length)


def _row(stream: TokenStream, start: int, count: int, length: int, isolate: bool) -> dict[str, np.ndarray]:
    """One row of `length` inputs, the first `count` of them tokens from `start` on, the others padding."""
    tokens = stream.tokens(start, count + 1)
    row = {"ids": np.zeros(length, np.int64), "targets": np.full(length, IGNORE, np.int64)}
    row["ids"][:count] = tokens[:-1]
    row["targets"][:count] = tokens[1:]
    if isolate:
        of = stream.documents_of(start, count + 1)
        row["targets"][:count][of[1:] != of[:-1]] = (
            IGNORE  # nothing in a document foretells the first token of the next
        )
        doc = np.full(length, of[count - 1] + 1, np.int64)
        doc[:count] = of[:-1]
        place = np.arange(length)
        begins = np.r_[True, doc[1:] != doc[:-1]]
        row["doc"] = doc - of[0] + 1
        row["pos"] = place - np.maximum.accumulate(np.where(begins, place, 0))
    return row


def _collate(rows: list[dict[str, np.ndarray]]) -> Batch:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
