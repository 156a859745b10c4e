"""Batches of whole examples, several to a row: an example is never cut, and hardly any place is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bedplate.data import order
from bedplate.data.chat import Example
from bedplate.data.loader import IGNORE, Batch
from bedplate.errors import InputError


class PackedLoader:
    """Batches for training, in an order that is a pure function of (seed, step).

    Examples are packed into rows once, by best-fit decreasing: the longest first, each into the fullest row that has
    room (Johnson et al. 1974). An epoch is all rows in an order of its own, and epochs follow each other without a gap,
    so that a batch may hold the end of one and the beginning of the next.

    Args:
        examples: (ids, targets), as `ChatEncoder.example` gives them.
        sequence_length: Tokens in a row (T).
        batch_size: Rows of the global batch (all ranks together).
        seed: Chooses the order.
        rank: This process; it gets rows [rank B / W, (rank + 1) B / W) of the global batch.
        world_size: Number of processes (W).

    Attributes:
        rows: Rows of an epoch.
        fill: Share of an epoch's places that hold a token.

    Raises:
        InputError: No example, an example longer than a row, or a batch that ranks cannot share.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        sequence_length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"train.batch_size {batch_size} is not a multiple of {world_size} processes; choose one that is"
            )
        self._examples, self._length, self._batch_size, self._seed = examples, sequence_length, batch_size, seed
        lengths = _lengths(examples, sequence_length)
        self._packed = best_fit(lengths, sequence_length)
        self.rows = len(self._packed)
        self.fill = sum(lengths) / (self.rows * sequence_length)
        share = batch_size // world_size
        self._mine = np.arange(rank * share, (rank + 1) * share)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every example has been seen: the last may begin the next epoch."""
        return -(-self.rows // self._batch_size)

    def epoch(self, step: int) -> float:
        """Return how often the examples have been seen before `step`."""
        return step * self._batch_size / self.rows

    def batch(self, step: int) -> Batch:
        """Return this rank's rows of the batch of one step (B = batch_size / world_size).

        Returns:
            `ids`, `targets`, `doc` and `pos` (B, T) int64: examples are documents, counted from 1 in each row, with
            places counted from 0 in each; padding is a document of its own with targets -100.
        """
        epoch, index = np.divmod(step * self._batch_size + self._mine, self.rows)
        place = order.permute(index, self.rows, order.keys(self._seed, epoch))
        return _collate([[self._examples[i] for i in self._packed[row]] for row in place], self._length)


class PackedEvalLoader:
    """All examples once, in order: each in the row of the one before where there is room, else in a new one.

    Iterating gives batches as `PackedLoader.batch` does, the last with fewer rows where they run out.
    """

    def __init__(self, examples: Sequence[Example], sequence_length: int, batch_size: int) -> None:
        self._examples, self._length, self._batch_size = examples, sequence_length, batch_size
        self._packed: list[list[int]] = []
        room = 0
        for index, length in enumerate(_lengths(examples, sequence_length)):
            if length > room:
                self._packed.append([])
                room = sequence_length
            self._packed[-1].append(index)
            room -= length

    def __len__(self) -> int:
        """Count the batches."""
        return -(-len(self._packed) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._packed), self._batch_size):
            packed = self._packed[start : start + self._batch_size]
            yield _collate([[self._examples[i] for i in row] for row in packed], self._length)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in rows whose sums are at most `capacity`, by best-fit decreasing."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    rooms = 0  # bit r is set where a row with room r is open: the least room that is enough is found at once
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        open_rows[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows


def _lengths(examples: Sequence[Example], sequence_length: int) -> list[int]:
    lengths = [len(ids) for ids, _ in examples]
    if not lengths:
        raise InputError("there is no example; give more data")
    if max(lengths) > sequence_length:
        raise InputError(
            f"example {lengths.index(max(lengths))} has {max(lengths):,} tokens, a row has {sequence_length:,}; "
            "choose a larger train.sequence_length"
        )
    return lengths


def _collate(rows: list[list[Example]], length: int) -> Batch:
    batch = {name: np.zeros((len(rows), length), np.int64) for name in ("ids", "targets", "doc", "pos")}
    batch["targets"].fill(IGNORE)
    for row, examples in enumerate(rows):
        at = 0
        for number, (ids, targets) in enumerate(examples, 1):
            place = slice(at, at + len(ids))
            batch["ids"][row, place], batch["targets"][row, place] = ids, targets
            batch["doc"][row, place], batch["pos"][row, place] = number, np.arange(len(ids))
            at += len(ids)
        batch["doc"][row, at:], batch["pos"][row, at:] = len(examples) + 1, np.arange(length - at)
    return {name: torch.from_numpy(values) for name, values in batch.items()}
